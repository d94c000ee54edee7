"""The report of a run: one HTML file with figures, curves and samples, readable without a network."""

import base64
import io
import json
from pathlib import Path

from jinja2 import Environment

from rlhf_lib import plots, plots_assistant, runs
from rlhf_lib.files import json_rows, read_json, write_atomic
from rlhf_lib.labels import SYNTHETIC

PAGE = Path(__file__).with_name("report.html.j2")
ASSISTANT_PAGE = Path(__file__).with_name("assistant_report.html.j2")


def png(figure):
    """A matplotlib figure as base64 text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def write_report(folder, samples=20):
    """Write `folder/report.html` from the run's summary, metrics and samples."""
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    max_kl = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["ppo.max_kl"]
    metrics = runs.Metrics(folder)
    pretraining, reward, policy = (metrics.read(stage) for stage in ("pretrain", "reward", "policy"))
    drawn = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    base, tuned = ([row for row in drawn if row["source"] == side] for side in ("base", "policy"))
    figures = {
        "policy": plots.policy_diagnostics(policy, max_kl),
        "over_optimisation": plots.over_optimisation(policy),
        "gold": plots.gold_histogram([row["gold"] for row in base], [row["gold"] for row in tuned]),
    }
    if pretraining:  # a run that started from another's checkpoints has none
        figures["pretraining"] = plots.pretraining(pretraining)
    if reward:
        figures["reward"] = plots.reward_training(reward)
    readers = [rater for rater in summary["raters"] if rater != SYNTHETIC]
    page = Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
    html = page.render(
        summary=summary,
        minutes=f"{summary['seconds']['total'] / 60:.1f}",
        raters=f"the labels of {len(readers)} readers (who they are: data/README.md)"
        if readers
        else "the synthetic rater, which is also the gold judge",
        figures={name: png(fig) for name, fig in figures.items()},
        pairs=list(zip(base[:samples], tuned[:samples])),
    )
    write_atomic(folder / "report.html", html.encode())


def write_assistant_report(folder, samples=20):
    """Write `folder/report.html` from the summary, metrics, answers and verdicts of a run of the assistant."""
    folder = Path(folder)
    summary, settings = read_json(folder / "summary.json"), read_json(folder / "settings.json")
    metrics = runs.Metrics(folder)
    figures = {
        "sft": plots_assistant.fine_tuning(metrics.read("sft")),
        "reward": plots_assistant.preferences(
            metrics.read("reward"), summary["length_accuracy"], summary.get("reader_agreement")
        ),
        "policy": plots_assistant.critic_diagnostics(metrics.read("policy"), settings["ppo.max_kl"]),
        "win_rates": plots_assistant.win_rates(summary),
    }
    answers = {}  # a list of rows by side
    for _, row in json_rows(folder / "answers.jsonl"):
        answers.setdefault(row["side"], []).append(row)
    page = Environment(autoescape=True).from_string(ASSISTANT_PAGE.read_text(encoding="utf-8"))
    html = page.render(
        summary=summary,
        settings=settings,
        minutes=f"{summary['seconds']['total'] / 60:.1f}",
        figures={name: png(fig) for name, fig in figures.items()},
        sides={"start": "Start", "sft": "SFT", "best_of": f"Best of {settings['best_of']}", "policy": "PPO"},
        asked=[dict(zip(answers, rows)) for rows in list(zip(*answers.values()))[:samples]],
    )
    write_atomic(folder / "report.html", html.encode())
