"""Presets and stages: pretrain -> reward -> policy -> evaluate -> report, in one folder that can be stopped and resumed.

DIR/settings.json      the run's settings; another command with other settings is refused
DIR/base, reward, policy    a checkpoint each
DIR/stages.json        what is done, with its seconds and figures
DIR/metrics.jsonl, summary.json, samples.jsonl, report.html
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rlhf_lib import corpus, devices, judge, labels, pretrain, reward, rlhf, runs, tokenization
from rlhf_lib.model import GPTConfig
from rlhf_lib.pretrain import PretrainConfig
from rlhf_lib.report import write_report
from rlhf_lib.reward import RewardConfig
from rlhf_lib.rlhf import RLHFConfig
from rlhf_lib.sampling import kept_tokens

STAGES = ("pretrain", "reward", "policy", "evaluate", "report")


@dataclass
class EvaluateConfig:
    """How base and policy are compared.

    Args:
        samples: completions of each.
    """

    samples: int = 1024

    def __post_init__(self):
        if self.samples < 2:
            raise ValueError(f"evaluate.samples must be at least 2, got {self.samples}")


@dataclass
class Settings:
    """Everything that a run depends on.

    Args:
        preset: where the other fields' values come from when nothing else is said.
        seed: of everything that is drawn.
        corpus: plays, tiny, gutenberg, or the path of a text file or of a folder of them.
        tokenizer: word, char or bpe.
        labels: hand (the hand-made set), the path of a label file, or synthetic:N for N passages by the synthetic rater.
        begin_from: the folder of another run whose base and reward model are taken instead of trained; empty for none.
    """

    preset: str = "laptop"
    seed: int = 0
    corpus: str = "plays"
    tokenizer: str = "bpe"
    labels: str = "hand"
    begin_from: str = ""
    model: GPTConfig = field(default_factory=GPTConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rlhf: RLHFConfig = field(default_factory=RLHFConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.tokenizer not in tokenization.KINDS:
            raise ValueError(f"tokenizer must be one of {', '.join(tokenization.KINDS)}, got {self.tokenizer!r}")
        if self.rlhf.tokens >= self.model.context:
            raise ValueError(f"rlhf.tokens must be below model.context, got {self.rlhf.tokens} and {self.model.context}")


PRESETS = {
    # Every stage in a minute: to see that all of it works.
    "smoke": Settings(
        preset="smoke",
        model=GPTConfig(vocab_size=1024, context=128, layers=2, heads=4, width=128),
        pretrain=PretrainConfig(steps=100, batch=8, evaluations=2),
        reward=RewardConfig(epochs=1),
        rlhf=RLHFConfig(iterations=3, completions=64, tokens=32, minibatch=32, normaliser_samples=256),
        evaluate=EvaluateConfig(samples=256),
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
        pretrain=PretrainConfig(steps=2500, batch=64, weight_decay=0.1, evaluations=10),
        rlhf=RLHFConfig(iterations=40, completions=1024, minibatch=256, rate=2e-4, most_completions=4096),
        evaluate=EvaluateConfig(samples=2048),
    ),
}


def from_dict(saved):
    """Settings out of the nested dict that `asdict` made of them."""
    parts = {
        "model": GPTConfig, "pretrain": PretrainConfig, "reward": RewardConfig,
        "rlhf": RLHFConfig, "evaluate": EvaluateConfig,
    }  # fmt: skip
    return Settings(**{name: parts[name](**value) if name in parts else value for name, value in saved.items()})


def changed(settings, changes):
    """`settings` with `changes`, a dict of dotted names to values: {"seed": 1, "pretrain.steps": 50}."""
    rows = asdict(settings)
    for name, value in changes.items():
        part, _, inner = name.rpartition(".")
        (rows[part] if part else rows)[inner] = value
    return from_dict(rows)  # all at once: what is checked is the outcome


def flat(settings):
    """Settings as a dict of dotted names to values."""
    rows = {}
    for name, value in asdict(settings).items():
        rows |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return rows


class Pipeline:
    """One run: its settings, its folder, and a method for every stage. A stage that is done is not done again.

    Args:
        settings: Settings.
        folder: where everything goes.

    Raises:
        RunError: the folder holds a run with other settings.
    """

    def __init__(self, settings, folder, device=None):
        self.settings, self.folder = settings, Path(folder)
        self.device = device or devices.pick_device()
        self.metrics = runs.Metrics(self.folder)
        saved = self.folder / "settings.json"
        if saved.exists():
            old, new = runs.read_json(saved), json.loads(json.dumps(flat(settings)))
            for name in new:
                if old.get(name) != new[name]:
                    raise runs.RunError(
                        f"{folder} holds a run with {name}={old.get(name)!r}, not {new[name]!r}: choose another --out"
                    )
        devices.wait()
        if devices.world()[0] == 0:
            runs.write_json(saved, flat(settings))

    # ------------------------------------------------------------------------- what is done

    def stages(self):
        path = self.folder / "stages.json"
        return runs.read_json(path) if path.exists() else {}

    def begin(self, state=None):
        """The moment at which a stage began; one that was stopped began so much earlier as it had already worked."""
        return time.monotonic() - (runs.seconds_spent(self.folder / state / "state.pt") if state else 0)

    def finish(self, stage, started, state=None, **figures):
        """Note that `stage` is done; its training state is needed no more."""
        record = {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": devices.peak_memory_bytes(), **figures}
        if devices.world()[0] == 0:
            runs.write_json(self.folder / "stages.json", {**self.stages(), stage: record})
            if state:
                (self.folder / state / "state.pt").unlink(missing_ok=True)
        devices.wait()

    def need(self, stage, command):
        if stage not in self.stages():
            raise runs.RunError(
                f"{self.folder} has no finished {stage} stage: run `python -m rlhf_lib {command} --out {self.folder}` first"
            )

    # ------------------------------------------------------------------------- data

    def texts(self):
        """(training, validation) text: two data sets."""
        if not hasattr(self, "_texts"):
            halves = corpus.split(corpus.load(self.settings.corpus))
            self._texts = halves["train"], halves["validation"]
        return self._texts

    def label_set(self):
        """The labels that the reward model learns from and is tested on."""
        wanted = self.settings.labels
        if wanted.startswith("synthetic:"):
            return labels.synthetic(int(wanted.removeprefix("synthetic:")), corpus.load(self.settings.corpus), self.settings.seed)
        plays = corpus.load("plays")
        return labels.hand_made(plays) if wanted == "hand" else labels.hand_made(plays, [wanted])

    # ------------------------------------------------------------------------- stages

    def pretrain(self):
        if "pretrain" in self.stages():
            return
        started = self.begin("base")
        s = self.settings
        if s.begin_from:
            self.take("base")
        else:
            train_text, validation_text = self.texts()
            vocab_size = None if s.tokenizer == "char" else s.model.vocab_size
            tokenizer = tokenization.train(s.tokenizer, train_text["text"], vocab_size)
            train, _ = pretrain.encode_corpus(train_text, tokenizer)
            validation = pretrain.encode_corpus(validation_text, tokenizer)
            config = replace(s.model, vocab_size=tokenizer.vocab_size)
            pretrain.pretrain(config, s.pretrain, train, validation, tokenizer, self.folder, s.seed, self.device)
        card = runs.read_card(self.folder / "base")
        scores = {name: card[name] for name in ("val_bits_per_char", "val_perplexity")}
        self.finish("pretrain", started, "base", **scores)

    def train_reward(self):
        self.need("pretrain", "pretrain")
        if "reward" in self.stages():
            return
        started = self.begin("reward")
        s = self.settings
        if s.begin_from:
            self.take("reward")
            scores = {name: runs.read_card(self.folder / "reward")[name] for name in ("accuracy", "passages")}
        else:
            base, tokenizer = pretrain.load_model(self.folder / "base", self.device)
            _, scores = reward.train(base, tokenizer, self.label_set(), s.reward, self.folder, s.seed, self.device)
        raters = runs.read_card(self.folder / "reward")["raters"]
        self.finish(
            "reward", started, "reward", reward_accuracy=scores["accuracy"], reward_passages=scores["passages"], raters=raters
        )

    def train_policy(self):
        self.need("reward", "train-reward")
        if "policy" in self.stages():
            return
        started = self.begin("policy")
        base, tokenizer = pretrain.load_model(self.folder / "base", self.device)
        reward_model, _ = reward.load_model(self.folder / "reward", self.device)
        rlhf.train_policy(base, reward_model, tokenizer, self.settings.rlhf, self.folder, self.settings.seed)
        self.finish("policy", started, "policy", iteration=runs.read_card(self.folder / "policy")["iteration"])

    def take(self, stage):
        """Copy the checkpoint of `stage` from the run that this one starts from."""
        for name in ("tokenizer.json", "model.safetensors"):
            source = Path(self.settings.begin_from) / stage / name
            if not source.exists():
                raise runs.RunError(
                    f"{self.settings.begin_from} has no {stage}/{name}: --begin_from needs the folder of a finished run"
                )
            if devices.world()[0] == 0:
                runs.write_atomic(self.folder / stage / name, source.read_bytes())
        devices.wait()

    def evaluate(self):
        """Compare base and policy on fresh samples; writes `summary.json` and `samples.jsonl`."""
        self.need("policy", "train-policy")
        if "evaluate" in self.stages():
            return
        started = self.begin()
        base, tokenizer = pretrain.load_model(self.folder / "base", self.device)
        policy, _ = pretrain.load_model(self.folder / "policy", self.device)
        reward_model, _ = reward.load_model(self.folder / "reward", self.device)
        config, prompt = self.settings.rlhf, rlhf.prompt_tokens(tokenizer)
        gold = judge.GoldJudge()
        sides, rows = {}, []
        for place, (side, model) in enumerate({"base": base, "policy": policy}.items()):
            seed = self.settings.seed * 1_000_003 + 500_000 + place  # apart from every seed of training
            samples = rlhf.rollout(model, prompt, self.settings.evaluate.samples, config, seed)
            texts = rlhf.texts_of(samples, tokenizer)
            rewards = rlhf.rewards_of(reward_model, samples, config.sentiment)
            sides[side] = {"samples": samples, "texts": texts, "gold": gold.score(texts), "rewards": rewards}
            for text, score, proxy in zip(texts, sides[side]["gold"].tolist(), rewards.tolist()):
                rows.append({"source": side, "text": text, "gold": score, "reward": proxy})
        first, second = sides["base"], sides["policy"]
        own = second["samples"]
        keep = kept_tokens(policy, [prompt] * len(own.tokens), own.tokens, own.mask, **config.cut)
        kl = rlhf.completion_kl(own.logprobs, rlhf.reference_logprobs(base, prompt, own, config.cut, keep), own.mask)
        wins = judge.win_rate(second["gold"], first["gold"])
        figures = {
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
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            runs.write_atomic(self.folder / "samples.jsonl", lines.encode())
        self.finish("evaluate", started, **figures)
        self.summarise()

    def summarise(self):
        """Write `summary.json` out of what the stages noted."""
        stages = self.stages()
        summary = {"preset": self.settings.preset, "seed": self.settings.seed, "device": str(self.device)}
        for record in stages.values():
            summary |= {name: value for name, value in record.items() if name not in ("seconds", "peak_memory_bytes")}
        summary["seconds"] = {stage: record["seconds"] for stage, record in stages.items()}
        summary["seconds"]["total"] = round(sum(summary["seconds"].values()), 2)
        summary["peak_memory_bytes"] = max((r["peak_memory_bytes"] or 0 for r in stages.values()), default=0)
        if devices.world()[0] == 0:
            runs.write_json(self.folder / "summary.json", summary)
        return summary

    def report(self):
        """Write `report.html`: figures, curves, and samples side by side."""
        self.need("evaluate", "evaluate")
        started = self.begin()
        if devices.world()[0] == 0:
            write_report(self.folder)
        if "report" not in self.stages():
            self.finish("report", started)
            self.summarise()

    def run(self):
        """Every stage that is not done yet; returns the summary."""
        for stage in (self.pretrain, self.train_reward, self.train_policy, self.evaluate):
            stage()
        if "report" not in self.stages():
            self.report()
        return self.summarise()


def publish(run, folder):
    """Copy a finished run's checkpoints to `folder` in half precision, with its settings and summary.

    A published folder serves wherever a run's folder does: `--checkpoint`, `--begin_from`, `load_model`.
    """
    run, folder = Path(run), Path(folder)
    if not (run / "summary.json").exists():
        raise runs.RunError(f"{run} holds no finished run: only one with a summary.json is published")
    for stage in ("base", "reward", "policy"):
        tokenizer = tokenization.load(run / stage / "tokenizer.json")
        card, tensors = runs.load_checkpoint(run / stage, tokenizer)
        runs.save_checkpoint(folder / stage, {name: tensor.half() for name, tensor in tensors.items()}, card, tokenizer)
    summary = runs.read_json(run / "summary.json")
    settings = runs.read_json(run / "settings.json")
    begun = flat(PRESETS[settings["preset"]])
    other = [f"--{name} {value}" for name, value in settings.items() if value != begun[name] and name != "seed"]
    command = ["python -m rlhf_lib run", f"--preset {settings['preset']}", f"--seed {settings['seed']}", *other, "--out DIR"]
    runs.write_json(folder / "settings.json", settings)
    runs.write_json(folder / "summary.json", {"command": " ".join(command), **summary})


def ratio(value, base):
    return value / base if base else None
