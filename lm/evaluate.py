"""Evaluation: perplexity = exp(total nats / total tokens), every token counted once.

A long text is evaluated as `batch` rows side by side, yet gives the number that one row
gives: each row starts from the state in which the row before it ends. Those states are not
known beforehand, so they are guessed (from the end of the row before) and then checked: the
pass over all rows yields the true ends, and is repeated from them until no state moves. A
recurrent model forgets its start, so one pass is the rule; `batch` passes are the limit, at
which the result is exact whatever the model.

What adapts to the text (`lm.neural_cache`, `lm.dynamic_evaluation`) must read it in order, one
row: `cut_pieces` cuts it for their scans.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from lm import model
from lm.config import ModelConfig
from lm.data.batches import BUCKETS, cut_sentences, pad
from lm.data.vocabulary import END_ID, Vocabulary
from lm.mesh import BY_COLUMN, BY_ROW, EVERYWHERE
from lm.softmax import exact_token_nats

GUESS_TOKENS = 256  # tokens from the end of a row that the first guess of its end is made of
STATE_TOLERANCE = 1e-5  # largest change of a state's entry that counts as none
WHOLE = 2**31 - 1  # as a length: sentences stay in one piece

Forward = Callable[[model.Params, model.Carry, Any, Any, Any], tuple[model.Carry, jax.Array]]


class Evaluation(NamedTuple):
    """What a model makes of a text."""

    nats: float  # total negative log-likelihood
    tokens: int
    passes: int  # over the text, until the rows agreed

    @property
    def perplexity(self) -> float:
        return perplexity(self.nats / self.tokens)

    @property
    def bits(self) -> float:
        """Bits per token: per character where tokens are characters."""
        return float(self.nats / self.tokens / np.log(2))


class Pieces(NamedTuple):
    """Where a text is cut: S steps of B pieces side by side."""

    starts: np.ndarray  # [S, B], position of a piece's first token
    lengths: np.ndarray  # [S, B], 0 where a row has ended
    reset: np.ndarray  # bool [S, B]: start from the zero state


class Rows(NamedTuple):
    """A text as rows side by side, in segments one after another."""

    inputs: Any  # int32 [S, T, rows]
    targets: Any  # int32 [S, T, rows], the token after each input
    mask: Any  # bool [S, T, rows], False on padding


class Segments(NamedTuple):
    """The words of pieces. Host or device arrays, or one step of either."""

    inputs: Any  # int32 [S, T, B]
    targets: Any  # int32 [S, T, B], the token after each input
    mask: Any  # bool [S, T, B]: a row's tokens stand first, padding after them
    reset: Any  # bool [S, B]: start from the zero state


def perplexity(nats: float) -> float:
    """exp(nats per token); inf where that is beyond a float."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


def count_characters(vocabulary: Vocabulary, tokens: np.ndarray) -> int:
    """Characters of a text, for bits per character = total nats / ln 2 / characters.

    A line's end is one character, and `<eos>` stands for it: so at the levels char and byte
    every token is one, as the literature counts (text8 has no line ends; enwik8's are bytes as
    others; PTB's characters have one `<eos>` a line). Words are counted as joined by single
    spaces, `<unk>` with its own five letters, since what it stands for is not known.
    """
    if vocabulary.level in ("char", "byte"):
        return len(tokens)
    lengths = np.asarray([len(unit) + 1 for unit in vocabulary.units])  # a space after each
    lengths[END_ID] = 0  # the line's end is in place of the last word's space
    is_end = tokens == END_ID
    empty_lines = is_end & np.concatenate([[True], is_end[:-1]])
    return int(lengths[tokens].sum() + empty_lines.sum())


def make_forward(config: ModelConfig, mesh: Mesh | None = None) -> Forward:
    """Compile (params, carry, inputs, targets, mask) -> (carry, nats of each token [T, B]).

    Masked tokens have 0 nats. Compiled once for each shape; keep it for many evaluations.

    Args:
      mesh: of the devices that the rows are spread over, any number of them; what goes in and
        comes out is whole on each.
    """

    def forward(
        params: model.Params, carry: model.Carry, inputs: Any, targets: Any, mask: Any
    ) -> tuple[model.Carry, jax.Array]:
        carry, h = model.apply(config, params, carry, inputs, mask)
        nats = exact_token_nats(params, h.reshape(-1, h.shape[-1]), targets.reshape(-1))
        return carry, jnp.where(mask, nats.reshape(targets.shape), 0)

    if mesh is None:
        return jax.jit(forward)
    whole = NamedSharding(mesh, EVERYWHERE)
    return jax.jit(spread_rows(forward, mesh), out_shardings=whole)


def spread_rows(forward: Forward, mesh: Mesh) -> Forward:
    """`forward` with each device taking its share of the rows, those filled up that are lacking."""
    spread = jax.shard_map(
        forward,
        mesh=mesh,
        in_specs=(EVERYWHERE, BY_ROW, BY_COLUMN, BY_COLUMN, BY_COLUMN),
        out_specs=(BY_ROW, BY_COLUMN),
        check_vma=False,  # nothing is summed over devices
    )

    def filled(
        params: model.Params, carry: model.Carry, *columns: Any
    ) -> tuple[model.Carry, jax.Array]:
        rows = columns[0].shape[1]
        spare = -rows % mesh.size
        carry = jax.tree.map(lambda s: jnp.pad(s, [(0, spare), (0, 0)]), carry)
        carry, nats = spread(params, carry, *(jnp.pad(a, [(0, 0), (0, spare)]) for a in columns))
        return jax.tree.map(lambda s: s[:rows], carry), nats[:, :rows]

    return filled


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
    nats, passes = stream_nats(config, params, tokens, batch=batch, length=length, forward=forward)
    return Evaluation(float(nats.sum(dtype=np.float64)), len(tokens), passes)


def stream_nats(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    *,
    batch: int = 16,
    length: int = 64,
    forward: Forward | None = None,
) -> tuple[np.ndarray, int]:
    """(nats of each token [N] in the order of the text, passes); as `evaluate_stream`."""
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

    nats = np.zeros(inputs.shape, dtype)
    passes, moved = 0, np.inf
    while moved > STATE_TOLERANCE and passes < rows:
        carry = starts
        for k in range(0, inputs.shape[0], length):
            part = slice(k, k + length)
            carry, nats[part] = forward(params, carry, inputs[part], targets[part], mask[part])
        true_starts = shift_rows(carry, zero)
        moved = max(
            float(jnp.max(jnp.abs(a - b)))
            for a, b in zip(jax.tree.leaves(starts), jax.tree.leaves(true_starts), strict=True)
        )
        starts = true_starts
        passes += 1
    return nats.T[mask.T], passes


def cut_rows(tokens: np.ndarray, *, batch: int = 16, length: int = 64) -> Rows:
    """A text as the segments of its rows, for `scan_stream`. tokens int32 [N]."""
    inputs, targets, mask = layout_rows(tokens, batch, length)
    return Rows(*(a.reshape(-1, length, a.shape[1]) for a in (inputs, targets, mask)))


def scan_stream(config: ModelConfig, params: model.Params, rows: Rows) -> jax.Array:
    """`evaluate_stream` as one pure function, to be compiled, or mapped over parameters.

    Returns:
      Nats of each segment, all of its rows together, [S].
    """
    zero = model.init_carry(config, rows.inputs.shape[2], params.embedding.dtype)

    def read(carry: model.Carry, part: Rows) -> tuple[model.Carry, jax.Array]:
        carry, h = model.apply(config, params, carry, part.inputs, part.mask)
        nats = exact_token_nats(params, h.reshape(-1, h.shape[-1]), part.targets.reshape(-1))
        return carry, jnp.sum(jnp.where(part.mask.reshape(-1), nats, 0))

    segments, length, count = rows.inputs.shape
    first = 0 if count == 1 else max(0, segments - GUESS_TOKENS // length)
    guessed = zero
    if first:
        guessed, _ = lax.scan(read, zero, jax.tree.map(lambda a: a[first:], rows))

    def read_all(carried: Any) -> Any:
        starts, _, _, passes = carried
        ends, nats = lax.scan(read, starts, rows)
        true_starts = shift_rows(ends, zero)
        moved = [
            jnp.max(jnp.abs(a - b))
            for a, b in zip(jax.tree.leaves(starts), jax.tree.leaves(true_starts), strict=True)
        ]
        return true_starts, nats, jnp.max(jnp.stack(moved)), passes + 1

    def disagree(carried: Any) -> jax.Array:
        _, _, moved, passes = carried
        return (moved > STATE_TOLERANCE) & (passes < count)

    dtype = params.embedding.dtype
    unread = (shift_rows(guessed, zero), jnp.zeros(segments, dtype), jnp.asarray(jnp.inf, dtype))
    _, nats, _, _ = lax.while_loop(disagree, read_all, (*unread, jnp.zeros((), jnp.int32)))
    return nats


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
    nats = sentence_nats(config, params, tokens, batch=batch, forward=forward)
    return Evaluation(float(nats.sum(dtype=np.float64)), len(tokens), 1)


def sentence_nats(
    config: ModelConfig,
    params: model.Params,
    tokens: np.ndarray,
    *,
    batch: int = 16,
    forward: Forward | None = None,
) -> np.ndarray:
    """Nats of each token [N] in the order of the text; as `evaluate_sentences`."""
    forward = forward or make_forward(config)
    zero = model.init_carry(config, batch, params.embedding.dtype)
    starts, lengths = cut_sentences(tokens, WHOLE)
    sizes = np.asarray([*(b for b in BUCKETS if b < lengths.max()), lengths.max()])
    buckets = sizes[np.searchsorted(sizes, lengths)]
    nats = np.zeros(len(tokens), params.embedding.dtype)
    for size in np.unique(buckets):
        sentences = np.flatnonzero(buckets == size)
        for k in range(0, len(sentences), batch):
            rows = sentences[k : k + batch]
            part = pad(tokens, starts[rows], lengths[rows], int(size), batch)
            _, found = forward(params, zero, part.inputs, part.targets, part.mask)
            columns = np.asarray(found).T
            for row, column in zip(rows, columns, strict=False):
                nats[starts[row] : starts[row] + lengths[row]] = column[: lengths[row]]
    return nats


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


def cut_pieces(
    tokens: np.ndarray, length: int, *, batch: int = 1, sentences: bool = False
) -> Pieces:
    """A text in pieces of at most `length` tokens, for a scan that reads it in order.

    Args:
      tokens: int32 [N].
      batch: B, rows side by side: each a contiguous part of the text, from the zero state.
      sentences: no piece goes over a sentence's end, and each sentence starts from the zero
        state; else the state is carried from piece to piece.
    """
    if sentences:
        starts, lengths = cut_sentences(tokens, length)
        reset = (starts == 0) | (tokens[starts - 1] == END_ID)
    else:
        starts = np.arange(0, len(tokens), length)
        lengths = np.minimum(length, len(tokens) - starts)
        reset = starts == 0
    steps = -(-len(starts) // batch)
    spare = steps * batch - len(starts)
    starts, lengths, reset = (
        np.pad(a, (0, spare)).reshape(batch, steps).T for a in (starts, lengths, reset)
    )
    reset = reset.copy()
    reset[0] = True
    return Pieces(starts, lengths, reset)


def read_pieces(tokens: np.ndarray, pieces: Pieces, length: int) -> Segments:
    """The words of pieces of at most `length` tokens."""
    position = np.arange(length)[:, None]
    mask = position < pieces.lengths[:, None]  # [S, T, B]
    at = np.where(mask, pieces.starts[:, None] + position, 0)
    inputs = np.where(mask & (at > 0), tokens[at - 1], END_ID).astype(np.int32)
    targets = np.where(mask, tokens[at], END_ID).astype(np.int32)
    return Segments(inputs, targets, mask, pieces.reset)


def read_blocks(tokens: np.ndarray, pieces: Pieces, length: int, most: int) -> Iterator[Segments]:
    """Blocks of `most` segments; the last is filled up with padding, so that all have one shape."""
    for k in range(0, len(pieces.reset), most):
        part = Pieces(*(a[k : k + most] for a in pieces))
        spare = [(0, most - len(part.reset)), (0, 0)]
        yield read_pieces(tokens, Pieces(*(np.pad(a, spare) for a in part)), length)


def reset_rows(reset: jax.Array, carry: model.Carry) -> model.Carry:
    """The zero state in the rows that `reset` [B] names."""
    return jax.tree.map(lambda s: jnp.where(reset[:, None], jnp.zeros_like(s), s), carry)
