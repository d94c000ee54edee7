"""The assistant's pipeline: sft -> reward -> policy -> judge -> report (Ouyang et al. 2022, figure 2).

DIR/base                   the model that everything stands on, unless it is found by its published name
DIR/sft                    adapters on that model; with them it is what the other stages stand on, and the reference
DIR/reward, policy         adapters on the fine-tuned model
DIR/gold                   the judge, where it was trained in the run
DIR/metrics.jsonl, summary.json, answers.jsonl, verdicts.jsonl, report.html
"""

from pathlib import Path

import torch

from rlhf_lib import checkpoints, comparisons, devices
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.files import fingerprint, json_rows, write_json, write_json_rows
from rlhf_lib.models import lora, published
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines import inputs, judging, referee, stages
from rlhf_lib.pipelines.assistant_settings import PRESETS, TINY
from rlhf_lib.pipelines.estimate import estimate_assistant, sentence
from rlhf_lib.pipelines.report import write_assistant_report
from rlhf_lib.pipelines.stages import Stages, constants
from rlhf_lib.tokenization import ChatTokenizer
from rlhf_lib.trainers import ppo_critic, preference, rewards, rollouts, sft


def watch(rollout, scores):
    """What is logged of a rollout beside its reward, and never trained on."""
    return {"distinct_2": judging.distinct_n(rollout.texts), "words": sum(map(comparisons.words, rollout.texts)) / len(rollout)}


# What each stage leaves, and the settings that no stage before it depends on.
PARTS = {
    "sft": (("base", "sft"), ()),
    "reward": (("reward",), ("comparisons", "limit", "layers", "reward_adapters", "preference")),
    "policy": (("policy",), ("normaliser_samples", "ppo")),
    "judge": (("answers.jsonl", "gold"), ("best_of", "judge", "evaluate_prompts")),
}
JUDGING = (".", "gold/reward")  # where the judge's stage keeps how long it has worked: beside the answers, and in gold's training


class Assistant:
    """One run: its settings, its folder, and a method for every stage. A stage that is done is not done again.

    Everything that the run needs is read and checked before anything is written.

    Args:
        settings: assistant_settings.Settings.
        folder: where everything goes.

    Raises:
        ValueError: an input that is not there or not well-formed, or settings that do not fit it; its message names it.
        RunError: the folder holds a run with other settings.
    """

    def __init__(self, settings, folder, device=None):
        self.settings, self.folder = settings, Path(folder)
        self.device = device or devices.pick_device()
        self.base, self.tokenizer = self.start()
        self.inputs = inputs.read(settings, self.tokenizer, self.base.config.context)
        for layers in (settings.sft_layers, settings.layers):
            self.branch("none", self.base, layers)  # refuses layers or a rank that the model has not
        self.endpoint = referee.endpoint(settings.judge, self.folder / "asked.jsonl")
        self.published_gold = None
        if settings.comparisons == inputs.OURS:  # of which it has learned
            self.published_gold = referee.published_gold(self.base, self.tokenizer, self.source, self.device)
        self.contents = {name: fingerprint(content) for name, content in self.inputs.contents().items()}
        self.stages = Stages(settings, folder, PARTS, {name: lambda name=name: self.contents[name] for name in self.contents})

    # ------------------------------------------------------------------------- models

    @property
    def source(self):
        """Where a checkpoint of this run finds the model that it stands on."""
        return self.settings.model if self.settings.model in published.NAMES else "../base"

    def start(self):
        """The model that everything starts from, and its tokeniser."""
        if self.source == "../base" and (self.folder / "base" / "model.safetensors").exists():
            return checkpoints.load(self.folder / "base", self.device)
        if self.settings.model != TINY:
            return published.load(self.settings.model, self.device)
        tokenizer = ChatTokenizer.train([asked.prompt for asked in comparisons.read_prompts(comparisons.PROMPTS)], 1024)
        torch.manual_seed(devices.seed_for(self.settings.seed, "base"))
        config = LlamaConfig(tokenizer.vocab_size, context=512, layers=2, heads=4, kv_heads=2, width=64, hidden=192)
        return Llama(config).to(self.device).eval(), tokenizer

    def branch(self, name, base, layers, source=None, **options):
        """A new branch on `base`, whose adapters are drawn for `name`."""
        s = self.settings
        torch.manual_seed(devices.seed_for(s.seed, f"{name} adapters"))
        return Branch(base, layers or None, s.rank, s.alpha, source=source, **options)

    def sft_branch(self):
        """The branch that learns the demonstrations, as it starts."""
        return self.branch("sft", self.base, self.settings.sft_layers, self.source)

    def tuned(self):
        """The model as the demonstrations left it, their adapters merged: what the later stages stand on."""
        if not hasattr(self, "_tuned"):
            self._tuned = self.restored(self.sft_branch(), "sft").merged()
        return self._tuned

    def language(self, name):
        """A language branch of the fine-tuned model, as it starts: it writes as that model does."""
        return self.branch(name, self.tuned(), self.settings.layers, "../sft")

    def scalar(self, name, source="../sft"):
        """A scalar branch of the fine-tuned model, as it starts."""
        depth = None if self.settings.reward_adapters else 0
        return self.branch(name, self.tuned(), self.settings.layers, source, scalar=True, depth=depth, pooling="mean")

    def restored(self, branch, name):
        """`branch` with what the stage `name` left; all stages have the tokeniser of the base."""
        folder = self.folder / name
        if checkpoints.read_metadata(folder)["tokenizer"] != self.tokenizer.fingerprint():
            raise CheckpointError(checkpoints.DIFFER.format(folder, self.settings.model))
        return checkpoints.load_tensors(branch, checkpoints.read_tensors(folder), folder / "model.safetensors").eval()

    # ------------------------------------------------------------------------- stages

    def train_sft(self):
        """Fine-tune the model on the demonstrations; leaves `sft`. Raises RunError where the loss is not finite."""
        if "sft" in self.stages.done():
            return
        started = self.stages.begin("sft", demonstrations=self.contents["demonstrations"])
        if self.source == "../base" and not (self.folder / "base" / "model.safetensors").exists():
            checkpoints.save(self.folder / "base", self.base, self.tokenizer)
        s, (learn, held_out) = self.settings, self.inputs.demonstrations
        before = sft.evaluate(self.base, sft.pack([self.tokenizer.turns(talk) for talk in held_out], s.sft.row))
        scores = sft.train(self.sft_branch(), self.tokenizer, learn, held_out, s.sft, self.folder, s.seed)
        self.stages.finish(
            "sft",
            started,
            "sft",
            demonstrations=len(learn),
            left_out=self.inputs.left_out,
            start_loss=before["loss"],
            sft_loss=scores["loss"],
        )

    def train_reward(self):
        """Train the reward model on the comparisons; leaves `reward`. Raises RunError where `sft` is not there yet."""
        self.stages.need("sft", "assistant")
        if "reward" in self.stages.done():
            return
        started = self.stages.begin("reward", comparisons=self.contents["comparisons"])
        s, (learn, held_out) = self.settings, self.inputs.rankings
        model = self.scalar("reward")
        scores = preference.train(model, self.tokenizer, learn, held_out, s.preference, self.folder, s.seed)
        agreed = self.inputs.agreement or {"decided_agreement": None, "decided": 0}
        self.stages.finish(
            "reward",
            started,
            "reward",
            comparisons=len(learn),
            reward_accuracy=scores["accuracy"],
            reward_pairs=scores["pairs"],
            length_accuracy=scores["length_accuracy"],
            calibration_error=scores["calibration_error"],
            reader_agreement=agreed["decided_agreement"],
            reader_pairs=agreed["decided"],
        )

    def train_policy(self):
        """Train the policy with PPO; leaves `policy`. Raises RunError where `reward` is not there yet."""
        self.stages.need("reward", "assistant")
        if "policy" in self.stages.done():
            return
        started = self.stages.begin("policy", comparisons=self.contents["comparisons"])
        s = self.settings
        policy, reference = self.language("policy"), self.language("reference")
        pays = self.preference_reward(reference)
        critic = self.branch("critic", self.tuned(), s.layers, scalar=True)
        prompts = [inputs.prompt_tokens(self.tokenizer, prompt) for prompt in self.inputs.prompts[0]]
        ppo_critic.train(policy, critic, reference, self.tokenizer, prompts, pays, s.ppo, self.folder, s.seed, watch)
        self.stages.finish(
            "policy",
            started,
            "policy",
            iteration=checkpoints.read_metadata(self.folder / "policy")["iteration"],
            parameters=lora.shared_counts([policy, critic], [reference, pays.reward_model]),
        )

    def preference_reward(self, reference):
        """The reward with its constants, which are kept in `policy/reward.json`, so that a resumed run has the same."""
        s, path, model = self.settings, self.folder / "policy" / "reward.json", self.restored(self.scalar("reward"), "reward")
        if not path.exists():
            learn = self.inputs.prompts[0]
            prompts = [learn[place % len(learn)] for place in range(s.normaliser_samples // 2)]
            rollout = judging.draw(reference, self.tokenizer, prompts, s.ppo, devices.generator(s.seed, "normaliser"), 2)
            fitted = rewards.fit_within(judging.score(model, rollout).view(-1, 2))
            write_json(path, fitted._asdict())
        return rewards.PreferenceReward(model, rewards.Normaliser(**constants(path, "mean", "std")))

    def judge(self):
        """Answer held-out prompts with all models and have the answers judged; writes `answers.jsonl` and `verdicts.jsonl`."""
        self.stages.need("policy", "assistant")
        if "judge" in self.stages.done():
            return
        started = self.stages.begin(*JUDGING, comparisons=self.contents["comparisons"])
        rows, stats = self.answers(started), {}
        judge = self.endpoint
        if judge is None:
            gold, stats["gold"] = self.gold()
            judge = referee.gold_judge(gold, self.tokenizer, rows)
        try:
            records = judging.compare(judge, rows)
        finally:
            if self.endpoint is not None:  # its verdicts are kept as they come, and so is their time
                self.stages.keep(started, JUDGING[0])
        lines = [{"sides": sides, **record._asdict()} for sides, pairs in records.items() for record in pairs]
        write_json_rows(self.folder / "verdicts.jsonl", lines)
        self.stages.finish("judge", started, *JUDGING, **stats, **judging.statistics(rows, records))

    def answers(self, started):
        """The answers of all sides, a list of dicts; those that a stopped run has written are not drawn again. With each side is
        kept how long the stage, which `started` then, has worked."""
        s, path = self.settings, self.folder / "answers.jsonl"
        prompts = self.inputs.prompts[1][: s.evaluate_prompts or None]
        reference, policy = self.language("reference"), self.restored(self.language("policy"), "policy")
        pays = self.preference_reward(reference)
        rows = [row for _, row in json_rows(path)] if path.exists() else []
        for side in judging.SIDES:
            if any(row["side"] == side for row in rows):
                continue
            model = {"start": self.base, "policy": policy}.get(side, reference)
            count = s.best_of if side == "best_of" else 1
            rollout = judging.draw(model, self.tokenizer, prompts, s.ppo, devices.generator(s.seed, f"judge {side}"), count)
            scores = pays.normalise(judging.score(pays.reward_model, rollout))
            best = rollouts.best_rows(scores, count)
            rollout, scores = rollout[best], scores[best]
            kl = judging.kl_to(reference, policy, rollout, s.ppo.temperature) if side == "policy" else None
            rows += judging.rows_of(side, prompts, rollout, scores, self.tokenizer.end_token, kl)
            write_json_rows(path, rows)
            self.stages.keep(started, JUDGING[0])
        return rows

    def gold(self):
        """(the gold reward model, where it is from): the published one where it fits, else one of this run with another seed."""
        if self.published_gold is not None:
            return self.published_gold, "published"
        learn, held_out = self.inputs.rankings
        everything = [*learn, *self.inputs.beyond, *held_out]
        model = self.scalar("gold", "../../sft")
        seed = devices.seed_for(self.settings.seed, "gold")
        preference.train(model, self.tokenizer, everything, held_out, self.settings.preference, self.folder / "gold", seed)
        return model, "trained in this run"

    def summarise(self):
        """Write `summary.json` out of what the stages noted."""
        s = self.settings
        about = {"preset": s.preset, "seed": s.seed, "device": str(self.device), "model": s.model, "judge": s.judge}
        summary = {**about, **self.stages.summary()}
        write_json(self.folder / "summary.json", summary)
        return summary

    def report(self):
        """Write `report.html`: curves, the table of all sides, and answers side by side."""
        self.stages.need("judge", "assistant")
        fresh = "report" not in self.stages.done()
        started = self.stages.begin() if fresh else None
        self.summarise()
        write_assistant_report(self.folder)
        if fresh:
            self.stages.finish("report", started)

    def run(self):
        """Every stage that is not done yet; returns the summary. A fresh run says first how long it will take."""
        if not self.stages.done() and not (self.folder / "sft" / "state.pt").exists():
            print(*self.inputs.notes(), sentence(estimate_assistant(self)), sep="\n", flush=True)
        for stage in (self.train_sft, self.train_reward, self.train_policy, self.judge):
            stage()
        if "report" not in self.stages.done():
            self.report()
        return self.summarise()


def outcome(summary):
    """What came of a run, in a sentence, from its summary; a win rate of which every verdict was refused is a dash."""
    longer = summary["length_accuracy"]
    length = f"the {'longer' if longer >= 0.5 else 'shorter'} answer on {max(longer, 1 - longer):.1%}"
    judge = "the gold reward model" if summary["judge"] == "gold" else summary["judge"].removeprefix("endpoint:")
    share = lambda rate: "–" if rate is None else f"{rate:.1%}"  # noqa: E731
    low, high = map(share, summary["win_rate_policy_interval"] or (None, None))
    return (
        f"Reward model right on {summary['reward_accuracy']:.1%} ({length}); judged by {judge}, PPO wins "
        f"{share(summary['win_rate_policy'])} ({low} to {high}) against the start and "
        f"{share(summary['win_rate_policy_over_sft'])} against SFT at {summary['kl_nats']:.1f} nats; "
        f"{summary['seconds']['total'] / 60:.1f} minutes."
    )


def publish(run, folder):
    """Copy a finished run's adapters, and its base and judge if it has them, to `folder` in half precision, with its curves."""
    run, folder = Path(run), Path(folder)
    names = {"base": "base", "sft": "sft", "reward": "reward", "policy": "policy", "gold/reward": "gold"}
    kept = {name: new for name, new in names.items() if name in ("sft", "reward", "policy") or (run / name).exists()}
    stages.publish(run, folder, kept, "assistant", PRESETS, ["metrics.jsonl"])
