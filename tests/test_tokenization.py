import json
import re
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lib import tokenization
from rlhf_lib.tokenization import END, UNKNOWN, BPETokenizer, CharTokenizer, WordTokenizer

KINDS = ("word", "char", "bpe")
SPEECH = "HAMLET.\nTo be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n\n"
# any text, with newlines, runs of spaces, accents, and END itself more often than chance gives them
TEXT = st.lists(st.one_of(st.text(max_size=12), st.sampled_from([END, UNKNOWN, "\n\n", "  ", "née", "🙂", "to be"]))).map("".join)


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([SPEECH * 5], vocab_size=300)


# ----------------------------------------------------------------------------------------- lossless


@settings(deadline=None, max_examples=80)
@given(text=TEXT)
def test_bpe_gives_back_any_text_even_one_it_never_saw(bpe, text):
    tokens = bpe.encode(text)
    assert bpe.decode(tokens) == text
    assert all(1 <= token < bpe.vocab_size for token in tokens)
    assert len(tokens) <= len(text.encode())  # never more tokens than bytes


@settings(deadline=None, max_examples=60)
@given(text=TEXT)
@pytest.mark.parametrize("kind", [WordTokenizer, CharTokenizer])
def test_word_and_char_give_back_the_text_they_were_trained_on(kind, text):
    tokenizer = kind.train([text])
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(2 <= token < tokenizer.vocab_size for token in tokens)
    assert tokenizer.vocab_size == 2 + len(set(tokens))


@settings(deadline=None, max_examples=60)
@given(seen=TEXT, text=TEXT)
@pytest.mark.parametrize("kind", [WordTokenizer, CharTokenizer])
def test_only_unknown_pieces_are_lost(kind, seen, text):
    tokenizer = kind.train([seen])
    pieces, known = kind.cut(text), set(kind.cut(seen))
    assert [token == 1 for token in tokenizer.encode(text)] == [piece not in known for piece in pieces]
    assert tokenizer.decode(tokenizer.encode(text)) == "".join(piece if piece in known else UNKNOWN for piece in pieces)


@settings(deadline=None, max_examples=80)
@given(text=TEXT)
def test_word_pieces_are_the_runs_between_word_boundaries(text):
    pieces = WordTokenizer.cut(text)
    assert pieces == [piece for piece in re.split(r"\b", text) if piece]
    # the same without re.split: maximal runs of characters that are all \w, or all not
    assert pieces == ["".join(run) for _, run in groupby(text, lambda character: bool(re.match(r"\w", character)))]


def test_words_spaces_and_punctuation_are_pieces_of_their_own():
    assert WordTokenizer.cut("To be, or\nnot") == ["To", " ", "be", ", ", "or", "\n", "not"]
    assert CharTokenizer.cut("To b") == ["T", "o", " ", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_text_is_no_tokens(kind):
    tokenizer = tokenization.train(kind, [SPEECH], 300)
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


# ----------------------------------------------------------------------------------------- training


def test_the_most_frequent_pieces_get_the_first_tokens():
    # pieces: five spaces, three b, two a, one c; with END and UNKNOWN there is room for two of them
    tokenizer = WordTokenizer.train(["b b b a", " a", "c"], vocab_size=4)
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("b c a") == [3, 2, 1, 2, 1]
    assert tokenizer.decode([3, 2, 1]) == f"b {UNKNOWN}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_texts_does_not_change_the_tokenizer(kind):
    texts = [SPEECH, "b a\n", "a b\n", "d c\n", "c d\n"]
    one, other = (tokenization.train(kind, order, 280) for order in (texts, texts[::-1]))
    assert one.fingerprint() == other.fingerprint()
    assert one.encode(SPEECH) == other.encode(SPEECH)


def test_bpe_merges_the_most_frequent_pair_first():
    # inside "xyxyxy" and " xyxy" the pair xy stands 5 times, yx 3 times, space-x once; then xy-xy 3 times
    text = "xyxyxy xyxy"
    one = BPETokenizer.train([text], vocab_size=258)  # END, 256 bytes, one merge
    xy = one.encode("xy")
    assert one.vocab_size == 258
    assert len(xy) == 1 and one.decode(xy) == "xy"
    assert one.encode("xyxyxy") == xy * 3
    assert one.encode("yx") == one.encode("y") + one.encode("x")
    two = BPETokenizer.train([text], vocab_size=259)
    assert [two.decode([token]) for token in two.encode("xyxyxy")] == ["xyxy", "xy"]


def test_more_merges_give_fewer_tokens():
    lengths = [len(BPETokenizer.train([SPEECH * 3], size).encode(SPEECH)) for size in (257, 270, 300)]
    assert lengths[0] == len(SPEECH.encode())  # no merge: one token a byte
    assert lengths[0] > lengths[1] > lengths[2]


def test_bpe_without_a_size_takes_its_own_default():
    tokenizer = tokenization.train("bpe", [SPEECH])
    assert 257 < tokenizer.vocab_size <= 2048
    assert tokenizer.decode(tokenizer.encode(SPEECH)) == SPEECH


@pytest.mark.parametrize(("kind", "size"), [("bpe", 256), ("bpe", 0), ("word", 2), ("word", 1), ("char", 0), ("char", -5)])
def test_a_vocabulary_without_room_for_text_is_refused(kind, size):
    least = 257 if kind == "bpe" else 3
    with pytest.raises(ValueError, match=rf"vocab_size must be at least {least} .*got {size}$"):
        tokenization.train(kind, [SPEECH], size)


def test_the_smallest_vocabularies_work():
    assert tokenization.train("bpe", [SPEECH], 257).vocab_size == 257
    assert tokenization.train("word", ["a a b"], 3).encode("a b") == [1, 2, 1]  # a tie of a and the space: the space sorts first


def test_an_unknown_kind_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown tokenizer 'sentence': choose one of word, char, bpe"):
        tokenization.train("sentence", [SPEECH])


# ----------------------------------------------------------------------------------------- END


@pytest.mark.parametrize("kind", KINDS)
def test_end_inside_a_text_is_ordinary_characters(tmp_path, kind):
    text = f"Exit.{END}\n{END} Enter."
    trained = tokenization.train(kind, [text, END * 20, "Exit.", "\n"])
    trained.save(tmp_path / "tokenizer.json")
    for tokenizer in (trained, tokenization.load(tmp_path / "tokenizer.json")):
        assert tokenizer.end_token == 0
        assert 0 not in tokenizer.encode(text)
        assert len(tokenizer.encode(END)) > 1
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode([0]) == END
        between = [*tokenizer.encode("Exit."), 0, *tokenizer.encode("\n")]
        assert tokenizer.decode(between) == f"Exit.{END}\n"


# ----------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_outside_the_vocabulary_are_refused_with_their_place(kind):
    tokenizer = tokenization.train(kind, [SPEECH], 300)
    for wrong in (-1, tokenizer.vocab_size, 10**6):
        said = f"token {wrong} at position 2 is outside the vocabulary of {tokenizer.vocab_size} tokens"
        with pytest.raises(ValueError, match=said):
            tokenizer.decode([2, 2, wrong, 2])
    assert tokenizer.decode([tokenizer.vocab_size - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_and_arrays_decode_like_lists(kind):
    tokenizer = tokenization.train(kind, [SPEECH], 400)
    tokens = tokenizer.encode(SPEECH)
    assert tokenizer.decode(torch.tensor(tokens)) == tokenizer.decode(np.array(tokens)) == tokenizer.decode(tokens) == SPEECH


def test_a_character_cut_in_half_decodes_without_an_error(bpe):
    tokens = bpe.encode("🙂")
    assert len(tokens) == 4
    assert "�" in bpe.decode(tokens[:2])


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_loads_as_the_same_one(tmp_path, kind):
    tokenizer = tokenization.train(kind, [SPEECH, "née 🙂\n"], 290)
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    loaded = tokenization.load(str(tmp_path / "deep" / "tokenizer.json"))
    assert type(loaded) is type(tokenizer)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.fingerprint() == tokenizer.fingerprint()
    for text in (SPEECH, "née 🙂", "Never seen: ÄÖ\n", END):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "deep" / "tokenizer.json").read_bytes()


def test_other_vocabularies_and_other_kinds_have_other_fingerprints():
    tokenizers = [
        WordTokenizer(["a", "b"]),
        WordTokenizer(["b", "a"]),
        WordTokenizer(["a"]),
        CharTokenizer(["a", "b"]),
        BPETokenizer.train([SPEECH], 257),
        BPETokenizer.train([SPEECH], 258),
        BPETokenizer.train([SPEECH], 259),
    ]
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers}) == len(tokenizers)


def foreign_files():
    ours = json.loads(BPETokenizer.train([SPEECH], 260).dump())
    yield "nothing", b""
    yield "not JSON", b"{'kind': 'word'}"
    yield "not UTF-8", b'{"kind": "word", "vocabulary": ["\xff"]}'
    yield "a list", b"[1, 2]"
    yield "no kind", b'{"vocabulary": ["a"]}'
    yield "another kind", b'{"kind": "sentence", "vocabulary": ["a"]}'
    yield "no vocabulary", b'{"kind": "char"}'
    yield "a number for a vocabulary", b'{"kind": "word", "vocabulary": 5}'
    yield "the tokenizers library's own file", json.dumps(ours["tokenizer"]).encode()
    yield "a damaged tokenizer inside", json.dumps({**ours, "tokenizer": {**ours["tokenizer"], "model": {}}}).encode()
    yield "cut in half", json.dumps(ours).encode()[:500]


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in foreign_files()])
def test_a_foreign_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer of this project \("):
        tokenization.load(tmp_path / "tokenizer.json")


def test_a_missing_file_says_what_a_checkpoint_needs(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*gone\.json: a checkpoint needs its tokenizer\.json beside it"):
        tokenization.load(tmp_path / "gone.json")
