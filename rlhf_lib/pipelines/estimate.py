"""How long a run will take on this machine: a small piece of each kind of work, timed, times how often it is done."""

import time
from pathlib import Path

import torch
from torch.nn import functional as F

from rlhf_lib import checkpoints, devices
from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.heads import RewardModel, head_logprobs
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines.inputs import prompt_tokens
from rlhf_lib.sampling import generate
from rlhf_lib.trainers import pretrain, rollouts

LABEL_TOKENS = 40  # of a labelled passage, about


def estimate(settings, labels, device):
    """Seconds by stage of a run with `settings` (of the Shakespeare pipeline) on `labels` passages; it takes a few itself."""
    s = settings
    torch.manual_seed(0)
    parts = {} if s.init_from else estimate_learning(s, labels, device)
    model = checkpoints.load(Path(s.init_from) / "base", device)[0] if s.init_from else GPT(s.model).to(device)
    policy = Branch(model, rank=s.ppo.rank) if s.ppo.rank else model
    body = Branch(model, rank=s.reward.rank, scalar=True) if s.reward.rank else RewardModel(model).to(device).eval()
    rows, length = min(256, s.ppo.rollout_size), min(16, s.ppo.max_new_tokens)
    quick = rollouts.quick_copy(policy)
    prompts = [[0]] * s.ppo.minibatch
    tokens = torch.zeros(s.ppo.minibatch, s.ppo.max_new_tokens, dtype=torch.long, device=device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    minibatch = rollouts.Rollout(prompts, tokens, torch.zeros(tokens.shape, device=device), mask, [""] * len(prompts))

    def update():
        rollouts.logprobs_of(policy, minibatch).sum().backward()

    @torch.no_grad()
    def score():
        rollouts.logprobs_of(policy, minibatch)
        body.logits(tokens, mask)

    sampled = timed(lambda: generate(quick, [[0]] * rows, length), device) / (rows * length)  # seconds a token
    updated, scored = timed(update, device), timed(score, device)
    drawn = (s.ppo.iterations + 1) * s.ppo.rollout_size + s.normaliser_samples  # completions
    return {
        **parts,
        "policy": drawn * (s.ppo.max_new_tokens * sampled + 1.5 * scored / s.ppo.minibatch)
        + s.ppo.iterations * s.ppo.epochs * s.ppo.rollout_size / s.ppo.minibatch * updated,
        "evaluation": 2 * s.evaluate_samples * (s.ppo.max_new_tokens * sampled + scored / s.ppo.minibatch),
    }


def estimate_learning(settings, labels, device):
    """Seconds of pretraining, and of the reward model on `labels` passages."""
    s, model = settings, GPT(settings.model).to(device)
    windows = torch.zeros(s.pretrain.batch, s.model.context, dtype=torch.long, device=device)
    optimizers = pretrain.make_optimizers(model, s.pretrain)

    def learn():
        with devices.autocast(device, s.model.width):
            logits = model(windows)
        F.cross_entropy(logits.float().flatten(0, 1), windows.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    step = timed(learn, device)
    share = s.reward.batch * LABEL_TOKENS / windows.numel()  # of a step of pretraining that a step of the reward model is
    return {"pretraining": s.pretrain.steps * step, "reward model": s.reward.epochs * labels / s.reward.batch * share * step}


def estimate_assistant(run):
    """Seconds by stage of a run of the assistant; it takes a few itself.

    Three pieces are timed: the trunk below the adapters, learning above it, and sampling, each per token.
    """
    s, device = run.settings, run.device
    model = run.branch("estimate", run.base, s.layers)
    trunk, learn = pace(model, device)
    below, tuning = pace(run.sft_branch(), device)
    rows, new = min(64, s.ppo.rollout_size), min(16, s.ppo.max_new_tokens)
    quick = rollouts.quick_copy(model)
    sampled = timed(lambda: generate(quick, [[row] + [0] * 31 for row in range(rows)], new), device) / (rows * new)
    read = trunk + learn / 3  # a third of learning is the way forward

    talks = [sum(len(run.tokenizer.turns(talk)[0]) for talk in half) for half in run.inputs.demonstrations]
    pairs = [sum(len(r.prompt) + len(answer) for r in half for answer in r.answers) for half in run.inputs.rankings]
    asked = [len(prompt_tokens(run.tokenizer, prompt)) for prompt in run.inputs.prompts[1]]
    whole = sum(asked) / len(asked) + s.ppo.max_new_tokens  # tokens of a prompt and an answer
    answer = s.ppo.max_new_tokens * sampled + whole * read  # seconds of one that is drawn and scored
    reward = s.preference.epochs * (pairs[0] * (trunk + learn) + pairs[1] * read)
    drawn = (s.ppo.iterations + 1) * s.ppo.rollout_size
    trains_gold = run.endpoint is None and run.published_gold is None
    judged = len(run.inputs.prompts[1][: s.evaluate_prompts or None])
    return {
        "fine-tuning": s.sft.epochs * (talks[0] * (below + tuning) + talks[1] * read),
        "reward model": reward,
        "policy": (drawn + s.normaliser_samples) * answer + drawn * whole * learn * (1 + 2 * s.ppo.epochs),  # policy and critic
        "judging": judged * (3 + s.best_of) * answer + trains_gold * reward,
    }


def pace(model, device):
    """Seconds a token of a branch's trunk, and of learning above it."""
    length = min(64, model.config.context)
    tokens = torch.zeros(4, length, dtype=torch.long, device=device)
    with devices.autocast(device, model.config.width, exact=True):
        trunk = timed(lambda: model.trunk(tokens), device)
        state = model.trunk(tokens)
        learn = timed(
            lambda: head_logprobs(model.top(*state).flatten(0, 1), model.head.weight, tokens.flatten()).sum().backward(), device
        )
    return trunk / tokens.numel(), learn / tokens.numel()


def timed(work, device):
    """Seconds that `work` takes, the second time."""
    work()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def sentence(parts):
    """What the parts, seconds by stage, say in one line."""
    minutes = {name: f"{name} {seconds / 60:.1f}" for name, seconds in parts.items()}
    return f"About {sum(parts.values()) / 60:.0f} minutes on this machine ({', '.join(minutes.values())})."
