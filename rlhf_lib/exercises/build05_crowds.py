"""Votes of readers with known tables, the form of an answer, and what Bayes' rule and counting make of votes: for 5.10."""

import torch

LABELS = ("negative", "neutral", "positive")
EVEN = (1 / 3, 1 / 3, 1 / 3)
SWAPPED = [[0.05, 0.05, 0.9], [0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]  # has mixed up two buttons


def reader(right):
    """The table of a reader who is right on this share of the passages of every label, and else says either of the others."""
    return [[right if i == j else (1 - right) / 2 for j in range(3)] for i in range(3)]


def crowd(generator, count, tables, shares=EVEN, unread=0.0):
    """Votes (N, R) of readers with these tables, -1 where not read; each passage has one at least. And the true labels (N,)."""
    tables = torch.tensor(tables)  # (R, 3, 3)
    truth = torch.multinomial(torch.tensor(shares), count, True, generator=generator)
    votes = torch.multinomial(tables[:, truth].flatten(0, 1), 1, generator=generator).view(len(tables), count).T.contiguous()
    away = torch.rand(votes.shape, generator=generator) < unread
    away[torch.arange(count), torch.randint(len(tables), (count,), generator=generator)] = False
    return {"votes": votes.masked_fill(away, -1), "truth": truth}


# ----------------------------------------------------------------------------------------- what is looked at


def read(output, votes):
    """(p (N, 3), tables (R, 3, 3), "") in double precision; or (None, None, what is wrong with the form of the output)."""
    if not (isinstance(output, (list, tuple)) and len(output) == 2 and all(torch.is_tensor(one) for one in output)):
        return None, None, "return a pair of tensors, (p, tables)"
    N, R = votes.shape
    for name, one, shape in (("p", output[0], (N, 3)), ("tables", output[1], (R, 3, 3))):
        if tuple(one.shape) != shape:
            return None, None, f"{name} has the shape {tuple(one.shape)}; with {N} passages and {R} readers it is {shape}"
        if not one.isfinite().all():
            why = "counts that are all 0 were divided by their sum, or the logarithm of 0 was taken"
            return None, None, f"there is a NaN or an infinity in {name}: {why}"
        if (one < -1e-6).any() or (one.double().sum(-1) - 1).abs().max() > 1e-3:
            over = "the three labels" if name == "p" else "what a reader says of passages of one label (a row)"
            return None, None, f"{name} is no probability over {over}: it must be 0 or more, and sum to 1"
    return output[0].double(), output[1].double(), ""


def with_form(judge):
    """A judge of (p, tables) that has first looked at their form."""

    def judged(output, votes, **rest):
        p, tables, fault = read(output, votes)
        return fault or judge(p, tables, votes, **rest)

    return judged


def by_bayes(votes, tables, shares):
    """p (N, 3) for one who knows tables and shares: Bayes' rule, vote by vote."""
    rows = []
    for row in votes.tolist():
        chances = [float(shares[label]) for label in range(3)]
        for who, vote in enumerate(row):
            if vote >= 0:
                chances = [chance * max(float(tables[who][label][vote]), 1e-9) for label, chance in enumerate(chances)]
                chances = [chance / sum(chances) for chance in chances]
        rows.append(chances)
    return torch.tensor(rows, dtype=torch.double)


def counted(votes, p):
    """How often each reader said what of each label (R, 3, 3), a passage counting for each label with its probability."""
    counts = torch.zeros(votes.shape[1], 3, 3, dtype=torch.double)
    for chances, row in zip(p.tolist(), votes.tolist()):
        for who, vote in enumerate(row):
            if vote >= 0:
                counts[who, :, vote] += torch.tensor(chances, dtype=torch.double)
    return counts


def by_counting(votes, p, more=1e-9):
    """The tables (R, 3, 3) that p implies, with `more` added to each count."""
    counts = counted(votes, p) + more
    return counts / counts.sum(2, keepdim=True)


def uncounted(tables, votes, p):
    """How many votes an entry of the tables is away from what p counts: the most."""
    counts = counted(votes, p)
    return (tables * counts.sum(2, keepdim=True) - counts).abs().max().item()


def whole_rows_alone(tables, votes, p):
    """Whether the tables are counted from those passages alone that every reader has read."""
    whole = (votes >= 0).all(1)
    return far(by_counting(votes[whole], p[whole]), tables) < 0.005 < far(by_counting(votes, p), tables)


def minus_one_counts(p, tables, votes):
    """Whether the tables, or p, are those of votes in which one of the labels stands for -1."""
    filled = [votes.where(votes >= 0, label) for label in range(3)]
    if any(far(by_counting(some, p), tables) < 0.01 for some in filled):
        return True
    shares = p.mean(0)
    return far(by_bayes(votes, tables, shares), p) > 0.01 > min(far(by_bayes(some, tables, shares), p) for some in filled)


def share_right(p, truth):
    return (p.argmax(1) == truth).double().mean().item()


def majority(votes):
    return torch.nn.functional.one_hot(votes + 1, 4)[:, :, 1:].sum(1).double()  # (N, 3): counts


def far(one, other):
    return (one - torch.as_tensor(other, dtype=torch.double)).abs().mean().item()
