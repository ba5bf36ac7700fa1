"""Tokenised texts on disk, memory-mapped: for what is too large to be tokenised at every start.

A folder for each text and way to cut it:

    train.ids, valid.ids, test.ids    ids, little-endian int32
    tokens.json                       the vocabulary and the sha256 of all of it

It is made in a folder of another name and renamed when it is whole, and its digest is worked out
anew whenever it is opened: what is damaged is made again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO

import numpy as np

from lm.data.download import STALE, Progress
from lm.data.stream import SPLITS, CharacterTable, Text, WordTable, make_table
from lm.data.vocabulary import UNKNOWN_ID, Vocabulary, rank_units

VERSION = 1  # of the files and of the tokenisation: another one is made anew
IDS = np.dtype("<i4")
PIECE = 1 << 22  # ids renumbered, counted or digested at a time


@dataclass(frozen=True)
class Cut:
    """How a text becomes tokens.

    Attributes:
      level, sentences: as in DataConfig, `auto` resolved.
      min_count, max_size: of the vocabulary, where it is made from the text.
      vocabulary: the one to be used, else None.
    """

    level: str
    sentences: str
    min_count: int
    max_size: int
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class Tokens:
    """A tokenised text: split -> int32 ids, its vocabulary, the digest of both."""

    splits: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    sha256: str


def load_tokens(
    text: Text, cut: Cut, cache: Path, name: str, progress: Progress | None = None
) -> Tokens:
    """The ids of a text as memory-mapped arrays, tokenised now if they are not in the cache.

    Several processes may do this at once: each works in a folder of its own.

    Args:
      cache: folder of the cache; made if need be.
      name: what the folder of this text begins with.

    Raises:
      ValueError: the text or the cache cannot be read or written.
    """
    final = cache / f"{name}-{make_key(text, cut)}"
    found = open_tokens(final)
    if found:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        sweep(cache)
        work = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}-", suffix=".partial"))
        try:
            make_tokens(text, cut, work, progress)
            move_folder(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"cache_dir {cache} cannot be written ({error.strerror}); make room, or give another "
            "--cache_dir"
        ) from None
    found = open_tokens(final)
    if not found:
        raise ValueError(f"{final} is damaged as soon as it is written; give another --cache_dir")
    return found


def make_key(text: Text, cut: Cut) -> str:
    """What names a tokenised text: its files, how it is cut, the version of this file."""
    files = [
        (split, str(part), str(part.path.resolve()), *identity(part.path))
        for split, parts in text.parts.items()
        for part in parts
    ]
    units = cut.vocabulary and (cut.vocabulary.units, cut.vocabulary.level)
    options = (text.cut, text.underscore, cut.level, cut.sentences, cut.min_count, cut.max_size)
    raw = json.dumps([VERSION, files, options, units])
    return hashlib.sha256(raw.encode()).hexdigest()[:24]


def identity(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in nanoseconds): another pair is another file."""
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a text file") from None
    return found.st_size, found.st_mtime_ns


def open_tokens(folder: Path) -> Tokens | None:
    """What `make_tokens` wrote; None if it is not there or not whole."""
    try:
        stored = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        vocabulary = Vocabulary(tuple(stored["units"]), stored["level"])
        if digest_of(folder, vocabulary) != stored["sha256"]:
            return None
        splits = {split: map_ids(folder / f"{split}.ids") for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Tokens(splits, vocabulary, stored["sha256"])


def map_ids(path: Path) -> np.ndarray:
    """A file of ids as an array that is read from disk where it is looked at."""
    if not path.stat().st_size:  # which no system maps
        return np.zeros(0, np.int32)
    return np.memmap(path, IDS, "r").view(np.ndarray)


def digest_of(folder: Path, vocabulary: Vocabulary) -> str:
    """sha256 of the vocabulary and all ids: `digest` of the arrays, read piece by piece."""
    files = (read_pieces(folder / f"{split}.ids") for split in SPLITS)
    return digest(vocabulary, (piece for pieces in files for piece in pieces))


def digest(vocabulary: Vocabulary, arrays: Iterable[np.ndarray]) -> str:
    """sha256 of a vocabulary and of the ids of train, valid and test, in pieces of any size."""
    found = hashlib.sha256("\n".join(vocabulary.units).encode("utf-8", "surrogatepass"))
    for ids in arrays:
        found.update(np.ascontiguousarray(ids, IDS).data)
    return found.hexdigest()


def read_pieces(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while len(piece := np.fromfile(file, IDS, PIECE)):
            yield piece


def make_tokens(text: Text, cut: Cut, folder: Path, progress: Progress | None) -> None:
    """Tokenise a text into an empty folder.

    One pass writes the numbers that units have in the order in which they turn up; another
    renumbers them in place, once the training split is counted.
    """
    table = make_table(cut.level, cut.sentences)
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context((folder / f"{split}.ids").open("w+b")) for split in SPLITS
        }
        for split, group in itertools.groupby(read(text, cut.level, progress), itemgetter(0)):
            for numbers in table.encode(block for _, block in group):
                files[split].write(np.ascontiguousarray(numbers, IDS).data)
        files["train"].flush()
        vocabulary = cut.vocabulary or rank_units(
            count(folder / "train.ids", table), cut.level, cut.min_count, cut.max_size
        )
        ids = np.full(len(table), UNKNOWN_ID, IDS)
        for unit, index in vocabulary.ids.items():
            number = table.number(unit)
            if number is not None:
                ids[number] = index
        pieces = (piece for split in SPLITS for piece in renumber(files[split], ids))
        sha256 = digest(vocabulary, pieces)
    stored = {"sha256": sha256, "level": vocabulary.level, "units": vocabulary.units}
    (folder / "tokens.json").write_text(json.dumps(stored), encoding="utf-8")


def read(text: Text, level: str, progress: Progress | None) -> Iterator[tuple[str, str]]:
    """(split, block) of a text, with its progress reported."""
    done, total = 0, text.size() if progress else 0

    def report(size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress("tokenising", done, total)

    return text.blocks("latin-1" if level == "byte" else "utf-8", report)


def count(path: Path, table: WordTable | CharacterTable) -> Counter[str]:
    """Occurrences of each unit in a file of numbers."""
    counts = np.zeros(len(table), np.int64)
    for piece in read_pieces(path):
        counts += np.bincount(piece, minlength=len(table))
    present = np.flatnonzero(counts)
    return Counter(dict(zip(table.units(present), counts[present].tolist(), strict=True)))


def renumber(file: IO[bytes], ids: np.ndarray) -> Iterator[np.ndarray]:
    """Replace each number n in a file by ids[n]; yields the new ones."""
    file.seek(0)
    while raw := file.read(PIECE * IDS.itemsize):
        piece = ids[np.frombuffer(raw, IDS)]
        file.seek(-len(raw), os.SEEK_CUR)
        file.write(piece.data)
        file.flush()  # between writing and reading on
        yield piece


def move_folder(work: Path, final: Path) -> None:
    """Give a folder its name; one of that name is kept if it is whole, and replaced if not."""
    for _ in range(3):  # others may do the same at this moment
        with contextlib.suppress(OSError):
            work.chmod(0o755)  # temporary folders are their owner's alone
            work.rename(final)
            return
        if open_tokens(final):
            return
        damaged = work.with_name(f"{work.stem}-damaged.partial")
        with contextlib.suppress(OSError):
            final.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    work.rename(final)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed long ago left behind."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                shutil.rmtree(path)
