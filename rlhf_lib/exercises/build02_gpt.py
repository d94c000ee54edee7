"""Build it 2.10: `class GPT(nn.Module)`, judged by what it computes, what it does not look at, and what it learns."""

import contextlib
import functools
import math
import traceback

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.compare import equal
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.formula02_gpt import (
    CLOSE,
    LENGTH,
    LETTERS,
    away,
    draw_cases,
    draw_state,
    draw_tokens,
    held_out,
    judge_reference,
    misshapen,
    named,
    other_futures,
    padded,
    reference,
    reversals,
    shapes,
)  # fmt: skip

ENDS = ("head.weight", "attention.out.weight", "down.weight")  # what begins at zero


def made(built, shape, state):
    """The learner's GPT with the given weights, as it is when nothing is trained."""
    model = built(*shape)
    model.load_state_dict(state)
    return model.eval()


def draw_shape(generator):
    return {"shape": (7, 5, 2, 2, 8)}


def run_names(built, shape):
    model = built(*shape)
    known = {name: getattr(model, name, None) for name in ("vocab_size", "context", "heads")}
    sizes = {name: list(one.shape) for name, one in model.state_dict().items()}
    return {"sizes": sizes, "trained": len(list(model.parameters())), **known}


def judge_names(out, shape):
    wanted, sizes = shapes(*shape), {name: tuple(size) for name, size in out["sizes"].items()}
    missing, more = [name for name in wanted if name not in sizes], [name for name in sizes if name not in wanted]
    if not sizes:
        return "its state has no weights: modules count as attributes, in an nn.ModuleList or an nn.ModuleDict, not in a list"
    if missing:
        instead = f", but a {more[0]}" if more else " (a module in a plain list does not count: nn.ModuleList)"
        return f"its state has no {missing[0]}{instead}: no published weights fit it"
    if more:
        what = "here no layer has a bias" if more[0].endswith("bias") else "a buffer needs persistent=False to stay out of it"
        return f"its state has a {more[0]} that the contract does not name ({what})"
    for name in wanted:
        if sizes[name] != wanted[name]:
            return f"{name} has the shape {sizes[name]}, not {wanted[name]}: weights are stored as (outputs, inputs)"
    for name, value in zip(("vocab_size", "context", "heads"), (shape[0], shape[1], shape[3])):
        if out[name] != value:
            return f"its attribute {name} is {out[name]}, not {value}: later chapters read it"
    if out["trained"] != len(wanted):
        return f"it has {out['trained']} parameters to train, not {len(wanted)}: two share a tensor, or some are buffers"
    return ""


def draw_start(generator):
    shape = (23, 12, 3, 2, 32)
    return {"shape": shape, "tokens": draw_tokens(generator, shape, 2, 9), **draw_cases(generator)}


def run_start(built, shape, tokens, cases):
    model = built(*shape)
    state = {name: one.detach().clone() for name, one in model.state_dict().items()}
    out = {"logits": model(tokens), "hidden": model.hidden(tokens), "state": state}
    with contextlib.suppress(Exception):  # looked at where `hidden` is wrong; what it raises is the matter of a later probe
        out["given"] = run_reference(built, cases)
    return out


def judge_start(out, shape, tokens, cases):
    if fault := misshapen(out["logits"], (*tokens.shape, shape[0])):
        return fault
    loss = F.cross_entropy(out["logits"].flatten(0, 1), tokens.flatten()).item()
    if abs(loss - math.log(shape[0])) > 1e-6:
        why = "the head does not begin at zero, so it prefers some tokens before it has read a single text"
        return f"the first loss is {loss:.4f}, and ln {shape[0]} = {math.log(shape[0]):.4f} is what knowing nothing costs: {why}"
    state = out["state"]
    start = F.rms_norm(state["embedding.weight"][tokens], (shape[4],), eps=1e-6)
    if fault := misshapen(out["hidden"], start.shape, "the hidden states"):
        return fault
    for name, one in state.items():
        if name.endswith(ENDS) and one.abs().max() > 0:
            return f"{name} does not begin at zero: a block writes random numbers into the stream before it has learned anything"
        if one.dim() == 1 and away(one, torch.ones_like(one)) > 0:
            return f"{name} does not begin at one"
        if one.dim() == 2 and not name.endswith(ENDS) and not 0.015 < one.std().item() < 0.025:
            return f"{name} begins with a standard deviation of {one.std().item():.3f}; the contract says 0.02"
    if away(out["hidden"], start) > CLOSE:
        plain = "while the blocks add nothing, `hidden` is not norm(embedding): it is what the last norm makes of the stream"
        return ("given" in out and named(out["given"], cases)) or plain
    return ""


def draw_texts(generator, rows=3, **more):
    shape = (11, 9, 2, 2, 8)
    return {"shape": shape, "state": draw_state(generator, shape), "tokens": draw_tokens(generator, shape, rows, 7), **more}


def run_futures(built, shape, state, tokens):
    model = made(built, shape, state)
    return [model(one) for one in other_futures(tokens, shape)]


def judge_futures(out, shape, state, tokens):
    for one in out:
        if fault := misshapen(one, (*tokens.shape, shape[0])):
            return fault
    moved = torch.stack([(one - out[0])[0].abs().amax(-1).nan_to_num(math.inf) for one in out[1:]])  # (changed, watched)
    for place in range(1, len(moved)):
        if (moved[place, :place] > CLOSE).any():
            watched = int((moved[place, :place] > CLOSE).nonzero()[0])
            how = "the mask leaks, or the heads are cut so that positions mix"
            return f"logits at {watched} change when token {place} changes: {how}. Such a model reads the token it is to predict"
    if (moved.diagonal() < CLOSE).any():
        return "logits at t stay as they are when token t changes: a position does not read its own token"
    if (moved[:-1, -1] < CLOSE).any():
        return "logits at the end stay as they are when an earlier token changes: attention brings nothing there"
    return ""


def run_texts(built, shape, state, tokens):
    model = made(built, shape, state)
    return {"together": model(tokens), "alone": [model(row[None]) for row in tokens], "shorter": model(tokens[:, :4])}


def judge_texts(out, shape, state, tokens):
    together = out["together"]
    if fault := misshapen(together, (*tokens.shape, shape[0])):
        return fault
    if max(away(together[row], one[0]) for row, one in enumerate(out["alone"])) > CLOSE:
        return "a text's logits change with the other texts of its batch: something is averaged, or looked at, across rows"
    if misshapen(out["shorter"], (len(tokens), 4, shape[0])) or away(together[:, :4], out["shorter"]) > CLOSE:
        return "the logits of the first 4 tokens change when 3 more follow: something depends on the length of the text"
    return ""


def run_padded(built, shape, state, tokens, lengths):
    model, real, other = made(built, shape, state), torch.ones_like(tokens, dtype=torch.bool), (tokens + 1) % shape[0]
    out = {"gradients": True}
    try:
        out["every"] = [model(tokens), model(tokens, real), model(torch.cat([tokens[:, :-1], other[:, -1:]], 1), real)]
        for side in ("right", "left"):
            mask = padded(tokens, lengths, side)
            out[side], out[f"{side} other"] = model(tokens, mask), model(torch.where(mask, tokens, other), mask)
        for side in ("right", "left"):  # behind both: nothing of one mask may be left in the next call
            mask = padded(tokens, lengths, side)
            out[f"{side} alone"] = [model(row[real][None])[0] for row, real in zip(tokens, mask)]
            model.zero_grad()
            out[side][mask].square().mean().backward()
            grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
            out["gradients"] &= all(grad.isfinite().all().item() for grad in grads)
    except (IndexError, RuntimeError) as error:
        if "attention" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            return {"attention": f"{type(error).__name__}: {error}"}
        if "inplace operation" not in str(error):
            raise
        return {"inplace": True}
    return out


def judge_padded(out, shape, state, tokens, lengths):
    if "attention" in out:
        return f"attention stops at the mask that it is given; with masked_fill any that broadcasts will do. {out['attention']}"
    if "inplace" in out:
        return "a tensor is changed in place, and the gradient needs it as it was: x = x + ... makes a new one, x += ... does not"
    if away(*out["every"][:2]) > CLOSE:
        if away(out["every"][1][:, :-1], out["every"][2][:, :-1]) > CLOSE:
            return "with a mask of padding the future is seen: join it with the causal mask by &, it does not take its place"
        return "a mask that is True everywhere changes the logits: True stands on real tokens"
    for side in ("right", "left"):
        mask, logits = padded(tokens, lengths, side), out[side]
        if fault := misshapen(logits, (*tokens.shape, shape[0])):
            return fault
        if not logits.isfinite().all():
            why = "a padded place that may look at nothing has a softmax over -inf alone; let it look at itself"
            return f"with padding on the {side} there are logits that are no numbers, which spoils every loss: {why}"
        if max(away(logits[row][mask[row]], one) for row, one in enumerate(out[f"{side} alone"])) > CLOSE:
            why = "padding is not looked at, but the mask hides what is real, or a score depends on more than the distance (turn "
            why += "queries and keys, each by its place, and nothing else)"
            why = "real tokens look at padding" if away(logits[mask], out[f"{side} other"][mask]) > CLOSE else why
            return f"padding on the {side} moves the logits of real tokens: {why}"
    if not out["gradients"]:
        why = "NaN was put out of the way afterwards, and it comes back in the gradient; let a padded place look at itself"
        return f"with padding the logits are numbers, and the gradients of the real tokens' loss are not: {why}"
    return ""


def run_reference(built, cases):
    models = [(made(built, case["shape"], case["state"]), case["tokens"]) for case in cases]
    return [{"logits": model(tokens), "hidden": model.hidden(tokens)} for model, tokens in models]


def run_gradients(built, shape, state, tokens):
    model = made(built, shape, state)
    F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: one.grad for name, one in model.named_parameters()}


def judge_gradients(out, shape, state, tokens):
    weights = {name: one.double().requires_grad_() for name, one in state.items()}
    logits, _ = reference(tokens[:, :-1], weights, shape[3])
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name in weights:
        if out.get(name) is None or not out[name].any():
            return f"no gradient reaches {name}: it would stay as it was drawn (.detach(), .data, no_grad, an early copy?)"
    for name, weight in weights.items():
        if not equal(out[name], weight.grad.float(), 1e-4):
            return f"the logits are right and the gradient of {name} is not: a part of its way back is cut (.detach(), .data?)"
    return ""


def draw_too_long(generator):
    shape = (7, 6, 1, 2, 8)
    return {"shape": shape, "tokens": draw_tokens(generator, shape, 2, 7)}


def run_too_long(built, shape, tokens):
    model = built(*shape)
    fits, said = list(model(tokens[:, :-1]).shape), {}
    mask = padded(tokens, [tokens.shape[1] - 1] * len(tokens), "left")
    for name, call, given in (("", model, ()), ("`hidden`: ", model.hidden, ()), ("one of them padding: ", model, (mask,))):
        try:
            call(tokens, *given)
            said[name] = "", ""
        except Exception as error:  # which one is what is judged
            said[name] = type(error).__name__, str(error)
    return {"fits": fits, "said": said}


def judge_too_long(out, shape, tokens):
    T, context = tokens.shape[1], shape[1]
    if tuple(out["fits"]) != (len(tokens), context, shape[0]):
        return f"with as many tokens as the context has places, {context}, the logits have the shape {tuple(out['fits'])}"
    for name, (kind, message) in out["said"].items():
        if not kind:
            return f"{name}{T} tokens are read in a context of {context} without a word, and training did not see so many"
        if kind != "ValueError":
            return f"{name}{T} tokens in a context of {context} raise {kind} from inside; raise ValueError with a sentence"
        if str(context) not in message or len(message.split()) < 3:
            return f"{name}the ValueError says {message!r}: a sentence that names the context, {context}, says what to change"
    return ""


def run_elsewhere(built, shape, tokens):
    model, said = built(*shape).to("meta"), {}  # a device of shapes without numbers: what works there works on a GPU
    tokens = tokens[:, :-1]
    for name in ("", "right", "left"):
        mask = padded(tokens, [4] * len(tokens), name).to("meta") if name else None
        try:
            model(tokens.to("meta"), mask)
        except NotImplementedError:  # what only a device without numbers refuses is no fault
            continue
        except Exception as error:
            said[name] = str(error)
    return said


def judge_elsewhere(out, shape, tokens):
    where = [" with a mask" if side else "" for side, message in out.items() if "device" in message]
    if not where:
        return ""
    how = "make every new tensor with device=tokens.device (in rotary or another function of yours that it calls: x.device)"
    return f"on another device, such as a GPU, it stops{where[0]}: {how}, and move what causal_mask makes: .to(tokens.device)"


# ----------------------------------------------------------------------------------------- what it learns


TASK = (LETTERS + 1, 2 * LENGTH, 2, 2, 64)


def draw_task(generator):
    return {"seed": int(torch.randint(10_000, (), generator=generator)), "steps": 450}


def run_task(built, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    model, losses = built(*TASK).train(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        rows = reversals(64, generator)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 9:
            tick((step + 1) / steps, f"loss {losses[-1]:.2f}")
    return {"losses": losses, "state": model.state_dict()}


def judge_task(out, seed, steps):
    """By what the formula of a GPT says with the weights that came back: the model itself is not asked."""
    rows = held_out(seed)
    targets, logits = rows[:, 1:], reference(rows[:, :-1], out["state"], TASK[3])[0]
    nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(0)
    right = (logits.argmax(-1) == targets).float().mean(0)
    chance, best = math.log(LETTERS), (LENGTH - 1) * math.log(LETTERS) / (2 * LENGTH)
    question, answer, last = nats[: LENGTH - 1].mean().item(), right[LENGTH:].mean().item(), sum(out["losses"][-20:]) / 20
    if last < best - 0.1:
        why = "in training it sees the token that it is to predict"
        return f"its training loss of {last:.2f} nats is less than the {best:.2f} that random letters cost at best: {why}"
    if question < chance - 0.1:
        return f"it predicts random letters at {question:.2f} nats, below ln {LETTERS} = {chance:.2f}: it sees the future"
    if answer < 0.99:
        why = "it learns too slowly or not at all (weights that do not move, dropout or other noise, positions that repeat?)"
        return f"after {steps} steps {answer:.1%} of the answers' letters are right, and 99 % are to be: {why}"
    if question > chance + 0.5:
        return f"it is sure of random letters, and wrong: {question:.2f} nats, where guessing costs {chance:.2f}"
    return ""


gpt = Build("2.10", "GPT", [
    Probe("the weights have their names and shapes", draw_shape, run_names, judge_names),
    Probe("it starts from knowing nothing", draw_start, run_start, judge_start),
    Probe("the future is hidden", functools.partial(draw_texts, rows=1), run_futures, judge_futures),
    Probe("a text's logits depend on that text alone", draw_texts, run_texts, judge_texts),
    Probe("padding moves nothing", functools.partial(draw_texts, rows=4, lengths=[3, 7, 1, 5]), run_padded, judge_padded),
    Probe("given weights give the right logits", draw_cases, run_reference, judge_reference),
    Probe("gradients reach every weight", draw_texts, run_gradients, judge_gradients),
    Probe("the context has an end", draw_too_long, run_too_long, judge_too_long),
    Probe("it runs on any device", draw_too_long, run_elsewhere, judge_elsewhere),
    Probe("it learns to reverse, and only the answer", draw_task, run_task, judge_task, seconds=180),
])  # fmt: skip

Investigation("2.A", "The first half")
Investigation("2.B", "How many blocks does it take?")
Investigation("2.C", "What should it begin with?")
