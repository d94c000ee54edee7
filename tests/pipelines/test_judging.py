import copy
import math

import pytest
import torch
from torch import nn

from rlhf_lib import devices
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.models.lora import Branch
from rlhf_lib.pairwise import Record, WinRate
from rlhf_lib.pipelines import inputs, judging
from rlhf_lib.tokenization import ChatTokenizer
from rlhf_lib.trainers import preference, rollouts
from rlhf_lib.trainers.ppo_critic import PPOCriticConfig

TOKENIZER = ChatTokenizer.train(["why is the sky blue, and who says so?"], 300)
PROMPTS = ["why is it", "who says so, and why is the sky so blue?", "say", "is it"]


def branch(base, seed, scalar=False):
    """A branch whose adapters and head are drawn, so that it differs from its base."""
    torch.manual_seed(seed)
    new = Branch(base, 1, 4, 8, scalar=scalar)
    for parameter in new.parameters():
        nn.init.normal_(parameter, std=0.2)
    return new.eval()


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    config = LlamaConfig(TOKENIZER.vocab_size, context=160, layers=2, heads=2, kv_heads=1, width=32, hidden=64)
    model = Llama(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """As on hardware without bfloat16."""
    for module in (devices, rollouts):
        monkeypatch.setattr(module, "has_bf16", lambda device: False)


def drawn(model, count=1, temperature=1.0, seed=3):
    config = PPOCriticConfig(max_new_tokens=12, temperature=temperature)
    return judging.draw(model, TOKENIZER, PROMPTS, config, torch.Generator().manual_seed(seed), count)


# ----------------------------------------------------------------------------------------- answers


def test_answers_to_one_prompt_stand_together_and_differ(base):
    rollout = drawn(base, count=3)
    asked = [inputs.prompt_tokens(TOKENIZER, prompt) for prompt in PROMPTS]
    assert rollout.prompts == [tokens for tokens in asked for _ in range(3)]
    assert rollout.tokens.shape == (12, 12)
    assert len({tuple(row) for row in rollout.tokens.tolist()}) == 12


def test_the_temperature_is_that_of_the_settings(base):
    cold = [drawn(base, temperature=1e-3, seed=seed).tokens for seed in (1, 2)]
    assert torch.equal(*cold)
    assert not torch.equal(drawn(base, seed=1).tokens, drawn(base, seed=2).tokens)


@pytest.mark.parametrize("batch", [3, 64])
def test_scores_are_those_of_the_whole_rows(base, monkeypatch, batch):
    monkeypatch.setattr(judging, "BATCH", batch)
    model, rollout = branch(base, 1, scalar=True), drawn(base, count=2)
    whole = [prompt + tokens[mask].tolist() for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens, rollout.mask)]
    torch.testing.assert_close(judging.score(model, rollout), preference.score(model, whole), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_kl_is_the_sum_over_the_answers_tokens(base, monkeypatch, temperature):
    monkeypatch.setattr(judging, "BATCH", 3)
    reference, policy = branch(base, 2), branch(base, 3)
    rollout = drawn(policy, count=2, temperature=temperature)
    expected = []
    for prompt, tokens, mask in zip(rollout.prompts, rollout.tokens, rollout.mask):
        whole = torch.tensor([prompt + tokens[mask].tolist()])
        ours, theirs = (
            (model(whole)[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1).gather(1, tokens[mask][:, None]).sum()
            for model in (policy, reference)
        )
        expected.append((ours - theirs).item())
    found = judging.kl_to(reference, policy, rollout, temperature)
    assert found.tolist() == pytest.approx(expected, abs=2e-3)
    assert max(map(abs, expected)) > 0.5
    assert judging.kl_to(policy, policy, rollout, temperature).abs().max() == 0


def test_rows_say_what_was_answered_whether_it_ended_and_what_it_is_worth(base):
    end = TOKENIZER.end_token
    tokens = torch.tensor([[5, end, 0], [end, 0, 0], [7, 8, 9]])
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    rollout = rollouts.Rollout([[1]] * 3, tokens, torch.zeros(3, 3), mask, ["a", "", "b c"])
    rows = judging.rows_of("sft", PROMPTS[:3], rollout, torch.tensor([0.5, -1.0, 2.0]), end)
    assert rows == [
        {"side": "sft", "prompt": PROMPTS[0], "answer": "a", "ended": True, "tokens": 2, "reward": 0.5},
        {"side": "sft", "prompt": PROMPTS[1], "answer": "", "ended": True, "tokens": 1, "reward": -1.0},
        {"side": "sft", "prompt": PROMPTS[2], "answer": "b c", "ended": False, "tokens": 3, "reward": 2.0},
    ]
    with_kl = judging.rows_of("sft", PROMPTS[:3], rollout, torch.zeros(3), end, torch.tensor([0.25, 0.5, 0.75]))
    assert [row["kl"] for row in with_kl] == [0.25, 0.5, 0.75]
    # a token 0 behind the end is no end, even where the end token is 0
    zero = rollouts.Rollout([[1]], torch.tensor([[5, 0]]), torch.zeros(1, 2), torch.tensor([[True, False]]), ["a"])
    assert judging.rows_of("sft", PROMPTS[:1], zero, torch.zeros(1), 0)[0]["ended"] is False


# ----------------------------------------------------------------------------------------- verdicts


def test_a_judge_reads_a_conversation_with_its_speakers():
    talk = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "No, why?"},
    ]
    assert judging.as_text(talk) == "User: Why?\n\nAssistant: So.\n\nUser: No, why?"
    assert judging.as_text("Why?") == "Why?"


ANSWERS = {  # two prompts, an answer a side
    "start": ("one two three four", "one two three four"),
    "sft": ("one two", "two three"),
    "policy": ("one two", "a b a b"),
    "best_of": ("c", "d e"),
}


def made_rows():
    rows = []
    for side in judging.SIDES:
        for number, answer in enumerate(ANSWERS[side]):
            row = {"side": side, "prompt": f"p{number}", "answer": answer, "ended": number == 0, "tokens": 3 + number}
            row["reward"] = float(len(answer))
            rows.append({**row, "kl": 2.0 + 4 * number} if side == "policy" else row)
    return rows


def test_every_pair_of_sides_is_asked_in_both_orders():
    asked = []

    def judge(prompts, first, second):
        asked.append((list(prompts), list(first), list(second)))
        return ["first"] * len(prompts)

    records = judging.compare(judge, made_rows())
    assert list(records) == list(judging.PAIRS)
    for (ours, theirs), (prompts, first, second) in zip(judging.PAIRS, asked):
        assert prompts == ["p0", "p1", "p0", "p1"]
        assert first == [*ANSWERS[ours], *ANSWERS[theirs]] and second == [*ANSWERS[theirs], *ANSWERS[ours]]
        assert records[ours, theirs] == [
            Record(f"p{n}", ANSWERS[ours][n], ANSWERS[theirs][n], "first", "first") for n in range(2)
        ]


def test_statistics_by_hand():
    """A judge of length: the shorter answer wins, equal lengths tie."""

    def judge(prompts, first, second):
        lengths = [(len(a.split()), len(b.split())) for a, b in zip(first, second)]
        return ["first" if a < b else "second" if b < a else "tie" for a, b in lengths]

    rows = made_rows()
    stats = judging.statistics(rows, judging.compare(judge, rows))
    assert stats["win_rate_policy"] == 0.75  # 2 words against 4, 4 against 4
    assert stats["win_rate_sft"] == 1
    assert stats["win_rate_policy_over_sft"] == 0.25  # 2 against 2, 4 against 2
    assert stats["win_rate_best_of_over_sft"] == 0.75  # 1 against 2, 2 against 2
    assert stats["win_rate_sft_interval"] == pytest.approx([0.75 - 1.96 * math.sqrt((2.75 / 4 - 0.75**2) / 4), 1.0])
    assert stats["longer_win_rate"] == 0 and stats["position_bias"] == 0 and stats["consistency"] == 1
    assert stats["length_ratio"] == pytest.approx(6 / 4)
    assert stats["evaluated_prompts"] == 2 and stats["refused"] == 0
    assert stats["kl_nats"] == 4 and stats["kl_nats_error"] == pytest.approx(math.sqrt(8) / math.sqrt(2))
    assert stats["ended_share"] == 0.5
    assert stats["distinct_2_ratio"] == pytest.approx((3 / 4) / (3 / 6))  # "one two", "a b", "b a" of 4; 3 of 6
    assert stats["answers"]["policy"] == {
        "words": 3.0, "tokens": 3.5, "ended_share": 0.5, "distinct_2": 0.75, "reward": 7.0,
    }  # fmt: skip
    assert set(stats["answers"]) == set(judging.SIDES)
    assert stats["win_rate_sft_length_controlled"] is stats["win_rate_sft_length_controlled_interval"] is None  # always shorter


def test_the_sides_have_their_names_and_their_direction():
    """Where one side wins everything it meets, the rates say which."""
    for winner, expected in (
        ("policy", {"win_rate_policy": 1, "win_rate_policy_over_sft": 1}),
        ("sft", {"win_rate_sft": 1, "win_rate_policy_over_sft": 0, "win_rate_best_of_over_sft": 0}),
        ("start", {"win_rate_policy": 0, "win_rate_sft": 0}),
        ("best_of", {"win_rate_best_of_over_sft": 1}),
    ):
        rows = [{**row, "answer": f"{row['side']} {row['answer']}"} for row in made_rows()]
        judge = lambda prompts, first, second, best=winner: [  # noqa: E731
            "first" if a.startswith(best) else "second" if b.startswith(best) else "tie" for a, b in zip(first, second)
        ]
        stats = judging.statistics(rows, judging.compare(judge, rows))
        rates = {name: value for name, value in stats.items() if name.startswith("win_rate") and not name.endswith(("al", "ed"))}
        assert rates == {name: expected.get(name, 0.5) for name in rates} and len(rates) == 4


def test_one_prompt_has_no_error_and_answers_of_a_word_no_diversity():
    rows = [row for row in made_rows() if row["prompt"] == "p0"]
    rows = [{**row, "answer": row["side"]} for row in rows]
    stats = judging.statistics(rows, judging.compare(lambda prompts, *_: ["tie"] * len(prompts), rows))
    assert stats["kl_nats_error"] is None and stats["distinct_2_ratio"] is None
    assert stats["longer_win_rate"] is None  # none is longer


def test_a_pair_of_sides_of_which_every_verdict_was_refused_has_no_numbers_and_the_others_keep_theirs():
    rows = made_rows()
    records = judging.compare(lambda prompts, *_: ["tie"] * len(prompts), rows)
    refused = {pair: [one._replace(ours_second="refused") for one in its] for pair, its in records.items()}
    stats = judging.statistics(rows, {**records, ("policy", "sft"): refused["policy", "sft"]})
    names = ("win_rate_policy_over_sft", "win_rate_policy_over_sft_length_controlled")
    assert all(stats[name] is stats[f"{name}_interval"] is None for name in names) and stats["length_ratio"] is None
    assert (stats["win_rate_policy"], stats["position_bias"], stats["refused"]) == (0.5, 0, 2)
    nothing = judging.statistics(rows, refused)
    assert nothing["win_rate_policy"] is nothing["consistency"] is nothing["position_bias"] is None
    assert (nothing["refused"], nothing["kl_nats"]) == (8, 4)


def test_answers_and_verdicts_are_left_as_they_are():
    rows = made_rows()
    before = copy.deepcopy(rows)
    records = judging.compare(lambda prompts, *_: ["tie"] * len(prompts), rows)
    judging.statistics(rows, records)
    assert rows == before


def test_a_number_and_its_interval_are_two_entries():
    assert judging.with_interval("x", WinRate(0.5, 0.25, 0.75)) == {"x": 0.5, "x_interval": [0.25, 0.75]}
    assert judging.with_interval("x", None) == {"x": None, "x_interval": None}
