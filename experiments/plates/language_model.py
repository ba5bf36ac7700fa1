"""Training a language model and stopping on the way to look at it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lm import model
from lm.config import ModelConfig, OptimConfig
from lm.optim import Hyper, make_schedule
from lm.train import init_state, make_block, run_blocks

OPTIM = OptimConfig(schedule="cosine", clip=0.25)
STEPS_PER_DISPATCH = 50

# (seed, forget bias) -> (step, parameters) at each stop; the parameters are the caller's to keep
Trainer = Callable[[int, float], Iterator[tuple[int, model.Params]]]


def make_trainer(
    config: ModelConfig, batches: Any, vocabulary: int, rate: float, stops: tuple[int, ...]
) -> Trainer:
    """One compilation for every seed and forget bias.

    Args:
      rate: learning rate of SGD.
      stops: steps to stop at, ascending, the last one the end; 0 is the start.
    """
    schedule = make_schedule(OPTIM, batches.steps_per_epoch, stops[-1])
    block = make_block(config, OPTIM, schedule)
    hyper = Hyper(jnp.float32(rate), jnp.float32(OPTIM.clip))

    def train(seed: int, forget_bias: float) -> Iterator[tuple[int, model.Params]]:
        state = init_state(
            jax.random.key(seed), config, OPTIM, vocabulary, batches.batch_size,
            forget_bias=jnp.float32(forget_bias),
        )  # fmt: skip
        for stop in stops:
            for state, _ in run_blocks(  # noqa: B007 - the last state is what is yielded
                state, hyper, block, batches, stop=stop, steps_per_dispatch=STEPS_PER_DISPATCH
            ):
                pass
            # The next dispatch takes the state's memory.
            yield stop, jax.tree.map(jnp.copy, state.params)

    return train
