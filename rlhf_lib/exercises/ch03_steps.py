"""Chapter 03: a training step, evaluation, accumulated gradients, and a state to resume from."""

import copy
import functools
import io
import math
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.ch03_pretraining import ALL, FIRST, as_the_first, norm_of
from rlhf_lib.exercises.declare import Exercise


# ----------------------------------------------------------------------------------------- the checks' own model
class HalfOff(nn.Module):
    """Dropout without the dice: in training mode every second feature is zero and the others are doubled."""

    def forward(self, x):
        return x * (1 - torch.arange(x.shape[-1], device=x.device) % 2) * 2 if self.training else x


def small_model(embedding, head):
    """A language model that looks at one token: embedding (V, C), dropout, head (V, C). Something lies in each .grad."""
    model = nn.Sequential(nn.Embedding(*embedding.shape), HalfOff(), nn.Linear(*head.T.shape, bias=False))
    model[0].weight.data, model[2].weight.data = embedding.clone(), head.clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def sure_inputs(*batches):
    """Weights of a model that gives some tokens a logit hundreds below the best, and batches of lists."""
    embedding, head = (torch.tensor([[x, 0.0] for x in column]) for column in ((1.0, 2.0, 0.5), (100.0, -50.0, 0.0)))
    return {"embedding": embedding, "head": head, "batches": [tuple(map(torch.tensor, pair)) for pair in batches]}


def small_inputs(generator, shapes, vocabulary=5, width=4):
    """The weights of `small_model`, and its inputs and targets: a pair for each shape (B, T)."""
    embedding, head = torch.randn(2, vocabulary, width, generator=generator)
    batches = [tuple(torch.randint(vocabulary, (2, *shape), generator=generator)) for shape in shapes]
    return {"embedding": embedding, "head": head, "batches": batches}


def gradients_by_hand(model, inputs, targets):
    """Put the gradients of the mean loss of `small_model` into .grad, softmax minus one-hot; returns the loss."""
    embedding, head = model[0].weight.data, model[2].weight.data
    keep = 2.0 * (1 - torch.arange(embedding.shape[1]) % 2)
    x = embedding[inputs] * keep  # (N, C)
    logprobs = (x @ head.T).log_softmax(-1)  # (N, V)
    error = (logprobs.exp() - F.one_hot(targets, len(head))) / len(inputs)  # (N, V)
    model[0].weight.grad = torch.zeros_like(embedding).index_add(0, inputs, (error @ head) * keep)
    model[2].weight.grad = error.T @ x
    return -logprobs[range(len(targets)), targets].mean().item()


def entropy(logits, targets, reduction="mean", **options):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction, **options)


def cost_by(scores):
    """The cost by log-probabilities that `scores` makes of the logits."""
    return lambda logits, targets, reduction="mean": F.nll_loss(
        scores(logits).flatten(0, 1), targets.flatten(), reduction=reduction)  # fmt: skip


LOG_OF_SOFTMAX = cost_by(lambda x: x.softmax(-1).log())
FLOORED = [cost_by(change) for eps in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12) for change in (
    lambda x, eps=eps: (x.softmax(-1) + eps).log(), lambda x, eps=eps: x.softmax(-1).clamp(min=eps).log(),
)]  # fmt: skip
UNDERFLOWS = "log(softmax) turns a very small probability into log(0) = -inf; use log_softmax or cross_entropy"
CAPS = "something keeps the probability away from 0, and caps what a sure mistake costs; cross_entropy needs no help"


# ----------------------------------------------------------------------------------------- 3.6
def draw_steps(generator):
    yield {**small_inputs(generator, ((1, 2),)), "rate": 1.0, "momentum": 0.0, "max_norm": 10.0}
    yield {**sure_inputs(([[0, 2, 0]], [[1, 0, 2]])), "rate": 1.0, "momentum": 0.0, "max_norm": 0.5}
    yield {**small_inputs(generator, ((1, 3), (2, 3))), "rate": 0.5, "momentum": 0.0, "max_norm": 0.05}
    yield {**small_inputs(generator, ((3, 4), (3, 4), (2, 5), (3, 4))), "rate": 0.8, "momentum": 0.5, "max_norm": 0.2}


def steps_taken(function, embedding, head, batches, rate, momentum, max_norm):
    """The losses of some steps, the weights after them, and what sort of thing the losses were."""
    model, losses = small_model(embedding, head), []
    groups = [{"params": [parameter]} for parameter in model.parameters()]  # as where only some weights decay
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    for inputs, targets in batches:
        model.eval()  # as an evaluation leaves it
        losses.append(function(model, optimizer, inputs, targets, max_norm))
        if losses[-1] is None:
            raise TypeError("end it with a return of the loss")
    kinds = {"tensor with its graph" if getattr(loss, "requires_grad", False) else type(loss).__name__ for loss in losses}
    return {"losses": losses, "weights": [model[0].weight, model[2].weight], "type of a loss": ", ".join(sorted(kinds))}


def step_by_hand(model, optimizer, inputs, targets, max_norm):
    loss = gradients_by_hand(model, inputs.flatten(), targets.flatten())
    factor = min(1.0, max_norm / norm_of([parameter.grad for parameter in model.parameters()]).item())
    for parameter in model.parameters():
        parameter.grad *= factor
    optimizer.step()
    return loss


def step_of(
    model, optimizer, inputs, targets, max_norm, *, order="zero backward clip step", train=True, cost=entropy,
    clip=nn.utils.clip_grad_norm_, told=lambda loss, _: loss.item(), before=False,
):  # fmt: skip
    """A training step; `order` says what happens when, `before` tells the loss of the mode in which the model came."""
    first = cost(model(inputs), targets).item() if before else 0.0
    model.train(train)
    loss = cost(model(inputs), targets)
    actions = {
        "zero": optimizer.zero_grad, "backward": loss.backward, "ascend": lambda: (-loss).backward(),
        "clip": lambda: clip(model.parameters(), max_norm), "step": optimizer.step,
    }  # fmt: skip
    for action in order.split():
        actions[action]()
    return first if before else told(loss, lambda: cost(model(inputs), targets))


Exercise("3.6", "train_step", draw=draw_steps, call=steps_taken, right=step_by_hand, formula=step_of, mistakes={
    "gradients are not clipped when the step is taken, or clipped before backward, where they are not yet there, or after step":
        [{"order": order} for order in ("zero backward step", "backward step clip", "clip backward step zero",
                                        "backward step zero", "backward step clip zero", "clip backward step")],
    "the gradients of earlier steps are still there: backward adds to them, so zero_grad first": {"order": "backward clip step"},
    "the gradients are cleared after the step, and what lay there before the first is added in: zero_grad before backward":
        {"order": "backward clip step zero"},
    "the weights do not move: step is missing, or zero_grad stands between backward and step":
        {"order": "backward clip zero step"},
    "the step is taken twice": {"order": "zero backward clip step step"},
    "step comes before backward, so it takes the gradients of the batch before":
        ({"order": "step zero backward clip"}, {"order": "clip step zero backward"}),
    "the model is still in evaluation mode, where dropout is off: call model.train() first": {"train": False},
    "the loss returned still holds its graph; a list of such losses fills the memory: use .item()":
        {"told": lambda loss, _: loss},
    "the loss that is returned is a tensor: .item() makes a Python float of it": {"told": lambda loss, _: loss.detach()},
    "this is the loss after the step; return the one before it": {"told": lambda loss, again: again().item()},
    "the sign is turned: this makes the loss larger": ({"order": "zero ascend clip step"}, {"cost": lambda x, y: -entropy(x, y)}),
    "this is the sum of the losses; take their mean": {"cost": lambda x, y: entropy(x, y, "sum")},
    "the sum of the losses is divided by the rows; divide by the targets": {"cost": lambda x, y: entropy(x, y, "sum") / len(y)},
    "softmax is taken twice: cross_entropy takes logits": {"cost": lambda x, y: entropy(x.softmax(-1), y)},
    UNDERFLOWS: {"cost": LOG_OF_SOFTMAX},
    CAPS: [{"cost": cost} for cost in FLOORED],
    "the targets are shifted once more; they are shifted already": {"cost": lambda x, y: entropy(x[:, :-1], y[:, 1:])},
    "targets of token 0 are left out, like padding; there is none here, so every target counts":
        {"cost": lambda x, y: entropy(x, y, ignore_index=0)},
    "logits and targets are flattened in different orders, so a position has another's target: flatten(0, 1) and flatten()":
        ({"cost": lambda x, y: entropy(x.transpose(0, 1), y)}, {"cost": lambda x, y: entropy(x, y.T)}),
    "single values are cut off, which turns the gradient; clip_grad_norm_ scales all alike": {"clip": nn.utils.clip_grad_value_},
    "another norm is clipped; the common norm is the root of the sum of squares, norm_type 2":
        [{"clip": functools.partial(nn.utils.clip_grad_norm_, norm_type=kind)} for kind in (1.0, math.inf)],
    "only the first parameter's gradient is clipped: give clip_grad_norm_ all parameters together":
        {"clip": lambda xs, most: nn.utils.clip_grad_norm_(next(iter(xs)), most)},
    "the loss returned is that of evaluation mode; return the one that backward is called on":
        {"before": True},
    "each tensor's gradient, or each group's, is clipped by its own norm, which turns the whole: clip all parameters together":
        {"clip": lambda xs, most: [nn.utils.clip_grad_norm_(x, most) for x in xs]},
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.7
def draw_validation(generator):
    yield small_inputs(generator, ((1, 2), (1, 1)))
    yield sure_inputs(([[0, 1]], [[1, 0]]), ([[1], [2]], [[1], [2]]))
    for shapes in (
        ((2, 3),), ((1, 3), (2, 1), (1, 3)), ((3, 4), (3, 4), (1, 4)), ((4, 6), (4, 6), (4, 6), (2, 3)),
        ((2, 2),) * 33 + ((1, 1),),
    ):  # fmt: skip
        yield small_inputs(generator, shapes)


def validation(function, embedding, head, batches):
    """The loss, and that of other weights; in which mode the model is left; whether gradients were recorded on the way."""
    model, recorded = small_model(embedding, head).train(), []
    model.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    loss = function(model, batches)
    kept = [parameter.grad is not None and parameter.grad.sum().item() == parameter.numel() for parameter in model.parameters()]
    found = {
        "loss": loss, "in training mode afterwards": model.training, "gradients are recorded": any(recorded),
        "gradients are on afterwards": torch.is_grad_enabled(), "what lay in .grad is still there": all(kept),
    }  # fmt: skip
    model.train()[2].weight.data *= 0.5
    return {**found, "loss of other weights": function(model, batches)}


def validation_by_token(model, batches):
    """Token by token, from the model's two matrices: no mode and no graph are needed."""
    logprobs = (model[0].weight.data @ model[2].weight.data.T).double().log_softmax(-1)  # row: after this token
    pairs = [pair for inputs, targets in batches for pair in zip(inputs.flatten().tolist(), targets.flatten().tolist())]
    return -math.fsum(logprobs[pair].item() for pair in pairs) / len(pairs)


def validated(
    model, batches, *, train=lambda place: False, back=True, grad=False, part=lambda x, y: (x, y),
    mean=lambda n, c, r: n.sum() / c.sum(), cost=entropy,
):  # fmt: skip
    """The loss, made by `mean` of the nats, the number of targets and the rows of each batch; `part` is what is scored."""
    with torch.set_grad_enabled(grad is True):
        parts = [part(model.train(train(place))(inputs), targets) for place, (inputs, targets) in enumerate(batches)]
    torch.set_grad_enabled(grad != "left off")
    model.train(back)
    nats = torch.stack([cost(logits, targets, "sum").detach() for logits, targets in parts])
    counts = torch.tensor([targets.numel() for _, targets in parts])
    return mean(nats, counts.float(), torch.tensor([float(len(targets)) for _, targets in batches]))


def remembered(model, batches):
    if not hasattr(model, "known"):
        model.known = validated(model, batches)
    return model.known


Exercise("3.7", "validation_loss", draw=draw_validation, call=validation, right=validation_by_token, formula=validated, mistakes={
    "dropout is left on, so the model is measured with half its features: call model.eval() first":
        {"train": lambda place: True},
    "dropout is on for the first batch: model.eval() belongs in front of the loop": {"train": lambda place: place == 0},
    "dropout is off for the first batch alone: model.train() belongs behind the loop": {"train": lambda place: place > 0},
    "this is the loss of the first batch: the return stands inside the loop": {"mean": lambda n, c, r: n[0] / c[0]},
    "the model is left in evaluation mode: the rest of the training would run without dropout; call model.train()":
        {"back": False},
    "gradients are recorded, which costs memory and time for nothing: work inside torch.no_grad()": {"grad": True},
    "every batch weighs the same here; the last one is shorter, so weigh by tokens": {"mean": lambda n, c, r: (n / c).mean()},
    "batches are weighed by their rows; rows differ in length, so weigh by tokens": {"mean": lambda n, c, r: n / c @ r / r.sum()},
    "batches are weighed by the length of their rows, not by tokens": {"mean": lambda n, c, r: (n / r).sum() / (c / r).sum()},
    "the last, shorter batch is left out: a score is of the whole text": {"mean": lambda n, c, r: n[:-1].sum() / c[:-1].sum()},
    "count or nats are those of the last batch: = for +=":
        ({"mean": lambda n, c, r: n.sum() / c[-1]}, {"mean": lambda n, c, r: n[-1] / c.sum()}),
    "this is the total over the text; divide by the number of tokens": {"mean": lambda n, c, r: n.sum()},
    "the means of the batches are added up; add up sums, and divide by the tokens":
        ({"mean": lambda n, c, r: (n / c).sum()}, {"mean": lambda n, c, r: (n / c).sum() / c.sum()}),
    "the total is divided by the number of batches or of rows; divide by the tokens":
        ({"mean": lambda n, c, r: n.sum() / len(n)}, {"mean": lambda n, c, r: n.sum() / r.sum()}),
    "the targets are shifted once more; they are shifted already":  # a row has then one fewer, the shortest none
        [{"part": lambda x, y: (x[:, :-1], y[:, 1:]), "mean": mean} for mean in (
            lambda n, c, r: n.sum() / c.sum(), lambda n, c, r: n.sum() / (c + r).sum(),
            lambda n, c, r: (n / c * c).sum() / c.sum(), lambda n, c, r: (n / c * (c + r)).sum() / (c + r).sum())],
    "softmax is taken twice: cross_entropy takes logits": {"part": lambda x, y: (x.softmax(-1), y)},
    UNDERFLOWS: {"cost": LOG_OF_SOFTMAX},
    CAPS: [{"cost": cost} for cost in FLOORED],
    "every batch is taken to be as large as the first": {"mean": lambda n, c, r: n.sum() / c[0] / len(n)},
    "every batch but the last is taken to be as large as the first; each has its own number of targets":
        {"mean": lambda n, c, r: n / c @ as_the_first(c) / as_the_first(c).sum()},
    "the loss of an earlier call comes back, though the weights are others now: measure in each call": remembered,
    "gradients are switched off and stay off, and nothing can be trained after it: use torch.no_grad()": {"grad": "left off"},
    "only the first row of each batch is scored": {"part": lambda x, y: (x[:1], y[:1])},
    "targets of token 0 are taken for padding; there is none here": {"part": lambda x, y: (x[y != 0][None], y[y != 0][None])},
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.8
def draw_micro_batches(generator):
    for shapes, real in (
        (((1, 3), (1, 3)), (2, 1)), (((1, 4), (2, 2)), (3, 1)), (((2, 5), (3, 4), (1, 6)), (4, 2, 5)),
        (((1, 3), (2, 2), (1, 3)), (2, 0, 1)),
    ):  # fmt: skip
        drawn = small_inputs(generator, shapes)
        for count, (_, targets) in zip(real, drawn["batches"]):
            targets[:, count:] = -100  # in the last of these, a micro-batch without a target
        yield drawn
    yield sure_inputs(([[0, 2]], [[1, 0]]), ([[1]], [[2]]))


def gradients_left(function, embedding, head, batches):
    """The gradients that a second call leaves in the parameters, and whether memory was spared."""
    model, graphs, most, sizes = small_model(embedding, head), [], [], [0]

    def entered(module, arguments, output):
        if output.requires_grad:
            graphs.append(output)
            output.register_hook(lambda gradient: graphs.clear())
        most.append(len(graphs))
        sizes.append(arguments[0].numel())

    model.register_forward_hook(entered)
    function(model, batches[:1])  # the step before
    function(model, batches)
    gradients = {"embedding": model[0].weight.grad, "head": model[2].weight.grad}
    small = max(sizes) <= max(inputs.numel() for inputs, _ in batches)
    return {**gradients, "one graph at a time": max(most, default=0) <= 1, "no larger batches": small}


def gradients_of_whole(model, micro_batches):
    inputs, targets = (torch.cat([part.flatten() for part in parts]) for parts in zip(*micro_batches))
    gradients_by_hand(model, inputs[targets != -100], targets[targets != -100])


def accumulated(
    model, micro_batches, *, by=lambda s: s.all, clear="first", ignore=-100, used=ALL, whole=False, cost=entropy,
):  # fmt: skip
    """Add up the gradients of the micro-batches `used`: of the nats divided by what `by` makes of the numbers of targets."""
    counts, losses = [int((targets != -100).sum()) for _, targets in micro_batches], []
    places, rows = (sum(size(targets) for _, targets in micro_batches) for size in (torch.numel, len))
    for place, (inputs, targets) in enumerate(micro_batches[used]):
        if clear == "always" or (clear != "never" and place == 0):
            model.zero_grad()
        nats = cost(model(inputs), targets if ignore else targets.clamp(min=0), "sum")
        known = dict(here=counts[place], seen=sum(counts[: place + 1]), all=sum(counts), parts=len(counts))
        sizes = dict(size=targets.numel(), places=places, rows=len(targets), all_rows=rows)
        losses.append(nats / by(SimpleNamespace(**known, **sizes)))
        if not whole:
            losses.pop().backward()
    if whole:
        sum(losses).backward()
    if clear == "last":
        model.zero_grad()


def total_of(micro_batches):
    return sum(int((targets != -100).sum()) for _, targets in micro_batches)


def divided_at_the_end(model, micro_batches):
    accumulated(model, micro_batches, by=lambda s: 1, clear="never")
    for parameter in model.parameters():
        parameter.grad /= total_of(micro_batches)


def counted_again(model, micro_batches):
    for place in range(len(micro_batches)):
        accumulated(model, micro_batches[: place + 1], by=lambda s: total_of(micro_batches), clear="never" if place else "first")


def kept_for_the_next_call(model, micro_batches):
    accumulated(model, micro_batches)
    model.kept = [one.grad + before for one, before in zip(model.parameters(), getattr(model, "kept", (0, 0)))]
    for parameter, gradient in zip(model.parameters(), model.kept):
        parameter.grad = gradient.clone()


def by_shares(model, micro_batches):
    """The mean of each micro-batch, by a mask, times its share of the targets."""
    model.zero_grad()
    for inputs, targets in micro_batches:
        costs, real = -model(inputs).log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0], targets != -100
        ((costs * real).sum() / real.sum() * real.sum() / total_of(micro_batches)).backward()


Exercise("3.8", "accumulate_gradients", draw=draw_micro_batches, call=gradients_left, right=gradients_of_whole,
    formula=accumulated, mistakes={
    "means are added up and never divided: the gradient grows with the number of micro-batches": {"by": lambda s: s.here},
    "this is the mean of the micro-batches' means; they have different numbers of targets: divide sums by the targets of all":
        {"by": lambda s: s.here * s.parts},
    "only the last micro-batch is left: zero the gradients once, before the first":
        [{"clear": "always", "by": by} for by in (lambda s: s.all, lambda s: s.here, lambda s: s.here * s.parts, lambda s: 1)],
    "what stood in .grad before is still in it: zero the gradients before the first micro-batch":
        ({"clear": "never"}, {"clear": "never", "by": lambda s: s.here * s.parts}),
    "the gradients are cleared after the last micro-batch: nothing is left": {"clear": "last"},
    "the sums are divided by all positions; those with target -100 are not targets: count the others": {"by": lambda s: s.places},
    "the sums are divided by the targets seen so far; count those of all beforehand": {"by": lambda s: s.seen},
    "the means are weighed by all positions; -100 is no target": {"by": lambda s: s.here * s.places / s.size},
    "the means are weighed by rows; weigh them by their targets": {"by": lambda s: s.here * s.all_rows / s.rows},
    "this is divided by the targets of all, and by the number of micro-batches once more": {"by": lambda s: s.all * s.parts},
    "the sums are divided by the number of micro-batches; divide by the targets of all": {"by": lambda s: s.parts},
    "this is the gradient of the sum; divide each sum by the targets of all micro-batches": {"by": lambda s: 1},
    "targets of -100 are read as token 0 and cost something; they are no targets":
        [{"ignore": None, "by": by} for by in (lambda s: s.all, lambda s: s.places, lambda s: s.size * s.parts)],
    UNDERFLOWS: {"cost": LOG_OF_SOFTMAX},
    CAPS: [{"cost": cost} for cost in FLOORED],
    "dropout is switched off, and other gradients come out: leave the model in the mode in which it is":
        lambda model, batches: accumulated(model.eval(), batches),
    "each backward goes through the sum of all losses so far, and earlier ones count again: call it for each loss alone":
        counted_again,
    "the gradients are divided at the end, with what stood in .grad before: zero them first": divided_at_the_end,
    "the last micro-batch is left out, and its targets are counted": {"used": FIRST},
    "gradients of an earlier call are kept somewhere and added in: begin each call with nothing": kept_for_the_next_call,
    "a micro-batch without a target has no mean: 0 / 0 is NaN, and NaN times 0 too; divide the sums by the targets of all":
        by_shares,
    "only the first micro-batch is used, and the targets of all are counted": {"used": slice(1)},
    "all graphs are in memory together: call backward for each micro-batch, before the next one is read": {"whole": True},
    "the micro-batches are put together to one large batch, which is what does not fit into memory": [
        lambda model, batches, join=join: accumulated(model, [tuple(map(join, zip(*batches)))])
        for join in (torch.cat, lambda parts: torch.cat([part.flatten() for part in parts])[None])],
})  # fmt: skip


# ----------------------------------------------------------------------------------------- 3.9
def draw_runs(generator):
    for features, before, after in ((2, 1, 1), (3, 0, 2), (6, 3, 4)):
        inputs = torch.randn(before + after, 4, features, generator=generator)
        targets = torch.randn(before + after, 4, 1, generator=generator)
        yield {"weight": torch.randn(1, features, generator=generator), "inputs": inputs, "targets": targets, "stop": before}


def resumed_run(function, weight, inputs, targets, stop):
    """The ends of a run and of one resumed from its state at `stop`; each step has its own rate, batch and dropout."""

    def fresh():
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(weight.shape[1], 1, bias=False))
        model.register_buffer("rows_seen", torch.zeros(()))  # a state dict has more in it than parameters
        model[1].weight.data = weight.clone()
        return model, torch.optim.Adam(model.parameters())

    def train(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.param_groups[0]["lr"] = 0.2 / (step + 1)
            optimizer.zero_grad()
            F.mse_loss(model(inputs[step]), targets[step]).backward()
            optimizer.step()
            model.rows_seen += len(inputs[step])

    model, optimizer = fresh()
    train(model, optimizer, 0, stop)
    before = torch.get_rng_state()
    state = function(model, optimizer, stop)
    if not torch.equal(torch.get_rng_state(), before):
        raise TypeError("torch's generator is another after the call")
    missing = [key for key in ("model", "optimizer", "step", "random") if key not in state]
    if missing:
        raise TypeError(f"it lacks the keys {', '.join(map(repr, missing))}")
    train(model, optimizer, stop, len(inputs))  # the run goes on and changes its weights and moments in place
    function(model, optimizer, stop)  # another state, which leaves the first as it is

    resumed, again = fresh()
    torch.manual_seed(1)  # another process, with another state of the generator
    resumed.load_state_dict(state["model"])
    again.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    train(resumed, again, state["step"], len(inputs))
    return {"without a stop": dict(model.state_dict()), "resumed": dict(resumed.state_dict())}


def state_in_file(model, optimizer, step):
    """All four as they come back from a file: nothing in it is shared with what it was taken from."""
    buffer = io.BytesIO()
    torch.save(state_of(model, optimizer, step), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def state_of(model, optimizer, step, *, shared=(), missing="", steps=lambda step: step, random=torch.get_rng_state):
    live = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": steps(step), "random": random()}
    return {name: part if name in shared else copy.deepcopy(part) for name, part in live.items() if name != missing}


def parameters_alone(model, optimizer, step):
    return {**state_of(model, optimizer, step), "model": {name: one.detach().clone() for name, one in model.named_parameters()}}


ONE = {}


def in_one_dict(model, optimizer, step):
    ONE.update(state_of(model, optimizer, step))
    return ONE


Exercise("3.9", "training_state", draw=draw_runs, call=resumed_run, right=state_in_file, formula=state_of, mistakes={
    "state_dict() gives the tensors themselves, and training goes on writing into them: copy.deepcopy it":
        {"shared": ("model", "optimizer")},
    "the weights are copied, the optimiser's moments are not, and training writes into them": {"shared": "optimizer"},
    "the moments are copied, the weights are not, and training writes into them: copy.deepcopy them": {"shared": "model"},
    "the optimiser is missing, its key is 'optimizer': Adam's m, v and step count would start again from zero":
        {"missing": "optimizer"},
    "the step is missing, its key is 'step': schedule and data would start again from the beginning": {"missing": "step"},
    "the random state is missing, its key is 'random': dropout would drop other features; keep torch.get_rng_state()":
        {"missing": "random"},
    "the weights are missing, their key is 'model': keep model.state_dict()": {"missing": "model"},
    "the step kept is the last one done, so the resumed run takes it twice: keep the next one": {"steps": lambda step: step - 1},
    "the resumed run leaves a step out: `step` is the next one to do already, keep it as it is": {"steps": lambda step: step + 1},
    "the call changes torch's generator, and so the run that goes on: torch.get_rng_state() alone only reads its state":
        {"random": lambda: torch.manual_seed(0).get_state()},
    "this is the state of a new generator, not of the one that dropout draws from: torch.get_rng_state()":
        ({"random": lambda: torch.Generator().manual_seed(0).get_state()}, {"random": lambda: torch.Generator().get_state()}),
    "this is the seed, from which the generator has moved on since: torch.get_rng_state() is its state":
        {"random": torch.initial_seed},
    "the model's parameters alone are kept; a model may have buffers too, and state_dict() has both": parameters_alone,
    "all calls return one and the same dict, and a later one writes over the state kept: make a new dict in each": in_one_dict,
})  # fmt: skip
