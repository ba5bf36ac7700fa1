"""A cell over a whole sequence as one call, forward and backward, on a CPU: recurrence.h.

XLA runs a step of a recurrence as a product and a dozen small kernels on one core, each of which
reads and writes whole arrays. In C a step is one pass over blocks of units, on all cores. The
equations are the cell's own, which `lm.native.cell_code` writes out, and a call returns what a scan
of `lm.scans` does, to the rounding of float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lm.cells.cell import Cell, Tape, Vectors
from lm.native.calls import call, like, serves, unless_transformed
from lm.native.cell_code import CellCode, write_cell
from lm.native.library import load_cell
from lm.native.packed_product import COLUMNS, pays


class Loop(NamedTuple):
    """A cell whose loops are compiled."""

    cell: Cell
    code: CellCode
    suffix: str  # of its functions' names


class Cotangents(NamedTuple):
    """What the backward loop sends back."""

    first: Any  # of s_0, fields [B, H]
    vectors: Vectors
    z: jax.Array  # [T, B, K]
    u: jax.Array | None  # [T, B, K]; None: dL/dz serves for both


def find_loop(
    cell: Cell, w_h: jax.Array, vectors: Vectors, state: Any, time_batch: tuple[int, ...]
) -> Loop | None:
    """The compiled loops of a cell; None where there are none, they do not pay, or shapes disagree.

    Args:
      state: fields [B, H], or their cotangents.
      time_batch: (T, B) of the sequence.
    """
    rows, hidden, width = time_batch[1], len(w_h), len(cell.gates)
    fits = (
        w_h.shape == (hidden, width * hidden)
        and all(field.shape == (rows, hidden) for field in state)
        and [v.shape for v in vectors] == [(v.gates * hidden,) for v in cell.vectors]
    )
    if not fits or not serves(*vectors, *state) or not pays(w_h, *time_batch):
        return None
    code = write_cell(cell, rows, hidden)
    suffix = None if code is None else load_cell(code.text)
    return Loop(cell, code, suffix) if code is not None and suffix is not None else None


def run(
    loop: Loop,
    plain: Callable[..., Any],
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
) -> tuple[Any, jax.Array]:
    """(s_T, h [T, B, H]), given s_0 and z [T, B, K].

    Args:
      plain: the same by a scan: (w_h, vectors, state, z) -> (s_T, h).
    """

    def in_c(w_h: jax.Array, vectors: Vectors, state: Any, z: jax.Array) -> Any:
        return call_forward(loop, (), w_h, vectors, state, z)[:2]

    found: tuple[Any, jax.Array] = unless_transformed(in_c, plain)(w_h, vectors, state, z)
    return found


def run_taped(
    loop: Loop,
    plain: Callable[..., Any],
    w_h: jax.Array,
    vectors: Vectors,
    state: Any,
    z: jax.Array,
) -> tuple[Any, jax.Array, Tape]:
    """`run`, and the tape, which has fields [T, ...].

    Args:
      plain: the same by a scan: (w_h, vectors, state, z) -> (s_T, h, tape).
    """
    _, tape = jax.eval_shape(loop.cell.linearize, vectors, state, z[0], z[0])
    leaves, tree = jax.tree.flatten(tape)

    def in_c(w_h: jax.Array, vectors: Vectors, state: Any, z: jax.Array) -> Any:
        results = [like(z, len(z), *leaf.shape) for leaf in leaves]
        return call_forward(loop, results, w_h, vectors, state, z)

    def by_scan(*args: Any) -> Any:
        last, h, tape = plain(*args)
        return last, h, jax.tree.leaves(tape)

    last, h, found = unless_transformed(in_c, by_scan)(w_h, vectors, state, z)
    return last, h, jax.tree.unflatten(tree, found)


def call_forward(
    loop: Loop, tape: Any, w_h: jax.Array, vectors: Vectors, state: Any, z: jax.Array
) -> tuple[Any, jax.Array, list[jax.Array]]:
    """(s_T, h, the arrays of the tape), of which one may take the place of z."""
    fields = len(state)
    h = like(z, len(z), *state.h.shape)
    results = [work_space(state.h, w_h, 1), *map(like_itself, state), h]
    over = loop.code.over_z if tape else None
    aliases = None if over is None else {0: len(results) + over}
    arguments = z, *state, *vectors, w_h
    found = call("run_cell" + loop.suffix, [*results, *tape], *arguments, aliases=aliases)
    return type(state)(*found[1 : fields + 1]), found[fields + 1], found[fields + 2 :]


def pull_back(
    loop: Loop,
    plain: Callable[..., Cotangents],
    w_h: jax.Array,
    vectors: Vectors,
    tape: Tape,
    d_h: jax.Array,
    d_last: Any,
) -> Cotangents:
    """What the backward loop sends back. dL/dz may take the place of an array of the tape.

    Args:
      plain: the same by a scan: (w_h, vectors, tape, d_h, d_last) -> Cotangents.
      d_h: dL/dh_t from above [T, B, H].
      d_last: dL/ds_T beside it, fields [B, H].
    """
    leaves, tree = jax.tree.flatten(tape)

    def in_c(
        w_h: jax.Array, vectors: Vectors, leaves: list[jax.Array], d_h: jax.Array, d_last: Any
    ) -> Cotangents:
        z = like(d_h, *d_h.shape[:2], w_h.shape[1])
        results = [work_space(d_last.h, w_h, len(loop.cell.gates)), *map(like_itself, d_last)]
        results += [*map(like_itself, vectors), z] + ([] if loop.code.is_sum else [z])
        over, place = loop.code.over_z, 1 + len(d_last) + len(vectors)
        aliases = None if over is None else {over: place}
        name = "pull_cell" + loop.suffix
        found = call(name, results, *leaves, d_h, *d_last, w_h, aliases=aliases)
        first = type(d_last)(*found[1 : 1 + len(d_last)])
        d_u = None if loop.code.is_sum else found[place + 1]
        return Cotangents(first, tuple(found[1 + len(d_last) : place]), found[place], d_u)

    def by_scan(w_h: jax.Array, vectors: Vectors, leaves: Any, *rest: Any) -> Cotangents:
        return plain(w_h, vectors, jax.tree.unflatten(tree, leaves), *rest)

    found: Cotangents = unless_transformed(in_c, by_scan)(w_h, vectors, leaves, d_h, d_last)
    return found


def like_itself(array: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape and type of an array."""
    return like(array, *array.shape)


def work_space(h: jax.Array, w_h: jax.Array, parts: int) -> jax.ShapeDtypeStruct:
    """Memory that a call works in: W_h packed, and twice what a product reads, [parts H, B]."""
    batch, hidden = h.shape
    panels = -(-hidden // COLUMNS) * COLUMNS * w_h.shape[1]
    return like(h, panels + 2 * batch * parts * hidden)
