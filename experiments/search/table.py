"""The table of a sweep: one row a point, in SQLite, each result in a transaction of its own.

    sqlite3 runs/s/sweep.sqlite "select learning_rate, avg(valid) from points group by 1"

One process alone writes it, the one that runs the sweep; a kill at any moment leaves all rows
that were written. Options that are swept are columns of their own names.
"""

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments.search.points import SweepPoint

NAME = "sweep.sqlite"
RESULTS = {
    "status": "text not null default 'waiting'",  # waiting, finished, diverged, failed
    "valid": "real",  # perplexity of the best parameters
    "test": "real",
    "loss": "real",  # on a task, after training, and there the share of wrong answers
    "wrong": "real",
    "best_step": "integer",
    "last_step": "integer",
    "seconds": "real",  # that it was trained for
    "finished_at": "real",  # seconds since 1970
    "error": "text",
    "curve": "text",  # JSON: [step, validation perplexity] of each evaluation
}


class Table:
    """The points of a sweep and what is known about each; open it with `with`."""

    def __init__(self, folder: Path, swept: Sequence[str]):
        """
        Args:
          folder: of the run.
          swept: names of the options that differ from point to point.
        """
        self._swept = tuple(swept)
        self._db = sqlite3.connect(folder / NAME, timeout=60, isolation_level=None)
        self._db.row_factory = sqlite3.Row

    def create(self, points: Iterable[SweepPoint]) -> None:
        """A row for each point, all at once; nothing where they are there already."""
        with self._transaction():
            if self._db.execute("select 1 from sqlite_master where name = 'points'").fetchone():
                return
            columns = [f'"{name}"' for name in self._swept]
            columns += [f"{name} {kind}" for name, kind in RESULTS.items()]
            self._db.execute(
                f"create table points (number integer primary key, {', '.join(columns)})"
            )
            names = ", ".join(["number", *(f'"{name}"' for name in self._swept)])
            marks = ", ".join("?" * (1 + len(self._swept)))
            self._db.executemany(
                f"insert into points ({names}) values ({marks})",
                ([p.number, *(p.options[name] for name in self._swept)] for p in points),
            )

    def record(self, record: Mapping[str, Any]) -> None:
        """What has become of a point; on the disk when this returns."""
        found = {name: value for name, value in record.items() if name in RESULTS}
        found["finished_at"] = time.time()
        found["error"] = record.get("error")
        if "curve" in found:
            found["curve"] = json.dumps(found["curve"])
        changes = ", ".join(f"{name} = ?" for name in found)
        with self._transaction():
            self._db.execute(
                f"update points set {changes} where number = ?", [*found.values(), record["number"]]
            )

    def rows(self) -> list[dict[str, Any]]:
        """Every row, in the order of the points."""
        return [dict(row) for row in self._db.execute("select * from points order by number")]

    def left(self) -> set[int]:
        """Numbers of the points that are to be trained: neither finished nor diverged."""
        done = "status in ('finished', 'diverged')"
        return {row[0] for row in self._db.execute(f"select number from points where not {done}")}

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    def __enter__(self) -> "Table":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's table, with `curve` as a list.

    Raises:
      ValueError: there is no table, or it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        raise ValueError(f"{path} is not there; wanted the folder of a sweep")
    try:
        with Table(folder, ()) as table:
            rows = table.rows()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or sweep anew") from None
    for row in rows:
        row["curve"] = json.loads(row["curve"]) if row["curve"] else []
    return rows


def is_result(row: Mapping[str, Any], score: str) -> bool:
    """Whether a row has the number that points are judged by."""
    return row["status"] == "finished" and row[score] is not None and math.isfinite(row[score])
