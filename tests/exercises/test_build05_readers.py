"""Build it 5.10: right builds written in two ways, and builds that go wrong as people's do."""

import functools
import math
import time

import nbformat
import pytest
import torch
from mutants import SOLUTIONS, source
from torch.nn import functional as F

from rlhf_lib.exercises import build05_readers, verdict
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.build05_crowds import reader
from rlhf_lib.exercises.build05_readers import weigh_readers


@functools.cache
def worked():
    space = {"torch": torch, "F": F, "math": math}
    exec(source("weigh_readers"), space)
    return space["weigh_readers"]


def in_loops(votes):
    """Dicts, loops and the majority to begin with; single precision."""
    rows = [[(who, vote) for who, vote in enumerate(row) if vote >= 0] for row in votes.tolist()]
    p = []
    for row in rows:
        given = [vote for _, vote in row]
        best = [label for label in range(3) if given.count(label) == max(map(given.count, range(3)))]
        p.append([(label in best) / len(best) for label in range(3)])
    for _ in range(300):
        shares = [sum(chances[label] for chances in p) / len(p) + 1e-12 for label in range(3)]
        tables = [[[1e-3] * 3 for _ in range(3)] for _ in range(votes.shape[1])]
        for row, chances in zip(rows, p):
            for who, vote in row:
                for label in range(3):
                    tables[who][label][vote] += chances[label]
        tables = [[[one / sum(line) for one in line] for line in table] for table in tables]
        new = []
        for row in rows:
            logs = [math.log(shares[k]) + sum(math.log(tables[who][k][vote]) for who, vote in row) for k in range(3)]
            chances = [math.exp(one - max(logs)) for one in logs]
            new.append([one / sum(chances) for one in chances])
        moved = max(abs(a - b) for old, fresh in zip(p, new) for a, b in zip(old, fresh))
        p = new
        if moved < 1e-4:
            break
    return torch.tensor(p), torch.tensor(tables)


ALTERNATIVES = {"weigh_readers": in_loops}


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("build", [lambda votes: worked()(votes), in_loops], ids=["worked", "in loops"])
def test_right_builds_pass(build, seed):
    found = verdict("weigh_readers", build, seed)
    assert found.passed, found.message


# ----------------------------------------------------------------------------------------- wrong builds


def em(votes, *, seen=lambda votes: votes >= 0, smooth=0.01, rounds=500, prior=True, logs=True, best=False, even=False,
    chance=False, use=lambda tables, joint: tables, shared=lambda p, said: p.mean(0).log(), rest=lambda moved: moved.max() < 1e-7,
    least=0.0, few=0.0, noise=0.0, all_of_them=False,
):  # fmt: skip
    """The worked answer with things that can go wrong."""
    said = F.one_hot(votes % 3, 3).double() * seen(votes)[:, :, None]  # (N, R, 3); -1 % 3 is 2, as an index -1 is the last
    p = said.sum(1) / said.sum((1, 2))[:, None] + (noise * torch.rand(len(votes), 3) if noise else 0.0)
    whole = (votes >= 0).all(1) if all_of_them and (votes >= 0).all(1).sum() >= 30 else (votes > -2).all(1)
    for _ in range(rounds):
        counted = F.one_hot(p.argmax(1), 3).double() if best else p
        counts = torch.einsum("ni,nrj->rij", counted * whole[:, None], said) + smooth
        counts = torch.where(counts.sum(2, keepdim=True) < few, 1.0, counts)
        tables = counts / counts.sum(2, keepdim=True)
        if even:
            right = (tables.diagonal(dim1=1, dim2=2) * counted.mean(0)).sum(1)
            tables = torch.stack([torch.tensor(reader(float(one))) for one in right]).double()
        if chance:
            floor = torch.eye(3).double() / 3
            tables = torch.where(floor > tables, floor, tables)
            tables = tables / tables.sum(2, keepdim=True)
        shares = counted.mean(0) if prior else torch.full((3,), 1 / 3, dtype=torch.double)
        if logs:
            logs_of = shared(counted, said) if prior else shares.log()
            new = (logs_of + torch.einsum("nrj,rij->ni", said, use(tables, counts).log())).softmax(1)
        else:
            factors = torch.einsum("nrj,rij->nri", said, tables)
            chances = shares * factors.where(seen(votes)[:, :, None], 1.0).prod(1) + least
            new = chances / chances.sum(1, keepdim=True)
        moved, p = (new - p).abs(), new
        if rest(moved):
            break
    return p, tables


def by_majority(votes):
    """The share of the votes, and tables counted once."""
    said = F.one_hot(votes + 1, 4)[:, :, 1:].double()
    p = said.sum(1) / said.sum((1, 2))[:, None]
    counts = torch.einsum("ni,nrj->rij", p, said) + 0.01
    return p, counts / counts.sum(2, keepdim=True)


def by_one_weight(votes):
    """One weight for each reader, how often he is with the majority; no tables."""
    said = F.one_hot(votes + 1, 4)[:, :, 1:].double()
    weights = torch.ones(votes.shape[1]).double()
    for _ in range(50):
        p = (said * weights[None, :, None]).sum(1)
        p = p / p.sum(1, keepdim=True)
        weights = (p[:, None] * said).sum((0, 2)) / said.sum((0, 2)).clamp(min=1)
    return p, torch.stack([torch.tensor(reader(float(one))) for one in weights]).double()


def by_the_first(votes):
    """The first reader's vote is taken for the truth to begin with."""
    p = F.one_hot(votes[:, 0].clamp(min=0), 3).double()
    return p, by_majority(votes)[1]


def hard(votes):
    p, tables = em(votes, best=True)
    return F.one_hot(p.argmax(1), 3).double(), tables


def geometric_mean(votes):
    """Of the readers' probabilities, where their product belongs."""
    p, tables = em(votes)
    p = p ** (1 / votes.shape[1])
    return p / p.sum(1, keepdim=True), tables


def constant(votes):
    return torch.full((len(votes), 3), 1 / 3), torch.eye(3).expand(votes.shape[1], 3, 3)


def of_the_vote(votes):
    """The tables are the chances of the label given the vote: normalised the wrong way round."""
    p, tables = em(votes)
    joint = tables * p.mean(0)[None, :, None]
    return p, joint / joint.sum(1, keepdim=True)


def mixed(votes):
    return em(votes)[0], by_majority(votes)[1]


def transposed(votes):
    p, tables = em(votes)
    columns = tables.transpose(1, 2)
    return p, columns / columns.sum(2, keepdim=True)


def with_gaps_in_bayes(votes):
    """-1 is left out of the counts, and in Bayes' rule it is the last label."""
    p, tables = em(votes)
    said = F.one_hot(votes % 3, 3).double()
    for _ in range(200):
        p = (p.mean(0).log() + torch.einsum("nrj,rij->ni", said, tables.log())).softmax(1)
        tables = torch.einsum("ni,nrj->rij", p, said * (votes >= 0)[:, :, None]) + 1e-6
        tables = tables / tables.sum(2, keepdim=True)
    return p, tables


def in_products(votes):
    """Python's floats, multiplied: their sum becomes 0 with many readers."""
    p, tables = worked()(votes)
    rows = []
    for row in votes.tolist():
        chances = p.mean(0).tolist()
        for who, vote in enumerate(row):
            if vote >= 0:
                chances = [chance * float(tables[who, label, vote]) for label, chance in enumerate(chances)]
        rows.append([chance / sum(chances) for chance in chances])
    return torch.tensor(rows), tables


WRONG = {
    "an empty row of counts": ("probabilities", lambda votes: em(votes, smooth=0.0), "NaN"),
    "conditioned on the vote": ("probabilities", of_the_vote, "no probability over what a reader says"),
    "only p": ("probabilities", lambda votes: em(votes)[0], "a pair of tensors"),
    "one table for each passage": ("probabilities", lambda votes: (by_majority(votes)[0],) * 2, "has the shape"),
    "a constant": ("those who agree are believed", constant, "nothing can ever move"),
    "columns turned round": ("those who agree are believed", lambda votes: em(2 - votes), "columns stand for"),
    "-1 as an index": ("what was not read does not count", lambda votes: em(votes, seen=lambda v: v > -2), "-1 is no vote"),
    "-1 as neutral": ("what was not read does not count", lambda votes: em(torch.where(votes < 0, 1, votes)), "-1 is no vote"),
    "the first reader is trusted": ("the order plays no part", by_the_first, "another order"),
    "divided by the sums of columns": ("what was not read does not count", lambda votes: em(
        votes, use=lambda tables, counts: counts / counts.sum(1, keepdim=True)), "each row is divided by its own sum"),
    "joint chances": ("what was not read does not count", lambda votes: em(
        votes, use=lambda tables, counts: counts / counts.sum((1, 2), keepdim=True)), "each row is divided by its own sum"),
    "-1 as an index in Bayes' rule alone": ("what was not read does not count", with_gaps_in_bayes, "-1 is no vote"),
    "the table transposed in Bayes' rule": ("many readers", lambda votes: em(
        votes, use=lambda tables, counts: tables.transpose(1, 2)), "from tables[r, i, j]"),
    "a product that is kept above 0": ("many readers", lambda votes: em(votes, logs=False, least=1e-30), "add logarithms"),
    "a product of Python's floats": ("many readers", in_products, "their sum does, too"),
    "a product of probabilities": ("many readers", lambda votes: em(votes, logs=False), "add logarithms"),
    "a majority vote": ("the careless weigh less", by_majority, "careless readers weigh too much"),
    "the best guess for certain": ("as sure as it is right", hard, "for certain"),
    "a geometric mean": ("as sure as it is right", geometric_mean, "too little of the votes"),
    "one share for each reader": ("readers lean", lambda votes: em(votes, even=True), "one share of right votes"),
    "transposed tables": ("readers lean", transposed, "transposed"),
    "counts of the majority": ("readers lean", lambda votes: em(votes, rounds=1), "belong together"),
    "nobody is worse than chance": ("mixed up buttons", lambda votes: em(votes, chance=True), "mixed up two buttons"),
    "all labels as frequent": ("rare labels", lambda votes: em(votes, prior=False), "how frequent"),
    "five rounds": ("nothing changes any more", lambda votes: em(votes, rounds=5), "go on until"),
    "one more of each vote": ("those who agree are believed", lambda votes: em(votes, smooth=1.0), "about 1 is added"),
    "a tenth more of each vote": ("those who agree are believed", lambda votes: em(votes, smooth=0.1), "about 0.1 is added"),
    "an end at 1e-3": ("nothing changes any more", lambda votes: em(votes, rest=lambda moved: moved.max() < 1e-3), "go on until"),
    "an end by the mean": ("nothing changes any more", lambda votes: em(
        votes, rest=lambda moved: moved.mean() < 1e-4), "the mean"),
    "little is taken for nothing": (
        "nothing changes any more", lambda votes: em(votes, smooth=1e-6, few=5), "a row of few votes is counted too"),
    "what all have read": (
        "what was not read does not count", lambda votes: em(votes, all_of_them=True), "each vote that there is"),
    "a start with noise": ("the order plays no part", lambda votes: em(votes, noise=0.3), "drawn at random"),
    "shares of the votes": ("nothing changes any more", lambda votes: em(
        votes, shared=lambda p, said: (said.sum((0, 1)) / said.sum() + 1e-12).log()), "among the votes"),
    "shares of the first p": ("nothing changes any more", lambda votes: em(
        votes, shared=lambda p, said: ((said.sum(1) / said.sum((1, 2))[:, None]).mean(0) + 1e-12).log()), "among the votes"),
    "shares without a logarithm": ("nothing changes any more", lambda votes: em(
        votes, shared=lambda p, said: p.mean(0)), "added to logarithms"),
    "tables of the majority": ("readers lean", mixed, "belong together"),
}  # fmt: skip


@pytest.mark.parametrize("probe, build, says", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("seed", [0, 7])
def test_wrong_builds_fail_first_at_their_probe(probe, build, says, seed):
    failed, said = try_out(weigh_readers, build, seed)
    assert failed == probe and says in said, (failed, said)


@pytest.mark.parametrize("at_once", [True, False], ids=["in one product", "reader by reader"])
def test_a_loop_that_never_ends_since_p_is_nan_is_told_why(monkeypatch, at_once):
    def endless(votes):
        while True:
            p, tables = em(votes, logs=False, rounds=50)
            moved = (p - p.roll(1, 0)).abs().max() if at_once else float(p[0, 0])
            if moved == moved:
                return p, tables

    monkeypatch.setattr(build05_readers, "PROMPT", 1.0)
    failed, said = try_out(weigh_readers, endless)
    assert failed == "many readers" and "0 / 0 is NaN" in said, (failed, said)


def test_who_is_slow_with_many_readers_is_not_told_of_nan(monkeypatch):
    def slow(votes):
        time.sleep(0.3 if votes.shape[1] > 1000 else 0)
        return worked()(votes)

    monkeypatch.setattr(build05_readers, "PROMPT", 0.2)
    found = verdict("weigh_readers", slow)
    assert found.passed, found.message


@pytest.mark.parametrize("seed", [0, 7])
def test_one_weight_for_each_reader_is_not_enough(seed):
    """Linear weights trust the careless too much, and nobody enough: which is seen first hangs on the draw."""
    failed, said = try_out(weigh_readers, by_one_weight, seed)
    words = {"the careless weigh less": "weigh too much", "as sure as it is right": "too little of the votes"}
    assert words[failed] in said


def test_a_stub_and_an_error_are_said():
    def stub(votes):
        raise NotImplementedError()

    assert "not written yet" in verdict("weigh_readers", stub).message
    assert "IndexError" in verdict("weigh_readers", lambda votes: votes[10**6]).message


def test_the_notebook_has_the_build_with_its_card():
    (path,) = SOLUTIONS.glob("05_*.ipynb")
    cells = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    assert "### Build it 5.10 · " in cells["card-weigh_readers"].source
    for probe in weigh_readers.probes:
        assert probe in cells["card-weigh_readers"].source
