"""Build it 5.10: right builds written in two ways, and builds that go wrong as people's do."""

import functools
import math

import nbformat
import pytest
import torch
from mutants import SOLUTIONS, source
from torch.nn import functional as F

from rlhf_lib.exercises import verdict
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.build05_readers import RARE, crowd, reader, weigh_readers


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
    chance=False,
):  # fmt: skip
    """The worked answer with things that can go wrong."""
    said = F.one_hot(votes % 3, 3).double() * seen(votes)[:, :, None]  # (N, R, 3); -1 % 3 is 2, as an index -1 is the last
    p = said.sum(1) / said.sum((1, 2))[:, None]
    for _ in range(rounds):
        counted = F.one_hot(p.argmax(1), 3).double() if best else p
        counts = torch.einsum("ni,nrj->rij", counted, said) + smooth
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
            new = (shares.log() + torch.einsum("nrj,rij->ni", said, tables.log())).softmax(1)
        else:
            factors = torch.einsum("nrj,rij->nri", said, tables)
            chances = shares * factors.where(seen(votes)[:, :, None], 1.0).prod(1)
            new = chances / chances.sum(1, keepdim=True)
        moved, p = (new - p).abs().max(), new
        if moved < 1e-7:
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
    "one more of each vote": ("nothing changes any more", lambda votes: em(votes, smooth=1.0), "next to nothing to the counts"),
    "tables of the majority": ("readers lean", mixed, "belong together"),
}  # fmt: skip


@pytest.mark.parametrize("probe, build, says", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("seed", [0, 7])
def test_wrong_builds_fail_first_at_their_probe(probe, build, says, seed):
    failed, said = try_out(weigh_readers, build, seed)
    assert failed == probe and says in said, (failed, said)


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


def test_a_crowd_is_what_its_tables_say_and_every_passage_was_read():
    given = crowd(torch.Generator().manual_seed(0), 4000, [reader(0.9), reader(0.5)], shares=RARE, unread=0.7)
    votes, truth = given["votes"], given["truth"]
    assert (votes >= 0).any(1).all() and 0.3 < (votes < 0).double().mean() < 0.4
    for who, right in enumerate((0.9, 0.5)):
        seen = votes[:, who] >= 0
        assert abs((votes[seen, who] == truth[seen]).double().mean() - right) < 0.03
    assert abs((truth == 1).double().mean() - RARE[1]) < 0.02


def test_the_notebook_has_the_build_with_its_card():
    (path,) = SOLUTIONS.glob("05_*.ipynb")
    cells = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    assert "### Build it 5.10 · " in cells["card-weigh_readers"].source
    for probe in weigh_readers.probes:
        assert probe in cells["card-weigh_readers"].source
