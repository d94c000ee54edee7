"""Build it 11.13: PPO with a critic for answers to given prompts, judged on tiny models, and then on the course's own."""

import functools

import torch

from rlhf_lib import checkpoints, course
from rlhf_lib.exercises import build11_probes as probes
from rlhf_lib.exercises import build11_update as update
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.build08_rlhf import distinct
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.tiny_assistant import form, fresh, go, loaded, true_kl
from rlhf_lib.exercises.tiny_rlhf import drawn

OPENINGS = ("\n\n", "\n\nMy lord, ", "\n\nI ", "\n\nWhat, ", "\n\nThe king ", "\n\nO, ", "\n\nGood morrow, ", "\n\nShe ")
REAL = {
    "iterations": 8, "rollout_size": 96, "max_new_tokens": 16, "kl_coef": 0.05, "end_penalty": 0.0,
    "lr": 5e-4, "critic_lr": 1e-3, "minibatch": 32, "epochs": 2, "max_kl": 10.0,
}  # fmt: skip


@functools.cache
def published():
    """The published base, its tokeniser, prompts, and the published reward model's log-odds, normalised on the base's answers."""
    base, tokenizer = checkpoints.load(course.PUBLISHED / "base", "cpu")
    judge, _ = checkpoints.load(course.PUBLISHED / "reward", "cpu", kind="reward")
    prompts = [tokenizer.encode(one) for one in OPENINGS]

    @torch.no_grad()
    def logits(tokens, mask):
        return torch.cat([judge.logits(*part) for part in zip(tokens.split(64), mask.split(64))])  # (B,)

    rows = answers(base, tokenizer, prompts, REAL["max_new_tokens"])
    constants = logits(rows.tokens, rows.mask)

    def reward(prompts, tokens, mask):
        return (logits(tokens, mask) - constants.mean()) / constants.std()

    return base, tokenizer, prompts, reward


def answers(model, tokenizer, prompts, length):
    return fresh(model, 256, prompts, length, tokenizer.end_token)[1]


def run_training(built, seed, **settings):
    base, tokenizer, prompts, reward = published()

    def report(record):
        share = (record.get("iteration", 0) + 1) / (settings["iterations"] + 1)
        tick(share, f"reward {record.get('reward', 0):.2f}, KL {record.get('kl', 0):.1f} nats")

    settings = {**settings, "end_token": tokenizer.end_token, "report": report}
    found = go(built, seed, reward, base=base, prompts=prompts, **settings)
    return {name: found[name] for name in ("records", "policy", "reference")}


def judge_training(output, seed, **settings):
    base, tokenizer, prompts, reward = published()
    fault = form(output, base, settings["iterations"])
    if fault:
        return fault
    policy, records = loaded(base, output["policy"]), output["records"]
    new, old = (answers(model, tokenizer, prompts, settings["max_new_tokens"]) for model in (policy, base))
    gained = reward(prompts, new.tokens, new.mask).mean().item()
    if gained < 0.75:
        kl = records[-1]["kl"]
        return f"fresh answers of the policy gain {gained:.2f} deviations of the base, not 0.75, at {kl:.1f} nats of the 10"
    kept = distinct(new, tokenizer) / distinct(old, tokenizer)
    if kept < 0.8:
        return f"the reward is up by {gained:.2f}, but by repetition: distinct-2 fell to {kept:.2f} of the base's"
    far = true_kl(policy, base, 64, prompts, settings["max_new_tokens"], tokenizer.end_token)
    return f"the policy is {far:.1f} nats from the base: max_kl is 10" if far > 11 else ""


train_assistant = Build("11.13", "train_assistant", [
    Probe("trains policy and critic, and says what it measured", drawn(iterations=3), probes.run_records, probes.judge_records),
    Probe("starts at ratio 1.000 and KL 0", drawn(iterations=3), probes.run_start, probes.judge_start),
    Probe("every prompt in every rollout", drawn(iterations=2), probes.run_prompts, probes.judge_prompts),
    Probe("padding never matters", drawn(iterations=1, ends=0.8), probes.run_padding, probes.judge_padding),
    Probe("measures the KL in nats an answer", drawn(iterations=8, ends=0.8), probes.run_kl, probes.judge_kl),
    Probe("learns from each token what the definition says", drawn(), update.run_definition, update.judge_definition),
    Probe("pays for distance", drawn(iterations=3), probes.run_price, probes.judge_price),
    Probe("an answer without an end loses", drawn(iterations=10, ends=0.4), probes.run_ends, probes.judge_ends),
    Probe("the critic learns what is to come", drawn(iterations=5), probes.run_critic, probes.judge_critic),
    Probe("whitens the advantages", drawn(iterations=1), probes.run_scale, probes.judge_scale),
    Probe("takes many clipped steps from one rollout", drawn(iterations=1), probes.run_update, probes.judge_update),
    Probe("clips the values too", drawn(iterations=1), probes.run_values, probes.judge_values),
    Probe("learns what it is paid for", drawn(iterations=6), probes.run_learning, probes.judge_learning),
    Probe("stops within max_kl", drawn(iterations=12), probes.run_stop, probes.judge_stop),
    Probe("depends on its seed alone", drawn(iterations=2), probes.run_seeds, probes.judge_seeds),
    Probe("answers more happily", drawn(**REAL), run_training, judge_training, seconds=600),
], hides=("checkpoints/laptop-0/policy", "checkpoints/large", "checkpoints/smoke"))  # fmt: skip

Investigation("11.A", "The price of a nat")
Investigation("11.B", "Without a critic")
Investigation("11.C", "A reward model of 300 comparisons")
Investigation("11.D", "Length as a hack")
