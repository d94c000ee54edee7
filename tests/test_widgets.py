import json
import re

import pytest
import torch

from rlhf_lib import judge, labels, reward, runs, widgets
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.tokenization import BPETokenizer, CharTokenizer

TEXTS = ["Sweet love, welcome.", "He is dead.\nDead, I say!", "The door is <b>shut</b> & barred."]
SAMPLES = {
    "base": ["The door.", 'A "table", seven\nchairs.', "Cold <i>rain</i>."],
    "policy": ["Sweet joy!", "O happy day.", "My love, my life."],
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------------------- labelling


def test_every_press_writes_a_label_that_labels_reads(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl", reader="r1", checkpoint="base-1")
    assert not (tmp_path / "mine.jsonl").exists()
    for count, name in enumerate(("positive", "negative", "neutral"), 1):
        box.buttons[name].click()
        assert [label.label for label in labels.read(tmp_path / "mine.jsonl")][-1] == name
        assert box.count.value == f"{count} of 3 labelled by r1"
    assert lines(tmp_path / "mine.jsonl")[1] == {
        "text": TEXTS[1], "checkpoint": "base-1", "label": "negative", "reader": "r1"
    }  # fmt: skip
    assert "Done" in box.passage.value
    assert all(box.buttons[name].disabled for name in ("positive", "negative", "neutral", "skip"))
    box.buttons["positive"].click()
    assert len(labels.read(tmp_path / "mine.jsonl")) == 3


def test_keys_do_what_the_buttons_do(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    box.keyboard.value = "n"
    box.keyboard.value = "nxP"  # an unknown key does nothing; two keys may come at once
    assert [label.label for label in labels.read(tmp_path / "mine.jsonl")] == ["negative", "positive"]
    box.keyboard.value = "nxPu"
    box.keyboard.value = "nx"  # rubbed out: nothing to do
    box.keyboard.value = "nx0"
    assert [label.label for label in labels.read(tmp_path / "mine.jsonl")] == ["negative", "neutral"]
    box.keyboard.value = "nx0s"
    assert box.session.progress() == (2, 1, 3)


def test_undo_takes_out_the_last_line_and_no_other(tmp_path):
    path = tmp_path / "both.jsonl"
    other = labels.Label(TEXTS[0], "negative", "r2", (TEXTS[0], ""))
    labels.append(path, other)
    box = widgets.labelling(TEXTS, path, reader="r1")
    box.buttons["positive"].click()
    box.buttons["negative"].click()
    labels.append(path, labels.Label("Else.", "neutral", "r2", ("Else.", "")))
    box.buttons["undo"].click()
    assert [(row["reader"], row["text"]) for row in lines(path)] == [("r2", TEXTS[0]), ("r1", TEXTS[0]), ("r2", "Else.")]
    assert box.session.current == TEXTS[1] and "Dead, I say!" in box.passage.value
    box.buttons["undo"].click()
    assert box.buttons["undo"].disabled
    box.buttons["undo"].click()  # nothing left to undo
    assert [row["reader"] for row in lines(path)] == ["r2", "r2"]


def test_a_new_session_goes_on_where_the_last_one_stopped(tmp_path):
    widgets.labelling(TEXTS, tmp_path / "mine.jsonl").buttons["positive"].click()
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    assert box.session.current == TEXTS[1] and box.session.progress() == (1, 0, 3)
    box.buttons["undo"].click()  # also a label of the session before
    assert box.session.current == TEXTS[0] and lines(tmp_path / "mine.jsonl") == []


def test_a_skipped_passage_is_not_written_and_comes_back_in_the_next_session(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    box.buttons["skip"].click()
    box.buttons["neutral"].click()
    assert [row["text"] for row in lines(tmp_path / "mine.jsonl")] == [TEXTS[1]]
    assert "1 skipped" in box.count.value
    assert widgets.Labelling(TEXTS, tmp_path / "mine.jsonl").current == TEXTS[0]
    box.buttons["undo"].click()
    assert box.session.current == TEXTS[1] and lines(tmp_path / "mine.jsonl") == []
    box.buttons["undo"].click()
    assert box.session.current == TEXTS[0] and box.session.progress() == (0, 0, 3)


def test_two_raters_share_a_file_and_see_their_agreement_at_the_end(tmp_path):
    path = tmp_path / "both.jsonl"
    first, second = (widgets.labelling(TEXTS, path, reader=name) for name in ("r1", "r2"))
    for mine, theirs in (("positive", "positive"), ("negative", "neutral"), ("neutral", "neutral")):
        assert "kappa" not in first.passage.value
        first.buttons[mine].click()
        second.buttons[theirs].click()
    read = labels.read(path)
    sides = [[label for label in read if label.reader == name] for name in ("r1", "r2")]
    expected = labels.agreement(*sides)
    assert expected["passages"] == 3
    assert second.session.agreement() == {"r1": expected}
    assert f"{expected['agreement']:.0%}, kappa {expected['kappa']:.2f}" in second.passage.value


def test_two_windows_of_one_reader_never_label_what_was_not_shown(tmp_path):
    left, right = (widgets.labelling(TEXTS, tmp_path / "mine.jsonl") for _ in range(2))
    left.buttons["positive"].click()
    right.buttons["negative"].click()  # still shows the first passage
    assert [(row["text"], row["label"]) for row in lines(tmp_path / "mine.jsonl")] == [(TEXTS[0], "positive")]
    assert right.session.current == TEXTS[1]


def test_passages_are_escaped(tmp_path):
    box = widgets.labelling(TEXTS[2:], tmp_path / "<u>.jsonl")
    assert "<b>" not in box.passage.value and "&lt;b&gt;shut&lt;/b&gt; &amp; barred" in box.passage.value
    box.buttons["neutral"].click()
    assert "<u>" not in box.passage.value


def test_a_file_that_cannot_be_written_is_said_and_the_passage_stays(tmp_path, monkeypatch):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")

    def full(path, label):
        raise runs.RunError("the disk is <full>")

    with monkeypatch.context() as patch:
        patch.setattr(labels, "append", full)
        box.buttons["positive"].click()
    assert "the disk is &lt;full&gt;" in box.note.value and box.session.current == TEXTS[0]
    box.buttons["positive"].click()
    assert box.note.value == "" and box.session.current == TEXTS[1]


def test_a_file_damaged_meanwhile_is_said(tmp_path):
    box = widgets.labelling(TEXTS, tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").write_text("{oops\n")
    box.buttons["positive"].click()
    assert "line 1" in box.note.value
    assert (tmp_path / "mine.jsonl").read_text() == "{oops\n"
    with pytest.raises(labels.LabelError, match="line 1"):
        widgets.labelling(TEXTS, tmp_path / "mine.jsonl")


@pytest.mark.parametrize(
    "texts, reader, message",
    [
        ("one text", "me", "must be a list"),
        ([], "me", "no text"),
        (["a", " \n"], "me", "text 2 is empty"),
        ([1], "me", "must be a list of texts"),
        (["a"], " ", "reader must be a name"),
        (["a"], None, "reader must be a name"),
    ],
)
def test_bad_input_is_said_in_one_sentence(tmp_path, texts, reader, message):
    with pytest.raises(ValueError, match=message):
        widgets.labelling(texts, tmp_path / "mine.jsonl", reader)


def test_a_passage_given_twice_is_asked_for_once(tmp_path):
    box = widgets.labelling(["a", "b", "a"], tmp_path / "mine.jsonl")
    box.buttons["positive"].click()
    box.buttons["positive"].click()
    assert len(labels.read(tmp_path / "mine.jsonl")) == 2 and box.session.current is None
    with pytest.raises(ValueError, match="unknown label 'good'"):
        box.session.label("good")


def typist(*answers):
    left = list(answers)
    return lambda question: left.pop(0)


def test_labelling_by_typing(tmp_path):
    session = widgets.label_by_typing(TEXTS, tmp_path / "mine.jsonl", ask=typist("n", "what?", "u", " P ", "s", "q"))
    assert [row["label"] for row in lines(tmp_path / "mine.jsonl")] == ["positive"]
    assert session.current == TEXTS[2]
    session = widgets.label_by_typing(TEXTS, tmp_path / "mine.jsonl", ask=typist("0", "0"))
    assert session.progress() == (3, 0, 3)


# ----------------------------------------------------------------------------------------- blind rating


def shown(box):
    """All that a person sees of a blind rating: HTML, labels, the words on buttons."""
    seen = []
    todo = [box]
    while todo:
        one = todo.pop()
        seen += [str(getattr(one, name, "")) for name in ("value", "description", "tooltip", "placeholder")]
        todo += getattr(one, "children", ())
    return "\n".join(seen)


def score_of(text):
    """A rater who likes exclamation and love."""
    return 5 if "!" in text else 4 if "love" in text or "happy" in text else 2


def rate_all(box, offset=0):
    while box.session.current is not None:
        box.scores["positivity"][min(5, score_of(box.session.text) + offset)].click()
        box.scores["sense"][3].click()


def test_ratings_are_written_one_by_one_and_the_source_is_hidden_until_the_end(tmp_path):
    path = tmp_path / "ratings.csv"
    box = widgets.blind_rating(SAMPLES, path, rater="r1")
    sources = re.compile("base|policy")
    for count in range(1, 7):
        text = box.session.text
        assert not sources.search(shown(box))
        box.scores["sense"][2].click()  # in either order, and a changed mind counts
        box.scores["sense"][4].click()
        assert len(widgets.read_ratings(path)) == count - 1
        box.scores["positivity"][score_of(text)].click()
        row = widgets.read_ratings(path)[-1]
        assert (row["text"], row["positivity"], row["sense"], row["rater"]) == (text, score_of(text), 4, "r1")
        assert not sources.search(path.read_text())
    assert not sources.search(shown(box))
    with pytest.raises(ValueError, match="once every sample is rated"):
        box.session.results()
    box.buttons["reveal"].click()
    rows = widgets.read_ratings(path)
    assert sorted(row["sample"] for row in rows) == list("123456")
    assert all(row["text"] in SAMPLES[row["source"]] for row in rows)
    assert path.read_text().splitlines()[0] == "sample,rater,positivity,sense,source,text"


def test_the_results_are_those_of_the_judge(tmp_path):
    box = widgets.blind_rating(SAMPLES, tmp_path / "ratings.csv")
    rate_all(box)
    box.buttons["reveal"].click()
    ratings = [
        {"sample": text, "source": side, "rater": "me", "positivity": score_of(text), "sense": 3}
        for side, texts in SAMPLES.items()
        for text in texts
    ]
    expected, result = judge.blind_rating(ratings), box.session.results()
    for score in ("positivity", "sense"):
        assert result[score]["win_rate"] == pytest.approx(expected[score]["win_rate"])
        assert result[score]["policy"] == pytest.approx(expected[score]["policy"])
    seen = box.passage.value
    assert "{:.2f} ({:.2f} to {:.2f})".format(*expected["positivity"]["policy"]) in seen
    assert "{:.0%} ({:.0%} to {:.0%})".format(*expected["positivity"]["win_rate"]) in seen
    assert "&lt;i&gt;rain" in seen and "<i>" not in seen


def test_the_samples_are_shuffled_by_seed_and_rater(tmp_path):
    many = {side: [f"{side[0]} {number}" for number in range(20)] for side in ("base", "policy")}
    session = widgets.BlindRating(many, tmp_path / "r.csv", "r1", seed=3)
    again, other, later = (
        widgets.BlindRating(many, tmp_path / "r.csv", rater, seed) for rater, seed in (("r1", 3), ("r2", 3), ("r1", 4))
    )
    assert session.order == again.order and session.items == again.items
    assert session.items == other.items and session.order != other.order
    assert session.items != later.items
    first_half = [session.items[number][0] for number in session.order[:20]]
    assert 4 <= first_half.count("base") <= 16


def test_a_rating_resumes_and_undoes(tmp_path):
    path = tmp_path / "ratings.csv"
    box = widgets.blind_rating(SAMPLES, path)
    box.keyboard.value = "3"
    box.keyboard.value = "35"
    box.keyboard.value = "3541"
    rows = widgets.read_ratings(path)
    assert [(row["positivity"], row["sense"]) for row in rows] == [(3, 5), (4, 1)]
    again = widgets.blind_rating(SAMPLES, path)
    assert again.session.current == box.session.current == again.session.order[2]
    again.keyboard.value = "2"
    again.keyboard.value = "2u"  # first the half-given one
    assert len(widgets.read_ratings(path)) == 2
    again.keyboard.value = "2uu"
    assert widgets.read_ratings(path) == rows[:1]
    assert again.session.current == again.session.order[1]


def test_what_was_revealed_can_no_longer_be_changed(tmp_path):
    path = tmp_path / "ratings.csv"
    box = widgets.blind_rating(SAMPLES, path)
    rate_all(box)
    box.buttons["undo"].click()
    assert len(widgets.read_ratings(path)) == 5
    rate_all(box)
    box.buttons["reveal"].click()
    before = path.read_bytes()
    for box_ in (box, widgets.blind_rating(SAMPLES, path)):
        assert box_.buttons["undo"].disabled and "policy" in box_.passage.value
        box_.buttons["undo"].click()
        assert "can no longer be changed" in box_.note.value
        box_.scores["sense"][1].click()
        box_.scores["positivity"][1].click()
    assert path.read_bytes() == before


def test_two_raters_rate_the_same_file(tmp_path):
    path = tmp_path / "ratings.csv"
    first, second = (widgets.blind_rating(SAMPLES, path, rater=name) for name in ("r1", "r2"))
    rate_all(first)
    first.buttons["reveal"].click()
    assert "one rater" in first.passage.value
    assert "policy" not in shown(second)
    rate_all(second, offset=1)
    assert {row["source"] for row in widgets.read_ratings(path) if row["rater"] == "r2"} == {""}
    second.buttons["reveal"].click()
    assert len(widgets.read_ratings(path)) == 12
    by_sample = [{row["sample"]: row["positivity"] for row in widgets.read_ratings(path) if row["rater"] == name}
                 for name in ("r1", "r2")]  # fmt: skip
    expected = judge.correlation([(by_sample[0][number], by_sample[1][number]) for number in by_sample[0]])
    assert second.session.results()["correlation"] == pytest.approx(expected)
    assert f"{expected:.2f}" in second.passage.value and "r1, r2" in second.passage.value


@pytest.mark.parametrize(
    "content, message",
    [
        ("a,b\n1,2\n", "first line must be"),
        ("sample,rater,positivity,sense,source,text\n1,me,6,3,,x\n", "rating 1: positivity must be 1 to 5, got '6'"),
        ("sample,rater,positivity,sense,source,text\n1,me,5,3,,x\n", "other samples"),
        (b"\xff\xfe\x00", "not a CSV file"),
        ("", "first line must be"),
    ],
)
def test_a_file_that_does_not_belong_is_refused(tmp_path, content, message):
    (tmp_path / "ratings.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        widgets.blind_rating(SAMPLES, tmp_path / "ratings.csv")


@pytest.mark.parametrize(
    "samples, message",
    [
        ({"base": ["a", "b"]}, "samples must be"),
        ({"base": ["a", "b"], "policy": ["c"]}, "at least 2 different"),
        ({"base": ["a", "b"], "policy": ["c", ""]}, "policy: text 2 is empty"),
        ({"base": "ab", "policy": ["c", "d"]}, "base must be a list"),
    ],
)
def test_too_few_or_bad_samples_are_refused(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        widgets.blind_rating(samples, tmp_path / "ratings.csv")
    session = widgets.BlindRating(SAMPLES, tmp_path / "ratings.csv")
    with pytest.raises(ValueError, match="positivity must be"):
        session.rate(0, 3)
    with pytest.raises(ValueError, match="hidden until"):
        session.reveal()


def test_rating_by_typing(tmp_path, capsys):
    session = widgets.rate_by_typing(SAMPLES, tmp_path / "ratings.csv", ask=typist("3 4", "9", "u", "34", "15", "q"))
    assert [(row["positivity"], row["sense"]) for row in session.mine()] == [(3, 4), (1, 5)]
    assert "policy" not in capsys.readouterr().out
    widgets.rate_by_typing(SAMPLES, tmp_path / "ratings.csv", ask=typist("22", "33", "44", "55"))
    assert "policy beats base" in capsys.readouterr().out
    assert {row["source"] for row in widgets.read_ratings(tmp_path / "ratings.csv")} == {"base", "policy"}


# ----------------------------------------------------------------------------------------- sampling

CONFIG = dict(context=32, layers=1, heads=1, width=8)


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer.train(["abcdefgh <>&\n."])


def model_of(tokenizer, seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **CONFIG)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def reward_model(tokenizer):
    model = reward.RewardModel(model_of(tokenizer, 2))
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


def test_a_sample_is_what_generate_draws_and_its_changes_add_up(tokenizer, reward_model):
    model = model_of(tokenizer, 0)
    drawn = widgets.sample(model, tokenizer, "abc", tokens=12, count=3, seed=5, reward_model=reward_model, top_k=6)
    from rlhf_lib.sampling import generate

    generator = torch.Generator().manual_seed(5)
    expected = generate(model, [tokenizer.encode("abc")] * 3, 12, generator=generator, end_token=0, top_k=6)
    for one, row, mask in zip(drawn, expected.tokens, expected.mask):
        assert one.text == tokenizer.decode(row[mask])
        assert one.log_odds == pytest.approx(reward_model.logits(row[mask][None]).item(), abs=1e-5)
        assert len(one.changes) == len(one.pieces) == int(mask.sum())
    assert widgets.sample(model, tokenizer, "", tokens=4)[0].changes is None


def test_the_first_change_is_from_even_odds_and_each_is_the_step_of_the_log_odds(tokenizer, reward_model):
    tokens = tokenizer.encode("abc d")
    odds = reward_model(torch.tensor([tokens]))[0].tolist()
    changes = widgets.log_odds_changes(reward_model, tokens).tolist()
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


def spans(text):
    found = re.findall(r'background: rgba\((\d+), (\d+), (\d+), ([\d.]+)\)" title="([+-][\d.]+) nats">([^<]*)<', text)
    return [(tuple(map(int, row[:3])), float(row[3]), float(row[4]), row[5]) for row in found]


def test_colours_follow_the_log_odds():
    one = widgets.Sample(["good", " <b>", "bad", " so"], [1.0, 0.0, -2.0, 0.5])
    (good, flat, bad, little) = spans(widgets.tinted(one, full=2.0))
    assert good[0] == little[0] == widgets.UP and bad[0] == widgets.DOWN != widgets.UP
    assert flat[1] == 0 and 0 < little[1] < good[1] < bad[1] <= 0.6
    assert [row[2] for row in (good, flat, bad, little)] == [1.0, 0.0, -2.0, 0.5]
    assert flat[3] == " &lt;b&gt;"
    assert spans(widgets.tinted(one, full=0.5))[0][1] == 0.6  # deeper than full is full
    assert widgets.tinted(widgets.Sample(["<", "a"], None)) == "&lt;a"


def test_the_sampler_shows_each_model_and_samples_again_when_a_setting_changes(tokenizer, reward_model):
    models = {"base": model_of(tokenizer, 0), "<tuned>": model_of(tokenizer, 1)}
    box = widgets.sampler(models, tokenizer, reward_model, count=1)
    box.settings["prompt"].value = "ab<"
    box.settings["tokens"].value = 8
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


# ----------------------------------------------------------------------------------------- explorer


@pytest.fixture
def run(tmp_path, tokenizer, reward_model):
    """A run's folder: policies of iterations 0, 5 and 10 and the last, 12, with their figures."""
    metrics = runs.Metrics(tmp_path)
    for iteration in range(13):
        figures = {"kl": iteration / 3, "reward": -1 + iteration / 20, "gold": iteration / 30}
        folders = ["policy"] if iteration == 12 else []
        if iteration % 5 == 0:
            folders.append(f"policy/iteration-{iteration:03d}")
        model = model_of(tokenizer, iteration)
        for folder in folders:
            card = {"kind": "gpt", "config": model.config.asdict(), "iteration": iteration, "kl": -1.0}
            runs.save_checkpoint(tmp_path / folder, model.state_dict(), card, tokenizer)
        metrics.log("policy", iteration, **figures)
    card = {"kind": "reward", "config": reward_model.config.asdict(), "pooling": "mean"}
    runs.save_checkpoint(tmp_path / "reward", reward_model.state_dict(), card, tokenizer)
    return tmp_path


def test_the_explorer_shows_the_figures_of_the_metrics(run, tokenizer):
    box = widgets.explorer(run, count=2, tokens=10)
    assert [value for _, value in box.slider.options] == [0, 5, 10, 12]
    records = {record["step"]: record for record in runs.Metrics(run).read("policy")}
    seen, pictures = set(), set()
    for iteration in (0, 5, 10, 12):
        box.slider.value = iteration
        for name in ("kl", "reward", "gold"):
            assert f">{records[iteration][name]:.4f}<" in box.values.value
        for one in widgets.checkpoint_samples(widgets.checkpoints(run)[len(seen)], count=2, tokens=10):
            assert "".join(row[3] for row in spans(box.output.value)).count(widgets.escape(one.text)) >= 1
        seen.add(box.output.value)
        pictures.add(bytes(box.curves.value))
    assert len(seen) == len(pictures) == 4


def test_without_metrics_the_figures_are_those_of_the_checkpoint(run):
    (run / "metrics.jsonl").unlink()
    found = widgets.checkpoints(run)
    assert [checkpoint["iteration"] for checkpoint in found] == [0, 5, 10, 12]
    assert {checkpoint["kl"] for checkpoint in found} == {-1.0}
    assert ">-1.0000<" in widgets.explorer(run, count=1, tokens=4).values.value


def test_a_folder_without_checkpoints_is_said(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        widgets.explorer(tmp_path)


def test_a_checkpoint_lost_meanwhile_is_said(run):
    box = widgets.explorer(run, count=1, tokens=4)
    (run / "policy" / "iteration-005" / "model.safetensors").unlink()
    box.slider.value = 5
    assert "no checkpoint in" in box.note.value
    box.slider.value = 10
    assert box.note.value == ""


def test_the_curves_mark_the_checkpoint():
    records = [{"iteration": step, "kl": float(step), "reward": -1.0, "gold": 0.0} for step in range(4)]
    axes = widgets.checkpoint_curves(records, 2).axes
    assert [ax.get_title() for ax in axes] == [title for _, title, _, _ in widgets.EXPLORED]
    assert list(axes[0].lines[0].get_ydata()) == [0, 1, 2, 3]
    assert list(axes[0].lines[1].get_xdata()) == [2, 2]


# ----------------------------------------------------------------------------------------- live curves


def test_live_curves_draw_what_was_logged_into_one_picture():
    live = widgets.LiveCurves(["loss", ("train_loss", "val_loss"), "clip_fraction", "mystery"], every=0)
    image, pictures = live.image, []
    with live:
        for step in range(3):
            live.log(step, loss=3.0 - step, train_loss=step, val_loss=None if step % 2 else 9.0, stage="pretrain")
            pictures.append(bytes(image.value))
    assert live.image is image and pictures[-1].startswith(b"\x89PNG")
    assert len(set(pictures)) == 3
    loss, both, clip, mystery = (ax for ax in live.figure().axes if ax.get_visible())
    assert [list(part) for part in loss.lines[0].get_data()] == [[0, 1, 2], [3, 2, 1]]
    assert list(both.lines[1].get_data()[0]) == [0, 2]
    assert (loss.get_ylabel(), clip.get_ylabel()) == ("nats per token", "share of tokens")
    assert mystery.get_title() == "mystery" and not mystery.lines
    assert all(ax.get_xlabel() == "step" for ax in (loss, both, clip, mystery))


def test_live_curves_do_not_draw_at_every_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(widgets.time, "monotonic", lambda: now[0])
    live = widgets.LiveCurves(["kl"], every=5)
    drawn = []
    monkeypatch.setattr(widgets, "png", lambda figure: drawn.append(now[0]) or b"")
    with live:
        for step in range(12):
            live.log(step, kl=step)
            now[0] += 1
    assert drawn == [100, 105, 110, 112]


def test_live_curves_follow_a_loop_of_the_library(tmp_path):
    metrics = runs.Metrics(tmp_path)
    live = widgets.LiveCurves(["kl"], every=0.02)
    metrics.log("pretrain", 0, kl=7.0)
    with live.follow(tmp_path, "policy"):
        before = live.image.value
        for step in range(3):
            metrics.log("policy", step, kl=float(step))
        for _ in range(200):
            if live.image.value != before:
                break
            widgets.time.sleep(0.05)
        assert live.image.value != before  # drawn while the loop runs
        metrics.log("policy", 3, kl=3.0)
    assert [record["kl"] for record in live.records] == [0, 1, 2, 3]
    assert list(live.figure().axes[0].lines[0].get_ydata()) == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="the loop"), live.follow(tmp_path, "policy"):
        raise RuntimeError("the loop stops")


@pytest.mark.parametrize("names", ["loss", []])
def test_live_curves_need_names(names):
    with pytest.raises(ValueError, match="names must be a list"):
        widgets.LiveCurves(names)
