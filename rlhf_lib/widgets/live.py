"""Curves of a loop, drawn while it runs."""

import contextlib
import threading
import time

from rlhf_lib import plots, runs
from rlhf_lib.widgets.parts import picture, png

PANELS = {
    "loss": ("Loss", "nats per token"),
    "train_loss": ("Training loss", "nats per token"),
    "val_loss": ("Validation loss", "nats per token"),
    "perplexity": ("Perplexity", "equally likely tokens"),
    "val_perplexity": ("Validation perplexity", "equally likely tokens"),
    "val_bits_per_char": ("Validation", "bits per character"),
    "reward": ("Reward", "standard deviations of the base"),
    "reward_normalised": ("Reward without the price of blank lines", "standard deviations of the base"),
    "gold": ("Gold judge", "score, -1 to 1"),
    "kl": ("KL to the base", "nats per completion"),
    "approx_kl": ("KL of one update", "nats per token"),
    "clip_fraction": ("Clip fraction", "share of tokens"),
    "entropy": ("Entropy", "nats per token"),
    "explained_variance": ("Explained variance", "share"),
}
CURVE_COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK, plots.GREY)


class LiveCurves:
    """Curves of a loop, drawn while it runs into one picture that is replaced as a whole, so that nothing flickers.

        with LiveCurves(["loss", "kl"]) as live:
            for step in range(steps):
                live.log(step, loss=..., kl=...)
        live.figure()  # a still figure, for the saved notebook

    For the loops of this library, which write to a run's folder:

        with LiveCurves(["kl", "reward"]).follow(folder, "policy"):
            ppo.train(...)

    Args:
        names: the stats to draw, a panel each; a tuple of names shares a panel.
        every: the least seconds between two drawings (one takes about a fifth of a second).
        x: what the horizontal axis says.
    """

    def __init__(self, names, every=2.0, x="step"):
        if isinstance(names, str) or not names:
            raise ValueError('names must be a list of what to draw, such as ["loss", "kl"]')
        self.panels = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in names]
        self.every, self.x, self.records = every, x, []
        self.image, self.drawn = picture(), None

    def show(self):
        """Put the picture under the running cell; nothing happens outside a notebook."""
        from IPython import display, get_ipython

        if get_ipython() is not None:
            display.display(self.image)
        self.draw()

    def log(self, step, **stats):
        """Take in the stats of one step; those that were not asked for are not drawn."""
        self.records.append({"step": step, **stats})
        if self.drawn is None:
            self.show()
        elif time.monotonic() - self.drawn >= self.every:
            self.draw()

    def draw(self):
        """Draw the picture again from all records."""
        self.image.value = png(self.figure())
        self.drawn = time.monotonic()

    def figure(self):
        """The curves so far, as a still figure."""
        wide = min(3, len(self.panels))
        fig, axes = plots.figure(wide, rows=-(-len(self.panels) // wide), height=2.4, width=3.4)
        for ax, names in zip(axes, self.panels):
            for name, color in zip(names, CURVE_COLORS):
                records = [record for record in self.records if record.get(name) is not None]
                plots.curve(ax, records, name, name.replace("_", " ") if len(names) > 1 else None, color)
            title, unit = PANELS.get(names[0], (names[0].replace("_", " "), ""))
            ax.set(title=title if len(names) == 1 else "", xlabel=self.x, ylabel=unit)
            plots.legend(ax)
        for ax in axes[len(self.panels) :]:
            ax.set_visible(False)
        return fig

    def __enter__(self):
        self.show()
        return self

    def __exit__(self, *error):
        self.draw()

    @contextlib.contextmanager
    def follow(self, folder, stage):
        """While the block runs, draw what it writes to `folder/metrics.jsonl` as `stage`."""
        metrics, over = runs.Metrics(folder), threading.Event()

        def take():
            before, self.records = len(self.records), metrics.read(stage)
            if len(self.records) != before:
                self.draw()

        def watch():
            while not over.wait(self.every):
                take()

        thread = threading.Thread(target=watch, daemon=True)
        with self:
            thread.start()
            try:
                yield self
            finally:
                over.set()
                thread.join()
                take()
