import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

from rlhf_lib import checkpoints, corpus
from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines import estimate as module
from rlhf_lib.pipelines import shakespeare
from rlhf_lib.pipelines.assistant import Assistant
from rlhf_lib.pipelines.estimate import estimate, estimate_assistant, sentence, timed
from rlhf_lib.pipelines.settings import flat
from rlhf_lib.pipelines.shakespeare import Shakespeare
from rlhf_lib.trainers import rollouts

CPU = torch.device("cpu")
STAGES = ["pretraining", "reward model", "policy", "evaluation"]
SENTENCE = re.compile(r"About \d+ minutes on this machine \((?:[a-z -]+ \d+\.\d(?:, )?)+\)\.")


def said(capsys):
    """The lines about the time that were printed since the last call."""
    return [line for line in capsys.readouterr().out.splitlines() if SENTENCE.fullmatch(line)]


@pytest.fixture
def pieces(monkeypatch):
    """The pieces take, in turn, 8, 5.12, 3 and 1.6 seconds by the clock, and are done once each; the list of what was timed."""
    seconds, done = iter([8.0, 5.12, 3.0, 1.6]), []

    def stand_in(work, device):
        work()
        done.append((work, device))
        return next(seconds)

    monkeypatch.setattr(module, "timed", stand_in)
    return done


# ----------------------------------------------------------------------------------------- the parts


def test_the_parts_of_a_tiny_run_are_seconds_in_the_order_of_its_stages(tiny_settings):
    parts = estimate(tiny_settings(), 150, CPU)
    assert list(parts) == STAGES
    assert all(0 < seconds < 3600 for seconds in parts.values())


def test_every_piece_counts_as_often_as_the_run_does_it(tiny_settings, pieces):
    """40 steps of pretraining. 75 steps of the reward model, on 8 x 40 tokens each instead of 8 x 64. 3 rollouts of 32 and 64
    completions for the normaliser, of 16 tokens each at 5.12 / (32 x 16) seconds, and scored at 1.6 / 16, half as much again
    for the reference; 8 minibatches. Twice 64 completions, sampled and scored once.
    """
    assert estimate(tiny_settings(), 150, CPU) == pytest.approx(
        {
            "pretraining": 40 * 8,
            "reward model": 75 * 8 * 40 / 64,
            "policy": 160 * (16 * 0.01 + 1.5 * 0.1) + 8 * 3,
            "evaluation": 128 * (16 * 0.01 + 0.1),
        }
    )
    assert [device for _, device in pieces] == [CPU] * 4


def test_a_run_that_begins_from_another_times_that_one_s_base_and_trains_neither(tiny_settings, tiny_run, pieces, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "generate", lambda model, prompts, length: seen.append(model.config))
    parts = estimate(tiny_settings({"init_from": str(tiny_run), "model.width": 16, "model.heads": 2}), 150, CPU)
    policy, evaluation = 160 * (16 * 8 / 512 + 1.5 * 3 / 16) + 8 * 5.12, 128 * (16 * 8 / 512 + 3 / 16)
    assert parts == pytest.approx({"policy": policy, "evaluation": evaluation})  # of what was timed first, second and third
    assert [config.width for config in seen] == [checkpoints.read_metadata(tiny_run / "base")["config"]["width"]]


def test_with_adapters_it_is_adapters_that_are_timed(tiny_settings, monkeypatch):
    trained = []
    logprobs_of = rollouts.logprobs_of
    monkeypatch.setattr(rollouts, "logprobs_of", lambda model, some: (trained.append(type(model)), logprobs_of(model, some))[1])
    for rank, kind in ((0, GPT), (2, Branch)):
        parts = estimate(tiny_settings({"ppo.rank": rank, "reward.rank": rank}), 150, CPU)
        assert list(parts) == STAGES and all(seconds > 0 for seconds in parts.values())
        assert {*trained} == {kind}
        trained.clear()


@pytest.mark.parametrize(
    "changes",
    [
        {"model.recipe": "gpt2"},
        {"ppo.max_new_tokens": 63},  # as many as the context has room for
        {"ppo.max_new_tokens": 1, "ppo.rollout_size": 16},
        {"model.dropout": 0.3, "pretrain.batch": 1, "reward.dropout": 0.2},
    ],
    ids=str,
)
def test_any_settings_have_an_estimate_that_leaves_them_as_they_are(tiny_settings, changes):
    settings = tiny_settings(changes)
    before = flat(settings)
    parts = estimate(settings, 150, CPU)
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in parts.values())
    assert flat(settings) == before


def test_work_is_done_twice_and_only_the_second_time_counts(monkeypatch):
    clock, takes = SimpleNamespace(now=100.0), iter([50.0, 2.5])
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)

    def work():
        clock.now += next(takes)

    assert timed(work, CPU) == 2.5
    assert next(takes, None) is None


def test_the_sentence_has_the_sum_in_minutes_and_every_part():
    parts = {"pretraining": 90.0, "reward model": 6.0, "policy": 129.0, "evaluation": 15.0}
    whole = "About 4 minutes on this machine (pretraining 1.5, reward model 0.1, policy 2.1, evaluation 0.2)."
    assert sentence(parts) == whole and SENTENCE.fullmatch(whole)
    assert sentence({"policy": 3600.0}) == "About 60 minutes on this machine (policy 60.0)."


# ----------------------------------------------------------------------------------------- before a run


def test_a_fresh_run_says_it_once_and_first(tiny_settings, tiny_run, tmp_path, capsys, monkeypatch):
    run = Shakespeare(tiny_settings({"init_from": str(tiny_run)}), tmp_path, CPU)
    pretrain, before = run.pretrain, []
    monkeypatch.setattr(run, "pretrain", lambda: (before.extend(said(capsys)), pretrain()))
    run.run()
    assert len(before) == 1 and "pretraining" not in before[0] and "policy" in before[0]
    assert said(capsys) == []
    monkeypatch.setattr(shakespeare, "estimate", lambda *_: pytest.fail("a finished run was estimated"))
    Shakespeare(run.settings, tmp_path, CPU).run()
    assert said(capsys) == []


class Enough(Exception):
    """Stops a run where there is nothing more to see."""


def stop():
    raise Enough


def test_a_run_that_was_stopped_does_not_say_it_again(tiny_settings, tiny_run, interrupted, tmp_path, capsys, monkeypatch):
    """Stopped in its first stage, or behind it."""
    first = Shakespeare(tiny_settings({"pretrain.steps": 4}), tmp_path / "first", CPU)
    with interrupted(saved=2, stop=2), pytest.raises(KeyboardInterrupt):
        first.run()
    assert len(said(capsys)) == 1
    later = Shakespeare(tiny_settings({"init_from": str(tiny_run)}), tmp_path / "later", CPU)
    later.pretrain()
    monkeypatch.setattr(shakespeare, "estimate", lambda *_: pytest.fail("a run that goes on was estimated"))
    for run in (first, later):
        monkeypatch.setattr(run, "train_reward", stop)
        with pytest.raises(Enough):
            run.run()
    assert said(capsys) == []


def test_the_labels_that_are_counted_are_the_runs_own(tiny_settings, tiny, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(shakespeare, "estimate", lambda *arguments: given.append(arguments) or {"policy": 60.0})
    run = Shakespeare(tiny_settings(), tmp_path, CPU)
    monkeypatch.setattr(run, "pretrain", stop)
    with pytest.raises(Enough):
        run.run()
    assert given == [(run.settings, 150, CPU)]


def test_a_run_that_begins_from_another_needs_no_labels_and_no_plays(tiny_settings, tiny_run, tmp_path, monkeypatch):
    """They may not be there: a published checkpoint is taken further without the corpus it was made from."""
    monkeypatch.setattr(corpus, "load", lambda name: pytest.fail(f"{name} was read"))
    run = Shakespeare(tiny_settings({"init_from": str(tiny_run), "labels": "gone.jsonl", "corpus": "gone.txt"}), tmp_path, CPU)
    run.run()
    assert json.loads((tmp_path / "summary.json").read_text())["reward_passages"] > 3


def test_the_run_that_follows_draws_what_it_draws_without_an_estimate(tiny_settings, tiny_run, tmp_path, monkeypatch):
    """`tiny_run` was estimated; this one is not, and begins with the global generator elsewhere."""

    def stand_in(settings, labels, device):
        torch.manual_seed(4321)
        torch.rand(17)
        return {"policy": 60.0}

    monkeypatch.setattr(shakespeare, "estimate", stand_in)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Shakespeare(tiny_settings(), tmp_path, CPU).run()
    finally:
        torch.set_num_threads(threads)
    for name in ("metrics.jsonl", "samples.jsonl", "base/model.safetensors", "policy/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tiny_run / name).read_bytes(), name


# ----------------------------------------------------------------------------------------- the assistant


def assistant_estimate(run, monkeypatch):
    """Per token: the trunk takes 1 second, reading 2, learning 4; in fine-tuning 0, 3 and 6. Of the 8 rows of a rollout the first
    token takes 40 seconds and nine 200, so a later one 20, and the tenth is the last. The estimate, and tokens in an answer and
    its prompt.
    """
    some = module.demonstrated(run)
    size = module.tokens_of(some)
    pieces = iter([size * 1.0, size * 2.0, size * 4.0, 0.0, size * 3.0, size * 6.0, 40.0, 200.0])
    monkeypatch.setattr(module, "timed", lambda work, device: (work(), next(pieces))[1])
    parts = estimate_assistant(run)
    assert next(pieces, None) is None
    return parts, size / len(some)


@pytest.mark.parametrize("adapters", [False, True])
def test_every_piece_of_the_assistant_counts_as_often_as_the_run_does_it(assistant_settings, tmp_path, monkeypatch, adapters):
    run = Assistant(assistant_settings({"reward_adapters": adapters}), tmp_path, CPU)
    parts, size = assistant_estimate(run, monkeypatch)
    talks = [sum(len(run.tokenizer.turns(talk)[0]) for talk in half) for half in run.inputs.demonstrations]
    pairs = [sum(len(r.prompt) + len(answer) for r in half for answer in r.answers) for half in run.inputs.rankings]
    paid = (40 + 20 * 9) / 8 + size * (3 if adapters else 1)
    reward = 4 * (pairs[0] * 5 + pairs[1] * 3) if adapters else sum(pairs) * 1  # a head alone: states once
    expected = {
        "fine-tuning": 2 * (talks[0] * 6 + talks[1] * 3),
        "reward model": reward,
        "policy": 3 * 8 * (paid + 3 * size * 2) + 16 * paid + 2 * 8 * 2 * 2 * size * 4,
        "judging": 6 * (3 + 3) * paid + reward,  # and the gold model
    }
    assert parts == pytest.approx(expected)
    run.published_gold = "there"
    assert assistant_estimate(run, monkeypatch)[0]["judging"] == pytest.approx(6 * 6 * paid)


def test_the_demonstrations_that_are_timed_are_from_all_over_the_file_and_cut_where_a_rollout_is(assistant_settings, tmp_path):
    run = Assistant(assistant_settings(), tmp_path, CPU)
    some, talks = module.demonstrated(run), run.inputs.demonstrations[0]
    step = math.ceil(len(talks) / run.settings.ppo.minibatch)
    assert 1 < len(some) <= run.settings.ppo.minibatch and len(some) == len(range(0, len(talks), step))
    for place, prompt, kept in zip(range(0, len(talks), step), some.prompts, some.mask.sum(1).tolist()):
        tokens, spoken = run.tokenizer.turns(talks[place])
        assert tokens[: len(prompt)] == prompt
        assert kept == min(sum(spoken), run.settings.ppo.max_new_tokens)


def test_a_demonstration_that_fills_the_models_context_is_timed_by_its_end(assistant_settings, tmp_path):
    """A long prompt beside a long answer would be more than the model reads."""
    run = Assistant(assistant_settings(), tmp_path, CPU)
    shown, tested = run.inputs.demonstrations
    long = [{"role": "user", "content": "a " * 494}, {"role": "assistant", "content": "No."}]
    context, most = run.base.config.context, run.settings.ppo.max_new_tokens
    assert context - most < len(run.tokenizer.turns(long)[0]) <= context
    run.inputs.demonstrations = ([long, *shown], tested)
    some = module.demonstrated(run)
    assert len(some.prompts[0]) == context - most
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in estimate_assistant(run).values())


def test_a_fresh_run_of_the_assistant_says_it_once_and_first(assistant_settings, tmp_path, capsys, monkeypatch, interrupted):
    run = Assistant(assistant_settings(), tmp_path, CPU)
    with interrupted(saved=2, stop=2), pytest.raises(KeyboardInterrupt):
        run.run()
    (line,) = said(capsys)
    assert "fine-tuning" in line and "judging" in line
    again = Assistant(assistant_settings(), tmp_path, CPU)
    monkeypatch.setattr(again, "train_reward", stop)
    with pytest.raises(Enough):
        again.run()
    assert said(capsys) == []
