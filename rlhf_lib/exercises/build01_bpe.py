"""Chapter 01, build it: a byte-level BPE tokeniser, judged against one that is learned and used by brute force."""

import itertools
import time
from collections import Counter

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from rlhf_lib import corpus
from rlhf_lib.exercises.brute_bpe import BYTES, as_bytes, cut, encoded, learned, longest_first, pairs_of, shown, ties, written
from rlhf_lib.exercises.build import Build, Probe, tick
from rlhf_lib.exercises.ch01_text import pick
from rlhf_lib.exercises.declare import Investigation

MARKS = (" ", " ", " ", ", ", ".\n\n", "--", "'")
SHIFTED = "byte b is token b here; it is to be b + 1, since token 0 is the end of a text"
MIXED = "aeéßñΩжع中한🙂🏴‍☠️\u0301\u00a0\u2028_٣7 \t\r\n'—“.\x00\x7f\u07ff\ufffd"  # one to four bytes in UTF-8

# ----------------------------------------------------------------------------------------- what a tokeniser shows of itself


def whole(found, what):
    """`found` as a list of int. Raises TypeError, with a sentence for the learner."""
    if isinstance(found, (str, bytes, dict)) or any(isinstance(one, (str, bytes)) for one in found):
        raise TypeError(f"{what} is to be tokens, which are int")
    return [int(one) for one in found]


def encode(tokeniser, text):
    return whole(tokeniser.encode(text), "what encode returns")


def facts(tokeniser):
    merges = [whole(pair, "a pair (left, right) of .merges") for pair in tokeniser.merges]
    return {"merges": merges, "vocab_size": int(tokeniser.vocab_size)}


def run_merges(train_bpe, texts, size):
    return [facts(train_bpe(text, size)) for text in texts]


def wrong_merge(merges, text, right, steps):
    """What is wrong with the merge that follows those of `right`; `steps` are all of `learned`: a sentence."""
    place, got = len(right), merges[len(right)]
    if len(got) != 2 or not all(0 < token < BYTES + place for token in got):
        return f"merge {place + 1} is {got}: no pair of the tokens that there are then, 1 to {BYTES + place - 1}"
    start = f"merge {place + 1} of {text[:60]!r} joins {shown(got, right, '+')}"
    best, counts = steps[place] if place < len(steps) else (None, Counter())
    if best == tuple(token + (token < BYTES - 1) for token in got) and not counts[got]:
        return SHIFTED
    if not counts[got]:
        if got in itertools.pairwise(encoded(text, right, words=lambda text: [text])):
            return f"{start}, which crosses from one word to the next. Cut the text into words first, as in exercise 1.1"
        return f"{start}, which do not stand side by side then: each merge is made in all words before pairs are counted again"
    there = f"{shown(best, right, '+')} stands {counts[best]} times"
    if counts[got] == counts[best]:
        return f"{start}; {there} too, and stands first in the text: a tie goes to it"
    once = [pair for pair, _ in learned(text, len(merges), weighted=False)]
    more = ". Does a word count as often as it stands, not once, and is it cut as in exercise 1.1?" if once == merges else ""
    return f"{start}, {counts[got]} times; {there}{more}"


def judge_merges(output, texts, size):
    for found, text in zip(output, texts, strict=True):
        steps, merges = learned(text, size - BYTES), [tuple(pair) for pair in found["merges"]]
        right = [pair for pair, _ in steps]
        if len(merges) > size - BYTES:
            return f"there are {len(merges)} merges, and {size} tokens have room for {size - BYTES}: count the bytes and the end"
        for place, got in enumerate(merges):
            if right[place : place + 1] != [got]:
                return wrong_merge(merges, text, right[:place], steps)
        if len(merges) < len(steps):
            return f"only {len(merges)} merges of {text[:60]!r}: there is room for {size - BYTES}, and {len(steps)} can be made"
        if found["vocab_size"] != BYTES + len(merges):
            return f"vocab_size is {found['vocab_size']} with {len(merges)} merges: it is the end, 256 bytes, and the merges made"
    return ""


# ----------------------------------------------------------------------------------------- texts


def some_words(generator, count, letters="etaoinhs", longest=6):
    return ["".join(pick(generator, letters) for _ in range(pick(generator, range(2, longest + 1)))) for _ in range(count)]


def some_text(generator, kinds, count, **more):
    known = some_words(generator, kinds, **more)
    return "".join(pick(generator, known) + pick(generator, MARKS) for _ in range(count)).rstrip()


def texts_where(holds, generator, count, *size, **more):
    """`count` texts for which `holds(text)`."""
    drawn = (some_text(generator, *size, **more) for _ in itertools.count())
    return list(itertools.islice(filter(holds, drawn), count))


def draw_first(generator):
    clear = texts_where(lambda text: not ties(text, 3), generator, 5, 6, 40)
    known = ["so so so", "low low low lower lower new", "banana banana nanana ba", "ooo ooo oooo", "Be be Be Be no"]
    return {"texts": [*known, *clear], "size": BYTES + 3}


def draw_ties(generator):
    return {"texts": ["ho so", *texts_where(lambda text: ties(text, 12) > 6, generator, 6, 8, 12)], "size": BYTES + 12}


def draw_inside(generator):
    more = [some_text(generator, 3, 20, longest=2) for _ in range(4)]
    return {"texts": ["a b a b a b", "I, I, I, O, O", "é né né né", "да, да, да, мы", *more], "size": BYTES + 6}


# ----------------------------------------------------------------------------------------- bytes, every text, encoding


def draw_bytes(generator):
    return {"text": some_text(generator, 5, 20), "unseen": "".join(pick(generator, MIXED) for _ in range(20))}


def run_bytes(train_bpe, text, unseen):
    plain, merged = train_bpe(text, BYTES), train_bpe(text, BYTES + 10)
    return {
        **facts(plain),
        "bytes": encode(plain, unseen),
        "empty": [*plain.encode(""), plain.decode([])],
        "ends": merged.decode([0, *encode(merged, text), 0]),
        "broken": [merged.decode([66, byte + 1, 67]) for byte in (0xC3, 0xA9, 0xFF)],
    }


def judge_bytes(output, text, unseen):
    want = list(as_bytes(unseen))
    if output["merges"] or output["vocab_size"] != BYTES:
        return f"a vocabulary of {BYTES} holds the bytes and the end, no merge; here it has {output['vocab_size']}"
    if output["bytes"] == [token - 1 for token in want]:
        return SHIFTED
    if output["bytes"] != want:
        return f"without merges {unseen!r} is {len(want)} tokens, one for each byte of its UTF-8, b + 1; here it is other tokens"
    if output["empty"] != [""]:
        return 'the empty text has no tokens, and no tokens are the text ""'
    if output["ends"] != text:
        return f'token 0, the end of a text, decodes to ""; [0, *tokens, 0] became {output["ends"][:60]!r}'
    if output["broken"] != ["A\ufffdB"] * 3:
        return f"a lone byte that is no letter is U+FFFD in the text (errors='replace'); between A and B: {output['broken']}"
    return ""


def draw_back(generator):
    mixed = ["".join(pick(generator, MIXED) for _ in range(size)) for size in (1, 8, 60)]
    text = " ".join(pick(generator, mixed + some_words(generator, 4)) for _ in range(60))
    return {"text": text, "unseen": [*mixed, " ", "\n\n\n", "\r\n", "<|endoftext|>", "naïve café 中文", text[::-1]]}


def run_back(train_bpe, text, unseen):
    tokeniser = train_bpe(text, BYTES + 60)
    rows = [encode(tokeniser, one) for one in (text, *unseen)]
    return {**facts(tokeniser), "tokens": rows, "back": [tokeniser.decode(row) for row in rows]}


def judge_back(output, text, unseen):
    for one, row, back in zip((text, *unseen), output["tokens"], output["back"], strict=True):
        if 0 in row:
            return f"encoding {one[:60]!r} gives token 0, the end of a text, which no text contains"
        if any(not 0 < token < output["vocab_size"] for token in row):
            return f"encoding {one[:60]!r} gives a token that is not in the vocabulary, 1 to {output['vocab_size'] - 1}"
        if back != one:
            half = ". Join the bytes of all tokens, then decode: a letter may lie in two tokens" if "\ufffd" in back else ""
            return f"{one[:60]!r} comes back as {back[:60]!r}: something is lost{half}"
    if len(output["tokens"][0]) > 0.7 * len(text.encode()):
        return "its own text takes nearly as many tokens as bytes: are the merges made when encoding?"
    return ""


def draw_order(generator):
    def differs(text):
        return encoded(text, merges := [pair for pair, _ in learned(text, 20)]) != longest_first(text, merges)

    texts = texts_where(differs, generator, 3, 12, 60, letters="ethr")
    return {"texts": texts, "unseen": [some_text(generator, 20, 30, letters="ethr", longest=9) for _ in texts]}


def run_order(train_bpe, texts, unseen):
    made = [train_bpe(text, BYTES + 20) for text in texts]
    return [{**facts(one), "words": [encode(one, word) for word in cut(a + b)]} for one, a, b in zip(made, texts, unseen)]


def judge_order(output, texts, unseen):
    fault = judge_merges(output, texts, BYTES + 20)
    if fault:
        return fault
    for found, *parts in zip(output, texts, unseen, strict=True):
        merges, words = found["merges"], cut("".join(parts))
        by_length = found["words"] == [longest_first(word, merges) for word in words]
        for word, tokens in zip(words, found["words"], strict=True):
            right = encoded(word, merges)
            if shown(tokens, merges, "") != repr(word):
                return f"{word!r} is encoded as {shown(tokens, merges, '')}: do two tokenisers share a list or a dict?"
            if tokens != right:
                why = ", the longest piece first" if by_length else ""
                order = ", ".join(shown(pair, merges, "+") for pair in merges)
                here, there = shown(tokens, merges), shown(right, merges)
                return f"{word!r} is cut {here}{why}; with the merges in the order learned ({order}) it is {there}"
    return ""


def draw_end(generator):
    return {"texts": [some_text(generator, 6, 15), "who calls so loud", "ha ha ha", "o, o, o", "", "a"], "size": 5000}


def run_end(train_bpe, texts, size):
    made = [train_bpe(text, size) for text in texts]
    return [
        {**facts(one), "tokens": len(encode(one, text)), "ab": one.decode(one.encode("ab"))} for one, text in zip(made, texts)
    ]


def judge_end(output, texts, size):
    for found, text in zip(output, texts, strict=True):
        if found["tokens"] != len(cut(text)):
            return f"with no pair left each word of {text!r} is one token, {len(cut(text))} in all; here are {found['tokens']}"
        if found["ab"] != "ab":
            return f"learned from {text!r}, it cannot write 'ab': the 256 bytes belong to every vocabulary"
    return judge_merges(output, texts, size)


def draw_own(generator):
    return {"one": some_text(generator, 6, 40), "other": some_text(generator, 6, 40, letters="lmpqruvw")}


def run_own(train_bpe, one, other):
    def of(tokeniser):
        return {**facts(tokeniser), "tokens": encode(tokeniser, one + other)}

    first, second = train_bpe(one, BYTES + 20), train_bpe(other, BYTES + 20)
    found, texts = [of(first), of(second), of(first), of(train_bpe(one, BYTES + 20))], [cut(one)[0], one]
    before = [encode(first, text) for text in texts]
    for row in map(first.encode, texts):
        if isinstance(row, list):
            row.append(0)  # as a caller may, who ends a text with it
    return [*found, before == [encode(first, text) for text in texts]]


def judge_own(output, one, other):
    first, second, later, again, own = output
    if first != later or second["tokens"] != encoded(one + other, second["merges"]):
        return "of two tokenisers learned from two texts, one changes the other: they share a list or a dict"
    if first != again:
        return "the same text gives another tokeniser the second time: something is kept between two calls, or drawn"
    if not own:
        return "who appends to a list that encode returned finds it in the next call: it is the one remembered. Return a copy"
    return judge_merges([first, second], [one, other], BYTES + 20)


# ----------------------------------------------------------------------------------------- speed, and the plays


def seconds(function):
    start = time.thread_time()  # of a process whose processor time is limited, Linux tells only every few milliseconds
    function()
    return time.thread_time() - start


def draw_many(count, size):
    letters = "aabcdeeefghiiklmnoooprstuvwy"
    return lambda generator: {"words": some_words(generator, count, letters=letters, longest=11), "size": size}


def run_once(train_bpe, words, size):
    """Seconds of the processor for a text, and for the same text twenty times over: the better of two tries each."""
    return [min(seconds(lambda: train_bpe(" ".join(words * times), size)) for _ in range(2)) for times in (1, 20)]  # noqa: B023


def judge_once(output, words, size):
    short, long = output
    slow = f"the same text twenty times over takes {long / max(short, 1e-3):.0f} times as long, and has no new word in it"
    return f"{slow}. Count how often each different word stands, and work on it once" if long > 8 * short + 0.1 else ""


def run_touch(train_bpe, words, size):
    """Seconds of the processor for many merges, and for one count of all pairs (the mean of ten), which measures the machine."""
    tokens = Counter(map(as_bytes, words))
    return [seconds(lambda: train_bpe(" ".join(words), size)), sum(seconds(lambda: pairs_of(tokens)) for _ in range(10)) / 10]


def judge_touch(output, words, size):
    merging, count = output
    if merging <= 0.6 * (size - BYTES) * count + 0.3:
        return ""
    slow = f"{size - BYTES} merges take as long as {merging / max(count, 1e-4):.0f} counts of all pairs: each looks at every word"
    return f"{slow}. Only words that hold the pair change: take their old pairs out of the counts, and put in the new ones"


def draw_plays(generator):
    plays = corpus.load("plays")["work"]
    order = sorted(plays, key=lambda _: pick(generator, range(10**6)))
    return {"works": order[:8], "unseen": order[8], "size": 2048}


def texts_of(works, unseen):
    plays = corpus.load("plays")
    texts = dict(zip(plays["work"], plays["text"]))
    return corpus.SEPARATOR.join(texts[work] for work in works), texts[unseen]


def run_plays(train_bpe, works, unseen, size):
    text, unseen = texts_of(works, unseen)
    tokeniser = train_bpe(text, size)
    tick(0.8, "encoding")
    new = [word[::-1] for word in sorted({*cut(unseen)}) if len(word) > 5]  # words turned round, which no play has
    taken = [seconds(lambda: encode(tokeniser, " ".join(w for w in new for _ in range(times)))) for times in (1, 20)]  # noqa: B023
    tokens = encode(tokeniser, unseen)
    return {**facts(tokeniser), "tokens": tokens, "back": tokeniser.decode(tokens) == unseen, "taken": taken}


def judge_plays(output, works, unseen, size):
    text, play = texts_of(works, unseen)
    if output["vocab_size"] != size:
        return f"the vocabulary has {output['vocab_size']} tokens; eight plays have pairs enough for {size}"
    if not output["back"] or written(output["tokens"], output["merges"]) != play:
        return f"{unseen}, which it has not seen, does not come back as it was"
    library, words = Tokenizer(models.BPE()), pre_tokenizers.Split(Regex(r"\w+|\W+"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["end"], initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([text], trainer)
    if abs(len(output["tokens"]) / (expected := len(library.encode(play).ids)) - 1) > 0.01:
        counts = f"{len(output['tokens']):,} tokens, and {expected:,} with the library `tokenizers`"
        return f"{unseen}, which it has not seen, is {counts}: some merges are others, or are not made when encoding"
    once, often = output["taken"]
    slow = f"each new word twenty times takes {often / max(once, 1e-3):.0f} times as long to encode as once: keep a word's tokens"
    return slow if often > 8 * once + 0.1 else ""


train_bpe = Build("1.10", "train_bpe", [
    Probe("the first merges", draw_first, run_merges, judge_merges),
    Probe("a tie goes to the first in the text", draw_ties, run_merges, judge_merges),
    Probe("merges stay inside words", draw_inside, run_merges, judge_merges),
    Probe("bytes and the end of a text", draw_bytes, run_bytes, judge_bytes),
    Probe("every text comes back", draw_back, run_back, judge_back),
    Probe("merges are made in the order learned", draw_order, run_order, judge_order),
    Probe("it stops when no pair is left", draw_end, run_end, judge_end),
    Probe("each tokeniser is its own", draw_own, run_own, judge_own),
    Probe("a word is worked on once", draw_many(2000, BYTES + 25), run_once, judge_once),
    Probe("a merge touches what it changes", draw_many(3000, BYTES + 600), run_touch, judge_touch, seconds=60),
    Probe("a play that it has not seen", draw_plays, run_plays, judge_plays, seconds=60),
])  # fmt: skip

Investigation("1.A", "How large must a leak be before it shows?")
Investigation("1.B", "Where does a larger vocabulary stop paying?")
Investigation("1.C", "Shakespeare's tokeniser reads something else")
