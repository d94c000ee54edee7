"""Speed without a clock: what is computed and what is kept, counted, so that a regression shows on any machine."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf_lib import devices, sampling
from rlhf_lib.models import heads
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.sampling import generate
from rlhf_lib.tokenization import CharTokenizer
from rlhf_lib.trainers import ppo, pretrain, reward, rewards, rollouts
from rlhf_lib.trainers.ppo import PPOConfig
from rlhf_lib.trainers.pretrain import PretrainConfig

TOKENIZER = CharTokenizer(list("\nabcdefghijklmnopqrst"))
V = TOKENIZER.vocab_size
PROMPT = TOKENIZER.encode("\n\n")
P, T, B = len(PROMPT), 6, 8
CONFIG = PPOConfig(iterations=4, rollout_size=B, max_rollout_size=B, max_new_tokens=T, epochs=3, minibatch=4, max_kl=1e9, lr=1e-4)
STEPS = CONFIG.epochs * B // CONFIG.minibatch  # minibatches of an iteration


def gpt(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=V, context=P + T, layers=2, heads=2, width=16))
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.3)
    return model


def reward_model():
    model = RewardModel(gpt(seed=1))
    nn.init.normal_(model.score.weight)
    return model


class Counts:
    """Counts what goes through a GPT, and through the copies made of it.

    `passes` has a dict for each pass: the `model` (by its first block), `rows` and `positions` read, whether with a
    `gradient`, and how many rows the cache has. `logits` has (head, how many rows of logits) where the head is called.
    """

    def __init__(self, model):
        self.passes, self.logits = [], []

        def block(module, arguments):
            x, cache = arguments[0], arguments[3]
            self.passes.append(
                {
                    "model": module, "rows": x.shape[0], "positions": x.shape[1], "gradient": torch.is_grad_enabled(),
                    "cache": None if cache is None else cache.keys.shape[1],
                }
            )  # fmt: skip

        def head(module, arguments):
            self.logits.append((module, arguments[0].shape[:-1].numel()))

        model.blocks[0].register_forward_pre_hook(block)
        model.head.register_forward_pre_hook(head)

    def shapes(self):
        return [(one["rows"], one["positions"]) for one in self.passes]

    def read(self, model=None):
        """Positions read, over all rows."""
        return sum(one["rows"] * one["positions"] for one in self.passes if model in (None, one["model"]))

    def scored(self, head=None):
        """Rows of logits."""
        return sum(rows for module, rows in self.logits if head in (None, module))


@pytest.fixture(scope="module")
def head_rows():
    """How many rows each call of head and log-probability in one had: what a completion's tokens are scored with."""
    rows, real = [], heads.head_logprobs

    def noted(hidden, *rest):
        rows.append((hidden.shape[0], torch.is_grad_enabled()))
        return real(hidden, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "head_logprobs", noted)
        yield rows


@pytest.fixture(scope="module", autouse=True)
def clean_slate():
    """What was there before these tests is left out of every look at memory, which takes a second with it."""
    gc.collect()
    gc.freeze()


def live_tensors():
    """Every tensor that was made since and that Python can still reach."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


def graphs(tensors=None):
    """How many tensors hold on to a graph of gradients, of all or of `tensors`."""
    return sum(tensor.grad_fn is not None for tensor in tensors or live_tensors())


# ----------------------------------------------------------------------------------------- decoding


def test_a_new_token_costs_one_pass_over_one_position():
    model = gpt()
    counts = Counts(model)
    generate(model, [PROMPT] * B, T)
    assert counts.shapes() == [(B, P)] + [(B, 1)] * (T - 1)  # the last token is never read


def test_only_the_logits_that_are_sampled_from_are_computed():
    model = gpt()
    counts = Counts(model)
    generate(model, [[3, 4, 5, 6]] * B, P + T - 4)
    assert [rows for _, rows in counts.logits] == [B] * (P + T - 4)  # of a prompt's positions, the last alone


def test_finished_rows_leave_the_batch_and_the_cache_when_a_quarter_has_ended():
    """Before that they go along, masked: moving the cache costs as much as a step or two."""
    model = gpt()
    uniforms = torch.rand(40, T, generator=torch.Generator().manual_seed(0))
    whole = generate(model, [PROMPT] * 40, T, uniforms=uniforms).tokens  # what every row writes when nothing ends it
    end = int(whole[:, :3].flatten().mode().values)
    going = [int((whole[:, :step] != end).all(1).sum()) for step in range(T)]  # rows that step `step` still has to do
    kept = [40]
    for rows in going[1:]:
        kept.append(rows if rows <= 0.75 * kept[-1] else kept[-1])
    assert len(set(kept)) >= 2 and kept != going  # some leave, and some wait for others
    counts = Counts(model)
    generate(model, [PROMPT] * 40, T, uniforms=uniforms, end_token=end)
    assert [one["rows"] for one in counts.passes] == kept
    assert [one["cache"] for one in counts.passes] == kept
    assert counts.scored() == sum(kept)


def test_nothing_more_is_computed_when_every_row_has_ended():
    model = gpt()
    uniforms = torch.full((B, T), 0.5)
    end = int(generate(model, [PROMPT] * B, T, uniforms=uniforms).tokens[0, 2])
    counts = Counts(model)
    lengths = generate(model, [PROMPT] * B, T, uniforms=uniforms, end_token=end).mask.sum(1)
    assert len(counts.passes) == int(lengths[0]) < T


def sampled(policy, count=B, seed=0):
    return rollouts.sample(policy, TOKENIZER, [PROMPT] * count, T, torch.Generator().manual_seed(seed))


def test_a_rollout_makes_no_graph():
    policy = gpt().requires_grad_(True)
    counts = Counts(policy)
    before = graphs()
    rollout = sampled(policy)
    assert not any(one["gradient"] for one in counts.passes)
    assert graphs() == before and not rollout.logprobs.requires_grad


# ----------------------------------------------------------------------------------------- the PPO loop


class Looks:
    """What is watched, asked for once an iteration; it looks at what memory tensors hold then."""

    def __init__(self):
        self.held = []

    def __call__(self, rollout, net):
        tensors = live_tensors()
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.held.append((sum(storages.values()), graphs(tensors)))
        return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory, head_rows):
    """The counts of a short run of PPO, as on hardware without bfloat16: of base and policy together, of the reward model;
    the tokens of the rollouts; what was held; the rows scored; graphs at each minibatch's beginning; backward passes."""
    base, scorer, looks, tokens, during, backwards = gpt(), reward_model(), Looks(), [], [], []
    pays = rewards.fit_reward(scorer, sampled(base, 64))
    counts, reward_counts = Counts(base), Counts(scorer.body)
    real, real_logprobs, real_adam = ppo.sample, ppo.logprobs_of, torch.optim.Adam
    head_rows.clear()

    def noted(*arguments, **options):
        rollout = real(*arguments, **options)
        tokens.append(rollout.mask.sum().item())
        return rollout

    def minibatch(*arguments):
        during.append(graphs())
        return real_logprobs(*arguments)

    def adam(parameters, lr):
        parameters = list(parameters)
        parameters[0].register_post_accumulate_grad_hook(lambda _: backwards.append(1))
        return real_adam(parameters, lr=lr)

    before = graphs()
    with pytest.MonkeyPatch.context() as patch:
        for module in (devices, rollouts):
            patch.setattr(module, "has_bf16", lambda device: False)
        patch.setattr(ppo, "sample", noted)
        patch.setattr(ppo, "logprobs_of", minibatch)
        patch.setattr(torch.optim, "Adam", adam)
        ppo.train(base, TOKENIZER, [PROMPT], pays, CONFIG, tmp_path_factory.mktemp("run"), watch=looks)
    after = graphs()
    return SimpleNamespace(
        base=base, counts=counts, reward_counts=reward_counts, tokens=tokens, held=looks.held, scored=list(head_rows),
        during=during, graphs=(before, after), backwards=len(backwards),
    )  # fmt: skip


def test_an_iteration_passes_once_for_sampling_once_each_for_scoring_and_once_an_epoch(run):
    count, whole = CONFIG.iterations + 1, P + T - 1
    sampling = [one for one in run.counts.passes if one["cache"] is not None]
    scoring = [one for one in run.counts.passes if one["cache"] is None and not one["gradient"]]
    update = [one for one in run.counts.passes if one["gradient"]]
    most = count * B * (P + T - 1)  # the last token of a row is not read
    assert sum(run.tokens) + count * B * (P - 1) <= sum(one["rows"] * one["positions"] for one in sampling) <= most
    assert [(one["rows"], one["positions"]) for one in scoring] == [(B, whole)] * 2 * count  # by the policy and by the base
    assert sum(one["model"] is run.base.blocks[0] for one in scoring) == count
    assert [(one["rows"], one["positions"]) for one in update] == [(CONFIG.minibatch, whole)] * CONFIG.iterations * STEPS
    assert run.backwards == CONFIG.iterations * STEPS


def test_only_the_logits_of_the_completions_are_computed(run):
    count = CONFIG.iterations + 1
    assert sum(run.tokens) <= run.counts.scored() <= count * B * T  # in sampling
    without = [rows for rows, gradient in run.scored if not gradient]
    assert without == [B * T] * 2 * count
    assert [rows for rows, gradient in run.scored if gradient] == [CONFIG.minibatch * T] * CONFIG.iterations * STEPS


def test_the_reward_model_reads_each_completion_once_and_computes_no_logits_over_the_vocabulary(run):
    assert run.reward_counts.read() == (CONFIG.iterations + 1) * B * T
    assert isinstance(reward_model().body.head, nn.Identity)


def test_only_the_update_computes_gradients(run):
    trained = [one for one in run.counts.passes if one["gradient"]]
    assert len(trained) == CONFIG.iterations * STEPS
    assert not any(one["model"] is run.base.blocks[0] for one in trained)
    assert not any(one["gradient"] for one in run.reward_counts.passes)
    assert all(weight.grad is None for weight in run.base.parameters())


def test_no_graph_is_kept_from_one_minibatch_to_the_next_or_after_a_run(run):
    assert len(run.during) == CONFIG.iterations * STEPS
    before, after = run.graphs
    assert after == before
    within = [run.during[place] for place in range(len(run.during)) if place % STEPS]  # behind another minibatch
    assert len(set(within)) == 1  # what the minibatch before left is thrown away, and not piled up


def test_the_memory_of_a_run_does_not_grow_over_its_iterations(run):
    assert len(run.held) == CONFIG.iterations + 1
    settled = run.held[2:]  # behind the first update, which makes Adam's state
    assert len(set(settled)) == 1


# ----------------------------------------------------------------------------------------- pretraining


def test_a_step_of_pretraining_reads_its_batch_once_and_an_evaluation_the_text_once(tmp_path, monkeypatch):
    made = []

    def watched(config):
        model = GPT(config)
        made.append(Counts(model))
        return model

    monkeypatch.setattr(pretrain, "GPT", watched)
    config = PretrainConfig(steps=6, batch=4, warmup=1, evaluations=2)
    tokens = torch.randint(V, (400,), generator=torch.Generator().manual_seed(0))
    model = GPTConfig(vocab_size=V, context=10, layers=1, heads=2, width=16)
    before = graphs()
    pretrain.train(model, config, tokens, (tokens[:101], 101), TOKENIZER, tmp_path)
    passes = made[0].passes
    assert [(one["rows"], one["positions"]) for one in passes if one["gradient"]] == [(4, 10)] * 6
    assert sum(one["rows"] * one["positions"] for one in passes if not one["gradient"]) == 2 * 100
    assert graphs() == before


def test_scoring_texts_pads_little(monkeypatch):
    model = RewardModel(GPT(GPTConfig(vocab_size=V, context=40, layers=1, heads=2, width=16)))
    counts = Counts(model.body)
    texts = ["a" * (1 + 7 * place % 40) for place in range(40)]  # every length from 1 to 40, in another order
    reward.score_texts(model, TOKENIZER, texts, batch=8)
    assert counts.read() == 8 * (8 + 16 + 24 + 32 + 40)
