"""The benchmarks' own parts: medians, disturbance, the table, the plot; and one group of rows at tiny shapes."""

import ast
import copy
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from benchmarks import decode, frontier, growth, lower, measure, pipeline, ppo, pretrain, reading, table
from benchmarks.__main__ import GROUPS, main
from benchmarks.measure import BenchmarkError, Row
from rlhf_lib import checkpoints, corpus, labels, runs
from rlhf_lib.files import read_json
from rlhf_lib.judge import GoldJudge
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.pipelines.shakespeare import PRESETS
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import pretrain as pretrain_loop
from rlhf_lib.trainers.ppo import train
from rlhf_lib.trainers.pretrain import evaluate

OPTIONS = SimpleNamespace(rounds=2, retries=3)


def row(**changes):
    return Row(**{"name": "a", "work": "b", "unit": "tokens/s", "ours": [3.0], "peer": "p", "theirs": [2.0], **changes})


# ----------------------------------------------------------------------------------------- rounds and disturbance


@pytest.fixture
def machine(monkeypatch):
    """A made-up machine of 2 cores: `spend(wall, own, others)` lets time go by."""
    state = {"wall": 0.0, "own": 0.0, "busy": 0.0}

    def spend(wall, own, others):
        state["wall"] += wall
        state["own"] += own
        state["busy"] += own + others

    monkeypatch.setattr(measure.time, "perf_counter", lambda: state["wall"])
    monkeypatch.setattr(measure, "own_seconds", lambda: state["own"])
    monkeypatch.setattr(measure, "busy_seconds", lambda: state["busy"])
    monkeypatch.setattr(measure.os, "cpu_count", lambda: 2)
    return spend


def test_others_are_what_this_process_did_not_take(machine):
    with measure.Watch() as watch:
        machine(wall=10, own=15, others=3)
    assert watch.others == pytest.approx(3 / 20)


def rounds(machine, others):
    """`measure` over rounds of ten seconds in which others take these CPU seconds; the figures number the attempts."""
    attempts = iter(enumerate(others))

    def once():
        number, seconds = next(attempts)
        machine(wall=10, own=10, others=seconds)
        return {"ours": number, "peer": -number}

    return measure.measure(once, OPTIONS, "test"), next(attempts, (None,))[0]


def test_quiet_rounds_are_measured_once(machine):
    (figures, others), left = rounds(machine, [0.1, 0.9, 99])
    assert figures == {"ours": [0, 1], "peer": [0, -1]}
    assert others == pytest.approx([0.005, 0.045])
    assert left == 2


def test_a_disturbed_round_is_measured_again(machine):
    (figures, others), left = rounds(machine, [5, 1.1, 0.2, 0, 99])
    assert figures["ours"] == [2, 3]
    assert others == pytest.approx([0.01, 0])
    assert left == 4


def test_a_round_that_never_is_quiet_keeps_its_quietest_attempt_and_says_so(machine):
    (figures, others), left = rounds(machine, [5, 2, 3, 4, 0, 99])
    assert figures["ours"] == [1, 4] and left == 5  # three repetitions, no more
    assert others == pytest.approx([0.1, 0])
    assert row(others=others).disturbed == 1
    assert "**disturbed** in 1 of 2 rounds" in table.markdown([row(others=others)])
    assert "disturbed" not in table.markdown([row(others=[0.05, 0.0])])


def test_the_watch_sees_this_machine():
    with measure.Watch() as watch:
        time.sleep(0.5)  # long beside a tick of the system's clock
    assert 0 <= watch.others < 1.2


# ----------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "gain", "wanted", "met"),
    [
        ("faster", [10, 4, 12], [4, 2, 40], 2.0, 2.0, True),  # 2.5, 2 and 0.3: of the rounds, not of the medians
        ("faster", [10, 1, 12], [5, 3], 2.5, 2.0, True),  # not the same rounds
        ("faster", [10], [5], 2.0, 2.1, False),
        ("sooner", [5, 5], [10, 14], 2.4, 2, True),
        ("sooner", [math.inf], [10], 0.0, 1, False),
        ("lower", [1.75], [2.0], 0.25, 0.1, True),
        ("lower", [1.95], [2.0], 0.05, 0.1, False),
        ("at most", [4, 5, 9], [], 5, 5, True),
        ("at most", [6], [], 6, 5, False),
        ("faster", [10], [5], 2.0, None, None),
    ],
)
def test_a_row_compares_what_was_measured_in_one_round(kind, ours, theirs, gain, wanted, met):
    made = row(kind=kind, ours=ours, theirs=theirs, wanted=wanted)
    assert made.gain == pytest.approx(gain)
    assert made.met is met
    assert ("missed" in table.markdown([made])) == (met is False)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of faster, sooner, lower, at most, got 'better'"):
        row(kind="better")


def test_the_table_shows_median_spread_ratio_and_what_was_wanted():
    made = row(ours=[11000.4, 12000.2, 9000], theirs=[2000, 3000, 2500], wanted=6)
    line = table.markdown([made]).splitlines()[2]
    assert line == "| b (tokens/s) | 11,000 (9,000 to 12,000) | p | 2,500 (2,000 to 3,000) | 4 x | 6 x, **missed** |"


def test_unlike_results_are_not_compared():
    ours = torch.tensor([1.0, -50.0])
    assert measure.agree(ours, ours + 1e-3, 1e-4, "logits").startswith("logits agree within 2e-05")
    with pytest.raises(BenchmarkError, match="logits differ"):
        measure.agree(ours, ours + 1e-2, 1e-4, "logits")
    with pytest.raises(BenchmarkError):
        measure.agree(ours * math.nan, ours, 1e-4, "logits")


def test_a_peer_with_other_weights_is_found_out():
    ours, theirs = decode.gpt2_pair(decode.QUICK[0].shape)
    prompts = torch.zeros(2, 1, dtype=torch.long)
    decode.check(ours, theirs, prompts, 4)
    with torch.no_grad():
        theirs.transformer.h[0].mlp.c_fc.weight[0] += 1
    with pytest.raises(BenchmarkError, match="differ"):
        decode.check(ours, theirs, prompts, 4)


# ----------------------------------------------------------------------------------------- results


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "machine", lambda device: {"name": device, "versions": {"python": "3"}})
    return lambda: table.Results(tmp_path, ["decode", "ppo"])


def test_results_of_single_rows_come_together_in_the_tables_order(results):
    results().add("cpu", "ppo", [row(name="second", work="iterate")])
    results().add("cpu", "decode", [row(name="first", work="write")])
    results().add("cuda", "decode", [row(name="third", work="write fast")])
    again = results()
    assert [one.name for one in again.rows("cpu")] == ["first", "second"]
    page = (again.folder / "table.md").read_text()
    assert page.index("write (") < page.index("iterate (") < page.index("## GPU: cuda") < page.index("write fast (")
    saved = json.loads((again.folder / "results.json").read_text())["cpu"]["groups"]["decode"][0]
    assert saved["median"] == 3.0 and saved["gain"] == 1.5


def test_a_row_that_is_measured_again_replaces_the_old_one(results):
    results().add("cpu", "decode", [row(ours=[1.0])])
    results().add("cpu", "decode", [row(ours=[2.0])])
    assert [one.ours for one in results().rows("cpu")] == [[2.0]]


def test_rows_of_another_machine_are_not_mixed_in(results, monkeypatch):
    results().add("cpu", "decode", [row()])
    monkeypatch.setattr(table, "machine", lambda device: {"name": "another", "versions": {}})
    results().add("cpu", "ppo", [row(name="new")])
    assert [one.name for one in results().rows("cpu")] == ["new"]


def test_the_plot_is_small_and_shows_every_comparison(results):
    made = results()
    made.add("cpu", "decode", [row(name=f"row {place}", wanted=2.0) for place in range(12)])
    file = made.folder / "speed-cpu.png"
    assert file.read_bytes().startswith(b"\x89PNG") and 5_000 < file.stat().st_size < 200_000
    (ax,) = table.plot(made.rows("cpu")).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"row {place}" for place in reversed(range(12))]
    assert table.plot([row(kind="at most", theirs=[])]) is None


def test_a_page_names_the_machine_and_its_versions():
    here = table.machine("cpu")
    assert (
        here["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0] and here["threads"] == torch.get_num_threads()
    )
    page = table.page("cpu", here, [row(check="logits agree")])
    assert here["name"] in page and f"torch {torch.__version__.split('+')[0]}" in page and "logits agree" in page


# ----------------------------------------------------------------------------------------- parts of single rows


def test_the_time_to_a_loss_lies_between_two_evaluations():
    points = [(10.0, 3.0), (20.0, 2.0), (30.0, 1.0)]
    assert pretrain.reached(points, 3.5) == 10
    assert pretrain.reached(points, 2.0) == 20
    assert pretrain.reached(points, 1.75) == pytest.approx(22.5)
    assert pretrain.reached(points, 0.5) == math.inf


def test_the_recipes_rate_rises_to_its_height_and_falls_to_its_end():
    rates = [pretrain.recipe_rate(step, 2000, 100, 1e-3, 1e-4) for step in range(2000)]
    assert rates[0] == pytest.approx(1e-3 / 101)
    assert max(rates) == rates[100] == pytest.approx(1e-3)
    assert rates[1050] == pytest.approx(5.5e-4)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)


def test_evaluation_is_off_the_clock(machine, monkeypatch):
    monkeypatch.setattr(pretrain, "EVALUATE", lambda *_: machine(7, 0, 0) or {"loss": 2.5})
    clock = pretrain.Clock()
    machine(3, 0, 0)
    clock.evaluate()
    machine(2, 0, 0)
    assert clock.evaluate() == {"loss": 2.5}
    assert clock.points == [(3, 2.5), (5, 2.5)]


def test_both_sides_evaluate_alike():
    shape = dict(layers=1, heads=2, width=16, context=8)
    data = SimpleNamespace(vocab_size=11, validation=(torch.arange(300) % 11, 300))
    assert "agree" in pretrain.same_loss(data, shape)
    assert pretrain.ours.evaluate is evaluate  # put back after every run


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_exponent_of_growth(power):
    sizes = [32, 64, 256]
    assert growth.exponent(sizes, [0.3 * size**power for size in sizes]) == pytest.approx(power)


def test_memory_is_judged_over_the_second_half():
    assert growth.per_iteration([100, 900, 950, 1000, 1000, 1000]) == 0
    assert growth.per_iteration([0, 10, 20, 30, 40, 50]) == 10


def test_the_peers_time_is_the_sum_of_its_parts():
    work = {"pretrain": 600, "reward": 300, "policy": 120, "samples": 400}
    total, terms = pipeline.arithmetic(work, (10, 2, 20))
    assert total == 60 + 30 + 60 + 20
    assert "PPO 120 completions / 2 = 1.0 min" in terms and terms.endswith("together 2.8 min")


@pytest.mark.parametrize("name", PRESETS)
def test_rows_on_a_card_have_the_shapes_of_the_preset(name):
    model, settings = PRESETS[name].model, PRESETS[name].ppo
    sizes = (model.layers, model.heads, model.width, model.vocab_size, settings.rollout_size, settings.max_new_tokens)
    one, other = decode.of_preset(name), ppo.of_preset(name)
    assert (one.layers, one.heads, one.width, one.vocab_size, one.batch, one.tokens) == sizes
    assert (other.layers, other.heads, other.width, other.vocab_size, other.completions, other.tokens) == sizes
    assert (other.epochs, other.minibatch) == (settings.epochs, settings.minibatch)


@pytest.mark.parametrize(("kept", "shown"), [(True, "fp32"), (False, "fp32, ours by copies in bfloat16")])
def test_ours_writes_by_a_quick_copy_and_the_row_says_of_what_type(monkeypatch, kept, shown):
    """On a machine that is made up: one whose copies are the model itself, and one that has bfloat16."""
    used = []
    monkeypatch.setattr(decode, "quick_copy", lambda model: model if kept else copy.deepcopy(model).bfloat16())
    monkeypatch.setattr(decode, "check", lambda *_: "")
    monkeypatch.setattr(decode, "peer_generate", lambda *_, **__: None)
    monkeypatch.setattr(decode, "generate", lambda model, *_: used.append(next(model.parameters()).dtype))
    (row, _) = decode.compare(decode.QUICK[0], SimpleNamespace(rounds=1, retries=0, device="cpu", profile=False))
    assert used == [torch.float32 if kept else torch.bfloat16, torch.float32] * 2  # a warm-up and a round
    assert row.work.endswith(f"temperature 1, {shown}") and row.note.startswith("ours without copies")


def test_the_rate_leaves_out_the_iteration_that_warms_up():
    shape = SimpleNamespace(completions=10)
    assert ppo.rate([0.0, 100.0, 102.0, 104.0], shape) == 5  # the end of the warm-up is at 100


@pytest.fixture(scope="module")
def models(tiny):
    return ppo.Models(ppo.QUICK, Path(tiny["corpus"]).read_text(encoding="utf-8"))


def test_policies_and_reward_models_of_both_sides_are_the_same(models):
    tokens = torch.randint(1, 300, (4, 8), generator=torch.Generator().manual_seed(0))
    assert models.check(tokens).count("agree") == 2
    ids = [[5, 6, 7], [8]]
    alone = [models.reward.logits(torch.tensor([row])).item() for row in ids]
    assert models.peer_rewards(ids) == pytest.approx(alone, abs=1e-5)
    with torch.no_grad():
        models.peer_reward.score.weight.neg_()
    with pytest.raises(BenchmarkError, match="rewards differ"):
        models.check(tokens)
    with torch.no_grad():
        models.peer_reward.score.weight.neg_()


def test_the_watch_is_called_once_behind_every_rollout_and_only_looks(models, monkeypatch):
    ends, logged, weights = iter(range(100)), [], {name: x.clone() for name, x in models.policy.state_dict().items()}

    def watched(*arguments, **options):
        policy = train(*arguments, **options)
        logged.extend(runs.Metrics(arguments[5]).read("policy"))
        return policy

    monkeypatch.setattr(ppo.ppo, "train", watched)
    watch = ppo.Stopwatch(look=lambda: next(ends))
    rate = ppo.our_ppo(models, ppo.QUICK, iterations=3, watch=watch)
    assert watch.seen == [0, 1, 2, 3] and len(watch.times) == 4  # the last rollout is only measured
    assert watch.times == sorted(watch.times)
    assert rate == pytest.approx(8 * 2 / (watch.times[3] - watch.times[1]))
    assert [record["step"] for record in logged] == [0, 1, 2, 3] and all("gold" in record for record in logged)
    assert all(record["rollout_size"] == 8 for record in logged)
    assert all(torch.equal(x, weights[name]) for name, x in models.policy.state_dict().items())


def test_the_watch_notes_what_the_gold_judge_says():
    texts = ["I love thee, sweet joy", "death and hatred"]
    found = ppo.Stopwatch()(SimpleNamespace(texts=texts), None)
    assert found == {"gold": pytest.approx(GoldJudge().score(texts).mean().item())}


def test_the_amounts_of_work_are_those_of_the_runs_settings(tiny_run, monkeypatch):
    """The hand-made labels are what a laptop run learns from; here they are made up: three passages, one of them held out."""
    monkeypatch.setattr(pipeline.corpus, "load", lambda name: name)
    monkeypatch.setattr(pipeline.labels, "hand_made", lambda plays: [f"{plays} {number}" for number in range(3)])
    rows = [SimpleNamespace(text="love"), SimpleNamespace(text="my seven")]
    monkeypatch.setattr(pipeline.labels, "split", lambda made, share: (rows, made[len(rows) :]))
    tokenizer = pipeline.tokenization.load(tiny_run / "base" / "tokenizer.json")
    settings = read_json(tiny_run / "settings.json")
    assert pipeline.amounts(tiny_run, settings) == {
        "pretrain": 40 * 8 * 64,
        "reward": 4 * sum(len(tokenizer.encode(row.text)) for row in rows),
        "policy": 2 * 32,
        "samples": (64 + 2 * 64) * 16,
    }


def test_a_finished_run_is_not_made_again(tiny_run, monkeypatch):
    monkeypatch.setattr(pipeline.subprocess, "run", lambda *_, **__: pytest.fail("a run was made"))
    monkeypatch.setattr(pipeline, "amounts", lambda folder, settings: settings["pretrain.steps"])
    summary, settings, work = pipeline.finished(tiny_run)
    assert summary == read_json(tiny_run / "summary.json") and settings["model.width"] == 32 and work == 40


def steps_inside(source):
    """The lines of a program where an optimiser steps inside an autocast."""
    blocks = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.With)]
    casting = [block for block in blocks if any("autocast(" in ast.unparse(item) for item in block.items)]
    inside = [node for block in casting for node in ast.walk(block) if isinstance(node, ast.Attribute)]
    return [node.lineno for node in inside if node.attr == "step"]


def test_no_optimiser_steps_inside_an_autocast():
    """Autocast keeps its casts of the weights to its end: what computes behind the step would not see it."""
    assert steps_inside("with devices.autocast(device, 64):\n    model(x).sum().backward()\n    optimizer.step()\n") == [3]
    root = Path(__file__).parents[1]
    programs = [*(root / "benchmarks").glob("*.py"), *(root / "rlhf_lib" / "trainers").glob("*.py")]
    assert sum("autocast(" in path.read_text(encoding="utf-8") for path in programs) > 5
    assert {path.name: found for path in programs if (found := steps_inside(path.read_text(encoding="utf-8")))} == {}


# ----------------------------------------------------------------------------------------- the command


def test_rows_that_do_not_exist_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["decode", "walk"])
    assert f"no rows called walk: choose from {', '.join(GROUPS)}" in capsys.readouterr().err


def test_a_group_of_rows_runs_alone_at_tiny_shapes(tmp_path, capsys):
    assert main(["decode", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "transformers generate, no cache" in printed.out
    assert "round 2 of 2" in printed.err
    (first, second) = json.loads((tmp_path / "results.json").read_text())["cpu"]["groups"]["decode"]
    assert first["peer"] == "transformers generate, cache" and len(first["ours"]) == len(first["theirs"]) == 2
    assert "logits agree" in second["check"] and "log-probabilities of what is sampled agree" in second["check"]


# ----------------------------------------------------------------------------------------- the frontier


@pytest.fixture
def tiny_frontier(tmp_path, monkeypatch):
    """A base, a reward model and settings that take seconds, in this process: how it is called, and what was trained."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer(list("\nabcdefgh gody!"))
    base = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context=64, layers=1, heads=2, width=16))
    model = RewardModel(base)
    torch.nn.init.normal_(model.score.weight)
    for name, one in (("base", base), ("reward", model)):
        checkpoints.save(tmp_path / "published" / name, one, tokenizer)
    monkeypatch.setattr(frontier.course, "PUBLISHED", tmp_path / "published")
    shape = {
        "ppo": {"minibatch": 8},
        "rloo": {"minibatch": 8, "group": 4},
        "grpo": {"minibatch": 8, "group": 4},
        "rejection": {"minibatch": 4},
        "control": {"minibatch": 4},
        "dpo": {"batch": 4, "evaluations": 2},
    }
    methods = {name: replace(config, max_new_tokens=8, max_kl=1e3, **shape[name]) for name, config in small_rollouts().items()}
    monkeypatch.setattr(frontier, "METHODS", methods)
    monkeypatch.setattr(frontier, "ORIGINALS", 32)
    trained, real = [], frontier.train

    def train(config, budget, seed, folder):
        trained.append(folder.name)
        return real(config, budget, seed, folder)

    class Here:
        """The pool of processes, without processes."""

        def __init__(self, *_, **__):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731
        apply = staticmethod(lambda function, arguments: function(*arguments))
        starmap = staticmethod(lambda function, rows: [function(*row) for row in rows])

    monkeypatch.setattr(frontier, "train", train)
    monkeypatch.setattr(frontier.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=Here))

    def call(*more):
        where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
        if main(["frontier", "--iterations", "2", "--rollout", "16", *where, *more]):
            return None
        return json.loads((tmp_path / "frontier.json").read_text())

    return call, trained


def small_rollouts():
    """The methods of the frontier with rollouts of 16, so that a rollout is a multiple of everything."""
    sizes = {"rollout_size": 16, "minibatch": 4}
    made = {}
    for name, config in frontier.METHODS.items():
        own = {"samples": 16} if name == "dpo" else {**sizes, "max_rollout_size": 16} if name == "ppo" else sizes
        made[name] = replace(config, **own)
    return made


def test_every_method_has_as_many_completions_and_a_point_for_every_measurement(tiny_frontier):
    call, trained = tiny_frontier
    found = call("--seeds", "3")
    assert [run["method"] for run in found["runs"]] == list(frontier.METHODS) and len(trained) == 6
    for run in found["runs"]:
        assert (
            run["completions"] == 32
            and run["seed"] == 3
            and (run["seconds"] >= 0 or run["method"] == "dpo")
            and run["peak_memory_bytes"] > 0
        )
        spent = [point["completions"] for point in run["points"]]
        assert spent[0] == 0 and spent[-1] == 32 and spent == sorted(set(spent))
        assert run["points"][0]["kl"] == pytest.approx(0, abs=1e-2)
        assert all(math.isfinite(value) for point in run["points"] for value in point.values())
    (picked,) = found["best_of_n"]
    assert [point["n"] for point in picked["points"]] == [1, 2, 4, 8, 16, 32]
    rewards = [point["reward"] for point in picked["points"]]
    assert rewards == sorted(rewards) and picked["points"][2]["kl"] == pytest.approx(0.6363, abs=1e-4)
    assert found["machine"]["cores"] >= 1


def test_a_run_that_is_done_is_not_made_again_nor_one_of_other_settings_in_its_place(tiny_frontier, capsys):
    call, trained = tiny_frontier
    first = call("--methods", "rloo", "--seeds", "0", "1")
    assert call("--methods", "rloo", "--seeds", "0", "1", "2")["runs"][:2] == first["runs"]
    assert trained == ["rloo-0", "rloo-1", "rloo-2"]
    frontier.METHODS["rloo"] = replace(frontier.METHODS["rloo"], kl_coef=0.5)
    assert call("--methods", "rloo", "--seeds", "0") is None
    assert re.search(
        r"error: .*rloo-0 holds a run with other settings: delete it, or give another --runs", capsys.readouterr().err
    )


def test_a_size_that_a_method_cannot_have_is_said_before_the_first_run(tiny_frontier, capsys):
    call, trained = tiny_frontier
    assert call("--seeds", "0", "--rollout", "12") is None and trained == []
    assert re.search(r"^error: ppo.rollout_size must be a multiple of ppo.minibatch, got 12 and 8$", capsys.readouterr().err)


def test_passages_are_laid_out_for_readers_who_cannot_see_who_wrote_them(tiny_frontier, tmp_path, monkeypatch, capsys):
    call, _ = tiny_frontier
    where = ["--seeds", "0", "2", "--runs", str(tmp_path / "runs"), "--sheet"]
    assert main(["frontier", *where]) == 1
    assert "ppo-0 holds no finished run: run this without --sheet first" in capsys.readouterr().err
    call("--seeds", "0", "2")
    monkeypatch.setattr(frontier, "READ", 6)
    monkeypatch.setattr(frontier, "READ_MORE", 2)
    assert main(["frontier", *where]) == 0
    sheet, key = (
        [json.loads(line) for line in (tmp_path / "runs" / name).read_text(encoding="utf-8").splitlines()]
        for name in ("sheet.jsonl", "key.jsonl")
    )
    assert [{"id": one["id"], "text": one["text"]} for one in key] == sheet
    writers = [one["writer"] for one in key]
    assert writers != sorted(writers)
    expected = {
        "laptop-0": 6,
        "best-of-32": 12,
        **{f"{m}-0": 6 for m in frontier.METHODS},
        **{f"{m}-2": 2 for m in frontier.METHODS},
    }
    assert {name: writers.count(name) for name in writers} == expected


# ----------------------------------------------------------------------------------------- the sheet for blind readers


def test_the_sheet_has_what_the_key_has_and_names_no_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WRITERS", {name: reading.WRITERS[name] for name in ("laptop-0", "laptop-0/policy")})
    reading.sheet(tmp_path, each=4, of_plays=3)
    key, sheet = json.loads((tmp_path / "key.json").read_text()), (tmp_path / "sheet.txt").read_text()
    writers = [row["checkpoint"] for row in key]
    assert {name: writers.count(name) for name in set(writers)} == {"laptop-0": 4, "laptop-0/policy": 4, "plays": 3}
    assert writers != sorted(writers) and "laptop" not in sheet and "plays" not in sheet
    assert sheet == "\n\n".join(f"=== {number}\n{row['text']}" for number, row in enumerate(key))
    text = corpus.SEPARATOR.join(corpus.split(corpus.load())["validation"]["text"])
    for row in key:
        assert len(row["text"]) >= 30 and row["text"] == labels.whole_phrases(row["text"])
        assert (row["checkpoint"] == "plays") == (f"\n\n{row['text']}" in text)


def test_the_readings_are_of_the_sheets_writers():
    read = labels.read(labels.LARGE)
    first = labels.first_readings(read)
    writers = [label.source[1] for label in first]
    assert {name: writers.count(name) for name in set(writers)} == {
        **dict.fromkeys(reading.WRITERS, reading.EACH),
        "plays": reading.REAL,
    }
    assert len(read) - len(first) == 117 and all(label.sense in range(1, 6) for label in read)


# ----------------------------------------------------------------------------------------- lower: fewer bits per character


SMALL = GPTConfig(vocab_size=11, context=8, layers=3, heads=2, width=8)


def shaken(**added):
    torch.manual_seed(0)
    model = lower.Lower(SMALL, **added)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return model


def test_without_additions_it_is_the_presets_model():
    model = shaken()
    plain = GPT(SMALL)
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(2))
    assert torch.equal(model(tokens), plain(tokens))


def test_a_fresh_table_and_no_share_of_the_embedding_change_nothing_yet():
    torch.manual_seed(0)
    model = lower.Lower(SMALL, mixed=True, table=True)
    torch.nn.init.normal_(model.head.weight)
    tokens = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.mix_embedding[:, 1] = 0
        plain = GPT(SMALL)
        plain.load_state_dict({name: one for name, one in model.state_dict().items() if name in plain.state_dict()})
        assert torch.equal(model(tokens), plain(tokens))
        model.table_embedding.weight += torch.randn(
            model.table_embedding.weight.shape, generator=torch.Generator().manual_seed(3)
        )
        assert not torch.allclose(model(tokens), plain(tokens))


@pytest.mark.parametrize("row", ["mixed", "values", "table"])
def test_no_addition_sees_what_is_still_to_come(row):
    model = shaken(**lower.ROWS[row])
    tokens = torch.randint(11, (1, 8), generator=torch.Generator().manual_seed(2))
    other = tokens.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 11
    one, two = model(tokens), model(other)
    torch.testing.assert_close(one[:, :5], two[:, :5], rtol=0, atol=1e-6)
    assert ((one - two)[:, 5:].abs() > 1e-4).any(-1).all()


def test_every_weight_of_an_addition_is_trained_as_an_embedding():
    model = shaken(**lower.ROWS["table"])
    _, adam = pretrain_loop.make_optimizers(model, pretrain_loop.PretrainConfig())
    trained = {id(weight) for weight in adam.param_groups[0]["params"]}
    assert {id(model.mix_embedding), id(model.table_embedding.weight), id(model.value_embeddings["1"].weight)} <= trained
    assert list(model.value_embeddings) == ["1"]


def test_a_board_goes_on_where_it_was_stopped_and_has_a_line_a_row(tmp_path, monkeypatch, capsys):
    text = Dataset.from_dict({"text": ["O joy, my lord.\n\n" * 60, "Ay me, alas!\n\n" * 60], "work": ["a", "b"]})
    shape = replace(SMALL, vocab_size=64)
    brief = replace(PRESETS["smoke"].ppo, max_new_tokens=4)
    small = replace(PRESETS["smoke"], tokenizer="char", model=shape, ppo=brief)
    monkeypatch.setattr(lower, "PRESETS", {"laptop": small})
    monkeypatch.setattr(lower.Material, "text", text)
    asked = ["--rows", "start", "halves", "--seeds", "0", "1", "--folder", str(tmp_path / "runs"), "--steps"]
    main(["lower", *asked, "2"])  # shorter runs are others
    main(["lower", *asked, "4"])
    board = json.loads((tmp_path / "runs" / "board.json").read_text())
    lines = list(board.values())
    assert list(board) == ["start", "halves"] and [(line["batch"], line["steps"]) for line in lines] == [(8, 4), (16, 2)]
    assert all(len(line["bits_per_char"]) == 2 and line["bits_per_char"][0] != line["bits_per_char"][1] for line in lines)
    assert lines[0]["mean"] == pytest.approx(sum(lines[0]["bits_per_char"]) / 2) and lines[1]["weights"] > lines[0]["weights"]
    (tmp_path / "runs" / "start-0-4.json").unlink()
    before = (tmp_path / "runs" / "halves-1-4.json").stat().st_mtime_ns
    main(["lower", *asked, "4"])
    again = json.loads((tmp_path / "runs" / "board.json").read_text())
    assert all(again[row]["bits_per_char"] == line["bits_per_char"] for row, line in board.items())
    assert (tmp_path / "runs" / "halves-1-4.json").stat().st_mtime_ns == before
