import base64
import copy
import json
from html.parser import HTMLParser

import pytest

from rlhf_lib import runs
from rlhf_lib.files import write_json
from rlhf_lib.pipelines import report

SUMMARY = {
    "preset": "smoke",
    "seed": 7,
    "device": "cpu",
    "val_bits_per_char": 2.3456,
    "val_perplexity": 45.67,
    "reward_accuracy": 0.8125,
    "reward_passages": 48,
    "raters": ["r1", "r2", "r3"],
    "iteration": 2,
    "kl_nats": 3.21,
    "kl_nats_error": 0.1,
    "reward_base": -0.9,
    "reward_policy": -0.4,
    "gold_base": 0.012,
    "gold_policy": 0.345,
    "gold_win_rate": 0.6543,
    "gold_win_rate_interval": [0.6012, 0.7034],
    "distinct_2_base": 0.9,
    "distinct_2_ratio": 0.876,
    "separator_ratio": 1.234,
    "seconds": {"pretrain": 61.2, "reward": 30.0, "policy": 88.8, "evaluate": 0.0, "total": 180.0},
    "peak_memory_bytes": 1_230_000_000,
}
METRICS = [
    ("pretrain", 9, {"train_loss": 5.0, "val_loss": 4.8, "val_bits_per_char": 3.1}),
    ("reward", 9, {
        "train_loss": 0.6, "epoch": 1.0, "held_out_loss": 0.6, "held_out_accuracy": 0.8, "held_out_calibration_error": 0.1,
    }),
    *(
        ("policy", step, {
            "kl": 1.0 * step, "reward": -0.7, "reward_normalised": 0.1 * step, "gold": 0.1, "distinct_2": 0.9, "separators": 1.0,
            "clip_fraction": 0.1, "entropy": 4.0,
        })
        for step in range(3)
    ),
]  # fmt: skip
SAMPLES = [
    {"source": side, "text": f"{side} line {number}", "gold": 0.25 if side == "policy" else -0.5, "reward": -0.3}
    for side in ("base", "policy")
    for number in range(30)
]


class Page(HTMLParser):
    """The tags, the images, and the text a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.images, self.links, self.words, self.style = [], {}, [], [], False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.style = tag == "style"
        if tag == "img":
            self.images[attributes["alt"]] = attributes["src"]
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]

    def handle_endtag(self, tag):
        self.style = False if tag == "style" else self.style

    def handle_data(self, data):
        if not self.style:
            self.words.append(data)


def page(folder, metrics=METRICS, samples=SAMPLES, count=20, **changes):
    """The report of a made-up run."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {**copy.deepcopy(SUMMARY), **changes}
    write_json(folder / "summary.json", summary)
    write_json(folder / "settings.json", {"ppo.max_kl": 10.0})
    for stage, step, stats in metrics:
        runs.Metrics(folder).log(stage, step, **stats)
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
    report.write_report(folder, samples=count)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def plain(monkeypatch):
    """Pictures that take no time to draw, for tests that look at the words alone."""
    monkeypatch.setattr(report, "png", lambda figure: base64.b64encode(b"\x89PNG").decode())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return page(tmp_path_factory.mktemp("report"))


def test_the_page_says_the_stats_with_their_meaning(full):
    for words in (
        "Bits per character 2.346",
        "Perplexity 45.7",
        "accuracy 81.2 % on 48 held-out passages",
        "KL to the base 3.21 ± 0.20 nats per completion",
        "Gold win rate 65.4 %",
        "95 % interval 60.1 to 70.3 %",
        "Gold score +0.012 → +0.345",
        "Reward -0.900 → -0.400",
        "Distinct-2 ratio 0.876",
        "Separator ratio 1.234",
        "Preset smoke, seed 7, on cpu; 3.0 minutes",
        "The reward model learned from: the labels of 3 readers",
        "pretrain 61 s",
        "1.23 GB",
    ):
        assert words in full.text, words


def test_the_page_has_every_figure_as_a_picture_inside(full):
    assert set(full.images) == {"Pretraining", "Reward model", "PPO", "Gold against proxy", "Base and policy"}
    pictures = set()
    for source in full.images.values():
        kind, _, data = source.partition("base64,")
        assert kind == "data:image/png;"
        content = base64.b64decode(data, validate=True)
        assert content.startswith(b"\x89PNG") and len(content) > 2000
        pictures.add(content)
    assert len(pictures) == 5


def test_the_page_needs_no_network(full):
    assert all(link.startswith("data:") for link in full.links)
    assert "script" not in full.tags and "link" not in full.tags and "iframe" not in full.tags


def test_samples_stand_side_by_side_with_their_scores(full):
    for number in range(20):
        assert f"base line {number} gold -0.50 · reward -0.30 policy line {number} gold +0.25 · reward -0.30" in full.text
    assert "line 20" not in full.text
    assert "The first 20 completions" in full.text


def test_the_number_of_samples_can_be_chosen_and_may_be_more_than_there_are(tmp_path, plain):
    assert "policy line 3 " not in page(tmp_path / "a", count=3).text
    few = page(tmp_path / "b", samples=SAMPLES[:2] + SAMPLES[30:32], count=20)
    assert "The first 2 completions" in few.text and "policy line 1 " in few.text


HOSTILE = "<script>alert(\"x\")</script><img src=x onerror=alert(1)></div>&amp; 'quoted' {{ 7 * 7 }} {% raw %}"


def test_a_sample_with_html_stays_text(tmp_path, plain):
    drawn = [{"source": side, "text": HOSTILE, "gold": 0.0, "reward": -1.0} for side in ("base", "policy")] * 2
    expected, attacked = (
        page(tmp_path / "plain", samples=SAMPLES[:2] + SAMPLES[30:32]),
        page(tmp_path / "attacked", samples=drawn),
    )
    assert attacked.tags == expected.tags  # not one tag more
    assert attacked.text.count(HOSTILE) == 4
    assert "49" not in attacked.text.split("Samples side by side")[1].split("Time")[0]


def test_names_from_the_summary_stay_text_too(tmp_path, plain):
    attacked = page(tmp_path, preset="<b>bold</b>")
    assert "<b>bold</b>" in attacked.text and "b" not in attacked.tags


def test_line_breaks_of_a_sample_are_kept_and_any_character_is_fine(tmp_path, plain):
    text = "KING.\nO, sweet é – 🙂\u2028and\u0085more\x0b\ufffd"
    drawn = [{"source": side, "text": text, "gold": 0.0, "reward": -1.0} for side in ("base", "policy")]
    page(tmp_path, samples=drawn)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("KING.\nO, sweet é – 🙂") == 2
    assert "white-space: pre-wrap" in html


def test_a_run_from_anothers_checkpoints_has_no_curves_of_what_it_did_not_do(tmp_path):
    metrics = [row for row in METRICS if row[0] == "policy"]
    assert set(page(tmp_path, metrics).images) == {"PPO", "Gold against proxy", "Base and policy"}


def test_a_policy_that_stopped_at_once_still_gets_its_report(tmp_path):
    stage, step, stats = METRICS[2]
    stats = {name: value for name, value in stats.items() if name not in ("clip_fraction", "entropy")}
    assert "PPO" in page(tmp_path, [(stage, step, stats)]).images


def test_a_ratio_that_does_not_exist_is_a_dash(tmp_path, plain):
    text = page(tmp_path, distinct_2_ratio=None, separator_ratio=None).text
    assert "Distinct-2 ratio – " in text and "Separator ratio – " in text and "None" not in text


def test_the_synthetic_rater_is_named(tmp_path, plain):
    text = page(tmp_path / "a", raters=["synthetic"]).text
    assert "the synthetic rater, which is also the gold judge" in text
    assert "readers" not in text
    assert "the labels of 2 readers" in page(tmp_path / "b", raters=["r1", "r2"]).text


def test_writing_again_gives_the_same_page(tmp_path):
    page(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    report.write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
