"""Settings as nested dataclasses, flat dicts of dotted names, and what a docstring says of each."""

import math
from dataclasses import asdict, fields, replace

SEEDS = 2**63  # torch's generators take no larger ones


def flat(settings):
    """Settings as a dict of dotted names to values: {"seed": 1, "pretrain.steps": 50}."""
    rows = {}
    for name, value in asdict(settings).items():
        rows |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return rows


def check_numbers(settings):
    """Refuse settings with a number that is not finite, or a seed that no generator takes; the message names the setting."""
    for name, value in flat(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
    if settings.seed < 0:
        raise ValueError(f"seed must not be negative, got {settings.seed}")
    if settings.seed >= SEEDS:
        raise ValueError(f"seed must be below 2^63, got {settings.seed}")


def changed(settings, changes):
    """`settings` with `changes`, a dict of dotted names to values; what is checked is the outcome."""
    parts = {}
    for name, value in changes.items():
        part, _, inner = name.rpartition(".")
        parts.setdefault(part, {})[inner] = value
    own = parts.pop("", {})
    return replace(settings, **own, **{part: replace(getattr(settings, part), **values) for part, values in parts.items()})


def explain(settings, name):
    """What the docstring of the settings' class says of the field `name`, in one line; "" where it says nothing."""
    part, _, inner = name.rpartition(".")
    owner = getattr(settings, part) if part else settings
    text, found = "", False
    for line in type(owner).__doc__.splitlines():
        names, colon, rest = line.strip().partition(": ")
        if colon and set(names.split(", ")) <= {field.name for field in fields(owner)}:
            if found:
                break
            found = inner in names.split(", ")
            text = rest if found else text
        elif found and line.strip():
            text += " " + line.strip()
    return text.rstrip(".,")
