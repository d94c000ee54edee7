"""What only a CUDA card can show; skipped without one. `make gpu` runs this file and everything else that wants a card."""

import warnings

import pytest
import torch

from rlhf_lib import devices, runs
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.pipelines.assistant import Assistant
from rlhf_lib.pipelines.shakespeare import Shakespeare
from rlhf_lib.sampling import draw, generate, token_logprobs
from rlhf_lib.trainers import muon, rollouts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
CARD = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def models():
    """The same small GPT on the CPU and on the card, with a head that prefers some tokens."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=500, context=64, layers=2, heads=4, width=64)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    copy = GPT(model.config).eval().to(CARD)
    copy.load_state_dict(model.state_dict())
    return model, copy


def test_the_card_computes_what_the_cpu_computes(models):
    model, copy = models
    tokens = torch.randint(500, (4, 40))
    with torch.no_grad():
        torch.testing.assert_close(copy(tokens.to(CARD)).cpu(), model(tokens), atol=2e-2, rtol=2e-2)  # TF32 has 10 bits


def test_what_is_sampled_has_the_log_probabilities_of_rescoring(models):
    _, copy = models
    samples = generate(copy, [[1]] * 32, 32, generator=torch.Generator().manual_seed(0), end_token=0)
    with torch.no_grad():
        again = token_logprobs(copy, [[1]] * 32, samples.tokens, samples.mask)
    torch.testing.assert_close(samples.logprobs, again, atol=2e-2, rtol=0)


def test_a_token_that_was_cut_is_never_drawn():
    logits = torch.randn(2000, 50_000, device=CARD)
    logits[:, ::2] = -torch.inf
    assert (draw(logits, torch.rand(2000, device=CARD)) % 2 == 1).all()


def test_a_step_of_sampling_waits_for_the_card_once(models):
    _, copy = models
    generate(copy, [[1]] * 8, 8)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            generate(copy, [[1]] * 8, 32, end_token=499)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(one.message) for one in caught) <= 32 + 20


def test_float16_training_has_a_scaler_where_there_is_no_bfloat16():
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert devices.precision(CARD) == (torch.bfloat16 if native else torch.float16)
    assert devices.grad_scaler(CARD, 256).is_enabled() == (not native)


@pytest.mark.parametrize("bf16", [True, False], ids=["as the card can", "as a T4 must"])
def test_the_tiny_pipeline_runs_resumes_and_says_what_memory_it_took(tiny_settings, tmp_path, monkeypatch, bf16):
    if not bf16:
        for module in (devices, muon, rollouts):
            monkeypatch.setattr(module, "has_bf16", lambda device: False)
        assert devices.precision(CARD) == torch.float16
    Shakespeare(tiny_settings(), tmp_path / "run", CARD).pretrain()
    summary = Shakespeare(tiny_settings(), tmp_path / "run", CARD).run()
    assert summary["peak_card_bytes"] > 0 and summary["device"] == "cuda:0" and summary["card"] == torch.cuda.get_device_name()
    ratios = [record["first_ratio"] for record in runs.Metrics(tmp_path / "run").read("policy") if "first_ratio" in record]
    assert ratios and all(abs(ratio - 1) < 0.01 for ratio in ratios)


def test_float16_with_a_scaler_learns_what_bfloat16_learns(tiny_settings, tmp_path, monkeypatch):
    losses = []
    for bf16 in (True, False):
        monkeypatch.setattr(devices, "has_bf16", lambda device, bf16=bf16: bf16)
        Shakespeare(tiny_settings(), tmp_path / str(bf16), CARD).pretrain()
        records = runs.Metrics(tmp_path / str(bf16)).read("pretrain")
        losses.append([record["train_loss"] for record in records if "train_loss" in record])
    assert len(losses[0]) == len(losses[1]) and losses[1][-1] < losses[1][0] - 0.5
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_the_tiny_assistant_runs_and_says_what_memory_it_took(assistant_settings, tmp_path):
    summary = Assistant(assistant_settings(), tmp_path / "run", CARD).run()
    assert summary["peak_card_bytes"] > 0 and summary["device"] == "cuda:0"
    assert (tmp_path / "run" / "report.html").exists()


def test_a_rollout_is_scored_as_it_will_be_in_the_update(models):
    _, copy = models

    class Tokenizer:
        end_token = 0

        def decode(self, tokens):
            return ""

    rollout = rollouts.sample(copy, Tokenizer(), [[1]] * 16, 16, torch.Generator().manual_seed(1))
    with torch.no_grad():
        again = rollouts.logprobs_of(copy, rollout)
    assert ((again - rollout.logprobs).exp() - 1)[rollout.mask].abs().max() < 5e-3
