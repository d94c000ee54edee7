"""Three tokenisers with one interface: `encode`, `decode`, `save`, `vocab_size`, `end_token`, `fingerprint`.

Token 0 is always END, which stands between documents. A tokeniser is one JSON file, `tokenizer.json`, beside every
checkpoint; the checkpoint records its `fingerprint` and refuses another.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_lib.files import write_atomic

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


class PieceTokenizer:
    """A vocabulary of text pieces, with one token for every piece that is not in it.

    Args:
        vocabulary: the pieces, most frequent first; their tokens are 2, 3, ... (0 is END, 1 is UNKNOWN).
    """

    kind = None
    end_token = 0

    def __init__(self, vocabulary):
        self.pieces = [END, UNKNOWN, *vocabulary]
        self.tokens = {piece: token for token, piece in enumerate(self.pieces) if token >= 2}
        self.vocab_size = len(self.pieces)

    @classmethod
    def train(cls, texts, vocab_size=None):
        """The most frequent pieces of `texts` (an iterable of str), all of them when `vocab_size` is None.

        `vocab_size` counts END and UNKNOWN, so it is at least 3.
        """
        if vocab_size is not None and vocab_size < 3:
            raise ValueError(f"vocab_size must be at least 3 (END, UNKNOWN and a piece), got {vocab_size}")
        counts = Counter(piece for text in texts for piece in cls.cut(text))
        ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))  # ties in a fixed order
        return cls(ranked if vocab_size is None else ranked[: vocab_size - 2])

    def encode(self, text):
        """The tokens of `text`, a list of int; a piece outside the vocabulary becomes token 1."""
        return [self.tokens.get(piece, 1) for piece in self.cut(text)]

    def decode(self, tokens):
        """The text of `tokens`. Raises ValueError on a token outside the vocabulary."""
        return "".join(self.pieces[token] for token in check_tokens(tokens, self.vocab_size))

    def dump(self):
        return json.dumps({"kind": self.kind, "vocabulary": self.pieces[2:]}, ensure_ascii=False)

    def fingerprint(self):
        return hashlib.sha256(self.dump().encode()).hexdigest()

    def save(self, path):
        write_atomic(path, self.dump().encode())


class WordTokenizer(PieceTokenizer):
    """Word boundaries: `re.split(r"\\b", text)`, so that spaces and punctuation are pieces of their own."""

    kind = "word"

    @staticmethod
    def cut(text):
        return [piece for piece in re.split(r"\b", text) if piece]


class CharTokenizer(PieceTokenizer):
    """One piece a character."""

    kind = "char"
    cut = staticmethod(list)


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's bytes), by the `tokenizers` library. Lossless."""

    kind = "bpe"
    end_token = 0

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # END inside a text is nine-and-some ordinary characters
        self.vocab_size = tokenizer.get_vocab_size()

    @classmethod
    def train(cls, texts, vocab_size=None):
        """`vocab_size` counts END and the 256 bytes, so it is at least 257; 2048 when None."""
        vocab_size = 2048 if vocab_size is None else vocab_size
        if vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and END) for BPE, got {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def decode(self, tokens):
        return self.tokenizer.decode(check_tokens(tokens, self.vocab_size), skip_special_tokens=False)

    def dump(self):
        return json.dumps({"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}, ensure_ascii=False)

    fingerprint = PieceTokenizer.fingerprint
    save = PieceTokenizer.save


KINDS = {kind.kind: kind for kind in (WordTokenizer, CharTokenizer, BPETokenizer)}


def check_tokens(tokens, vocab_size):
    """`tokens` as a list of int, each below `vocab_size`."""
    tokens = [int(token) for token in tokens]
    for place, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise ValueError(f"token {token} at position {place} is outside the vocabulary of {vocab_size} tokens")
    return tokens


def train(kind, texts, vocab_size=None):
    """A tokeniser of `kind` ("word", "char" or "bpe") learned from `texts`."""
    if kind not in KINDS:
        raise ValueError(f"unknown tokenizer {kind!r}: choose one of {', '.join(KINDS)}")
    return KINDS[kind].train(texts, vocab_size)


def load(path):
    """The tokeniser saved at `path`. Raises ValueError, naming the file, when it is not one of ours."""
    path = Path(path)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["kind"] == "bpe":
            return BPETokenizer(Tokenizer.from_str(json.dumps(saved["tokenizer"])))
        return KINDS[saved["kind"]](saved["vocabulary"])
    except FileNotFoundError:
        raise ValueError(f"no tokenizer at {path}: a checkpoint needs its tokenizer.json beside it") from None
    except Exception as error:  # JSON, missing keys, or what the tokenizers library says
        raise ValueError(f"{path} is not a tokenizer of this project ({type(error).__name__}: {error})") from None
