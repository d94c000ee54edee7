"""Build it 4.10: `generate` with a KV cache, for any GPT whose weights have the names of chapter 02.

What comes back is judged by reading every row again, alone, whole and in double precision: without cache, batch or padding.

B: rows    P: prompt, padding included    N: new tokens    V: vocabulary    H: heads    D: size of a head
"""

import math
import statistics
import time
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build04_misread import HEATS, UNLIKE, around_the_end, misdrawn, read_otherwise
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.reading import FAULTS, Named, drawn, made, read_alone, read_with_cache, scores, without_cache

SMALL = dict(vocab_size=23, context=48, layers=2, heads=2, width=32)
LARGE = dict(vocab_size=64, context=128, layers=2, heads=2, width=128)  # of the timing
LAST = 1 - 2**-24  # the largest number below 1 that a float holds
NEW = 64  # new tokens of the timing
TIMES = 4  # as fast as without a cache


# ----------------------------------------------------------------------------------------- drawing


def case(generator, lengths, new, ends=None, temperature=1.0, end_token=0, columns=None):
    """The arguments of one call: prompts of these `lengths`, with anything in the padding and end tokens among the real ones.

    columns: of the prompts; without it as many as the longest has tokens.

    The uniforms are planned: row i ends with its token number ends[i] (None: it does not end), and none lies near a border
    between two tokens, where rounding could decide.
    """
    B, P, V = len(lengths), columns or max(lengths), SMALL["vocab_size"]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    prompts = torch.randint(V, (B, P), generator=generator)
    mask = torch.arange(P) >= P - torch.tensor(lengths)[:, None]  # (B, P)
    prompts[:, -2] = end_token  # a prompt may hold it
    tokens, uniforms, gpt = torch.zeros(B, new, dtype=torch.long), torch.zeros(B, new), made(seed, SMALL)
    for n in range(new):
        chances = (read_alone(gpt, prompts, mask, tokens[:, : n + 1])[:, n] / temperature).softmax(-1)  # (B, V)
        for row in range(B):
            likely = chances[row].clone()
            likely[end_token] = 0.0
            likely[likely < 1e-3] = 0.0
            token = int(torch.multinomial(likely, 1, generator=generator)) if ends is None or ends[row] != n else end_token
            inside = 0.1 + 0.8 * torch.rand((), generator=generator)
            tokens[row, n] = token
            uniforms[row, n] = chances[row, :token].sum() + inside * chances[row, token]
    return dict(seed=seed, prompts=prompts, mask=mask, uniforms=uniforms, temperature=temperature, end_token=end_token)


def cases(*calls):
    """A probe's `draw`: each call is what `case` takes after the generator."""
    return lambda generator: {"calls": [case(generator, **call) for call in calls]}


def call(generate, gpt, prompts, mask, uniforms, temperature, end_token, **_):
    return generate(Named(gpt), prompts, mask, uniforms, temperature=temperature, end_token=end_token)


def run_calls(generate, calls):
    return [call(generate, made(one["seed"], SMALL), **one) for one in calls]


# ----------------------------------------------------------------------------------------- judging


def form(output, B, N):
    """What is wrong with the form of an answer; "" if nothing is."""
    if not isinstance(output, list) or len(output) != 3 or not all(torch.is_tensor(one) for one in output):
        return "it must return three tensors, (tokens, logprobs, mask)"
    for name, one, kind in zip(("tokens", "logprobs", "mask"), output, (torch.int64, torch.float32, torch.bool)):
        if one.shape != (B, N):
            return f"{name} has the shape {tuple(one.shape)}; it is {(B, N)}: a column for each new token, the prompts left out"
        if one.dtype != kind:
            return f"{name} is of type {one.dtype}; it is {kind}"
    return ""


def judge_calls(outputs, calls, known=False):
    """`known`: such rows are read right at temperature 1."""
    for output, one in zip(outputs, calls):
        fault = form(output, *one["uniforms"].shape) or row_by_row(output, made(one["seed"], SMALL), known, **one)
        if fault:
            return fault
    return ""


def row_by_row(output, gpt, known, prompts, mask, uniforms, temperature, end_token, **_):
    """What is wrong with an answer of the right form."""
    tokens = output[0]
    if not ((tokens >= 0) & (tokens < gpt.config.vocab_size)).all():
        return "some tokens are no tokens of the vocabulary"
    logits = read_alone(gpt, prompts, mask, tokens)
    right = drawn(logits / temperature, uniforms)
    return around_the_end(output, right, end_token) or reading(
        output, gpt, known, logits, right, prompts, mask, uniforms, temperature
    )


def reading(output, gpt, known, logits, right, prompts, mask, uniforms, temperature):
    """What is wrong with tokens and log-probabilities, up to the end of each row."""
    tokens, logprobs, real = output
    if logprobs[real].isnan().any():
        padded = "" if mask.all() else ": a padded place that may look at nothing has an empty softmax, so let it look at itself"
        return f"some log-probabilities are NaN{padded}"
    own = scores(logits / temperature, tokens)
    if close(logprobs, own, real):
        wrong = (tokens != right) & real
        return misdrawn(tokens, drawn(logits, uniforms), wrong, uniforms, temperature, real) if wrong.any() else ""
    if temperature != 1 and close(logprobs, scores(logits, tokens), real):
        return f"the log-probabilities are those at temperature 1, not of the distribution drawn from, at {temperature:g}"
    if close(logprobs, own.exp(), real):
        return "these are probabilities; return their logarithms, in nats"
    if temperature != 1:
        for sentence, heated in HEATS.items():
            if close(logprobs, heated(logits, tokens, temperature), real):
                return sentence
    for table, read in ((FAULTS, read_with_cache), (UNLIKE, read_otherwise)):
        for sentence, ways in table.items():
            for options in ways:
                if close(logprobs, scores(read(gpt, prompts, mask, tokens, **options) / temperature, tokens), real):
                    return sentence
    row, n = (((logprobs - own).abs() > 1e-4) & real).nonzero()[0].tolist()
    found = f"row {row}, token {n}: the log-probability is {logprobs[row, n]:.4f}, and a full read gives {own[row, n]:.4f}"
    if known:
        return f"{found}. At temperature 1 it was right: how is the temperature used?"
    if n == 0:
        way = "compare your x behind block 0 with what a forward hook on model.blocks[0] gives (hint 5)"
        way = way if mask.all() else "each row must read as it does alone, whatever stands beside it in the batch"
        return f"{found}. The prompt is not read as model(prompts, mask)[:, -1] reads it; {way}"
    return f"{found}. The prompt is read right, so it is the cache: which keys are in it, at which positions, and who sees them"


def close(logprobs, expected, real):
    return bool(((logprobs - expected).abs() <= 1e-4)[real].all())


# ----------------------------------------------------------------------------------------- probes of their own


def draw_stop(generator):
    return {"calls": [case(generator, [5, 5, 5], 40, ends=ends) for ends in ([2, 0, 3], None)]}


def run_stop(generate, calls):
    """The answers, and how many multiplications each took."""
    outputs, work = [], []
    for one in calls:
        with FlopCounterMode(display=False) as counter:
            outputs += run_calls(generate, [one])
        work.append(counter.get_total_flops())
    return {"outputs": outputs, "work": work}


def judge_stop(output, calls):
    short, whole = output["work"]
    if short * 3 > whole:
        share = short / whole if whole else 1
        return f"all rows had ended after 4 of 40 steps, and it did {share:.0%} of the work of 40: stop when no row goes on"
    return judge_calls(output["outputs"], calls)


def draw_edges(generator):
    B, N, V = 48, 4, SMALL["vocab_size"]
    uniforms = torch.zeros(B, N)
    uniforms[1::2] = LAST
    prompts = torch.randint(1, V - 2, (B, 3), generator=generator)
    return {"seed": int(torch.randint(2**31, (1,), generator=generator)), "prompts": prompts, "uniforms": uniforms}


def run_edges(generate, seed, prompts, uniforms):
    V = SMALL["vocab_size"]
    real = torch.ones_like(prompts, dtype=torch.bool)
    return call(generate, made(seed, SMALL, never=(0, V - 2, V - 1)), prompts, real, uniforms, 1.0, 0)


def judge_edges(output, seed, prompts, uniforms):
    fault = form(output, *uniforms.shape)
    if fault:
        return fault
    tokens, logprobs, mask = output
    V = SMALL["vocab_size"]
    for what, rows in (("at a uniform of 0", slice(0, None, 2)), ("at a uniform next to 1", slice(1, None, 2))):
        if ((tokens[rows] < 1) | (tokens[rows] > V - 3)).any():
            rule = "its running sum must exceed the uniform" if "0" in what else "take the last token that has one"
            return f"{what} a token comes out whose probability is 0: {rule}"
    gpt = made(seed, SMALL, never=(0, V - 2, V - 1))
    logits = read_alone(gpt, prompts, torch.ones_like(prompts, dtype=torch.bool), tokens)
    ends = logits.softmax(-1).cumsum(-1).gather(2, tokens[:, :, None])[:, :, 0]
    starts = ends - scores(logits, tokens).exp()
    if ((starts > uniforms + 1e-5) | (ends < uniforms - 1e-5)).any():
        return "at a uniform of 0 or next to 1 a token comes out on whose stretch the number does not lie"
    if not mask.all() or not close(logprobs, scores(logits, tokens), mask):
        return "at a uniform of 0 or next to 1 the log-probabilities are not those of the tokens"
    return ""


def run_left(generate, calls):
    """What a call leaves behind: of its arguments, of the model, and in what comes back."""
    left = []
    for one, training in zip(calls, (True, False)):
        gpt = made(one["seed"], SMALL).train(training)
        gpt.embedding.weight.requires_grad_(False)
        model, given = Named(gpt).train(training), {key: one[key].clone() for key in ("prompts", "mask", "uniforms")}
        weights = {name: weight.clone() for name, weight in model.named_parameters()}
        output = generate(model, **given, temperature=one["temperature"], end_token=one["end_token"])
        left.append({
            "graph": bool(output[1].requires_grad), "inference": any(part.is_inference() for part in output),
            "changed": [key for key, value in given.items() if not torch.equal(value, one[key])],
            "weights": [name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])],
            "modes": sorted({module.training for module in model.modules()}), "before": training,
            "frozen": [name for name, weight in model.named_parameters() if not weight.requires_grad],
            "grads": torch.is_grad_enabled(), "output": output,
        })  # fmt: skip
        torch.set_grad_enabled(True)
        left[-1]["moved"] = [generate(some, **given, temperature=one["temperature"], end_token=one["end_token"])
                             for some in (moved(model), moved(Named(made(one["seed"], SMALL))))]  # fmt: skip
    return left


@torch.no_grad()
def moved(model):
    """The model with other weights, as after a training: each token has another's embedding."""
    model.embedding.weight.copy_(model.embedding.weight.roll(1, 0))
    return model


def judge_left(left, calls):
    for one in left:
        if one["changed"] or one["weights"]:
            return f"it changes {[*one['changed'], *one['weights']][0]} in place, which is not its own"
        if one["modes"] != [one["before"]]:
            mode = ["evaluation", "training"]
            return f"the model came in {mode[one['before']]} mode and is not all in it after the call: put back what you find"
        if one["frozen"] != ["embedding.weight"]:
            return "other parameters have requires_grad after the call than before: what was frozen stays so, and nothing else"
        if not one["grads"]:
            return "gradients are switched off after the call, for everything that follows: no_grad() as a block or a decorator"
        if one["graph"]:
            return "the log-probabilities carry a graph of every step, which holds all that was computed: sampling needs none"
        if one["inference"]:
            return "inference_mode's tensors came out, and a loss cannot be made of them (chapter 08 does): use no_grad()"
    fault = judge_calls([one["output"] for one in left], calls)
    if not fault and any((again[1] - fresh[1]).abs().max() > 1e-4 for again, fresh in (one["moved"] for one in left)):
        fault = "something of the call before is remembered: the weights have moved since, so read the prompt anew in each call"
    return fault


def draw_context(generator):
    P = 6
    new = SMALL["context"] - P
    padded = case(generator, [P - 1, P], new, columns=P + 1)  # only with the padding it is too much
    return {"calls": [case(generator, [P, P], new), case(generator, [P + 1, P], new), padded]}


def run_context(generate, calls):
    """The answer to the first call, which fits, and the names of what the others raise."""
    fits, *over = calls
    output, names = run_calls(generate, [fits]), []
    for one in over:
        try:
            run_calls(generate, [one])
            names.append("")
        except Exception as error:
            names.append(type(error).__name__)
    return {"fits": output, "over": names}


def judge_context(output, calls):
    for name, one in zip(output["over"], calls[1:], strict=True):
        if name != "ValueError":
            what = f"it raises {name}" if name else "nothing is raised"
            more = "prompt and new tokens are one more than model.context"
            if not one["mask"].any(0).all():
                more = "P + N is one more than model.context, since padding counts (the tensor's columns, not the real tokens)"
            return f"{more}: that is a ValueError, before anything is drawn; {what}"
    return judge_calls(output["fits"], calls[:1])


# ----------------------------------------------------------------------------------------- speed


def draw_speed(generator):
    prompts = torch.randint(LARGE["vocab_size"], (16, 64), generator=generator)
    uniforms = torch.rand(16, NEW, generator=generator)
    return {"seed": int(torch.randint(2**31, (1,), generator=generator)), "prompts": prompts, "uniforms": uniforms}


def run_speed(generate, seed, prompts, uniforms):
    """One answer, and the seconds of three runs with and without a cache, side by side, on one core."""
    torch.set_num_threads(1)  # `settled` puts it back
    model, real, seconds = Named(made(seed, LARGE, never=[0])), torch.ones_like(prompts, dtype=torch.bool), ([], [])
    output = generate(model, prompts, real, uniforms, temperature=1.0, end_token=0)
    without_cache(model, prompts, uniforms[:, :4])
    for again in range(3):
        for kept, run in zip(
            seconds,
            (lambda: generate(model, prompts, real, uniforms, 1.0, 0), lambda: without_cache(model, prompts, uniforms)),
        ):
            begin = time.perf_counter()
            run()
            kept.append(time.perf_counter() - begin)
        tick((again + 1) / 3, f"{seconds[1][-1] / seconds[0][-1]:.1f} times as fast")
    return {"output": output, "cached": seconds[0], "uncached": seconds[1]}


def judge_speed(output, seed, prompts, uniforms):
    N = uniforms.shape[1]
    fault = form(output["output"], *uniforms.shape)
    if fault:
        return fault
    tokens, logprobs, mask = output["output"]
    logits = read_alone(made(seed, LARGE, never=[0]), prompts, torch.ones_like(prompts, dtype=torch.bool), tokens)
    if not mask.all() or not close(logprobs, scores(logits, tokens), mask):
        return f"over {N} tokens the log-probabilities are not those of a full read: an error that grows from step to step"
    ratio = statistics.median(output["uncached"]) / statistics.median(output["cached"])
    if not math.isfinite(ratio) or ratio < TIMES:
        return (
            f"{N} new tokens take 1/{ratio:.1f} of the time without a cache; 1/{TIMES} is asked for: each step must read the new "
            f"token alone, and neither read the prompt again nor make the keys and values of older tokens anew"
        )
    return ""


Build("4.10", "generate", [
    Probe("one new token", cases(dict(lengths=[4, 4, 4], new=1)), run_calls, judge_calls),
    Probe("the text of full reads", cases(dict(lengths=[3, 3, 3, 3], new=12), dict(lengths=[2], new=5)), run_calls, judge_calls),
    Probe("the distribution drawn from", cases(dict(lengths=[4, 4], new=8, temperature=0.6),
        dict(lengths=[3, 3], new=8, temperature=1.7)), run_calls, partial(judge_calls, known=True)),
    Probe("rows that end", cases(dict(lengths=[4] * 5, new=7, ends=[2, None, 0, 6, None], end_token=5),
        dict(lengths=[2] * 3, new=6, ends=[1, 4, None], temperature=0.8)), run_calls, judge_calls),
    Probe("stops when all rows have ended", draw_stop, run_stop, judge_stop),
    Probe("prompts of different length", cases(dict(lengths=[3, 9, 6, 2], new=8),
        dict(lengths=[7, 2, 4], new=6, ends=[None, 3, 1], end_token=4, temperature=1.4)), run_calls, judge_calls),
    Probe("uniforms at the edges", draw_edges, run_edges, judge_edges),
    Probe("leaves things as they were", cases(*[dict(lengths=[3, 2], new=3)] * 2), run_left, judge_left),
    Probe("the context", draw_context, run_context, judge_context),
    Probe(f"{TIMES} times as fast", draw_speed, run_speed, judge_speed, seconds=120),
])  # fmt: skip

Investigation("4.A", "A sweep of your own: likely or varied")
Investigation("4.B", "Scored at another temperature")
Investigation("4.C", "What a step costs")
