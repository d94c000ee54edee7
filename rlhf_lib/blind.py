"""Pairs of answers that people read without knowing which model wrote them: the rows to read, the verdicts that come back."""

import random
from collections import Counter

from rlhf_lib.files import json_rows, shown
from rlhf_lib.pairwise import FOR_FIRST, Record


def blind_pairs(prompts, answers_by_model, pairs, seed, both_orders=False):
    """Rows to read without knowing which model wrote what.

    Half of each two models' pairs show the one first, half the other (with an odd number, one more the one). Both orders of
    a pair stand far apart: the whole sheet is read once, then once more turned round, shuffled anew.

    Args:
        prompts: (N,) texts.
        answers_by_model: {model: (N,) texts}.
        pairs: [(ours, theirs), ...], names of models.
        seed: of the shuffle.
        both_orders: whether each pair is read in both orders.

    Returns:
        rows, a list of {"id", "prompt", "first", "second"}, and key, {id: {"number", "ours", "theirs", "ours_first"}} with the
        prompt's number, to be kept apart from the rows.

    Raises:
        ValueError: a model is unknown, or has not one answer a prompt; a pair of models is there twice.
    """
    for model in {model for pair in pairs for model in pair}:
        if len(answers_by_model.get(model, ())) != len(prompts):
            count = len(answers_by_model.get(model, ()))
            raise ValueError(f"{model!r} has {count} answers to {len(prompts)} prompts: each model needs one a prompt")
    if len({frozenset(pair) for pair in pairs}) < len(pairs) or any(ours == theirs for ours, theirs in pairs):
        raise ValueError("the same two models are paired twice, or one with itself: name each pair of models once")
    draw = random.Random(seed)
    questions = []
    for ours, theirs in pairs:
        numbers = draw.sample(range(len(prompts)), len(prompts))
        for place, number in enumerate(numbers):
            questions.append({"number": number, "ours": ours, "theirs": theirs, "ours_first": place % 2 == 0})
    draw.shuffle(questions)
    if both_orders:
        turned = [{**question, "ours_first": not question["ours_first"]} for question in questions]
        questions += draw.sample(turned, len(turned))
    rows, key = [], {}
    for place, question in enumerate(questions, 1):
        sides = [answers_by_model[question[side]][question["number"]] for side in ("ours", "theirs")]
        first, second = sides if question["ours_first"] else reversed(sides)
        row = {"id": f"{place:04d}", "prompt": prompts[question["number"]], "first": first, "second": second}
        rows.append(row)
        key[row["id"]] = question
    return rows, key


def resolve(rows, key, verdicts):
    """Join what one reader said of `rows` with who wrote them.

    Args:
        rows, key: as `blind_pairs` returns them.
        verdicts: dicts with `id` and `verdict`, one a row, as `read_votes` returns them.

    Returns:
        {(ours, theirs): a list of Record in the order of the prompts}.

    Raises:
        ValueError: an id is missing, doubled or unknown, a verdict is none, or was given on other texts than the row's.
    """
    given = Counter(vote["id"] for vote in verdicts)
    ids = [row["id"] for row in rows]
    wrong = {
        "in the rows and not in the key": [each for each in ids if each not in key],
        "in the verdicts and not in the rows": sorted(given.keys() - set(ids)),
        "in the verdicts more than once": [each for each in given if given[each] > 1],
        "in the rows and not in the verdicts": [each for each in ids if each not in given],
    }
    for where, which in wrong.items():
        if which:
            raise ValueError(f"{len(which)} ids are {where} ({', '.join(map(str, which[:5]))}): each row needs one verdict")
    said = {vote["id"]: vote for vote in verdicts}
    found = {}  # (ours, theirs, number of the prompt): Record
    for row in rows:
        vote, entry = said[row["id"]], key[row["id"]]
        if vote["verdict"] not in FOR_FIRST:
            raise ValueError(f"row {row['id']}: the verdict must be first, second or tie, got {vote['verdict']!r}")
        if any(vote.get(field, row[field]) != row[field] for field in ("prompt", "first", "second")):
            raise ValueError(f"row {row['id']}: its verdict was given on other texts; use the rows that were read")
        sides = (row["first"], row["second"]) if entry["ours_first"] else (row["second"], row["first"])
        pair = (entry["ours"], entry["theirs"], entry["number"])
        before = found.get(pair, Record(row["prompt"], *sides, None, None))
        found[pair] = before._replace(**{"ours_first" if entry["ours_first"] else "ours_second": vote["verdict"]})
    result = {}
    for ours, theirs, number in sorted(found, key=lambda pair: pair[2]):
        result.setdefault((ours, theirs), []).append(found[ours, theirs, number])
    return result


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


def read_votes(path):
    """Verdicts that people left in a JSON-lines file, one reading a line:

        {"id": "0001", "prompt": "…", "first": "…", "second": "…", "verdict": "tie", "reader": "r1", "reason": "both stray"}

    `prompt` and `reason` may be left out.

    Returns:
        A list of dicts, in the file's order.

    Raises:
        ValueError: there is no such file, or a line is not such a vote or is there twice; the message names file and line.
    """
    votes, seen = [], {}
    for number, vote in json_rows(path, ValueError):
        here = f"{path}, line {number}"
        needed = ("id", "first", "second", "verdict", "reader")
        if missing := [field for field in needed if field not in vote]:
            raise ValueError(f"{here}: a vote has {missing[0]!r}, this line has not; correct the line or delete it")
        texts = [vote[field] for field in (*needed, "prompt", "reason") if field in vote]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{here}: every field must be a text; correct the line or delete it")
        if vote["verdict"] not in FOR_FIRST:
            raise ValueError(f"{here}: the verdict must be first, second or tie, got {shown(vote['verdict'])}")
        key = (vote["id"], vote["reader"])
        if key in seen:
            raise ValueError(f"{here}: the same id and reader as line {seen[key]}; delete one of the two")
        seen[key] = number
        votes.append(vote)
    return votes


def votes_judge(votes):
    """The judge that says what one reader said of these texts in this order.

    Args:
        votes: as `read_votes` returns them, with `prompt`.

    Raises:
        ValueError: two votes contradict each other; or, when asked, nobody read that pair in that order.
    """
    said = {}
    for vote in votes:
        if "prompt" not in vote:
            raise ValueError(f"vote {vote['id']} has no prompt: join the votes to their rows with resolve instead")
        question = (vote["prompt"], vote["first"], vote["second"])
        if said.setdefault(question, vote["verdict"]) != vote["verdict"]:
            raise ValueError(f"vote {vote['id']} contradicts another on the same texts: give one reader's votes at a time")

    def judge(prompts, first, second):
        questions = list(zip(prompts, first, second))
        for question in questions:
            if question not in said:
                raise ValueError(f"nobody read this pair in this order, so it has no verdict: {question!r:.300}")
        return [said[question] for question in questions]

    return judge
