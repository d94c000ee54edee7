"""What the probes of 8.10 stand on: the tiny models, rewards and KL against hand-worked numbers, and the form of a run."""

import copy
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from rlhf_lib.exercises import tiny_rlhf as kit
from rlhf_lib.exercises.plain import odd
from rlhf_lib.models.gpt import GPT, GPTConfig


def says(**chances):
    """A GPT of 20 tokens that gives token 5, say, the chance t5=0.5 at every place, and all tokens left out equal ones."""
    model = GPT(GPTConfig(vocab_size=20, context=32, layers=1, heads=2, width=32)).eval()  # as it is made, the block adds nothing
    share = torch.full((20,), (1 - sum(chances.values())) / (20 - len(chances)))
    for name, chance in chances.items():
        share[int(name[1:])] = chance
    with torch.no_grad():
        model.embedding.weight.fill_(1.0)
        model.head.weight[:, 0] = share.log()
    return model


def first_chances(model, prompt):
    with torch.no_grad():
        return model.double()(torch.tensor([prompt]))[0, -1].softmax(-1)


# ----------------------------------------------------------------------------------------- models


def test_a_tiny_model_hangs_on_its_seed_alone_and_leaves_the_random_state_as_it_was():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = kit.tiny(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert kit.same_weights(kit.weights(one), kit.weights(kit.tiny(3)))
    assert not kit.same_weights(kit.weights(one), kit.weights(kit.tiny(4))) and not one.training
    assert one.config.vocab_size == 20 and one.config.context >= len(kit.PROMPT) + kit.LENGTH


@pytest.mark.parametrize("seed", [0, 5, 999])
def test_a_tiny_model_is_far_from_uniform_and_hears_its_prompt(seed):
    here, there = (first_chances(kit.tiny(seed), prompt) for prompt in ([7, 3, 11], [7, 3, 12]))
    assert -(here * here.log()).sum() < math.log(20) - 0.1
    assert (here - there).abs().sum() > 0.1


@pytest.mark.parametrize("ends", [0.5, 2.0])
def test_ends_raises_the_odds_of_the_end_token_as_much_as_the_common_coordinate_is_large(ends):
    plain, ending = kit.tiny(3).double(), kit.tiny(3, ends).double()
    common = plain.hidden(torch.tensor([kit.PROMPT]))[0, -1, 0].item()
    assert common > 0.5
    before, after = (first_chances(model, kit.PROMPT) for model in (plain, ending))
    odds = [(chances[0] / (1 - chances[0])).item() for chances in (before, after)]
    assert odds[1] / odds[0] == pytest.approx(math.exp(ends * common), rel=1e-6)
    torch.testing.assert_close(after[1:] / after[1:].sum(), before[1:] / before[1:].sum(), atol=1e-9, rtol=1e-9)


# ----------------------------------------------------------------------------------------- rewards and completions

TOKENS = torch.tensor([[5, 6, 7, 5], [5, 5, 5, 5], [1, 2, 0, 1], [3, 2, 1, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()


def test_rewards_count_what_is_real():
    assert kit.count(TOKENS, MASK).tolist() == [2, 2, 0, 0]
    assert kit.count(TOKENS, MASK, token=1).tolist() == [0, 0, 1, 1]
    assert kit.pairs(TOKENS, MASK).tolist() == [2, 0, 1, 0]  # 5 6 and 6 7; none; 1 2, but not the 0 1 behind the end; none
    assert kit.pairs(TOKENS[:, :1], MASK[:, :1]).tolist() == [0, 0, 0, 0]
    assert kit.count(TOKENS, MASK).dtype == kit.pairs(TOKENS, MASK).dtype == torch.float32


def test_fresh_completions_are_the_same_each_time_and_end_behind_token_0():
    model = says(t0=0.25)
    rows, again = kit.fresh(model), kit.fresh(model)
    assert torch.equal(rows.tokens, again.tokens) and rows.tokens.shape == (1024, 8)
    for tokens, mask in zip(rows.tokens.tolist(), rows.mask.tolist()):
        length = tokens.index(0) + 1 if 0 in tokens else 8
        assert mask == [True] * length + [False] * (8 - length)
    assert kit.fresh(model, [1, 2], 3, 5).tokens.shape == (5, 3)


def test_fresh_completions_are_as_long_and_hold_as_many_tokens_as_their_chances_say():
    rows = kit.fresh(says(t0=0.25, t5=0.5), number=4096)
    alive = [0.75**place for place in range(8)]  # the chance that a place is reached
    lengths = rows.mask.sum(1).float()
    assert lengths.mean().item() == pytest.approx(sum(alive), abs=5 * lengths.std().item() / 64)  # five standard errors
    fives = kit.count(rows.tokens, rows.mask)
    assert fives.mean().item() == pytest.approx(0.5 * sum(alive), abs=5 * fives.std().item() / 64)


# ----------------------------------------------------------------------------------------- KL


def test_the_kl_is_that_of_a_token_times_the_tokens_of_a_completion():
    policy, base = says(t5=0.5), says()
    each = 0.5 * math.log(0.5 / (1 / 20)) + 0.5 * math.log((0.5 / 19) / (1 / 20))
    length = kit.fresh(policy).mask.sum(1).float().mean().item()
    assert kit.true_kl(policy, base) == pytest.approx(each * length, rel=1e-5)
    back = -sum(math.log(chance * 20) for chance in [0.5] + [0.5 / 19] * 19) / 20
    length = kit.fresh(base).mask.sum(1).float().mean().item()
    assert length < 8 and kit.true_kl(base, policy) == pytest.approx(back * length, rel=1e-5)
    assert kit.true_kl(policy, copy.deepcopy(policy)) == 0


def kl_by_hand(policy, base, prompt, rows):
    """Row by row and place by place, in double precision and without a cache or padding."""
    policy, base, total = copy.deepcopy(policy).double(), copy.deepcopy(base).double(), 0.0
    with torch.no_grad():
        for tokens, mask in zip(rows.tokens, rows.mask):
            real = tokens[mask].tolist()
            p, q = (model(torch.tensor([prompt + real[:-1]]))[0, len(prompt) - 1 :].softmax(-1) for model in (policy, base))
            assert len(p) == len(real)
            total += (p * (p / q).log()).sum().item()
    return total / len(rows.tokens)


def test_the_kl_of_models_that_hear_their_past_is_that_of_a_loop_over_its_places():
    policy, base = kit.tiny(1, ends=0.8), kit.tiny(2)
    expected = kl_by_hand(policy, base, kit.PROMPT, kit.fresh(policy, number=64))
    assert expected > 0.5 and kit.true_kl(policy, base, number=64) == pytest.approx(expected, rel=1e-5)


def test_the_kl_of_two_tokens_is_near_the_sum_over_all_of_them():
    policy, base = kit.tiny(1), kit.tiny(2)
    pairs = torch.tensor([kit.PROMPT + [first] for first in range(20)])
    with torch.no_grad():
        p, q = (model.double()(pairs)[:, -2:].softmax(-1) for model in (copy.deepcopy(policy), copy.deepcopy(base)))
    terms = (p * (p / q).log()).sum(-1)  # (20, 2)
    later = torch.where(torch.arange(20) > 0, terms[:, 1], 0)  # nothing comes behind the end
    exact = (terms[0, 0] + (p[0, 0] * later).sum()).item()
    spread = ((p[0, 0] * later**2).sum() - (p[0, 0] * later).sum() ** 2).sqrt().item()
    assert kit.true_kl(policy, base, length=2) == pytest.approx(exact, abs=5 * spread / 32)


@pytest.mark.parametrize("prompt", [[4, 9, 2], [6]])
def test_the_kl_behind_another_prompt_is_that_behind_it(prompt):
    policy, base = kit.tiny(1), kit.tiny(2)
    expected = kl_by_hand(policy, base, prompt, kit.fresh(policy, prompt, number=64))
    assert kit.true_kl(policy, base, prompt, number=64) == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------- a run as plain data


def test_weights_are_copies_and_of_modules_alone():
    layer = nn.Linear(2, 1)
    found = kit.weights(layer)
    assert found.keys() == {"weight", "bias"} and kit.same_weights(found, layer.state_dict())
    layer.weight.data += 1
    assert not kit.same_weights(found, layer.state_dict())
    assert [kit.weights(one) for one in (None, [], {"weight": 1}, torch.ones(2), nn.Linear)] == [None] * 5


def test_a_run_has_the_usual_settings_and_is_copied_as_it_is_when_it_ends():
    base, taken = kit.tiny(0), []

    def rlhf(gpt, reward, **settings):
        taken.append((gpt, reward, settings))
        gpt.head.weight.data += 1  # what must not be done
        return gpt, [{"iteration": 0}]

    before = kit.weights(base)
    found = kit.go(rlhf, base, seed=4, lr=0.5)
    base.head.weight.data += 1
    ((gpt, reward, settings),) = taken
    assert gpt is base and reward is kit.count
    assert settings == {
        "prompt": [7, 3, 11], "rollout_size": 256, "max_new_tokens": 8, "kl_coef": 0.05, "lr": 0.5, "minibatch": 64, "seed": 4,
    }  # fmt: skip
    assert found["records"] == [{"iteration": 0}]
    torch.testing.assert_close(found["base"]["head.weight"], before["head.weight"] + 1)
    assert kit.same_weights(found["policy"], found["base"])
    assert kit.go(lambda *_, **__: ("no model", []), base)["policy"] is None
    with pytest.raises(TypeError):
        kit.go(lambda *_, **__: None, base)


def test_what_a_run_leaves_on_the_base_beside_weights_is_named():
    def left(spoil):
        return kit.go(lambda gpt, *_, **__: (spoil(gpt), []), kit.tiny(0).train())["left"]

    assert left(lambda gpt: None) == []
    assert left(lambda gpt: gpt.blocks[0].eval()) == ["mode"]
    assert left(lambda gpt: gpt.head.requires_grad_(False)) == ["requires_grad"]
    assert left(lambda gpt: gpt(torch.tensor([[1, 2]])).sum().backward()) == ["grad"]


def test_a_tiny_model_may_have_dropout_and_has_the_same_weights():
    model = kit.tiny(3, dropout=0.5)
    assert kit.same_weights(kit.weights(model), kit.weights(kit.tiny(3))) and not model.training
    rows = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(rows), kit.tiny(3)(rows)) and not torch.equal(model.train()(rows), model(rows))


def test_a_policy_is_loaded_into_a_copy():
    base = kit.tiny(0)
    policy = kit.loaded(base, {"policy": kit.weights(kit.tiny(1))})
    assert kit.same_weights(kit.weights(policy), kit.weights(kit.tiny(1)))
    assert kit.same_weights(kit.weights(base), kit.weights(kit.tiny(0)))


@pytest.mark.parametrize("value, right", [
    (0, True), (-2.5, True), (True, False), (math.nan, False), (-math.inf, False), (None, False), ("1", False),
    (torch.tensor(1.0), False), ([1.0], False), (Fraction(1, 2), False), (1j, False),
])  # fmt: skip
def test_a_number_is_a_finite_int_or_float(value, right):
    assert kit.number(value) is right


# ----------------------------------------------------------------------------------------- the form of a run


@pytest.fixture(scope="module")
def base():
    return kit.tiny(0)


def records(count, **changes):
    """Right records; changes such as kl_1=None are of one record, and ... takes a key out."""
    made = [{"iteration": place, "reward": 0.5, "kl": 0.1, "ratio": 1.0, "clip_fraction": 0} for place in range(count)]
    for name, value in changes.items():
        key, _, place = name.rpartition("_")
        made[int(place)][key] = value
        if value is ...:
            del made[int(place)][key]
    return made


@pytest.mark.parametrize("made, word", [
    (records(3), ""),
    (records(2), ""),
    (records(1), ""),  # stopped at once
    (records(4, ratio_3=..., clip_fraction_3=...), ""),
    (records(1, ratio_0=..., clip_fraction_0=...), ""),
    (records(3, lr_1="any"), ""),
    (records(5), "3 iterations have 5 records"),
    (records(4, ratio_2=...), "record 2 has ratio = None"),
    (records(4, clip_fraction_0=torch.tensor(0.5)), "record 0 has clip_fraction = tensor(0.5000): a number is needed"),
    (records(4, kl_3=...), "record 3 has kl = None"),
    (records(4, reward_1=math.nan), "record 1 has reward = nan"),
    (records(4, kl_1=math.inf), "record 1 has kl = inf"),
    (records(4, iteration_0=False), "record 0 has iteration = False"),
    (records(4, iteration_2=3), "record 2 says iteration 3"),
    (records(4)[1:], "record 0 says iteration 1"),
    ([], "not a list of dicts"),
    (tuple(records(3)), "not a list of dicts"),
    (records(3)[0], "not a list of dicts"),
    ([*records(2), None], "not a list of dicts"),
    ([*records(2), odd("a set of 3")], "not a list of dicts"),
    (None, "not a list of dicts"),
])  # fmt: skip
def test_records_of_another_form_are_told_apart(base, made, word):
    found = kit.form({"records": made, "policy": kit.weights(base)}, base, 3)
    assert word in found and bool(found) == bool(word)


def test_a_long_value_is_cut_in_the_sentence(base):
    found = kit.form({"records": records(2, kl_0="x" * 500), "policy": kit.weights(base)}, base, 3)
    assert f"kl = '{'x' * 59}:" in found


def test_what_is_no_policy_is_said_before_anything_of_the_records(base):
    names = kit.weights(base)
    for policy in (None, {}, {**names, "more": torch.ones(1)}, dict(list(names.items())[1:]), kit.weights(nn.Linear(2, 2))):
        assert "not a model with gpt's weights" in kit.form({"records": None, "policy": policy}, base, 3)


def test_a_judge_is_told_the_runs_and_the_base_once_every_form_is_right():
    heard = []

    @kit.told
    def judge(runs, base, **others):
        heard.append((runs, base, others))
        return "judged"

    base = kit.tiny(6, 0.8)
    right = {"records": records(3), "policy": kit.weights(base)}
    output = {"runs": [right, right], "calls": 7}
    assert judge(output, seed=6, iterations=3, ends=0.8, prompt=[1]) == "judged"
    ((runs, given, others),) = heard
    assert runs is output["runs"] and others == {"calls": 7} and kit.same_weights(kit.weights(given), kit.weights(base))
    wrong = {"records": records(3), "policy": None}
    assert "not a model" in judge({"runs": [right, wrong]}, seed=6, iterations=3) and len(heard) == 1
    assert "1 iterations have 3 records" in judge({"runs": [right]}, seed=6, iterations=1) and len(heard) == 1
    assert judge({"runs": [right]}, seed=6, iterations=2) == "judged"
    assert not kit.same_weights(kit.weights(heard[1][1]), kit.weights(base))  # without `ends`


def test_a_seed_is_drawn_beside_what_is_fixed():
    draw = kit.drawn(iterations=4, ends=0.8)
    given = [draw(torch.Generator().manual_seed(seed)) for seed in range(30)]
    assert all({**one, "seed": 0} == {"seed": 0, "iterations": 4, "ends": 0.8} for one in given)
    assert all(type(one["seed"]) is int and 0 <= one["seed"] < 1000 for one in given) and len({one["seed"] for one in given}) > 20
    assert draw(torch.Generator().manual_seed(7)) == given[7]
