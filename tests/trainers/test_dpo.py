import copy
import functools
import math

import pytest
import torch

from rlhf_lib import checkpoints, devices
from rlhf_lib.files import RunError
from rlhf_lib.trainers import dpo, rollouts
from rlhf_lib.trainers.dpo import LOSSES, DPOConfig, compared, pairs_of
from rlhf_lib.trainers.preference import Ranking

from .helpers import (
    END,
    PROMPTS,
    TOKENIZER,
    A,
    V,
    branch,
    even,
    language_model,
    likes,
    mutant,
    records,
    same,
    share_of_a,
    weights,
)


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, rollouts):
            patch.setattr(module, "has_bf16", lambda device: False)
        yield


def small(**changes):
    shape = dict(batch=8, lr=1e-3, evaluations=2, samples=16, max_new_tokens=8, max_kl=50.0)
    return DPOConfig(**{**shape, **changes})


def comparisons(model, pairs, seed=0, prompts=PROMPTS, tries=12):
    """Pairs of the model's own completions, the one with more of the letter a first, out of `tries` for each."""
    some = [prompts[place // 2 % len(prompts)] for place in range(tries * pairs)]  # without an a there is no comparison
    rollout = rollouts.sample(model, TOKENIZER, some, 8, torch.Generator().manual_seed(seed))
    return compared(rollout, likes(rollout))[:pairs]


@functools.cache
def usual(seed):
    """Comparisons of `language_model("modern")`."""
    return comparisons(language_model("modern"), 24, seed)


def train(folder, base=None, learn=None, held_out=None, config=None, reward=None, prompts=PROMPTS, module=dpo, **options):
    base = base or language_model("modern")
    learn, held_out = (some or usual(seed) for seed, some in enumerate((learn, held_out)))
    return module.train(base, TOKENIZER, learn, held_out, prompts, reward or likes, config or small(), folder, **options)


# ----------------------------------------------------------------------------------------- what is learned from


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "orpo"}, r"dpo\.loss must be one of dpo, ipo, kto, got 'orpo'"),
        *(({n: 0}, rf"dpo\.{n} must be at least 1, got 0") for n in ("epochs", "batch", "evaluations", "max_new_tokens")),
        ({"samples": 1}, r"dpo\.samples must be at least 2, got 1"),
        *(
            ({n: v}, rf"dpo\.{n} must be above 0, got {v}")
            for n in ("beta", "lr", "temperature", "max_kl")
            for v in (0.0, math.nan)
        ),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**changes)


PAIR = Ranking([2], [[3], [4]])


@pytest.mark.parametrize(
    ("learn", "held_out", "prompts", "sentence"),
    [
        ([], [PAIR], PROMPTS, "0 comparisons to learn from and 1 held out: at least one of each is needed"),
        ([PAIR], [], PROMPTS, "1 comparisons to learn from and 0 held out"),
        ([PAIR, Ranking([2], [[3]])], [PAIR], PROMPTS, "comparison 2 has 1 answers: at least two can be compared"),
        ([PAIR], [Ranking([2], [[3], []])], PROMPTS, "a comparison has an empty answer"),
        ([PAIR], [Ranking([2], [[3], [4] * 60])], PROMPTS, "held-out comparison 1 has 61 tokens, more than the context of 48"),
        ([PAIR], [PAIR], [], "there are no prompts"),
        ([PAIR], [PAIR], [[2] * 41], r"the longest prompt and dpo\.max_new_tokens are 49 tokens"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(tmp_path, learn, held_out, prompts, sentence):
    with pytest.raises(ValueError, match=sentence):
        dpo.train(language_model(), TOKENIZER, learn, held_out, prompts, likes, small(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_comparisons_out_of_a_rollout_by_hand():
    """Two prompts of three completions, one of which has ended; and a third with equal rewards, which says nothing."""
    tokens = torch.tensor([[3, 4], [5, 0], [6, 7], [3, 3], [4, 4], [5, 5], [8, 8], [9, 9], [8, 9]])
    mask = torch.ones(9, 2, dtype=torch.bool)
    rollout = rollouts.Rollout([[2]] * 3 + [[7, 2]] * 3 + [[6]] * 3, tokens, tokens.float(), mask, [""] * 9)
    found = compared(rollout, torch.tensor([0.5, 2.0, -1.0, 3.0, 1.0, 3.5, 1.0, 1.0, 1.0]), group=3)
    assert found == [Ranking([2], [[5, 0], [6, 7]]), Ranking([7, 2], [[5, 5], [4, 4]])]


def test_every_pair_of_a_ranking_is_learned_from():
    prompts, better, worse = pairs_of([Ranking([1], [[2], [3], [4]]), Ranking([5], [[6], [7]])])
    assert prompts == [[1], [1], [1], [5]]
    assert better == [[2], [2], [3], [6]] and worse == [[3], [4], [4], [7]]


# ----------------------------------------------------------------------------------------- the loop


def by_definition(model, prompt, answer):
    """The log-probability of an answer, one position at a time."""
    total = 0.0
    for place, token in enumerate(answer):
        total = total + model(torch.tensor([prompt + answer[:place]]))[0, -1].log_softmax(0)[token]
    return total


def first_step_is_right(module, tmp_path, monkeypatch, loss, family):
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    base = language_model(family)
    learn = comparisons(base, 6)
    config = small(loss=loss, batch=len(learn), lr=0.05, beta=0.4, max_kl=1e4)
    policy = train(tmp_path, base, learn, learn[:2], config, module=module)
    expected, total = copy.deepcopy(base), 0.0
    for prompt, (better, worse) in learn:
        ours = [by_definition(expected, prompt, answer) for answer in (better, worse)]
        gains = [x - x.detach() for x in ours]  # over the reference, which the policy still is
        if loss == "dpo":
            total = total - torch.nn.functional.logsigmoid(0.4 * (gains[0] - gains[1])) / len(learn)
        elif loss == "ipo":
            total = total + (gains[0] - gains[1] - 1 / 0.8) ** 2 / len(learn)
        else:
            total = total + (torch.sigmoid(-0.4 * gains[0]) + torch.sigmoid(0.4 * gains[1])) / (2 * len(learn))
    total.backward()
    first = records(tmp_path)[0]
    assert first["train_loss"] == pytest.approx({"dpo": math.log(2), "ipo": 1 / 0.64, "kto": 0.5}[loss], abs=1e-4)
    factor = 0.05 * min(1 / 1.1, 1 / 0.9)  # one step: the rate on its way up
    for key, weight in expected.named_parameters():
        moved = base.state_dict()[key] - policy.state_dict()[key]
        torch.testing.assert_close(moved, factor * weight.grad, rtol=5e-3, atol=5e-6)
    assert max(weight.grad.abs().max() for weight in expected.parameters()) > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_step_is_that_of_the_definition(tmp_path, monkeypatch, loss, family):
    first_step_is_right(dpo, tmp_path, monkeypatch, loss, family)


MUTANTS = {
    "the mean over an answer's tokens": ("temperature).sum(1)", "temperature).mean(1)"),
    "the rejected answer is preferred": ("asked * 2, chosen + rejected, t)", "asked * 2, rejected + chosen, t)"),
    "the reference is left out": ("(column[rows] for column in ref_pairs)", "(0 * column[rows] for column in ref_pairs)"),
    "answers to the next prompt": ("policy, asked * 2, chosen", "policy, (asked[1:] + asked[:1]) * 2, chosen"),
    "the rate does not rise": ("(step + 1) / (0.1 * steps + 1)", "1"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_the_loop_breaks_the_first_step(tmp_path, monkeypatch, name):
    with pytest.raises(AssertionError):
        first_step_is_right(mutant(dpo, MUTANTS[name]), tmp_path, monkeypatch, "dpo", "llama")


def test_it_begins_at_ln_2_with_no_margin_and_measures_before_during_and_after(tmp_path):
    base = language_model("modern")
    learn, held_out = comparisons(base, 40), comparisons(base, 20, 1)
    train(tmp_path, base, learn, held_out, small(epochs=2, evaluations=4))
    rows, steps = records(tmp_path), 2 * math.ceil(len(learn) / 8)
    assert len(rows) == steps + 1
    every = math.ceil(steps / 4)
    assert [row["step"] for row in rows if "kl" in row] == sorted({*range(0, steps, every), steps})
    assert rows[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-5) == rows[0]["held_out_loss"]
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4) == rows[0]["kl"]
    with torch.no_grad():
        chosen = sum(by_definition(base, r.prompt, r.answers[0]).item() for r in held_out) / len(held_out)
    assert rows[0]["held_out_chosen_logprob"] == pytest.approx(chosen, abs=1e-3)
    assert "train_loss" not in rows[-1]


def test_the_statistics_of_held_out_pairs_are_those_of_the_policy(tmp_path):
    base = language_model("modern")
    held_out = comparisons(base, 20, 1)
    policy = train(tmp_path, base, comparisons(base, 60), held_out, small(epochs=3, lr=3e-3, beta=0.3))
    last = records(tmp_path)[-1]
    with torch.no_grad():
        found = [[by_definition(m, r.prompt, a).item() for a in r.answers for m in (policy, base)] for r in held_out]
    margins = [a - b - (c - d) for a, b, c, d in found]
    count = len(margins)
    assert last["held_out_margin"] == pytest.approx(sum(margins) / count, abs=1e-3)
    assert last["held_out_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / count)
    assert last["held_out_loss"] == pytest.approx(sum(math.log1p(math.exp(-0.3 * m)) for m in margins) / count, abs=1e-3)
    assert last["held_out_rejected_logprob"] == pytest.approx(sum(row[2] for row in found) / count, abs=1e-3)
    assert last["held_out_margin"] > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_it_writes_more_of_what_was_preferred(tmp_path, loss):
    base = even()
    before = weights(base)
    learn, held_out = comparisons(base, 240, 0, PROMPTS[:1], 4), comparisons(base, 60, 1, PROMPTS[:1], 4)
    config = small(loss=loss, batch=16, epochs=3, lr=5e-3, samples=64, beta=0.3)
    policy = train(tmp_path, base, learn, held_out, config, prompts=PROMPTS[:1])
    measured = [row for row in records(tmp_path) if "kl" in row]
    assert share_of_a(policy) > 1.6 / V
    assert measured[-1]["held_out_accuracy"] > 0.7 and measured[-1]["held_out_margin"] > 0.3
    assert measured[-1]["reward"] > measured[0]["reward"] and measured[-1]["kl"] > 0.02
    assert same(weights(base), before) and base.training and not policy.training


def test_both_answers_may_become_less_likely_while_the_loss_falls(tmp_path):
    """Pairs that share all but one token: what they have in common can be pushed down for nothing."""
    base = language_model("modern")
    draw = torch.Generator().manual_seed(0)
    learn = []
    for _ in range(64):
        body = torch.randint(3, V, (6,), generator=draw).tolist()
        learn.append(Ranking([2, 2], [[*body, A, END], [*body, A + 1, END]]))
    train(tmp_path, base, learn, learn[:16], small(epochs=6, lr=5e-3, evaluations=3, samples=4, max_kl=1e3), prompts=PROMPTS[:1])
    first, last = records(tmp_path)[0], records(tmp_path)[-1]
    assert last["held_out_loss"] < 0.5 * first["held_out_loss"] and last["held_out_accuracy"] == 1
    assert last["held_out_rejected_logprob"] < first["held_out_rejected_logprob"] - 2
    assert last["held_out_margin"] > 2


def test_a_branch_learns_from_prompts_of_many_lengths_and_its_base_stays(tmp_path):
    base = branch(language_model("llama", spread=0.1), layers=1, seed=1, spread=0.05)
    before, under = weights(base), weights(base.base)
    config = small(loss="kto", batch=16, epochs=3, lr=2e-2, samples=48, beta=0.3)
    policy = train(tmp_path, base, comparisons(base, 120, tries=4), comparisons(base, 40, 1, tries=4), config)
    measured = [row for row in records(tmp_path) if "kl" in row]
    assert measured[-1]["held_out_accuracy"] > 0.65 and measured[-1]["reward"] > measured[0]["reward"]
    assert same(weights(base), before) and same(weights(base.base), under) and not same(weights(policy), before)
    assert checkpoints.read_metadata(tmp_path / "policy")["kind"] == "branch"


def test_what_is_measured_is_never_learned_from_and_the_seed_decides(tmp_path):
    one = train(tmp_path / "one", watch=lambda rollout, rewards: {"gold": rewards.mean().item()})
    assert same(weights(one), weights(train(tmp_path / "two", reward=lambda rollout: torch.zeros(len(rollout)))))
    assert all(row["gold"] == row["reward"] for row in records(tmp_path / "one") if "kl" in row)
    assert not same(weights(one), weights(train(tmp_path / "three", seed=1)))


@pytest.mark.parametrize("loss", ["dpo", "kto"])
@pytest.mark.parametrize(("saved", "stop"), [(0, 1), (2, 3)])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(tmp_path, interrupted, saved, stop, loss):
    config = small(loss=loss, epochs=2, lr=5e-3)
    whole = train(tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt), interrupted(saved, stop):
        train(tmp_path / "cut", config=config)
    torch.manual_seed(1234)
    with interrupted() as done:
        policy = train(tmp_path / "cut", config=config)
    assert done[0] == saved + 1 and same(weights(policy), weights(whole))
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_it_stops_at_max_kl_and_at_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    train(tmp_path / "far", config=small(epochs=20, lr=2e-2, evaluations=20, max_kl=0.5))
    rows = [row for row in records(tmp_path / "far") if "kl" in row]
    assert len(rows) < 20 and all(row["kl"] <= 0.5 for row in rows)
    assert checkpoints.read_metadata(tmp_path / "far" / "policy")["iteration"] == rows[-1]["step"]
    monkeypatch.setitem(LOSSES, "dpo", lambda *_: torch.tensor(math.nan, requires_grad=True))
    with pytest.raises(RunError, match="policy: the loss is nan at step 0; the last good weights are kept"):
        train(tmp_path / "nan")
