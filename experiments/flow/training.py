"""The networks that gradient_flow trains before it measures them: on text, and on tasks."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import run_folder
from experiments.flow.measures import Arrays, compile_measures, measure_context_use
from experiments.flow.subjects import Subject, cut_stretches, task_subject, text_subject
from experiments.task_training import Hyper as TaskHyper
from experiments.task_training import Network as TaskNetwork
from experiments.task_training import TaskParams, TaskRun, make_train_task, run_seeds
from lm import model
from lm.cells import CELLS
from lm.config import ModelConfig
from lm.data.batches import make_batches
from lm.data.corpus import Corpus, load_corpus
from lm.data.vocabulary import Vocabulary
from lm.evaluate import perplexity
from lm.many_runs import Outcome, Tick, make_train_points
from lm.tasks import make_task
from lm.whole_run import Fixed, start

STEPS_PER_DISPATCH = 40
TASK_STEPS = 1000
TASK_LOG_LINES = 99  # a run, at most, and one where it diverged
TASK_LEARNING_RATE = 1e-3  # of Adam


class Network(NamedTuple):
    """A line of the figures: a cell, or a run that was trained before."""

    name: str  # its arrays are saved as "name/stage/measure"
    cell: str
    model: ModelConfig
    corpus: str  # what it was trained on, or reads
    arrays: Arrays


class Plan(NamedTuple):
    """What gradient_flow is to do, once its inputs have been read."""

    corpus: dict[str, Any]  # name, and sha256 of a text
    vocabulary: Vocabulary | None
    measure: Callable[[Path], Iterator[Network]]  # of the run's folder


def plan_text(config: Any) -> Plan:
    """Language models trained on text, measured at the start and at the end."""
    corpus = load_corpus(config.data)
    inputs, targets = cut_stretches(corpus.splits["valid"], config.lags, config.windows)
    batches = make_batches(corpus.splits["train"], config.data)
    steps = config.steps or max(1, round(config.epochs * batches.steps_per_epoch))
    total = steps * config.seeds * len(config.cells)

    def measure(folder: Path) -> Iterator[Network]:
        note = overlap_note(len(corpus.splits["valid"]), config.lags, config.windows)
        if note:
            print(note, file=sys.stderr)
        with tqdm(total=total, unit="step", dynamic_ncols=True, smoothing=0.05) as bar:
            for cell in config.cells:
                network = dataclasses.replace(config.model, cell=cell)
                trainer = Trainer(config, network, corpus, batches, steps, folder, bar)

                def subject_of(params: model.Params, network: ModelConfig = network) -> Subject:
                    read = (jnp.asarray(inputs), jnp.asarray(targets))
                    return text_subject(network, params, *read, config.at_lengths)

                measures = compile_measures(config, network, subject_of)
                found = measures(trainer.starts())
                arrays = {f"init/{name}": value for name, value in found.items()}
                finished, scores = trainer.train()
                if finished:
                    found = measures(jax.tree.map(lambda *leaves: jnp.stack(leaves), *finished))
                    if "context" in config.measures:
                        found |= measure_context_use(network, finished, inputs, targets[-1])
                    arrays |= {f"trained/{name}": value for name, value in found.items()}
                yield Network(cell, cell, network, Path(corpus.name).name, arrays | scores)

    return Plan({"name": corpus.name, "sha256": corpus.sha256}, corpus.vocabulary, measure)


class Trainer:
    """Trains all seeds of one cell through one program; on a CPU each core has a seed at a time."""

    def __init__(
        self,
        config: Any,
        network: ModelConfig,
        corpus: Corpus,
        batches: Any,
        steps: int,
        folder: Path,
        bar: Any,
    ):
        self._config, self._cell, self._bar = config, network.cell, bar
        self._log = run_folder.MetricsLog(folder)
        fixed, vocabulary = Fixed(network, config.optim), len(corpus.vocabulary)
        self._start = lambda seed: start(fixed, vocabulary, batches.batch_size, {"seed": seed})
        self._train = make_train_points(
            fixed,
            corpus.splits,
            vocabulary,
            batches,
            steps=steps,
            evaluate_every=steps,
            steps_per_dispatch=STEPS_PER_DISPATCH,
            sentences=config.data.batching == "sentences",
        )

    def starts(self) -> model.Params:
        """Parameters before training, stacked over seeds."""
        seeds = jnp.arange(self._config.seeds)
        found: model.Params = jax.lax.map(lambda seed: self._start(seed)[0].params, seeds)
        return found

    def train(self) -> tuple[list[model.Params], Arrays]:
        """(parameters after training, "valid", "test" and "diverged" seeds).

        A seed that diverges is said, logged and counted; its network is not measured.
        """
        self._bar.set_description(self._cell)
        finished: list[model.Params] = []
        scores: dict[str, list[float]] = {"valid": [], "test": [], "diverged": []}
        points = [{"seed": seed} for seed in range(self._config.seeds)]
        for seed, outcome in enumerate(self._train(points, self._watch)):
            self._log_run(seed, outcome)
            if outcome.params is None or outcome.diverged_at is not None:
                self._bar.write(
                    f"{self._cell} seed {seed} diverged at step {outcome.diverged_at}; lower "
                    "--learning_rate or --clip",
                    file=sys.stderr,
                )
                scores["diverged"].append(seed)
                continue
            finished.append(outcome.params)
            scores["valid"].append(outcome.valid)
            scores["test"].append(outcome.test)
        return finished, {name: np.asarray(values) for name, values in scores.items()}

    def _watch(self, tick: Tick) -> None:
        self._bar.set_postfix_str(f"loss {tick.loss:.2f} perplexity {perplexity(tick.loss):.0f}")
        self._bar.update(tick.taken)

    def _log_run(self, seed: int, outcome: Outcome) -> None:
        """A line for each dispatch of one seed, means over its steps; and where it diverged.

        Once the seed is finished: gradient_flow begins anew after a kill.
        """
        run, clip = {"cell": self._cell, "seed": seed}, self._config.optim.clip
        for first in range(0, outcome.last_step, STEPS_PER_DISPATCH):
            until = min(first + STEPS_PER_DISPATCH, outcome.last_step)
            norms = outcome.grad_norms[first:until]
            self._log.write(
                **run,
                step=until,
                loss=float(outcome.losses[first:until].mean()),
                grad_norm=float(norms.mean()),
                clipped=float((norms > clip).mean()),
            )
        if outcome.diverged_at is not None:
            self._log.write(**run, step=outcome.diverged_at, diverged=True)


def plan_task(config: Any) -> Plan:
    """Cells trained on a task of lm.tasks by Adam, measured on fresh sequences of it."""
    name = config.data.corpus
    task = make_task(name, config.lags)
    steps = config.steps or TASK_STEPS
    rate = config.optim.learning_rate or TASK_LEARNING_RATE

    def measure(folder: Path) -> Iterator[Network]:
        total = config.seeds * len(config.cells)
        log = run_folder.MetricsLog(folder)
        with tqdm(total=total, unit="run", dynamic_ncols=True) as bar:
            for cell in config.cells:
                network = dataclasses.replace(config.model, cell=cell)
                bar.set_description(f"{cell} on {task.name}")
                layer = TaskNetwork(cell, network.hidden_size, network.chrono)
                train = jax.jit(make_train_task(layer, task, steps))
                hyper = TaskHyper(rate, config.optim.clip, network.forget_bias)
                runs = run_seeds(train, hyper, config.seeds, bar.update)

                def subject_of(params: TaskParams, cell: str = cell) -> Subject:
                    rows, lengths = config.windows, config.at_lengths
                    return task_subject(CELLS[cell], task, params, rows, lengths)

                measures = compile_measures(config, network, subject_of)
                finite = np.isfinite(runs.loss) & np.isfinite(runs.losses).all(axis=1)
                for seed in range(config.seeds):
                    log_task_run(log, cell, seed, jax.tree.map(lambda a, s=seed: a[s], runs), bar)
                found = measures(runs.before)
                arrays = {f"init/{key}": value for key, value in found.items()}
                arrays |= {"loss": runs.loss[finite], "diverged": np.flatnonzero(~finite)}
                if finite.any():
                    found = measures(jax.tree.map(lambda leaf, at=finite: leaf[at], runs.after))
                    arrays |= {f"trained/{key}": value for key, value in found.items()}
                yield Network(cell, cell, network, task.name, arrays)

    return Plan({"name": task.name}, None, measure)


def log_task_run(log: run_folder.MetricsLog, cell: str, seed: int, run: TaskRun, bar: Any) -> None:
    """Loss and gradient norm of one seed, evenly thinned; and where it diverged, which is said."""
    wrong = np.flatnonzero(~np.isfinite([*run.losses, run.loss]))
    last = int(wrong[0]) if len(wrong) else len(run.losses)
    for step in np.unique(np.linspace(0, last - 1, TASK_LOG_LINES).astype(int)) if last else ():
        losses = {"loss": float(run.losses[step]), "grad_norm": float(run.grad_norms[step])}
        log.write(cell=cell, seed=seed, step=int(step), **losses)
    if len(wrong):
        bar.write(f"{cell} seed {seed} diverged at step {last}", file=sys.stderr)
        log.write(cell=cell, seed=seed, step=last, diverged=True)


def overlap_note(tokens: int, time: int, count: int) -> str:
    """A line that says when the stretches are nearly the same text; empty when they are not."""
    if count == 1 or (tokens - time - 1) / (count - 1) >= time / 2:
        return ""
    return (
        f"gradient_flow: stretches of {time} overlap by more than half in a validation text of "
        f"{tokens}; give more text, or lower --lags or --windows"
    )
