"""What 8.10 is asked first, the form of a run; later on, what a KL of NaN does, and which tokens the clip fraction counts."""

import contextlib
import functools
import itertools
import math

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlhf_lib.exercises.tiny_rlhf import KEYS, LENGTH, PROMPT, count, go, loaded, same_weights, tiny, told, weights
from rlhf_lib.sampling import completion_logits

ROLLOUT, CLIP = 256, 0.2

# ----------------------------------------------------------------------------------------- reports


def reporting(rlhf, base, **settings):
    """A run, and of each call of `report` the record as it then was, and how many completions had been paid by then."""
    asked, reported = [], []

    def reward(tokens, mask):
        asked.append(len(tokens))
        return count(tokens, mask)

    def report(record):
        reported.append({"asked": sum(asked), **{key: record.get(key) for key in KEYS}})

    return {"runs": [go(rlhf, base, reward, report=report, **settings)], "reported": reported}


def reports_fault(records, reported):
    """What is wrong with the calls of `report`; "" if nothing is."""
    if [one["iteration"] for one in reported] != [record["iteration"] for record in records]:
        return f"report was called {len(reported)} times for {len(records)} records: call it once an iteration, with its record"
    for one, following in itertools.pairwise(reported):
        if one["asked"] == following["asked"]:
            return (
                f"records {one['iteration']} and {following['iteration']} are reported with no rollout between: call report as "
                "soon as a record is complete, before the next rollout, so that one can see how a run goes"
            )
    for one, record in zip(reported, records[:-1]):
        if any(one[key] != record[key] for key in KEYS):
            return (
                f"record {one['iteration']} has changed after it was reported: ratio and clip_fraction are known behind the "
                "update; call report when its record is complete"
            )
    return ""


# ----------------------------------------------------------------------------------------- another device


def read_elsewhere(rlhf, seed):
    """Where the first tokens lie that a gpt on "meta" reads, and the first uniforms given to `generate`: two devices.

    Either is "" where the run does not come so far, or draws its tokens in another way.
    """
    base, devices = tiny(seed).to("meta"), {}  # a device of shapes without numbers: what works there works on a GPU

    def look(module, given):
        devices.setdefault("prompt", given[0].device.type)
        raise RuntimeError("seen enough")

    base.embedding.register_forward_pre_hook(look)
    with contextlib.suppress(Exception), uniforms_seen(rlhf, devices):  # what only such a device refuses is no fault
        go(rlhf, base, iterations=1, seed=seed)
    return [devices.get(what, "") for what in ("prompt", "uniforms")]


@contextlib.contextmanager
def uniforms_seen(rlhf, devices):
    """Notes in `devices` where the uniforms lie that `rlhf` gives to `generate`."""
    names = getattr(rlhf, "__globals__", {})
    generate = names.get("generate")
    if not callable(generate):
        yield
        return

    @functools.wraps(generate)
    def looking(*given, **named):
        uniforms = given[3] if len(given) > 3 else named.get("uniforms")
        if isinstance(uniforms, torch.Tensor):
            devices.setdefault("uniforms", uniforms.device.type)
        return generate(*given, **named)

    names["generate"] = looking
    try:
        yield
    finally:
        names["generate"] = generate


def device_fault(prompt, uniforms):
    """What is wrong with the devices of what a gpt on "meta" was given; see `read_elsewhere`."""
    for what, device in ((f"the prompt lies on {prompt}", prompt), (f"the uniforms lie on {uniforms}", uniforms)):
        if device not in ("", "meta"):
            return (
                f"of a gpt whose weights lie on another device, such as a GPU, {what}: make every new tensor with "
                "device=next(gpt.parameters()).device, or move it there"
            )
    return ""


# ----------------------------------------------------------------------------------------- the first probe


def run_records(rlhf, seed, iterations):
    base = tiny(seed).train()  # it has no dropout, but is in a mode that can be found changed
    found = reporting(rlhf, base, iterations=iterations, seed=seed, max_kl=1e6)
    return {**found, "devices": read_elsewhere(rlhf, seed)}


@told
def judge_records(runs, base, reported, devices):
    records = runs[0]["records"]
    if not same_weights(runs[0]["base"], weights(base)):
        return "gpt has other weights after the run: train a copy, else policy and reference are one model and the KL stays 0"
    if runs[0]["left"]:
        return (
            f"gpt's {runs[0]['left'][0]} is another after the run: it came in training mode and is to stay as it is; use copies"
        )
    if len(records) != 5:
        return (
            f"4 iterations that nothing stopped have {len(records)} records: one for the rollout before each update, and one "
            "more for the policy after the last, which is the one that is returned"
        )
    if same_weights(runs[0]["policy"], weights(base)):
        return "the policy that is returned has the weights of gpt: nothing was trained, or not what is returned"
    return reports_fault(records, reported) or device_fault(*devices)


# ----------------------------------------------------------------------------------------- a KL that is no number


def run_broken(rlhf, seed):
    """A run whose first step makes all weights infinite or NaN; {} where it raises, since generate may not know what to draw."""
    with contextlib.suppress(Exception):
        return go(rlhf, tiny(seed), iterations=3, seed=seed, lr=math.inf, epochs=1, minibatch=None, max_kl=1.0)
    return {}


def broken_fault(broken, base):
    """What is wrong with a run whose second rollout has a KL of NaN."""
    if broken and (len(broken["records"]) != 1 or not same_weights(broken["policy"], base.state_dict())):
        return (
            "a run whose weights have become NaN goes on, or hands them out: a KL of NaN is not > max_kl, so ask whether "
            "not kl <= max_kl, and go back to the policy before"
        )
    return ""


# ----------------------------------------------------------------------------------------- which tokens are clipped


def run_clipped(rlhf, seed, ends):
    """Two runs of one update on the whole rollout, of one step and of two: the second's last step begins where the first ends.

    Returns:
        runs: the two.
        tokens: (B, T), what both were paid for: the update's rollout is its last ROLLOUT rows.
        asked: of each call of `reward` in the first run its tokens and mask.
    """
    settings = dict(iterations=1, seed=seed, kl_coef=0.0, lr=1e-2, minibatch=None, max_kl=100.0, clip=CLIP, rollout_size=ROLLOUT)
    runs, asked, masks = [], [], []

    def reward(tokens, mask):
        asked[-1].append(tokens.clone())
        masks.append(mask.clone())
        return count(tokens, mask)

    for epochs in (1, 2):
        asked.append([])
        runs.append(go(rlhf, tiny(seed, ends), reward, epochs=epochs, **settings))
    same = [one for one, other in zip(*asked) if torch.equal(one, other)]
    return runs, torch.cat([torch.zeros(0, LENGTH).long(), *same]), [list(pair) for pair in zip(asked[0], masks)]


def up_to_the_end(tokens):
    """(B, T), True up to and including the first end token."""
    ends = (tokens == 0).int()
    return ends.cumsum(1) - ends == 0


@torch.no_grad()
def clipped_share(policy, base, tokens):
    """Of the tokens of completions up to their ends, the share whose ratio under the policy lies outside 1 - CLIP to 1 + CLIP."""
    mask = up_to_the_end(tokens)
    both = [completion_logits(model, [PROMPT] * len(tokens), tokens, mask).log_softmax(-1) for model in (policy, base)]
    ratio = (both[0] - both[1]).gather(2, tokens[:, :, None])[:, :, 0].exp()
    return ((ratio - 1).abs() > CLIP)[mask].float().mean().item()


def clipped_fault(runs, tokens, base):
    """What is wrong with the clip fraction of two steps, of which the first has none; see `run_clipped`."""
    if len(tokens) < ROLLOUT:  # the runs do not begin with the same completions
        return ""
    said, right = runs[1]["records"][0]["clip_fraction"], clipped_share(loaded(base, runs[0]), base, tokens[-ROLLOUT:]) / 2
    if abs(said - right) > 0.005:
        for value, what in (
            (2 * right, "that of the last one alone, or the sum"), (0.0, "that of the first one alone"),
            (100 * right, "in percent"),
        ):  # fmt: skip
            if abs(said - value) < max(0.005, 0.05 * value):
                return (
                    f"the clip fraction of an update of two minibatches is {said:.3f}, {what}; it is the mean over all "
                    f"minibatches of the update, {right:.3f}"
                )
        return (
            f"where many completions end early the clip fraction is {said:.3f}, and of the real tokens alone {right:.3f}: "
            "tokens behind an end are in its mean, and dilute that of the loss. Pass the mask to policy_loss"
        )
    return ""


def handed_fault(asked):
    """What is wrong with the masks that `reward` was given with their tokens; "" if nothing is."""
    for tokens, mask in asked:
        if mask.shape != tokens.shape or not torch.equal(mask.bool(), up_to_the_end(tokens)):
            return (
                "the mask that `reward` is given is not True up to and including the end token, and False behind it: hand it "
                "tokens and mask as generate returns them"
            )
    return ""


# ----------------------------------------------------------------------------------------- gradients


def run_cleared(rlhf, base, **settings):
    """A run, as `go` gives it, and of each step whether the gradients are those of before, and the new ones on top of them."""
    passed, left, found = {}, {}, []

    def add(key, gradient):
        passed[key] = passed.get(key, 0) + gradient.detach()

    def before(optimizer, *_):
        weights = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        known = [one for one in weights if id(one) in left and id(one) in passed]
        if known:
            own = torch.cat([passed[id(one)].flatten() for one in known])
            more = own + torch.cat([left[id(one)].flatten() for one in known])
            here = torch.cat([one.grad.flatten() for one in known])
            found.append(aside(here, more) < 0.01 and aside(here, own) > 0.1)
        for one in weights:
            if id(one) not in left:
                one.register_hook(functools.partial(add, id(one)))
            left[id(one)] = one.grad.clone()
        passed.clear()

    hook = register_optimizer_step_pre_hook(before)
    try:
        return go(rlhf, base, **settings), any(found)
    finally:
        hook.remove()


def aside(one, other):
    """How far the directions of two gradients are apart: 0 for the same, 2 for the opposite."""
    return (torch.nn.functional.normalize(one, dim=0) - torch.nn.functional.normalize(other, dim=0)).norm().item()
