"""Chapter 05: correct answers written differently, and what is special about its checks."""

import math
import random
import re
import statistics
import zlib

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from cells import Scene
from mutants import SOLUTIONS

from rlhf_lib import course, exercises, labels
from rlhf_lib.exercises import verdict
from rlhf_lib.exercises.ch05_labels import LABELS

PLACES = {label: place for place, label in enumerate(LABELS)}


def soft_targets(labels):
    return torch.tensor([0.5 + 0.5 * (label == "positive") - 0.5 * (label == "negative") for label in labels])


def split_labels(texts, held_out):
    halves = ([], [])
    for text in texts:
        halves[zlib.crc32(text.encode()) / 2**32 < held_out].append(text)
    return halves


def majority_vote(votes):
    best = [statistics.multimode(one) for one in votes]
    return [labels[0] if len(labels) == 1 else "neutral" for labels in best]


def confusion(first, second):
    table = torch.zeros(3, 3)
    for a, b in zip(first, second):
        table[PLACES[a], PLACES[b]] += 1
    return table


def confusion_by_bincount(first, second):
    places = torch.tensor([3 * PLACES[a] + PLACES[b] for a, b in zip(first, second)])
    return places.bincount(minlength=9).view(3, 3)


def cohen_kappa(first, second):
    """From the confusion matrix, as one minus the share of disagreement over what is expected of it."""
    table = confusion(first, second).double()
    expected = torch.outer(table.sum(1), table.sum(0)) / table.sum()
    away = ~torch.eye(3, dtype=torch.bool)
    return 1 - table[away].sum() / expected[away].sum() if expected[away].sum() else torch.tensor(1.0)


def wilson(right, total, z):
    """The roots of (1 + z2/n) p2 - (2 s + z2/n) p + s2 = 0."""
    s, w = right / total, z * z / total
    root = math.sqrt((2 * s + w) ** 2 - 4 * (1 + w) * s * s)
    return (2 * s + w - root) / (2 * (1 + w)), (2 * s + w + root) / (2 * (1 + w))


def bootstrap_interval(values, draws):
    means = torch.gather(values.expand(len(draws), -1), 1, draws).mean(1)
    return torch.quantile(means, 0.025), torch.quantile(means, 0.975)


def pick_uncertain(p_positive, labelled, count):
    """By entropy, which is highest at one half."""
    entropy = torch.distributions.Bernoulli(p_positive.double()).entropy()
    return entropy.masked_fill(labelled, -1).topk(count).indices


ALTERNATIVES = {
    "soft_targets": soft_targets,
    "split_labels": split_labels,
    "majority_vote": majority_vote,
    "confusion": confusion,
    "cohen_kappa": cohen_kappa,
    "wilson_interval": wilson,
    "bootstrap_interval": bootstrap_interval,
    "pick_uncertain": pick_uncertain,
}


def split_as_the_library(texts, held_out):
    some = [labels.Label(text, "neutral", "me", (text, "x")) for text in texts]
    return [[label.text for label in half] for half in labels.split(some, held_out)]


def kappa_as_the_library(first, second):
    readings = [[labels.Label("x", label, "me", (n,)) for n, label in enumerate(some)] for some in (first, second)]
    return labels.agreement(*readings)["kappa"]


MORE = [
    ("split_labels", split_as_the_library),
    ("cohen_kappa", kappa_as_the_library),
    ("confusion", confusion_by_bincount),
]


@pytest.mark.parametrize("name, function", [*ALTERNATIVES.items(), *MORE])
@pytest.mark.parametrize("seed", range(3))
def test_every_correct_answer_passes(name, function, seed):
    found = verdict(name, function, seed)
    assert found.passed, found.message


def test_the_unseeded_shuffle_that_was_published_has_its_name():
    def shuffled(texts, held_out):
        texts = list(texts)
        random.shuffle(texts)
        size = round(held_out * len(texts))
        return texts[size:], texts[:size]

    assert "an unseeded shuffle" in verdict("split_labels", shuffled).mistake


def test_pythons_own_hash_is_caught_without_a_second_process():
    def salted(texts, held_out):
        return [t for t in texts if hash(t) % 1000 >= 1000 * held_out], [t for t in texts if hash(t) % 1000 < 1000 * held_out]

    found = verdict("split_labels", salted)
    assert "differs from process to process" in found.mistake
    assert found.got == {"wrong with the halves": "another process has others"}


def test_a_tie_shows_the_smallest_vote_that_fails():
    found = verdict("majority_vote", lambda votes: [statistics.mode(one) for one in votes])
    assert "voted for first" in found.mistake
    assert found.arguments == {"votes": [["positive", "negative"]]}


def test_two_readers_of_one_mind_are_not_a_division_by_zero():
    inputs = [{"first": ["neutral"] * 2, "second": ["neutral"] * 2}]
    assert exercises.judge("cohen_kappa", inputs, [torch.tensor(1.0)]).passed
    assert not exercises.judge("cohen_kappa", inputs, [torch.tensor(math.nan)]).passed


def test_a_fault_of_the_halves_has_its_name_whatever_the_share():
    def by_tenths(texts, held_out):  # 4 of 10 for 0.35, and 6 of 10 for 0.65
        kept = {text for text in texts if zlib.crc32(text.encode()) % 10 < round(10 * held_out)}
        return [text for text in texts if text not in kept], [text for text in texts if text in kept]

    def every_third(texts, held_out):
        kept = {*sorted({*texts})[:: round(1 / held_out)]}
        return [text for text in texts if text not in kept], [text for text in texts if text in kept]

    assert "is not `held_out`" in verdict("split_labels", by_tenths).mistake
    assert "depends on the other texts" in verdict("split_labels", every_third).mistake


def test_a_list_that_shrinks_while_it_is_read_is_told_from_other_places_that_decide():
    def removed(texts, held_out):
        learn, test = list(texts), []
        for text in learn:
            if zlib.crc32(text.encode()) / 2**32 < held_out:
                learn.remove(text)
                test.append(text)
        return learn, test

    def by_turns(texts, held_out):
        return texts[::2], texts[1::2]

    assert "the text behind each held-out one is skipped" in verdict("split_labels", removed).mistake
    assert "is skipped" not in verdict("split_labels", by_turns).message


def test_bytes_that_are_read_as_signed_are_not_called_swapped_halves():
    def signed(texts, held_out):
        halves = ([], [])
        for text in texts:
            number = int.from_bytes(zlib.crc32(text.encode()).to_bytes(4, "big"), "big", signed=True)
            halves[number / 2**31 < held_out].append(text)
        return halves

    assert "half of the numbers are negative" in verdict("split_labels", signed).mistake
    assert "swapped" in verdict("split_labels", lambda texts, held_out: split_labels(texts, held_out)[::-1]).mistake


def kappa_of_counts(table, chance):
    return (table.trace() / table.sum() - chance(table)) / (1 - chance(table))


NAMED = [
    ("majority_vote", "votes of earlier passages", lambda votes: [
        majority_vote([sum(votes[:place], one)])[0] for place, one in enumerate(votes)]),
    ("confusion", "one row three times", lambda first, second: confusion(first, second).sum(0).repeat(3, 1)),
    ("soft_targets", "come as a list", lambda labels: soft_targets(labels).tolist()),
    ("soft_targets", "which labels are in the list", lambda labels: torch.tensor([
        sorted({*labels}).index(one) / 2 for one in labels])),
    ("majority_vote", "a tie with neutral", lambda votes: [
        max(set(some) - {"neutral"}, key=one.count) if "neutral" in some and len(some) == 2 else majority_vote([one])[0]
        for one in votes for some in [statistics.multimode(one)]]),
    ("confusion", "8 bits", lambda first, second: confusion(first, second).to(torch.int8)),
    ("cohen_kappa", "near 1", lambda first, second: 1.0 if (first + second).count("neutral") > 1.98 * len(first)
     else cohen_kappa(first, second)),
    ("cohen_kappa", "two slips", lambda first, second: kappa_of_counts(
        confusion(first, second), lambda t: (t.sum(0) * t.sum(1)).sum() / t.sum())),
    ("cohen_kappa", "the diagonal", lambda first, second: kappa_of_counts(
        confusion(first, second), lambda t: (t.diag() ** 2).sum() / t.sum() ** 2)),
    ("cohen_kappa", "below 0", lambda first, second: max(0.0, float(cohen_kappa(first, second)))),
    ("pick_uncertain", "labelled[places]", lambda p_positive, labelled, count: (
        p_positive - 0.5).abs().argsort()[~labelled][:count]),
    ("pick_uncertain", "NaN", lambda p_positive, labelled, count: sum(
        -p * p.log() for p in (p_positive, 1 - p_positive)).masked_fill(labelled, -1).argsort(descending=True)[:count]),
    ("pick_uncertain", "come as a list", lambda **given: pick_uncertain(**given).tolist()),
]  # fmt: skip


@pytest.mark.parametrize("name, says, function", NAMED)
def test_frequent_mistakes_have_their_names(name, says, function):
    assert says in verdict(name, function).mistake


def test_places_among_the_unlabelled_are_told_from_places_among_all():
    def unmapped(p_positive, labelled, count):
        return (p_positive[~labelled] - 0.5).abs().argsort()[:count]

    found = verdict("pick_uncertain", unmapped)
    assert "translate them back" in found.mistake
    assert found.arguments["labelled"].tolist() == [True, False, False, False]


def test_whole_numbers_are_no_targets_also_where_no_label_is_neutral():
    found = verdict(
        "soft_targets",
        lambda labels: torch.tensor([PLACES[label] / 2 if label == "neutral" else PLACES[label] // 2 for label in labels]),
    )
    assert "write 0.0 and 1.0" in found.mistake


@pytest.mark.parametrize(
    "part, says",
    [
        (lambda text: text.split("\n")[0], "hash the whole text"),
        (lambda text: text.encode("ascii"), "UnicodeEncodeError"),
        (lambda text: hash(text.encode()), "differs from process to process"),
    ],
)
def test_what_is_hashed_of_a_text(part, says):
    def learner(texts, held_out):
        halves = ([], [])
        for text in texts:
            halves[zlib.crc32(str(part(text)).encode()) / 2**32 < held_out].append(text)
        return halves

    assert says in verdict("split_labels", learner).message


@pytest.mark.parametrize("written_in", [0.1, 0.15, 0.2, 0.25, 0.5])
def test_a_share_that_is_written_in_is_found(written_in):
    assert "plays no part" in verdict("split_labels", lambda texts, held_out: split_labels(texts, written_in)).mistake


# ----------------------------------------------------------------------------------------- the labelling session


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """`notebook(name, ...)` runs cells of the worked chapter, in a learner's folder that is empty, and returns their globals."""
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    monkeypatch.setattr(course, "HOME", tmp_path)
    monkeypatch.chdir(tmp_path)
    (path,) = SOLUTIONS.glob("05_*.ipynb")
    sources = {cell.id: re.sub("^%.*", "", cell.source, flags=re.MULTILINE) for cell in nbformat.read(path, as_version=4).cells}
    scene = Scene()
    for name in ("imports", "counts", "second-reading"):
        scene(sources[name])
    yield lambda *names: [scene(sources[name]) for name in names][-1]
    plt.close("all")


def test_a_session_is_stopped_gone_on_with_and_compared_with_two_judges(notebook, capsys, tmp_path):
    scene = notebook("make-passages", "labelling-session", "my-agreement", "your-labels")
    assert "No label of yours yet" in capsys.readouterr().out and "once you have had a sitting" in scene["shown"]
    first = list(scene["passages"])
    assert scene["number"] == 1 and len(set(first)) == 100 and min(map(len, first)) >= 30
    assert not {*first} & {label.text for label in scene["from_samples"]}

    def sit(count, start=0):
        session = scene["widgets"].Labelling(scene["passages"], scene["mine"], scene["reader"], scene["writer"], again=10)
        for place in range(start, start + count):
            session.label(LABELS[(7 * place) % 3])

    sit(40)
    notebook("make-passages")
    assert scene["number"] == 1 and scene["passages"] == first  # it goes on where it was stopped
    sit(70, start=40)
    notebook("make-passages", "my-agreement", "your-labels")
    assert scene["number"] == 2 and not {*scene["passages"]} & {*first}
    said = capsys.readouterr().out
    assert "100 passages: " in said and "10 read twice, the same label on " in said
    assert re.search(r"yourself, again +\d+ of   10 right", said) and re.search(r"reward model +\d+ of +6\d right", said)
    assert len(scene["shown"].axes) == 2 and (tmp_path / "my_labels.jsonl").exists()
