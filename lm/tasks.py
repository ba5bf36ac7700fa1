"""Synthetic long-lag problems: what has to be remembered, and for how long, is known exactly.

Each is a pure function of a key: `task.sample(key, batch)` draws fresh sequences, so a training
loss on them is a loss on data never seen. Symbols come as one-hot vectors. A new one is its
function, its line in TASKS, and its least steps in `lm.task_lengths`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.task_lengths import COPY_LENGTH, LEAST_STEPS

COPY_SYMBOLS = 8  # of the copy task's alphabet, beside the blank and the delimiter
ORDER_DISTRACTORS = 4  # c, d, e, f of the temporal order task, beside A and B
LATCH_VARIANCE = 0.2  # of the latch task's noise
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

    Answering 1, the mean, has a mean squared error of 2 Var U(0, 1) = 1/6.

    Source: Hochreiter & Schmidhuber 1997, experiment 4, in the form of Le, Jaitly, Hinton 2015
    (arXiv:1504.00941, which gives the baseline as 0.1767) with the positions of Arjovsky et al.
    2016 (arXiv:1511.06464).

    Args:
      length: T, at least 2.
    """
    return make_marked_pair("adding", length, jnp.add, 1 / 6)


def make_multiplication(length: int) -> Task:
    """The product of the two marked numbers of a sequence, asked for at its end.

    Answering 1/4, the mean, has a mean squared error of E[x^2]^2 - E[x]^4 = 1/9 - 1/16.

    Source: Hochreiter & Schmidhuber 1997, experiment 5, with the positions of `make_adding`.

    Args:
      length: T, at least 2.
    """
    return make_marked_pair("multiplication", length, jnp.multiply, 1 / 9 - 1 / 16)


def make_marked_pair(
    name: str, length: int, combine: Callable[[jax.Array, jax.Array], jax.Array], baseline: float
) -> Task:
    """Two marked numbers among many: each step gives one from U(0, 1) and a marker.

    The marker is 1 at one step of the first half and at one of the second, else 0.
    """
    refuse_short(name, length)

    def sample(key: jax.Array, batch: int) -> Sample:
        key_numbers, key_first, key_second = jax.random.split(key, 3)
        numbers = jax.random.uniform(key_numbers, (length, batch), jnp.float32)
        steps = jnp.arange(length, dtype=jnp.int32)[:, None]
        places = (
            draw_int(key_first, (batch,), 0, length // 2),
            draw_int(key_second, (batch,), length // 2, length),
        )
        first, second = ((steps == place[None]).astype(numbers.dtype) for place in places)
        pair = (jnp.sum(numbers * here, axis=0) for here in (first, second))
        targets = jnp.broadcast_to(combine(*pair)[None], (length, batch))
        return Sample(jnp.stack([numbers, first + second], -1), targets, at_end(length, batch))

    return Task(name, length, 2, 1, "squared", baseline, sample)


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
    length, blank, delimiter = delay + 2 * COPY_LENGTH, COPY_SYMBOLS, COPY_SYMBOLS + 1
    refuse_short("copy", length)

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
    return make_order("temporal_order", length, ((1, 2), (4, 5)))


def make_temporal_order_8(length: int) -> Task:
    """Three symbols that matter: eight classes, AAA to BBB.

    They stand in [T/10, 2T/10], [3T/10, 4T/10] and [6T/10, 7T/10], else as `make_temporal_order`.

    Source: Hochreiter & Schmidhuber 1997, experiment 6b (positions 10 to 20, 33 to 43 and 66 to
    76 of some 105), in the form of Pascanu et al. 2013 (the 3-bit temporal order problem).

    Args:
      length: T, at least 10.
    """
    return make_order("temporal_order_8", length, ((1, 2), (3, 4), (6, 7)))


def make_order(name: str, length: int, windows: tuple[tuple[int, int], ...]) -> Task:
    """A or B at one step in each window, in tenths of the length, distractors elsewhere."""
    refuse_short(name, length)
    symbols, classes = 2 + ORDER_DISTRACTORS, 2 ** len(windows)

    def sample(key: jax.Array, batch: int) -> Sample:
        key_noise, *key_places, key_class = jax.random.split(key, 2 + len(windows))
        tokens = draw_int(key_noise, (length, batch), 2, symbols)
        label = draw_int(key_class, (batch,), 0, classes)
        steps = jnp.arange(length, dtype=jnp.int32)[:, None]
        for k, (key_place, (start, end)) in enumerate(zip(key_places, windows, strict=True)):
            place = draw_int(key_place, (batch,), start * length // 10, end * length // 10 + 1)
            letter = label // 2 ** (len(windows) - 1 - k) % 2  # the first symbol decides most
            tokens = jnp.where(steps == place[None], letter[None], tokens)
        targets = jnp.broadcast_to(label[None], (length, batch))
        return Sample(one_hot(tokens, symbols), targets, at_end(length, batch))

    name = name.replace("_", " ")
    return Task(name, length, symbols, classes, "nats", float(np.log(classes)), sample)


def make_latch(length: int) -> Task:
    """The first number, 1 or -1, names the class, asked for at the end; the rest is noise.

    x_1 = 1 or -1, each as often; x_t ~ N(0, 0.2) after it. What is remembered has to be latched
    against noise that comes in by the same door. Guessing costs ln 2.

    Source: Hochreiter & Schmidhuber 1997, experiment 3a with N = 1: the two-sequence problem of
    Bengio, Simard, Frasconi 1994, with noise. Theirs has T drawn anew for every sequence.

    Args:
      length: T, at least 2.
    """
    refuse_short("latch", length)

    def sample(key: jax.Array, batch: int) -> Sample:
        key_class, key_noise = jax.random.split(key)
        label = draw_int(key_class, (batch,), 0, 2)
        noise = jax.random.normal(key_noise, (length, batch), jnp.float32)
        inputs = (LATCH_VARIANCE**0.5 * noise).at[0].set(2 * label.astype(noise.dtype) - 1)
        targets = jnp.broadcast_to(label[None], (length, batch))
        return Sample(inputs[..., None], targets, at_end(length, batch))

    return Task("latch", length, 1, 2, "nats", float(np.log(2)), sample)


def make_lag(length: int) -> Task:
    """Next token of a process that looks exactly `LAG` tokens back: see `sample_lag_process`.

    The steps whose answer lies before the start of the sequence do not count.

    Args:
      length: T, at least `LAG`.
    """
    refuse_short("lag", length)

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


def refuse_short(name: str, length: int) -> None:
    """Raise ValueError for sequences too short for their task."""
    least = LEAST_STEPS[name]
    if length < least:
        raise ValueError(f"the {name} task has {length} steps; wanted at least {least}")


def make_task(name: str, steps: int) -> Task:
    """The task of that name whose sequences have so many steps."""
    return TASKS[name](steps - 2 * COPY_LENGTH if name == "copy" else steps)


# Name -> (length of the task: steps, or copy's delay) -> Task.
TASKS: dict[str, Callable[[int], Task]] = {
    "adding": make_adding,
    "multiplication": make_multiplication,
    "copy": make_copy,
    "temporal_order": make_temporal_order,
    "temporal_order_8": make_temporal_order_8,
    "latch": make_latch,
    "lag": make_lag,
}
