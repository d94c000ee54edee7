"""Sample several models side by side, their tokens tinted by what a reward model makes of them."""

from typing import NamedTuple

import ipywidgets as widgets
import torch

from rlhf_lib.corpus import SEPARATOR
from rlhf_lib.devices import generator
from rlhf_lib.models.layers import evaluating
from rlhf_lib.sampling import generate
from rlhf_lib.widgets.parts import DOWN, UP, bundle, button, columns, escape, framed, guarded, tint, wrap


class Sample(NamedTuple):
    """A completion: `pieces`, its text cut at tokens; `changes`, by how much each raises the log-odds of positive, in nats
    (the first from even odds), None without a reward model."""

    pieces: list
    changes: list | None

    @property
    def text(self):
        """The whole completion."""
        return "".join(self.pieces)

    @property
    def log_odds(self):
        """Of positive, in nats: the sum of all changes."""
        return sum(self.changes)


@torch.no_grad()
def log_odds_changes(reward_model, tokens):
    """By how much each of `tokens` (T,) raises the reward model's log-odds of positive: (T,), whose sum is the whole's."""
    with evaluating(reward_model):
        odds = reward_model(torch.as_tensor(tokens)[None].to(next(reward_model.parameters()).device))[0].float().cpu()
    return odds.diff(prepend=torch.zeros(1))


def pieces(tokenizer, tokens, changes=None):
    """A Sample of `tokens`; tokens that only together are a character (bytes of it) become one piece."""
    texts, sums, group, change = [], [], [], 0.0
    for place, token in enumerate(tokens):
        group.append(token)
        change += 0.0 if changes is None else float(changes[place])
        text = tokenizer.decode(group)
        if "\ufffd" not in text or place + 1 == len(tokens):
            texts.append(text)
            sums.append(change)
            group, change = [], 0.0
    return Sample(texts, None if changes is None else sums)


def sample(model, tokenizer, prompt="", max_new_tokens=48, count=1, seed=0, reward_model=None, **cut):
    """`count` completions of `prompt` (a blank line when it is empty), as a list of Sample.

    Args:
        max_new_tokens: the most tokens in each.
        seed: models that are given the same one draw with the same random numbers.
        reward_model: scores the completions, without their prompt.
        cut: temperature, top_k and top_p, as for `sampling.generate`, which says what is wrong with them.
    """
    start = tokenizer.encode(prompt or SEPARATOR)
    uniforms = generator(seed, "sampler")
    drawn = generate(model, [start] * count, max_new_tokens, generator=uniforms, end_token=tokenizer.end_token, **cut)
    rows = [row[mask].tolist() for row, mask in zip(drawn.tokens.cpu(), drawn.mask.cpu())]
    if reward_model is None:
        return [pieces(tokenizer, row) for row in rows]
    return [pieces(tokenizer, row, log_odds_changes(reward_model, row)) for row in rows]


def full_tint(samples):
    """The change of log-odds that gets the deepest tint: the 90th percentile, so that one token does not drown the rest."""
    sizes = torch.tensor([abs(change) for one in samples for change in one.changes or ()])
    return sizes.quantile(0.9).item() if len(sizes) else 0.0


def tinted(one, full=None):
    """A Sample as HTML: tokens that raise the log-odds of positive on blue, those that lower them on orange.

    Args:
        full: the change, in nats, with the deepest tint; `full_tint` of this sample when None.
    """
    if one.changes is None:
        return escape(one.text)
    full = full or full_tint([one]) or 1.0
    spans = []
    for piece, change in zip(one.pieces, one.changes):
        color = tint(UP if change > 0 else DOWN, 0.6 * min(1.0, abs(change) / full))
        spans.append(f'<span style="background: {color}" title="{change:+.2f} nats">{escape(piece)}</span>')
    return "".join(spans)


def sample_cards(drawn, prompt=""):
    """HTML cards of {model's name: list of Sample}, side by side, in one scale of tints."""
    full = full_tint([one for many in drawn.values() for one in many])
    start = f'<span style="opacity: 0.6">{escape(prompt)}</span>'
    stacks = []
    for name, many in drawn.items():
        titles = [name if one.changes is None else f"{name}, log-odds of positive {one.log_odds:+.2f}" for one in many]
        stacks.append("".join(framed(start + tinted(one, full), title) for one, title in zip(many, titles)))
    return columns(stacks)


TINTS = (
    f'<span style="background: {tint(UP, 0.6)}">&nbsp;raises&nbsp;</span> or '
    f'<span style="background: {tint(DOWN, 0.6)}">&nbsp;lowers&nbsp;</span> the odds that the reward model calls it positive'
)


def sampler(models, tokenizer, reward_model=None, count=2):
    """Sample several models side by side with the same random numbers; every change of a setting samples again.

    Args:
        models: {name: GPT}, such as {"base": base, "tuned": policy}.
        reward_model: tints the tokens by how they change its log-odds of positive.
        count: completions of each.

    Returns:
        A widget. `settings` has its inputs by name, `again` is the button for the next seed, `output` the HTML.
    """
    if not isinstance(models, dict) or not models:
        raise ValueError('models must be {name: model}, such as {"base": base, "tuned": policy}')
    context = min(model.config.context for model in models.values())
    wide, style = widgets.Layout(width="25em"), {"description_width": "7em"}
    look = {"layout": wide, "style": style, "continuous_update": False}
    settings = {
        "prompt": widgets.Textarea(description="prompt", placeholder="empty: a blank line, where a speech begins", **look),
        "temperature": widgets.FloatSlider(description="temperature", value=1, min=0.1, max=2, step=0.05, **look),
        "top_k": widgets.IntSlider(description="top-k (0: all)", value=0, min=0, max=200, **look),
        "top_p": widgets.FloatSlider(description="top-p (1: all)", value=1, min=0.05, max=1, step=0.05, **look),
        "max_new_tokens": widgets.IntSlider(description="tokens", value=min(48, context // 2), min=1, max=context - 1, **look),
        "seed": widgets.BoundedIntText(description="seed", value=0, min=0, max=10**9, layout=wide, style=style),
    }
    again, output, note = button("another seed", UP, "10em"), widgets.HTML(), widgets.HTML()

    def draw():
        given = {name: setting.value for name, setting in settings.items()}
        drawn = {
            name: sample(model, tokenizer, count=count, reward_model=reward_model, **given) for name, model in models.items()
        }
        legend = "" if reward_model is None else f"<div>{TINTS}</div>"
        output.value = legend + sample_cards(drawn, given["prompt"])

    draw_safely = guarded(draw, lambda: None, note)
    for setting in settings.values():
        setting.observe(draw_safely, names="value")
    again.on_click(lambda _: setattr(settings["seed"], "value", settings["seed"].value + 1))
    draw_safely()
    left = widgets.VBox([settings["prompt"], settings["max_new_tokens"], settings["seed"]])
    right = widgets.VBox([settings["temperature"], settings["top_k"], settings["top_p"]])
    rows = (widgets.HBox([left, right, again], layout=wrap()), note, output)
    return bundle(rows, settings=settings, again=again, output=output, note=note)
