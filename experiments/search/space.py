"""The little language of a sweep: which options take which values. It is data; nothing is run.

    learning_rate=0.3,1,3      these values
    seed=0:8                   whole numbers from 0 up to and without 8; 0:64:16 in steps of 16
    forget_bias=lin(0,3,7)     7 values evenly from 0 to 3
    learning_rate=log(0.1,30,8)      8 values from 0.1 to 30, each the same factor from the last
    learning_rate=log(0.1,30)        a range that --samples draws from, as lin(0,3)

Axes are separated by spaces or lines; what follows a # is left out. An option is any of the
configuration that is swept, with the values that it takes on the command line.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import check_limits
from lm.tables import unknown_name

MOST_VALUES = 100_000  # of one axis
SPACED = re.compile(r"(lin|log)\(([^()]*)\)")
SPACE_AT_COMMA = re.compile(r"\S*(?:(?:,\s+|\s+,\s*)[^\s=,]+(?![^\s,]))+\S*")
SLICE = re.compile(r"(-?\d+):(-?\d+)(?::(\d+))?")
TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Axis:
    """An option and the values that it takes."""

    name: str
    values: tuple[Any, ...]  # empty: drawn from `low` to `high`
    low: float = 0.0
    high: float = 0.0
    logarithmic: bool = False  # of the range, or of the values' spacing
    whole: bool = False  # whole numbers

    def draw(self, rng: np.random.Generator) -> Any:
        """One value: any of the listed ones, or from anywhere in the range."""
        if self.values:
            return self.values[int(rng.integers(len(self.values)))]
        if self.logarithmic:
            drawn = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        else:
            drawn = float(rng.uniform(self.low, self.high))
        return round(drawn) if self.whole else float(f"{drawn:.4g}")


def read_text(sweep: str) -> str:
    """What `--sweep` says, or of @FILE what the file says.

    Raises:
      ValueError: no such file, or it is no text.
    """
    if not sweep.startswith("@"):
        return sweep
    path = Path(sweep[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(f"sweep names the file {path}: {reason}; wanted a text file") from None


def parse_axes(text: str, config: Any, excluded: Collection[str] = ()) -> tuple[Axis, ...]:
    """The axes of a sweep.

    Args:
      text: in the language above.
      config: a dataclass whose fields, those of nested dataclasses too, may be swept.
      excluded: fields that may not.

    Raises:
      ValueError: an option that is unknown or named twice, a value that it does not take.
    """
    fields = {name: field for name, field in each_field(config) if name not in excluded}
    lines = (line.partition("#")[0] for line in text.splitlines())
    axes: dict[str, Axis] = {}
    joined = " ".join(lines)
    if spaced := SPACE_AT_COMMA.search(joined):
        raise ValueError(
            f"sweep holds {spaced[0]!r}; wanted no spaces around commas: "
            f"{''.join(spaced[0].split())}"
        )
    for item in joined.split():
        name, equals, spec = item.partition("=")
        if not equals or not name:
            raise ValueError(
                f"sweep holds {item!r}; wanted NAME=VALUES, as learning_rate=log(0.1,30,8) "
                "forget_bias=0,1,3 seed=0:8, without spaces inside"
            )
        if name in excluded:
            raise ValueError(
                f"sweep names {name!r}, which cannot be swept: no two points may differ in it; "
                "wanted options of a training run, as learning_rate or hidden_size"
            )
        if name not in fields:
            raise ValueError(unknown_option(name, fields))
        if name in axes:
            raise ValueError(f"sweep names {name} twice; wanted each option once")
        axes[name] = parse_axis(name, spec, *fields[name])
    if not axes:
        raise ValueError(
            "sweep is empty; wanted options and their values, as --sweep="
            '"learning_rate=log(0.1,30,8) seed=0:4", or a file as --sweep=@FILE'
        )
    return tuple(axes.values())


def each_field(config: Any) -> Iterator[tuple[str, tuple[type, Mapping[str, Any]]]]:
    """(name, (type, limits)) of every option that one value can be given for."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from each_field(value)
        elif kinds[field.name] in (int, float, str, bool):
            yield field.name, (kinds[field.name], field.metadata)


def unknown_option(name: str, fields: Mapping[str, Any]) -> str:
    """The line that answers a typo: those that are close, or all."""
    close = difflib.get_close_matches(name, fields, n=3)
    if close:
        hint = " or ".join(map(repr, close))
        return f"sweep names {name!r}, which is no option; did you mean {hint}?"
    return unknown_name("sweep", name, dict(fields))


def parse_axis(name: str, spec: str, kind: type, limits: Mapping[str, Any]) -> Axis:
    """One axis from what stands behind its =."""
    values: list[Any] = []
    logarithmic = False
    for item in split_items(spec):
        if spaced := SPACED.fullmatch(item):
            logarithmic |= spaced[1] == "log"
            low, high, count = parse_range(name, item, spaced[1], spaced[2], kind)
            for end in (low, high):
                check_limits(name, kind(end) if kind is int else end, limits)
            if count is None:
                if split_items(spec) != [item]:
                    raise ValueError(f"sweep gives {name} {spec!r}; wanted the range {item} alone")
                return Axis(name, (), low, high, spaced[1] == "log", kind is int)
            between = np.geomspace if spaced[1] == "log" else np.linspace
            # Six digits, as a person would write them: 0.3 and not 0.30000000000000004.
            numbers = [float(f"{value:.6g}") for value in between(low, high, count)]
            values += [round(number) for number in numbers] if kind is int else numbers
        elif (sliced := SLICE.fullmatch(item)) and kind in (int, float):
            first, stop, step = int(sliced[1]), int(sliced[2]), int(sliced[3] or 1)
            if step < 1 or not 0 < len(range(first, stop, step)) <= MOST_VALUES:
                raise ValueError(f"sweep gives {name} {item!r}; wanted FIRST:STOP, as 0:8")
            values += map(kind, range(first, stop, step))
        else:
            values.append(parse_value(name, item, kind))
    for value in values:
        check_limits(name, value, limits)
    return Axis(name, tuple(dict.fromkeys(values)), logarithmic=logarithmic)


def split_items(spec: str) -> list[str]:
    """At the commas that are not within parentheses."""
    return re.split(r",(?![^()]*\))", spec)


def parse_range(
    name: str, item: str, kind: str, inside: str, option: type
) -> tuple[float, float, int | None]:
    """(low, high, how many values or None) of lin(...) or log(...)."""
    wanted = f"wanted {kind}(LOW,HIGH,COUNT), or {kind}(LOW,HIGH) with --samples"
    if option not in (int, float):
        raise ValueError(f"sweep gives {name} {item!r}, but it is no number; wanted its values")
    try:
        low, high, *count = (float(part) for part in inside.split(","))
    except ValueError:
        raise ValueError(f"sweep gives {name} {item!r}; {wanted}") from None
    if not np.isfinite([low, high]).all() or not low < high:
        raise ValueError(f"sweep gives {name} {item!r}, whose ends are not in order; {wanted}")
    if kind == "log" and low <= 0:
        raise ValueError(f"sweep gives {name} {item!r}; a logarithmic range starts above 0")
    if len(count) > 1 or any(n != int(n) or not 1 < n <= MOST_VALUES for n in count):
        raise ValueError(f"sweep gives {name} {item!r}; {wanted}, COUNT at least 2")
    return low, high, int(count[0]) if count else None


def parse_value(name: str, text: str, kind: type) -> Any:
    """A value as the command line takes it."""
    try:
        if kind is bool:
            return TRUTH[text.lower()]
        if text == "" and kind is not str:
            raise ValueError
        return kind(text)
    except (ValueError, KeyError):
        wanted = "true or false" if kind is bool else f"{kind.__name__}s, as 1,2,3"
        raise ValueError(f"sweep gives {name} {text!r}; wanted {wanted}") from None
