"""Chapter 10: ends of speeches, prompts and their halves, agreement, length, strengths, and rankings."""

import functools
import itertools
import math
import re

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise, Investigation
from rlhf_lib.exercises.plain import as_int64

Investigation("10.A", "Absolute or compared?")
Investigation("10.B", "What length does")
Investigation("10.C", "A model that has read before")


# ----------------------------------------------------------------------------------------- 10.1


def draw_speeches(generator):
    yield {"tokens": torch.tensor([[5, 9, 9, 4]]), "line_break": 9}
    yield {"tokens": torch.tensor([[9, 5, 9, 4], [9, 9, 5, 3], [4, 4, 9, 9], [9, 6, 6, 9]]), "line_break": 9}
    yield {"tokens": torch.tensor([[9, 9, 9, 2, 3], [1, 9, 9, 9, 9], [0, 9, 9, 7, 0]]), "line_break": 9}
    yield {"tokens": torch.tensor([[19, 9, 5, 9, 95], [3, 9, 9, 8, 10]]), "line_break": 9}  # of two digits
    for rows, steps, line_break in ((4, 6, 0), (6, 9, 2), (40, 12, 3)):
        tokens = torch.randint(1, 5, (rows, steps), generator=generator)
        tokens[torch.rand(rows, steps, generator=generator) < 0.5] = line_break
        tokens[0] = 1 + line_break  # a speech that was cut off
        tokens[1, 1:5] = torch.tensor([line_break, line_break, 4, line_break])
        yield {"tokens": tokens, "line_break": line_break}
    yield {"tokens": torch.tensor([[9], [4]]), "line_break": 9}
    long = torch.full((2, 300), 9)
    long[1, :280] = 4
    yield {"tokens": long, "line_break": 9}


def speech_by_loop(tokens, line_break):
    mask = []
    for row in tokens.tolist():
        ends = [place + 1 for place in range(1, len(row)) if row[place - 1] == row[place] == line_break]
        mask.append([place < min(ends, default=len(row)) for place in range(len(row))])
    return torch.tensor(mask)


def pairs_of_breaks(broken):
    return F.pad(broken[:, 1:] & broken[:, :-1], (1, 0))  # True on the second of two


def speech(tokens, line_break, *, ends=pairs_of_breaks, kept=lambda ends: ends.int().cumsum(1) - ends.int() == 0):
    """`ends` says where a speech ends, (B, T); `kept` makes the mask of it."""
    return kept(ends(tokens == line_break))


def up_to_last(ends):
    return torch.where(ends.any(1, keepdim=True), ends.flip(1).int().cumsum(1).flip(1) > 0, True)


def found_as_text(tokens, line_break):
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    for row, keep in zip(tokens.tolist(), mask):
        before, pair, _ = " ".join(map(str, row)).partition(f"{line_break} {line_break}")
        keep[len(before.split()) + 2 if pair else len(row) :] = False
    return mask


speech_mask = Exercise(
    "10.1", "speech_mask",
    draw=draw_speeches,
    right=speech_by_loop,
    formula=speech,
    mistakes={
        "a single line break ends nothing here: verses have one at the end of each line. Look for two in a row":
            {"ends": lambda broken: broken},
        "two line breaks anywhere are taken for the end; a blank line is two of them in a row":
            {"ends": lambda broken: broken & (broken.int().cumsum(1) >= 2)},
        "the second line break is left out: the policy chose to end there, and must be paid for it":
            {"kept": lambda ends: ends.int().cumsum(1) == 0},
        "both line breaks are left out: the policy chose to end there, and must be paid for it":
            {"ends": lambda broken: F.pad(broken[:, 1:] & broken[:, :-1], (0, 1)), "kept": lambda ends: ends.cumsum(1) == 0},
        "the mask goes on for one token after the blank line":
            {"kept": lambda ends: F.pad((ends.int().cumsum(1) - ends.int() == 0)[:, :-1], (1, 0), value=True)},
        "this goes up to the last blank line; what stands behind the first one belongs to another speech": {"kept": up_to_last},
        "only the blank line itself is left out; everything behind it is another speech": {"kept": lambda ends: ~ends},
        "a completion without a blank line was cut off while it went on: all of it counts":
            {"kept": lambda ends: (ends.int().cumsum(1) - ends.int() == 0) & ends.any(1, keepdim=True)},
        "argmax is 0 too where a row has no blank line, as if it stood at the beginning; such a row counts whole": [
            {"kept": lambda ends: torch.arange(ends.shape[1]) <= ends.int().argmax(1, keepdim=True)},
            *({"kept": lambda ends, end=end: torch.arange(ends.shape[1]) <= 1 + end(ends[:, 1:]).int().argmax(1, keepdim=True)}
              for end in (torch.clone, lambda pairs: F.pad(pairs, (0, 1))))],
        "True and False are exchanged: True up to and including the end":
            {"kept": lambda ends: ends.int().cumsum(1) - ends.int() > 0},
        "torch.roll brings the last token to the front: the first one has no token before it here":
            {"ends": lambda broken: broken & broken.roll(1, 1)},
        "a line break at the end of a row and one at the beginning of the next are no blank line: a row is a completion":
            {"ends": lambda broken: pairs_of_breaks(broken.reshape(1, -1)).view(broken.shape)},
        "this goes down the columns; the tokens of a completion follow each other along dim 1":
            {"kept": lambda ends: ends.int().cumsum(0) - ends.int() == 0},
        "a blank line at the very beginning is not seen: the second token may be the second of two":
            {"ends": lambda broken: pairs_of_breaks(broken) & (torch.arange(broken.shape[1]) > 1)},
        "only every other place is looked at; a blank line may begin at any":
            {"ends": lambda broken: pairs_of_breaks(broken) & (torch.arange(broken.shape[1]) % 2 == 1)},
        "this goes up to a second blank line, or one of three line breaks; the first one ends the speech":
            {"kept": lambda ends: ends.int().cumsum(1) <= 1},
        "three line breaks are looked for; two of them in a row are a blank line":
            {"ends": lambda broken: pairs_of_breaks(pairs_of_breaks(broken))},
        "only the first row that has a blank line is cut off there, as by a return in the loop; all of them are":
            {"kept": lambda ends: (ends.int().cumsum(1) - ends.int() == 0) | (ends.any(1).cumsum(0) > 1)[:, None]},
        "the first row's end is used for all rows":
            {"kept": lambda ends: (ends.int().cumsum(1) - ends.int() == 0)[:1].expand(ends.shape)},
        "a row is searched as text, in which 19 9 has the look of 9 9: compare tokens": found_as_text,
        "the ends are counted in 8 bits, in which 256 of them are 0 again; count in int64":
            {"kept": lambda ends: ends.cumsum(1, dtype=torch.uint8) - ends.to(torch.uint8) == 0},
        "the line break is taken to be 199; use the one that was given": lambda tokens, line_break: speech(tokens, 199),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.2


def draw_counts(generator):
    for count, size, rollouts in ((3, 2, 3), (4, 4, 3), (5, 3, 1), (3, 7, 2), (1, 2, 2), (10, 4, 6), (2, 30, 20), (300, 7, 50)):
        seed = int(torch.randint(10**6, (1,), generator=generator))
        yield {"count": count, "size": size, "rollouts": rollouts, "seed": seed}


def with_generator(function, seed, **given):
    """What comes out with a generator of this seed, and what the generator gives next: a call may not draw more, or less."""
    generator = torch.Generator().manual_seed(seed)
    result = function(**given, generator=generator)
    if torch.is_tensor(result) and result.is_floating_point() and torch.equal(result, result.round()):
        torch.empty(0)[result]  # raises: nothing can be looked up with floats
    if torch.is_tensor(result):
        as_int64(result)
    return {"result": result, "the generator's next number": torch.rand(1, generator=generator)}


def prompts_by_list(count, size, rollouts, generator):
    hat, rows = [], []
    for _ in range(rollouts):
        rows.append([])
        while len(rows[-1]) < size:
            hat = hat or torch.randperm(count, generator=generator).tolist()
            rows[-1].append(hat.pop(0))
    return torch.tensor(rows)


def drawn_prompts(count, size, rollouts, generator, *, epochs=lambda need, count: -(-need // count), one=None, each=None):
    """`one` makes the order of an epoch (count,), `each` the prompts of one rollout (size,), `epochs` is how many are drawn."""
    one = one or (lambda: torch.randperm(count, generator=generator))
    if each:
        return torch.stack([each(count, size, generator) for _ in range(rollouts)])
    stream = torch.cat([one() for _ in range(epochs(size * rollouts, count))])
    return stream[: size * rollouts].view(rollouts, size)


def around(order, size):
    return order.repeat(-(-size // len(order)))[:size]


def without_rests(count, size, rollouts, generator, orders=lambda size, count: -(-size // count)):
    rows, hat = [], torch.zeros(0, dtype=torch.long)
    for _ in range(rollouts):
        if len(hat) < size:  # what is left of the last epoch is lost
            hat = torch.cat([torch.randperm(count, generator=generator) for _ in range(orders(size, count))])
        rows.append(hat[:size])
        hat = hat[size:]
    return torch.stack(rows)


def orders_by_place(count, size, rollouts, generator):
    """An order is drawn before the first rollout, and a new one wherever the rest of the last is too short."""
    order, at, rows = torch.randperm(count, generator=generator), 0, []
    for _ in range(rollouts):
        if at + size > count:
            order, at = torch.randperm(count, generator=generator), 0
        rows.append(order[at : at + size])
        at += size
    return torch.stack(rows)


def shuffled_at_once(count, size, rollouts, generator, of):
    epochs = -(-size * rollouts // count)
    places = torch.randperm(epochs * count, generator=generator)
    return of(places, count, epochs)[: size * rollouts].view(rollouts, size)


rollout_prompts = Exercise(
    "10.2", "rollout_prompts",
    draw=draw_counts,
    right=prompts_by_list,
    call=with_generator,
    formula=drawn_prompts,
    mistakes={
        "each place draws a prompt by itself, so some come twice and others never; go through an order of all of them":
            {"each": lambda count, size, g: torch.randint(count, (size,), generator=g)},
        "every rollout begins a new order, and prompts come again before all have been there; go on where the last one stopped":
            ({"each": lambda count, size, g: around(torch.randperm(count, generator=g), size)},
             {"each": lambda count, size, g: drawn_prompts(count, size, 1, g)[0]},
             {"each": lambda count, size, g: torch.randperm(count, generator=g)[:size]}),  # a short row where count < size
        "the prompts come in their own order; draw one with torch.randperm":
            lambda count, size, rollouts, generator: (torch.arange(size * rollouts) % count).view(rollouts, size),
        "the order is drawn by sorting uniform numbers; draw it with torch.randperm": lambda count, size, rollouts, generator:
            drawn_prompts(count, size, rollouts, generator, one=lambda: torch.rand(count, generator=generator).argsort()),
        "these have fewer than 64 bits; asked for are int64":
            lambda count, size, rollouts, generator: drawn_prompts(count, size, rollouts, generator).int(),
        "every epoch has the same order: draw a new one each time that all prompts have been there":
            lambda count, size, rollouts, generator:
                around(torch.randperm(count, generator=generator), size * rollouts).view(rollouts, size),
        "the rest of an epoch is thrown away when it does not fill a rollout, and those prompts are left out":
            (without_rests, functools.partial(without_rests, orders=lambda size, count: 1), orders_by_place),
        "every rollout has the same prompts":
            lambda count, size, rollouts, generator:
                drawn_prompts(count, size, 1, generator).expand(rollouts, size),
        "the order is drawn from the global generator; use the one that was given": lambda count, size, rollouts, generator:
            drawn_prompts(count, size, rollouts, None),
        "one epoch too many is drawn: draw a new order only when the last one is used up":
            ({"epochs": lambda need, count: need // count + 1}, {"epochs": lambda need, count: -(-need // count) + 1}),
        "too few orders are drawn: their number is rounded down; round it up": {"epochs": lambda need, count: need // count},
        "only so many orders are drawn, such as ten; draw as many as the places need":
            tuple({"epochs": lambda need, count, most=most: min(most, -(-need // count))} for most in (10, 100)),
        "all epochs are shuffled at once, and a prompt may come again before all have been there: draw one order after another":
            (functools.partial(shuffled_at_once, of=lambda places, count, epochs: places % count),
             functools.partial(shuffled_at_once, of=lambda places, count, epochs: places // epochs)),
        "the orders are used up from their ends, as by pop(); take them place by place from the beginning":
            lambda count, size, rollouts, generator: drawn_prompts(
                count, size, rollouts, generator, one=lambda: torch.randperm(count, generator=generator).flip(0)),
        "the numbers of the prompts begin at 1; they are 0 to count - 1":
            lambda count, size, rollouts, generator: 1 + drawn_prompts(count, size, rollouts, generator),
        "rows and columns are exchanged: a row is a rollout": lambda count, size, rollouts, generator:
            drawn_prompts(count, size, rollouts, generator).flatten().view(size, rollouts).T.contiguous(),
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.3


def draw_prompted(generator):
    numbers = [[4, 4, 4, 7], [9, 2, 2, 9, 5, 5, 5], [0, 1, 0, 1, 2, 0], [30, 10, 20, 10, 30, 30, 50, 40, 40]]
    for prompts, share in zip(numbers, (0.5, 0.34, 0.01, 0.6)):
        yield {"prompts": torch.tensor(prompts), "share": share, "seed": int(torch.randint(10**6, (1,), generator=generator))}
    yield {"prompts": torch.tensor([5, 1, 3, 2, 4]), "share": 0.5, "seed": 7}  # half of five: round(2.5) is 2
    for numbers in ([-1, 7, -1], [-16_777_217, -16_777_216, -16_777_217]):  # the second are the same in float32
        yield {"prompts": torch.tensor(numbers), "share": 0.5, "seed": int(torch.randint(10**6, (1,), generator=generator))}
    for size, most, share in ((40, 12, 0.23), (300, 120, 0.15), (12, 5, 0.97)):
        prompts = 3 * torch.randint(most, (size,), generator=generator) + 1
        yield {"prompts": prompts, "share": share, "seed": int(torch.randint(10**6, (1,), generator=generator))}


def halves_by_sets(prompts, share, generator):
    different = sorted(set(prompts.tolist()))
    count = min(max(1, round(share * len(different))), len(different) - 1)
    out = {different[place] for place in torch.randperm(len(different), generator=generator).tolist()[:count]}
    return torch.tensor([prompt in out for prompt in prompts.tolist()])


def halves(prompts, share, generator, *, order=lambda P, g: torch.randperm(P, generator=g), number=round, least=1, most=1,
           first=lambda order, count: order[:count], of=lambda different, places: different[places],
           end=lambda out: out, unique=torch.unique):  # fmt: skip
    different = unique(prompts)
    P = len(different)
    count = min(max(least, number(share * P)), P - most)
    return end(torch.isin(prompts, of(different, first(order(P, generator), count))))


def comparisons_drawn(prompts, share, generator, least=1):
    N = len(prompts)
    places = torch.randperm(N, generator=generator)[: min(max(least, round(share * N)), N - least)]
    return torch.zeros(N, dtype=torch.bool).index_fill(0, places, True)


def of_all_numbers(prompts, share, generator, different=lambda prompts: len(prompts.unique())):
    P = different(prompts)
    order = torch.randperm(int(prompts.max()) + 1, generator=generator)
    return torch.isin(prompts, order[: min(max(1, round(share * P)), P - 1)])


def by_table(prompts, share, generator):
    """A table with the prompts' numbers as places."""
    different = prompts.unique()
    P = len(different)
    out = torch.zeros(int(different.abs().max()) + 1, dtype=torch.bool)
    out[different[torch.randperm(P, generator=generator)[: min(max(1, round(share * P)), P - 1)]]] = True
    return out[prompts]


def until_share(prompts, share, generator):
    """Prompts are held out until their comparisons are the share."""
    different, out = prompts.unique(), torch.zeros(len(prompts), dtype=torch.bool)
    for place in torch.randperm(len(different), generator=generator).tolist()[:-1]:
        out |= prompts == different[place]
        if out.sum() >= share * len(prompts):
            break
    return out


held_out_prompts = Exercise(
    "10.3", "held_out_prompts",
    draw=draw_prompted,
    right=halves_by_sets,
    call=with_generator,
    formula=halves,
    mistakes={
        "comparisons are drawn, not prompts: a prompt in both halves has been read before it is tested":
            (comparisons_drawn, functools.partial(comparisons_drawn, least=0)),
        "each comparison is drawn by itself: a prompt in both halves has been read before it is tested":
            lambda prompts, share, generator: torch.rand(len(prompts), generator=generator) < share,
        "the share is one of comparisons; it is a share of the different prompts": (until_share,
            lambda prompts, share, generator: halves(prompts, share * len(prompts) / len(prompts.unique()), generator)),
        "the prompts stand in the order in which they come first; sort them, as unique() does":
            {"unique": lambda prompts: torch.tensor(list(dict.fromkeys(prompts.tolist())))},
        "unique_consecutive has a prompt twice that comes again later; unique() has it once":
            ({"unique": torch.unique_consecutive}, {"unique": lambda prompts: prompts.unique_consecutive().sort().values}),
        "a table has the prompts' numbers as places, and a number below 0 counts from its end": by_table,
        "the prompts' numbers become float32, which does not tell large ones apart; leave them int64":
            (lambda prompts, share, generator: halves(prompts.float(), share, generator),
             lambda prompts, share, generator:
                 halves(prompts.float(), share, generator, most=min(1, len(prompts.float().unique()) - 1))),
        "the order is one of all numbers up to the largest; it is one of the P different prompts":
            ({"unique": lambda prompts: torch.arange(int(prompts.max()) + 1)}, of_all_numbers,
             functools.partial(of_all_numbers, different=lambda prompts: int(prompts.max()) + 1)),
        "a half is rounded up; round() takes it to the even number": {"number": lambda count: math.floor(count + 0.5)},
        "this is the half to learn from; True marks what is held out": {"end": lambda out: ~out},
        "the prompts are not drawn: the same ones are held out whatever the generator says":
            ({"order": lambda P, g: torch.arange(P)}, {"order": lambda P, g: torch.arange(P).flip(0)}),
        "the order is drawn from the global generator; use the one that was given": {"order": lambda P, g: torch.randperm(P)},
        "torch.randperm gives places among the different prompts, not their numbers":
            {"of": lambda different, places: places},
        "these are the places at which the order has a number below n; the order's first n numbers are themselves the places":
            {"first": lambda order, count: order < count},
        "the number of held-out prompts is rounded down (or up); round it to the nearest":
            ({"number": int}, {"number": math.ceil}),
        "no prompt is held out where the share is small; at least one is": {"least": 0},
        "all prompts are held out where the share is large; at least one is left to learn from": {"most": 0},
        "no prompt is held out where the share is small, and all where it is large; at least one is on either side":
            {"least": 0, "most": 0},
        "the last ones of the order are held out; take the first":
            {"order": lambda P, g: torch.randperm(P, generator=g).flip(0)},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.4


def draw_readings(generator):
    yield {
        "first": torch.tensor([1, -1, 0, 1]),
        "second": torch.tensor([1, 1, 0, 0]),
        "swapped": torch.tensor([False, True, True, False]),
    }
    yield {"first": torch.tensor([1, 0, -1]), "second": torch.tensor([-1, 1, -1]), "swapped": torch.tensor([True, False, True])}
    for size in (7, 20, 1100):
        first = torch.randint(-1, 2, (size,), generator=generator)
        swapped = torch.rand(size, generator=generator) < 0.4
        second = torch.where(torch.rand(size, generator=generator) < 0.6, first * (1 - 2 * swapped.int()),
                             torch.randint(-1, 2, (size,), generator=generator))  # fmt: skip
        first[:2], second[:2], swapped[0] = 1, torch.tensor([-1, 1]), True
        yield {"first": first, "second": second, "swapped": swapped}


def floats(function, **given):
    return [float(one) for one in function(**given)]


def agreement_by_words(first, second, swapped):
    words = {(1, False): "A", (-1, False): "B", (1, True): "B", (-1, True): "A", (0, True): "tie", (0, False): "tie"}
    pairs = [(words[a, False], words[b, swap]) for a, b, swap in zip(first.tolist(), second.tolist(), swapped.tolist())]
    decided = [a == b for a, b in pairs if "tie" not in (a, b)]
    return sum(a == b for a, b in pairs) / len(pairs), sum(decided) / len(decided)


def same_verdicts(first, second, swapped, *, turn=lambda v, swap: torch.where(swap, -v, v), same=torch.eq,
                  use=lambda a, b: (a != 0) & (b != 0), end=lambda all, decided: (all, decided), over=torch.mean):  # fmt: skip
    second = turn(second, swapped)
    same = same(first, second).float()
    return end(over(same), over(same[use(first, second)]))


def decided_of_all(first, second, swapped):
    second = torch.where(swapped, -second, second)
    same = first == second
    return same.float().mean(), (same & (first != 0)).float().mean()


same_verdict = Exercise(
    "10.4", "same_verdict",
    draw=draw_readings,
    right=agreement_by_words,
    call=floats,
    formula=same_verdicts,
    mistakes={
        "the sides are not looked at: where the second reader saw them exchanged, 1 and -1 change places":
            {"turn": lambda v, swap: v},
        "every verdict of the second reader is turned; only where the sides were exchanged": {"turn": lambda v, swap: -v},
        "the verdicts are turned where the sides were not exchanged": {"turn": lambda v, swap: torch.where(swap, v, -v)},
        "1 - verdict turns 0 and 1; here a tie is 0, and the sides are 1 and -1":
            {"turn": lambda v, swap: torch.where(swap, 1 - v, v)},
        "a tie counts as a verdict of the second share; leave out what either of them called a tie": {"use": lambda a, b: a == a},
        "only the first reader's ties are left out of the second share; leave out those of both": {"use": lambda a, b: a != 0},
        "only the second reader's ties are left out of the second share; leave out those of both": {"use": lambda a, b: b != 0},
        "only what both called a tie is left out of the second share; one of them is enough":
            {"use": lambda a, b: (a != 0) | (b != 0)},
        "the second share is divided by the number of all pairs; divide by that of the pairs that neither called a tie":
            decided_of_all,
        "ties are left out of the first share too; it is of all pairs": {"end": lambda all, decided: (decided, decided)},
        "the product is positive only where both decided alike: two ties are the same verdict too":
            {"same": lambda a, b: a * b > 0},
        "where the sides were exchanged, 1 and -1 both come out as -1 (or as 1): each becomes the other":
            ({"turn": lambda v, swap: torch.where(swap, -v.abs(), v)}, {"turn": lambda v, swap: torch.where(swap, v.abs(), v)}),
        "1 and -1 count as the same, as when their sign is not looked at: they are opposite verdicts":
            {"same": lambda a, b: a.abs() == b.abs()},
        "the second share is always 1: only pairs on which they agree are kept, as by first * second > 0; ask that neither is 0":
            {"use": lambda a, b: a * b > 0},
        "a tie beside a decision counts as half the same; it is another verdict": {"same": lambda a, b: 1 - (a - b).abs() / 2},
        "these are the shares of different verdicts": {"end": lambda all, decided: (1 - all, 1 - decided)},
        "these are numbers of pairs; return shares": {"over": torch.sum},
        "the agreements are counted in 8 bits, in which 256 of them are 0 again; count in int64 or in floats":
            {"over": lambda same: same.to(torch.uint8).sum(dtype=torch.uint8) / len(same)},
        "the two shares are exchanged: first that of all pairs": {"end": lambda all, decided: (decided, all)},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.5

WORDS = ["O", "joy", "my", "lord", "I", "thank", "you", "for", "love", "and", "all", "this", "day", "death", "extraordinarily"]


def draw_answers(generator):
    yield {"pairs": [("one two three", "one two")]}
    yield {"pairs": [("O joy", "I am"), ("no", "yes, my lord"), ("a b c", "extraordinarily long")]}
    yield {"pairs": [("Go,\nmy lord", "Go  to,  sir ,"), ("a  b", "a b c"), ("ay\nme\nnow", "ay me")]}  # breaks, double spaces
    yield {"pairs": [("ay\tme", "no"), ("so be it", "go,\t to")]}
    yield {"pairs": [("so\rbe\fit", "ay me"), ("so\u2003be\u2003it", "ay me")]}  # other white space
    for size in (5, 12, 300):
        pairs = []
        for _ in range(size):
            lengths = torch.randint(1, 6, (2,), generator=generator).tolist()
            pick = lambda n: [WORDS[place] for place in torch.randint(len(WORDS), (n,), generator=generator).tolist()]  # noqa: E731
            pairs.append(tuple("\n".join(pick(n)) if n % 2 else " ".join(pick(n)) for n in lengths))
        yield {"pairs": [*pairs, ("O my", "my lord")]}
    yield {"pairs": [("ay " * more, "ay " * fewer) for more, fewer in ((70, 66), (140, 130), (1100, 1030))]}
    yield {"pairs": [(" ay me\n", "so be it"), ("no", ""), ("a b", "c d e"), ("a b", "c d e")]}  # ends, nothing, one twice


def as_number(function, **given):
    return float(function(**given))


def longer_by_loop(pairs):
    points = 0.0
    for pair in pairs:
        chosen, rejected = (len(re.findall(r"\S+", text)) for text in pair)
        points += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return points / len(pairs)


def longer(pairs, *, length=lambda text: len(text.split()), point=lambda a, b: (a > b) + 0.5 * (a == b), over=None):
    points = [point(length(chosen), length(rejected)) for chosen, rejected in pairs]
    return over(points, pairs) if over else sum(points) / len(points)


longer_accuracy = Exercise(
    "10.5", "longer_accuracy",
    draw=draw_answers,
    right=longer_by_loop,
    call=as_number,
    formula=longer,
    mistakes={
        "equal lengths count as wrong; without a longer one the guess is a coin's: half": {"point": lambda a, b: a > b},
        "equal lengths count as right; without a longer one the guess is a coin's: half": {"point": lambda a, b: a >= b},
        "pairs of equal length are left out; they count half":
            {"over": lambda points, pairs: sum(p for p in points if p != 0.5) / max(1, sum(p != 0.5 for p in points))},
        "a shorter chosen text counts half too; only one of equal length does": {"point": lambda a, b: 1 if a > b else 0.5},
        "this counts characters; count words": {"length": len},
        "text.split(' ') does not cut at line breaks, and finds empty words between two spaces; text.split() does it right":
            {"length": lambda text: len(text.split(" "))},
        "empty words are counted, between two spaces or at a text's ends; text.split() finds none":
            ({"length": lambda text: len(re.split(r"\s+", text))}, {"length": lambda text: len(re.split(r"\s", text.strip()))}),
        "a tab does not part words here; white space of any kind does, as for text.split()":
            {"length": lambda text: len([word for word in re.split("[ \n]", text) if word])},
        "only blanks, tabs and line breaks part words here; white space of any kind does, as for text.split()":
            ({"length": lambda text: len(re.findall(r"[^ \t\n]+", text))},
             {"length": lambda text: len(re.findall(r"\S+", text, re.ASCII))}),
        "only so many words are counted, such as 100; count all":
            tuple({"length": lambda text, most=most: min(most, len(text.split()))} for most in (64, 100, 1000)),
        "an empty text counts as one word, as re.split finds one in it; text.split() finds none":
            {"length": lambda text: max(1, len(text.split()))},
        "punctuation splits words, or those with it do not count; a word is all that stands between white space":
            ({"length": lambda text: len(re.findall(r"\w+", text))}, {"length": lambda text: len(re.findall(r"[\w']+", text))},
             {"length": lambda text: sum(word.isalpha() for word in text.split())}),
        "this counts different words; a word counts as often as it comes": {"length": lambda text: len(set(text.split()))},
        "of several pairs with the same chosen text only the last is left, as in a dict; each pair counts":
            lambda pairs: longer(list(dict(pairs).items())),
        "this counts line breaks or lines, not words":
            ({"length": lambda text: text.count("\n")}, {"length": lambda text: len(text.splitlines())}),
        "this is how often the shorter one is chosen": {"point": lambda a, b: (a < b) + 0.5 * (a == b)},
        "this is a number of pairs; return a share": {"over": lambda points, pairs: sum(points)},
        "the lengths are added up before they are compared: one long answer outweighs many; compare pair by pair":
            lambda pairs: (lambda a, b: (a > b) + 0.5 * (a == b))(*(sum(len(t.split()) for t in side) for side in zip(*pairs))),
        "this is the mean share of words that the chosen answer has; ask of each pair which one is longer":
            {"point": lambda a, b: a / (a + b)},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.6


def draw_wins(generator):
    yield {"wins": torch.tensor([[0, 3], [1, 0]])}
    yield {"wins": torch.tensor([[0, 300], [100, 0]])}  # so often that a climber with a long step swings to and fro
    yield {"wins": torch.tensor([[0, 6, 0], [2, 0, 3], [0, 1, 0]])}  # three to one, twice
    yield {"wins": torch.tensor([[0, 4, 1], [2, 0, 9], [1, 3, 0]])}
    yield {"wins": torch.tensor([[0, 10, 0, 1], [5, 0, 2, 0], [0, 3, 0, 2], [2, 0, 1, 0]])}  # not everyone has met everyone
    yield {"wins": torch.tensor([[0, 4, 0, 0], [2, 0, 2, 0], [0, 3, 0, 5], [0, 0, 1, 0]])}  # a chain, where Zermelo's way is long
    yield {"wins": torch.tensor([  # neighbours met often, the others hardly at all: longer still
        [0, 4, 1, 1, 1, 1], [26, 0, 4, 1, 1, 1], [1, 26, 0, 5, 1, 1],
        [1, 1, 25, 0, 3, 1], [1, 1, 1, 27, 0, 4], [1, 1, 1, 1, 26, 0],
    ])}  # fmt: skip
    yield {"wins": torch.diag(torch.full((6,), 2), 1) + torch.diag(torch.ones(6, dtype=torch.long), -1)}  # a chain of seven
    for size in (3, 5, 7):
        strength = torch.randn(size, generator=generator)
        games = torch.randint(3, 30, (size, size), generator=generator).triu(1)
        share = torch.rand(size, size, generator=generator) * 0.3 + 0.7 * (strength[:, None] - strength).sigmoid()
        won = (games * share).round().clamp(min=1).long().minimum(games - 1).triu(1)
        yield {"wins": won + (games - won).triu(1).T}


def strengths_by_newton(wins):
    wins = wins.double()
    games, s = wins + wins.T, torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(20):
        p = (s[:, None] - s).sigmoid()
        weight = games * p * (1 - p)
        gradient = wins.sum(1) - (games * p).sum(1)
        s = s + torch.linalg.pinv(weight.sum(1).diag() - weight) @ gradient
        s = s - s.mean()
    return s


def zermelo(wins, *, steps=600, end=lambda s: s - s.mean(), turn=lambda wins: wins, of=lambda wins: wins.sum(1),
            games=lambda wins: wins + wins.T):  # fmt: skip
    """Zermelo's iteration on p = exp(strength): p_i = (wins of i) / sum over j of (games of i and j) / (p_i + p_j)."""
    wins = turn(wins.double())
    played, p = games(wins), torch.ones(len(wins), dtype=torch.float64)
    for _ in range(steps):
        p = of(wins) / (played / (p[:, None] + p)).sum(1)
        p = p / p.log().mean().exp()
    return end(p.log())


def climbed(wins, rate, steps):
    """The gradient is gone up `steps` times."""
    wins = wins.double()
    games, s = wins + wins.T, torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(steps):
        s = s + rate * (wins.sum(1) - (games * (s[:, None] - s).sigmoid()).sum(1))
    return s - s.mean()


def of_shares(make):
    """Made of wins and losses (K,) of each, without asking against whom."""
    return lambda wins: (lambda s: s - s.mean())(make(wins.double().sum(1), wins.double().sum(0)))


def mean_odds(wins):
    """The mean over the opponents of the log-odds against each, a half win added where there is none."""
    odds = torch.where(wins + wins.T > 0, ((wins + 0.5) / (wins.T + 0.5)).double().log(), 0)
    return odds.mean(1) - odds.mean()


strengths = Exercise(
    "10.6", "strengths",
    tolerance=1e-4,
    draw=draw_wins,
    right=strengths_by_newton,
    formula=zermelo,
    mistakes={
        "this is the log-odds of winning at all; a win against a strong one is worth more":
            of_shares(lambda won, lost: (won / lost).log()),
        "this is the share of games won, not a strength: it does not ask against whom":
            of_shares(lambda won, lost: won / (won + lost)),
        "this is the number of games won, not a strength": of_shares(lambda won, lost: won),
        "this is the logarithm of the number of games won; a win against a strong one is worth more":
            of_shares(lambda won, lost: won.log()),
        "the log-odds of the pairs are averaged, whether they met once or thirty times; maximise the likelihood of all games":
            mean_odds,
        "this is exp(strength); return its logarithm, in which differences are log-odds":
            ({"end": torch.exp}, {"end": lambda s: s.softmax(0)}),
        "the first one's strength is set to 0; take the mean away": {"end": lambda s: s - s[0]},
        "these are log-strengths of which exp adds up to 1; take the mean away": {"end": lambda s: s.log_softmax(0)},
        "wins and losses are exchanged: wins[i, j] is how often i has beaten j": {"turn": lambda wins: wins.T},
        "the mean of exp(strength) is made 1; take the mean of the logarithms away":
            {"end": lambda s: s - s.exp().mean().log()},
        "this is one step of the iteration; go on until nothing changes": {"steps": 1},
        "this is not yet at the maximum: go on until nothing changes":
            (*({"steps": steps} for steps in (2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 25, 30, 40, 50, 100)),
             *(functools.partial(climbed, rate=rate, steps=steps)
               for rate in (0.01, 0.001) for steps in (100, 200, 300, 500, 1000, 2000))),
        "the sum goes over the games that i has won; n_ij are all games of the two, whoever won": {"games": lambda wins: wins},
        "games are added that nobody played, such as half a win for each side of every pair; the wins alone decide":
            tuple({"turn": lambda wins, one=one: wins + one * (1 - torch.eye(len(wins)))} for one in (1, 0.5, 0.1, 0.01)),
        "each pair counts as one game, however often the two have met":
            {"turn": lambda wins: wins / (wins + wins.T).clamp(min=1)},
        "only whether two have met is counted, not how often": {"games": lambda wins: ((wins + wins.T) > 0).double()},
        "these are points of the Elo scale, 400 for a factor of ten; return natural log-odds":
            {"end": lambda s: (s - s.mean()) * 400 / math.log(10)},
    },
)  # fmt: skip


# ----------------------------------------------------------------------------------------- 10.7


def draw_ranks(generator):
    yield {"ranks": [2, 1]}
    yield {"ranks": [1, 1]}
    yield {"ranks": [3, 1, 2]}
    yield {"ranks": [1, 2, 2, 3]}
    yield {"ranks": [4]}
    for size in (4, 5, 6):
        yield {"ranks": torch.randint(1, size, (size,), generator=generator).tolist()}
    yield {"ranks": (torch.randperm(11, generator=generator) + 1).tolist()}  # of two digits, too


def in_order(function, ranks):
    pairs = function(ranks=list(ranks))
    return sorted([int(one) for one in pair] for pair in pairs) if isinstance(pairs, (list, tuple)) else pairs


def pairs_by_sorting(ranks):
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    found = [(a, b) for at, a in enumerate(order) for b in order[at + 1 :]]
    return [pair for pair in found if ranks[pair[0]] != ranks[pair[1]]]


def all_pairs(ranks, *, use=lambda a, b: a < b, those=lambda i, j, ranks: True, end=lambda i, j: (i, j)):
    K = range(len(ranks))
    return [end(i, j) for i in K for j in K if i != j and use(ranks[i], ranks[j]) and those(i, j, ranks)]


def neighbours(i, j, ranks):
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    return order.index(j) == order.index(i) + 1


ranked_pairs = Exercise(
    "10.7", "ranked_pairs",
    draw=draw_ranks,
    right=pairs_by_sorting,
    call=in_order,
    formula=all_pairs,
    mistakes={
        "rank 1 is the best: the better answer has the smaller rank": {"use": lambda a, b: a > b},
        "ranks are compared as texts, in which 10 comes before 2": {"use": lambda a, b: str(a) < str(b)},
        "a tie is no pair: of two answers of one rank neither is better": ({"use": lambda a, b: a <= b},
            lambda ranks: [(i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks))
                           for i, j in [(i, j) if ranks[i] <= ranks[j] else (j, i)]],
            lambda ranks: list(itertools.combinations(sorted(range(len(ranks)), key=lambda place: ranks[place]), 2))),
        "ranks.index finds the first answer of a rank; of several that are tied each has its own place":
            lambda ranks: [(ranks.index(ranks[i]), ranks.index(ranks[j])) for i, j in all_pairs(ranks)],
        "of several answers of one rank only one is left, as in a dict; each has its own pairs":
            tuple({"those": lambda i, j, ranks, one=one: i == one(ranks, ranks[i]) and j == one(ranks, ranks[j])}
                  for one in (list.index, lambda ranks, rank: len(ranks) - 1 - ranks[::-1].index(rank))),
        "without a pair this is None; return an empty list": lambda ranks: all_pairs(ranks) or None,
        "both directions of each pair are in it: only (better, worse)": {"use": lambda a, b: a != b},
        "the answers are taken to stand in their order already, best first; ask the ranks":
            tuple(lambda ranks, use=use: [
                (i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks)) if use(ranks[i], ranks[j])
            ] for use in (lambda a, b: True, lambda a, b: a != b)),
        "pairs in which the better answer stands behind the worse are left out": {"those": lambda i, j, ranks: i < j},
        "only neighbours are compared; every better answer is compared with every worse one": {"those": neighbours},
        "only ranks that follow each other are compared; every better answer is compared with every worse one":
            {"use": lambda a, b: a + 1 == b},
        "only the best is compared with the others; these are ranked among themselves too":
            ({"those": lambda i, j, ranks: ranks[i] == min(ranks)}, {"those": lambda i, j, ranks: i == ranks.index(min(ranks))}),
        "only the best and the worst are compared; all pairs are":
            {"those": lambda i, j, ranks: ranks[i] == min(ranks) and ranks[j] == max(ranks)},
        "these are pairs of ranks; return the answers' places": lambda ranks: [(ranks[i], ranks[j]) for i, j in all_pairs(ranks)],
        "the places count from 1; they count from 0": {"end": lambda i, j: (i + 1, j + 1)},
        "every answer is paired with itself too": lambda ranks: [*all_pairs(ranks), *((i, i) for i in range(len(ranks)))],
    },
)  # fmt: skip
