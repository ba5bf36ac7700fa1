"""Take a network apart: which piece matters, is the difference real, and what of the gradient?

One study changes one thing at a time. Each variant gets its own learning rate, the best of a grid
on a few tuning seeds, all on the same budget; then as many fresh seeds at that rate as all the
others. A table and a forest plot hold each against the baseline: the ratio of perplexities (of
losses, on a task) with its interval, a paired test over the seeds, corrected for the number of
comparisons, and the verdict. Beside it the gradient flow at the start and after training.

    ./launch.sh ablation                               the LSTM's gates on Austen, under half an
                                                       hour on 2 CPU cores
    ./launch.sh ablation --study=forget_bias --corpus=adding --lags=100
    ./launch.sh ablation --study=truncation --corpus=my_book.txt --seeds=10
    ./launch.sh ablation --run=runs/gates --resume     go on where it stopped

The default is a small model that reads a part of the text once: H = 64, the 2,000 commonest words,
800 steps. What it shows, it shows of that.
"""

# ruff: noqa: E402
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments import flags
from experiments.ablate.studies import STUDIES
from experiments.fit.config import Config as TrainConfig
from experiments.fit.idle import refuse_idle as refuse_idle_options
from experiments.flow.sources import refuse_idle, refuse_near_name
from lm.config import DataConfig, ModelConfig, OptimConfig, option, validate
from lm.task_lengths import LEAST_STEPS

STUDY_HELP = "what is changed" + "".join(f"\n        {n}: {s.question}" for n, s in STUDIES.items())
FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the rate that suits the cell
TASK_RATE = 2e-3  # of Adam


@dataclass(frozen=True)
class Config:
    """Options of ablation."""

    # Tuned for each variant; and what wants evaluations along the way.
    omit: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "averaging", "patience", "early_stop", "given"),
    )

    study: str = option("gates", STUDY_HELP, choices=STUDIES)
    variants: tuple[str, ...] = option(
        (), "variants to compare with the first of the study, by name; empty: all"
    )
    rates: tuple[float, ...] = option(
        (),
        "learning rates to choose from, each variant for itself; empty: 1/2, 1, 2 and 4 times "
        "what suits the cell with SGD, or 0.002 on a task",
        above=0,
    )
    tuning_seeds: int = option(2, "runs at each rate, seeded 0 upward", least=1, most=1000)
    seeds: int = option(
        8, "runs at the best rate, seeded after those of the tuning", least=2, most=10_000
    )
    steps: int = option(
        800, "training steps; of longer chunks fewer, so that all read as much text", least=1
    )
    lags: int = option(
        64,
        "steps back that the gradient is followed; on a task the steps of its sequences",
        least=8,
    )
    windows: int = option(64, "stretches of text, or sequences, that it is averaged over", least=1)
    run: str = option("", "folder of the run; empty: runs/ablation-<date>-<time>")
    resume: bool = option(False, "go on with the run in --run, with the options it was made with")
    data: DataConfig = DataConfig(max_vocabulary=2000)
    model: ModelConfig = ModelConfig(hidden_size=64, embedding_size=64)
    optim: OptimConfig = OptimConfig(schedule="cosine")
    given: tuple[str, ...] = option((), "names of the options that were typed")

    def __post_init__(self) -> None:
        validate(self)
        if self.resume and not self.run:
            raise ValueError("resume needs --run=FOLDER, the run to go on with")
        if not self.resume:
            check(self)

    @property
    def on_task(self) -> bool:
        """Whether the networks learn a task of lm.tasks."""
        return self.data.corpus in LEAST_STEPS


def check(config: Config) -> None:
    """Raise ValueError for options that do not go together, or do nothing."""
    study, corpus = STUDIES[config.study], config.data.corpus
    if config.on_task and study.on == "text":
        raise ValueError(
            f"study is {config.study} on the task {corpus}, whose networks have one layer; "
            "wanted a text"
        )
    for name in config.given:
        if name in study.fixes:
            raise ValueError(f"{name} is what study {config.study} sets itself; leave it out")
    if corpus == "noise":
        raise ValueError("corpus is noise, from which nothing is learnt; wanted a text or a task")
    if config.on_task:
        if config.lags < LEAST_STEPS[corpus]:
            raise ValueError(
                f"lags is {config.lags}; {corpus} wants at least {LEAST_STEPS[corpus]}"
            )
        refuse_idle(config, "task")
    else:
        refuse_near_name(corpus)
        typed = tuple(n for n in config.given if (config.study, n) != ("init", "init_range"))
        refuse_idle_options(
            TrainConfig(data=config.data, model=config.model, optim=config.optim, given=typed)
        )
    stream = config.data.batching == "stream" and not config.data.random_length
    if config.study in ("truncation", "length") and not stream:
        raise ValueError(
            f"study is {config.study}, of how long chunks of a stream are; wanted batching=stream "
            "without random_length"
        )
    if config.optim.schedule == "plateau":
        raise ValueError(
            "schedule is plateau, which wants evaluations while it trains, and there are none "
            "here; wanted constant, step or cosine"
        )
    if len(set(config.rates)) < len(config.rates):
        raise ValueError(f"rates are {','.join(map(str, config.rates))}; wanted each once")


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from experiments import run_folder
from experiments.ablate import drawing, summary
from experiments.ablate.record import FINAL, TUNING, Record, Records
from experiments.ablate.runs import Runs, TaskRuns, TextRuns
from experiments.ablate.setting import Setting
from experiments.ablate.studies import Variant
from experiments.fit.continuation import PLACES, refuse_changes
from experiments.fit.signals import StopOnSignal
from lm.cells import CELLS
from lm.optim import ADAPTIVE_RATE
from lm.tables import unknown_name
from lm.tasks import make_task


class StoppedError(Exception):
    """The user asked to stop."""


def run(config: Config) -> Path:
    """Tune, train, compare, draw. Returns the run's folder."""
    folder = run_folder.require(config.run) if config.resume else None
    config = stored_config(config, folder) if folder else config
    variants = choose_variants(config)
    settings_of(config, variants)  # before there is a folder: what does not go together is said
    runs: Runs = (
        TaskRuns(config.data.corpus, config.windows)
        if config.on_task
        else TextRuns(config.data, config.lags, config.windows)
    )
    if folder:
        check_corpus(folder, runs)
    else:
        folder = run_folder.create(config.run, "ablation")
        if runs.vocabulary is not None:
            run_folder.write_vocabulary(folder, runs.vocabulary)
        stored = dataclasses.replace(config, run=str(folder))
        run_folder.write_start(folder, stored, runs.corpus)
    records = Records(folder)
    began = time.monotonic()
    with StopOnSignal() as stop:
        try:
            train_all(config, variants, runs, records, stop)
        except StoppedError:
            print(f"stopped; go on with: ./launch.sh ablation --run={folder} --resume")
            return folder
    conclude(config, folder, variants, records, time.monotonic() - began)
    return folder


def stored_config(config: Config, folder: Path) -> Config:
    """The options of the run to go on with; those typed beside --resume must be the same."""
    stored = run_folder.read_config(folder, Config, "ablation")
    refuse_changes(config, stored, PLACES, "begin a new run")
    places = {name: getattr(config.data, name) for name in PLACES if name in config.given}
    data = dataclasses.replace(stored.data, **places)
    return dataclasses.replace(stored, run=config.run, data=data, resume=True)


def check_corpus(folder: Path, runs: Runs) -> None:
    """Raise ValueError where the text is another one than the run began with."""
    made_with = run_folder.read_json(folder / "versions.json")["corpus"]
    if made_with != runs.corpus:
        raise ValueError(
            f"corpus {runs.corpus['name']} has changed since {folder} was made; wanted the same"
        )


def choose_variants(config: Config) -> list[Variant]:
    """The baseline, and those that are asked for.

    Raises:
      ValueError: a name that the study does not have.
    """
    variants = STUDIES[config.study].variants(config, config.on_task)
    known = {variant.name: variant for variant in variants}
    for name in config.variants:
        if name not in known:
            raise ValueError(unknown_name("variants", name, known))
    asked = config.variants or tuple(known)
    return [v for v in variants if v is variants[0] or v.name in asked]


def settings_of(config: Config, variants: list[Variant]) -> dict[str, Setting]:
    """Each variant's network and training, by its name.

    Raises:
      ValueError: a variant does not go with the run's options.
    """
    base = Setting(config.data, config.model, config.optim, config.steps, config.lags)
    settings = {}
    for variant in variants:
        try:
            settings[variant.name] = base.of(variant.options)
        except ValueError as error:
            raise ValueError(f"variant {variant.name} of study {config.study}: {error}") from None
    return settings


def rates_of(config: Config, setting: Setting) -> list[float]:
    """The grid that a variant's learning rate is chosen from, ascending."""
    suits = CELLS[setting.model.cell].learning_rate
    if config.on_task:
        suits = TASK_RATE
    elif setting.optim.optimizer != "sgd":
        suits = ADAPTIVE_RATE
    return sorted(config.rates or (suits * factor for factor in FACTORS))


def train_all(
    config: Config, variants: list[Variant], runs: Runs, records: Records, stop: StopOnSignal
) -> None:
    """Every run of the study that is not in `records` yet, variant after variant.

    Raises:
      StoppedError: `stop` was asked; what was finished is kept.
    """
    settings = settings_of(config, variants)
    grids = {name: rates_of(config, setting) for name, setting in settings.items()}
    fresh = range(config.tuning_seeds, config.tuning_seeds + config.seeds)
    total = sum(len(grid) * config.tuning_seeds + config.seeds for grid in grids.values())
    done = sum(1 for _ in records)
    layout = "{l_bar}{bar}| {elapsed}, {remaining} to go{postfix}"
    with tqdm(
        total=total, initial=done, bar_format=layout, dynamic_ncols=True, smoothing=0.05
    ) as bar:

        def advance(share: float) -> None:
            bar.update(min(share, total - bar.n))
            if stop.asked:
                raise StoppedError

        for variant in variants:
            name, setting = variant.name, settings[variant.name]
            bar.set_description(variant.label)
            tuning = [(seed, rate) for rate in grids[name] for seed in range(config.tuning_seeds)]
            train(runs, records, variant, TUNING, setting, tuning, advance)
            rate = records.best_rate(name)
            if rate is None:
                bar.write(f"{variant.label}: diverged at every rate", file=sys.stderr)
                continue
            final = [(seed, rate) for seed in fresh]
            train(runs, records, variant, FINAL, setting, final, advance)


def train(
    runs: Runs,
    records: Records,
    variant: Variant,
    stage: str,
    setting: Setting,
    points: list[tuple[int, float]],
    advance: Callable[[float], object],
) -> None:
    """The runs of one variant at one stage that are not kept yet, each kept as it ends."""
    left = [(s, rate) for s, rate in points if (variant.name, stage, s, rate) not in records]
    if not left:
        return
    found = runs.train(setting, left, advance, measure=stage == FINAL)
    for (seed, rate), result in zip(left, found, strict=True):
        records.add(Record(variant.name, stage, seed, rate, *result))


def conclude(
    config: Config, folder: Path, variants: list[Variant], records: Records, seconds: float
) -> None:
    """Compare, write, draw, print."""
    study = STUDIES[config.study]
    steps = {name: setting.steps for name, setting in settings_of(config, variants).items()}
    rows = summary.summarise(records, variants, steps)
    table = summary.format_table(rows, study, config.on_task)
    blind = make_task(config.data.corpus, config.lags).baseline if config.on_task else None
    note = summary.footnote(config.seeds, config.tuning_seeds, rows, study, blind)
    finding = summary.headline(rows, config.on_task)
    run_folder.write_text(folder / "table.txt", f"{table}\n\n{note}\n")
    run_folder.write_arrays(folder / "results.npz", summary.arrays_of(records, variants))
    results: dict[str, Any] = {
        "study": config.study,
        "question": study.question,
        "finding": finding,
        "runs": sum(1 for _ in records),
        "seconds": seconds,  # of this call: one that goes on has the rest alone
        "rows": rows,
    }
    if blind is not None:
        results["blind_loss"] = blind  # of the best answer that sees nothing
    run_folder.write_json(folder / "results.json", results)
    paths = plot(folder)
    print(f"{table}\n\n{note}\n\n{finding}")
    print(f"run: {folder}    figure: {paths[0]} and {len(paths) - 1} more    {seconds:.0f} s")


def plot(folder: Path) -> list[Path]:
    """Draw the figures of a run from its folder alone: PNG files, the main one first."""
    return drawing.plot(folder)


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
