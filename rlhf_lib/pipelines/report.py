"""The report of a run: one HTML file with figures, curves and samples, readable without a network."""

import base64
import contextlib
import io
from pathlib import Path

from jinja2 import ChainableUndefined, Environment

from rlhf_lib import plots, plots_assistant, runs
from rlhf_lib.files import RunError, json_rows, read_json, write_atomic
from rlhf_lib.labels import SYNTHETIC

PAGE = Path(__file__).with_name("report.html.j2")
ASSISTANT_PAGE = Path(__file__).with_name("assistant_report.html.j2")


class Absent(ChainableUndefined):
    """What a summary of another version does not have: a dash on the page, and nothing that can be reckoned with."""

    def __str__(self):
        return "–"

    def __format__(self, form):
        return "–"

    def __call__(self, *others):
        return self

    __mul__ = __rmul__ = __call__


def render(template, **values):
    """The page that a template, a path, makes of `values`, in UTF-8."""
    page = Environment(autoescape=True, undefined=Absent).from_string(template.read_text(encoding="utf-8"))
    return page.render(**values).encode()


def minutes(summary):
    """A run's minutes as text, or a dash."""
    total = summary.get("seconds", {}).get("total")
    return "–" if total is None else f"{total / 60:.1f}"


@contextlib.contextmanager
def readable(folder):
    """What cannot be drawn or shown is the fault of the run's files."""
    try:
        yield
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        names = "summary.json, metrics.jsonl and the samples"
        raise RunError(f"{folder}: {names} are damaged or of another version ({reason}): take the good ones back") from error


def png(figure):
    """A matplotlib figure as base64 text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()


def write_report(folder, samples=20):
    """Write `folder/report.html` from the run's summary, metrics and samples."""
    folder = Path(folder)
    summary, settings = read_json(folder / "summary.json"), settings_of(folder)
    metrics = runs.Metrics(folder)
    pretraining, reward, policy = (metrics.read(stage) for stage in ("pretrain", "reward", "policy"))
    drawn = rows_of(folder / "samples.jsonl")
    with readable(folder):
        base, tuned = ([row for row in drawn if row["source"] == side] for side in ("base", "policy"))
        figures = {
            "policy": plots.policy_diagnostics(policy, settings.get("ppo.max_kl")),
            "over_optimisation": plots.over_optimisation(policy),
        }
        if drawn:
            figures["gold"] = plots.gold_histogram([row["gold"] for row in base], [row["gold"] for row in tuned])
        if pretraining:  # a run that started from another's checkpoints has none
            figures["pretraining"] = plots.pretraining(pretraining)
        if reward:
            figures["reward"] = plots.reward_training(reward)
        html = render(
            PAGE,
            summary=summary,
            minutes=minutes(summary),
            raters=who(summary.get("raters", ()), settings.get("labels")),
            negative=settings.get("sentiment") == "negative",
            figures={name: png(fig) for name, fig in figures.items()},
            pairs=list(zip(base[:samples], tuned[:samples])),
        )
    write_atomic(folder / "report.html", html)


def who(raters, labels):
    """In words, whose labels the reward model learned from."""
    readers = [rater for rater in raters if rater != SYNTHETIC]
    if readers:
        return f"the labels of {len(readers)} readers" + " (who they are: data/README.md)" * (labels == "hand")
    return "the synthetic rater, which is also the gold judge" if raters else "labels of which its summary does not say whose"


def settings_of(folder):
    """The settings as they stand in the run's folder, of whichever version; empty where there are none."""
    return read_json(folder / "settings.json") if (folder / "settings.json").exists() else {}


def rows_of(path):
    """The rows of a file of JSON lines; none where there is no file. Raises RunError for a damaged one."""
    return [row for _, row in json_rows(path)] if path.exists() else []


def write_assistant_report(folder, samples=20):
    """Write `folder/report.html` from the summary, metrics, answers and verdicts of a run of the assistant."""
    folder = Path(folder)
    summary, settings = read_json(folder / "summary.json"), settings_of(folder)
    metrics = runs.Metrics(folder)
    with readable(folder):
        accuracies = summary.get("length_accuracy"), summary.get("reader_agreement")
        figures = {
            "sft": plots_assistant.fine_tuning(metrics.read("sft")),
            "reward": plots_assistant.preferences(metrics.read("reward"), *accuracies),
            "policy": plots_assistant.critic_diagnostics(metrics.read("policy"), settings.get("ppo.max_kl")),
            "win_rates": plots_assistant.win_rates(summary),
        }
        answers = {}  # a list of rows by side
        for row in rows_of(folder / "answers.jsonl"):
            answers.setdefault(row["side"], []).append(row)
        html = render(
            ASSISTANT_PAGE,
            summary=summary,
            settings=settings,
            minutes=minutes(summary),
            figures={name: png(fig) for name, fig in figures.items()},
            sides={"start": "Start", "sft": "SFT", "best_of": f"Best of {settings.get('best_of', 'n')}", "policy": "PPO"},
            asked=[dict(zip(answers, rows)) for rows in list(zip(*answers.values()))[:samples]],
        )
    write_atomic(folder / "report.html", html)
