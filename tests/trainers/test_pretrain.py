import copy
import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib.files import RunError
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import pretrain
from rlhf_lib.trainers.muon import Muon
from rlhf_lib.trainers.pretrain import PretrainConfig, Windows, lr_factor, make_optimizers

# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("steps", 0, r"pretrain\.steps must be at least 1, got 0"),
        ("batch", -2, r"pretrain\.batch must be at least 1, got -2"),
        ("evaluations", 0, r"pretrain\.evaluations must be at least 1, got 0"),
        ("matrix_lr", 0.0, r"pretrain\.matrix_lr must lie in \(0, 1\], got 0\.0"),
        ("embedding_lr", 1.5, r"pretrain\.embedding_lr must lie in \(0, 1\], got 1\.5"),
        ("head_lr", math.nan, r"pretrain\.head_lr must lie in \(0, 1\], got nan"),
        ("warmup", -1, r"pretrain\.warmup .*must not be negative"),
        ("weight_decay", -0.1, r"pretrain\.weight_decay .*must not be negative"),
        ("decay", 0.0, r"pretrain\.decay must lie in \(0, 1\], got 0\.0"),
        ("decay", 1.01, r"pretrain\.decay must lie in \(0, 1\], got 1\.01"),
    ],
)
def test_config_refuses_a_bad_value_by_name(field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        PretrainConfig(**{field: value})


def test_config_takes_the_ends_of_its_ranges():
    PretrainConfig(steps=1, batch=1, evaluations=1, matrix_lr=1.0, embedding_lr=1.0, head_lr=1.0, warmup=0, decay=1.0)


# ----------------------------------------------------------------------------------------- text and windows


def test_encode_corpus_puts_end_behind_each_work_and_counts_characters():
    tokens, characters = pretrain.encode_corpus({"text": ["ab", "cab"]}, CharTokenizer("abc"))
    assert tokens.tolist() == [2, 3, 0, 4, 2, 3, 0]  # a, b, c are 2, 3, 4 and END is 0
    assert tokens.dtype == torch.int64
    assert characters == 5


def first_rows(windows, epochs):
    """The inputs and targets of the first `epochs` epochs, (epochs, windows, context) each, from as many batches as needed."""
    steps = math.ceil(epochs * windows.count / windows.batch)
    inputs, targets = zip(*(windows[step] for step in range(steps)))
    shape = (epochs, windows.count, windows.context)
    return (torch.cat(rows)[: epochs * windows.count].view(shape) for rows in (inputs, targets))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 80), st.integers(1, 12), st.integers(0, 5))
def test_windows_of_an_epoch_cover_the_text_without_overlap(context, more, batch, seed):
    length = 2 * context + more
    windows = Windows(torch.arange(length), context, batch, seed)  # a token says where it stands
    inputs, targets = first_rows(windows, epochs=3)
    for epoch in range(3):
        read = inputs[epoch].flatten().sort().values
        first = int(read[0])
        # Each place once, with no gap; what is left out at the two ends is less than two windows.
        assert read.tolist() == list(range(first, first + len(read)))
        assert first < context
        assert length - len(read) < 2 * context
        rows = inputs[epoch]
        assert torch.equal(rows, rows[:, :1] + torch.arange(context))  # a window is a piece of the text, in its order
        assert torch.equal(targets[epoch], rows + 1)  # and its targets are the tokens that come next


def test_a_batch_has_the_asked_shape_even_when_it_is_larger_than_an_epoch():
    inputs, targets = Windows(torch.arange(20), context=5, batch=8, seed=0)[3]
    assert inputs.shape == targets.shape == (8, 5)


def test_epochs_cut_the_text_elsewhere_and_take_the_windows_in_another_order():
    inputs, _ = first_rows(Windows(torch.arange(400), context=8, batch=7, seed=0), epochs=12)
    starts = inputs[:, :, 0]  # (epochs, windows)
    assert len({int(row.min()) for row in starts}) >= 4  # of 8 possible offsets
    orders = {tuple((row - row.min()).tolist()) for row in starts}
    assert len(orders) == 12  # the offset taken out, no two epochs in the same order
    assert tuple(range(0, starts.shape[1] * 8, 8)) not in orders  # and none in the order of the text


def test_another_seed_reads_other_windows():
    tokens = torch.arange(400)
    first, second = (Windows(tokens, 8, 16, seed)[0][0] for seed in (0, 1))
    assert not torch.equal(first, second)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 40))
def test_a_step_reads_the_same_windows_whatever_was_read_before(history, step):
    def fresh():
        return Windows(torch.arange(60), context=6, batch=4, seed=3)

    walked = fresh()
    for other in history:
        walked[other]
    for mine, theirs in zip(walked[step], fresh()[step], strict=True):
        assert torch.equal(mine, theirs)


def test_a_text_shorter_than_two_contexts_is_refused():
    assert Windows(torch.arange(10), context=5, batch=1, seed=0)[0][0].shape == (1, 5)
    with pytest.raises(ValueError, match="training text has 9 tokens, fewer than two contexts of 5: use a longer text"):
        Windows(torch.arange(9), context=5, batch=1, seed=0)


# ----------------------------------------------------------------------------------------- rates and optimisers


@pytest.mark.parametrize(
    "step, factor",
    # 9 steps of warm-up, so ten equal parts up to 1 at step 9; level to step 50; then down to 0 at step 100.
    [(0, 0.1), (4, 0.5), (8, 0.9), (9, 1.0), (30, 1.0), (50, 1.0), (60, 0.8), (75, 0.5), (99, 0.02), (100, 0.0)],
)
def test_lr_factor_rises_stays_level_and_falls(step, factor):
    assert lr_factor(step, PretrainConfig(steps=100, warmup=9, decay=0.5)) == pytest.approx(factor, abs=1e-12)


def test_lr_factor_without_warmup_begins_at_full_rate():
    config = PretrainConfig(steps=10, warmup=0, decay=1.0)
    assert [lr_factor(step, config) for step in range(11)] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(0, 300), st.floats(0.01, 1.0))
def test_every_step_of_a_run_learns_something_and_none_over_the_full_rate(steps, warmup, decay):
    config = PretrainConfig(steps=steps, warmup=warmup, decay=decay)
    factors = [lr_factor(step, config) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


RECIPES = ("modern", "gpt2")


def tiny_gpt(vocab_size=11, context=8, **changes):
    return GPT(GPTConfig(vocab_size=vocab_size, context=context, **{"layers": 2, "heads": 2, "width": 16, **changes}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_has_exactly_one_optimizer(recipe):
    model = tiny_gpt(recipe=recipe)
    held = [id(p) for o in make_optimizers(model, PretrainConfig()) for group in o.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_muon_steps_the_matrices_of_the_blocks_and_nothing_else(recipe):
    model = tiny_gpt(recipe=recipe)
    muon = [o for o in make_optimizers(model, PretrainConfig()) if isinstance(o, Muon)]
    held = {id(p) for o in muon for group in o.param_groups for p in group["params"]}
    # Four linear layers in each block: attention in and out, feed-forward up and down.
    assert held == {id(m.weight) for block in model.blocks for m in block.modules() if isinstance(m, nn.Linear)}
    assert len(held) == 4 * 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_kind_of_parameter_has_its_own_rate(recipe):
    model = tiny_gpt(recipe=recipe)
    config = PretrainConfig(matrix_lr=0.03, embedding_lr=0.007, head_lr=0.001)
    groups = [group for o in make_optimizers(model, config) for group in o.param_groups]
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(model.blocks[1].up.weight)] == 0.03
    assert rates[id(model.embedding.weight)] == 0.007  # the head's too, when they are tied
    assert rates[id(model.norm.weight)] == rates[id(model.blocks[0].norm2.weight)] == 0.007
    if recipe == "modern":
        assert rates[id(model.head.weight)] == 0.001


def test_set_lr_scales_the_full_rate_and_does_not_compound():
    optimizers = make_optimizers(tiny_gpt(), PretrainConfig(matrix_lr=0.04, embedding_lr=0.008, head_lr=0.002))
    for factor in (1.0, 0.5, 0.5, 0.0, 0.25):
        pretrain.set_lr(optimizers, factor)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert sorted(rates) == pytest.approx([0.0005, 0.002, 0.01])


# ----------------------------------------------------------------------------------------- evaluation


class Table(nn.Module):
    """A language model that looks one token back: the logits of what follows token t are row t of a table."""

    def __init__(self, table, context=4):
        super().__init__()
        self.table = nn.Parameter(table)
        self.config = GPTConfig(vocab_size=len(table), context=context, heads=1, width=2)

    def forward(self, tokens):
        assert tokens.shape[1] <= self.config.context
        return self.table[tokens]


def test_a_uniform_model_pays_log2_v_bits_a_token_shared_among_the_characters():
    scores = pretrain.evaluate(Table(torch.zeros(4, 4)), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 3]), characters=20)
    # 8 predicted tokens of log2(4) = 2 bits each, over 20 characters
    assert scores["bits_per_char"] == pytest.approx(0.8, rel=1e-6)
    assert scores["loss"] == pytest.approx(math.log(4), rel=1e-6)
    assert scores["perplexity"] == pytest.approx(4, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.lists(st.integers(0, 2), min_size=2, max_size=60), st.integers(1, 500))
def test_every_token_but_the_first_counts_once(context, batch, tokens, characters):
    """A model that looks one token back pays the same wherever the windows are cut, so a plain sum says what is right."""
    table = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]
    nats = -sum(math.log(table[now][following]) for now, following in itertools.pairwise(tokens))
    scores = pretrain.evaluate(Table(torch.tensor(table).log(), context), torch.tensor(tokens), characters, batch=batch)
    assert scores["loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-5)
    assert scores["bits_per_char"] == pytest.approx(nats / math.log(2) / characters, rel=1e-5)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 16, 17, 18, 25, 50])
def test_evaluate_equals_a_loop_over_windows(length):
    """The oracle reads one window after another, in float64; the model comes in with dropout on, which must not count."""
    torch.manual_seed(length)
    model = tiny_gpt(dropout=0.5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    tokens = torch.randint(11, (length,))
    scores = pretrain.evaluate(model.train(), tokens, characters=3 * length, batch=2)

    model.double().eval()
    nats = 0.0
    with torch.no_grad():
        for start in range(0, length - 1, 8):
            piece = tokens[start : start + 9]
            logprobs = model(piece[None, :-1])[0].log_softmax(-1)
            nats -= sum(logprobs[place, token].item() for place, token in enumerate(piece[1:].tolist()))
    assert scores["loss"] == pytest.approx(nats / (length - 1), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / (length - 1)), rel=1e-4)
    assert scores["bits_per_char"] == pytest.approx(nats / math.log(2) / (3 * length), rel=1e-5)


@pytest.mark.parametrize("length", [0, 1])
def test_a_validation_text_with_nothing_to_predict_is_refused(length):
    with pytest.raises(ValueError, match="validation text has fewer than two tokens: use a longer text"):
        pretrain.evaluate(tiny_gpt(), torch.zeros(length, dtype=torch.long), characters=1)


# ----------------------------------------------------------------------------------------- training

TEXT = "the cat sat on the mat, and the rat sat on the hat. " * 20
STEPS = 24
TOKENIZER = CharTokenizer.train([TEXT])
SHAPE = dict(vocab_size=TOKENIZER.vocab_size, context=16, layers=1, heads=2, width=32, dropout=0.1)
TOKENS, CHARACTERS = pretrain.encode_corpus({"text": [TEXT]}, TOKENIZER)
UNIFORM = math.log(TOKENIZER.vocab_size)


def train(folder, seed=0, train=TOKENS, validation=(TOKENS[:200], 200), shape=SHAPE, **changes):
    config = PretrainConfig(**{"steps": STEPS, "batch": 8, "warmup": 2, "evaluations": 3, **changes})
    return pretrain.train(GPTConfig(**shape), config, train, validation, TOKENIZER, folder, seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nobody stopped, and the model that it returned."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder)


def test_training_lowers_the_loss_below_uniform(finished):
    folder, model = finished
    assert pretrain.evaluate(model, TOKENS[:200], 200)["loss"] < 0.7 * UNIFORM
    losses = [record["train_loss"] for record in runs.Metrics(folder).read("pretrain")]
    assert losses[-1] < losses[0] < UNIFORM + 0.5


def test_metrics_are_logged_every_ten_steps_and_at_every_evaluation(finished):
    folder, _ = finished
    records = runs.Metrics(folder).read("pretrain")
    assert [record["step"] + 1 for record in records] == [8, 10, 16, 20, 24]
    assert [record["step"] + 1 for record in records if "val_loss" in record] == [8, 16, 24]
    assert [record["tokens"] for record in records] == [done * 8 * 16 for done in (8, 10, 16, 20, 24)]
    for record in records:
        if "val_loss" in record:
            assert record["val_perplexity"] == pytest.approx(math.exp(record["val_loss"]))
            assert record["val_bits_per_char"] == pytest.approx(record["val_loss"] * 199 / 200 / math.log(2))


def test_the_progress_bar_keeps_the_last_bits_per_character_between_evaluations(tmp_path):
    shown = []
    with mock.patch.object(runs.tqdm, "set_postfix", side_effect=lambda figures: shown.append(dict(figures))):
        train(tmp_path, evaluations=2)
    records, last = runs.Metrics(tmp_path).read("pretrain"), None
    assert [record["step"] + 1 for record in records] == [10, 12, 20, 24]
    for figures, record in zip(shown, records, strict=True):
        last = record.get("val_bits_per_char", last)
        bits = {} if last is None else {"val_bits_per_char": f"{last:.3f}"}
        expected = {"train_loss": f"{record['train_loss']:.3f}", **bits}
        assert figures == expected


def test_the_checkpoint_holds_the_returned_model_its_tokenizer_and_its_metadata(finished):
    folder, model = finished
    assert not model.training
    loaded, tokenizer = checkpoints.load(folder / "base")
    assert not loaded.training
    assert tokenizer.fingerprint() == TOKENIZER.fingerprint()
    assert loaded.config == model.config == GPTConfig(**SHAPE)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS[None, :16]), model(TOKENS[None, :16]))
    metadata = checkpoints.read_metadata(folder / "base")
    assert metadata["kind"] == "gpt" and metadata["seed"] == 0 and metadata["step"] == 24
    assert metadata["val_loss"] == pytest.approx(pretrain.evaluate(model, TOKENS[:200], 200)["loss"], rel=1e-5)


# The training text backwards: the better the one is learned, the worse the other is read.
BACKWARDS = dict(validation=(TOKENS[:200].flip(0), 200), matrix_lr=0.1, embedding_lr=0.05, head_lr=0.05, evaluations=6)


def test_the_best_model_on_the_validation_text_is_kept_not_the_last(tmp_path):
    model = train(tmp_path, **BACKWARDS)
    losses = [record["val_loss"] for record in runs.Metrics(tmp_path).read() if "val_loss" in record]
    assert min(losses) < losses[-1] - 0.05
    assert pretrain.evaluate(model, *BACKWARDS["validation"])["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_a_resumed_run_remembers_which_model_was_best(interrupted, tmp_path):
    with interrupted(saved=22, stop=23), pytest.raises(KeyboardInterrupt):
        train(tmp_path, **BACKWARDS)
    best = min(record["val_loss"] for record in runs.Metrics(tmp_path).read() if "val_loss" in record)
    model = train(tmp_path, **BACKWARDS)
    assert runs.Metrics(tmp_path).read()[-1]["val_loss"] > best + 0.05  # read after the resume, and worse
    assert pretrain.evaluate(model, *BACKWARDS["validation"])["loss"] == pytest.approx(best, rel=1e-5)


def test_another_seed_trains_another_model(finished, tmp_path):
    folder, model = finished
    other = train(tmp_path, seed=1)
    assert not torch.equal(other.embedding.weight, model.embedding.weight)
    assert runs.Metrics(tmp_path).read()[0]["train_loss"] != runs.Metrics(folder).read()[0]["train_loss"]


@settings(deadline=None, max_examples=6)
@given(st.integers(0, STEPS), st.integers(0, STEPS))
def test_a_stopped_run_ends_with_the_figures_of_one_that_was_not(finished, interrupted, tmp_path_factory, one, other):
    """Stopped after one drawn step, with the training state of another: the work between the two is done again."""
    folder, model = finished
    again = tmp_path_factory.mktemp("again")
    saved, stop = min(one, other), max(one, other, 1)
    with interrupted(saved, stop) as done, pytest.raises(KeyboardInterrupt):
        train(again)
    assert done == list(range(1, stop + 1))
    torch.manual_seed(1234)  # whatever the process did before it went on
    with interrupted() as done:
        resumed = train(again)
    assert done == list(range(saved + 1, STEPS + 1))  # it went on, and did not begin again
    assert (again / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert (again / "base" / "model.safetensors").read_bytes() == (folder / "base" / "model.safetensors").read_bytes()
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_finished_run_is_not_run_again(finished, interrupted):
    folder, model = finished
    before = (folder / "metrics.jsonl").read_bytes()
    with interrupted() as done:
        again = train(folder)
    assert done == []
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert torch.equal(again.head.weight, model.head.weight)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_weights_are_kept(finished, interrupted, tmp_path):
    def poison(step, model):
        if step == 12:
            nn.init.constant_(model.norm.weight, math.nan)

    stopped = pytest.raises(RunError, match=r"pretrain: the loss is nan at step 12; .*are kept")
    with interrupted(saved=10, after=poison), stopped:
        train(tmp_path)
    model, _ = checkpoints.load(tmp_path / "base")  # of step 8, where the validation text was last read
    records = runs.Metrics(tmp_path).read()
    assert [record["step"] + 1 for record in records] == [8, 10]
    assert pretrain.evaluate(model, TOKENS[:200], 200)["loss"] == pytest.approx(records[0]["val_loss"], rel=1e-5)
    assert records == runs.Metrics(finished[0]).read()[:2]  # until then it was the same run
    state = runs.load_state(tmp_path / "base" / "state.pt")
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_a_loss_that_explodes_stops_the_run(interrupted, tmp_path):
    """Far over that of a uniform model: ten steps of this would still be finite, and of no use."""

    def poison(step, model):
        if step == 9:
            model.head.weight.data.mul_(1e4)

    with interrupted(after=poison), pytest.raises(RunError, match=r"the loss is [\d.e+]+ at step 9; .*learning rate"):
        train(tmp_path)
    assert math.isfinite(pretrain.evaluate(checkpoints.load(tmp_path / "base")[0], TOKENS[:200], 200)["loss"])


def test_a_token_outside_the_vocabulary_is_refused_before_anything_is_written(tmp_path):
    tokens = TOKENS.clone()
    tokens[7] = 40
    with pytest.raises(ValueError, match=f"token 40 is outside the model's vocab_size of {SHAPE['vocab_size']}"):
        train(tmp_path, train=tokens)
    assert list(tmp_path.iterdir()) == []


def test_what_the_caller_gives_stays_as_it_is(tmp_path):
    given = {
        "model_config": GPTConfig(**SHAPE),
        "config": PretrainConfig(steps=2, batch=8, warmup=1, evaluations=1),
        "train": TOKENS.clone(),
        "validation": (TOKENS[:200].clone(), 200),
        "tokenizer": CharTokenizer.train([TEXT]),
    }
    before = copy.deepcopy(given)
    model = pretrain.train(**given, folder=tmp_path)
    assert given["model_config"] == before["model_config"] and given["config"] == before["config"]
    assert torch.equal(given["train"], before["train"]) and torch.equal(given["validation"][0], before["validation"][0])
    assert given["tokenizer"].fingerprint() == before["tokenizer"].fingerprint()
    assert model.config == given["model_config"] and model.config is not given["model_config"]


def test_gpt2s_recipe_trains_and_its_head_stays_the_embedding(finished, tmp_path):
    model = train(tmp_path, shape={**SHAPE, "recipe": "gpt2"})
    assert model.head.weight is model.embedding.weight
    losses = [record["val_loss"] for record in runs.Metrics(tmp_path).read() if "val_loss" in record]
    assert losses[-1] < losses[0] < UNIFORM + 0.5
    assert pretrain.evaluate(model, TOKENS[:200], 200)["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_half_precision_with_a_gradient_scaler_trains_and_resumes(monkeypatch, interrupted, tmp_path):
    """As on a card without bfloat16, such as a T4; here on the CPU. The scale is part of what a resumed run finds again."""
    monkeypatch.setattr(devices, "precision", lambda device, width=256: torch.float16)
    train(tmp_path / "whole")
    with interrupted(saved=13, stop=15), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    scale = runs.load_state(tmp_path / "stopped" / "base" / "state.pt")["optimizers"][2]["scale"]
    assert scale > 1
    model = train(tmp_path / "stopped")
    for name in ("metrics.jsonl", "base/model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert pretrain.evaluate(model, TOKENS[:200], 200)["loss"] < 0.7 * UNIFORM


@pytest.mark.parametrize("began, goes_on", [(torch.float32, torch.float16), (torch.float16, torch.float32)])
def test_a_run_goes_on_on_a_device_of_another_precision(monkeypatch, interrupted, tmp_path, began, goes_on):
    """As one that began on a CPU, and so without a gradient scaler, does on a T4; and the other way round."""
    monkeypatch.setattr(devices, "precision", lambda device, width=256: began)
    with interrupted(saved=13, stop=15), pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.setattr(devices, "precision", lambda device, width=256: goes_on)
    with interrupted() as done:
        model = train(tmp_path)
    assert done[0] == 14
    assert pretrain.evaluate(model, TOKENS[:200], 200)["loss"] < 0.7 * UNIFORM


def test_a_state_of_another_shape_is_refused(finished, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "state.pt").write_bytes((finished[0] / "base" / "state.pt").read_bytes())
    with pytest.raises(checkpoints.CheckpointError, match=r"state\.pt belongs to another configuration .*choose another --out"):
        train(tmp_path, shape={**SHAPE, "width": 16})
