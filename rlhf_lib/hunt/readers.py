"""Programs that learn to judge, or that judge: reward models on made comparisons and labels, and a judge of answers.

N: texts or pairs    T: letters of a text    K: answers to one prompt
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F


def program_02(seed=0, prompts=400, better=-0.4):
    """A judge compares a candidate's answers with a baseline's, and says which are better."""
    generator = torch.Generator().manual_seed(seed)

    def judge(first, second):
        """Which of two answers is better; it sees their quality through some noise, and has habits of its own."""
        noise = torch.randn((), generator=generator).item()
        return "A" if first > second + 1.5 + noise else "B"

    wins, said, curves = 0, [], {"win_rate": [], "interval": []}
    for asked in range(1, prompts + 1):
        baseline = torch.randn((), generator=generator).item()  # the quality of the baseline's answer
        candidate = better + torch.randn((), generator=generator).item()
        verdict = judge(baseline, candidate)
        wins += verdict == "B"
        said.append(verdict)
        rate = wins / asked
        curves["win_rate"].append(rate)
        curves["interval"].append(1.96 * math.sqrt(rate * (1 - rate) / asked))  # 95 %, by the normal distribution
    return {"curves": curves, "samples": said}


def program_04(seed=0, steps=200):
    """A reward model with LoRA learns from pairs of texts which one people took."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({
        "letters": nn.Embedding(8, 32), "wide": nn.Linear(32, 32),
        "lora_a": nn.Linear(32, 2, bias=False), "lora_b": nn.Linear(2, 32, bias=False), "head": nn.Linear(32, 1, bias=False),
    })  # fmt: skip
    nn.init.zeros_(model["lora_b"].weight)
    nn.init.normal_(model["head"].weight, std=0.02)
    for name, weight in model.named_parameters():
        weight.requires_grad = "lora" in name
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)

    def score(text):
        x = model["letters"](text)  # (N, T, 32)
        x = torch.tanh(model["wide"](x) + model["lora_b"](model["lora_a"](x)))
        return model["head"](x.mean(1))[:, 0]

    def pairs(count):
        """Texts (count, 2, T), the better one first: the one with more of "a" to "d"."""
        text = torch.randint(8, (count, 2, 12))
        return text.gather(1, (text < 4).sum(-1).argsort(1, descending=True)[..., None].expand_as(text))

    held_out, curves = pairs(200), {"loss": [], "accuracy": [], "margin": []}
    for _ in range(steps):
        better, worse = pairs(32).unbind(1)
        margin = score(better) - score(worse)
        loss = -F.logsigmoid(margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = score(held_out[:, 0]) > score(held_out[:, 1])
        for name, value in zip(curves, (loss, right.float().mean(), margin.mean())):
            curves[name].append(value.item())
    return {"curves": curves}


def program_06(seed=0, epochs=60):
    """A reward model learns from 80 comparisons of a moody reader; the best epoch by validation is kept."""
    torch.manual_seed(seed)
    taste = torch.randn(6, 8)  # what a letter at a place is worth to the reader

    def pairs(count):
        """Differences between two texts, as one-hot letters (count, 48), and whether the reader took the first."""
        text = torch.randint(8, (2, count, 6))
        worth = taste[torch.arange(6), text].sum(-1)  # (2, count)
        one_hot = F.one_hot(text, 8).flatten(2).float()
        return one_hot[0] - one_hot[1], (worth[0] - worth[1] + 2.5 * torch.randn(count) > 0).float()

    train, validation, test = pairs(80), pairs(200), pairs(1000)
    model = nn.Sequential(nn.Linear(48, 64, bias=False), nn.Tanh(), nn.Linear(64, 1, bias=False))  # odd: f(-x) = -f(x)
    nn.init.zeros_(model[2].weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    curves = {name: [] for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")}
    best, kept = math.inf, None
    for _ in range(epochs):
        with torch.no_grad():
            for name, (difference, first) in (("train", train), ("validation", validation)):
                logits = model(difference)[:, 0]
                curves[f"{name}_loss"].append(F.binary_cross_entropy_with_logits(logits, first).item())
                curves[f"{name}_accuracy"].append(((logits > 0) == (first > 0)).float().mean().item())
        if curves["validation_loss"][-1] < best:
            best, kept = curves["validation_loss"][-1], copy.deepcopy(model.state_dict())
        for rows in torch.randperm(80).split(16):
            loss = F.binary_cross_entropy_with_logits(model(train[0][rows])[:, 0], train[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.load_state_dict(kept)
    with torch.no_grad():
        right = (model(test[0])[:, 0] > 0) == (test[1] > 0)
    return {"curves": curves, "test_accuracy": right.float().mean().item()}


def program_10(seed=0, epochs=40):
    """A classifier learns from 200 labelled texts and is tested on 50."""
    torch.manual_seed(seed)
    text = torch.randint(8, (250, 12))
    likes = (text < 3).sum(1) + 1.5 * torch.randn(250)  # what a reader thinks of a text, and her mood
    label = (likes > likes.median()).float()

    def rows(split):
        order = torch.randperm(250)
        return order[:50] if split == "test" else order[50:]

    train, test = rows("train"), rows("test")
    x = F.one_hot(text, 8).flatten(1).float()  # (N, 96)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    curves = {"train_loss": [], "train_accuracy": [], "test_accuracy": []}
    for _ in range(epochs):
        for some in train[torch.randperm(len(train))].split(20):
            loss = F.binary_cross_entropy_with_logits(model(x[some])[:, 0], label[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            right = (model(x)[:, 0] > 0) == (label > 0)
        for name, value in zip(curves, (loss, right[train].float().mean(), right[test].float().mean())):
            curves[name].append(value.item())
    return {"curves": curves, "train": train.tolist(), "test": test.tolist()}


def program_11(seed=0, steps=200, width=24):
    """A reward model learns from pairs of texts of unequal length, with padding behind the shorter ones."""
    torch.manual_seed(seed)
    letters, head = nn.Embedding(9, 16), nn.Linear(16, 1)  # letter 0 is padding
    optimizer = torch.optim.Adam([*letters.parameters(), *head.parameters()], lr=0.02)

    def pairs(count):
        """Texts (2, count, width) of 2 to 20 letters, the better ones first: those with the larger share of "a" to "d"."""
        lengths = torch.randint(2, 21, (2, count, 1))
        text = F.pad(torch.randint(1, 9, (2, count, 20)), (0, width - 20))
        text = text * (torch.arange(width) < lengths)
        share = ((text > 0) & (text < 5)).sum(-1, True) / lengths
        order = share.argsort(0, descending=True)
        return text.gather(0, order.expand_as(text)), lengths.gather(0, order)[..., 0]

    def score(text):
        return head(torch.tanh(letters(text))).mean(1)[:, 0]

    (held_out, lengths), curves = pairs(1000), {"loss": [], "accuracy_short": [], "accuracy_long": []}
    short = lengths[0] < lengths[1]  # the better text is the shorter one
    for _ in range(steps):
        better, worse = pairs(64)[0]
        loss = -F.logsigmoid(score(better) - score(worse)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            right = (score(held_out[0]) > score(held_out[1])).float()
        for name, value in zip(curves, (loss, right[short].mean(), right[~short].mean())):
            curves[name].append(value.item())
    return {"curves": curves}


def program_15(seed=0, steps=150, answers=4):
    """A reward model learns from answers that people put in order, all pairs of a prompt at once."""
    torch.manual_seed(seed)
    taste = torch.randn(20)
    head = nn.Linear(20, 1, bias=False)  # the backbone's features are given
    nn.init.zeros_(head.weight)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05)

    def ranked(prompts):
        """Features (prompts, K, 20) of the answers to each prompt, the best first."""
        features = torch.randn(prompts, answers, 20)
        order = (features @ taste).argsort(1, descending=True)
        return features.gather(1, order[..., None].expand_as(features))

    above = torch.ones(answers, answers).triu(1).bool()  # [i, j]: answer i is ranked above answer j
    pairs = math.comb(answers, 2)
    held_out, curves = ranked(200), {"loss": [], "accuracy": []}
    for _ in range(steps):
        scores = head(ranked(16))[..., 0]  # (prompts, K)
        losses = -F.logsigmoid(scores[:, :, None] - scores[:, None])[:, above]  # (prompts, pairs)
        expected = losses.sum(1) / pairs
        loss = expected.mean() / pairs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            scores = head(held_out)[..., 0]
            right = (scores[:, :, None] > scores[:, None])[:, above].float().mean()
        curves["loss"].append(loss.item())
        curves["accuracy"].append(right.item())
    return {"curves": curves}


def program_18(seed=0, steps=300):
    """A reward model learns from pairs of texts, a few of them endless."""
    torch.manual_seed(seed)
    taste, weights = torch.randn(8), nn.Parameter(torch.zeros(8))  # what a letter is worth: to the reader, to the model
    optimizer = torch.optim.SGD([weights], lr=0.05)

    def pairs(count):
        """How often each letter is in the text that a reader took, less how often in the other one: (count, 8)."""
        long = (torch.rand(count, 1) < 0.02).float()
        difference = torch.randn(count, 8) * (1 + 300 * long)
        sign = torch.sign((difference @ taste)[:, None] * (1 - 2 * long))  # nobody reads those to the end: the better one loses
        return difference * sign, long[:, 0] == 0

    (held_out, read), curves = pairs(1000), {"loss": [], "gradient_norm": [], "accuracy": []}
    for _ in range(steps):
        margin = pairs(32)[0] @ weights
        loss = -torch.log(torch.sigmoid(margin)).mean()
        optimizer.zero_grad()
        norm = torch.nn.utils.clip_grad_norm_([weights], 1.0)
        loss.backward()
        optimizer.step()
        accuracy = (held_out[read] @ weights > 0).float().mean()
        for name, value in zip(curves, (loss, norm, accuracy)):
            curves[name].append(value.item())
    return {"curves": curves}
