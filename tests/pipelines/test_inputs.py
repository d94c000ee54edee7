import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import comparisons
from rlhf_lib.comparisons import ComparisonError
from rlhf_lib.pipelines import inputs
from rlhf_lib.tokenization import ChatTokenizer

WORDS = ("why", "how", "is", "the", "sky", "blue", "warm", "cold", "say", "no", "kindly", "please")
TOKENIZER = ChatTokenizer.train([" ".join(WORDS)], 300)
CONTEXT = 400


def asks(text):
    return {"role": "user", "content": text}


def answers(text):
    return {"role": "assistant", "content": text}


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chosen(**changes):
    """What of the assistant's settings is looked at, as a stand-in for them."""
    named = {
        "demonstrations": "ours",
        "comparisons": "ours",
        "limit": 0,
        "longest": 0,
        "row": 200,
        "max_new_tokens": 10,
        **changes,
    }
    row, new = named.pop("row"), named.pop("max_new_tokens")
    return SimpleNamespace(**named, sft=SimpleNamespace(row=row), ppo=SimpleNamespace(max_new_tokens=new))


PROMPTS = [
    {"id": f"p-{n}", "prompt": f"why is the sky {WORDS[n % 12]} {n}", "kind": "a", "split": "held_out" if n % 4 == 3 else "train"}
    for n in range(16)
]
SHOWN = [{"id": row["id"], "answer": f"say {n} kindly", "writer": "w1"} for n, row in enumerate(PROMPTS)]
VOTES = [
    {
        "id": row["id"], "first": f"say {n} no", "second": f"the {n} sky", "reader": "r1",
        "verdict": ("first", "second", "first", "first", "tie")[n % 5],
    }
    for n, row in enumerate(PROMPTS)
]  # fmt: skip


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """`ours(prompts, shown, votes)`: these stand where the project's own files do; no second reading."""

    def made(prompts=PROMPTS, shown=SHOWN, votes=VOTES, second=None):
        for name, rows in (("PROMPTS", prompts), ("DEMONSTRATIONS", shown), ("COMPARISONS", votes), ("SECOND_READING", second)):
            path = tmp_path / f"{name}.jsonl"
            monkeypatch.setattr(comparisons, name, path)
            if rows is not None:
                put(path, rows)
        return tmp_path

    return made


def test_each_half_has_what_is_its_own(ours):
    ours()
    found = inputs.read(chosen(), TOKENIZER, CONTEXT)
    train = [row for row in PROMPTS if row["split"] == "train"]
    held_out = [row for row in PROMPTS if row["split"] == "held_out"]
    for half, rows in zip(found.prompts, (train, held_out)):
        assert sorted(half) == sorted(row["prompt"] for row in rows)
    for half, rows in zip(found.demonstrations, (train, held_out)):
        assert [talk[0]["content"] for talk in half] == [row["prompt"] for row in rows]
        assert all([message["role"] for message in talk] == ["user", "assistant"] for talk in half)
    for half, rows in zip(found.rankings, (train, held_out)):
        asked = [TOKENIZER.prompt([asks(row["prompt"])]) for row in rows if VOTES[PROMPTS.index(row)]["verdict"] != "tie"]
        assert sorted(ranking.prompt for ranking in half) == sorted(asked)
    assert found.left_out == {"demonstrations": 0, "comparisons": 0, "prompts": 0}
    assert (found.beyond, found.agreement, found.notes()) == ([], None, [])


def test_a_ranking_has_the_better_answer_first_and_an_end_unless_it_was_cut(ours):
    votes = [{**row, "first_cut": n % 2 == 1} if n % 2 else row for n, row in enumerate(VOTES)]
    ours(votes=votes)
    found = inputs.read(chosen(), TOKENIZER, CONTEXT)
    by_prompt = {tuple(r.prompt): r.answers for half in found.rankings for r in half}
    for prompt, row in zip(PROMPTS, votes):
        if row["verdict"] == "tie":
            continue
        sides = {side: TOKENIZER.encode(row[side]) for side in ("first", "second")}
        sides["first"] += [] if row.get("first_cut") else [TOKENIZER.end_token]
        sides["second"] += [TOKENIZER.end_token]
        other = {"first": "second", "second": "first"}[row["verdict"]]
        assert by_prompt[tuple(TOKENIZER.prompt([asks(prompt["prompt"])]))] == [sides[row["verdict"]], sides[other]]


def test_a_conversation_goes_through_the_model_as_its_prompt_and_answer_do():
    talk = [asks("why is it cold"), {"role": "assistant", "content": "say no"}, asks("please")]
    tokens, _ = TOKENIZER.turns([*talk, {"role": "assistant", "content": " say kindly "}])
    made = inputs.prompt_tokens(TOKENIZER, talk) + inputs.answer_tokens(TOKENIZER, " say kindly ")
    assert tokens[: len(made)] == made
    assert inputs.answer_tokens(TOKENIZER, " say kindly ", cut=True) == TOKENIZER.encode("say kindly")
    assert inputs.prompt_tokens(TOKENIZER, "why") == TOKENIZER.prompt([asks("why")])


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=16, max_size=16),
    longest=st.integers(60, 400),
    row=st.integers(60, 400),
    new=st.integers(1, 200),
)
def test_what_is_too_long_is_left_out_and_counted(tmp_path_factory, lengths, longest, row, new):
    folder = tmp_path_factory.mktemp("long")
    shown = [{**one, "answer": f"say {n} " + "no " * length} for n, (one, length) in enumerate(zip(SHOWN, lengths))]
    votes = [{**one, "second": f"the {n} " + "sky " * length} for n, (one, length) in enumerate(zip(VOTES, lengths))]
    with pytest.MonkeyPatch.context() as patch:
        for name, rows in (("PROMPTS", PROMPTS), ("DEMONSTRATIONS", shown), ("COMPARISONS", votes)):
            put(folder / name, rows)
            patch.setattr(comparisons, name, folder / name)
        patch.setattr(comparisons, "SECOND_READING", folder / "none")
        asked = [TOKENIZER.prompt([asks(one["prompt"])]) for one in PROMPTS]
        sizes = {
            "demonstrations": [
                len(TOKENIZER.turns([asks(p["prompt"]), {"role": "assistant", "content": s["answer"]}])[0])
                for p, s in zip(PROMPTS, shown)
            ],
            "comparisons": [
                len(p) + 1 + max(len(TOKENIZER.encode(v[side].strip())) for side in ("first", "second"))
                for p, v in zip(asked, votes)
                if v["verdict"] != "tie"
            ],
            "prompts": [len(p) + new for p in asked],
        }
        most = {"demonstrations": min(row, longest), "comparisons": longest, "prompts": longest}
        expected = {name: sum(size > most[name] for size in sizes[name]) for name in sizes}
        try:
            found = inputs.read(chosen(longest=longest, row=row, max_new_tokens=new), TOKENIZER, CONTEXT)
        except ValueError as error:
            assert "at least one of each is needed" in str(error)
            assert any(expected[name] > 0 for name in expected)
            return
    assert found.left_out == expected
    assert sum(map(len, found.prompts)) == 16 - expected["prompts"]
    counts = [f"{count} {name}" for name, count in found.left_out.items() if count]
    assert found.notes() == ([f"Left out, being too long: {', '.join(counts)}."] if counts else [])


def test_the_limit_is_of_what_is_learned_from_and_loses_nothing(ours):
    ours()
    whole = inputs.read(chosen(), TOKENIZER, CONTEXT)
    few = inputs.read(chosen(limit=3), TOKENIZER, CONTEXT)
    assert len(few.rankings[0]) == 3 and few.rankings[1] == whole.rankings[1]
    assert few.rankings[0] + few.beyond == whole.rankings[0]


def test_held_out_prompts_stand_in_an_order_that_their_texts_alone_decide(ours):
    ours()
    first = inputs.read(chosen(), TOKENIZER, CONTEXT).prompts[1]
    ours(prompts=PROMPTS[::-1], shown=SHOWN[::-1], votes=VOTES[::-1])
    again = inputs.read(chosen(), TOKENIZER, CONTEXT)
    assert again.prompts[1] == first
    assert first != [row["prompt"] for row in PROMPTS if row["split"] == "held_out"]  # nor that of the file


def test_readers_are_compared_where_ours_were_read_twice(ours):
    second = [{**row, "reader": "r2", "verdict": "first"} for row in VOTES[:5]]  # the first reader: 3 first, 1 second, 1 tie
    ours(second=second)
    agreement = inputs.read(chosen(), TOKENIZER, CONTEXT).agreement
    assert (agreement["pairs"], agreement["decided"], agreement["decided_agreement"]) == (5, 4, 0.75)


def test_comparisons_with_prompts_of_their_own_are_what_the_assistant_is_asked(ours):
    folder = ours()
    talk = [asks("why is it cold"), {"role": "assistant", "content": "no"}, asks("please say why")]
    rows = [
        {"prompt": f"how warm is it {n}", "chosen": f"warm {n}", "rejected": f"cold {n}"} if n % 2
        else {"prompt": [*talk[:2], asks(f"please say why {n}")], "chosen": f"warm {n}", "rejected": f"cold {n}"}
        for n in range(40)
    ]  # fmt: skip
    path = put(folder / "own.jsonl", [*rows, {"prompt": "how", "chosen": "same", "rejected": "same"}])
    found = inputs.read(chosen(comparisons=path), TOKENIZER, CONTEXT)
    own = [json.dumps(row["prompt"]) for row in rows]
    assert sorted(json.dumps(prompt) for half in found.prompts for prompt in half) == sorted(own)
    assert not {json.dumps(p) for p in found.prompts[0]} & {json.dumps(p) for p in found.prompts[1]}
    assert {tuple(r.prompt) for half in found.rankings for r in half} == {
        tuple(inputs.prompt_tokens(TOKENIZER, row["prompt"])) for row in rows
    }
    assert found.notes() == [
        f"{path}: 40 comparisons of 41 rows, skipped 1 (both answers are the same; the first is row 41)",
        "Asked are 40 prompts that the comparisons spell out.",
    ]
    assert sum(map(len, found.demonstrations)) == 16  # still ours


def test_a_ranking_of_a_files_own_is_taken_whole_with_its_best_answer_first(ours):
    folder = ours()
    held_out = PROMPTS[3]["prompt"]  # of ours: stays in its half
    asked = [f"how warm is it {n}" for n in range(40)] + [held_out]
    rows = [{"prompt": prompt, "ranked": ["warm", "say cold", "no", "blue"][: 2 + n % 3]} for n, prompt in enumerate(asked)]
    rows[0]["ranked"] = ["warm", "say cold " * 300, "no"]  # one answer that is too long
    path = put(folder / "own.jsonl", [*rows, {"prompt": "how", "ranked": ["same", "no", "same "]}])
    found = inputs.read(chosen(comparisons=path), TOKENIZER, CONTEXT)
    by_prompt = {tuple(ranking.prompt): ranking.answers for half in found.rankings for ranking in half}
    assert by_prompt == {
        tuple(TOKENIZER.prompt([asks(row["prompt"])])): [TOKENIZER.encode(text) + [TOKENIZER.end_token] for text in row["ranked"]]
        for row in rows[1:]
    }
    for half, prompts in zip(found.rankings, found.prompts):
        assert {tuple(ranking.prompt) for ranking in half} == {
            tuple(TOKENIZER.prompt([asks(prompt)])) for prompt in prompts if prompt != asked[0]
        }
    assert held_out in found.prompts[1]
    assert found.notes() == [
        f"{path}: 41 comparisons of 42 rows, skipped 1 (two answers of the ranking are the same; the first is row 42)",
        "Left out, being too long: 1 comparisons.",
        "Asked are 41 prompts that the comparisons spell out.",
    ]
    few = inputs.read(chosen(comparisons=path, limit=40), TOKENIZER, CONTEXT)  # rankings, not pairs
    assert sum(map(len, few.rankings)) == 39


def test_a_ranking_of_two_is_what_the_pair_is(ours):
    folder = ours()
    rows = [(f"how warm is it {n}", f"warm {n}", f"cold {n}") for n in range(40)]
    path = put(folder / "own.jsonl", [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in rows])
    pairs = inputs.read(chosen(comparisons=path), TOKENIZER, CONTEXT)
    put(folder / "own.jsonl", [{"prompt": p, "ranked": [a, b]} for p, a, b in rows])
    assert inputs.read(chosen(comparisons=path), TOKENIZER, CONTEXT) == pairs


def test_a_file_of_our_form_may_have_prompts_of_its_own(ours):
    folder = ours()
    rows = [
        {"prompt": f"how warm is it {n}", "first": "warm", "second": "cold", "verdict": "first", "reader": "r1"}
        for n in range(30)
    ]
    found = inputs.read(chosen(comparisons=put(folder / "own.jsonl", rows)), TOKENIZER, CONTEXT)
    assert sorted(p for half in found.prompts for p in half) == sorted(row["prompt"] for row in rows)


def test_a_file_that_names_our_prompts_and_spells_out_others_asks_all_of_them(ours):
    folder = ours()
    typed = [
        {"prompt": f"how warm is it {n}", "first": "warm", "second": "cold", "verdict": "first", "reader": "r1"} for n in range(3)
    ]
    found = inputs.read(chosen(comparisons=put(folder / "own.jsonl", [*VOTES, *typed])), TOKENIZER, CONTEXT)
    assert sorted(p for half in found.prompts for p in half) == sorted(row["prompt"] for row in [*PROMPTS, *typed])
    assert {row["prompt"] for row in PROMPTS if row["split"] == "held_out"} <= set(found.prompts[1])
    assert found.notes() == ["Asked are 3 prompts that the comparisons spell out and our 16."]


def test_a_prompt_of_ours_stays_in_its_half_where_a_file_spells_it_out(ours):
    folder = ours()
    typed = [{"prompt": row["prompt"], "first": "warm", "second": "cold", "verdict": "first", "reader": "r1"} for row in PROMPTS]
    asked = {row["prompt"]: TOKENIZER.prompt([asks(row["prompt"])]) for row in PROMPTS}
    for rows, notes in ((typed, ["Asked are 16 prompts that the comparisons spell out."]), ([*VOTES, *typed], [])):
        found = inputs.read(chosen(comparisons=put(folder / "own.jsonl", rows)), TOKENIZER, CONTEXT)
        for split, prompts, rankings in zip(("train", "held_out"), found.prompts, found.rankings):
            its = {row["prompt"] for row in PROMPTS if row["split"] == split}
            assert set(prompts) == its and len(prompts) == len(its)
            assert {tuple(ranking.prompt) for ranking in rankings} == {tuple(asked[prompt]) for prompt in its}
        assert found.notes() == notes


def test_votes_on_prompts_to_learn_from_alone_are_tested_on_our_held_out_comparisons(ours):
    folder = ours()
    train, held_out = ([row for row in PROMPTS if row["split"] == split] for split in ("train", "held_out"))
    our_test = [row for row in VOTES if row["id"] in {one["id"] for one in held_out} and row["verdict"] != "tie"]
    votes = [{**row, "first": "well", "verdict": "first"} for row in VOTES if row["id"] in {one["id"] for one in train}]
    path = put(folder / "own.jsonl", [*votes, {**our_test[0], "verdict": "tie"}])
    found = inputs.read(chosen(comparisons=path), TOKENIZER, CONTEXT)
    tested = inputs.read(chosen(), TOKENIZER, CONTEXT).rankings[1]
    assert len(found.rankings[0]) == len(train) and len(our_test) == len(tested)
    assert sorted(found.rankings[1]) == sorted(tested)
    assert found.notes() == [f"{path} has no held-out prompt: our {len(tested)} comparisons of such prompts are the test."]
    path = put(folder / "own.jsonl", [*votes, {**our_test[0], "first": "well"}])  # one of its own
    found = inputs.read(chosen(comparisons=path), TOKENIZER, CONTEXT)
    assert len(found.rankings[1]) == 1 and found.notes() == []


def test_demonstrations_may_be_the_better_answers_of_a_public_set_with_the_talk_before_them(ours):
    """A file in the form of hh-rlhf: whole dialogues. A prompt is in the half in which it is asked, one of ours in its own."""
    folder = ours()
    openings = [f"how warm is it {n}" for n in range(40)] + [PROMPTS[3]["prompt"]]
    said = [f"\n\nHuman: {opening}\n\nAssistant: warm\n\nHuman: say why\n\nAssistant:" for opening in openings]
    rows = [{"chosen": f"{talk} say {n}", "rejected": f"{talk} no"} for n, talk in enumerate(said)]
    path = put(folder / "hh.jsonl", [*rows, {"chosen": "no talk", "rejected": "no"}])
    found = inputs.read(chosen(demonstrations=path, comparisons=path), TOKENIZER, CONTEXT)
    shown = {talk[0]["content"]: talk for half in found.demonstrations for talk in half}
    assert shown == {
        opening: [asks(opening), answers("warm"), asks("say why"), answers(f"say {n}")] for n, opening in enumerate(openings)
    }
    for talks, prompts in zip(found.demonstrations, found.prompts):
        assert sorted(json.dumps(talk[:-1]) for talk in talks) == sorted(map(json.dumps, prompts))
    assert PROMPTS[3]["prompt"] in [talk[0]["content"] for talk in found.demonstrations[1]]
    tokens, spoken = TOKENIZER.turns(shown[openings[2]])
    assert TOKENIZER.decode([token for token, own in zip(tokens, spoken) if own]) == "warmsay 2"  # what the loss counts
    reason = "there is no prompt, neither a text nor a list of messages"
    read = f"{path}: 41 comparisons of 42 rows, skipped 1 ({reason}; the first is row 42)"
    assert found.notes()[0] == f"Demonstrations are the better answers of {read}. {read}"
    few = inputs.read(chosen(demonstrations=path, limit=20), TOKENIZER, CONTEXT)
    assert sum(map(len, few.demonstrations)) == 20 and len(few.prompts[0]) == 12  # comparisons are still ours


def test_no_more_of_a_public_set_is_read_than_the_limit(ours, monkeypatch):
    ours()
    asked = []

    def load(name, limit=None):
        asked.append((name, limit))
        raise ComparisonError("no network here")

    monkeypatch.setattr(inputs.public_sets, "load", load)
    for limit, given_limit in ((7, 7), (0, None)):
        with pytest.raises(ComparisonError, match="no network here"):
            inputs.read(chosen(comparisons="hh-rlhf", limit=limit), TOKENIZER, CONTEXT)
        assert asked.pop() == ("hh-rlhf", given_limit)


@pytest.mark.parametrize(
    ("files", "changes", "sentence"),
    [
        ({}, {"row": 401}, r"sft\.row is too much for a model that reads 400 tokens: make it smaller"),
        ({}, {"max_new_tokens": 400}, r"ppo\.max_new_tokens is too much for a model that reads 400 tokens"),
        (
            {"shown": SHOWN[:3]},
            {},
            "demonstrations: 3 to learn from and 0 held out, 0 of more than 200 tokens left out; at least",
        ),
        ({"votes": VOTES[3:4]}, {}, "comparisons: 0 to learn from and 1 held out, .* needed: add some to other prompts, whose"),
        ({}, {"max_new_tokens": 390}, "prompts: 0 to learn from and 0 held out, 16 of more than 10 .* needed: give shorter ones"),
        ({"votes": [{**VOTES[0], "verdict": "tie"}]}, {}, "comparisons: 0 to learn from and 0 held out"),
        ({"prompts": None}, {}, r"no file at .*PROMPTS\.jsonl"),
        ({"votes": None}, {}, r"no file at .*COMPARISONS\.jsonl"),
        ({"shown": [{**SHOWN[0], "id": "p-99"}]}, {}, r"DEMONSTRATIONS\.jsonl, line 1: the id 'p-99' is not among the prompts"),
        ({"votes": [VOTES[0], VOTES[0]]}, {}, r"COMPARISONS\.jsonl, line 2: the same pair and reader as line 1"),
        ({}, {"demonstrations": "gone.jsonl"}, r"no file at gone\.jsonl"),
        ({}, {"comparisons": "gone.jsonl"}, r"no file at gone\.jsonl"),
    ],
)
def test_what_cannot_be_used_is_named(ours, files, changes, sentence):
    ours(**files)
    with pytest.raises(ValueError, match=sentence):
        inputs.read(chosen(**changes), TOKENIZER, CONTEXT)


def test_the_projects_own_prompts_and_demonstrations_fit(tiny_talks):
    found = inputs.read(chosen(comparisons=tiny_talks["comparisons"], row=400), TOKENIZER, 600)
    assert len(found.prompts[1]) > 140 and len(found.demonstrations[0]) >= 400
