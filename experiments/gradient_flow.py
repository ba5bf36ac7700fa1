"""How far back does a recurrent language model's gradient reach: RNN against LSTM?

Trains a vanilla RNN and an LSTM on the same text, several seeds each, and measures at the
start and after training (1) the norm of the last word's gradient at every earlier hidden
state, ||dL_T/dh_t|| against the lag T - t, all lags in one backward pass; (2) the norm of the
recurrent weights' gradient, ||dL_T/dW_h||, against the length T of the sequence. `--measures`
adds others, a figure each.

Prediction: the RNN's curve falls by the same factor at every step and is lost within some
tens of words; the LSTM's falls far more slowly, the slower the larger its forget bias.

    ./launch.sh gradient_flow                      some two minutes on 2 CPU cores
    ./launch.sh gradient_flow --corpus=my_book.txt --seeds=3
    ./launch.sh gradient_flow --cells=rnn,gru,lstm --forget_bias=3
    ./launch.sh gradient_flow --corpus=noise --windows=8                 untrained, seconds
    ./launch.sh gradient_flow --corpus=adding --steps=500                trained on a task
    ./launch.sh gradient_flow --checkpoint=runs/a,runs/b --measures=lags,lengths,shares,gates

`--corpus` is a text as for `train`, or `noise` (white inputs to untrained layers), or a task of
lm.tasks: adding, multiplication, copy, temporal_order, temporal_order_8, latch, lag (sequences of
--lags steps).
"""

# ruff: noqa: E402
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiments import flags
from experiments.flow import sources
from lm.cells import CELLS
from lm.config import DataConfig, ModelConfig, OptimConfig, option, validate

MEASURES: dict[str, str] = {
    "lags": "||dL_T/dh_t|| against the lag T - t",
    "lengths": "||dL_T/dW_h|| against the length T",
    "shares": "each lag's share of dL_T/dW_h, and what truncated BPTT loses",
    "jacobian": "norms of ds_T/ds_t against the lag; costs T N^3, slow for large H",
    "singular": "singular values of ds_T/ds_t; wants --dtype=float64; as slow as jacobian",
    "lyapunov": "Lyapunov exponents of the joint state",
    "gates": "time scales and saturation of the gates",
    "paths": "the gradient through the cell state, and through the recurrent weights",
    "sensitivity": "||ds_t/dW_h||: how sensitive the state is to its weights",
    "omega": "Pascanu's regulariser by lag",
    "context": "the loss when far words are cut, shuffled, dropped or replaced; text only",
}
# As --help shows it: a line a measure.
MEASURES_HELP = "what is measured" + "".join(f"\n        {n}: {h}" for n, h in MEASURES.items())


@dataclass(frozen=True)
class Config:
    """Options of gradient_flow."""

    # No flags: `cells` says which, and nothing is evaluated while it trains.
    omit: ClassVar[tuple[str, ...]] = ("cell", "averaging", "patience", "early_stop")

    cells: tuple[str, ...] = option(("rnn", "lstm"), "cells to compare", choices=CELLS)
    seeds: int = option(4, "runs of each cell, seeded 0 upward", least=1, most=10_000)
    epochs: float = option(0.8, "passes through the training text", above=0)
    steps: int = option(0, "training steps; 0: as many as epochs makes, or 1000 on a task", least=0)
    lags: int = option(128, "steps back that the gradient is followed", least=8, most=10_000)
    lengths: tuple[int, ...] = option(
        (), "sequence lengths T, each up to lags; empty: two an octave", least=1, most=10_000
    )
    windows: int = option(128, "stretches of text, or rows, that the measures average", least=1)
    measures: tuple[str, ...] = option(("lags", "lengths"), MEASURES_HELP, choices=MEASURES)
    checkpoint: tuple[str, ...] = option(
        (), "runs of train to measure as they are, in place of training any"
    )
    dtype: str = option("float32", "of the measures", choices=("float32", "float64"))
    run: str = option("", "folder of the run; empty: runs/gradient_flow-<date>-<time>")
    data: DataConfig = DataConfig(max_vocabulary=5000)
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig(schedule="cosine")

    def __post_init__(self) -> None:
        validate(self)
        if not self.cells or len(set(self.cells)) < len(self.cells):
            raise ValueError(f"cells is {','.join(self.cells)!r}; wanted one or more, each once")
        if self.lengths and max(self.lengths) > self.lags:
            raise ValueError(
                f"lengths holds {max(self.lengths)}; wanted at most lags = {self.lags}"
            )
        if "lags" not in self.measures:  # what the table says, and every caption counts by
            object.__setattr__(self, "measures", ("lags", *self.measures))
        if "context" in self.measures and self.source in ("noise", "task"):
            raise ValueError(f"context is measured on text; got corpus {self.data.corpus}")
        if self.optim.schedule == "plateau":
            raise ValueError(
                "schedule is plateau, which wants evaluations while it trains, and there are none "
                "here; wanted constant, step or cosine"
            )
        if self.source == "text":
            sources.refuse_near_name(self.data.corpus, ("noise", *sources.LEAST_STEPS))
        if self.source == "task":
            sources.refuse_short(self.data.corpus, self.lags)
        sources.refuse_idle(self, self.source)

    @property
    def source(self) -> str:
        """What the networks read: text, noise, task or checkpoint."""
        return sources.source_of(self.data.corpus, self.checkpoint)

    @property
    def at_lengths(self) -> tuple[int, ...]:
        """Sequence lengths of measure 5, ascending, the last of them `lags`."""
        if self.lengths:
            return tuple(sorted({*self.lengths, self.lags}))
        halves = int(math.log2(self.lags / 2) * 2) + 1
        return tuple(sorted({round(2 * 2 ** (k / 2)) for k in range(halves)} | {self.lags}))


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run_folder
from experiments.flow import drawing, table
from experiments.flow.measures import Arrays, compile_measures, measure_context_use
from experiments.flow.subjects import Subject, cut_stretches, noise_subject, text_subject
from experiments.flow.training import Network, Plan, plan_task, plan_text
from experiments.trained import Trained, load_run
from lm.config import ModelConfig as Model
from lm.data.corpus import load_corpus


def run(config: Config) -> Path:
    """Train, measure, save, plot. Returns the run's folder."""
    started = time.monotonic()
    plan = make_plan(config)  # refuses what is wrong before anything is written
    folder = run_folder.create(config.run, "gradient_flow")
    if plan.vocabulary is not None:
        run_folder.write_vocabulary(folder, plan.vocabulary)
    run_folder.write_start(folder, config, plan.corpus)
    arrays: Arrays = {"lengths": np.asarray(config.at_lengths)}
    networks = []
    for network in plan.measure(folder):
        arrays |= {f"{network.name}/{key}": value for key, value in network.arrays.items()}
        described = network._asdict() | {"model": dataclasses.asdict(network.model)}
        networks.append({key: described[key] for key in ("name", "cell", "model", "corpus")})
        run_folder.write_arrays(folder / "results.npz", arrays)  # what is done is kept
    rows = table.summarise(networks, arrays)
    results: dict[str, Any] = {
        "seconds": time.monotonic() - started,
        "unit": table.UNITS[plan.vocabulary.level] if plan.vocabulary else "step",
        "networks": networks,
        "rows": rows,
    }
    results["finding"] = table.headline(networks, arrays, results["unit"])
    run_folder.write_json(folder / "results.json", results)
    paths = plot(folder)
    if "gates" in config.measures and not drawing.is_measured(arrays, "gate_"):
        print("gradient_flow: gates: none of these cells has any; no figure", file=sys.stderr)
    print(table.format_table(rows, config.lags))
    print(f"\n{results['finding']}")
    others = f" and {len(paths) - 1} more beside it" if len(paths) > 1 else ""
    print(f"run: {folder}    figure: {paths[0]}{others}    {results['seconds']:.0f} s")
    return folder


def plot(folder: Path) -> list[Path]:
    """Draw the figures of a run from its folder alone: PNG files, the main one first."""
    return drawing.plot(folder)


def make_plan(config: Config) -> Plan:
    """What is to be measured, with all inputs read and found good."""
    plans = {
        "text": plan_text,
        "noise": plan_noise,
        "task": plan_task,
        "checkpoint": plan_checkpoints,
    }
    return plans[config.source](config)


def plan_noise(config: Config) -> Plan:
    """Untrained layers that read white noise."""

    def measure(folder: Path) -> Iterator[Network]:
        for cell in config.cells:
            model = dataclasses.replace(config.model, cell=cell)

            def subject_of(key: jax.Array, model: Model = model) -> Subject:
                return noise_subject(model, key, config.lags, config.windows, config.at_lengths)

            keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
            found = compile_measures(config, model, subject_of)(keys)
            arrays = {f"init/{name}": value for name, value in found.items()}
            yield Network(cell, cell, model, "noise", arrays)

    return Plan({"name": "noise"}, None, measure)


def plan_checkpoints(config: Config) -> Plan:
    """Runs of `train`, each on stretches of its own validation text."""
    runs = []
    for given in config.checkpoint:
        trained = load_run(given)
        corpus = load_corpus(trained.config.data, trained.vocabulary)
        windows = cut_stretches(corpus.splits["valid"], config.lags, config.windows)
        runs.append((trained, windows))
    names = distinct_names([trained.folder for trained, _ in runs])
    vocabularies = [trained.vocabulary for trained, _ in runs]
    same_units = len({vocabulary.level for vocabulary in vocabularies}) == 1

    def measure(folder: Path) -> Iterator[Network]:
        for name, (trained, (inputs, targets)) in zip(names, runs, strict=True):
            model = trained.config.model
            read = (jnp.asarray(inputs), jnp.asarray(targets), config.at_lengths)

            def subject_of(params: Any, model: Model = model, read: Any = read) -> Subject:
                return text_subject(model, params, *read)

            stacked = jax.tree.map(lambda leaf: leaf[None], trained.params)
            found = compile_measures(config, model, subject_of)(stacked)
            if "context" in config.measures:
                found |= measure_context_use(model, [trained.params], inputs, targets[-1])
            arrays = {f"trained/{key}": value for key, value in found.items()}
            yield Network(name, model.cell, model, corpus_name(trained), arrays)

    corpus_of = {"name": ", ".join(trained.config.data.corpus for trained, _ in runs)}
    return Plan(corpus_of, vocabularies[0] if same_units else None, measure)


def corpus_name(trained: Trained) -> str:
    """The text that a run was trained on: a corpus's name, or a file's."""
    return Path(trained.config.data.corpus).name


def distinct_names(folders: list[Path]) -> list[str]:
    """The folders' own names, or their paths where two are called the same; no slashes."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError("checkpoint names a run twice; wanted each once")
    return [name.replace("/", "_") for name in names]


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
