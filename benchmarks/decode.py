"""Decoding against transformers' `generate`, with its cache and without."""

import statistics
from dataclasses import dataclass

import torch

from benchmarks.measure import Row, agree, measure, profile, seconds
from benchmarks.peers import TOLERANCE, gpt2_pair, same_logits
from rlhf_lib.pipelines.shakespeare import PRESETS
from rlhf_lib.sampling import generate
from rlhf_lib.trainers.rollouts import quick_copy


@dataclass(frozen=True)
class Decode:
    """Shapes of one row: a GPT-2, and how many completions of how many new tokens it writes."""

    layers: int
    heads: int
    width: int
    vocab_size: int
    batch: int = 64
    tokens: int = 64
    wanted: float | None = None

    @property
    def shape(self):
        return {**{name: getattr(self, name) for name in ("layers", "heads", "width", "vocab_size")}, "context": self.tokens + 1}

    def __str__(self):
        return f"{self.layers} layers, width {self.width}, vocabulary {self.vocab_size}, {self.batch} x {self.tokens} new tokens"


CPU = [Decode(4, 4, 128, 8192, wanted=4.5), Decode(6, 6, 384, 8192, wanted=3)]
QUICK = [Decode(2, 2, 32, 256, batch=4, tokens=8)]


def of_preset(name):
    """The preset's model and its rollout."""
    settings = PRESETS[name]
    model, ppo = settings.model, settings.ppo
    return Decode(model.layers, model.heads, model.width, model.vocab_size, ppo.rollout_size, ppo.max_new_tokens)


def peer_generate(model, prompts, tokens, use_cache):
    """`generate` with the settings that sample from the whole distribution, as ours does."""
    out = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, do_sample=True, temperature=1.0,
        top_k=0, top_p=1.0, use_cache=use_cache, pad_token_id=0,
    )  # fmt: skip
    assert out.shape[1] == prompts.shape[1] + tokens
    return out


@torch.no_grad()
def check(ours, theirs, prompts, tokens):
    """Both give the same logits, and our samples the log-probabilities that the peer's model gives them."""
    samples = generate(ours, prompts, tokens)
    whole = torch.cat([prompts, samples.tokens], dim=1)
    rescored = theirs(input_ids=whole[:, :-1]).logits.float().log_softmax(-1)[:, prompts.shape[1] - 1 :]
    rescored = rescored.gather(2, samples.tokens[:, :, None])[:, :, 0]
    same = agree(samples.logprobs, rescored, TOLERANCE[next(ours.parameters()).dtype], "log-probabilities of what is sampled")
    return f"{same_logits(ours, theirs, whole[:4])}; {same}"


def rows(options):
    shapes = QUICK if options.quick else [of_preset("gpu")] if options.device == "cuda" else CPU
    return [row for shape in shapes for row in compare(shape, options)]


def compare(shape, options):
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    ours, theirs = gpt2_pair(shape.shape, options.device, dtype)
    prompts = torch.zeros(shape.batch, 1, dtype=torch.long, device=options.device)
    same = check(ours, theirs, prompts, shape.tokens)
    quick = quick_copy(ours)  # what a rollout is sampled with; its tokens are scored afterwards by the model itself
    sides = {
        "ours": lambda: generate(quick, prompts, shape.tokens),
        "ours, fp32": lambda: generate(ours, prompts, shape.tokens),
        "generate, cache": lambda: peer_generate(theirs, prompts, shape.tokens, use_cache=True),
        "generate, no cache": lambda: peer_generate(theirs, prompts, shape.tokens, use_cache=False),
    }
    if options.profile:
        print(profile(sides["ours"]))
    for side in sides.values():
        side()

    def once():
        return {name: shape.batch * shape.tokens / seconds(side, options.device) for name, side in sides.items()}

    figures, others = measure(once, options, f"decode {shape.width}")
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    if next(quick.parameters()).dtype != dtype:
        precision = f"fp32, ours by copies in {str(next(quick.parameters()).dtype).removeprefix('torch.')}"
    note = f"ours without copies {statistics.median(figures['ours, fp32']):,.0f} tokens/s"
    return [
        Row(
            name=f"decode, width {shape.width}, against {peer}", work=f"decode, {shape}, temperature 1, {precision}",
            unit="tokens/s", ours=figures["ours"], peer=f"transformers {peer}", theirs=figures[peer], wanted=wanted, check=same,
            others=others, note=note,
        )
        for peer, wanted in (("generate, cache", shape.wanted), ("generate, no cache", None))
    ]  # fmt: skip
