import itertools
import json
import math
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_lib import __main__ as command_line
from rlhf_lib import checkpoints, corpus, devices, labels, runs
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.corpus import DATA
from rlhf_lib.files import RunError, write_json
from rlhf_lib.judge import GoldJudge
from rlhf_lib.pipelines import shakespeare
from rlhf_lib.pipelines.material import Material
from rlhf_lib.pipelines.settings import changed, flat
from rlhf_lib.pipelines.shakespeare import PRESETS, Settings, Shakespeare
from rlhf_lib.trainers import muon, ppo, pretrain, reward, rewards, rollouts

from .helpers import ROOT, killed_at_drawn_moments, started

STAGES = ("pretrain", "reward", "policy", "evaluate", "report")
CPU = torch.device("cpu")
# What DESIGN.md promises of summary.json.
PROMISED = {
    "val_bits_per_char", "val_perplexity", "reward_accuracy", "kl_nats", "gold_base", "gold_policy", "gold_win_rate",
    "distinct_2_ratio", "separator_ratio", "seconds", "peak_memory_bytes",
}  # fmt: skip


def read(path):
    return json.loads(Path(path).read_text())


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def stamps(folder):
    """Which files there are, and which write left each of them: an atomic write makes a new file."""
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in files(folder)}


def stats_of(folder):
    """The summary without what differs from run to run."""
    return {name: value for name, value in read(folder / "summary.json").items() if name not in ("seconds", "peak_memory_bytes")}


@pytest.fixture
def begun(tiny_settings, tmp_path):
    """`begun(changes)`: a Shakespeare in a fresh folder."""
    return lambda changes=None: Shakespeare(tiny_settings(changes), tmp_path / "run", CPU)


@pytest.fixture(scope="module")
def drawn(tiny_run):
    """The judged samples of the tiny run, by side."""
    rows = [json.loads(line) for line in (tiny_run / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return {side: [row for row in rows if row["source"] == side] for side in ("base", "policy")}


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Settings(seed=-1), "seed must not be negative, got -1"),
        (lambda: Settings(tokenizer="syllable"), "tokenizer must be one of word, char, bpe, got 'syllable'"),
        (lambda: Settings(sentiment="sad"), "sentiment must be positive or negative, got 'sad'"),
        (lambda: Settings(blank_line_coef=-2.0), r"blank_line_coef must not be negative, got -2\.0"),
        (lambda: Settings(blank_line_coef=math.nan), "blank_line_coef must be a finite number, got nan"),
        (lambda: Settings(normaliser_samples=1), "normaliser_samples must be at least 2, got 1"),
        (lambda: Settings(evaluate_samples=1), "evaluate_samples must be at least 2, got 1"),
        (
            lambda: changed(Settings(), {"ppo.max_new_tokens": 128}),
            r"ppo\.max_new_tokens must be below model\.context, got 128 and 128",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_presets_grow():
    smoke, laptop, gpu = (PRESETS[name] for name in ("smoke", "laptop", "gpu"))
    for part in ("model.width", "model.layers", "pretrain.steps", "ppo.iterations", "evaluate_samples"):
        assert flat(smoke)[part] < flat(laptop)[part] <= flat(gpu)[part], part
    assert [settings.preset for settings in PRESETS.values()] == list(PRESETS)


def test_the_gpu_preset_reads_the_plays_about_13_times():
    """Twice as many, and it would learn them by heart. How many tokens the text has is taken from every eighth play."""
    preset, tokenizer = PRESETS["gpu"], checkpoints.load_tokenizer(DATA / "checkpoints" / "large" / "base")
    assert tokenizer.vocab_size == preset.model.vocab_size
    texts = Material(preset).halves[0]["text"]
    rate = sum(len(tokenizer.encode(text)) for text in texts[::8]) / sum(map(len, texts[::8]))  # tokens per character
    passes = preset.pretrain.steps * preset.pretrain.batch * preset.model.context / (rate * sum(map(len, texts)))
    assert passes < 15


def test_labels_are_the_hand_made_ones_a_file_or_the_synthetic_raters(begun, tiny):
    assert [label.text for label in begun().material.labels] == [
        json.loads(line)["text"] for line in Path(tiny["labels"]).read_text().splitlines()
    ]


def test_the_hand_made_labels_are_the_preset(tiny_settings, tmp_path):
    hand = Shakespeare(tiny_settings({"labels": "hand"}), tmp_path, CPU).material.labels
    assert len(hand) == sum(len(path.read_text(encoding="utf-8").splitlines()) for path in labels.HAND_MADE)
    assert labels.SYNTHETIC not in {label.reader for label in hand}


def test_synthetic_labels_are_passages_of_the_runs_own_corpus(tiny_settings, tiny, tmp_path):
    made = Shakespeare(tiny_settings({"labels": "synthetic:40"}), tmp_path, CPU).material.labels
    text = Path(tiny["corpus"]).read_text()
    assert len(made) == 40 and {label.reader for label in made} == {labels.SYNTHETIC}
    assert all(label.text in text for label in made)


# ----------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_every_file_and_no_training_state(tiny_run):
    there = files(tiny_run)
    checkpoints = [
        f"{stage}/{name}" for stage in ("base", "reward", "policy") for name in ("model.safetensors", "tokenizer.json")
    ]
    for name in (*checkpoints, "settings.json", "stages.json", "metrics.jsonl", "summary.json", "samples.jsonl", "report.html"):
        assert name in there
    assert not [name for name in there if name.endswith((".pt", ".tmp"))]
    assert set(read(tiny_run / "stages.json")) == set(STAGES)
    assert {record["stage"] for record in runs.Metrics(tiny_run).read()} == {"pretrain", "reward", "policy"}


def test_the_summary_has_what_is_promised(tiny_run, tiny):
    summary = read(tiny_run / "summary.json")
    assert summary.keys() >= PROMISED
    low, high = summary["gold_win_rate_interval"]
    assert 0 <= low < summary["gold_win_rate"] < high <= 1
    assert 0 <= summary["reward_accuracy"] <= 1
    assert summary["raters"] == ["r0", "r1", "r2", "r3"]
    assert set(summary["seconds"]) == {*STAGES, "total"}
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    parts = sum(seconds for stage, seconds in summary["seconds"].items() if stage != "total")
    assert summary["seconds"]["total"] == pytest.approx(parts, abs=0.01)
    assert 50e6 < summary["peak_memory_bytes"] < 50e9  # bytes, not kilobytes
    assert (summary["preset"], summary["seed"], summary["device"]) == ("smoke", 0, "cpu")


def test_bits_and_perplexity_are_those_of_the_saved_base(tiny_run, tiny):
    summary = read(tiny_run / "summary.json")
    base, tokenizer = checkpoints.load(tiny_run / "base")
    text = corpus.split(corpus.load(tiny["corpus"]))["validation"]["text"][0]
    tokens = [*tokenizer.encode(text), 0]
    nats = 0.0
    for start in range(0, len(tokens) - 1, 64):  # by windows of the context
        window = torch.tensor(tokens[start : start + 65])
        logprobs = base(window[None, :-1])[0].log_softmax(-1)
        nats -= sum(logprobs[place, token].item() for place, token in enumerate(window[1:].tolist()))
    assert summary["val_bits_per_char"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-4)
    assert summary["val_perplexity"] == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-4)
    assert summary["val_bits_per_char"] < 4  # it has learned something: drawing letters alike takes 4.7


def test_the_reward_models_accuracy_is_that_on_the_held_out_labels(tiny_run, tiny):
    summary = read(tiny_run / "summary.json")
    model, tokenizer = checkpoints.load(tiny_run / "reward", kind="reward")
    rows = [label for label in labels.split(labels.read(tiny["labels"]))[1] if label.label != "neutral"]
    right = 0
    for row in rows:
        logit = model.logits(torch.tensor([tokenizer.encode(row.text)])).item()
        right += (logit > 0) == (row.label == "positive")
    assert summary["reward_passages"] == len(rows) > 3
    assert summary["reward_accuracy"] == pytest.approx(right / len(rows))
    assert summary["reward_accuracy"] > 0.7  # these labels are easy


def test_gold_scores_rewards_and_win_rate_are_those_of_the_samples(tiny_run, drawn):
    summary = read(tiny_run / "summary.json")
    for side, rows in drawn.items():
        assert len(rows) == 64
        gold = [row["gold"] for row in rows]
        assert gold == pytest.approx(GoldJudge().score([row["text"] for row in rows]).tolist())
        assert summary[f"gold_{side}"] == pytest.approx(sum(gold) / 64)
        assert summary[f"reward_{side}"] == pytest.approx(sum(row["reward"] for row in rows) / 64)
        assert all(row["reward"] < 0 for row in rows)  # log-probabilities
        assert len({row["text"] for row in rows}) > 32
    pairs = [(policy["gold"], base["gold"]) for policy in drawn["policy"] for base in drawn["base"]]
    wins = sum(1.0 if policy > base else 0.5 if policy == base else 0.0 for policy, base in pairs)
    assert summary["gold_win_rate"] == pytest.approx(wins / 64**2)
    assert {row["text"] for row in drawn["base"]} != {row["text"] for row in drawn["policy"]}


def test_diversity_and_separators_are_policy_over_base(tiny_run, drawn):
    summary, distinct, blank = read(tiny_run / "summary.json"), {}, {}
    for side, rows in drawn.items():
        words = [row["text"].lower().split() for row in rows]
        pairs = [(a, b) for row in words for a, b in itertools.pairwise(row)]
        distinct[side] = len(set(pairs)) / len(pairs)
        blank[side] = sum(row["text"].count("\n\n") for row in rows)
    assert summary["distinct_2_ratio"] == pytest.approx(distinct["policy"] / distinct["base"])
    wanted = blank["policy"] / blank["base"] if blank["base"] else None  # some machines' tiny base writes none
    assert summary["separator_ratio"] == (wanted and pytest.approx(wanted))


def test_a_ratio_over_nothing_is_none():
    assert shakespeare.ratio(1.0, 0.0) is None
    assert shakespeare.ratio(1.0, 4.0) == 0.25


def kl_between(folder, temperature=1.0, count=600):
    """KL(saved policy || saved base) of completions in nats, by the definition, and its standard error."""
    base, tokenizer = checkpoints.load(folder / "base")
    policy, _ = checkpoints.load(folder / "policy")
    prompt = tokenizer.encode("\n\n")
    drawn = torch.Generator().manual_seed(4321)
    rollout = rollouts.sample(policy, tokenizer, [prompt] * count, 16, drawn, temperature)
    whole = torch.cat([torch.tensor([prompt] * count), rollout.tokens], 1)
    sides = []
    for model in (policy, base):
        logprobs = (model(whole[:, :-1]) / temperature).log_softmax(-1)[:, len(prompt) - 1 :]
        logprobs = logprobs.gather(2, rollout.tokens[:, :, None])[:, :, 0]
        sides.append(torch.where(rollout.mask, logprobs, 0).sum(1))
    kl = sides[0] - sides[1]
    return kl.mean().item(), kl.std().item() / math.sqrt(count)


def test_the_kl_is_that_between_the_saved_policy_and_base(tiny_run):
    summary = read(tiny_run / "summary.json")
    kl, error = kl_between(tiny_run)
    assert summary["kl_nats"] == pytest.approx(kl, abs=4 * math.hypot(error, summary["kl_nats_error"]))
    assert summary["kl_nats"] != 0


@pytest.fixture(scope="module")
def priced(tiny_settings, tiny_run, tmp_path_factory):
    """A policy stage whose completions are many and long enough for blank lines; every iteration's policy is kept."""
    changes = {
        "init_from": str(tiny_run),
        "ppo.keep_every": 1,
        "ppo.lr": 1e-3,
        "blank_line_coef": 100.0,
        "normaliser_samples": 512,
        "ppo.rollout_size": 128,
        "ppo.max_rollout_size": 128,
        "ppo.max_new_tokens": 40,
    }
    run = Shakespeare(tiny_settings(changes), tmp_path_factory.mktemp("priced"), CPU)
    run.pretrain()
    run.train_reward()
    run.train_policy()
    return run


def test_the_rewards_constants_are_those_of_the_bases_own_completions(priced):
    kept = read(priced.folder / "policy" / "reward.json")
    base, tokenizer = priced.load("base")
    prompts = [tokenizer.encode("\n\n")] * 2000
    own = rollouts.sample(base, tokenizer, prompts, 40, torch.Generator().manual_seed(5))
    given = rewards.log_reward(priced.load("reward")[0], own)
    lines = torch.tensor([float(text.count("\n\n")) for text in own.texts])
    assert kept["mean"] == pytest.approx(given.mean().item(), abs=5 * given.std().item() / math.sqrt(400))
    assert kept["std"] == pytest.approx(given.std().item(), rel=0.5)
    assert kept["blanks"] == pytest.approx(lines.mean().item(), abs=5 * lines.std().item() / math.sqrt(400))
    assert kept["blanks"] > 0


def test_the_rewards_constants_are_the_same_in_every_iteration_and_the_price_is_off_it(priced):
    """Each logged mean is taken again from the saved policy of its iteration: the same rollout, for the seed is the same."""
    kept, records = read(priced.folder / "policy" / "reward.json"), runs.Metrics(priced.folder).read("policy")
    model, tokenizer = priced.load("reward")
    assert len(records) == priced.settings.ppo.iterations + 1
    prices = []
    for record in records:
        policy, _ = checkpoints.load(priced.folder / "policy" / f"iteration-{record['step']:03d}")
        drawn = devices.generator(0, "rollout", record["step"])
        rollout = rollouts.sample(policy, tokenizer, [tokenizer.encode("\n\n")] * 128, 40, drawn)
        plain = (rewards.log_reward(model, rollout) - kept["mean"]) / kept["std"]
        lines = torch.tensor([float(text.count("\n\n")) for text in rollout.texts])
        prices.append((100 * (lines.mean() - kept["blanks"]) * lines).mean().item())
        assert record["reward_normalised"] == pytest.approx(plain.mean().item(), abs=1e-4)
        assert record["reward"] == pytest.approx(plain.mean().item() - prices[-1], abs=1e-4)
        assert record["gold"] == pytest.approx(GoldJudge().score(rollout.texts).mean().item())
        assert record["separators"] == pytest.approx(lines.mean().item())
    assert max(map(abs, prices)) > 1e-3  # ten times the tolerance above


@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_resumed_policy_stage_has_the_constants_that_it_began_with(
    tiny_settings, tiny_run, interrupted, monkeypatch, tmp_path, saved
):
    """They are not taken from samples again; stopped right behind them, or behind an iteration."""
    run = Shakespeare(tiny_settings({"init_from": str(tiny_run)}), tmp_path, CPU)
    run.pretrain()
    run.train_reward()
    with interrupted(saved, stop=max(1, saved)), pytest.raises(KeyboardInterrupt):
        run.train_policy()
    path = tmp_path / "policy" / "reward.json"
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    monkeypatch.setattr(rewards, "fit_reward", lambda *_: pytest.fail("the constants were taken again"))
    Shakespeare(tiny_settings({"init_from": str(tiny_run)}), tmp_path, CPU).train_policy()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    assert before == (tiny_run / "policy" / "reward.json").read_bytes()
    assert runs.Metrics(tmp_path).read("policy") == runs.Metrics(tiny_run).read("policy")


def test_a_run_leaves_its_settings_as_they_are(tiny_settings, tiny_run, tmp_path):
    """Also the size of the vocabulary, which the tokenizer has the last word on."""
    changes = {"tokenizer": "word", "labels": "synthetic:60", "pretrain.steps": 4, "ppo.iterations": 1, "reward.dropout": 0.2}
    settings = tiny_settings(changes)
    before = flat(settings)
    Shakespeare(settings, tmp_path, CPU).run()
    assert flat(settings) == before == read(tmp_path / "settings.json")
    metadata = checkpoints.read_metadata(tmp_path / "base")["config"]
    assert metadata["vocab_size"] < settings.model.vocab_size and metadata["dropout"] == settings.model.dropout


def test_the_report_shows_the_run(tiny_run):
    summary, page = read(tiny_run / "summary.json"), (tiny_run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert f"{summary['val_bits_per_char']:.3f}" in page and "the labels of 4 readers" in page


def test_a_second_run_does_no_stage_again(tiny_run, tiny_settings, monkeypatch, tmp_path):
    folder = tmp_path / "copy"
    for name in files(tiny_run):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tiny_run / name).read_bytes())
    before, contents = stamps(folder), {name: (folder / name).read_bytes() for name in files(folder)}
    for module, name in ((pretrain, "train"), (reward, "train"), (ppo, "train"), (rollouts, "sample")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was done again"))
    summary = Shakespeare(tiny_settings(), folder, CPU).run()
    assert summary == read(tiny_run / "summary.json")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == contents
    unwritten = [name for name, stamp in stamps(folder).items() if stamp == before[name]]
    assert {"base/model.safetensors", "reward/model.safetensors", "policy/model.safetensors", "metrics.jsonl"} <= set(unwritten)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("seed", 1, "seed=0, not 1"),
        ("ppo.lr", 0.5, r"ppo\.lr=[\d.e-]+, not 0\.5"),
        ("model.width", 64, r"model\.width=32, not 64"),
        ("labels", "hand", r"labels='.*labels\.jsonl', not 'hand'"),
        ("reward.pooling", "last", r"reward\.pooling='mean', not 'last'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(tiny_run, tiny_settings, field, value, shown):
    before = stamps(tiny_run)
    with pytest.raises(RunError, match=rf"{tiny_run} holds a run with {shown}: choose another --out"):
        Shakespeare(tiny_settings({field: value}), tiny_run, CPU)
    assert stamps(tiny_run) == before


def test_the_settings_are_written_down(tiny_run, tiny_settings):
    assert read(tiny_run / "settings.json") == flat(tiny_settings())


# ----------------------------------------------------------------------------------------- what is learned from changes


@pytest.fixture
def own(tiny_settings, tiny, tmp_path):
    """`own(changes)`: a Shakespeare in one folder whose text and labels are copies in the folder `mine`."""
    (tmp_path / "mine").mkdir()
    paths = {name: tmp_path / "mine" / Path(tiny[name]).name for name in ("corpus", "labels")}
    for name, path in paths.items():
        path.write_bytes(Path(tiny[name]).read_bytes())

    def made(changes=None):
        return Shakespeare(
            tiny_settings({**{name: str(path) for name, path in paths.items()}, **(changes or {})}), tmp_path / "run", CPU
        )

    made.paths = paths
    return made


def changed_inside(path):
    path.write_bytes(path.read_bytes().replace(b"love", b"hate", 1))


def test_a_text_that_changed_behind_its_path_stops_the_run_before_a_step(own, interrupted, tmp_path):
    with interrupted(saved=2, stop=3), pytest.raises(KeyboardInterrupt):
        own().pretrain()
    before = stamps(tmp_path / "run")
    changed_inside(own.paths["corpus"])
    for act in ("pretrain", "run"):
        with pytest.raises(RunError, match=rf"run was begun with another content of corpus {own.paths['corpus']}: put that back"):
            getattr(own(), act)()
    assert stamps(tmp_path / "run") == before


def test_labels_that_changed_behind_their_path_stop_the_stage_that_has_begun_to_learn_from_them(own, interrupted):
    own().pretrain()
    changed_inside(own.paths["labels"])  # nothing has learned from them yet
    with interrupted(saved=2, stop=3), pytest.raises(KeyboardInterrupt):
        own().train_reward()
    changed_inside(own.paths["corpus"])  # nothing will learn from it again
    changed_inside(own.paths["labels"])
    with pytest.raises(RunError, match=rf"begun with another content of labels {own.paths['labels']}: put that back"):
        own().train_reward()


def test_a_text_that_changed_under_labels_by_place_stops_the_stage_that_learns_from_them(own, interrupted):
    rows = [json.loads(line) for line in own.paths["labels"].read_text(encoding="utf-8").splitlines()]
    text = own.paths["corpus"].read_text(encoding="utf-8")
    work = own().material.text["work"][0]
    for number, row in enumerate(rows):
        row |= {"work": work, "start": 40 * number, "end": 40 * number + 30}
        del row["text"], row["checkpoint"]
    own.paths["labels"].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own().pretrain()
    with interrupted(saved=2, stop=3), pytest.raises(KeyboardInterrupt):
        own().train_reward()
    own.paths["corpus"].write_text("Xx" + text[2:], encoding="utf-8")  # at the same places stands something else
    with pytest.raises(RunError, match=rf"begun with another content of labels {own.paths['labels']}: put that back"):
        own().train_reward()
    own.paths["corpus"].write_text(text, encoding="utf-8")
    own().train_reward()


def test_text_and_labels_may_move_with_the_run_and_the_figures_stay(own, interrupted, tiny_run, tmp_path):
    with interrupted(saved=2, stop=3), pytest.raises(KeyboardInterrupt):
        own().pretrain()
    (tmp_path / "mine").rename(tmp_path / "elsewhere")
    moved = {name: str(tmp_path / "elsewhere" / path.name) for name, path in own.paths.items()}
    with pytest.raises(corpus.CorpusError, match="no corpus at"):
        own().pretrain()
    run = own(moved)
    run.pretrain()
    run.train_reward()
    assert run.stages.done()["reward"]["reward_accuracy"] == read(tiny_run / "summary.json")["reward_accuracy"]
    changed_inside(tmp_path / "elsewhere" / own.paths["labels"].name)
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="holds a run with corpus="):
        own()


def test_what_was_refused_blocks_no_folder(own, tmp_path):
    """Settings of a run whose labels were wrong, and of one that a later stage has not begun with."""
    with pytest.raises(labels.LabelError):
        own({"labels": "gone.jsonl", "seed": 5}).run()
    own().pretrain()
    for wrong in ({"labels": "gone.jsonl"}, {"labels": "synthetic:100000"}):
        with pytest.raises(ValueError, match=r"gone\.jsonl|only \d+ passages"):
            own(wrong).train_reward()
    own({"reward.epochs": 1}).train_reward()
    assert read(tmp_path / "run" / "settings.json")["reward.epochs"] == 1


# ----------------------------------------------------------------------------------------- stages by themselves


@pytest.mark.parametrize(
    ("method", "stage"),
    [("train_reward", "pretrain"), ("train_policy", "reward"), ("evaluate", "policy"), ("report", "evaluate")],
)
def test_a_stage_out_of_order_says_what_to_run_first(begun, tmp_path, method, stage):
    with pytest.raises(RunError, match=rf"has no finished {stage} stage: run `(.+)` first") as error:
        getattr(begun(), method)()
    arguments = re.search("`python -m rlhf_lib (.+)`", str(error.value))[1].split()
    assert arguments[1:] == ["--out", str(tmp_path / "run")]
    advised = command_line.parser().parse_args(arguments)
    assert command_line.STAGES[advised.command][1] in ("pretrain", "train_reward", "train_policy", "evaluate")
    assert command_line.STAGES[advised.command][1].endswith(stage)
    assert not (tmp_path / "run").exists()


def test_stages_one_by_one_give_what_run_gives(tiny_run, tiny, tmp_path, capsys, monkeypatch):
    """Through the command line, each stage by a call of its own that is told the folder alone."""
    monkeypatch.setattr(devices, "pick_device", lambda: CPU)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = [part for name, value in tiny.items() for part in (f"--{name}", str(value))]
    for place, command in enumerate(("pretrain", "train-reward", "train-policy", "evaluate", "report")):
        more = ["--preset", "smoke", *flags] if place == 0 else []
        assert command_line.main([command, "--out", str(tmp_path), *more]) == 0, capsys.readouterr().err
    torch.set_num_threads(threads)
    assert stats_of(tmp_path) == stats_of(tiny_run)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tiny_run / "metrics.jsonl").read_bytes()
    assert (tmp_path / "samples.jsonl").read_bytes() == (tiny_run / "samples.jsonl").read_bytes()
    assert (tmp_path / "report.html").exists()


def test_start_takes_base_and_reward_of_another_run(tiny_run, begun, tmp_path):
    summary = begun({"init_from": str(tiny_run), "sentiment": "negative"}).run()
    folder = tmp_path / "run"
    for stage in ("base", "reward"):
        for name in ("model.safetensors", "tokenizer.json"):
            assert (folder / stage / name).read_bytes() == (tiny_run / stage / name).read_bytes()
    assert (folder / "policy" / "model.safetensors").read_bytes() != (tiny_run / "policy" / "model.safetensors").read_bytes()
    assert {record["stage"] for record in runs.Metrics(folder).read()} == {"policy"}
    old = read(tiny_run / "summary.json")
    assert summary.keys() == old.keys()
    assert summary["raters"] == old["raters"]
    for name in ("val_bits_per_char", "val_perplexity", "reward_accuracy", "reward_passages", "gold_base"):
        assert summary[name] == pytest.approx(old[name], rel=1e-6), name
    assert summary["reward_base"] == pytest.approx(
        sum(math.log(-math.expm1(row["reward"])) for row in rows_of(tiny_run)) / 64, abs=1e-3
    )  # log p(negative) of the same base samples
    assert (folder / "report.html").read_text(encoding="utf-8").count("data:image/png") == 3


def rows_of(folder, side="base"):
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return [row for row in rows if row["source"] == side]


def test_sampling_reference_and_evaluation_share_the_temperature(tiny_run, begun, tmp_path):
    changes = {"init_from": str(tiny_run), "ppo.temperature": 0.6, "ppo.lr": 3e-3, "ppo.max_kl": 100.0, "ppo.iterations": 4}
    summary = begun(changes).run()
    kl, error = kl_between(tmp_path / "run", 0.6)
    assert summary["kl_nats"] == pytest.approx(kl, abs=4 * math.hypot(error, summary["kl_nats_error"]))
    assert summary["kl_nats"] > 0.1
    assert runs.Metrics(tmp_path / "run").read("policy")[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_start_from_a_folder_without_a_run_is_refused(begun, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=rf"{tmp_path / 'empty'} has no base/tokenizer\.json: --init_from needs the folder"):
        begun({"init_from": str(tmp_path / "empty")}).run()


def test_a_published_run_serves_like_the_run_in_half_the_space(tiny_run, begun, tmp_path, capsys):
    folder = tmp_path / "published"
    assert command_line.main(["publish", "--run", str(tiny_run), "--to", str(folder)]) == 0
    for stage in ("base", "reward", "policy"):
        small, whole = ((where / stage / "model.safetensors").stat().st_size for where in (folder, tiny_run))
        assert small < 0.6 * whole
        tensors = checkpoints.read_tensors(tiny_run / stage)
        for name, tensor in checkpoints.read_tensors(folder / stage).items():
            torch.testing.assert_close(tensor.float(), tensors[name], rtol=1e-3, atol=1e-6)
    published, summary = read(folder / "summary.json"), read(tiny_run / "summary.json")
    command = published.pop("command")
    assert published == summary
    # the command that it names gives the same settings
    arguments = command.removeprefix("python -m rlhf_lib ").replace("--out DIR", f"--out {tmp_path / 'again'}").split()
    assert flat(command_line.settings_of(command_line.parser().parse_args(arguments))) == read(tiny_run / "settings.json")
    # its folder serves for sampling and for going on
    capsys.readouterr()
    assert command_line.main(["sample", "--checkpoint", str(folder), "-n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    again = begun({"init_from": str(folder), "ppo.iterations": 1})
    again.pretrain()
    again.train_reward()
    again.train_policy()
    assert again.stages.done()["reward"]["reward_accuracy"] == summary["reward_accuracy"]


def test_a_run_of_adapters_is_published_small_and_serves_like_any_other(tiny_run, begun, tmp_path, capsys):
    ranks = {"reward.rank": 4, "ppo.rank": 2}
    run, folder = begun({**ranks, "ppo.lr": 1e-2, "ppo.max_kl": 100.0}), tmp_path / "published"
    summary = run.run()
    assert summary["kl_nats"] > 0.01 and summary["reward_accuracy"] > 0.6 and (tmp_path / "run" / "report.html").exists()
    shakespeare.publish(tmp_path / "run", folder)
    sizes = {stage: (folder / stage / "model.safetensors").stat().st_size for stage in ("base", "reward", "policy")}
    assert max(sizes["reward"], sizes["policy"]) < sizes["base"] / 2
    assert read(folder / "settings.json")["ppo.rank"] == 2
    kl, error = kl_between(folder)
    assert kl == pytest.approx(summary["kl_nats"], abs=4 * math.hypot(error, summary["kl_nats_error"]))
    assert command_line.main(["sample", "--checkpoint", str(folder), "-n", "2"]) == 0
    (tmp_path / "texts.jsonl").write_text('{"text": "Love and joy."}\n', encoding="utf-8")
    assert command_line.main(["score", "--checkpoint", str(folder), "--file", str(tmp_path / "texts.jsonl")]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3
    again = Shakespeare(run.settings.__class__(**{**vars(run.settings), "init_from": str(folder)}), tmp_path / "again", "cpu")
    again.pretrain()
    again.train_reward()
    again.train_policy()
    assert (tmp_path / "again" / "policy" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["ppo", "reward"])
def test_adapters_wider_than_the_model_are_refused_before_the_first_step(tiny_settings, tiny_run, begun, tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}\.rank must be at most the model's width, got 33 and 32"):
        tiny_settings({f"{name}.rank": 33})
    if name == "ppo":
        with pytest.raises(ValueError, match=r"ppo\.rank must be at most the model's width, got 33 and 32"):
            begun({"init_from": str(tiny_run), "ppo.rank": 33}).run()
        assert not (tmp_path / "run" / "base").exists()


def test_what_cannot_be_published_whole_is_not_published_in_part(tiny_run, tmp_path):
    folder, run = tmp_path / "published", shutil.copytree(tiny_run, tmp_path / "run")
    before = stamps(run)
    for there in (run, tmp_path):
        with pytest.raises(RunError, match=rf"{there} is there already: choose another --to, or delete it"):
            shakespeare.publish(run, there)
    assert stamps(run) == before
    for path, content, kind, words in (
        (
            run / "settings.json",
            json.dumps({**read(run / "settings.json"), "preset": "huge"}),
            RunError,
            "preset is 'huge', none of",
        ),
        (run / "policy" / "model.safetensors", None, CheckpointError, "no checkpoint in .*policy"),
        (run / "reward" / "model.safetensors", "rubbish", CheckpointError, "reward"),
    ):
        good = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_text(content, encoding="utf-8")
        with pytest.raises(kind, match=words):
            shakespeare.publish(run, folder)
        assert not folder.exists(), path
        path.write_bytes(good)
    shakespeare.publish(run, folder)
    assert {path.name for path in folder.iterdir()} >= {"base", "reward", "policy", "settings.json", "summary.json"}


def test_a_kill_between_the_evaluation_and_its_summary_loses_nothing(tiny_run, tiny_settings, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    write_json(folder / "stages.json", {name: one for name, one in read(folder / "stages.json").items() if name != "report"})
    Shakespeare(tiny_settings(), folder, CPU).run()
    assert stats_of(folder) == stats_of(tiny_run) and (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["pretrain.batch", "ppo.minibatch", "normaliser_samples", "evaluate_samples"])
def test_rows_that_do_not_divide_among_processes_are_refused_before_the_first_step(begun, monkeypatch, tmp_path, name):
    sizes = {"pretrain.batch": 6, "ppo.rollout_size": 96, "ppo.minibatch": 24, "normaliser_samples": 66, "evaluate_samples": 66}
    monkeypatch.setattr(devices, "world", lambda: (0, 3))
    with pytest.raises(ValueError, match=rf"{name} is 32, which does not divide among 3 processes: choose a multiple of 3"):
        begun({**sizes, name: 32})  # whichever stage was asked for
    assert not (tmp_path / "run").exists()


def test_only_a_finished_run_is_published(begun, tmp_path):
    begun()
    with pytest.raises(RunError, match=r"holds no finished run: only one with a summary\.json is published"):
        shakespeare.publish(tmp_path / "run", tmp_path / "published")


# ----------------------------------------------------------------------------------------- processes

on_cpu = pytest.mark.skipif(torch.backends.mps.is_available(), reason="the command would run on the Apple GPU")


def command(folder, tiny, changes=None):
    flags = [part for name, value in {**tiny, **(changes or {})}.items() for part in (f"--{name}", str(value))]
    return ["-m", "rlhf_lib", "run", "--preset", "smoke", "--out", str(folder), *flags]


@on_cpu
def test_a_run_killed_at_drawn_moments_ends_with_the_same_figures(tiny_run, tiny, tmp_path):
    folder = tmp_path / "run"
    work = read(tiny_run / "summary.json")["seconds"]["total"]
    assert killed_at_drawn_moments(command(folder, tiny), folder, work) >= 1
    assert stats_of(folder) == stats_of(tiny_run)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (folder / name).read_bytes() == (tiny_run / name).read_bytes()
    for stage in ("base", "reward", "policy"):
        tensors, expected = (checkpoints.read_tensors(where / stage) for where in (folder, tiny_run))
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert set(read(folder / "summary.json")["seconds"]) == {*STAGES, "total"}


def test_ctrl_c_says_how_to_go_on(tiny, tmp_path):
    folder = tmp_path / "run"
    process = started(command(folder, tiny, {"pretrain.steps": 100_000}))
    while process.poll() is None and len(runs.Metrics(folder).read()) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err.decode()
    assert err.decode().rstrip().endswith("Stopped. The same command goes on from the last saved step.")
    assert "Traceback" not in err.decode()
    assert "pretrain" not in Shakespeare(settings_in(folder), folder, CPU).stages.done()  # and it is not taken for done


def settings_in(folder):
    return command_line.settings_of(SimpleNamespace(out=folder))


# The command line as on hardware without bfloat16, whose rounding would drown what the test looks for.
IN_FLOAT32 = """
import sys
from rlhf_lib import devices
from rlhf_lib.__main__ import main
from rlhf_lib.trainers import muon, rollouts

devices.has_bf16 = muon.has_bf16 = rollouts.has_bf16 = lambda device: False
sys.exit(main())
"""


def in_two_processes(folder, settings, command=("-m", "rlhf_lib")):
    """A run by two processes; returns its folder."""
    write_json(folder / "settings.json", flat(settings))  # which the command finds there
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = started([*launch, *command, "run", "--out", str(folder)], PYTHONPATH=str(ROOT))
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()
    assert not [name for name in files(folder) if name.endswith((".pt", ".tmp"))]
    assert set(read(folder / "stages.json")) == set(STAGES)
    return folder


def agree(two, one, stage):
    """Whether the figures of `stage` are the same in both folders, but for what sums in another order do."""
    for left, right in zip(runs.Metrics(two).read(stage), runs.Metrics(one).read(stage), strict=True):
        assert left.keys() == right.keys()
        for name in right.keys() - {"stage"}:
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-3), (stage, right["step"], name)


@on_cpu
def test_two_processes_pretrain_as_one_does(tiny_run, tiny_settings, tmp_path):
    two = in_two_processes(tmp_path / "two", tiny_settings())
    agree(two, tiny_run, "pretrain")
    stats, expected = stats_of(two), stats_of(tiny_run)
    assert stats.keys() == expected.keys()
    assert stats["val_bits_per_char"] == pytest.approx(expected["val_bits_per_char"], rel=1e-3)
    assert len(rows_of(two)) == 64


@on_cpu
def test_two_processes_train_the_policy_as_one_does(tiny_run, begun, tiny_settings, monkeypatch, tmp_path):
    """From one and the same base and reward model: the smallest difference in them can turn a draw."""
    start = {"init_from": str(tiny_run)}
    for module in (devices, muon, rollouts):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    begun(start).run()
    (tmp_path / "in_float32.py").write_text(IN_FLOAT32)
    two = in_two_processes(tmp_path / "two", tiny_settings(start), [str(tmp_path / "in_float32.py")])
    agree(two, tmp_path / "run", "policy")
    stats, expected = stats_of(two), stats_of(tmp_path / "run")
    for name, value in expected.items():
        if isinstance(value, float):
            assert stats[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


# ----------------------------------------------------------------------------------------- the preset


@pytest.mark.timeout(900)
def test_the_smoke_preset_goes_through_every_stage_on_the_plays_and_the_hand_made_labels(tmp_path):
    summary = Shakespeare(PRESETS["smoke"], tmp_path).run()
    assert set(read(tmp_path / "stages.json")) == set(STAGES)
    assert summary.keys() >= PROMISED
    assert summary["val_bits_per_char"] < 4
    assert summary["reward_accuracy"] > 0.5 and summary["reward_passages"] > 100
    assert len(summary["raters"]) > 1 and labels.SYNTHETIC not in summary["raters"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert f"the labels of {len(summary['raters'])} readers" in page
