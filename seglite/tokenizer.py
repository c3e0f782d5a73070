"""Texts as token ids: CLIP's byte-pair encoding from its vocabulary file, and a plain word list for the procedural world.

Both give int64 [B, T]: start token, the text, end token, zeros. The end token has the largest id, which is how the text tower finds it.

    BytePairs("bpe_simple_vocab_16e6.txt.gz")(["a photo of a cat"])     320 1125 539 320 2368 between 49406 and 49407
    Words(["a photo of a cat", "a dog"])(["a dog"])                    every word of the given texts is a token

Byte pairs: Sennrich et al., ACL 2016, arXiv 1508.07909, on bytes; the merges are those of openai/CLIP. B texts, T token ids per text.
"""
from __future__ import annotations

import gzip
import hashlib
import html
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 48894  # lines 1 ... 48894 of the file; the rest belongs to a larger vocabulary
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
START, END = "<|startoftext|>", "<|endoftext|>"


class Tokenizer:
    """What both kinds share. Attributes: start, end (ids), size (V), context (T)."""

    start: int
    end: int
    size: int
    context: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        raise NotImplementedError("use BytePairs or Words")

    def __call__(self, texts: str | Sequence[str], truncate: bool = True) -> torch.Tensor:
        """Texts -> int64 [B, T], padded with zeros. A text that is too long is cut, its last token the end token; ValueError if not truncate."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids = torch.zeros(len(texts), self.context, dtype=torch.int64)  # [B, T]
        for row, text in zip(ids, texts):
            found = [self.start, *self.encode(text), self.end]
            if len(found) > self.context:
                if not truncate:
                    raise ValueError(f"text {shorten(text)!r} has {len(found)} tokens with start and end; this tokenizer's context is {self.context}")
                found = [*found[: self.context - 1], self.end]
            row[: len(found)] = torch.tensor(found)
        return ids


def shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def clean(text: str) -> str:
    """Unescape HTML twice, one space between words, lower case.

    CLIP's code also repairs wrongly decoded bytes with the package ftfy; here only its harmless part is done: composed characters (NFC) and
    straight quotes. Text that was never damaged gives the same ids.
    """
    text = unicodedata.normalize("NFC", text).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def pieces(text: str) -> list[str]:
    """Cut a cleaned text as CLIP's pattern does: contractions, runs of letters, single digits, runs of other signs; spaces fall away."""
    found, i = [], 0
    while i < len(text):
        special = next((s for s in (START, END, *CONTRACTIONS) if text.startswith(s, i)), None)
        if special:
            found.append(special)
            i += len(special)
            continue
        kind, last = sort_of(text[i]), i + 1
        while last < len(text) and kind in "LO" and sort_of(text[last]) == kind:
            last += 1
        if kind != " ":
            found.append(text[i:last])
        i = last
    return found


def sort_of(letter: str) -> str:
    """"L" letter, "N" number, " " space, "O" other: Unicode's general categories, as the pattern's \\p{L} and \\p{N}."""
    if letter.isspace():
        return " "
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else "O"


def byte_symbols() -> tuple[list[str], list[str]]:
    """One printable character per byte: in the order of the first 256 ids, and by byte value.

    Printable Latin-1 stands for itself and comes first; the other 68 bytes take the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [symbol[b] for b in (*printable, *others)], [symbol[b] for b in range(256)]


class BytePairs(Tokenizer):
    """CLIP's tokenizer: 49,408 ids from `bpe_simple_vocab_16e6.txt.gz`.

    Ids: 256 byte symbols, the same 256 at the end of a word, 48,894 merges, start (49406) and end (49407).
    Raises ValueError when the file is not the published one.
    """

    def __init__(self, path: str | Path, context: int = 77):
        try:
            content = Path(path).read_bytes()
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise ValueError(f"vocabulary {path} is not the published file: its sha256 begins with {hashlib.sha256(content).hexdigest()[:8]}, "
                                 f"expected {SHA256[:8]}; fetch bpe_simple_vocab_16e6.txt.gz of openai/CLIP again")
            lines = gzip.decompress(content).decode("utf-8").split("\n")
        except (OSError, zlib.error, UnicodeDecodeError) as problem:
            raise ValueError(f"vocabulary {path} cannot be read ({problem}); it is CLIP's bpe_simple_vocab_16e6.txt.gz") from problem
        merges = [tuple(line.split()) for line in lines[1 : 1 + MERGES]]
        numbered, self.symbol_of = byte_symbols()
        self.symbols = [*numbered, *(s + "</w>" for s in numbered), *("".join(m) for m in merges), START, END]
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.rank = {merge: i for i, merge in enumerate(merges)}
        self.start, self.end, self.size, self.context = self.ids[START], self.ids[END], len(self.symbols), context
        self.known: dict[str, list[int]] = {START: [self.start], END: [self.end]}

    def encode(self, text: str) -> list[int]:
        return [i for piece in pieces(clean(text)) for i in self._encode_piece(piece)]

    def _encode_piece(self, piece: str) -> list[int]:
        """Merge the pair that the vocabulary learned first, everywhere, until no pair is left."""
        if piece not in self.known:
            parts = [self.symbol_of[b] for b in piece.encode("utf-8")]
            parts[-1] += "</w>"
            while len(parts) > 1:
                best = min(zip(parts, parts[1:]), key=lambda pair: self.rank.get(pair, MERGES))
                if best not in self.rank:
                    break
                merged, i = [], 0
                while i < len(parts):
                    together = tuple(parts[i : i + 2]) == best
                    merged.append("".join(best) if together else parts[i])
                    i += 2 if together else 1
                parts = merged
            self.known[piece] = [self.ids[p] for p in parts]
        return self.known[piece]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; start, end and padding fall away."""
        byte_of = {symbol: b for b, symbol in enumerate(self.symbol_of)}
        text = "".join(self.symbols[i] for i in ids if i not in (0, self.start, self.end)).replace("</w>", " ")
        return b"".join(bytes([byte_of[s]]) if s in byte_of else s.encode() for s in text).decode("utf-8", errors="replace").strip()


class Words(Tokenizer):
    """One token per word: 0 pads, 1 is a word that is not in the list, then the words in alphabetical order, start, end.

    Args:
        texts: texts whose words make the list. context: T. min_count: leave out words that occur less often.
    """

    def __init__(self, texts: Iterable[str], context: int = 24, min_count: int = 1):
        counts: dict[str, int] = {}
        for text in texts:
            for word in pieces(clean(text)):
                counts[word] = counts.get(word, 0) + 1
        self._number(sorted(w for w, n in counts.items() if n >= min_count), context)
        if not self.words:
            raise ValueError(f"no word occurs {min_count} times in the captions: a tokenizer needs at least one word")

    def _number(self, words: list[str], context: int) -> None:
        self.words, self.ids = list(words), {word: 2 + i for i, word in enumerate(words)}
        self.start, self.end, self.size, self.context = 2 + len(words), 3 + len(words), 4 + len(words), context

    @classmethod
    def of(cls, words: Sequence[str], context: int) -> Words:
        """The tokenizer with exactly these words, as `words` of a saved one lists them."""
        tokenizer = cls.__new__(cls)
        tokenizer._number(list(words), context)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(word, 1) for word in pieces(clean(text))]

    def unknown(self, text: str) -> list[str]:
        """The words of a text that are not in the list."""
        return [word for word in pieces(clean(text)) if word not in self.ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of some ids, "?" for unknown ones."""
        return " ".join("?" if i == 1 else self.words[i - 2] for i in ids if i not in (0, self.start, self.end))
