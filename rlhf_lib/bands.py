"""Expected curves: each chapter's stored runs give a band, and a curve that leaves it is told so, with the likely cause.

The runs stand in data/bands.json, which `python -m benchmarks.bands` writes. At each stored point the band reaches from the
lowest to the highest run, and is widened on both sides by the largest spread of the runs there and at the two points on either
side, or by the curve's margin where that is more (one run has no spread). Two exceptions: at the first point by `start` alone,
where the curve has one (a KL begins at 0); and the lower border is at least `floor` times the lowest run (a clip fraction of 0 is
outside where all runs clip). What is drawn and said of it ends where the curve must (an accuracy at 1). Between two points a band
is a line. A curve leaves it where two points in a row, or its first, or its last, lie outside on one side. A few seeds are no
law: a curve outside is a reason to look, and no proof of a mistake.
"""

import functools
import math
import textwrap
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from rlhf_lib import course, plots
from rlhf_lib.corpus import DATA
from rlhf_lib.files import read_json
from rlhf_lib.hunt.symptoms import CAUSES

FILE = DATA / "bands.json"
SIDES = ("below", "above")

CURVES = {  # each curve in words, and the least and the most that it can be
    "loss": ("Loss of a batch", 0, math.inf),
    "val_loss": ("Validation loss", 0, math.inf),
    "train_loss": ("Training loss", 0, math.inf),
    "held_out_loss": ("Held-out loss", 0, math.inf),
    "accuracy": ("Accuracy", 0, 1),
    "held_out_accuracy": ("Held-out accuracy", 0, 1),
    "length": ("Length of an episode", 0, 500),
    "explained_variance": ("Explained variance", -math.inf, 1),
    "kl": ("KL", 0, math.inf),
    "approx_kl": ("Approximate KL", 0, math.inf),
    "ratio": ("First ratio, new to old", 0, math.inf),
    "first_ratio": ("First ratio, new to old", 0, math.inf),
    "clip_fraction": ("Clip fraction", 0, 1),
    "reward": ("Reward", -math.inf, math.inf),
    "gold": ("Gold score", -1, 1),
    "entropy": ("Entropy", 0, math.inf),
}
AXES = {  # what a chapter calls the axis, where it is not the records' own word
    "06 labels": "labels learned from",
    "07": "steps in the environments",
    "08": "iteration",
    "11 policy": "iteration",
    "12 grpo": "iteration",
}

LIKELY = CAUSES | {
    "rate-high": "too high a learning rate",
    "rate-low": "too low a learning rate, or too few steps",
    "no-step": "the optimiser does not step, or holds other weights than the model's",
    "first-weights": "the first weights of the head are too large: equal logits cost ln V",
    "units": "it is in another unit, or a sum where a mean should be",
    "not-shifted": "the model sees what it has to predict: targets that are not shifted, or no causal mask",
    "half-shifted": "the targets that it learns from are not shifted, and those that it is measured on are",
    "by-heart": "what it learns from is learnt by heart: too many passes over too little, or dropout that is missing",
    "majority": "it says the commoner side to all",
    "two-scores": "policy and reference, or old and new, are scored in two ways: a temperature, dropout or a mask",
    "epochs": "too many passes over a rollout",
    "distance": "it was bought with distance: look at the KL",
    "gamed": "the reward model is pleased and its reader is not: chapter 09",
    "critic": "the critic's targets are not its returns, or it does not learn",
    "critic-sees": "the critic sees what is still to come, or its own values are its targets",
    "sure": "the policy is sure of itself too early: too high a rate, or no price on the KL",
    "log": "a logarithm or a root was taken of what has none",
    "better": "nothing to mend, if it is measured as here: it is better than the stored runs",
}

# (curve, how it left, side): what is likely. How: "flat", hardly moving at all; "first", with its first point; "apart", while the
# curve that is trained on does well; "early", in the first quarter; "" in any way. The first of them that fits is told.
LEAVING = {
    ("loss", "first", "above"): "first-weights units",
    ("loss", "first", "below"): "units not-shifted",
    ("loss", "flat", "above"): "no-step rate-low",
    ("loss", "", "above"): "rate-high rate-low gradients-add-up",
    ("loss", "", "below"): "by-heart not-shifted",
    ("val_loss", "apart", "above"): "by-heart half-shifted",
    ("val_loss", "flat", "above"): "no-step rate-low",
    ("val_loss", "", "above"): "rate-high rate-low",
    ("val_loss", "", "below"): "leak better",
    ("train_loss", "flat", "above"): "no-step rate-low",
    ("train_loss", "", "above"): "rate-high rate-low frozen-head",
    ("train_loss", "", "below"): "by-heart padding-learnt",
    ("held_out_loss", "apart", "above"): "by-heart",
    ("held_out_loss", "flat", "above"): "no-step",
    ("held_out_loss", "", "above"): "rate-high",
    ("held_out_loss", "", "below"): "leak better",
    ("accuracy", "", "below"): "majority frozen-head sign",
    ("accuracy", "", "above"): "leak better",
    ("held_out_accuracy", "", "below"): "frozen-head sign rate-high",
    ("held_out_accuracy", "", "above"): "leak better",
    ("length", "flat", "below"): "sign no-step rate-low",
    ("length", "", "below"): "rate-low rate-high",
    ("length", "", "above"): "better",
    ("explained_variance", "", "below"): "critic rate-high",
    ("explained_variance", "", "above"): "critic-sees better",
    ("kl", "first", "above"): "two-scores",
    ("kl", "first", "below"): "two-scores kl-of-ratio",
    ("kl", "early", "above"): "rate-high old-recomputed",
    ("kl", "", "above"): "kl-unpaid rate-high",
    ("kl", "", "below"): "rate-low one-step",
    ("approx_kl", "", "above"): "rate-high epochs old-recomputed",
    ("approx_kl", "", "below"): "one-step old-recomputed",
    ("ratio", "", ""): "two-scores other-temperature dropout",
    ("first_ratio", "", ""): "two-scores other-temperature dropout",
    ("clip_fraction", "", "above"): "rate-high epochs",
    ("clip_fraction", "", "below"): "one-step old-recomputed rate-low",
    ("reward", "flat", "below"): "sign batch-normalised rate-low",
    ("reward", "", "below"): "sign rate-low rate-high",
    ("reward", "", "above"): "distance units",
    ("gold", "apart", "below"): "gamed",
    ("gold", "", "below"): "sign rate-low",
    ("gold", "", "above"): "better",
    ("entropy", "", "below"): "sure",
    ("entropy", "", "above"): "rate-low sign",
}
SHORT = "the KL passed its limit, since the learning rate is too high, or the run is not done"
TRAINED_ON = {"val_loss": "loss", "held_out_loss": "train_loss", "gold": "reward"}


@functools.cache
def stored():
    """All of data/bands.json: {name: what was run, its settings, the points and the curves of each run}."""
    return read_json(FILE, "take the repository's own")


def entry(name):
    """The stored runs called `name`, such as "03" or "07 panels". Raises KeyError with the names that there are."""
    if name not in stored():
        raise KeyError(f"there is no band called {name!r}; there are {', '.join(stored())}")
    return stored()[name]


def band(name, curve):
    """The band of one curve, in the curve's unit: points, low and high, three lists of floats of one length."""
    found = entry(name)
    one, rows = found["curves"][curve], []
    for x, values in zip(found["at"], zip(*one["runs"])):
        values = [value for value in values if value is not None]
        if values:
            rows.append((x, min(values), max(values)))
    at, lows, highs = map(list, zip(*rows))
    spreads = [high - low for low, high in zip(lows, highs)]
    wider = [max(one["margin"], *spreads[max(0, place - 2) : place + 3]) for place in range(len(at))]
    wider[0] = one.get("start", wider[0])
    below = [max(low - more, one["floor"] * low if "floor" in one else -math.inf) for low, more in zip(lows, wider)]
    return at, below, [high + more for high, more in zip(highs, wider)]


def possible(curve, value):
    """A border of a band, moved to what the curve can be: a margin knows nothing of that."""
    _, least, most = CURVES[curve]
    return min(max(value, least), most)


def between(x, points):
    """The band at x, (low, high), from `points` as `band` gives them; None where x lies outside of them."""
    rows = list(zip(*points))
    for (left, *start), (right, *end) in pairwise([*rows, rows[-1]]):
        if left <= x <= right:
            share = (x - left) / (right - left) if right > left else 0.0
            return tuple(a + share * (b - a) for a, b in zip(start, end))
    return None


def number(value):
    """A figure of a record as a float; NaN for what is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def readable(records, *names):
    """Those of the records that have a finite number for each of these names, by the first of them."""
    rows = [one for one in records if isinstance(one, dict)] if isinstance(records, (list, tuple)) else []
    return sorted(
        (one for one in rows if all(math.isfinite(number(one.get(name))) for name in names)), key=lambda one: one[names[0]]
    )


def said(value):
    """A number for a sentence: three decimals, or three digits where it is large."""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def other_size(name, settings):
    """Why a run with these settings is not compared: a sentence, or ""."""
    mine = {"preset": course.preset(), "models": course.choices()["models"]} | settings
    wanted = entry(name)["settings"]
    apart = [key for key in wanted if mine.get(key, wanted[key]) != wanted[key]]
    theirs, own = (", ".join(f"{key} {found[key]}" for key in apart) for found in (wanted, mine))
    return f"Not compared: the band is of runs with {theirs}, and this one has {own}." if apart else ""


def compare(name, records, **settings):
    """Say where the curves of a run leave the bands of the stored ones.

    Args:
        name: which runs, such as "03", "07 panels" or "11 policy": see `stored`.
        records: what the run logged, a list of dicts.
        settings: of the run, where they may differ from the stored ones', such as its settings.json; the preset and whose models
            it starts from are taken from `course` unless given.

    Returns:
        A list of str, a sentence for each curve that leaves its band or cannot be read, and for a run that ends early; one
        sentence where all is within, or nothing can be compared.

    Raises:
        KeyError: there is no band of this name.
    """
    found, reason = entry(name), other_size(name, settings)
    if reason:
        return [reason]
    axis, told, left = found["x"], [], {}
    rows = readable(records, axis)
    if not rows:
        return [f"Nothing to compare: no record says its {axis}."]
    if rows[-1][axis] < found["at"][-1]:
        cause = f"; likely: {SHORT}" if "kl" in found["curves"] else ""
        told.append(f"The run ends at {axis} {rows[-1][axis]:g}, the stored ones at {found['at'][-1]:g}{cause}.")
    for curve in found["curves"]:
        points = [(one[axis], number(one[curve])) for one in rows if one.get(curve) is not None]
        told += one_curve(curve, points, band(name, curve), axis, left)
    return told or [f"Within the bands of {found['from']}: {', '.join(found['curves'])}."]


def tell(name, records, **settings):
    """Print what `compare` says, in lines of at most 100 characters."""
    for sentence in compare(name, records, **settings):
        print(textwrap.fill(sentence, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def one_curve(curve, points, bounds, axis, left):
    """What is to be said of one curve, a list of one sentence or none; `left`, {curve: side}, of those before it, is added to."""
    broken = [x for x, y in points if not math.isfinite(y)]
    compared = [(x, y, *between(x, bounds)) for x, y in points if between(x, bounds)]
    if not points:
        return [f"{curve} is missing: no record has it."]
    if broken:
        return [f"{curve} is no finite number at {axis} {broken[0]:g}; likely: {LIKELY['rate-high']}; or {LIKELY['log']}."]
    if not compared:
        return [f"{curve} has no point from {axis} {bounds[0][0]:g} to {bounds[0][-1]:g}, where the stored runs have theirs."]
    where, side = first_outside(curve, compared)
    if not side:
        return []
    left[curve], (x, y, low, high) = side, compared[where]
    early = x <= bounds[0][0] + (bounds[0][-1] - bounds[0][0]) / 4
    cause = likely(curve, ways(curve, compared, where, early, left), side)
    low, high = (said(possible(curve, border)) for border in (low, high))
    return [f"{curve} lies {side} its band at {axis} {x:g}: {said(y)}, where {low} to {high} is expected{cause}."]


def first_outside(curve, compared):
    """The place of the point at which a curve leaves its band, and the side; None and "" when it does not.

    Where it leaves on both sides, the one that is merely better than the stored runs is passed over.
    """
    sides, left = [SIDES[y > high] if not low <= y <= high else "" for _, y, low, high in compared], {}
    for place, side in enumerate(sides):
        if side and (place in (0, len(sides) - 1) or sides[place + 1] == side):
            left.setdefault(side, place)
    if len(left) == 2:
        left = {side: place for side, place in left.items() if LEAVING.get((curve, "", side)) != "better"}
    return next(((place, side) for side, place in left.items()), (None, ""))


def ways(curve, compared, where, early, left):
    """How a curve left its band at a place, `early` or not: the names of LEAVING that fit, the most telling first."""
    ys, middles = [y for _, y, _, _ in compared], [(low + high) / 2 for _, _, low, high in compared]
    flat = len(ys) > 1 and max(ys) - min(ys) < 0.1 * (max(middles) - min(middles))
    trained_on = TRAINED_ON.get(curve)
    apart = trained_on and left.get(trained_on) != ("below" if curve == "gold" else "above")
    return [name for name, fits in (("flat", flat), ("first", where == 0), ("apart", apart), ("early", early)) if fits] + [""]


def likely(curve, how, side):
    """The likely causes as the end of a sentence; "" where none is known."""
    keys = [(curve, one, which) for one in how for which in (side, "")]
    names = next((LEAVING[key] for key in keys if key in LEAVING), "")
    return f"; likely: {'; or '.join(LIKELY[name] for name in names.split())}" if names else ""


def figure(name, records, **settings):
    """The curves of a run, records as in `compare`, in front of their bands; without bands where it would not be compared."""
    found, columns = entry(name), 2 if len(entry(name)["curves"]) in (1, 2, 4) else 3
    curves, reason = found["curves"], other_size(name, settings)
    fig, axes = plots.figure(min(columns, len(curves)), rows=math.ceil(len(curves) / columns), height=2.3, width=3.6)
    for ax, (curve, one) in zip(axes, curves.items()):
        if not reason:
            at, *borders = band(name, curve)
            low, high = ([possible(curve, value) for value in border] for border in borders)
            label = "stored runs, widened" if len(one["runs"]) > 1 else "one stored run, with a margin"
            plots.band(ax, at, low, high, label)
        rows = readable(records, found["x"], curve)
        plots.curve(ax, rows, curve, "this run", x=found["x"], marker="o" if len(rows) < 50 else "")
        ax.set(title=CURVES[curve][0], xlabel=AXES.get(name, found["x"]), ylabel=one["unit"])
        ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 4, 5, 10], integer=True))  # three steps: four ticks at most
        ax.xaxis.set_major_formatter("{x:,.0f}")
    for ax in axes[len(curves) :]:
        ax.axis("off")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return fig
