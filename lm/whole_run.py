"""A whole training run on text as pure functions of its point.

A point is what a run has of its own: seed, learning rate, clip, forget bias and other numbers
that no shape depends on, each of them a traced scalar, so that one program serves every point.

    state, best   = start(point)
    state, ...    = advance(point, state, batches)             as often as there are steps
    nats          = scan_stream(parameters of state, text)     at each evaluation
    state, best   = conclude(point, state, best, nats)

The best parameters by validation are what a run comes to, as in `./launch.sh train`. The batches
of a step are a function of the step alone, so all runs read the same. `lm.many_runs` compiles
these functions and takes many points through them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm import model
from lm.config import NOT_REGULARIZED, ModelConfig, OptimConfig, RegularizeConfig
from lm.monitor import observe
from lm.optim import Hyper
from lm.train import StepMetrics, TrainState, init_state, make_steps

Point = Mapping[str, float]  # option -> number


@dataclass(frozen=True)
class Fixed:
    """What the runs of one program have in common."""

    model: ModelConfig
    optim: OptimConfig
    regularize: RegularizeConfig = NOT_REGULARIZED
    remat: bool = False

    def at(self, point: Mapping[str, Any]) -> "Fixed":
        """With the numbers of a point, traced or not, in their places."""
        return dataclasses.replace(
            self,
            model=with_numbers(self.model, point),
            optim=with_numbers(self.optim, point),
            regularize=with_numbers(self.regularize, point),
        )


def with_numbers(config: Any, point: Mapping[str, Any]) -> Any:
    """A configuration with those fields replaced that the point names."""
    names = {field.name for field in dataclasses.fields(config)} & point.keys()
    return dataclasses.replace(config, **{name: point[name] for name in names}) if names else config


class Best(NamedTuple):
    """The parameters of least validation loss so far."""

    params: model.Params
    step: jax.Array  # int32 []; 0: there was no evaluation yet


def start(
    fixed: Fixed, vocabulary: int, rows: int, point: Mapping[str, Any]
) -> tuple[TrainState, Best]:
    """Before the first step.

    Args:
      vocabulary: V.
      rows: B.
    """
    fixed = fixed.at(point)
    state = init_state(jax.random.key(point["seed"]), fixed.model, fixed.optim, vocabulary, rows)
    # Copies: the state is donated to the steps, and the best is not.
    return state, Best(*jax.tree.map(jnp.copy, (state.params, state.step)))


def advance(
    fixed: Fixed,
    schedule_of: Callable[[OptimConfig], optax.Schedule],
    point: Mapping[str, Any],
    state: TrainState,
    batches: Any,
    count: jax.Array,
) -> tuple[TrainState, StepMetrics, jax.Array]:
    """The first `count` of the stacked batches.

    Returns:
      (state, metrics of each step [steps], whether all parameters are finite []).
    """
    fixed = fixed.at(point)
    steps = make_steps(
        fixed.model,
        fixed.optim,
        schedule_of(fixed.optim),
        regularize=fixed.regularize,
        remat=fixed.remat,
    )
    hyper = Hyper(jnp.float32(fixed.optim.learning_rate), jnp.float32(fixed.optim.clip))
    return steps(state, hyper, batches, count)


def conclude(
    fixed: Fixed,
    point: Mapping[str, Any],
    state: TrainState,
    best: Best,
    loss: jax.Array,
    alive: jax.Array,
) -> tuple[TrainState, Best]:
    """Take in a validation loss, nats per token []; a run that is not alive has no new best."""
    optim = fixed.at(point).optim
    better = alive & (loss < state.monitor.best)
    seen = Best(state.evaluated_params, state.step)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), seen, best)
    monitor, average = observe(optim, state.monitor, state.average, loss)
    return state.replace(monitor=monitor, average=average), best  # type: ignore[attr-defined]
