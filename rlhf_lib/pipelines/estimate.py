"""How long a run will take on this machine: a small piece of each kind of work, timed, times how often it is done."""

import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from rlhf_lib import checkpoints, devices
from rlhf_lib.models.gpt import GPT
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.layers import pad
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines.inputs import answer_tokens, prompt_tokens
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

    The answers to come are taken to be as long as those of the demonstrations. Timed are, per token of prompt and answer, the
    trunk, reading above it and learning above it, and per answer how long drawing takes.
    """
    s = run.settings
    rollout, (shown, tested) = demonstrated(run), run.inputs.demonstrations
    policy = run.branch("estimate", run.base, s.layers)
    trunk, read, learn = pace(policy, rollout)
    below, seen, tuned = pace(run.sft_branch(), rollout)
    size = tokens_of(rollout) / len(rollout)  # of an answer and its prompt

    talks = [sum(len(run.tokenizer.turns(talk)[0]) for talk in half) for half in (shown, tested)]
    pairs = [sum(len(r.prompt) + len(answer) for r in half for answer in r.answers) for half in run.inputs.rankings]
    if s.reward_adapters:
        reward = s.preference.epochs * (pairs[0] * (trunk + learn) + pairs[1] * (trunk + read))
    else:
        reward = sum(pairs) * trunk  # a head alone learns from states that are computed once
    drawn = drawing(rollouts.quick_copy(policy), rollout, s.ppo, run.device)
    paid = drawn + size * (trunk + s.reward_adapters * read)  # seconds of an answer that is drawn and has its reward
    learned = s.ppo.iterations * s.ppo.rollout_size
    trains_gold = run.endpoint is None and run.published_gold is None
    judged = len(run.inputs.prompts[1][: s.evaluate_prompts or None])
    return {
        "fine-tuning": s.sft.epochs * (talks[0] * (below + tuned) + talks[1] * (below + seen)),
        "reward model": reward,
        "policy": (learned + s.ppo.rollout_size) * (paid + 3 * size * read)  # policy, reference and critic
        + s.normaliser_samples * paid
        + learned * s.ppo.epochs * 2 * size * learn,  # policy and critic
        "judging": judged * (3 + s.best_of) * paid + trains_gold * reward,
    }


def demonstrated(run):
    """Some demonstrations as a Rollout: a minibatch of them, from all over the file, their answers cut where a rollout's are, and
    of a prompt that leaves no room for such an answer the end."""
    ppo, talks = run.settings.ppo, run.inputs.demonstrations[0]
    some, room = talks[:: math.ceil(len(talks) / ppo.minibatch)], run.base.config.context - ppo.max_new_tokens
    prompts = [prompt_tokens(run.tokenizer, talk[:-1])[-room:] for talk in some]
    answers = [answer_tokens(run.tokenizer, talk[-1]["content"])[: ppo.max_new_tokens] for talk in some]
    tokens, mask = pad(answers, "right", run.device)
    return rollouts.Rollout(prompts, tokens, torch.zeros(tokens.shape, device=run.device), mask, [""] * len(some))


def tokens_of(rollout):
    """How many tokens prompts and completions have, in all."""
    return sum(map(len, rollout.prompts)) + int(rollout.mask.sum())


def pace(branch, rollout):
    """Seconds a token of a branch's trunk, of reading above it and of learning above it, as PPO does it."""
    trunk, start = rollouts.trunk_of(branch, rollout)

    def read():
        return rollouts.trunk_logprobs(branch, trunk, start, rollout.tokens, rollout.mask)

    work = lambda: rollouts.trunk_of(branch, rollout), torch.no_grad()(read), lambda: read().sum().backward()
    return [timed(piece, rollout.tokens.device) / tokens_of(rollout) for piece in work]


def drawing(quick, rollout, ppo, device):
    """Seconds to draw an answer to the rollout's prompts, as many at once as PPO draws, at most 64.

    Drawing goes on until the last of them has ended, so for `ppo.max_new_tokens`, about. One token each and nine each are timed:
    a long prompt is read once, and must not count with every token.
    """
    rows = min(64, ppo.rollout_size)
    prompts = rollouts.in_turn(rollout.prompts, 0, rows)
    new = min(9, ppo.max_new_tokens)
    first, all_of_it = (timed(lambda count=count: generate(quick, prompts, count), device) for count in (1, new))
    later = max(0, all_of_it - first) / max(1, new - 1)
    return (first + later * (ppo.max_new_tokens - 1)) / rows


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
