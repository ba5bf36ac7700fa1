"""Texts read block by block, and turned into numbers without ever being in memory as a whole.

A text is a stream of blocks, strings of some megabytes that are cut anywhere; `Text` says which
files they come from and which split each belongs to. A `WordTable` or `CharacterTable` turns
blocks into numbers of their units, which `lm.data.token_file` renumbers once all are counted.
What comes out is what `text.tokenize` and `Vocabulary.encode` make of the same text, made
faster; memory grows with the number of different words alone (and with the longest stretch
without white space).
"""

import codecs
import contextlib
import gzip
import hashlib
import itertools
import re
import sys
import tarfile
import zipfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from lm.data.text import WORD, split_prose
from lm.data.vocabulary import END, UNKNOWN

SPLITS = ("train", "valid", "test")
BLOCK = 1 << 21  # bytes read at a time
LONG = 4 * BLOCK  # characters of a paragraph that is read piece by piece
MEMBER_LIMIT = 2 << 30  # bytes that a member of an archive may have
CHUNK_LIMIT = 1 << 20  # stretches between white space whose words are remembered
MARK = f" {END} "  # an end of sentence, as a word of the text


@dataclass(frozen=True)
class Part:
    """One file of a text.

    Attributes:
      path: a text file, .gz too, or an archive.
      member: the file inside a zip or tar archive; archives are read, never unpacked.
      digest: what the text must have, as algorithm:hex; empty: anything.
    """

    path: Path
    member: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    def size(self) -> int:
        """Bytes of the text, decompressed; for .gz what its last four bytes say."""
        with open_part(self) as (_, size):
            return size


@dataclass(frozen=True)
class Text:
    """The files of a corpus and how they are cut.

    Attributes:
      parts: split -> its file; or "all" -> files that follow each other, a line end between.
      cut: bytes of the training and validation split of "all"; None: 90 and 5 % of its lines.
      underscore: lines are stripped and their spaces become `_`.
    """

    parts: Mapping[str, tuple[Part, ...]]
    cut: tuple[int, int] | None = None
    underscore: bool = False

    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size() for parts in self.parts.values() for part in parts)

    def blocks(
        self, encoding: str, progress: Callable[[int], None] | None = None
    ) -> Iterator[tuple[str, str]]:
        """(split, block): train, then valid, then test."""
        if "all" not in self.parts:
            for split in SPLITS:
                found = read_blocks(self.parts[split][0], encoding, progress)
                for block in underscore(found) if self.underscore else found:
                    yield split, block
        elif self.cut:
            yield from cut_at_bytes(
                read_blocks(self.parts["all"][0], encoding, progress), self.cut, encoding
            )
        else:
            lines = 1 + sum(block.count("\n") for block in self._joined(encoding, None))
            if lines < 20:
                raise ValueError(
                    f"the text has {lines} lines; wanted at least 20 to cut 90/5/5, or a folder "
                    "with train, valid and test files"
                )
            cut = (lines * 90 // 100, lines * 95 // 100)
            yield from cut_at_lines(self._joined(encoding, progress), cut)

    def _joined(self, encoding: str, progress: Callable[[int], None] | None) -> Iterator[str]:
        """The files as one text that ends without a line end."""
        found = [read_blocks(part, encoding, progress) for part in self.parts["all"]]
        if len(found) == 1:
            return drop_line_end(found[0])
        between: list[Iterable[str]] = [["\n"]] * (2 * len(found) - 1)
        between[::2] = map(drop_line_end, found)
        return drop_line_end(itertools.chain.from_iterable(between))


@contextlib.contextmanager
def open_part(part: Part) -> Iterator[tuple[IO[bytes], int]]:
    """(the bytes of a part, decompressed; how many there are).

    Raises:
      ValueError: missing, unreadable, damaged, or a member that is not there or too large.
    """
    with contextlib.ExitStack() as stack:
        try:
            if part.member:
                file, size = (open_zip if part.path.suffix == ".zip" else open_tar)(part, stack)
                if size > MEMBER_LIMIT:
                    raise ValueError(f"{part}: {size:,} bytes; wanted at most {MEMBER_LIMIT:,}")
            else:
                file = stack.enter_context(part.path.open("rb"))
                size = file.seek(0, 2)
                if part.path.suffix == ".gz" and size >= 4:
                    file.seek(-4, 2)
                    size = max(size, int.from_bytes(file.read(4), "little"))
                file.seek(0)
                if part.path.suffix == ".gz":
                    file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
            yield file, size
        except FileNotFoundError:
            raise ValueError(f"{part}: no such file; give the path of a text file") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{part}: a damaged .gz ({error}); give a whole one") from None
        except (zipfile.BadZipFile, tarfile.TarError, RuntimeError) as error:
            raise ValueError(f"{part}: a damaged archive ({error}); give a whole one") from None
        except OSError as error:
            words = error.strerror or str(error)
            raise ValueError(f"{part}: cannot be read ({words}); give a text file") from None


def open_zip(part: Part, stack: contextlib.ExitStack) -> tuple[IO[bytes], int]:
    """(a member of a zip archive, by the name that our table has for it; its size)."""
    archive = stack.enter_context(zipfile.ZipFile(part.path))
    if part.member not in archive.namelist():
        raise ValueError(f"{part}: no such file in the archive; give the published one")
    file = stack.enter_context(archive.open(part.member))
    return file, archive.getinfo(part.member).file_size


def open_tar(part: Part, stack: contextlib.ExitStack) -> tuple[IO[bytes], int]:
    """(a regular file of a tar archive, likewise; its size). Links are not followed."""
    archive = tarfile.open(part.path, "r:*")  # noqa: SIM115 - the stack closes it
    stack.enter_context(archive)
    for member in archive:
        if member.isreg() and member.name.removeprefix("./") == part.member:
            file = archive.extractfile(member)
            assert file is not None  # as for every regular file
            return stack.enter_context(file), member.size
    raise ValueError(f"{part}: no such file in the archive; give the published one")


def read_blocks(
    part: Part, encoding: str = "utf-8", progress: Callable[[int], None] | None = None
) -> Iterator[str]:
    """The text of a part, as `text.read_text` has it, in blocks.

    Args:
      encoding: utf-8, or latin-1 for the byte level, at which any file will do.
      progress: called with the number of bytes of each block.

    Raises:
      ValueError: unreadable, empty, binary, not UTF-8, or not what its digest says.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    algorithm, wanted = (part.digest or "sha256:").split(":")
    digest = hashlib.new(algorithm)
    blank, started, offset, held = True, False, 0, ""
    with open_part(part) as (file, _):
        while True:
            raw = file.read(BLOCK)
            blank = blank and not raw.strip()
            if encoding != "latin-1" and b"\0" in raw:
                raise ValueError(
                    f"{part}: a binary file (byte 0 at offset {offset + raw.index(0)}); give "
                    "text, or train with --level=byte"
                )
            waiting = len(decoder.getstate()[0])
            try:
                text = held + decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{part}: not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
                    f"{offset - waiting + error.start}); convert it (iconv -f latin1 -t utf8), or "
                    "train with --level=byte"
                ) from None
            held = ""
            if encoding != "latin-1":
                if text and not started:
                    text, started = text.removeprefix("\ufeff"), True
                if raw and text.endswith("\r"):  # of a line end, perhaps
                    text, held = text[:-1], "\r"
                text = text.replace("\r\n", "\n")
            if text:
                if part.digest:
                    digest.update(text.encode(encoding))
                yield text
            if progress:
                progress(len(raw))
            if not raw:
                break
            offset += len(raw)
    if blank:
        raise ValueError(f"{part}: empty; give a text file with some text in it")
    if part.digest and digest.hexdigest() != wanted:
        raise ValueError(
            f"{part} has {algorithm} {digest.hexdigest()[:12]}..., the published file "
            f"{wanted[:12]}...; replace it, or give its path as --corpus"
        )


def drop_line_end(blocks: Iterable[str]) -> Iterator[str]:
    """A text without the line end that it may end with."""
    held = ""
    for block in blocks:
        text = held + block
        held = text[-1:] if text.endswith("\n") else ""
        yield text.removesuffix("\n")


def cut_at_lines(blocks: Iterable[str], ends: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """(split, block) of a text without its last line end: train ends after ends[0] lines."""
    split, line = 0, 0
    for block in blocks:
        while split < 2 and line + block.count("\n") >= ends[split]:
            position = -1
            for _ in range(ends[split] - line):
                position = block.index("\n", position + 1)
            yield SPLITS[split], block[: position + 1]
            block, line, split = block[position + 1 :], ends[split], split + 1
        line += block.count("\n")
        yield SPLITS[split], block
    yield SPLITS[2], "\n"


def cut_at_bytes(
    blocks: Iterable[str], sizes: tuple[int, int], encoding: str
) -> Iterator[tuple[str, str]]:
    """(split, block): sizes[0] bytes of train, sizes[1] of valid; a character is never cut."""
    ends = list(itertools.accumulate(sizes))
    split, done = 0, 0
    for block in blocks:
        raw = block.encode(encoding)
        while split < 2 and done + len(raw) >= ends[split]:
            head = raw[: ends[split] - done].decode(encoding, "ignore")
            yield SPLITS[split], head
            used = len(head.encode(encoding))
            raw, done, split = raw[used:], done + used, split + 1
        done += len(raw)
        yield SPLITS[split], raw.decode(encoding)


def underscore(blocks: Iterable[str]) -> Iterator[str]:
    """Lines stripped of spaces at their ends, with `_` for those within: PTB's characters."""
    held, begun = "\n", False  # the first line begins as the others do
    for text in blocks:
        whole = held + text
        end = len(whole.rstrip(" \n"))
        lines = re.sub(" *\n *", "\n", whole[:end]).replace(" ", "_")
        held = whole[end:]
        yield lines if begun else lines[1:]
        begun = begun or end > 0
    end_lines = held.replace(" ", "")
    yield end_lines if begun else end_lines[1:]


def cut_at_space(text: str) -> tuple[str, str]:
    """(what ends with white space, the word that follows)."""
    if not text or text[-1].isspace():
        return text, ""
    word = text.rsplit(None, 1)[-1]
    return text[: len(text) - len(word)], word


def mark_lines(blocks: Iterable[str]) -> Iterator[str]:
    """Text cut at white space only, in which a marked word stands for each line end."""
    waiting: list[str] = []
    last = ""
    for block in blocks:
        last = block[-1:] or last
        head, word = cut_at_space(block)
        if head:
            yield ("".join(waiting) + head).replace("\n", MARK)
            waiting = []
        waiting.append(word)
    yield "".join(waiting) + ("" if last == "\n" else MARK)


def mark_prose(blocks: Iterable[str]) -> Iterator[str]:
    """Likewise, a marked word for each end of sentence, paragraph by paragraph."""
    rest = ""
    for block in blocks:
        *whole, rest = re.split(r"\n\s*\n", rest + block)
        yield "".join(s + MARK for paragraph in whole for s in split_prose(paragraph))
        if len(rest) > LONG:
            text, rest = cut_long(rest)
            yield text
    yield "".join(sentence + MARK for sentence in split_prose(rest))


def cut_long(paragraph: str) -> tuple[str, str]:
    """(whole sentences, marked, of a paragraph that goes on; what is left of it).

    A sentence that is as long as this is cut at a space, without a mark.
    """
    head, _ = cut_at_space(paragraph)
    head = head.rstrip()  # the white space may become a paragraph's end
    tail = paragraph[len(head) :]
    *sentences, last = list(split_prose(head)) or [""]
    text = "".join(sentence + MARK for sentence in sentences)
    if len(last) > LONG // 2:
        start, word = cut_at_space(last)
        text, last = text + start, word
    return text, last + tail


class WordTable:
    """Numbers for words, in the order in which they turn up: `<unk>` 0, `<eos>` 1, and so on.

    Args:
      level: word or whitespace.
      rule: line or prose, where a sentence ends.
    """

    def __init__(self, level: str, rule: str):
        self._ids: dict[str, int] = defaultdict(itertools.count(2).__next__, {UNKNOWN: 0, END: 1})
        self._level, self._rule = level, rule
        self._chunks = _Chunks(self._ids)

    def __len__(self) -> int:
        """Numbers given so far."""
        return len(self._ids)

    def encode(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """Numbers of the words of a text, int32, `<eos>` after each sentence."""
        for text in mark_prose(blocks) if self._rule == "prose" else mark_lines(blocks):
            yield self._encode(text)

    def _encode(self, text: str) -> np.ndarray:
        if self._level == "whitespace":
            return look_up(self._ids, text.split())
        if len(self._chunks) > CHUNK_LIMIT:
            self._chunks = _Chunks(self._ids)
        return self._chunks.spell(look_up(self._chunks, text.lower().split()))

    def units(self, numbers: np.ndarray) -> list[str]:
        """The words that have these numbers."""
        known = list(self._ids)
        return [known[number] for number in numbers]

    def number(self, unit: str) -> int | None:
        return self._ids.get(unit)


class CharacterTable:
    """Characters, or bytes read as latin-1, numbered by code point; the line end is `<eos>`."""

    def __len__(self) -> int:
        return sys.maxunicode + 1

    def encode(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """Numbers of the characters of a text, int32, with a line end at the end."""
        last = ""
        for block in blocks:
            last = block[-1:] or last
            yield np.frombuffer(block.encode("utf-32-le"), "<i4")
        if last != "\n":
            yield np.asarray([ord("\n")], np.int32)

    def units(self, numbers: np.ndarray) -> list[str]:
        """The characters that have these numbers."""
        return [END if number == ord("\n") else chr(number) for number in numbers]

    def number(self, unit: str) -> int | None:
        if unit == END:
            return ord("\n")
        return ord(unit) if len(unit) == 1 else None


def make_table(level: str, rule: str) -> WordTable | CharacterTable:
    """The numbering of a level of DataConfig."""
    return CharacterTable() if level in ("char", "byte") else WordTable(level, rule)


def look_up(ids: Mapping[str, int], units: list[str]) -> np.ndarray:
    """Numbers of units, int32; `ids` makes one for a unit that it does not know."""
    return np.fromiter(map(ids.__getitem__, units), np.int32, len(units))


class _Chunks(dict[str, int]):
    """What stands between white space -> a number; its words are looked for only once.

    No word reaches over white space, and few chunks are new: so a text costs one look-up a
    chunk, and the pattern of a word is run for the new ones alone.
    """

    def __init__(self, ids: Mapping[str, int]):
        super().__init__()
        self._ids = ids
        self._flat, self._starts, self._lengths = array("i"), array("i"), array("i")

    def __missing__(self, chunk: str) -> int:
        words = WORD.findall(chunk)
        self._starts.append(len(self._flat))
        self._lengths.append(len(words))
        self._flat.extend(self._ids[word] for word in words)
        number = len(self)
        self[chunk] = number
        return number

    def spell(self, chunks: np.ndarray) -> np.ndarray:
        """Numbers of chunks -> numbers of their words, int32."""
        if not len(chunks):
            return chunks
        lengths = np.frombuffer(self._lengths, np.int32)[chunks]
        starts = np.frombuffer(self._starts, np.int32)[chunks]
        before = np.cumsum(lengths, dtype=np.int64) - lengths
        places = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
        return np.frombuffer(self._flat, np.int32)[places]
