"""Which options train best? A grid, or a random search, over any options of train.

Points that differ in numbers alone (seed, learning rate, clip, forget bias, dropout, ...) go
through one compiled program; others get programs of their own. Each result is written as it comes,
into one SQLite table; a sweep that is killed goes on with --resume, and repeats no point that is
finished. Of a text it goes on with the runs that were under way, too, kept each minute; on a task
they begin anew. A point that diverges or fails is a row with its error. At the end: the best
settings, as means over seeds, what stands against them (a tie, one seed, a value at the end of its
range), figures, a page, and the share of the workers' time that the sweep took for itself, starting
and drawing left out. On a task, which is trained with Adam, fewer options may be swept (--sweep
below); there the loss of the best answer that remembers nothing is printed too. Points that differ
in what does nothing, as the forget bias of an RNN, are trained once.

    ./launch.sh sweep --sweep "learning_rate=log(0.3,30,5) forget_bias=0,1,3 seed=0:3" --steps=300
    ./launch.sh sweep --sweep "learning_rate=log(1e-4,1e-1) hidden_size=lin(16,128)" --samples=40
                      --optimizer=adam                    random search
    ./launch.sh sweep --sweep @options.txt --corpus=adding --length=50        from a file, on a task
    ./launch.sh sweep --run=runs/my_sweep --resume        go on where it stopped
    ./launch.sh sweep --sweep ... --executor=slurm        as jobs of a cluster

On this machine a worker process trains on each core of the CPU. A run of a sweep is the run that
`./launch.sh train` makes of the same options: the parameters that are best on validation count.
"""

from experiments import flags
from experiments.search.config import Config

if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import figures, report, run_folder
from experiments.fit.config import with_options
from experiments.fit.continuation import PLACES, flat, refuse_changes
from experiments.fit.signals import StopOnSignal
from experiments.search import cluster, pool, table
from experiments.search.board import Board
from experiments.search.config import cluster_names
from experiments.search.drawing import plot_sweep
from experiments.search.points import (
    SweepPoint,
    group_points,
    make_points,
    refuse_impossible,
)
from experiments.search.repeats import refuse_repeats
from experiments.search.space import read_text
from experiments.search.summary import ENDS, at_edge, format_settings, summarise
from experiments.search.table import Table
from experiments.search.training import TASK_STEPS, baseline, describe, failure
from lm.cells import CELLS

# Options that may change when a sweep goes on: who trains, and where the text lies.
HOW = ("executor", "workers", "retries", *PLACES, *cluster_names())
EXECUTORS = {"local": pool.train_locally, "slurm": cluster.train_on_slurm}


def run(config: Config) -> Path:
    """Train every point that is left, summarise, draw. Returns the run's folder."""
    # Workers inherit it: the memory of a GPU is taken as it is needed, so that several may share
    # it, and this process, which only hands out and writes, takes next to none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if config.resume:
        config = stored_config(config)
    axes = config.axes()
    swept = tuple(axis.name for axis in axes)
    points = make_points(axes, config.samples, config.draw_seed)
    impossible = refuse_impossible(config, points, Config.check_point)
    impossible |= refuse_repeats(config, points, swept, impossible)
    corpus = describe(config)
    if config.executor == "slurm":
        cluster.check_installed()
    folder = open_folder(config, corpus)
    with Table(folder, swept) as rows:
        rows.create(points)
        # What an earlier version has trained all the same stays as it is.
        impossible = {n: reason for n, reason in impossible.items() if n in rows.left()}
        for number, reason in impossible.items():
            rows.record(failure(number, reason) | {"status": "refused"})
        slurm = config.executor == "slurm"
        for record in cluster.finished_before(folder, rows.left(), wait=slurm):
            rows.record(record)
        if impossible:
            print(tell_refused(impossible, len(points)))
        left = rows.left() - impossible.keys()
        with StopOnSignal() as stop:
            spent = train_points(
                config, folder, rows, [p for p in points if p.number in left], stop
            )
        unfinished = rows.left() - impossible.keys()
        if stop.asked:
            possible = len(points) - len(impossible)
            print(f"{possible - len(unfinished)} of {in_words(possible)} are done; go on with: "
                  f"./launch.sh sweep --run={folder} --resume")  # fmt: skip
            return folder
    conclude(config, folder, spent)
    return folder


def stored_config(config: Config) -> Config:
    """The options of the sweep to go on with; what was typed beside --resume must be the same."""
    folder = run_folder.require(config.run)
    stored = run_folder.read_config(folder, Config, "sweep")
    # The words of a file were kept, and not its name.
    config = dataclasses.replace(config, sweep=read_text(config.sweep))
    refuse_changes(config, stored, HOW, "sweep anew")
    typed = flat(config)
    changed = {name: typed[name] for name in config.given if name in HOW and name in typed}
    return dataclasses.replace(with_options(stored, changed), run=config.run, resume=True)


def open_folder(config: Config, corpus: Mapping[str, Any]) -> Path:
    """The folder of a new sweep, or of the one that goes on.

    Raises:
      ValueError: the text is no longer the one that the sweep began with.
    """
    if not config.resume:
        folder = run_folder.create(config.run, "sweep")
        # The words of a file are kept: it may be changed before the sweep goes on.
        stored = dataclasses.replace(config, run=str(folder), sweep=read_text(config.sweep))
        run_folder.write_start(folder, stored, corpus)
        return folder
    folder = Path(config.run)
    began_with = run_folder.read_json(folder / "versions.json")["corpus"]
    if began_with.get("sha256") != corpus.get("sha256"):
        raise ValueError(
            f"corpus {config.data.corpus} has changed since {folder} was made; wanted the same text"
        )
    # Workers read where the text lies from the folder.
    moved = {name: getattr(config.data, name) for name in PLACES}
    run_folder.rewrite_config(
        folder, with_options(run_folder.read_config(folder, Config, "sweep"), moved)
    )
    return folder


def tell_refused(reasons: Mapping[int, str], count: int) -> str:
    """The first reason, and how many points are refused.

    Args:
      reasons: point -> why it is refused.
      count: of all points.
    """
    first = min(reasons)
    are = "is" if len(reasons) == 1 else "are"
    return f"{len(reasons)} of {in_words(count)} {are} refused, as point {first}: {reasons[first]}"


def in_words(count: int) -> str:
    """How many points."""
    return f"{count} point" if count == 1 else f"{count} points"


@dataclasses.dataclass
class Spent:
    """Where the time of a sweep went, seconds."""

    wall: float = 0.0
    training: float = 0.0  # of all workers together, compiling included
    waiting: float = 0.0  # of workers for points
    writing: float = 0.0  # of this process's processor, for all that it does meanwhile

    @property
    def bookkeeping(self) -> float:
        """Share of the workers' time that went to the sweep and not to training.

        Left out is what comes once: starting this process and the workers, reading the text, and
        the summary, figures and page at the end. They are in the whole command's time.
        """
        return (self.waiting + self.writing) / max(self.training + self.waiting, 1e-9)


def train_points(
    config: Config, folder: Path, rows: Table, points: Sequence[SweepPoint], stop: StopOnSignal
) -> Spent:
    """Have all points trained, and write down what comes of each."""
    spent, began, processor = Spent(), time.monotonic(), time.process_time()
    if not points:
        return spent
    groups = group_points(points, config)
    of = {point.number: point for point in points}
    programs = "one program" if len(groups) == 1 else f"{len(groups)} programs"
    rule = ", with Adam" if config.on_task else ""
    print(f"{in_words(len(points))} to train, {programs}{rule}: {folder}", flush=True)
    said: Iterator[Any] = EXECUTORS[config.executor](folder, config, groups)
    try:
        program = {p.number: k for k, group in enumerate(groups) for p in group.points}
        with Board(program, list(points[0].options), config.score) as board:
            for message in said:
                if stop.asked:
                    break
                if message is None:
                    continue
                spent.waiting += message.get("waited", 0.0)
                if message["say"] == "tick":
                    board.tick(message["taken"])
                if message["say"] == "note":
                    board.note(message["text"])
                if message["say"] == "record":
                    record = message["record"]
                    rows.record(record)
                    spent.training += record.get("seconds") or 0.0
                    board.record(record, of[record["number"]].options)
    finally:
        said.close()  # type: ignore[attr-defined]
    spent.wall = time.monotonic() - began
    spent.writing = time.process_time() - processor
    return spent


def conclude(config: Config, folder: Path, spent: Spent) -> None:
    """results.json, figures, the page, and what is printed at the end."""
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    rows = table.read_rows(folder)
    axes = config.axes()
    found = summarise(rows, [axis.name for axis in axes], config.score, score_name(config))
    if "best" in found:
        found["notes"] += at_edge(found["best"], axes, config)
        if config.on_task:
            own = {axis.name: found["best"][axis.name] for axis in axes if axis.name != "seed"}
            found["baseline"] = baseline(with_options(config, own))
    found |= times(folder, rows, spent)
    run_folder.write_json(folder / "results.json", found)
    paths = plot(folder)
    print(f"\n{format_settings(found)}\n")
    print(found.get("finding", "no point came to a result"))
    if "baseline" in found:
        print(f"the best answer that remembers nothing has a loss of {found['baseline']:.4g}")
    for note in found.get("notes", ()):
        print(note)
    counts = [f"{found[name]} {name}" for name in ENDS if found[name]]
    line = f"{', '.join(counts)} of {in_words(found['points'])}"
    if spent.training:
        line += f", {spent.wall:.0f} s{' in this call' if config.resume else ''}"
        line += f"; bookkeeping {spent.bookkeeping:.2%} of the workers' time"
    print(line)
    if found["refused"]:
        refused = {row["number"]: row["error"] for row in rows if row["status"] == "refused"}
        print(tell_refused(refused, len(rows)))
    report.run(report.Config(run=(str(folder),)))
    print(
        f"run: {folder}    table: {folder / table.NAME}"
        + (f"    figure: {paths[0]}" if paths else "")
    )
    if found["failed"]:
        failed = in_words(found["failed"])
        print(f"sweep: {failed} failed; --resume tries again", file=sys.stderr)


def times(folder: Path, rows: Sequence[Mapping[str, Any]], spent: Spent) -> dict[str, float]:
    """For results.json: of all calls what the points took, of the last that trained the rest."""
    took = {"training seconds of all workers": sum(row["seconds"] or 0.0 for row in rows)}
    if spent.training:
        return took | {"seconds": spent.wall, "bookkeeping": spent.bookkeeping}
    path = folder / "results.json"
    before = run_folder.read_json(path) if path.exists() else {}
    return took | {name: before[name] for name in ("seconds", "bookkeeping") if name in before}


def score_name(config: Config) -> str:
    """What the score is called."""
    return "loss after training" if config.on_task else "validation perplexity"


def plot(folder: Path) -> list[Path]:
    """The figures, from the run's folder alone."""
    config = run_folder.read_config(folder, Config, "sweep")
    results = run_folder.read_json(folder / "results.json")
    return plot_sweep(
        table.read_rows(folder),
        config.axes(),
        config.score,
        score_name(config),
        results.get("finding", ""),
        describe_rest(config),
        folder / "figures",
    )


def describe_rest(config: Config) -> str:
    """What all points have in common, for a caption: what is swept is on the axes."""
    steps = f"{config.epochs:g} epochs"
    if config.steps or config.on_task:
        steps = f"{config.steps or TASK_STEPS:,} steps"
    rule = "Adam" if config.on_task else figures.RULES[config.optim.optimizer]
    said = {
        "cell": CELLS[config.model.cell].name,
        "hidden_size": f"hidden size {config.model.hidden_size}",
        "forget_bias": f"forget bias {config.model.forget_bias:g}",
        "steps": steps,
        "optimizer": rule,
    }
    swept = {axis.name for axis in config.axes()}
    if "epochs" in swept:
        del said["steps"]
    rest = [text for name, text in said.items() if name not in swept]
    return ", ".join([f"on {Path(config.data.corpus).name}", *rest])


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
