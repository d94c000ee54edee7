"""Direct preference optimisation: a policy from comparisons, without a reward model and without sampling (Rafailov et al. 2023).

Nothing here learns from fresh samples. They are drawn now and then to see where the policy has got to, on the axes of the methods
that do. The loss looks at the margin between two answers; what becomes of the likelihood of each is logged beside it.
"""

import copy
import math
from dataclasses import dataclass

import torch

from rlhf_lib import checkpoints, runs
from rlhf_lib.devices import generator
from rlhf_lib.models.layers import pad
from rlhf_lib.preference import dpo_loss, ipo_loss, kto_loss
from rlhf_lib.trainers.preference import Ranking, check, right
from rlhf_lib.trainers.rates import up_then_down
from rlhf_lib.trainers.rollouts import Rollout, check_prompts, in_turn, logprobs_of, measure, sample, score

LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss, "kto": kto_loss}


@dataclass
class DPOConfig:
    """How the policy is trained.

    Args:
        loss: dpo, ipo, or kto, which takes the two answers of a comparison as two labels, desirable and undesirable.
        beta: what a nat is worth, in reward; the larger, the closer the policy stays to the reference.
        epochs, batch: passes over the comparisons, and comparisons in an optimiser step.
        lr: Adam's learning rate at its height; it rises over the first tenth of the steps and falls to zero in a line.
        evaluations: about how often the policy is measured on the way, on the held-out comparisons and on fresh samples; and once
            more at the end.
        samples, max_new_tokens, temperature: completions in such a measurement, the most tokens in each, and how they are drawn.
        max_kl: training stops when the KL of a completion passes it, in nats.
    """

    loss: str = "dpo"
    beta: float = 0.1
    epochs: int = 1
    batch: int = 32
    lr: float = 1e-4
    evaluations: int = 8
    samples: int = 256
    max_new_tokens: int = 48
    temperature: float = 1.0
    max_kl: float = 10.0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"dpo.loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("epochs", "batch", "evaluations", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"dpo.{name} must be at least 1, got {getattr(self, name)}")
        if self.samples < 2:
            raise ValueError(f"dpo.samples must be at least 2, got {self.samples}")
        for name in ("beta", "lr", "temperature", "max_kl"):
            if not getattr(self, name) > 0:
                raise ValueError(f"dpo.{name} must be above 0, got {getattr(self, name)}")


def compared(rollout, rewards, group=2):
    """Comparisons out of a rollout, a list of Ranking: of each prompt's completions that of the highest and of the lowest reward.

    Args:
        rewards: (B,); completions of one prompt stand together, `group` at a time. Where all are equal there is no comparison.
    """
    answers = [row[kept].tolist() for row, kept in zip(rollout.tokens.cpu(), rollout.mask.cpu())]
    rewards = rewards.view(-1, group)
    start = torch.arange(0, len(rollout), group, device=rewards.device)
    pairs = torch.stack([rewards.argmax(1) + start, rewards.argmin(1) + start], 1)[rewards.amax(1) > rewards.amin(1)]
    return [Ranking(rollout.prompts[best], [answers[best], answers[worst]]) for best, worst in pairs.tolist()]


def answer_logprobs(logprobs_of, model, prompts, answers, temperature):
    """The log-probabilities of whole answers, (N,) in nats; `logprobs_of` is that of rollouts, or `score` for no gradient."""
    tokens, mask = pad(answers, "right", next(model.parameters()).device)
    return logprobs_of(model, Rollout(prompts, tokens, torch.zeros(tokens.shape), mask, answers), temperature).sum(1)


def pairs_of(rankings):
    """Prompts, better and worse answers, a list each: every pair of every ranking."""
    pairs = [
        (r.prompt, better, worse) for r in rankings for place, better in enumerate(r.answers) for worse in r.answers[place + 1 :]
    ]
    return tuple(map(list, zip(*pairs)))


def evaluate(policy, pairs, reference, config):
    """How a policy does on pairs that it did not learn from.

    Args:
        pairs: what `pairs_of` returns.
        reference: the reference's log-probabilities of the better and of the worse answers, (N,) each.

    Returns:
        A dict: `loss`, of DPO, whatever is trained with; `accuracy`, the share of pairs with a positive margin, a tie half;
        `margin`, the mean in nats; `chosen_logprob` and `rejected_logprob`, the mean log-probability of an answer, in nats.
    """
    prompts, *sides = pairs
    ours = [answer_logprobs(score, policy, prompts, answers, config.temperature) for answers in sides]
    margins = (ours[0] - reference[0]) - (ours[1] - reference[1])
    return {
        "loss": dpo_loss(*ours, *reference, config.beta).item(),
        "accuracy": right(margins).mean().item(),
        "margin": margins.mean().item(),
        "chosen_logprob": ours[0].mean().item(),
        "rejected_logprob": ours[1].mean().item(),
    }


def train(base, tokenizer, learn, held_out, prompts, reward, config, folder, seed=0, watch=None):
    """Fine-tune `base` on comparisons, and leave the policy in `folder/policy`.

    Args:
        base: the GPT or Branch to start from; it stays as it is and is the reference.
        learn, held_out: lists of Ranking; all pairs of each are learned from, with their end tokens if they have ended.
        prompts: what fresh samples answer, a list of lists of tokens.
        reward: a function of a Rollout that gives one number a completion, (B,); it is logged, never learned from.
        watch: a function of a Rollout and its rewards that gives a dict of numbers to log.

    Returns:
        The policy that was kept, in evaluation mode: the last that was measured within `config.max_kl`.

    Raises:
        ValueError: no comparisons to learn from or held out, one of a single or an empty answer, or one longer than the context.
            No prompts.
        RunError: a loss or the KL is not finite; the last good policy is kept.
    """
    if not learn or not held_out:
        raise ValueError(f"{len(learn)} comparisons to learn from and {len(held_out)} held out: at least one of each is needed")
    if not all(answer for ranking in [*learn, *held_out] for answer in ranking.answers):
        raise ValueError("a comparison has an empty answer: leave it out, or give the answer its end token")
    check(learn, base.config.context, "comparison")
    check(held_out, base.config.context, "held-out comparison")
    check_prompts(base, prompts, config.max_new_tokens, "dpo")
    policy, t = copy.deepcopy(base).eval().requires_grad_(True), config.temperature
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    pairs, test = pairs_of(learn), pairs_of(held_out)
    ref_pairs, ref_test = ([answer_logprobs(score, base, p, side, t) for side in sides] for p, *sides in (pairs, test))
    per_epoch = math.ceil(len(pairs[0]) / config.batch)
    steps = config.epochs * per_epoch
    every = math.ceil(steps / config.evaluations)
    show = ("kl", "reward", "gold", "margin")
    stage = runs.stage("policy", folder, "policy", policy, [optimizer], steps + 1, seed, tokenizer, show=show)
    for step in stage:
        # Now and then: fresh samples, and the pairs that are held out.
        if step % every == 0 or step == steps:
            some = in_turn(prompts, 0, config.samples)
            rollout = sample(policy, tokenizer, some, config.max_new_tokens, generator(seed, "rollout", step), t)
            if measure(stage, rollout, score(base, rollout, t), reward, config.max_kl, step, watch) is None:
                break
            stage.log(**{f"held_out_{name}": value for name, value in evaluate(policy, test, ref_test, config).items()})
        if step == steps:
            continue

        # Update: the log-probabilities of both answers, beside the reference's.
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == stage.first:
            order = torch.randperm(len(pairs[0]), generator=generator(seed, "comparisons", epoch))
        rows = order[place * config.batch : (place + 1) * config.batch]
        asked, chosen, rejected = ([column[row] for row in rows.tolist()] for column in pairs)
        ref_chosen, ref_rejected = (column[rows] for column in ref_pairs)
        ours = answer_logprobs(logprobs_of, policy, asked * 2, chosen + rejected, t)  # (2b,), all in one batch
        policy_chosen, policy_rejected = ours.chunk(2)
        if config.loss == "kto":  # the KL, from answers to other prompts of the batch
            others = asked * 2, (chosen + rejected)[1:] + chosen[:1]
            kl = answer_logprobs(score, policy, *others, t) - answer_logprobs(score, base, *others, t)
            desirable = torch.arange(2 * len(rows), device=ours.device) < len(rows)
            loss = kto_loss(ours, torch.cat([ref_chosen, ref_rejected]), desirable, kl.mean().clamp(min=0), config.beta)
        else:
            loss = LOSSES[config.loss](policy_chosen, policy_rejected, ref_chosen, ref_rejected, config.beta)
        stage.check(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = config.lr * up_then_down(step, steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        gains = (policy_chosen - ref_chosen).detach(), (policy_rejected - ref_rejected).detach()
        margins = gains[0] - gains[1]
        stage.log(train_loss=loss.item(), margin=margins.mean().item(), accuracy=right(margins).mean().item())
        stage.log(chosen_gain=gains[0].mean().item(), rejected_gain=gains[1].mean().item())  # nats over the reference
    stage.finish()
    return checkpoints.load_tensors(policy, checkpoints.read_tensors(stage.out), stage.out).eval()
