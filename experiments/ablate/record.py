"""What is known of each training run of a study, and the file that keeps it.

One JSON line a run, appended when the run ends: a study that is killed goes on after the last
whole line.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import run_folder

TUNING, FINAL = "tuning", "final"


@dataclass(frozen=True)
class Record:
    """One training run; its losses as `experiments.ablate.runs.Found` has them."""

    variant: str
    stage: str  # TUNING or FINAL
    seed: int
    learning_rate: float
    valid: float  # inf: it diverged
    test: float
    diverged_at: int | None  # step
    parameters: int
    lags_init: tuple[float, ...] = ()  # log ||dL_T/dh_{T - lag}||, lag 0 upward, nats
    lags_trained: tuple[float, ...] = ()

    @property
    def run(self) -> tuple[str, str, int, float]:
        """What makes it the same run as another."""
        return self.variant, self.stage, self.seed, self.learning_rate


class Records:
    """The runs of a study, in memory and in `runs.jsonl` of its folder."""

    def __init__(self, folder: Path):
        self._path = folder / "runs.jsonl"
        self._records: dict[tuple[str, str, int, float], Record] = {}
        lines = run_folder.MetricsLog.read(self._path)
        for line in lines:
            fields: dict[str, Any] = {name: from_json(value) for name, value in line.items()}
            self._keep(Record(**fields))
        if self._path.exists():  # without a torn last line
            run_folder.write_text(self._path, "".join(to_line(record) for record in self))

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __contains__(self, run: object) -> bool:
        return run in self._records

    def _keep(self, record: Record) -> None:
        self._records[record.run] = record

    def add(self, record: Record) -> None:
        """Keep a run, in the file first."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_line(record))
        self._keep(record)

    def of(self, variant: str, stage: str) -> list[Record]:
        """The runs of a variant at a stage, by rate and seed."""
        found = [r for r in self if (r.variant, r.stage) == (variant, stage)]
        return sorted(found, key=lambda record: (record.learning_rate, record.seed))

    def tuning_losses(self, variant: str) -> dict[float, np.ndarray]:
        """Validation losses of each rate that was tried, rates ascending."""
        runs = self.of(variant, TUNING)
        return {
            rate: np.asarray([r.valid for r in runs if r.learning_rate == rate])
            for rate in sorted({record.learning_rate for record in runs})
        }

    def best_rate(self, variant: str) -> float | None:
        """The rate of least mean validation loss over the tuning seeds; None: all diverged."""
        means = {rate: losses.mean() for rate, losses in self.tuning_losses(variant).items()}
        rate = min(means, key=lambda rate: means[rate])
        return rate if math.isfinite(means[rate]) else None


def to_line(record: Record) -> str:
    return json.dumps(run_folder.finite(asdict(record)), allow_nan=False) + "\n"


def from_json(value: object) -> object:
    """What `run_folder.finite` made of infinities and tuples, back."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    return float(value) if value in ("inf", "-inf") else value
