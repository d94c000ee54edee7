import itertools
import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch

from rlhf_lib import checkpoints, comparisons, devices, runs
from rlhf_lib.comparisons import ComparisonError
from rlhf_lib.files import RunError, read_json, write_json
from rlhf_lib.models.published import PublishedError
from rlhf_lib.pipelines import assistant, judging
from rlhf_lib.pipelines.assistant import Assistant
from rlhf_lib.pipelines.assistant_settings import PRESETS
from rlhf_lib.pipelines.settings import changed, flat
from rlhf_lib.trainers import preference, rewards, rollouts
from rlhf_lib.trainers.preference import Ranking

from .helpers import killed_at_drawn_moments

CPU = torch.device("cpu")
STAGES = ("sft", "reward", "policy", "judge", "report")
RATES = ("win_rate_sft", "win_rate_policy", "win_rate_policy_over_sft", "win_rate_best_of_over_sft")
# What DESIGN.md and the table of the pipeline promise of summary.json.
PROMISED = {
    "sft_loss", "reward_accuracy", "reward_pairs", "length_accuracy", "calibration_error", "kl_nats", "position_bias",
    "length_ratio", "distinct_2_ratio", "ended_share", "seconds", "peak_memory_bytes", "parameters", "left_out",
    *RATES, *(f"{rate}_interval" for rate in RATES),
}  # fmt: skip
LEFT = ("base", "sft", "reward", "policy", "gold/reward")  # checkpoints


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def stamps(folder):
    """Which files there are, and which write left each of them: an atomic write makes a new file."""
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in files(folder)}


def stats_of(folder):
    """The summary without what differs from run to run."""
    return {
        name: value for name, value in read_json(folder / "summary.json").items() if name not in ("seconds", "peak_memory_bytes")
    }


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def summary(assistant_run):
    return read_json(assistant_run / "summary.json")


@pytest.fixture(scope="module")
def answers(assistant_run):
    """The answers of the tiny run, by side."""
    by_side = {}
    for row in rows(assistant_run / "answers.jsonl"):
        by_side.setdefault(row["side"], []).append(row)
    return by_side


@pytest.fixture
def copied(assistant_run, assistant_settings, tmp_path):
    """`copied("judge")`: the tiny run in a folder of its own, from whose stage "judge" on nothing is done."""

    def run(stage, changes=None):
        folder = tmp_path / "copied"
        shutil.copytree(assistant_run, folder)
        done = read_json(folder / "stages.json")
        write_json(folder / "stages.json", {name: done[name] for name in STAGES[: STAGES.index(stage)]})
        for name in ("summary.json", "answers.jsonl", "verdicts.jsonl", "report.html"):
            (folder / name).unlink()
        return Assistant(assistant_settings(changes), folder, CPU)

    return run


# ----------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_every_file_and_no_training_state(assistant_run):
    there = files(assistant_run)
    expected = [f"{folder}/{name}" for folder in LEFT for name in ("model.safetensors", "tokenizer.json")]
    own = ("settings.json", "stages.json", "metrics.jsonl", "summary.json", "answers.jsonl", "verdicts.jsonl", "report.html")
    for name in (*expected, *own, "policy/reward.json"):
        assert name in there
    assert not [name for name in there if name.endswith((".pt", ".tmp"))]
    assert tuple(read_json(assistant_run / "stages.json")) == STAGES
    assert {record["stage"] for record in runs.Metrics(assistant_run).read()} == {"sft", "reward", "policy"}


def test_the_summary_has_what_is_promised(summary):
    assert summary.keys() >= PROMISED
    for rate in RATES:
        low, high = summary[f"{rate}_interval"]
        assert 0 <= low <= summary[rate] <= high <= 1
    assert set(summary["seconds"]) == {*STAGES, "total"}
    assert 50e6 < summary["peak_memory_bytes"] < 50e9
    about = {"preset": "smoke", "seed": 0, "device": "cpu", "model": "tiny", "judge": "gold", "gold": "trained in this run"}
    assert {name: summary[name] for name in about} == about
    assert summary["left_out"] == {"demonstrations": 0, "comparisons": 0, "prompts": 0}


def test_the_loss_is_that_of_the_saved_model_on_held_out_demonstrations(assistant_run, summary, tiny_talks):
    prompts = comparisons.read_prompts()
    shown = [d for d in comparisons.read_demonstrations(tiny_talks["demonstrations"], prompts) if d.split == "held_out"]
    assert (len(shown), summary["demonstrations"]) == (5, 20)
    model, tokenizer = checkpoints.load(assistant_run / "sft")
    for name, one in (("sft_loss", model), ("start_loss", model.base)):
        nats = []
        for d in shown:
            asked = tokenizer.prompt([{"role": "user", "content": d.prompt}])
            said = [*tokenizer.encode(d.answer), tokenizer.end_token]
            logprobs = one(torch.tensor([asked + said]))[0].log_softmax(-1)
            nats += [-logprobs[len(asked) + place - 1, token].item() for place, token in enumerate(said)]
        assert summary[name] == pytest.approx(sum(nats) / len(nats), rel=5e-3)  # the head may run in bfloat16
    assert summary["sft_loss"] < summary["start_loss"] - 0.02


def test_the_accuracies_are_those_on_held_out_comparisons(assistant_run, summary, tiny_talks):
    compared = comparisons.read_comparisons(tiny_talks["comparisons"], comparisons.read_prompts())
    held_out = [c for c in compared if c.split == "held_out" and not c.tie]
    model, tokenizer = checkpoints.load(assistant_run / "reward", kind="reward")
    right = longer = 0.0
    for c in held_out:
        asked = tokenizer.prompt([{"role": "user", "content": c.prompt}])
        both = [tokenizer.encode(text) + [tokenizer.end_token] * (not cut) for text, cut in c.ranked]
        better, worse = (model.logits(torch.tensor([asked + answer])).item() for answer in both)
        right += (better > worse) + 0.5 * (better == worse)
        longer += (len(both[0]) > len(both[1])) + 0.5 * (len(both[0]) == len(both[1]))
    assert summary["reward_pairs"] == len(held_out) == 13
    assert summary["comparisons"] == sum(c.split == "train" and not c.tie for c in compared)
    assert summary["reward_accuracy"] == pytest.approx(right / len(held_out))
    assert summary["reward_accuracy"] > 0.9  # these are easy
    assert summary["length_accuracy"] == pytest.approx(longer / len(held_out))
    assert summary["reader_agreement"] is None  # nobody read these twice


def test_every_side_answers_the_same_held_out_prompts(assistant_run, answers):
    held_out = {p.prompt for p in comparisons.read_prompts() if p.split == "held_out"}
    asked = [[row["prompt"] for row in answers[side]] for side in judging.SIDES]
    assert asked[0] == asked[1] == asked[2] == asked[3]
    assert len(set(asked[0])) == 6 and set(asked[0]) <= held_out
    assert all(1 <= row["tokens"] <= 10 for side in answers.values() for row in side)
    texts = [tuple(row["answer"] for row in answers[side]) for side in judging.SIDES]
    assert len(set(texts)) == 4  # each its own


def drawn_again(folder, settings, answers, side, count=1):
    """The rollout of the answers of one side, drawn anew from the saved models."""
    start = {"start": "sft", "best_of": "sft"}.get(side, side)
    model, tokenizer = checkpoints.load(folder / start)
    model = model.base if side == "start" else model
    prompts = [tokenizer.prompt([{"role": "user", "content": row["prompt"]}]) for row in answers[side] for _ in range(count)]
    return rollouts.draw(model, tokenizer, prompts, settings.ppo.max_new_tokens, devices.generator(0, f"judge {side}"), batch=64)


@pytest.mark.parametrize("side", ["start", "sft", "policy"])
def test_answers_are_drawn_from_the_saved_models_and_scored_by_the_saved_reward_model(
    assistant_run, assistant_settings, answers, side
):
    rollout = drawn_again(assistant_run, assistant_settings(), answers, side)
    assert [row["answer"] for row in answers[side]] == rollout.texts
    model, tokenizer = checkpoints.load(assistant_run / "reward", kind="reward")
    kept = read_json(assistant_run / "policy" / "reward.json")
    for row, prompt, tokens, mask in zip(answers[side], rollout.prompts, rollout.tokens, rollout.mask):
        own = tokens[mask].tolist()
        score = (model.logits(torch.tensor([prompt + own])).item() - kept["mean"]) / kept["std"]
        assert row["reward"] == pytest.approx(score, abs=1e-3)
        assert (row["tokens"], row["ended"]) == (len(own), own[-1] == tokenizer.end_token)


def test_the_best_of_n_is_the_one_that_the_reward_model_likes_best(assistant_run, assistant_settings, answers):
    rollout = drawn_again(assistant_run, assistant_settings(), answers, "best_of", 3)
    model, _ = checkpoints.load(assistant_run / "reward", kind="reward")
    whole = [p + t[m].tolist() for p, t, m in zip(rollout.prompts, rollout.tokens, rollout.mask)]
    scores = preference.score(model, whole).tolist()
    kept = read_json(assistant_run / "policy" / "reward.json")
    for place, row in enumerate(answers["best_of"]):
        three = scores[3 * place : 3 * place + 3]
        best = max(range(3), key=lambda number: three[number])
        assert row["answer"] == rollout.texts[3 * place + best]
        assert row["reward"] == pytest.approx((three[best] - kept["mean"]) / kept["std"], abs=1e-3)


def test_the_kl_is_that_between_the_saved_policy_and_the_fine_tuned_model(assistant_run, assistant_settings, answers, summary):
    rollout = drawn_again(assistant_run, assistant_settings(), answers, "policy")
    models = [checkpoints.load(assistant_run / name)[0] for name in ("policy", "sft")]
    kls = []
    for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens, rollout.mask):
        own = tokens[mask]
        whole = torch.tensor([prompt + own.tolist()])
        sides = [model(whole)[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, own[:, None]).sum() for model in models]
        kls.append((sides[0] - sides[1]).item())
    assert [row["kl"] for row in answers["policy"]] == pytest.approx(kls, abs=0.05)  # the head may run in bfloat16
    assert summary["kl_nats"] == pytest.approx(sum(row["kl"] for row in answers["policy"]) / 6)
    assert max(map(abs, kls)) > 0.1  # it has moved


def test_verdicts_are_the_gold_models_on_answers_in_both_orders(assistant_run, answers):
    model, tokenizer = checkpoints.load(assistant_run / "gold" / "reward", kind="reward")

    def score(prompt, row):
        said = tokenizer.encode(row["answer"].strip()) + [tokenizer.end_token] * row["ended"]
        return model.logits(torch.tensor([tokenizer.prompt([{"role": "user", "content": prompt}]) + said])).item()

    found = rows(assistant_run / "verdicts.jsonl")
    assert [tuple(row["sides"]) for row in found] == [pair for pair in judging.PAIRS for _ in range(6)]
    for number, row in enumerate(found):
        ours, theirs = (answers[side][number % 6] for side in row["sides"])
        assert (row["prompt"], row["ours"], row["theirs"]) == (ours["prompt"], ours["answer"], theirs["answer"])
        gap = score(row["prompt"], ours) - score(row["prompt"], theirs)
        if abs(gap) > 1e-3:
            assert (row["ours_first"], row["ours_second"]) == (("first", "second") if gap > 0 else ("second", "first"))


def test_win_rates_bias_ratios_and_shares_are_those_of_the_files(assistant_run, answers, summary):
    found = rows(assistant_run / "verdicts.jsonl")
    points = {"first": 1.0, "tie": 0.5, "second": 0.0}
    for name, pair in zip(("policy", "sft", "policy_over_sft", "best_of_over_sft"), judging.PAIRS):
        both = [(points[r["ours_first"]], 1 - points[r["ours_second"]]) for r in found if tuple(r["sides"]) == pair]
        assert summary[f"win_rate_{name}"] == pytest.approx(sum(a if a == b else 0.5 for a, b in both) / 6)
    assert summary["position_bias"] == 0  # each answer is scored by itself
    words = {side: [row["answer"].split() for row in answers[side]] for side in judging.SIDES}
    assert summary["length_ratio"] == pytest.approx(sum(map(len, words["policy"])) / sum(map(len, words["sft"])))
    grams = {side: [g for w in words[side] for g in itertools.pairwise([t.lower() for t in w])] for side in judging.SIDES}
    distinct = {side: len(set(grams[side])) / len(grams[side]) for side in judging.SIDES}
    assert summary["distinct_2_ratio"] == pytest.approx(distinct["policy"] / distinct["start"])
    assert summary["ended_share"] == sum(row["ended"] for row in answers["policy"]) / 6
    for side in judging.SIDES:
        table = summary["answers"][side]
        assert table["words"] == pytest.approx(sum(map(len, words[side])) / 6)
        assert table["reward"] == pytest.approx(sum(row["reward"] for row in answers[side]) / 6)


def test_four_models_on_one_trunk_hold_little_more_than_one(assistant_run, summary):
    base = sum(t.numel() for name, t in checkpoints.read_tensors(assistant_run / "base").items() if name != "head.weight")
    language, reward = (
        sum(t.numel() for t in checkpoints.read_tensors(assistant_run / name).values()) for name in ("policy", "reward")
    )
    assert reward == 65  # the scalar head on the trunk: 64 weights and a bias
    critic = language + 65
    counted = {"trained": language + critic, "one_trunk": base + 2 * language + critic + reward}
    assert summary["parameters"] == {**counted, "four_models": 4 * base + 2 * language + critic + reward}


def test_fine_tuning_stands_on_the_base_in_the_folder_the_rest_on_it_and_the_base_stays_as_it_was(
    assistant_run, assistant_settings, tmp_path
):
    fresh = Assistant(assistant_settings(), tmp_path / "fresh", CPU)
    tensors = checkpoints.read_tensors(assistant_run / "base")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in fresh.base.state_dict().items())
    for name in ("sft", "policy", "reward"):
        metadata = checkpoints.read_metadata(assistant_run / name)
        assert metadata["branch"] == {
            "layers": 2 if name == "sft" else 1, "rank": 2, "alpha": 4, "matrices": None, "scalar": name == "reward",
            "depth": 0 if name == "reward" else None, "pooling": "mean" if name == "reward" else "last",
            "source": "../base" if name == "sft" else "../sft",
        }  # fmt: skip
    other = Assistant(assistant_settings({"seed": 1}), tmp_path / "other", CPU)
    assert not torch.equal(other.base.embedding.weight, fresh.base.embedding.weight)


# ----------------------------------------------------------------------------------------- the reward of PPO


def test_the_rewards_constants_are_those_of_the_fine_tuned_models_answers_to_training_prompts(assistant_run, assistant_settings):
    kept = read_json(assistant_run / "policy" / "reward.json")
    train = {p.prompt for p in comparisons.read_prompts() if p.split == "train"}
    run = Assistant(assistant_settings(), assistant_run, CPU)
    prompts = [prompt for prompt in run.inputs.prompts[0][:8] for _ in range(2)]
    assert set(prompts) <= train
    sft, tokenizer = checkpoints.load(assistant_run / "sft")
    tokens = [tokenizer.prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    rollout = rollouts.draw(sft, tokenizer, tokens, 10, devices.generator(0, "normaliser"), batch=64)
    model, _ = checkpoints.load(assistant_run / "reward", kind="reward")
    whole = [p + t[m].tolist() for p, t, m in zip(rollout.prompts, rollout.tokens, rollout.mask)]
    scores = preference.score(model, whole)
    assert kept["mean"] == pytest.approx(scores.mean().item(), abs=1e-3)
    within = (scores[0::2] - scores[1::2]).square().mean().div(2).sqrt()  # the deviation of two, around their mean
    assert kept["std"] == pytest.approx(within.item(), rel=1e-2)


def test_the_policy_starts_as_the_fine_tuned_model(assistant_run):
    first = runs.Metrics(assistant_run).read("policy")[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["first_ratio"] == pytest.approx(1, abs=1e-5)
    sft, policy = (checkpoints.read_tensors(assistant_run / name) for name in ("sft", "policy"))
    assert any(not torch.equal(sft[name], policy[name]) for name in sft)


# ----------------------------------------------------------------------------------------- stopped and gone on with


def ends_as(expected, folder):
    """The run in `folder` has the figures, answers and weights of the run in `expected`, to the last bit."""
    assert stats_of(folder) == stats_of(expected)
    for name in ("metrics.jsonl", "gold/metrics.jsonl", "answers.jsonl", "verdicts.jsonl"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    for name in LEFT:
        ours, theirs = (checkpoints.read_tensors(where / name) for where in (folder, expected))
        assert all(torch.equal(ours[part], theirs[part]) for part in theirs), name


def test_a_run_killed_in_every_stage_ends_with_the_same_figures(
    assistant_run, assistant_settings, interrupted, monkeypatch, tmp_path, capsys
):
    folder = tmp_path / "run"

    def begun():
        return Assistant(assistant_settings(), folder, CPU)

    for stage, saved, stop in (("train_sft", 1, 3), ("train_reward", 4, 6), ("train_policy", 1, 2)):
        for at in (0, saved):  # before anything was saved, and behind it
            with interrupted(at, stop), pytest.raises(KeyboardInterrupt):
                getattr(begun(), stage)()
        getattr(begun(), stage)()
    draw, calls = judging.draw, []

    def stopped(*arguments):
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(judging, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        begun().judge()
    assert {row["side"] for row in rows(folder / "answers.jsonl")} == {"start", "sft"}
    with interrupted(3, stop=5), pytest.raises(KeyboardInterrupt):  # while gold is trained
        begun().judge()
    assert len(calls) == 5  # the two sides that were there were not drawn again
    monkeypatch.setattr(assistant, "write_assistant_report", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        begun().run()
    monkeypatch.undo()
    begun().run()
    ends_as(assistant_run, folder)
    assert files(folder) == files(assistant_run)


def test_a_judge_that_is_stopped_keeps_the_seconds_of_the_answers_that_are_there(copied, monkeypatch):
    run, draw, calls = copied("judge"), judging.draw, []
    run.published_gold = run.restored(run.scalar("reward"), "reward")  # nothing is trained

    def stopped(*arguments):
        calls.append(len(calls))
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(judging, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.judge()
    assert 0 < runs.seconds_spent(run.folder / "state.pt") < 50
    runs.save_state(run.folder / "state.pt", {"seconds": 100.0})
    with pytest.raises(KeyboardInterrupt):
        run.judge()
    assert 100 < runs.seconds_spent(run.folder / "state.pt") < 150
    run.judge()
    assert 100 < run.stages.done()["judge"]["seconds"] < 150
    assert not (run.folder / "state.pt").exists()


def test_an_endpoint_that_gives_up_keeps_its_seconds_too(copied):
    run = copied("judge")

    def gives_up(*_):
        time.sleep(0.5)
        raise RunError("no server")

    run.endpoint = gives_up
    with pytest.raises(RunError, match="no server"):
        run.judge()
    runs.save_state(run.folder / "state.pt", {"seconds": 100.0})
    with pytest.raises(RunError, match="no server"):
        run.judge()
    assert 100.5 <= runs.seconds_spent(run.folder / "state.pt") < 150


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the command would run on the Apple GPU")
def test_a_run_killed_at_drawn_moments_ends_with_the_same_figures(assistant_run, tiny_assistant, tmp_path):
    folder, work = tmp_path / "run", read_json(assistant_run / "summary.json")["seconds"]["total"]
    flags = [part for name, value in tiny_assistant.items() for part in (f"--{name}", str(value))]
    command = ["-m", "rlhf_lib", "assistant", "--preset", "smoke", "--out", str(folder), *flags]
    assert killed_at_drawn_moments(command, folder, work) >= 1
    ends_as(assistant_run, folder)


def test_a_finished_run_is_not_done_again(assistant_run, assistant_settings, monkeypatch, capsys):
    before = stamps(assistant_run)
    for module, name in ((assistant.sft, "train"), (preference, "train"), (assistant.ppo_critic, "train"), (judging, "draw")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a stage was done again"))
    summary = Assistant(assistant_settings(), assistant_run, CPU).run()
    assert summary == read_json(assistant_run / "summary.json")
    after = stamps(assistant_run)
    assert {name for name in after if after[name] != before.get(name)} <= {"settings.json", "summary.json"}
    assert capsys.readouterr().out == ""  # how long it will take is said of a fresh run alone


@pytest.mark.parametrize(
    ("method", "stage"), [("train_reward", "sft"), ("train_policy", "reward"), ("judge", "policy"), ("report", "judge")]
)
def test_a_stage_out_of_order_says_what_to_run_first(assistant_settings, tmp_path, method, stage):
    run = Assistant(assistant_settings(), tmp_path / "run", CPU)
    with pytest.raises(RunError, match=rf"no finished {stage} stage: run `python -m rlhf_lib assistant --out .*` first"):
        getattr(run, method)()


def test_demonstrations_that_changed_behind_their_path_stop_the_run_and_may_move(
    assistant_settings, tiny_talks, interrupted, tmp_path
):
    paths = {name: tmp_path / f"{name}.jsonl" for name in tiny_talks}
    for name, path in paths.items():
        path.write_bytes(Path(tiny_talks[name]).read_bytes())

    def begun(**changes):
        return Assistant(assistant_settings({name: str(path) for name, path in paths.items()} | changes), tmp_path / "run", CPU)

    assert not (begun().folder).exists()
    with interrupted(1, stop=2), pytest.raises(KeyboardInterrupt):
        begun().train_sft()
    paths["demonstrations"].rename(tmp_path / "moved.jsonl")
    begun(demonstrations=str(tmp_path / "moved.jsonl"))
    text = (tmp_path / "moved.jsonl").read_text(encoding="utf-8")
    paths["demonstrations"].write_text(text.replace("Ask", "Tell", 1), encoding="utf-8")
    with pytest.raises(RunError, match=rf"begun with another content of demonstrations {paths['demonstrations']}: put that back"):
        begun().train_sft()
    with pytest.raises(RunError, match="holds a run with demonstrations="):
        paths["demonstrations"] = paths["demonstrations"].rename(tmp_path / "other.jsonl")
        begun()


def test_comparisons_that_changed_behind_their_path_stop_policy_and_judge(
    assistant_settings, tiny_talks, interrupted, monkeypatch, tmp_path
):
    path = tmp_path / "comparisons.jsonl"
    text = Path(tiny_talks["comparisons"]).read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")

    def begun():
        return Assistant(assistant_settings({"comparisons": str(path)}), tmp_path / "run", CPU)

    begun().train_sft()
    begun().train_reward()
    with interrupted(1, stop=2), pytest.raises(KeyboardInterrupt):
        begun().train_policy()
    rows = text.splitlines(keepends=True)
    for again in ("train_policy", "judge"):
        path.write_text("".join(rows[1:]), encoding="utf-8")
        with pytest.raises(RunError, match=rf"begun with another content of comparisons {path}: put that back"):
            getattr(begun(), again)()
        path.write_text(text, encoding="utf-8")
        if again == "train_policy":
            begun().train_policy()


def test_a_stage_of_another_tokenizer_is_refused(copied):
    run = copied("policy")
    tensors, metadata = checkpoints.read_tensors(run.folder / "reward"), checkpoints.read_metadata(run.folder / "reward")
    checkpoints.write(run.folder / "reward", tensors, metadata, run.tokenizer.train(["other words altogether"] * 9, 300))
    with pytest.raises(checkpoints.CheckpointError, match=rf"{run.folder / 'reward'} and tiny were trained with different tok"):
        run.train_policy()


# ----------------------------------------------------------------------------------------- what is refused


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


VOTE = {"id": "advice-001", "first": "Ask him.", "second": "Noise!", "verdict": "first", "reader": "r1"}
REFUSED = {
    "no such model": ({"model": "gpt9"}, PublishedError, "no published model 'gpt9'"),
    "more layers than there are": ({"layers": 9}, ValueError, "layers must lie between 1 and the model's 2, got 9"),
    "a rank above the width": ({"rank": 99}, ValueError, "rank must lie between 1 and"),
    "no demonstrations": ({"demonstrations": "gone.jsonl"}, ComparisonError, "no file at gone.jsonl"),
    "no comparisons": ({"comparisons": "gone.jsonl"}, ComparisonError, "no file at gone.jsonl"),
    "an unknown verdict": (
        {"comparisons": [VOTE, {**VOTE, "verdict": "best"}]},
        ComparisonError,
        "line 2: unknown verdict 'best'",
    ),
    "nothing to learn from": (
        {"comparisons": [{**VOTE, "id": "advice-004"}]},
        ValueError,
        "comparisons: 0 to learn from and 1 held out",
    ),
    "a row that is too long": ({"sft.row": 513}, ValueError, r"sft\.row is too much for a model that reads 512 tokens"),
    "no room for prompts": (
        {"ppo.max_new_tokens": 512},
        ValueError,
        r"ppo\.max_new_tokens is too much for a model that reads 512",
    ),
    "all too long": ({"longest": 12}, ValueError, "comparisons: 0 to learn from and 0 held out, 50 of more than 12 tokens"),
    "an address that is none": ({"judge": "endpoint:ftp://x#m"}, RunError, "base_url must be http"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_before_anything_is_written(assistant_settings, tmp_path, case):
    changes, error, sentence = REFUSED[case]
    changes = {name: written(tmp_path / "own.jsonl", *v) if isinstance(v, list) else v for name, v in changes.items()}
    with pytest.raises(error, match=sentence):
        Assistant(assistant_settings(changes), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("seed", 1, "seed=0, not 1"),
        ("best_of", 2, "best_of=3, not 2"),
        ("sft.lr", 0.5, r"sft\.lr=0\.02, not 0\.5"),
        ("comparisons", "ours", r"comparisons='.*compared\.jsonl', not 'ours'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(assistant_run, assistant_settings, field, value, shown):
    before = stamps(assistant_run)
    with pytest.raises(RunError, match=rf"{assistant_run} holds a run with {shown}: choose another --out"):
        Assistant(assistant_settings({field: value}), assistant_run, CPU)
    assert stamps(assistant_run) == before


def test_the_settings_are_written_down(assistant_run, assistant_settings):
    assert read_json(assistant_run / "settings.json") == flat(assistant_settings())


# ----------------------------------------------------------------------------------------- other judges


def test_a_judge_that_always_likes_the_first_place_is_seen(copied):
    run = copied("judge")
    run.endpoint = lambda prompts, first, second: ["first"] * len(prompts)
    run.judge()
    run.report()
    summary = read_json(run.folder / "summary.json")
    assert summary["position_bias"] == 50 and summary["consistency"] == 0
    assert [summary[rate] for rate in RATES] == [0.5] * 4
    assert "gold" not in summary
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "+50.0" in page and "gold reward model" not in page.lower()


def test_verdicts_that_were_refused_are_counted_and_left_out(copied):
    run = copied("judge")
    asked = []

    def judge(prompts, first, second):
        asked.append(list(zip(prompts, first, second)))
        return ["refused" if place == 0 else "tie" for place in range(len(prompts))]

    run.endpoint = judge
    run.judge()
    done = run.stages.done()["judge"]
    assert len(asked) == 4 and all(len(questions) == 12 for questions in asked)
    assert done["refused"] == 4
    assert done["win_rate_policy"] == 0.5 and done["position_bias"] == 0


def test_a_judge_that_refuses_all_of_one_pair_of_sides_ends_in_a_report_that_says_so(copied):
    run, calls = copied("judge"), []

    def judge(prompts, first, second):
        calls.append(prompts)
        return ["refused" if len(calls) == 1 else "tie"] * len(prompts)

    run.endpoint = judge
    summary = run.run()
    assert (summary["win_rate_policy"], summary["win_rate_policy_over_sft"], summary["refused"]) == (None, 0.5, 6)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "It refused every pair of PPO over the start, which therefore has no win rate." in page
    assert "PPO wins – (– to –) against the start and 50.0% against SFT" in assistant.outcome(summary)


def test_a_gold_model_that_was_published_is_taken_instead_of_trained(copied, monkeypatch):
    run = copied("judge")
    shutil.rmtree(run.folder / "gold")
    run.published_gold = run.restored(run.scalar("reward"), "reward")
    monkeypatch.setattr(preference, "train", lambda *_: pytest.fail("a gold model was trained"))
    run.judge()
    done = run.stages.done()["judge"]
    assert done["gold"] == "published"
    best, sft = (done["answers"][side]["reward"] for side in ("best_of", "sft"))
    assert best > sft and done["win_rate_best_of_over_sft"] > 0.5  # the reward model judges its own choice


def test_the_published_gold_model_judges_none_but_our_comparisons(assistant_settings, tiny_talks, monkeypatch, tmp_path):
    monkeypatch.setattr(assistant.referee, "published_gold", lambda *_: "published")
    for name, expected in (("ours", "published"), (tiny_talks["comparisons"], None)):
        run = Assistant(assistant_settings({"comparisons": name}), tmp_path / "run", CPU)
        assert run.published_gold == expected


def test_gold_learns_from_every_comparison_and_from_another_seed(copied, monkeypatch):
    run = copied("judge", None)
    given = {}
    real = preference.train

    def train(model, tokenizer, learn, held_out, config, folder, seed):
        given.update(learn=learn, held_out=held_out, seed=seed, config=config)
        return real(model, tokenizer, learn[:4], held_out[:2], config, folder, seed)

    shutil.rmtree(run.folder / "gold")
    monkeypatch.setattr(preference, "train", train)
    few, run.inputs.rankings = run.inputs.rankings, (run.inputs.rankings[0][:5], run.inputs.rankings[1])
    run.inputs.beyond = few[0][5:]
    run.gold()
    assert sorted(given["learn"]) == sorted([*few[0], *few[1]])
    assert given["seed"] != run.settings.seed and given["config"] == run.settings.preference
    assert all(isinstance(ranking, Ranking) for ranking in given["learn"])


def test_reward_model_and_gold_learn_whole_rankings_and_are_tested_on_their_pairs(assistant_settings, tmp_path):
    asked = comparisons.read_prompts()
    train, held_out = ([p.prompt for p in asked if p.split == split] for split in ("train", "held_out"))
    ranked = {
        prompt: ["Yes.", "Yes. No.", "No. No. No.", "No."][: 2 + n % 3] for n, prompt in enumerate(train[:12] + held_out[:6])
    }
    path = written(tmp_path / "own.jsonl", *({"prompt": prompt, "ranked": answers} for prompt, answers in ranked.items()))
    run = Assistant(assistant_settings({"comparisons": path, "sft.epochs": 1}), tmp_path / "run", CPU)
    run.train_sft()
    run.train_reward()
    stats, model, pairs = run.stages.done()["reward"], run.restored(run.scalar("reward"), "reward"), []
    for prompt in held_out[:6]:
        start = run.tokenizer.prompt([{"role": "user", "content": prompt}])
        whole = [start + run.tokenizer.encode(text) + [run.tokenizer.end_token] for text in ranked[prompt]]
        scores = [model.logits(torch.tensor([tokens])).item() for tokens in whole]
        pairs += itertools.combinations(zip(scores, map(len, whole)), 2)
    assert (stats["comparisons"], stats["reward_pairs"], len(pairs)) == (12, 20, 20)  # 2 of each: 1, 3 and 6 pairs
    better = lambda place: sum((a[place] > b[place]) + (a[place] == b[place]) / 2 for a, b in pairs) / 20  # noqa: E731
    assert (stats["reward_accuracy"], stats["length_accuracy"]) == pytest.approx((better(0), better(1)))
    gold, source = run.gold()
    assert source == "trained in this run" and gold is not model
    steps = [row for row in rows(run.folder / "gold" / "metrics.jsonl") if "train_loss" in row]
    assert len(steps) == 4 * math.ceil(18 / 8)  # epochs, and 18 rankings in batches of 8


# ----------------------------------------------------------------------------------------- what is said at the end


def test_the_closing_sentence_names_the_better_rule_of_length_and_the_judge():
    stats = {
        "reward_accuracy": 0.697, "length_accuracy": 0.384, "judge": "gold", "win_rate_policy": 0.901, "kl_nats": 8.27,
        "win_rate_policy_interval": [0.85, 0.943], "win_rate_policy_over_sft": 0.889, "seconds": {"total": 1530.0},
    }  # fmt: skip
    assert assistant.outcome(stats) == (
        "Reward model right on 69.7% (the shorter answer on 61.6%); judged by the gold reward model, PPO wins 90.1% (85.0% to "
        "94.3%) against the start and 88.9% against SFT at 8.3 nats; 25.5 minutes."
    )
    assert "(the longer answer on 56.1%)" in assistant.outcome({**stats, "length_accuracy": 0.561})
    refused = {"judge": "endpoint:https://h/v1#big", "win_rate_policy": None, "win_rate_policy_interval": None}
    said = assistant.outcome({**stats, **refused})
    assert "judged by https://h/v1#big, PPO wins – (– to –) against the start and 88.9% against SFT" in said


# ----------------------------------------------------------------------------------------- published


def test_a_published_run_has_its_adapters_in_half_the_space(assistant_run, tmp_path):
    assistant.publish(assistant_run, tmp_path / "published")
    tokens = torch.arange(40, 60)[None]
    for name in ("base", "sft", "policy", "reward", "gold"):
        kind, begun = "reward" if name in ("reward", "gold") else "gpt", "gold/reward" if name == "gold" else name
        places = assistant_run / begun, tmp_path / "published" / name
        whole, half = map(checkpoints.read_tensors, places)
        assert all(tensor.dtype == torch.float16 for tensor in half.values())
        for part, tensor in half.items():
            torch.testing.assert_close(tensor.float(), whole[part], rtol=1e-3, atol=1e-6)
        (before, _), (model, _) = (checkpoints.load(place, kind=kind) for place in places)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), before(tokens), rtol=1e-2, atol=2e-3)
    assert (tmp_path / "published" / "metrics.jsonl").read_bytes() == (assistant_run / "metrics.jsonl").read_bytes()
    command = read_json(tmp_path / "published" / "summary.json")["command"]
    assert command.startswith("python -m rlhf_lib assistant --preset smoke --seed 0 ") and command.endswith(" --out DIR")


def test_only_a_finished_run_is_published(assistant_settings, tmp_path):
    Assistant(assistant_settings(), tmp_path / "run", CPU)
    with pytest.raises(RunError, match=r"holds no finished run: only one with a summary\.json is published"):
        assistant.publish(tmp_path / "run", tmp_path / "published")


# ----------------------------------------------------------------------------------------- the preset


def test_the_smoke_preset_goes_through_every_stage(tiny_talks, tmp_path):
    ours = {} if comparisons.COMPARISONS.exists() else {"comparisons": tiny_talks["comparisons"]}
    summary = Assistant(changed(PRESETS["smoke"], ours), tmp_path, CPU).run()
    assert tuple(read_json(tmp_path / "stages.json")) == STAGES
    assert summary.keys() >= PROMISED
    assert summary["evaluated_prompts"] == 32
    assert math.isfinite(summary["kl_nats"]) and summary["sft_loss"] < summary["start_loss"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert isinstance(rewards.Normaliser(**read_json(tmp_path / "policy" / "reward.json")).std, float)
    assert Path(tmp_path / "base" / "tokenizer.json").exists()
