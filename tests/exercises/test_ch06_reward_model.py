"""Chapter 06's checks: answers written another way pass, and the published mistakes get their names."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from rlhf_lib import exercises, preference
from rlhf_lib.exercises import verdict
from rlhf_lib.models.layers import last_real, pad
from rlhf_lib.trainers import reward


def last_token(x, mask):
    places = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return x[torch.arange(len(x)), places]


def mean_pool(hidden, mask):
    weights = mask.float() / mask.float().sum(1, keepdim=True)
    return torch.einsum("bt,btc->bc", weights, hidden)


def soft_label_loss(logits, targets, mask):
    z = last_token(logits, mask)
    return -(targets * F.logsigmoid(z) + (1 - targets) * F.logsigmoid(-z)).mean()


def label_token_reward(logits, mask, positive, negative):
    return F.logsigmoid(last_token(logits[..., positive], mask) - last_token(logits[..., negative], mask))


def clear_accuracy(logits, targets):
    return (logits * (targets - 0.5) > 0).sum() / (targets != 0.5).sum()


def calibration_error(logits, targets, bins):
    clear = targets != 0.5
    confidence = logits[clear].abs().sigmoid()
    right = ((logits > 0) == (targets == 1))[clear].float()
    place = (confidence * bins).floor().long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).scatter_add(0, place, right - confidence)
    return gaps.abs().sum() / clear.sum()


@torch.no_grad()
def score_rows(model, rows, batch):
    model.eval()
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    scores = torch.zeros(len(rows))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        tokens, mask = pad([rows[place] for place in places], "left")  # on the left: then the last column is the last real token
        scores[places] = model(tokens, mask)[:, -1]
    return scores


def pair_loss(chosen, rejected):
    return F.softplus(rejected - chosen).mean()


def ranked_loss(rewards):
    margins = rewards[:, :, None] - rewards[:, None, :]  # (N, K, K): row better than column above the diagonal
    above = torch.ones_like(margins[0], dtype=torch.bool).triu(1)
    return F.softplus(-margins[:, above]).mean()


ALTERNATIVES = {
    one.__name__: one
    for one in (
        last_token, mean_pool, soft_label_loss, label_token_reward, clear_accuracy, calibration_error, score_rows, pair_loss,
        ranked_loss,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERNATIVES)
@pytest.mark.parametrize("seed", [0, 5])
def test_every_correct_answer_passes(name, seed):
    found = verdict(name, ALTERNATIVES[name], seed)
    assert found.passed, found.message


@pytest.mark.parametrize(
    "name, function",
    [
        ("last_token", lambda x, mask: last_real(x, mask)),
        ("soft_label_loss", lambda logits, targets, mask: reward.sentiment_loss(logits, targets, mask)),
        ("pair_loss", lambda chosen, rejected: preference.bradley_terry_loss(chosen, rejected)),
        ("ranked_loss", lambda rewards: preference.ranking_loss(rewards)),
    ],
)
def test_the_library_s_own_kernels_pass(name, function):
    assert verdict(name, function).passed


def test_a_mean_over_padding_gets_its_name():
    found = verdict("mean_pool", lambda hidden, mask: hidden.sum(1) / hidden.shape[1])
    assert "padding is part of the mean" in found.message
    assert found.arguments["hidden"].shape == (1, 3, 1)  # the worked example of the card already shows it


def test_dividing_by_the_number_of_pairs_twice_gets_its_name_and_three_answers_show_it():
    def learner(rewards):
        count = rewards.shape[1] * (rewards.shape[1] - 1) / 2
        return ranked_loss(rewards) / count

    found = verdict("ranked_loss", learner)
    assert "number of pairs twice" in found.message
    assert found.arguments["rewards"].shape == (1, 3)  # with two answers there is one pair, and dividing by it is harmless


def test_log_of_sigmoid_gets_its_name_and_only_a_wide_margin_shows_it():
    found = verdict("pair_loss", lambda chosen, rejected: -torch.log(torch.sigmoid(chosen - rejected)).mean())
    assert "underflows" in found.message
    assert (found.arguments["chosen"] - found.arguments["rejected"]).abs().max() == 1000


def test_a_loss_without_a_gradient_does_not_pass():
    assert not verdict("pair_loss", lambda chosen, rejected: pair_loss(chosen.detach(), rejected)).passed


def test_scoring_with_dropout_on_gets_its_name():
    @torch.no_grad()
    def learner(model, rows, batch):
        groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        return torch.cat([model.logits(*pad(group, "right")) for group in groups])

    assert "dropout is still on" in verdict("score_rows", learner).message


def test_the_oracles_of_accuracy_and_calibration_agree_with_the_library_s_test(monkeypatch):
    logits = torch.randn(200, generator=torch.Generator().manual_seed(3))
    targets = torch.randint(3, (200,), generator=torch.Generator().manual_seed(4)) / 2
    labels = [SimpleNamespace(text="", target=target) for target in targets.tolist()]
    monkeypatch.setattr(reward, "score_texts", lambda model, tokenizer, texts: logits)
    figures = reward.evaluate(None, None, labels)
    calibration = exercises.find("calibration_error").right(logits, targets, 10).item()
    assert abs(calibration - figures["calibration_error"]) < 1e-5 and calibration > 0.05
    assert abs(exercises.find("clear_accuracy").right(logits, targets).item() - figures["accuracy"]) < 1e-6


def test_scoring_one_row_at_a_time_or_all_at_once_is_no_batch():
    def in_batches_of(size):
        def learner(model, rows, batch):
            model.eval()
            groups = [rows[start : start + (size or len(rows))] for start in range(0, len(rows), size or len(rows))]
            with torch.no_grad():
                return torch.cat([model.logits(*pad(group, "right")) for group in groups])

        return learner

    assert "scored by itself" in verdict("score_rows", in_batches_of(1)).mistake
    assert "scored at once" in verdict("score_rows", in_batches_of(None)).mistake


def test_a_model_may_be_left_in_either_mode_but_not_with_other_weights_or_settings():
    def back_in_training(model, rows, batch):
        scores = score_rows(model, rows, batch)
        model.train()
        return scores

    def without_dropout_for_ever(model, rows, batch):
        model.config.dropout = 0.0
        return score_rows(model, rows, batch)

    def with_other_weights(model, rows, batch):
        scores = score_rows(model, rows, batch)
        with torch.no_grad():
            model.score.weight.add_(1.0)
        return scores

    assert verdict("score_rows", back_in_training).passed
    assert not verdict("score_rows", without_dropout_for_ever).passed
    assert not verdict("score_rows", with_other_weights).passed


@pytest.mark.parametrize("name", ["clear_accuracy", "calibration_error"])
def test_a_python_number_is_no_scalar_tensor(name):
    assert "return a scalar tensor" in verdict(name, lambda **given: ALTERNATIVES[name](**given).item()).mistake


def test_ten_bins_written_in_do_not_pass():
    found = verdict("calibration_error", lambda logits, targets, bins: calibration_error(logits, targets, 10))
    assert not found.passed and found.arguments["bins"] != 10


def fixed_at(most):
    def learner(logits, targets, mask):
        return F.binary_cross_entropy_with_logits(last_token(logits, mask).clamp(-most, most), targets)

    return learner


def by_probabilities(logits, targets, mask):
    return F.binary_cross_entropy(last_token(logits, mask).sigmoid(), targets)


def test_log_odds_that_are_cut_off_are_told_from_a_sigmoid_that_rounds():
    for most in (20, 100):  # PyTorch's operator on probabilities cuts its logarithms off at -100, too
        assert "cut off" in verdict("soft_label_loss", fixed_at(most)).mistake
    assert "sigmoid rounds" in verdict("soft_label_loss", by_probabilities).mistake


def exp_of_log_odds(logits, targets, mask):
    z = last_token(logits, mask)
    return ((1 + z.exp()).log() - targets * z).mean()


def two_classes(logits, targets, mask):
    return F.softplus(-(2 * targets - 1) * last_token(logits, mask)).mean()


@torch.no_grad()
def one_too_many(model, rows, batch):
    model.eval()
    parts = []
    for start in range(0, len(rows), batch):
        tokens, mask = pad(rows[start : start + batch], "right")
        parts.append(model.logits(tokens, torch.arange(tokens.shape[1]) <= mask.sum(1, keepdim=True)))
    return torch.cat(parts)


def empty_bins(logits, targets, bins):
    clear = targets != 0.5
    confidence, right = logits[clear].abs().sigmoid(), ((logits > 0) == (targets == 1))[clear].float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [(right[place == one].mean() - confidence[place == one].mean()).abs() * (place == one).sum() for one in range(bins)]
    return sum(gaps) / len(right)


def into_a_buffer(x, mask):
    values = torch.zeros(len(x))
    for row in range(len(x)):
        values[row] = x[row][mask[row]][-1]
    return values


def by_index(model, rows, batch):
    scores, order = torch.zeros(len(rows)), sorted(rows, key=len)
    for row, score in zip(order, score_rows(model, order, batch)):
        scores[rows.index(row)] = score
    return scores


@torch.no_grad()
def on_the_left(model, rows, batch):
    model.eval()
    return torch.cat([model.logits(*pad(rows[start : start + batch], "left")) for start in range(0, len(rows), batch)])


def whole_batches(model, rows, batch):
    scores = torch.zeros(len(rows))
    for start in range(0, len(rows) // batch * batch, batch):
        scores[start : start + batch] = score_rows(model, rows[start : start + batch], batch)
    return scores


@pytest.mark.parametrize(
    "name, function, says",
    [
        ("last_token", lambda x, mask: torch.where(mask, torch.arange(x.shape[1]), 0).amax(1), "this is the place"),
        ("last_token", into_a_buffer, "goes through float32"),
        ("score_rows", by_index, "of two equal rows"),
        ("score_rows", whole_batches, "smaller batch is left out"),
        ("score_rows", on_the_left, "wants them on the right"),
        ("clear_accuracy", lambda logits, targets: (logits[targets != 0.5] > 0).float().mean(), "called positive"),
        ("clear_accuracy", lambda logits, targets: sum(clear_accuracy(logits[some], targets[some]) for some in
                                                       (targets == 0, targets == 1)) / 2, "the mean of two accuracies"),
        ("clear_accuracy", lambda logits, targets: ((logits * targets)[targets != 0.5] > 0).float().mean(), "never right"),
        ("mean_pool", lambda hidden, mask: (hidden * mask[..., None]).sum(1) / mask.sum(1), "need a last dimension"),
        ("soft_label_loss", exp_of_log_odds, "exp overflows"),
        ("soft_label_loss", two_classes, "2 t - 1 is 0"),
        ("score_rows", one_too_many, "a place too long"),
        ("clear_accuracy", lambda logits, targets: (logits > 0)[targets.bool()].eq(targets[targets.bool()] > 0.5).float().mean(),
         "targets of 0 were left out"),
        ("calibration_error", empty_bins, "empty bin"),
    ],
)  # fmt: skip
def test_frequent_mistakes_have_their_names(name, function, says):
    assert says in verdict(name, function).mistake


def test_scores_in_a_list_are_told_from_a_tensor():
    assert "come as a list" in verdict("score_rows", lambda model, rows, batch: score_rows(model, rows, batch).tolist()).message
