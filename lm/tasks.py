"""Synthetic long-lag problems: what has to be remembered, and for how long, is known exactly.

Each is a pure function of a key: `task.sample(key, batch)` draws fresh sequences, so a training
loss on them is a loss on data never seen. Symbols come as one-hot vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COPY_SYMBOLS = 8  # of the copy task's alphabet, beside the blank and the delimiter
COPY_LENGTH = 10  # symbols to be remembered
ORDER_DISTRACTORS = 4  # c, d, e, f of the temporal order task, beside A and B
LAG_SYMBOLS = 4  # alphabet of the lag process
LAG = 5
LAG_NOISE = 0.1  # probability that a token of the lag process is drawn anew


class Sample(NamedTuple):
    """A batch of sequences."""

    inputs: jax.Array  # [T, B, D]
    targets: jax.Array  # [T, B], int of a class or float
    weights: jax.Array  # [T, B], 1 where the output counts, else 0


@dataclass(frozen=True)
class Task:
    """A problem on sequences.

    Attributes:
      name: for figures and tables.
      length: T, steps of a sequence.
      input_size: D.
      outputs: of the readout: classes, or 1 for a number.
      loss: "squared" (mean squared error of a number) or "nats" (cross-entropy of a class).
      baseline: loss of the best answer that remembers nothing.
      sample: (key, batch) -> Sample.
    """

    name: str
    length: int
    input_size: int
    outputs: int
    loss: str
    baseline: float
    sample: Callable[[jax.Array, int], Sample]


def make_adding(length: int) -> Task:
    """The sum of the two marked numbers of a sequence, asked for at its end.

    Each step gives a number from U(0, 1) and a marker, which is 1 at one step of the first half
    and at one of the second, else 0. The target is the sum of the two numbers so marked.
    Answering 1, the mean, has a mean squared error of 2 Var U(0, 1) = 1/6.

    Source: Hochreiter & Schmidhuber 1997, experiment 4, in the form of Le, Jaitly, Hinton 2015
    (arXiv:1504.00941, which gives the baseline as 0.1767) with the positions of Arjovsky et al.
    2016 (arXiv:1511.06464).

    Args:
      length: T, at least 2.
    """
    refuse_short("adding", length, 2)

    def sample(key: jax.Array, batch: int) -> Sample:
        key_numbers, key_first, key_second = jax.random.split(key, 3)
        numbers = jax.random.uniform(key_numbers, (length, batch), jnp.float32)
        first = draw_int(key_first, (batch,), 0, length // 2)
        second = draw_int(key_second, (batch,), length // 2, length)
        steps = jnp.arange(length, dtype=jnp.int32)[:, None]
        marked = ((steps == first[None]) | (steps == second[None])).astype(numbers.dtype)
        total = jnp.sum(numbers * marked, axis=0)
        targets = jnp.broadcast_to(total[None], (length, batch))
        return Sample(jnp.stack([numbers, marked], axis=-1), targets, at_end(length, batch))

    return Task("adding", length, 2, 1, "squared", 1 / 6, sample)


def make_copy(delay: int) -> Task:
    """Ten symbols, repeated after a delay: T = delay + 20 steps.

    The input holds 10 symbols of an alphabet of 8, then delay - 1 blanks, one delimiter, and 10
    blanks. The output is blank for delay + 10 steps, then the 10 symbols; every step counts.
    Answering blanks and then guessing costs 10 ln 8 / (delay + 20) nats per step.

    Source: Hochreiter & Schmidhuber 1997 (the idea), Arjovsky et al. 2016 (arXiv:1511.06464),
    whose T is our delay.

    Args:
      delay: steps from the last symbol to the delimiter, at least 1.
    """
    refuse_short("copy", delay, 1)
    length, blank, delimiter = delay + 2 * COPY_LENGTH, COPY_SYMBOLS, COPY_SYMBOLS + 1

    def sample(key: jax.Array, batch: int) -> Sample:
        symbols = draw_int(key, (COPY_LENGTH, batch), 0, COPY_SYMBOLS)
        blanks = jnp.full((length, batch), blank, symbols.dtype)
        seen = blanks.at[:COPY_LENGTH].set(symbols).at[COPY_LENGTH + delay - 1].set(delimiter)
        targets = blanks.at[-COPY_LENGTH:].set(symbols)
        inputs = one_hot(seen, COPY_SYMBOLS + 2)
        return Sample(inputs, targets, jnp.ones((length, batch), jnp.float32))

    baseline = COPY_LENGTH * float(np.log(COPY_SYMBOLS)) / length
    return Task("copy", length, COPY_SYMBOLS + 2, COPY_SYMBOLS + 1, "nats", baseline, sample)


def make_temporal_order(length: int) -> Task:
    """In which order came the two symbols that matter? Four classes: AA, AB, BA, BB.

    A or B stands at one step in [T/10, 2T/10] and at one in [4T/10, 5T/10], every other step
    holds one of four distractors; the class is asked for at the last step.

    Source: Hochreiter & Schmidhuber 1997, experiment 6a, in the form of Pascanu, Mikolov, Bengio
    2013 (arXiv:1211.5063, the temporal order problem).

    Args:
      length: T, at least 10.
    """
    refuse_short("temporal_order", length, 10)
    symbols = 2 + ORDER_DISTRACTORS

    def sample(key: jax.Array, batch: int) -> Sample:
        key_noise, key_first, key_second, key_class = jax.random.split(key, 4)
        tokens = draw_int(key_noise, (length, batch), 2, symbols)
        first = draw_int(key_first, (batch,), length // 10, length // 5 + 1)
        second = draw_int(key_second, (batch,), 2 * length // 5, length // 2 + 1)
        label = draw_int(key_class, (batch,), 0, 4)
        steps = jnp.arange(length, dtype=jnp.int32)[:, None]
        tokens = jnp.where(steps == first[None], (label // 2)[None], tokens)
        tokens = jnp.where(steps == second[None], (label % 2)[None], tokens)
        targets = jnp.broadcast_to(label[None], (length, batch))
        return Sample(one_hot(tokens, symbols), targets, at_end(length, batch))

    return Task("temporal order", length, symbols, 4, "nats", float(np.log(4)), sample)


def make_lag(length: int) -> Task:
    """Next token of a process that looks exactly `LAG` tokens back: see `sample_lag_process`.

    The steps whose answer lies before the start of the sequence do not count.

    Args:
      length: T, at least `LAG`.
    """
    refuse_short("lag", length, LAG)

    def sample(key: jax.Array, batch: int) -> Sample:
        tokens = sample_lag_process(key, length + 1, batch)
        known = jnp.arange(length)[:, None] >= LAG - 1
        weights = jnp.broadcast_to(known, (length, batch)).astype(jnp.float32)
        return Sample(one_hot(tokens[:-1], LAG_SYMBOLS), tokens[1:], weights)

    return Task(
        f"lag {LAG}", length, LAG_SYMBOLS, LAG_SYMBOLS, "nats", float(np.log(LAG_SYMBOLS)), sample
    )


def sample_lag_process(key: jax.Array, length: int, batch: int) -> jax.Array:
    """Tokens of which each is determined, but for noise, by the one `LAG` before it.

        x_t = x_{t - LAG} + 1 (mod 4)   with probability 1 - LAG_NOISE
        x_t ~ uniform over the 4 tokens   otherwise; so are the first LAG tokens

    Those are LAG independent chains, interleaved: the last LAG - 1 tokens say nothing about the
    next one, ln 4 = 1.386 nats, and the last LAG say all that can be said: `lag_bayes_nats`.

    Returns:
      int [length, batch].
    """
    key_first, key_noise, key_new = jax.random.split(key, 3)
    shape = (-(-length // LAG), LAG, batch)
    first = draw_int(key_first, shape[1:], 0, LAG_SYMBOLS)
    anew = jax.random.uniform(key_noise, shape, jnp.float32) < LAG_NOISE
    new = draw_int(key_new, shape, 0, LAG_SYMBOLS)

    def step(x: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jnp.where(drawn[0], drawn[1], (x + 1) % LAG_SYMBOLS), x

    _, rounds = jax.lax.scan(step, first, (anew, new))
    return rounds.reshape(-1, batch)[:length]


def lag_bayes_nats() -> float:
    """Entropy of the lag process's next token given all that came before, in nats: 0.349."""
    other = LAG_NOISE / LAG_SYMBOLS
    likely = 1 - LAG_NOISE + other
    return float(-likely * np.log(likely) - (LAG_SYMBOLS - 1) * other * np.log(other))


def draw_int(key: jax.Array, shape: tuple[int, ...], low: int, high: int) -> jax.Array:
    """int32 in [low, high), the same numbers whether float64 is enabled or not."""
    return jax.random.randint(key, shape, low, high, jnp.int32)


def one_hot(tokens: jax.Array, symbols: int) -> jax.Array:
    """int [T, B] -> float32 [T, B, symbols]."""
    return jax.nn.one_hot(tokens, symbols, dtype=jnp.float32)


def at_end(length: int, batch: int) -> jax.Array:
    """Weights of a task whose answer is asked for at the last step."""
    return jnp.zeros((length, batch), jnp.float32).at[-1].set(1)


def refuse_short(name: str, length: int, least: int) -> None:
    if length < least:
        raise ValueError(f"the {name} task has {length} steps; wanted at least {least}")


# Name -> (length of the task: steps, or copy's delay) -> Task.
TASKS: dict[str, Callable[[int], Task]] = {
    "adding": make_adding,
    "copy": make_copy,
    "temporal_order": make_temporal_order,
    "lag": make_lag,
}
