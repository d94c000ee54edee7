"""Programs that learn from texts: small language models, their samples, fine-tuning on texts of unequal length, and DPO.

N: texts    T: letters of a text    V: letters    D: width
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F


def program_01(seed=0, steps=300):
    """A letter model learns by stochastic gradient descent from pages of which a few are stained."""
    torch.manual_seed(seed)
    language = (2 * torch.randn(8, 8)).softmax(-1)  # the next letter, by the letter before
    model = nn.Sequential(nn.Embedding(8, 32), nn.Tanh(), nn.Linear(32, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    curves = {"loss": [], "gradient_norm": [], "moved": []}

    def batch(step):
        """Texts (32, 13) of the language; one page in twenty is a stain, the same letter throughout."""
        if step % 20 == 19:
            return torch.full((32, 13), int(torch.randint(8, ())))
        text = torch.randint(8, (32, 1))
        for _ in range(12):
            text = torch.cat([text, language[text[:, -1]].multinomial(1)], 1)
        return text

    for step in range(steps):
        text = batch(step)
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = (nn.utils.parameters_to_vector(model.parameters()) - before).norm()
        for name, value in zip(curves, (loss, norm, moved)):
            curves[name].append(value.item())
    return {"curves": curves, "language": language.tolist()}


def program_07(seed=0, steps=400):
    """A transformer of four attention layers learns texts that repeat themselves, and goes on with some."""
    torch.manual_seed(seed)
    letters, places, out = nn.Embedding(8, 48), nn.Embedding(24, 48), nn.Linear(48, 8)
    layers = nn.ModuleList(nn.Linear(48, 3 * 48) for _ in range(4))
    optimizer = torch.optim.Adam([*letters.parameters(), *places.parameters(), *layers.parameters(), *out.parameters()], lr=3e-3)
    causal = torch.ones(24, 24).triu(1).bool()  # True: not to be looked at

    def forward(text, mask=None):
        x = letters(text) + places.weight[: text.shape[1]]  # (N, T, D)
        for layer in layers:
            q, k, v = layer(x).chunk(3, -1)
            attention = q @ k.transpose(1, 2) / math.sqrt(48)  # (N, T, T)
            if mask is not None:
                attention = attention.masked_fill(mask[: text.shape[1], : text.shape[1]], -torch.inf)
            x = x + attention.softmax(-1) @ v
        return out(x)  # (N, T, V)

    def texts(count, length):
        """Texts (count, length), each of 3 to 6 drawn letters, said over and over."""
        return torch.randint(8, (count, 6)).gather(1, torch.arange(length) % torch.randint(3, 7, (count, 1)))

    curves = {"loss": []}
    for _ in range(steps):
        text = texts(32, 25)
        logits = forward(text[:, :-1], causal)
        loss = F.cross_entropy(logits[:, 11:].flatten(0, 1), text[:, 12:].flatten())  # from where they can be known
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["loss"].append(loss.item())
    text = texts(64, 12)
    with torch.no_grad():
        for _ in range(12):
            probabilities = forward(text)[:, -1].softmax(-1)
            text = torch.cat([text, probabilities.multinomial(1)], 1)
    return {"curves": curves, "samples": ["".join("abcdefgh"[i] for i in row) for row in text.tolist()]}


def program_09(seed=0, steps=400):
    """Fine-tuning on texts of unequal length: the model should write such texts, and end them."""
    torch.manual_seed(seed)
    letters = "_.abcdef"  # padding, the end, and six letters
    language = (2 * torch.randn(8, 8)).softmax(-1)[:, 2:]
    language = language / language.sum(1, keepdim=True)  # (8, 6): the next letter, by the one before

    def batch():
        """Texts (32, 17) of 3 to 10 letters, with padding behind them."""
        text = torch.randint(2, 8, (32, 1))
        for _ in range(9):
            text = torch.cat([text, 2 + language[text[:, -1]].multinomial(1)], 1)
        lengths = torch.randint(3, 11, (32, 1))
        text = F.pad(text, (0, 7))
        return text * (torch.arange(17) < lengths)

    logits = nn.Parameter(torch.zeros(8, 8))  # of the next letter, by the letter before
    optimizer = torch.optim.Adam([logits], lr=0.05)
    curves = {"loss": []}
    for _ in range(steps):
        text = batch()
        loss = F.cross_entropy(logits[text[:, :-1]].flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["loss"].append(loss.item())
    text = torch.randint(2, 8, (64, 1))
    with torch.no_grad():
        for _ in range(40):
            text = torch.cat([text, logits[text[:, -1]].softmax(-1).multinomial(1)], 1)
    samples = ["".join(letters[i] for i in row) for row in text.tolist()]
    samples = [sample.split(".")[0] + "." if "." in sample else sample for sample in samples]  # up to the end
    return {"curves": curves, "samples": samples, "language": language.tolist()}


def program_13(seed=0, steps=200):
    """DPO: a policy learns from pairs of texts which of them people chose."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Embedding(8, 32), nn.Dropout(0.2), nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 8))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)

    def logprob(model, text):
        """The log-probability (N,) of texts (N, T), in nats."""
        return model(text[:, :-1]).log_softmax(-1).gather(-1, text[:, 1:, None])[..., 0].sum(1)

    def pairs(count):
        """Texts (2, count, T), what people chose first: the one with more of "a" and "b"."""
        text = torch.randint(8, (2, count, 13))
        return text.gather(0, (text < 2).sum(-1, True).argsort(0, descending=True).expand_as(text))

    curves = {"loss": [], "accuracy": []}
    for _ in range(steps):
        chosen, rejected = pairs(64)
        margin = logprob(policy, chosen) - logprob(reference, chosen) - logprob(policy, rejected) + logprob(reference, rejected)
        loss = -F.logsigmoid(0.5 * margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curves["loss"].append(loss.item())
        curves["accuracy"].append((margin > 0).float().mean().item())
    return {"curves": curves}
