"""Reading text files, and cutting text into sentences and tokens."""

import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A word keeps its apostrophes; a run of dashes is one token; any other sign stands alone.
WORD = re.compile(r"<\w+>|[^\W_]+(?:['’][^\W_]+)*|-+|[^\w\s]|_")
# An end of sentence: . ! or ? with closing quotes, then space and an opening capital.
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]_]*\s+(?=[\"'“‘(\[_]*[A-Z0-9])")
ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Messrs|St|Capt|Col|Esq|Rev|Hon)|\b[A-Z])\.$")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The whole of a text file; .gz is decompressed.

    Raises:
      ValueError: missing, a folder, unreadable, empty, binary, or not UTF-8; says which.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give the path of a text file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a text file") from None
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: a damaged .gz ({error}); give a whole one") from None
    return decode_text(raw, str(path), encoding)


def decode_text(raw: bytes, name: str, encoding: str = "utf-8") -> str:
    """The text that bytes stand for, without a byte order mark, lines ended by newlines alone.

    Args:
      name: of the text, for messages.
      encoding: utf-8; latin-1 for the byte level, which takes every byte as it is.

    Raises:
      ValueError: empty, binary, or not UTF-8; says which.
    """
    if not raw.strip():
        raise ValueError(f"{name}: empty; give a text file with some text in it")
    if encoding == "latin-1":  # the byte level: any file will do
        return raw.decode(encoding)
    if b"\0" in raw:
        raise ValueError(
            f"{name}: a binary file (byte 0 at offset {raw.index(0)}); give text, or train with "
            "--level=byte"
        )
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); "
            "convert it (iconv -f latin1 -t utf8), or train with --level=byte"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def tokenize(text: str, level: str, sentences: str) -> Iterator[list[str]]:
    """Cut a text into sentences of tokens, without their `<eos>`.

    Args:
      level: word, whitespace, char or byte (text read as latin-1, one character a byte).
      sentences: line or prose; characters and bytes are always cut at lines.

    Yields:
      The tokens of each sentence. With `line`, empty lines are sentences of no token, as in
      the published WikiText counts; with `prose` there are none.
    """
    if level in ("char", "byte"):
        yield from map(list, split_lines(text))
        return
    for sentence in split_prose(text) if sentences == "prose" else split_lines(text):
        yield sentence.split() if level == "whitespace" else WORD.findall(sentence.lower())


def split_lines(text: str) -> list[str]:
    """Lines, cut at the newline alone; a newline at the very end starts no further line."""
    return text.removesuffix("\n").split("\n")


def split_prose(text: str) -> Iterator[str]:
    """Sentences of running text: paragraphs at blank lines, sentences by punctuation."""
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        start = 0
        for end in SENTENCE_END.finditer(joined):
            sentence = joined[start : end.start() + 1]
            if not ABBREVIATION.search(sentence):
                yield joined[start : end.end()].rstrip()
                start = end.end()
        if start < len(joined):
            yield joined[start:]


class Word(NamedTuple):
    """A word of a text as its author wrote it, and the units that a model reads for it."""

    text: str  # what stands between two stretches of white space
    units: tuple[str, ...]
    bare: slice  # of the units, less the punctuation (and white space) at both ends


def tokenize_words(
    text: str, level: str, sentences: str, space: str = "after"
) -> Iterator[list[Word]]:
    """`tokenize`, with the units in the words that they belong to.

    A word is what `str.split` returns, no-break spaces being white space too. No unit of the
    word and whitespace levels spans two of them. Characters and bytes have units for white
    space as well: they go to a neighbouring word, and in a line of nothing else to a word
    whose text is empty.

    Args:
      text, level, sentences: as for `tokenize`.
      space: characters and bytes: white space belongs to the word before it ("after" the word,
        as its end) or to the word that it leads to ("before"). What begins a line goes to its
        first word and what ends one to its last in either case.

    Yields:
      The words of each sentence. At the byte level their text is UTF-8 decoded; bytes that are
      none are surrogates (PEP 383).
    """
    if level in ("char", "byte"):
        yield from (words_of_line(line, level, space) for line in split_lines(text))
        return
    for sentence in split_prose(text) if sentences == "prose" else split_lines(text):
        yield [
            make_word(
                word,
                [(u, u) for u in ([word] if level == "whitespace" else WORD.findall(word.lower()))],
            )
            for word in sentence.split()
        ]


def words_of_line(line: str, level: str, space: str) -> list[Word]:
    """A line of characters or bytes as words, no unit of it left out."""
    if level == "byte":
        line = line.encode("latin-1").decode("utf-8", "surrogateescape")
    pieces = re.findall(r"\S+|\s+", line)
    words = [piece for piece in pieces if not piece.isspace()] or [""] * bool(pieces)
    groups: list[list[str]] = [[] for _ in words]
    place = 0  # of the next word
    for piece in pieces:
        if not piece.isspace():
            groups[place].append(piece)
            place += 1
        else:
            owner = place - 1 if space == "after" else place
            groups[min(max(owner, 0), len(groups) - 1)].append(piece)
    return [
        make_word(word, [(unit, c) for c in "".join(group) for unit in units_of(c, level)])
        for word, group in zip(words, groups, strict=True)
    ]


def units_of(character: str, level: str) -> str:
    """A character as the units of its level: itself, or its bytes as latin-1 characters."""
    if level == "char":
        return character
    return character.encode("utf-8", "surrogateescape").decode("latin-1")


def make_word(text: str, units: list[tuple[str, str]]) -> Word:
    """A word of (unit, what it stands for in the text)."""
    solid = [k for k, (_, shown) in enumerate(units) if any(map(str.isalnum, shown))]
    first, stop = (solid[0], solid[-1] + 1) if solid else (0, 0)
    # An accent after the last letter is no punctuation, though no letter either.
    while solid and stop < len(units) and all(map(is_mark, units[stop][1])):
        stop += 1
    return Word(text, tuple(unit for unit, _ in units), slice(first, stop))


def is_mark(character: str) -> bool:
    """Whether a character belongs to the letter before it: an accent, a vowel sign."""
    return unicodedata.category(character).startswith("M")
