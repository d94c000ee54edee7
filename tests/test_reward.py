import itertools
import json
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import labels as label_sets
from rlhf_lib import reward, runs
from rlhf_lib.labels import Label
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.reward import RewardConfig, RewardModel, bradley_terry_loss, last_real, ranking_loss, sentiment_loss
from rlhf_lib.tokenization import CharTokenizer, WordTokenizer

LN2 = math.log(2)
POSITIONS = ("rotary", "learned")


def random_model(pooling="mean", **changes):
    """A reward model whose every parameter counts (a fresh one starts with zeros), in evaluation mode."""
    torch.manual_seed(0)
    model = RewardModel(
        GPT(GPTConfig(**{"vocab_size": 11, "context": 12, "layers": 2, "heads": 2, "width": 16, **changes})), pooling
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def pad(rows, sides, width):
    """Rows of tokens as (B, width), padded on the side that `sides` names for each with tokens that stand for something."""
    tokens = torch.arange(len(rows) * width).view(len(rows), width) % 7 + 3
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, (row, side) in enumerate(zip(rows, sides, strict=True)):
        real = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        tokens[place, real] = torch.tensor(row)
        mask[place, real] = True
    return tokens, mask


# ----------------------------------------------------------------------------------------- losses

MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
LAST = [2, 4, 4, 0, 4]  # the last real place of each row


def test_last_real_finds_it_behind_padding_on_either_side():
    x = torch.arange(25.0).view(5, 5)
    assert last_real(x, MASK).tolist() == [2, 9, 14, 15, 24]


def test_sentiment_loss_by_hand():
    """Log-odds ln 3 is a probability of 3/4, and -ln 3 one of 1/4."""
    logits = torch.full((5, 5), 50.0)
    for row, (place, value) in enumerate(zip(LAST, [3, 1 / 3, 3, 1, 1 / 3])):
        logits[row, place] = math.log(value)
    targets = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0])
    each = [-math.log(3 / 4), -math.log(1 / 4), -(math.log(3 / 4) + math.log(1 / 4)) / 2, LN2, -math.log(3 / 4)]
    assert sentiment_loss(logits, targets, MASK).item() == pytest.approx(sum(each) / 5, rel=1e-6)


def test_only_the_last_real_token_has_a_gradient():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0])
    sentiment_loss(logits, targets, MASK).backward()
    expected = torch.zeros(5, 5)
    for row, place in enumerate(LAST):  # the derivative of the cross-entropy, and the mean over five rows
        expected[row, place] = (logits[row, place].detach().sigmoid() - targets[row]) / 5
    assert torch.equal(logits.grad != 0, expected != 0)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-7)


@given(st.floats(-30, 30))
@settings(deadline=None, max_examples=40)
def test_a_neutral_passage_costs_least_at_log_odds_zero(x):
    def loss(x):
        return sentiment_loss(
            torch.tensor([[x]], dtype=torch.float64), torch.tensor([0.5]).double(), torch.ones(1, 1).bool()
        ).item()

    assert loss(0.0) == pytest.approx(LN2, rel=1e-12)
    assert loss(x) == pytest.approx(loss(-x), rel=1e-12)
    assert loss(x) >= LN2 and (abs(x) < 1e-3 or loss(x) > LN2)


def test_sentiment_loss_stays_finite_at_large_log_odds():
    logits = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    loss = sentiment_loss(logits, torch.tensor([0.0, 0.0]), torch.ones(2, 1).bool())
    loss.backward()
    assert loss.item() == 500
    assert logits.grad.tolist() == [[0.5], [0.0]]


def test_bradley_terry_loss_by_hand():
    """Margins of ln 3, 0 and -ln 3 are won with probability 3/4, 1/2 and 1/4."""
    chosen = torch.tensor([1 + math.log(3), 4.0, -2.0])
    rejected = torch.tensor([1.0, 4.0, -2 + math.log(3)])
    expected = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_loss_and_its_gradient_stay_finite_at_any_margin():
    for margin, loss, slope in ((1000.0, 0.0, 0.0), (-1000.0, 1000.0, -1.0)):
        chosen, rejected = torch.tensor([margin], requires_grad=True), torch.zeros(1, requires_grad=True)
        found = bradley_terry_loss(chosen, rejected)
        found.backward()
        assert found.item() == loss
        assert (chosen.grad.item(), rejected.grad.item()) == (slope, -slope)


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_ranking_loss_is_the_mean_over_all_pairs(N, K, seed):
    rewards = 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    pairs = [(row[i], row[j]) for row in rewards.tolist() for i, j in itertools.combinations(range(K), 2)]
    assert len(pairs) == N * K * (K - 1) // 2
    expected = sum(math.log1p(math.exp(worse - better)) for better, worse in pairs) / len(pairs)
    assert ranking_loss(rewards).item() == pytest.approx(expected, rel=1e-5)


def test_ranking_two_answers_is_bradley_terry():
    rewards = torch.tensor([[1.0, 0.25], [-2.0, 3.0], [0.5, 0.5]])
    assert ranking_loss(rewards).item() == pytest.approx(bradley_terry_loss(rewards[:, 0], rewards[:, 1]).item(), rel=1e-6)


def test_ranking_loss_and_its_gradient_stay_finite_at_any_margin():
    rewards = torch.tensor([[-1000.0, 0.0, 1000.0]], requires_grad=True)  # the order upside down
    loss = ranking_loss(rewards)
    loss.backward()
    assert loss.item() == pytest.approx((1000 + 2000 + 1000) / 3)
    assert rewards.grad.tolist()[0] == pytest.approx([-2 / 3, 0, 2 / 3], abs=1e-6)


def test_one_answer_is_no_ranking():
    with pytest.raises(ValueError, match="a ranking needs at least 2 answers, got 1"):
        ranking_loss(torch.zeros(3, 1))


# ----------------------------------------------------------------------------------------- the model


def test_a_fresh_reward_model_has_no_opinion():
    model = RewardModel(GPT(GPTConfig(vocab_size=11, context=12, layers=1, heads=2, width=16)))
    assert model(torch.arange(10)[None]).abs().max() == 0


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be mean or last, got 'max'"):
        RewardModel(GPT(GPTConfig(vocab_size=11, context=12, layers=1, heads=2, width=16)), "max")


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_log_odds_equal_a_loop_over_prefixes(pooling, positions):
    model = random_model(pooling, positions=positions)
    tokens = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(1))
    for row, found in zip(tokens, model(tokens), strict=True):
        for end in range(1, 13):  # only what stands up to there is read
            hidden = model.body.hidden(row[None, :end])[0]
            pooled = hidden.mean(0) if pooling == "mean" else hidden[-1]
            expected = pooled @ model.score.weight[0] + model.score.bias[0]
            assert found[end - 1].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)


drawn_rows = st.lists(
    st.tuples(st.lists(st.integers(0, 10), min_size=1, max_size=9), st.sampled_from(["left", "right"])), min_size=1, max_size=5
)


@pytest.mark.parametrize("pooling, positions", [("mean", "rotary"), ("last", "rotary"), ("mean", "learned"), ("last", "learned")])
def test_padding_on_either_side_does_not_move_the_log_odds(pooling, positions):
    model = random_model(pooling, positions=positions)

    @given(drawn_rows, st.integers(0, 3))
    @settings(deadline=None, max_examples=20)
    @torch.no_grad()
    def check(drawn, more):
        rows, sides = zip(*drawn)
        width = max(map(len, rows)) + more
        found = model.logits(*pad(rows, sides, width))
        alone = torch.cat([model.logits(torch.tensor([row])) for row in rows])
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=2e-5)

    check()


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_log_odds_at_every_real_place_are_the_same_with_padding(side):
    model = random_model()
    row = [4, 9, 1, 0, 7]
    tokens, mask = pad([row], [side], 9)
    torch.testing.assert_close(model(tokens, mask)[mask], model(torch.tensor([row]))[0], rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_poolings_differ_and_so_do_passages():
    """Guards the tests above: a model that answers one number would pass them."""
    tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(2))
    mean, last = random_model("mean").logits(tokens), random_model("last").logits(tokens)
    assert (mean - last).abs().min() > 1e-3
    assert mean.unique().numel() == last.unique().numel() == 4


# ----------------------------------------------------------------------------------------- scoring

LETTERS = CharTokenizer("abcdefghi")  # tokens 2 to 10
TEXTS = ["a", "hedge", "bad", "ice", "fig", "beef", "headache", "cab", "i", "decade", "g"]


def test_pad_right_by_hand():
    tokens, mask = reward.pad_right([[5, 6], [7], [8, 0, 9]])
    assert tokens.tolist() == [[5, 6, 0], [7, 0, 0], [8, 0, 9]]
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]


@pytest.mark.parametrize("batch", [1, 3, 128])
def test_texts_are_scored_in_their_order_and_as_if_alone(batch):
    model = random_model(dropout=0.5).train()  # dropout must not count
    scores = reward.score_texts(model, LETTERS, TEXTS, batch=batch)
    with torch.no_grad():
        alone = torch.cat([model.eval().logits(torch.tensor([LETTERS.encode(text)])) for text in TEXTS])
    assert scores.dtype == torch.float32 and not scores.requires_grad
    torch.testing.assert_close(scores, alone, rtol=1e-5, atol=2e-5)
    assert scores.unique().numel() == len(TEXTS)  # so that no two could have changed places


@given(st.lists(st.integers(1, 60), min_size=1, max_size=400), st.integers(1, 12), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_an_epoch_has_every_row_once_in_batches_of_one_size_but_the_last(lengths, size, seed):
    parts = reward.batches(torch.tensor(lengths), size, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    assert sorted(len(part) for part in parts)[1:] == [size] * (len(parts) - 1)
    assert len(parts) == math.ceil(len(lengths) / size)


def test_batches_hold_rows_of_like_length_in_an_order_that_the_seed_decides():
    lengths = torch.randint(10, 50, (1600,), generator=torch.Generator().manual_seed(0))
    first, again, other = (reward.batches(lengths, 20, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(first, again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    spread = [(lengths[rows].max() - lengths[rows].min()).item() for rows in first]
    assert max(spread) <= 8  # 320 rows of 40 lengths in 16 batches: 2 or 3 lengths a batch; 39 in a drawn order
    means = torch.tensor([lengths[rows].double().mean() for rows in first])
    assert torch.corrcoef(torch.stack([means, torch.arange(len(means)).double()]))[0, 1].abs() < 0.3  # not from short to long


def test_no_texts_have_no_scores():
    assert reward.score_texts(random_model(), LETTERS, []).shape == (0,)


@pytest.mark.parametrize("text, tokens", [("", 0), ("a" * 13, 13)])
def test_a_text_that_is_empty_or_over_the_context_is_refused_by_its_number(text, tokens):
    assert reward.score_texts(random_model(), LETTERS, ["a" * 12]).shape == (1,)
    with pytest.raises(ValueError, match=f"text 3 has {tokens} tokens: the reward model reads 1 to 12"):
        reward.score_texts(random_model(), LETTERS, ["ab", "c", text, "d"])


class Stub(nn.Module):
    """A reward model with a fixed probability of positive for each one-letter text."""

    def __init__(self, chances):
        super().__init__()
        self.config = GPTConfig(vocab_size=LETTERS.vocab_size, context=4, heads=1, width=2)
        self.table = nn.Parameter(torch.zeros(LETTERS.vocab_size))
        for letter, p in chances.items():
            self.table.data[LETTERS.encode(letter)[0]] = math.log(p / (1 - p))

    def logits(self, tokens, mask):
        return self.table[tokens[:, 0]]


def labelled(**names):
    return [Label(text, name, "r1", (text, "test")) for text, name in names.items()]


def test_test_by_hand():
    model = Stub({"a": 0.82, "b": 0.25, "c": 0.05, "d": 0.99, "e": 0.88})
    found = reward.test(model, LETTERS, labelled(a="positive", b="positive", c="negative", d="neutral", e="negative"))
    assert found["passages"] == 4  # d is neutral
    assert found["accuracy"] == 0.5  # a and c
    # Confidence and right or wrong: a .82 right and e .88 wrong share the bin from .8; b .75 wrong; c .95 right.
    gaps = abs(1 - 0.82 - 0.88) + abs(0 - 0.75) + abs(1 - 0.95)
    assert found["calibration_error"] == pytest.approx(gaps / 4, rel=1e-5)
    loss = -(math.log(0.82) + math.log(0.25) + math.log(0.95) + (math.log(0.99) + math.log(0.01)) / 2 + math.log(0.12)) / 5
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated():
    """Three of four right at a confidence of 3/4, on both sides."""
    model = Stub({"a": 0.75, "b": 0.75, "c": 0.25, "d": 0.25})
    found = reward.test(model, LETTERS, labelled(a="positive", b="positive", c="negative", d="positive"))
    assert found["accuracy"] == 0.75
    assert found["calibration_error"] == pytest.approx(0, abs=1e-6)


def test_certainty_has_a_bin_too():
    model = Stub({"a": 1 - 1e-15, "b": 1 - 1e-15})
    found = reward.test(model, LETTERS, labelled(a="positive", b="negative"))
    assert found["calibration_error"] == pytest.approx(0.5, abs=1e-6)


def test_neutral_passages_alone_test_nothing():
    with pytest.raises(ValueError, match="no held-out passage is positive or negative: label more passages"):
        reward.test(Stub({"a": 0.5}), LETTERS, labelled(a="neutral", b="neutral"))


# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("epochs", 0, r"reward\.epochs and reward\.batch must be at least 1, got 0 and "),
        ("batch", 0, r"reward\.epochs and reward\.batch must be at least 1, got \d+ and 0"),
        ("rate", 0.0, r"reward\.rate must lie in \(0, 1\], got 0\.0"),
        ("rate", 1.1, r"reward\.rate must lie in \(0, 1\], got 1\.1"),
        ("rate", math.nan, r"reward\.rate must lie in \(0, 1\], got nan"),
        ("held_out", 0.0, r"reward\.held_out must lie between 0 and 1, got 0\.0"),
        ("held_out", 1.0, r"reward\.held_out must lie between 0 and 1, got 1\.0"),
        ("dropout", 1.0, r"reward\.dropout must lie in \[0, 1\)"),
        ("dropout", -0.1, r"reward\.dropout must lie in \[0, 1\)"),
        ("weight_decay", -1.0, r"reward\.weight_decay .*not be negative"),
    ],
)
def test_config_refuses_a_bad_value_by_name(field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        RewardConfig(**{field: value})


# ----------------------------------------------------------------------------------------- training

FILLERS = ["king", "queen", "sword", "crown", "night", "tower", "horse", "ship", "letter", "garden"]


def toy_labels(count, seed=0):
    """Passages of a few words: "sweet" is in every positive one, "foul" in every negative one, neither in a neutral one."""
    draw = random.Random(seed)
    found = {}
    while len(found) < count:
        words = draw.choices(FILLERS, k=draw.randint(2, 6))
        name = draw.choice(["positive", "positive", "negative", "negative", "neutral"])
        if name != "neutral":
            words.insert(draw.randrange(len(words) + 1), {"positive": "sweet", "negative": "foul"}[name])
        text = " ".join(words)
        found[text] = Label(text, name, draw.choice(["r2", "r1"]), (text, "toy"))
    return list(found.values())


WORDS = WordTokenizer.train([" ".join([*FILLERS, "sweet", "foul"])])
CONFIG = dict(epochs=12, batch=16, rate=0.01, dropout=0.1, held_out=0.2)
SHORT = {**CONFIG, "epochs": 2}
LABELS = toy_labels(160)
STEPS = 2 * math.ceil(len(label_sets.split(LABELS, 0.2)[0]) / 16)  # of a run with SHORT


def fresh_gpt(context=16, **changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=WORDS.vocab_size, context=context, layers=1, heads=2, width=32, **changes))


def train(folder, labels=LABELS, config=SHORT, seed=0, gpt=None):
    return reward.train(gpt or fresh_gpt(), WORDS, labels, RewardConfig(**config), folder, seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nobody stopped, its model and its scores."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, *train(folder)


def test_training_separates_held_out_passages_that_one_word_tells_apart(tmp_path):
    model, scores = train(tmp_path, config=CONFIG)
    held_out = label_sets.split(LABELS, 0.2)[1]
    clear = [label for label in held_out if label.label != "neutral"]
    assert scores["passages"] == len(clear) >= 20
    assert scores["accuracy"] == 1.0
    assert scores["loss"] < 0.5 * LN2
    logits = reward.score_texts(model, WORDS, [label.text for label in held_out]).tolist()
    mean = {name: [x for x, label in zip(logits, held_out) if label.label == name] for name in label_sets.LABELS}
    mean = {name: sum(values) / len(values) for name, values in mean.items()}
    assert mean["negative"] < -2 < -1 < mean["neutral"] < 1 < 2 < mean["positive"]


@pytest.mark.parametrize("changes", [{"tied": True}, {"positions": "learned", "norm": "layernorm", "bias": True}])
def test_gpts_of_other_shapes_train_and_load_too(changes, tmp_path):
    model, scores = train(tmp_path, config=CONFIG, gpt=fresh_gpt(**changes))
    loaded, _ = reward.load_model(tmp_path / "reward")
    texts = [label.text for label in LABELS[:20]]
    assert torch.equal(reward.score_texts(loaded, WORDS, texts), reward.score_texts(model, WORDS, texts))
    assert scores["accuracy"] > 0.9


def test_the_returned_scores_are_those_of_the_held_out_labels(finished):
    folder, model, scores = finished
    assert not model.training
    assert scores == pytest.approx(reward.test(model, WORDS, label_sets.split(LABELS, 0.2)[1]), rel=1e-6)
    last = runs.Metrics(folder).read("reward")[-1]
    assert last["step"] + 1 == STEPS
    assert {name: last[f"held_out_{name}"] for name in scores} == pytest.approx(scores, rel=1e-6)


def test_held_out_labels_teach_nothing(finished, tmp_path):
    """With every held-out label turned over, the same weights come out, and the other accuracy."""
    learn, held_out = label_sets.split(LABELS, 0.2)
    turn = {"positive": "negative", "negative": "positive", "neutral": "neutral"}
    turned = [Label(label.text, turn[label.label], label.reader, label.source) for label in held_out]
    model, scores = train(tmp_path, labels=[*learn, *turned])
    _, theirs, before = finished
    for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert scores["accuracy"] == pytest.approx(1 - before["accuracy"])


def test_the_checkpoint_loads_and_gives_the_same_scores(finished):
    folder, model, scores = finished
    loaded, tokenizer = reward.load_model(folder / "reward")
    assert not loaded.training and loaded.pooling == model.pooling
    assert tokenizer.fingerprint() == WORDS.fingerprint()
    texts = [label.text for label in LABELS]
    assert torch.equal(reward.score_texts(loaded, tokenizer, texts), reward.score_texts(model, WORDS, texts))
    card = runs.read_card(folder / "reward")
    assert card["kind"] == "reward" and card["raters"] == ["r1", "r2"]
    assert card["accuracy"] == scores["accuracy"]


def test_the_checkpoint_remembers_the_pooling(tmp_path):
    model, _ = train(tmp_path, config={**SHORT, "epochs": 1, "pooling": "last"})
    loaded, _ = reward.load_model(tmp_path / "reward")
    assert loaded.pooling == "last"
    texts = [label.text for label in LABELS[:20]]
    assert torch.equal(reward.score_texts(loaded, WORDS, texts), reward.score_texts(model, WORDS, texts))


@settings(deadline=None, max_examples=6)
@given(st.integers(0, STEPS), st.integers(0, STEPS))
def test_a_stopped_run_ends_with_the_figures_of_one_that_was_not(finished, interrupted, tmp_path_factory, one, other):
    """Stopped after one drawn step, with the training state of another: the work between the two is done again."""
    folder, model, scores = finished
    again = tmp_path_factory.mktemp("again")
    saved, stop = min(one, other), max(one, other, 1)
    with interrupted(saved, stop) as done, pytest.raises(KeyboardInterrupt):
        train(again)
    assert done == list(range(1, stop + 1))
    torch.manual_seed(1234)  # whatever the process did before it went on
    with interrupted() as done:
        resumed, figures = train(again)
    assert done == list(range(saved + 1, STEPS + 1))  # it went on, and did not begin again
    assert figures == scores
    assert (again / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert (again / "reward" / "model.safetensors").read_bytes() == (folder / "reward" / "model.safetensors").read_bytes()
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_seed_takes_the_labels_in_another_order(tmp_path):
    plain = {**SHORT, "epochs": 1, "dropout": 0.0}  # nothing else is drawn
    first, second, same = (train(tmp_path / str(n), config=plain, seed=seed)[0] for n, seed in enumerate((0, 1, 0)))
    assert not torch.equal(first.score.weight, second.score.weight)
    assert torch.equal(first.score.weight, same.score.weight)


def test_a_loss_that_is_not_finite_stops_the_run_and_writes_no_checkpoint(interrupted, tmp_path):
    def poison(step, model):
        if step == 5:
            for parameter in model.parameters():
                nn.init.constant_(parameter, math.nan)

    with interrupted(after=poison), pytest.raises(runs.RunError, match=r"reward: the loss is nan at step 5; .*are kept"):
        train(tmp_path)
    assert not (tmp_path / "reward" / "model.safetensors").exists()


def test_a_passage_over_the_context_is_refused_with_both_numbers(tmp_path):
    learn, held_out = label_sets.split(LABELS, 0.2)
    longest = max(len(WORDS.encode(label.text)) for label in learn)
    shorter = [label for label in held_out if len(WORDS.encode(label.text)) < longest]
    message = f"a passage has {longest} tokens, more than the context of {longest - 1}: use a longer context"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, labels=[*learn, *shorter], gpt=fresh_gpt(context=longest - 1))
    assert list(tmp_path.iterdir()) == []


def test_a_held_out_passage_over_the_context_is_refused_before_training(tmp_path):
    learn, held_out = label_sets.split(LABELS, 0.2)
    longest = max(len(WORDS.encode(label.text)) for label in held_out)
    shorter = [label for label in learn if len(WORDS.encode(label.text)) < longest]
    with pytest.raises(ValueError, match=f"{longest} tokens"):
        train(tmp_path, labels=[*shorter, *held_out], gpt=fresh_gpt(context=longest - 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [{}, {"language_coef": 0.0}])
def test_a_batch_of_passages_of_one_token_trains(config, tmp_path):
    labels = [Label(word, "positive" if place % 2 else "negative", "r1", (word, "toy")) for place, word in enumerate(FILLERS)]
    _, scores = train(tmp_path, labels=labels, config={**SHORT, **config, "batch": 2, "held_out": 0.4})
    assert math.isfinite(scores["loss"])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_labels_are_refused(count, tmp_path):
    with pytest.raises(ValueError, match=f"{count} labels are too few to learn from and to test on: label more passages"):
        train(tmp_path, labels=LABELS[:count])


# ----------------------------------------------------------------------------------------- loading


def test_load_model_refuses_another_kind_of_checkpoint(tmp_path):
    gpt = fresh_gpt()
    runs.save_checkpoint(tmp_path, gpt.state_dict(), {"kind": "gpt", "config": gpt.config.asdict()}, WORDS)
    with pytest.raises(runs.CheckpointError, match="holds a gpt checkpoint, not a reward model"):
        reward.load_model(tmp_path)


def test_load_model_names_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        reward.load_model(tmp_path)


def test_load_model_refuses_a_tokenizer_that_the_weights_do_not_know(finished, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((finished[0] / "reward" / "model.safetensors").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "word", "vocabulary": ["sweet"]}))
    with pytest.raises(runs.CheckpointError, match="trained with another tokenizer"):
        reward.load_model(tmp_path)
