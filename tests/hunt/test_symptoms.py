"""The table of symptoms: whole, of known causes, and with numbers that are right."""

import math

import pytest
import torch

from rlhf_lib import ppo
from rlhf_lib.hunt import CAUSES, SYMPTOMS, causes, table
from tests.hunt.repairs import REPAIRS


def test_every_symptom_points_to_known_causes_and_every_case_is_reached():
    reached = {cause for one in SYMPTOMS for cause in one.causes}
    assert reached <= CAUSES.keys()
    assert {cause for some in REPAIRS.values() for cause in some} | {"nothing"} <= reached
    assert sorted(CAUSES.keys() - reached) == []
    assert len({one.seen for one in SYMPTOMS}) == len(SYMPTOMS)


@pytest.mark.parametrize("words", [
    "reward is flat", "KL is negative", "KL explodes at once", "clip fraction is 0", "samples are the same", "value loss grows",
    "near ln 2", "worse text", "better than anybody", "accuracy with it",
])  # fmt: skip
def test_the_symptoms_that_people_come_with_are_there(words):
    assert sum(words in one.seen for one in SYMPTOMS) == 1


def test_the_tables_are_tables():
    for text, columns, rows in ((table(), 4, len(SYMPTOMS)), (causes(), 2, len(CAUSES))):
        lines = text.splitlines()
        assert len(lines) == 2 + rows and all(line.count("|") == columns + 1 for line in lines)


def test_the_numbers_of_the_table_are_right():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.3, 0.3])
    assert (p * (p / q).log()).sum().item() == pytest.approx(0.20078, abs=1e-5)
    assert math.exp(0.1) - 1 - 0.1 == pytest.approx(0.005, abs=2e-4) and -math.exp(0.1) == pytest.approx(-1.1, abs=6e-3)
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.1, 0.2, 0.3, 1000.0]])
    mask = torch.tensor([[True, True, True, False]])
    found = ppo.gae(rewards, values, 1.0, 0.95, mask)[0][0, :3]
    torch.testing.assert_close(found, torch.tensor([0.82675, 0.765, 0.7]), atol=1e-5, rtol=0)
