import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints
from rlhf_lib.endpoint import VARIABLE
from rlhf_lib.files import RunError
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines import referee
from rlhf_lib.tokenization import ChatTokenizer

TOKENIZER = ChatTokenizer.train(["why is the sky blue, and who says so?"], 300)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return Llama(LlamaConfig(TOKENIZER.vocab_size, context=160, layers=2, heads=2, kv_heads=1, width=32, hidden=64)).eval()


def scalar(base, source="smollm2-135m"):
    torch.manual_seed(1)
    model = Branch(base, 1, 4, 8, scalar=True, source=source)
    nn.init.normal_(model.score.weight)
    return model.eval()


# ----------------------------------------------------------------------------------------- gold


def test_gold_prefers_what_the_model_scores_higher_with_the_end_where_there_was_one(base):
    model = scalar(base)
    talk = [{"role": "user", "content": "so"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "why"}]
    rows = [
        {"prompt": prompt, "answer": answer, "ended": ended}
        for prompt in ("why is it", talk)
        for answer, ended in (("blue", True), ("who says", False), ("", True), ("so, so, so", True))
    ]
    judge = referee.gold_judge(model, TOKENIZER, rows)

    def score(row):
        messages = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        whole = TOKENIZER.prompt(messages) + TOKENIZER.encode(row["answer"]) + [TOKENIZER.end_token] * row["ended"]
        return model.logits(torch.tensor([whole])).item()

    texts = {"why is it": "why is it", str(talk): "User: so\n\nAssistant: no\n\nUser: why"}
    pairs = [(a, b) for a in rows for b in rows if a["prompt"] == b["prompt"] and a is not b]
    prompts = [texts[str(a["prompt"])] for a, _ in pairs]
    verdicts = judge(prompts, [a["answer"] for a, _ in pairs], [b["answer"] for _, b in pairs])
    gaps = [score(a) - score(b) for a, b in pairs]
    assert min(map(abs, gaps)) > 1e-4
    assert verdicts == ["first" if gap > 0 else "second" for gap in gaps]
    assert judge(prompts[:1], ["blue"], ["blue"]) == ["tie"]


def published(base, folder, source="smollm2-135m"):
    """A published fine-tuning of `base` and a gold model that stands on it; returns the two."""
    torch.manual_seed(2)
    tuning = Branch(base, 2, 4, 8, source=source)
    for parameter in tuning.parameters():
        nn.init.normal_(parameter, std=0.1)
    checkpoints.save(folder / "sft", tuning, TOKENIZER)
    gold = scalar(tuning.merged(), "../sft")
    checkpoints.save(folder / "gold", gold, TOKENIZER)
    return tuning, gold


def test_the_published_gold_model_is_taken_where_it_fits(base, monkeypatch, tmp_path):
    monkeypatch.setattr(referee, "GOLD", tmp_path / "gold")
    assert referee.published_gold(base, TOKENIZER, "smollm2-135m", "cpu") is None  # there is none
    tuning, gold = published(base, tmp_path)
    found = referee.published_gold(base, TOKENIZER, "smollm2-135m", "cpu")
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(found(tokens), gold(tokens))
    torch.testing.assert_close(found.base(tokens), tuning(tokens), atol=1e-5, rtol=0)  # it stands on the fine-tuned model
    assert referee.published_gold(base, TOKENIZER, "smollm2-360m", "cpu") is None
    other = Llama(LlamaConfig(TOKENIZER.vocab_size, context=160, layers=3, heads=2, kv_heads=1, width=32, hidden=64))
    assert referee.published_gold(other, TOKENIZER, "smollm2-135m", "cpu") is None
    foreign = ChatTokenizer.train(["quite another text"], 300)
    assert referee.published_gold(base, foreign, "smollm2-135m", "cpu") is None


def test_no_model_of_ones_own_passes_for_the_published_one(base, monkeypatch, tmp_path):
    monkeypatch.setattr(referee, "GOLD", tmp_path / "gold")
    published(base, tmp_path)
    assert referee.published_gold(base, TOKENIZER, "../base", "cpu") is None


# ----------------------------------------------------------------------------------------- endpoints


def test_an_address_has_a_url_and_a_model():
    assert referee.address("gold") is None
    assert referee.address("endpoint:http://localhost:8000/v1#judge:7b") == ("http://localhost:8000/v1", "judge:7b")


@pytest.mark.parametrize("judge", ["", "silver", "endpoint", "endpoint:", "endpoint:#m", "endpoint:http://x/v1", "http://x/v1#m"])
def test_what_is_no_judge_is_refused(judge):
    with pytest.raises(ValueError, match="judge must be gold or endpoint:URL#MODEL, got"):
        referee.address(judge)


def test_the_endpoint_is_asked_with_its_model_and_cache(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(referee, "endpoint_judge", lambda *arguments, **named: asked.append((arguments, named)) or "judge")
    assert referee.endpoint("endpoint:http://localhost:8000/v1#judge", tmp_path / "asked.jsonl") == "judge"
    assert asked == [(("http://localhost:8000/v1", "judge"), {"cache": tmp_path / "asked.jsonl"})]
    assert referee.endpoint("gold", tmp_path / "asked.jsonl") is None


@pytest.mark.parametrize(
    ("judge", "key", "sentence"),
    [
        ("endpoint:ftp://x/v1#m", "", "base_url must be http"),
        ("endpoint:http://far.example/v1#m", "secret-1", "is not encrypted"),
        ("endpoint:http://localhost:1/v1#m", "odd secret", "holds characters that no key has"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_right_is_refused_at_once(monkeypatch, tmp_path, judge, key, sentence):
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(RunError, match=sentence) as error:
        referee.endpoint(judge, tmp_path / "asked.jsonl")
    assert not key or key not in str(error.value)
    assert list(tmp_path.iterdir()) == []
