"""What the probes of 11.12 stand on: tiny models, and conversations laid out as ChatML in a language of thirty tokens."""

import torch

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig

BEGIN, USER, ASSISTANT, END, NEWLINE = range(5)  # <|im_start|>, the roles, <|im_end|>, and what stands behind it
WORDS = range(5, 30)
TOKENS = 30


def tiny(seed, dropout=0.0, width=32, spread=0.2):
    """A Llama, or, where there is dropout, a GPT; both take numbers of texts in the place of a mask."""
    shape = dict(vocab_size=TOKENS, context=96, layers=2, heads=2, width=width)
    model = GPT(GPTConfig(**shape, dropout=dropout)) if dropout else Llama(LlamaConfig(**shape, kv_heads=1, hidden=2 * width))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=spread, generator=generator)
    return model.eval()


def turns(*messages):
    """(tokens, spoken) of messages (role, words), laid out as ChatML."""
    tokens, spoken = [], []
    for role, words in messages:
        said = role == ASSISTANT
        tokens += [BEGIN, role, *words, END, NEWLINE]
        spoken += [False, False, *[said] * len(words), said, False]
    return tokens, spoken


def whole(generator, low, high):
    return int(torch.randint(low, high, (), generator=generator))


def words(generator, low, high):
    return [whole(generator, WORDS[0], TOKENS) for _ in range(whole(generator, low, high))]


def conversations(generator, count):
    """`count` conversations of one or two exchanges, of different lengths; long answers go with short questions."""
    made = []
    for place in range(count):
        short = place % 2
        asked, answered = (1, 3 + 5 * short), (1 + 4 * (1 - short), 9 - 6 * short)  # from, to
        pairs = [(words(generator, *asked), words(generator, *answered)) for _ in range(1 + short)]
        made.append(turns(*((role, one) for pair in pairs for role, one in zip((USER, ASSISTANT), pair))))
    return made


def drawn(count=12, **others):
    def draw(generator):
        made = {"learn": conversations(generator, count), "held_out": conversations(generator, 7)}
        return {**made, "weights": whole(generator, 0, 10**6), **others}

    return draw


def draw_visits(generator):
    """Conversations whose first words are numbers of their own."""
    made = [turns((USER, [word, *words(generator, 0, 3)]), (ASSISTANT, words(generator, 1, 5))) for word in WORDS[:23]]
    order = torch.randperm(23, generator=generator).tolist()
    return {"learn": [made[place] for place in order], "held_out": made[:3], "weights": whole(generator, 0, 10**6)}


def losses(model, some):
    """For each conversation by itself the negative log-probability of every token but the first, (T - 1,) in nats."""
    return [-logprobs[:-1].gather(1, row[1:, None])[:, 0] for logprobs, row in read(model, some)]


def unshifted(model, some):
    """For each conversation what the logits at every place say of the token at that very place, (T,) in nats: a mistake."""
    return [-logprobs.gather(1, row[:, None])[:, 0] for logprobs, row in read(model, some)]


COUNTED = {  # which tokens; the first and the last of a conversation are nobody's words
    "right": lambda spoken: spoken,
    "all": torch.ones_like,
    "late": lambda spoken: spoken.roll(1),
    "no first": lambda spoken: spoken & spoken.roll(1),
    "no end": lambda spoken: spoken & spoken.roll(-1),
    "behind": lambda spoken: spoken | spoken.roll(1),
    "before": lambda spoken: spoken | torch.cat([spoken[1:], spoken[-1:]]),
    "user": torch.logical_not,
}


def filled(train_sft, weights):
    """How many conversations a row has at most in a training where two of them fill one to its last token."""
    some, model = [turns((USER, [word]), (ASSISTANT, [word])) for word in WORDS[:6]], tiny(weights)
    seen = watch(model)
    train_sft(model, some, some[:2], epochs=1, row=2 * len(some[0][0]), batch=3, lr=1e-3, seed=3)
    return max((row.count(USER) for step in seen["steps"] for row in step.tolist()), default=0)


def adder(total):
    def add(gradient):
        total.add_(gradient)

    return add


def first_step(model, some, train):
    """How far the direction of a training's first gradient is from that of each loss in COUNTED, and of the mean of the
    conversations' means: {name: 0 for the same to 2 for the opposite}. All of `some` is learned from in one step."""
    weights, parts = [*model.parameters()], []
    for tokens, spoken in some:
        row = torch.tensor(tokens)
        logprobs = model(row[None], torch.ones_like(row[None], dtype=torch.bool))[0].log_softmax(-1)
        parts.append((-logprobs[:-1].gather(1, row[1:, None])[:, 0], torch.tensor(spoken)))
    wanted = {name: torch.cat([loss[pick(said)[1:]] for loss, said in parts]).mean() for name, pick in COUNTED.items()}
    wanted["mean of means"] = torch.stack([loss[said[1:]].mean() for loss, said in parts]).mean()
    wanted = {name: torch.autograd.grad(loss, weights, retain_graph=True) for name, loss in wanted.items()}
    found = []
    for one in weights:
        found.append(torch.zeros_like(one))
        one.register_hook(adder(found[-1]))
    train(model)
    flat = lambda some: torch.nn.functional.normalize(torch.cat([one.flatten() for one in some]), dim=0)  # noqa: E731
    return {name: (flat(found) - flat(one)).norm().item() for name, one in wanted.items()}


@torch.no_grad()
def read(model, some):
    """For each conversation by itself the log-probabilities (T, V) and its tokens (T,)."""
    model.eval()
    for tokens, _ in some:
        row = torch.tensor(tokens)
        yield model(row[None], torch.ones_like(row[None], dtype=torch.bool))[0].log_softmax(-1), row


def watch(model):
    """What a training of the model shows: {"steps": the tokens that it embeds with gradients on, "modes": whether it is then in
    training mode, "texts": the tokens and the numbers of texts that it is called with, "alone": for each backward pass whether
    the gradient that then stands in `.grad` is that pass's own}. They fill up while it is trained."""
    seen, passed = {"steps": [], "modes": [], "texts": [], "alone": []}, []

    def embedded(module, arguments):
        if torch.is_grad_enabled():
            seen["steps"].append(arguments[0].clone())
            seen["modes"].append(module.training)

    def called(module, arguments, named):
        texts = arguments[1] if len(arguments) > 1 else named.get("texts")
        if torch.is_grad_enabled() and arguments and texts is not None:
            seen["texts"].append([arguments[0].clone(), texts.clone()])

    model.embedding.register_forward_pre_hook(embedded)
    model.register_forward_pre_hook(called, with_kwargs=True)
    weight = model.blocks[-1].norm2.weight
    weight.register_hook(lambda gradient: passed.append(gradient.clone()))
    weight.register_post_accumulate_grad_hook(lambda one: seen["alone"].append(torch.allclose(one.grad, passed[-1], 1e-3, 1e-8)))
    return seen


def numbered(rows, learn):
    """The numbers of texts that rows of conversations should have: 1, 2, ... in each row, and 0 on padding.

    Args:
        rows: (R, T) tokens.
        learn: conversations, each with a first word that no other has.
    """
    lengths, texts = {tokens[2]: len(tokens) for tokens, _ in learn}, torch.zeros_like(rows)
    for row, numbers in zip(rows.tolist(), texts):
        starts = [place for place in range(len(row) - 2) if row[place : place + 2] == [BEGIN, USER]]
        for number, place in enumerate(starts, 1):
            numbers[place : place + lengths[row[place + 2]]] = number
    return texts


def mean_of_means(pairs):
    """Of pairs (losses, spoken), one for each conversation: the mean of each one's mean loss on what is spoken."""
    return torch.stack([loss[spoken[1:]].mean() for loss, spoken in pairs]).mean().item()


def flags(some):
    return [torch.tensor(spoken) for _, spoken in some]


def truth(model, some):
    """The mean negative log-probability of the assistant's tokens."""
    parts = [loss[spoken[1:]] for loss, spoken in zip(losses(model, some), flags(some))]
    return torch.cat(parts).mean().item()
