"""One page about one run or several: HTML that needs no network and no other file.

The finding, the command that made the run, figures, tables that sort, claims with their
verdicts, options beside their defaults, versions. Several runs are compared in a first table.
The page is made from the runs' folders alone; a run that was killed has one too.

    ./launch.sh report                             the newest run below runs/
    ./launch.sh report runs/a runs/b --out=both.html
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of report."""

    rest: ClassVar[str] = "run"  # what is no flag names a run

    run: tuple[str, ...] = option((), "folders of runs; empty: the newest below runs/")
    out: str = option(
        "", "the page; empty: report.html in the run's folder, runs/report.html for several"
    )

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import base64
import hashlib
import json
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from experiments import run_folder
from experiments.page.run import PLACES, SPLITS, Run, perplexities, read_run
from experiments.page.svg import words
from experiments.page.tables import Table, Value, value

HERE = Path(__file__).parent / "page"
# Options that have a column of their own.
COMPARED = {"cell", "cells", "model.cell", "corpus", "data.corpus", "seed", "seeds"}
MOST_DIFFERENCES = 8


def run(config: Config) -> Path:
    """Read the runs, write the page. Returns its path."""
    names = list(dict.fromkeys(config.run)) or [newest_run()]
    folders = [run_folder.require(name) for name in names]
    page = render([read_run(folder, f"run{n}") for n, folder in enumerate(folders, 1)])
    place = folders[0] if len(folders) == 1 else Path("runs")
    out = Path(config.out) if config.out else place / "report.html"
    try:
        if out.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(out, page)
    except OSError as error:
        raise ValueError(
            f"out {out} cannot be written ({error.strerror}); give an --out that can"
        ) from None
    print(f"report: {out}    {len(page.encode()) / 1e6:.2f} MB")
    return out


def newest_run() -> str:
    """The run below runs/ that began last.

    Raises:
      ValueError: there is none.
    """
    configs = list(Path("runs").glob("*/config.json"))
    if not configs:
        raise ValueError("there is no run below runs/; wanted one, as ./launch.sh report FOLDER")
    return str(max(configs, key=lambda path: path.stat().st_mtime).parent)


def render(runs: Sequence[Run]) -> str:
    """The page about these runs."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.jinja").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=runs,
        comparison=compare(runs) if len(runs) > 1 else None,
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The browser itself refuses other scripts and every request.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
    )
    # A command line may hold bytes that are no text, kept as lone surrogates.
    return page.lstrip().encode("utf-8", "backslashreplace").decode()


def compare(runs: Sequence[Run]) -> Table:
    """A row for each run: what it is, what it found, and the options in which runs differ."""
    differing = differences(runs)
    columns = ["run", "experiment", "state", "cell", "corpus", "seeds"]
    columns += [f"{SPLITS[split]} perplexity" for split in SPLITS]
    columns += [words(name.rpartition(".")[2]) for name in differing] + ["date"]
    rows = []
    for run in runs:
        found = perplexities(run.results or {})
        rows.append(
            [
                Value(run.name, anchor=run.anchor),
                value(run.experiment),
                value(run.state),
                value(first(run, "cells", "model.cell", "cell")),
                value(first(run, "data.corpus", "corpus")),
                value(first(run, "seeds") or (1 if "seed" in run.config else None)),
                *(found.get(split, Value("-")) for split in SPLITS),
                *(value(run.config.get(name)) for name in differing),
                Value(run.date, run.started),
            ]
        )
    return Table("Comparison", columns, rows).without_empty()


def first(run: Run, *names: str) -> Any:
    """The first of these options that the run has."""
    return next((run.config[name] for name in names if name in run.config), None)


def differences(runs: Sequence[Run]) -> list[str]:
    """Options that several of the runs have and in which they differ."""
    given: dict[str, list[str]] = {}
    for run in runs:
        for name, item in run.config.items():
            if name not in PLACES | COMPARED:
                given.setdefault(name, []).append(json.dumps(item))
    return [name for name, items in given.items() if len(set(items)) > 1][:MOST_DIFFERENCES]


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
