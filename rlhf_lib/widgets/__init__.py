"""Widgets for the chapters, on core ipywidgets of version 7 (Colab) or 8, and the plain parts that do without them.

    labelling       label passages                       plain: Labelling, label_by_typing
    blind_rating    rate samples without their source    plain: BlindRating, rate_by_typing
    sampler         models side by side                  plain: sample, tinted
    explorer        a run's checkpoints                  plain: policy_checkpoints, checkpoint_samples, checkpoint_curves
    chat            talk with an assistant               plain: Conversation, python -m rlhf_lib chat
    arena           two assistants' answers, blind       plain: Arena, tally
    judge_run       a run's answers, both orders, blind  plain: Judging
    LiveCurves      curves of a loop while it runs       plain: its records and .figure()

What a person does is on disk after every press. All text is escaped before it is shown as HTML, and every colour is a tint
or a border that shows on a light page and on a dark one.
"""

from rlhf_lib.widgets.arena import Arena, arena, tally
from rlhf_lib.widgets.chat import Conversation, Turn, chat
from rlhf_lib.widgets.explorer import checkpoint_curves, checkpoint_samples, explorer, policy_checkpoints
from rlhf_lib.widgets.judging import Judging, judge_run
from rlhf_lib.widgets.labelling import Labelling, label_by_typing, labelling
from rlhf_lib.widgets.live import LiveCurves
from rlhf_lib.widgets.rating import (
    BlindRating,
    blind_rating,
    correlation_line,
    rate_by_typing,
    read_ratings,
    result_rows,
    write_ratings,
)
from rlhf_lib.widgets.sampler import Sample, pieces, sample, sampler, tinted

__all__ = [
    "Arena", "BlindRating", "Conversation", "Judging", "Labelling", "LiveCurves", "Sample", "Turn", "arena", "blind_rating",
    "chat", "checkpoint_curves", "checkpoint_samples", "correlation_line", "explorer", "judge_run", "label_by_typing",
    "labelling", "pieces", "policy_checkpoints", "rate_by_typing", "read_ratings", "result_rows", "sample", "sampler", "tally",
    "tinted", "write_ratings",
]  # fmt: skip
