"""An iteration of PPO against TRL's PPO and GRPO: the whole loops of both sides, as people run them."""

import copy
import os
import tempfile
import time
from dataclasses import dataclass, replace

import torch

from benchmarks.measure import BenchmarkError, Row, agree, card_busy, measure, profile, silent, wait
from benchmarks.peers import TOLERANCE, gpt2_config, gpt2_pair, same_logits
from rlhf_lib import corpus, tokenization
from rlhf_lib.judge import GoldJudge
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.layers import pad
from rlhf_lib.models.weights import gpt2_weights
from rlhf_lib.pipelines.shakespeare import PRESETS
from rlhf_lib.trainers import ppo, rewards, rollouts

MEASURED = 2  # iterations in a round, behind one that warms up
LR = 1e-5


@dataclass(frozen=True)
class Iteration:
    """Shapes of one row: policy and reward model, the rollout, and the update."""

    layers: int
    heads: int
    width: int
    vocab_size: int
    completions: int = 64
    tokens: int = 64
    epochs: int = 4
    minibatch: int = 64

    def __str__(self):
        passes = f"{self.epochs} epoch{'s' * (self.epochs > 1)}, minibatch {self.minibatch}"
        model = f"{self.layers} layers, width {self.width}, vocabulary {self.vocab_size}"
        return f"{self.completions} completions of {self.tokens} tokens, {passes}; {model}"


CPU = Iteration(4, 4, 128, 8192)
QUICK = Iteration(2, 2, 32, 300, completions=8, tokens=8, epochs=2, minibatch=8)


def of_preset(name):
    """The preset's models, and its rollout and update."""
    model, ppo = PRESETS[name].model, PRESETS[name].ppo
    shapes = (model.layers, model.heads, model.width, model.vocab_size)
    return Iteration(*shapes, ppo.rollout_size, ppo.max_new_tokens, ppo.epochs, ppo.minibatch)


class Models:
    """Policy and reward model of both sides, with the same weights, and one tokeniser.

    Args:
        shape: an Iteration.
        text: what the tokeniser is trained on.
    """

    def __init__(self, shape, text, device="cpu"):
        from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast

        self.tokenizer = tokenization.train("bpe", [text], shape.vocab_size)
        if self.tokenizer.vocab_size != shape.vocab_size:
            raise BenchmarkError(f"the corpus is too short for {shape.vocab_size} tokens: give a longer --corpus")
        end = tokenization.END
        self.peer_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=copy.deepcopy(self.tokenizer.tokenizer), eos_token=end, pad_token=end
        )
        self.prompt = self.tokenizer.encode(corpus.SEPARATOR)
        sizes = {name: getattr(shape, name) for name in ("layers", "heads", "width", "vocab_size")}
        sizes["context"] = len(self.prompt) + shape.tokens
        self.policy, self.peer_policy = gpt2_pair(sizes, device)
        config = GPTConfig.gpt2(**sizes)
        self.peer_reward = GPT2ForSequenceClassification(gpt2_config(config, num_labels=1, pad_token_id=0)).to(device).eval()
        body = GPT(config)
        body.load_state_dict(gpt2_weights(self.peer_reward.state_dict()))
        self.reward = RewardModel(body, pooling="last").to(device).eval()
        self.reward.score.weight.data.copy_(self.peer_reward.score.weight)

    @torch.no_grad()
    def check(self, tokens):
        """Policies give the same logits, reward models the same scores; returns the sentence that says so."""
        scores = self.reward.logits(tokens), self.peer_reward(input_ids=tokens).logits[:, 0]
        same = agree(*scores, TOLERANCE[torch.float32], "rewards")
        return f"policy: {same_logits(self.policy, self.peer_policy, tokens)}; {same}"

    @torch.no_grad()
    def peer_rewards(self, completion_ids, **_):
        """The peer's reward model as a reward function of GRPO: it reads the tokens, not their text encoded again."""
        tokens, mask = pad(completion_ids, "right", self.peer_reward.device)
        return self.peer_reward(input_ids=tokens, attention_mask=mask).logits[:, 0].tolist()


class Stopwatch:
    """What the loop calls once an iteration to watch a rollout: the gold judge; it notes when, and `look` what else is wanted."""

    def __init__(self, device="cpu", look=None):
        self.device, self.look, self.times, self.seen = device, look, [], []
        self.gold = GoldJudge()

    def __call__(self, rollout, rewards):
        wait(self.device)
        self.times.append(time.perf_counter())
        if self.look is not None:
            self.seen.append(self.look())
        return {"gold": self.gold.score(rollout.texts).mean().item()}


def our_ppo(models, shape, iterations=1 + MEASURED, watch=None, device="cpu"):
    """Completions a second of `trainers.ppo.train`, checkpoints and records included, behind the first iteration."""
    config = ppo.PPOConfig(
        iterations=iterations, rollout_size=shape.completions, max_new_tokens=shape.tokens, max_rollout_size=shape.completions,
        epochs=shape.epochs, minibatch=shape.minibatch, lr=LR, max_kl=1e9,
    )  # fmt: skip
    watch = watch or Stopwatch(device)
    drawn = torch.Generator().manual_seed(0)
    originals = rollouts.sample(models.policy, models.tokenizer, [models.prompt] * shape.completions, shape.tokens, drawn)
    reward = rewards.fit_reward(models.reward, originals)
    with tempfile.TemporaryDirectory() as folder, silent():
        ppo.train(models.policy, models.tokenizer, [models.prompt], reward, config, folder, watch=watch)
    return rate(watch.times, shape)


def rate(times, shape):
    """Completions a second out of the moments at which iterations ended, the first of them left out as a warm-up."""
    return shape.completions * (len(times) - 2) / (times[-1] - times[1])


def peer_settings(shape, folder, device):
    """What both trainers are given: fp32 on a CPU, bf16 on a card, nothing saved, no activation computed twice."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # else the first trainer's device stays for all
    return dict(
        output_dir=folder, per_device_train_batch_size=shape.completions, learning_rate=LR, use_cpu=device == "cpu",
        bf16=device == "cuda", gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=1, temperature=1.0,
    )  # fmt: skip


def trained(trainer, shape, device):
    """Completions a second of a TRL trainer, behind its first iteration; what it prints is left out."""
    from transformers import TrainerCallback

    times = []

    class Clock(TrainerCallback):
        def note(self, *_, **__):
            wait(device)
            times.append(time.perf_counter())

        on_train_begin = on_step_end = note

    trainer.add_callback(Clock())
    with silent():
        trainer.train()
    return rate(times, shape)


def trl_ppo(models, shape, device="cpu"):
    """Completions a second of TRL's PPO, which also trains a value model of the policy's size."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    iterations = 1 + MEASURED
    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            **peer_settings(shape, folder, device), total_episodes=shape.completions * iterations, num_ppo_epochs=shape.epochs,
            num_mini_batches=shape.completions // shape.minibatch, response_length=shape.tokens, stop_token_id=0,
            local_rollout_forward_batch_size=min(256, shape.completions), num_sample_generations=0,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=args, processing_class=models.peer_tokenizer, model=copy.deepcopy(models.peer_policy),
            ref_model=copy.deepcopy(models.peer_policy), reward_model=models.peer_reward,
            value_model=copy.deepcopy(models.peer_reward),
            train_dataset=Dataset.from_dict({"input_ids": [models.prompt] * (shape.completions * iterations)}),
        )  # fmt: skip
        return trained(trainer, shape, device)


def trl_grpo(models, shape, device="cpu"):
    """Completions a second of TRL's GRPO at its own settings: groups of 8, one epoch, no reference model."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            **peer_settings(shape, folder, device), max_steps=1 + MEASURED, max_completion_length=shape.tokens, num_generations=8
        )
        trainer = GRPOTrainer(
            args=args, processing_class=models.peer_tokenizer, model=copy.deepcopy(models.peer_policy),
            reward_funcs=models.peer_rewards, train_dataset=Dataset.from_dict({"prompt": [corpus.SEPARATOR] * shape.completions}),
        )  # fmt: skip
        return trained(trainer, shape, device)


def rows(options):
    shape = QUICK if options.quick else of_preset("gpu") if options.device == "cuda" else CPU
    once_over = replace(shape, epochs=1, minibatch=shape.completions)
    device = options.device
    models = Models(shape, "\n\n".join(corpus.load(options.corpus)["text"]), device)
    same = models.check(torch.randint(1, shape.vocab_size, (4, shape.tokens), device=device))
    if options.profile:
        print(profile(lambda: our_ppo(models, shape, device=device)))
    note = f"GPU busy {card_busy(lambda: our_ppo(models, shape, device=device)):.0%}" if device == "cuda" else ""

    def once():
        return {
            "ours": our_ppo(models, shape, device=device),
            "TRL PPO": trl_ppo(models, shape, device),
            "ours, one epoch": our_ppo(models, once_over, device=device),
            "TRL GRPO": trl_grpo(models, once_over, device),
        }

    figures, others = measure(once, options, "ppo")
    rest = {"unit": "completions/s", "check": same, "others": others}
    return [
        Row(
            name="PPO iteration, against TRL PPO", work=f"PPO iteration, {shape}", ours=figures["ours"], peer="TRL PPO",
            theirs=figures["TRL PPO"], wanted=4, note=note, **rest,
        ),
        Row(
            name="PPO iteration, against TRL GRPO", work=f"PPO iteration, {once_over}, against GRPO at its own settings",
            ours=figures["ours, one epoch"], peer="TRL GRPO", theirs=figures["TRL GRPO"], wanted=2.5, **rest,
        ),
    ]  # fmt: skip
