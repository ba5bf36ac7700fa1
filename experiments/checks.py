"""Does every measure of the gradient laboratory give the exact answer where one is known?

Sixteen measures, each held against laws with an exact answer: closed forms, products of explicit
Jacobians, plain autodiff of untied or stopped gradients, constructed spectra, a network that
answers like Bayes. Prints for each law the largest error in float64 and in float32 beside its
tolerance, and a verdict; writes results.json, of which `report` makes a table that sorts. The
exit status is 1 if one fails.

    ./launch.sh checks                     under a minute on 2 CPU cores, compilation included
    ./launch.sh checks --only=1,6

To expect: all passed; in float64 errors of 1e-11 nats at norms of e^-1300, in float32 of 1e-2.
"""

# ruff: noqa: E402
from dataclasses import dataclass

from experiments import flags
from experiments.laws import CHECKS, Law
from lm.config import option, validate

NUMBERS = tuple(map(str, CHECKS))
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Config:
    """Options of checks."""

    only: tuple[str, ...] = option((), "measures to check, as 1,6; empty: all", choices=NUMBERS)
    dtypes: tuple[str, ...] = option(DTYPES, "floating point types of the measures", choices=DTYPES)
    run: str = option("", "folder of the run; empty: runs/checks-<date>-<time>")

    def __post_init__(self) -> None:
        validate(self)
        if not self.dtypes or len(set(self.dtypes)) < len(self.dtypes):
            raise ValueError(
                f"dtypes is {','.join(self.dtypes)!r}; wanted float64, float32 or both, each once"
            )


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import jax

from experiments import run_folder

COLUMNS = {"number": 2, "measure": 18, "against": 46, "unit": 10}  # name -> width
ERROR_WIDTH = 18  # of an error beside its tolerance


def run(config: Config) -> Path:
    """Check the measures; exit status 1 where one fails. Returns the run's folder."""
    started = time.monotonic()
    folder = run_folder.create(config.run, "checks")
    run_folder.write_start(folder, config, {})
    print(format_header(config.dtypes))
    rows = []
    for number, measure in CHECKS.items():
        for law in measure.laws if str(number) in (config.only or NUMBERS) else ():
            about = {"number": number, "measure": measure.name, "against": law.statement}
            rows.append(about | {"unit": law.unit} | hold(law, config.dtypes))
            print(format_row(rows[-1], config.dtypes), flush=True)
    seconds = time.monotonic() - started
    failed = [row for row in rows if row["verdict"] != "passed"]
    results = {"passed": len(rows) - len(failed), "failed": len(failed), "seconds": seconds}
    run_folder.write_json(folder / "results.json", {**results, "rows": rows})
    print(f"\n{results['passed']} of {len(rows)} checks passed, {seconds:.0f} s    run: {folder}")
    if failed:
        names = ", ".join(f"{row['number']} ({row['against']})" for row in failed)
        print(f"checks: failed: {names}", file=sys.stderr)
        sys.exit(1)
    return folder


def hold(law: Law, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Error and tolerance of a law in each floating point type, and a verdict.

    A NaN passes nothing.
    """
    module, function = law.function.split(".")
    measure = getattr(importlib.import_module(f"experiments.laws.{module}"), function)
    found: dict[str, Any] = {}
    passed = True
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            error, tolerance = measure(dtype)
        passed &= error <= tolerance
        found |= {f"{dtype}_error": error, f"{dtype}_tolerance": tolerance}
    return found | {"verdict": "passed" if passed else "FAILED"}


def format_header(dtypes: tuple[str, ...]) -> str:
    names = {**COLUMNS, **dict.fromkeys(dtypes, ERROR_WIDTH)}
    cells = [f"{'' if name == 'number' else name:{width}}" for name, width in names.items()]
    return "  ".join([*cells, "verdict"])


def format_row(row: dict[str, Any], dtypes: tuple[str, ...]) -> str:
    """Number, measure, law, unit, error beside tolerance for each type, verdict."""
    cells = [f"{row[name]:{width}}" for name, width in COLUMNS.items()]
    for dtype in dtypes:
        error, tolerance = row[f"{dtype}_error"], row[f"{dtype}_tolerance"]
        sign = "<=" if error <= tolerance else "> "
        cells.append(f"{error:7.1e} {sign} {tolerance:g}".ljust(ERROR_WIDTH))
    return "  ".join([*cells, row["verdict"]])


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
