"""What people said who read pairs of answers without knowing which model wrote them."""

from rlhf_lib.pairwise import Record


def records(comparisons, ours, theirs):
    """What readers said of two models' answers, both orders of a pair of answers in one Record.

    Args:
        comparisons: Comparison objects (comparisons.py) that say which model wrote what; those of other models are left out.
        ours, theirs: names of two models.

    Returns:
        A list of Record, in the order in which the pairs come first.

    Raises:
        ValueError: two readers saw the same pair in the same order.
    """
    found = {}
    for one in comparisons:
        if {one.first_from, one.second_from} != {ours, theirs}:
            continue
        turned = one.first_from == theirs
        sides = (one.second, one.first) if turned else (one.first, one.second)
        order = "ours_second" if turned else "ours_first"
        pair = (str(one.prompt), *sides, one.round)
        before = found.get(pair, Record(one.prompt, *sides, None, None))
        if getattr(before, order) is not None:
            raise ValueError(f"two readers saw {pair[1]!r:.60} and {pair[2]!r:.60} in the same order: keep one of them")
        found[pair] = before._replace(**{order: one.verdict})
    return list(found.values())
