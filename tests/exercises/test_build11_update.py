"""What an update of 11.13 learns from: wrong programs are named by what they learn, and right ones may scale it as they like."""

import pytest
from test_build11_ppo import BUILD, program, train_by_kernels
from test_build11_probes import EACH_EPOCH, GAE, LOSS, PAID, TOKEN, VALUE, WHITE

from rlhf_lib.exercises import build11_update as kit
from rlhf_lib.exercises.build import try_out

ZEROED = "optimizer.zero_grad()"
WRONG = {
    "the critic does not enter": (TOKEN, "the critic does not enter", [(GAE, GAE.replace("values", "values * 0"))]),
    "gamma is not used": (TOKEN, "gamma is not used", [(GAE, GAE.replace("gamma", "1.0"))]),
    "lam is not used": (TOKEN, "lam is not used: the advantages are those of lam 1", [(GAE, GAE.replace("lam", "1.0"))]),
    "lam is the default": (TOKEN, "those of lam 0.95", [(GAE, GAE.replace("lam", "0.95"))]),
    "whitens over padding": (TOKEN, "whitened over padding", [(WHITE, WHITE.replace("mask)", "mask | True)"))]),
    "gae over padding": (TOKEN, "gae runs on over padding", [(GAE, GAE.replace("mask)", "mask | True)"))]),
    "whitens every minibatch": (
        TOKEN, "before it is cut into", [(LOSS, LOSS.replace("white[rows]", "masked_whiten(advantages[rows], here)"))],
    ),
    "whitens every answer": (
        TOKEN, "by themselves",
        [(WHITE, "white = torch.cat([masked_whiten(*one) for one in zip(advantages.split(1), mask.split(1))])")],
    ),
    "the values of the whole rollout in every step": (
        TOKEN, "every step of the critic learns from the whole rollout",
        [("value_loss(value(rows), values[rows], returns[rows], here, value_clip)",
          "value_loss(value(torch.arange(rollout_size)), values, returns, mask, value_clip)")],
    ),
    "gamma and lam exchanged": (TOKEN, "exchanged", [(GAE, GAE.replace("gamma, lam", "lam, gamma"))]),
    "the KL of an answer at its last token": (
        TOKEN, "each token pays for its own",
        [(PAID, "scores_and_kl = scores - kl_coef * completion_kl(old, ref_logprobs, mask)\n"
                "        rewards = token_rewards(scores_and_kl, ended, old, ref_logprobs, mask, 0.0, end_penalty)")],
    ),
    "the price from one policy to the next": (
        TOKEN, "the last rollout's policy",
        [(PAID, "past = torch.cat([score(last, rows) for rows in parts]).detach() if iteration else old\n        "
                f"{PAID.replace('ref_logprobs', 'past')}\n        last = copy.deepcopy(policy)")],
    ),
    "the penalty at the first token": (
        TOKEN, "paid at the first token",
        [(PAID, f"{PAID.replace('end_penalty', '0.0')}\n        rewards[:, 0] -= end_penalty * (~ended)")],
    ),
    "the score behind the end": (
        TOKEN, "the last column",
        [(PAID, f"{PAID.replace('scores', '0 * scores').replace('end_penalty', '0.0')}\n"
                "        rewards[:, -1] += scores - end_penalty * (~ended)")],
    ),
    "normalises the scores again": (
        TOKEN, "come normalised", [(PAID, PAID.replace("scores,", "(scores - scores.mean()) / scores.std(),"))],
    ),
    "the returns of a plain sum": (
        TOKEN, "critic learns the sum", [(GAE, f"{GAE}\n        returns = gae(rewards, values, gamma, 1.0, mask)[1]")],
    ),
    "an entropy bonus": (
        TOKEN, "is not the definition's",
        [(LOSS, f"{LOSS}\n                    loss = loss + 0.1 * (logprobs.exp() * logprobs)[here].mean()")],
    ),
    "the value loss over padding": (TOKEN, "critic's gradient", [(VALUE, VALUE.replace("here", "here | True"))]),
    "gradients add up": (TOKEN, "zero_grad", [(ZEROED, "pass")]),
    "updates in training mode": (TOKEN, "policy is in training", [(EACH_EPOCH, f"policy.train()\n            {EACH_EPOCH}")]),
    "a critic in training mode": (TOKEN, "critic is in training", [(EACH_EPOCH, f"critic.train()\n            {EACH_EPOCH}")]),
    "an update of the last rollout": (TOKEN, "follows the last rollout", [("if iteration < iterations:", "if True:")]),
    "the KL of padding too": (
        TOKEN, "behind the end of answers", [("completion_kl(old, ref_logprobs, mask)", "(old - ref_logprobs).sum(1)")],
    ),
    "explained variance by the new values": (
        TOKEN, "before the update",
        [("            record.update(ratio=ratios[0]",
          "            with torch.no_grad():\n                later = torch.cat([value(rows) for rows in parts])\n"
          "            record['explained_variance'] = explained_variance(later[mask], returns[mask]).item()\n"
          "            record.update(ratio=ratios[0]")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_named_by_what_it_learns(name):
    probe, word, changes = WRONG[name]
    inputs = next(one for one in BUILD.draw() if one["probe"] == probe)
    fault = BUILD.fault(inputs, BUILD.answer(program(*changes), inputs))
    assert word in fault, fault or "nothing was found"


@pytest.mark.parametrize("name", ["the critic does not enter", "whitens every minibatch"])
def test_no_other_mistake_is_named_before_the_one_that_a_learner_made(name):
    probe, word, changes = WRONG[name]
    failed, sentence = try_out(BUILD, program(*changes), 0, most=100)
    assert failed == probe and word in sentence


def test_how_a_loss_is_scaled_and_whitening_rounded_is_the_learner_s():
    inputs = next(one for one in BUILD.draw() if one["probe"] == TOKEN)
    unbiased = f"{WHITE} * (1 - 1 / mask.sum()).sqrt()"
    free = program(
        (WHITE, unbiased),
        (f"(loss + {VALUE})", f"(3 * loss + 0.1 * {VALUE})"),
        ("nn.utils.clip_grad", "id or nn.utils.clip_grad"),
    )
    assert BUILD.fault(inputs, BUILD.answer(free, inputs)) == ""


@pytest.mark.parametrize("seed", [1, 500])
def test_right_programs_lie_on_the_definition_and_each_mistake_far_from_it_in_one_update_at_least(seed):
    updates, far = kit.watched(train_by_kernels, seed, **kit.UNEVEN)["updates"], {}
    for place, update in enumerate(updates[:3]):
        rollout = kit.Rollout(seed, kit.UNEVEN["ends"], update, updates[place - 1] if place else None)
        weights, returns = rollout.right()
        right, mistakes = rollout.learned(weights, returns), rollout.mistakes()
        for name in ("policy", "critic"):
            assert kit.apart([*update[f"{name} learns"].values()], right[name]) < 1e-4
            for mistake, made in mistakes[name].items():
                given = (made, returns) if name == "policy" else (weights, made)
                away = kit.apart(rollout.learned(*given)[name], right[name])
                far[mistake] = max(away, far.get(mistake, 0))
    assert len(far) > 25 and min(far.values()) > 2 * kit.NEAR
