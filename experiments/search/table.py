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
PATIENCE = 60.0  # seconds that another process is waited for
RESULTS = {
    "status": "text not null default 'waiting'",  # or finished, diverged, failed, refused
    "valid": "real",  # perplexity of the best parameters
    "test": "real",
    "loss": "real",  # on a task, after training, and there the share of wrong answers
    "wrong": "real",
    "best_step": "integer",
    "last_step": "integer",
    "seconds": "real",  # that it was trained for; of points that went side by side each one's share
    "finished_at": "real",  # seconds since 1970
    "error": "text",
    "curve": "text",  # JSON: [step, validation perplexity] of each evaluation
}


class Table:
    """The points of a sweep and what is known about each; open it with `with`.

    What SQLite refuses is a ValueError, of one line.
    """

    def __init__(self, folder: Path, swept: Sequence[str]):
        """
        Args:
          folder: of the run.
          swept: names of the options that differ from point to point.
        """
        self._swept = tuple(swept)
        self._path = folder / NAME
        with self._in_words():
            self._db = sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)
        self._db.row_factory = sqlite3.Row

    def create(self, points: Iterable[SweepPoint]) -> None:
        """A row for each point, all at once; nothing where they are there already.

        Raises:
          ValueError: other points are there.
        """
        with self._transaction():
            if self._db.execute("select 1 from sqlite_master where name = 'points'").fetchone():
                self._refuse_others(points)
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
        with self._in_words():
            return [dict(row) for row in self._db.execute("select * from points order by number")]

    def left(self) -> set[int]:
        """Numbers of the points that are to be trained: neither finished nor diverged."""
        waiting = "status not in ('finished', 'diverged')"
        with self._in_words():
            return {r[0] for r in self._db.execute(f"select number from points where {waiting}")}

    def _refuse_others(self, points: Iterable[SweepPoint]) -> None:
        there = {row["number"]: row for row in self.rows()}
        wanted = {point.number: point.options for point in points}
        if there.keys() != wanted.keys() or any(
            there[number].get(name) != value
            for number, options in wanted.items()
            for name, value in options.items()
        ):
            raise ValueError(
                f"{self._path} holds other points than the options of the run make, those of "
                "another version; wanted to sweep anew"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        with self._in_words():
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it
                    self._db.execute("rollback")
                raise

    @contextlib.contextmanager
    def _in_words(self) -> Any:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, full, or no table in it
            raise ValueError(
                f"{self._path} cannot be used ({error}); wanted a sweep's table that no other "
                "process is at, and room on the disk"
            ) from None
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self._path} is damaged ({error}); restore it, or sweep anew"
            ) from None

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
      ValueError: there is no table, or it cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        raise ValueError(f"{path} is not there; wanted the folder of a sweep")
    with Table(folder, ()) as table:
        rows = table.rows()
    for row in rows:
        row["curve"] = json.loads(row["curve"]) if row["curve"] else []
    return rows


def is_result(row: Mapping[str, Any], score: str) -> bool:
    """Whether a row has the number that points are judged by."""
    return row["status"] == "finished" and row[score] is not None and math.isfinite(row[score])
