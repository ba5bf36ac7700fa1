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

A run can be killed at any moment; --resume continues it to the same parameters, bit for bit.
"""

from experiments import flags
from experiments.fit.config import Config

if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments import run_folder
from experiments.fit.continuation import PLACES, check_corpus, refuse_changes
from experiments.fit.drawing import plot, plot_seeds
from experiments.fit.loop import fit, make_evaluate
from experiments.fit.progress import corpus_bar
from experiments.recipes import describe_recipes
from experiments.trained import load_run, restore_best
from lm import model
from lm.checkpoint import Checkpoints
from lm.config import DataConfig
from lm.data.batches import make_batches
from lm.data.corpus import load_corpus


def run(config: Config) -> Path | None:
    """Train, evaluate, save. Returns the run's folder."""
    if config.list_recipes:
        print(describe_recipes())
        return None
    if config.resume:
        config = stored_config(config)
    return run_seeds(config) if config.seeds > 1 else run_one(config)


def stored_config(config: Config) -> Config:
    """The options of the run to go on with; those given beside --resume must be the same."""
    folder = run_folder.require(config.run)
    stored = run_folder.read_config(folder, Config)
    default = Config.of_preset(config.recipe) if config.recipe else Config()
    refuse_changes(config, stored, default)
    moved = {place: getattr(config.data, place) for place in PLACES}
    given = {k: v for k, v in moved.items() if v != getattr(DataConfig(), k)}
    data = dataclasses.replace(stored.data, **given)
    return dataclasses.replace(stored, run=config.run, data=data, resume=True)


def run_one(config: Config) -> Path:
    """One run in a folder of its own."""
    start = None
    if config.resume:
        folder = run_folder.require(config.run)
        with corpus_bar() as bar:
            corpus = load_corpus(config.data, run_folder.read_vocabulary(folder), bar)
        check_corpus(folder, corpus)
        batches = make_batches(corpus.splits["train"], config.data, config.seed)
    else:
        trained = load_run(config.start) if config.start else None
        with corpus_bar() as bar:
            corpus = load_corpus(config.data, trained and trained.vocabulary, bar)
        # Before there is a folder: a text that is too short is refused.
        batches = make_batches(corpus.splits["train"], config.data, config.seed)
        start = trained and trained.params
        folder = run_folder.create(config.run, "train")
        run_folder.write_vocabulary(folder, corpus.vocabulary)
        stored = dataclasses.replace(config, run=str(folder))
        run_folder.write_start(folder, stored, {"name": corpus.name, "sha256": corpus.sha256})
    evaluate = make_evaluate(config, corpus)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, finished = fit(config, corpus, batches, folder, checkpoints, evaluate, start)
        if not finished:
            again = f"./launch.sh train --run={folder} --resume"
            print(f"stopped at step {int(state.step)}; go on with: {again}")
            return folder
        last = int(state.step)
        state = restore_best(checkpoints, state)
    rows = {split: evaluate(state.evaluated_params, split) for split in ("valid", "test")}
    results = {
        "step": int(state.step),
        "last_step": last,
        "parameters": model.count_parameters(state.params),
        **{
            split: row._asdict() | {"perplexity": row.perplexity, "bits": row.bits}
            for split, row in rows.items()
        },
    }
    run_folder.write_json(folder / "results.json", results)
    paths = plot(folder)
    chars = corpus.vocabulary.level in ("char", "byte")
    for split, row in rows.items():
        bits = f"   {row.bits:.3f} bits per {corpus.vocabulary.level}" if chars else ""
        print(f"{split:6} perplexity {row.perplexity:8.2f}{bits}   ({row.tokens:,} tokens)")
    if int(state.step) != last:
        print(f"of step {int(state.step)}, the best on validation; the last is {last}")
    print(f"run: {folder}    figure: {paths[0]}")
    return folder


def run_seeds(config: Config) -> Path:
    """The same run with several seeds, each in a folder below one; mean and sd of the results."""
    if config.resume:
        folder = run_folder.require(config.run)
    else:
        folder = run_folder.create(config.run, "train")
        run_folder.write_start(folder, dataclasses.replace(config, run=str(folder)), {})
    seeds = range(config.seed, config.seed + config.seeds)
    for seed in seeds:
        child = folder / f"seed-{seed}"
        if (child / "results.json").exists():
            continue
        one = dataclasses.replace(config, seed=seed, seeds=1, run=str(child))
        print(f"seed {seed}, {seed - config.seed + 1} of {config.seeds}: {child}")
        run_one(dataclasses.replace(one, resume=(child / "config.json").exists()))
        if not (child / "results.json").exists():
            print(f"go on with all seeds: ./launch.sh train --run={folder} --resume")
            return folder
    results = [run_folder.read_json(folder / f"seed-{seed}" / "results.json") for seed in seeds]
    summary: dict[str, Any] = {"seeds": list(seeds)}
    for split in ("valid", "test"):
        found = np.asarray([float(result[split]["perplexity"]) for result in results])
        summary[split] = {
            "perplexities": found.tolist(),
            "perplexity": float(found.mean()),
            "sd": float(found.std(ddof=1)),
        }
        each = ", ".join(f"{value:.2f}" for value in found)
        mean, sd = summary[split]["perplexity"], summary[split]["sd"]
        print(f"{split:6} perplexity {mean:8.2f}, sd {sd:.2f} over {config.seeds} seeds ({each})")
    run_folder.write_json(folder / "results.json", summary)
    paths = plot_seeds(folder)
    print(f"runs: {folder}    figure: {paths[0]}")
    return folder


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
