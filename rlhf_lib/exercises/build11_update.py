"""What an update of Build it 11.13 learns from, token by token: the gradients of policy and critic against the definition's.

Only directions are compared: how a loss is scaled, how a gradient is limited, and what Adam makes of it are the learner's.
"""

import copy

import torch

from rlhf_lib import ppo
from rlhf_lib.exercises.tiny_assistant import END, KEYS, PROMPTS, USUAL, Critic, count, generate, loaded, tiny
from rlhf_lib.exercises.tiny_rlhf import records_fault, weights
from rlhf_lib.trainers.ppo_critic import token_rewards

SIZE = 64  # answers in a rollout
NEAR = 0.01  # how far a direction may lie from the definition's
PAID = {"gamma": 0.8, "lam": 0.6, "kl_coef": 0.5, "end_penalty": 1.5}
UNEVEN = dict(ends=0.8, iterations=3, minibatch=SIZE, lr=2e-2, critic_lr=2e-2)  # answers of all lengths, and one step an update
PARTS = dict(ends=-100.0, iterations=1, minibatch=8, lr=0.0, critic_lr=0.0)  # no answer ends, and nothing moves


def expecting(seed, policy):
    """A critic that is not 0 at the start."""
    critic = Critic(policy)
    torch.nn.init.normal_(critic.score.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return critic


def watched(built, seed, ends, **settings):
    """One run: for each rollout the weights of before the update, the sum of its gradients, those of the embedding step by step,
    and the last that stood in `.grad`; and the records."""
    policy = tiny(seed, ends)
    reference, models, updates = copy.deepcopy(policy), {"policy": policy, "critic": expecting(seed, policy)}, []

    def sampler(model, prompts, mask, uniforms, temperature=1.0, end_token=0):
        tokens, logprobs, real = generate(model, prompts, mask, uniforms, temperature, end_token)
        updates.append({"prompts": [row[some].tolist() for row, some in zip(prompts, mask)], "tokens": tokens, "mask": real})
        for name, one in models.items():
            updates[-1][name] = weights(one)
            updates[-1][f"{name} each"] = []
            for what in ("learns", "steps"):
                updates[-1][f"{name} {what}"] = {place: torch.zeros_like(weight) for place, weight in one.named_parameters()}
        return tokens, logprobs, real

    def take_down(name, place):
        def learns(gradient):
            updates[-1][f"{name} learns"][place] += gradient
            if place.endswith("embedding.weight"):
                updates[-1][f"{name} each"].append(gradient.clone())  # of every step
            if models[name].training:
                updates[-1]["training"] = name

        def steps(weight):
            updates[-1][f"{name} steps"][place] = weight.grad.clone()

        return learns, steps

    for name, one in models.items():
        for place, weight in one.named_parameters():
            learns, steps = take_down(name, place)
            weight.register_hook(learns)
            weight.register_post_accumulate_grad_hook(steps)
    paid = lambda prompts, tokens, mask: count(tokens, mask) + 0.5 * count(tokens, mask, END)  # noqa: E731
    settings = {**USUAL, **PAID, "rollout_size": SIZE, "epochs": 1, "seed": seed, **settings}
    records = built(policy, models["critic"], reference, paid, PROMPTS, generate=sampler, **settings)
    return {"records": records, "updates": updates}


def run_definition(built, seed):
    return {"uneven": watched(built, seed, **UNEVEN), "parts": watched(built, seed, **PARTS)}


# ----------------------------------------------------------------------------------------- the definition, and mistakes


class Rollout:
    """One update's rollout, scored by the models of before it: all that its losses are made of.

    before: the update before it; None if there is none.
    """

    def __init__(self, seed, ends, update, before=None):
        base = tiny(seed, ends)
        self.policy, self.critic = loaded(base, update["policy"]), loaded(Critic(base), update["critic"])
        self.tokens, self.mask, prompts = update["tokens"], update["mask"], update["prompts"]
        P = max(map(len, prompts))
        start = torch.tensor([[END] * (P - len(one)) + one for one in prompts])
        real = torch.arange(P) >= P - torch.tensor([[len(one)] for one in prompts])
        whole, seen = torch.cat([start, self.tokens], 1), torch.cat([real, self.mask], 1)

        def score(model):
            return model(whole, seen)[:, P - 1 : -1].log_softmax(-1).gather(2, self.tokens[:, :, None])[:, :, 0]  # (B, T)

        self.new, self.now = score(self.policy), self.critic(whole, seen)[:, P - 1 : -1]  # with a gradient
        self.old, self.values = self.new.detach(), self.now.detach()
        with torch.no_grad():
            self.reference, self.last = score(base), score(loaded(base, (before or update)["policy"]))
        self.scores = count(self.tokens, self.mask) + 0.5 * count(self.tokens, self.mask, END)
        self.ended, self.all = ((self.tokens == END) & self.mask).any(1), torch.ones_like(self.mask)

    def rewards(self, scores=None, **changes):
        given = dict(
            scores=self.scores if scores is None else scores,
            ended=self.ended,
            logprobs=self.old,
            ref_logprobs=self.reference,
            mask=self.mask,
        )
        return token_rewards(**{**given, **{name: PAID[name] for name in ("kl_coef", "end_penalty")}, **changes})

    def gae(self, rewards=None, values=None, gamma=PAID["gamma"], lam=PAID["lam"], mask=None):
        """(advantages, returns) of the definition, or with some of it in another way."""
        rewards, values = (own if given is None else given for given, own in ((rewards, self.rewards()), (values, self.values)))
        return ppo.gae(rewards, values, gamma, lam, self.mask if mask is None else mask)

    def learned(self, weights, returns):
        """The gradients that a token's weight in the policy's loss, and its return in the critic's, stand for at the ratio 1."""
        policy = -torch.where(self.mask, weights * self.new, 0).sum()
        critic = torch.where(self.mask, self.now - returns, 0).square().sum()
        given = dict(
            retain_graph=True, materialize_grads=True
        )  # zeros where nothing is learned, as in the critic's language head
        return {
            "policy": torch.autograd.grad(policy, [*self.policy.parameters()], **given),
            "critic": torch.autograd.grad(critic, [*self.critic.parameters()], **given),
        }

    def right(self, **changes):
        """What a token weighs and what its return is, by the definition, or with some of it in another way."""
        advantages, returns = self.gae(**changes)
        return ppo.masked_whiten(advantages, self.mask), returns

    def wrong_rewards(self):
        """{what is wrong: rewards}"""
        kl = torch.where(self.mask, self.old - self.reference, 0)
        k3 = torch.where(self.mask, ppo.kl_estimate(self.old, self.reference, "k3"), 0)
        price, penalty, real = PAID["kl_coef"], PAID["end_penalty"], self.mask.float()
        first, last = torch.zeros_like(real), torch.zeros_like(real)
        first[:, 0], last[:, -1] = 1, 1
        free, alive, bare = (
            self.rewards(kl_coef=0.0),
            self.rewards(end_penalty=0.0),
            self.rewards(0 * self.scores, end_penalty=0.0),
        )
        lost = penalty * (~self.ended)[:, None]  # (B, 1)
        end = self.scores[:, None] - lost
        again = (self.scores - self.scores.mean()) / self.scores.std()
        return {
            "the KL has no price: each token pays kl_coef times its own logprobs - ref_logprobs": free,
            "the price of the KL has the wrong sign": self.rewards(kl_coef=-price),
            "the KL is paid at the last token: each token pays for its own": self.rewards(
                self.scores - price * kl.sum(1), kl_coef=0.0
            ),
            "each token pays for the KL of the whole answer, not for its own": free - price * kl.sum(1, keepdim=True) * real,
            "each token pays for the mean KL of all answers, not for its own": free - price * kl.sum(1).mean() * real,
            "the price is on k3: a token pays for its own logprobs - ref_logprobs, whatever their sign": free - price * k3,
            "the price is on the way from the last rollout's policy, not from the reference": self.rewards(
                ref_logprobs=self.last
            ),
            "the penalty for answers without an end is not paid": alive,
            "the penalty is paid by the answers that end": self.rewards(ended=~self.ended),
            "an answer without an end gains the penalty: it loses it": self.rewards(end_penalty=-penalty),
            "the penalty is paid at the first token: it is at the last real one": alive - lost * first,
            "the penalty is paid at every token: it is at the last real one": alive - lost * real,
            "the score is paid in the last column: it is at the last real token of each answer": bare + end * last,
            "the score is paid at the first token: it is at the last real one": bare + end * first,
            "the score is paid at every token: it is at the last real one": bare + end * real,
            "the scores are normalised over the rollout: they come normalised": self.rewards(again),
        }

    def mistakes(self):
        """({what is wrong with the policy's: weights}, {what is wrong with the critic's: returns})"""
        advantages, returns = self.gae()
        padded, wide = self.gae(mask=self.all)[0], self.all
        changes = {
            "the critic does not enter: the values in gae are 0": dict(values=0 * self.values),
            "gamma is not used: the advantages are those of gamma 1": dict(gamma=1.0),
            **{f"lam is not used: the advantages are those of lam {lam:g}": dict(lam=lam) for lam in (1.0, 0.95, 0.0)},
            "neither gamma nor lam is used": dict(gamma=1.0, lam=0.95),
            "gamma and lam are exchanged": dict(gamma=PAID["lam"], lam=PAID["gamma"]),
            "gae runs on over padding: give it the answers' mask": dict(mask=wide),
            **{name: dict(rewards=rewards) for name, rewards in self.wrong_rewards().items()},
        }
        policy = {name: self.right(**change)[0] for name, change in changes.items()}
        rows = zip(advantages.split(1), self.mask.split(1))
        policy |= {
            "the advantages are whitened over padding too: give masked_whiten the answers' mask": ppo.masked_whiten(
                advantages, wide
            ),
            "gae and whitening run over padding: give both the answers' mask": ppo.masked_whiten(padded, wide),
            "the advantages are not whitened": advantages,
            "the advantages are scaled, and their mean is not 0": ppo.masked_whiten(advantages, self.mask, shift_mean=False),
            "each answer's advantages are whitened by themselves: all real tokens of the rollout are, at once": torch.cat(
                [ppo.masked_whiten(*row) for row in rows]
            ),
            "the sign of the policy's loss is turned: what earned more becomes less likely": -self.right()[0],
            "the returns stand in the place of the advantages": ppo.masked_whiten(returns, self.mask),
        }
        critic = {
            "the critic learns the advantages: its returns are advantages + values": advantages,
            "the critic's returns are made of whitened advantages: take those of before": self.right()[0] + self.values,
            "the critic's returns are whitened: they stay as gae gives them": ppo.masked_whiten(returns, self.mask),
            "the critic learns the scores: its returns are what gae gives": self.scores[:, None].expand_as(returns),
            "the critic learns the sum of all rewards to come: its returns are what gae gives": self.gae(lam=1.0)[1],
            "the critic learns the sum of all rewards to come, and without gamma: its returns are what gae gives": (
                self.gae(gamma=1.0, lam=1.0)[1]
            ),
        }
        return {"policy": policy, "critic": critic}


def apart(found, wanted):
    """How far two gradients' directions are apart: 0 for the same, 2 for the opposite."""
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (found, wanted))
    return (one / one.norm().clamp(min=1e-12) - other / other.norm().clamp(min=1e-12)).norm().item()


def mistaken(name, rollout, found):
    """What is wrong with what `name`, "policy" or "critic", learned from a rollout; "" if nothing is, None if it is unknown."""
    weights, returns = rollout.right()
    if apart(found, rollout.learned(weights, returns)[name]) <= NEAR:
        return ""
    for mistake, made in rollout.mistakes()[name].items():
        given = (made, returns) if name == "policy" else (weights, made)
        if apart(found, rollout.learned(*given)[name]) <= NEAR:
            return mistake
    return None


def update_fault(part, place, rollout, update):
    """What is wrong with one update; "" if nothing is."""
    if "training" in update:
        return f"the {update['training']} is in training mode while it learns: all models are in evaluation mode, without dropout"
    for name in ("policy", "critic"):
        learned, stepped = ([*update[f"{name} {what}"].values()] for what in ("learns", "steps"))
        mistake = mistaken(name, rollout, learned)
        if mistake:
            return f"in update {place} {mistake}"
        if mistake is None and part == "uneven":
            return (
                f"in update {place}, a single step, the {name}'s gradient is not the definition's, and no mistake that is looked "
                "for explains it: has every row its own advantages, returns and old ones after shuffling, is the mask in both "
                "losses, is every argument of token_rewards, gae and masked_whiten the right one?"
            )
        if mistake is None:
            return (
                f"in one step for all {SIZE} answers the {name} learns what it should, in steps of 8 something else: advantages "
                "are whitened once, over the whole rollout, before it is cut into minibatches, and every answer is in one of them"
            )
        each = update[f"{name} each"]
        if len(each) > 1 and all(apart([one], each[:1]) <= NEAR for one in each):
            return f"every step of the {name} learns from the whole rollout: its loss is of the minibatch's rows alone"
        if part == "uneven" and any(map(torch.any, stepped)) and apart(stepped, learned) > NEAR:
            return f"the {name}'s gradients add up from step to step: set them to zero behind each step (zero_grad)"
    return ""


def record_fault(rollout, record):
    """What is wrong with what a record says of a rollout; "" if nothing is."""
    kl, returns = rollout.old - rollout.reference, rollout.gae()[1]
    right, padded = torch.where(rollout.mask, kl, 0).sum(1).mean().item(), kl.sum(1).mean().item()
    if abs(record["kl"] - padded) < 1e-3 < 1e-2 < abs(padded - right):
        return f"the KL of iteration {record['iteration']} counts what stands behind the end of answers: sum over the mask"
    explained = ppo.explained_variance(rollout.values, returns, rollout.mask).item()
    if not abs(record["explained_variance"] - explained) < 0.02:
        return (
            f"iteration {record['iteration']} says that {record['explained_variance']:.3f} of the returns' variance is "
            f"explained, and {explained:.3f} is: take the real tokens, and values and returns of before the update"
        )
    return ""


def judge_definition(output, seed):
    for part, settings in (("uneven", UNEVEN), ("parts", PARTS)):
        records, updates = output[part]["records"], output[part]["updates"]
        fault = records_fault(records, settings["iterations"], KEYS, nan=("explained_variance",))
        if fault:
            return fault
        for place, (update, record) in enumerate(zip(updates[: settings["iterations"]], records)):
            rollout = Rollout(seed, settings["ends"], update, updates[place - 1] if place else None)
            fault = update_fault(part, place, rollout, update) or record_fault(rollout, record)
            if fault:
                return fault
        for update in updates[settings["iterations"] :]:
            if any(one.any() for name in ("policy", "critic") for one in update[f"{name} learns"].values()):
                return "an update follows the last rollout: that one only measures the policy that is left"
    return ""
