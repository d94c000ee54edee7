"""Chapter 06: reading the last real token, pooling, soft labels, accuracy, calibration, and the losses on comparisons."""

import math

import torch
from torch.nn import functional as F

from rlhf_lib.exercises.declare import Exercise
from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.heads import RewardModel
from rlhf_lib.models.layers import evaluating, pad


def masks(generator, rows, steps):
    """A mask (rows, steps) of real tokens, in every row one run: on the left, on the right, and the whole of it."""
    places = torch.arange(steps)
    lengths = torch.randint(1, steps, (rows, 1), generator=generator)
    left = torch.arange(rows)[:, None] % 2 == 1  # every other row is padded on the left
    mask = torch.where(left, places >= steps - lengths, places < lengths)
    mask[-1] = True
    return mask


# ----------------------------------------------------------------------------------------- 6.1

last_token = Exercise("6.1", "last_token")


@last_token.inputs
def _(generator):
    yield {"x": torch.tensor([[1.0, 2.0, 9.0]]), "mask": torch.tensor([[True, True, False]])}
    yield {"x": torch.tensor([[9.0, 1.0, 2.0]]), "mask": torch.tensor([[False, True, True]])}
    for rows, steps in ((4, 5), (7, 9)):
        yield {"x": torch.randn(rows, steps, generator=generator), "mask": masks(generator, rows, steps)}


@last_token.oracle
def _(x, mask):
    return torch.stack([row[real][-1] for row, real in zip(x, mask)])


@last_token.mistake("this is the last column, which is padding where a row is padded on the right")
def _(x, mask):
    return x[:, -1]


@last_token.mistake("counting the real tokens finds the last one only when the padding is on the right; look for the last True")
def _(x, mask):
    return x.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]


@last_token.mistake("this is the first real token: nothing has been read there yet")
def _(x, mask):
    return x.gather(1, mask.int().argmax(1, keepdim=True))[:, 0]


@last_token.mistake("this is the mean over the real tokens; only the last one has read the whole passage")
def _(x, mask):
    return (x * mask).sum(1) / mask.sum(1)


@last_token.mistake("off by one: this is the token before the last real one")
def _(x, mask):
    places = torch.where(mask, torch.arange(x.shape[1]), 0).amax(1, keepdim=True)
    return x.gather(1, (places - 1).clamp(min=0))[:, 0]


@last_token.mistake("this is the largest value among the real tokens; which token it is must not depend on the values")
def _(x, mask):
    return x.masked_fill(~mask, -math.inf).amax(1)


# ----------------------------------------------------------------------------------------- 6.2

mean_pool = Exercise("6.2", "mean_pool")


@mean_pool.inputs
def _(generator):
    yield {"hidden": torch.tensor([[[1.0], [3.0], [8.0]]]), "mask": torch.tensor([[True, True, False]])}
    for rows, steps, width in ((2, 4, 3), (5, 7, 4)):
        hidden = 1 + 2 * torch.randn(rows, steps, width, generator=generator)
        yield {"hidden": hidden, "mask": masks(generator, rows, steps)}


@mean_pool.oracle
def _(hidden, mask):
    return torch.stack([row[real].mean(0) for row, real in zip(hidden, mask)])


@mean_pool.mistake("padding is part of the mean, so a passage's score depends on the batch that it is in: use the mask")
def _(hidden, mask):
    return hidden.mean(1)


@mean_pool.mistake("padding was set to zero but still counted: divide by the number of real tokens, not by the length")
def _(hidden, mask):
    return (hidden * mask[..., None]).mean(1)


@mean_pool.mistake("this is the sum over the real tokens; divide it by their number")
def _(hidden, mask):
    return (hidden * mask[..., None]).sum(1)


@mean_pool.mistake("each row is divided by the batch's average number of real tokens; divide it by its own")
def _(hidden, mask):
    return (hidden * mask[..., None]).sum(1) / mask.sum(1).float().mean()


@mean_pool.mistake("this averages over the width; average over the tokens, dim=1, and keep (B, C)")
def _(hidden, mask):
    return hidden.mean(2)


@mean_pool.mistake("this is one mean for the whole batch; each passage has its own")
def _(hidden, mask):
    return hidden[mask].mean(0).expand(len(hidden), -1)


@mean_pool.mistake("this is the largest value of each feature, max-pooling; take the mean")
def _(hidden, mask):
    return hidden.masked_fill(~mask[..., None], -math.inf).amax(1)


@mean_pool.picture
def _(arguments, got, expected):
    from rlhf_lib import plots

    return plots.side_by_side(got, expected, "a row is a passage, a column a feature")


# ----------------------------------------------------------------------------------------- 6.3

soft_label_loss = Exercise("6.3", "soft_label_loss")


@soft_label_loss.inputs
def _(generator):
    yield {
        "logits": torch.tensor([[2.0, -1.0, 9.0]]), "mask": torch.tensor([[True, True, False]]), "targets": torch.tensor([1.0]),
    }  # fmt: skip
    yield {"logits": torch.tensor([[0.0]]), "mask": torch.tensor([[True]]), "targets": torch.tensor([0.5])}  # ln 2
    for rows, steps in ((5, 4), (8, 6)):
        targets = torch.randint(3, (rows,), generator=generator) / 2
        targets[:3] = torch.tensor([0.0, 0.5, 1.0])
        logits = 2 * torch.randn(rows, steps, generator=generator)
        yield {"logits": logits, "mask": masks(generator, rows, steps), "targets": targets}
    whole = torch.ones(2, 1, dtype=torch.bool)
    yield {"logits": torch.tensor([[-1000.0], [300.0]]), "mask": whole, "targets": torch.tensor([1.0, 0.0])}  # sure and wrong


@soft_label_loss.call
def _(function, logits, **others):
    """The loss, and its gradient."""
    logits = logits.clone().requires_grad_()
    loss = function(logits, **others)
    loss.backward()
    return {"loss": loss, "gradient": logits.grad}


def last_by_loop(logits, mask):
    return torch.stack([row[real][-1] for row, real in zip(logits, mask)])


@soft_label_loss.oracle
def _(logits, targets, mask):
    z = last_by_loop(logits, mask)
    return (torch.logaddexp(z, torch.zeros_like(z)) - targets * z).mean()  # -t log p - (1 - t) log(1 - p)


def binary(z, targets, reduction="mean"):
    return F.binary_cross_entropy_with_logits(z, targets, reduction=reduction)


@soft_label_loss.mistake("the last column is read, padding included; read each row's last real token")
def _(logits, targets, mask):
    return binary(logits[:, -1], targets)


@soft_label_loss.mistake("the label is held against every real token; the early ones have not read the passage yet")
def _(logits, targets, mask):
    return binary(logits[mask], targets[:, None].expand(logits.shape)[mask])


@soft_label_loss.mistake("neutral passages are left out of the loss; they say where the middle is: target 0.5")
def _(logits, targets, mask):
    clear = targets != 0.5
    return binary(last_by_loop(logits, mask)[clear], targets[clear])


@soft_label_loss.mistake("neutral passages count as negative: keep the soft target 0.5")
def _(logits, targets, mask):
    return binary(last_by_loop(logits, mask), (targets > 0.5).float())


@soft_label_loss.mistake("this is the sum over the batch; take the mean")
def _(logits, targets, mask):
    return binary(last_by_loop(logits, mask), targets, reduction="sum")


@soft_label_loss.mistake("a sigmoid is in it twice: the operator with logits takes log-odds, not probabilities")
def _(logits, targets, mask):
    return binary(last_by_loop(logits, mask).sigmoid(), targets)


@soft_label_loss.mistake("squared errors hardly learn from a passage that is sure and wrong; take the cross-entropy")
def _(logits, targets, mask):
    return ((last_by_loop(logits, mask).sigmoid() - targets) ** 2).mean()


@soft_label_loss.mistake("the sigmoid rounds to 0 or 1 for large log-odds, and the gradient is gone: work on log-odds instead")
def _(logits, targets, mask):
    return F.binary_cross_entropy(last_by_loop(logits, mask).sigmoid(), targets)


# ----------------------------------------------------------------------------------------- 6.4

label_token_reward = Exercise("6.4", "label_token_reward")


@label_token_reward.inputs
def _(generator):
    yield {
        "logits": torch.tensor([[[1.0, 2.0, 0.0]]]), "mask": torch.tensor([[True]]), "positive": 1, "negative": 0,
    }  # fmt: skip
    for rows, steps, count, positive, negative in ((3, 4, 5, 3, 1), (5, 6, 7, 2, 6)):
        logits = 2 * torch.randn(rows, steps, count, generator=generator)
        yield {"logits": logits, "mask": masks(generator, rows, steps), "positive": positive, "negative": negative}
    extreme = torch.tensor([[[500.0, -500.0, 0.0]]])
    yield {"logits": extreme, "mask": torch.tensor([[True]]), "positive": 1, "negative": 0}


@label_token_reward.oracle
def _(logits, mask, positive, negative):
    rows = [row[real][-1][[negative, positive]] for row, real in zip(logits, mask)]
    return -F.cross_entropy(torch.stack(rows), torch.ones(len(rows), dtype=torch.long), reduction="none")


def two(logits, mask, positive, negative):
    """The logits of the two label tokens at the last real token, (B, 2): negative, positive."""
    return torch.stack([row[real][-1][[negative, positive]] for row, real in zip(logits, mask)])


@label_token_reward.mistake("normalised over the whole vocabulary: compare the two label tokens with each other alone")
def _(logits, mask, positive, negative):
    return torch.stack([row[real][-1].log_softmax(-1)[positive] for row, real in zip(logits, mask)])


@label_token_reward.mistake("the last column is read, padding included; read each row's last real token")
def _(logits, mask, positive, negative):
    return logits[:, -1][:, [negative, positive]].log_softmax(-1)[:, 1]


@label_token_reward.mistake("this is the probability; return its logarithm")
def _(logits, mask, positive, negative):
    return two(logits, mask, positive, negative).softmax(-1)[:, 1]


@label_token_reward.mistake(
    "softmax and then log underflows to minus infinity: take log_softmax, or logsigmoid of the difference"
)
def _(logits, mask, positive, negative):
    return two(logits, mask, positive, negative).softmax(-1)[:, 1].log()


@label_token_reward.mistake("this rewards the negative label: positive and negative are exchanged")
def _(logits, mask, positive, negative):
    return two(logits, mask, positive, negative).log_softmax(-1)[:, 0]


@label_token_reward.mistake(
    "this is the difference of the logits, the log-odds, which has no upper end; a log-probability stops at 0"
)
def _(logits, mask, positive, negative):
    return two(logits, mask, positive, negative).diff(dim=1)[:, 0]


@label_token_reward.mistake("this adds up all real tokens; the label is predicted once, after the last one")
def _(logits, mask, positive, negative):
    return (logits[..., [negative, positive]].log_softmax(-1)[..., 1] * mask).sum(1)


# ----------------------------------------------------------------------------------------- 6.5

score_rows = Exercise("6.5", "score_rows", tolerance=1e-4)


@score_rows.inputs
def _(generator):
    for count, batch, pooling in ((2, 2, "last"), (5, 2, "mean"), (7, 3, "last")):
        lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
        lengths[:2] = 7, 3  # a long one in front of a short one
        rows = [torch.randint(1, 12, (length,), generator=generator).tolist() for length in lengths]
        weights = int(torch.randint(1_000_000, (1,), generator=generator))
        yield {"weights": weights, "pooling": pooling, "rows": rows, "batch": batch}


def tiny_reward_model(seed, pooling):
    """A reward model with weights drawn from `seed`; in training mode, with dropout."""
    model = RewardModel(GPT(GPTConfig(vocab_size=12, context=16, layers=2, heads=2, width=16, dropout=0.3)), pooling)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.4, generator=generator)
    return model.train()


@score_rows.call
def _(function, weights, pooling, rows, batch):
    """The log-odds, and whether they still hang on a graph."""
    scores = function(tiny_reward_model(weights, pooling), rows, batch)
    return {"scores": scores, "has a graph": scores.requires_grad}


@score_rows.oracle
@torch.no_grad()
def _(model, rows, batch):
    model.eval()
    return torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])  # one at a time: no padding at all


def scored(model, rows, batch, read=None, part=False):
    """Batches in the order given; `read` says what is taken from tokens and mask, `part` leaves the last, smaller batch out."""
    read = read or (lambda tokens, mask: model.logits(tokens, mask))
    groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return torch.cat([read(*pad(group, "right")) for group in groups if len(group) == batch or not part])


@score_rows.mistake("dropout is still on, so the same passage scores differently each time: call model.eval() first")
@torch.no_grad()
def _(model, rows, batch):
    return scored(model, rows, batch)


@score_rows.mistake("the model was not told what is padding: give it the mask")
@torch.no_grad()
def _(model, rows, batch):
    model.eval()
    return scored(model, rows, batch, lambda tokens, mask: model(tokens)[:, -1])


@score_rows.mistake("the last column is read, padding included; read each row's last real token")
@torch.no_grad()
def _(model, rows, batch):
    model.eval()
    return scored(model, rows, batch, lambda tokens, mask: model(tokens, mask)[:, -1])


@score_rows.mistake("the scores are in order of length: put them back into the order of `rows`")
@torch.no_grad()
def _(model, rows, batch):
    model.eval()
    return scored(model, sorted(rows, key=len), batch)


@score_rows.mistake("the last, smaller batch is left out: every row needs a score")
@torch.no_grad()
def _(model, rows, batch):
    model.eval()
    return scored(model, rows, batch, part=True)


@score_rows.mistake("the longer rows were cut to the shortest of their batch: pad the shorter ones instead")
@torch.no_grad()
def _(model, rows, batch):
    model.eval()
    groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return torch.cat([model.logits(torch.tensor([row[: min(map(len, group))] for row in group])) for group in groups])


@score_rows.mistake("a graph was built for a gradient that nobody wants: score under torch.no_grad()")
def _(model, rows, batch):
    with evaluating(model):
        return scored(model, rows, batch)


# ----------------------------------------------------------------------------------------- 6.6

clear_accuracy = Exercise("6.6", "clear_accuracy")


@clear_accuracy.inputs
def _(generator):
    yield {"logits": torch.tensor([1.0, 3.0]), "targets": torch.tensor([1.0, 0.5])}
    # four positive (two right, one of them at log-odds 0.3), three negative (two right), five neutral (four above 0)
    logits = torch.tensor([2.0, 0.3, -1.0, -0.2, -1.5, -0.1, 0.8, 1.0, 0.4, 2.0, 0.6, -0.7])
    yield {"logits": logits, "targets": torch.tensor([1.0] * 4 + [0.0] * 3 + [0.5] * 5)}
    for size in (9, 30):
        targets = torch.randint(3, (size,), generator=generator) / 2
        targets[:3] = torch.tensor([0.0, 0.5, 1.0])
        yield {"logits": 2 * (targets - 0.5) + torch.randn(size, generator=generator), "targets": targets}


@clear_accuracy.oracle
def _(logits, targets):
    right = [(z > 0) == (t == 1) for z, t in zip(logits.tolist(), targets.tolist()) if t != 0.5]
    return torch.tensor(sum(right) / len(right))


@clear_accuracy.mistake("neutral passages count as wrong: they have no right side, so leave them out above and below the line")
def _(logits, targets):
    return (((logits > 0) == (targets > 0.5)) & (targets != 0.5)).float().mean()


@clear_accuracy.mistake("neutral passages count as negative: leave them out")
def _(logits, targets):
    return ((logits > 0) == (targets > 0.5)).float().mean()


@clear_accuracy.mistake("neutral passages count as positive: leave them out")
def _(logits, targets):
    return ((logits > 0) == (targets >= 0.5)).float().mean()


@clear_accuracy.mistake("neutral passages count as right: leave them out")
def _(logits, targets):
    return (((logits > 0) == (targets > 0.5)) | (targets == 0.5)).float().mean()


@clear_accuracy.mistake("log-odds are compared with 0.5; even odds are log-odds of 0")
def _(logits, targets):
    clear = targets != 0.5
    return ((logits > 0.5) == (targets > 0.5))[clear].float().mean()


@clear_accuracy.mistake("this is the error rate, the share that is wrong")
def _(logits, targets):
    return 1 - clear_accuracy.right(logits, targets)


@clear_accuracy.mistake("this is the number of right ones; return their share")
def _(logits, targets):
    clear = targets != 0.5
    return ((logits > 0) == (targets > 0.5))[clear].float().sum()


# ----------------------------------------------------------------------------------------- 6.7

calibration_error = Exercise("6.7", "calibration_error")


def log_odds(probabilities):
    return torch.tensor(probabilities).logit()


@calibration_error.inputs
def _(generator):
    yield {"logits": log_odds([0.75, 0.75]), "targets": torch.tensor([1.0, 0.0]), "bins": 10}
    probabilities = [0.95, 0.92, 0.97, 0.55, 0.58, 0.15, 0.33, 0.36, 0.98]
    yield {
        "logits": log_odds(probabilities), "targets": torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5]), "bins": 10,
    }  # fmt: skip
    yield {"logits": torch.tensor([60.0, -60.0, 1.0]), "targets": torch.tensor([0.0, 0.0, 1.0]), "bins": 5}  # confidence 1
    for size, bins in ((40, 5), (120, 10)):
        targets = torch.randint(3, (size,), generator=generator) / 2
        targets[:3] = torch.tensor([0.0, 0.5, 1.0])
        logits = 1.5 * (targets - 0.3) + 1.5 * torch.randn(size, generator=generator)
        yield {"logits": logits, "targets": targets, "bins": bins}


@calibration_error.oracle
def _(logits, targets, bins):
    members = {}
    for z, t in zip(logits.double().tolist(), targets.tolist()):
        if t != 0.5:
            confidence = 1 / (1 + math.exp(-abs(z)))
            members.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, (z > 0) == (t == 1)))
    count = sum(len(pairs) for pairs in members.values())
    gap = 0.0
    for pairs in members.values():
        gap += abs(sum(right for _, right in pairs) - sum(confidence for confidence, _ in pairs)) / count
    return torch.tensor(gap, dtype=torch.float32)


def gaps(logits, targets, bins, neutral=False, confidence=None, fits=None):
    """Of each bin: its accuracy less its confidence (bins,), and the number of passages in it (bins,)."""
    use = (targets != 0.5) | neutral
    p = logits.sigmoid()
    confidence = (torch.maximum(p, 1 - p) if confidence is None else confidence)[use]
    right = ((logits > 0) == (targets > 0.5))[use].float()
    right = torch.where(targets[use] == 0.5, 0.0, right)
    place = (confidence * bins).long()
    inside = F.one_hot(place if fits is None else place.clamp(max=bins - 1), bins + 1)[:, :bins].float()  # (N, bins)
    count = inside.sum(0)
    return ((right - confidence)[:, None] * inside).sum(0) / count.clamp(min=1), count


def weighted(gap, count, total=None):
    return (gap.abs() * count).sum() / (count.sum() if total is None else total)


@calibration_error.mistake("every bin counts the same; weight each gap by the share of passages in its bin")
def _(logits, targets, bins):
    gap, count = gaps(logits, targets, bins, fits=True)
    return gap.abs().sum() / (count > 0).sum()


@calibration_error.mistake("gaps of opposite sign cancel: take the absolute value in each bin before adding")
def _(logits, targets, bins):
    gap, count = gaps(logits, targets, bins, fits=True)
    return ((gap * count).sum() / count.sum()).abs()


@calibration_error.mistake("the probability of positive was used as confidence; it is that of the side chosen, max(p, 1 - p)")
def _(logits, targets, bins):
    return weighted(*gaps(logits, targets, bins, fits=True, confidence=logits.sigmoid()))


@calibration_error.mistake("neutral passages are in it, as wrong answers: leave them out")
def _(logits, targets, bins):
    return weighted(*gaps(logits, targets, bins, neutral=True, fits=True))


@calibration_error.mistake("a confidence of exactly 1 falls out of the last bin: clamp the bin's number to bins - 1")
def _(logits, targets, bins):
    return weighted(*gaps(logits, targets, bins), total=(targets != 0.5).sum())


@calibration_error.mistake("the gap was taken passage by passage; accuracy and confidence are averaged within a bin first")
def _(logits, targets, bins):
    clear = targets != 0.5
    p = logits.sigmoid()
    right = ((logits > 0) == (targets > 0.5)).float()
    return (right - torch.maximum(p, 1 - p))[clear].abs().mean()


@calibration_error.mistake("this is the largest gap of any bin, the maximum calibration error; average the gaps")
def _(logits, targets, bins):
    return gaps(logits, targets, bins, fits=True)[0].abs().max()


# ----------------------------------------------------------------------------------------- 6.8

pair_loss = Exercise("6.8", "pair_loss")


@pair_loss.inputs
def _(generator):
    yield {"chosen": torch.tensor([1.0]), "rejected": torch.tensor([0.0])}
    for size in (3, 10):
        chosen, rejected = 2 * torch.randn(2, size, generator=generator)
        yield {"chosen": chosen, "rejected": rejected}
    yield {"chosen": torch.tensor([-500.0, 500.0]), "rejected": torch.tensor([500.0, -500.0])}  # margins of -1000 and 1000


@pair_loss.call
def _(function, chosen, rejected):
    """The loss, and its gradient with respect to both rewards."""
    chosen, rejected = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    loss = function(chosen, rejected)
    loss.backward()
    return {"loss": loss, "gradient of chosen": chosen.grad, "gradient of rejected": rejected.grad}


@pair_loss.oracle
def _(chosen, rejected):
    """A choice between two: cross-entropy, with the chosen one as the class."""
    return F.cross_entropy(torch.stack([chosen, rejected], dim=1), torch.zeros(len(chosen), dtype=torch.long))


@pair_loss.mistake("log(sigmoid) underflows: at a margin of -1000 it is log 0, infinite; use logsigmoid")
def _(chosen, rejected):
    return -(chosen - rejected).sigmoid().log().mean()


@pair_loss.mistake("a small number inside the log hides the underflow, but the gradient is gone where it matters; use logsigmoid")
def _(chosen, rejected):
    return -((chosen - rejected).sigmoid() + 1e-8).log().mean()


@pair_loss.mistake("the margin is turned round: chosen - rejected should be large")
def _(chosen, rejected):
    return -F.logsigmoid(rejected - chosen).mean()


@pair_loss.mistake("the minus sign is missing: an optimiser goes down, and would make the chosen answer worse")
def _(chosen, rejected):
    return F.logsigmoid(chosen - rejected).mean()


@pair_loss.mistake("this is the probability of being wrong; take minus the log-probability of being right")
def _(chosen, rejected):
    return (rejected - chosen).sigmoid().mean()


@pair_loss.mistake("this is the sum over the pairs; take the mean")
def _(chosen, rejected):
    return -F.logsigmoid(chosen - rejected).sum()


@pair_loss.mistake("the margins were averaged before the loss, so a good pair hides a bad one: the mean comes last")
def _(chosen, rejected):
    return -F.logsigmoid((chosen - rejected).mean())


@pair_loss.mistake("this is a hinge loss, which stops learning at a margin of 1; Bradley-Terry is -log sigmoid(margin)")
def _(chosen, rejected):
    return (1 - (chosen - rejected)).clamp(min=0).mean()


# ----------------------------------------------------------------------------------------- 6.9

ranked_loss = Exercise("6.9", "ranked_loss")


@ranked_loss.inputs
def _(generator):
    yield {"rewards": torch.tensor([[1.0, 0.0]])}
    yield {"rewards": torch.tensor([[2.0, 1.0, 0.0]])}
    for rows, count in ((2, 3), (4, 5)):
        yield {"rewards": 2 * torch.randn(rows, count, generator=generator)}
    yield {"rewards": torch.tensor([[-500.0, 0.0, 500.0]])}


@ranked_loss.call
def _(function, rewards):
    """The loss, and its gradient."""
    rewards = rewards.clone().requires_grad_()
    loss = function(rewards)
    loss.backward()
    return {"loss": loss, "gradient": rewards.grad}


@ranked_loss.oracle
def _(rewards):
    losses = []
    for row in rewards:
        for better in range(len(row)):
            for worse in range(better + 1, len(row)):
                losses.append(F.softplus(row[worse] - row[better]))
    return torch.stack(losses).mean()


def pairs(rewards, offset=1, log=F.logsigmoid):
    """-log sigmoid of the margins of all pairs at least `offset` places apart: (N, pairs)."""
    better, worse = torch.triu_indices(rewards.shape[1], rewards.shape[1], offset=offset)
    return -log(rewards[:, better] - rewards[:, worse])


@ranked_loss.mistake("divided by the number of pairs twice: a mean over the pairs is divided already")
def _(rewards):
    losses = pairs(rewards)
    return losses.mean() / losses.shape[1]


@ranked_loss.mistake(
    "the losses of a ranking's pairs are added up: average over its K (K - 1) / 2 pairs, or long rankings weigh more"
)
def _(rewards):
    return pairs(rewards).sum(1).mean()


@ranked_loss.mistake("only neighbours are compared; every better answer is compared with every worse one")
def _(rewards):
    return -F.logsigmoid(rewards[:, :-1] - rewards[:, 1:]).mean()


@ranked_loss.mistake("only the best answer is compared with the others; the others are ranked among themselves too")
def _(rewards):
    return -F.logsigmoid(rewards[:, :1] - rewards[:, 1:]).mean()


@ranked_loss.mistake("answers are compared with themselves: those pairs add log 2 and teach nothing, start at offset=1")
def _(rewards):
    return pairs(rewards, offset=0).mean()


@ranked_loss.mistake("both directions of each pair are in it, so it pushes every margin to 0: only better against worse")
def _(rewards):
    return (pairs(rewards).mean() + pairs(rewards.flip(1)).mean()) / 2


@ranked_loss.mistake("the order is turned round: the best answer stands first")
def _(rewards):
    return pairs(rewards.flip(1)).mean()


@ranked_loss.mistake("log(sigmoid) underflows: at a margin of -1000 it is log 0, infinite; use logsigmoid")
def _(rewards):
    return pairs(rewards, log=lambda margin: margin.sigmoid().log()).mean()


@ranked_loss.mistake("the sum over the rankings is not divided by their number: take the mean over the batch too")
def _(rewards):
    return pairs(rewards).mean(1).sum()
