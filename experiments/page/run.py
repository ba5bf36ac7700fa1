"""What a report says about a run, read from the run's folder alone."""

import dataclasses
import importlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments import EXPERIMENTS, run_folder
from experiments.page import tables as report_tables
from experiments.page.svg import Figure, load_figures, words
from experiments.page.tables import Table, Value, value

SPLITS = {"valid": "validation", "test": "test"}
MOST_NUMBERS = 8
RESUMED = ("train", "ablation", "sweep")  # experiments that have --resume
LONGEST_TEXT = 100_000  # characters of a text file that are shown
PLACES = {"run", "resume", "out", "data.data_dir"}  # options that say where, and not what


class Option(NamedTuple):
    """One option of a run."""

    name: str
    value: Value
    default: Value
    changed: bool
    place: bool  # says where, and not what
    meaning: str


class Claim(NamedTuple):
    """A claim, what was measured, and whether it holds."""

    name: str
    statement: str
    measured: list[tuple[str, Value]]
    threshold: str
    passed: bool
    seconds: Value
    figure: Figure | None
    table: Table | None


@dataclass(frozen=True)
class Run:
    """A run as the page shows it."""

    anchor: str  # its id on the page
    folder: Path
    experiment: str
    started: float  # seconds since 1970
    command: list[str]  # words, quoted as a shell wants them
    config: Mapping[str, Any]  # by dotted name
    results: Mapping[str, Any] | None  # None: the run did not finish
    claims: list[Claim]
    figures: list[Figure]  # those that belong to no claim
    tables: list[Table]
    texts: dict[str, str]  # what it wrote to be read, by name
    options: dict[str, list[Option]]  # by section
    versions: list[tuple[str, Value]]
    last_step: Any  # the last that was logged

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def date(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started))

    @property
    def defaults_known(self) -> bool:
        return self.experiment in EXPERIMENTS

    @property
    def changed(self) -> list[Option]:
        options = (option for section in self.options.values() for option in section)
        return [option for option in options if option.changed and not option.place]

    @property
    def state(self) -> str:
        if self.claims:
            return f"{sum(c.passed for c in self.claims)} of {len(self.claims)} claims hold"
        return "finished" if self.results is not None else "unfinished"

    @property
    def resume(self) -> str:
        """The command that goes on with the run; empty where there is none."""
        if self.experiment not in RESUMED or self.results is not None:
            return ""
        return shlex.join(["./launch.sh", self.experiment, f"--run={self.folder}", "--resume"])

    @property
    def finding(self) -> str:
        """What the run found, in a sentence; empty where nothing says it."""
        results = self.results or {}
        given = results.get("finding")
        titled = [figure.title for figure in self.figures if figure.title]
        if isinstance(given, str):
            return given
        if self.claims:
            return self.state
        if titled and self.results is not None:
            return titled[0]
        said = [f"{v.text} on the {SPLITS[s]} text" for s, v in perplexities(results).items()]
        seeds = results.get("seeds")
        mean = f", means of {len(seeds)} seeds" if isinstance(seeds, list) else ""
        return f"Perplexity {' and '.join(said)}{mean}" if said else ""

    @property
    def numbers(self) -> list[tuple[str, Value]]:
        """The run's main numbers, each with its name."""
        results = self.results or {}
        single = report_tables.scalars_of(results)
        named = [(f"perplexity, {SPLITS[s]}", v) for s, v in perplexities(results).items()]
        named += [(words(k), value(v)) for k, v in single.items() if k not in SPLITS]
        return [(name, v) for name, v in named if v.number is not None][:MOST_NUMBERS]


def read_run(folder: Path, anchor: str) -> Run:
    """All that the page says about a run.

    Raises:
      ValueError: a file of it is damaged; says which.
    """
    stored = read_object(folder / "config.json")
    options, command = stored.get("config"), stored.get("command")
    words_given = isinstance(command, list) and all(isinstance(word, str) for word in command)
    if not isinstance(options, Mapping) or not command or not words_given:
        raise ValueError(
            f"{folder / 'config.json'} is damaged (no config, or no command); wanted what the "
            "experiment wrote"
        )
    results = read_object(folder / "results.json", missing=None)
    figures = load_figures(folder / "figures", f"{anchor}-", main=command[0])
    claims = read_claims(folder / "results.json", results or {}, figures)
    of_claims = [claim.figure for claim in claims]
    lines = read_metrics(folder / "metrics.jsonl")
    versions = report_tables.flatten(read_object(folder / "versions.json", missing={}))
    return Run(
        anchor=anchor,
        folder=folder,
        experiment=command[0],
        started=(folder / "config.json").stat().st_mtime,
        command=[shlex.quote(word) for word in ("./launch.sh", *command)],
        config=report_tables.flatten(options),
        results=results,
        claims=claims,
        figures=[figure for figure in figures if figure not in of_claims],
        tables=read_tables(folder, results or {}, lines),
        texts=read_texts(folder),
        options=compare_options(options, command[0]),
        versions=[(words(name), value(given)) for name, given in versions.items()],
        last_step=max(
            (line["step"] for line in lines if isinstance(line.get("step"), int)), default=0
        ),
    )


def read_object(path: Path, **default: Any) -> Any:
    """The dictionary in a JSON file; `missing` where there is no file and that is given.

    Raises:
      ValueError: it holds anything else.
    """
    if default and not path.exists():
        return default["missing"]
    try:
        stored = run_folder.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or remove it") from None
    if not isinstance(stored, Mapping):
        raise ValueError(
            f"{path} is damaged (it holds a {type(stored).__name__}); wanted an object"
        )
    return stored


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines that training logged, up to a torn one; none where there is no file.

    Raises:
      ValueError: it is no text.
    """
    try:
        lines = run_folder.MetricsLog.read(path) if path.exists() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or remove it") from None
    return [line for line in lines if isinstance(line, dict)]


def read_tables(
    folder: Path, results: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> list[Table]:
    """Results, then evaluations of the run's checkpoints, then what training logged."""
    unclaimed = {name: given for name, given in results.items() if name != "claims"}
    evaluation = read_object(folder / "evaluation.json", missing={})
    found = [
        *report_tables.find_tables(unclaimed),
        *report_tables.find_tables(evaluation, "evaluation"),
        *report_tables.metrics_tables(lines),
    ]
    return [table._replace(title=table.title or "Results").without_empty() for table in found]


def read_texts(folder: Path) -> dict[str, str]:
    """The text files of a run, by name."""
    return {
        words(path.stem): path.read_text(encoding="utf-8", errors="replace")[:LONGEST_TEXT]
        for path in sorted(folder.glob("*.txt"))
    }


def read_claims(path: Path, results: Mapping[str, Any], figures: Sequence[Figure]) -> list[Claim]:
    """The claims of a run of `claims`, each with its figure and its table.

    Raises:
      ValueError: they are not what `claims` writes.
    """
    by_stem = {figure.stem: figure for figure in figures}
    claims = []
    given = results.get("claims", [])
    for claim in given if isinstance(given, list) else [given]:
        try:
            table = claim.get("table")
            claims.append(
                Claim(
                    name=str(claim["name"]),
                    statement=str(claim["statement"]),
                    measured=[(k, value(v)) for k, v in claim["measured"].items()],
                    threshold=str(claim["threshold"]),
                    passed=claim["passed"] is True,
                    seconds=value(claim.get("seconds")),
                    figure=by_stem.get(claim.get("figure")),
                    table=report_tables.from_columns("", table) if table else None,
                )
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged (a claim: {error}); run claims again") from None
    return claims


def perplexities(results: Mapping[str, Any]) -> dict[str, Value]:
    """By split; of several models the best, with its cell."""
    found: dict[str, Value] = {}
    for split in SPLITS:
        given = results.get(split)
        if isinstance(given, Mapping):
            given = given.get("perplexity")
        if isinstance(given, (int, float)):
            found[split] = value(given)
            continue
        rows = results.get("rows")
        measured = [
            row
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, Mapping) and isinstance(row.get(split), (int, float))
        ]
        if measured:
            best = min(measured, key=lambda row: float(row[split]))
            found[split] = value(best[split])._replace(note=str(best.get("cell", "")))
    return found


def compare_options(config: Mapping[str, Any], experiment: str) -> dict[str, list[Option]]:
    """A run's options by section, beside the experiment's defaults."""
    defaults, meanings = read_defaults(experiment)
    sections: dict[str, list[Option]] = {}
    for name, given in report_tables.flatten(config).items():
        section, _, short = name.rpartition(".")
        if short == "given":  # which of them were typed: the command says so
            continue
        default = defaults.get(name)
        changed = name in defaults and default != given
        option = Option(
            short, value(given), value(default), changed, name in PLACES, meanings.get(name, "")
        )
        sections.setdefault(words(section) or experiment, []).append(option)
    return sections


def read_defaults(experiment: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(defaults, meanings) of an experiment's options, by dotted name; empty if it is unknown."""
    if experiment not in EXPERIMENTS:
        return {}, {}
    config = importlib.import_module(f"experiments.{experiment}").Config()
    as_json = run_folder.finite(dataclasses.asdict(config))
    return report_tables.flatten(as_json), read_meanings(config)


def read_meanings(config: Any, prefix: str = "") -> dict[str, str]:
    """The help of every option, nested dataclasses included."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(inner := getattr(config, field.name)):
            found |= read_meanings(inner, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field.metadata.get("help", "")
    return found
