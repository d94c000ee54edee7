"""Each wrong program is found at the probe of 11.13 that looks for its mistake."""

import pytest
from test_build11_ppo import BUILD, program

from rlhf_lib.exercises.tiny_assistant import END, PROMPTS

(
    TRAINS, START, EVERY, PADDING, KL, TOKEN, PRICE, ENDS, CRITIC, WHITENS, STEPS, VALUES, LEARNS, STOPS, SEED, HAPPILY,
) = BUILD.probes  # fmt: skip
SCORED = "logits = model(whole[rows], seen[rows])[:, P - 1 : -1]"
OLD = "old = torch.cat([score(policy, rows) for rows in parts])"
PAID = "rewards = token_rewards(scores, ended, old, ref_logprobs, mask, kl_coef, end_penalty)"
GAE = "advantages, returns = gae(rewards, values, gamma, lam, mask)"
WHITE = "white = masked_whiten(advantages, mask)"
LOSS = "loss, clip_fraction = policy_loss(logprobs, old[rows], white[rows], here, clip)"
VALUE = "value_loss(value(rows), values[rows], returns[rows], here, value_clip)"
CRITIC_READS = "return critic(whole[rows], seen[rows])[:, P - 1 : -1]"
EACH_EPOCH = "for _ in range(epochs):"
KEPT = "kept = [one.detach().clone() for one in learned]"
WRONG = {
    "trains a copy": (TRAINS, "has not moved", [("device = next(", "policy = copy.deepcopy(policy)\n    device = next(")]),
    "trains what is frozen": (
        TRAINS, "was frozen",
        [("[one for one in model.parameters() if one.requires_grad]", "list(model.requires_grad_(True).parameters())")],
    ),
    "trains what is frozen in the critic": (
        TRAINS, "the critic's blocks.0.up",
        [("for model in (policy, critic))", "for model in (policy, critic.requires_grad_()))")],
    ),
    "reports every minibatch": (
        TRAINS, "once each", [("optimizer.zero_grad()", "optimizer.zero_grad()\n                    report and report(record)")],
    ),
    "moves the reference": (
        TRAINS, "the reference has other weights",
        [("optimizer.step()", "optimizer.step()\n                    reference.load_state_dict(policy.state_dict())")],
    ),
    "the critic is left out": (TRAINS, "the critic has not moved", [(f"(loss + {VALUE})", "loss")]),
    "records tensors": (TRAINS, "a number is needed", [("reward=scores.mean().item()", "reward=scores.mean()")]),
    "no record of the last policy": (TRAINS, "one before each update", [("range(iterations + 1)", "range(iterations)")]),
    "the reference reads no mask": (
        START, "first KL", [(SCORED, SCORED.replace("seen[rows]", "None if model is reference else seen[rows]"))],
    ),
    "old log-probabilities are the sampler's": (
        START, "half precision", [("tokens, _, mask = generate", "tokens, old, mask = generate"), (OLD, "")],
    ),
    "old log-probabilities are the reference's": (
        START, "of another policy",
        [(LOSS, LOSS.replace("old[", "ref_logprobs[")), ("(logprobs - old[rows])", "(logprobs - ref_logprobs[rows])")],
    ),
    "a mask that is True everywhere for the reward": (
        TRAINS, "the mask that `reward` is given", [("reward(some, tokens, mask)", "reward(some, tokens, mask | True)")],
    ),
    "prompts drawn with repetition": (
        EVERY, "without repetition",
        [("order = torch.randperm(len(prompts), gen", "order = torch.randint(len(prompts), (rollout_size,), gen"),
         ("order[torch.arange(rollout_size) % len(prompts)]", "order")],
    ),
    "prompts always in one order": (
        EVERY, "in one order", [("torch.randperm(len(prompts), generator=drawn)", "torch.arange(len(prompts))")],
    ),
    "the first prompts over and over": (EVERY, "without repetition", [("% len(prompts)]", "% 8]")]),
    "padded on the right": (
        PADDING, "padded on the left",
        [("[end_token] * (P - len(one)) + one for", "one + [end_token] * (P - len(one)) for"), (">= P - lengths", "< lengths")],
    ),
    "the mask of the prompts says nothing": (
        PADDING, "none of `prompts`", [("torch.arange(P) >= P - lengths", "torch.arange(P) >= 0 * lengths")],
    ),
    "the policy reads padding": (
        PADDING, "policy has learned from padding", [("torch.cat([real, mask], 1)", "torch.cat([real, mask], 1) | True")],
    ),
    "the critic reads padding": (
        PADDING, "critic has learned from padding", [(CRITIC_READS, CRITIC_READS.replace(", seen[rows]", ""))],
    ),
    "a mask that goes on behind the end": (
        PADDING, "critic and policy and reference is True behind",
        [("torch.cat([real, mask], 1)", "torch.cat([real, mask | True], 1)")],
    ),
    "the critic's mask alone goes on": (
        PADDING, "the mask of critic is True behind",
        [(CRITIC_READS, CRITIC_READS.replace("seen[rows]", "seen[rows] | (torch.arange(seen.shape[1]) >= P)"))],
    ),
    "logits one place late": (KL, "Which logits predict", [(SCORED, SCORED.replace("P - 1 : -1", "P:"))]),
    "KL as a mean over tokens": (
        KL, "mean over tokens", [("completion_kl(old, ref_logprobs, mask).mean()", "(old - ref_logprobs)[mask].mean()")],
    ),
    "KL upside down": (
        KL, "upside down", [("completion_kl(old, ref_logprobs, mask)", "completion_kl(ref_logprobs, old, mask)")],
    ),
    "no price": (PRICE, "does not hold it back", [(PAID, PAID.replace("kl_coef", "0.0"))]),
    "a price with the wrong sign": (PRICE, "does not hold it back", [(PAID, PAID.replace("kl_coef", "-kl_coef"))]),
    "no penalty": (ENDS, "penalty does not reach", [(PAID, PAID.replace("end_penalty", "0.0"))]),
    "the penalty for those that end": (ENDS, "penalty does not reach", [(PAID, PAID.replace("ended", "~ended"))]),
    "all answers count as ended": (
        ENDS, "the last record says", [("ended = ((tokens == end_token) & mask).any(1)", "ended = mask.any(1)")],
    ),
    "an end token of its own": (ENDS, "the last record says", [("ended = ((tokens == end_token)", "ended = ((tokens == 0)")]),
    "the critic learns whitened advantages": (
        CRITIC, "before whitening", [(VALUE, VALUE.replace("returns[rows]", "white[rows]"))],
    ),
    "the critic learns from other rows": (
        CRITIC, "critic explains", [(VALUE, VALUE.replace("returns[rows]", "returns[rows].roll(1, 0)"))],
    ),
    "explained variance over padding": (CRITIC, "real tokens", [("values[mask], returns[mask]", "values * 9, returns")]),
    "advantages anew in every epoch": (
        WHITENS, "when the critic has moved",
        [(EACH_EPOCH, f"{EACH_EPOCH}\n                values = torch.cat([value(rows) for rows in parts]).detach()\n"
                      f"                {GAE}\n                {WHITE}")],
    ),
    "advantages as they are": (WHITENS, "not whitened", [(WHITE, "white = advantages")]),
    "one epoch": (STEPS, "`epochs` times", [("for _ in range(epochs)", "for _ in range(1)")]),
    "one step for the whole rollout": (
        STEPS, "minibatches of 16",
        [("generator=drawn).to(device).split(minibatch)", "generator=drawn).to(device).split(rollout_size)")],
    ),
    "the last minibatch is dropped": (
        STEPS, "an epoch learns from 96",
        [("logprobs, here = score", "if len(rows) < minibatch:\n                        continue\n"
          "                    logprobs, here = score")],
    ),
    "old ones anew in every minibatch": (STEPS, "which stay", [(LOSS, LOSS.replace("old[rows]", "logprobs.detach()"))]),
    "no clipping": (
        STEPS, "not clipped",
        [(LOSS, f"{LOSS}\n                    loss = -((logprobs - old[rows]).exp() * white[rows])[here].mean()")],
    ),
    "clip fraction of the last minibatch": (STEPS, "their mean is 0.5", [("sum(clipped) / len(clipped)", "clipped[-1]")]),
    "clip fraction in percent": (STEPS, "outside 0 to 1", [("sum(clipped) /", "100 * sum(clipped) /")]),
    "values are not clipped": (VALUES, "value_clip 0.01", [(VALUE, VALUE.replace("value_clip", "1e9"))]),
    "old values anew in every minibatch": (
        VALUES, "for all epochs", [(VALUE, VALUE.replace("values[rows], returns", "value(rows).detach(), returns"))],
    ),
    "the sign of the loss": (LEARNS, "the sign", [(f"(loss + {VALUE})", f"(-loss + {VALUE})")]),
    "advantages of other rows": (LEARNS, "after shuffling", [(LOSS, LOSS.replace("white[rows]", "white[: len(rows)]"))]),
    "a KL of NaN goes on": (STOPS, "have become NaN goes on", [("if not kl <= max_kl:", "if kl > max_kl:")]),
    "never stops": (STOPS, "stop at the first", [("if not kl <= max_kl:", "if False:")]),
    "stops a fifth before": (STOPS, "not within max_kl itself", [("if not kl <= max_kl:", "if not kl <= 0.8 * max_kl:")]),
    "a fifth beyond": (STOPS, "not within max_kl itself", [("if not kl <= max_kl:", "if not kl <= 1.2 * max_kl:")]),
    "does not put the policy back": (STOPS, "put back", [("one.copy_(before)", "pass")]),
    "puts the start back": (STOPS, "untouched policy", [(KEPT, f"if iteration == 0:\n            {KEPT}")]),
    "keeps no copy, only the tensors": (STOPS, "put back", [(KEPT, "kept = [one.detach() for one in learned]")]),
    "the seed is not used": (SEED, "one seed", [("torch.Generator().manual_seed(seed)", "None")]),
    "a seed of its own": (SEED, "not used", [("torch.Generator().manual_seed(seed)", "torch.Generator().manual_seed(1)")]),
    "the same numbers in every rollout": (
        SEED, "same random numbers", [("        order = torch", "        drawn.manual_seed(seed)\n        order = torch")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_is_found_at_its_own_probe(name):
    probe, word, changes = WRONG[name]
    inputs = next(one for one in BUILD.draw() if one["probe"] == probe)
    fault = BUILD.fault(inputs, BUILD.answer(program(*changes), inputs))
    assert word in fault, fault or "nothing was found"


@pytest.mark.parametrize("name", ["old ones anew in every minibatch", "no clipping"])
def test_a_policy_that_runs_off_has_not_learned_from_padding(name):
    inputs = next(one for one in BUILD.draw() if one["probe"] == PADDING)
    assert BUILD.fault(inputs, BUILD.answer(program(*WRONG[name][2]), inputs)) == ""


def test_padding_and_the_end_stand_in_no_prompt_and_lengths_differ():
    assert not any({0, END} & {*prompt} for prompt in PROMPTS)
    assert {len(prompt) for prompt in PROMPTS} == {1, 2, 3, 4, 5} and len({tuple(prompt) for prompt in PROMPTS}) == 16
