import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib.files import RunError
from rlhf_lib.models import lora
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.lora import Branch
from rlhf_lib.preference import bradley_terry_loss
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import preference
from rlhf_lib.trainers.preference import PreferenceConfig, Ranking, evaluate, margins_of, rewards_of, score

from .helpers import FAMILIES, branch, language_model, mutant, same, weights

TOKENIZER = CharTokenizer(list("\nabcdefgh"))
V, A = TOKENIZER.vocab_size, TOKENIZER.encode("a")[0]


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "has_bf16", lambda device: False)
        yield


def drawn(count, answers=(2, 4), seed=0, planted=True):
    """Rankings of drawn tokens in which, if `planted`, an answer with more of the letter a is the better one."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        K = draw.randint(*answers)
        some = [[draw.randrange(3, V) for _ in range(draw.randint(6, 9))] for _ in range(K)]
        if planted:
            some = [[token if token != A else A + 1 for token in answer] for answer in some]
            for number in range(K):  # 2 (K - 1) times a in the best, none in the worst
                for place in draw.sample(range(len(some[number])), 2 * (K - 1 - number)):
                    some[number][place] = A
        made.append(Ranking([draw.randrange(3, V) for _ in range(draw.randint(1, 5))], some))
    return made


# ----------------------------------------------------------------------------------------- where a reward is read


@torch.no_grad()
def alone(model, row):
    """The reward of one row: the number at the last of its tokens, nothing beside it."""
    return model(torch.tensor([row]))[0, -1].item()


def models(family):
    base = language_model(family)
    made = {"branch": branch(base, seed=3, scalar=True)}
    if family != "llama":
        made["reward model"] = RewardModel(base, "last")
        nn.init.normal_(made["reward model"].score.weight)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_is_read_at_the_last_real_token_with_any_padding(family):
    rows = [r.prompt + answer for r in drawn(6, seed=1) for answer in r.answers]
    generator = torch.Generator().manual_seed(0)
    for model in models(family).values():
        expected = [alone(model, row) for row in rows]
        assert torch.tensor(expected).std() > 0.1
        assert rewards_of(model, rows).tolist() == pytest.approx(expected, abs=1e-4)
        longest = max(map(len, rows))
        for left, right in ((0, 7), (7, 0), (3, 4)):  # padded with anything, on the left, on the right, on both sides
            tokens = torch.randint(V, (len(rows), longest + 7), generator=generator)
            mask = torch.zeros_like(tokens, dtype=torch.bool)
            for place, row in enumerate(rows):
                start = left if right else left + longest - len(row)
                tokens[place, start : start + len(row)], mask[place, start : start + len(row)] = torch.tensor(row), True
            with torch.no_grad():
                assert model.logits(tokens, mask).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_rows_are_scored_in_their_order_without_dropout_and_without_a_gradient(batch):
    base = language_model("modern", dropout=0.5)
    model = branch(base, seed=3, scalar=True)
    rows = [r.prompt + answer for r in drawn(9, seed=2) for answer in r.answers]
    expected = [alone(model, row) for row in rows]
    model.train()
    scores = score(model, rows, batch)
    assert scores.tolist() == pytest.approx(expected, abs=1e-4) and not scores.requires_grad and model.training
    assert score(model, []).shape == (0,)


def test_a_mean_over_the_positions_would_be_found():
    """minChatGPT at 311aa3a, src/gpt.py line 501, averages the head's numbers over all positions, the padded ones too."""
    model = branch(language_model(), seed=3, scalar=True)
    rows = [[3, 4, 5], [6, 7, 8, 9, 10, 3]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "last_real", lambda x, mask: x.mean(1))
        found = rewards_of(model, rows).tolist()
    assert found != pytest.approx([alone(model, row) for row in rows], abs=1e-2)


# ----------------------------------------------------------------------------------------- evaluation


class Table(nn.Module):
    """A reward model whose reward is the last token's in a table."""

    def __init__(self, values):
        super().__init__()
        self.values, self.config = nn.Parameter(torch.tensor(values)), language_model().config

    def logits(self, tokens, mask):
        return self.values[tokens[torch.arange(len(tokens)), mask.sum(1) - 1]]


def test_evaluate_by_hand():
    ln = math.log
    model = Table([0.0, ln(3), -ln(9), ln(3), 5.0])
    rankings = [
        Ranking([0], [[1], [0]]),  # margin ln 3, right; of one length
        Ranking([0], [[0, 0], [3]]),  # margin -ln 3, wrong; the longer is better
        Ranking([0, 0], [[0], [1, 2], [2]]),  # ln 9 right, ln 9 right, 0: a tie; shorter, same, longer
    ]
    found = evaluate(model, rankings)
    assert found["pairs"] == 5
    assert found["accuracy"] == pytest.approx((1 + 0 + 1 + 1 + 0.5) / 5)
    assert found["length_accuracy"] == pytest.approx((0.5 + 1 + 0 + 0.5 + 1) / 5)
    assert found["loss"] == pytest.approx(-(ln(3 / 4) + ln(1 / 4) + 2 * ln(9 / 10) + ln(1 / 2)) / 5, abs=1e-6)
    # .75 in one bin: right once of two; .9 in another: right twice; .5: right half the time
    assert found["calibration_error"] == pytest.approx((abs(1 - 1.5) + abs(2 - 1.8) + 0) / 5, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=5), min_size=1, max_size=6))
def test_evaluation_equals_brute_force_over_pairs(values):
    model = Table([float(value) for ranks in values for value in ranks])
    numbers, rankings = itertools.count(), []
    for ranks in values:
        rankings.append(Ranking([0], [[0] * (place % 3) + [next(numbers)] for place, _ in enumerate(ranks)]))
    pairs, longer = [], []
    for ranks, ranking in zip(values, rankings):
        for better, worse in itertools.combinations(range(len(ranks)), 2):
            pairs.append(ranks[better] - ranks[worse])
            longer.append(len(ranking.answers[better]) - len(ranking.answers[worse]))
    found = evaluate(model, rankings)
    share = lambda margins: sum((m > 0) + (m == 0) / 2 for m in margins) / len(margins)  # noqa: E731
    assert found["pairs"] == len(pairs)
    assert found["accuracy"] == pytest.approx(share(pairs), abs=1e-6)
    assert found["length_accuracy"] == pytest.approx(share(longer), abs=1e-6)
    assert found["loss"] == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in pairs) / len(pairs), rel=1e-5)
    error = 0.0
    for low in range(5, 10):
        inside = [m for m in pairs if low <= min(9, int(10 / (1 + math.exp(-abs(m))))) < low + 1]
        error += abs(sum((m > 0) + (m == 0) / 2 - 1 / (1 + math.exp(-abs(m))) for m in inside))
    assert found["calibration_error"] == pytest.approx(error / len(pairs), abs=1e-5)


def test_margins_are_of_every_better_answer_over_every_worse_one():
    assert margins_of(torch.tensor([5.0, 3.0, 4.0])).tolist() == [2, 1, -1]


# ----------------------------------------------------------------------------------------- training

SHORT = dict(epochs=4, batch=16, lr=5e-2)
LEARN, HELD_OUT = drawn(160), drawn(40, seed=9)


def fresh(family="llama"):
    base = language_model(family)
    torch.manual_seed(7)
    return Branch(base, layers=2, rank=4, alpha=8, scalar=True)


def train(folder, model=None, learn=LEARN, held_out=HELD_OUT, config=None, seed=0, module=preference):
    model = fresh() if model is None else model
    return module.train(model, TOKENIZER, learn, held_out, PreferenceConfig(**{**SHORT, **(config or {})}), folder, seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("preference"), fresh()
    before = weights(model.base)
    return folder, model, before, train(folder, model)


def test_it_learns_a_planted_preference(finished):
    _, model, _, scores = finished
    assert scores["accuracy"] >= 0.9 and scores["loss"] < 0.4
    assert scores == evaluate(model, HELD_OUT)
    assert 0.3 < scores["length_accuracy"] < 0.7  # there is nothing in length


def test_without_anything_to_learn_it_learns_nothing_that_holds(tmp_path):
    scores = train(tmp_path, learn=drawn(160, planted=False), held_out=drawn(60, seed=9, planted=False))
    assert 0.35 < scores["accuracy"] < 0.65


def test_the_branch_alone_is_trained_and_kept(finished):
    folder, model, before, scores = finished
    assert same(weights(model.base), before) and not model.training
    loaded, _ = checkpoints.load(folder / "reward", kind="reward", base=model.base)
    assert same(weights(loaded), weights(model)) and "score.weight" in weights(model)
    metadata = checkpoints.read_metadata(folder / "reward")
    assert {name: metadata[name] for name in scores} == scores


def test_every_epoch_is_evaluated_and_every_step_has_its_loss(finished):
    folder, *_, scores = finished
    records = runs.Metrics(folder).read("reward")
    assert [record["step"] for record in records] == list(range(40))
    assert records[0]["train_loss"] == pytest.approx(math.log(2), rel=1e-5)  # a head of zeros has no opinion
    evaluated = [record for record in records if "held_out_accuracy" in record]
    assert [(record["step"], record["epoch"]) for record in evaluated] == [(9, 1), (19, 2), (29, 3), (39, 4)]
    assert {name: evaluated[-1][f"held_out_{name}"] for name in scores} == scores


def test_in_float16_losses_are_scaled_and_what_is_learned_is_that_of_float32(tmp_path, monkeypatch):
    """As on a card without bfloat16. The gradient is scaled back before it is cut."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr))
    scales, scale = [], torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, loss: (scales.append(self.get_scale()), scale(self, loss))[1])
    found = {}
    for dtype in (torch.float32, torch.float16):
        monkeypatch.setattr(devices, "precision", lambda device, width, dtype=dtype: dtype)
        train(tmp_path / str(dtype), None, LEARN[:48], HELD_OUT[:8], dict(epochs=3, batch=12, lr=0.2))
        found[dtype] = [record["train_loss"] for record in runs.Metrics(tmp_path / str(dtype)).read("reward")]
    whole, half = found.values()
    assert whole[-1] < whole[0] - 0.1 and half == pytest.approx(whole, rel=0.02) and half != whole
    assert scales == [1.0] * len(whole) + [65536.0] * len(half)  # none of whose gradients was too large for float16


def test_a_whole_reward_model_learns_it_too(tmp_path):
    """Not only a branch: the reward model of chapter 6, all of whose weights are trained."""
    torch.manual_seed(7)
    model = RewardModel(language_model("modern", spread=0.2), "last")
    assert train(tmp_path, model, config=dict(lr=1e-2))["accuracy"] >= 0.9


def first_step_is_right(module, folder, family="llama"):
    """The oracle reads one answer at a time, and adds up pair by pair."""
    model, oracle = (branch(language_model(family), layers=2, seed=3, scalar=True) for _ in range(2))
    before, learn = weights(model), drawn(9, seed=4)
    assert len({len(ranking.answers) for ranking in learn}) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr))
        train(folder, model, learn, config=dict(epochs=1, batch=9, lr=0.5), module=module)
    losses = []
    for ranking in learn:
        rewards = [oracle(torch.tensor([ranking.prompt + answer]))[0, -1] for answer in ranking.answers]
        pairs = [(1 + (worse - better).exp()).log() for better, worse in itertools.combinations(rewards, 2)]
        losses.append(sum(pairs) / len(pairs))
    loss = sum(losses) / 9
    loss.backward()
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in oracle.parameters()))
    (record,) = runs.Metrics(folder).read("reward")
    assert record["train_loss"] == pytest.approx(loss.item(), abs=1e-4)
    for name, weight in oracle.named_parameters():
        moved = before[name] - model.state_dict()[name]
        torch.testing.assert_close(moved, 0.5 / 1.1 / max(1, norm) * weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_gradient_of_the_mean_over_rankings_of_the_mean_over_pairs(tmp_path, family):
    first_step_is_right(preference, tmp_path, family)


def twice_divided(rewards):
    """minChatGPT at 311aa3a, src/loss.py lines 83 and 84."""
    K = rewards.shape[1]
    return preference.ranking_loss(rewards) / (K * (K - 1) / 2)


MUTANTS = {
    "the worse answer is preferred": dict(ranking_loss=lambda rewards: preference.ranking_loss(rewards.flip(1))),
    "the mean over pairs taken twice": dict(ranking_loss=twice_divided),
    "the best against the worst alone": dict(ranking_loss=lambda r: bradley_terry_loss(r[:, 0], r[:, -1])),
    "the prompt is left out": ("rewards_of(model, [r.prompt + answer", "rewards_of(model, [answer"),
    "the sum over rankings": ("for part in parts]).mean()", "for part in parts]).sum()"),
    "padding counts": ("model.logits(*pad(rows, ", "model.logits(pad(rows, "),
    "the gradient is not cut": ("clip_grad_norm_(model.parameters(), 1.0)", "clip_grad_norm_(model.parameters(), 1e9)"),
}
REPAIRS = {"padding counts": ('"right", device))', '"right", device)[0])')}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_test_above_finds_a_mistake(tmp_path, name):
    change = MUTANTS[name]
    changes = [change, *([REPAIRS[name]] if name in REPAIRS else [])] if isinstance(change, tuple) else []
    with pytest.raises(AssertionError):
        first_step_is_right(mutant(preference, *changes, **(change if isinstance(change, dict) else {})), tmp_path)


@settings(deadline=None, max_examples=4)
@given(st.data())
def test_a_stopped_run_ends_with_the_figures_of_one_that_was_not(finished, interrupted, tmp_path_factory, data):
    folder, model, _, scores = finished
    saved = data.draw(st.integers(0, 39))
    stop = data.draw(st.integers(saved + 1, 40))
    again = tmp_path_factory.mktemp("again")
    with interrupted(saved, stop), pytest.raises(KeyboardInterrupt):
        train(again)
    torch.manual_seed(1234)
    resumed = fresh()
    with interrupted() as done:
        assert train(again, resumed) == scores
    assert done == list(range(saved + 1, 41))
    assert (again / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert (again / "reward" / "model.safetensors").read_bytes() == (folder / "reward" / "model.safetensors").read_bytes()
    assert same(weights(resumed), weights(model))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_below_a_head_alone_are_computed_once_and_change_nothing(tmp_path, monkeypatch, pooling):
    base, read, records = language_model(), [], []
    real = lora.Branch.hidden
    monkeypatch.setattr(lora.Branch, "hidden", lambda self, tokens, *rest: read.append(len(tokens)) or real(self, tokens, *rest))
    rows = sum(len(r.answers) for r in LEARN[:20])
    for once in (True, False):
        if not once:
            monkeypatch.setattr(preference, "states_of", lambda model, rows: None)
        read.clear()
        model = lora.Branch(base, 1, scalar=True, depth=0, pooling=pooling)
        train(tmp_path / str(once), model, learn=LEARN[:20], config=dict(epochs=3, batch=6, lr=0.05))
        assert (sum(read) == rows + sum(len(r.answers) for r in HELD_OUT)) == once
        records.append((runs.Metrics(tmp_path / str(once)).read("reward"), model.score.weight.detach().clone()))
    (these, weight), (those, other) = records
    torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-5)
    for one, two in zip(these, those, strict=True):
        assert one.pop("stage") == two.pop("stage") and one == pytest.approx(two, rel=1e-3, abs=1e-4)


def test_every_epoch_takes_every_ranking_once_in_an_order_that_the_seed_decides(tmp_path, monkeypatch):
    read, real = [], preference.rewards_of

    def look(model, rows, states=None):
        if model.training:
            read.append(rows)
        return real(model, rows, states)

    monkeypatch.setattr(preference, "rewards_of", look)
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        read.clear()
        train(tmp_path / str(number), learn=LEARN[:20], config=dict(epochs=2, batch=6), seed=seed)
        assert len(read) == 8  # both epochs have a smaller last step
        for epoch in (read[:4], read[4:]):
            rows = sorted(row for step in epoch for row in step)
            assert rows == sorted(r.prompt + answer for r in LEARN[:20] for answer in r.answers)
        assert read[:4] != read[4:]
        orders.append(list(read))
    assert orders[0] == orders[1] != orders[2]


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_to_zero(tmp_path, monkeypatch):
    rates = []

    class Noting(torch.optim.AdamW):
        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            assert self.param_groups[0]["weight_decay"] == 0.25
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Noting)
    train(tmp_path, learn=LEARN[:40], config=dict(epochs=5, batch=10, lr=0.01, weight_decay=0.25))
    assert rates == pytest.approx([0.01 * min((n + 1) / 3, (20 - n) / 18) for n in range(20)])


# ----------------------------------------------------------------------------------------- refused before the first step

ONE, LONG = Ranking([3], [[4]]), Ranking([3] * 40, [[4], [4] * 9])
CASES = [
    ({"learn": []}, "0 comparisons to learn from and 40 held out: at least one of each is needed"),
    ({"held_out": []}, "160 comparisons to learn from and 0 held out"),
    ({"learn": [LEARN[0], ONE]}, "^comparison 2 has 1 answers: at least two can be compared"),
    ({"held_out": [ONE]}, "^held-out comparison 1 has 1 answers"),
    ({"learn": [*LEARN[:2], LONG]}, "^comparison 3 has 49 tokens, more than the context of 48: leave it out"),
    ({"held_out": [LONG]}, "^held-out comparison 1 has 49 tokens"),
]


@pytest.mark.parametrize(("changes", "sentence"), CASES)
def test_what_cannot_be_learned_from_is_refused_before_the_first_step(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(interrupted, tmp_path):
    def poison(step, model):
        if step == 3:
            for weight in model.parameters():
                nn.init.constant_(weight, math.nan)

    with interrupted(after=poison), pytest.raises(RunError, match="reward: the loss is nan at step 3"):
        train(tmp_path)
    assert not (tmp_path / "reward" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, r"preference\.epochs and preference\.batch must be at least 1, got 0 and 16"),
        ({"batch": 0}, r"preference\.epochs and preference\.batch must be at least 1, got 2 and 0"),
        *(({"lr": value}, rf"preference\.lr must lie in \(0, 1\], got {value}") for value in (0.0, 1.5, math.nan)),
        *(({"weight_decay": v}, rf"preference\.weight_decay must not be negative, got {v}") for v in (-0.1, math.nan)),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        PreferenceConfig(**changes)
