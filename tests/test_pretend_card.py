"""Every trainer and the whole pipeline on the pretend card of `card.py`: the CPU's figures, and few waits for the card."""

import functools
import inspect
import random

import card
import pytest
import torch
from torch import nn

from rlhf_lib import checkpoints, devices, runs, sampling
from rlhf_lib.labels import Label
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines.assistant import Assistant
from rlhf_lib.pipelines.shakespeare import Shakespeare
from rlhf_lib.tokenization import CharTokenizer, ChatTokenizer
from rlhf_lib.trainers import dpo, grpo, muon, ppo, ppo_critic, preference, pretrain, rejection, reward, rewards, rollouts, sft
from rlhf_lib.trainers.ppo import PPOConfig
from rlhf_lib.trainers.pretrain import PretrainConfig
from rlhf_lib.trainers.reward import RewardConfig

TOKENIZER = CharTokenizer(list("\nabcdefgh"))
PROMPTS = [TOKENIZER.encode("\n\n"), TOKENIZER.encode("abc")]
SHAPE = dict(vocab_size=TOKENIZER.vocab_size, context=24, layers=2, heads=2, width=16, dropout=0.1)


@pytest.fixture(autouse=True)
def one_way(monkeypatch):
    """Code that asks whether it is on a CPU, or on one with bfloat16, goes the card's way on both, and sums in its order."""
    for module in (devices, muon, rollouts, sft):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    with card.no_cpu_branches():
        yield


def gpt(device, seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SHAPE, **changes}))
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.4)
    return model.to(device)


def texts(count, seed=0):
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh\n", k=draw.randint(3, 16))) for _ in range(count)]


LABELS = [Label(one, draw, "r1", (one, "made")) for one, draw in zip(sorted(set(texts(90))), ["positive", "negative"] * 90)]
TOKENS = torch.tensor(TOKENIZER.encode("\n\n".join(texts(100))))


def pretraining(folder, device, **changes):
    config = PretrainConfig(**{"steps": 12, "batch": 4, "warmup": 2, "evaluations": 2, **changes})
    return pretrain.train(GPTConfig(**SHAPE), config, TOKENS, (TOKENS[:90], 90), TOKENIZER, folder, 0, device)


def reward_training(folder, device, **changes):
    config = RewardConfig(**{"epochs": 2, "batch": 8, "held_out": 0.2, **changes})
    return reward.train(gpt(device), TOKENIZER, LABELS, config, folder, 0, device)[0]


def paid_for(device):
    """A base, a reward for what it writes, and a rollout of it."""
    base, judge = gpt(device), RewardModel(gpt(device, seed=1)).to(device)
    torch.manual_seed(2)
    judge.score.weight.data.copy_(torch.randn(1, 16))
    originals = rollouts.sample(base, TOKENIZER, PROMPTS * 32, 8, torch.Generator().manual_seed(3))
    return base, rewards.fit_reward(judge, originals), originals


def policy_training(folder, device, **changes):
    base, pays, _ = paid_for(device)
    size = {"iterations": 3, "rollout_size": 16, "max_rollout_size": 16, "max_new_tokens": 8, "epochs": 2, "minibatch": 8}
    config = PPOConfig(**{**size, "lr": 3e-3, "keep_every": 2, "max_kl": 100.0, **changes})
    return ppo.train(base, TOKENIZER, PROMPTS, pays, config, folder)


def method_training(folder, device, method="rloo", **changes):
    base, pays, _ = paid_for(device)
    size = {"iterations": 3, "rollout_size": 16, "group": 4, "max_new_tokens": 8, "minibatch": 8}
    config = grpo.GRPOConfig(method, **{**size, "lr": 3e-3, "keep_every": 2, "max_kl": 100.0, "max_weight": 2.0, **changes})
    return grpo.train(base, TOKENIZER, PROMPTS, pays, config, folder)


def branches(folder, device, *scalars):
    """Branches of one base with drawn adapters, and with a scalar head where `scalars` say so."""
    base, made = gpt(device), []
    for number, scalar in enumerate(scalars):
        drawn = Branch(gpt("cpu"), layers=1, rank=2, alpha=4, scalar=scalar)
        torch.manual_seed(5 + number)
        for weight in drawn.parameters():
            nn.init.normal_(weight, std=0.2)
        tensors = {name: tensor.to(device) for name, tensor in drawn.state_dict().items()}
        made.append(checkpoints.load_tensors(Branch(base, layers=1, rank=2, alpha=4, scalar=scalar), tensors, folder))
    return made


def branch_training(folder, device, **changes):
    [policy] = branches(folder, device, False)
    size = {"iterations": 3, "rollout_size": 16, "group": 4, "max_new_tokens": 8, "minibatch": 8}
    config = grpo.GRPOConfig("grpo", **{**size, "lr": 1e-2, "keep_every": 2, "max_kl": 100.0, **changes})
    return grpo.train(policy, TOKENIZER, PROMPTS, lambda rollout: rollout.mask.sum(1).float(), config, folder)


def rejection_training(folder, device, **changes):
    base, pays, _ = paid_for(device)
    size = {"iterations": 3, "rollout_size": 16, "best_of": 2, "max_new_tokens": 8, "epochs": 2, "minibatch": 4}
    config = rejection.RejectionConfig(**{**size, "lr": 3e-3, "keep_every": 2, "max_kl": 100.0, **changes})
    return rejection.train(base, TOKENIZER, PROMPTS, pays, config, folder)


def comparison_training(folder, device, loss="dpo", **changes):
    base, pays, originals = paid_for(device)
    pairs = dpo.compared(originals[slice(0, None, 2)], pays(originals)[::2])  # those of the first prompt
    size = {"batch": 8, "evaluations": 2, "samples": 16, "max_new_tokens": 8, "max_kl": 100.0}
    config = dpo.DPOConfig(loss, **{**size, "lr": 3e-3, **changes})
    return dpo.train(base, TOKENIZER, pairs[4:], pairs[:4], PROMPTS, pays, config, folder)


def critic_training(folder, device, **changes):
    policy, critic, reference = branches(folder, device, False, True, False)
    size = {"iterations": 3, "rollout_size": 16, "max_new_tokens": 8, "epochs": 2, "minibatch": 8}
    config = ppo_critic.PPOCriticConfig(**{**size, "lr": 1e-2, "critic_lr": 1e-2, "max_kl": 100.0, **changes})
    pays = lambda rollout: rollout.mask.sum(1).float()  # noqa: E731
    return ppo_critic.train(policy, critic, reference, TOKENIZER, PROMPTS, pays, config, folder)


def preference_training(folder, device, **changes):
    model = RewardModel(gpt(device), "last", dropout=0.1).to(device)
    rows = [TOKENIZER.encode(text)[:10] for text in texts(60, seed=4)]
    rankings = [preference.Ranking(rows[place], rows[place + 1 : place + 3]) for place in range(0, 60, 3)]
    config = preference.PreferenceConfig(**{"epochs": 2, "batch": 4, "lr": 3e-3, **changes})
    preference.train(model, TOKENIZER, rankings[4:], rankings[:4], config, folder)
    return model


CHAT = ChatTokenizer.train(["user assistant yes no good day fine"] * 4, 290)  # few tokens a turn


def fine_tuning(folder, device, **changes):
    model = gpt(device, vocab_size=CHAT.vocab_size, context=48)
    words = ["yes", "no", "good", "day", "fine"]
    talks = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a in words for b in words]
    config = sft.SFTConfig(**{"epochs": 2, "row": 40, "batch": 2, "lr": 3e-3, **changes})
    sft.train(model, CHAT, talks[5:], talks[:5], config, folder)
    return model


TRAINERS = {
    "pretrain": (pretraining, "base"),
    "reward": (reward_training, "reward"),
    "policy": (policy_training, "policy"),
    **{name: (functools.partial(method_training, method=name), "policy") for name in ("rloo", "grpo", "gspo", "ppo")},
    "branch": (branch_training, "policy"),
    "critic": (critic_training, "policy"),
    "rejection": (rejection_training, "policy"),
    **{loss: (functools.partial(comparison_training, loss=loss), "policy") for loss in ("dpo", "ipo", "kto")},
    "preference": (preference_training, "reward"),
    "sft": (fine_tuning, "sft"),
}


def figures(folder):
    """The records of a run and its checkpoints to the last bit."""
    files = [folder / "metrics.jsonl", *sorted(folder.rglob("*.safetensors"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ----------------------------------------------------------------------------------------- the CPU's figures


@pytest.mark.parametrize("stage", TRAINERS)
def test_a_trainer_on_the_card_gives_the_cpus_figures(tmp_path, stage):
    train, out = TRAINERS[stage]
    for device in ("cpu", "card"):
        model = train(tmp_path / device, device)
        assert next(model.parameters()).device.type == device
    here, there = figures(tmp_path / "cpu"), figures(tmp_path / "card")
    assert f"{out}/model.safetensors" in here and len(here["metrics.jsonl"]) > 100
    assert there == here


@pytest.mark.parametrize("stage", TRAINERS)
def test_a_trainer_stopped_on_the_card_and_gone_on_with_gives_them_too(tmp_path, interrupted, stage):
    train, _ = TRAINERS[stage]
    train(tmp_path / "cpu", "cpu")
    with interrupted(saved=2, stop=3), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "card", "card")
    with interrupted() as done:
        train(tmp_path / "card", "card")
    assert done[0] == 3
    assert figures(tmp_path / "card") == figures(tmp_path / "cpu")


@pytest.mark.parametrize("began, goes_on", [("card", "cpu"), ("cpu", "card")])
def test_a_run_may_go_on_on_the_other_device(tmp_path, interrupted, began, goes_on):
    policy_training(tmp_path / "whole", "cpu")
    with interrupted(saved=2, stop=2), pytest.raises(KeyboardInterrupt):
        policy_training(tmp_path / "moved", began)
    policy_training(tmp_path / "moved", goes_on)
    assert figures(tmp_path / "moved") == figures(tmp_path / "whole")


def test_the_pipeline_on_the_card_gives_the_cpus_figures(tmp_path, tiny_settings):
    changes = {"pretrain.steps": 20, "pretrain.evaluations": 2, "reward.epochs": 2}
    for device in ("cpu", "card"):
        summary = Shakespeare(tiny_settings(changes), tmp_path / device, torch.device(device)).run()
        assert summary["device"] == device
        assert (tmp_path / device / "report.html").exists()
    assert figures(tmp_path / "card") == figures(tmp_path / "cpu")
    for name in ("samples.jsonl", "policy/reward.json"):
        assert (tmp_path / "card" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()


def test_the_assistant_on_the_card_gives_the_cpus_figures_but_for_rounding(tmp_path, assistant_settings):
    for device in ("cpu", "card"):
        summary = Assistant(assistant_settings(), tmp_path / device, torch.device(device)).run()
        assert summary["device"] == device
        assert (tmp_path / device / "report.html").exists()
    here, there = (runs.Metrics(tmp_path / device).read() for device in ("cpu", "card"))
    assert len(here) == len(there) == 27
    for one, other in zip(here, there):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value), name


# ----------------------------------------------------------------------------------------- waits for the card


def where(function):
    """The names that `card` gives to the lines of a function."""
    plain = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(plain)
    file = inspect.getsourcefile(plain).removeprefix(f"{card.ROOT}/")
    return {f"{file}:{first + place}" for place in range(len(lines))}


SAVING = where(runs.save_state) | where(checkpoints.write)
DRAWING = where(sampling.generate)
EVALUATION = where(pretrain.evaluate) | where(reward.score_texts)


def waits(act, *left_out):
    """How often `act` waits for the card, saving and the lines of `left_out` aside; and what was counted."""
    with card.counting() as counts:
        act()
    aside = SAVING.union(*left_out)
    return sum(n for line, n in counts.lines["to_host"].items() if line not in aside), counts


@pytest.mark.parametrize("train", [policy_training, method_training, branch_training, critic_training])
def test_a_minibatch_of_ppo_waits_at_most_3_times_and_an_iteration_at_most_40(tmp_path, train):
    def run(**changes):
        folder = tmp_path / "_".join(map(str, changes.values()))
        return waits(lambda: train(folder, "card", **changes), DRAWING)

    short, _ = run(iterations=2, epochs=1)
    longer, counts = run(iterations=2, epochs=4)
    assert longer - short <= 3 * 2 * 3 * 2, counts  # 2 iterations have 3 epochs more of 2 minibatches
    more, counts = run(iterations=6, epochs=1)
    assert more - short <= 40 * 4, counts


@pytest.mark.parametrize(("stage", "longer", "most"), [("pretrain", {"steps": 60}, 2), ("reward", {"epochs": 5}, 3)])
def test_a_step_of_pretraining_waits_at_most_2_times_and_one_of_the_reward_model_3_times(
    tmp_path, interrupted, stage, longer, most
):
    train, _ = TRAINERS[stage]
    found, steps = [], []
    for number, changes in enumerate(({}, longer)):
        with interrupted() as done:
            asked, counts = waits(lambda: train(tmp_path / str(number), "card", **changes), EVALUATION)  # noqa: B023
        found.append(asked)
        steps.append(len(done))
    assert steps[1] - steps[0] > 20
    assert found[1] - found[0] <= most * (steps[1] - steps[0]), counts


def test_a_token_waits_once_to_ask_whether_rows_have_ended():
    base = gpt("card")
    uniforms = torch.rand(60, 20, generator=torch.Generator().manual_seed(0))
    found, counts = waits(lambda: sampling.generate(base, PROMPTS[:1] * 60, 20, uniforms=uniforms, end_token=0))
    assert found <= 20, counts
    samples = sampling.generate(base, PROMPTS[:1] * 60, 20, uniforms=uniforms, end_token=0)
    assert samples.mask.sum(1).unique().numel() > 5  # rows did end, and left the batch
    found, counts = waits(lambda: sampling.generate(base, PROMPTS[:1] * 60, 20, uniforms=uniforms))
    assert found == 0, counts  # nothing can end


def test_a_rollout_brings_its_tokens_over_once_to_be_read():
    base = gpt("card")
    found, counts = waits(lambda: rollouts.sample(base, TOKENIZER, PROMPTS * 30, 8, torch.Generator().manual_seed(0)), DRAWING)
    assert found <= 3, counts
