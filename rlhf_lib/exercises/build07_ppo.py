"""Build it 7.10: PPO. The probes are the environments of `probe_envs`, and at last a pole on a cart."""

import random

import numpy as np
import torch

from rlhf_lib.exercises import probe_envs as envs
from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.build07_watch import forgets_the_end, updates_seen, watch_fault, watched
from rlhf_lib.exercises.declare import Investigation
from rlhf_lib.exercises.ppo_runs import choices, draw_pole, exams, judge_pole, run_pole, train

BUDGET, SHORT, ODD, ACTIONS = 6144, 2048, 2999, 3  # ODD: no whole number of rollouts of any size


# ----------------------------------------------------------------------------------------- what a probe draws and runs


def draw_views(count, generator):
    """What is observed in each of `count` states: as many orthogonal vectors of length 1.5, with count + 2 numbers."""
    return (1.5 * torch.linalg.qr(torch.randn(count + 2, count, generator=generator)).Q.T).tolist()


def drawn(*parts, generator):
    """Some of each part's range, in a drawn order: drawn(3, generator=g) is a permutation of 0, 1, 2."""
    return [torch.randperm(part, generator=generator).tolist() for part in parts]


def draw_two_starts(states):
    """A draw: views, and for each of two starts two actions that mean something; what is right at one is wrong at the other."""

    def draw(generator):
        first, second, _ = drawn(ACTIONS, generator=generator)[0]
        return {
            "views": draw_views(states, generator),
            "right": [first, second],
            "wrong": [second, first],
            "seed": int(torch.randint(10_000, (), generator=generator)),
        }

    return draw


def task(make, budget=BUDGET):
    return [envs.Task(make, budget)]


def task_in(kind):
    """What is acted in: one task, `kind(views, right, wrong)`."""
    return lambda views, right, wrong, seed: task(lambda: kind(views, right, wrong))


def run_one(train_ppo, tasks, views, seed):
    """What `act` does in each state, after a training in the first task."""
    return choices(train(train_ppo, tasks[0], BUDGET, seed), views)


def judge_starts(meaning, second=""):
    """A judge: at both starts `act` does what is right; `meaning` is what it means where it does not, `second` where it is the
    second alone."""

    def judge(output, views, right, wrong, seed):
        output = output["made"]
        if output[:2] == right:
            return ""
        if any(got == bad for got, bad in zip(output, wrong)):
            return second if second and output[0] == right[0] else meaning
        return (
            f"at the two starts act takes actions {output[0]} and {output[1]}, where {right[0]} and {right[1]} are right: one "
            "brings nothing at all. The probes before this one passed, so look at how rewards and values become advantages"
        )

    return judge


# ----------------------------------------------------------------------------------------- one step


def draw_constant(generator):
    return {"views": draw_views(1, generator), "seed": int(torch.randint(10_000, (), generator=generator))}


def run_constant(train_ppo, tasks, views, seed):
    act = train(train_ppo, tasks[0], ODD, seed)
    kind = type(act(np.array(views[0], dtype=np.float32)))
    integer = "" if issubclass(kind, (int, np.integer)) else kind.__name__
    return {"act": choices(act, views * 30), "kind": integer}


def judge_constant(output, views, seed):
    output = {**output["made"], **output["seen"][0]}
    budget, steps = ODD, output["steps"]
    if steps > budget:
        return (
            f"the environments were stepped {steps} times, and the budget is {budget} steps, those of all environments together"
        )
    if steps < budget / 4:
        return f"of a budget of {budget} steps only {steps} were used: does a rollout that still fits get played?"
    early = output["actions"][: budget // 4]
    for action in range(ACTIONS):
        if early.count(action) < 0.03 * len(early):
            return (
                f"of its first {len(early)} actions {early.count(action)} are action {action}, though no action is better than "
                "another: while it trains, an action is drawn from the policy, or it never finds out what the others bring"
            )
    if output["kind"]:
        return f"act returns a {output['kind']}, and an action is an int: int(...) or .item() makes one"
    if not all(0 <= action < ACTIONS for action in output["act"]):
        return f"act gives {output['act'][0]}: an action is a number from 0 to {ACTIONS - 1}"
    if len(set(output["act"])) > 1:
        return (
            "act gives different actions for one and the same observation: it is the greedy action, the likeliest, and not drawn"
        )
    return ""


def draw_paying(generator):
    order, reverse = drawn(ACTIONS, generator=generator)[0], []
    offset = (-4.0, 0.0, 3.0)[int(torch.randint(3, (), generator=generator))]
    rewards = [offset + 0.5 * place for place in order]
    reverse = [offset + 0.5 * (ACTIONS - 1 - place) for place in order]
    return {
        "views": draw_views(1, generator),
        "tables": [rewards, reverse],
        "seed": int(torch.randint(10_000, (), generator=generator)),
    }


def tasks_paying(views, tables, seed):
    return [envs.Task(lambda rewards=rewards: envs.Paying(views, rewards), BUDGET // 2) for rewards in tables]


def run_paying(train_ppo, tasks, views, seed):
    """What is chosen in each task, then what is seen of the updates: observations have a mark, which is 0 in the end."""
    chosen, found = [], []
    for one in tasks:
        with watched(one) as (watch, marked):
            act = train(train_ppo, marked, BUDGET // 2, seed)
            watch.trained = True
            chosen.append(choices(act, [[*views[0], 0.0]])[0])
        found.append(watch.found())
    return [*chosen, *found]


def judge_paying(output, views, tables, seed):
    chosen, found = output["made"][: len(tables)], output["made"][len(tables) :]
    paid = [rewards[action] for rewards, action in zip(tables, chosen, strict=True)]
    old, ratio = any(one["old"] for one in found), max((one["ratio"] for one in found), default=1.0)
    if old:
        return watch_fault(old, ratio)
    if all(got == min(rewards) for got, rewards in zip(paid, tables)):
        return "act takes the action that pays least: the sign is turned somewhere, of the policy's loss or of the advantages"
    if fault := watch_fault(old, ratio):
        return fault
    if any(one["beyond"] > 0.3 for one in found):
        return (
            "for the same observation act gives the policy other numbers than it read in training: scale observations in both, "
            "and with the same numbers, or in neither"
        )
    for got, rewards in zip(paid, tables):
        if got < max(rewards):
            return (
                f"three actions pay {rewards}, and act takes the one that pays {got}: what is rewarded does not become likelier. "
                "Does the optimiser hold the policy's weights, do the advantages reach the loss in the order of the actions, and "
                "do they stop at an episode's end?"
            )
    return ""


def draw_matching(generator):
    best = drawn(ACTIONS, generator=generator)[0]
    return {
        "views": draw_views(4, generator),
        "best": best + best[:1],
        "seed": int(torch.randint(10_000, (), generator=generator)),
    }


def task_matching(views, best, seed):
    return task(lambda: envs.Matching(views, best, ACTIONS))


def tasks_endless(views, best, seed):
    return [envs.Task(lambda: envs.Matching(views, best, ACTIONS, endless=True), BUDGET) for _ in range(3)]


def run_endless(train_ppo, tasks, views, seed):
    """What `act` does in each state, and whether the value at a rollout's end is left out."""
    with updates_seen(tasks[0]) as (updates, seen):
        act = train(train_ppo, seen, BUDGET, seed)
    forgets = forgets_the_end(updates, tasks[1:], lambda one: train(train_ppo, one, BUDGET, seed))
    return {"act": choices(act, views), "forgets": forgets}


def judge_matching(meaning):
    def judge(output, views, best, seed):
        output = output["made"]
        hits = sum(got == right for got, right in zip(output, best))
        if hits == len(best):
            return ""
        if len(set(output)) == 1:
            return f"act takes action {output[0]} whatever it observes, right in {hits} states of {len(best)}: {meaning}"
        return f"act is right in {hits} states of {len(best)}: {meaning}"

    return judge


def judge_endless(output, **given):
    fault = judge_matching("a rollout is cut where it is long enough, also in the middle of an episode, and learnt from")
    if left := output["seen"][0]["left"]:
        return (
            f"an episode that never ends was broken off by reset() {left} times: where a rollout ends within an "
            "episode, the next one goes on there. Else nothing late in a long episode is ever seen"
        )
    if output["made"]["forgets"]:
        return (
            "where a rollout ends within an episode, its last reward has a part in the update, and what is observed behind it "
            "has none: the episode goes on there, so gamma times the value of that observation belongs to the last reward"
        )
    return fault({**output, "made": output["made"]["act"]}, **given)


def tasks_heirs(views, right, wrong, seed):
    """Once episodes end by themselves, and once they are cut by the clock."""
    return [
        envs.Task(lambda end=end: envs.Heirs(views, right, wrong, ACTIONS, end), BUDGET)
        for end in (envs.TERMINATED, envs.TRUNCATED)
    ]


def run_heirs(train_ppo, tasks, views, seed):
    """What is chosen at the starts."""
    return [choices(train(train_ppo, one, BUDGET, seed), views[:2]) for one in tasks]


def judge_heirs(output, **given):
    for end, found in zip(("`terminated`", "`truncated`"), output["made"], strict=True):
        fault = judge_starts(
            f"it pays for what only the next episode gains: credit leaks across the reset after {end}. At an episode's end, of "
            "either kind, the running advantage starts again at 0, and no value of the next episode's first observation comes in"
        )({"made": found}, **given)
        if fault:
            return fault
    return ""


# ----------------------------------------------------------------------------------------- seeds


def draw_seeds(generator):
    normal = torch.randn(3, generator=generator)
    seed, other = torch.randperm(1000, generator=generator)[:2].tolist()
    return {
        "normal": (normal / normal.norm()).tolist(),
        "views": torch.randn(64, 3, generator=generator).tolist(),
        "seeds": [seed, seed, other],
    }


def tasks_seeds(normal, views, seeds):
    return [envs.Task(lambda: envs.Pointing(normal), SHORT) for _ in seeds]


def run_seeds(train_ppo, tasks, views, seeds):
    found = []
    for place, (one, seed) in enumerate(zip(tasks, seeds)):
        torch.manual_seed(place)  # what is around a training is another each time
        np.random.seed(place)
        random.seed(place)
        found.append(choices(train(train_ppo, one, SHORT, seed), views))
    return found


def judge_seeds(output, normal, views, seeds):
    one, again, other = (
        {"starts": [starts for starts in seen["starts"] if starts], "actions": seen["actions"], "act": act}
        for seen, act in zip(output["seen"], output["made"], strict=True)
    )
    if one["starts"] != again["starts"]:
        return (
            "two trainings with the same seed begin their episodes with different observations: "
            "give each environment's first reset a seed made from `seed`"
        )
    if one["actions"] != again["actions"] or one["act"] != again["act"]:
        return (
            "two trainings with the same seed take different actions: the first weights, the drawn actions or the order of the "
            "minibatches come from a generator that `seed` does not set"
        )
    for starts in one["starts"]:
        different = len({tuple(start) for start in starts})
        if different < 0.9 * len(starts):
            return (
                f"an environment begins {len(starts)} episodes with {different} different observations: its reset is seeded each "
                "time, so that the same few episodes come back; only the first reset gets a seed"
            )
    firsts = [tuple(starts[0]) for starts in one["starts"]]
    if len(set(firsts)) < len(firsts):
        return "several environments begin with the same observation: they are copies with one seed; give each a seed of its own"
    if one["starts"] == other["starts"]:
        return "two seeds give the same episodes: the environments' seed does not depend on `seed`"
    if one["actions"] == other["actions"]:
        return "two seeds take the same actions: a fixed number stands where `seed` belongs"
    return ""


# ----------------------------------------------------------------------------------------- the build

STARTS = {"secret": ("right", "wrong")}

build = Build("7.10", "train_ppo", [
    Probe("the loop runs and keeps its promises", draw_constant, run_constant, judge_constant,
          tasks=lambda views, seed: task(lambda: envs.Constant(views, ACTIONS), ODD)),
    Probe("the seed decides", draw_seeds, run_seeds, judge_seeds, secret=("normal",), tasks=tasks_seeds),
    Probe("the action that pays", draw_paying, run_paying, judge_paying, secret=("tables",), tasks=tasks_paying),
    Probe("the observation says which", draw_matching, run_one, judge_matching(
        "the policy does not read what it observes, or the rollout keeps an action beside another step's observation "
        "(it belongs to the one before the step)"), secret=("best",), tasks=task_matching),
    Probe("a reward that comes later", draw_two_starts(8), run_one, judge_starts(
        "it takes 0.3 at once and leaves the 1 that comes three steps later: rewards do not get back to the action that earned "
        "them. Is the discount far from 1, or does gae run forwards in time?"),
          tasks=task_in(lambda views, right, wrong: envs.Delayed(views, right, wrong, ACTIONS)), **STARTS),
    Probe("after the end comes nothing", draw_two_starts(4), run_one, judge_starts(
        "it leaves 0.3 for a state that the episode never gets to use: after `terminated` nothing follows, "
        "so the value of the next observation must not be added there",
        "where the clock runs out in the step that ends the episode, `terminated` and `truncated` are both True, and the value "
        "of the next observation is added: it must not be, since nothing follows"),
          tasks=task_in(lambda views, right, wrong: envs.BorderAtTime(views, right, wrong, ACTIONS)), **STARTS),
    Probe("the next episode is another", draw_two_starts(7), run_heirs, judge_heirs, tasks=tasks_heirs, **STARTS),
    Probe("after time out something would", draw_two_starts(4), run_one, judge_starts(
        "it takes 0.3 and leaves a state that is worth 1: after `truncated` the episode would have gone on, so gamma times the "
        "value of its last observation belongs to the last reward (of that one, not of the observation after the reset)"),
          tasks=task_in(lambda views, right, wrong: envs.Border(views, wrong, right, ACTIONS, envs.TRUNCATED)), **STARTS),
    Probe("an episode without end", draw_matching, run_endless, judge_endless, secret=("best",), tasks=tasks_endless),
    Probe("the pole stands", draw_pole, run_pole, judge_pole, seconds=480, secret=("fresh",), tasks=exams),
])  # fmt: skip

Investigation("7.A", "How often can one rollout be used?")
Investigation("7.B", "Rewards of another size")
Investigation("7.C", "Two tasks that are harder")
