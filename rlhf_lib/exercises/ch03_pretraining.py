"""Chapter 03: the loss, the schedule, Adam, clipping, a training step, evaluation, and a state to resume from."""

import copy
import io
import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise

# ----------------------------------------------------------------------------------------- 3.1

next_token_loss = Exercise("3.1", "next_token_loss")


@next_token_loss.inputs
def _(generator):
    worked = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [math.log(3), 0.0]]])
    yield {"logits": worked, "tokens": torch.tensor([[0, 1, 1]]), "mask": torch.ones(1, 3, dtype=torch.bool)}
    for rows, steps, vocabulary in ((3, 5, 3), (4, 7, 6)):
        lengths = torch.randint(2, steps, (rows, 1), generator=generator)
        lengths[0], lengths[1], lengths[2] = steps, 2, 1  # a full row, a short one, one without anything to predict
        yield {
            "logits": 2 * torch.randn(rows, steps, vocabulary, generator=generator),
            "tokens": torch.randint(vocabulary, (rows, steps), generator=generator),
            "mask": torch.arange(steps) < lengths,
        }
    extreme = torch.tensor([[[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]]])
    yield {"logits": extreme, "tokens": torch.tensor([[0, 1, 1]]), "mask": torch.ones(1, 3, dtype=torch.bool)}


@next_token_loss.call
def _(function, logits, tokens, mask):
    """The loss, and its gradient with respect to the logits."""
    logits = logits.clone().requires_grad_()
    loss = function(logits, tokens, mask)
    loss.backward()
    return {"loss": loss, "gradient": torch.zeros_like(logits) if logits.grad is None else logits.grad}


@next_token_loss.oracle
def _(logits, tokens, mask):
    losses = []
    for row in range(len(tokens)):
        for place in range(1, tokens.shape[1]):
            if mask[row, place]:
                before = logits[row, place - 1]
                losses.append(before.logsumexp(0) - before[tokens[row, place]])
    return torch.stack(losses).mean()


def token_losses(logits, tokens):
    """What each of `tokens` (B, T) costs under `logits` (B, T, V), (B, T), in nats."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


@next_token_loss.mistake("each token is scored by the logits of its own position, which have seen it; those before it predict it")
def _(logits, tokens, mask):
    return token_losses(logits, tokens)[mask].mean()


@next_token_loss.mistake(
    "the shift goes the wrong way: logits at t predict the token at t + 1, so drop the last logits, the first token"
)
def _(logits, tokens, mask):
    return token_losses(logits[:, 1:], tokens[:, :-1])[mask[:, 1:]].mean()


@next_token_loss.mistake("padding is scored too: a target counts only where the mask is True")
def _(logits, tokens, mask):
    return token_losses(logits[:, :-1], tokens[:, 1:]).mean()


@next_token_loss.mistake("this uses the mask of the inputs, mask[:, :-1]; what must be real is the target, mask[:, 1:]")
def _(logits, tokens, mask):
    return token_losses(logits[:, :-1], tokens[:, 1:])[mask[:, :-1]].mean()


@next_token_loss.mistake("the sum over real targets is divided by all targets; divide by the number of real ones")
def _(logits, tokens, mask):
    return (token_losses(logits[:, :-1], tokens[:, 1:]) * mask[:, 1:]).mean()


@next_token_loss.mistake("this is the mean of the rows' means, so a token of a short row weighs more: average over tokens")
def _(logits, tokens, mask):
    losses, real = token_losses(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return ((losses * real).sum(1) / real.sum(1).clamp(min=1)).mean()


@next_token_loss.mistake("this is the sum over the targets; take their mean, or the step size grows with the batch")
def _(logits, tokens, mask):
    return token_losses(logits[:, :-1], tokens[:, 1:])[mask[:, 1:]].sum()


@next_token_loss.mistake("softmax is taken twice: cross_entropy takes logits, not probabilities")
def _(logits, tokens, mask):
    return token_losses(logits[:, :-1].softmax(-1), tokens[:, 1:])[mask[:, 1:]].mean()


@next_token_loss.mistake("log(softmax) turns a very small probability into log(0) = -inf; use log_softmax or cross_entropy")
def _(logits, tokens, mask):
    picked = logits[:, :-1].softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    return -picked.log()[mask[:, 1:]].mean()


# ----------------------------------------------------------------------------------------- 3.2

perplexity_and_bits = Exercise("3.2", "perplexity_and_bits")


@perplexity_and_bits.inputs
def _(generator):
    yield {"losses": torch.tensor([math.log(2), math.log(8)]), "counts": torch.tensor([30, 10]), "characters": 100}
    for batches in (1, 2, 6):
        losses = 1 + 3 * torch.rand(batches, generator=generator)
        counts = torch.full((batches,), 64)
        counts[-1] = torch.randint(1, 40, (1,), generator=generator)
        tokens = int(counts.sum())
        yield {"losses": losses, "counts": counts, "characters": 3 * tokens - 1}


@perplexity_and_bits.oracle
def _(losses, counts, characters):
    """Each token written out: the geometric mean of 1 / p, and the length of the whole text in bits."""
    costs = [loss for loss, count in zip(losses.tolist(), counts.tolist()) for _ in range(count)]
    nats = math.fsum(costs)
    perplexity = math.prod(math.exp(cost / len(costs)) for cost in costs)
    return nats / len(costs), perplexity, math.log2(math.e) * nats / characters


def scores_of(nats, tokens, characters):
    return nats / tokens, math.exp(nats / tokens), nats / math.log(2) / characters


@perplexity_and_bits.mistake("every batch weighs the same here; the last one is shorter, so weigh each by its tokens")
def _(losses, counts, characters):
    return scores_of(losses.mean().item() * counts.sum().item(), counts.sum().item(), characters)


@perplexity_and_bits.mistake("this averages the batches' perplexities; average the losses first, take the exponential once")
def _(losses, counts, characters):
    loss, _, bits = perplexity_and_bits.right(losses, counts, characters)
    return loss, ((losses.exp() * counts).sum() / counts.sum()).item(), bits


@perplexity_and_bits.mistake("perplexity is exp(loss): the loss is in nats, and 2 ** loss is for a loss in bits")
def _(losses, counts, characters):
    loss, _, bits = perplexity_and_bits.right(losses, counts, characters)
    return loss, 2**loss, bits


@perplexity_and_bits.mistake("these are bits per token; the same text has fewer tokens than characters: divide by characters")
def _(losses, counts, characters):
    loss, perplexity, _ = perplexity_and_bits.right(losses, counts, characters)
    return loss, perplexity, loss / math.log(2)


@perplexity_and_bits.mistake("these are nats per character; a bit is ln 2 nats, so divide by ln 2")
def _(losses, counts, characters):
    loss, perplexity, bits = perplexity_and_bits.right(losses, counts, characters)
    return loss, perplexity, bits * math.log(2)


@perplexity_and_bits.mistake("the nats are multiplied by ln 2; there are fewer nats than bits, so divide by it")
def _(losses, counts, characters):
    loss, perplexity, bits = perplexity_and_bits.right(losses, counts, characters)
    return loss, perplexity, bits * math.log(2) ** 2


@perplexity_and_bits.mistake("tokens and characters are swapped: bits per character = bits per token * tokens / characters")
def _(losses, counts, characters):
    loss, perplexity, _ = perplexity_and_bits.right(losses, counts, characters)
    return loss, perplexity, loss / math.log(2) * characters / counts.sum().item()


# ----------------------------------------------------------------------------------------- 3.3

learning_rate = Exercise("3.3", "learning_rate")


@learning_rate.inputs
def _(generator):
    yield {"peak": 1.0, "warmup": 2, "steps": 6}
    yield {"peak": 0.5, "warmup": 0, "steps": 4}
    for steps in (10, 40):
        peak = 0.1 + torch.rand(1, generator=generator).item()
        warmup = torch.randint(2, steps // 2, (1,), generator=generator).item()
        yield {"peak": peak, "warmup": warmup, "steps": steps}


@learning_rate.call
def _(function, peak, warmup, steps):
    """The rate of every step of the run, one after the other."""
    return torch.tensor([float(function(step, peak, warmup, steps)) for step in range(steps)])


@learning_rate.oracle
def _(step, peak, warmup, steps):
    """The two lines as tables, built without a formula: steps numbered from 1 upwards, then downwards."""
    rising = torch.linspace(0, peak, warmup + 1)[1:]
    falling = torch.linspace(peak, 0, steps - warmup + 1)[:-1]
    return torch.cat([rising, falling])[step]


def rates(step, peak, warmup, steps, first=1, last=0, start=None):
    start = warmup if start is None else start
    if step < warmup:
        return peak * (step + first) / warmup
    return peak * (steps - last - step) / max(1, steps - last - start)


@learning_rate.mistake("step 0 has rate 0, so it does nothing: in the warm-up the rate is peak * (step + 1) / warmup")
def _(step, peak, warmup, steps):
    return rates(step, peak, warmup, steps, first=0)


@learning_rate.mistake("there is no warm-up: the first steps, while Adam knows two or three gradients, should be small")
def _(step, peak, warmup, steps):
    return peak * min(1.0, (steps - step) / (steps - warmup))


@learning_rate.mistake("the rate never falls: after the warm-up it goes down to zero in a line")
def _(step, peak, warmup, steps):
    return peak * min(1.0, (step + 1) / max(1, warmup))


@learning_rate.mistake("the fall is counted from step 0, so the rate drops at the end of the warm-up: count from `warmup`")
def _(step, peak, warmup, steps):
    return rates(step, peak, warmup, steps, start=0)


@learning_rate.mistake("the last step has rate 0 and is wasted: zero is reached at `steps`, which is never taken")
def _(step, peak, warmup, steps):
    return rates(step, peak, warmup, steps, last=1)


@learning_rate.mistake("this falls along a cosine; here it is a straight line")
def _(step, peak, warmup, steps):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@learning_rate.mistake("without a warm-up this divides by zero: warmup = 0 means that step 0 has the peak rate")
def _(step, peak, warmup, steps):
    return peak * min((step + 1) / warmup, (steps - step) / (steps - warmup))


@learning_rate.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    figure, (ax,) = plots.figure(1)
    ax.plot(expected.tolist(), color=plots.GREY, marker="o", markersize=4, label="expected")
    ax.plot(got.tolist(), color=plots.ORANGE, marker="x", label="came out")
    ax.set(title="Learning rate", xlabel="step", ylabel="rate")
    plots.legend(ax)
    return figure


# ----------------------------------------------------------------------------------------- 3.4

adam_step = Exercise("3.4", "adam_step")


@adam_step.inputs
def _(generator):
    rates = {"rate": 0.1, "beta1": 0.9, "beta2": 0.999}
    start = {"parameter": torch.tensor([1.0]), "gradient": torch.tensor([2.0])}
    yield {**start, "m": torch.zeros(1), "v": torch.zeros(1), "step": 1, **rates, "eps": 1e-8}
    for shape, step, eps in (((3,), 2, 1e-8), ((2, 3), 1, 0.1), ((4, 2), 30, 0.1)):
        parameter, gradient, m = torch.randn(3, *shape, generator=generator)
        gradient.view(-1)[0] = 0.0
        v = 0.1 + torch.rand(shape, generator=generator)
        rates = {"rate": 0.05, "beta1": 0.9, "beta2": 0.95}
        yield {"parameter": parameter, "gradient": gradient, "m": m * (step > 1), "v": v * (step > 1), "step": step, **rates,
               "eps": eps}  # fmt: skip


@adam_step.oracle
def _(parameter, gradient, m, v, step, rate, beta1, beta2, eps):
    """torch.optim.Adam, put into the state in which it would be before this step."""
    weight = nn.Parameter(parameter.clone())
    optimizer = torch.optim.Adam([weight], lr=rate, betas=(beta1, beta2), eps=eps)
    optimizer.state[weight] = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    weight.grad = gradient.clone()
    optimizer.step()
    return weight.detach(), optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]


def adam(parameter, gradient, m, v, step, rate, beta1, beta2, eps, power=2, correct=(True, True), root=0.5, inside=0.0, sign=-1):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**power
    m_hat = m / (1 - beta1**step) if correct[0] else m
    v_hat = v / (1 - beta2**step) if correct[1] else v
    return parameter + sign * rate * m_hat / ((v_hat + inside) ** root + eps), m, v


@adam_step.mistake("the second beta is set to the first: v must decay by beta2, which is slower than beta1")
def _(beta1, beta2, **others):
    return adam(beta1=beta1, beta2=beta1, **others)


@adam_step.mistake("the bias correction is missing: m and v start at 0, so divide them by 1 - beta ** step before you use them")
def _(**arguments):
    return adam(**arguments, correct=(False, False))


@adam_step.mistake("only m is corrected for its start at 0: divide v by 1 - beta2 ** step too")
def _(**arguments):
    return adam(**arguments, correct=(True, False))


@adam_step.mistake("the bias correction takes step - 1: steps are counted from 1, so that the first divides by 1 - beta")
def _(step, **others):
    m, v = adam(step=step, **others)[1:]
    corrections = torch.tensor([1 - others["beta1"] ** (step - 1), 1 - others["beta2"] ** (step - 1)])
    m_hat, v_hat = m / corrections[0], v / corrections[1]
    return others["parameter"] - others["rate"] * m_hat / (v_hat.sqrt() + others["eps"]), m, v


@adam_step.mistake(
    "the corrected m and v are returned; the running averages themselves must be kept, or the next step corrects twice"
)
def _(step, beta1, beta2, **others):
    parameter, m, v = adam(step=step, beta1=beta1, beta2=beta2, **others)
    return parameter, m / (1 - beta1**step), v / (1 - beta2**step)


@adam_step.mistake("v averages the gradient; it is the average of its square")
def _(**arguments):
    return adam(**arguments, power=1)


@adam_step.mistake("the step is divided by v; divide by its square root, so that the size of the gradient cancels")
def _(**arguments):
    return adam(**arguments, root=1.0)


@adam_step.mistake("eps is added inside the root; Adam adds it to the root")
def _(eps, **others):
    return adam(eps=0.0, inside=eps, **others)


@adam_step.mistake("this goes up the gradient: subtract the step")
def _(**arguments):
    return adam(**arguments, sign=1)


# ----------------------------------------------------------------------------------------- 3.5

clip_gradient = Exercise("3.5", "clip_gradient")


@clip_gradient.inputs
def _(generator):
    yield {"gradients": [torch.tensor([3.0]), torch.tensor([4.0])], "max_norm": 1.0}
    yield {"gradients": [torch.tensor([0.3]), torch.tensor([0.4])], "max_norm": 1.0}
    for scale in (2.0, 0.1):
        shapes = ((2, 3), (3,), (1,))
        yield {"gradients": [scale * torch.randn(shape, generator=generator) for shape in shapes], "max_norm": 0.8}
    yield {"gradients": [torch.zeros(2)], "max_norm": 1.0}


@clip_gradient.oracle
def _(gradients, max_norm):
    weights = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    return [weight.grad for weight in weights], norm


def norm_of(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm()


@clip_gradient.mistake("each tensor is clipped by its own norm, which turns the gradient: take one norm over all of them")
def _(gradients, max_norm):
    return [clip_gradient.right([gradient], max_norm)[0][0] for gradient in gradients], norm_of(gradients)


@clip_gradient.mistake("single values are cut off at max_norm, which turns the gradient: scale all by one factor")
def _(gradients, max_norm):
    return [gradient.clamp(-max_norm, max_norm) for gradient in gradients], norm_of(gradients)


@clip_gradient.mistake("a gradient shorter than max_norm is scaled too: leave it as it is")
def _(gradients, max_norm):
    norm = norm_of(gradients)
    return [gradient * (max_norm / (norm + 1e-6)) for gradient in gradients], norm


@clip_gradient.mistake("this adds the tensors' norms; the norm of all is the root of the sum of their squares")
def _(gradients, max_norm):
    norm = sum(gradient.norm() for gradient in gradients)
    return [gradient * (max_norm / (norm + 1e-6)).clamp(max=1) for gradient in gradients], norm


@clip_gradient.mistake("the square root is missing: this is the squared norm")
def _(gradients, max_norm):
    norm = norm_of(gradients) ** 2
    return [gradient * (max_norm / (norm + 1e-6)).clamp(max=1) for gradient in gradients], norm


@clip_gradient.mistake(
    "the norm returned is the one after clipping; the one before it is worth a curve, as it shows what happened"
)
def _(gradients, max_norm):
    clipped, norm = clip_gradient.right(gradients, max_norm)
    return clipped, norm.clamp(max=max_norm)


# ----------------------------------------------------------------------------------------- the checks' own model


class HalfOff(nn.Module):
    """Dropout without the dice: in training mode every second feature is zero and the others are doubled."""

    def forward(self, x):
        return x * (1 - torch.arange(x.shape[-1]) % 2) * 2 if self.training else x


def small_model(embedding, head):
    """A language model that looks at one token: embedding (V, C), dropout, head (V, C)."""
    model = nn.Sequential(nn.Embedding(*embedding.shape), HalfOff(), nn.Linear(*head.T.shape, bias=False))
    model[0].weight.data, model[2].weight.data = embedding.clone(), head.clone()
    return model


def small_weights(generator, vocabulary=5, width=4):
    """The weights of `small_model`."""
    embedding, head = torch.randn(2, vocabulary, width, generator=generator)
    return {"embedding": embedding, "head": head}


def small_batches(generator, shapes, vocabulary=5):
    """Inputs and targets of `small_model`, a pair for each shape (B, T)."""
    return [tuple(torch.randint(vocabulary, (2, *shape), generator=generator)) for shape in shapes]


# ----------------------------------------------------------------------------------------- 3.6

train_step = Exercise("3.6", "train_step")


@train_step.inputs
def _(generator):
    for shapes, max_norm in ((((1, 2),), 10.0), (((2, 3),) * 2, 0.05), (((3, 4),) * 4, 0.2)):
        yield {**small_weights(generator), "batches": small_batches(generator, shapes), "rate": 1.0, "max_norm": max_norm}


@train_step.call
def _(function, embedding, head, batches, rate, max_norm):
    """The losses of some steps, the weights after them, and whether a loss that came back still held its graph."""
    model = small_model(embedding, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for inputs, targets in batches:
        model.eval()  # as an evaluation leaves it
        losses.append(function(model, optimizer, inputs, targets, max_norm))
    graph = any(isinstance(loss, torch.Tensor) and loss.requires_grad for loss in losses)
    weights = {"embedding": model[0].weight, "head": model[2].weight}
    return {"losses": losses, "weights": weights, "a loss holds its graph": graph}


def step_of(model, optimizer, inputs, targets, max_norm, order="zero loss backward clip step", mode=True):
    """A training step; `order` says what happens when."""
    model.train(mode)
    actions = {
        "zero": optimizer.zero_grad,
        "backward": lambda: loss.backward(),
        "clip": lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm),
        "step": optimizer.step,
        "loss": lambda: None,
    }
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    for action in order.split():
        actions[action]()
    return loss.detach()


@train_step.oracle
def _(model, optimizer, inputs, targets, max_norm):
    """The gradient in closed form, softmax minus one-hot, and the descent by hand."""
    embedding, head = model[0].weight.data, model[2].weight.data
    tokens, wanted = inputs.flatten(), targets.flatten()
    keep = 2.0 * (1 - torch.arange(embedding.shape[1]) % 2)
    x = embedding[tokens] * keep  # (N, C)
    logprobs = (x @ head.T).log_softmax(-1)  # (N, V)
    error = (logprobs.exp() - F.one_hot(wanted, len(head))) / len(tokens)  # (N, V)
    for_head = error.T @ x
    for_embedding = torch.zeros_like(embedding).index_add(0, tokens, (error @ head) * keep)
    norm = (for_head.square().sum() + for_embedding.square().sum()).sqrt().item()
    scale = optimizer.param_groups[0]["lr"] * min(1.0, max_norm / norm)
    head -= scale * for_head
    embedding -= scale * for_embedding
    return -logprobs[range(len(wanted)), wanted].mean().item()


@train_step.mistake(
    "gradients are never clipped, or clipped before backward, when the new ones are not there yet: clip between backward and step"
)
def _(model, optimizer, inputs, targets, max_norm):
    return step_of(model, optimizer, inputs, targets, max_norm, "zero clip backward step")


@train_step.mistake("the gradients of earlier steps are still there: backward adds to them, so call zero_grad before it")
def _(model, optimizer, inputs, targets, max_norm):
    return step_of(model, optimizer, inputs, targets, max_norm, "backward clip step")


@train_step.mistake("the weights do not move: step is missing, or zero_grad stands between backward and step")
def _(model, optimizer, inputs, targets, max_norm):
    return step_of(model, optimizer, inputs, targets, max_norm, "backward clip zero step")


@train_step.mistake("step comes before backward, so it takes the gradients of the batch before")
def _(model, optimizer, inputs, targets, max_norm):
    return step_of(model, optimizer, inputs, targets, max_norm, "step zero backward clip")


@train_step.mistake("the model is still in evaluation mode, where dropout is off: call model.train() first")
def _(model, optimizer, inputs, targets, max_norm):
    return step_of(model, optimizer, inputs, targets, max_norm, mode=False)


@train_step.mistake("the loss that is returned still holds its graph, and a list of such losses fills the memory: use .item()")
def _(model, optimizer, inputs, targets, max_norm):
    loss = step_of(model, optimizer, inputs, targets, max_norm)
    return loss.clone().requires_grad_()


@train_step.mistake(
    "clipping comes after step: the weights have moved by the unclipped gradients, which the next zero_grad throws away"
)
def _(model, optimizer, inputs, targets, max_norm):
    norm = step_of(model, optimizer, inputs, targets, max_norm, "backward step clip")
    return norm


# ----------------------------------------------------------------------------------------- 3.7

validation_loss = Exercise("3.7", "validation_loss")


@validation_loss.inputs
def _(generator):
    for shapes in (((1, 2), (1, 1)), ((3, 4), (3, 4), (1, 4)), ((4, 6), (4, 6), (4, 6), (2, 3))):
        yield {**small_weights(generator), "batches": small_batches(generator, shapes)}


@validation_loss.call
def _(function, embedding, head, batches):
    """The loss, whether the model is in training mode afterwards, and whether gradients were recorded on the way."""
    model = small_model(embedding, head).train()
    recorded = []
    model.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    loss = function(model, batches)
    return {"loss": loss, "in training mode afterwards": model.training, "gradients are recorded": any(recorded)}


@validation_loss.oracle
def _(model, batches):
    """Token by token, from the model's two matrices: no mode and no graph are needed."""
    logprobs = (model[0].weight.data @ model[2].weight.data.T).double().log_softmax(-1)  # row: after this token
    inputs = torch.cat([inputs.flatten() for inputs, _ in batches]).tolist()
    targets = torch.cat([targets.flatten() for _, targets in batches]).tolist()
    return -math.fsum(logprobs[a, b].item() for a, b in zip(inputs, targets)) / len(targets)


def validated(model, batches, mode=False, weigh=lambda targets: targets.numel(), grad=False, back=True):
    model.train(mode)
    total, weight = 0.0, 0
    with torch.set_grad_enabled(grad):
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
            total, weight = total + loss * weigh(targets), weight + weigh(targets)
    model.train(back)
    return total / weight


@validation_loss.mistake("dropout is left on, so the model is measured with half its features: call model.eval() first")
def _(model, batches):
    return validated(model, batches, mode=True)


@validation_loss.mistake(
    "the model is left in evaluation mode: the rest of the training would run without dropout; call model.train()"
)
def _(model, batches):
    return validated(model, batches, back=False)


@validation_loss.mistake("gradients are recorded, which costs memory and time for nothing: work inside torch.no_grad()")
def _(model, batches):
    return validated(model, batches, grad=True)


@validation_loss.mistake("every batch weighs the same here; the last one is shorter, so weigh each by its tokens")
def _(model, batches):
    return validated(model, batches, weigh=lambda targets: 1)


@validation_loss.mistake("batches are weighed by their rows; rows differ in length too, so weigh by tokens")
def _(model, batches):
    return validated(model, batches, weigh=len)


@validation_loss.mistake("the last, shorter batch is left out: a score is of the whole validation text")
def _(model, batches):
    return validated(model, batches[:-1])


@validation_loss.mistake("this is the total over the text; divide by the number of tokens")
def _(model, batches):
    return validated(model, batches) * sum(targets.numel() for _, targets in batches)


# ----------------------------------------------------------------------------------------- 3.8

accumulate_gradients = Exercise("3.8", "accumulate_gradients")


@accumulate_gradients.inputs
def _(generator):
    for shapes in (((1, 3), (1, 3)), ((2, 5), (2, 5), (1, 5))):
        batches = small_batches(generator, shapes)
        for place, (_, targets) in enumerate(batches):
            targets[:, targets.shape[1] - 1 - place % 2 :] = -100  # the second and its kind have one real target fewer
        yield {**small_weights(generator), "micro_batches": batches}


@accumulate_gradients.call
def _(function, embedding, head, micro_batches):
    """The gradients that are left in the parameters, of which there were some before."""
    model = small_model(embedding, head)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    function(model, micro_batches)
    gradients = {"embedding": model[0].weight.grad, "head": model[2].weight.grad}
    return {name: torch.zeros(()) if gradient is None else gradient for name, gradient in gradients.items()}


@accumulate_gradients.oracle
def _(model, micro_batches):
    """One large batch."""
    inputs, targets = (torch.cat([part.flatten() for part in parts]) for parts in zip(*micro_batches))
    for parameter in model.parameters():
        parameter.grad = None
    F.cross_entropy(model(inputs), targets, ignore_index=-100).backward()


def accumulated(model, micro_batches, scale, clear="once"):
    """Add up the micro-batches' gradients; scale(sum of the losses, targets, all targets) is what goes backward."""
    every = torch.cat([targets.flatten() for _, targets in micro_batches])
    for place, (inputs, targets) in enumerate(micro_batches):
        if clear == "always" or (clear == "once" and place == 0):
            model.zero_grad()
        total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
        scale(total, targets, every).backward()


def real(targets):
    return (targets != -100).sum()


@accumulate_gradients.mistake("means are added up and never divided: the gradient grows with the number of micro-batches")
def _(model, micro_batches):
    accumulated(model, micro_batches, lambda total, targets, every: total / real(targets))


@accumulate_gradients.mistake(
    "this is the mean of the micro-batches' means; they have different numbers of targets: divide sums by the targets of all"
)
def _(model, micro_batches):
    accumulated(model, micro_batches, lambda total, targets, every: total / real(targets) / len(micro_batches))


@accumulate_gradients.mistake("only the last micro-batch is left: zero the gradients once, before the first")
def _(model, micro_batches):
    accumulated(model, micro_batches, lambda total, targets, every: total / real(every), clear="always")


@accumulate_gradients.mistake("what stood in .grad before is still in it: zero the gradients before the first micro-batch")
def _(model, micro_batches):
    accumulated(model, micro_batches, lambda total, targets, every: total / real(every), clear="never")


@accumulate_gradients.mistake("the sums are divided by all positions; those with target -100 are not targets: count the others")
def _(model, micro_batches):
    accumulated(model, micro_batches, lambda total, targets, every: total / every.numel())


@accumulate_gradients.mistake("this is the gradient of the sum; divide each sum by the number of targets of all micro-batches")
def _(model, micro_batches):
    accumulated(model, micro_batches, lambda total, targets, every: total)


# ----------------------------------------------------------------------------------------- 3.9

training_state = Exercise("3.9", "training_state")


@training_state.inputs
def _(generator):
    for features, before, after in ((2, 1, 1), (6, 3, 4)):
        yield {
            "weight": torch.randn(1, features, generator=generator),
            "inputs": torch.randn(before + after, 4, features, generator=generator),
            "targets": torch.randn(before + after, 4, 1, generator=generator),
            "stop": before,
        }


@training_state.call
def _(function, weight, inputs, targets, stop):
    """The weights at the end of a run, and at the end of one that is resumed from the state that was taken at step `stop`.

    A step has its own rate and its own batch, and draws its dropout from torch's generator.
    """

    def fresh():
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(weight.shape[1], 1, bias=False))
        model[1].weight.data = weight.clone()
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def train(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.param_groups[0]["lr"] = 0.2 / (step + 1)
            optimizer.zero_grad()
            F.mse_loss(model(inputs[step]), targets[step]).backward()
            optimizer.step()

    model, optimizer = fresh()
    train(model, optimizer, 0, stop)
    state = function(model, optimizer, stop)
    train(model, optimizer, stop, len(inputs))  # the run goes on and changes its weights and moments in place

    resumed, again = fresh()
    torch.manual_seed(1)  # another process, with another state of the generator
    resumed.load_state_dict(state.get("model", resumed.state_dict()))
    again.load_state_dict(state.get("optimizer", again.state_dict()))
    torch.set_rng_state(state.get("random", torch.get_rng_state()))
    train(resumed, again, state.get("step", 0), len(inputs))
    return {"without a stop": model[1].weight, "resumed": resumed[1].weight}


def written(state):
    """`state` as it comes back from a file: nothing in it is shared with what it was taken from."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@training_state.oracle
def _(model, optimizer, step):
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    return written({**parts, "step": step})


@training_state.mistake("state_dict() gives the tensors themselves, and training goes on writing into them: copy.deepcopy it")
def _(model, optimizer, step):
    state = training_state.right(model, optimizer, step)
    return {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


@training_state.mistake("the weights are copied, the optimiser's moments are not, and training goes on writing into them")
def _(model, optimizer, step):
    return {**training_state.right(model, optimizer, step), "optimizer": optimizer.state_dict()}


@training_state.mistake("the moments are copied, the weights are not, and training goes on writing into them: copy.deepcopy them")
def _(model, optimizer, step):
    return {**training_state.right(model, optimizer, step), "model": model.state_dict()}


def without(part):
    def state_of(model, optimizer, step):
        state = training_state.right(model, optimizer, step)
        del state[part]
        return state

    return state_of


training_state.mistake("the optimiser is missing: Adam's m, v and step count would start again from zero")(without("optimizer"))
training_state.mistake("the step is missing: schedule and data would start again from the beginning")(without("step"))
training_state.mistake("the random state is missing: dropout would drop other features; keep torch.get_rng_state()")(
    without("random")
)
training_state.mistake("the weights are missing: keep model.state_dict()")(without("model"))


@training_state.mistake("the step kept is the last one done, so the resumed run takes it twice: keep the next one to do")
def _(model, optimizer, step):
    return copy.deepcopy({**training_state.right(model, optimizer, step), "step": step - 1})
