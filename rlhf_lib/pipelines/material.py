"""What a run on the plays learns from: read and checked before the first step of work."""

from functools import cached_property
from pathlib import Path

from rlhf_lib import checkpoints, corpus, devices, judge, labels, tokenization
from rlhf_lib.corpus import SEPARATOR
from rlhf_lib.files import RunError, fingerprint
from rlhf_lib.labels import LabelError
from rlhf_lib.pipelines.stages import measured
from rlhf_lib.trainers import pretrain

TAKEN = {"base": ("val_bits_per_char", "val_perplexity"), "reward": ("accuracy", "passages", "raters")}  # from another run


class Works(dict):
    """Texts by work. Each of `sources`, functions that give a corpus, is read once a work is asked for that none before has."""

    def __init__(self, *sources):
        self.sources = list(sources)

    def __missing__(self, work):
        while self.sources and work not in self:
            found = self.sources.pop(0)()
            for name, text in zip(found["work"], found["text"]):
                self.setdefault(name, text)
        if work not in self:
            raise KeyError(work)
        return self[work]


class Material:
    """The text, the tokeniser and the labels that the Shakespeare pipeline's `settings` name, each read when it is first used.

    Args:
        settings: Settings.
        base: the folder of a base that is trained already, whose tokeniser is used; None for none.
    """

    def __init__(self, settings, base=None):
        self.settings, self.base = settings, base

    @cached_property
    def text(self):
        """The corpus, a data set."""
        return corpus.load(self.settings.corpus)

    @cached_property
    def halves(self):
        """(training, validation) text: two data sets."""
        halves = corpus.split(self.text)
        return halves["train"], halves["validation"]

    @cached_property
    def tokenizer(self):
        """The base's, or one that is learned from the training text."""
        if self.base is not None:
            return checkpoints.load_tokenizer(self.base)
        s = self.settings
        return tokenization.train(s.tokenizer, self.halves[0]["text"], None if s.tokenizer == "char" else s.model.vocab_size)

    @cached_property
    def tokens(self):
        """The training text's tokens (N,), and (the validation text's, its number of characters).

        Raises:
            ValueError: the text is too short, or the context has no room for a completion.
        """
        s = self.settings
        train, _ = pretrain.encode_corpus(self.halves[0], self.tokenizer)
        pretrain.Windows(train, s.model.context, s.pretrain.batch, s.seed)
        check_room(self.tokenizer, s.ppo.max_new_tokens, s.model.context)
        return train, pretrain.encode_corpus(self.halves[1], self.tokenizer)

    @cached_property
    def labels(self):
        """All labels that the settings name, a list of Label."""
        s = self.settings
        if s.labels == "hand":
            return labels.hand_made(corpus.load("plays"))
        if s.synthetic:
            return labels.synthetic(judge.GoldJudge(), s.synthetic, self.text, s.seed)
        return labels.read(s.labels, Works(lambda: self.text, lambda: corpus.load("plays")))

    @cached_property
    def passages(self):
        """The labels whose passages the model can read whole, a list of Label.

        Raises:
            LabelError: they are too few to learn from and to test on.
        """
        s = self.settings
        kept = [label for label in self.labels if len(self.tokenizer.encode(label.text)) <= s.model.context]
        clear = [sum(label.target != 0.5 for label in half) for half in labels.split(kept, s.reward.held_out)]
        if not all(clear):
            long = len(self.labels) - len(kept)
            which, how = "", "label more passages"
            if long:
                which = f" ({long} of {len(self.labels)} have more tokens than model.context, {s.model.context})"
                how = "give a larger --model.context, shorter passages, or a tokenizer with longer tokens"
            raise LabelError(
                f"labels {s.labels}: {clear[0]} passages labelled positive or negative to learn from and {clear[1]} held out"
                f"{which}; at least one of each is needed: {how}"
            )
        return kept

    def contents(self):
        """What gives the fingerprint of the content of each setting that names a file."""
        return {
            "corpus": lambda: fingerprint([self.text["work"][:], self.text["text"][:]]),
            "labels": lambda: fingerprint([[labels.row(label), label.text] for label in self.labels]),
            "init_from": lambda: taken_fingerprint(self.settings.init_from),
        }


def check_room(tokenizer, new, context):
    """Refuse a context that has no room for a completion behind the blank line that it goes on from."""
    most = context - len(tokenizer.encode(SEPARATOR))
    if new > most:
        raise ValueError(f"ppo.max_new_tokens must be at most {most} with a context of {context} tokens, got {new}")


def check_taken(settings):
    """Refuse another run's base and reward model where this one cannot go on from them.

    Raises:
        RunError: one is not there.
        CheckpointError: one is damaged, is no such model, or they are of different tokenisers.
    """
    folder = Path(settings.init_from)
    taken_fingerprint(folder)
    base, tokenizer = checkpoints.load(folder / "base")
    checkpoints.load(folder / "reward", kind="reward")
    for name, stats in TAKEN.items():
        measured(folder / name, *stats)
    checkpoints.same_tokenizer(folder / "base", folder / "reward")
    check_room(tokenizer, settings.ppo.max_new_tokens, base.config.context)
    check_rank("ppo", settings.ppo.rank, base.config.width)


def check_shares(settings):
    """Refuse numbers of rows that do not divide among the processes of a run."""
    world, s = devices.world()[1], settings
    rows = {
        "pretrain.batch": s.pretrain.batch,
        "ppo.minibatch": s.ppo.minibatch,  # and with it the rollout, which is a multiple of it
        "normaliser_samples": s.normaliser_samples,
        "evaluate_samples": s.evaluate_samples,
    }
    for name, count in rows.items():
        if count % world:
            raise ValueError(f"{name} is {count}, which does not divide among {world} processes: choose a multiple of {world}")


def check_rank(name, rank, width):
    """Raises ValueError where adapters of this rank would be no smaller than the matrices of a model of this width."""
    if rank > width:
        raise ValueError(f"{name}.rank must be at most the model's width, got {rank} and {width}")


def taken_fingerprint(folder):
    """Of the checkpoints that a run takes from another one in `folder`."""
    found = []
    for name in TAKEN:
        for file in ("tokenizer.json", "model.safetensors"):
            path = Path(folder) / name / file
            if not path.exists():
                raise RunError(f"{folder} has no {name}/{file}: --init_from needs the folder of a finished run")
            found.append(fingerprint(path.read_bytes()))
    return fingerprint(found)
