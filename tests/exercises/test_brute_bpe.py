from rlhf_lib.exercises import brute_bpe

LOW = " ".join(["low"] * 5 + ["lower"] * 2 + ["newest"] * 6)  # the example of chapter 01


def tokens(text):
    return list(brute_bpe.as_bytes(text))


def test_the_merges_of_the_chapters_example():
    steps = brute_bpe.learned(LOW, 4)
    merges = [pair for pair, _ in steps]
    assert [counts[pair] for pair, counts in steps] == [8, 7, 6, 6]
    assert brute_bpe.pieces(merges)[brute_bpe.BYTES :] == [b"we", b"lo", b"ne", b"newe"]
    assert brute_bpe.encoded("lowest", merges) == [258, 257, *tokens("st")]
    assert brute_bpe.shown([258, 257], merges) == "'lo·we'"


def test_words_counted_once_give_other_merges():
    assert [pair for pair, _ in brute_bpe.learned(LOW, 1, weighted=False)] == [tuple(tokens("lo"))]


def test_ties_are_counted():
    assert brute_bpe.ties(LOW, 4) == 2 and brute_bpe.ties("low low", 9) == 1


def test_a_merge_goes_from_left_to_right_and_learning_stops_where_no_pair_is_left():
    assert brute_bpe.joined((2, 2, 2), (2, 2), 300) == (300, 2)
    assert [pair for pair, _ in brute_bpe.learned("aaa b", 9)] == [(98, 98), (257, 98)]


def test_the_longest_piece_is_not_what_the_merges_give():
    merges = [tuple(tokens("he")), tuple(tokens("th"))]
    assert brute_bpe.encoded("the", merges) == [*tokens("t"), 257]
    assert brute_bpe.longest_first("the", merges) == [258, *tokens("e")]


def test_every_byte_has_a_token():
    assert brute_bpe.encoded("é\x00", []) == [0xC4, 0xAA, 1]
    assert brute_bpe.pieces([])[:3] == [b"", b"\x00", b"\x01"]
