"""Chapter 04: temperature, top-k and top-p, drawing a token, the loop, scoring what was drawn, left padding, the KV cache."""

import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.sampling import distribution, draw, generate

# ----------------------------------------------------------------------------------------- 4.1

with_temperature = Exercise("4.1", "with_temperature")


@with_temperature.inputs
def _(generator):
    yield {"logits": torch.tensor([0.0, 1.0]), "temperature": 0.5}
    for shape, temperature in (((2, 3), 2.0), ((4, 6), 0.7), ((2, 3, 5), 1.3)):
        yield {"logits": 2 * torch.randn(shape, generator=generator), "temperature": temperature}
    yield {"logits": torch.tensor([[0.0, -150.0]]), "temperature": 0.5}  # exp(-300) is 0 in float32


@with_temperature.oracle
def _(logits, temperature):
    return torch.distributions.Categorical(logits=logits.double() / temperature).logits.float()


@with_temperature.mistake("the temperature is upside down: divide the logits by it, so that a low one sharpens")
def _(logits, temperature):
    return (logits * temperature).log_softmax(-1)


@with_temperature.mistake("the temperature is not used")
def _(logits, temperature):
    return logits.log_softmax(-1)


@with_temperature.mistake("the log-probabilities were divided after log_softmax and no longer sum to 1: divide the logits before")
def _(logits, temperature):
    return logits.log_softmax(-1) / temperature


@with_temperature.mistake("these are still logits: after the division, log_softmax makes log-probabilities of them")
def _(logits, temperature):
    return logits / temperature


@with_temperature.mistake("these are probabilities; return their logarithms")
def _(logits, temperature):
    return (logits / temperature).softmax(-1)


@with_temperature.mistake("the softmax runs over the wrong dimension: the vocabulary is the last one, dim=-1")
def _(logits, temperature):
    return (logits / temperature).log_softmax(0)


@with_temperature.mistake("softmax and then log underflows to minus infinity for unlikely tokens: log_softmax does both at once")
def _(logits, temperature):
    return (logits / temperature).softmax(-1).log()


# ----------------------------------------------------------------------------------------- 4.2

top_k_filter = Exercise("4.2", "top_k_filter")


@top_k_filter.inputs
def _(generator):
    yield {"logits": torch.tensor([1.0, 3.0, 2.0]), "k": 2}
    for rows, count, k in ((2, 4, 1), (3, 6, 3), (5, 9, 4)):
        yield {"logits": 2 * torch.randn(rows, count, generator=generator), "k": k}
    yield {"logits": torch.randn(2, 3, generator=generator), "k": 5}  # more than there are: all stay


def keep_best(logits, k, cut=-math.inf):
    k = max(0, min(k, logits.shape[-1]))
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(k).indices, True)
    return torch.where(keep, logits, cut)


@top_k_filter.oracle
def _(logits, k):
    rows = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        rows.append([x if sum(other > x for other in row) < k else -math.inf for x in row])
    return torch.tensor(rows).reshape(logits.shape)


@top_k_filter.mistake("cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity")
def _(logits, k):
    return keep_best(logits, k, cut=0.0)


@top_k_filter.mistake("this keeps the k least likely tokens; keep the most likely")
def _(logits, k):
    return -keep_best(-logits, k, cut=math.inf)


@top_k_filter.mistake("k - 1 tokens are left: the k-th stays too, so cut what is below it, not what is equal to it")
def _(logits, k):
    return keep_best(logits, min(k, logits.shape[-1]) - 1)


@top_k_filter.mistake("k + 1 tokens are left: the first k of the sorted ones have places 0 to k - 1")
def _(logits, k):
    return keep_best(logits, k + 1)


@top_k_filter.mistake("one threshold is used for the whole batch; each row has its own k-th largest logit")
def _(logits, k):
    return keep_best(logits.flatten(), k).reshape(logits.shape)


@top_k_filter.mistake("the kept logits lie in order of size; each must stay at its own token's place")
def _(logits, k):
    best = logits.topk(min(k, logits.shape[-1])).values
    return F.pad(best, (0, logits.shape[-1] - best.shape[-1]), value=-math.inf)


@top_k_filter.mistake("this fails when k is larger than the vocabulary: then keep everything, min(k, V)")
def _(logits, k):
    if k > logits.shape[-1]:
        raise RuntimeError("selected index k out of range")
    return keep_best(logits, k)


# ----------------------------------------------------------------------------------------- 4.3

top_p_filter = Exercise("4.3", "top_p_filter")


@top_p_filter.inputs
def _(generator):
    yield {"logits": torch.tensor([0.2, 0.5, 0.3]).log(), "p": 0.6}
    yield {"logits": torch.tensor([0.05, 0.1, 0.6, 0.25]).log(), "p": 0.8}
    for rows, count, p in ((2, 5, 0.05), (3, 6, 0.5), (4, 9, 0.9), (2, 4, 1.0)):
        yield {"logits": 1.5 * torch.randn(rows, count, generator=generator), "p": p}


def nucleus(logits, p, weights=None, descending=True, also=0, drop_last=False, back=True, cut=-math.inf):
    """Top-p with the ways in which it goes wrong; `also` keeps that many more, `drop_last` cuts the token that reaches p."""
    weights = logits.softmax(-1) if weights is None else weights
    ranked, order = weights.sort(-1, descending=descending)
    gone = ranked.cumsum(-1) > p if drop_last else ranked.cumsum(-1) - ranked >= p
    if also:
        gone = torch.cat([torch.zeros_like(gone[..., :also]), gone[..., :-also]], dim=-1)
    if back:
        gone = torch.zeros_like(gone).scatter(-1, order, gone)
    return logits.masked_fill(gone, cut)


@top_p_filter.oracle
def _(logits, p):
    whole = logits.reshape(-1, logits.shape[-1]).double()
    out = torch.full_like(whole, -math.inf)
    for row, probabilities in enumerate(whole.softmax(-1).tolist()):
        reached = 0.0
        for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
            if reached >= p and p < 1:
                break
            out[row, token] = whole[row, token]
            reached += probabilities[token]
    return out.float().reshape(logits.shape)


@top_p_filter.mistake("the token that reaches p is cut too: what is left is less than p, and may be nothing at all")
def _(logits, p):
    return nucleus(logits, p, drop_last=p < 1)


@top_p_filter.mistake("one token too many is kept: stop at the first that makes the sum reach p")
def _(logits, p):
    return nucleus(logits, p, also=1)


@top_p_filter.mistake("the sum runs in the order of the vocabulary; sort by probability first, largest in front")
def _(logits, p):
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -math.inf)


@top_p_filter.mistake("sorted the wrong way round: this collects the least likely tokens until they reach p")
def _(logits, p):
    return nucleus(logits, p, descending=False)


@top_p_filter.mistake("the cut was found among the sorted tokens and never taken back to their own places: scatter it")
def _(logits, p):
    return nucleus(logits, p, back=False)


@top_p_filter.mistake("each token's own probability is compared with p; compare the sum of those before it")
def _(logits, p):
    return logits.masked_fill(logits.softmax(-1) < (p if p < 1 else 0.0), -math.inf)


@top_p_filter.mistake("logits were summed; p is a share of probability, so take the softmax first")
def _(logits, p):
    return nucleus(logits, p, weights=logits)


@top_p_filter.mistake("cut tokens got a logit of 0, which is exp(0) = 1 before normalising: use minus infinity")
def _(logits, p):
    return nucleus(logits, p, cut=0.0)


# ----------------------------------------------------------------------------------------- 4.4

draw_token = Exercise("4.4", "draw_token")


@draw_token.inputs
def _(generator):
    yield {"logprobs": torch.tensor([[0.5, 0.3, 0.2]]).log(), "uniforms": torch.tensor([0.6])}
    yield {"logprobs": torch.tensor([[0.0, 0.5, 0.5]]).log(), "uniforms": torch.tensor([0.0])}  # token 0 is cut
    yield {"logprobs": torch.tensor([[0.3, 0.3, 0.3999, 0.0]]).log(), "uniforms": torch.tensor([0.99995])}  # short of 1
    for rows, count in ((16, 5), (32, 9)):
        logits = 1.5 * torch.randn(rows, count, generator=generator)
        yield {"logprobs": logits.log_softmax(-1), "uniforms": torch.rand(rows, generator=generator)}


def invert(weights, uniforms, right=True):
    """Where each uniform falls into the running sum of its row of weights; V where it lies above all of it."""
    return torch.searchsorted(weights.cumsum(-1), uniforms[:, None].to(weights), right=right)[:, 0]


@draw_token.oracle
def _(logprobs, uniforms):
    tokens = []
    for row, uniform in zip(logprobs.exp().tolist(), uniforms.tolist()):
        total, chosen = 0.0, None
        for token, probability in enumerate(row):
            total += probability
            if probability > 0 and (chosen is None or total - probability <= uniform):
                chosen = token  # the last token whose interval begins at or before the uniform
        tokens.append(chosen)
    return torch.tensor(tokens)


@draw_token.mistake("this is the most likely token, every time; the uniform number has to decide")
def _(logprobs, uniforms):
    return logprobs.argmax(-1)


@draw_token.mistake("the numbers that were given are not used: drawn this way, a sample cannot be repeated")
def _(logprobs, uniforms):
    return torch.multinomial(logprobs.exp(), 1)[:, 0]


@draw_token.mistake("every row is drawn with the first row's number; each row has its own")
def _(logprobs, uniforms):
    return draw(logprobs, uniforms[:1].expand(len(uniforms)).contiguous())


@draw_token.mistake("log-probabilities were summed; the cumulative distribution is the running sum of probabilities")
def _(logprobs, uniforms):
    return invert(logprobs, uniforms)


@draw_token.mistake("this is the token before the right one: take the first whose running sum exceeds the uniform")
def _(logprobs, uniforms):
    return (draw(logprobs, uniforms) - 1).clamp(min=0)


@draw_token.mistake("the tokens were sorted by probability first: a fair draw, but other tokens; go in the vocabulary's order")
def _(logprobs, uniforms):
    ranked, order = logprobs.sort(-1, descending=True)
    return order.gather(1, draw(ranked, uniforms)[:, None])[:, 0]


@draw_token.mistake("at uniform 0 a token of probability 0 comes out: its sum must exceed the uniform, not equal it (right=True)")
def _(logprobs, uniforms):
    found = invert(logprobs.exp(), uniforms, right=False)
    return torch.where(found < logprobs.shape[1], found, draw(logprobs, uniforms))


@draw_token.mistake("where rounding leaves the sum below the uniform, a token that was cut comes out: take the last that is not")
def _(logprobs, uniforms):
    return invert(logprobs.exp(), uniforms).clamp(max=logprobs.shape[1] - 1)


@draw_token.mistake("where rounding leaves the sum below the uniform, token 0 comes out: argmax of nothing but False is 0")
def _(logprobs, uniforms):
    return (logprobs.exp().cumsum(-1) > uniforms[:, None]).int().argmax(-1)


# ----------------------------------------------------------------------------------------- 4.5

until_end = Exercise("4.5", "until_end")


@until_end.inputs
def _(generator):
    yield {"tokens": torch.tensor([[5, 0, 3]]), "end_token": 0}
    rows = [[4, 0, 2, 0, 1], [1, 2, 3, 4, 2], [0, 1, 1, 1, 1], [2, 2, 2, 2, 0]]
    yield {"tokens": torch.tensor(rows), "end_token": 0}
    rows = torch.randint(0, 5, (5, 8), generator=generator)
    rows[0] = torch.tensor([2, 0, 1, 3, 1, 3, 0, 4])
    yield {"tokens": rows, "end_token": 3}


def first_ends(tokens, end_token):
    """The place of each row's first end token; the row's length where there is none."""
    return torch.tensor([[*row, end_token].index(end_token) for row in tokens.tolist()])


@until_end.oracle
def _(tokens, end_token):
    mask = []
    for row in tokens.tolist():
        ended, real = False, []
        for token in row:
            real.append(not ended)
            ended = ended or token == end_token
        mask.append(real)
    return torch.tensor(mask)


@until_end.mistake("the end token itself is left out: it was drawn, so it is part of the completion and is scored")
def _(tokens, end_token):
    return torch.arange(tokens.shape[1]) < first_ends(tokens, end_token)[:, None]


@until_end.mistake("only the end tokens are taken out; everything after the first one goes, whatever it is")
def _(tokens, end_token):
    return tokens != end_token


@until_end.mistake("this runs on to the last end token of a row; the completion is over at the first")
def _(tokens, end_token):
    places = torch.where(tokens == end_token, torch.arange(tokens.shape[1]), -1).amax(1)
    places = torch.where(places < 0, tokens.shape[1], places)
    return torch.arange(tokens.shape[1]) <= places[:, None]


@until_end.mistake("a row without an end token is real in its whole length: argmax of nothing but False is 0")
def _(tokens, end_token):
    return torch.arange(tokens.shape[1]) <= (tokens == end_token).int().argmax(1, keepdim=True)


@until_end.mistake("the mask is inverted: True stands for a real token")
def _(tokens, end_token):
    return ~until_end.right(tokens, end_token)


@until_end.mistake("the end token is taken to be 0: use the one that was given")
def _(tokens, end_token):
    return until_end.right(tokens, 0)


@until_end.mistake("all rows stop where the first one ends; each row has its own end")
def _(tokens, end_token):
    places = first_ends(tokens, end_token).amin()
    return (torch.arange(tokens.shape[1]) <= places).expand(tokens.shape)


@until_end.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got, expected, "a row is a completion; bright is real")


# ----------------------------------------------------------------------------------------- 4.6

sample = Exercise("4.6", "sample")


@sample.inputs
def _(generator):
    for rows, start, steps in ((1, 1, 2), (3, 2, 3), (12, 2, 5)):
        yield {
            "weights": int(torch.randint(1_000_000, (1,), generator=generator)),
            "prompts": torch.randint(12, (rows, start), generator=generator),
            "uniforms": torch.rand(rows, steps, generator=generator),
            "temperature": 0.7,
        }


def tiny_gpt(seed):
    """A GPT with weights drawn from `seed`, large enough for uneven probabilities; in training mode, with dropout."""
    model = GPT(GPTConfig(vocab_size=12, context=16, layers=2, heads=2, width=16, dropout=0.3))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.4, generator=generator)
    return model.train()


@sample.call
def _(function, weights, prompts, uniforms, temperature):
    """The tokens; whether the model is in training mode afterwards, as before; how often a graph was built."""
    model, graphs = tiny_gpt(weights), []
    model.embedding.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    tokens = function(model, prompts, uniforms, temperature)
    return {"tokens": tokens, "training mode as before": model.training, "graph was built": any(graphs)}


@sample.oracle
def _(model, prompts, uniforms, temperature):
    return generate(model, prompts, uniforms.shape[1], temperature=temperature, uniforms=uniforms).tokens


def sample_loop(model, prompts, uniforms, temperature, mistake=""):
    whole = prompts
    for step in range(uniforms.shape[1]):
        read = {"last token only": whole[:, -1:], "prompt only": prompts}.get(mistake, whole)
        logits = model(read)[:, 0 if mistake == "first position" else -1]
        logprobs = distribution(logits, 1.0 if mistake == "temperature" else temperature)
        number = uniforms[:, 0 if mistake == "one number" else step]
        token = logprobs.argmax(-1) if mistake == "argmax" else draw(logprobs, number.contiguous())
        whole = torch.cat([whole, token[:, None]], dim=1)
    return whole if mistake == "prompt in front" else whole[:, prompts.shape[1] :]


def loop_with(mistake):
    """The loop with one mistake, otherwise with dropout off, without a graph, and with the mode put back."""

    def run(model, prompts, uniforms, temperature):
        model.eval()
        with torch.no_grad():
            tokens = sample_loop(model, prompts, uniforms, temperature, mistake)
        model.train()
        return tokens

    return run


@sample.mistake("dropout is still on while sampling: call model.eval() first")
def _(model, prompts, uniforms, temperature):
    with torch.no_grad():
        return sample_loop(model, prompts, uniforms, temperature)


@sample.mistake("dropout is off, but stays off: put the model back into the mode that it was in")
def _(model, prompts, uniforms, temperature):
    with torch.no_grad():
        return sample_loop(model.eval(), prompts, uniforms, temperature)


@sample.mistake("every step builds a graph for a gradient that nobody wants: sample under torch.no_grad()")
def _(model, prompts, uniforms, temperature):
    tokens = sample_loop(model.eval(), prompts, uniforms, temperature)
    model.train()
    return tokens


sample.mistake("the drawn token is never appended: every step reads the prompt alone")(loop_with("prompt only"))
sample.mistake("only the newest token is read: without a cache the model needs everything before it too")(
    loop_with("last token only")
)
sample.mistake("these are the logits at the first position; the next token is predicted at the last")(loop_with("first position"))
sample.mistake("the temperature is not used")(loop_with("temperature"))
sample.mistake("each step draws with the same number: step t uses uniforms[:, t]")(loop_with("one number"))
sample.mistake("this takes the most likely token each time: draw, with the numbers that were given")(loop_with("argmax"))
sample.mistake("the prompt is still in front: return the new tokens alone")(loop_with("prompt in front"))


# ----------------------------------------------------------------------------------------- 4.7

sequence_logprob = Exercise("4.7", "sequence_logprob")


@sequence_logprob.inputs
def _(generator):
    yield {
        "logits": torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]), "tokens": torch.tensor([[0, 1]]),
        "mask": torch.tensor([[False, True]]), "temperature": 1.0, "top_k": 0,
    }  # fmt: skip
    for rows, length, count, temperature, top_k in ((2, 5, 4, 1.0, 0), (3, 7, 6, 0.7, 3), (4, 8, 6, 1.4, 2)):
        logits = 2 * torch.randn(rows, length, count, generator=generator)
        choices = logits.topk(top_k or count).indices[:, :-1]  # (B, S - 1, k): a sampler can only have drawn these
        picked = torch.randint(choices.shape[2], (rows, length - 1, 1), generator=generator)
        first = torch.randint(count, (rows, 1), generator=generator)
        ends = torch.randint(4, length + 1, (rows, 1), generator=generator)
        ends[0], ends[1] = 4, length  # one row ends early, one goes on to the last position
        places = torch.arange(length)
        yield {
            "logits": logits, "tokens": torch.cat([first, choices.gather(2, picked)[:, :, 0]], dim=1),
            "mask": (places >= 2) & (places < ends), "temperature": temperature, "top_k": top_k,
        }  # fmt: skip


@sequence_logprob.call
def _(function, logits, **others):
    """The log-probabilities, and the gradient of their sum."""
    logits = logits.clone().requires_grad_()
    scores = function(logits, **others)
    scores.sum().backward()
    return {"log-probabilities": scores, "gradient": logits.grad}


@sequence_logprob.oracle
def _(logits, tokens, mask, temperature, top_k):
    rows = []
    for scores, row, real in zip(logits, tokens.tolist(), mask.tolist()):
        total = 0 * scores.sum()
        for place in range(1, len(row)):
            if real[place]:
                before = (scores[place - 1].double() / temperature).exp()
                kept = before.sort(descending=True).values[: top_k or None]
                total = total + (before[row[place]] / kept.sum()).log().float()
        rows.append(total)
    return torch.stack(rows)


def score(logits, tokens, mask, temperature, top_k, shift=1, mean=False, raw=False):
    logprobs = logits / temperature if raw else distribution(logits, temperature, top_k)
    logprobs = logprobs[:, : tokens.shape[1] - shift].gather(2, tokens[:, shift:, None])[:, :, 0]
    real = mask[:, shift:]
    total = torch.where(real, logprobs, 0).sum(1)
    return total / real.sum(1) if mean else total


@sequence_logprob.mistake("logits and tokens are not shifted: the logits at position t predict the token at t + 1")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask, temperature, top_k, shift=0)


@sequence_logprob.mistake("the last token of each completion is never scored")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask & F.pad(mask[:, 1:], (0, 1)), temperature, top_k)


@sequence_logprob.mistake("the prompt is scored too: only what the mask marks was drawn")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask.flip(1).cumsum(1).flip(1) > 0, temperature, top_k)


@sequence_logprob.mistake("what stands behind the end token is scored too: the mask says where the completion is over")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask.cumsum(1) > 0, temperature, top_k)


@sequence_logprob.mistake(
    "scored at temperature 1, sampled at another: the logits are divided by the sampler's temperature here too"
)
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask, 1.0, top_k)


@sequence_logprob.mistake("scored with the full softmax, sampled with top-k: cut the same tokens before you normalise")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask, temperature, 0)


@sequence_logprob.mistake("this is the mean over the tokens; the log-probability of a completion is the sum")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask, temperature, top_k, mean=True)


@sequence_logprob.mistake("raw logits are not log-probabilities: put them through log_softmax first")
def _(logits, tokens, mask, temperature, top_k):
    return score(logits, tokens, mask, temperature, top_k, raw=True)


# ----------------------------------------------------------------------------------------- 4.8

left_padding = Exercise("4.8", "left_padding")


@left_padding.inputs
def _(generator):
    yield {"real": torch.tensor([[False, True, True]])}
    for rows, length in ((3, 4), (4, 6)):
        padding = torch.randint(0, length, (rows, 1), generator=generator)
        padding[0], padding[1] = 0, 2  # one prompt of full length, and one of two tokens less
        yield {"real": torch.arange(length) >= padding}


@left_padding.call
def _(function, real):
    """Positions and mask, as far as real tokens go; and how many rows of the mask are empty, padding included."""
    positions, attend = function(real)
    return {
        "positions": torch.where(real, positions, 0),
        "mask": attend & real[:, :, None],
        "rows with nothing to look at": (~attend.any(-1)).sum(),
    }


@left_padding.oracle
def _(real):
    B, T = real.shape
    positions, attend = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, T, dtype=torch.bool)
    for row in range(B):
        padding = T - int(real[row].sum())
        for query in range(T):
            positions[row, query] = max(0, query - padding)
            for key in range(query + 1):
                attend[row, query, key] = key >= padding or key == query
    return positions, attend


def padded(real, positions=0, before=None, keys=None, itself=True):
    T = real.shape[1]
    before = torch.ones(T, T, dtype=torch.bool).tril() if before is None else before
    attend = before & (real[:, None, :] if keys is None else keys)
    if itself:
        attend = attend | torch.eye(T, dtype=torch.bool)
    return (real.cumsum(1) - 1).clamp(min=0) + positions, attend


@left_padding.mistake("there is no causal mask: a token may look at itself and at what comes before it, when sampling too")
def _(real):
    return padded(real, before=torch.ones(real.shape[1], real.shape[1], dtype=torch.bool))


@left_padding.mistake("padding can be looked at: leave out the columns where `real` is False")
def _(real):
    return padded(real, keys=torch.ones_like(real)[:, None, :])


@left_padding.mistake("the rows of padding are masked, not its columns: nobody may look AT padding, real[:, None, :]")
def _(real):
    return padded(real, keys=real[:, :, None], itself=False)


@left_padding.mistake("positions count the padding: the first real token of every row is at position 0")
def _(real):
    return torch.arange(real.shape[1]).expand(real.shape), padded(real)[1]


@left_padding.mistake("positions start at 1: the first real token is at position 0")
def _(real):
    return padded(real, positions=1)


@left_padding.mistake("a token cannot see itself: the diagonal belongs to the mask, tril(0)")
def _(real):
    return padded(real, before=torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril(-1), itself=False)


@left_padding.mistake("rows of padding are empty, and the softmax of an empty row is NaN: let each position look at itself")
def _(real):
    return padded(real, itself=False)


@left_padding.mistake("the triangle is upside down: this looks at what comes after, never at what came before")
def _(real):
    return padded(real, before=torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).triu())


@left_padding.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got["mask"][-1], expected["mask"][-1], "last prompt: row looks at column (real rows)")


# ----------------------------------------------------------------------------------------- 4.9

cached_step = Exercise("4.9", "cached_step")


@cached_step.inputs
def _(generator):
    for B, H, S, D in ((1, 1, 0, 2), (1, 1, 2, 2), (2, 2, 3, 4), (2, 3, 6, 8)):
        q, k, v = torch.randn(3, B, H, 1, D, generator=generator)
        keys, values = torch.randn(2, B, H, S, D, generator=generator)
        yield {"q": q, "k": k, "v": v, "keys": keys, "values": values}


@cached_step.oracle
def _(q, k, v, keys, values):
    keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    return F.scaled_dot_product_attention(q, keys, values), keys, values


def look(q, keys, values, scale=0.5, dim=-1):
    return (q @ keys.mT / q.shape[-1] ** scale).softmax(dim) @ values


@cached_step.mistake("the new token cannot see itself: append its key and value first, then attend")
def _(q, k, v, keys, values):
    return look(q, keys, values), *cached_step.right(q, k, v, keys, values)[1:]


@cached_step.mistake("is_causal=True lines one query up with the FIRST key, so it sees that one alone: the last token sees all")
def _(q, k, v, keys, values):
    _, keys, values = cached_step.right(q, k, v, keys, values)
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True), keys, values


@cached_step.mistake("the scores are not divided by sqrt(D)")
def _(q, k, v, keys, values):
    _, keys, values = cached_step.right(q, k, v, keys, values)
    return look(q, keys, values, scale=0), keys, values


@cached_step.mistake("the scores are divided by D; divide by its root")
def _(q, k, v, keys, values):
    _, keys, values = cached_step.right(q, k, v, keys, values)
    return look(q, keys, values, scale=1), keys, values


@cached_step.mistake("the softmax runs over the single query and gives 1 everywhere: normalise over the keys, dim=-1")
def _(q, k, v, keys, values):
    _, keys, values = cached_step.right(q, k, v, keys, values)
    return look(q, keys, values, dim=-2), keys, values


@cached_step.mistake("the old cache is returned: without the new key and value, the next step cannot see this token")
def _(q, k, v, keys, values):
    return cached_step.right(q, k, v, keys, values)[0], keys, values


@cached_step.mistake("the new key and value were put in front: the cache is in the order of the positions, new ones go last")
def _(q, k, v, keys, values):
    y = cached_step.right(q, k, v, keys, values)[0]
    return y, torch.cat([k, keys], dim=2), torch.cat([v, values], dim=2)


@cached_step.mistake("the cache was not used: this token sees nothing but itself")
def _(q, k, v, keys, values):
    return v, *cached_step.right(q, k, v, keys, values)[1:]
