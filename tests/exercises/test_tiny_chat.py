"""What the probes of 11.12 stand on: conversations as ChatML lays them out, and losses that the library's kernels confirm."""

import torch
from torch.nn import functional as F

from rlhf_lib.exercises import tiny_chat as kit
from rlhf_lib.trainers import sft


def some(count=9, seed=0):
    return kit.conversations(torch.Generator().manual_seed(seed), count)


def test_turns_say_whose_every_token_is():
    tokens, spoken = kit.turns((kit.USER, [7]), (kit.ASSISTANT, [8, 9]))
    assert tokens == [kit.BEGIN, kit.USER, 7, kit.END, kit.NEWLINE, kit.BEGIN, kit.ASSISTANT, 8, 9, kit.END, kit.NEWLINE]
    assert spoken == [False] * 7 + [True] * 3 + [False]


def test_conversations_are_their_seed_alone_and_differ_in_length():
    assert some() == some() != some(seed=1)
    lengths = {len(tokens) for tokens, _ in some()}
    assert len(lengths) > 4 and max(lengths) <= 40  # the rows of the probes have 40 tokens
    assert all(len(tokens) == len(spoken) and max(tokens) < kit.TOKENS for tokens, spoken in some())
    assert all(
        token in kit.WORDS for tokens, spoken in some() for token, said in zip(tokens, spoken) if said and token != kit.END
    )


def test_a_tiny_model_is_its_seed_alone_and_takes_numbers_of_texts():
    for dropout in (0.0, 0.3):
        one, again = kit.tiny(3, dropout), kit.tiny(3, dropout)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters())) and not one.training
        row, alone = torch.tensor([[7, 8, 9, 10]]), torch.tensor([[9, 10]])
        packed, mask = one(row, torch.tensor([[1, 1, 2, 2]])), torch.ones(1, 2, dtype=torch.bool)
        assert torch.allclose(packed[:, 2:], one(alone, mask), atol=1e-5)


def test_losses_of_conversations_by_themselves_are_those_of_packed_rows():
    model = kit.tiny(5).train()
    tokens, texts, targets = sft.pack(some(), 60)
    with torch.no_grad():
        logits = model(tokens, texts)[:, :-1]
    right = F.cross_entropy(logits[targets[:, 1:]], tokens[:, 1:][targets[:, 1:]]).item()
    assert abs(kit.truth(model, some()) - right) < 1e-5
    assert not model.training  # measured without dropout
    assert [len(loss) for loss in kit.losses(model, some())] == [len(tokens) - 1 for tokens, _ in some()]
    assert [len(loss) for loss in kit.unshifted(model, some())] == [len(tokens) for tokens, _ in some()]


def test_unshifted_is_what_the_logits_say_of_the_token_that_they_have_read():
    model, (tokens, _) = kit.tiny(5), some(1)[0]
    row = torch.tensor([tokens])
    with torch.no_grad():
        right = F.cross_entropy(model(row, torch.ones_like(row))[0], row[0], reduction="none")
    assert torch.allclose(kit.unshifted(model, [(tokens, None)])[0], right, atol=1e-5)


def test_texts_are_numbered_in_each_row_and_padding_is_0():
    one, other = kit.turns((kit.USER, [7])), kit.turns((kit.USER, [8, 8]), (kit.ASSISTANT, [9]))
    rows = torch.tensor([[*one[0], *other[0], 0], [*other[0], 0, *one[0]]])
    found = kit.numbered(rows, [one, other])
    assert found.tolist() == [[1] * 5 + [2] * 11 + [0], [1] * 11 + [0] + [2] * 5]


def test_a_training_is_watched_as_it_runs():
    model, tokens = kit.tiny(0), torch.tensor([[5, 6, 7]])
    seen = kit.watch(model)
    with torch.no_grad():
        model(tokens, torch.ones_like(tokens))
    for _ in range(2):  # the second gradient is added to the first
        model.train()(tokens, torch.ones_like(tokens)).square().mean().backward()
    assert [len(seen[name]) for name in ("steps", "modes", "texts", "alone")] == [2, 2, 2, 2]
    assert seen["modes"] == [True, True] and seen["alone"] == [True, False] and torch.equal(seen["steps"][0], tokens)


def test_a_first_step_lies_on_the_loss_that_it_learns_from():
    def far(name):
        def train(model):
            each = list(zip(kit.flags(learn), learned(model)))
            mean = torch.cat([loss[said[1:]] for said, loss in each]).mean()
            means = torch.stack([loss[said[1:]].mean() for said, loss in each]).mean()
            (3 * {"right": mean, "mean of means": means}[name]).backward()  # the scale does not matter

        return kit.first_step(kit.tiny(1), learn, train)

    def learned(model):
        for tokens, _ in learn:
            row = torch.tensor(tokens)[None]
            yield F.cross_entropy(model(row[:, :-1], torch.ones_like(row[:, 1:]).bool())[0], row[0, 1:], reduction="none")

    learn = some()
    for name, other in (("right", "mean of means"), ("mean of means", "right")):
        found = far(name)
        assert found[name] < 1e-3 and found[other] > 0.05 and min(found, key=found.get) == name
