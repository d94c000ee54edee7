"""Speed without a clock: what is computed and what is kept, counted, so that a regression shows on any machine."""

import gc

import pytest
import torch
from torch import nn

from rlhf_lib import pretrain, reward, rlhf
from rlhf_lib.judge import GoldJudge
from rlhf_lib.model import GPT, GPTConfig
from rlhf_lib.pretrain import PretrainConfig
from rlhf_lib.reward import RewardModel
from rlhf_lib.rlhf import RLHFConfig
from rlhf_lib.sampling import generate
from rlhf_lib.tokenization import CharTokenizer

TOKENIZER = CharTokenizer(list("\nabcdefghijklmnopqrst"))
V = TOKENIZER.vocab_size
PROMPT = rlhf.prompt_tokens(TOKENIZER)
P, T, B = len(PROMPT), 6, 8
CONFIG = RLHFConfig(
    iterations=4, completions=B, most_completions=B, tokens=T, epochs=3, minibatch=4, normaliser_samples=16, max_kl=1e9, rate=1e-4
)  # fmt: skip


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
    `gradient`, and how many rows the cache has. `logits` has (head, how many rows of logits).
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


@pytest.fixture(scope="module", autouse=True)
def clean_slate():
    """What was there before these tests is left out of every look at memory, which takes a second with it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


def test_finished_rows_leave_the_batch_and_the_cache():
    model = gpt()
    uniforms = torch.rand(B, T, generator=torch.Generator().manual_seed(0))
    whole = generate(model, [PROMPT] * B, T, uniforms=uniforms).tokens  # what every row writes when nothing ends it
    end = int(whole[0, 1])
    going = [int((whole[:, :step] != end).all(1).sum()) for step in range(T)]  # rows that step `step` still has to do
    assert going[-1] < B and going[2] < B
    counts = Counts(model)
    generate(model, [PROMPT] * B, T, uniforms=uniforms, end_token=end)
    assert [one["rows"] for one in counts.passes] == [rows for rows in going if rows]
    assert [one["cache"] for one in counts.passes] == [rows for rows in going if rows]
    assert counts.scored() == sum(going)


def test_nothing_more_is_computed_when_every_row_has_ended():
    model = gpt()
    uniforms = torch.full((B, T), 0.5)
    end = int(generate(model, [PROMPT] * B, T, uniforms=uniforms).tokens[0, 2])
    counts = Counts(model)
    lengths = generate(model, [PROMPT] * B, T, uniforms=uniforms, end_token=end).mask.sum(1)
    assert len(counts.passes) == int(lengths[0]) < T


def test_a_rollout_makes_no_graph():
    policy = gpt().requires_grad_(True)
    counts = Counts(policy)
    before = graphs()
    samples = rlhf.rollout(policy, PROMPT, B, CONFIG, seed=0)
    assert not any(one["gradient"] for one in counts.passes)
    assert graphs() == before and not samples.logprobs.requires_grad


# ----------------------------------------------------------------------------------------- the PPO update


@pytest.fixture
def rollout():
    policy = gpt()
    samples = rlhf.rollout(policy, PROMPT, B, CONFIG, seed=0)
    return policy, samples, torch.randn(B, T, generator=torch.Generator().manual_seed(1))


def update(policy, samples, advantages):
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
    return rlhf.update(policy, optimizer, PROMPT, samples, advantages, CONFIG, torch.Generator().manual_seed(0))


def test_an_update_reads_every_completion_once_an_epoch_forwards_and_backwards(rollout):
    policy = rollout[0]
    counts, backwards = Counts(policy), []
    policy.head.weight.register_post_accumulate_grad_hook(lambda _: backwards.append(1))
    update(*rollout)
    steps = CONFIG.epochs * B // CONFIG.minibatch
    assert counts.shapes() == [(CONFIG.minibatch, P + T - 1)] * steps  # the last token predicts nothing
    assert len(backwards) == steps


def test_an_update_computes_logits_of_the_completions_alone(rollout):
    counts = Counts(rollout[0])
    update(*rollout)
    assert [rows for _, rows in counts.logits] == [CONFIG.minibatch * T] * (CONFIG.epochs * B // CONFIG.minibatch)


def test_no_graph_is_kept_from_one_minibatch_to_the_next_or_after_an_update(rollout):
    policy = rollout[0]
    before, during = graphs(), []
    policy.embedding.register_forward_pre_hook(lambda *_: during.append(graphs()))
    figures = update(*rollout)
    assert during[0] == before
    assert len(during) > 4 and len(set(during[1:])) == 1  # what the minibatch before left is thrown away, and not piled up
    assert graphs() == before
    assert all(isinstance(figure, float) for figure in figures.values())
    assert all(weight.grad is None for weight in policy.parameters())


# ----------------------------------------------------------------------------------------- the whole loop


class Looks(GoldJudge):
    """The judge, which the loop asks once an iteration; it looks at what memory tensors hold then."""

    def __init__(self):
        super().__init__()
        self.held = []

    def score(self, texts):
        tensors = live_tensors()
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.held.append((sum(storages.values()), graphs(tensors)))
        return super().score(texts)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The counts of a short run of PPO: of base and policy together, of the reward model; the rollouts; what was held."""
    base, scorer, judge, rollouts = gpt(), reward_model(), Looks(), []
    counts, reward_counts = Counts(base), Counts(scorer.body)
    real = rlhf.rollout

    def noted(*arguments, **options):
        samples = real(*arguments, **options)
        rollouts.append(samples.mask.sum().item())
        return samples

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf, "rollout", noted)
        rlhf.train_policy(base, scorer, TOKENIZER, CONFIG, tmp_path_factory.mktemp("run"), judge=judge)
    return base, counts, reward_counts, rollouts, judge.held


def test_an_iteration_passes_once_for_sampling_once_for_the_reference_and_once_an_epoch(run):
    base, counts, _, (original, *own), _ = run
    count, whole = CONFIG.iterations + 1, P + T - 1
    sampled = sum(B * (P - 1) + tokens for tokens in own)  # the last token of a row is not read
    by_base = counts.read(base.blocks[0])
    assert by_base == CONFIG.normaliser_samples * (P - 1) + original + count * B * whole
    assert counts.read() - by_base == sampled + CONFIG.iterations * CONFIG.epochs * B * whole


def test_an_iteration_computes_only_the_logits_that_are_read(run):
    base, counts, _, (original, *own), _ = run
    count = CONFIG.iterations + 1
    assert counts.scored(base.head) == original + count * B * T
    assert counts.scored() - counts.scored(base.head) == sum(own) + CONFIG.iterations * CONFIG.epochs * B * T


def test_the_reward_model_reads_each_completion_once_and_computes_no_logits_over_the_vocabulary(run):
    _, _, counts, _, _ = run
    assert counts.read() == (CONFIG.normaliser_samples + (CONFIG.iterations + 1) * B) * T
    assert counts.logits == []


def test_only_the_update_computes_gradients(run):
    base, counts, reward_counts, _, _ = run
    trained = [one for one in counts.passes if one["gradient"]]
    assert len(trained) == CONFIG.iterations * CONFIG.epochs * B // CONFIG.minibatch
    assert not any(one["model"] is base.blocks[0] for one in trained)
    assert not any(one["gradient"] for one in reward_counts.passes)


def test_the_memory_of_a_run_does_not_grow_over_its_iterations(run):
    held = run[4]
    assert len(held) == CONFIG.iterations + 1
    settled = held[2:]  # behind the first update, which makes Adam's state
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
    pretrain.pretrain(model, config, tokens, (tokens[:101], 101), TOKENIZER, tmp_path)
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
