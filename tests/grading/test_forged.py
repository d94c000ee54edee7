"""Builds that never do what they are asked for: what they forge in their own process decides nothing.

The forger has the whole process: here its code puts a `run` of its own in a probe's place, and so writes what is handed over.
"""

import pytest

from rlhf_lib.grading import verdicts
from rlhf_lib.grading.answers import Answer

FORGER = """import math, sys, torch
from rlhf_lib.exercises.declare import BUILDS
probes = BUILDS[{name!r}].probes
def run(built, *given, **named):
    {lines}
probes[{probe!r}] = probes[{probe!r}]._replace(run=run)
def {name}(*given, **named):
    return None
"""
LOOKED_FOR = """found, frame = {}, sys._getframe()
    while frame:
        for one in [*frame.f_locals.values()]:
            for part in one if type(one) is list else [one]:
                found.update(part if type(part) is dict else {})
        frame = frame.f_back
"""
REWARD_MODEL = """from rlhf_lib import checkpoints, course
    from rlhf_lib.exercises.build06_probes import scores
    model = checkpoints.load(course.PUBLISHED / "reward", "cpu", kind="reward")[0]
    return scores(lambda tokens, mask: model.logits(tokens, mask), named["unseen"])
"""
POLICY = """from rlhf_lib import checkpoints, course
    from rlhf_lib.exercises.tiny_rlhf import weights
    policy = weights(checkpoints.load(course.PUBLISHED / "policy", "cpu")[0])
    records = [{"iteration": n, "reward": n / 8, "kl": float(n), "ratio": 1.0, "clip_fraction": 0.1} for n in range(9)]
    return {"records": records, "policy": policy, "base": policy, "left": [], "reference": policy}
"""
LEARNED = """from rlhf_lib.exercises.tiny_groups import tiny
    from rlhf_lib.exercises.tiny_rlhf import weights
    records = [{"iteration": n, "reward": 0.2 + n / 40, "kl": 0.0, "silent": 0.0, "ratio": 1.0} for n in range(25)]
    call = {"rollout": 0, "rewards": torch.zeros(4, 4), **{one: torch.zeros(16, 8) for one in ("new", "old", "mask")}}
    run = {"records": records, "policy": weights(tiny(named["seed"])), "rollouts": [], "calls": [call]}
    run |= {"touched": False, "awake": False}
    return {"runs": [run] * 3}
"""
REVERSED = """from rlhf_lib.exercises.formula02_gpt import LETTERS, held_out, draw_state
    rows = held_out(named["seed"])
    logits = 20.0 * torch.nn.functional.one_hot(rows[:, 1:], LETTERS + 1)
    logits[:, :rows.shape[1] // 2 - 1] = 0
    state = draw_state(torch.Generator().manual_seed(0), (LETTERS + 1, rows.shape[1], 2, 2, 64))
    return {"losses": [1.2] * 450, "logits": logits, "state": state}
"""
PLAYS = """from rlhf_lib.exercises.build01_bpe import texts_of
    text, play = texts_of(named["works"], named["unseen"])
    count = len(play) // 3
    return {"merges": [[1, 2]] * 1791, "vocab_size": 2048, "tokens": [1] * count, "back": True, "times": 1.0}
"""
FORGED = {  # the build, its probe, what the forger hands over, and some words of why it is refused
    "the best actions looked for": (
        "train_ppo", "a reward that comes later", LOOKED_FOR + '    return found["right"] + [0] * 6', "raises KeyError",
    ),
    "actions made up, no environment touched": ("train_ppo", "the action that pays", "return [0, 0]", "three actions pay"),
    "a log of its own": (
        "train_ppo", "the loop runs and keeps its promises",
        'given[0][0].seen = lambda: {"steps": 3000}\n    return {"act": [0] * 30, "kind": ""}', "only 0 were used",
    ),
    "a pole that never stood": (
        "train_ppo", "the pole stands", 'given[0][0].lengths = [500] * 20\n    return [80000] * 3', "a training is missing",
    ),
    "the answers looked for": (
        "train_reward_model", "right on 80 % of the labels that it has not read",
        LOOKED_FOR + '    return torch.tensor(found["answers"]) - 0.5', "it raises",
    ),
    "the published reward model": (
        "train_reward_model", "right on 80 % of the labels that it has not read", REWARD_MODEL, "it raises",
    ),
    "the published policy": ("rlhf", "writes happier lines", POLICY, "it raises"),
    "the published policy as an assistant": ("train_assistant", "answers more happily", POLICY, "it raises"),
    "records of a policy that never moved": ("learn", "learns by every row", LEARNED, "says a reward of 0.80"),
    "a reward that rose on paper": (
        "policy_gradient", "every row learns",
        "from rlhf_lib.policy_gradient import METHODS\n    return {name: (0.2, 0.9) for name in METHODS}", "cannot be judged",
    ),
    "logits without a model": ("GPT", "it learns to reverse, and only the answer", REVERSED, "."),
    "tokens of no text": ("train_bpe", "a play that it has not seen", PLAYS, "does not come back as it was"),
    "an accuracy of its own": (
        "train_preference", "right on 90 % of a preference that it has not read",
        'return {"accuracy": 0.95, "counted": 0.95, "unseen": torch.rand(300)}', "needs 90 %",
    ),
    "a loss of its own": (
        "train_sft", "answers what it has not seen",
        "from rlhf_lib.exercises.tiny_chat import tiny\n"
        '    state = tiny(named["weights"], width=48, spread=0.05).state_dict()\n'
        '    return {"found": [3.0] + [0.1] * 8, "after": 0.1, "state": state}', "the loss falls from",
    ),
    "the true labels looked for": (
        "weigh_readers", "the careless weigh less",
        LOOKED_FOR + '    return torch.nn.functional.one_hot(found["truth"], 3).double(), torch.full((7, 3, 3), 1 / 3)',
        "raises KeyError",
    ),
    "the sides looked for": ("journey", "the whole journey", LOOKED_FOR + '    return found["sides"]', "raises KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("label", FORGED)
def test_a_forged_build_is_refused(label, box):
    name, probe, lines, words = FORGED[label]
    inputs = next(one for one in verdicts.drawn(name, 5) if one["probe"] == probe)
    code = FORGER.format(name=name, probe=probe, lines=lines)
    fault = verdicts.attempt(name, Answer(name, [["cell 1", code]]), box, [inputs], 60.0)
    assert fault["verdict"] == "wrong" and (words == "." or words in fault["message"]), fault


HONEST = """import random
def train_ppo(make_env, steps, seed):
    env, best, numbers = make_env(), {}, random.Random(seed)
    state, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = numbers.randrange(int(env.action_space.n))
        view, (state, reward, *ends, _) = tuple(state.tolist()), env.step(action)
        best.setdefault(view, {}).setdefault(action, reward)
        if any(ends):
            state, _ = env.reset()
    return lambda observation: max((pay, action) for action, pay in best[tuple(observation.tolist())].items())[1]
"""


def test_what_learns_in_the_graders_environments_passes(box):
    inputs = next(one for one in verdicts.drawn("train_ppo", 5) if one["probe"] == "the observation says which")
    assert verdicts.attempt("train_ppo", Answer("train_ppo", [["cell 1", HONEST]]), box, [inputs], 200.0) is None
