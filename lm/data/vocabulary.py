"""The units a model knows, built from the training split alone."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

UNKNOWN, END = "<unk>", "<eos>"
UNKNOWN_ID, END_ID = 0, 1


@dataclass(frozen=True)
class Vocabulary:
    """Units by id: 0 is `<unk>`, 1 is `<eos>`, then by falling frequency.

    Attributes:
      units: V strings.
      level: word, whitespace, char or byte.
    """

    units: tuple[str, ...]
    level: str

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Unit -> id."""
        return {unit: index for index, unit in enumerate(self.units)}

    def encode(self, sentences: Iterable[Sequence[str]]) -> np.ndarray:
        """Sentences of units -> int32 ids, `<eos>` after each sentence."""
        ids = self.ids
        out: list[int] = []
        for sentence in sentences:
            out.extend(ids.get(unit, UNKNOWN_ID) for unit in sentence)
            out.append(END_ID)
        return np.asarray(out, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Ids -> text; `<eos>` becomes a line end."""
        lines: list[list[str]] = [[]]
        for token in tokens:
            if token == END_ID:
                lines.append([])
            else:
                lines[-1].append(self.units[token])
        if self.level == "byte":
            raw = b"\n".join(
                b"".join(b"?" if unit == UNKNOWN else unit.encode("latin-1") for unit in line)
                for line in lines
            )
            return raw.decode("utf-8", errors="replace")
        text = "\n".join(("" if self.level == "char" else " ").join(line) for line in lines)
        if self.level == "word":
            text = re.sub(r" ([,.;:!?)\]])", r"\1", text)
        return text


def build_vocabulary(
    sentences: Iterable[Sequence[str]], level: str, min_count: int = 1, max_size: int = 0
) -> Vocabulary:
    """Count the units of the training split and keep the frequent ones; as `rank_units`."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence)
    return rank_units(counts, level, min_count, max_size)


def rank_units(
    counts: Mapping[str, int], level: str, min_count: int = 1, max_size: int = 0
) -> Vocabulary:
    """The vocabulary of units that were counted, by falling frequency.

    Args:
      counts: unit -> occurrences in the training split; `<unk>` and `<eos>` are passed over.
      min_count: occurrences a unit needs.
      max_size: V at most, specials counted; 0: no limit.

    Raises:
      ValueError: if no unit is left.
    """
    units = counts.keys() - {UNKNOWN, END}
    ranked = sorted(units, key=lambda unit: (-counts[unit], unit))
    kept = [unit for unit in ranked if counts[unit] >= min_count]
    if max_size:
        kept = kept[: max(0, max_size - 2)]
    if not kept:
        raise ValueError(
            f"no unit occurs {min_count} times in the training text; lower min_count "
            "or give more text"
        )
    return Vocabulary((UNKNOWN, END, *kept), level)
