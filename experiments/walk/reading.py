"""One sentence as a trained language model reads it, word after word.

Position k runs over the tokens: the model has read `<eos>` and the words before k, and says
p(w_k | w_1 .. w_{k-1}). The state starts at zero, as `evaluate` starts a text.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.data.text import tokenize
from lm.data.vocabulary import END, END_ID, Vocabulary
from lm.gradients.flow import measure_lags
from lm.gradients.gates import model_gates
from lm.loss import chunk_rows


class Sentence(NamedTuple):
    """A sentence in a model's own tokens. T tokens, the last of them `<eos>`."""

    units: tuple[str, ...]  # [T] as they were written, whether known or not
    targets: np.ndarray  # int32 [T]
    inputs: np.ndarray  # int32 [T]: `<eos>`, then the targets but the last

    @property
    def last_word(self) -> int:
        """Position of the last token that has a letter or a digit in it, `<eos>` aside."""
        words = [k for k, unit in enumerate(self.units[:-1]) if any(map(str.isalnum, unit))]
        return words[-1] if words else max(0, len(self.units) - 2)


class Reading(NamedTuple):
    """What a model makes of a sentence. Gates, state and gradient are the top layer's.

    The gradient is that of the whole state, for an LSTM of c and h jointly: what it remembers
    runs through c.
    """

    nats: np.ndarray  # float64 [T], -log p of the token that came
    rank: np.ndarray  # int [T], 1 where no token was likelier
    top_ids: np.ndarray  # int [T, top], likeliest first
    top_p: np.ndarray  # [T, top]
    gradient: np.ndarray  # log ||dL/ds|| after each input, of the last word's loss, [last_word + 1]
    gates: dict[str, np.ndarray]  # activation after each input, by gate, [T, H]
    state: dict[str, np.ndarray]  # by field of the cell's state, [T, H]


def cut_sentence(text: str, vocabulary: Vocabulary, rule: str) -> Sentence:
    """A text in a model's tokens.

    Args:
      text: any; white space counts once, line ends included.
      rule: line or prose, where the model's corpus has its `<eos>`.

    Raises:
      ValueError: there is no token in it.
    """
    text = " ".join(text.split())
    if vocabulary.level == "byte":
        text = text.encode().decode("latin-1")
    sentences = [units for units in tokenize(text, vocabulary.level, rule) if units]
    if not sentences:
        raise ValueError(f"sentence is {text!r}, without a word; wanted some words")
    targets = vocabulary.encode(sentences)
    units = tuple(unit for sentence in sentences for unit in (*sentence, END))
    inputs = np.concatenate([[END_ID], targets[:-1]]).astype(np.int32)
    return Sentence(units, targets, inputs)


def read_sentence(
    config: ModelConfig, params: model.Params, sentence: Sentence, top: int
) -> Reading:
    """Everything that is looked at, of one sentence and one model.

    Args:
      top: how many of the likeliest tokens are named.
    """
    carry = model.init_carry(config, 1, params.embedding.dtype)
    inputs = jnp.asarray(sentence.inputs[:, None])  # [T, 1]
    states, gates = jax.jit(partial(model_gates, config))(params, carry, inputs)[-1]
    nats, rank, top_ids, top_p = next_tokens(params, states.h[:, 0], sentence.targets, top)
    read = sentence.last_word + 1
    target = jnp.asarray(sentence.targets[read - 1 : read])
    curves = jax.jit(partial(measure_lags, config))(params, carry, inputs[:read], target)
    return Reading(
        nats,
        rank,
        top_ids,
        top_p,
        np.asarray(curves[-1].state[::-1, 0]),
        {name: np.asarray(values[:, 0]) for name, values in gates.items()},
        {name: np.asarray(values[:, 0]) for name, values in states._asdict().items()},
    )


def next_tokens(
    params: model.Params, h: jax.Array, targets: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The distribution of the next token after each state: (nats, rank, top ids, top p).

    Made in chunks of rows, so that a long text never needs all its logits at once.

    Args:
      h: [T, H].
      targets: int [T], the token that came.
    """

    @jax.jit
    def look(h_c: jax.Array, targets_c: jax.Array) -> tuple[jax.Array, ...]:
        log_p = jax.nn.log_softmax(model.logits(params, h_c), axis=-1)
        came = jnp.take_along_axis(log_p, targets_c[:, None], axis=1)
        rank = 1 + jnp.sum(log_p > came, axis=1)
        best, ids = lax.top_k(log_p, min(top, log_p.shape[1]))
        return -came[:, 0], rank, ids, jnp.exp(best)

    rows = chunk_rows(len(targets), len(params.embedding), h.dtype.itemsize)
    parts = [
        look(h[k : k + rows], jnp.asarray(targets[k : k + rows]))
        for k in range(0, len(targets), rows)
    ]
    nats, rank, ids, p = (np.concatenate(part) for part in zip(*parts, strict=True))
    return nats.astype(np.float64), rank, ids, p


def keeping_gate(gates: Mapping[str, np.ndarray]) -> str | None:
    """The gate that says how much of a unit's state is kept: LSTM's f, GRU's q; None: none does."""
    return next((name for name in ("f", "q") if name in gates), None)


def gate_order(gates: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """`count` units from the longest memory to the shortest, evenly spread over all of them.

    Ordered by the mean over the sentence of the gate that keeps; where there is none, as they are.

    Args:
      gates: by name, [T, H].
    """
    leading = keeping_gate(gates)
    units = next(iter(gates.values())).shape[1]
    order = np.arange(units) if leading is None else np.argsort(-gates[leading].mean(axis=0))
    return order[np.unique(np.linspace(0, units - 1, count).astype(int))]
