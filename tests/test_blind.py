import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.blind import records
from rlhf_lib.comparisons import Comparison
from rlhf_lib.pairwise import Record, summary


def said(first, second, verdict, prompt="q", round=0):
    """A comparison; the letter that an answer begins with is its model."""
    sources = dict(first_from=first[0], second_from=second[0])
    return Comparison(prompt, first, second, verdict, "r", {"prompt": prompt}, round=round, **sources)


def test_both_orders_of_a_pair_are_one_record_with_ours_by_name():
    found = [said("x1", "y1", "first"), said("x2", "y2", "tie", "r"), said("y1", "x1", "first"), said("x1", "z1", "second")]
    assert records(found, "x", "y") == [Record("q", "x1", "y1", "first", "first"), Record("r", "x2", "y2", "tie", None)]
    assert records(found, "y", "x") == [Record("q", "y1", "x1", "first", "first"), Record("r", "y2", "x2", None, "tie")]
    assert records(found, "z", "x") == [Record("q", "z1", "x1", None, "second")]
    assert records(found, "z", "y") == []


def test_the_same_answers_of_another_run_are_another_record():
    found = [said("x1", "y1", "first"), said("x1", "y1", "second", round=1), said("y1", "x1", "tie", round=1)]
    assert [record[3:] for record in records(found, "x", "y")] == [("first", None), ("second", "tie")]


def test_one_order_that_two_readers_saw_is_refused():
    with pytest.raises(ValueError, match=r"two readers saw 'x1' and 'y1' in the same order: keep one of them"):
        records([said("x1", "y1", "first"), said("x1", "y1", "tie")], "x", "y")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["first", "second", "tie"])), min_size=1, max_size=12))
def test_each_verdict_counts_for_its_side(drawn):
    found = [
        said(*(("x", "y") if straight else ("y", "x")), verdict, prompt=f"{place}")
        for place, (straight, verdict) in enumerate(drawn)
    ]
    points = {("first", True): 1, ("second", False): 1, ("tie", True): 0.5, ("tie", False): 0.5}
    rate = summary(records(found, "x", "y"))["win_rate"].rate
    assert rate == pytest.approx(sum(points.get((verdict, straight), 0) for straight, verdict in drawn) / len(drawn))
