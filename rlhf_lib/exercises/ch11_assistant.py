"""Chapter 11: what an assistant learns from, adapters and what they cost, and the reward of a token."""

import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises import ch08_rlhf as ch08
from rlhf_lib.exercises.compare import equal
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.plain import as_int64


# ----------------------------------------------------------------------------------------- 11.1
def draw_conversations(generator):
    yield {"roles": ["user", "assistant"], "lengths": [1, 2], "opening": 1, "closing": 2}
    yield {"roles": ["user", "assistant", "user", "assistant"], "lengths": [2, 1, 3, 2], "opening": 3, "closing": 2}
    yield {"roles": ["system", "user", "assistant"], "lengths": [2, 1, 3], "opening": 2, "closing": 3}
    yield {"roles": ["user", "assistant", "user"], "lengths": [3, 2, 2], "opening": 2, "closing": 1}
    yield {"roles": ["user", "assistant", "user", "assistant"], "lengths": [0, 2, 1, 0], "opening": 0, "closing": 1}
    for turns, system in ((3, True), (2, False)):
        roles = ["system"] * system + ["user", "assistant"] * turns
        lengths = torch.randint(6, (len(roles),), generator=generator).tolist()
        opening, closing = torch.randint(1, 5, (2,), generator=generator).tolist()
        yield {"roles": roles, "lengths": lengths, "opening": opening, "closing": closing}
    yield {"roles": ["user"], "lengths": [2], "opening": 1, "closing": 2}
    yield {"roles": ["assistant", "assistant", "user"], "lengths": [1, 2, 1], "opening": 1, "closing": 2}
    many = [300, 130, *(place % 7 for place in range(78))]  # a long conversation, of long turns
    yield {"roles": ["user", "assistant"] * 40, "lengths": many, "opening": 3, "closing": 2}


def targets_by_place(roles, lengths, opening, closing):
    sizes = torch.tensor(lengths) + opening + closing
    targets = torch.zeros(int(sizes.sum()), dtype=torch.bool)
    for role, length, end in zip(roles, lengths, sizes.cumsum(0).tolist()):
        targets[end - closing - length : end - closing + 1] = role == "assistant"
    return targets


def every(count):
    return [True] * count


def none(count):
    return [False] * count


def first(count):
    return [place == 0 for place in range(count)]


def last(count):
    return [place == count - 1 for place in range(count)]


def targets_formula(
    roles, lengths, opening, closing, *, who=lambda role: role == "assistant", ends=None, opens=none, said=every, closes=first,
    change=lambda targets: targets,
):  # fmt: skip
    """`who` speaks, and whose end of turn counts (`ends`); which of the tokens of each part of a turn count."""
    targets = []
    for role, length in zip(roles, lengths):
        words = [*opens(opening), *said(length)] if who(role) else none(opening + length)
        targets += words + (closes(closing) if (ends or who)(role) else none(closing))
    return change(torch.tensor(targets))


def turns_alone(counts):
    """Of the assistant's turns only those count of which counts(place, length, places of all its turns) is true."""

    def answer(roles, lengths, opening, closing):
        places = [place for place, role in enumerate(roles) if role == "assistant"]
        kept = [place for place in places if counts(place, lengths[place], places)]
        said = ["assistant" if place in kept else "user" for place in range(len(roles))]
        return targets_formula(said, lengths, opening, closing)

    return answer


def last_end_alone(roles, lengths, opening, closing):
    every_end = targets_formula(roles, lengths, opening, closing)
    words = targets_formula(roles, lengths, opening, closing, closes=none)
    return words | every_end & torch.isin(torch.arange(len(words)), every_end.nonzero()[-1:])


answer_targets = Exercise(
    "11.1", "answer_targets", draw=draw_conversations, right=targets_by_place, formula=targets_formula, mistakes={
        "everybody's words count: so it learns to ask the user's questions too; only what the assistant says":
            {"who": lambda role: True},
        "the user's words count, and the assistant's do not: the roles are exchanged": {"who": lambda role: role == "user"},
        "the system's words count too; they are given, as the user's are": {"who": lambda role: role != "user"},
        "every second turn is taken for the assistant's; behind a system message it is the user's. Look at the role":
            lambda roles, lengths, opening, closing: targets_formula(
                (["user", "assistant"] * len(roles))[: len(roles)], lengths, opening, closing),
        "the first token that the assistant says is left out; it is predicted too, from the last of those that open its turn": [
            {"change": lambda targets: targets & targets.roll(1)}, {"said": lambda length: [not one for one in first(length)]}],
        "the last word before the end of turn is left out": {"said": lambda length: [not one for one in last(length)]},
        "the end of turn is left out: the assistant says it, and who never learns it never stops": {"closes": none},
        "all tokens that close a turn count; the assistant says the first of them alone, the end of turn": {"closes": every},
        "the token behind the end of turn counts too; it is the template's":
            {"closes": lambda closing: [place < 2 for place in range(closing)]},
        "a turn's last token counts in place of its end; the end of turn is the first of those that close it": {"closes": last},
        "what opens the assistant's turn counts too; it is written for it, and asks it to speak":
            [{"opens": every}, {"opens": every, "closes": none}, {"opens": last}],
        "the whole of the assistant's turn counts, with what opens and what closes it": {"opens": every, "closes": every},
        "a turn without words has an end too, and the assistant says it": turns_alone(lambda place, length, places: length),
        "the end of everybody's turn counts; the assistant says only its own":
            [{"ends": lambda role: True}, {"ends": lambda role: role != "system"}],
        "the end of turn counts behind the last answer alone; every answer has one": last_end_alone,
        "only the ends of turn count; the words before them do too": {"said": none},
        "only the last answer counts; every turn of the assistant's does":
            turns_alone(lambda place, length, places: place == places[-1]),
        "only the first answer counts; every turn of the assistant's does":
            turns_alone(lambda place, length, places: place == places[0]),
        "every token counts; nothing tells the assistant from the others": {"change": torch.ones_like},
        "this is one position late: entry t belongs to token t": {"change": lambda targets: targets.roll(1)},
        "this is one position early: entry t is for token t itself, though the model says it at t - 1":
            [{"change": lambda targets: targets.roll(-1)}, {"opens": last, "closes": none},
             {"change": lambda targets: F.pad(targets, (0, 1))[1:]}],
        "an entry is cut off: every token has one, the first too":
            [{"change": lambda targets: targets[1:]}, {"change": lambda targets: targets[:-1]}],
        "opening and closing have changed places": lambda roles, lengths, opening, closing: targets_formula(
            roles, lengths, closing, max(opening, 1)),
        "True and False have changed places": {"change": torch.logical_not},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.2
def draw_packed(generator):
    yield {"lengths": [2, 1], "size": 4}
    yield {"lengths": [3], "size": 3}
    yield {"lengths": [1, 3, 2], "size": 8}
    yield {"lengths": [2, 2, 2], "size": 6}
    yield {"lengths": [2, 2, 3], "size": 7}
    yield {"lengths": [4, 1], "size": 10}
    for count in (3, 5):
        lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
        yield {"lengths": lengths, "size": sum(lengths) + count - 2}
    yield {"lengths": [1], "size": 1}
    yield {"lengths": [2] + 256 * [1], "size": 262}  # more texts than a byte has numbers


def packed_by_loops(lengths, size):
    allowed, positions, start = torch.eye(size, dtype=torch.bool), torch.zeros(size, dtype=torch.long), 0
    for length in lengths:
        for place in range(length):
            positions[start + place] = place
            for earlier in range(place):
                allowed[start + place, start + earlier] = True
        start += length
    return allowed, positions


def packed_formula(
    lengths, size, *, same=lambda texts: texts[:, None] == texts, before=lambda size: torch.ones(size, size).tril().bool(),
    padding="itself", numbers=None, end=lambda allowed, positions: (allowed, positions),
):  # fmt: skip
    """`texts` are the numbers of the texts from 1, and 0 on padding; `padding` says what a padded position sees."""
    ends = torch.tensor(lengths).cumsum(0)
    texts = torch.searchsorted(ends, torch.arange(size), right=True) + 1
    texts[int(ends[-1]) :] = 0
    real, places = texts > 0, torch.arange(size)
    allowed = same(texts) & before(size)
    if padding != "the padding before it":
        allowed &= real[:, None]
    if padding == "itself":
        allowed |= torch.diag(~real)
    if padding == "all before it":
        allowed |= before(size) & ~real[:, None]
    starts = (texts[:, None] == texts).int().argmax(1)
    positions = torch.where(real, places - starts, 0) if numbers is None else numbers(places, starts, real)
    return end(allowed, positions)


def packed_picture(arguments, got, expected):
    from rlhf_lib import plots

    if equal(got[0], expected[0], 0):
        return plots.side_by_side(got[1][None].float(), expected[1][None].float(), "the positions, one for each column")
    return plots.side_by_side(got[0].float(), expected[0].float(), "1 where a row may look at a column")


def call_packed(function, **arguments):
    """What the function returns; positions that are floats, with which nothing can be looked up, raise, and those of few bits."""
    pair = function(**arguments)
    if isinstance(pair, (tuple, list)) and torch.is_tensor(pair[-1]):
        if pair[-1].is_floating_point():
            torch.empty(0)[pair[-1]]
        as_int64(pair[-1])
    return pair


def by_index(lengths, size):
    """Each text begins where `lengths.index` says, which finds the first of its length."""
    allowed, positions = torch.eye(size, dtype=torch.bool), torch.zeros(size, dtype=torch.long)
    for length in lengths:
        start = sum(lengths[: lengths.index(length)])
        allowed[start : start + length, start : start + length] |= torch.ones(length, length).tril().bool()
        positions[start : start + length] = torch.arange(length)
    return allowed, positions


def in_a_byte(lengths, size):
    """Padded tokens are texts of their own, and all are numbered from 0 in 8 bits."""
    parts = torch.tensor([*lengths, *[1] * (size - sum(lengths))])
    texts = torch.arange(len(parts)).repeat_interleave(parts).to(torch.uint8)
    return (texts[:, None] == texts).tril(), packed_by_loops(lengths, size)[1]


packed_mask = Exercise(
    "11.2", "packed_mask", draw=draw_packed, call=call_packed, right=packed_by_loops, formula=packed_formula,
    picture=packed_picture, mistakes={
        "a text of a length that came before is laid over the first of that length, as by lengths.index": by_index,
        "a text sees the texts before it in the row: it leaks. It may look only at its own":
            [{"same": lambda texts: (texts[:, None] > 0) & (texts > 0)},
             {"same": lambda texts: texts[:, None] >= texts, "padding": "all before it"},
             {"same": lambda texts: texts[:, None] >= 0, "padding": "the padding before it"}],
        "inside a text a token sees those behind it: it could read what it is to predict":
            {"before": lambda size: torch.ones(size, size).bool()},
        "a token does not see itself": {"before": lambda size: torch.ones(size, size).tril(-1).bool()},
        "rows and columns are exchanged: row t says where token t may look": {"end": lambda a, p: (a.T, p)},
        "True and False have changed places: True is where a token may look": {"end": lambda a, p: (~a, p)},
        "the first token of a text still sees the text before it; its border is one place late":
            {"same": lambda texts: (texts[:, None] == texts) | (texts.roll(1)[:, None] == texts) & (texts[:, None] > 0)},
        "padding sees nothing, and the softmax over nothing is not a number: let it look at itself": [
            {"padding": "nothing"},
            {"padding": "nothing", "numbers": lambda places, starts, real: torch.where(real, places - starts, -1)}],
        "padding belongs to the last text; here it looks at itself alone":
            lambda lengths, size: packed_formula([*lengths[:-1], lengths[-1] + size - sum(lengths)], size),
        "the padding is missing: the row has `size` tokens": lambda lengths, size: packed_formula(lengths, sum(lengths)),
        "padding sees the padding before it too; here it looks at itself alone": [
            {"padding": "the padding before it"},
            {"padding": "the padding before it", "numbers": lambda places, starts, real: places - starts}],
        "padding sees all that stands before it; here it looks at itself alone": {"padding": "all before it"},
        "the positions go on from text to text; each text begins at 0": [
            {"numbers": lambda places, starts, real: places},
            {"numbers": lambda places, starts, real: torch.where(real, places, 0)}],
        "the positions begin at 1; they begin at 0": [
            {"numbers": lambda places, starts, real: torch.where(real, places - starts + 1, 0)},
            {"numbers": lambda places, starts, real: torch.where(real, places - starts, 0) + 1}],
        "padding has positions of its own; here they are 0": [
            {"numbers": lambda places, starts, real: places - starts},
            {"numbers": lambda places, starts, real: torch.where(real, places - starts, -1)}],
        "the positions are floats, with which nothing can be looked up: make them int64, by .long()":
            {"end": lambda a, p: (a, p.float())},
        "the positions have fewer than 64 bits; asked for are int64: .long()": {"end": lambda a, p: (a, p.int())},
        "the numbers of the texts are held in a byte, which begins again behind 255, so that texts far apart are taken for one: "
        "use int64": [in_a_byte, {"same": lambda texts: texts[:, None].byte() == texts.byte()}],
        "this is a mask to be added, 0 and minus infinity; return True and False":
            {"end": lambda a, p: (torch.where(a, 0.0, -math.inf), p)},
        "texts of one length see each other, as if they were one; number them by their place": lambda lengths, size:
            packed_formula(lengths, size, same=lambda texts: (one := torch.tensor([0, *lengths])[texts])[:, None] == one),
        "these are the numbers of the texts; positions count the tokens inside each":
            {"end": lambda a, p: (a, ((p == 0) & a.any(1)).cumsum(0))},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.3
def drawn_adapter(generator, out, inputs, rank):
    """B and A of an adapter, neither of them 0."""
    return {"A": torch.randn(rank, inputs, generator=generator), "B": torch.randn(out, rank, generator=generator)}


def draw_lora(generator):
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    one = {"A": torch.tensor([[1.0, 1.0]]), "B": torch.tensor([[0.0], [2.0]])}
    for alpha in (2.0, 0.0):  # an adapter that is switched off, too
        yield {"x": x, "weight": weight, "bias": torch.tensor([0.5, 0.0]), **one, "alpha": alpha}
    for rows, inputs, out, rank, alpha in ((2, 3, 2, 1, 4.0), (3, 4, 5, 2, 8.0), (4, 5, 5, 3, 1.0), (2, 6, 4, 4, 32.0)):
        shape = {"x": torch.randn(rows, inputs, generator=generator), "weight": torch.randn(out, inputs, generator=generator)}
        bias = torch.randn(out, generator=generator)
        yield {**shape, "bias": bias, **drawn_adapter(generator, out, inputs, rank), "alpha": alpha}
    start = drawn_adapter(generator, 3, 4, 2)  # B begins at 0
    yield {
        "x": torch.randn(3, 4, generator=generator), "weight": torch.randn(3, 4, generator=generator),
        "bias": torch.randn(3, generator=generator), **start, "B": torch.zeros(3, 2), "alpha": 3.0,
    }  # fmt: skip
    yield {**whole(generator, x=(3, 130), weight=(66, 130), bias=(66,), A=(65, 130), B=(66, 65)), "alpha": 32.5}
    yield {**whole(generator, x=(1, 1), weight=(1, 1), bias=(1,), A=(1, 1), B=(1, 1)), "alpha": 0.5}


def whole(generator, **shapes):
    """Tensors of whole numbers from -2 to 2, whose sums are the same in any order."""
    return {name: torch.randint(-2, 3, shape, generator=generator).float() for name, shape in shapes.items()}


def call_lora(function, alpha, **tensors):
    """The layer's output, and the gradient that it passes on to each tensor; 0 where there is none."""
    tensors = {name: one.clone().requires_grad_() for name, one in tensors.items()}
    y = function(alpha=alpha, **tensors)
    (y * (1 + torch.arange(y.numel()).view(y.shape))).sum().backward()
    return {"y": y, **{f"gradient of {name}": 0 * one if one.grad is None else one.grad for name, one in tensors.items()}}


def lora_by_one_matrix(x, weight, bias, A, B, alpha):
    """The weight with the adapter in it."""
    return torch.einsum("ni,oi->no", x, weight.detach() + torch.einsum("or,ri->oi", B, A) * alpha / A.shape[0]) + bias.detach()


def lora_formula(
    x, weight, bias, A, B, alpha, *, scale=lambda alpha, r: alpha / r, base=lambda x, w, b: F.linear(x, w.detach(), b.detach()),
    step=lambda x, A, B: x @ A.T @ B.T, end=lambda base, step: base + step,
):  # fmt: skip
    return end(base(x, weight, bias), scale(alpha, len(A)) * step(x, A, B))


lora_output = Exercise(
    "11.3", "lora_output", draw=draw_lora, call=call_lora, right=lora_by_one_matrix, formula=lora_formula, mistakes={
        "alpha is not divided by the rank: the step is scaled by alpha / r": {"scale": lambda alpha, r: alpha},
        "the step is not scaled at all; alpha / r stands before it": {"scale": lambda alpha, r: 1},
        "the step is divided by the rank and alpha is left out": {"scale": lambda alpha, r: 1 / r},
        "alpha / r is upside down": {"scale": lambda alpha, r: r / alpha},
        "the step is scaled by alpha over the root of the rank; LoRA's own scale is alpha / r":
            {"scale": lambda alpha, r: alpha / math.sqrt(r)},
        "alpha is divided by the width of the layer; the rank is the number of rows of A, or of columns of B": [
            lambda B, alpha, **rest: lora_formula(B=B, alpha=alpha * B.shape[1] / B.shape[0], **rest),
            lambda A, alpha, **rest: lora_formula(A=A, alpha=alpha * A.shape[0] / A.shape[1], **rest)],
        "alpha // r drops what is behind the point; divide with /": {"scale": lambda alpha, r: alpha // r},
        "an alpha of 0 is taken for none at all, and another stands in its place; it switches the step off":
            [{"scale": lambda alpha, r: (alpha or r) / r}, {"scale": lambda alpha, r: (alpha or 1) / r}],
        "the bias comes in a second time, with the step": lambda bias, alpha, A, **rest: lora_formula(
            bias=bias, alpha=alpha, A=A, end=lambda base, step: base + step + alpha / len(A) * bias.detach(), **rest),
        "alpha / r scales what the frozen layer says too; it belongs to the step alone": [
            lambda x, weight, bias, A, B, alpha: alpha / len(A) * (F.linear(x, weight.detach(), bias.detach()) + x @ A.T @ B.T),
            lambda x, weight, bias, A, B, alpha: alpha / len(A) * (x @ weight.detach().T + x @ A.T @ B.T) + bias.detach()],
        "the frozen weight gets a gradient, and would be trained: detach weight and bias":
            [{"base": F.linear}, {"base": lambda x, w, b: F.linear(x, w, b.detach())}],
        "the frozen bias gets a gradient, and would be trained: detach it too":
            {"base": lambda x, w, b: F.linear(x, w.detach(), b)},
        "no gradient goes back through the frozen layer, so those before it learn only half: detach the weight, not the result":
            {"base": lambda x, w, b: F.linear(x, w, b).detach()},
        "A gets no gradient; both A and B are trained": {"step": lambda x, A, B: x @ A.detach().T @ B.T},
        "B gets no gradient; both A and B are trained": {"step": lambda x, A, B: x @ A.T @ B.detach().T},
        "the step sends no gradient back to x, so the layers before it learn only half":
            {"step": lambda x, A, B: x.detach() @ A.T @ B.T},
        "the step gets no gradient at all; A and B are what is trained":
            {"step": lambda x, A, B: 0 * (A.sum() + B.sum()) + (x @ A.T @ B.T).detach()},
        "the bias is left out": {"base": lambda x, w, b: x @ w.detach().T},
        "this is the step alone; it is added to what the frozen layer says": {"end": lambda base, step: step},
        "the step is subtracted; add it": {"end": lambda base, step: base - step},
        "A and B have changed places: x goes through A, down to the rank, and then through B":
            {"step": lambda x, A, B: x @ B @ A},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.4
def draw_merge(generator):
    one = {"A": torch.tensor([[1.0, 1.0]]), "B": torch.tensor([[0.0], [2.0]])}
    yield {"weight": torch.eye(2), "adapters": [(one["A"], one["B"], 2.0)]}
    for inputs, out, ranks in ((3, 3, (2,)), (3, 2, (1, 2)), (4, 4, (3, 1)), (5, 4, (2, 4, 1)), (3, 4, ())):
        parts = [drawn_adapter(generator, out, inputs, rank) for rank in ranks]
        alphas = [1.0 + 3 * torch.rand((), generator=generator).item() for _ in ranks]
        adapters = [(part["A"], part["B"], alpha) for part, alpha in zip(parts, alphas)]
        yield {"weight": torch.randn(out, inputs, generator=generator), "adapters": adapters}
    adapters = [tuple(whole(generator, A=(2, 3), B=(4, 2)).values()) + (1.0 * (place % 4),) for place in range(12)]
    yield {**whole(generator, weight=(4, 3)), "adapters": adapters}


def merge_by_basis(weight, adapters):
    """Column i of a matrix is what it makes of the i-th unit vector."""
    columns = []
    for unit in torch.eye(weight.shape[1]):
        columns.append(weight @ unit + sum(alpha * (B @ (A @ unit)) / A.shape[0] for A, B, alpha in adapters))
    return torch.stack(columns, 1)


def merge_formula(
    weight, adapters, *, scale=lambda alpha, r, adapters: alpha / r, product=lambda A, B: B @ A, used=lambda adapters: adapters,
    end=lambda weight, steps, number: weight + steps,
):  # fmt: skip
    steps = sum((scale(alpha, len(A), adapters) * product(A, B) for A, B, alpha in used(adapters)), torch.zeros_like(weight))
    return end(weight, steps, len(adapters))


merge = Exercise(
    "11.4", "merge", draw=draw_merge, right=merge_by_basis, formula=merge_formula, mistakes={
        "alpha is not divided by the rank": {"scale": lambda alpha, r, adapters: alpha},
        "the adapters are not scaled: each by its own alpha / r": {"scale": lambda alpha, r, adapters: 1},
        "the adapters are divided by their rank, without alpha": {"scale": lambda alpha, r, adapters: 1 / r},
        "alpha / r is upside down": {"scale": lambda alpha, r, adapters: r / alpha},
        "every adapter is scaled by the first one's alpha / r; each has its own":
            {"scale": lambda alpha, r, adapters: adapters[0][2] / len(adapters[0][0])},
        "every adapter is scaled by the last one's alpha / r; each has its own":
            {"scale": lambda alpha, r, adapters: adapters[-1][2] / len(adapters[-1][0])},
        "every adapter is divided by the rank of another one; each by its own": [
            {"scale": lambda alpha, r, adapters, at=at: alpha / len(adapters[at][0])} for at in (0, -1)],
        "every adapter has the alpha of another one; each has its own":
            [{"scale": lambda alpha, r, adapters, at=at: adapters[at][2] / r} for at in (0, -1)],
        "alpha // r drops what is behind the point; divide with /": {"scale": lambda alpha, r, adapters: alpha // r},
        "an alpha of 0 is taken for none at all, and another stands in its place; it switches the adapter off":
            [{"scale": lambda alpha, r, adapters: (alpha or r) / r}, {"scale": lambda alpha, r, adapters: (alpha or 1) / r}],
        "without an adapter this is None; return the weight": lambda weight, adapters:
            merge_formula(weight, adapters) if adapters else None,
        "alpha is divided by the width of the layer; the rank is the number of rows of A, or of columns of B": [
            lambda weight, adapters: merge_formula(weight, [(A, B, alpha * len(A) / len(B)) for A, B, alpha in adapters]),
            lambda weight, adapters: merge_formula(weight, [(A, B, alpha * len(A) / A.shape[1]) for A, B, alpha in adapters])],
        "alpha is divided by the root of the rank; LoRA's own scale is alpha / r":
            {"scale": lambda alpha, r, adapters: alpha / math.sqrt(r)},
        "alpha is divided by the ranks of all adapters together; each by its own":
            {"scale": lambda alpha, r, adapters: alpha / sum(len(A) for A, _, _ in adapters)},
        "only the last adapter is merged; they add up": {"used": lambda adapters: adapters[-1:]},
        "only the first adapter is merged; they add up": [
            {"used": lambda adapters: adapters[:1]},
            lambda weight, adapters: merge_formula(weight, adapters[:1]) if adapters else None],
        "some of the adapters are left out; all of them add up": [
            {"used": lambda adapters: adapters[1:]}, {"used": lambda adapters: {len(one[0]): one for one in adapters}.values()},
            *({"used": lambda adapters, most=most: adapters[:most]} for most in (2, 3, 4, 8))],
        "the adapters are averaged; they add up": {"end": lambda weight, steps, n: weight + steps / max(n, 1)},
        "these are the adapters alone; they are added to the weight": {"end": lambda weight, steps, n: steps},
        "this takes the adapters out; add them": {"end": lambda weight, steps, n: weight - steps},
        "the weight comes in once for each adapter":
            [{"end": lambda weight, steps, n, least=least: max(n, least) * weight + steps} for least in (0, 1)],
        "the product is transposed: B A, from inputs to outputs": {"product": lambda A, B: (B @ A).T},
        "A B is the product of the wrong sides: B A": {"product": lambda A, B: A @ B},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.5
def draw_models(generator):
    yield {"matrices": [(2, 3)], "layers": 2, "others": 10, "width": 3, "branched": 1, "rank": 1}
    yield {"matrices": [(2, 3)], "layers": 2, "others": 10, "width": 3, "branched": 0, "rank": 1}  # the same base for all four
    yield {"matrices": [(3, 3), (4, 3), (3, 4)], "layers": 3, "others": 0, "width": 3, "branched": 3, "rank": 2}
    yield {
        "matrices": [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)],
        "layers": 30, "others": 49152 * 576 + 61 * 576, "width": 576, "branched": 8, "rank": 16,
    }  # fmt: skip
    for count in (2, 4):
        sides = torch.randint(2, 40, (count, 2), generator=generator).tolist()
        layers, others, rank = (int(torch.randint(2, most, (), generator=generator)) for most in (20, 5000, 9))
        branched, width = 1 + layers // 3, sides[0][1]
        yield dict(matrices=[*map(tuple, sides)], layers=layers, others=others, width=width, branched=branched, rank=rank)
    yield {"matrices": [(5, 12), (12, 5)], "layers": 4, "others": 7, "width": 5, "branched": 2, "rank": 3}


def models_by_tensors(matrices, layers, others, width, branched, rank):
    """Tensors without memory are made and counted, each model a list of them."""

    def tensor(*shape):
        return torch.empty(shape, device="meta")

    base = [tensor(*shape) for _ in range(layers) for shape in matrices] + [tensor(others)]
    head = [tensor(1, width), tensor(1)]

    def branch():
        shapes = [shape for _ in range(branched) for out, inputs in matrices for shape in ((rank, inputs), (out, rank))]
        return [tensor(*shape) for shape in shapes]

    def size(*parts):
        return sum(one.numel() for part in parts for one in part)

    policy, reference, reward, critic = base, base, base + head, base + head
    apart = size(policy, reference, reward, critic), size(policy, critic)
    policy, reference, reward, critic = branch(), branch(), branch() + head, branch() + head
    return {"apart": apart, "shared": (size(base, policy, reference, reward, critic), size(policy, critic))}


def models_formula(
    matrices, layers, others, width, branched, rank, *, pair=lambda out, inputs, r: r * (out + inputs), head=lambda C: C + 1,
    heads=(2, 1), bases=(1, 0), branches=(4, 2), trained=2, deep=lambda layers, branched: branched, end=None,
    rest=lambda others, layers: others,
):  # fmt: skip
    """`heads`, `branches`: how many are kept, and trained; `bases`: the same of the base under a shared trunk."""
    base = layers * sum(out * inputs for out, inputs in matrices) + rest(others, layers)
    adapters = deep(layers, branched) * sum(pair(out, inputs, rank) for out, inputs in matrices)
    apart = (4 * base + heads[0] * head(width), trained * base + heads[1] * head(width))
    shared = [bases[part] * base + branches[part] * adapters + heads[part] * head(width) for part in (0, 1)]
    return (end or (lambda apart, shared: {"apart": apart, "shared": tuple(shared)}))(apart, shared)


four_models = Exercise(
    "11.5", "four_models", draw=draw_models, right=models_by_tensors, formula=models_formula, mistakes={
        "the base is kept four times on a shared trunk; it is there once, that is the point": {"bases": (4, 0)},
        "the base is missing: the branches stand on it, and it is kept too": {"bases": (0, 0)},
        "an adapter has the size of its matrix; its numbers are r (in + out)": [
            {"pair": lambda out, inputs, r: out * inputs}, {"pair": lambda out, inputs, r: r * out * inputs}],
        "only one of A and B is counted; an adapter has both": [
            {"pair": lambda out, inputs, r: r * inputs}, {"pair": lambda out, inputs, r: r * out}],
        "the rank is left out: A has r rows, and B has r columns": {"pair": lambda out, inputs, r: out + inputs},
        "all blocks have adapters; only the last `branched` do": {"deep": lambda layers, branched: layers},
        "0 blocks are branched, and here all of them are, as by blocks[-0:]; there are no adapters then":
            {"deep": lambda layers, branched: branched or layers},
        "the blocks below the branches have the adapters; those above do": {"deep": lambda layers, branched: layers - branched},
        "one block has adapters; the last `branched` do": {"deep": lambda layers, branched: 1},
        "three branches are kept; all four models have one, reference and reward model too": {"branches": (3, 2)},
        "only those branches are kept that are trained; reference and reward model have one each too": {"branches": (2, 2)},
        "one branch is kept; each of the four models has its own": [{"branches": (1, 2)}, {"branches": (1, 1)}],
        "the base is counted among what is trained on a shared trunk; it is frozen": [{"bases": (1, 1)}, {"bases": (1, 2)}],
        "the scalar head's bias is left out": {"head": lambda C: C},
        "the scalar heads are left out: reward model and critic have one each": {"heads": (0, 0)},
        "one scalar head is kept; reward model and critic have one each": [{"heads": (1, 1)}, {"heads": (1, 0)}],
        "the critic's head is trained too": {"heads": (2, 0)},
        "both scalar heads are trained; the reward model's only judges": {"heads": (2, 2)},
        "all four models have a scalar head; only reward model and critic do": [{"heads": (4, 2)}, {"heads": (4, 1)}],
        "the reward model is trained too; while PPO runs it only judges": {"trained": 3, "branches": (4, 3), "heads": (2, 2)},
        "only the policy is trained; the critic learns too": {"trained": 1, "branches": (4, 1), "heads": (2, 0)},
        "all four models are trained; policy and critic are": [
            {"trained": 4, "branches": (4, 4), "heads": (2, 2)}, {"branches": (4, 4)}, {"branches": (4, 4), "heads": (2, 2)}],
        "what is kept and what is trained have changed places":
            {"end": lambda apart, shared: {"apart": apart[::-1], "shared": tuple(shared[::-1])}},
        "this is the memory of training, four times what is trained; asked for are the numbers":
            {"end": lambda apart, shared: {"apart": (apart[0], 4 * apart[1]), "shared": (shared[0], 4 * shared[1])}},
        "embedding, norms and head (`others`) are left out": {"rest": lambda others, layers: 0},
        "`others` is counted once for each block; it is there once": {"rest": lambda others, layers: layers * others},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.6
def draw_token_rewards(generator):
    worked = {"logprobs": torch.tensor([[-1.0, -1.0, -2.0]]), "ref_logprobs": torch.tensor([[-1.5, -1.0, -2.25]])}
    full = {"mask": torch.ones(1, 3, dtype=torch.bool), "kl_coef": 0.1, "end_penalty": 1.0}
    yield {"scores": torch.tensor([2.0]), "ended": torch.tensor([True]), **worked, **full}
    sizes = ((1, 1, 0.3, 0.5), (2, 3, 0.0, 1.5), (3, 4, 0.5, 1.0), (5, 6, 0.2, 0.0), (6, 5, 1.0, 2.5))
    for rows, steps, kl_coef, penalty in sizes:
        scores = torch.randn(rows, generator=generator) + 0.5
        ended = torch.rand(rows, generator=generator) < 0.5
        ended[: min(rows, 2)] = torch.tensor([False, True])[: min(rows, 2)]
        yield dict(scores=scores, ended=ended, **ch08.scored(generator, rows, steps), kl_coef=kl_coef, end_penalty=penalty)
    short = ch08.scored(generator, 3, 4)  # the first answer is not the longest
    yield dict(
        scores=torch.tensor([1.5, -0.5, 1.0]), ended=torch.tensor([True, False, True]),
        **short | {"mask": torch.arange(4) < torch.tensor([[2], [1], [3]])},
        kl_coef=0.5, end_penalty=1.0,
    )  # fmt: skip
    last = ch08.scored(generator, 3, 5)
    infinite = torch.where(last["mask"], last["ref_logprobs"], -math.inf)
    yield {
        "scores": torch.randn(3, generator=generator), "ended": torch.tensor([False, True, True]), **last,
        "ref_logprobs": infinite, "kl_coef": 0.4, "end_penalty": 1.0,
    }  # fmt: skip
    one = torch.tensor([[-120.0, -112.0, -3.0], [-9.0, -1.0, -95.0]])
    other = one - torch.tensor([[-8.0, 8.0, 0.0], [-8.0, 8.0, 25.0]])
    far = {"logprobs": one, "ref_logprobs": other, "mask": torch.ones(2, 3, dtype=torch.bool)}
    ended = torch.tensor([False, True])
    yield {"scores": torch.tensor([30.0, -30.0]), "ended": ended, **far, "kl_coef": 0.5, "end_penalty": 20.0}
    long = ch08.scored(generator, 2, 140)
    yield {"scores": torch.tensor([1.0, 2.0]), "ended": ended, **long, "kl_coef": 0.5, "end_penalty": 1.0}


def call_token_rewards(function, logprobs, **others):
    """The rewards, and the gradient that they send back to the log-probabilities, which should be none."""
    logprobs = logprobs.clone().requires_grad_()
    rewards = function(logprobs=logprobs, **others)
    if rewards.requires_grad:
        rewards.sum().backward()
    return {"rewards": rewards, "gradient of the logprobs": 0 * logprobs.detach() if logprobs.grad is None else logprobs.grad}


def token_rewards_by_loops(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty):
    rewards = torch.zeros(mask.shape)
    for row in range(len(mask)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        for t in tokens:
            rewards[row, t] = -kl_coef * (logprobs[row, t] - ref_logprobs[row, t]).item()
        rewards[row, tokens[-1]] += scores[row].item() - (0 if ended[row] else end_penalty)
    return rewards


def token_rewards_formula(
    scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty, *, term=lambda x: x, detach=True, keep=torch.where,
    spread=lambda kl, mask: kl, place=ch08.last_of, missing=torch.logical_not, put=torch.add, pay=lambda s, coef: s,
    fine=lambda penalty, last, mask: penalty * last, sign=-1,
):  # fmt: skip
    """`spread`: how the KL is shared out; `place`: where the score is paid; `missing`: who loses the penalty."""
    kl = term(logprobs - ref_logprobs)
    kl = spread(keep(mask, kl.detach() if detach else kl, torch.zeros(())), mask)
    last = place(mask)
    paid = pay(scores, kl_coef)[:, None] * last + sign * fine(end_penalty * missing(ended).float()[:, None], last, mask)
    return put(-kl_coef * kl, paid) if put is torch.add else put(-kl_coef * kl, paid, last)


def at_the_end(x, mask):
    """The sum of x over a row's real tokens, at its last one."""
    return x.sum(1, keepdim=True) * ch08.last_of(mask)


token_rewards = Exercise(
    "11.6", "token_rewards", draw=draw_token_rewards, call=call_token_rewards, right=token_rewards_by_loops,
    formula=token_rewards_formula, mistakes={
        "the score is paid in the last column, where a short answer has padding: nobody earns it. Pay its last real token":
            {"place": lambda mask: (torch.arange(mask.shape[1]) == mask.shape[1] - 1).expand(mask.shape)},
        "every token is paid the whole score; it comes once, at the last real token": [
            {"place": lambda mask: mask}, {"place": torch.ones_like}],
        "the score is paid at the first token; it is known when the answer is complete":
            {"place": lambda mask: torch.arange(mask.shape[1]).expand(mask.shape) == 0},
        "the score is paid one token too early; mask.sum(1) - 1 is the place of the last real one": [
            {"place": lambda mask: torch.arange(mask.shape[1]) == (mask.sum(1, keepdim=True) - 2).clamp(min=0)},
            {"place": lambda mask: torch.arange(mask.shape[1]) == (mask.sum(1, keepdim=True) - 2) % mask.shape[1]}],
        "the score is paid one token too late; mask.sum(1) - 1 is the place of the last real one":
            {"place": lambda mask: torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True).clamp(max=mask.shape[1] - 1)},
        "every answer is paid its score where the first one ends; each has a last token of its own":
            {"place": lambda mask: ch08.last_of(mask[:1]).expand(mask.shape)},
        "the KL is divided by the answer's length; each token pays for its own, whole":
            {"spread": lambda kl, mask: kl / mask.sum(1, keepdim=True)},
        "the score is shared out among the tokens; it comes whole, at the last real one":
            {"place": lambda mask: mask / mask.sum(1, keepdim=True)},
        "the score takes the place of the last token's KL penalty; both are paid there":
            {"put": lambda kl, paid, last: torch.where(last, paid, kl)},
        "the whole KL is charged at the last token; each token pays for its own": {"spread": at_the_end},
        "the mean KL is charged once; each token pays for its own":
            {"spread": lambda kl, mask: at_the_end(kl, mask) / mask.sum(1, keepdim=True)},
        "each token is charged for all the KL behind it too; it pays for its own":
            {"spread": lambda kl, mask: kl.flip(1).cumsum(1).flip(1)},
        "each token is charged for all the KL before it too; it pays for its own":
            {"spread": lambda kl, mask: kl.cumsum(1) * mask},
        "half the square of the log-ratio is charged (k2); asked for is the log-ratio itself": {"term": lambda x: x.square() / 2},
        "the ratio less 1 is charged; asked for is its logarithm": {"term": lambda x: x.exp() - 1},
        "the log-ratio is weighted by the probability; the tokens were drawn by it, so their mean weighs them already":
            lambda logprobs, ref_logprobs, **rest: token_rewards_formula(
                logprobs=(x := (logprobs.exp() * (logprobs - ref_logprobs)).detach()), ref_logprobs=0 * x.nan_to_num(), **rest),
        "the sign of the KL is wrong: it pays for running away": {"term": lambda x: -x},
        "k3 of each token is charged; asked for is the log-ratio itself, whose expectation is the KL": {"term": ch08.k3_term},
        "this is k3 with the ratio upside down; asked for is the log-ratio itself": {"term": lambda x: x.exp() - 1 - x},
        "the log-ratio loses its sign": {"term": torch.abs},
        "a token that has become rarer is charged nothing; its log-ratio is negative, and it is paid for it":
            {"term": lambda x: x.clamp(min=0)},
        "the log-ratio is kept within bounds; all of it is charged":
            [{"term": lambda x, most=most: x.clamp(-most, most)} for most in (1, 2, 5, 10, 20)],
        "the score is kept within bounds; all of it is paid":
            [{"pay": lambda s, coef, most=most: s.clamp(-most, most)} for most in (1, 3, 5, 10, 20)],
        "the KL passes a gradient on: detach it. The penalty is a number that the policy receives":
            [{"detach": False}, {"detach": False, "keep": lambda mask, x, zero: x * mask}],
        "padding is charged for its KL: set it to 0 where the mask is False":
            [{"keep": lambda mask, x, zero: x}, {"keep": lambda mask, x, zero: x.nan_to_num(0, 0, 0)}],
        "a product with the mask does not hide an infinity under it, since 0 times infinity is not a number: use torch.where":
            {"keep": lambda mask, x, zero: x * mask},
        "answers that did end lose the penalty; those that did not should": {"missing": lambda ended: ended},
        "all answers lose the penalty; only those that did not end do": {"missing": torch.ones_like},
        "no answer loses the penalty; those that did not end do": {"missing": torch.zeros_like},
        "the penalty is added; an answer that does not end loses it": {"sign": 1},
        "every token loses the penalty; it is charged once, at the last one":
            {"fine": lambda penalty, last, mask: penalty * mask},
        "the coefficient scales the score too; it is the price of the KL alone": {"pay": lambda scores, coef: coef * scores},
        "the coefficient scales the penalty for no end too; it is the price of the KL alone":
            lambda kl_coef, end_penalty, **rest: token_rewards_formula(
                kl_coef=kl_coef, end_penalty=kl_coef * end_penalty, **rest),
        "an answer that does not end earns 0; it earns its score, less the penalty": lambda scores, ended, end_penalty, **rest:
            token_rewards_formula(scores * ended, ended, end_penalty=0.0, **rest),
        "an answer that does not end earns the penalty in place of its score; it loses it from its score":
            lambda scores, ended, end_penalty, **others: token_rewards_formula(
                torch.where(ended, scores, 0), ended, end_penalty=end_penalty, **others),
    })  # fmt: skip
