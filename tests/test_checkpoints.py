import json
import math
import resource
import struct

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from rlhf_lib import checkpoints, tokenization
from rlhf_lib.checkpoints import CheckpointError
from rlhf_lib.models import published
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch

TOKENIZER = tokenization.CharTokenizer(list("abc"))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def small(kind="gpt", seed=0, **changes):
    """A model of `kind` whose every weight is random."""
    torch.manual_seed(seed)
    gpt = GPT(GPTConfig(**{"vocab_size": TOKENIZER.vocab_size, "context": 4, "layers": 1, "heads": 1, "width": 2, **changes}))
    model = gpt if kind == "gpt" else RewardModel(gpt, "last", dropout=0.25)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def saved(folder, model=None, **stats):
    checkpoints.save(folder, model or small(), TOKENIZER, **stats)
    return folder / "model.safetensors"


def equal(mine, theirs):
    mine, theirs = mine.state_dict(), theirs.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# ----------------------------------------------------------------------------------------- what is written and read


def test_tensors_come_back_to_the_bit(tmp_path):
    tensors = {
        "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "half": torch.tensor([1.5, -0.0, 3e-5], dtype=torch.bfloat16),
        "whole": torch.tensor([[2**40, -1]]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 5),
        "turned": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "learned": nn.Parameter(torch.ones(2)),
    }
    metadata = {"kind": "gpt", "config": {"width": 4, "dropout": 0.1}, "title": "née"}
    checkpoints.write(tmp_path / "base", tensors, metadata, TOKENIZER)
    assert checkpoints.read_metadata(str(tmp_path / "base")) == {**metadata, "tokenizer": TOKENIZER.fingerprint()}
    found = checkpoints.read_tensors(tmp_path / "base")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
    assert names(tmp_path) == ["base/model.safetensors", "base/tokenizer.json"]
    assert tokenization.load(tmp_path / "base" / "tokenizer.json").fingerprint() == TOKENIZER.fingerprint()


def test_tensors_that_share_memory_are_kept_both(tmp_path):
    """As the tied head and embedding of GPT-2."""
    shared = torch.arange(6.0)
    tensors = {"embedding": shared, "head": shared, "part": shared[2:4]}
    checkpoints.write(tmp_path, tensors, {"kind": "gpt", "config": {}}, TOKENIZER)
    found = checkpoints.read_tensors(tmp_path)
    assert torch.equal(found["embedding"], shared) and torch.equal(found["head"], shared)
    assert torch.equal(found["part"], shared[2:4])


KINDS = [("gpt", {}), ("gpt", {"recipe": "gpt2", "dropout": 0.1}), ("reward", {}), ("reward", {"recipe": "gpt2"})]


@pytest.mark.parametrize("kind, changes", KINDS)
def test_every_kind_of_model_comes_back_with_its_metadata_and_ready_to_use(tmp_path, kind, changes):
    model = small(kind, **changes).train()
    checkpoints.save(tmp_path, model, TOKENIZER, val_loss=1.25, raters=["é"])
    torch.manual_seed(5)
    found, tokenizer = checkpoints.load(str(tmp_path), kind=kind)
    assert type(found) is type(model) and not any(module.training for module in found.modules())
    assert found.metadata() == model.metadata() and found.config == model.config
    assert tokenizer.fingerprint() == TOKENIZER.fingerprint()
    tokens = torch.tensor([[0, 3, 1, 4]])
    with torch.no_grad():
        assert torch.equal(found(tokens), model.eval()(tokens))
    metadata = checkpoints.read_metadata(tmp_path)
    assert metadata == {**model.metadata(), "val_loss": 1.25, "raters": ["é"], "tokenizer": TOKENIZER.fingerprint()}
    assert metadata["kind"] == kind
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_tied_head_is_tied_after_loading_too(tmp_path):
    saved(tmp_path, small(recipe="gpt2"))
    found, _ = checkpoints.load(tmp_path)
    assert found.head.weight is found.embedding.weight


def test_a_reward_model_keeps_its_pooling_and_its_dropout(tmp_path):
    saved(tmp_path, small("reward"))
    found, _ = checkpoints.load(tmp_path, kind="reward")
    assert (found.pooling, found.config.dropout) == ("last", 0.25)


def test_a_checkpoint_in_half_precision_loads_as_a_model_in_full_precision(tmp_path):
    """As the published ones are."""
    model = small()
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    checkpoints.write(tmp_path, halves, model.metadata(), TOKENIZER)
    found, _ = checkpoints.load(tmp_path)
    for name, parameter in found.state_dict().items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, halves[name].float())


def test_a_model_is_put_on_the_device_that_is_asked_for(tmp_path):
    model = small()
    saved(tmp_path, model)
    moved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "to", lambda self, device: moved.append(device) or self)
        checkpoints.load(tmp_path, "card")
    assert moved == ["card"]
    assert equal(checkpoints.load(tmp_path)[0], model)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "world", lambda: (1, 2))
    saved(tmp_path)
    assert names(tmp_path) == []
    monkeypatch.setattr(checkpoints, "world", lambda: (0, 2))
    saved(tmp_path)
    assert names(tmp_path) == ["model.safetensors", "tokenizer.json"]


# ----------------------------------------------------------------------------------------- what is refused


def test_a_folder_without_a_checkpoint_says_what_is_missing(tmp_path):
    for act in (checkpoints.read_metadata, checkpoints.load, lambda folder: checkpoints.load(folder, kind="reward")):
        with pytest.raises(CheckpointError, match=rf"^no checkpoint in {tmp_path}: it needs a model\.safetensors$"):
            act(tmp_path)


def test_a_checkpoint_without_its_tokenizer_says_so(tmp_path):
    saved(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer at .*: a checkpoint needs its tokenizer\.json beside it"):
        checkpoints.load(tmp_path)


def test_another_tokenizer_is_refused(tmp_path):
    path = saved(tmp_path)
    tokenization.CharTokenizer(list("acb")).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=rf"{path} was trained with another tokenizer: use the tokenizer\.json"):
        checkpoints.load(tmp_path)
    TOKENIZER.save(tmp_path / "tokenizer.json")
    checkpoints.load(tmp_path)


@pytest.mark.parametrize(
    "kind, wanted, said",
    [
        ("gpt", "reward", "holds a language model, not a reward model: give the folder of a reward model"),
        ("reward", "gpt", "holds a reward model, not a language model: give the folder of a language model"),
        ("value", "gpt", "holds a value checkpoint, not a language model: give the folder of a language model"),
        (None, "reward", "holds a None checkpoint, not a reward model"),
    ],
)
def test_another_kind_of_model_is_refused(tmp_path, kind, wanted, said):
    model = small("reward" if kind == "reward" else "gpt")
    checkpoints.write(tmp_path, model.state_dict(), {**model.metadata(), "kind": kind}, TOKENIZER)
    with pytest.raises(CheckpointError, match=f"^{tmp_path} {said}"):
        checkpoints.load(tmp_path, kind=wanted)


@pytest.mark.parametrize(
    "kind, change",
    [
        ("gpt", {"config": {"positions": "rotary"}}),  # as an older version wrote
        ("gpt", {"config": {"width": 3}}),
        ("gpt", {"config": {"width": "wide"}}),
        ("gpt", {"config": [1, 2]}),
        ("gpt", {"config": {"recipe": "llama"}}),
        ("reward", {"pooling": "max"}),
        ("reward", {"pooling": None}),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_known_is_refused(tmp_path, kind, change):
    model = small(kind)
    metadata = {**model.metadata(), **change}
    checkpoints.write(tmp_path, model.state_dict(), metadata, TOKENIZER)
    message = r"model\.safetensors has a configuration that this version does not know \(.+\): train it again"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path, kind=kind)


def test_a_reward_model_whose_pooling_is_not_said_is_refused(tmp_path):
    model = small("reward")
    metadata = model.metadata()
    del metadata["pooling"]
    checkpoints.write(tmp_path, model.state_dict(), metadata, TOKENIZER)
    with pytest.raises(CheckpointError, match="has a configuration that this version does not know"):
        checkpoints.load(tmp_path, kind="reward")


def damaged(path):
    return pytest.raises(CheckpointError, match=rf"{path} is damaged or not a checkpoint of this project \(.*train it again")


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with damaged(path):
            checkpoints.load(tmp_path)
    path.write_bytes(whole)
    checkpoints.load(tmp_path)


def header_of(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def metadata(text):
    return lambda header: header.update(__metadata__={"metadata": text})


TAMPERED = {
    "a shape that the bytes do not fill": lambda h: h["head.weight"].update(shape=[2, 4]),
    "a shape that overflows": lambda h: h["head.weight"].update(shape=[2**62, 8]),
    "offsets past the end": lambda h: h["head.weight"].update(data_offsets=[0, 10**12]),
    "offsets backwards": lambda h: h["head.weight"].update(data_offsets=[24, 0]),
    "an unknown type": lambda h: h["head.weight"].update(dtype="F33"),
    "no metadata": lambda h: h.pop("__metadata__"),
    "metadata of another program": lambda h: h.update(__metadata__={"format": "pt"}),
    "metadata that is not JSON": metadata("{'kind'"),
    "metadata that is a list": metadata("[1]"),
    "metadata that is a word": metadata('"gpt"'),
    "metadata that is a number": metadata("1"),
    "metadata that names no tokenizer": metadata('{"kind": "gpt", "config": {}}'),
    "metadata without a configuration": metadata('{"kind": "gpt", "tokenizer": "x"}'),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_header_is_refused(tmp_path, change):
    path = saved(tmp_path)
    header, body = header_of(path.read_bytes())
    path.write_bytes(with_header(header, body))
    checkpoints.load(tmp_path)  # rewritten as it was, it still loads
    change(header)
    path.write_bytes(with_header(header, body))
    with damaged(path):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize(
    "content", [struct.pack("<Q", 2**63) + b"{}", b"\0" * 200, b"hello", safetensors_bytes({"w": torch.ones(2)})]
)
def test_other_content_under_the_name_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with damaged(path):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("kind", range(6))
def test_a_pickle_under_the_name_of_a_checkpoint_is_refused_and_never_executed(tmp_path, payloads, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(payloads(tmp_path / "mark")[kind])
    with damaged(path):
        checkpoints.load(tmp_path)
    assert not (tmp_path / "mark").exists()


# ----------------------------------------------------------------------------------------- tensors into a model


def toy(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def test_weights_that_fit_are_put_into_the_model():
    model, other = toy(1), toy(2)
    assert checkpoints.load_tensors(model, other.state_dict(), "x") is model
    assert equal(model, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(weight=torch.zeros(2, 4)), r"tensor weight \[2, [34]\] is missing or unexpected"),
        (lambda t: t.update(weight=torch.zeros(3, 2)), r"tensor weight \[(2, 3|3, 2)\] is missing or unexpected"),
        (lambda t: t.pop("bias"), r"tensor bias \[2\] is missing"),
        (lambda t: t.update(extra=torch.zeros(5)), r"tensor extra \[5\] is missing or unexpected"),
        (lambda t: t["weight"].__setitem__((1, 2), math.nan), "not finite, in tensor weight: train it again"),
        (lambda t: t["bias"].__setitem__(0, math.inf), "not finite, in tensor bias: train it again"),
        (lambda t: t["bias"].__setitem__(1, -math.inf), "not finite, in tensor bias: train it again"),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_leave_the_model_as_it_is(change, said):
    model = toy(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor.clone() + 1 for name, tensor in before.items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=rf"^runs/base .*{said}"):
        checkpoints.load_tensors(model, tensors, "runs/base")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_whose_tensors_do_not_fit_names_its_file(tmp_path):
    path = saved(tmp_path)
    model = small()
    tensors = {**model.state_dict(), "norm.weight": torch.tensor([1.0, math.nan])}
    checkpoints.write(tmp_path, tensors, model.metadata(), TOKENIZER)
    with pytest.raises(CheckpointError, match=rf"^{path} holds values that are not finite, in tensor norm\.weight"):
        checkpoints.load(tmp_path)
    checkpoints.write(tmp_path, {"norm.weight": torch.ones(2)}, model.metadata(), TOKENIZER)
    with pytest.raises(CheckpointError, match=rf"^{path} has a configuration .*vocab_size 5 is no size of its tensors"):
        checkpoints.load(tmp_path)
    checkpoints.write(tmp_path, {**model.state_dict(), "more": torch.ones(2)}, model.metadata(), TOKENIZER)
    with pytest.raises(
        CheckpointError, match=rf"^{path} does not fit its configuration: tensor more \[2\] is missing or unexpected"
    ):
        checkpoints.load(tmp_path)


# ----------------------------------------------------------------------------------------- Llamas, and branches on a base


def small_llama(seed=0, **changes):
    torch.manual_seed(seed)
    shape = dict(vocab_size=TOKENIZER.vocab_size, context=8, layers=2, heads=2, kv_heads=1, width=8, hidden=6, rope_base=100.0)
    model = Llama(LlamaConfig(**{**shape, **changes})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def branch_on(base, seed=1, **shape):
    torch.manual_seed(seed)
    branch = Branch(base, **{"layers": 1, "rank": 2, "alpha": 4, **shape})
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.4)
    return branch


TOKENS = torch.tensor([[0, 3, 1, 4]])


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"rope_scaling": dict(factor=2.0, low=1.0, high=4.0, original=4)}])
def test_a_llama_comes_back_as_a_language_model(tmp_path, changes):
    model = small_llama(**changes)
    checkpoints.save(tmp_path, model, TOKENIZER, val_loss=1.0)
    found, _ = checkpoints.load(tmp_path)
    assert type(found) is Llama and found.config == model.config and equal(found, model) and not found.training
    assert (found.head.weight is found.embedding.weight) == model.config.tied
    assert torch.equal(found(TOKENS), model(TOKENS))
    with pytest.raises(CheckpointError, match="holds a language model, not a reward model"):
        checkpoints.load(tmp_path, kind="reward")


BASES = {"llama": small_llama, "gpt": small, "gpt2": lambda: small(recipe="gpt2").eval()}


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("family", BASES)
def test_a_branch_is_read_with_the_base_in_the_folder_that_it_names(tmp_path, family, scalar):
    base = BASES[family]()
    checkpoints.save(tmp_path / "base", base, TOKENIZER)
    branch = branch_on(base, scalar=scalar, source="../base", matrices=["down"])
    checkpoints.save(tmp_path / "branch", branch, TOKENIZER, steps=7)
    kind = "reward" if scalar else "gpt"
    found, tokenizer = checkpoints.load(tmp_path / "branch", kind=kind)
    assert type(found) is Branch and found.metadata() == branch.metadata() and equal(found, branch) and equal(found.base, base)
    assert not any(module.training for module in (*found.modules(), *found.base.modules()))
    assert torch.equal(found(TOKENS), branch(TOKENS)) and tokenizer.fingerprint() == TOKENIZER.fingerprint()
    memory = {parameter.data_ptr() for parameter in found.base.parameters()}
    assert {buffer.data_ptr() for buffer in found.buffers()} <= memory  # shared, not copied
    assert checkpoints.read_metadata(tmp_path / "branch")["steps"] == 7
    assert set(checkpoints.read_tensors(tmp_path / "branch")) == set(branch.state_dict())  # nothing of the base


def test_a_base_that_is_loaded_already_is_taken_and_shared(tmp_path):
    base = small_llama()
    for name, seed, scalar in (("policy", 1, False), ("reward", 2, True)):
        checkpoints.save(tmp_path / name, branch_on(base, seed, scalar=scalar), TOKENIZER)  # and no source
    policy, _ = checkpoints.load(tmp_path / "policy", base=base)
    reward, _ = checkpoints.load(tmp_path / "reward", kind="reward", base=base)
    assert policy.base is reward.base is base
    assert torch.equal(policy(TOKENS), branch_on(base, 1)(TOKENS))
    message = rf"^{tmp_path / 'policy'} holds a branch and does not say of which model: give that model as base$"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "policy")


@pytest.fixture
def hub(monkeypatch):
    """One published model, "smollm2-360m": (its model, its tokeniser). `asked` lists what was fetched."""
    chat = tokenization.ChatTokenizer.train(["to be or not to be\n"] * 5, 265)
    chat.source = "smollm2-360m"
    base, asked = small_llama(vocab_size=265), []
    monkeypatch.setattr(published, "load", lambda name, device="cpu": asked.append((name, str(device))) or (base, chat))
    monkeypatch.setattr(published, "load_tokenizer", lambda name: asked.append((name, "tokenizer")) or chat)
    return base, chat, asked


@pytest.mark.parametrize("scalar", [False, True])
def test_a_branch_of_a_published_model_finds_it_by_name_and_its_tokenizer_too(tmp_path, hub, scalar):
    base, chat, asked = hub
    branch = branch_on(base, scalar=scalar, source="smollm2-360m")
    checkpoints.save(tmp_path, branch, chat)
    assert (tmp_path / "tokenizer.json").stat().st_size < 100
    found, tokenizer = checkpoints.load(tmp_path, torch.device("cpu"), kind="reward" if scalar else "gpt")
    assert found.base is base and torch.equal(found(TOKENS), branch(TOKENS)) and tokenizer is chat
    assert sorted(asked) == [("smollm2-360m", "cpu"), ("smollm2-360m", "tokenizer")]
    asked.clear()
    assert checkpoints.load(tmp_path, base=base, kind="reward" if scalar else "gpt")[0].base is base
    assert asked == [("smollm2-360m", "tokenizer")]
    checkpoints.load(tmp_path, torch.device("meta"), kind="reward" if scalar else "gpt")
    assert ("smollm2-360m", "meta") in asked  # the base is put where the branch is


def test_a_branch_published_in_half_precision_loads_in_full(tmp_path, hub):
    base, chat, _ = hub
    branch = branch_on(base, source="smollm2-360m")
    halves = {name: tensor.half() for name, tensor in branch.state_dict().items()}
    checkpoints.write(tmp_path, halves, branch.metadata(), chat)
    found, _ = checkpoints.load(tmp_path)
    for name, parameter in found.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, halves[name].float())
    assert (found(TOKENS) - branch(TOKENS)).abs().max() < 0.05


def test_a_published_tokenizer_that_has_changed_is_refused(tmp_path, hub, monkeypatch):
    base, chat, _ = hub
    checkpoints.save(tmp_path, branch_on(base, source="smollm2-360m"), chat)
    monkeypatch.setattr(published, "load_tokenizer", lambda name: tokenization.ChatTokenizer.train(["other"], 265))
    with pytest.raises(CheckpointError, match="was trained with another tokenizer"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("content", ['{"kind": "char"}', "[1]", "{", '{"kind": "chat", "source": ""}', "\u00e9"])
def test_a_short_tokenizer_file_that_names_nobody_is_read_as_one_of_ours(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"tokenizer\.json (is not a tokenizer of this project|names the tokenizer of the published)"
    ):
        checkpoints.load_tokenizer(tmp_path)
    tokenization.CharTokenizer(["a"]).save(tmp_path / "tokenizer.json")
    assert checkpoints.load_tokenizer(tmp_path).decode([2]) == "a"


@pytest.mark.parametrize(
    "scalar, wanted, said",
    [
        (False, "reward", "holds a language model, not a reward model: give the folder of a reward model"),
        (True, "gpt", "holds a reward model, not a language model: give the folder of a language model"),
    ],
)
def test_a_branch_of_another_role_is_refused_before_its_base_is_fetched(tmp_path, hub, scalar, wanted, said):
    base, chat, asked = hub
    checkpoints.save(tmp_path, branch_on(base, scalar=scalar, source="smollm2-360m"), chat)
    with pytest.raises(CheckpointError, match=f"^{tmp_path} {said}$"):
        checkpoints.load(tmp_path, kind=wanted)
    assert asked == []


def test_what_a_base_says_when_it_cannot_be_had_is_not_called_a_fault_of_the_branch(tmp_path, monkeypatch):
    base = small_llama()
    checkpoints.save(tmp_path / "branch", branch_on(base, source="../base"), TOKENIZER)
    with pytest.raises(CheckpointError, match=rf"^no checkpoint in {tmp_path}/branch/\.\./base: it needs a model\.safetensors$"):
        checkpoints.load(tmp_path / "branch")
    checkpoints.save(tmp_path / "base", small("reward"), TOKENIZER)
    with pytest.raises(CheckpointError, match="base holds a reward model, not a language model"):
        checkpoints.load(tmp_path / "branch")

    def fail(name, device):
        raise published.PublishedError("gpt2 could not be fetched")

    checkpoints.save(tmp_path / "other", branch_on(base, source="gpt2"), TOKENIZER)
    monkeypatch.setattr(published, "load", fail)
    with pytest.raises(published.PublishedError, match="gpt2 could not be fetched") as caught:
        checkpoints.load(tmp_path / "other")
    assert str(caught.value) == "gpt2 could not be fetched"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"branch": None}, "is damaged or not a checkpoint of this project"),
        ({"branch": 7}, "is damaged or not a checkpoint of this project"),
        ({"branch": ""}, "is damaged or not a checkpoint of this project"),
        ({"branch": {"layers": 9, "rank": 2}}, r"configuration that this version does not know \(layers must lie between 1 and"),
        ({"branch": {"layers": 1, "rank": 99}}, r"configuration that this version does not know \(rank must lie between"),
        (
            {"branch": {"layers": 1, "matrices": ["qkv"]}},
            r"configuration that this version does not know \(matrices: a block has no 'qkv'",
        ),
        ({"branch": {"depth": 1}}, "configuration that this version does not know"),
        ({"branch": {"layers": 2, "rank": 2}}, "does not fit its configuration: tensor blocks"),
        ({"branch": {"layers": 1, "rank": 3}}, "does not fit its configuration: tensor blocks"),
    ],
    ids=str,
)
def test_a_branch_with_other_metadata_is_refused(tmp_path, change, said):
    base = small_llama()
    branch = branch_on(base)
    checkpoints.write(tmp_path, branch.state_dict(), {**branch.metadata(), **change}, TOKENIZER)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/model\.safetensors .*{said}"):
        checkpoints.load(tmp_path, base=base)


def test_a_branch_on_a_base_of_another_size_is_refused(tmp_path):
    checkpoints.save(tmp_path, branch_on(small_llama()), TOKENIZER)
    with pytest.raises(CheckpointError, match="does not fit its configuration: tensor blocks"):
        checkpoints.load(tmp_path, base=small_llama(width=12))


# ----------------------------------------------------------------------------------------- two of one run


def test_two_checkpoints_with_one_tokenizer_go_together_and_others_do_not(tmp_path):
    saved(tmp_path / "base")
    saved(tmp_path / "reward", small("reward"))
    checkpoints.same_tokenizer(tmp_path / "base", tmp_path / "reward")
    other = tokenization.CharTokenizer(list("acb"))
    checkpoints.save(tmp_path / "other", small(), other)
    message = f"^{tmp_path / 'other'} and {tmp_path / 'reward'} were trained with different tokenizers: choose two of one run$"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.same_tokenizer(tmp_path / "other", tmp_path / "reward")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.same_tokenizer(tmp_path / "base", tmp_path / "none")


def test_a_branch_beside_a_base_of_another_tokenizer_is_refused(tmp_path):
    base = small_llama()
    checkpoints.save(tmp_path / "base", base, tokenization.CharTokenizer(list("acb")))  # of the same size
    checkpoints.save(tmp_path / "branch", branch_on(base, source="../base"), TOKENIZER)
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path}/branch and {tmp_path}/branch/../base were trained with different tok"
    ):
        checkpoints.load(tmp_path / "branch")


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 10**12},
        {"width": 2 * 10**6},
        {"layers": 10**9},
        {"context": 10**30},
        {"width": 10**30 * 2},
        {"layers": "x"},
        {"layers": None},
        {"recipe": "gpt2", "context": 10**12},
    ],
)
def test_a_configuration_that_lies_about_its_size_takes_no_memory(tmp_path, change):
    path = saved(tmp_path)
    metadata = checkpoints.read_metadata(tmp_path)
    metadata["config"] |= change
    path.write_bytes(safetensors_bytes(checkpoints.read_tensors(tmp_path), {"metadata": json.dumps(metadata)}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if change == {"context": 10**30}:  # no tensor of a modern GPT depends on it
        assert checkpoints.load(tmp_path)[0].config.context == 10**30
    else:
        with pytest.raises(CheckpointError, match=rf"^{path} (has a configuration|does not fit its configuration)") as caught:
            checkpoints.load(tmp_path)
        assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize("kind", [{}, [], {"gpt": 1}])
def test_a_kind_that_is_no_name_is_refused(tmp_path, kind):
    about = json.dumps({"kind": kind, "config": {}, "tokenizer": "0"})
    (tmp_path / "model.safetensors").write_bytes(with_header({"__metadata__": {"metadata": about}}, b""))
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint of this project"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("source", [".", "../branch", "../other"])
def test_a_branch_that_stands_on_itself_is_refused(tmp_path, source):
    for name in ("branch", "other"):
        checkpoints.save(
            tmp_path / name, Branch(small(), rank=1, alpha=1, source=source if name == "branch" else "../branch"), TOKENIZER
        )
    with pytest.raises(CheckpointError, match=r"holds a branch that stands on itself: give its model as base$"):
        checkpoints.load(tmp_path / "branch")


@pytest.mark.parametrize("source", ["x", ["x"], {"x": 1}, 7])
def test_a_tokenizer_file_that_names_no_published_model_is_named(tmp_path, source):
    saved(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "chat", "source": source}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / 'tokenizer.json'} names no published model but"):
        checkpoints.load(tmp_path)
