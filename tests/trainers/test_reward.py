import copy
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib import labels as label_sets
from rlhf_lib.files import RunError
from rlhf_lib.labels import Label
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.tokenization import CharTokenizer, WordTokenizer
from rlhf_lib.trainers import reward
from rlhf_lib.trainers.reward import RewardConfig, sentiment_loss

LN2 = math.log(2)


def random_model(dropout=0.0):
    """A reward model whose every parameter counts (a fresh one starts with zeros), in evaluation mode."""
    torch.manual_seed(0)
    model = RewardModel(GPT(GPTConfig(vocab_size=11, context=12, layers=2, heads=2, width=16)), dropout=dropout)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


# ----------------------------------------------------------------------------------------- the loss

MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
LAST = [2, 4, 4, 0, 4]  # the last real place of each row


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


# ----------------------------------------------------------------------------------------- scoring

LETTERS = CharTokenizer("abcdefghi")  # tokens 2 to 10
TEXTS = ["a", "hedge", "bad", "ice", "fig", "beef", "headache", "cab", "i", "decade", "g"]


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


def test_evaluate_by_hand():
    model = Stub({"a": 0.82, "b": 0.25, "c": 0.05, "d": 0.99, "e": 0.88})
    found = reward.evaluate(model, LETTERS, labelled(a="positive", b="positive", c="negative", d="neutral", e="negative"))
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
    found = reward.evaluate(model, LETTERS, labelled(a="positive", b="positive", c="negative", d="positive"))
    assert found["accuracy"] == 0.75
    assert found["calibration_error"] == pytest.approx(0, abs=1e-6)


def test_certainty_has_a_bin_too():
    model = Stub({"a": 1 - 1e-15, "b": 1 - 1e-15})
    found = reward.evaluate(model, LETTERS, labelled(a="positive", b="negative"))
    assert found["calibration_error"] == pytest.approx(0.5, abs=1e-6)


def test_neutral_passages_alone_test_nothing():
    with pytest.raises(ValueError, match="no held-out passage is positive or negative: label more passages"):
        reward.evaluate(Stub({"a": 0.5}), LETTERS, labelled(a="neutral", b="neutral"))


# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("epochs", 0, r"reward\.epochs and reward\.batch must be at least 1, got 0 and "),
        ("batch", 0, r"reward\.epochs and reward\.batch must be at least 1, got \d+ and 0"),
        ("lr", 0.0, r"reward\.lr must lie in \(0, 1\], got 0\.0"),
        ("lr", 1.1, r"reward\.lr must lie in \(0, 1\], got 1\.1"),
        ("lr", math.nan, r"reward\.lr must lie in \(0, 1\], got nan"),
        ("held_out", 0.0, r"reward\.held_out must lie between 0 and 1, got 0\.0"),
        ("held_out", 1.0, r"reward\.held_out must lie between 0 and 1, got 1\.0"),
        ("dropout", 1.0, r"reward\.dropout must lie in \[0, 1\)"),
        ("dropout", -0.1, r"reward\.dropout must lie in \[0, 1\)"),
        ("rank", -1, r"reward\.rank must not be negative, got -1"),
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
CONFIG = dict(epochs=12, batch=16, lr=0.01, dropout=0.1, held_out=0.2)
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


def test_a_gpt_of_gpt2s_recipe_trains_and_loads_too(tmp_path):
    model, scores = train(tmp_path, config=CONFIG, gpt=fresh_gpt(recipe="gpt2"))
    loaded, _ = checkpoints.load(tmp_path / "reward", kind="reward")
    texts = [label.text for label in LABELS[:20]]
    assert torch.equal(reward.score_texts(loaded, WORDS, texts), reward.score_texts(model, WORDS, texts))
    assert scores["accuracy"] > 0.9


def test_the_returned_scores_are_those_of_the_held_out_labels(finished):
    folder, model, scores = finished
    assert not model.training
    assert scores == pytest.approx(reward.evaluate(model, WORDS, label_sets.split(LABELS, 0.2)[1]), rel=1e-6)
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
    loaded, tokenizer = checkpoints.load(folder / "reward", kind="reward")
    assert not loaded.training and loaded.pooling == model.pooling
    assert tokenizer.fingerprint() == WORDS.fingerprint()
    texts = [label.text for label in LABELS]
    assert torch.equal(reward.score_texts(loaded, tokenizer, texts), reward.score_texts(model, WORDS, texts))
    metadata = checkpoints.read_metadata(folder / "reward")
    assert metadata["kind"] == "reward" and metadata["raters"] == ["r1", "r2"]
    assert metadata["accuracy"] == scores["accuracy"]


def test_the_checkpoint_remembers_the_pooling(tmp_path):
    model, _ = train(tmp_path, config={**SHORT, "epochs": 1, "pooling": "last"})
    loaded, _ = checkpoints.load(tmp_path / "reward", kind="reward")
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
        resumed, stats = train(again)
    assert done == list(range(saved + 1, STEPS + 1))  # it went on, and did not begin again
    assert stats == scores
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

    with interrupted(after=poison), pytest.raises(RunError, match=r"reward: the loss is nan at step 5\. Lower the"):
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


def test_held_out_labels_that_are_all_neutral_are_refused_before_training(tmp_path):
    learn, held_out = label_sets.split(LABELS, 0.2)
    neutral = [label for label in held_out if label.label == "neutral"]
    with pytest.raises(ValueError, match="no held-out passage is positive or negative: label more passages"):
        train(tmp_path, labels=[*learn, *neutral])
    assert neutral and list(tmp_path.iterdir()) == []


def test_what_the_caller_gives_stays_as_it_is(tmp_path):
    """Also a GPT with another dropout than the reward model's, in training mode, and with gradients of its own."""
    gpt, labels, config = fresh_gpt(dropout=0.3).train(), toy_labels(40), RewardConfig(**{**SHORT, "dropout": 0.1})
    gpt(torch.tensor([[1, 2, 3]])).sum().backward()
    before = copy.deepcopy((gpt, labels, config, WORDS.fingerprint()))
    gradients = {name: weight.grad.clone() for name, weight in gpt.named_parameters()}
    model, _ = reward.train(gpt, WORDS, labels, config, tmp_path)
    assert (labels, config, WORDS.fingerprint()) == before[1:]
    assert gpt.config == before[0].config and gpt.training
    assert all(map(torch.equal, gpt.parameters(), before[0].parameters()))
    assert all(torch.equal(weight.grad, gradients[name]) for name, weight in gpt.named_parameters())
    assert isinstance(gpt.head, nn.Linear) and gpt(torch.tensor([[1]])).shape == (1, 1, WORDS.vocab_size)
    assert model.config.dropout == 0.1 and not torch.equal(model.body.embedding.weight, gpt.embedding.weight)


def test_the_language_loss_teaches_the_body_and_reads_real_tokens_alone(tmp_path):
    """The oracle is one step by hand: plain loops over passages, without padding."""
    config = {**SHORT, "epochs": 1, "dropout": 0.0, "batch": 400, "language_coef": 0.7, "weight_decay": 0.0}
    gpt = fresh_gpt()
    for weight in gpt.parameters():
        nn.init.normal_(weight, std=0.2)
    model, _ = train(tmp_path, config=config, gpt=gpt)
    body, rows = copy.deepcopy(gpt), [WORDS.encode(label.text) for label in label_sets.split(LABELS, 0.2)[0]]
    nats, count = 0.0, 0
    for row in rows:
        logprobs = body(torch.tensor([row[:-1]]))[0].log_softmax(-1) if len(row) > 1 else []
        nats -= sum(logprobs[place, token] for place, token in enumerate(row[1:]))
        count += len(row) - 1
    record = runs.Metrics(tmp_path).read("reward")[0]
    assert record["train_loss"] == pytest.approx(LN2, rel=1e-5)  # of a head that starts at zero: no opinion
    (0.7 * nats / count).backward()  # which also means that it has no gradient for the body yet: only this loss has
    move = model.body.embedding.weight - gpt.embedding.weight
    slope = body.embedding.weight.grad
    clear = slope.abs() > 1e-6
    assert clear.sum() > 100
    assert torch.equal(move[clear].sign(), -slope[clear].sign())  # Adam's first step goes by the sign
    torch.testing.assert_close(move[clear].abs().median(), torch.tensor(0.01 / (0.1 + 1)), rtol=0.02, atol=0)


def test_half_precision_with_a_gradient_scaler_trains_and_resumes(monkeypatch, interrupted, tmp_path):
    """As on a card without bfloat16, such as a T4; here on the CPU. The scale is part of what a resumed run finds again."""
    monkeypatch.setattr(devices, "precision", lambda device, width=256: torch.float16)
    _, scores = train(tmp_path / "whole")
    with interrupted(saved=7, stop=9), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    assert runs.load_state(tmp_path / "stopped" / "reward" / "state.pt")["optimizers"][1]["scale"] > 1
    model, again = train(tmp_path / "stopped")
    assert again == scores
    for name in ("metrics.jsonl", "reward/model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("began, goes_on", [(torch.float32, torch.float16), (torch.float16, torch.float32)])
def test_a_run_goes_on_on_a_device_of_another_precision(monkeypatch, interrupted, tmp_path, began, goes_on):
    """As one that began on a CPU, and so without a gradient scaler, does on a T4; and the other way round."""
    monkeypatch.setattr(devices, "precision", lambda device, width=256: began)
    with interrupted(saved=7, stop=9), pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.setattr(devices, "precision", lambda device, width=256: goes_on)
    with interrupted() as done:
        _, scores = train(tmp_path)
    assert done[0] == 8 and scores["accuracy"] > 0.8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tells_passages_apart(monkeypatch, dtype):
    """With the last layer in it, hundreds of passages would share a score: then no ranking of them is possible."""
    monkeypatch.setattr(devices, "precision", lambda device, width=256: dtype)
    draw, texts = random.Random(0), set()
    while len(texts) < 400:
        texts.add("".join(draw.choices("abcdefghi", k=draw.randint(3, 12))))
    scores = reward.score_texts(random_model(), LETTERS, sorted(texts))
    assert scores.unique().numel() >= 398


# ----------------------------------------------------------------------------------------- adapters in place of all weights


def with_adapters(folder, seed=0, **changes):
    gpt = fresh_gpt().eval()
    checkpoints.save(folder / "base", gpt, WORDS)
    return gpt, *train(folder, config={**CONFIG, "rank": 8, "lr": 0.03, **changes}, seed=seed, gpt=gpt)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_adapters_separate_the_passages_and_their_checkpoint_scores_alike(tmp_path, pooling):
    gpt, model, scores = with_adapters(tmp_path, pooling=pooling)
    assert scores["accuracy"] > 0.95 and scores["loss"] < 0.6 * LN2
    for mine, theirs in zip(gpt.parameters(), fresh_gpt().parameters(), strict=True):
        assert torch.equal(mine, theirs)
    names = set(checkpoints.read_tensors(tmp_path / "reward"))
    assert {"score.weight", "score.bias"} < names and {name.rsplit(".", 1)[1] for name in names} == {"A", "B", "weight", "bias"}
    loaded, _ = checkpoints.load(tmp_path / "reward", kind="reward")
    texts = [label.text for label in LABELS]
    assert torch.equal(reward.score_texts(loaded, WORDS, texts), reward.score_texts(model, WORDS, texts))


def test_adapters_without_a_base_to_stand_on_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match=r"no checkpoint in .*base: it needs a model\.safetensors"):
        train(tmp_path, config={**SHORT, "rank": 2})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_stopped_run_of_adapters_ends_with_the_figures_of_one_that_was_not(tmp_path, interrupted):
    short = {"epochs": 2}
    _, model, scores = with_adapters(tmp_path / "whole", **short)
    torch.manual_seed(99)
    with interrupted(3, 5), pytest.raises(KeyboardInterrupt):
        with_adapters(tmp_path / "again", **short)
    _, resumed, again = with_adapters(tmp_path / "again", **short)
    assert again == scores
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
