"""Chapter 11: what an assistant learns from, adapters and what they cost, the reward of a token, and judging in both orders."""

import math
import statistics

import torch
from torch.nn import functional as F

from rlhf_lib.exercises import ch08_rlhf as ch08
from rlhf_lib.exercises.declare import Exercise


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


def targets_by_place(roles, lengths, opening, closing):
    sizes = torch.tensor(lengths) + opening + closing
    targets = torch.zeros(int(sizes.sum()), dtype=torch.bool)
    for role, length, end in zip(roles, lengths, sizes.cumsum(0).tolist()):
        targets[end - closing - length : end - closing + 1] = role == "assistant"
    return targets


def targets_formula(
    roles, lengths, opening, closing, *, who=lambda role: role == "assistant", ends=None, opens=False, said=True, more=1,
    change=lambda targets: targets,
):  # fmt: skip
    """`who` speaks, and whose end of turn counts (`ends`); `more` is how many closing tokens count, None for all of them."""
    targets = []
    count = closing if more is None else more
    for role, length in zip(roles, lengths):
        targets += [who(role) and opens] * opening + [who(role) and said] * length
        targets += [(ends or who)(role)] * count + [False] * (closing - count)
    return change(torch.tensor(targets))


def last_answer_only(roles, lengths, opening, closing):
    last = max(place for place, role in enumerate(roles) if role == "assistant")
    return targets_formula([role if place == last else "user" for place, role in enumerate(roles)], lengths, opening, closing)


answer_targets = Exercise(
    "11.1", "answer_targets", draw=draw_conversations, right=targets_by_place, formula=targets_formula, mistakes={
        "everybody's words count: so it learns to ask the user's questions too; only what the assistant says":
            {"who": lambda role: True},
        "the user's words count, and the assistant's do not: the roles are exchanged": {"who": lambda role: role == "user"},
        "the system's words count too; they are given, as the user's are": {"who": lambda role: role != "user"},
        "the end of turn is left out: the assistant says it, and who never learns it never stops": {"more": 0},
        "all tokens that close a turn count; the assistant says the first of them alone, the end of turn": {"more": None},
        "what opens the assistant's turn counts too; it is written for it, and asks it to speak":
            [{"opens": True}, {"opens": True, "more": 0}],
        "the end of everybody's turn counts; the assistant says only its own": {"ends": lambda role: True},
        "only the ends of turn count; the words before them do too": {"said": False},
        "only the last answer counts; every turn of the assistant's does": last_answer_only,
        "every token counts; nothing tells the assistant from the others": {"change": torch.ones_like},
        "this is one position late: entry t belongs to token t": {"change": lambda targets: targets.roll(1)},
        "this is one position early: entry t is for token t itself, though the model says it at t - 1":
            {"change": lambda targets: targets.roll(-1)},
        "True and False have changed places": {"change": torch.logical_not},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.2
def draw_packed(generator):
    yield {"lengths": [2, 1], "size": 4}
    yield {"lengths": [3], "size": 3}
    yield {"lengths": [1, 3, 2], "size": 8}
    yield {"lengths": [2, 2, 2], "size": 6}
    yield {"lengths": [4, 1], "size": 10}
    for count in (3, 5):
        lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
        yield {"lengths": lengths, "size": sum(lengths) + count - 2}


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

    return plots.side_by_side(got[0].float(), expected[0].float(), "1 where a row may look at a column")


packed_mask = Exercise(
    "11.2", "packed_mask", draw=draw_packed, right=packed_by_loops, formula=packed_formula, picture=packed_picture, mistakes={
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
        "padding sees nothing, and the softmax over nothing is not a number: let it look at itself": {"padding": "nothing"},
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
        "padding has positions of its own; here they are 0": {"numbers": lambda places, starts, real: places - starts},
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
    yield {"x": x, "weight": weight, "bias": torch.tensor([0.5, 0.0]), **one, "alpha": 2.0}
    for rows, inputs, out, rank, alpha in ((2, 3, 2, 1, 4.0), (3, 4, 5, 2, 8.0), (4, 5, 5, 3, 1.0), (2, 6, 4, 4, 32.0)):
        shape = {"x": torch.randn(rows, inputs, generator=generator), "weight": torch.randn(out, inputs, generator=generator)}
        bias = torch.randn(out, generator=generator)
        yield {**shape, "bias": bias, **drawn_adapter(generator, out, inputs, rank), "alpha": alpha}
    start = drawn_adapter(generator, 3, 4, 2)  # B begins at 0
    yield {
        "x": torch.randn(3, 4, generator=generator), "weight": torch.randn(3, 4, generator=generator),
        "bias": torch.randn(3, generator=generator), **start, "B": torch.zeros(3, 2), "alpha": 3.0,
    }  # fmt: skip


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
        "alpha / r scales what the frozen layer says too; it belongs to the step alone": lambda x, weight, bias, A, B, alpha:
            alpha / len(A) * (F.linear(x, weight.detach(), bias.detach()) + x @ A.T @ B.T),
        "the frozen weight gets a gradient, and would be trained: detach weight and bias":
            [{"base": F.linear}, {"base": lambda x, w, b: F.linear(x, w, b.detach())}],
        "the frozen bias gets a gradient, and would be trained: detach it too":
            {"base": lambda x, w, b: F.linear(x, w.detach(), b)},
        "no gradient goes back through the frozen layer, so those before it learn only half: detach the weight, not the result":
            {"base": lambda x, w, b: F.linear(x, w, b).detach()},
        "A gets no gradient; both A and B are trained": {"step": lambda x, A, B: x @ A.detach().T @ B.T},
        "B gets no gradient; both A and B are trained": {"step": lambda x, A, B: x @ A.T @ B.detach().T},
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
        "alpha is divided by the ranks of all adapters together; each by its own":
            {"scale": lambda alpha, r, adapters: alpha / sum(len(A) for A, _, _ in adapters)},
        "only the last adapter is merged; they add up": {"used": lambda adapters: adapters[-1:]},
        "only the first adapter is merged; they add up": {"used": lambda adapters: adapters[:1]},
        "the adapters are averaged; they add up": {"end": lambda weight, steps, n: weight + steps / max(n, 1)},
        "these are the adapters alone; they are added to the weight": {"end": lambda weight, steps, n: steps},
        "this takes the adapters out; add them": {"end": lambda weight, steps, n: weight - steps},
        "the weight comes in once for each adapter": {"end": lambda weight, steps, n: n * weight + steps},
        "the product is transposed: B A, from inputs to outputs": {"product": lambda A, B: (B @ A).T},
        "A B is the product of the wrong sides: B A": {"product": lambda A, B: A @ B},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.5
def draw_models(generator):
    yield {"matrices": [(2, 3)], "layers": 2, "others": 10, "width": 3, "branched": 1, "rank": 1}
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
    heads=(2, 1), bases=1, branches=(4, 2), trained=2, deep=lambda layers, branched: branched, rest=True, end=None,
):  # fmt: skip
    """`heads`, `branches`: how many are kept, and trained; `bases`: how often the base is kept on a shared trunk."""
    base = layers * sum(out * inputs for out, inputs in matrices) + (others if rest else 0)
    adapters = deep(layers, branched) * sum(pair(out, inputs, rank) for out, inputs in matrices)
    apart = (4 * base + heads[0] * head(width), trained * base + heads[1] * head(width))
    shared = [bases * base + branches[0] * adapters + heads[0] * head(width), branches[1] * adapters + heads[1] * head(width)]
    return (end or (lambda apart, shared: {"apart": apart, "shared": tuple(shared)}))(apart, shared)


four_models = Exercise(
    "11.5", "four_models", draw=draw_models, right=models_by_tensors, formula=models_formula, mistakes={
        "the base is kept four times on a shared trunk; it is there once, that is the point": {"bases": 4},
        "the base is missing: the branches stand on it, and it is kept too": {"bases": 0},
        "an adapter has the size of its matrix; its numbers are r (in + out)": [
            {"pair": lambda out, inputs, r: out * inputs}, {"pair": lambda out, inputs, r: r * out * inputs}],
        "only one of A and B is counted; an adapter has both": [
            {"pair": lambda out, inputs, r: r * inputs}, {"pair": lambda out, inputs, r: r * out}],
        "the rank is left out: A has r rows, and B has r columns": {"pair": lambda out, inputs, r: out + inputs},
        "all blocks have adapters; only the last `branched` do": {"deep": lambda layers, branched: layers},
        "the blocks below the branches have the adapters; those above do": {"deep": lambda layers, branched: layers - branched},
        "one block has adapters; the last `branched` do": {"deep": lambda layers, branched: 1},
        "three branches are kept; the reference is one too": {"branches": (3, 2)},
        "the scalar head's bias is left out": {"head": lambda C: C},
        "the scalar heads are left out: reward model and critic have one each": {"heads": (0, 0)},
        "all four models have a scalar head; only reward model and critic do": [{"heads": (4, 2)}, {"heads": (4, 1)}],
        "the reward model is trained too; while PPO runs it only judges": {"trained": 3, "branches": (4, 3), "heads": (2, 2)},
        "only the policy is trained; the critic learns too": {"trained": 1, "branches": (4, 1), "heads": (2, 0)},
        "all four models are trained; policy and critic are": {"trained": 4, "branches": (4, 4), "heads": (2, 2)},
        "embedding, norms and head (`others`) are left out": {"rest": False},
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
    last = ch08.scored(generator, 3, 5)
    infinite = torch.where(last["mask"], last["ref_logprobs"], -math.inf)
    yield {
        "scores": torch.randn(3, generator=generator), "ended": torch.tensor([False, True, True]), **last,
        "ref_logprobs": infinite, "kl_coef": 0.4, "end_penalty": 1.0,
    }  # fmt: skip


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
        "the score takes the place of the last token's KL penalty; both are paid there":
            {"put": lambda kl, paid, last: torch.where(last, paid, kl)},
        "the whole KL is charged at the last token; each token pays for its own": {"spread": at_the_end},
        "the mean KL is charged once; each token pays for its own":
            {"spread": lambda kl, mask: at_the_end(kl, mask) / mask.sum(1, keepdim=True)},
        "the sign of the KL is wrong: it pays for running away": {"term": lambda x: -x},
        "k3 of each token is charged; asked for is the log-ratio itself, whose expectation is the KL": {"term": ch08.k3_term},
        "this is k3 with the ratio upside down; asked for is the log-ratio itself": {"term": lambda x: x.exp() - 1 - x},
        "the log-ratio loses its sign": [{"term": torch.abs}, {"term": lambda x: x.clamp(min=0)}],
        "the KL passes a gradient on: detach it. The penalty is a number that the policy receives":
            [{"detach": False}, {"detach": False, "keep": lambda mask, x, zero: x * mask}],
        "padding is charged for its KL: set it to 0 where the mask is False": {"keep": lambda mask, x, zero: x},
        "a product with the mask does not hide an infinity under it, since 0 times infinity is not a number: use torch.where":
            {"keep": lambda mask, x, zero: x * mask},
        "answers that did end lose the penalty; those that did not should": {"missing": lambda ended: ended},
        "all answers lose the penalty; only those that did not end do": {"missing": torch.ones_like},
        "no answer loses the penalty; those that did not end do": {"missing": torch.zeros_like},
        "the penalty is added; an answer that does not end loses it": {"sign": 1},
        "every token loses the penalty; it is charged once, at the last one":
            {"fine": lambda penalty, last, mask: penalty * mask},
        "the coefficient scales the score too; it is the price of the KL alone": {"pay": lambda scores, coef: coef * scores},
        "an answer that does not end earns the penalty in place of its score; it loses it from its score":
            lambda scores, ended, end_penalty, **others: token_rewards_formula(
                torch.where(ended, scores, 0), ended, end_penalty=end_penalty, **others),
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.7
def draw_coefficients(generator):
    yield {"kl_coef": 0.1, "kls": [6.6], "target": 6.0, "completions": 64, "horizon": 640}
    yield {"kl_coef": 0.2, "kls": [0.0, 12.0], "target": 5.0, "completions": 100, "horizon": 1000}
    yield {"kl_coef": 0.05, "kls": [4.0, 4.4, 3.8, 4.0], "target": 4.0, "completions": 32, "horizon": 64}
    yield {"kl_coef": 1.0, "kls": [-0.5, 0.1, 30.0], "target": 2.0, "completions": 10, "horizon": 400}
    for count in (3, 8):
        target = 1 + 8 * torch.rand((), generator=generator).item()
        kls = (target * (0.6 + torch.rand(count, generator=generator))).tolist()
        yield {"kl_coef": 0.3 / count, "kls": kls, "target": target, "completions": 16 * count, "horizon": 500}


def coefficients_by_median(kl_coef, kls, target, completions, horizon):
    factors = [1 + completions * statistics.median((-0.2, 0.2, kl / target - 1)) / horizon for kl in kls]
    return [kl_coef * math.prod(factors[: place + 1]) for place in range(len(factors))]


def coefficients_formula(
    kl_coef, kls, target, completions, horizon, *, error=lambda kl, target: kl / target - 1, low=-0.2, high=0.2,
    share=lambda n, horizon: n / horizon, move=lambda coef, step: coef * (1 + step), compound=True, start=False,
):  # fmt: skip
    coefs = [kl_coef]
    for kl in kls:
        step = min(high, max(low, error(kl, target))) * share(completions, horizon)
        coefs.append(move(coefs[-1] if compound else kl_coef, step))
    return coefs[:-1] if start else coefs[1:]


adaptive_kl = Exercise(
    "11.7", "adaptive_kl", draw=draw_coefficients, right=coefficients_by_median, formula=coefficients_formula, mistakes={
        "the error is not held within -0.2 to 0.2, so that one wild rollout moves the coefficient far":
            {"low": -math.inf, "high": math.inf},
        "the error is held below 0.2 and not above -0.2": {"low": -math.inf},
        "the error is held above -0.2 and not below 0.2": {"high": math.inf},
        "the coefficient never falls: a KL below the target has to lower it": {"low": 0.0},
        "the coefficient never rises: a KL above the target has to raise it": {"high": 0.0},
        "it is held within other bounds than -0.2 to 0.2":
            [{"low": -bound, "high": bound} for bound in (0.02, 0.1, 0.25, 0.5, 1.0, 2.0)],
        "the sign is turned: a KL above the target has to raise the price": {"error": lambda kl, target: 1 - kl / target},
        "the error is a difference in nats; divide by the target": {"error": lambda kl, target: kl - target},
        "target and KL have changed places in the error": {"error": lambda kl, target: target / kl - 1 if kl else 1e9},
        "1 is not subtracted: at the target the error is 0": {"error": lambda kl, target: kl / target},
        "the number of completions and the horizon are not used: a whole step each time": {"share": lambda n, horizon: 1},
        "completions over horizon is upside down": {"share": lambda n, horizon: horizon / n},
        "the horizon is not used": {"share": lambda n, horizon: n},
        "the number of completions is not used": {"share": lambda n, horizon: 1 / horizon},
        "the step is added; the coefficient is multiplied by 1 plus it": {"move": lambda coef, step: coef + step},
        "the coefficient is divided where it is to be multiplied": {"move": lambda coef, step: coef / (1 + step)},
        "the exponential of the step is a little more than 1 plus it": {"move": lambda coef, step: coef * math.exp(step)},
        "every coefficient is made from the first; each goes on from the one before": {"compound": False},
        "this is one rollout late: each coefficient is the one after its rollout": {"start": True},
        "the coefficient to begin with stands in front; asked for is the one after each rollout":
            lambda kl_coef, kls, **others: [kl_coef, *coefficients_formula(kl_coef, kls, **others)],
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.8
VERDICTS = ("first", "second", "tie")


def draw_orders(generator):
    yield {"ours_first": ["first", "first"], "ours_second": ["second", "first"]}
    every = [(one, other) for one in VERDICTS for other in VERDICTS]
    yield {"ours_first": [one for one, _ in every], "ours_second": [other for _, other in every]}
    yield {"ours_first": [], "ours_second": []}
    for count in (4, 9):
        first, second = torch.randint(3, (2, count), generator=generator).tolist()
        yield {"ours_first": [VERDICTS[one] for one in first], "ours_second": [VERDICTS[one] for one in second]}


def orders_by_table(ours_first, ours_second):
    table = {("first", "second"): "win", ("second", "first"): "loss"}
    return [table.get(pair, "tie") for pair in zip(ours_first, ours_second)]


def orders_formula(ours_first, ours_second, *, points=(1, 0, 0.5), turned=(0, 1, 0.5), say=None, keep=None):
    """`points` of "first", "second" and "tie" for us in each order; `say` makes the outcome of both orders' points."""
    say = say or (lambda one, other: one if one == other else 0.5)
    gained = [(points[VERDICTS.index(a)], turned[VERDICTS.index(b)]) for a, b in zip(ours_first, ours_second)]
    results = [say(one, other) for one, other in gained if keep is None or keep(one, other)]
    return [{1: "win", 0: "loss"}.get(result, "tie") for result in results]


def sided(one, other):
    """A win where the mean of the points is above a half."""
    return 1 if one + other > 1 else 0 if one + other < 1 else 0.5


def contradiction(one, other, outcome):
    """Both orders have to agree, but a contradiction is `outcome`."""
    return outcome if {one, other} == {0, 1} else one if one == other else 0.5


both_orders = Exercise(
    "11.8", "both_orders", draw=draw_orders, right=orders_by_table, formula=orders_formula, mistakes={
        "the second order is not turned round: there \"second\" is the verdict for our answer": {"turned": (1, 0, 0.5)},
        "the first order is turned round too: there \"first\" is the verdict for our answer": {"points": (0, 1, 0.5)},
        "win and loss have changed places": {"points": (0, 1, 0.5), "turned": (1, 0, 0.5)},
        "only the order with our answer first is used: a judge that likes the first place makes us win":
            {"say": lambda one, other: one},
        "only the order with our answer second is used: a judge that likes that place makes us win":
            {"say": lambda one, other: other},
        "a win in one order and a tie in the other is called a win; only what both orders say counts": {"say": sided},
        "one order in our favour is called a win; both have to say it": {"say": max},
        "one order against us is called a loss; both have to say it": {"say": min},
        "a contradiction is called a loss; it is a tie": {"say": lambda one, other: contradiction(one, other, 0)},
        "a contradiction is called a win; it is a tie": {"say": lambda one, other: contradiction(one, other, 1)},
        "pairs whose orders contradict each other are left out; they are ties":
            [{"keep": lambda one, other: one == other}, {"keep": lambda one, other: {one, other} != {0, 1}}],
        "two ties are not a loss": {"say": lambda one, other: int(one == other == 1) if one == other else 0.5},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.9
def draw_places(generator):
    yield {"ours_first": ["first", "first"], "ours_second": ["first", "second"]}
    yield {"ours_first": ["first"], "ours_second": ["second", "second", "tie"]}
    yield {"ours_first": ["tie", "second", "first", "first"], "ours_second": ["second"]}
    yield {"ours_first": ["second", "second", "second"], "ours_second": ["second", "second"]}
    for one, other in ((7, 4), (3, 11)):
        first, second = torch.randint(3, (one,), generator=generator), torch.randint(3, (other,), generator=generator)
        yield {"ours_first": [VERDICTS[x] for x in first], "ours_second": [VERDICTS[x] for x in second]}


def places_by_halves(ours_first, ours_second):
    """What the first place wins in each order, by counting."""
    rates = [(2 * one.count("first") + one.count("tie")) / (2 * len(one)) for one in (ours_first, ours_second)]
    return 50 * (rates[0] + rates[1] - 1), 0.5 * (1 + rates[0] - rates[1])


def places_formula(
    ours_first, ours_second, *, tie=0.5, drop=False, pooled=(False, False), bias=lambda rate: 100 * (rate - 0.5),
    swap=False, orders=(0, 1), win=lambda rate: rate, of=None, end=lambda bias, rate: (bias, rate),
):  # fmt: skip
    """`pooled`: whether bias, and win rate, are means over all verdicts; `orders`: those that the win rate comes from."""
    both = [[v for v in one if not (drop and v == "tie")] for one in (ours_first, ours_second)]
    marks = [[{"first": 1.0, "second": 0.0, "tie": tie}[v] for v in one] for one in both]
    ours = [marks[0], [(1 - mark if verdict != "tie" else tie) for mark, verdict in zip(marks[1], both[1])]]

    def mean(groups, together):
        groups = [[x for group in groups for x in group]] if together else groups
        means = [sum(group) / len(group) if group else 0.5 for group in groups]
        return sum(means) / len(means)

    place, rate = mean(marks, pooled[0]), mean([ours[order] for order in orders], pooled[1])
    return end(bias(1 - place if swap else place), win(rate))


place_and_win = Exercise(
    "11.9", "place_and_win", draw=draw_places, right=places_by_halves, formula=places_formula, mistakes={
        "all verdicts are thrown together; where one order was asked oftener, our own strength looks like a bias of the place. "
        "Take each order's rate, then their mean":
            [{"pooled": pooled} for pooled in ((True, True), (True, False), (False, True))],
        "the win rate is that of the order with our answer first": {"orders": (0,)},
        "the win rate is that of the order with our answer second": {"orders": (1,)},
        "the win rate does not turn the second order round: it is how often the first place wins":
            lambda ours_first, ours_second: (lambda bias: (bias, bias / 100 + 0.5))(places_formula(ours_first, ours_second)[0]),
        "ties count as nothing; as half a win for each side": {"tie": 0.0},
        "ties count as wins; as half a win for each side": {"tie": 1.0},
        "ties are left out; they count as half": {"drop": True},
        "this is how often the first place wins; the bias is how much oftener than half, in points":
            [{"bias": lambda rate: 100 * rate}, {"bias": lambda rate: rate}],
        "the bias is a share; in points it is 100 times that": {"bias": lambda rate: rate - 0.5},
        "the bias is the difference between the two places, which is twice how much oftener than half the first one wins":
            {"bias": lambda rate: 100 * (2 * rate - 1)},
        "the sign of the bias is turned: above 0 is for the first place": {"swap": True},
        "a bias against the first place has a minus": {"bias": lambda rate: 100 * abs(rate - 0.5)},
        "the win rate is theirs; ours is what is left": {"win": lambda rate: 1 - rate},
        "the win rate is in percent; asked for is a share": {"win": lambda rate: 100 * rate},
        "the win rate comes first; the bias does": {"end": lambda bias, rate: (rate, bias)},
    })  # fmt: skip


# ----------------------------------------------------------------------------------------- 11.10
def draw_lengths(generator):
    yield {"outcomes": [1.0, 0.0, 1.0], "ours": [10, 8, 30], "theirs": [8, 10, 10]}
    yield {"outcomes": [1.0, 1.0, 0.0, 0.5], "ours": [12, 11, 8, 10], "theirs": [10, 10, 10, 10]}
    yield {"outcomes": [1.0, 0.5, 0.0], "ours": [100, 75, 126], "theirs": [80, 100, 100]}
    yield {"outcomes": [1.0, 0.0], "ours": [11, 12], "theirs": [10, 10]}  # ours is always the longer
    yield {"outcomes": [1.0, 1.0], "ours": [40, 5], "theirs": [10, 50]}  # none is alike
    yield {"outcomes": [1.0, 0.0, 0.0], "ours": [4, 5, 0], "theirs": [4, 4, 0]}
    yield {"outcomes": [1.0, 0.0, 0.5, 1.0], "ours": [9, 10, 12, 10], "theirs": [10, 10, 11, 11]}  # by one word
    for count in (9, 16):
        theirs = torch.randint(8, 40, (count,), generator=generator)
        ours = (theirs * (0.7 + 0.7 * torch.rand(count, generator=generator))).long()
        ours[2] = theirs[2]
        outcomes = (torch.randint(3, (count,), generator=generator) / 2).tolist()
        yield {"outcomes": outcomes, "ours": ours.tolist(), "theirs": theirs.tolist()}


def at_length_by_sides(outcomes, ours, theirs):
    alike = [4 * max(pair) <= 5 * min(pair) for pair in zip(ours, theirs)]
    sides = [[], []]
    for near, outcome, mine, other in zip(alike, outcomes, ours, theirs):
        if near and mine >= other:
            sides[0].append(outcome)
        if near and mine <= other:
            sides[1].append(outcome)
    return sum(alike), statistics.fmean(map(statistics.fmean, sides)) if all(sides) else None


def at_length_formula(
    outcomes, ours, theirs, *, alike=lambda mine, other: max(mine, other) <= 1.25 * min(mine, other), pooled=False,
    longer=lambda gap: gap >= 0, shorter=lambda gap: gap <= 0, empty=None, only=None, number=None, end=lambda rate: rate,
):  # fmt: skip
    near = [(value, mine - other) for value, mine, other in zip(outcomes, ours, theirs) if alike(mine, other)]
    sides = [[value for value, gap in near if there(gap)] for there in (longer, shorter)]
    sides = [[value for value, _ in near]] if pooled else sides if only is None else [sides[only]]
    means = [sum(side) / len(side) for side in sides if side]
    whole = len(means) == len(sides) or (empty == "other side" and means)
    rate = end(sum(means) / len(means)) if whole else (None if empty == "other side" else empty)
    return (len(near) if number is None else number(near, outcomes)), rate


equal_length_win_rate = Exercise(
    "11.10", "equal_length_win_rate", draw=draw_lengths, right=at_length_by_sides, formula=at_length_formula, mistakes={
        "all pairs count, of whatever length": {"alike": lambda mine, other: True},
        "a quarter more is measured from the longer answer; the shorter one is what it is a quarter more than":
            {"alike": lambda mine, other: abs(mine - other) <= 0.25 * max(mine, other)},
        "a pair counts only if the longer one is less than a quarter longer; just a quarter is within":
            {"alike": lambda mine, other: max(mine, other) < 1.25 * min(mine, other)},
        "only an answer of ours that is too long is left out; one that is too short is not alike either":
            {"alike": lambda mine, other: mine <= 1.25 * other},
        "the quarter is measured from theirs, whichever is the longer":
            {"alike": lambda mine, other: abs(mine - other) <= 0.25 * other},
        "only pairs of equal length count; up to a quarter longer is alike": {"alike": lambda mine, other: mine == other},
        "these are the pairs of unlike length": {"alike": lambda mine, other: max(mine, other) > 1.25 * min(mine, other)},
        "this is one mean over all pairs alike: where ours is mostly the longer, a judge of length alone still makes us win. "
        "Take the mean of those where ours is longer and of those where it is shorter, then the mean of the two":
            [{"pooled": True}, {"pooled": True, "empty": "other side"}],
        "pairs of equal length are on neither side; they belong to both":
            {"longer": lambda gap: gap > 0, "shorter": lambda gap: gap < 0},
        "pairs of equal length are on one side only; they belong to both":
            [{"longer": lambda gap: gap > 0}, {"shorter": lambda gap: gap < 0}],
        "only those pairs count in which ours is the longer": {"only": 0},
        "only those pairs count in which ours is the shorter": {"only": 1},
        "where one side has no pair, this takes the other one; then nobody can tell, and the rate is None":
            {"empty": "other side"},
        "where one side has no pair this is a number; nobody can tell, and the rate is None":
            [{"empty": 0.5}, {"empty": 0.0}, {"empty": math.nan}],
        "the number is that of all pairs; asked for is how many the rate rests on": {"number": lambda near, all: len(all)},
        "a pair of equal length is counted twice; it is one pair":
            {"number": lambda near, all: len(near) + sum(gap == 0 for _, gap in near)},
        "the rate is in percent; asked for is a share": {"end": lambda rate: 100 * rate},
        "the rate is theirs; ours is what is left": {"end": lambda rate: 1 - rate},
    })  # fmt: skip
