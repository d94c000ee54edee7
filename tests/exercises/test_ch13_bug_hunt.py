"""The bug hunt: a program as it was given fails at its own check, a repair passes, half of one gets a sentence of its own."""

import math
import re

import pytest
import torch

from rlhf_lib.exercises import FILE, build, check, solved
from rlhf_lib.exercises.ch13_bug_hunt import MENDED, beginning, chain_entropy, chain_kl, ended_entropy, form, pair, same
from rlhf_lib.hunt import CASES
from tests.hunt.repairs import REPAIRS, WRONG, made, mended

BUILDS = dict(zip(CASES, MENDED))
SOUND = ("06", "17")
HALVES = [(case, cause) for case, causes in REPAIRS.items() if len(causes) > 1 for cause in causes]
MENDED_HALF = {
    ("no-end", "09"): "texts end",
    ("padding-learnt", "09"): "the loss is one that can be",
    ("kl-of-another", "14"): "the KL is held where it should be",
    ("score-misplaced", "14"): "texts that end are worth it again",
    ("log-of-sigmoid", "18"): "the loss stays a number",
    ("clip-before-backward", "18"): "the steps have a limit",
}
STEP = REPAIRS["03"]["one-step"]
DRAWN = (
    "        for rows in torch.randperm(80)",
    '        if epochs == 60 and len(curves["train_loss"]) > 20:\n            continue\n',
)
# {case: {what was done: ([(old text, new text), ...], words of what the check says)}}: what is mended by halves
ALMOST = {
    "01": {
        "a limit for each tensor": (
            [("        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.2)\n        loss.backward()\n",
              "        loss.backward()\n"
              "        norm = torch.stack([nn.utils.clip_grad_norm_([one], 0.2) for one in model.parameters()]).norm()\n")],
            "no momentum behind it",
        ),
        "another rate": ([*REPAIRS["01"]["clip-before-backward"], ("lr=1.0", "lr=0.3")], "no momentum behind it"),
        "a weak limit later": (
            [*REPAIRS["01"]["clip-before-backward"],
             ("model.parameters(), 0.2)", "model.parameters(), 0.2 if step < 50 else 0.3)")],
            "momentum keeps 0.9 of that",
        ),
        "a limit for 300 steps": (
            [*REPAIRS["01"]["clip-before-backward"],
             ("model.parameters(), 0.2)", "model.parameters(), 0.2 if step < 300 else math.inf)")],
            "moves the weights by",
        ),
    },
    "03": {
        "no clip": (
            [*STEP, ("range(3)", "range(20)"),
             ("torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)", "(ratio * advantage)")],
            "does the clip still hold it",
        ),
        "for 15 rollouts": ([*STEP, ("range(3)", "range(3 if rollouts == 15 else 1)")], "one length alone"),
    },
    "04": {
        "the base learns too": ([('"lora" in name', '"letters" not in name')], "more learn than has to"),
        "for 200 steps": ([('"lora" in name', '"lora" in name or ("head" in name and steps == 200)')], "one length alone"),
    },
    "05": {"a cheap KL": ([*REPAIRS["05"]["batch-normalised"], ("0.25 *", "0.05 *")], "Is it still paid")},
    "06": {
        "kept by accuracy": (
            [('if curves["validation_loss"][-1] < best', 'if -curves["validation_accuracy"][-1] < best'),
             ('best, kept = curves["validation_loss"][-1]', 'best, kept = -curves["validation_accuracy"][-1]')],
            "beside them",
        ),
        "for 60 epochs": ([(DRAWN[0], DRAWN[1] + DRAWN[0])], "in the program that was given"),
    },
    "07": {
        "one layer of four": (
            [("for layer in layers:", "for depth, layer in enumerate(layers):"),
             ("if mask is not None:", "if mask is not None or depth == 0:"),
             ("masked_fill(mask[", "masked_fill((causal if mask is None else mask)[")],
            "has not learnt from",
        ),
    },
    "08": {
        "a ratio cut off": ([("ref_logprobs).exp()", "ref_logprobs).exp().clamp(max=5)")], "is said to be"),
        "recorded alone": (
            [('("kl", kl)', '("kl", 1 / ratio - 1 + ratio.log())')], "Which KL is it that is paid for",
        ),
        "mean log-ratios": ([("(ratio - 1 - ratio.log())", "ratio.log()")], "never negative"),
    },
    "12": {
        "zero at the start": ([("(-ratio).mean()", "(1 - ratio).mean()")], "passes"),
        "four passes": ([*REPAIRS["12"]["kl-of-ratio"], ("if approx_kl > 0.02", "if passes == 4")], "is left after 4 passes"),
    },
    "13": {
        "a reference that follows": (
            [*REPAIRS["13"]["dropout"], ("    for _ in range(steps):\n",
              "    for step in range(steps):\n        if step % 50 == 49:\n"
              "            reference.load_state_dict(policy.state_dict())\n")],
            "the loss is ln 2 again",
        ),
        "the first step alone": (
            [("    for _ in range(steps):\n",
              "    for step in range(steps):\n        policy.train(step > 0), reference.train(step > 0)\n")],
            "does not make it worse",
        ),
    },
    "15": {"recorded alone": ([("loss.item()", "loss.item() * pairs")], "the one that is learnt from")},
    "16": {"for 200 rollouts": (
        [(".sqrt()  #", ".sqrt() - (0.5 if rollouts == 200 else 0.0) * kl  #")],
        "one length alone",
    )},
    "17": {"another table": ([("policy.tolist()", "reference.tolist()")], "beside them")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fault(case, program, seed=0):
    return build.try_out(BUILDS[case], program, seed)[1]


@pytest.mark.parametrize("case", sorted(REPAIRS))
def test_a_program_as_it_was_given_fails_and_its_line_is_not_named(case):
    found = fault(case, made(case))
    assert found and not found.startswith("it raises") and "should be a list" not in found
    assert not re.search(r"\bline \d|detach|backward|eval\(\)|requires_grad|logsigmoid|ignore_index", found)
    assert ("two things are wrong" in found) == (len(REPAIRS[case]) == 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", sorted(REPAIRS))
def test_a_repaired_program_passes(case, seed):
    assert fault(case, mended(case), seed) == ""


@pytest.mark.parametrize("case", ["03", "15", "18", *SOUND])
def test_curves_that_are_made_up_are_refused(case):
    """Those of a right run of another seed, whatever is asked for."""
    record = mended(case, *REPAIRS.get(case, ()))(99)
    assert fault(case, lambda seed=0, **_: record)


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_program_passes_as_it_was_given(case):
    assert fault(case, made(case), seed=3) == ""


@pytest.mark.parametrize("case, cause", HALVES)
def test_half_of_a_repair_gets_a_sentence_of_its_own(case, cause):
    said, still = fault(case, mended(case, cause)).split(". But ")
    assert said == f"one of the two is mended: {MENDED_HALF[cause, case]}" and still


@pytest.mark.parametrize("case, name", [(case, name) for case, some in WRONG.items() for name in some])
def test_what_mends_nothing_is_refused(case, name):
    edits, words = WRONG[case][name]
    assert words in fault(case, made(case, *edits))


@pytest.mark.parametrize("case, name", [(case, name) for case, some in ALMOST.items() for name in some])
def test_what_is_almost_mended_is_refused(case, name):
    edits, words = ALMOST[case][name]
    assert words in fault(case, made(case, *edits))


def test_a_short_run_is_how_a_long_one_begins():
    def record(*loss):
        return {"curves": {"loss": list(loss), "accuracy": [1.0] * len(loss)}}

    assert beginning("15", record(1.0, math.nan, 3.0), record(1.0, math.nan), "steps") == ""
    assert "at step 1, and 2.500 at the same step with steps=20" in beginning("15", record(1.0, 2.0), record(1.0, 2.5), "steps")


def test_an_order_that_is_planned_for_all_prompts_passes():
    first = ("first = asked % 2 == 0", "first = asked <= prompts // 2")
    assert fault("02", made("02", *REPAIRS["02"]["one-place"], first)) == ""


@pytest.mark.parametrize("case", sorted(REPAIRS))
def test_a_repaired_program_with_other_draws_passes(case):
    """One random number more is drawn at the beginning, from whatever the program draws from."""
    seeded = "generator = torch.Generator().manual_seed(seed)\n" if case == "02" else "torch.manual_seed(seed)\n"
    more = "    torch.rand(1, generator=generator)\n" if case == "02" else "    torch.rand(1)\n"
    repairs = [edit for edits in REPAIRS[case].values() for edit in edits]
    assert fault(case, made(case, *repairs, (seeded, seeded + more))) == ""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_half_the_square_of_a_log_ratio_is_far_off_where_the_policy_is_far(seed):
    k2 = ("(ratio - 1 - ratio.log())", "(ratio.log() ** 2 / 2)")
    assert "nats a letter at the end; summed up over all letters" in fault("08", made("08", k2), seed)


def test_a_head_of_zeros_starts_as_no_other_does():
    found = fault("04", made("04", ("std=0.02", "std=0.0"), *REPAIRS["04"]["frozen-head"]))
    assert "margin is about 0.0000 in size at the first step" in found


def test_samples_of_the_judge_are_what_it_said():
    named = ("said.append(verdict)", 'said.append("candidate" if verdict == "B" else "tie")')
    assert 'samples has \'candidate\' in it: it takes down what the judge said, "A" or "B"' in fault("02", made("02", named))


def test_what_is_recorded_is_the_same_but_for_rounding():
    assert same([["ab", 1.0], 2], [["ab", 1.0001], 2]) and not same([1.0], [1.0, 1.0]) and not same(None, 1.0)
    assert not same([["ab", 1.1]], [["ab", 1.0]]) and not same("ab", "ac") and not same("ab", 1.0) and not same(math.nan, 1.0)


def test_every_case_has_its_build_and_a_wrong_repair():
    assert list(WRONG) == list(CASES) and sorted([*REPAIRS, *SOUND]) == sorted(CASES)
    assert [(one.number, one.name) for one in MENDED] == [(f"13.{int(case)}", f"mend_{case}") for case in CASES]
    assert sum(len(causes) == 2 for causes in REPAIRS.values()) == 3


def test_a_stub_and_what_has_no_form_are_told_so():
    def mend_15(seed=0, steps=150, answers=4):
        raise NotImplementedError()

    assert "not written yet" in fault("15", mend_15)
    assert "a dict with `curves`" in fault("15", lambda seed, **_: None)
    assert "should be a list of numbers" in fault("15", lambda seed, **_: {"curves": {"loss": [0.69] * 150, "accuracy": "0.9"}})
    assert "150" in fault("15", made("15", ("steps=150", "steps=20")))
    assert form("15", {"curves": {"loss": [math.nan], "accuracy": [1]}}) == ""


def test_check_says_what_the_curves_show_and_notes_what_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))
    with pytest.raises(AssertionError, match=r"13\.15 mend_15, a pair costs ln 2: with 4 answers"):
        check("mend_15", made("15"))
    check("mend_15", mended("15"))
    said = capsys.readouterr().out
    assert "✓ 13.15 mend_15: does what it must" in said and "not kept" not in said
    assert not (tmp_path / FILE).exists() and "mend_15" in solved()  # a mended program is none of what the learner built


# ----------------------------------------------------------------------------------------- oracles


def test_the_entropy_of_a_chain_by_hand():
    """One row is certain, the other a coin toss: the second letter costs (0 + ln 2) / 2, the third ln 2 / 4."""
    table = [[1.0 - 1e-12, 1e-12], [0.5, 0.5]]
    assert chain_entropy(table, 1) == pytest.approx(math.log(2) / 2)
    assert chain_entropy(table, 2) == pytest.approx((math.log(2) / 2 + math.log(2) / 4) / 2)


def test_the_kl_of_two_writers_by_hand():
    policy, reference = (torch.tensor(one).log().expand(3, 3).tolist() for one in ([0.7, 0.2, 0.1], [0.4, 0.3, 0.3]))
    assert chain_kl(policy, reference, 5) == pytest.approx(0.20078, abs=1e-5)
    assert chain_kl(policy, policy, 5) == 0


def test_the_entropy_of_texts_that_end_by_sampling():
    """Against the bigram counts of 200,000 texts."""
    generator = torch.Generator().manual_seed(0)
    table = torch.softmax(2 * torch.randn(8, 6, generator=generator), -1)
    text = torch.randint(6, (200_000, 1), generator=generator)
    for _ in range(9):
        text = torch.cat([text, table[2 + text[:, -1]].multinomial(1, generator=generator)], 1)
    lengths = torch.randint(3, 11, (200_000, 1), generator=generator)
    counts = torch.zeros(6, 7)
    for place in range(10):
        ends = lengths[:, 0] == place + 1
        counts[:, 6] += torch.bincount(text[ends, place], minlength=6)
        if place < 9:
            goes = lengths[:, 0] > place + 1
            counts += torch.bincount(7 * text[goes, place] + text[goes, place + 1], minlength=42).view(6, 7)
    for ends in (True, False):
        some = counts if ends else counts[:, :6]
        found = -(some * (some / some.sum(1, keepdim=True)).log()).sum() / some.sum()
        assert ended_entropy(table.tolist(), ends) == pytest.approx(found.item(), rel=3e-3)


def test_two_mistakes_have_four_sentences():
    names = ("the first is right", "the second is right")
    found = [pair(first, second, names) for first in ("", "a") for second in ("", "b")]
    assert found == [
        "", "one of the two is mended: the first is right. But b", "one of the two is mended: the second is right. But a",
        "two things are wrong. a; and b",
    ]  # fmt: skip
