"""Chapter 11's checks: correct answers written another way pass, the library's own kernels too, and published bugs get names."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises, pairwise, ppo
from rlhf_lib.exercises import verdict
from rlhf_lib.models.layers import causal_mask, places
from rlhf_lib.models.llama import LlamaConfig
from rlhf_lib.models.lora import Branch, LoRALinear, counts
from rlhf_lib.trainers import ppo_critic


def answer_targets(roles, lengths, opening, closing):
    places = []
    for role, length in zip(roles, lengths):
        before = torch.zeros(opening, dtype=torch.bool)
        said = torch.full((length + 1,), role == "assistant")
        places += [before, said, torch.zeros(closing - 1, dtype=torch.bool)]
    return torch.cat(places)


def packed_mask(lengths, size):
    blocks = [torch.ones(length, length).tril() for length in lengths] + [torch.ones(1, 1)] * (size - sum(lengths))
    positions = torch.cat([torch.arange(len(block)) for block in blocks])
    return torch.block_diag(*blocks).bool(), positions


def lora_output(x, weight, bias, A, B, alpha):
    step = torch.einsum("ni,ri,or->no", x, A, B)
    return torch.addmm(bias.detach(), x, weight.detach().T) + step.mul(alpha).div(A.shape[0])


def merge(weight, adapters):
    return torch.stack([weight, *(B @ A * (alpha / A.size(0)) for A, B, alpha in adapters)]).sum(0)


def four_models(matrices, layers, others, width, branched, rank):
    base, step = others, 0
    for out, inputs in matrices:
        base += layers * out * inputs
        step += branched * (rank * out + inputs * rank)
    heads = 2 * (width + 1)
    return {"apart": (4 * base + heads, 2 * base + heads // 2), "shared": (base + 4 * step + heads, 2 * step + heads // 2)}


def token_rewards(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty):
    with torch.no_grad():
        rewards = (ref_logprobs - logprobs).masked_fill(~mask, 0) * kl_coef
        last = mask & ~F.pad(mask, (0, 1))[:, 1:]
        return rewards + last * torch.where(ended, scores, scores - end_penalty)[:, None]


def adaptive_kl(kl_coef, kls, target, completions, horizon):
    controller = ppo.AdaptiveKL(kl_coef, target, horizon)
    return [controller.update(kl, completions) for kl in kls]


def both_orders(ours_first, ours_second):
    results = []
    for one, other in zip(ours_first, ours_second):
        record = pairwise.Record("", "", "", one, other)
        results.append({1: "win", 0: "loss", 0.5: "tie"}[pairwise.outcome(record)])
    return results


def place_and_win(ours_first, ours_second):
    def share(some):
        return torch.tensor([{"first": 2, "tie": 1, "second": 0}[one] for one in some]).double().mean().item() / 2

    return 50 * (share(ours_first) + share(ours_second)) - 50, 0.5 + (share(ours_first) - share(ours_second)) / 2


def equal_length_win_rate(outcomes, ours, theirs):
    records = [
        pairwise.Record(str(place), "a " * mine, "a " * other, None, None)
        for place, (mine, other) in enumerate(zip(ours, theirs))
    ]
    marks = {1.0: ("first", "second"), 0.5: ("tie", "tie"), 0.0: ("second", "first")}
    records = [one._replace(ours_first=marks[won][0], ours_second=marks[won][1]) for one, won in zip(records, outcomes)]
    number, rate = pairwise.length_controlled(records)
    return number, rate and rate[0]


ALTERNATIVES = {
    "answer_targets": answer_targets,
    "packed_mask": packed_mask,
    "lora_output": lora_output,
    "merge": merge,
    "four_models": four_models,
    "token_rewards": token_rewards,
    "adaptive_kl": adaptive_kl,
    "both_orders": both_orders,
    "place_and_win": place_and_win,
    "equal_length_win_rate": equal_length_win_rate,
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


def test_the_library_s_own_kernels_pass():
    def layer(x, weight, bias, A, B, alpha):
        made = LoRALinear(torch.nn.Linear(weight.shape[1], weight.shape[0]), len(A), alpha)
        made.frozen.weight, made.frozen.bias = weight.detach(), bias.detach()
        del made.A, made.B
        made.A, made.B = A, B
        return made(x)

    def packed(lengths, size):
        texts = torch.zeros(1, size, dtype=torch.long)
        texts[0, : sum(lengths)] = torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))
        config = LlamaConfig(vocab_size=5, context=64, layers=1, heads=1, kv_heads=1, width=2, hidden=2)
        positions, _ = places(config, texts, texts, None)
        real = texts > 0  # the library lets padding look at padding, and number it: neither is ever used
        allowed = causal_mask(size, size, texts, "cpu")[0, 0] & real[0, :, None] | torch.eye(size, dtype=torch.bool)
        return allowed, torch.where(real, positions, 0)[0]

    assert verdict("token_rewards", ppo_critic.token_rewards).passed
    assert verdict("lora_output", layer).passed
    assert verdict("packed_mask", packed).passed


def test_what_four_models_cost_is_what_branches_of_the_library_cost():
    from rlhf_lib.models.llama import Llama

    base = Llama(LlamaConfig(vocab_size=11, context=8, layers=3, heads=2, kv_heads=1, width=8, hidden=12, tied=True))
    inside = [one.weight.shape for one in base.blocks[0].modules() if isinstance(one, torch.nn.Linear)]
    others = sum(one.numel() for one in base.parameters()) - 3 * sum(out * inputs for out, inputs in inside)
    said = four_models([tuple(shape) for shape in inside], 3, others, 8, branched=2, rank=2)["shared"]
    policy, reference, reward, critic = (Branch(base, 2, 2, 4, scalar=scalar) for scalar in (False, False, True, True))
    sizes = [counts(one)[0] for one in (policy, reference, reward, critic)]
    assert said == (sum(one.numel() for one in base.parameters()) + sum(sizes), sizes[0] + sizes[3])


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        # ethanyanjiali/minChatGPT at 311aa3a, src/trainers.py, lines 175 and 177: k3 of log(p / p_ref), its ratio upside down
        (
            "token_rewards",
            lambda scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty: token_rewards(
                scores, ended, torch.where(mask, (x := logprobs - ref_logprobs).exp() - 1 - x, 0), torch.zeros_like(x), mask,
                kl_coef, end_penalty,
            ),
            "upside down",
        ),
        ("both_orders", lambda ours_first, ours_second: [{"second": "win", "first": "loss"}.get(x, "tie") for x in ours_second],
         "our answer second is used"),
        ("answer_targets", lambda roles, lengths, opening, closing: torch.ones(
            sum(lengths) + len(roles) * (opening + closing), dtype=torch.bool), "every token counts"),
        ("merge", lambda weight, adapters: weight + sum(B @ A for A, B, _ in adapters), "not scaled"),
        ("packed_mask", lambda lengths, size: (torch.ones(size, size).tril().bool(), packed_mask(lengths, size)[1]), "it leaks"),
    ],
)  # fmt: skip
def test_well_known_mistakes_are_named(name, function, words):
    found = verdict(name, function)
    assert not found.passed
    assert found.mistake
    assert words in found.message


def test_a_judge_of_the_place_alone_has_all_the_bias_and_wins_half():
    for count in (1, 4, 9):
        assert place_and_win(["first"] * count, ["first"] * (10 - count)) == (50.0, 0.5)
        assert place_and_win(["second"] * count, ["second"] * (10 - count)) == (-50.0, 0.5)
    assert both_orders(["first"] * 3, ["first"] * 3) == ["tie"] * 3


def test_the_answers_by_hand_on_the_cards():
    by_hand = {
        "answer_targets": torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0]).bool(),
        "lora_output": torch.tensor([[1.5, 14.0]]),
        "merge": torch.tensor([[1.0, 0.0], [4.0, 5.0]]),
        "four_models": {"apart": (96, 48), "shared": (50, 14)},
        "token_rewards": torch.tensor([[-0.05, 0.0, 1.975]]),
        "adaptive_kl": [0.101],
        "both_orders": ["win", "tie"],
        "place_and_win": (25.0, 0.75),
        "equal_length_win_rate": (2, 0.5),
    }
    for name, expected in by_hand.items():
        exercise, first = exercises.find(name), exercises.draw(name)[0]
        out = exercise.right(**first)
        assert exercises.equal(exercises.plain.plain(out, tuples=True), exercises.plain.plain(expected, tuples=True), 1e-6), name
    allowed, positions = exercises.find("packed_mask").right([2, 1], 4)
    assert allowed.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] and positions.tolist() == [
        0,
        1,
        0,
        0,
    ]


def test_the_penalty_for_no_end_reaches_only_those_without_one():
    for arguments in exercises.draw("token_rewards", 5):
        free = token_rewards(**{**arguments, "end_penalty": 0.0}).sum(1)
        fined = token_rewards(**{**arguments, "end_penalty": 3.0}).sum(1)
        wanted = 3.0 * (~arguments["ended"]).float()
        assert torch.allclose(free - fined, wanted, atol=1e-5)


def test_a_coefficient_moves_by_at_most_a_fifth_of_its_share_and_stays_at_the_target():
    coefs = adaptive_kl(0.5, [4.0, 400.0, -400.0], 4.0, 10, 100)
    assert coefs[0] == 0.5 and coefs[1] == pytest.approx(0.51) and coefs[2] == pytest.approx(0.51 * 0.98)
    assert math.isfinite(coefs[-1])
