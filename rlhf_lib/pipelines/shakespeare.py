"""The Shakespeare pipeline: pretrain -> reward -> policy -> evaluate -> report.

DIR/base, reward, policy    a checkpoint each
DIR/metrics.jsonl, summary.json, samples.jsonl, report.html
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf_lib import checkpoints, corpus, devices, judge, tokenization
from rlhf_lib.files import write_atomic, write_json, write_json_rows
from rlhf_lib.models.gpt import GPTConfig
from rlhf_lib.pipelines import stages
from rlhf_lib.pipelines.estimate import estimate, sentence
from rlhf_lib.pipelines.material import TAKEN, Material, check_rank, check_shares, check_taken
from rlhf_lib.pipelines.report import write_report
from rlhf_lib.pipelines.settings import check_numbers
from rlhf_lib.pipelines.stages import Stages, constants, measured
from rlhf_lib.trainers import ppo, pretrain, reward, rewards, rollouts
from rlhf_lib.trainers.ppo import PPOConfig
from rlhf_lib.trainers.pretrain import PretrainConfig
from rlhf_lib.trainers.reward import RewardConfig


@dataclass
class Settings:
    """Everything that a run depends on.

    Args:
        preset: where the other fields' values come from when nothing else is said.
        seed: of everything that is drawn.
        corpus: plays, tiny, gutenberg, or the path of a text file or of a folder of them.
        tokenizer: word, char or bpe.
        labels: hand (the hand-made set), the path of a label file, or synthetic:N for N passages by the synthetic rater.
        init_from: the folder of another run whose base and reward model are taken instead of trained; empty for none.
        sentiment: what the policy should write more of, positive or negative.
        blank_line_coef: price of a blank line, in normalised reward, per one too many in the average completion; 0 for none.
        normaliser_samples: completions of the base that the reward's mean and deviation come from.
        evaluate_samples: completions of base and of policy that are compared at the end.
    """

    preset: str = "laptop"
    seed: int = 0
    corpus: str = "plays"
    tokenizer: str = "bpe"
    labels: str = "hand"
    init_from: str = ""
    sentiment: str = "positive"
    blank_line_coef: float = 1.0
    normaliser_samples: int = 2048
    evaluate_samples: int = 1024
    model: GPTConfig = field(default_factory=GPTConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self):
        check_numbers(self)
        for name in ("corpus", "labels"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty: give a name or a path")
        if self.labels.startswith("synthetic:") and self.synthetic < 1:
            raise ValueError(f"labels must be hand, a path, or synthetic:N with a whole number N above 0, got {self.labels!r}")
        if self.tokenizer not in tokenization.KINDS:
            raise ValueError(f"tokenizer must be one of {', '.join(tokenization.KINDS)}, got {self.tokenizer!r}")
        if self.sentiment not in rewards.SENTIMENTS:
            raise ValueError(f"sentiment must be positive or negative, got {self.sentiment!r}")
        if not self.blank_line_coef >= 0:
            raise ValueError(f"blank_line_coef must not be negative, got {self.blank_line_coef}")
        for name in ("normaliser_samples", "evaluate_samples"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        for name, part in (("reward", self.reward), ("ppo", self.ppo)):
            if not self.init_from:
                check_rank(name, part.rank, self.model.width)
        if not self.init_from and self.ppo.max_new_tokens >= self.model.context:
            raise ValueError(
                f"ppo.max_new_tokens must be below model.context, got {self.ppo.max_new_tokens} and {self.model.context}"
            )

    @property
    def synthetic(self):
        """How many passages the synthetic rater labels; 0 where the labels are others, or no number."""
        kind, _, count = self.labels.partition(":")
        return int(count) if kind == "synthetic" and count.isascii() and count.isdigit() and len(count) < 10 else 0


PRESETS = {
    # Every stage in a minute: to see that all of it works.
    "smoke": Settings(
        preset="smoke",
        model=GPTConfig(vocab_size=1024, context=128, layers=2, heads=4, width=128),
        pretrain=PretrainConfig(steps=100, batch=8, evaluations=2),
        reward=RewardConfig(epochs=1),
        ppo=PPOConfig(iterations=3, rollout_size=64, max_new_tokens=32, minibatch=32),
        normaliser_samples=256,
        evaluate_samples=256,
    ),
    # Two CPU cores.
    "laptop": Settings(
        preset="laptop",
        model=GPTConfig(vocab_size=2048, context=128, layers=4, heads=4, width=256),
        pretrain=PretrainConfig(steps=400, batch=32, evaluations=4),
    ),
    # A Colab T4.
    "gpu": Settings(
        preset="gpu",
        model=GPTConfig(vocab_size=4096, context=256, layers=8, heads=8, width=512, dropout=0.2),
        pretrain=PretrainConfig(steps=1200, batch=64, weight_decay=0.1, evaluations=6),
        ppo=PPOConfig(iterations=40, rollout_size=1024, minibatch=256, lr=2e-4, max_rollout_size=4096),
        evaluate_samples=2048,
    ),
}


# What each stage leaves, and the settings that no stage before it depends on.
PARTS = {
    "pretrain": (("base",), ()),
    "reward": (("reward",), ("labels", "reward")),
    "policy": (("policy",), ("sentiment", "blank_line_coef", "normaliser_samples", "ppo")),
    "evaluate": (("samples.jsonl",), ("evaluate_samples",)),
}


def watch_rollouts(reward):
    """What is logged beside the reward, a SentimentReward, and never trained on: a function of a rollout and its rewards."""
    gold = judge.GoldJudge()

    def watch(rollout, net):
        return {
            "reward_normalised": (net.cpu() + reward.price(rollout)).mean().item(),  # without the price of blank lines
            "gold": gold.score(rollout.texts).mean().item(),
            "distinct_2": judge.distinct_n(rollout.texts),
            "separators": judge.separators(rollout.texts),
        }

    return watch


class Shakespeare:
    """One run: its settings, its folder, and a method for every stage. A stage that is done is not done again.

    Args:
        settings: Settings.
        folder: where everything goes.

    Raises:
        RunError: the folder holds a run with other settings.
        ValueError: numbers of rows do not divide among the processes.
    """

    def __init__(self, settings, folder, device=None):
        check_shares(settings)
        self.settings, self.folder = settings, Path(folder)
        self.device = device or devices.pick_device()
        self.material = Material(settings)
        self.contents, self.reading = self.material.contents(), 0.0  # seconds
        self.stages = Stages(settings, folder, PARTS, self.contents)
        if "pretrain" in self.stages.done():
            self.material.base = self.folder / "base"

    def load(self, name):
        """The model and the tokeniser of this run's base, reward or policy; all have one tokeniser."""
        checkpoints.same_tokenizer(self.folder / "base", self.folder / name)
        return checkpoints.load(self.folder / name, self.device, "reward" if name == "reward" else "gpt")

    def read(self):
        """Read and check what the stages that are not done learn from; returns how many labelled passages that is."""
        done, begun = self.stages.done(), time.monotonic()
        if self.settings.init_from:
            if not {"pretrain", "reward"} <= done.keys():
                check_taken(self.settings)
            return 0
        if "pretrain" not in done:
            _ = self.material.tokens
            self.reading = time.monotonic() - begun
        return len(self.material.passages) if "reward" not in done else 0

    # ------------------------------------------------------------------------- stages

    def pretrain(self):
        """Train the base, or take that of `init_from`; leaves `base`. Raises RunError where the loss explodes."""
        if "pretrain" in self.stages.done():
            return
        s = self.settings
        if s.init_from:
            check_taken(s)
            started = self.stages.begin("base", init_from=self.contents["init_from"]())
            self.take("base")
        else:
            begun = time.monotonic()
            train, validation = self.material.tokens
            self.reading += time.monotonic() - begun
            started = self.stages.begin("base", corpus=self.contents["corpus"]())
            config = replace(s.model, vocab_size=self.material.tokenizer.vocab_size)
            pretrain.train(config, s.pretrain, train, validation, self.material.tokenizer, self.folder, s.seed, self.device)
        self.stages.finish("pretrain", started - self.reading, "base", **measured(self.folder / "base", *TAKEN["base"]))

    def train_reward(self):
        """Train the reward model, or take that of `init_from`; leaves `reward`. Raises RunError where `base` is not there yet."""
        self.stages.need("pretrain", "pretrain")
        if "reward" in self.stages.done():
            return
        s, left_out = self.settings, {}
        base, tokenizer = self.load("base")
        if s.init_from:
            check_taken(s)
            started = self.stages.begin("reward", init_from=self.contents["init_from"]())
            self.take("reward")
        else:
            passages = self.material.passages
            started = self.stages.begin("reward", labels=self.contents["labels"]())
            reward.train(base, tokenizer, passages, s.reward, self.folder, s.seed, self.device)
            if long := len(self.material.labels) - len(passages):
                left_out = {"labels_left_out": long}
        checkpoints.same_tokenizer(self.folder / "base", self.folder / "reward")
        accuracy, passages, raters = measured(self.folder / "reward", *TAKEN["reward"]).values()
        stats = {"reward_accuracy": accuracy, "reward_passages": passages, "raters": raters, **left_out}
        self.stages.finish("reward", started, "reward", **stats)

    def train_policy(self):
        """Train the policy with PPO; leaves `policy`. Raises RunError where `reward` is not there yet."""
        self.stages.need("reward", "train-reward")
        if "policy" in self.stages.done():
            return
        s = self.settings
        base, tokenizer = self.load("base")
        started = self.stages.begin("policy")
        prompt = tokenizer.encode(corpus.SEPARATOR)  # every completion starts from the blank line before a speech
        pays = self.sentiment_reward(base, tokenizer, prompt)
        ppo.train(base, tokenizer, [prompt], pays, s.ppo, self.folder, s.seed, watch_rollouts(pays))
        self.stages.finish("policy", started, "policy", iteration=checkpoints.read_metadata(self.folder / "policy")["iteration"])

    def sentiment_reward(self, base, tokenizer, prompt):
        """The reward with its constants, which are kept in `policy/reward.json`, so that a resumed run has the same."""
        s, path = self.settings, self.folder / "policy" / "reward.json"
        reward_model, _ = self.load("reward")
        if not path.exists():
            drawn = devices.generator(s.seed, "normaliser")
            prompts = [prompt] * s.normaliser_samples
            originals = rollouts.sample(base, tokenizer, prompts, s.ppo.max_new_tokens, drawn, s.ppo.temperature)
            fitted = rewards.fit_reward(reward_model, originals, s.sentiment, s.blank_line_coef)
            if devices.world()[0] == 0:
                write_json(path, {"mean": fitted.normalise.mean, "std": fitted.normalise.std, "blanks": fitted.blanks})
            devices.wait()
        kept = constants(path, "mean", "std", "blanks")
        normalise = rewards.Normaliser(kept["mean"], kept["std"])
        return rewards.SentimentReward(reward_model, s.sentiment, normalise, kept["blanks"], s.blank_line_coef)

    def take(self, name):
        """Copy the checkpoint `name` from the run that this one starts from."""
        for file in ("tokenizer.json", "model.safetensors"):
            if devices.world()[0] == 0:
                write_atomic(self.folder / name / file, (Path(self.settings.init_from) / name / file).read_bytes())
        devices.wait()

    def evaluate(self):
        """Compare base and policy on fresh samples; writes `summary.json` and `samples.jsonl`."""
        self.stages.need("policy", "train-policy")
        if "evaluate" in self.stages.done():
            return
        started = self.stages.begin()
        s, gold = self.settings, judge.GoldJudge()
        base, tokenizer = self.load("base")
        reward_model, _ = self.load("reward")
        prompts = [tokenizer.encode(corpus.SEPARATOR)] * s.evaluate_samples
        sides, rows = {}, []
        for side, model in {"base": base, "policy": self.load("policy")[0]}.items():
            drawn = devices.generator(s.seed, f"evaluate {side}")
            rollout = rollouts.sample(model, tokenizer, prompts, s.ppo.max_new_tokens, drawn, s.ppo.temperature)
            pays = rewards.log_reward(reward_model, rollout, s.sentiment)
            sides[side] = {"rollout": rollout, "texts": rollout.texts, "gold": gold.score(rollout.texts), "rewards": pays}
            for text, score, proxy in zip(rollout.texts, sides[side]["gold"].tolist(), pays.tolist()):
                rows.append({"source": side, "text": text, "gold": score, "reward": proxy})
        first, second = sides["base"], sides["policy"]
        own = second["rollout"]
        kl = rollouts.completion_kl(own.logprobs, rollouts.score(base, own, s.ppo.temperature), own.mask)
        wins = judge.win_rate(second["gold"], first["gold"])
        stats = {
            "kl_nats": kl.mean().item(),
            "kl_nats_error": (kl.std() / len(kl) ** 0.5).item(),
            "reward_base": first["rewards"].mean().item(),
            "reward_policy": second["rewards"].mean().item(),
            "gold_base": first["gold"].mean().item(),
            "gold_policy": second["gold"].mean().item(),
            "gold_win_rate": wins.rate,
            "gold_win_rate_interval": [wins.low, wins.high],
            "distinct_2_base": judge.distinct_n(first["texts"]),
            "distinct_2_ratio": ratio(judge.distinct_n(second["texts"]), judge.distinct_n(first["texts"])),
            "separator_ratio": ratio(judge.separators(second["texts"]), judge.separators(first["texts"])),
        }
        if devices.world()[0] == 0:
            write_json_rows(self.folder / "samples.jsonl", rows)
        self.stages.finish("evaluate", started, **stats)
        self.summarise()

    def summarise(self):
        """Write `summary.json` out of what the stages noted."""
        summary = {
            "preset": self.settings.preset,
            "seed": self.settings.seed,
            "device": str(self.device),
            **self.stages.summary(),
        }
        if devices.world()[0] == 0:
            write_json(self.folder / "summary.json", summary)
        return summary

    def report(self):
        """Write `report.html`: figures, curves, and samples side by side."""
        self.stages.need("evaluate", "evaluate")
        fresh = "report" not in self.stages.done()
        started = self.stages.begin() if fresh else None
        self.summarise()  # also where a kill came before
        if devices.world()[0] == 0:
            write_report(self.folder)
        if fresh:
            self.stages.finish("report", started)
            self.summarise()

    def notes(self):
        """What was left out of what this run learns from, in sentences."""
        if self.settings.init_from:
            return []
        left_out = len(self.material.labels) - len(self.material.passages)
        context = self.settings.model.context
        return [f"Left out: {left_out:,} labelled passages of more than {context} tokens (model.context)."] if left_out else []

    def run(self):
        """Every stage that is not done yet; returns the summary. A fresh run says first how long it will take."""
        passages, fresh = self.read(), not self.stages.begun("pretrain")
        if fresh and devices.world()[0] == 0:
            print(*self.notes(), sentence(estimate(self.settings, passages, self.device)), sep="\n", flush=True)
        for stage in (self.pretrain, self.train_reward, self.train_policy, self.evaluate):
            stage()
        if "report" not in self.stages.done():
            self.report()
        return self.summarise()


def publish(run, folder):
    """Copy a finished run's checkpoints to `folder` in half precision, with its settings and summary. A published folder serves
    wherever a run's folder does: `--checkpoint`, `--init_from`, `checkpoints.load`."""
    stages.publish(run, folder, {name: name for name in ("base", "reward", "policy")}, "run", PRESETS)


def ratio(value, base):
    """`value` / `base`, None where `base` is 0."""
    return value / base if base else None
