"""Chapter 11's checks: correct answers written another way pass, the library's own kernels too, and published bugs get names."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises, ppo
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


ALTERNATIVES = {
    "answer_targets": answer_targets,
    "packed_mask": packed_mask,
    "lora_output": lora_output,
    "merge": merge,
    "four_models": four_models,
    "token_rewards": token_rewards,
    "adaptive_kl": adaptive_kl,
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
        config = LlamaConfig(vocab_size=5, context=512, layers=1, heads=1, kv_heads=1, width=2, hidden=2)
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


def row_of(turn):
    """An answer to 11.1 whose turns are `turn(whether the assistant speaks, length, opening, closing)`, lists of bool."""
    return lambda roles, lengths, opening, closing: torch.tensor(
        [one for role, length in zip(roles, lengths) for one in turn(role == "assistant", length, opening, closing)]
    )


def moved(place):
    """An answer to 11.6 that pays the score at `place(mask)` of each row."""

    def answer(scores, ended, logprobs, ref_logprobs, mask, kl_coef, end_penalty):
        rewards = torch.where(mask, kl_coef * (ref_logprobs - logprobs).detach(), 0)
        rewards[torch.arange(len(mask)), place(mask)] += scores - end_penalty * ~ended
        return rewards

    return answer


def stepped(error=lambda kl, target: kl / target - 1, held=lambda error: max(-0.2, min(0.2, error))):
    """An answer to 11.7 with another error, or held otherwise."""

    def answer(kl_coef, kls, target, completions, horizon):
        coefs = [kl_coef]
        for kl in kls:
            coefs.append(coefs[-1] * (1 + held(error(kl, target)) * completions / horizon))
        return coefs[1:]

    return answer


def counted(base_trained=0, heads=1, times=1):
    """An answer to 11.5 that counts other things among what is trained."""

    def answer(matrices, layers, others, width, branched, rank):
        base = layers * sum(out * inputs for out, inputs in matrices) + others
        step = branched * rank * sum(map(sum, matrices))
        apart, shared = 2 * base + heads * (width + 1), base_trained * base + 2 * step + heads * (width + 1)
        kept = 4 * base + 2 * (width + 1), base + 4 * step + 2 * (width + 1)
        return {"apart": (kept[0], times * apart), "shared": (kept[1], times * shared)}

    return answer


def first_adapter(weight, adapters):
    for A, B, alpha in adapters:
        return weight + alpha / len(A) * B @ A


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
        ("answer_targets", row_of(lambda says, n, before, behind: [False] * (before + 1) + [says] * n + [False] * (behind - 1)),
         "the first token that the assistant says is left out"),
        ("answer_targets", row_of(lambda says, n, before, behind: [False] * before + [says] * (n + behind)),
         "all tokens that close"),
        ("answer_targets", row_of(
            lambda says, n, before, behind: [False] * before + [says] * n + [False] * (behind - 1) + [says]),
         "in place of its end"),
        ("answer_targets", row_of(lambda says, n, before, behind: [says] * (before + n + behind)), "the whole of"),
        ("answer_targets", row_of(
            lambda says, n, before, behind: [False] * before + [says and n > 0] * (n + 1) + [False] * (behind - 1)),
         "a turn without words"),
        ("answer_targets", row_of(lambda says, n, before, behind: [False] * behind + [says] * (n + 1) + [False] * (before - 1)),
         "opening and closing have changed places"),
        ("packed_mask", lambda lengths, size: packed_mask(lengths, sum(lengths)), "the padding is missing"),
        ("packed_mask", lambda lengths, size: packed_mask([*lengths[:-1], size - sum(lengths[:-1])], size), "the last text"),
        ("lora_output", lambda x, weight, bias, A, B, alpha: F.linear(x, weight.detach(), bias.detach())
         + alpha / A.shape[1] * (x @ A.T @ B.T), "the width of the layer"),
        ("merge", first_adapter, "only the first adapter"),
        ("four_models", lambda **given: exercises.find("four_models").formula(**given, branches=(3, 2)), "reward model too"),
        ("four_models", counted(base_trained=1), "the base is counted among"),
        ("four_models", counted(heads=2), "both scalar heads are trained"),
        ("four_models", counted(times=4), "the memory of training"),
        ("token_rewards", moved(lambda mask: mask.sum(1) - 2), "one token too early"),
        ("token_rewards", moved(lambda mask: -1), "in the last column"),
        ("adaptive_kl", stepped(error=lambda kl, target: (kl - target) / kl), "divided by the KL"),
        ("adaptive_kl", stepped(held=lambda error: min(-0.2, max(0.2, error))), "min and max"),
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


def test_a_picture_of_a_packed_row_shows_what_is_wrong():
    picture = exercises.find("packed_mask").draw_picture
    given = exercises.draw("packed_mask")[0]
    allowed, positions = packed_mask(**given)
    first = picture(given, [allowed, positions + 1], (allowed, positions)).axes[0].images[0].get_array()
    assert first.tolist() == [(positions + 1).tolist()]
    assert picture(given, [allowed.T, positions + 1], (allowed, positions)).axes[0].images[0].get_array().shape == (4, 4)


def test_the_answers_by_hand_on_the_cards():
    by_hand = {
        "answer_targets": torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0]).bool(),
        "lora_output": torch.tensor([[1.5, 14.0]]),
        "merge": torch.tensor([[1.0, 0.0], [4.0, 5.0]]),
        "four_models": {"apart": (96, 48), "shared": (50, 14)},
        "token_rewards": torch.tensor([[-0.05, 0.0, 1.975]]),
        "adaptive_kl": [0.101],
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


def test_sizes_beyond_a_byte_and_beyond_a_few_adapters_are_drawn():
    assert any(len(one["lengths"]) > 256 for one in exercises.draw("packed_mask"))
    assert any(len(one["adapters"]) > 10 for one in exercises.draw("merge"))


def test_a_coefficient_moves_by_at_most_a_fifth_of_its_share_and_stays_at_the_target():
    coefs = adaptive_kl(0.5, [4.0, 400.0, -400.0], 4.0, 10, 100)
    assert coefs[0] == 0.5 and coefs[1] == pytest.approx(0.51) and coefs[2] == pytest.approx(0.51 * 0.98)
    assert math.isfinite(coefs[-1])
