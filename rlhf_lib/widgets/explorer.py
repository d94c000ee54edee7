"""A slider over the checkpoints of a run: its curves, and what the policy wrote then."""

from pathlib import Path

import ipywidgets as widgets

from rlhf_lib import checkpoints, judge, plots, runs
from rlhf_lib.corpus import SEPARATOR
from rlhf_lib.widgets.parts import bundle, columns, framed, guarded, picture, png, table
from rlhf_lib.widgets.sampler import TINTS, full_tint, sample, tinted


def policy_checkpoints(run):
    """The policy's checkpoints in a run's folder, in order.

    Returns:
        A list of dicts: `iteration`, `folder`, and the stats of that iteration in `metrics.jsonl` (where it has none, those
        in the checkpoint's metadata), such as `kl`, `reward` and `gold`.

    Raises:
        ValueError: there is none, or (CheckpointError) one is damaged.
    """
    policy = Path(run) / "policy"
    logged = {record["step"]: record for record in runs.Metrics(run).read("policy")}
    found = {}
    for folder in [policy, *policy.glob("iteration-*")]:
        if (folder / "model.safetensors").exists():
            metadata = checkpoints.read_metadata(folder)
            iteration = metadata["iteration"]
            found[iteration] = {**logged.get(iteration, metadata), "iteration": iteration, "folder": folder}
    if not found:
        raise ValueError(f"no checkpoint in {policy}: train a policy first, for example with python -m rlhf_lib run --out {run}")
    return [found[iteration] for iteration in sorted(found)]


def checkpoint_samples(checkpoint, count=4, max_new_tokens=48, seed=0, reward_model=None):
    """`count` Samples of a blank line from one of `policy_checkpoints(run)`, at temperature 1, drawn with `seed`."""
    model, tokenizer = checkpoints.load(checkpoint["folder"])
    room = min(max_new_tokens, model.config.context - len(tokenizer.encode(SEPARATOR)))
    return sample(model, tokenizer, max_new_tokens=room, count=count, seed=seed, reward_model=reward_model)


EXPLORED = (
    ("kl", "KL to the base", "nats per completion", plots.BLUE),
    ("reward_normalised", "Proxy: reward model", "deviations of the base", plots.GREEN),
    ("gold", "Gold judge", "score, -1 to 1", plots.ORANGE),
)


def checkpoint_curves(records, iteration=None):
    """KL, proxy reward and gold score over the iterations, with a line at one of them."""
    fig, axes = plots.figure(3, height=2.3, width=3.1)
    for ax, (name, title, unit, color) in zip(axes, EXPLORED):
        plots.curve(ax, records, name, color=color, x="iteration", marker="o")
        ax.set(title=title, xlabel="iteration", ylabel=unit)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if iteration is not None:
            ax.axvline(iteration, color=plots.GREY, linestyle="--", linewidth=1.2)
    return fig


def explorer(run, count=4, max_new_tokens=48):
    """A slider over the checkpoints of a run: KL, proxy and gold reward, and what the policy wrote then.

    Args:
        run: the run's folder. Its `reward` model, where there is one, tints the samples.
        count, max_new_tokens: samples of each checkpoint, and the most tokens in each.

    Returns:
        A widget. `slider` chooses the iteration, `values` shows the stats, `output` the samples.
    """
    found = policy_checkpoints(run)
    by_iteration = {checkpoint["iteration"]: checkpoint for checkpoint in found}
    logged = [{**record, "iteration": record["step"]} for record in runs.Metrics(run).read("policy")] or found
    folder = Path(run) / "reward"
    reward_model = None
    if (folder / "model.safetensors").exists():
        checkpoints.same_tokenizer(found[0]["folder"], folder)
        reward_model = checkpoints.load(folder, kind="reward")[0]
    gold, drawn = judge.GoldJudge(), {}
    options = [(str(iteration), iteration) for iteration in by_iteration]
    slider = widgets.SelectionSlider(
        options=options, description="iteration", continuous_update=False, layout=widgets.Layout(width="30em")
    )
    curves, values, output, note = picture(), widgets.HTML(), widgets.HTML(), widgets.HTML()

    def look():
        checkpoint = by_iteration[slider.value]
        if slider.value not in drawn:
            drawn[slider.value] = checkpoint_samples(checkpoint, count, max_new_tokens, reward_model=reward_model)
        many, texts = drawn[slider.value], [one.text for one in drawn[slider.value]]
        rows = [(title, f"{checkpoint[name]:.4f}", unit) for name, title, unit, _ in EXPLORED if name in checkpoint]
        values.value = table(("at this checkpoint", "value", "unit"), rows)
        curves.value = png(checkpoint_curves(logged, slider.value))
        full, cards = full_tint(many), []
        for one, score in zip(many, gold.score(texts).tolist()):
            odds = "" if one.changes is None else f"proxy log-odds {one.log_odds:+.2f}, "
            cards.append(framed(tinted(one, full), f"{odds}gold {score:+.2f}"))
        output.value = ("" if reward_model is None else f"<div>{TINTS}</div>") + columns(cards)

    slider.observe(guarded(look, lambda: None, note), names="value")
    look()
    return bundle((slider, curves, values, note, output), slider=slider, curves=curves, values=values, output=output, note=note)
