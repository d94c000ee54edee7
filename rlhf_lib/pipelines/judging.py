"""The assistant's answers to held-out prompts, side by side, and what a judge says of them.

The sides are the model that everything started from, its fine-tuning on demonstrations (sft), the policy of PPO, and the best of
n answers of sft by the reward model (Stiennon et al. 2020, appendix G.3), which needs no PPO.
"""

import torch

from rlhf_lib import comparisons, pairwise
from rlhf_lib.chat import as_messages
from rlhf_lib.judge import distinct_n
from rlhf_lib.pipelines.inputs import prompt_tokens
from rlhf_lib.trainers import rollouts
from rlhf_lib.trainers.rewards import answer_scores

SIDES = ("start", "sft", "policy", "best_of")
PAIRS = (("policy", "start"), ("sft", "start"), ("policy", "sft"), ("best_of", "sft"))
BATCH = 64  # answers that are drawn or scored at once


# ----------------------------------------------------------------------------------------- answers


@torch.no_grad()
def score(reward_model, rollout):
    """A scalar branch's number for each completion of a rollout, (B,) on the CPU."""
    scores = []
    for rows in torch.arange(len(rollout)).split(BATCH):
        part = rollout[rows]
        part.trunk, _ = rollouts.trunk_of(reward_model, part)
        scores.append(answer_scores(reward_model, part).cpu())
    return torch.cat(scores)


@torch.no_grad()
def kl_to(reference, policy, rollout, temperature):
    """KL(policy || reference) of each completion that the policy wrote, (B,) on the CPU, in nats; both stand on one base."""
    found = []
    for rows in torch.arange(len(rollout)).split(BATCH):
        part = rollout[rows]
        trunk, start = rollouts.trunk_of(policy, part)
        models = policy, reference
        ours, theirs = (rollouts.trunk_logprobs(model, trunk, start, part.tokens, part.mask, temperature) for model in models)
        found.append(rollouts.completion_kl(ours, theirs, part.mask).cpu())
    return torch.cat(found)


def draw(model, tokenizer, prompts, config, generator, count=1):
    """A Rollout of `count` answers to each of `prompts`, a list of N; those to one prompt stand together.

    Args:
        config: a PPOCriticConfig, for the temperature and the most tokens.
    """
    tokens = [prompt_tokens(tokenizer, prompt) for prompt in prompts for _ in range(count)]
    return rollouts.draw(model, tokenizer, tokens, config.max_new_tokens, generator, config.temperature, BATCH)


def rows_of(side, prompts, rollout, rewards, end_token, kl=None):
    """The answers of one side as dicts, one a prompt."""
    ended = ((rollout.tokens == end_token) & rollout.mask).any(1)
    columns = {
        "answer": rollout.texts,
        "ended": ended.tolist(),
        "tokens": rollout.mask.sum(1).tolist(),
        "reward": rewards.tolist(),
        **({} if kl is None else {"kl": kl.tolist()}),
    }
    return [{"side": side, "prompt": prompt, **dict(zip(columns, values))} for prompt, *values in zip(prompts, *columns.values())]


# ----------------------------------------------------------------------------------------- verdicts


def as_text(prompt):
    """A prompt as a judge reads it: a text as it is, of a conversation every message with its speaker."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in as_messages(prompt))


def compare(judge, rows):
    """The verdicts on each of PAIRS, a dict of (our side, their side) to a list of pairwise.Record."""
    answers = {side: [row["answer"] for row in rows if row["side"] == side] for side in SIDES}
    prompts = [as_text(row["prompt"]) for row in rows if row["side"] == SIDES[0]]
    return {(ours, theirs): pairwise.compare(judge, prompts, answers[ours], answers[theirs]) for ours, theirs in PAIRS}


def statistics(rows, records):
    """What answers and verdicts say, a dict of numbers for `summary.json`; `compare` gives the records.

    Where every verdict on a pair of sides was refused, its numbers are None.
    """
    sides = {side: side_statistics([row for row in rows if row["side"] == side]) for side in SIDES}
    stats = {"answers": sides, "evaluated_prompts": sum(row["side"] == SIDES[0] for row in rows)}
    for (ours, theirs), pairs in records.items():
        found = of_verdicts(pairs)
        name = f"win_rate_{ours}" if theirs == "start" else f"win_rate_{ours}_over_{theirs}"
        stats |= with_interval(name, found.get("win_rate"))
        stats |= with_interval(f"{name}_length_controlled", found.get("length_controlled"))
        if (ours, theirs) == ("policy", "sft"):
            stats["length_ratio"] = found.get("length_ratio")
    every = of_verdicts([record for pairs in records.values() for record in pairs])
    kl = torch.tensor([row["kl"] for row in rows if row["side"] == "policy"])
    diversity = [sides[side]["distinct_2"] for side in ("policy", "start")]
    return {
        **stats,
        **with_interval("position_bias", every.get("position_bias")),
        **with_interval("longer_win_rate", every.get("longer_win_rate")),
        **{name: every.get(name) for name in ("consistency", "refused")},
        "distinct_2_ratio": diversity[0] / diversity[1] if diversity[1] else None,
        "ended_share": sides["policy"]["ended_share"],
        "kl_nats": kl.mean().item(),
        "kl_nats_error": (kl.std() / len(kl) ** 0.5).item() if len(kl) > 1 else None,
    }


def of_verdicts(records):
    """`pairwise.summary`, which has nothing but the refusals to say where no pair is left."""
    left = any(pairwise.REFUSED not in record[3:] for record in records)
    return pairwise.summary(records) if left else {"refused": len(records)}


def side_statistics(rows):
    """Means over the answers of one side, and how varied they are."""
    mean = lambda values: sum(values) / len(rows)  # noqa: E731
    return {
        "words": mean([comparisons.words(row["answer"]) for row in rows]),
        "tokens": mean([row["tokens"] for row in rows]),
        "ended_share": mean([row["ended"] for row in rows]),
        "distinct_2": distinct_n([row["answer"] for row in rows]),
        "reward": mean([row["reward"] for row in rows]),
    }


def with_interval(name, found):
    """A number and its 95 % interval as two entries; None for both where there is none."""
    return {name: found and found[0], f"{name}_interval": found and list(found[1:])}
