"""Do the field's claims about recurrent networks hold, measured here and now?

Eight claims, each an experiment with several seeds: trains, measures, and holds the numbers
against a threshold fixed beforehand. Prints claim, measured value, threshold and verdict; writes
a table and a figure of each. The exit status is 1 if a claim fails.

    ./launch.sh claims                             under 6 minutes on 2 CPU cores
    ./launch.sh claims --only=C1,C5

C1  the gradient's slope is the top Lyapunov exponent; with forget bias 0 an LSTM vanishes like
    a tanh RNN
C2  temporal order: an LSTM with forget bias 1 learns it, with 0 it does not
C3  adding: an identity-initialised ReLU RNN learns it, a tanh RNN does not
C4  the same ReLU RNN needs gradient clipping
C5  copying: a tanh RNN stays at the memoryless baseline, an LSTM does not
C6  adding: chrono initialisation beats forget bias 1, which beats 0
C7  adding: an LSTM without input or forget gate, and with coupled gates
C8  a process of lag 5: the loss with a shortened context finds the lag and the Bayes loss
"""

# ruff: noqa: E402
from dataclasses import dataclass

from experiments import flags
from lm.config import option, validate
from lm.tables import LazyTable

CLAIMS: LazyTable = LazyTable(
    "claim",
    {
        "C1": ("experiments.claim.laboratory", "C1"),
        **{name: ("experiments.claim.studies", name) for name in ("C2", "C3", "C4", "C5")},
        **{name: ("experiments.claim.studies", name) for name in ("C6", "C7")},
        "C8": ("experiments.claim.laboratory", "C8"),
    },
)


@dataclass(frozen=True)
class Config:
    """Options of claims."""

    only: tuple[str, ...] = option((), "claims to settle, as C1,C5; empty: all", choices=CLAIMS)
    run: str = option("", "folder of the run; empty: runs/claims-<date>-<time>")

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import run_folder


def run(config: Config) -> Path:
    """Settle the claims; exit status 1 where one fails. Returns the run's folder."""
    folder = settle(config, CLAIMS)
    records = run_folder.read_json(folder / "results.json")["claims"]
    print(format_table(records))
    failed = [record["name"] for record in records if not record["passed"]]
    print(f"\nrun: {folder}    figures: {folder / 'figures'}")
    if failed:
        print(f"claims: {', '.join(failed)} failed", file=sys.stderr)
        sys.exit(1)
    return folder


def settle(config: Config, claims: Mapping[str, Any]) -> Path:
    """Measure, judge and draw the claims that are asked for, into the folder of a run.

    What is settled is written at once, so that a run cut short keeps it.
    """
    chosen = [claims[name] for name in claims if name in (config.only or claims)]
    folder = run_folder.create(config.run, "claims")
    run_folder.write_start(folder, config, {})
    records: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    layout = "{l_bar}{bar}| {elapsed}, {remaining} to go"
    total = sum(claim.seconds for claim in chosen)
    with tqdm(total=total, bar_format=layout, dynamic_ncols=True, smoothing=0.1) as bar:
        for claim in chosen:
            bar.set_description(claim.name)
            started = time.monotonic()
            outcome = claim.measure(
                lambda share, seconds=claim.seconds: bar.update(min(share * seconds, total - bar.n))
            )
            records.append(make_record(claim, outcome, time.monotonic() - started))
            arrays |= {f"{claim.name}/{key}": value for key, value in outcome.arrays.items()}
            run_folder.write_arrays(folder / "results.npz", arrays)
            run_folder.write_json(folder / "results.json", {"claims": records})
            plot(folder, claims, only=claim.name)
    return folder


def make_record(claim: Any, outcome: Any, seconds: float) -> dict[str, Any]:
    """What results.json holds of a claim."""
    return {
        "name": claim.name,
        "statement": claim.statement,
        "measured": outcome.measured,
        "threshold": claim.threshold,
        "passed": outcome.passed,
        "seconds": round(seconds, 1),
        "figure": claim.name.lower(),
        "finding": outcome.finding,
        "settings": claim.settings(),
        "table": {"columns": outcome.columns, "rows": outcome.rows},
    }


def format_table(records: list[dict[str, Any]]) -> str:
    """Claim, measured, threshold, verdict: the table that a run prints."""
    lines = []
    for record in records:
        verdict = "passed" if record["passed"] else "FAILED"
        lines.append(f"{record['name']}  {verdict}  {record['statement']}")
        measured = "; ".join(f"{key} {show(value)}" for key, value in record["measured"].items())
        for label, text in (("measured", measured), ("threshold", record["threshold"])):
            indent = f"{'':4}{label:11}"
            lines.append(
                textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=" " * 15)
            )
    passed = sum(record["passed"] for record in records)
    seconds = sum(record["seconds"] for record in records)
    lines.append(f"\n{passed} of {len(records)} claims passed, {seconds:.0f} s")
    return "\n".join(lines)


def show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(folder: Path, claims: Mapping[str, Any] = CLAIMS, only: str = "") -> list[Path]:
    """Draw the figures of a run from its folder alone."""
    arrays = run_folder.read_arrays(folder / "results.npz")
    paths: list[Path] = []
    for record in run_folder.read_json(folder / "results.json")["claims"]:
        name = record["name"]
        if only not in ("", name):
            continue
        own = {
            key.removeprefix(f"{name}/"): value
            for key, value in arrays.items()
            if key.startswith(f"{name}/")
        }
        paths += claims[name].plot(record, own, folder / "figures")
    return paths


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
