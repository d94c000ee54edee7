"""Four tokenisers with one interface: `encode`, `decode`, `save`, `vocab_size`, `end_token`, `fingerprint`.

Token 0 is always END, which stands between documents; a published chat model's has its own tokens. A tokeniser is one JSON file,
`tokenizer.json`, beside every checkpoint; the checkpoint records its `fingerprint` and refuses another.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_lib.chat import check_messages
from rlhf_lib.files import one_line, write_atomic

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
        """The JSON that `load` reads back: kind and vocabulary."""
        return json.dumps({"kind": self.kind, "vocabulary": self.pieces[2:]}, ensure_ascii=False)

    def fingerprint(self):
        """A hexadecimal SHA-256 of all that the tokeniser is: two with the same one encode alike."""
        return hashlib.sha256(self.dump().encode()).hexdigest()

    def save(self, path):
        """Write it to the file `path`, whole or not at all. Raises RunError where that cannot be written."""
        write_atomic(path, self.dump().encode())


class WordTokenizer(PieceTokenizer):
    """Word boundaries: `re.split(r"\\b", text)`, so that spaces and punctuation are pieces of their own."""

    kind = "word"

    @staticmethod
    def cut(text):
        """The pieces of `text`, a list of str that joins to it."""
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
        tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
        return cls(tokenizer)

    def encode(self, text):
        """The tokens of `text`, a list of int; END inside it is read as ordinary characters."""
        return [token for piece in pieces(text) for token in self.tokenizer.encode(piece, add_special_tokens=False).ids]

    def decode(self, tokens):
        """The text of `tokens`, END included; bytes that are no character become U+FFFD. Raises ValueError on a token outside the
        vocabulary."""
        return self.tokenizer.decode(check_tokens(tokens, self.vocab_size), skip_special_tokens=False)

    def dump(self):
        """The JSON that `load` reads back: kind, and what the `tokenizers` library writes."""
        return json.dumps({"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}, ensure_ascii=False)

    fingerprint = PieceTokenizer.fingerprint
    save = PieceTokenizer.save


SEAM = re.compile(r"(?<=\S)(?= \S)")


def pieces(text, size=20_000):
    """`text` in pieces of about `size` characters, each but the first with the space before a word: GPT-2's bytes never join
    what stands on both sides of it, so that the pieces' tokens are the text's, for a hundredth of the memory."""
    start = 0
    while seam := SEAM.search(text, start + size):
        yield text[start : seam.start()]
        start = seam.start()
    yield text[start:]


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatTokenizer(BPETokenizer):
    """A chat model's published tokeniser, by the `tokenizers` library, with the template that lays out its conversations.

    Bytes that a published vocabulary does not have are left out: SmolLM2's lacks some control characters and unassigned planes.

    Args:
        tokenizer: a tokenizers.Tokenizer.
        template: a chat template in Jinja, as published beside the model.
        end, begin: the texts of the token that ends a turn, and of the one that templates call bos_token.
        source: the published name that it belongs to; None for one of our own, which `save` writes whole.
    """

    kind = "chat"

    def __init__(self, tokenizer, template=CHATML, end="<|im_end|>", begin="", source=None):
        super().__init__(tokenizer)
        self.template, self.end, self.begin, self.source = template, end, begin, source
        self.end_token = tokenizer.token_to_id(end)
        if self.end_token is None:
            raise ValueError(f"the tokenizer has no token {end!r}, which ends a turn")
        self.layout = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        self.layout.globals["raise_exception"] = refuse

    @classmethod
    def train(cls, texts, vocab_size=None):
        """A small one of our own, laid out as ChatML; `vocab_size` counts its three special tokens and the 256 bytes."""
        if vocab_size is not None and vocab_size < 259:
            raise ValueError(f"vocab_size must be at least 259 (256 bytes and three special tokens), got {vocab_size}")
        inner = BPETokenizer.train(texts, vocab_size and vocab_size - 2).tokenizer
        inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        return cls(inner)

    def encode(self, text):
        """The tokens of `text`, a list of int; special ones inside it are read as ordinary characters."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids  # some put a first token before any text

    def decode(self, tokens):
        """The text of `tokens`, without special ones. Raises ValueError on a token outside the vocabulary."""
        return self.tokenizer.decode(check_tokens(tokens, self.vocab_size), skip_special_tokens=True)

    def turns(self, messages, reply=False):
        """A conversation's tokens, and which of them the assistant says, its end of turn included: two lists of one length.

        What people write is never read as a special token, whatever stands in it.

        Args:
            messages: a list of {"role": "system" | "user" | "assistant", "content": str}.
            reply: whether the tokens that open the assistant's next turn stand at the end.
        """
        check_messages(messages, last=None)
        places = {f"\ue000{place}\ue001": place for place in range(len(messages))}
        marks = [{**message, "content": mark} for message, mark in zip(messages, places)]
        text = self.laid_out(marks, reply)
        tokens, spoken, saying = [], [], False
        for piece in re.split("(\ue000\\d+\ue001)", text):
            if piece in places:
                message = messages[places[piece]]
                saying = message["role"] == "assistant"
                new = self.encode(message["content"].strip())
                tokens, spoken = tokens + new, spoken + [saying] * len(new)
            else:
                self.tokenizer.encode_special_tokens = False
                new = self.tokenizer.encode(piece, add_special_tokens=False).ids
                self.tokenizer.encode_special_tokens = True
                last = new.index(self.end_token) + 1 if saying and self.end_token in new else 0
                tokens, spoken = tokens + new, spoken + [True] * last + [False] * (len(new) - last)
        return tokens, spoken

    def laid_out(self, marks, reply):
        """The text that the template makes of messages. Raises ValueError where it fails, as it may: others wrote it."""
        try:
            text = self.layout.render(messages=marks, add_generation_prompt=reply, bos_token=self.begin, eos_token=self.end)
            text.encode()  # half a character is no text
            return text
        except Refused as error:
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from None
        except Exception as error:
            raise ValueError(
                f"the model's chat template fails on this conversation ({one_line(error)}): use another model"
            ) from None

    def prompt(self, messages):
        """The tokens from which the assistant's next turn goes on."""
        check_messages(messages, "user")
        return self.turns(messages, reply=True)[0]

    def dump(self):
        """The JSON that `load` reads back, whole: kind, template, special tokens, and what the `tokenizers` library writes."""
        whole = {
            "template": self.template,
            "end": self.end,
            "begin": self.begin,
            "tokenizer": json.loads(self.tokenizer.to_str()),
        }
        return json.dumps({"kind": self.kind, **whole}, ensure_ascii=False)

    def save(self, path):
        """Write it whole, or only the name of the published model whose it is."""
        text = json.dumps({"kind": self.kind, "source": self.source}) if self.source else self.dump()
        write_atomic(path, text.encode())


class Refused(Exception):
    """A conversation that a template does not know how to lay out; the message is the template's."""


def refuse(message):
    """What a template calls then."""
    raise Refused(" ".join(str(message).split())[:200])


KINDS = {kind.kind: kind for kind in (WordTokenizer, CharTokenizer, BPETokenizer)}  # those that a corpus trains


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
        if saved["kind"] != "chat":
            return KINDS[saved["kind"]](saved["vocabulary"])
        if "source" not in saved:
            inner = Tokenizer.from_str(json.dumps(saved["tokenizer"]))
            return ChatTokenizer(inner, saved["template"], saved["end"], saved["begin"])
    except FileNotFoundError:
        raise ValueError(f"no tokenizer at {path}: a checkpoint needs its tokenizer.json beside it") from None
    except Exception as error:  # JSON, missing keys, or what the tokenizers library says
        raise ValueError(f"{path} is not a tokenizer of this project ({type(error).__name__}: {error})") from None
    raise ValueError(f"{path} names the tokenizer of the published model {saved['source']}: use checkpoints.load_tokenizer")
