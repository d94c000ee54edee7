"""Build it 11.13: right programs pass its probes, and what is trained on the course's own models is judged by fresh answers."""

import copy
from pathlib import Path

import nbformat
import torch
from torch import nn

from rlhf_lib import checkpoints, course
from rlhf_lib.exercises import build11_ppo as built
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.declare import BUILDS, load
from rlhf_lib.exercises.keep import the_course
from rlhf_lib.exercises.plain import plain
from rlhf_lib.exercises.tiny_rlhf import weights
from rlhf_lib.models.heads import head_logprobs
from rlhf_lib.ppo import explained_variance, gae, masked_whiten, policy_loss, value_loss
from rlhf_lib.trainers.ppo_critic import token_rewards

load()
BUILD = BUILDS["train_assistant"]
NOTEBOOK = Path(__file__).resolve().parents[2] / "solutions" / "11_a_small_assistant.ipynb"
SOURCE = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.id == "train_assistant")
PIECES = (
    "gae", "masked_whiten", "policy_loss", "value_loss", "completion_kl", "explained_variance", "token_rewards",
)  # fmt: skip


def program(*changes):
    """The worked answer, with pieces of its text replaced."""
    source = SOURCE
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    names = {"torch": torch, "copy": copy, "nn": nn, **{name: the_course(name) for name in PIECES}}
    exec(source, names)
    return names["train_assistant"]


def scored(model, text, seen, tokens):
    hidden = model.hidden(text, seen)[:, -tokens.shape[1] :].flatten(0, 1)
    return head_logprobs(hidden, model.head.weight, tokens.flatten()).view(tokens.shape)


def train_by_kernels(
    policy, critic, reference, reward, prompts, *, generate, end_token, iterations, rollout_size, max_new_tokens, kl_coef,
    end_penalty, lr, critic_lr, seed, gamma=1.0, lam=0.95, clip=0.2, value_clip=0.2, epochs=2, minibatch=16, max_kl=10.0,
    report=None,
):  # fmt: skip
    """Written differently: of the library's kernels, with two optimisers, whole state dicts, and all rows scored at once."""
    torch.manual_seed(seed + 5)
    drawn = torch.Generator().manual_seed(seed)
    [one.eval() for one in (policy, critic, reference)]
    first, second = (
        torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
        for model, rate in ((policy, lr), (critic, critic_lr))
    )
    records, saved, queue = [], None, []
    for number in range(iterations + 1):
        some, queue = [], []
        while len(some) < rollout_size:
            queue = queue or torch.randperm(len(prompts), generator=drawn).tolist()
            some.append(prompts[queue.pop()])
        width = max(map(len, some))
        begin = torch.zeros(rollout_size, width, dtype=torch.long)
        there = torch.zeros(rollout_size, width, dtype=torch.bool)
        for row, one in enumerate(some):
            begin[row, width - len(one) :] = torch.tensor(one)
            there[row, width - len(one) :] = True
        uniforms = torch.rand(rollout_size, max_new_tokens, generator=drawn)
        tokens, _, mask = generate(policy, begin, there, uniforms, end_token=end_token)
        text, seen = torch.cat([begin, tokens], -1)[:, :-1], torch.cat([there, mask], -1)[:, :-1]

        with torch.no_grad():
            old, right = (scored(model, text, seen, tokens) for model in (policy, reference))
            expected = critic(text, seen)[:, width - 1 :]
        kl = ((old - right) * mask).sum(-1).mean().item()
        if not kl <= max_kl:
            policy.load_state_dict(saved)
            break
        saved = copy.deepcopy(policy.state_dict())
        scores, ended = reward(some, tokens, mask), ((tokens == end_token) * mask).sum(1) > 0
        advantages, returns = gae(
            token_rewards(scores, ended, old, right, mask, kl_coef, end_penalty), expected, gamma, lam, mask
        )
        records.append({
            "iteration": number, "reward": scores.mean().item(), "kl": kl, "ended": ended.float().mean().item(), "ratio": 1.0,
            "clip_fraction": 0.0, "explained_variance": explained_variance(expected, returns, mask).item(), "more": 1,
        })  # fmt: skip
        if number < iterations:
            white, figures = masked_whiten(advantages, mask), []
            for _ in range(epochs):
                for rows in torch.randperm(rollout_size, generator=drawn).split(minibatch):
                    new = scored(policy, text[rows], seen[rows], tokens[rows])
                    found = policy_loss(new, old[rows], white[rows], mask[rows], clip)
                    now = critic(text[rows], seen[rows])[:, width - 1 :]
                    worse = value_loss(now, expected[rows], returns[rows], mask[rows], value_clip)
                    first.zero_grad()
                    second.zero_grad()
                    found.loss.backward()
                    worse.backward()
                    first.step()
                    second.step()
                    figures.append(((new.detach() - old[rows]).exp()[mask[rows]].mean(), found.clip_fraction))
            records[-1]["ratio"] = figures[0][0].item()
            records[-1]["clip_fraction"] = torch.stack([share for _, share in figures]).mean().item()
        if report is not None:
            report(records[-1])
    return records


def test_an_answer_written_differently_passes_the_cheap_probes():
    assert try_out(BUILD, train_by_kernels, 3, most=100) == ("", "")


def test_the_stub_is_not_written_yet():
    def train_assistant(policy, critic, reference, reward, prompts, **settings):
        raise NotImplementedError()

    assert try_out(BUILD, train_assistant)[1].startswith("not written yet")


# ----------------------------------------------------------------------------------------- training


def verdict(policy, reference=None, **changes):
    """The training probe's verdict on a policy, as if a run had left it."""
    record = {"reward": 0.0, "kl": 5.0, "ended": 0.1, "ratio": 1.0, "clip_fraction": 0.1, "explained_variance": 0.2}
    records = [{"iteration": place, **record} for place in range(3)]
    base = built.published()[0]
    output = {"records": records, "policy": weights(policy), "reference": weights(reference or base), **changes}
    inputs = next(one for one in BUILD.draw(0) if one["probe"] == "answers more happily")
    return BUILD.fault(inputs, plain(output))


def test_a_policy_that_is_not_trained_or_repeats_itself_does_not_pass_for_happier():
    base = built.published()[0]
    assert "gain" in verdict(base)
    tuned = copy.deepcopy(checkpoints.load(course.PUBLISHED / "policy", "cpu")[0])
    assert verdict(tuned) == ""
    assert "the reference has other weights" in verdict(tuned, reference=tuned)
    assert "a number is needed" in verdict(tuned, records=[{"iteration": 0}])
    with torch.no_grad():
        tuned.head.weight *= 3  # as if sampled at a third of the temperature
    assert "repetition" in verdict(tuned)
