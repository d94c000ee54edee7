"""What two processes do together, for test_ppo.py: `torchrun ... processes.py FOLDER`; each leaves FOLDER/RANK.json."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from rlhf_lib import devices, runs
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import ppo, rewards, rollouts

TOKENIZER = CharTokenizer(list("\nabcdefgh"))
PROMPTS = [TOKENIZER.encode("\n\n"), TOKENIZER.encode("abc")]
COMPLETION_KL = rollouts.completion_kl
SIZES = dict(iterations=4, rollout_size=24, max_rollout_size=24, max_new_tokens=8, epochs=2, minibatch=8, lr=1e-3)


def gpt(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, context=24, layers=2, heads=2, width=16))
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.4)
    return model


def trained(folder, **changes):
    """One run of PPO, and how many rows its base and its reward model read."""
    base, judge = gpt(), RewardModel(gpt(seed=1))
    torch.manual_seed(2)
    nn.init.normal_(judge.score.weight)
    pays = rewards.fit_reward(judge, rollouts.sample(base, TOKENIZER, PROMPTS * 32, 8, torch.Generator().manual_seed(3)))
    read = {"base": 0, "reward model": 0}
    embeddings = {base.embedding: "base", judge.body.embedding: "reward model"}

    def count(module, arguments):
        if module in embeddings:  # and not the policy's, a copy of the base
            read[embeddings[module]] += len(arguments[0])

    for embedding in embeddings:
        embedding.register_forward_pre_hook(count)
    policy = ppo.train(base, TOKENIZER, PROMPTS, pays, ppo.PPOConfig(**{**SIZES, **changes}), folder)
    weights = sum(weight.double().abs().sum().item() for weight in policy.parameters())
    return {"read": read, "weights": weights, "iterations": len(runs.Metrics(folder).read("policy"))}


def measured_by(rank, extra):
    """`rollouts.completion_kl` that gives the process `rank` alone so many nats more, from the third iteration on."""
    calls = []

    def measured(*arguments):
        calls.append(len(arguments))  # 3 for the KL that decides
        late = calls.count(3) > 2 and devices.world()[0] == rank
        return COMPLETION_KL(*arguments) + (extra if late else 0)

    return measured


def main(folder):
    torch.set_num_threads(1)
    devices.has_bf16 = rollouts.has_bf16 = lambda device: False
    devices.join()
    folder, (rank, _) = Path(folder), devices.world()
    found = {"plain": trained(folder / "plain", max_kl=100.0), "stopped": trained(folder / "stopped", max_kl=0.5)}
    for number in range(2):  # one process finds the KL too high, the other does not
        rollouts.completion_kl = measured_by(number, 20.0)
        found[f"only {number} would stop"] = trained(folder / f"only-{number}", max_kl=15.0)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
