"""Evaluation: perplexity = exp(total nats / total tokens), every token counted once.

A long text is evaluated as `batch` rows side by side, yet gives the number that one row
gives: each row starts from the state in which the row before it ends. Those states are not
known beforehand, so they are guessed (from the end of the row before) and then checked: the
pass over all rows yields the true ends, and is repeated from them until no state moves. A
recurrent model forgets its start, so one pass is the rule; `batch` passes are the limit, at
which the result is exact whatever the model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import model
from lm.config import ModelConfig
from lm.data.batches import SentenceBatches
from lm.data.vocabulary import END_ID
from lm.loss import token_nats

GUESS_TOKENS = 256  # tokens from the end of a row that the first guess of its end is made of
STATE_TOLERANCE = 1e-5  # largest change of a state's entry that counts as none

Forward = Callable[[model.Params, model.Carry, Any, Any, Any], tuple[model.Carry, jax.Array]]


class Evaluation(NamedTuple):
    """What a model makes of a text."""

    nats: float  # total negative log-likelihood
    tokens: int
    passes: int  # over the text, until the rows agreed

    @property
    def perplexity(self) -> float:
        return perplexity(self.nats / self.tokens)


def perplexity(nats: float) -> float:
    """exp(nats per token); inf where that is beyond a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


def make_forward(config: ModelConfig) -> Forward:
    """Compile (params, carry, inputs, targets, mask) -> (carry, nats of each token [T, B]).

    Masked tokens have 0 nats. Compiled once for each shape; keep it for many evaluations.
    """

    def forward(
        params: model.Params, carry: model.Carry, inputs: Any, targets: Any, mask: Any
    ) -> tuple[model.Carry, jax.Array]:
        carry, h = model.apply(config, params, carry, inputs, mask)
        nats = token_nats(
            h.reshape(-1, h.shape[-1]),
            model.softmax_weights(params),
            params.softmax_b,
            targets.reshape(-1),
        )
        return carry, jnp.where(mask, nats.reshape(targets.shape), 0)

    return jax.jit(forward)


def evaluate_stream(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    *,
    batch: int = 16,
    length: int = 64,
    forward: Forward | None = None,
) -> Evaluation:
    """Perplexity of a text with the state carried through all of it, from the zero state.

    Args:
      tokens: int32 [N]; each is predicted once, the first after `<eos>`.
      batch: rows evaluated side by side. Changes the time, not the result.
      length: tokens a row and dispatch. Likewise.
      forward: from `make_forward`, to spare its compilation.
    """
    forward = forward or make_forward(config)
    inputs, targets, mask = layout_rows(tokens, batch, length)
    rows = inputs.shape[1]
    dtype = params.embedding.dtype
    zero = model.init_carry(config, rows, dtype)

    # The guess: the states in which each row ends if it had begun shortly before its end.
    guessed = zero
    first = 0 if rows == 1 else max(0, (inputs.shape[0] - GUESS_TOKENS) // length * length)
    if first:
        for k in range(first, inputs.shape[0], length):
            part = slice(k, k + length)
            guessed, _ = forward(params, guessed, inputs[part], targets[part], mask[part])
    starts = shift_rows(guessed, zero)

    passes, moved = 0, np.inf
    while moved > STATE_TOLERANCE and passes < rows:
        carry, total = starts, 0.0
        for k in range(0, inputs.shape[0], length):
            part = slice(k, k + length)
            carry, nats = forward(params, carry, inputs[part], targets[part], mask[part])
            total += float(np.asarray(nats, np.float64).sum())
        true_starts = shift_rows(carry, zero)
        moved = max(
            float(jnp.max(jnp.abs(a - b)))
            for a, b in zip(jax.tree.leaves(starts), jax.tree.leaves(true_starts), strict=True)
        )
        starts = true_starts
        passes += 1
    return Evaluation(total, len(tokens), passes)


def evaluate_sentences(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    *,
    batch: int = 16,
    forward: Forward | None = None,
) -> Evaluation:
    """Perplexity of a text with each sentence for itself, from the zero state.

    Sentences are padded to buckets of like length; `batch` and padding change nothing.
    """
    forward = forward or make_forward(config)
    longest = int(np.diff(np.flatnonzero(np.append(tokens, END_ID) == END_ID), prepend=-1).max())
    batches = SentenceBatches(tokens, batch, longest)
    zero = model.init_carry(config, batch, params.embedding.dtype)
    total = 0.0
    for step in range(batches.steps_per_epoch):
        inputs, targets, mask, _ = batches.at(step)
        _, nats = forward(params, zero, inputs, targets, mask)
        total += float(np.asarray(nats, np.float64).sum())
    return Evaluation(total, len(tokens), 1)


def layout_rows(
    tokens: np.ndarray, batch: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A text as contiguous rows: inputs, targets int32 and mask, each [T, rows].

    T is a multiple of `length`. Padding stands at the end of the last row, so that the last
    state of every other row is the first state of the next. Rows that would be all padding
    are left away.
    """
    per_row = -(-len(tokens) // batch)
    per_row = -(-per_row // length) * length
    rows = -(-len(tokens) // per_row)
    padding = rows * per_row - len(tokens)
    inputs = np.concatenate([[END_ID], tokens[:-1], np.full(padding, END_ID)]).astype(np.int32)
    targets = np.concatenate([tokens, np.full(padding, END_ID)]).astype(np.int32)
    mask = np.arange(rows * per_row) < len(tokens)
    return tuple(np.ascontiguousarray(a.reshape(rows, per_row).T) for a in (inputs, targets, mask))  # type: ignore[return-value]


def shift_rows(carry: model.Carry, zero: model.Carry) -> model.Carry:
    """The state after row r - 1 as the state before row r; zero before row 0."""
    return jax.tree.map(lambda after, first: jnp.concatenate([first[:1], after[:-1]]), carry, zero)
