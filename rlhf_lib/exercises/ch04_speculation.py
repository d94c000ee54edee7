"""Chapter 04: speculative sampling, where a draft proposes several tokens and the target decides on them in one pass."""

from fractions import Fraction
from functools import partial
from itertools import accumulate

import torch

from rlhf_lib.exercises.ch04_sampling import with_type
from rlhf_lib.exercises.declare import Exercise

BELOW_1 = 1 - 2**-24  # the largest number below 1 in float32


PLANS = (  # (K, V, how many are accepted)
    (1, 3, 0), (1, 5, 1), (2, 7, 1), (3, 5, 2), (3, 4, 3), (4, 6, 0), (4, 9, 1), (5, 3, 3), (6, 8, 2), (8, 5, 5), (5, 6, 1),
    (7, 4, 0), (6, 5, 6), (7, 11, 3), (70, 4, 67), (2, 260, 1),
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 4.11
def given(drafted, draft, target, uniforms):
    """Arguments from lists."""
    draft = torch.tensor(draft) if draft else torch.zeros(0, len(target[0]))
    return {
        "drafted": torch.tensor(drafted, dtype=torch.long), "draft_probs": draft, "target_probs": torch.tensor(target),
        "uniforms": torch.tensor(uniforms),
    }  # fmt: skip


def draw_rounds(generator):
    draft = [[0.5, 0.2, 0.2, 0.1], [0.3, 0.6, 0.1, 0.0]]
    target = [[0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.2, 0.3], [0.4, 0.1, 0.3, 0.2]]
    yield given([0, 1], draft, target, [0.45, 0.55, 0.15])  # the card's
    yield given([0, 1], draft, target, [0.45, 0.25, 0.75])
    yield given([0], [[0.8, 0.1, 0.1]], [[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]], [0.9, 0.65])
    yield given([0], [[0.6, 0.1, 0.1, 0.1, 0.1]], [[0.1, 0.3, 0.12, 0.28, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]], [0.5, 0.45])
    yield given([0, 1, 2], [[0.6, 0.2, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]],
                [[0.3, 0.4, 0.3], [0.3, 0.4, 0.3], [0.4, 0.4, 0.2], [0.2, 0.2, 0.6]], [0.3, 0.6, 0.7, 0.3])  # fmt: skip
    yield given([], [], [[0.3, 0.3, 0.3999, 0.0]], [0.99995])  # short of 1
    yield given([1], [[0.25, 0.5, 0.25]], [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], [0.5, 0.25])  # at the border itself
    yield given([1], [[0.5, 0.5, 0.0]], [[0.25, 0.0, 0.75], [0.25, 0.25, 0.5]], [0.0, 0.0])  # p = 0, and nothing left of token 0
    kept = [[0.1, 0.3, 0.6], [0.6, 0.1, 0.3], [0.0, 0.6, 0.4]]
    yield given([1, 2], [[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]], kept, [BELOW_1, BELOW_1, 0.0])  # p = q
    yield given([2, 0], [[0.2, 0.1, 0.4, 0.3], [0.7, 0.1, 0.1, 0.1]],
                [[0.25, 0.15, 0.35, 0.25], [0.1, 0.5, 0.4, 0.0], [0.7, 0.1, 0.1, 0.1]], [0.5, 0.4, BELOW_1])  # fmt: skip
    yield given([1], [[0.5, 0.5, 0.0, 0.0, 0.0]], [[0.3, 0.5, 0.2, 0.0, 0.0], [0.2, 0.4, 0.3999, 0.0, 0.0]], [0.9, 0.99995])
    yield given([2, 0], [[0.3, 0.3, 0.4], [0.5, 0.25, 0.25]],
                [[0.2, 0.2, 0.6], [0.5 - 2**-22, 0.25, 0.25], [0.6, 0.2, 0.2]], [0.5, BELOW_1, 0.6])  # nothing left  # fmt: skip
    yield given([0], [[0.3, 0.3, 0.2, 0.2]], [[0.2995, 0.3, 0.2005, 0.2], [0.25] * 4], [0.9999, 0.1])  # little is left of p
    for K, V, accepted in PLANS:
        one = planned(generator, K, V, accepted)
        yield {key: x.double() if x.is_floating_point() and V == 8 else x for key, x in one.items()}


def planned(generator, K, V, accepted):
    """A round in which so many of K tokens are accepted, and no number lies near a border."""
    draft, target = ((1.5 * torch.randn(K + 1, V, generator=generator)).softmax(-1) for _ in range(2))
    draft[:, 0], target[1::2, V - 1] = 0.0, 0.0  # the draft has no token 0, which stays with the target
    draft, target = draft / draft.sum(1, keepdim=True), target / target.sum(1, keepdim=True)
    drafted = torch.multinomial(draft[:K], 1, generator=generator)[:, 0]
    drafted[accepted:][:1] = (draft - target)[accepted].argmax()
    drafted[:accepted] = torch.minimum(draft, target)[:accepted].argmax(1)
    places = torch.arange(K)
    odds = (target[places, drafted] / draft[places, drafted]).clamp(max=1.0)
    uniforms = torch.rand(K + 1, generator=generator)
    uniforms[accepted + 1 : K] *= 0.4  # most would pass
    uniforms[:accepted] *= 0.98 * odds[:accepted]
    uniforms[accepted:K][:1] = (1 - (1 - odds) * (0.02 + 0.96 * uniforms[:K]))[accepted : accepted + 1]
    chances = target[K] if accepted == K else (target - draft)[accepted].clamp(min=0)
    ends = torch.cat([torch.zeros(1), chances.cumsum(0) / chances.sum()])
    while (ends - uniforms[K]).abs().min() < 1e-3:
        uniforms[K] = torch.rand((), generator=generator)
    return {"drafted": drafted, "draft_probs": draft[:K], "target_probs": target, "uniforms": uniforms}


def by_fractions(drafted, draft_probs, target_probs, uniforms):
    """The tokens by whole fractions, where nothing is rounded."""
    draft, target = ([[Fraction(x) for x in row] for row in rows.tolist()] for rows in (draft_probs, target_probs))
    *decisions, last = map(Fraction, uniforms.tolist())
    tokens, chances = [], target[-1]
    for token, q, p, u in zip(drafted.tolist(), draft, target, decisions):
        if u * q[token] >= p[token]:
            chances = [max(Fraction(0), b - a) for a, b in zip(q, p)]
            chances = chances if any(chances) else p
            break
        tokens.append(token)
    limit = last * sum(chances)
    tokens.append(next(token for token, end in enumerate(accumulate(chances)) if end > limit))
    return torch.tensor(tokens)


def above(chances, number, *, otherwise=lambda x: int(x.nonzero()[-1])):
    """The first token whose running sum exceeds the number; `otherwise` where there is none."""
    token = int((chances.cumsum(0) <= number).sum())
    return token if token < len(chances) else otherwise(chances)


ENDS = (  # what people make of a number above all running sums
    above, partial(above, otherwise=len), partial(above, otherwise=lambda x: len(x) - 1), partial(above, otherwise=lambda x: 0),
)  # fmt: skip


def at_or_above(chances, number):
    ends = chances.cumsum(0)
    return int((ends < min(number, ends[-1])).sum())


def nearly(x):
    """Divided by its sum, but where that is 1 to within rounding."""
    return x / x.sum() if x.sum() < 0.99 else x


def by_size(chances, number):
    ranked, order = chances.sort(descending=True, stable=True)
    return int(order[above(ranked, number)])


def behind(drafted, n, extra, accepted):
    return torch.cat([drafted[:n], extra])


def over(p, q, token):
    return (p - q).clamp(min=0)


def but_the_refused(p, q, token):
    return p.where(torch.arange(len(p)) != token, 0)


def speculated(
    drafted, draft_probs, target_probs, uniforms, *, row=0, keep=lambda u, p, q, best: u < p / q, decide=lambda u: u[:-1],
    count=lambda accepted: int(accepted.int().cumprod(0).sum()), ahead=0, left=over, last=lambda p, q: p[-1],
    share=lambda x: x / x.sum(), number=lambda u, n: u[-1], pick=above, pick_last=None, end=behind, empty=None,
):  # fmt: skip
    """`row`, `ahead`: by how much the target's row is too late, to decide and for what is left. `keep` gets numbers, the two
    probabilities of each drafted token, and whether it is the target's likeliest. `empty`: the token where nothing is left."""
    K = len(drafted)
    places = torch.arange(K)
    p, q = target_probs[places + row, drafted], draft_probs[places, drafted]  # (K,) each
    accepted = keep(decide(uniforms), p, q, target_probs[:K].argmax(1) == drafted)
    n = count(accepted)
    if n < K:
        weights = left(target_probs[n + ahead], draft_probs[n], drafted[n])
        if empty and not weights.any():
            extra = empty(weights)
        else:
            extra = pick(share(weights if weights.any() else target_probs[n]), number(uniforms, n))
    else:
        extra = (pick_last or pick)(share(last(target_probs, draft_probs)), number(uniforms, n))
    return end(drafted, n, torch.tensor([extra]), accepted)


def going_on(drafted, draft_probs, target_probs, uniforms):
    """Each refused token is replaced, and the next is looked at."""
    places = torch.arange(len(drafted))
    accepted = uniforms[:-1] < target_probs[places, drafted] / draft_probs[places, drafted]
    tokens = [int(token) if accepted[k] else above(over(p, q, 0) / over(p, q, 0).sum(), uniforms[-1])
              for k, (token, p, q) in enumerate(zip(drafted, target_probs, draft_probs))]  # fmt: skip
    return torch.tensor([*tokens, above(target_probs[-1], uniforms[-1])])


def with_refused(function, pick=above):
    """A round whose refusals `function` makes: weights and a number, of draft, target, numbers, and the refused token's p / q and
    place."""

    def call(drafted, draft_probs, target_probs, uniforms):
        places = torch.arange(len(drafted))
        odds = target_probs[places, drafted] / draft_probs[places, drafted]
        n = int((uniforms[:-1] < odds).int().cumprod(0).sum())
        if n == len(drafted):
            return torch.cat([drafted, torch.tensor([above(target_probs[-1], uniforms[-1])])])
        return torch.cat([drafted[:n], torch.tensor([pick(*function(draft_probs, target_probs, uniforms, odds[n], n))])])

    return call


def first_row(draft, target, uniforms, odds, n):
    return over(target[0], draft[0], 0) / over(target[0], draft[0], 0).sum(), uniforms[-1]


def by_odds(draft, target, uniforms, odds, n):
    return over(target[n], draft[n], 0) / (1 - odds), uniforms[-1]


def stretched(draft, target, uniforms, odds, n):
    return over(target[n], draft[n], 0) / over(target[n], draft[n], 0).sum(), (uniforms[n] - odds) / (1 - odds)


def by_rows(drafted, draft_probs, target_probs, uniforms):
    keeps = [(u < p / q).all() for u, p, q in zip(uniforms, target_probs, draft_probs)]
    keep = torch.tensor(keeps, dtype=torch.bool)
    return speculated(drafted, draft_probs, target_probs, uniforms, keep=lambda u, p, q, best: keep)


def last_row(draft, target, uniforms, odds, n):
    return target[-1], uniforms[-1]


def next_row(draft, target, uniforms, odds, n):
    return target[n + 1], uniforms[-1]


def last_row_less(draft, target, uniforms, odds, n):
    return over(target[-1], draft[n], 0) / over(target[-1], draft[n], 0).sum(), uniforms[-1]


def and_another(row, empty):
    """A round in which a token of the target's last row, or of the next, follows the one in a refused token's place."""

    def call(drafted, draft_probs, target_probs, uniforms):
        tokens = speculated(drafted, draft_probs, target_probs, uniforms, empty=empty)
        if len(tokens) > len(drafted):
            return tokens
        return torch.cat([tokens, torch.tensor([above(target_probs[row(len(tokens))], uniforms[-1])])])

    return call


def from_a_list(tokens):
    """No tokens as torch.tensor([]) makes them."""
    return tokens if len(tokens) else tokens.float()


def filled(value):
    """A row of K + 1 tokens, whatever was accepted."""
    return {"end": lambda drafted, n, extra, a: torch.cat(
        [drafted[:n], extra, torch.full((len(drafted) - n,), value)])}  # fmt: skip


EMPTY = (lambda weights: 0, len, lambda weights: len(weights) - 1)  # what people make of 0 / 0


def unasked(options):
    return lambda **given: speculated(**given, **options)


def anyway(mistakes):
    """The table, in which the first way of each mistake, by options, is also gone by those to whom nothing can be left of a row:
    by functions, which the search for two mistakes at once leaves out."""
    table = {sentence: what if isinstance(what, list) else [what] for sentence, what in mistakes.items()}
    for ways in table.values():
        if isinstance(ways[0], dict) and "empty" not in ways[0]:
            ways += map(unasked, ({**ways[0], "empty": empty} for empty in EMPTY))
    return table


def of_chance(again):
    return lambda x, u: int(torch.multinomial(x, 1, again))


Exercise("4.11", "speculate", draw=draw_rounds, call=with_type, right=by_fractions, formula=speculated, mistakes=anyway({
    "the ratio is upside down: the chance to accept is p / q, the target's probability over the draft's":
        {"keep": lambda u, p, q, best: u < q / p},
    "the decision is turned round: accept where u < p / q, refuse the rest":
        [{"keep": lambda u, p, q, best: u >= p / q}, {"keep": lambda u, p, q, best: u > p / q}],
    "the target's probability alone decides; the chance to accept is p / q, or a token that both find likely is often refused":
        {"keep": lambda u, p, q, best: u < p},
    "a token is accepted with the draft's probability q; it was drawn with that already: the chance is p / q":
        {"keep": lambda u, p, q, best: u < q},
    "p - q is compared with the number; the chance to accept is the ratio p / q": {"keep": lambda u, p, q, best: u < p - q},
    "the number takes no part in the decision: where p < q the token is always refused; it has a chance of p / q":
        [{"keep": lambda u, p, q, best: p >= q}, {"keep": lambda u, p, q, best: p > q}],
    "a token is accepted where it is the target's likeliest: that fits greedy decoding; here the chance is p / q":
        {"keep": lambda u, p, q, best: best},
    "every drafted token is accepted, so the text is the draft's: accept where u < p / q":
        {"keep": lambda u, p, q, best: u < 2},
    "u = p / q is accepted, or something is added to p: at p = 0 and u = 0 a token comes out that the target never says":
        [{"keep": lambda u, p, q, best: u <= p / q}] + [
            {"keep": lambda u, p, q, best, eps=eps, more=more: u < (p + eps) / (q + more)}
            for eps in (1e-6, 1e-9) for more in (eps, 0.0)],
    "a token with p = q is refused at times: something is added to q, or the ratio is cut off below 1; it is always accepted":
        [{"keep": lambda u, p, q, best, eps=eps: u < p / (q + eps)} for eps in (1e-3, 1e-5, 1e-7)]
        + [{"keep": lambda u, p, q, best: (u < p / q) & (p != q)}],
    "a token is refused where u > 1 - p / q, as often as it should stay: accept where u < p / q":
        [{"keep": lambda u, p, q, best: u <= 1 - p / q}, {"keep": lambda u, p, q, best: (u <= 1 - p / q) | (p >= q)}],
    "1 - u decides: as fair, but another decision; accept where u < p / q": {"keep": lambda u, p, q, best: 1 - u < p / q},
    "the whole rows of p and q are compared; those of the drafted token alone decide":
        by_rows,
    "the first number decides on every token; entry k decides on drafted[k]": {"decide": lambda u: u[:1].expand(len(u) - 1)},
    "the last number decides, too; entry k decides on drafted[k]": {"decide": lambda u: u[-1:].expand(len(u) - 1)},
    "the numbers are one too far: entry k decides on drafted[k]":
        [{"decide": lambda u: u[1:]}, {"decide": lambda u: u[1:], "number": lambda u, n: u[0]}],
    "the ratios are multiplied up, so a token pays for those before it; each has a chance of its own":
        [{"keep": lambda u, p, q, best, most=most: u < (p / q).clamp(max=most).cumprod(0)} for most in (1, 1e9)],
    "the target's row is one too late: target_probs[k] is what the target says where drafted[k] stands":
        [{"row": 1, "ahead": 1}, {"row": 1}],
    "accepted tokens behind the first that is refused are kept; they go on from a text that is not there any more: stop":
        {"end": lambda drafted, n, extra, accepted: torch.cat([drafted[accepted], extra])},
    "this counts all tokens that pass; those behind the first that is refused do not count (cumprod before the sum)":
        [{"count": lambda accepted: int(accepted.sum())},
         {"end": lambda drafted, n, extra, accepted: torch.cat([drafted[: int(accepted.sum())], extra])}],
    "this goes on to the last token that is refused; the first one ends the round (a break is missing)":
        {"count": lambda accepted: int((~accepted).nonzero()[-1]) if not accepted.all() else len(accepted)},
    "a refused token is replaced and the next one looked at; it went on from the refused one: stop there": going_on,
    "where all are accepted it takes the first for refused: argmax of nothing but False is 0":
        {"count": lambda accepted: int((~accepted).int().argmax()) if len(accepted) else 0},
    "at a refusal the token is drawn from the target's row: what the draft likes comes too often; draw from max(0, p - q)":
        {"left": lambda p, q, token: p},
    "at a refusal the token is drawn from the draft's row; draw from max(0, p - q)": {"left": lambda p, q, token: q},
    "what is left is upside down: max(0, p - q) is what the draft has given too little":
        {"left": lambda p, q, token: over(q, p, token)},
    "this is |p - q|: tokens that the draft gave too often come again; what is left of them is 0":
        {"left": lambda p, q, token: (p - q).abs()},
    "negative p - q stay in the running sum: what is left is max(0, p - q)": {"left": lambda p, q, token: p - q},
    "a token with p > q keeps all of its p; what is left of it is p - q": {"left": lambda p, q, token: p.where(p > q, 0)},
    "the refused token's q is taken off every token; each has its own: max(0, p - q) of the two rows":
        {"left": lambda p, q, token: (p - q[token]).clamp(min=0)},
    "the refused token is taken out of the target's row, and nothing else: take q off everywhere, max(0, p - q)":
        {"left": but_the_refused},
    "what is left at a refusal is of the target's next row; p and q are of the refused token's place":
        {"ahead": 1},
    "what is left is of the first row at every refusal; it is of the refused token's": with_refused(first_row),
    "at a refusal the extra token is drawn from row K, or from the row behind; take what is left in the refused row":
        [with_refused(row) for row in (last_row, last_row_less, next_row)],
    "what is left is divided by 1 - p / q of the refused token; divide it by its sum":
        [with_refused(by_odds, pick) for pick in ENDS],
    "what is left does not sum to 1: divide it by its sum, or multiply the number by it":
        [{"share": lambda x: x, "pick": pick} for pick in ENDS],
    "a softmax is taken of probabilities, or draw_token gets them without their logarithms; divide what is left by its sum":
        [{"share": lambda x: x.softmax(0)}, {"share": lambda x: (x / x.sum()).softmax(0)},
         {"left": lambda p, q, token: (p - q).softmax(0)}, {"left": lambda p, q, token: over(p, q, 0).softmax(0)}],
    "the likeliest token is taken for the extra one; draw it, with the last number":
        [{"pick": lambda x, u: int(x.argmax())}, {"pick": lambda x, u: int(x.argmax()), "pick_last": above}],
    "where all are accepted the target's likeliest token follows; draw it, with the last number":
        {"pick_last": lambda x, u: int(x.argmax())},
    "the number that refused the token is stretched to [0, 1) and draws the other: as fair, but the last number draws":
        with_refused(stretched),
    "the number that refused the token also draws the other: it is large there, never a fair one; the last number draws":
        {"number": lambda u, n: u[n]},
    "the extra token is drawn with the number behind the one that refused; the last number draws":
        {"number": lambda u, n: u[min(n + 1, len(u) - 1)]},
    "the extra token is drawn with the first number; the last number draws": {"number": lambda u, n: u[0]},
    "the number is turned round, 1 - u: the tokens lie from 0 upwards": {"number": lambda u, n: 1 - u[-1]},
    "the numbers that were given are not used: a text drawn this way cannot be repeated":
        [{"pick": of_chance(again)} for again in (False, True)]
        + [{"decide": lambda u: torch.rand(len(u) - 1), **more} for more in ({}, {"pick": of_chance(False)})],
    "the tokens were sorted by probability first: a fair draw, but another token; go in the vocabulary's order":
        {"pick": by_size},
    "where all are accepted nothing follows: the target's last row gives one more":
        [{"end": lambda drafted, n, extra, a, whole=whole: whole(behind(drafted, n, extra[: n < len(drafted)], a))}
         for whole in (torch.clone, from_a_list)]
        + [{"end": lambda drafted, n, extra, a: behind(drafted, n, extra[: n < len(drafted) or not n], a)}],
    "two tokens follow a refusal, the one in its place and one of another row; the first is enough":
        [and_another(row, empty) for row in (lambda n: -1, lambda n: n) for empty in (None, *EMPTY[::2])],
    "where all are accepted the extra token is drawn from the row before the last; row K is what the target says behind them all":
        {"last": lambda p, q: p[len(q) - 1 if len(q) else 0]},
    "where all are accepted the extra token is drawn from the draft's last row; row K of the target says what follows":
        {"last": lambda p, q: q[-1] if len(q) else p[-1]},
    "where all are accepted something is taken off the target's last row; no draft stands beside it: draw from it as it is":
        {"last": lambda p, q: over(p[-1], q[-1], 0) if len(q) else p[-1]},
    "at a refusal nothing follows; one token is drawn in the refused one's place":
        [{"end": lambda drafted, n, extra, a, whole=whole: whole(behind(drafted, n, extra[: n == len(drafted)], a))}
         for whole in (torch.clone, from_a_list)],
    "the accepted tokens alone come back; one more follows":
        [{"end": lambda drafted, n, extra, a, whole=whole: whole(drafted[:n])} for whole in (torch.clone, from_a_list)],
    "the extra token alone comes back; the accepted ones stand before it": {"end": lambda drafted, n, extra, a: extra},
    "the refused token is still there; the extra one takes its place":
        {"end": lambda drafted, n, extra, a: torch.cat([drafted[: n + 1], extra])},
    "the last accepted token is lost": {"end": lambda drafted, n, extra, a: torch.cat([drafted[: max(n - 1, 0)], extra])},
    "all drafted tokens come back with the extra one behind: those from the refused one on go":
        {"end": lambda drafted, n, extra, a: torch.cat([drafted, extra])},
    "the answer is filled up to K + 1 tokens; it ends with the extra one": [filled(value) for value in (-1, 0)],
    "at a number of 0 a token comes out of which nothing is left: its running sum must exceed the number, not equal it, and what "
    "is left of it be exactly 0": [{"pick": at_or_above}] + [
        {"left": lambda p, q, token, eps=eps: (p - q).clamp(min=eps)} for eps in (1e-6, 1e-9)],
    "where rounding leaves nothing of max(0, p - q), 0 / 0 draws no token: draw from p there":
        [{"empty": empty} for empty in EMPTY],
    "where rounding leaves the sum below the number, V comes out, which is no token; take the last that is above 0":
        {"pick": ENDS[1], "share": nearly},
    "where rounding leaves the sum below the number, a token of probability 0 comes out; take the last that is above 0":
        {"pick": ENDS[2], "share": nearly},
    "where rounding leaves the sum below the number, token 0 comes out: argmax of nothing but False is 0":
        {"pick": ENDS[3], "share": nearly},
    "the tokens are no int64: they are numbers of tokens, and an index": [
        {"end": lambda drafted, n, extra, a, kind=kind: behind(drafted, n, extra, a).to(kind)}
        for kind in (torch.float32, torch.float64, torch.int32)],
}))  # fmt: skip
