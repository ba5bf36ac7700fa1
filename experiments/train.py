"""Train a recurrent language model on any text, word after word.

J = mean over tokens of the cross-entropy of the next word; perplexity = exp(J). Logs and draws
the perplexity of the validation text after each epoch; at the end prints both texts' for the
checkpoint that was best on validation.

    ./launch.sh train                                     Austen, LSTM, a few minutes
    ./launch.sh train --corpus=my_book.txt --cell=gru --run=runs/my_book
    ./launch.sh train --recipe=zaremba_small --data_dir=PATH --seeds=3
    ./launch.sh train --list_recipes                      published models by name
    ./launch.sh train --run=runs/my_book --resume         go on where it stopped
    ./launch.sh train --log_gradient_flow                 and how far back its gradient reaches
    ./launch.sh train --mesh=data=4                       on four devices
    srun -n 8 ./launch.sh train --mesh=data=all           on those of eight processes

A run can be killed at any moment; --resume continues it to the same parameters, bit for bit.
"""

# ruff: noqa: E402
import time

BEGAN = time.monotonic()

from experiments import flags
from experiments.fit.config import Config

if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import run_folder
from experiments.fit.company import ALONE, Company, join, lay_out
from experiments.fit.continuation import PLACES, check_corpus, check_start, refuse_changes
from experiments.fit.devices import DevicesConfig
from experiments.fit.drawing import plot, plot_seeds
from experiments.fit.idle import refuse_idle, refuse_lost_start
from experiments.fit.loop import fit, make_evaluate
from experiments.fit.progress import corpus_bar
from experiments.fit.signals import StopOnSignal
from experiments.fit.startup import Startup
from experiments.recipes import describe_recipes, load_recipe
from experiments.trained import load_run, restore_best
from lm import model
from lm.checkpoint import Checkpoints
from lm.data.batches import make_batches
from lm.data.corpus import SPLITS, Corpus, load_corpus
from lm.data.vocabulary import UNKNOWN_ID
from lm.evaluate import Evaluation
from lm.mesh import cores_worth, own_rows
from lm.train import NotFiniteError, TrainState


def run(config: Config, began: float | None = None) -> Path | None:
    """Train, evaluate, save.

    Args:
      began: when the command did, on the clock of time.monotonic; None: now.

    Returns:
      The run's folder.
    """
    if config.list_recipes:
        print(describe_recipes())
        return None
    if config.resume:
        config = stored_config(config)
    else:
        refuse_idle(config)
        if config.recipe:
            refuse_lost_start(config, load_recipe(config.recipe))
    with join(config.devices, typed="mesh" in config.given) as company, StopOnSignal() as stop:
        if config.seeds == 1:
            return run_one(config, stop, company, began)
        if company.count > 1:
            raise ValueError(
                f"seeds is {config.seeds} with {company.count} processes; wanted a command for each"
            )
        return run_seeds(config, stop, company)


def stored_config(config: Config) -> Config:
    """The options of the run to go on with; those typed beside --resume must be the same."""
    folder = run_folder.require(config.run)
    stored = run_folder.read_config(folder, Config)
    if (folder / "import.json").exists():
        raise ValueError(
            f"run {folder} was imported, without the state of its training; wanted a new run with "
            f"--start={folder}"
        )
    free = (*PLACES, *(field.name for field in dataclasses.fields(DevicesConfig)))
    refuse_changes(config, stored, free, f"train on in a new run with --start={config.run}")
    places = {name: getattr(config.data, name) for name in PLACES if name in config.given}
    data = dataclasses.replace(stored.data, **places)
    mesh = config.devices.mesh if "mesh" in config.given else stored.devices.mesh
    devices = dataclasses.replace(config.devices, mesh=mesh)
    return dataclasses.replace(stored, run=config.run, data=data, devices=devices, resume=True)


def run_one(
    config: Config, stop: StopOnSignal, company: Company = ALONE, began: float | None = None
) -> Path:
    """One run in a folder of its own; `began` as for `run`. Of several processes all call it."""
    began = time.monotonic() if began is None else began
    folder = run_folder.require(config.run) if config.resume else None
    trained = load_run(config.start) if config.start and not has_checkpoint(folder) else None
    vocabulary = trained.vocabulary if trained else None
    if folder:
        vocabulary = run_folder.read_vocabulary(folder)
    with company.in_turn(), corpus_bar() if company.first else nullcontext() as bar:
        corpus = load_corpus(config.data, vocabulary, bar)
    mesh = settle_mesh(config, folder, len(corpus.vocabulary))
    chosen = mesh != config.devices.mesh
    if chosen:
        config = dataclasses.replace(config, devices=DevicesConfig(mesh=mesh))
        company = dataclasses.replace(company, mesh=lay_out(config.devices, typed=False))
    # Before there is a folder: a text that is too short, and another model to start from.
    rows = own_rows(company.mesh, config.data.batch_size)
    batches = make_batches(corpus.splits["train"], config.data, config.seed, rows)
    if trained:
        check_start(config.start, trained.config.model, config.model)
    if folder:
        check_corpus(folder, corpus)
    else:
        folder = Path(company.share(str(begin_folder(config, corpus)) if company.first else ""))
    company.say(describe(corpus))
    if company.mesh is not None:
        company.say(f"the rows of a batch are spread over {describe_devices(company, chosen)}")
    evaluate = make_evaluate(config, corpus, company.mesh)
    start = trained.params if trained else None
    with Checkpoints(folder / "checkpoints") as checkpoints, Startup(began) as startup:
        last, finished = fit(
            config, corpus, batches, folder, checkpoints, evaluate, stop, startup, company, start
        )
        if not finished:
            again = f"./launch.sh train --run={folder} --resume"
            company.say(f"stopped at step {int(last.step)}; go on with: {again}")
            return folder
        state = restore_best(checkpoints, last)
    found = {split: evaluate(state.evaluated_params, split) for split in ("valid", "test")}
    if company.first:
        conclude(folder, state, int(last.step), found, corpus.vocabulary.level)
    return folder


def settle_mesh(config: Config, folder: Path | None, vocabulary: int) -> str:
    """What --mesh says, or did when the run was begun; without it, the cores of a CPU that pay."""
    if config.devices.mesh:
        return config.devices.mesh
    if folder:
        return run_folder.read_config(folder, Config).devices.mesh or "data=1"
    devices, rows = jax.local_devices(), config.data.batch_size
    if devices[0].platform != "cpu":
        return "data=1"
    init = partial(model.init, config=config.model, vocabulary=vocabulary)
    parameters = model.count_parameters(jax.eval_shape(init, jax.random.key(0)))
    return f"data={cores_worth(len(devices), rows, rows * config.data.length, parameters)}"


def describe_devices(company: Company, chosen: bool) -> str:
    """How many, of what kind; and how to have one, where nobody asked for more."""
    assert company.mesh is not None
    kind = company.mesh.devices.flat[0].platform
    one = "; --mesh=data=1 keeps them on one" if chosen else ""
    return f"{company.mesh.size} {'cores' if kind == 'cpu' and chosen else 'devices'}{one}"


def begin_folder(config: Config, corpus: Corpus) -> Path:
    """The folder of a new run, with all that is known before its first step."""
    folder = run_folder.create(config.run, "train")
    run_folder.write_vocabulary(folder, corpus.vocabulary)
    devices = DevicesConfig(mesh=config.devices.mesh)  # who has a part of them is for this time
    stored = dataclasses.replace(config, run=str(folder), devices=devices)
    run_folder.write_start(folder, stored, {"name": corpus.name, "sha256": corpus.sha256})
    return folder


def conclude(
    folder: Path, state: TrainState, last: int, found: dict[str, Evaluation], level: str
) -> None:
    """The figure and the results of a finished run, written and printed.

    Args:
      state: of the step that was best on validation.
      last: the last step.
      found: what it makes of the validation and test texts.
      level: the unit of text.
    """
    paths = plot(folder)
    run_folder.write_json(  # last: it is what says that the run is whole
        folder / "results.json",
        {
            "step": int(state.step),
            "last_step": last,
            "parameters": model.count_parameters(state.params),
            **{
                split: row._asdict() | {"perplexity": row.perplexity, "bits": row.bits}
                for split, row in found.items()
            },
        },
    )
    for split, row in found.items():
        bits = f"   {row.bits:.3f} bits per {level}" if level in ("char", "byte") else ""
        print(f"{split:6} perplexity {row.perplexity:8.2f}{bits}   ({row.tokens:,} tokens)")
    if int(state.step) != last:
        print(f"of step {int(state.step)}, the best on validation; the last is {last}")
    print(f"run: {folder}    figure: {paths[0]}")


def describe(corpus: Corpus) -> str:
    """What is read, in a line."""
    sizes = " / ".join(f"{len(corpus.splits[split]):,}" for split in SPLITS)
    unknown = float(np.mean(corpus.splits["valid"] == UNKNOWN_ID))
    return (
        f"{corpus.name}: {sizes} tokens to train / valid / test, {len(corpus.vocabulary):,} "
        f"{corpus.vocabulary.level} units, {unknown:.1%} <unk> in valid"
    )


def has_checkpoint(folder: Path | None) -> bool:
    """Whether a run can go on without the one that it started from."""
    return folder is not None and any(
        path.name.isdigit() for path in (folder / "checkpoints").glob("*")
    )


def run_seeds(config: Config, stop: StopOnSignal, company: Company) -> Path:
    """The same run with several seeds, each in a folder below one; mean and sd of the results.

    A seed that diverges is said and counted, and the others go on.
    """
    if config.resume:
        folder = run_folder.require(config.run)
    else:
        folder = run_folder.create(config.run, "train")
        run_folder.write_start(folder, dataclasses.replace(config, run=str(folder)), {})
    diverged, texts = [], set()
    seeds = range(config.seed, config.seed + config.seeds)
    for seed in seeds:
        child = folder / f"seed-{seed}"
        if not (child / "results.json").exists():
            one = dataclasses.replace(config, seed=seed, seeds=1, run=str(child))
            print(f"seed {seed}, {seed - config.seed + 1} of {config.seeds}: {child}")
            try:
                resume = (child / "config.json").exists()
                run_one(dataclasses.replace(one, resume=resume), stop, company)
            except NotFiniteError as error:
                print(f"seed {seed} diverged at {error}", file=sys.stderr)
                diverged.append(seed)
                continue
        texts.add(run_folder.read_json(child / "versions.json")["corpus"]["sha256"])
        if len(texts) > 1:
            raise ValueError(f"corpus {config.data.corpus} changed between seeds; start a new run")
        if stop.asked:
            print(f"go on with all seeds: ./launch.sh train --run={folder} --resume")
            return folder
    summary = summarise_seeds(folder, [seed for seed in seeds if seed not in diverged], diverged)
    run_folder.write_json(folder / "results.json", summary)
    paths = plot_seeds(folder)
    print(f"runs: {folder}    figure: {paths[0]}")
    return folder


def summarise_seeds(folder: Path, seeds: list[int], diverged: list[int]) -> dict[str, Any]:
    """Mean and standard deviation of the seeds' perplexities, printed too.

    Raises:
      ValueError: every seed diverged.
    """
    if not seeds:
        raise ValueError("every seed diverged; lower learning_rate or clip")
    results = [run_folder.read_json(folder / f"seed-{seed}" / "results.json") for seed in seeds]
    summary: dict[str, Any] = {"seeds": seeds, "diverged_seeds": diverged}
    for split in ("valid", "test"):
        found = np.asarray([float(result[split]["perplexity"]) for result in results])
        mean, sd = float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else 0.0
        summary[split] = {"perplexities": found.tolist(), "perplexity": mean, "sd": sd}
        each = ", ".join(f"{value:.2f}" for value in found)
        print(f"{split:6} perplexity {mean:8.2f}, sd {sd:.2f} over {len(found)} seeds ({each})")
    return summary


if __name__ == "__main__":
    flags.main(Config, partial(run, began=BEGAN), __doc__)
