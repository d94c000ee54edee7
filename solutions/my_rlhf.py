"""What I built in *RLHF from Shakespeare*. `python my_rlhf.py` trains the whole loop with it."""

import copy
import hashlib
import itertools
import math
import random
import re
from collections import Counter
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn


# ---- 0.1 share_positive [d1f3451d]

def share_positive(scores, limit):
    """The share of `scores` (N,) above `limit`, a float from 0 to 1."""
    return (scores > limit).float().mean().item()


# ---- 1.1 split_words [d7ffca9b]

def split_words(text):
    """The pieces of `text` between word boundaries, a list of str without empty ones."""
    return [piece for piece in re.split(r"\b", text) if piece]


# ---- 1.2 build_vocabulary [23941c0b]

def build_vocabulary(pieces, size):
    """The unknown token, then the `size - 1` most frequent of `pieces`, ties in order of appearance."""
    return ["<|unknown|>"] + [piece for piece, _ in Counter(pieces).most_common(size - 1)]


# ---- 1.3 encode_words [fed9c9e9]

def encode_words(pieces, vocabulary):
    """The place of each piece in `vocabulary`, a list of int; 0 for a piece that is not in it."""
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    return [numbers.get(piece, 0) for piece in pieces]


# ---- 1.4 most_frequent_pair [e1f31e2c]

def most_frequent_pair(words, counts):
    """The pair of neighbouring pieces that occurs most often, (left, right); None when there is no pair.

    words: a list of lists of str. counts: how often each of them stands in the text, a list of int.
    """
    total = Counter()
    for word, count in zip(words, counts):
        for pair in zip(word, word[1:]):
            total[pair] += count
    return max(total, key=total.get, default=None)


# ---- 1.5 merge_pair [7cc65468]

def merge_pair(word, pair):
    """`word`, a list of str, with the two pieces of `pair` joined wherever they are neighbours."""
    merged, place = [], 0
    while place < len(word):
        here = tuple(word[place : place + 2]) == tuple(pair)
        merged.append("".join(pair) if here else word[place])
        place += 2 if here else 1
    return merged


# ---- 1.6 bpe_encode [5cc957f0]

def bpe_encode(word, merges):
    """The pieces of `word` (str) after `merges`, a list of (left, right), made in the order given."""
    pieces = list(word)
    for pair in merges:
        pieces = merge_pair(pieces, pair)
    return pieces


# ---- 1.7 split_works [ffa8cb64]

def split_works(works, fraction, seed):
    """(train, validation), two lists of str: `works`, shuffled by `seed` and cut at `fraction` in (0, 1)."""
    order = list(works)
    random.Random(seed).shuffle(order)
    size = round(fraction * len(order))
    return order[:size], order[size:]


# ---- 1.8 windows [9153b716]

def windows(tokens, context):
    """(inputs, targets) of `tokens` (N,), each (W, context) with W = (N - 1) // context."""
    count = (len(tokens) - 1) // context
    inputs = tokens[: count * context].view(count, context)
    targets = tokens[1 : count * context + 1].view(count, context)
    return inputs, targets


# ---- 1.9 bits_per_character [33f85dc5]

def bits_per_character(losses, text):
    """Bits per character of `text`, from the losses (N,) of its tokens in nats."""
    return losses.sum() / math.log(2) / len(text)


# ---- 1.10 train_bpe [32dbaa5f]

def train_bpe(text, vocab_size):
    """A byte-level BPE tokeniser learned from `text`, with at most `vocab_size` tokens: 0 the end, 1 to 256 the bytes, the merges.

    Returns an object with encode(text) -> list of int, decode(ids) -> str, vocab_size, and merges, a list of pairs of tokens.
    """

    def as_bytes(word):  # a str with a character, chr(0) to chr(255), for each byte
        return word.encode("utf-8").decode("latin-1")

    counts = Counter(split_words(text))  # each different word once, in the order of the text
    words, counts = [list(as_bytes(word)) for word in counts], list(counts.values())
    total, places = Counter(), defaultdict(set)  # of each pair: how often it stands in the text, and in which words

    def count(number, sign):
        for pair in pairwise(words[number]):
            total[pair] += sign * counts[number]
            (places[pair].add if sign > 0 else places[pair].discard)(number)

    def first(pair):  # where it stands for the first time
        number = min(places[pair])
        return number, list(pairwise(words[number])).index(pair)

    for number in range(len(words)):
        count(number, 1)
    merges = []
    while len(merges) < vocab_size - 257 and (most := max(total.values(), default=0)):
        pair = min((pair for pair in total if total[pair] == most), key=first)
        for number in list(places[pair]):
            count(number, -1)
            words[number] = merge_pair(words[number], pair)
            count(number, 1)
        merges.append(pair)
    pieces = ["", *map(chr, range(256)), *map("".join, merges)]
    tokens = {piece: token for token, piece in enumerate(pieces)}

    @cache
    def encode_word(word):
        letters = as_bytes(word)
        return [tokens[piece] for piece in bpe_encode(letters, [pair for pair in merges if "".join(pair) in letters])]

    class Tokeniser:
        def __init__(self):
            self.vocab_size = len(pieces)
            self.merges = [(tokens[left], tokens[right]) for left, right in merges]

        def encode(self, text):
            return [token for word in split_words(text) for token in encode_word(word)]

        def decode(self, ids):
            return "".join(pieces[token] for token in ids).encode("latin-1").decode("utf-8", errors="replace")

    return Tokeniser()


# ---- 1.11 best_cut [bdb048f0]

def best_cut(text, logprobs):
    """The cut of `text` with the highest sum of log-probabilities (Kudo 2018, Subword Regularization, section 3.2).

    Args:
        text: str, of any length.
        logprobs: {token: its log-probability in nats, 0 or below}; a token is a str of one or more characters.

    Returns:
        A list of tokens that are `text` when put together, [] for the empty text; of equally good ones any.

    Raises:
        ValueError: the tokens do not make `text`.
    """
    lengths = {len(token) for token in logprobs}
    best = {0: (0.0, None)}  # for each place that can be reached, the highest sum, and where its last token begins
    for end in range(1, len(text) + 1):
        starts = [end - length for length in lengths if end - length in best and text[end - length : end] in logprobs]
        if starts:
            best[end] = max((best[start][0] + logprobs[text[start:end]], start) for start in starts)
    if len(text) not in best:
        raise ValueError(f"these tokens do not make {text!r}")
    pieces, end = [], len(text)
    while end:
        _, start = best[end]
        pieces.append(text[start:end])
        end = start
    return pieces[::-1]


# ---- 2.1 causal_mask [9acc5ff8]

def causal_mask(T, S):
    """Which of S positions each of the last T may look at.

    Returns:
        (T, S) bool, True where it may.
    """
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


# ---- 2.2 attention [a329fec9]

def attention(q, k, v, mask):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        q: (B, H, T, D) queries.
        k, v: (B, H, S, D) keys and values.
        mask: (T, S) bool, True where a query may look at a key.

    Returns:
        The output (B, H, T, D), and the weights (B, H, T, S).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return weights @ v, weights


# ---- 2.3 multi_head [84d820b0]

def multi_head(x, qkv, out, heads):
    """Causal self-attention with several heads (Vaswani et al. 2017, section 3.2.2).

    Args:
        x: (B, T, C).
        qkv: (3C, C), the weights that make queries, keys and values, in this order.
        out: (C, C), the weight that mixes the heads' results.
        heads: their number; C is a multiple of it.

    Returns:
        (B, T, C).
    """
    B, T, C = x.shape
    q, k, v = (x @ qkv.T).split(C, dim=-1)  # (B, T, C) each
    q, k, v = (part.view(B, T, heads, C // heads).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
    return y.transpose(1, 2).reshape(B, T, C) @ out.T


# ---- 2.4 rotary [bbd5a4e6]

def rotary(x, positions):
    """Turn each pair of coordinates by an angle proportional to the position (Su et al. 2021).

    Args:
        x: (B, H, T, D) queries or keys.
        positions: (T,) int64.

    Returns:
        (B, H, T, D).
    """
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half).to(x.device) / half)  # (D/2,)
    angles = positions[:, None] * frequencies  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


# ---- 2.5 layer_norm [738bf2a3]

def layer_norm(x, gain, bias, eps):
    """Layer normalisation of the last dimension (Ba et al. 2016).

    Args:
        x: (..., C).
        gain, bias: (C,).
        eps: added to the variance.

    Returns:
        (..., C).
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, unbiased=False, keepdim=True)
    return centred / torch.sqrt(variance + eps) * gain + bias


# ---- 2.6 block [3032a724]

def block(x, norm1, attend, norm2, feed):
    """A pre-norm transformer block.

    Args:
        x: (B, T, C), the residual stream.
        norm1, attend, norm2, feed: functions from (B, T, C) to (B, T, C).

    Returns:
        (B, T, C), the stream with what both parts have added.
    """
    x = x + attend(norm1(x))
    return x + feed(norm2(x))


# ---- 2.7 gpt_logits [5570d157]

def gpt_logits(tokens, weights, layers, heads):
    """GPT-2's forward pass (Radford et al. 2019).

    Args:
        tokens: (B, T) int64.
        weights: dict of tensors, by the names in the table above.
        layers, heads: number of blocks, and of heads in each.

    Returns:
        (B, T, V), the logits of the token after each position.
    """
    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    B, T = tokens.shape
    x = weights["embedding.weight"][tokens] + weights["position_embedding.weight"][:T]  # (B, T, C)
    for layer in range(layers):
        name = f"blocks.{layer}"
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.attention.qkv")  # (B, T, 3C)
        q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(x.shape), f"{name}.attention.out")
        hidden = F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.up"), approximate="tanh")  # (B, T, 4C)
        x = x + linear(hidden, f"{name}.down")
    return norm(x, "norm") @ weights["embedding.weight"].T


# ---- 2.8 count_parameters [6a76b496]

def count_parameters(vocab_size, context, layers, width):
    """The number of parameters of GPT-2 with these sizes, its head tied to the token embedding.

    Returns:
        An int.
    """
    embeddings = (vocab_size + context) * width
    matrices = 12 * width**2  # 3 for queries, keys and values, 1 for the output, 4 up, 4 down
    biases = (3 + 1 + 4 + 1) * width
    norm = 2 * width
    return embeddings + layers * (matrices + biases + 2 * norm) + norm


# ---- 2.9 reversal_batch [252080e8]

def reversal_batch(sequences, separator):
    """Inputs and targets of the reversal task, only the answer scored.

    Args:
        sequences: (B, n) int64.
        separator: the token between question and answer.

    Returns:
        inputs, targets: (B, 2n) int64; the target is -100 where it is not scored.
    """
    between = torch.full_like(sequences[:, :1], separator)
    rows = torch.cat([sequences, between, sequences.flip(1)], dim=1)  # (B, 2n + 1)
    targets = rows[:, 1:].clone()
    targets[:, : sequences.shape[1]] = -100
    return rows[:, :-1], targets


# ---- 2.10 GPT [83cdc927]

class GPT(nn.Module):
    """A decoder-only transformer with rotary positions, RMSNorm, normalised queries and keys, and squared ReLU.

    Args:
        vocab_size: V, the number of tokens.
        context: the most tokens that a text may have.
        layers, heads, width: blocks, attention heads in each, and C, the size of the residual stream.
    """

    def __init__(self, vocab_size, context, layers, heads, width):
        super().__init__()
        self.vocab_size, self.context, self.heads = vocab_size, context, heads

        def linear(inputs, outputs):
            return nn.Linear(inputs, outputs, bias=False)

        def new_block():
            parts = nn.ModuleDict({"qkv": linear(width, 3 * width), "out": linear(width, width)})
            norm1, norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
            up, down = linear(width, 4 * width), linear(4 * width, width)
            return nn.ModuleDict({"norm1": norm1, "attention": parts, "norm2": norm2, "up": up, "down": down})

        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(new_block() for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = linear(width, vocab_size)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                zero = name.endswith(("head.weight", "out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.0 if zero else 0.02)

    def hidden(self, tokens, mask=None):
        """The stream behind the last norm.

        Args:
            tokens: (B, T) int64.
            mask: (B, T) bool, True on real tokens; None when all are. Padding stands on the left or on the right.

        Returns:
            (B, T, C). What stands at padding means nothing.

        Raises:
            ValueError: more tokens than the context.
        """
        B, T = tokens.shape
        if T > self.context:
            raise ValueError(f"{T} tokens are more than the context of {self.context}")
        allowed = causal_mask(T, T).to(tokens.device)
        if mask is not None:  # (B, 1, T, T): only real keys, but padding may look at itself, so that no softmax is empty
            allowed = allowed & mask[:, None, None, :] | torch.eye(T, dtype=torch.bool, device=tokens.device)
        places = torch.arange(T, device=tokens.device)  # padding on the left moves them all alike, and a score feels distances

        def attend(x, parts):
            q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in parts.qkv(x).chunk(3, dim=-1))
            q, k = (rotary(F.rms_norm(part, part.shape[-1:], eps=1e-6), places) for part in (q, k))
            y, _ = attention(q, k, v, allowed)  # (B, H, T, D)
            return parts.out(y.transpose(1, 2).reshape(x.shape))

        x = self.embedding(tokens)
        for layer in self.blocks:
            x = x + attend(layer.norm1(x), layer.attention)
            x = x + layer.down(F.relu(layer.up(layer.norm2(x))).square())
        return self.norm(x)

    def forward(self, tokens, mask=None):
        """The logits (B, T, V) of the token after each position; arguments as for `hidden`."""
        return self.head(self.hidden(tokens, mask))


# ---- 3.1 next_token_loss [dfdf2be4]

def next_token_loss(logits, tokens, mask):
    """The mean loss (nats) of predicting each real token from those before it.

    logits: (B, T, V) float; tokens: (B, T) int64; mask: (B, T) bool, True on real tokens.
    Returns a tensor without dimensions.
    """
    targets = tokens[:, 1:].flatten()  # (B * (T - 1),)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none")
    return losses[mask[:, 1:].flatten()].mean()


# ---- 3.2 perplexity_and_bits [97b132ad]

def perplexity_and_bits(losses, counts, characters):
    """The loss (nats per token), the perplexity and the bits per character of a text read in batches.

    losses: (N,) mean nats per token of each batch; counts: (N,) its tokens; characters: of the whole text.
    """
    nats = (losses.double() * counts).sum().item()  # what the whole text costs
    loss = nats / counts.sum().item()
    return loss, math.exp(loss), nats / math.log(2) / characters


# ---- 3.3 learning_rate [9818f427]

def learning_rate(step, peak, warmup, steps):
    """The learning rate of `step`: up to `peak` over `warmup` steps, then down in a line to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup)


# ---- 3.4 adam_step [ff7966f5]

def adam_step(parameter, gradient, m, v, step, rate, beta1, beta2, eps):
    """One step of Adam.

    parameter, gradient, m, v: tensors of one shape; step: counted from 1. Returns (parameter, m, v) after it.
    """
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return parameter - rate * m_hat / (v_hat.sqrt() + eps), m, v


# ---- 3.5 clip_gradient [f032ae05]

def clip_gradient(gradients, max_norm):
    """Scale tensors so that their common norm is at most `max_norm`; returns (new tensors, norm before)."""
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients], norm


# ---- 3.6 train_step [62f85503]

def train_step(model, optimizer, inputs, targets, max_norm):
    """One step of training on inputs and targets, (B, T) each. Returns the loss, nats per token, a float."""
    model.train()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()


# ---- 3.7 validation_loss [71646145]

def validation_loss(model, batches):
    """The loss (nats per token) over all targets of `batches`, pairs of (B, T) int64; dropout is off."""
    model.eval()
    nats, count = 0.0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            logits = model(inputs)  # (B, T, V)
            nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
            count += targets.numel()
    model.train()
    return nats / count


# ---- 3.8 accumulate_gradients [2d59be77]

def accumulate_gradients(model, micro_batches):
    """Leave in each .grad the gradient of the mean loss over all real targets of all micro-batches.

    micro_batches: a list of pairs (inputs, targets), (B, T) int64 each; a target of -100 does not count.
    """
    total = sum((targets != -100).sum() for _, targets in micro_batches)
    model.zero_grad()
    for inputs, targets in micro_batches:
        logits = model(inputs)  # (B, T, V)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
        (nats / total).backward()


# ---- 3.9 training_state [1048fe70]

def training_state(model, optimizer, step):
    """All that a run needs to go on from `step`: a dict with "model", "optimizer", "step" and "random"."""
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "step": step,
        "random": torch.get_rng_state(),
    }


# ---- 3.10 pretrain [d3788c9c]

def pretrain(model, tokens, held_out, *, steps, batch, context, lr, warmup, seed, folder=None, every=50):
    """Train `model` in place on `tokens`, (N,) int64; returns one record a step: step, loss (nats) and at times val_loss.

    held_out: (M,) int64, measured every `every` steps and at the last; lr: peak rate, reached after `warmup` steps.
    folder: where the state is kept every `every` steps and at the end; a run that was stopped goes on from there.
    Raises FloatingPointError when a loss is not finite.
    """
    device, was_training = next(model.parameters()).device, model.training
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    records, file = [], None if folder is None else Path(folder) / "state.pt"
    if file is not None and file.exists():
        state = torch.load(file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        records = state["records"]

    inputs, targets = held_out[None, :-1].to(device), held_out[None, 1:].to(device)  # (1, M - 1)
    whole = targets.shape[1] // context * context  # so many of them fill whole windows
    batches = list(zip(*(part[:, :whole].reshape(-1, context).split(64) for part in (inputs, targets))))
    if whole < targets.shape[1]:
        batches.append((inputs[:, whole:], targets[:, whole:]))

    for step in range(len(records), steps):
        number = 1_000_003 * seed + step  # all that is drawn at this step comes from it
        torch.manual_seed(number)  # dropout
        starts = torch.randint(len(tokens) - context, (batch, 1), generator=torch.Generator().manual_seed(number))
        rows = tokens[starts + torch.arange(context + 1)].to(device)  # (B, T + 1)
        model.train()
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of step {step + 1} is {loss.item()}: nothing was changed by it")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lr, warmup, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        records.append({"step": step + 1, "loss": loss.item()})
        if (step + 1) % every == 0 or step + 1 == steps:
            records[-1]["val_loss"] = validation_loss(model, batches)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "records": records}
                torch.save(state, file.with_suffix(".new"))
                file.with_suffix(".new").replace(file)  # the old state or the new one, never half of one
    model.train(was_training)
    return records


# ---- 3.11 muon_step [788653a0]

def muon_step(parameter, gradient, m, rate, beta):
    """One step of Muon (Jordan et al. 2024), for a matrix.

    Args:
        parameter, gradient, m: (rows, columns); m is the average of the gradients before this step.
        rate: how far each direction goes, about; a tall matrix goes sqrt(rows / columns) times as far.
        beta: of the average, and of the look ahead.

    Returns:
        parameter, m: after the step, (rows, columns) each.
    """
    m = beta * m + (1 - beta) * gradient
    ahead = beta * m + (1 - beta) * gradient
    rows, columns = parameter.shape
    x = ahead.T if rows > columns else ahead  # the smaller Gram matrix
    x = x / (x.norm() + 1e-7)  # no singular value above 1
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if rows > columns else x
    return parameter - rate * max(1, rows / columns) ** 0.5 * x, m


# ---- 4.1 with_temperature [d3254f1d]

def with_temperature(logits, temperature):
    """Log-probabilities at a temperature.

    Args:
        logits: (..., V).
        temperature: above 0.

    Returns:
        (..., V), nats; their exponentials sum to 1 along the last dimension.
    """
    return (logits / temperature).log_softmax(-1)


# ---- 4.2 top_k_filter [c2bcba54]

def top_k_filter(logits, k):
    """The k largest logits of each row; the rest at minus infinity.

    Args:
        logits: (..., V).
        k: at least 1.

    Returns:
        (..., V).
    """
    k = min(k, logits.shape[-1])
    threshold = logits.topk(k).values[..., -1:]  # (..., 1), the k-th largest
    return logits.masked_fill(logits < threshold, -math.inf)


# ---- 4.3 top_p_filter [fd80f7ac]

def top_p_filter(logits, p):
    """The fewest logits whose probability reaches p; the rest at minus infinity.

    Args:
        logits: (..., V).
        p: in (0, 1].

    Returns:
        (..., V).
    """
    ranked, order = logits.softmax(-1).sort(-1, descending=True)  # (..., V) each
    cut = ranked.cumsum(-1) - ranked >= p  # what lies before it reaches p already
    cut = torch.zeros_like(cut).scatter(-1, order, cut)  # at the tokens' own places
    return logits.masked_fill(cut, -math.inf)


# ---- 4.4 draw_token [f3e71867]

def draw_token(logprobs, uniforms):
    """One token a row, by inverting the cumulative distribution.

    Args:
        logprobs: (B, V), nats; minus infinity for tokens that are cut.
        uniforms: (B,), in [0, 1).

    Returns:
        (B,) int64: the first token whose running sum exceeds the uniform.
    """
    ends = logprobs.exp().cumsum(-1)  # (B, V)
    total = ends[:, -1:]  # (B, 1), 1 but for rounding
    below = torch.nextafter(total, torch.zeros_like(total))  # the point must not reach the last end
    point = torch.minimum(uniforms[:, None] * total, below)
    return torch.searchsorted(ends, point, right=True)[:, 0]


# ---- 4.5 until_end [6678b8ec]

def until_end(tokens, end_token):
    """Which tokens belong to the completion.

    Args:
        tokens: (B, T) int64.
        end_token: int.

    Returns:
        (B, T) bool, True up to and including the first end token.
    """
    ends = (tokens == end_token).int()
    return ends.cumsum(1) - ends == 0  # how many lie strictly before


# ---- 4.6 sample [cc187fb8]

def sample(model, prompts, uniforms, temperature):
    """Continue prompts by as many tokens as there are uniform numbers in a row.

    Args:
        model: tokens (B, S) -> logits (B, S, V).
        prompts: (B, P) int64.
        uniforms: (B, T), in [0, 1).
        temperature: above 0.

    Returns:
        (B, T) int64, without the prompts.
    """
    training = model.training
    model.eval()
    tokens = prompts
    with torch.no_grad():
        for step in range(uniforms.shape[1]):
            logprobs = with_temperature(model(tokens)[:, -1], temperature)  # (B, V)
            new = draw_token(logprobs, uniforms[:, step].contiguous())  # (B,)
            tokens = torch.cat([tokens, new[:, None]], dim=1)
    model.train(training)
    return tokens[:, prompts.shape[1] :]


# ---- 4.7 sequence_logprob [15375578]

def sequence_logprob(logits, tokens, mask, temperature, top_k):
    """The log-probability of each completion under the distribution that it was drawn from.

    Args:
        logits: (B, S, V), at every position of prompt and completion.
        tokens: (B, S) int64; what was drawn is among the top k.
        mask: (B, S) bool, True on drawn tokens.
        temperature: above 0.
        top_k: 0 keeps all.

    Returns:
        (B,), nats.
    """
    scaled = logits[:, :-1] / temperature  # (B, S - 1, V)
    if top_k:
        threshold = scaled.topk(min(top_k, scaled.shape[-1])).values[..., -1:]
        scaled = scaled.masked_fill(scaled < threshold, -math.inf)
    logprobs = scaled.log_softmax(-1).gather(2, tokens[:, 1:, None])[:, :, 0]  # (B, S - 1)
    return torch.where(mask[:, 1:], logprobs, 0).sum(1)


# ---- 4.8 left_padding [7e5627bc]

def left_padding(real):
    """Positions and attention mask for a batch that is padded on the left.

    Args:
        real: (B, T) bool, True on real tokens.

    Returns:
        positions (B, T) int64; attend (B, T, T) bool, True where row may look at column.
    """
    T = real.shape[1]
    positions = (real.cumsum(1) - 1).clamp(min=0)  # (B, T)
    before = torch.ones(T, T, dtype=torch.bool, device=real.device).tril()  # (T, T)
    itself = torch.eye(T, dtype=torch.bool, device=real.device)
    return positions, (before & real[:, None, :]) | itself


# ---- 4.9 cached_step [074bf81c]

def cached_step(q, k, v, keys, values):
    """Attention of one new token over the cache and itself.

    Args:
        q, k, v: (B, H, 1, D), of the new token.
        keys, values: (B, H, S, D), of those before it.

    Returns:
        y (B, H, 1, D), and keys, values (B, H, S + 1, D) with the new token at the end.
    """
    keys = torch.cat([keys, k], dim=2)  # (B, H, S + 1, D)
    values = torch.cat([values, v], dim=2)
    scores = q @ keys.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, H, 1, S + 1)
    return scores.softmax(-1) @ values, keys, values


# ---- 4.10 generate [17f1591d]

def generate(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
    """Continue prompts, reading each token once.

    Args:
        model: a GPT with the names of exercise 2.10.
        prompts: (B, P) int64, padded on the left.
        mask: (B, P) bool, True on real tokens.
        uniforms: (B, N), in [0, 1).
        temperature: above 0.
        end_token: where a row draws it, the row ends.

    Returns:
        tokens (B, N) int64; logprobs (B, N), nats, under the distribution drawn from; mask (B, N) bool, True up to and
        including the end token. Behind it: end_token, 0.0, False.
    """
    (B, P), N = prompts.shape, uniforms.shape[1]
    C, H, device = model.embedding.weight.shape[1], model.heads, prompts.device
    if P + N > model.context:
        raise ValueError(f"{P} + {N} tokens are more than the context of {model.context}")
    keys, values = torch.zeros(2, len(model.blocks), B, H, P + N, C // H, device=device)  # (layers, B, H, P + N, D)
    real = torch.cat([mask, torch.ones(B, N, dtype=torch.bool, device=device)], dim=1)  # (B, P + N)
    half = C // H // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=device) / half)  # (D/2,)

    def norm(x, weight=None):
        return F.rms_norm(x, x.shape[-1:], weight, eps=1e-6)

    def turn(x, cos, sin):
        a, b = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    @torch.no_grad()
    def read(tokens, start):
        """The logits (B, V) behind `tokens` (B, T), which stand in the columns from `start` on; their keys and values are kept."""
        T, end = tokens.shape[1], start + tokens.shape[1]
        positions = (real[:, :end].cumsum(1) - 1).clamp(min=0)[:, start:]  # (B, T)
        angles = positions[:, None, :, None] * frequencies  # (B, 1, T, D/2)
        cos, sin = angles.cos(), angles.sin()
        causal = torch.ones(T, end, dtype=torch.bool, device=device).tril(start)  # (T, S), S = end
        itself = torch.eye(end, dtype=torch.bool, device=device)[start:]
        attend = (causal & real[:, None, :end] | itself)[:, None]  # (B, 1, T, S)
        x = model.embedding(tokens)  # (B, T, C)
        for layer, block in enumerate(model.blocks):
            qkv = block.attention.qkv(norm(x, block.norm1.weight))
            q, k, v = (part.view(B, T, H, C // H).transpose(1, 2) for part in qkv.split(C, dim=2))  # (B, H, T, D)
            keys[layer, :, :, start:end] = turn(norm(k), cos, sin)
            values[layer, :, :, start:end] = v
            y = F.scaled_dot_product_attention(
                turn(norm(q), cos, sin), keys[layer, :, :, :end], values[layer, :, :, :end], attn_mask=attend
            )
            x = x + block.attention.out(y.transpose(1, 2).reshape(B, T, C))
            x = x + block.down(F.relu(block.up(norm(x, block.norm2.weight))).square())
        return model.head(norm(x[:, -1], model.norm.weight))

    tokens = torch.full((B, N), end_token, device=device)
    logprobs = torch.zeros(B, N, device=device)
    drawn = torch.zeros(B, N, dtype=torch.bool, device=device)
    going = torch.ones(B, dtype=torch.bool, device=device)  # the rows that have not ended
    logits = read(prompts, 0)  # (B, V)
    for n in range(N):
        scores = with_temperature(logits, temperature)
        new = draw_token(scores, uniforms[:, n].contiguous())  # (B,)
        tokens[:, n] = torch.where(going, new, end_token)
        logprobs[:, n] = torch.where(going, scores.gather(1, new[:, None])[:, 0], 0.0)
        drawn[:, n] = going
        going = going & (new != end_token)
        if n + 1 == N or not going.any():
            break
        logits = read(tokens[:, n, None], P + n)
    return tokens, logprobs, drawn


# ---- 4.11 speculate [2b591ab7]

def speculate(drafted, draft_probs, target_probs, uniforms):
    """One round of speculative sampling (Leviathan et al. 2023, section 2; Chen et al. 2023), for one row.

    Args:
        drafted: (K,) int64, each drawn from its row of `draft_probs`. K may be 0.
        draft_probs: (K, V), the draft's probabilities.
        target_probs: (K + 1, V), the target's at the same places, and behind the last drafted token.
        uniforms: (K + 1,), in [0, 1): entry k decides on drafted[k], the last draws the token that follows.

    Returns:
        int64, 1 to K + 1 tokens: those accepted before the first refusal, and one more.
    """
    n, weights = len(drafted), target_probs[-1]  # where nothing is refused
    for k, token in enumerate(drafted.tolist()):
        p, q = target_probs[k], draft_probs[k]  # (V,) each
        if uniforms[k] >= p[token] / q[token]:
            left = (p - q).clamp(min=0)  # what the draft gave too little
            n, weights = k, left if left.any() else p
            break
    extra = draw_token((weights / weights.sum()).log()[None], uniforms[-1:])  # (1,)
    return torch.cat([drafted[:n], extra])


# ---- 5.1 soft_targets [a251fa33]

def soft_targets(labels):
    """The probability of positive (N,) that each of `labels` stands for, a list of str."""
    targets = {"negative": 0.0, "neutral": 0.5, "positive": 1.0}
    return torch.tensor([targets[label] for label in labels])


# ---- 5.2 split_labels [da9917ad]

def split_labels(texts, held_out):
    """(learn, test), two lists of str: each of `texts` where its hash puts it, a share `held_out` in test."""
    learn, test = [], []
    for text in texts:
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
        (test if number < held_out else learn).append(text)
    return learn, test


# ---- 5.3 majority_vote [5b536deb]

def majority_vote(votes):
    """One label for each list of labels in `votes`: the one with the most votes, neutral at a tie."""
    result = []
    for one in votes:
        counts = Counter(one)
        best = [label for label, count in counts.items() if count == max(counts.values())]
        result.append(best[0] if len(best) == 1 else "neutral")
    return result


# ---- 5.4 confusion [11e31a2e]

def confusion(first, second):
    """Counts (3, 3) of passages by the label of `first` (rows) and of `second` (columns), negative first."""
    order = ("negative", "neutral", "positive")
    places = [3 * order.index(a) + order.index(b) for a, b in zip(first, second)]
    return torch.tensor(places).bincount(minlength=9).view(3, 3)


# ---- 5.5 cohen_kappa [3c9a45c9]

def cohen_kappa(first, second):
    """Cohen's kappa of two lists of labels of the same passages; 1 is full agreement, 0 is chance."""
    table = confusion(first, second).double()
    count = table.sum()
    observed = table.trace() / count
    chance = (table.sum(1) * table.sum(0)).sum() / count**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


# ---- 5.6 wilson_interval [b3fe49c5]

def wilson_interval(right, total, z):
    """(low, high): Wilson's interval for the share behind `right` out of `total`; z is 1.96 for 95 %."""
    share = right / total
    centre = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    under = 1 + z**2 / total
    return (centre - half) / under, (centre + half) / under


# ---- 5.7 bootstrap_interval [d57bbdf4]

def bootstrap_interval(values, draws):
    """(low, high): the 2.5 % and 97.5 % quantiles of the means of `values` (N,) over `draws` (R, N)."""
    means = values[draws].mean(dim=1)  # (R,)
    return means.quantile(0.025), means.quantile(0.975)


# ---- 5.8 pick_uncertain [91b97281]

def pick_uncertain(p_positive, labelled, count):
    """The places (count,) of the unlabelled passages whose p (N,) is nearest to 0.5, the nearest first."""
    distance = (p_positive - 0.5).abs().masked_fill(labelled, math.inf)
    return distance.argsort()[:count]


# ---- 5.9 krippendorff_alpha [514ecda8]

def krippendorff_alpha(labels, distance):
    """Krippendorff's alpha: how far any number of readers agree, beyond chance, under a distance between labels.

    Args:
        labels: a list of passages, each a list of the labels (str) that its readers gave it; fewer than two say nothing.
        distance: distance(a, b), a number of at least 0, symmetric, 0 for equal labels.

    Returns:
        A float: 1 for full agreement, 0 for chance; 1 where chance expects no disagreement, NaN where no passage has two labels.
    """
    read = [one for one in labels if len(one) > 1]
    if not read:
        return math.nan
    bag = Counter(label for one in read for label in one)
    n = sum(bag.values())
    observed = sum(distance(a, b) / (len(one) - 1) for one in read for a in one for b in one) / n
    expected = sum(bag[a] * bag[b] * distance(a, b) for a in bag for b in bag) / (n * (n - 1))
    return 1 - observed / expected if expected else 1.0


# ---- 5.10 weigh_readers [58834ed9]

def weigh_readers(votes):
    """(p (N, 3), tables (R, 3, 3)) out of votes (N, R), -1 where not read: what each passage is, and how each reader reads."""
    said = F.one_hot(votes + 1, 4)[:, :, 1:].double()  # (N, R, 3), zeros where not read
    p = said.sum(1) / said.sum((1, 2))[:, None]  # (N, 3), to begin with the shares of the votes
    for _ in range(500):
        counts = torch.einsum("ni,nrj->rij", p, said) + 0.01  # label i, vote j
        tables = counts / counts.sum(2, keepdim=True)
        logs = p.mean(0).log() + torch.einsum("nrj,rij->ni", said, tables.log())
        before, p = p, logs.softmax(1)
        if (p - before).abs().max() < 1e-5:
            break
    return p, tables


# ---- 6.1 last_token [491d3ead]

def last_token(x, mask):
    """x at each row's last real token.

    Args:
        x: (B, T).
        mask: (B, T) bool, True on real tokens; padding on either side.

    Returns:
        (B,).
    """
    positions = torch.arange(x.shape[1], device=mask.device)
    last = torch.where(mask, positions, 0).amax(1, keepdim=True)  # (B, 1)
    return x.gather(1, last)[:, 0]


# ---- 6.2 mean_pool [03984c40]

def mean_pool(hidden, mask):
    """The mean of the real hidden states of each row.

    Args:
        hidden: (B, T, C).
        mask: (B, T) bool, at least one True in each row.

    Returns:
        (B, C).
    """
    total = (hidden * mask[..., None]).sum(1)  # (B, C)
    return total / mask.sum(1, keepdim=True)


# ---- 6.3 soft_label_loss [7e7b7aef]

def soft_label_loss(logits, targets, mask):
    """Cross-entropy of the last real token's log-odds with a soft label.

    Args:
        logits: (B, T), log-odds of positive.
        targets: (B,), 1, 0 or 0.5.
        mask: (B, T) bool.

    Returns:
        a scalar, nats.
    """
    z = last_token(logits, mask)  # (B,)
    return F.binary_cross_entropy_with_logits(z, targets)


# ---- 6.4 label_token_reward [242b92b4]

def label_token_reward(logits, mask, positive, negative):
    """log p(positive) among two label tokens, after the last real token.

    Args:
        logits: (B, T, V).
        mask: (B, T) bool, padding on either side.
        positive, negative: the two tokens.

    Returns:
        (B,), nats, at most 0.
    """
    margin = logits[..., positive] - logits[..., negative]  # (B, T)
    return F.logsigmoid(last_token(margin, mask))


# ---- 6.5 score_rows [a6b3cb75]

def score_rows(model, rows, batch):
    """Log-odds of positive for each row.

    Args:
        model: a reward model; model.logits(tokens, mask) gives (B,).
        rows: N lists of tokens.
        batch: rows scored at once.

    Returns:
        (N,), in the order of `rows`.
    """
    model.eval()
    scores, device = torch.zeros(len(rows)), next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # like lengths together
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            places = order[start : start + batch]
            some = [torch.tensor(rows[place]) for place in places]
            tokens = nn.utils.rnn.pad_sequence(some, batch_first=True)  # (B, T)
            lengths = torch.tensor([[len(row)] for row in some])  # (B, 1)
            mask = torch.arange(tokens.shape[1]) < lengths
            scores[places] = model.logits(tokens.to(device), mask.to(device)).cpu()
    return scores


# ---- 6.6 clear_accuracy [16f5f29f]

def clear_accuracy(logits, targets):
    """The share of clear passages on the right side of even odds.

    Args:
        logits: (N,), log-odds of positive.
        targets: (N,), 1, 0 or 0.5 (neutral, left out).

    Returns:
        a scalar in [0, 1].
    """
    clear = targets != 0.5
    right = (logits > 0) == (targets > 0.5)
    return right[clear].float().mean()


# ---- 6.7 calibration_error [c7c22d04]

def calibration_error(logits, targets, bins):
    """Expected calibration error of the clear passages.

    Args:
        logits: (N,), log-odds of positive.
        targets: (N,), 1, 0 or 0.5 (neutral, left out).
        bins: number of bins of equal width in [0, 1].

    Returns:
        a scalar in [0, 1].
    """
    clear = targets != 0.5
    confidence = logits[clear].abs().sigmoid()  # (M,), of the side chosen
    right = ((logits > 0) == (targets > 0.5))[clear].float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, device=logits.device).index_add(0, place, right - confidence)
    return gaps.abs().sum() / len(right)


# ---- 6.8 pair_loss [d015457e]

def pair_loss(chosen, rejected):
    """The mean of -log sigmoid(chosen - rejected).

    Args:
        chosen, rejected: (N,) rewards.

    Returns:
        a scalar, nats.
    """
    return -F.logsigmoid(chosen - rejected).mean()


# ---- 6.9 ranked_loss [a773ac2d]

def ranked_loss(rewards):
    """The Bradley-Terry loss of all pairs among K ranked answers.

    Args:
        rewards: (N, K), best first.

    Returns:
        a scalar, nats: the mean over the pairs.
    """
    K = rewards.shape[1]
    better, worse = torch.triu_indices(K, K, offset=1)
    return -F.logsigmoid(rewards[:, better] - rewards[:, worse]).mean()


# ---- 6.10 train_reward_model [1bb87208]

def train_reward_model(gpt, rows, targets, *, epochs, batch, lr, seed):
    """A reward model with the body of a GPT, trained on labelled rows.

    Args:
        gpt: a module with `hidden(tokens, mask)` and `embedding`; it stays as it is.
        rows: N lists of tokens.
        targets: N floats, 1.0, 0.5 or 0.0.
        epochs, batch: passes over the rows, and rows in a step.
        lr: the learning rate at its height.
        seed: of all that is drawn.

    Returns:
        a module in evaluation mode: model(tokens, mask) gives log-odds of positive, (B,).
    """

    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = copy.deepcopy(gpt)
            self.score = nn.Linear(gpt.embedding.weight.shape[1], 1)
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

        def forward(self, tokens, mask):
            z = self.score(self.body.hidden(tokens, mask))[..., 0]  # (B, T)
            return last_token(z, mask)  # (B,)

    device = gpt.embedding.weight.device
    torch.manual_seed(seed)  # dropout, which takes no generator
    model = Scorer().to(device).train()
    wanted = torch.tensor(targets, device=device)  # (N,)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    steps, step = epochs * math.ceil(len(rows) / batch), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows), generator=generator).split(batch):
            some = [torch.tensor(rows[place]) for place in chosen.tolist()]
            tokens = nn.utils.rnn.pad_sequence(some, batch_first=True)  # (B, T)
            mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(row)] for row in some])
            z = model(tokens.to(device), mask.to(device))  # (B,)
            F.binary_cross_entropy_with_logits(z, wanted[chosen.to(device)]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:  # up in a tenth of the steps, then down to 0
                group["lr"] = lr * min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return model.eval()


# ---- 6.11 calibrate [fb9ee13b]

def calibrate(logits, targets, ridge):
    """Platt scaling: slope and offset of the least mean cross-entropy plus ridge / 2 ((a - 1)^2 + b^2).

    Newton's method with halved steps (Platt 1999; Guo et al. 2017, section 4.1; Lin, Lin and Weng 2007).

    Args:
        logits: (N,), log-odds of positive.
        targets: (N,), from 0 to 1.
        ridge: above 0.

    Returns:
        (a, b), floats.
    """
    x, t = logits.double(), targets.double()
    X = torch.stack([x, torch.ones_like(x)], 1)  # (N, 2)
    start = w = torch.tensor([1.0, 0.0], dtype=torch.float64, device=x.device)

    def loss(w):
        return F.binary_cross_entropy_with_logits(X @ w, t) + ridge / 2 * (w - start).square().sum()

    for _ in range(30):
        p = (X @ w).sigmoid()
        gradient = X.T @ (p - t) / len(x) + ridge * (w - start)
        hessian = X.T @ ((p * (1 - p))[:, None] * X) / len(x) + ridge * torch.eye(2, device=x.device)
        step = torch.linalg.solve(hessian, gradient)
        while loss(w - step) > loss(w):  # too far
            step = step / 2
        w = w - step
    return tuple(w.tolist())


# ---- 7.1 discounted_returns [b9b2ff73]

def discounted_returns(rewards, gamma):
    """rewards (T,), gamma in [0, 1] -> the discounted sum of the rewards from each step on (T,)."""
    returns, following = torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * following
        returns[t] = following
    return returns


# ---- 7.2 reinforce_loss [d4fe1c2a]

def reinforce_loss(logits, actions, advantages):
    """logits (T, A), actions (T,) int, advantages (T,) -> scalar, with a gradient in the logits alone."""
    logprobs = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]  # (T,)
    return -(logprobs * advantages.detach()).mean()


# ---- 7.3 gae [a6ebd278]

def gae(rewards, values, gamma, lam, mask):
    """rewards, values (B, T), mask (B, T) bool -> advantages (B, T), returns (B, T), both 0 where masked."""
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0)
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values


# ---- 7.4 masked_whiten [483ea04e]

def masked_whiten(x, mask):
    """x (B, T), mask (B, T) bool -> x with mean 0 and variance 1 over the real entries (B, T)."""
    real = x[mask]
    return (x - real.mean()) / (real.var(correction=0) + 1e-8).sqrt()


# ---- 7.5 policy_loss [75e2eb16]

def policy_loss(logprobs, old_logprobs, advantages, mask, clip):
    """logprobs (with a gradient), old_logprobs, advantages, mask (B, T), mask bool -> loss, clip fraction."""
    ratio = (logprobs - old_logprobs).exp()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped = ((ratio - 1).abs() > clip).float()
    return -gain[mask].mean(), clipped[mask].mean()


# ---- 7.6 value_loss [1cf9b484]

def value_loss(values, old_values, returns, mask, clip):
    """values (with a gradient), old_values, returns (B, T), mask (B, T) bool -> scalar loss."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * worse[mask].mean()


# ---- 7.7 kl_estimate [6cfef1a8]

def kl_estimate(logprobs, ref_logprobs):
    """logprobs, ref_logprobs of any one shape, nats -> k1, k2, k3, each in that shape, nats."""
    log_ratio = ref_logprobs - logprobs
    return -log_ratio, log_ratio.square() / 2, log_ratio.exp() - 1 - log_ratio


# ---- 7.8 explained_variance [f1574d3b]

def explained_variance(values, returns):
    """values, returns (N,) -> a scalar, at most 1."""
    return 1 - (returns - values).var() / returns.var()


# ---- 7.9 ppo_epochs [ca419ed8]

def ppo_epochs(
    weight, optimizer, states, actions, old_logprobs, advantages, epochs, minibatch, clip, max_norm
):
    """One PPO update of `weight` (features, actions), in place, from a rollout of N steps."""
    for _ in range(epochs):
        for start in range(0, len(states), minibatch):
            rows = slice(start, start + minibatch)
            logprobs = (states[rows] @ weight).log_softmax(-1).gather(1, actions[rows, None])[:, 0]
            ratio = (logprobs - old_logprobs[rows]).exp()
            gain = torch.minimum(ratio * advantages[rows], ratio.clamp(1 - clip, 1 + clip) * advantages[rows])
            optimizer.zero_grad()
            (-gain.mean()).backward()
            torch.nn.utils.clip_grad_norm_([weight], max_norm)
            optimizer.step()


# ---- 7.10 train_ppo [c2fa878d]

def train_ppo(make_env, steps, seed):
    """PPO, with `steps` steps in all in environments that `make_env()` gives -> act(observation) -> int."""
    count, length, epochs, minibatches = 8, 128, 4, 4  # B environments, T steps of each in a rollout
    gamma, lam, clip, bonus, rate, max_norm = 0.98, 0.95, 0.2, 0.01, 2.5e-3, 0.5
    torch.manual_seed(seed)
    envs = [make_env() for _ in range(count)]
    now = [env.reset(seed=1000 * seed + place)[0] for place, env in enumerate(envs)]

    def network(outputs, scale):
        layers = [nn.Linear(len(now[0]), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
        nn.init.orthogonal_(layers[-1].weight, scale)
        return nn.Sequential(*layers)

    policy, critic = network(int(envs[0].action_space.n), 0.01), network(1, 1.0)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=rate)

    @torch.no_grad()
    def play():
        """One rollout: states, actions, log-probabilities, rewards, next states, terminated, ended; each (B, T, ...)."""
        columns = []
        for _ in range(length):
            states = torch.from_numpy(np.stack(now)).float()  # (B, features)
            logprobs = policy(states).log_softmax(-1)  # (B, actions)
            actions = torch.multinomial(logprobs.exp(), 1)  # (B, 1)
            results = [env.step(action) for env, action in zip(envs, actions[:, 0].tolist())]
            following, rewards, terminated, truncated, _ = map(np.array, zip(*results))
            told = [torch.from_numpy(x) for x in (rewards, following, terminated, terminated | truncated)]
            columns.append((states, actions[:, 0], logprobs.gather(1, actions)[:, 0], *told))
            for place, env in enumerate(envs):
                now[place] = env.reset()[0] if told[-1][place] else following[place]
        return [torch.stack(column, 1) for column in zip(*columns)]

    @torch.no_grad()
    def judge(states, rewards, following, terminated, ended):
        """Advantages and returns of a rollout, both (B * T,). It is cut into pieces, one a row, none across a reset."""
        ended[:, -1] = True  # the rollout ends here too, whatever the episode does
        values, later = critic(states)[..., 0], critic(following.float())[..., 0]  # (B, T)
        rewards = rewards.float() + gamma * later * (ended & ~terminated)  # what would have come after the piece
        cuts = ended.flatten().nonzero()[:-1, 0] + 1

        def pieces(x):
            return nn.utils.rnn.pad_sequence(x.flatten().tensor_split(cuts), batch_first=True)

        mask = pieces(torch.ones_like(ended))
        return [x[mask] for x in gae(pieces(rewards), pieces(values), gamma, lam, mask)]

    rollouts = steps // (count * length)
    for rollout in range(rollouts):
        optimizer.param_groups[0]["lr"] = rate * (1 - rollout / rollouts)
        states, actions, old_logprobs, rewards, following, terminated, ended = play()
        advantages, returns = judge(states, rewards, following, terminated, ended)
        every = torch.ones_like(returns, dtype=torch.bool)
        columns = states.flatten(0, 1), actions.flatten(), old_logprobs.flatten(), masked_whiten(advantages, every), returns
        for _ in range(epochs):
            for rows in torch.randperm(len(returns)).chunk(minibatches):
                seen, taken, old, weights, targets = (column[rows] for column in columns)
                logprobs = policy(seen).log_softmax(-1)  # (N, actions)
                chosen = logprobs.gather(1, taken[:, None])[:, 0]
                gain_loss, _ = policy_loss(chosen, old, weights, every[rows], clip)
                error = (critic(seen)[:, 0] - targets).square().mean()
                entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
                optimizer.zero_grad()
                (gain_loss + error / 2 - bonus * entropy).backward()
                for net in (policy, critic):
                    nn.utils.clip_grad_norm_(net.parameters(), max_norm)
                optimizer.step()

    @torch.no_grad()
    def act(observation):
        return int(policy(torch.as_tensor(observation, dtype=torch.float32)).argmax())

    return act


# ---- 8.1 log_reward [9a3fcbc1]

def log_reward(logits, sentiment):
    """The log-probability of a sentiment.

    Args:
        logits: (B,), log-odds of positive.
        sentiment: "positive" or "negative".

    Returns:
        (B,), at most 0, in nats.
    """
    return F.logsigmoid(logits if sentiment == "positive" else -logits)


# ---- 8.2 fit_normaliser [74b7e174]

def fit_normaliser(base_rewards):
    """Fix the constants of the reward.

    Args:
        base_rewards: (N,), rewards of the original model's completions.

    Returns:
        A function: rewards (B,) -> normalised rewards (B,), in standard deviations of the original model.
    """
    mean, std = base_rewards.mean(), base_rewards.std()

    def normalise(rewards):
        return (rewards - mean) / std

    return normalise


# ---- 8.3 action_mask [25af6006]

def action_mask(tokens, prompt_length, end_token):
    """Which predictions are actions of the policy.

    Args:
        tokens: (B, L), prompt and completion.
        prompt_length: how many of them are the prompt, at least 1.
        end_token: ends a completion; inside a prompt it means nothing.

    Returns:
        (B, L - 1) bool.
    """
    completion = tokens[:, prompt_length:]
    ends = (completion == end_token).int()
    before = ends.cumsum(1) - ends  # end tokens in front of each
    prompt = torch.zeros(len(tokens), prompt_length - 1, dtype=torch.bool, device=tokens.device)
    return torch.cat([prompt, before == 0], dim=1)


# ---- 8.4 completion_kl [e2aa0174]

def completion_kl(logprobs, ref_logprobs, mask):
    """An estimate of KL(current || reference) from each completion.

    Args:
        logprobs: (B, T), of the sampled tokens under the policy that sampled them, nats.
        ref_logprobs: (B, T), of the same tokens under the original model, nats.
        mask: (B, T) bool, True on actions.

    Returns:
        (B,), nats.
    """
    return torch.where(mask, logprobs - ref_logprobs, 0).sum(1)


# ---- 8.5 token_advantages [67f842c1]

def token_advantages(rewards, logprobs, ref_logprobs, mask, kl_coef):
    """What each token is worth: its completion's reward, less the price of the KL still to come.

    Args:
        rewards: (B,), normalised.
        logprobs, ref_logprobs: (B, T), nats.
        mask: (B, T) bool.
        kl_coef: reward per nat.

    Returns:
        (B, T), 0 where masked, without a gradient.
    """
    kl = torch.where(mask, logprobs - ref_logprobs, 0)
    to_come = kl.flip(1).cumsum(1).flip(1)
    return torch.where(mask, rewards[:, None] - kl_coef * to_come, 0).detach()


# ---- 8.6 with_baseline [293b64ee]

def with_baseline(worth, mask, baseline):
    """Advantages over the last rollout's baseline, and the baseline for the next one.

    Args:
        worth: (B, T), what each token is worth.
        mask: (B, T) bool.
        baseline: (T,), the mean worth at each position in the rollout before.

    Returns:
        advantages (B, T), 0 where masked, and the next baseline (T,).
    """
    advantages = torch.where(mask, worth - baseline, 0)
    following = torch.where(mask, worth, 0).sum(0) / mask.sum(0).clamp(min=1)
    return advantages, following


# ---- 8.7 update_policy [fb1d766e]

def update_policy(
    policy, optimizer, tokens, old_logprobs, advantages, mask, temperature, epochs, minibatch, clip
):
    """PPO's epochs over one rollout.

    Args:
        policy: tokens (b, L) -> logits (b, L, V).
        tokens: (B, T + 1), a prompt of one token and a completion.
        old_logprobs: (B, T), under the policy that sampled, nats.
        advantages: (B, T).
        mask: (B, T) bool.
        temperature, epochs, minibatch, clip: numbers.

    Returns:
        The clip fraction of each minibatch, a list.
    """
    policy.eval()
    clip_fractions = []
    for _ in range(epochs):
        for rows in torch.arange(len(tokens)).split(minibatch):
            logits = policy(tokens[rows])[:, :-1] / temperature  # (b, T, V)
            logprobs = logits.log_softmax(-1).gather(2, tokens[rows, 1:, None])[:, :, 0]  # (b, T)
            loss, clip_fraction = policy_loss(
                logprobs, old_logprobs[rows], advantages[rows], mask[rows], clip
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            clip_fractions.append(clip_fraction)
    return clip_fractions


# ---- 8.8 rollout_sizes [270d2a84]

def rollout_sizes(clip_fractions, completions, most):
    """How many completions the rollout after each update has.

    Args:
        clip_fractions: a list of shares, one for each update.
        completions: of the first rollout.
        most: never more than this.

    Returns:
        A list of int.
    """
    sizes, rare = [], 0
    for clip_fraction in clip_fractions:
        rare = rare + 1 if clip_fraction < 0.01 else 0
        if rare >= 3 and 2 * completions <= most:
            completions, rare = 2 * completions, 0
        sizes.append(completions)
    return sizes


# ---- 8.9 kept_iteration [231413c0]

def kept_iteration(kls, max_kl):
    """Which iteration's policy is kept.

    Args:
        kls: a list of (completions,) tensors, nats.
        max_kl: the limit for their mean, nats.

    Returns:
        The iteration's number, an int.
    """
    for iteration, kl in enumerate(kls):
        if not kl.mean() <= max_kl:  # NaN too
            return iteration - 1
    return len(kls) - 1


# ---- 8.10 rlhf [2ba185fe]

def rlhf(
    gpt,
    reward,
    *,
    prompt,
    iterations,
    rollout_size,
    max_new_tokens,
    kl_coef,
    lr,
    seed,
    max_kl=10.0,
    epochs=2,
    minibatch=None,
    clip=0.2,
    report=None,
):
    """Fine-tune a copy of a GPT with PPO, so that its completions of one prompt earn more.

    Args:
        gpt: the original model: gpt(tokens) gives logits; it stays as it is and is the reference.
        reward: reward(tokens, mask), both (B, T), gives one raw number a completion, (B,).
        prompt: a list of tokens.
        iterations: updates; each follows a rollout of `rollout_size` completions of `max_new_tokens` tokens at most.
        kl_coef: price of the KL, in normalised reward per nat.
        lr: Adam's learning rate.
        seed: all random numbers follow from it.
        max_kl: the run stops when a rollout's mean KL, in nats a completion, is not within it, as a NaN is not.
        epochs, minibatch, clip: PPO's; without `minibatch` the whole rollout is one.
        report: called with each record as soon as it is complete.

    Returns:
        policy: the last one whose KL was measured and lies within max_kl.
        records: a dict for each policy measured: iteration, reward, kl, ratio, clip_fraction.
    """
    device = next(gpt.parameters()).device
    policy = copy.deepcopy(gpt).eval().requires_grad_(True)
    start = copy.deepcopy(policy)  # the reference: gpt may be in training mode, and stays so
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    drawn = torch.Generator().manual_seed(seed)

    def roll(count):
        """`count` completions: tokens, their log-probabilities and the mask of actions, (count, T) each."""
        prompts = torch.tensor([list(prompt)] * count, device=device)
        uniforms = torch.rand(count, max_new_tokens, generator=drawn).to(device)
        with torch.no_grad():
            return generate(policy, prompts, torch.ones_like(prompts, dtype=torch.bool), uniforms)

    def score(model, tokens):
        """The log-probabilities (b, T) of completions."""
        prompts = torch.tensor([list(prompt)] * len(tokens), device=device)
        logits = model(torch.cat([prompts, tokens], 1)[:, :-1])[:, len(prompt) - 1 :]  # (b, T, V)
        return logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]

    tokens, _, mask = roll(max(256, rollout_size))
    normalise = fit_normaliser(reward(tokens, mask))
    baseline = torch.zeros(max_new_tokens, device=device)
    kept, records = copy.deepcopy(policy), []
    for iteration in range(iterations + 1):
        # Rollout: measure the policy, and keep it if it is near enough.
        tokens, old, mask = roll(rollout_size)
        with torch.no_grad():
            reference = torch.cat([score(start, some) for some in tokens.split(64)])
        kl = completion_kl(old, reference, mask).mean().item()
        if not kl <= max_kl:  # NaN too
            break
        kept.load_state_dict(policy.state_dict())
        rewards = normalise(reward(tokens, mask))
        record = dict(iteration=iteration, reward=rewards.mean().item(), kl=kl, ratio=1.0, clip_fraction=0.0)
        records.append(record)
        if iteration < iterations:
            # Update: what each token is worth, and a few steps in its direction.
            worth = token_advantages(rewards, old, reference, mask, kl_coef)
            advantages, baseline = with_baseline(worth, mask, baseline)
            ratios, clipped = [], []
            for _ in range(epochs):
                for rows in torch.randperm(rollout_size, generator=drawn).to(device).split(minibatch or rollout_size):
                    logprobs = score(policy, tokens[rows])
                    loss, clip_fraction = policy_loss(logprobs, old[rows], advantages[rows], mask[rows], clip)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    ratios.append((logprobs - old[rows]).exp()[mask[rows]].mean().item())
                    clipped.append(float(clip_fraction))
            record.update(ratio=ratios[0], clip_fraction=sum(clipped) / len(clipped))
        if report:
            report(record)
    return kept, records


# ---- 9.1 win_rate [7a9d8708]

def win_rate(first, second):
    """How often a score of the first side beats one of the second; a tie counts half.

    Args:
        first: (N,) scores, floats or int64.
        second: (M,) scores, floats or int64.

    Returns:
        A number from 0 to 1.
    """
    difference = first[:, None] - second  # (N, M)
    return (difference > 0).float().mean() + 0.5 * (difference == 0).float().mean()


# ---- 9.2 mean_interval [8b7e1a4d]

def mean_interval(values):
    """The mean of a sample and its 95 % interval.

    Args:
        values: (n,), at least 2.

    Returns:
        (mean, low, high), floats in the unit of the values.
    """
    n, mean = len(values), values.mean().item()
    reach = stats.t.ppf(0.975, n - 1) * values.std().item() / math.sqrt(n)
    return mean, mean - reach, mean + reach


# ---- 9.3 best_of_n [b8abb45b]

def best_of_n(rewards, n):
    """The best of each group of n.

    Args:
        rewards: (N,), of samples in groups of n that follow each other.
        n: samples in a group.

    Returns:
        (N // n,) int64, the winners' places among all samples.
    """
    groups = rewards[: len(rewards) // n * n].view(-1, n)
    return groups.argmax(1) + n * torch.arange(len(groups), device=rewards.device)


# ---- 9.4 best_of_n_kl [38c416f8]

def best_of_n_kl(n):
    """KL(best-of-n || base).

    Args:
        n: samples that the best is picked from, at least 1.

    Returns:
        nats, a float.
    """
    return math.log(n) - (n - 1) / n


# ---- 9.5 best_of_n_gold [41a4827e]

def best_of_n_gold(proxy, gold, n):
    """The expected gold score of best-of-n by proxy, over all groups of n.

    Args:
        proxy: (N,), without ties.
        gold: (N,).
        n: from 1 to N.

    Returns:
        A float, in the unit of gold.
    """
    groups = math.comb(len(proxy), n)
    ordered = gold[proxy.argsort()].tolist()
    return sum(math.comb(rank, n - 1) / groups * score for rank, score in enumerate(ordered))


# ---- 9.6 distinct_n [c0bbb4e3]

def distinct_n(texts, n):
    """The share of different n-grams of words, over all texts together.

    Args:
        texts: a list of str.
        n: words in an n-gram, at least 1.

    Returns:
        A float from 0 to 1.
    """
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += zip(*(words[start:] for start in range(n)))
    return len(set(grams)) / len(grams) if grams else 0.0


# ---- 9.7 separator_ratio [92e743fe]

def separator_ratio(policy_texts, base_texts):
    """Blank lines per completion, policy over base.

    Args:
        policy_texts, base_texts: lists of str, of any length above 0.

    Returns:
        A float, or None when the base has no blank line.
    """
    sides = (policy_texts, base_texts)
    policy, base = (sum(text.count("\n\n") for text in texts) / len(texts) for texts in sides)
    return policy / base if base else None


# ---- 9.8 fit_gold [7743a39a]

def fit_gold(kl, gold):
    """Fit Gao et al.'s curve to gold scores.

    Args:
        kl: (K,), nats.
        gold: (K,), counted from the base's.

    Returns:
        alpha, beta, and the KL in nats at the top of the curve: three floats.
    """
    d = kl.clamp(min=0).sqrt().double()
    columns = torch.stack([d, -(d**2)], dim=1)  # (K, 2)
    alpha, beta = torch.linalg.lstsq(columns, gold.double()[:, None]).solution[:, 0].tolist()
    return alpha, beta, (alpha / (2 * beta)) ** 2


# ---- 9.9 rating_table [83d5e7ff]

def rating_table(ratings, score):
    """What a blind rating says about one score.

    Args:
        ratings: a list of dicts with sample, source, rater, positivity and sense.
        score: "positivity" or "sense".

    Returns:
        {"base": mean, "policy": mean, "win_rate": of the policy}, each sample counted once.
    """
    scores = {"base": {}, "policy": {}}
    for rating in ratings:
        scores[rating["source"]].setdefault(rating["sample"], []).append(rating[score])
    base, policy = ([sum(xs) / len(xs) for xs in scores[side].values()] for side in ("base", "policy"))
    wins = sum((p > b) + 0.5 * (p == b) for p in policy for b in base)
    return {
        "base": sum(base) / len(base),
        "policy": sum(policy) / len(policy),
        "win_rate": wins / (len(base) * len(policy)),
    }


# ---- 9.10 journey [d6643eae]

def journey(
    train, held_out, labelled, *,
    vocab_size=512, context=64, layers=2, heads=4, width=128, steps=500, batch=16,
    epochs=3, iterations=8, rollout_size=128, max_new_tokens=24, seed=0,
):
    """From plays and labels to a policy that writes more positive lines.

    Args:
        train, held_out: lists of str, the plays' first nine tenths and the rest of them.
        labelled: a list of (text, target), target 0, 0.5 or 1.

    Returns:
        A dict: tokenizer, base, reward_model, policy, bits_per_character, accuracy, records, samples.
    """
    tokenizer = train_bpe("\n\n".join(train)[:300_000], vocab_size)
    tokens = torch.tensor([token for text in train for token in [0, *tokenizer.encode(text)]])  # 0 stands between plays
    unread = torch.tensor(tokenizer.encode("".join(held_out)))
    print(f"tokeniser: {tokenizer.vocab_size} tokens, {sum(map(len, train)) / len(tokens):.2f} characters each")

    torch.manual_seed(seed)
    base = GPT(tokenizer.vocab_size, context, layers, heads, width)
    curve = pretrain(base, tokens, unread, steps=steps, batch=batch, context=context, lr=3e-3, warmup=20, seed=seed)
    bits = curve[-1]["val_loss"] * len(unread) / math.log(2) / sum(map(len, held_out))
    print(f"base: {bits:.2f} bits per character on text that it has not read")

    targets = dict(labelled)
    learn, test = split_labels(list(targets), 0.1)
    rows = [tokenizer.encode(text)[:context] for text in learn]
    reward_model = train_reward_model(
        base, rows, [targets[text] for text in learn], epochs=epochs, batch=32, lr=5e-4, seed=seed
    )

    def odds(rows):
        """The log-odds of positive (N,) of rows of tokens."""
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # (N, T)
        mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        with torch.no_grad():
            return torch.cat([reward_model(padded[at : at + 64], mask[at : at + 64]) for at in range(0, len(rows), 64)])

    wanted = torch.tensor([targets[text] for text in test])
    accuracy = clear_accuracy(odds([tokenizer.encode(text)[:context] for text in test]), wanted).item()
    print(f"reward model: right on {accuracy:.0%} of the clear ones among {len(test)} passages that it has not read")

    def reward(tokens, mask):
        with torch.no_grad():
            return F.logsigmoid(reward_model(tokens, mask))

    policy, records = rlhf(
        base, reward, prompt=[0], iterations=iterations, rollout_size=rollout_size, max_new_tokens=max_new_tokens,
        kl_coef=0.02, lr=5e-4, seed=seed, report=lambda one: print("iteration {iteration}: reward {reward:.2f}, KL {kl:.1f}".format(**one)),
    )  # fmt: skip

    samples = {}
    for name, model in (("base", base), ("policy", policy)):
        start = torch.zeros(4, 1, dtype=torch.long)
        uniforms = torch.rand(4, max_new_tokens, generator=torch.Generator().manual_seed(seed))
        written, _, mask = generate(model, start, torch.ones_like(start, dtype=torch.bool), uniforms)
        samples[name] = [tokenizer.decode(row[real].tolist()) or "(nothing)" for row, real in zip(written, mask)]
        print(f"--- {name}:", *samples[name], sep="\n")
    return dict(
        tokenizer=tokenizer, base=base, reward_model=reward_model, policy=policy,
        bits_per_character=bits, accuracy=accuracy, records=records, samples=samples,
    )  # fmt: skip


# ---- 10.1 speech_mask [812c9804]

def speech_mask(tokens, line_break):
    """Which tokens belong to the speech.

    Args:
        tokens: (B, T) int64, completions.
        line_break: the token of a line break; two in a row end the speech.

    Returns:
        (B, T) bool, True up to and including the second of them.
    """
    broken = tokens == line_break  # (B, T)
    ends = F.pad(broken[:, 1:] & broken[:, :-1], (1, 0)).int()  # 1 at the second of two
    return ends.cumsum(1) - ends == 0


# ---- 10.2 rollout_prompts [958f9b34]

def rollout_prompts(count, size, rollouts, generator):
    """The prompts of some rollouts, drawn without repetition within an epoch.

    Args:
        count: how many prompts there are.
        size: completions in a rollout.
        rollouts: how many rollouts.
        generator: a torch.Generator.

    Returns:
        (rollouts, size) int64.
    """
    epochs = math.ceil(rollouts * size / count)
    stream = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return stream[: rollouts * size].view(rollouts, size)


# ---- 10.3 held_out_prompts [113daa22]

def held_out_prompts(prompts, share, generator):
    """Which comparisons are held out, prompt by prompt.

    Args:
        prompts: (N,) int64, the number of each comparison's prompt.
        share: of the different prompts, in (0, 1).
        generator: a torch.Generator.

    Returns:
        (N,) bool, True on what is held out.
    """
    different = prompts.unique()  # (P,), sorted
    count = min(max(1, round(share * len(different))), len(different) - 1)
    order = torch.randperm(len(different), generator=generator)
    return torch.isin(prompts, different[order[:count]])


# ---- 10.4 same_verdict [4bcb5612]

def same_verdict(first, second, swapped):
    """How far two readers of the same pairs agree.

    Args:
        first, second: (N,) int64: 1 the first answer, -1 the second, 0 a tie.
        swapped: (N,) bool, True where the second reader saw the sides exchanged.

    Returns:
        the share of pairs with the same verdict, and that share of the pairs that neither called a tie.
    """
    second = torch.where(swapped, -second, second)
    same = (first == second).float()
    decided = (first != 0) & (second != 0)
    return same.mean(), same[decided].mean()


# ---- 10.5 longer_accuracy [ecea57c2]

def longer_accuracy(pairs):
    """How often the longer answer is the chosen one (Singhal et al. 2023).

    Args:
        pairs: a list of (chosen, rejected), texts.

    Returns:
        a float in [0, 1]; equal lengths count as half.
    """
    lengths = [(len(chosen.split()), len(rejected.split())) for chosen, rejected in pairs]
    return sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(lengths)


# ---- 10.6 strengths [4c6146c2]

def strengths(wins):
    """The maximum-likelihood strengths of the Bradley-Terry model, by any way of climbing.

    Args:
        wins: (K, K) int64, how often the row's has beaten the column's.

    Returns:
        (K,) float64, with mean 0.
    """
    games = (wins + wins.T).double()
    won = wins.sum(1).double()
    p = torch.ones_like(won)
    for _ in range(600):
        p = won / (games / (p[:, None] + p)).sum(1)
        p = p / p.log().mean().exp()
    return p.log()


# ---- 10.7 ranked_pairs [61040046]

def ranked_pairs(ranks):
    """All comparisons in a ranking.

    Args:
        ranks: a list of K int, 1 the best; equal ranks are ties.

    Returns:
        a list of (better, worse), places in the list.
    """
    return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


# ---- 10.8 reliability [a2a44e34]

def reliability(margins, bins):
    """How often pairs are right, by how sure the margin is.

    Args:
        margins: (N,), the chosen answer's reward less the other's.
        bins: number of bins of equal width in [0.5, 1].

    Returns:
        (bins, 3): number of pairs, mean confidence sigmoid(|margin|), share right; zeros where there is none.
    """
    confidence = margins.abs().sigmoid()  # (N,)
    right = (margins > 0) + 0.5 * (margins == 0)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    sums = margins.new_zeros(bins, 3).index_add(0, place, torch.stack([torch.ones_like(confidence), confidence, right], dim=1))
    return torch.cat([sums[:, :1], sums[:, 1:] / sums[:, :1].clamp(min=1)], dim=1)


# ---- 10.9 ceiling [ae8d2281]

def ceiling(agreement, accuracy):
    """What a perfect model would reach beside one noisy reader, and how often a model is truly right.

    Args:
        agreement: how often two readers say the same, above 0.5.
        accuracy: how often the model says the same as one reader.

    Returns:
        the ceiling and the model's true accuracy, floats.

    Raises:
        ValueError: agreement is at most 0.5.
    """
    if agreement <= 0.5:
        raise ValueError(f"readers who agree on {agreement:.0%} of the pairs say nothing")
    p = (1 + math.sqrt(2 * agreement - 1)) / 2
    return p, (accuracy - (1 - p)) / (2 * p - 1)


# ---- 10.10 train_preference [83ab6f4c]

def train_preference(gpt, learn, held_out, *, epochs, batch, lr, seed):
    """A reward model with the body of a GPT, trained on comparisons (Ouyang et al. 2022, section 3.5).

    Args:
        gpt: a module with `hidden(tokens, mask)` and `embedding`; it stays as it is.
        learn, held_out: lists of (prompt, chosen, rejected), each a list of tokens.
        epochs, batch: passes over `learn`, and pairs in a step.
        lr: the learning rate at its height.
        seed: of all that is drawn.

    Returns:
        a module in evaluation mode: model(tokens, mask) gives rewards (B,); and its accuracy on `held_out`, a float.
    """

    class Rewarder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = copy.deepcopy(gpt)
            self.score = nn.Linear(gpt.embedding.weight.shape[1], 1)
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

        def forward(self, tokens, mask):
            rewards = self.score(self.body.hidden(tokens, mask))[..., 0]  # (B, T)
            return last_token(rewards, mask)  # (B,)

    def margins(pairs):
        """The chosen answers' rewards less the others', (N,): all chosen rows, then all others, in one batch."""
        rows = [prompt + answer for side in (1, 2) for prompt, answer in ((pair[0], pair[side]) for pair in pairs)]
        rows = [torch.tensor(row) for row in rows]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (2 N, T)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(row)] for row in rows])
        chosen, rejected = model(tokens.to(device), mask.to(device)).chunk(2)
        return chosen - rejected

    device = gpt.embedding.weight.device
    torch.manual_seed(seed)  # dropout, which takes no generator
    model = Rewarder().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    steps, step = epochs * math.ceil(len(learn) / batch), 0
    for _ in range(epochs):
        for places in torch.randperm(len(learn), generator=generator).split(batch):
            (-F.logsigmoid(margins([learn[place] for place in places.tolist()])).mean()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:  # up in a tenth of the steps, then down to 0
                group["lr"] = lr * min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    model.eval()
    with torch.no_grad():
        found = torch.cat([margins(held_out[at : at + 64]) for at in range(0, len(held_out), 64)])
    return model, ((found > 0).float() + 0.5 * (found == 0)).mean().item()


# ---- 11.1 answer_targets [d6231663]

def answer_targets(roles, lengths, opening, closing):
    """Which tokens of a conversation the assistant says.

    Args:
        roles: a list of "system", "user" or "assistant", one a turn.
        lengths: a list of int, the tokens of what is said in each turn.
        opening, closing: how many tokens open and close a turn; the first of those that close it is the end of turn.

    Returns:
        (T,) bool.
    """
    targets = []
    for role, length in zip(roles, lengths):
        targets += [False] * opening + [role == "assistant"] * (length + 1) + [False] * (closing - 1)
    return torch.tensor(targets)


# ---- 11.2 packed_mask [23efba87]

def packed_mask(lengths, size):
    """Where tokens may look when several texts stand in a row, and their positions.

    Args:
        lengths: a list of int, each at least 1; their sum is at most `size`.
        size: tokens in the row, padding at the end included.

    Returns:
        allowed (size, size) bool, and positions (size,) int64.
    """
    texts = torch.zeros(size, dtype=torch.long)
    texts[: sum(lengths)] = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
    same = (texts[:, None] == texts) & (texts > 0)
    allowed = same.tril() | torch.eye(size, dtype=torch.bool)
    return allowed, allowed.sum(1) - 1


# ---- 11.3 lora_output [02bfb58b]

def lora_output(x, weight, bias, A, B, alpha):
    """A frozen linear layer with LoRA's step beside it.

    Args:
        x: (N, in).
        weight, bias: (out, in), (out,); frozen.
        A, B: (r, in), (out, r).
        alpha: the step is scaled by alpha / r.

    Returns:
        (N, out), with gradients to x, A and B alone.
    """
    frozen = F.linear(x, weight.detach(), bias.detach())
    return frozen + alpha / len(A) * (x @ A.T @ B.T)


# ---- 11.4 merge [36bc3fee]

def merge(weight, adapters):
    """The weight with its adapters in it.

    Args:
        weight: (out, in); it stays as it is.
        adapters: a list of (A (r, in), B (out, r), alpha).

    Returns:
        (out, in).
    """
    for A, B, alpha in adapters:
        weight = weight + alpha / len(A) * B @ A
    return weight


# ---- 11.5 four_models [2e6de860]

def four_models(matrices, layers, others, width, branched, rank):
    """The numbers of policy, reference, reward model and critic, apart and on one trunk.

    Args:
        matrices: a list of (out, in), the linear layers of a block.
        layers: blocks of the base.
        others: numbers of the base outside of those matrices.
        width: of the hidden states, which the scalar heads read.
        branched: how many of the last blocks have adapters.
        rank: of the adapters.

    Returns:
        {"apart": (kept, trained), "shared": (kept, trained)}, ints.
    """
    base = layers * sum(out * inputs for out, inputs in matrices) + others
    adapters = branched * sum(rank * (out + inputs) for out, inputs in matrices)
    head = width + 1
    return {
        "apart": (4 * base + 2 * head, 2 * base + head),
        "shared": (base + 4 * adapters + 2 * head, 2 * adapters + head),
    }


# ---- 11.6 token_rewards [2392bdad]

def token_rewards(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty):
    """What every token of an answer is paid.

    Args:
        scores: (B,), of whole answers.
        ended: (B,) bool; an answer that did not end loses `end_penalty`.
        logprobs, ref_logprobs: (B, T), nats.
        mask: (B, T) bool, True on an answer's tokens, which stand first.
        kl_coef: reward per nat.
        end_penalty: reward.

    Returns:
        (B, T), 0 where masked, without a gradient.
    """
    rewards = -kl_coef * torch.where(mask, logprobs - ref_logprobs, 0)
    last = mask.sum(1, keepdim=True) - 1  # (B, 1)
    paid = scores - end_penalty * (~ended).float()
    return rewards.scatter_add(1, last, paid[:, None]).detach()


# ---- 11.7 adaptive_kl [a905c1cb]

def adaptive_kl(kl_coef, kls, target, completions, horizon):
    """The coefficient of a KL penalty, steered towards a target.

    Args:
        kl_coef: the one to begin with.
        kls: a list of floats, the mean KL of each rollout, nats.
        target: the wanted one, nats.
        completions, horizon: of a rollout, and over how many the coefficient may change by about a fifth.

    Returns:
        A list of floats, the coefficient after each rollout.
    """
    coefs = []
    for kl in kls:
        error = max(-0.2, min(0.2, kl / target - 1))
        kl_coef = kl_coef * (1 + error * completions / horizon)
        coefs.append(kl_coef)
    return coefs


# ---- 11.8 both_orders [4ec9eda5]

def both_orders(ours_first, ours_second):
    """The outcome of pairs that were judged in both orders.

    Args:
        ours_first: a list of "first", "second" or "tie", the verdicts when our answer stood first.
        ours_second: those on the same pairs when it stood second.

    Returns:
        A list of "win", "loss" or "tie".
    """
    outcomes = {("first", "second"): "win", ("second", "first"): "loss"}
    return [outcomes.get(pair, "tie") for pair in zip(ours_first, ours_second)]


# ---- 11.9 place_and_win [02b4628d]

def place_and_win(ours_first, ours_second):
    """A judge's position bias, and our win rate over both orders.

    Args:
        ours_first, ours_second: lists of "first", "second" or "tie", verdicts with our answer in that place.

    Returns:
        The bias, in points for the first place, and our win rate, a share.
    """
    points = {"first": 1.0, "tie": 0.5, "second": 0.0}
    a, b = (sum(points[one] for one in some) / len(some) for some in (ours_first, ours_second))
    return 100 * ((a + b) / 2 - 0.5), (a + 1 - b) / 2


# ---- 11.10 equal_length_win_rate [277ac11c]

def equal_length_win_rate(outcomes, ours, theirs):
    """The win rate on pairs of like length.

    Args:
        outcomes: a list of 1.0, 0.5 or 0.0 for us.
        ours, theirs: lists of int, the lengths of the answers in words.

    Returns:
        The number of pairs of like length, and the rate; None where ours is always the longer or always the shorter.
    """
    near = [
        (outcome, mine - other)
        for outcome, mine, other in zip(outcomes, ours, theirs)
        if max(mine, other) <= 1.25 * min(mine, other)
    ]
    longer = [outcome for outcome, gap in near if gap >= 0]
    shorter = [outcome for outcome, gap in near if gap <= 0]
    if not longer or not shorter:
        return len(near), None
    return len(near), (sum(longer) / len(longer) + sum(shorter) / len(shorter)) / 2


# ---- 11.11 with_lora [0933abbd]

class LoRA(nn.Module):
    """A frozen linear layer with a trained step beside it: W x + b + (alpha / r) B A x.

    Args:
        linear: the nn.Linear that was there; its weight is not copied.
        rank, alpha: r, and what the step is scaled by is alpha / r.
    """

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        device = linear.weight.device
        self.A = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))  # so it starts as the base
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    def merged(self):
        """A plain nn.Linear that says the same, with a weight and a bias of its own."""
        new = copy.deepcopy(self.linear)
        with torch.no_grad():
            new.weight += self.scale * self.B @ self.A
        return new

def with_lora(model, rank, alpha, layers):
    """A model with adapters, on the memory of another.

    Args:
        model: has `blocks`, a list of modules, and perhaps a scalar head `score`; it stays as it is.
        rank, alpha: of every adapter.
        layers: how many of the last blocks are adapted, at least 1.

    Returns:
        A model of the same class, which says what `model` says until it is trained. Trained are A and B, and the whole of `score`.
    """
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)  # another parameter, the same memory
        for name, parameter in model.named_parameters()
        if not name.startswith("score.")
    }
    new = copy.deepcopy(model, shared)
    if hasattr(new, "score"):
        new.score.requires_grad_(True)  # a copy, trained also where the model that came in is frozen
    for block in new.blocks[-layers:]:
        for owner in list(block.modules()):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(owner, name, LoRA(layer, rank, alpha))
    return new


# ---- 11.12 train_sft [27b4b77e]

def train_sft(model, learn, held_out, *, epochs, row, batch, lr, seed):
    """Supervised fine-tuning: the model learns what the assistant says in demonstrations.

    Args:
        model: model(tokens, texts), (R, T) int64 each, gives logits (R, T, V). `texts` numbers the conversations in a row from 1, 0 on
            padding; none sees another. What requires a gradient is trained, in place.
        learn, held_out: lists of conversations, each a pair of lists of one length: its tokens, and `spoken`, True where a token is
            the assistant's, its end of turn included.
        epochs: passes over `learn`, each in a new order.
        row, batch: tokens in a row at most, and rows in a step.
        lr: the learning rate at its height.
        seed: of all that is drawn.

    Returns:
        The held-out loss, in nats a token of the assistant's, before training and after each epoch: epochs + 1 floats.
    """
    device = next(model.parameters()).device

    def packed(some):
        """Tokens, numbers of texts and targets (R, row): each conversation in the first row with room for it."""
        rows = []
        for turns in some:
            rest = (one for one in rows if sum(len(tokens) for tokens, _ in one) + len(turns[0]) <= row)
            place = next(rest, None)
            if place is None:
                rows.append(place := [])
            place.append(turns)
        parts = torch.zeros(3, len(rows), row, dtype=torch.long)  # tokens, texts, targets
        for tokens, texts, targets, one in zip(*parts, rows):
            start = 0
            for number, (words, spoken) in enumerate(one, 1):
                end = start + len(words)
                tokens[start:end], texts[start:end] = torch.tensor(words), number
                targets[start + 1 : end] = torch.tensor(spoken[1:])
                start = end
        return parts.to(device)

    def losses(tokens, texts, targets):
        """The negative log-probabilities of the targets, (N,)."""
        logits = model(tokens, texts)[:, :-1]  # logits at t - 1 predict token t
        wanted = targets[:, 1:] > 0
        return F.cross_entropy(logits[wanted], tokens[:, 1:][wanted], reduction="none")

    @torch.no_grad()
    def measured():
        model.eval()
        parts = [losses(*some) for some in packed(held_out).split(batch, 1)]
        return torch.cat(parts).mean().item()

    torch.manual_seed(seed)  # for dropout
    drawn = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(learn), generator=drawn).tolist() for _ in range(epochs)]
    plan = [packed([learn[place] for place in order]).split(batch, 1) for order in orders]
    steps, step = sum(map(len, plan)), 0
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr, weight_decay=0.0)
    found = [measured()]
    for parts in plan:
        model.train()
        for some in parts:
            losses(*some).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:  # up in a tenth of the steps, then down to 0
                group["lr"] = lr * min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        found.append(measured())
    return found


# ---- 11.13 train_assistant [0db8d1b6]

def train_assistant(
    policy,
    critic,
    reference,
    reward,
    prompts,
    *,
    generate,
    end_token,
    iterations,
    rollout_size,
    max_new_tokens,
    kl_coef,
    end_penalty,
    lr,
    critic_lr,
    seed,
    gamma=1.0,
    lam=0.95,
    clip=0.2,
    value_clip=0.2,
    epochs=2,
    minibatch=16,
    max_kl=10.0,
    report=None,
):
    """PPO with a critic: a policy learns to answer prompts so that its answers earn more.

    Args:
        policy, reference: model(tokens, mask), (B, L) each, gives logits (B, L, V); the policy starts as the reference.
        critic: critic(tokens, mask) gives a value at each position, (B, L): what is still to come behind it.
        reward: reward(prompts, tokens, mask) gives one number an answer, (B,), normalised; tokens and mask (B, T).
        prompts: a list of lists of tokens, drawn from without repetition until all were there.
        generate: the sampler of exercise 4.10.
        end_token: ends an answer.
        iterations: updates; each follows a rollout of `rollout_size` answers of `max_new_tokens` tokens at most.
        kl_coef: price of every token's KL, in reward per nat.
        end_penalty: what an answer loses that does not end.
        lr, critic_lr: Adam's rates for policy and critic, of which those parameters are trained, in place, that require a gradient.
        seed: all random numbers follow from it.
        gamma, lam, clip, value_clip, epochs, minibatch: PPO's.
        max_kl: the run stops at a rollout whose mean KL, in nats an answer, is not within it, as a NaN is not, and the policy before is put back.
        report: called with each record as soon as it is complete.

    Returns:
        A list of dicts, one for each policy measured: iteration, reward, kl, ended, ratio, clip_fraction, explained_variance.
    """
    device = next(policy.parameters()).device
    for model in (policy, critic, reference):
        model.eval()  # no dropout: what was sampled is scored as it was
    learned, judged = ([one for one in model.parameters() if one.requires_grad] for model in (policy, critic))
    optimizer = torch.optim.Adam([{"params": learned, "lr": lr}, {"params": judged, "lr": critic_lr}])
    drawn = torch.Generator().manual_seed(seed)
    records = []
    for iteration in range(iterations + 1):
        # Rollout: answers to prompts that are padded on the left, scored by all three models.
        order = torch.randperm(len(prompts), generator=drawn)
        some = [list(prompts[place]) for place in order[torch.arange(rollout_size) % len(prompts)].tolist()]
        lengths = torch.tensor([[len(one)] for one in some])
        P = int(lengths.max())
        start = torch.tensor([[end_token] * (P - len(one)) + one for one in some], device=device)  # (B, P)
        real = (torch.arange(P) >= P - lengths).to(device)
        uniforms = torch.rand(rollout_size, max_new_tokens, generator=drawn).to(device)
        with torch.no_grad():
            tokens, _, mask = generate(policy, start, real, uniforms, end_token=end_token)  # (B, T)
        whole, seen = torch.cat([start, tokens], 1), torch.cat([real, mask], 1)  # (B, P + T)

        def score(model, rows):
            """The log-probabilities (b, T) of answers."""
            logits = model(whole[rows], seen[rows])[:, P - 1 : -1]  # each token is predicted from the place before it
            return logits.log_softmax(-1).gather(2, tokens[rows, :, None])[:, :, 0]

        def value(rows):
            return critic(whole[rows], seen[rows])[:, P - 1 : -1]  # (b, T)

        with torch.no_grad():
            parts = torch.arange(rollout_size, device=device).split(minibatch)
            old = torch.cat([score(policy, rows) for rows in parts])
            ref_logprobs = torch.cat([score(reference, rows) for rows in parts])
            values = torch.cat([value(rows) for rows in parts])
        kl = completion_kl(old, ref_logprobs, mask).mean().item()
        if not kl <= max_kl:  # NaN too
            with torch.no_grad():
                for one, before in zip(learned, kept):
                    one.copy_(before)
            break
        kept = [one.detach().clone() for one in learned]
        scores = reward(some, tokens, mask)
        ended = ((tokens == end_token) & mask).any(1)
        rewards = token_rewards(scores, ended, old, ref_logprobs, mask, kl_coef, end_penalty)
        advantages, returns = gae(rewards, values, gamma, lam, mask)
        record = dict(iteration=iteration, reward=scores.mean().item(), kl=kl, ended=ended.float().mean().item())
        record.update(ratio=1.0, clip_fraction=0.0)
        record["explained_variance"] = explained_variance(values[mask], returns[mask]).item()
        records.append(record)
        if iteration < iterations:
            # Update: a few passes over the rollout, for policy and critic at once.
            white = masked_whiten(advantages, mask)
            ratios, clipped = [], []
            for _ in range(epochs):
                for rows in torch.randperm(rollout_size, generator=drawn).to(device).split(minibatch):
                    logprobs, here = score(policy, rows), mask[rows]
                    loss, clip_fraction = policy_loss(logprobs, old[rows], white[rows], here, clip)
                    (loss + value_loss(value(rows), values[rows], returns[rows], here, value_clip)).backward()
                    for parameters in (learned, judged):
                        nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    ratios.append((logprobs - old[rows])[here].exp().mean().item())
                    clipped.append(float(clip_fraction))
            record.update(ratio=ratios[0], clip_fraction=sum(clipped) / len(clipped))
        if report:
            report(record)
    return records


# ---- 12.1 leave_one_out [049aeafb]

def leave_one_out(rewards):
    """What each completion is worth over the mean of the others of its group.

    Args:
        rewards: (N, G), a row for each prompt; G at least 2.

    Returns:
        (N, G).
    """
    others = rewards.sum(1, keepdim=True) - rewards
    return rewards - others / (rewards.shape[1] - 1)


# ---- 12.2 group_advantages [c25cd9e8]

def group_advantages(rewards, normaliser):
    """What each completion is worth over its group's mean, in a unit of the group.

    Args:
        rewards: (N, G), a row for each prompt; not negative where the mean divides.
        normaliser: "none", "deviation" or "mean".

    Returns:
        (N, G); 0 for a group whose rewards are all alike.
    """
    mean = rewards.mean(1, keepdim=True)
    apart = rewards - mean
    if normaliser == "deviation":
        return apart / (apart.square().mean(1, keepdim=True) + 1e-8).sqrt()
    if normaliser == "mean":
        return torch.where(mean > 0, apart / mean, 0)
    return apart


# ---- 12.3 silent_share [0e957625]

def silent_share(p, group):
    """How many groups have rewards that are all alike, where a reward is 0 or 1.

    Args:
        p: (K,), the probability of a success.
        group: completions in a group.

    Returns:
        (K,), shares.
    """
    return p**group + (1 - p) ** group


# ---- 12.4 token_average [33a713ab]

def token_average(losses, mask, denominator):
    """The losses of tokens as one number.

    Args:
        losses: (B, T); anything where the mask is False.
        mask: (B, T) bool, True on a completion's tokens, of which there is at least one.
        denominator: "completion", "batch" or "constant".

    Returns:
        A tensor without dimensions.
    """
    sums, lengths = torch.where(mask, losses, 0).sum(1), mask.sum(1)  # (B,)
    if denominator == "completion":
        return (sums / lengths).mean()
    if denominator == "batch":
        return sums.sum() / lengths.sum()
    return sums.mean() / mask.shape[1]


# ---- 12.5 sequence_ratio [efbc2d86]

def sequence_ratio(logprobs, old_logprobs, mask):
    """The geometric mean of the probability ratios of a completion's tokens.

    Args:
        logprobs, old_logprobs: (B, T), nats; the old ones get no gradient.
        mask: (B, T) bool, True on a completion's tokens, of which there is at least one.

    Returns:
        (B,).
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0)  # (B, T)
    return (log_ratio.sum(1) / mask.sum(1)).exp()


# ---- 12.6 expected_gradient [e90e782a]

def expected_gradient(probs, paid, group, advantages):
    """Where a policy gradient points on average, by listing all groups.

    Args:
        probs: (V,), with which probability each token is drawn.
        paid: (V,), what each token earns.
        group: how many are drawn.
        advantages: a function of rewards (M, G), a row a group, that gives (M, G).

    Returns:
        (V,), the mean step in the logits.
    """
    tokens = torch.tensor(list(itertools.product(range(len(probs)), repeat=group)), device=probs.device)  # (M, G)
    chance = probs[tokens].prod(1)  # (M,)
    slopes = F.one_hot(tokens, len(probs)) - probs  # (M, G, V)
    steps = (advantages(paid[tokens])[:, :, None] * slopes).mean(1)  # (M, V)
    return chance @ steps


# ---- 12.7 dpo_loss [185ea84b]

def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """The loss of direct preference optimisation, the mean over the pairs.

    Args:
        policy_chosen, policy_rejected: (N,), log-probabilities of whole answers, nats.
        ref_chosen, ref_rejected: (N,), the reference's.
        beta: reward per nat.

    Returns:
        A tensor without dimensions; finite at any margin.
    """
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return -F.logsigmoid(beta * margin).mean()


# ---- 12.8 kto_loss [49983801]

def kto_loss(policy, ref, desirable, kl, beta):
    """The loss of Kahneman-Tversky optimisation, the mean over the answers.

    Args:
        policy, ref: (N,), log-probabilities of whole answers, nats.
        desirable: (N,) bool.
        kl: a tensor without dimensions, nats; it gets no gradient.
        beta: reward per nat.

    Returns:
        A tensor without dimensions.
    """
    gain = beta * (policy - ref - kl.detach())  # (N,)
    return torch.sigmoid(torch.where(desirable, -gain, gain)).mean()


# ---- 12.9 best_and_control [1ae5b4c3]

def best_and_control(rewards, uniforms):
    """The best completion of each prompt, and one that was drawn by chance, as rows of the rollout.

    Args:
        rewards: (N, G); completion g of prompt n is row n G + g.
        uniforms: (N,) in [0, 1).

    Returns:
        best, control: (N,) int64 each.
    """
    N, G = rewards.shape
    first = torch.arange(N, device=rewards.device) * G  # the first row of each group
    return first + rewards.argmax(1), first + (uniforms * G).long()


# ---- 12.10 importance_weights [6165ac19]

def importance_weights(logprobs, sampler_logprobs, mask, cap):
    """How much likelier each token is to the learner than to the copy that sampled it, at most `cap`.

    Args:
        logprobs, sampler_logprobs: (B, T), nats.
        mask: (B, T) bool.
        cap: above 1.

    Returns:
        (B, T), 1 where masked, without a gradient.
    """
    log_ratio = torch.where(mask, logprobs - sampler_logprobs, 0)
    return log_ratio.detach().exp().clamp(max=cap)


# ---- 12.11 policy_gradient [6550eab7]

def policy_gradient(
    rewards, logprobs, old_logprobs, mask, *, baseline, normaliser, clip, denominator, epsilon=0.2, expected=0.0, deviation=1.0
):
    """A policy-gradient loss with four switches.

    Args:
        rewards: (N, G), a row for each prompt.
        logprobs, old_logprobs: (N G, T), nats; row n G + g is completion g of prompt n.
        mask: (N G, T) bool, True on a completion's tokens.
        baseline: "none", "batch", "leave-one-out", "group" or "critic", which is `expected`.
        normaliser: "none", "deviation", "mean" or "fixed", which is `deviation`.
        clip: "none", "token" or "sequence".
        denominator: "completion", "batch" or "constant".
        epsilon: how far a ratio may leave 1.

    Returns:
        A tensor without dimensions, with a gradient to logprobs alone.
    """
    mean = rewards.mean(1, keepdim=True)
    if baseline == "leave-one-out":
        advantages = leave_one_out(rewards)
    else:
        advantages = rewards - {"none": 0, "batch": rewards.mean(), "group": mean, "critic": expected}[baseline]
    if normaliser == "deviation":
        advantages = advantages / (rewards.var(1, keepdim=True, correction=0) + 1e-8).sqrt()
    elif normaliser == "mean":
        advantages = torch.where(mean > 0, advantages / mean, 0)
    elif normaliser == "fixed":
        advantages = advantages / deviation
    A = advantages.detach().reshape(-1, 1)  # (B, 1)

    if clip == "none":
        each = -A * logprobs
    else:
        if clip == "token":
            ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0).exp()  # 0 before exp, whose gradient hands a NaN on
        else:
            ratio = sequence_ratio(logprobs, old_logprobs, mask)[:, None].expand_as(logprobs)
        each = torch.maximum(-A * ratio, -A * ratio.clamp(1 - epsilon, 1 + epsilon))
    return token_average(each, mask, denominator)


# ---- 12.12 learn [2bdf7be6]

def learn(
    policy,
    reference,
    reward,
    prompts,
    *,
    loss,
    generate,
    end_token,
    group,
    iterations,
    max_new_tokens,
    kl_coef,
    lr,
    seed,
    epochs=1,
    minibatch=4,
    max_kl=10.0,
    report=None,
):
    """Policy gradients without a critic: the completions of a prompt are compared with each other.

    Args:
        policy, reference: model(tokens) gives logits (B, L, V); the policy starts as the reference and is trained in place.
        reward: reward(prompts, tokens, mask) gives (B,) for a list of B prompts.
        prompts: a list of N lists of tokens, all of one length.
        loss: loss(rewards, logprobs, old_logprobs, mask) of (n, group), and (n group, T) each.
        generate: the sampler of exercise 4.10.
        end_token: ends a completion.
        group: completions of each prompt in a rollout.
        iterations: updates; each follows a rollout of completions of `max_new_tokens` tokens at most.
        kl_coef: price of a completion's KL, in reward per nat.
        lr: Adam's rate.
        seed: all random numbers follow from it.
        epochs, minibatch: passes over a rollout, and prompts in a step.
        max_kl: the run stops at a rollout whose mean KL, in nats, is not within it, as a NaN is not, and the policy before is put back.
        report: called with each record as soon as it is complete.

    Returns:
        A list of dicts, one for each policy measured: iteration, reward, kl, silent, ratio.
    """
    device = next(policy.parameters()).device
    policy.eval()
    reference.eval()
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    drawn = torch.Generator().manual_seed(seed)
    some = [prompt for prompt in prompts for _ in range(group)]
    start = torch.tensor(some, device=device)  # (B, P)
    B, P = start.shape

    def score(model, whole):
        """The log-probabilities (b, T) of completions, from prompts and completions (b, P + T)."""
        logprobs = model(whole)[:, P - 1 : -1].log_softmax(-1)
        return logprobs.gather(2, whole[:, P:, None])[:, :, 0]

    records, kept = [], None
    for iteration in range(iterations + 1):
        # Rollout: completions of every prompt, scored by both models.
        uniforms = torch.rand(B, max_new_tokens, generator=drawn).to(device)
        with torch.no_grad():
            tokens, _, mask = generate(policy, start, torch.ones_like(start, dtype=torch.bool), uniforms, end_token=end_token)
            whole = torch.cat([start, tokens], 1)  # (B, P + T)
            old, ref_logprobs = score(policy, whole), score(reference, whole)
        kl = torch.where(mask, old - ref_logprobs, 0).sum(1)  # (B,)
        if not kl.mean() <= max_kl:  # NaN too
            policy.load_state_dict(kept)
            break
        kept = copy.deepcopy(policy.state_dict())
        scores = reward(some, tokens, mask)
        table = scores.view(-1, group)
        silent = (table == table[:, :1]).all(1).float().mean().item()
        record = dict(iteration=iteration, reward=scores.mean().item(), kl=kl.mean().item(), silent=silent, ratio=1.0)
        if iteration < iterations:
            # Update: some prompts at a time, each with all its completions.
            paid = (scores - kl_coef * kl).view(-1, group)  # (N, G)
            ratios = []
            for _ in range(epochs):
                for groups in torch.randperm(len(prompts), generator=drawn).to(device).split(minibatch):
                    rows = (groups[:, None] * group + torch.arange(group, device=device)).flatten()
                    logprobs = score(policy, whole[rows])
                    loss(paid[groups], logprobs, old[rows], mask[rows]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    ratios.append((logprobs - old[rows])[mask[rows]].exp().mean().item())
            record["ratio"] = ratios[0]
        records.append(record)
        if report:
            report(record)
    return records


# ---- the end

if __name__ == "__main__":
    from rlhf_lib.course import whole_loop
    from rlhf_lib.exercises import complete

    whole_loop(complete(globals()))
