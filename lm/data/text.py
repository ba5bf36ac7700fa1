"""Reading text files, and cutting text into sentences and tokens."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

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
    if not raw.strip():
        raise ValueError(f"{path}: the file is empty; give a text file with some text in it")
    if encoding == "latin-1":  # the byte level: any file will do
        return raw.decode(encoding)
    if b"\0" in raw:
        raise ValueError(
            f"{path}: a binary file (byte 0 at offset {raw.index(0)}); give text, or --level=byte"
        )
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); "
            "convert it, or use --level=byte"
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
