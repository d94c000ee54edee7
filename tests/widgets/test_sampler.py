import pytest
import torch

from rlhf_lib import widgets
from rlhf_lib.devices import generator
from rlhf_lib.sampling import generate
from rlhf_lib.tokenization import BPETokenizer
from rlhf_lib.widgets.parts import DOWN, UP
from rlhf_lib.widgets.sampler import log_odds_changes

from .helpers import model_of, spans


def test_a_sample_is_what_generate_draws_and_its_changes_add_up(tokenizer, reward_model):
    model = model_of(tokenizer, 0)
    drawn = widgets.sample(model, tokenizer, "abc", max_new_tokens=12, count=3, seed=5, reward_model=reward_model, top_k=6)
    uniforms = generator(5, "sampler")
    expected = generate(model, [tokenizer.encode("abc")] * 3, 12, generator=uniforms, end_token=0, top_k=6)
    for one, row, mask in zip(drawn, expected.tokens, expected.mask):
        assert one.text == tokenizer.decode(row[mask])
        assert one.log_odds == pytest.approx(reward_model.logits(row[mask][None]).item(), abs=1e-5)
        assert len(one.changes) == len(one.pieces) == int(mask.sum())
    assert widgets.sample(model, tokenizer, "", max_new_tokens=4)[0].changes is None


def test_the_first_change_is_from_even_odds_and_each_is_the_step_of_the_log_odds(tokenizer, reward_model):
    tokens = tokenizer.encode("abc d")
    odds = reward_model(torch.tensor([tokens]))[0].tolist()
    changes = log_odds_changes(reward_model, tokens).tolist()
    assert changes == pytest.approx([after - before for before, after in zip([0, *odds], odds)], abs=1e-6)


def test_bytes_of_one_character_stay_together():
    tokenizer = BPETokenizer.train(["plain text only"], 257)
    text = "caf\u00e9 \u201cx\u201d"
    tokens = tokenizer.encode(text)
    one = widgets.pieces(tokenizer, tokens, [1.0] * len(tokens))
    assert one.text == text and "\u00e9" in one.pieces
    assert one.log_odds == len(tokens) == len(text.encode())
    assert one.changes[one.pieces.index("\u201c")] == 3
    assert widgets.pieces(tokenizer, tokens[:4], [1.0] * 4).text == "caf\ufffd"  # cut inside a character: still all shown


def test_colours_follow_the_log_odds():
    one = widgets.Sample(["good", " <b>", "bad", " so"], [1.0, 0.0, -2.0, 0.5])
    (good, flat, bad, little) = spans(widgets.tinted(one, full=2.0))
    assert good[0] == little[0] == UP and bad[0] == DOWN != UP
    assert flat[1] == 0 and 0 < little[1] < good[1] < bad[1] <= 0.6
    assert [row[2] for row in (good, flat, bad, little)] == [1.0, 0.0, -2.0, 0.5]
    assert flat[3] == " &lt;b&gt;"
    assert spans(widgets.tinted(one, full=0.5))[0][1] == 0.6  # deeper than full is full
    assert widgets.tinted(widgets.Sample(["<", "a"], None)) == "&lt;a"


def test_the_sampler_shows_each_model_and_samples_again_when_a_setting_changes(tokenizer, reward_model):
    models = {"base": model_of(tokenizer, 0), "<tuned>": model_of(tokenizer, 1)}
    box = widgets.sampler(models, tokenizer, reward_model, count=1)
    box.settings["prompt"].value = "ab<"
    box.settings["max_new_tokens"].value = 8
    box.settings["top_k"].value = 5
    box.settings["seed"].value = 7
    drawn = {
        name: widgets.sample(model, tokenizer, "ab<", 8, 1, 7, reward_model, temperature=1.0, top_k=5, top_p=1.0)
        for name, model in models.items()
    }
    for many in drawn.values():
        assert f"log-odds of positive {many[0].log_odds:+.2f}" in box.output.value
    found = spans(box.output.value)
    assert [row[2] for row in found] == [round(c, 2) for many in drawn.values() for c in many[0].changes]
    assert "&lt;tuned&gt;" in box.output.value and "<tuned>" not in box.output.value
    assert "ab&lt;" in box.output.value
    before = box.output.value
    box.again.click()
    assert box.settings["seed"].value == 8 and box.output.value != before
    box.settings["seed"].value = 7
    assert box.output.value == before


def test_what_the_sampler_cannot_do_is_said(tokenizer):
    box = widgets.sampler({"base": model_of(tokenizer, 0)}, tokenizer)
    assert box.note.value == ""
    shown_before = box.output.value
    box.settings["prompt"].value = "abcdefgh" * 4
    assert "context" in box.note.value and box.output.value == shown_before
    with pytest.raises(ValueError, match="models must be"):
        widgets.sampler([], tokenizer)
