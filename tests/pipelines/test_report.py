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


def page(folder, metrics=METRICS, samples=SAMPLES, count=20, settings=None, **changes):
    """The report of a made-up run."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = {**copy.deepcopy(SUMMARY), **changes}
    write_json(folder / "summary.json", summary)
    write_json(folder / "settings.json", {"ppo.max_kl": 10.0, **(settings or {})})
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
    assert "the labels of 2 readers. " in page(tmp_path / "b", raters=["r1", "r2"]).text + " "
    assert "labels of which its summary does not say whose" in page(tmp_path / "c", raters=[]).text


def test_only_of_our_own_labels_it_is_said_where_their_readers_are_described(tmp_path, plain):
    for labels in ("hand", "mine.jsonl"):
        text = page(tmp_path / labels, settings={"labels": labels}).text
        assert ("the labels of 3 readers (who they are: data/README.md)" in text) == (labels == "hand")


def test_a_run_that_pays_for_the_negative_is_called_by_its_aim(tmp_path, plain):
    happier, sadder = (page(tmp_path / one, settings={"sentiment": one}).text for one in ("positive", "negative"))
    assert "While the gold score climbs with it, the policy really gets happier;" in happier
    assert "While the gold score falls with it, the policy really gets unhappier, which is what this run pays for;" in sadder


def test_writing_again_gives_the_same_page(tmp_path):
    page(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    report.write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


# ----------------------------------------------------------------------------------------- the assistant's

SIDES = {"start": "Start", "sft": "SFT", "best_of": "Best of 16", "policy": "PPO"}
RATES = {"policy": 0.8125, "sft": 0.625, "policy_over_sft": 0.7, "best_of_over_sft": 0.6}
ASSISTANT = {
    "preset": "laptop",
    "seed": 3,
    "device": "cpu",
    "model": "smollm2-135m",
    "judge": "gold",
    "gold": "published",
    "demonstrations": 496,
    "comparisons": 2100,
    "left_out": {"demonstrations": 2, "comparisons": 0, "prompts": 1},
    "start_loss": 3.21,
    "sft_loss": 2.3456,
    "reward_accuracy": 0.734,
    "reward_pairs": 410,
    "length_accuracy": 0.561,
    "calibration_error": 0.04,
    "reader_agreement": 0.852,
    "reader_pairs": 270,
    "parameters": {"trained": 2_500_000, "one_trunk": 139_500_000, "four_models": 543_000_000},
    "answers": {
        side: {
            "words": 20.0 + place, "tokens": 30.0, "ended_share": 0.2 * place, "distinct_2": 0.9 - 0.01 * place,
            "reward": place - 1.0,
        }
        for place, side in enumerate(SIDES)
    },
    "evaluated_prompts": 150,
    **{f"win_rate_{name}": value for name, value in RATES.items()},
    **{f"win_rate_{name}_interval": [value - 0.05, value + 0.05] for name, value in RATES.items()},
    "win_rate_policy_over_sft_length_controlled": 0.66,
    "length_ratio": 1.123,
    "position_bias": -1.5,
    "position_bias_interval": [-4.0, 1.0],
    "longer_win_rate": 0.44,
    "longer_win_rate_interval": [0.4, 0.48],
    "consistency": 0.97,
    "refused": 0,
    "distinct_2_ratio": 0.956,
    "ended_share": 0.92,
    "kl_nats": 7.25,
    "kl_nats_error": 0.5,
    "seconds": {"sft": 180.0, "reward": 600.0, "policy": 380.0, "judge": 300.0, "total": 1460.0},
    "peak_memory_bytes": 3_210_000_000,
}  # fmt: skip
TRAINED = [
    ("sft", 9, {"train_loss": 2.5, "val_loss": 2.4}),
    ("reward", 9, {"train_loss": 0.6, "held_out_loss": 0.6, "held_out_accuracy": 0.7, "held_out_calibration_error": 0.1}),
    *(
        (
            "policy",
            step,
            {"reward": 0.1, "kl": 1.0, "clip_fraction": 0.1, "explained_variance": 0.3, "ended": 0.5, "tokens": 30.0},
        )
        for step in range(3)
    ),
]


def answered(count=30, prompt="Ask {}?", answer="{} says {}."):
    return [
        {
            "side": side, "prompt": prompt.format(n), "answer": answer.format(title, n), "ended": side != "start", "tokens": 9,
            "reward": 0.5 * place,
        }
        for place, (side, title) in enumerate(SIDES.items())
        for n in range(count)
    ]  # fmt: skip


def assistant_page(folder, drawn=None, **changes):
    """The report of a made-up run of the assistant."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", {**copy.deepcopy(ASSISTANT), **changes})
    write_json(folder / "settings.json", {"ppo.max_kl": 10.0, "ppo.max_new_tokens": 48, "best_of": 16})
    for stage, step, stats in TRAINED:
        runs.Metrics(folder).log(stage, step, **stats)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in drawn or answered())
    (folder / "answers.jsonl").write_text(lines, encoding="utf-8")
    report.write_assistant_report(folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_assistants_page_says_the_stats_with_their_meaning(tmp_path):
    found = assistant_page(tmp_path)
    for words in (
        "smollm2-135m, preset laptop, seed 3, on cpu; 24.3 minutes",
        "496 demonstrations and 2,100 comparisons. 2 demonstrations were too long and left out. 1 prompts were",
        "Start SFT Best of 16 PPO Wins over the start – 62.5 % – 81.2 %",
        "Wins over SFT – – 60.0 % 70.0 %",
        "Reward, deviations of SFT -1.00 +0.00 +1.00 +2.00",
        "Answers that end, % 0 20 40 60",
        "Words per answer 20.0 21.0 22.0 23.0",
        "150 held-out prompts",
        "loss 3.210 → 2.346 nats per token",
        "accuracy 73.4 % on 410 held-out comparisons",
        "Accuracy of length alone 56.1 %",
        "Calibration error 0.040 how far the reward model's probability",
        "Readers' agreement 85.2 % of two readers on 270 pairs",
        "PPO over the start 81.2 % 95 % interval 76.2 to 86.2 %",
        "PPO over SFT 70.0 % 95 % interval 65.0 to 75.0 %",
        "at like length 66.0 %",
        "KL to SFT 7.25 ± 0.98 nats per answer",
        "Length ratio 1.123",
        "Distinct-2 ratio 0.956",
        "Answers that end 92.0 % of PPO's, within 48 tokens",
        "A gold reward model, published, that learned from all comparisons",
        "Position bias -1.5 points by which the first place wins oftener than half, 95 % interval -4.0 to +1.0",
        "Length bias 44.0 % how often the longer answer wins; 95 % interval 40.0 to 48.0 %",
        "reward 600 s",
        "3.21 GB",
        "trained in PPO 2.50 million numbers",
        "on one trunk 139.5 million numbers the same as four whole models 543.0 million",
    ):
        assert words in found.text, words
    assert "None" not in found.text
    assert set(found.images) == {"Win rates", "Fine-tuning", "Reward model", "PPO"}
    contents = {base64.b64decode(source.partition("base64,")[2], validate=True) for source in found.images.values()}
    assert len(contents) == 4 and all(content.startswith(b"\x89PNG") for content in contents)
    assert all(link.startswith("data:") for link in found.links) and "script" not in found.tags


def test_twenty_prompts_stand_with_their_four_answers_side_by_side(tmp_path, plain):
    text = assistant_page(tmp_path).text
    for n in range(20):
        four = f"Ask {n}? Start · reward +0.00 · cut off Start says {n}. SFT · reward +0.50 SFT says {n}. "
        assert f"{four}Best of 16 · reward +1.00 Best of 16 says {n}. PPO · reward +1.50 PPO says {n}." in text
    assert "Ask 20?" not in text and "first 20 held-out prompts" in text


def test_a_prompt_or_an_answer_with_html_stays_text(tmp_path, plain):
    expected = assistant_page(tmp_path / "plain", answered(1))
    attacked = assistant_page(tmp_path / "attacked", [{**row, "prompt": HOSTILE, "answer": HOSTILE} for row in answered(1)])
    assert attacked.tags == expected.tags
    assert attacked.text.count(HOSTILE) == 5


def test_a_conversation_is_shown_with_all_its_messages(tmp_path, plain):
    talk = [{"role": "user", "content": "Why <b>?"}, {"role": "assistant", "content": "So."}, {"role": "user", "content": "No."}]
    text = assistant_page(tmp_path, [{**row, "prompt": talk} for row in answered(1)]).text
    assert "Why <b>? So. No. Start" in text


def test_a_judge_behind_an_endpoint_is_named_with_what_it_refused(tmp_path, plain):
    summary = {name: value for name, value in ASSISTANT.items() if name != "gold"}
    asked = {"judge": "endpoint:https://host/v1#big", "gold": None, "refused": 3, "position_bias_interval": None}
    text = assistant_page(tmp_path, **{**summary, **asked}).text
    assert "https://host/v1#big, asked about every pair in both orders. It gave no verdict on 3 pairs" in text
    assert "gold reward model" not in text.lower() and "It refused" not in text
    none = {"win_rate_policy_over_sft": None, "win_rate_policy_over_sft_interval": None}
    found = assistant_page(tmp_path, **{**summary, **asked, **none})
    assert "It refused every pair of PPO over SFT, which therefore has no win rate." in found.text
    assert found.text.count("It refused") == 1 and "PPO over SFT – " in found.text and "Win rates" in found.images


def test_what_there_is_not_is_a_dash_or_is_left_out(tmp_path, plain):
    missing = ("length_ratio", "distinct_2_ratio", "kl_nats_error", "longer_win_rate", "longer_win_rate_interval")
    names = (*missing, "win_rate_policy_over_sft_length_controlled", "reader_agreement", "peak_memory_bytes")
    text = assistant_page(tmp_path, **dict.fromkeys(names)).text
    assert "Length ratio – " in text and "Distinct-2 ratio – " in text and "7.25 ± –" in text and "at like length – " in text
    assert "Readers' agreement" not in text and "peak memory – GB" in text and "None" not in text
