"""The votes that 5.10 is tried on."""

import torch

from rlhf_lib.exercises.build05_crowds import by_counting, crowd, reader, uncounted, whole_rows_alone
from rlhf_lib.exercises.build05_readers import RARE


def test_a_crowd_is_what_its_tables_say_and_every_passage_was_read():
    given = crowd(torch.Generator().manual_seed(0), 4000, [reader(0.9), reader(0.5)], shares=RARE, unread=0.7)
    votes, truth = given["votes"], given["truth"]
    assert (votes >= 0).any(1).all() and 0.3 < (votes < 0).double().mean() < 0.4
    for who, right in enumerate((0.9, 0.5)):
        seen = votes[:, who] >= 0
        assert abs((votes[seen, who] == truth[seen]).double().mean() - right) < 0.03
    assert abs((truth == 1).double().mean() - RARE[1]) < 0.02


def test_votes_that_the_tables_do_not_count_are_seen():
    votes, p = torch.tensor([[0, -1], [1, 0], [1, 0]]), torch.eye(3)[[0, 0, 1]].double()
    tables = by_counting(votes, p)
    assert uncounted(tables, votes, p) < 1e-6 and not whole_rows_alone(tables, votes, p)
    tables[0, 0] = torch.tensor([0.8, 0.2, 0.0])
    assert abs(uncounted(tables, votes, p) - 0.6) < 1e-6
    assert whole_rows_alone(by_counting(votes[1:], p[1:]), votes, p)
