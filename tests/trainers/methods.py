"""What two processes do together, for test_grpo.py: `torchrun ... -m trainers.methods FOLDER`."""

import sys
from pathlib import Path

import torch

from rlhf_lib import devices
from rlhf_lib.trainers import dpo, grpo, rejection, rollouts

from .helpers import PROMPTS, TOKENIZER, language_model, likes

SHAPE = dict(iterations=2, rollout_size=16, max_new_tokens=8, minibatch=4, lr=1e-3, max_kl=1e3)


def trained(folder):
    """One run of every trainer; their folders are `folder/NAME`."""
    base = language_model("modern")
    for name in ("rloo", "grpo", "ppo"):
        grpo.train(base, TOKENIZER, PROMPTS, likes, grpo.GRPOConfig(name, group=4, **SHAPE), folder / name)
    rejection.train(base, TOKENIZER, PROMPTS, likes, rejection.RejectionConfig(best_of=2, **SHAPE), folder / "rejection")
    asked = [prompt for prompt in PROMPTS * 60 for _ in range(2)]
    drawn = rollouts.draw(base, TOKENIZER, asked, 8, torch.Generator().manual_seed(0))
    pairs = dpo.compared(drawn, likes(drawn))
    config = dpo.DPOConfig(batch=4, samples=16, max_new_tokens=8, evaluations=2, max_kl=1e3)
    dpo.train(base, TOKENIZER, pairs[2:12], pairs[:2], PROMPTS, likes, config, folder / "dpo")


if __name__ == "__main__":
    torch.set_num_threads(1)
    devices.has_bf16 = rollouts.has_bf16 = lambda device: False
    devices.join()
    trained(Path(sys.argv[1]))
