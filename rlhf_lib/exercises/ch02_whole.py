"""Chapter 02: the whole GPT, its parameters, and the reversal task."""

import functools

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.ch01_text import but_no
from rlhf_lib.exercises.ch02_transformer import cut_heads, looked_up, put_together, same, triangle
from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.exercises.gradients import with_gradients
from rlhf_lib.models.gpt import GPT, GPTConfig

NO_TOKENS = (torch.int32, torch.float32)

# ----------------------------------------------------------------------------------------- 2.7


def draw_gpt_logits(generator):
    for B, T, layers, heads, width, vocab_size, context, spread in (
        (1, 1, 1, 1, 4, 3, 1, 1.0), (1, 3, 1, 2, 8, 7, 6, 1.0), (2, 4, 3, 4, 8, 9, 4, 1.0), (1, 2, 11, 1, 4, 5, 3, 1.0),
        (1, 70, 1, 1, 4, 3, 80, 1.0), (3, 5, 2, 2, 12, 5, 8, 0.002),
    ):  # fmt: skip
        made = "from rlhf_lib.exercises.ch02_whole import weights_of; "
        made += "weights = weights_of(layers, width, context, vocab_size, spread, seed)"
        yield {
            "tokens": torch.randint(vocab_size, (B, T), generator=generator), "heads": heads, "layers": layers, "width": width,
            "context": context, "vocab_size": vocab_size, "spread": spread, "seed": int(torch.rand(1, generator=generator) * 99),
            "made": made,
        }  # fmt: skip


def call_gpt_logits(function, tokens, heads, layers, width, context, vocab_size, spread, seed, made):
    weights = weights_of(layers, width, context, vocab_size, spread, seed)
    logits = with_gradients(function, tokens, weights, layers, heads, first=2)
    return logits / spread if torch.is_tensor(logits) else logits


def weights_of(layers, width, context, vocab_size, spread, seed):
    """Weights of a small GPT-2, drawn from `seed`: large, so that every part matters; the embeddings have `spread`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding.weight": (vocab_size, width), "position_embedding.weight": (context, width)}
    for layer in range(layers):
        for name, shape in {
            "norm1": (width,), "attention.qkv": (3 * width, width), "attention.out": (width, width),
            "norm2": (width,), "up": (4 * width, width), "down": (width, 4 * width),
        }.items():  # fmt: skip
            shapes[f"blocks.{layer}.{name}.weight"], shapes[f"blocks.{layer}.{name}.bias"] = shape, shape[:1]
    shapes["norm.weight"] = shapes["norm.bias"] = (width,)
    weights = {name: 0.6 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in ("embedding.weight", "position_embedding.weight"):
        weights[name] *= spread
    return weights


def gpt_by_library(tokens, weights, layers, heads):
    (vocab_size, width), context = weights["embedding.weight"].shape, len(weights["position_embedding.weight"])
    config = GPTConfig.gpt2(vocab_size=vocab_size, context=context, layers=layers, heads=heads, width=width)
    return torch.func.functional_call(GPT(config).eval(), {**weights, "head.weight": weights["embedding.weight"]}, (tokens,))


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def gpt2(tokens, weights, layers, heads, mistake="", eps=1e-5, biases="qkv out up down", act=tanh_gelu, last=same, **look):
    """The forward pass of GPT-2, written out; `mistake` names what goes wrong, `look` is what `looked_up` does otherwise."""
    wrong, biases = mistake.__eq__, biases.split()

    def linear(x, name):
        weight = weights[f"{name}.weight"].T if wrong("turned out") and name.endswith("out") else weights[f"{name}.weight"]
        return F.linear(x, weight, weights[f"{name}.bias"] if name.split(".")[-1] in biases else None)

    def norm(x, name):
        plain = wrong("plain norms") or (wrong("plain last norm") and name == "norm")
        gain, bias = (None, None) if plain else (weights[f"{name}.weight"], weights[f"{name}.bias"])
        if wrong("unbiased"):
            return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * gain + bias
        return F.layer_norm(x, x.shape[-1:], gain, bias, eps)

    B, T = tokens.shape
    table, post = weights["position_embedding.weight"], wrong("post-norm")
    places = {
        "batch positions": table.repeat(B, 1)[:B, None],
        "from 1": table.roll(-1, 0)[:T],
        "all rows": table,
        "no positions": 0.0,
    }
    x = weights["embedding.weight"][tokens] * (table.shape[1] ** 0.5 if wrong("root of C") else 1.0)
    x = x + places.get(mistake, table[-T:] if wrong("last rows") else table[:T])
    for layer in sorted(range(1 if wrong("one alone") else layers - wrong("one too few")), key=str if wrong("alphabet") else int):
        at, before = f"blocks.{0 if wrong('shared') else layer}.", x
        norms = [f"{at}norm{n}" for n in {"swapped norms": (2, 1), "norm1 twice": (1, 1)}.get(mistake, (1, 2))]
        q, k, v = linear(x if post else norm(x, norms[0]), f"{at}attention.qkv").chunk(3, dim=-1)
        q, k = (k, q) if wrong("q and k") else (q, k)
        q, k, v = (cut_heads(part, heads, mistake) for part in (q, k, v))
        y, _ = looked_up(q, k, v, triangle(T, T), **look)
        y = put_together(y, x.shape, mistake)
        x = (0.0 if wrong("no first skip") else norm(x, norms[0]) if mistake in ("normed skips", "first normed") else x) + (
            y if wrong("no out") else linear(y, f"{at}attention.out")
        )
        x = norm(x, norms[0]) if post else x
        y = before if wrong("parallel") else x
        y = linear(act(linear(y if post else norm(y, norms[1]), f"{at}up")), f"{at}down")
        y = act(y) if wrong("act behind") else y
        x = before if wrong("old skip") else x
        x = (0.0 if wrong("no second skip") else norm(x, norms[1]) if mistake in ("normed skips", "second normed") else x) + y
        in_blocks = wrong("last norm in blocks") or wrong("last norm in blocks and behind")
        x = norm(x, norms[1]) if post else norm(x, "norm") if in_blocks else x
    x = norm(x, "norm") if wrong("last norm twice") else x
    logits = (x if mistake in ("no last norm", "last norm in blocks") else norm(x, "norm")) @ weights["embedding.weight"].T
    return last(logits)


def first_of_all(mask):
    """The first query's first key, so that no softmax is empty."""
    return F.pad(torch.ones(1, 1, dtype=torch.bool), (0, mask.shape[1] - 1, 0, mask.shape[0] - 1))


gpt_logits = Exercise(
    "2.7", "gpt_logits", draw=draw_gpt_logits, right=gpt_by_library, formula=gpt2, call=call_gpt_logits, tolerance=1e-4,
    mistakes={
        "the positions are missing: add row t of the position embedding at place t": {"mistake": "no positions"},
        "the position embedding is added along the batch; row t belongs to place t of every text": {"mistake": "batch positions"},
        "the positions are counted from 1: row 0 of the position embedding belongs to the first place": {"mistake": "from 1"},
        "these are the last T rows of the position embedding; take the first T": {"mistake": "last rows"},
        "all rows of the position embedding are added, and a text may be shorter: take the first T": {"mistake": "all rows"},
        "the embedding is multiplied by sqrt(C), as in the paper of 2017; GPT-2 does not": {"mistake": "root of C"},
        "there is no causal mask: every position sees the future": {"seen": torch.ones_like},
        "the mask is made for so many positions beforehand, and a text may be longer: make it as long as the text":
            tuple({"seen": lambda mask, most=most: mask[:most, :most]} for most in (16, 32, 64)),
        "each position sees one token too far, the one that it is to predict":
            {"seen": lambda mask: triangle(*mask.shape, more=1)},
        "a position must see itself too, not only what came before it":
            tuple({"seen": seen, "hidden": low} for low in (-1e9, -torch.inf) for seen in (
                lambda mask: triangle(*mask.shape, more=-1), lambda mask: triangle(*mask.shape, more=-1) | first_of_all(mask))),
        "masked scores are 0 here, and exp(0) = 1 is still a weight: fill them with -inf": {"hidden": 0.0},
        "the mask comes after the softmax, so the weights add to less than 1: mask the scores, before the softmax":
            {"seen": torch.ones_like, "late": lambda weights, mask, q: weights * mask},
        "the attention's scores lack the 1/sqrt(D)": {"scale": lambda q, k: 1.0},
        "the attention's scores are divided by sqrt(D) twice, or by D": {"scale": lambda q, k: 1 / q.shape[-1]},
        "the attention's scores are divided by sqrt(C); it is sqrt(D), the root of a head's size":
            {"scale": lambda q, k: (q.shape[1] * q.shape[3]) ** -0.5},
        "view(B, heads, T, D) tears positions apart: view(B, T, heads, D), then transpose(1, 2)":
            ({"mistake": "torn"}, {"mistake": "torn and scrambled"}),
        "the heads are put together without transpose(1, 2): bring them back to (B, T, heads, D) first": {"mistake": "scrambled"},
        "a head takes every heads-th number; it is to take D neighbours":
            ({"mistake": "strided"}, {"mistake": "strided both ways"}),
        "this is one wide head: cut queries, keys and values into `heads` parts first": {"mistake": "one"},
        "queries and keys are swapped: queries, keys, values is the order": {"mistake": "q and k"},
        "the attention's output matrix is missing": {"mistake": "no out"},
        "the attention's output matrix is the wrong way round: a weight is stored as (outputs, inputs)":
            {"mistake": "turned out"},
        "every block uses the weights of block 0; each layer has its own, blocks.0, blocks.1 and so on": {"mistake": "shared"},
        "the blocks are taken in the order of the alphabet, where blocks.10 comes before blocks.2: count from 0 to layers - 1":
            {"mistake": "alphabet"},
        "the last block is missing: there are `layers` of them, from 0 to layers - 1": {"mistake": "one too few"},
        "only the first block is run: there are `layers` of them (does the loop end too early?)": {"mistake": "one alone"},
        "the norms stand behind the parts (post-norm); GPT-2 normalises in front of each part": {"mistake": "post-norm"},
        "the two norms of a block are swapped: norm1 belongs to the attention": {"mistake": "swapped norms"},
        "norm1 is used twice in a block: the feed-forward part has a norm of its own, norm2": {"mistake": "norm1 twice"},
        "the norms divide the variance by C - 1; a LayerNorm's is divided by C": {"mistake": "unbiased"},
        "the norms lack their gain and bias": {"mistake": "plain norms"},
        "the last norm lacks its gain and bias": {"mistake": "plain last norm"},
        "the last norm is missing: GPT-2 normalises once more before the head": {"mistake": "no last norm"},
        "the last norm stands at the end of every block; it stands once, behind the last":
            ({"mistake": "last norm in blocks"}, {"mistake": "last norm in blocks and behind"}),
        "the last norm is applied twice": {"mistake": "last norm twice"},
        "the eps of the norms is another; it is 1e-5": tuple({"eps": eps} for eps in (1e-12, 1e-6, 1e-8, 1e-3, 0.0)),
        "the feed-forward part reads the block's input; it reads what the attention has written": {"mistake": "parallel"},
        "the skip around the attention is missing": {"mistake": "no first skip"},
        "the skip around the feed-forward part is missing": {"mistake": "no second skip"},
        "the second skip starts from the block's input: what the attention has written is lost": {"mistake": "old skip"},
        "the skips carry the normalised stream: keep the stream itself for the sum": {"mistake": "normed skips"},
        "the skip around the attention carries the normalised stream: keep the stream itself for the sum":
            {"mistake": "first normed"},
        "the skip around the feed-forward part carries the normalised stream: keep the stream itself for the sum":
            {"mistake": "second normed"},
        "the activation is ReLU; GPT-2 has GELU in its tanh form": {"act": torch.relu},
        "this is the exact GELU; GPT-2 has the tanh form, F.gelu(x, approximate='tanh')": {"act": F.gelu},
        "there is no activation between up and down; GPT-2 has GELU in its tanh form": {"act": same},
        "the activation is another; it is tanh GELU": tuple({"act": act} for act in (F.silu, torch.tanh, torch.sigmoid, F.elu)),
        "there is an activation behind down too; GELU stands between up and down alone": {"mistake": "act behind"},
        "the biases of the linear layers are missing": {"biases": ""},
        "a bias of the attention is missing: qkv and out": tuple({"biases": f"{one} up down"} for one in ("out", "qkv", "")),
        "a bias of the second part is missing: up, down": tuple({"biases": f"qkv out {one}"} for one in ("up", "down", "")),
        "these are probabilities; return the logits, the loss takes softmax itself": {"last": lambda logits: logits.softmax(-1)},
        "these are log-probabilities; return the logits, without softmax": {"last": lambda logits: logits.log_softmax(-1)},
        "only the last position is here; return logits for every position, all are trained at once":
            ({"last": lambda logits: logits[:, -1]}, {"last": lambda logits: logits[:, -1:]}),
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.8


def draw_count_parameters(generator):
    yield {"vocab_size": 5, "context": 3, "layers": 1, "width": 2}
    for _ in range(3):
        vocab_size, context, layers, half = torch.randint(2, 12, (4,), generator=generator).tolist()
        yield {"vocab_size": vocab_size + 11, "context": context, "layers": layers, "width": 2 * half}
    yield {"vocab_size": 50257, "context": 1024, "layers": 12, "width": 768}
    yield {"vocab_size": 50257, "context": 2048, "layers": 96, "width": 12288}  # more than 2 ** 31, or a float32, can count
    yield {"vocab_size": 2048, "context": 128, "layers": 4, "width": 256}
    yield {"vocab_size": 140_000, "context": 129, "layers": 2, "width": 250}  # no multiple of 4, above 2 ** 25: no float32


@functools.lru_cache(maxsize=64)
def parameters_of_model(vocab_size, context, layers, width):
    """Build the model without its numbers, and count."""
    with torch.device("meta"):
        model = GPT(GPTConfig.gpt2(vocab_size=vocab_size, context=context, layers=layers, heads=1, width=width))
    return sum(p.numel() for p in model.parameters())


def counted(*, vocab_size, context, layers, width, **more):
    """The right count, and what each of `more` says of V tokens, P places, L layers and width C."""
    shape = vocab_size, context, layers, width
    return parameters_of_model(*shape) + sum(part(*shape) for part in more.values())


count_parameters = Exercise(
    "2.8", "count_parameters", draw=draw_count_parameters, right=parameters_of_model, formula=counted, tolerance=0.0,
    call=but_no(lambda n: isinstance(n, float) or getattr(n, "dtype", 0) == torch.float32, "it is to be an int"),
    mistakes={
        "the token embedding is counted twice: the head is tied to it, so it is one matrix": {"head": lambda V, P, L, C: V * C},
        "float32 holds whole numbers up to 2 ** 24 only, and the sum is larger: count with Python's int":
            lambda **sizes: int(torch.tensor(parameters_of_model(**sizes)).float()),
        "the head has a bias here; it has none": {"head_bias": lambda V, P, L, C: V},
        "the token embedding is missing: vocab_size x width; it is the head too": {"embedding": lambda V, P, L, C: -V * C},
        "the position embedding is missing: context x width": {"positions": lambda V, P, L, C: -P * C},
        "the position embedding is counted in every block; there is one": {"positions_each": lambda V, P, L, C: (L - 1) * P * C},
        "each place has a bias: the position embedding is a matrix alone": {"place_bias": lambda V, P, L, C: P},
        "the context is 1024 whatever it says": {"fixed": lambda V, P, L, C: (1024 - P) * C},
        "the biases of the linear layers are missing: 9 x width in each block": {"linear_bias": lambda V, P, L, C: -9 * L * C},
        "3 x width numbers are missing in each block: qkv's bias; up's is 4 x width": {"qkv_bias": lambda V, P, L, C: -3 * L * C},
        "width numbers are missing in each block: attention.out and down have a bias each":
            {"out_bias": lambda V, P, L, C: -L * C},
        "5 x width biases are missing in each block: one for each output, so qkv has 3 x width, up 4 x width, down width":
            {"feed_bias": lambda V, P, L, C: -5 * L * C},
        "the norms are missing: two in each block, one at the end, gain and bias": {"norms": lambda V, P, L, C: -(4 * L + 2) * C},
        "the norms have a bias too, not a gain alone": {"norm_bias": lambda V, P, L, C: -(2 * L + 1) * C},
        "2 x width numbers are missing in each block: the norms' gains, their biases, or two of the three that qkv's bias has":
            {"norm_pair": lambda V, P, L, C: -2 * L * C},
        "4 x width numbers are missing in each block: its two norms, the biases of qkv and out, or up's bias":
            {"biases": lambda V, P, L, C: -4 * L * C},
        "6 x width numbers are missing in each block: four linear layers have biases of 9 x width, two norms have 4 x width":
            {"six": lambda V, P, L, C: -6 * L * C},
        "7 x width numbers are missing in each block: four linear layers have biases of 9 x width, two norms have 4 x width":
            {"seven": lambda V, P, L, C: -7 * L * C},
        "this is the rule of thumb, 12 x width² for a block and the token embedding; the exact number has biases, norms, places":
            {"rule": lambda V, P, L, C: -(13 * L + 2 + P) * C},
        "the last norm, behind the blocks, is missing": {"last_norm": lambda V, P, L, C: -2 * C},
        "the last norm is counted in every block; there is one": {"last_each": lambda V, P, L, C: (L - 1) * 2 * C},
        "the last norm has a bias too, not a gain alone": {"last_bias": lambda V, P, L, C: -C},
        "one norm too many is counted: two in each block and one at the end": {"one_norm": lambda V, P, L, C: 2 * C},
        "2 x width numbers are too many in each block: it has two norms, with gain and bias":
            {"third_norm": lambda V, P, L, C: 2 * L * C},
        "the feed-forward part has two linear layers, up and down again": {"half_feed": lambda V, P, L, C: -L * (4 * C * C + C)},
        "the feed-forward part is missing: up to 4 x width and down again": {"feed": lambda V, P, L, C: -L * (8 * C * C + 5 * C)},
        "the feed-forward part is 4 x width wide, not 3 x width": {"narrow": lambda V, P, L, C: -L * (2 * C * C + C)},
        "queries, keys and values have a matrix each, and a bias": {"qkv": lambda V, P, L, C: -L * (2 * C * C + 2 * C)},
        "the attention's output matrix is missing, and its bias": {"out": lambda V, P, L, C: -L * (C * C + C)},
        "one C x C matrix of the attention is missing: queries, keys, values, and the output":
            {"matrix": lambda V, P, L, C: -L * C * C},
        "2 x width² weights are missing in each block: queries, keys and values have a matrix each":
            {"two": lambda V, P, L, C: -2 * L * C * C},
        "3 x width² weights are missing in each block: qkv has so many": {"three": lambda V, P, L, C: -3 * L * C * C},
        "4 x width² weights are missing in each block: up has so many, down too, and qkv and out together":
            {"four": lambda V, P, L, C: -4 * L * C * C},
        "twelve blocks are counted, as in the published model; there are `layers` of them":
            {"twelve": lambda V, P, L, C: (12 - L) * (12 * C * C + 13 * C)},
        "only one block is counted; there are `layers` of them":
            {"one_block": lambda V, P, L, C: -(L - 1) * (12 * C * C + 13 * C)},
        "one block is missing: there are `layers` of them": {"block": lambda V, P, L, C: -(12 * C * C + 13 * C)},
    },
)  # fmt: skip

# ----------------------------------------------------------------------------------------- 2.9


def draw_reversal_batch(generator):
    yield {"sequences": torch.tensor([[6]]), "separator": 8}
    yield {"sequences": torch.tensor([[2, 7]]), "separator": 11}
    for rows, length, separator in ((2, 3, 9), (3, 5, 16), (4, 2, 31)):
        yield {"sequences": torch.randint(1, 9, (rows, length), generator=generator), "separator": separator}
    yield {"sequences": torch.tensor([[1, 2, 3, 4], [4, 4, 2, 1]]), "separator": 0}
    yield {"sequences": torch.randint(1, 50_000, (1, 130), generator=generator), "separator": 50_256}


def reversal_by_lists(sequences, separator):
    inputs, targets = [], []
    for sequence in sequences.tolist():
        answer = sequence[::-1]
        inputs.append([*sequence, separator, *answer[:-1]])
        targets.append([-100] * len(sequence) + answer)
    return torch.tensor(inputs), torch.tensor(targets)


def reversal(sequences, separator, answer=lambda x: x.flip(1), unscored=int, ignored=-100, shift=1, apart=True, last=None):
    """The rows of the task, with places to go wrong."""
    middle = [torch.full_like(sequences[:, :1], separator)] if apart else []
    row = torch.cat([sequences, *middle, answer(sequences)], dim=1)
    targets = row[:, shift : shift + row.shape[1] - 1].clone()
    targets[:, : unscored(sequences.shape[1])] = ignored
    return last(row[:, :-1], targets, sequences.shape[1]) if last else (row[:, :-1], targets)


reversal_batch = Exercise(
    "2.9", "reversal_batch", draw=draw_reversal_batch, right=reversal_by_lists, formula=reversal, tolerance=0.0,
    call=but_no(lambda pair: isinstance(pair, tuple) and any(getattr(one, "dtype", 0) in NO_TOKENS for one in pair), "use int64"),
    mistakes={
        "the question is scored too: nobody can predict random tokens, so their targets are -100": {"unscored": lambda n: 0},
        "only the separator's target is -100: the targets of the whole question are":
            ({"unscored": lambda n: 0, "last": lambda x, y, n: (x, y.index_fill(1, torch.tensor([n - 1]), -100))},),
        "the answer is the sequence as it was; it is to be the sequence backwards": {"answer": same},
        "the batch is turned round, not each sequence: flip dimension 1": {"answer": lambda x: x.flip(0)},
        "the batch is turned round as well as each sequence: flip dimension 1 alone": {"answer": lambda x: x.flip(0, 1)},
        "the answer is sorted downwards; it is to be the sequence backwards": {"answer": lambda x: x.sort(1, descending=True)[0]},
        "the targets are the inputs themselves: the target at place t is the token at t + 1": {"shift": 0},
        "the answer's first token is not scored: it is predicted at the separator, place n": {"unscored": lambda n: n + 1},
        "the separator is scored, and it is part of the question: the first n targets are -100": {"unscored": lambda n: n - 1},
        "nothing is scored: all targets are -100; the answer's are its tokens": {"unscored": lambda n: 2 * n},
        "what is not scored has another target; cross_entropy skips -100": tuple({"ignored": one} for one in (0, -1, -99, 100)),
        "what is not scored has the separator as its target; cross_entropy leaves out -100":
            lambda sequences, separator: reversal(sequences, separator, ignored=separator),
        "-100 is in the inputs too: clone before you write": {"last": lambda x, y, n: (torch.cat([x[:, :1], y[:, :-1]], 1), y)},
        "inputs and targets have changed places": {"last": lambda x, y, n: (y, x)},
        "the answer is not in the inputs: behind the separator each place reads the answer's token before the one it predicts":
            ({"last": lambda x, y, n: (x.index_fill(1, torch.arange(n + 1, 2 * n), 0), y)},
             lambda sequences, separator: reversal(sequences, separator, last=lambda x, y, n: (
                 x.index_fill(1, torch.arange(n + 1, 2 * n), separator), y))),
        "behind the separator the inputs are the tokens to be predicted there, not those before them":
            {"last": lambda x, y, n: (torch.cat([x[:, : n + 1], y[:, n + 1 :]], 1), y)},
        "there is no separator: the model cannot know where the question ends": {"apart": False, "unscored": lambda n: n - 1},
    },
)  # fmt: skip
