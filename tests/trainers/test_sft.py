import collections
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import checkpoints, devices, runs
from rlhf_lib.files import RunError
from rlhf_lib.tokenization import ChatTokenizer
from rlhf_lib.trainers import sft
from rlhf_lib.trainers.sft import SFTConfig, evaluate, pack, spoken_logprobs

from .helpers import FAMILIES, branch, language_model, mutant, same, weights

TOKENIZER = ChatTokenizer.train(["user assistant yes no good day fine"] * 4, 290)  # few tokens a turn
V = TOKENIZER.vocab_size


@pytest.fixture(scope="module", autouse=True)
def float32():
    """As on hardware without bfloat16, so that numbers compare with the definition's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, sft):
            patch.setattr(module, "has_bf16", lambda device: False)
        yield


def talk(*contents):
    """A conversation of `contents`, the user first."""
    return [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate(contents)]


def conversations(lengths, seed=0, vocab=11):
    """(tokens, spoken) of drawn tokens, the last one the assistant's."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        spoken = (torch.rand(length, generator=generator) < 0.5).tolist()
        made.append((torch.randint(vocab, (length,), generator=generator).tolist(), [*spoken[:-1], True]))
    return made


def unpacked(tokens, texts, targets):
    """What stands in packed rows: (tokens, targets) of each text, as tuples."""
    found = []
    for row, numbers, wanted in zip(tokens.tolist(), texts.tolist(), targets.tolist()):
        for number in range(1, max(numbers) + 1):
            places = [place for place, other in enumerate(numbers) if other == number]
            assert places == list(range(places[0], places[-1] + 1))  # in one piece
            found.append((tuple(row[place] for place in places), tuple(wanted[place] for place in places)))
    return found


@torch.no_grad()
def by_definition(model, conversation):
    """The log-probabilities of one conversation's targets, by itself, in float64."""
    tokens, spoken = conversation
    logprobs = model(torch.tensor([tokens]))[0].double().log_softmax(-1)
    return [logprobs[place - 1, tokens[place]].item() for place in range(1, len(tokens)) if spoken[place]]


# ----------------------------------------------------------------------------------------- packing


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=12), st.integers(12, 30), st.integers(0, 999))
def test_every_conversation_is_whole_in_one_row_and_its_targets_are_the_assistants_tokens(lengths, size, seed):
    given_ = conversations(lengths, seed)
    tokens, texts, targets = pack(given_, size)
    assert tokens.shape == texts.shape == targets.shape == (len(tokens), size)
    assert (tokens.dtype, texts.dtype, targets.dtype) == (torch.int64, torch.int64, torch.bool)
    expected = [(tuple(part), (False, *spoken[1:])) for part, spoken in given_]  # before its first token there is none
    assert collections.Counter(unpacked(tokens, texts, targets)) == collections.Counter(expected)
    assert not targets[:, 0].any() and not targets[texts == 0].any() and (tokens[texts == 0] == 0).all()
    assert ((texts > 0).sum(1) <= size // 2).sum() <= 1  # two rows that are half empty would have been one


def test_conversations_go_into_the_first_row_with_room_for_them():
    texts = pack(conversations([5, 4, 3, 2, 6]), 8)[1]
    assert texts.tolist() == [[1] * 5 + [2] * 3, [1] * 4 + [2] * 2 + [0] * 2, [1] * 6 + [0] * 2]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("ab ?é\n<|im_end|>", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=6))
def test_the_targets_of_a_conversation_are_what_the_assistant_says_with_its_end_of_turn(contents):
    contents = contents[: len(contents) // 2 * 2]
    tokens, _, targets = pack([TOKENIZER.turns(talk(*contents))], 300)
    found = TOKENIZER.tokenizer.decode(tokens[targets].tolist(), skip_special_tokens=False)
    assert found == "".join(answer.strip() + "<|im_end|>" for answer in contents[1::2])
    assert (tokens[targets] == TOKENIZER.end_token).sum() == len(contents) // 2


# ----------------------------------------------------------------------------------------- texts in a row do not see each other


@pytest.mark.parametrize("own", ["whole", "branch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_conversation_is_read_as_if_alone(family, own):
    model = language_model(family)
    model = branch(model, seed=3) if own == "branch" else model
    given_ = conversations([7, 12, 2, 5, 9, 3], seed=1)
    packed = pack(given_, 24)
    with torch.no_grad():
        hidden = model.hidden(packed[0], packed[1])
        found = spoken_logprobs(model, *packed)
    spoken_by, expected = {tuple(tokens): spoken for tokens, spoken in given_}, []
    for tokens, texts, states in zip(packed[0], packed[1], hidden):
        for number in range(1, int(texts.max()) + 1):
            own = tokens[texts == number]
            alone = model.hidden(own[None])[0]
            torch.testing.assert_close(states[texts == number], alone.detach(), rtol=0, atol=1e-4)
            expected += by_definition(model, (own.tolist(), spoken_by.pop(tuple(own.tolist()))))
    assert not spoken_by and len(packed[0]) < 6
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_text_in_the_row_and_the_padding_move_nothing(family):
    model = language_model(family)
    tokens, texts, targets = pack(conversations([6, 8, 5]), 22)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        before = model.hidden(tokens, texts)
        for number in (0, 1, 2, 3):  # 0 is the padding
            other = torch.where(texts == number, torch.randint(11, tokens.shape, generator=generator), tokens)
            assert not torch.equal(other, tokens)
            after, kept = model.hidden(other, texts), texts != number
            assert torch.equal(after[kept], before[kept])
            if number:
                assert (after[~kept] - before[~kept]).abs().max() > 0.01
            else:
                assert torch.equal(spoken_logprobs(model, other, texts, targets), spoken_logprobs(model, tokens, texts, targets))


def test_long_rows_are_read_by_the_fused_kernel_and_do_not_leak_either():
    """Above 2^16 scores a row, attention is another kernel's."""
    model = language_model("llama", context=300)
    given_ = conversations([140, 130, 20], seed=2)
    packed = pack(given_, 300)
    assert len(packed[0]) == 1
    expected = [logprob for one in given_ for logprob in by_definition(model, one)]
    with torch.no_grad():
        assert spoken_logprobs(model, *packed).tolist() == pytest.approx(expected, abs=1e-4)


# ----------------------------------------------------------------------------------------- the loss


class Fixed(torch.nn.Module):
    """A model with the given hidden states, so that logits are known."""

    def __init__(self, hidden, vocab):
        super().__init__()
        self.states, self.config = torch.nn.Parameter(hidden), language_model().config
        self.head = torch.nn.Linear(hidden.shape[-1], vocab, bias=False)
        torch.nn.init.eye_(self.head.weight)

    def hidden(self, tokens, mask):
        return self.states


def test_the_loss_by_hand():
    """Three tokens; the logits are the logs of 1, 2, 5 and 1, 1, 2."""
    states = torch.tensor([[[1.0, 2, 5], [1, 1, 2], [7, 8, 9], [1, 2, 3]]]).log()
    model = Fixed(states, 3)
    tokens, targets = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[False, True, True, False]])
    texts = torch.tensor([[1, 1, 1, 0]])
    logprobs = spoken_logprobs(model, tokens, texts, targets)
    assert logprobs.tolist() == pytest.approx([math.log(2 / 8), math.log(2 / 4)], abs=1e-6)
    found = evaluate(model, (tokens, texts, targets))
    assert found["loss"] == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.sqrt(8), abs=1e-5)


def test_what_the_user_says_has_no_part_in_the_loss():
    """The gradient reaches the states that an assistant's token is predicted from, and no other, whatever the user says there."""
    torch.manual_seed(0)
    states, gradients = torch.randn(2, 9, 11), []
    tokens, texts, targets = pack(conversations([9, 9]), 9)
    for words in (tokens, torch.where(targets, tokens, (tokens + 4) % 11)):
        model = Fixed(states.clone(), 11)
        spoken_logprobs(model, words, texts, targets).mean().backward()
        gradients.append(model.states.grad)
        reached = model.states.grad.abs().sum(-1) > 0
        assert torch.equal(reached[:, :-1], targets[:, 1:]) and not reached[:, -1].any()
    assert torch.equal(*gradients)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_evaluation_is_the_mean_over_tokens_whatever_the_batch(batch):
    model, given_ = language_model("modern", dropout=0.5).train(), conversations([7, 12, 2, 5, 9, 3, 11], seed=4)
    found = evaluate(model, pack(given_, 12), batch)
    assert model.training
    each = [logprob for one in given_ for logprob in by_definition(model.eval(), one)]
    assert found["loss"] == pytest.approx(-sum(each) / len(each), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-6)


# ----------------------------------------------------------------------------------------- training

SHORT = dict(epochs=8, row=48, batch=2, lr=3e-2)
LEARN = [talk(f"{a}{b}?", "yes" if a == "a" else "no") for a in "ab" for b in "cdefghijkl"]
HELD_OUT = [talk(f"{a}{b}?", "yes" if a == "a" else "no") for a in "ab" for b in "mn"]


def fresh(family="llama", seed=0):
    """A branch of a model that says anything, and its base."""
    base = language_model(family, vocab=V, seed=seed, spread=0.5)
    return branch(base, layers=2), base


def train(folder, model=None, learn=LEARN, held_out=HELD_OUT, config=None, seed=0, module=sft):
    model = fresh()[0] if model is None else model
    return module.train(model, TOKENIZER, learn, held_out, SFTConfig(**{**SHORT, **(config or {})}), folder, seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    model, base = fresh()
    before = weights(base)
    start = evaluate(model, pack([TOKENIZER.turns(one) for one in HELD_OUT], 48))
    return folder, model, base, before, start, train(folder, model)


def test_the_loss_on_held_out_demonstrations_falls(finished):
    _, _, _, _, start, scores = finished
    assert start["loss"] > 2
    assert scores["loss"] < 0.25 * start["loss"]
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-6)


def test_the_adapters_alone_are_trained_and_the_checkpoint_holds_them(finished):
    folder, model, base, before, _, scores = finished
    assert same(weights(base), before)
    assert all(weight.grad is None for weight in base.parameters())
    assert not model.training
    loaded, tokenizer = checkpoints.load(folder / "sft", base=base)
    assert same(weights(loaded), weights(model)) and tokenizer.fingerprint() == TOKENIZER.fingerprint()
    assert all("A" in name or "B" in name for name in weights(model))
    metadata = checkpoints.read_metadata(folder / "sft")
    assert (metadata["val_loss"], metadata["val_perplexity"]) == (scores["loss"], scores["perplexity"])


def test_in_float16_losses_are_scaled_and_what_is_learned_is_that_of_float32(tmp_path, monkeypatch):
    """As on a card without bfloat16. The gradient is scaled back before it is cut."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr))
    scales, scale = [], torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, loss: (scales.append(self.get_scale()), scale(self, loss))[1])
    found = {}
    for dtype in (torch.float32, torch.float16):
        monkeypatch.setattr(devices, "precision", lambda device, width, dtype=dtype: dtype)
        torch.manual_seed(0)  # of the adapters
        model = branch(language_model("llama", vocab=V, spread=0.1), layers=2)
        train(tmp_path / str(dtype), model, LEARN[:8], config=dict(epochs=6, lr=0.5))
        found[dtype] = [record["train_loss"] for record in runs.Metrics(tmp_path / str(dtype)).read("sft")]
    whole, half = found.values()
    assert whole[-1] < whole[0] - 0.5 and half == pytest.approx(whole, rel=0.01) and half != whole
    assert scales == [1.0] * len(whole) + [65536.0] * len(half)  # none of whose gradients was too large for float16


def test_every_epoch_is_evaluated_and_every_step_has_its_loss(finished):
    folder, *_, scores = finished
    records = runs.Metrics(folder).read("sft")
    per_epoch = math.ceil(sum(len(TOKENIZER.turns(one)[0]) for one in LEARN) / 96)
    assert [record["step"] for record in records] == list(range(8 * per_epoch)) and per_epoch > 2
    assert all("train_loss" in record for record in records)
    evaluated = [record for record in records if "val_loss" in record]
    assert [(record["step"], record["epoch"]) for record in evaluated] == [(n * per_epoch - 1, n) for n in range(1, 9)]
    assert evaluated[-1]["val_loss"] == scores["loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_gradient_of_the_mean_over_the_assistants_tokens(tmp_path, monkeypatch, family):
    """The oracle reads one conversation at a time; all of the model is trained, so there is no trunk either."""
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr))
    first_step_is_right(sft, tmp_path, family)


def first_step_is_right(module, folder, family="llama"):
    model, oracle = (language_model(family, vocab=V, spread=0.3) for _ in range(2))
    before, learn = weights(model), LEARN[:7]
    train(folder, model, learn, config=dict(epochs=1, batch=100, lr=0.5), module=module)
    total, count = 0.0, 0
    for messages in learn:
        tokens, spoken = TOKENIZER.turns(messages)
        logprobs = oracle(torch.tensor([tokens]))[0].log_softmax(-1)
        for place in range(1, len(tokens)):
            if spoken[place]:
                total, count = total - logprobs[place - 1, tokens[place]], count + 1
    loss = total / count
    loss.backward()
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in oracle.parameters()))
    rate = 0.5 / 1.1 / max(1, norm)  # of the only step, and the gradient's norm is at most 1
    (record,) = runs.Metrics(folder).read("sft")
    assert record["train_loss"] == pytest.approx(loss.item(), abs=1e-4)
    for name, weight in oracle.named_parameters():
        torch.testing.assert_close(before[name] - model.state_dict()[name], rate * weight.grad, rtol=1e-3, atol=1e-5)


MUTANTS = {
    "the loss counts the user's tokens too": ("torch.tensor(spoken[1:], dtype=torch.bool)", "True"),
    "texts in a row see each other": ("model.hidden(tokens, texts)", "model.hidden(tokens, texts > 0)"),
    "no mask at all": ("model.hidden(tokens, texts)", "model.hidden(tokens)"),
    "a token is predicted from itself": ("model.hidden(tokens, texts)[:, :-1]", "model.hidden(tokens, texts)[:, 1:]"),
    "the sum over tokens": ("*packed).mean()", "*packed).sum()"),
    "a text's first token is a target": ("targets[place, start + 1 : end]", "targets[place, start:end - 1]"),
    "the gradient is not cut": ("clip_grad_norm_(model.parameters(), 1.0)", "clip_grad_norm_(model.parameters(), 1e9)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_test_above_finds_a_mistake(tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, lr, weight_decay: torch.optim.SGD(weights, lr))
    with pytest.raises(AssertionError):
        first_step_is_right(mutant(sft, MUTANTS[name], has_bf16=lambda device: False), tmp_path)


def test_an_epoch_reads_every_demonstration_once_and_every_step_about_as_many(tmp_path, monkeypatch):
    steps, real = [], sft.spoken_logprobs

    def look(model, tokens, texts, targets):
        if model.training:
            steps.append([words for words, _ in unpacked(tokens, texts, targets)])
        return real(model, tokens, texts, targets)

    monkeypatch.setattr(sft, "spoken_logprobs", look)
    train(tmp_path)
    per_epoch, orders = len(steps) // 8, []
    for epoch in range(8):
        read = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        orders.append([words for step in read for words in step])
        assert sorted(orders[-1]) == sorted(tuple(TOKENIZER.turns(one)[0]) for one in LEARN)
        assert max(map(len, read)) - min(map(len, read)) <= 1
    assert orders[0] != orders[1]


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_to_zero(tmp_path, monkeypatch):
    rates = []

    class Noting(torch.optim.AdamW):
        def step(self, *arguments):
            rates.append(self.param_groups[0]["lr"])
            assert self.param_groups[0]["weight_decay"] == 0.25
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Noting)
    train(tmp_path, config=dict(epochs=4, lr=0.01, weight_decay=0.25))
    steps = len(rates)
    expected = [0.01 * min((n + 1) / (0.1 * steps + 1), (steps - n) / (0.9 * steps)) for n in range(steps)]
    assert rates == pytest.approx(expected) and max(rates) <= 0.01 and rates[-1] < 0.002


@settings(deadline=None, max_examples=5)
@given(st.data())
def test_a_stopped_run_ends_with_the_figures_of_one_that_was_not(finished, interrupted, tmp_path_factory, data):
    folder, model, _, _, _, scores = finished
    steps = len(runs.Metrics(folder).read("sft"))
    saved = data.draw(st.integers(0, steps - 1))
    stop = data.draw(st.integers(saved + 1, steps))
    again = tmp_path_factory.mktemp("again")
    with interrupted(saved, stop), pytest.raises(KeyboardInterrupt):
        train(again)
    torch.manual_seed(1234)
    resumed = fresh()[0]
    with interrupted() as done:
        assert train(again, resumed) == scores
    assert done == list(range(saved + 1, steps + 1))
    assert (again / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert (again / "sft" / "model.safetensors").read_bytes() == (folder / "sft" / "model.safetensors").read_bytes()
    assert same(weights(resumed), weights(model))


def test_the_seed_decides_the_order(tmp_path):
    made = []
    for number, seed in enumerate((0, 0, 1)):
        model = fresh()[0]
        train(tmp_path / str(number), model, config=dict(epochs=1), seed=seed)
        made.append(weights(model))
    assert same(made[0], made[1]) and not same(made[0], made[2])


# ----------------------------------------------------------------------------------------- refused before the first step

LONG = talk("good day " * 30, "fine")
CASES = [
    ({"learn": []}, "0 demonstrations to learn from and 4 held out: one of each is needed"),
    ({"held_out": []}, "20 demonstrations to learn from and 0 held out"),
    ({"learn": [*LEARN[:2], LONG]}, r"demonstration 3 has \d+ tokens, a row 48: make sft\.row longer, or leave it out"),
    ({"held_out": [LONG]}, r"held-out demonstration 1 has \d+ tokens, a row 48"),
    ({"learn": [LEARN[0], talk("good day")]}, "demonstration 2 has no answer of the assistant's: end it with one"),
    ({"held_out": [talk("good day")]}, "held-out demonstration 1 has no answer"),
    ({"config": {"row": 49}}, r"sft\.row is 49 tokens, more than the model's context of 48: make it shorter"),
    ({"learn": [[]]}, "there is no message"),
]


@pytest.mark.parametrize(("changes", "sentence"), CASES)
def test_what_cannot_be_learned_from_is_refused_before_the_first_step(tmp_path, changes, sentence):
    model = fresh()[0]
    before = weights(model)
    with pytest.raises(ValueError, match=sentence) as error:
        train(tmp_path / "run", model, **changes)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert same(weights(model), before)


def test_a_loss_that_is_not_finite_stops_the_run(interrupted, tmp_path):
    def poison(step, model):
        if step == 2:
            for weight in model.parameters():
                torch.nn.init.constant_(weight, math.nan)

    with interrupted(after=poison), pytest.raises(RunError, match="sft: the loss is nan at step 2"):
        train(tmp_path)
    assert not (tmp_path / "sft" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(({name: 0}, rf"sft\.{name} must be at least 1, got 0") for name in ("epochs", "row", "batch")),
        *(({"lr": value}, rf"sft\.lr must lie in \(0, 1\], got {value}") for value in (0.0, 1.5, math.nan)),
        *(({"weight_decay": value}, rf"sft\.weight_decay must not be negative, got {value}") for value in (-0.1, math.nan)),
    ],
)
def test_config_refuses_a_bad_value_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        SFTConfig(**changes)
