"""What a sweep shows while it runs: a bar, and the best points so far below it."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

LEADERS = 5
ENOUGH = 0.25  # of the points, after which the rest is foreseen though programs are not begun
AT_ONCE = 1.0  # seconds: points that end so close together are of one wave
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Board:
    """The bar and the table of a running sweep; open it with `with`.

    At a terminal the best points are kept up to date below the bar; elsewhere each finished
    point is a line.
    """

    def __init__(self, program: Mapping[int, int], swept: Sequence[str], score: str):
        """
        Args:
          program: point to be trained -> its program. How long the rest takes is shown when each
            has been compiled.
          swept: options that differ from point to point.
          score: field of a record that is to be small.
        """
        self._program, self._not_begun = program, set(program.values())
        self._swept, self._score = swept, score
        self._live = sys.stderr.isatty()
        self._best: list[tuple[float, str]] = []
        self._not_finished = {"diverged": 0, "failed": 0}
        self._steps, self._began = 0, time.monotonic()
        self._rate_from: tuple[float, int] | None = None  # (when, points done), programs compiled
        self._last = 0.0  # when a point ended
        self._bar: Any = tqdm(
            total=len(program),
            bar_format=FORMAT,
            unit="point",
            dynamic_ncols=True,
            mininterval=0.1 if self._live else 10.0,
        )
        self._lines: list[Any] = []
        header = self._row(swept, score)
        if self._live:
            self._lines = [
                tqdm(total=0, bar_format="{desc}", position=1 + k, leave=False)
                for k in range(1 + LEADERS)
            ]
            self._lines[0].set_description_str(header)
        else:
            self._bar.write(header, file=sys.stdout)

    def tick(self, taken: int) -> None:
        """Steps that were trained since the last tick."""
        self._steps += taken
        self._say()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._bar.write(f"sweep: {text}", file=sys.stderr)

    def record(self, record: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """A point is finished."""
        score = record.get(self._score)
        status = record["status"]
        values = [show(options[name]) for name in self._swept]
        row = self._row(values, status if score is None else f"{score:.4g}")
        if status in self._not_finished:
            self._not_finished[status] += 1
        if status == "failed":
            self._bar.write(f"point {record['number']} failed: {record['error']}", file=sys.stderr)
        if score is not None and math.isfinite(score):
            self._best = sorted([*self._best, (score, row)])[:LEADERS]
        if self._live:
            for line, (_, text) in zip(self._lines[1:], self._best, strict=False):
                line.set_description_str(text)
        else:
            self._bar.write(row, file=sys.stdout)
        self._not_begun.discard(self._program[record["number"]])
        self._bar.update()
        self._last = time.monotonic()
        if not self._not_begun or self._bar.n > ENOUGH * len(self._program):
            since, _ = self._rate_from or (self._last, 0)
            if self._last - since < AT_ONCE:
                self._rate_from = since, self._bar.n
        self._say()

    def seconds_left(self) -> float | None:
        """At the pace since all programs were compiled; None where it is not known."""
        if self._rate_from is None:
            return None
        since, before = self._rate_from
        if self._bar.n == before:
            return None
        pace = (self._last - since) / (self._bar.n - before)
        now = time.monotonic()
        return max(0.0, pace * (self._bar.total - self._bar.n) - (now - self._last))

    def _row(self, values: Sequence[str], score: str) -> str:
        widths = [max(len(name), 9) for name in self._swept]
        cells = [f"{value:>{width}}" for value, width in zip(values, widths, strict=True)]
        return "  ".join([*cells, f"{score:>9}"])

    def _say(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        said = [f"{self._steps / seconds:,.0f} steps/s"] if self._steps else []
        left = self.seconds_left()
        said += [] if left is None else [f"{tqdm.format_interval(left)} left"]
        said += [f"{count} {what}" for what, count in self._not_finished.items() if count]
        self._bar.set_postfix_str(", ".join(said), refresh=False)

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for line in reversed(self._lines):
            line.close()
        self._bar.close()


def show(value: Any) -> str:
    """An option's value in a column."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
