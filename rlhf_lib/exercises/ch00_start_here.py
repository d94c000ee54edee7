"""Chapter 00: one small exercise, to see how the course works."""

import torch

from rlhf_lib.exercises.declare import Exercise


def draw_scores(generator):
    """Scores in steps of a tenth, so that some stand exactly at the limit."""
    yield {"scores": torch.tensor([0.5, 0.0, 0.25, -0.5]), "limit": 0.25}
    for count in (1, 5, 12, 40):
        steps = torch.randint(-8, 9, (count,), generator=generator)
        yield {"scores": steps / 8, "limit": steps[torch.randint(count, (1,), generator=generator)].item() / 8}
    yield {"scores": torch.tensor([0.5, 0.75]), "limit": -1.0}
    yield {"scores": torch.tensor([-0.5, -0.25, 0.0]), "limit": 0.125}
    yield {"scores": torch.tensor([0.5001, 0.5, 0.4999]), "limit": 0.5}  # barely above, and barely not


def share_by_counting(scores, limit):
    above = 0
    for score in scores.tolist():
        above += score > limit
    return above / len(scores)


def share_formula(scores, limit, *, at_least=False, below=False, percent=False, count=False, spread=False, of_zero=False):
    limit = 0.0 if of_zero else limit
    above = scores >= limit if at_least else scores < limit if below else scores > limit
    if spread:
        return (scores * above).mean().item()
    return above.sum().item() if count else above.double().mean().item() * (100 if percent else 1)


Exercise(
    "0.1", "share_positive",
    draw=draw_scores,
    right=share_by_counting,
    formula=share_formula,
    mistakes={
        "a score that stands exactly at the limit is counted: use > where you have >=": {"at_least": True},
        "this is the share below the limit: the comparison is turned round": {"below": True},
        "these are percent: a share lies between 0 and 1": {"percent": True},
        "this is the number of scores above the limit: divide by how many scores there are": {"count": True},
        "the scores above the limit are added up: count them instead, each as 1": {"spread": True},
        "the limit is not used: the scores are compared with 0": {"of_zero": True},
        "the whole list is compared at once, by its mean: compare each score": lambda scores, limit: float(scores.mean() > limit),
    },
)  # fmt: skip
