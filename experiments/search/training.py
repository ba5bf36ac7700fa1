"""Training the points of a group, and the record of each: what a row of the table holds."""

import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.fit.config import with_options
from experiments.fit.continuation import PLACES, flat
from experiments.search.config import Config
from experiments.search.points import SweepPoint
from experiments.task_training import Hyper as TaskHyper
from experiments.task_training import Network, make_train_task
from lm.data.batches import make_batches
from lm.data.corpus import Corpus, load_corpus
from lm.many_runs import MOST_LANES, Outcome, TrainPoints, make_train_points
from lm.tasks import make_task
from lm.unfinished import Keep
from lm.whole_run import Fixed

Record = dict[str, Any]
Watch = Callable[[Any], object]  # told a lm.many_runs.Tick
TrainGroup = Callable[[Sequence[SweepPoint], Watch], Iterator[Record]]
TASK_STEPS = 1000
TASK_LEARNING_RATE = 1e-3  # of Adam


class Trainer:
    """Trains points of a sweep; the program of the last group, and its text, are kept."""

    def __init__(self, config: Config, folder: Path | None = None):
        """
        Args:
          folder: of the run, where points that are under way are kept; None: nowhere.
        """
        self._config = config
        self._keep = Keep(folder / "unfinished") if folder else None
        self._group: tuple[Any, TrainGroup] | None = None
        self._corpus: tuple[Any, Corpus] | None = None

    @property
    def width(self) -> int:
        """How many points are best given at once."""
        devices = jax.local_device_count()
        return devices if jax.default_backend() == "cpu" else devices * MOST_LANES

    def train(
        self, fixed: Mapping[str, Any], points: Sequence[SweepPoint], watch: Watch
    ) -> Iterator[Record]:
        """The record of each point, as it is finished. Whatever goes wrong is a record too.

        Args:
          fixed: swept options that the points share.
        """
        left = {point.number: point for point in points}
        try:
            began = time.monotonic()
            for record in self._program(fixed)(points, watch):
                now = time.monotonic()
                del left[record["number"]]
                yield record | {"seconds": record.get("seconds", now - began)}
                began = time.monotonic()
        except Exception as error:  # of any kind: the sweep goes on without these
            traceback.print_exc(file=sys.stderr)
            for number in left:
                yield failure(number, f"{type(error).__name__}: {error}")

    def _program(self, fixed: Mapping[str, Any]) -> TrainGroup:
        if self._group is None or self._group[0] != fixed:
            config = with_options(self._config, fixed)
            make = self._on_task if config.on_task else self._on_text
            self._group = (dict(fixed), make(config))
        return self._group[1]

    def _on_text(self, config: Config) -> TrainGroup:
        if self._corpus is None or self._corpus[0] != config.data:
            self._corpus = (config.data, load_corpus(config.data))
        corpus = self._corpus[1]
        batches = make_batches(corpus.splits["train"], config.data, config.seed)
        train = make_train_points(
            Fixed(config.model, config.optim, config.regularize, config.remat),
            corpus.splits,
            len(corpus.vocabulary),
            batches,
            steps=config.steps or max(1, round(config.epochs * batches.steps_per_epoch)),
            evaluate_every=config.evaluate_every,
            steps_per_dispatch=config.steps_per_dispatch,
            sentences=config.data.batching == "sentences",
            keep=self._keep and self._keep._replace(reads=what_is_read(config)),
        )
        return lambda points, watch: train_text(config, train, points, watch)

    def _on_task(self, config: Config) -> TrainGroup:
        name, length = config.data.corpus, config.data.length
        task = make_task(name, length)
        network = Network(config.model.cell, config.model.hidden_size, config.model.chrono)
        steps = config.steps or TASK_STEPS
        train = make_train_task(network, task, steps, config.data.batch_size)
        compiled = jax.jit(train if jax.default_backend() == "cpu" else jax.vmap(train))
        return lambda points, _: train_task(config, compiled, points)


def what_is_read(config: Config) -> str:
    """What tells the text and the batches of a group from another group's of the sweep."""
    data = {name: value for name, value in flat(config.data).items() if name not in PLACES}
    return repr((data, config.seed))


def failure(number: int, error: str) -> Record:
    """The record of a point that was not trained to its end."""
    return {"number": number, "status": "failed", "error": " ".join(error.split())[:500]}


def train_text(
    config: Config, train: TrainPoints, points: Sequence[SweepPoint], watch: Watch
) -> Iterator[Record]:
    """Points of one program on a text."""
    traced = [
        {n: v for n, v in {"seed": config.seed, **point.options}.items() if may(config, n, v)}
        for point in points
    ]
    for point, outcome in zip(points, train(traced, watch), strict=True):
        yield text_record(point.number, outcome)


def may(config: Config, name: str, value: Any) -> bool:
    # A seed that is not traced is the batches'; the parameters are drawn from it all the same.
    return name == "seed" or config.may_be_traced(name, value)


def text_record(number: int, outcome: Outcome) -> Record:
    diverged = outcome.diverged_at is not None
    return {
        "number": number,
        "status": "diverged" if diverged else "finished",
        "error": f"not finite at step {outcome.diverged_at}" if diverged else None,
        "valid": None if diverged else outcome.valid,
        "test": None if diverged else outcome.test,
        "best_step": outcome.best_step,
        "last_step": outcome.last_step,
        "seconds": outcome.seconds,
        "curve": [[step, round(math.exp(loss), 4)] for step, loss in outcome.evaluations],
    }


def train_task(config: Config, train: Any, points: Sequence[SweepPoint]) -> Iterator[Record]:
    """Points of one program on a task: on a CPU one after another, else side by side."""

    def hyper_of(point: SweepPoint) -> tuple[int, TaskHyper]:
        full = with_options(config, point.options)
        rate = full.optim.learning_rate or TASK_LEARNING_RATE
        return full.seed, TaskHyper(rate, full.optim.clip, full.model.forget_bias)

    def record_of(point: SweepPoint, losses: Any, loss: Any, error: Any) -> Record:
        bad = ~np.isfinite([*losses, loss])
        diverged = bool(bad.any())
        first = int(bad.argmax()) if diverged else len(losses)
        return {
            "number": point.number,
            "status": "diverged" if diverged else "finished",
            "error": f"not finite at step {first}" if diverged else None,
            "loss": None if diverged else float(loss),
            "wrong": None if diverged or np.isnan(error) else float(error),
            "last_step": first,
        }

    if jax.default_backend() == "cpu":
        for point in points:
            seed, hyper = hyper_of(point)
            run = jax.device_get(train(jax.random.key(seed), jax.tree.map(np.float32, hyper)))
            yield record_of(point, run.losses, run.loss, run.error)
        return
    began = time.monotonic()
    seeds, hypers = zip(*map(hyper_of, points), strict=True)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    runs = jax.device_get(train(keys, jax.tree.map(lambda *a: np.asarray(a, np.float32), *hypers)))
    seconds = (time.monotonic() - began) / len(points)
    for k, point in enumerate(points):
        record = record_of(point, runs.losses[k], runs.loss[k], runs.error[k])
        yield record | {"seconds": seconds}


def baseline(config: Config) -> float:
    """The loss of the best answer to a task that remembers nothing."""
    return make_task(config.data.corpus, config.data.length).baseline


def describe(config: Config) -> dict[str, Any]:
    """What is trained on, for the run's folder: name, and sha256 of a text.

    Raises:
      ValueError: there is no such text, or too little of it.
    """
    if config.on_task:
        return {"name": config.data.corpus}
    corpus = load_corpus(config.data)
    make_batches(corpus.splits["train"], config.data, config.seed)
    return {"name": corpus.name, "sha256": corpus.sha256}
