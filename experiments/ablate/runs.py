"""The training runs of a study, on text or on a task: many points through each compiled program.

Variants that differ in numbers alone (clip, forget bias) share a program, as do all rates and
seeds of a variant. On text the runs are `lm.many_runs`'s, on a task `experiments.task_training`'s.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablate.setting import Setting
from experiments.flow.subjects import cut_stretches, task_subject
from experiments.task_training import Hyper as TaskHyper
from experiments.task_training import Network as TaskNetwork
from experiments.task_training import TaskParams, make_train_task
from lm import model
from lm.cells import CELLS
from lm.config import ModelConfig
from lm.data.batches import Batch, Batches, make_batches
from lm.data.corpus import load_corpus
from lm.data.vocabulary import Vocabulary
from lm.gradients.flow import measure_lags, measure_layer_lags
from lm.many_runs import make_train_points
from lm.tasks import make_task
from lm.whole_run import Fixed, start

SHARED = {"learning_rate": 1.0, "clip": 1.0, "forget_bias": 1.0}  # of a program: each point's own
Advance = Callable[[float], object]  # told the share of a run that was done since the last call


class Found(NamedTuple):
    """What one run came to.

    Losses are logarithms of what is measured: nats per token are that of a perplexity, and of a
    task's loss it is taken.
    """

    valid: float  # inf: it diverged
    test: float
    diverged_at: int | None  # step
    parameters: int
    lags_init: tuple[float, ...] = ()  # log ||dL_T/dh_{T - lag}||, lag 0 upward, nats
    lags_trained: tuple[float, ...] = ()


class Runs(Protocol):
    """Where the runs of a study come from."""

    corpus: dict[str, Any]  # name, and sha256 of a text
    vocabulary: Vocabulary | None

    def train(
        self,
        setting: Setting,
        points: Sequence[tuple[int, float]],
        advance: Advance,
        *,
        measure: bool,
    ) -> Iterator[Found]:
        """A run for each (seed, learning rate), with its gradient flow where `measure` holds."""
        ...


def point_of(setting: Setting, seed: int, rate: float) -> dict[str, float]:
    """What a run has of its own."""
    numbers = {"clip": setting.optim.clip, "forget_bias": setting.model.forget_bias}
    return {"seed": seed, "learning_rate": rate, **numbers}


class TextRuns:
    """Language models on a text, the best parameters by validation measured and tested."""

    def __init__(self, data: Any, lags: int, windows: int):
        self._text = load_corpus(data)
        self.corpus = {"name": self._text.name, "sha256": self._text.sha256}
        self.vocabulary: Vocabulary | None = self._text.vocabulary
        inputs, targets = cut_stretches(self._text.splits["valid"], lags, windows)
        self._stretches = jnp.asarray(inputs), jnp.asarray(targets[-1])
        self._programs: dict[Setting, TextProgram] = {}

    def train(
        self,
        setting: Setting,
        points: Sequence[tuple[int, float]],
        advance: Advance,
        *,
        measure: bool,
    ) -> Iterator[Found]:
        shared = setting.of(SHARED)
        if shared not in self._programs:
            self._programs[shared] = TextProgram(shared, self._text, self._stretches)
        program = self._programs[shared]
        outcomes = program.train(
            [point_of(setting, seed, rate) for seed, rate in points],
            watch=lambda tick: advance(tick.taken / setting.steps),
        )
        for outcome in outcomes:
            failed = outcome.diverged_at is not None
            flow = program.flow(outcome) if measure and not failed else ((), ())
            losses = outcome.valid_loss, outcome.test_loss
            yield Found(*losses, outcome.diverged_at, program.parameters, *flow)


class TextProgram:
    """What is compiled once for all runs that differ in their point alone."""

    def __init__(self, setting: Setting, text: Any, stretches: tuple[jax.Array, jax.Array]):
        fixed, vocabulary = Fixed(setting.model, setting.optim), len(text.vocabulary)
        batches: Batches = make_batches(text.splits["train"], setting.data)
        self.train = make_train_points(
            fixed,
            text.splits,
            vocabulary,
            batches if setting.carried else FreshBatches(batches),
            steps=setting.steps,
            evaluate_every=setting.steps,
            sentences=setting.data.batching == "sentences",
        )
        self._start = jax.jit(
            lambda point: start(fixed, vocabulary, batches.batch_size, point)[0].params
        )
        self._lags = jax.jit(lambda params: text_lags(setting.model, params, *stretches))
        shapes = jax.eval_shape(self._start, point_of(setting, 0, 1.0))
        self.parameters = model.count_parameters(shapes)

    def flow(self, outcome: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lag curves of a run at its start and at its best."""
        first = self._start(outcome.point)
        return to_floats(self._lags(first)), to_floats(self._lags(outcome.params))


def text_lags(
    config: ModelConfig, params: model.Params, tokens: jax.Array, last: jax.Array
) -> jax.Array:
    """log ||dL_T/dh_{T - lag}|| of the last layer, the mean over stretches of text [lags]."""
    carry = model.init_carry(config, tokens.shape[1])
    return measure_lags(config, params, carry, tokens, last)[-1].h.mean(axis=1)


class FreshBatches:
    """Batches of which each starts from the zero state."""

    def __init__(self, batches: Batches):
        self._batches = batches
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size

    def block(self, step: int, most: int) -> Batch:
        block = self._batches.block(step, most)
        return block._replace(reset=np.ones_like(block.reset))


class TaskRuns:
    """One layer and its readout on fresh sequences of a task, trained by Adam."""

    vocabulary: Vocabulary | None = None

    def __init__(self, name: str, windows: int):
        self._name, self._windows = name, windows
        self.corpus = {"name": name}
        self._programs: dict[Any, tuple[Any, Any]] = {}

    def train(
        self,
        setting: Setting,
        points: Sequence[tuple[int, float]],
        advance: Advance,
        *,
        measure: bool,
    ) -> Iterator[Found]:
        of_model = setting.model
        network = TaskNetwork(
            of_model.cell,
            of_model.hidden_size,
            of_model.chrono,
            of_model.recurrent_init,
            setting.truncation,
        )
        shared = network, setting.lags, setting.steps
        if shared not in self._programs:
            self._programs[shared] = self._compile(*shared)
        train, lags = self._programs[shared]
        for seed, rate in points:
            hyper = TaskHyper(rate, setting.optim.clip, of_model.forget_bias)
            run = jax.device_get(train(jax.random.key(seed), hyper))
            wrong = np.flatnonzero(~np.isfinite([*run.losses, run.loss]))
            count = sum(leaf.size for leaf in jax.tree.leaves(run.after))
            if len(wrong):
                yield Found(np.inf, np.inf, int(wrong[0]), count)
            else:
                stages = (run.before, run.after) if measure else ()
                flow = [to_floats(lags(params)) for params in stages]
                with np.errstate(divide="ignore"):
                    loss = float(np.log(run.loss))
                yield Found(loss, loss, None, count, *flow)
            advance(1.0)  # once it is kept: a stop takes nothing along that is finished

    def _compile(self, network: TaskNetwork, steps: int, updates: int) -> tuple[Any, Any]:
        task = make_task(self._name, steps)

        def lags(params: TaskParams) -> jax.Array:
            cell = CELLS[network.cell]
            subject = task_subject(cell, task, params, self._windows, (steps,))
            state = cell.init_state(self._windows, network.hidden)
            curves = measure_layer_lags(cell, subject.layer, state, subject.x, subject.d_h[-1])
            return curves.h.mean(axis=1)

        return jax.jit(make_train_task(network, task, updates)), jax.jit(lags)


def to_floats(values: jax.Array) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())
