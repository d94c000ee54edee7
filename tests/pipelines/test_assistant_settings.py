import json
import random

import card
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lib import devices
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import HeadLogprobs
from rlhf_lib.models.lora import Branch
from rlhf_lib.pipelines.assistant import Assistant
from rlhf_lib.pipelines.assistant_settings import PRESETS, Settings
from rlhf_lib.pipelines.settings import changed
from rlhf_lib.tokenization import BPETokenizer
from rlhf_lib.trainers import rollouts, sft


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"limit": -1}, "limit must not be negative, got -1"),
        ({"longest": -5}, "longest must not be negative, got -5"),
        ({"layers": -1}, "layers must not be negative, got -1"),
        ({"evaluate_prompts": -1}, "evaluate_prompts must not be negative, got -1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0}, "alpha must be at least 1, got 0"),
        ({"best_of": 0}, "best_of must be at least 1, got 0"),
        ({"normaliser_samples": 1}, "normaliser_samples must be at least 2, got 1"),
        ({"sft_layers": -1}, "sft_layers must not be negative, got -1"),
        ({"layers": 0}, "layers 0 leaves no blocks that all share: give layers, or a reward model with reward_adapters"),
        ({"judge": "silver"}, "judge must be gold or endpoint:URL#MODEL, got 'silver'"),
        ({"judge": "endpoint:http://localhost:1/v1"}, "judge must be gold or endpoint:URL#MODEL"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(**changes)


def test_the_presets_are_what_they_are_for():
    smoke, laptop, gpu = (PRESETS[name] for name in ("smoke", "laptop", "gpu"))
    assert [settings.preset for settings in PRESETS.values()] == list(PRESETS)
    assert (smoke.model, laptop.model, gpu.model) == ("tiny", "smollm2-135m", "gpt2-medium")
    assert (laptop.comparisons, gpu.comparisons) == ("ours", "Dahoas/rm-static")
    assert (laptop.layers, laptop.rank, laptop.alpha, laptop.best_of) == (8, 16, 32, 16)
    assert gpu.layers == 0 and gpu.reward_adapters  # all, so that there is no trunk to put a head on
    assert not laptop.reward_adapters and laptop.sft_layers == 0
    assert smoke.ppo.iterations < laptop.ppo.iterations <= gpu.ppo.iterations


# ----------------------------------------------------------------------------------------- the gpu preset


def kept(act):
    """How many numbers autograd keeps of what `act` computes, parameters and buffers aside: act gives (outcome, modules)."""
    found = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _, modules = act()
    fixed = {part.untyped_storage().data_ptr() for m in modules for part in [*m.parameters(), *m.buffers()]}
    return sum(count for place, count in found.items() if place not in fixed)


def of_a_token(width, layers, rank):
    """What a step keeps of a token in GPT-2 with adapters on all layers: of each block what its two halves begin with, also
    normalised, queries, keys and values, what attention gives, what is four times as wide before and behind GELU, and what the
    four A give."""
    return layers * ((2 + 2 + 3 + 1 + 4 + 4) * width + 4 * rank)


def test_what_a_step_keeps_of_a_token_is_sixteen_states_a_block():
    """So long that attention keeps no scores, as on a card."""
    torch.manual_seed(0)
    base = GPT(GPTConfig.gpt2(vocab_size=50, context=300, layers=3, heads=2, width=64))
    branch, tokens = Branch(base, None, 4, 8), torch.zeros(2, 260, dtype=torch.long)
    assert kept(lambda: (branch.hidden(tokens), (base, branch))) / 520 == pytest.approx(of_a_token(64, 3, 4), rel=0.01)


def test_the_gpu_preset_fits_a_t4():
    """16 GB, of which torch and its kernels take up to 2. Float32: 355 million weights, with what fine-tuning changed in them a
    second time; of adapters their gradient and Adam's two means too; and what is kept of the longest batch."""
    s, (C, L, V) = PRESETS["gpu"], (1024, 24, 50257)
    assert (s.model, s.layers, s.sft_layers, s.reward_adapters) == ("gpt2-medium", 0, 0, True)
    blocks = L * (12 * C**2 + 13 * C)
    whole = blocks + (V + 1024) * C + 2 * C
    adapters, token = L * 16 * C * s.rank, of_a_token(C, L, s.rank)
    head = 3 * HeadLogprobs.ROWS * V
    sft = whole + 4 * adapters + (s.sft.batch + 2) * s.sft.row * token + head  # rows pack badly
    reward = whole + blocks + 4 * adapters + 2 * s.preference.batch * s.longest * token
    update = whole + blocks + 10 * adapters + 2 * s.ppo.minibatch * s.longest * token + head  # policy and critic
    rollout = s.ppo.rollout_size * s.longest * 2 * C * L / 2  # the cache is of half the size, in float16
    drawing = whole + blocks + 10 * adapters + whole / 2 + 2 * rollout  # twice while rows leave
    gigabytes = [4e-9 * numbers for numbers in (sft, reward, update, drawing)]
    assert gigabytes == pytest.approx([6.7, 10.8, 11.3, 7.6], abs=0.1)
    assert max(gigabytes) < 14


S = ("Ask him.", "Tell her today.", "I do not know.", "Give it back.", "That is wrong.", "Show us.")


def published_gpt2(folder):
    """A small GPT-2 with drawn weights in the files that the hub has."""
    folder.mkdir()
    tokenizer = BPETokenizer.train([*S, "Human Assistant Why is it so?"], 300).tokenizer
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {"n_positions": 192, "n_embd": 16, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.get_vocab_size(), **shape))
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items() if "lm_head" not in name}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 192}', encoding="utf-8")
    return str(folder)


def transcripts(path):
    """Comparisons in the form of hh-rlhf, of one question and of two."""
    draw, rows = random.Random(0), []
    for number in range(30):
        before = f"\n\nHuman: Why is it so?\n\nAssistant: {draw.choice(S)}" * (number % 2) + f"\n\nHuman: Why {number}?"
        both = [f"{before}\n\nAssistant: {answer}" for answer in draw.sample(S, 2)]
        rows.append(json.dumps(dict(zip(("chosen", "rejected"), both))) + "\n")
    path.write_text("".join(rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def as_on_a_t4(monkeypatch):
    """On the pretend card: no bfloat16, and float16 in its place."""
    for module in (devices, rollouts, sft):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "precision", lambda device, width=256: torch.float16)
    copies, quick = set(), rollouts.quick_copy

    def noted(model):
        copy = quick(model)
        copies.add(next(copy.parameters()).dtype)
        return copy

    monkeypatch.setattr(rollouts, "quick_copy", noted)
    with card.no_cpu_branches():
        yield copies


def test_the_gpu_presets_way_goes_from_gpt2s_files_and_transcripts_to_the_report(tmp_path, tiny_talks, interrupted, as_on_a_t4):
    """In float16, as far as a T4 computes in it; stopped in every stage, and in one go."""
    small = {
        "model": published_gpt2(tmp_path / "gpt2"), "comparisons": transcripts(tmp_path / "hh.jsonl"),
        "demonstrations": tiny_talks["demonstrations"], "rank": 2, "best_of": 2, "evaluate_prompts": 4, "normaliser_samples": 8,
        "sft.row": 192, "ppo.iterations": 2, "ppo.rollout_size": 8, "ppo.max_new_tokens": 6,
    }  # fmt: skip
    settings = changed(PRESETS["gpu"], small)
    begun = lambda name: Assistant(settings, tmp_path / name, torch.device("card"))  # noqa: E731
    whole = begun("whole").run()
    assert whole["comparisons"] + whole["reward_pairs"] == 30 and whole["gold"] == "trained in this run"
    assert whole["parameters"]["trained"] == 2 * 2 * 16 * 16 * 2 + 17  # policy and critic: 16 C r in each block, and a head
    assert as_on_a_t4 == {torch.float16}
    assert (tmp_path / "whole" / "report.html").exists()
    for stage in ("train_sft", "train_reward", "train_policy"):
        with interrupted(saved=1, stop=2), pytest.raises(KeyboardInterrupt):
            getattr(begun("stopped"), stage)()
        getattr(begun("stopped"), stage)()
    begun("stopped").judge()
    for name in ("metrics.jsonl", "answers.jsonl", "verdicts.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
