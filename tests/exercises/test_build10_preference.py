"""Build it 10.10: right builds pass, wrong ones fail at their own probe, and the sentence says what they have done."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises import BUILDS, find
from rlhf_lib.exercises import build10_preference as probes
from rlhf_lib.exercises.build import try_out
from rlhf_lib.exercises.keep import the_course
from rlhf_lib.models.layers import pad

find("train_preference")
BUILD = BUILDS["train_preference"]
BATCHED = "both answers in one batch, held-out pairs in none"
PLANTED = "right on 90 % of a preference that it has not read"


def at_last(hidden, tokens, mask):
    return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]


class Built(nn.Module):
    """A reward model with options: what is read, and what comes out."""

    def __init__(self, gpt, read, end, share, dropout, start):
        super().__init__()
        self.body = gpt if share else copy.deepcopy(gpt)
        self.read, self.end, self.dropout = read, end, dropout
        self.score = nn.Linear(gpt.embedding.weight.shape[1], 1, bias=False)
        if start is not None:
            nn.init.zeros_(self.score.weight)

    def forward(self, tokens, mask):
        hidden = F.dropout(self.body.hidden(tokens, mask), self.dropout, self.training)
        return self.end(self.score(self.read(hidden, tokens, mask)))


def in_one_batch(model, some, fill):
    return model(*fill([p + a for p, c, r in some for a in (c, r)])).reshape(-1, 2).unbind(1)


def in_halves(model, some, fill):
    return model(*fill([triple[0] + triple[side] for side in (1, 2) for triple in some])).chunk(2)


def in_two(model, some, fill):
    return [model(*fill([triple[0] + triple[side] for triple in some])) for side in (1, 2)]


def softplus(chosen, rejected):
    return F.softplus(rejected - chosen).mean()


def share(model, pairs, fill):
    chosen, rejected = in_one_batch(model, pairs, fill)
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected)).mean().item()


def made(
    gpt, learn, held_out, *, epochs, batch, lr, seed, read=at_last, end=lambda z: z[:, 0], shared=False, dropout=0.0, start=0,
    loss=softplus, modes=(True, False, False), own=lambda model: model.parameters(), rate=lambda lr: lr, step=in_one_batch,
    order=lambda n, g, epoch: torch.randperm(n, generator=g), keep=lambda parts: parts, fill=lambda rows: pad(rows, "right"),
    fewer=0, seeded=True, more=lambda learn, held_out: learn, measure=share, on=lambda learn, held_out: held_out, grad=False,
    out=lambda model, accuracy: (model, accuracy),
):  # fmt: skip
    """The loop with options: without any it is right, and written another way than the course's."""
    if seeded:
        torch.manual_seed(seed)  # dropout, and a linear layer that does not start at 0
    model = Built(gpt, read, end, shared, dropout, start)
    optimizer = torch.optim.Adam(own(model), lr=rate(lr))
    generator, pairs = torch.Generator().manual_seed(seed), more(learn, held_out)
    model.train(modes[0])
    for epoch in range(epochs - fewer):
        for places in keep(order(len(pairs), generator, epoch).split(batch)):
            loss(*step(model, [pairs[place] for place in places.tolist()], fill)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    with torch.set_grad_enabled(grad):
        accuracy = measure(model.train(modes[1]), on(learn, held_out), lambda rows: pad(rows, "right"))
    return out(model.train(modes[2]), accuracy)


def by(**options):
    """`made` with options."""
    return lambda gpt, learn, held_out, **named: made(gpt, learn, held_out, **named, **options)


def in_place(gpt, learn, held_out, **named):
    found = made(gpt, learn, held_out, **named)
    learn.sort(key=lambda triple: len(triple[1]))
    return found


def put_to_sleep(gpt, learn, held_out, **named):
    return made(gpt.eval(), learn, held_out, **named)


def untrained(gpt, learn, held_out, **named):
    return made(gpt, learn, held_out, **{**named, "epochs": 0})


def masked_mean(hidden, tokens, mask):
    return (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]


def at_the_end_while_learning(hidden, tokens, mask):
    return hidden[:, -1] if torch.is_grad_enabled() else at_last(hidden, tokens, mask)


def guessed(hidden, tokens, mask):
    return hidden[torch.arange(len(hidden)), (tokens != 0).sum(1).clamp(min=1) - 1]


def woken(gpt, learn, held_out, **named):
    return made(gpt.train(), learn, held_out, **named)


def of_answers(model, some, fill):
    return in_one_batch(model, [[[], c, r] for _, c, r in some], fill)


def of_ends(model, some, fill):
    return in_one_batch(model, [[p[-1:], c, r] for p, c, r in some], fill)


def head(model):
    return model.score.parameters()


def body(model):
    return model.body.parameters()


class Heaping(torch.optim.Adam):
    """Adam whose gradients are never zeroed."""

    def zero_grad(self, set_to_none=True):
        pass


def heaped(gpt, learn, held_out, **named):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Heaping)
        return made(gpt, learn, held_out, **named)


def coupled(chosen, rejected):
    return -torch.cat([chosen, rejected]).log_softmax(0)[: len(chosen)].mean()


def all_against_all(chosen, rejected):
    return F.softplus(rejected - chosen[:, None]).mean()


def halves(model, pairs, fill, parted=0):
    """The share, with all chosen rows above all others; rounding parts the first `parted` pairs of equal rewards."""
    chosen, rejected = in_halves(model, pairs, fill)
    chosen[:parted] += 1e-6 * (chosen[:parted] == rejected[:parted])
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected)).mean().item()


def share_with(point):
    return lambda model, pairs, fill: point(*in_one_batch(model, pairs, fill)).float().mean().item()


WRONG = [
    ("one number an answer", "must return two things", by(out=lambda model, accuracy: model)),
    ("one number an answer", ".item()", by(out=lambda model, accuracy: (model, torch.tensor(accuracy)))),
    ("one number an answer", "last dimension", by(end=lambda z: z)),
    ("one number an answer", "dropout is still on", by(modes=(True, False, True))),
    ("one number an answer", "between 0 and 1", by(measure=lambda model, pairs, fill: 100 * share(model, pairs, fill) + 2)),
    ("padding never matters", "behind it", by(read=lambda h, tokens, mask: h[:, -1])),
    ("padding never matters", "with zeros there it does not", by(read=guessed)),
    ("padding never matters", "learns nothing", untrained),
    ("the last real token is read", "made of other positions", by(read=masked_mean)),
    ("the last real token is read", "the one before the last", by(read=lambda h, tokens, mask: at_last(h, tokens, mask[:, 1:]))),
    ("the last real token is read", "decides who wins", by(read=lambda h, *_: h[:, 0])),
    ("the last real token is read", "chosen - rejected", by(loss=lambda c, r: softplus(r, c))),
    ("finite at any margin", "log(sigmoid) underflows", by(loss=lambda c, r: -(c - r).sigmoid().log().mean())),
    ("finite at any margin", "log(sigmoid) underflows", by(loss=lambda c, r: (1 + (r - c).exp()).log().mean())),
    ("swapping the sides negates", "equal rewards count as half", by(measure=share_with(lambda c, r: c > r))),
    ("swapping the sides negates", "must add up to 1", by(measure=lambda *given: max(share(*given), 1 - share(*given)))),
    ("swapping the sides negates", "those held out", by(on=lambda learn, held_out: learn)),
    ("swapping the sides negates", "is said to be", by(measure=lambda *given: 0.5 + 0.3 * (share(*given) - 0.5))),
    ("only the difference counts", "judged by itself", by(loss=lambda c, r: F.softplus(-c).mean() + F.softplus(r).mean())),
    ("only the difference counts", "those of other pairs", by(loss=coupled)),
    ("only the difference counts", "those of other pairs", by(loss=all_against_all)),
    ("only the difference counts", "hinge", by(loss=lambda c, r: (1 - c + r).clamp(min=0).mean())),
    ("only the difference counts", "come to rest", by(loss=lambda c, r: softplus(c.sigmoid(), r.sigmoid()))),
    ("only the difference counts", "exchanged", by(loss=lambda c, r: softplus(r, c))),
    (BATCHED, "not in one batch", by(step=in_two)),
    (BATCHED, "the whole prompt", by(step=of_answers)),
    (BATCHED, "the whole prompt", by(step=of_ends)),
    (BATCHED, "the linear layer alone", by(own=head)),
    (BATCHED, "not the body's alone", by(own=body, start=None)),
    (BATCHED, "zero them after each step", heaped),
    (BATCHED, "made of padding", by(read=at_the_end_while_learning)),
    (BATCHED, "are 69", by(keep=lambda parts: [one for one in parts if len(one) == 5])),
    (BATCHED, "torch.randperm",
     by(order=lambda n, g, epoch: torch.arange(n).where(torch.arange(n) != 3, 4))),
    (BATCHED, "same order", by(order=lambda n, g, epoch: torch.arange(n))),
    (BATCHED, "same order", by(order=lambda n, g, epoch: torch.randperm(n, generator=g) if epoch == 0 else torch.arange(n))),
    (BATCHED, "are 69", by(fewer=1)),
    (BATCHED, "`batch` is 5", by(keep=lambda parts: [torch.cat(parts)])),
    (BATCHED, "evaluation mode while it learns", by(modes=(False, False, False))),
    (BATCHED, "while it is measured", by(modes=(True, True, False))),
    (BATCHED, "from `learn` alone", by(more=lambda learn, held_out: learn + held_out)),
    (BATCHED, "under torch.no_grad()", by(grad=True)),
    ("the GPT stays as it was", "Train a copy", by(shared=True)),
    ("the GPT stays as it was", "Copy the body", by(shared=True, own=head)),
    ("the GPT stays as it was", "was in training mode", put_to_sleep),
    ("the GPT stays as it was", "was in evaluation mode", woken),
    ("the GPT stays as it was", "`learn` or `held_out`", in_place),
    ("the seed alone decides", "global generator", by(start=None, seeded=False)),
    ("the seed alone decides", "global generator", by(order=lambda n, g, epoch: torch.randperm(n), seeded=False)),
    ("the seed alone decides", "global generator", by(seeded=False)),
    ("the seed alone decides", "another seed",
     by(order=lambda n, g, epoch: torch.randperm(n, generator=torch.Generator().manual_seed(epoch)))),
    ("the seed alone decides", "another `lr`", by(rate=lambda lr: 1e-3)),
    (PLANTED, "needs 90 %", by(order=lambda n, g, epoch: torch.randperm(n, generator=g)[:24])),
]  # fmt: skip


def inputs_of(probe, seed):
    return next(one for one in BUILD.draw(seed) if one["probe"] == probe)


@pytest.mark.parametrize("seed", [7])  # the worked notebooks run seed 0
@pytest.mark.parametrize(
    "right",
    ["course", made, by(step=in_halves, measure=halves, start=None), by(measure=functools.partial(halves, parted=3))],
    ids=["the course's", "another", "in halves", "rounding parts equal rewards"],
)
def test_right_builds_pass_the_cheap_probes(right, seed):
    built = the_course("train_preference") if right == "course" else right
    assert try_out(BUILD, built, seed, most=10) == ("", "")


@pytest.mark.parametrize("probe, word, built", WRONG, ids=[f"{probe}: {word}" for probe, word, _ in WRONG])
def test_a_wrong_build_fails_at_its_probe(probe, word, built):
    inputs = inputs_of(probe, 0)
    assert word in BUILD.fault(inputs, BUILD.answer(built, inputs))


def test_the_last_probe_passes_what_learns_and_believes_no_accuracy_that_it_has_not_counted():
    inputs = inputs_of(PLANTED, 1)
    output = BUILD.answer(made, inputs)
    assert BUILD.fault(inputs, output) == ""
    assert "is said to be 0.970" in BUILD.fault(inputs, {**output, "accuracy": 0.97, "counted": 0.95})
    few = torch.where(torch.arange(300) % 7 == 0, -output["unseen"], output["unseen"])
    assert "needs 90 %" in BUILD.fault(inputs, {**output, "unseen": few})
    assert "needs 90 %" in BUILD.fault(inputs, {**output, "unseen": torch.zeros(300)})


def test_the_halves_of_the_planted_preference_share_no_pair_and_length_does_not_decide_it():
    given = inputs_of(PLANTED, 0)
    learn, held_out = ({tuple(map(tuple, pair)) for pair in given[half]} for half in ("learn", "held_out"))
    assert len(learn) == probes.PAIRS and len(held_out) == probes.UNSEEN and not learn & held_out
    longer = sum((len(c) > len(r)) + 0.5 * (len(c) == len(r)) for _, c, r in given["held_out"]) / probes.UNSEEN
    assert 0.35 < longer < 0.65


def test_a_long_probe_moves_its_bar(monkeypatch):
    told = []
    monkeypatch.setattr(probes, "tick", lambda share, note: told.append((share, note)))
    given = {name: one for name, one in inputs_of(PLANTED, 0).items() if name not in ("probe", "first")}
    probes.train_on_planted(made, **{**given, "learn": given["learn"][: 2 * probes.BATCH]})
    assert len(told) == 2 * probes.EPOCHS and told[-1] == (1.0, f"step {len(told)} of {len(told)}")


def test_held_out_pairs_that_are_learned_from_are_named_before_the_accuracy_is_looked_at():
    probe, sentence = try_out(BUILD, by(more=lambda learn, held_out: learn + held_out), 0, most=10)
    assert probe == BATCHED and "from `learn` alone" in sentence


@pytest.mark.parametrize("size", range(1, 40))
def test_a_linear_layer_gives_equal_rewards_to_the_bit_on_the_body_of_the_pairs_of_an_answer_with_itself(size):
    generator = torch.Generator().manual_seed(size)
    rows, score = torch.randint(probes.TOKENS, (size, 5), generator=generator), nn.Linear(probes.TOKENS, 1)
    nn.init.normal_(score.weight, generator=generator)
    chosen, rejected = score(probes.OneHot().hidden(torch.cat([rows, rows]))[:, -1]).chunk(2)
    assert torch.equal(chosen, rejected) and (size == 1 or chosen.std() > 0)


def test_no_pair_whose_accuracy_is_asked_is_drawn_as_an_answer_with_itself():
    generator = torch.Generator().manual_seed(0)
    assert all(chosen != rejected for _ in range(300) for _, chosen, rejected in probes.draw_swap(generator)["held_out"])


@pytest.mark.parametrize("fill", ["left", "right"])
def test_a_row_is_known_by_its_prompt_on_whichever_side_it_is_padded(fill):
    pairs = [[[7, 1], [2, 3], [4]], [[8], [2], [3, 9]]]
    rows, _ = pad(probes.answers(pairs), fill)
    assert [probes.prompt_of(row, pairs) for row in rows.tolist()] == [7, 8, 7, 8]
    assert probes.prompt_of([2, 3, 0, 0], pairs) is None and probes.prompt_of([1, 2, 3, 0], pairs) is None
