"""What goes wrong in RLHF code, and how it is seen: causes by name, and symptoms that lead to them. A page to keep open."""

from typing import NamedTuple

CAUSES = {
    "nothing": "nothing is wrong: this is what learning looks like",
    "clip-before-backward": "gradients are clipped before `backward` has made any",
    "gradients-add-up": "gradients are not set to zero between steps",
    "sign": "a sign is turned: of the loss, or of the advantages",
    "frozen-head": "a layer that starts at random is frozen",
    "dropout": "dropout is on where log-probabilities or rewards are compared",
    "no-mask": "sampling does without the causal mask of training",
    "padding-learnt": "padding is among the labels of the loss",
    "padding-pooled": "padding is averaged into the score of a text",
    "padding-valued": "the critic's values of padding flow into advantages and returns",
    "no-end": "no text that is learnt from has an end token",
    "leak": "rows of the training set are in the test set",
    "log-of-sigmoid": "log(sigmoid(x)) in two steps: for large margins the sigmoid is 0, and its log infinite",
    "divided-twice": "the loss is divided by the number of pairs twice",
    "one-place": "the judge sees the candidate always in the same place",
    "few-judged": "answers that the judge does not settle are dropped",
    "one-step": "a rollout serves one step: old and new policy are the same",
    "old-recomputed": "the old log-probabilities are computed anew in every step",
    "other-temperature": "what is sampled at one temperature is scored at another",
    "batch-normalised": "rewards are normalised by the batch that they are in",
    "kl-upside-down": "the KL estimator has its ratio upside down",
    "kl-unpaid": "the KL divergence is measured, and nobody pays for it",
    "kl-of-ratio": "what is called KL is a mean of ratios, without the logarithm",
    "kl-of-another": "the controller is shown the KL to the last rollout's policy, not to the reference",
    "score-misplaced": "the score is paid a token too early, so the end of a text earns nothing",
    "time-out": "an episode that was cut by the clock is taken for one that ended",
}


class Symptom(NamedTuple):
    """What is seen; the `causes` (names in CAUSES) that it points to; the number of the first minute; the test for ever."""

    seen: str
    causes: tuple
    number: str
    test: str


SYMPTOMS = [
    Symptom(
        "the reward is flat, at 0",
        ("batch-normalised", "sign"),
        "the mean of the first ten rewards that are logged: 0.000 every time is a normalisation, not a policy that fails",
        "rewards of a second batch, one higher throughout, have a mean that is higher too",
    ),
    Symptom(
        "the KL is negative, beyond the noise",
        ("kl-of-ratio", "other-temperature", "dropout"),
        "the KL on the first minibatch: policy and reference are one, so it is 0 to the last digit",
        "a policy compared with itself has KL 0; with dropout on, or at another temperature, it has not",
    ),
    Symptom(
        "the KL explodes at once",
        ("kl-upside-down", "kl-unpaid", "padding-learnt"),
        "the estimate beside the exact sum over the vocabulary, on one batch",
        "on two distributions over three tokens the mean of the estimator over all tokens is their KL: .20078 for "
        "[.7, .2, .1] against [.4, .3, .3]",
    ),
    Symptom(
        "the KL grows slowly, and for ever",
        ("kl-unpaid", "kl-of-another"),
        "beta beside the KL: a controller that sees too little KL lets beta go towards 0",
        "a controller that is shown three times its target raises beta",
    ),
    Symptom(
        "the clip fraction is 0",
        ("one-step", "old-recomputed"),
        "the largest distance of a ratio from 1 in the last step of a rollout: 0 to the last digit",
        "after two steps on one rollout the ratio is not 1",
    ),
    Symptom(
        "passes over a rollout are never stopped early",
        ("kl-of-ratio", "old-recomputed"),
        "the approximate KL in the second pass: it must be above 0",
        "for log-ratios of 0.1 the approximate KL is 0.005 (0.1 squared, halved), not -1.1",
    ),
    Symptom(
        "the reward rises, and all samples are the same",
        ("kl-unpaid",),
        "distinct samples in a batch of 64, beside the reward",
        "the reward that is learnt from falls when the reference gives a sample a lower probability",
    ),
    Symptom(
        "a good reward, or a good loss, with worse text",
        ("no-mask", "kl-unpaid", "other-temperature"),
        "the loss of the model on its own samples, beside that on texts: far above it, sampling is another model",
        "the logits of the sampling step are those of training at the same place, to 1e-5",
    ),
    Symptom(
        "texts never end",
        ("no-end", "score-misplaced", "padding-learnt"),
        "the share of samples that were cut at the longest length, and the probability of the end token",
        "the last label that counts in every text is the end token; the reward of a text stands at its end token",
    ),
    Symptom(
        "texts become short, and the reward falls",
        ("padding-valued", "sign"),
        "the largest value beside the highest reward that there is",
        "values of padding, set to 1000, change no advantage and no return",
    ),
    Symptom(
        "the value loss grows",
        ("padding-valued", "time-out", "gradients-add-up"),
        "the mean value beside the mean return: no value lies above the highest return",
        "GAE with gamma 1, lambda 0.95, r = [0, 0, 1], V = [.1, .2, .3] gives [.82675, .765, .7], with padding behind it too",
    ),
    Symptom(
        "the loss stays near ln 2",
        ("frozen-head", "padding-pooled"),
        "the gradient's norm by layer, and which layers move in ten steps",
        "enough steps on one batch of eight pairs bring the loss under 0.1",
    ),
    Symptom(
        "the first loss is not ln 2",
        ("divided-twice", "dropout"),
        "the loss before the first step, of a model whose scores are 0 or whose policy is the reference: 0.693",
        "the loss of equal scores is ln 2 for any number of answers",
    ),
    Symptom(
        "the loss of pairs falls, and the accuracy with it",
        ("sign",),
        "the first loss, 0.693 and not -0.693; and the mean margin after ten steps, which is above 0",
        "a step on one batch of pairs raises its mean margin",
    ),
    Symptom(
        "the loss is not a number",
        ("log-of-sigmoid", "clip-before-backward"),
        "the largest margin of a batch",
        "the loss and its gradient are finite for margins of -1000 and 1000",
    ),
    Symptom(
        "the loss has spikes, or the accuracy jumps",
        ("clip-before-backward", "gradients-add-up"),
        "the gradient's norm as the clipping returns it: 0.0 means that there was nothing to clip",
        "after the clipping the norm of `weight.grad` is at most the limit",
    ),
    Symptom(
        "the loss lies below what is possible",
        ("padding-learnt", "leak"),
        "the loss beside the entropy of the language, or beside a bigram model's",
        "more padding behind the same texts leaves the loss as it is",
    ),
    Symptom(
        "the accuracies on short and on long texts move against each other",
        ("padding-pooled",),
        "the accuracy on pairs whose better text is the shorter one",
        "more padding behind the same texts leaves their scores as they are",
    ),
    Symptom(
        "the test is nearly as good as training, and better than anybody could be",
        ("leak",),
        "the number of test rows that are in the training set",
        "the two sets share no row, with any seed",
    ),
    Symptom(
        "training is far above validation, and a third set agrees with validation",
        ("nothing",),
        "the accuracy on a third set that chose nothing, and the number of rows that are in two sets: 0",
        "more data narrows the gap",
    ),
    Symptom(
        "win rates that are too good",
        ("one-place", "few-judged"),
        "the win rate of a model against itself: 50 %",
        "each pair is shown in both orders, and as many verdicts are counted as pairs",
    ),
]


def causes():
    """The causes by name, as Markdown text."""
    return "\n".join(["| name | cause |", "|---|---|", *(f"| `{name}` | {cause} |" for name, cause in CAUSES.items())])


def table():
    """Symptoms, what they point to, the number that gives them away, and the test that catches them, as Markdown text."""
    rows = ["| seen | look for | the number of the first minute | the test for ever |", "|---|---|---|---|"]
    for one in SYMPTOMS:
        rows.append(f"| {one.seen} | {'; '.join(CAUSES[name] for name in one.causes)} | {one.number} | {one.test} |")
    return "\n".join(rows)
