"""What the probes of 12.11 and 12.12 stand on: a tiny policy, prompts whose completions are compared, a run as plain data."""

import contextlib
import copy
import math

import torch

from rlhf_lib import sampling
from rlhf_lib.exercises.tiny_assistant import END, tiny
from rlhf_lib.exercises.tiny_rlhf import records_fault, same_weights, weights
from rlhf_lib.policy_gradient import METHODS, advantages, policy_gradient_loss

LENGTH, GROUP = 8, 4  # tokens of a completion, completions of a prompt
PROMPTS = [[4 + (5 * place + 3 * spot) % 16 for spot in range(3)] for place in range(16)]
KEYS = ("iteration", "reward", "kl", "silent", "ratio")
USUAL = {
    "end_token": END, "group": GROUP, "max_new_tokens": LENGTH, "kl_coef": 0.05, "lr": 3e-3, "minibatch": 4, "max_kl": 100.0,
}  # fmt: skip


def match(prompts, tokens, mask):
    """How much of a completion are tokens of its own prompt, (B,) in [0, 1]; `prompts` is a list of B lists of one length."""
    own = torch.tensor(prompts, device=tokens.device)[:, None]  # (B, 1, P)
    return ((tokens[:, :, None] == own).any(-1) & mask).float().mean(1)


def spoken(model, prompts, tokens):
    """The log-probabilities (B, T) of completions of prompts of one length."""
    whole = torch.cat([torch.tensor(prompts, device=tokens.device), tokens], 1)
    logprobs = model(whole)[:, len(prompts[0]) - 1 : -1].log_softmax(-1)
    return logprobs.gather(2, tokens[:, :, None])[:, :, 0]


def completed(policy, drawn, group=GROUP):
    """A rollout of the course's sampler: prompts (a list of B lists), tokens, log-probabilities and mask (B, T)."""
    some = [prompt for prompt in PROMPTS for _ in range(group)]
    out = sampling.generate(policy, some, LENGTH, uniforms=torch.rand(len(some), LENGTH, generator=drawn), end_token=END)
    return some, torch.where(out.mask, out.tokens, END), out.logprobs, out.mask


@torch.no_grad()
def earned(policy, rollouts=4):
    """The mean reward of fresh completions by `match`."""
    drawn = torch.Generator().manual_seed(123)
    found = [completed(policy, drawn) for _ in range(rollouts)]
    return torch.cat([match(prompts, tokens, mask) for prompts, tokens, _, mask in found]).mean().item()


def row_loss(name):
    """The loss of a row of the table, by the library, as a function of rewards, new and old log-probabilities and mask."""
    row = METHODS[name]

    def loss(rewards, logprobs, old_logprobs, mask):
        A = advantages(rewards, row.baseline, row.normaliser, rewards.mean().item()).flatten()
        return policy_gradient_loss(logprobs, old_logprobs, A, mask, row.clip, row.denominator).loss

    return loss


# ----------------------------------------------------------------------------------------- a run, and its form


def go(learn, seed, reward=match, ends=0.0, noise=0.0, uneven=0.0, method="rloo", own=None, report=None, **settings):
    """One run: its records, what became of the models, and all that passed through sampler, reward and loss, as plain data.

    seed, own: of the model, and of the run if it has one of its own.
    noise: how far the sampler's own log-probabilities are off, as those of half precision are.
    uneven: how far the policy's logits are off, relatively, in batches smaller than a rollout, as kernels may make them.
    """
    policy = tiny(seed, ends)
    reference, loss = copy.deepcopy(policy), row_loss(method)
    policy.register_forward_hook(lambda _, given, out: out if len(out) == len(PROMPTS) * GROUP else (1 + uneven) * out)
    rollouts, calls, awake = [], [], []

    def sampler(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
        some = prompts.tolist()
        out = sampling.generate(
            model, some, uniforms.shape[1], temperature=temperature, uniforms=uniforms.detach(), end_token=end_token
        )
        tokens = torch.where(out.mask, out.tokens, end_token)
        with torch.no_grad():
            old, ref = spoken(model, some, tokens), spoken(reference, some, tokens)
        said = out.logprobs + noise * torch.sin(37.0 * out.logprobs)
        rollouts.append({"prompts": some, "tokens": tokens, "mask": out.mask, "old": old, "ref": ref, "said": said, "raw": None})
        rollouts[-1]["asked"] = {"real": bool(mask.all()) and mask.shape == prompts.shape, "end": int(end_token)}
        return tokens, said, out.mask

    def paid(prompts, tokens, mask):
        raw = reward(prompts, tokens, mask)
        rollouts[-1]["raw"] = raw
        rollouts[-1]["asked"]["whole"] = all(map(torch.equal, (tokens, mask), (rollouts[-1]["tokens"], rollouts[-1]["mask"])))
        return raw

    def spied(rewards, logprobs, old_logprobs, mask):
        seen = [one.detach().clone() for one in (rewards, logprobs, old_logprobs, mask)]
        calls.append({"rollout": len(rollouts) - 1, **dict(zip(("rewards", "new", "old", "mask"), seen))})
        awake.append(policy.training or reference.training)
        if shapes_of(calls[-1]):
            return 0 * logprobs.sum()  # `form` says it
        return loss(rewards, logprobs, old_logprobs, mask)

    before, prompts = weights(reference), copy.deepcopy(PROMPTS)
    policy.eval(), reference.eval()
    settings = {**USUAL, "seed": seed if own is None else own, "report": report, **settings}
    records = learn(policy, reference, paid, prompts, loss=spied, generate=sampler, **settings)
    return {
        "records": records, "policy": weights(policy), "touched": not same_weights(before, weights(reference)),
        "rollouts": rollouts, "calls": calls, "awake": any(awake),
    }  # fmt: skip


def run_broken(learn, seed):
    """A run whose first step makes all weights infinite or NaN; {} where it raises."""
    with contextlib.suppress(Exception):
        found = go(learn, seed, iterations=3, lr=math.inf, epochs=1, minibatch=len(PROMPTS), max_kl=1.0)
        return {name: found[name] for name in ("records", "policy")}
    return {}


def form(found, iterations):
    """What is wrong with the form of a run; "" if nothing is."""
    fault = records_fault(found["records"], iterations, KEYS)
    if fault:
        return fault
    if found["touched"]:
        return "the reference has other weights after the run: only the policy is trained"
    if found["awake"]:
        return "policy or reference is in training mode while it learns: both are in evaluation mode, without dropout"
    for rollout in found["rollouts"]:
        if not rollout["asked"]["real"]:
            return "`generate` is given a mask that is not True on every token of the prompts, (B, P): they have no padding"
        if rollout["asked"]["end"] != END:
            return "`generate` is called without end_token=end_token: no completion ends before its last place"
        if not rollout["asked"].get("whole", True):
            return "`reward` is given other tokens, or another mask, than `generate` gave: hand it both as they are"
    if not found["calls"]:
        return "`loss` is never called: the policy learns from loss(rewards, logprobs, old_logprobs, mask)"
    for call in found["calls"]:
        if shapes_of(call):
            return shapes_of(call)
    return ""


def told(judge):
    """A judge that looks at the form of every run first."""

    def judged(output, seed, iterations, **others):
        for found in output["runs"]:
            fault = form(found, iterations)
            if fault:
                return fault
        return judge(output["runs"], seed=seed, **{key: value for key, value in output.items() if key != "runs"})

    return judged


def shapes_of(call):
    """What is wrong with the shapes of a call to `loss`; "" if nothing is."""
    shapes = [tuple(call[name].shape) for name in ("rewards", "new", "old", "mask")]
    n = shapes[1][0] // GROUP if shapes[1] else 0
    if shapes == [(n, GROUP), *[(n * GROUP, LENGTH)] * 3]:
        return ""
    return (
        f"`loss` is given rewards, log-probabilities, old ones and mask of shapes {', '.join(map(str, shapes))}: rewards are "
        "(n, group), a row a prompt, and the others (n group, T)"
    )


def rows_of(call, rollout):
    """Which row of its rollout each row of a call to `loss` is, by its old log-probabilities, (b,), and how far off it is."""
    old = torch.where(call["mask"], call["old"], 0.0)
    real = torch.where(rollout["mask"], rollout["old"], 0.0)
    far = (old[:, None] - real).abs().amax(-1)  # (b, B)
    return far.argmin(1), far.amin(1)


def prompts_of(call, rollout):
    """The prompts of a call to `loss`, a set of tuples."""
    return frozenset(tuple(rollout["prompts"][row]) for row in rows_of(call, rollout)[0].tolist())


def replayed(found, seed, lr, optimizer="run", cleared="step"):
    """The weights (by name) that Adam makes of the calls to `loss` of a run by RLOO, taken once more.

    optimizer, cleared: when there is a new optimizer, and when the gradients are set to zero: in each run, rollout or step.
    """
    policy, loss, last, adam = tiny(seed), row_loss("rloo"), None, None
    for call in found["calls"]:
        rollout, new = found["rollouts"][call["rollout"]], call["rollout"] != last
        last = call["rollout"]
        rows = rows_of(call, rollout)[0]
        if adam is None or optimizer == "step" or (optimizer == "rollout" and new):
            adam = torch.optim.Adam(policy.parameters(), lr=lr)
        if cleared == "step" or (cleared == "rollout" and new):
            adam.zero_grad()
        logprobs = spoken(policy, [rollout["prompts"][row] for row in rows.tolist()], rollout["tokens"][rows])
        loss(call["rewards"], logprobs, call["old"], call["mask"]).backward()
        adam.step()
    return weights(policy)


def apart(one, other):
    """How far two sets of weights are apart."""
    return sum((one[name] - other[name]).square().sum() for name in other).sqrt().item()


def prices(rollout):
    """The KL of each completion of a rollout to the reference, (B,), nats."""
    return torch.where(rollout["mask"], rollout["old"] - rollout["ref"], 0.0).sum(1)


def trained(found, seed, ends=0.0):
    """The policy that a run has left, as a model."""
    policy = tiny(seed, ends)
    policy.load_state_dict(found["policy"])
    return policy


@torch.no_grad()
def true_kl(found, seed, ends=0.0, number=256):
    """KL(policy || reference) of a completion of what a run has trained, nats; summed over the vocabulary at each token."""
    policy, reference = trained(found, seed, ends), tiny(seed, ends)
    some, tokens, _, mask = completed(policy, torch.Generator().manual_seed(123), number // len(PROMPTS))
    whole = torch.cat([torch.tensor(some), tokens], 1)
    p, q = (model(whole)[:, len(some[0]) - 1 : -1].log_softmax(-1) for model in (policy, reference))
    return torch.where(mask, (p.exp() * (p - q)).sum(-1), 0).sum(1).mean().item()
