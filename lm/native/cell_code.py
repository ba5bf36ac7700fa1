"""The gates of a cell as C: its equations as JAX traces them, an operation a line.

A cell's `linearize` and `pull_back` are traced once, for a small batch of few units. They must
treat all units and rows alike: arithmetic, sigmoids and hyperbolic tangents of whole arrays
[B, n H], cut and joined between gates. Then a variable is n vectors of units of a row, and the code
is the same at any B and H. recurrence.h puts the product and the loops around it. There is none of
a cell with anything else in its gates: the scans of lm.recurrence run that.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.cells.cell import Cell

BATCH, HIDDEN = 7, 11  # of the trace: no multiple of each other
ZERO = "all(0.0f)"

ARITHMETIC = {
    "add": "{} + {}",
    "add_any": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "square": "{0} * {0}",
    "max": "larger({}, {})",
    "min": "smaller({}, {})",
    "tanh": "hyperbolic_tangent({})",
    "logistic": "sigmoid({})",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "select_n": "pick({0}, {2}, {1})",
}
SAME = {"copy", "stop_gradient", "reshape", "squeeze", "broadcast_in_dim", "optimization_barrier"}
CALLS = {  # operations that hold a trace, by its name among their parameters
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
}


class CellCode(NamedTuple):
    """C for a cell, and how its arrays are laid out."""

    text: str
    widths: tuple[int, ...]  # of each array of the tape, in units of H
    shared: tuple[bool, ...]  # whether all rows share it: [T, 1, n H] or [T, n H], not [T, B, n H]
    over_z: int | None  # the array of the tape that may take the place of z, and dL/dz its
    is_sum: bool  # the gates see z + u alone: dL/dz is dL/du


class UnsupportedError(Exception):
    """The cell has something in its gates that there is no C for."""


@cache
def write_cell(cell: Cell) -> CellCode | None:
    """C for a cell's gates; None where there is none."""
    if not cell.pointwise or cell.feedback or cell.diagonal is not None:
        return None
    try:
        return translate(cell)
    except Exception:  # UnsupportedError, or whatever a cell says of a size that it is not made for
        return None


def translate(cell: Cell) -> CellCode:
    """`write_cell`, for a cell with a recurrent product.

    Raises:
      UnsupportedError: something that is not here.
    """
    gates, fields = len(cell.gates), list(cell.state._fields)  # type: ignore[attr-defined]
    state = cell.init_state(BATCH, HIDDEN)
    z = jnp.zeros((BATCH, gates * HIDDEN), jnp.float32)
    vectors = tuple(jnp.zeros(vector.gates * HIDDEN, jnp.float32) for vector in cell.vectors)
    forward, (_, tape) = jax.make_jaxpr(cell.linearize, return_shape=True)(vectors, state, z, z)
    leaves, tree = jax.tree.flatten(tape)
    is_sum = False

    def pull_back(leaves: Any, d_state: Any) -> Any:
        nonlocal is_sum
        pulled = cell.pull_back(jax.tree.unflatten(tree, leaves), d_state)
        is_sum = pulled.u is pulled.z
        return pulled.state, pulled.z, () if is_sum else pulled.u, pulled.vectors

    backward = jax.make_jaxpr(pull_back)(leaves, state)
    rows = [width_of(leaf, BATCH) for leaf in leaves]
    shared = tuple(row is None for row in rows)
    widths = tuple(row or width_of(leaf, 1) or 0 for row, leaf in zip(rows, leaves, strict=True))
    if not all(widths):
        raise UnsupportedError
    over_z = next((k for k, row in enumerate(rows) if row == gates), None)
    parts = sum(vector.gates for vector in cell.vectors)
    sizes = {
        "GATES": gates,
        "FIELDS": len(fields),
        "HIDDEN": fields.index("h"),
        "VECTOR_ARRAYS": len(vectors),
        "VECTOR_PARTS": parts,
        "TAPE_ARRAYS": len(leaves),
        "TAPE_PARTS": sum(widths),
        "IS_SUM": int(is_sum),
    }
    given = [
        *names("v", parts, [vector.gates for vector in cell.vectors]),
        *names("s", len(fields), [1] * len(fields)),
        *names("z", gates, [gates]),
        *names("u", gates, [gates]),
    ]
    back = [*names("tape", sum(widths), widths), *names("d_next", len(fields), [1] * len(fields))]
    lines = [
        '#include "vectors.h"',
        f"enum {{ {', '.join(f'{name} = {size}' for name, size in sizes.items())} }};",
        *write_places("VECTOR", [vector.gates for vector in cell.vectors]),
        *write_places("TAPE", widths),
        f"static const int TAPE_WIDTHS[] = {listed(widths)};",
        f"static const int TAPE_IS_SHARED[] = {listed(map(int, shared))};",
        "static inline void linearize(const lanes *v, const lanes *s, const lanes *z, "
        "const lanes *u, lanes *next, lanes *tape) {",
        "(void)v, (void)s;",
        *write_body(forward, given, [("next", len(fields)), ("tape", sum(widths))]),
        "}",
        "static inline void pull_back(const lanes *tape, const lanes *d_next, lanes *d_s, "
        "lanes *d_z, lanes *d_u, lanes *d_v) {",
        "(void)d_u, (void)d_v;",
        *write_body(
            backward,
            back,
            [("d_s", len(fields)), ("d_z", gates), ("d_u", 0 if is_sum else gates), ("d_v", parts)],
        ),
        "}",
        '#include "recurrence.h"',
    ]
    return CellCode("\n".join(lines) + "\n", widths, shared, over_z, is_sum)


def write_places(what: str, widths: Any) -> list[str]:
    """Where each part is: in which array, and where in it."""
    places = [(array, part) for array, width in enumerate(widths) for part in range(width)]
    return [
        f"static const int {what}_ARRAY[] = {listed(array for array, _ in places)};",
        f"static const int {what}_PLACE[] = {listed(part for _, part in places)};",
    ]


def listed(numbers: Any) -> str:
    """Numbers between braces, and a 0 more: C has no empty arrays."""
    return "{" + ", ".join(map(str, [*numbers, 0])) + "}"


def names(array: str, count: int, widths: Any) -> list[list[str]]:
    """array[0] .. array[count - 1], dealt out by widths."""
    found, start = [], 0
    for width in widths:
        found.append([f"{array}[{k}]" for k in range(start, start + width)])
        start += width
    assert start == count
    return found


def width_of(array: Any, rows: int) -> int | None:
    """n of an array [rows, n H], or with one row of [n H] too; None of any other."""
    shape = array.shape
    if array.dtype != jnp.float32 or not shape or shape[-1] % HIDDEN or not shape[-1]:
        return None
    leading = shape[:-1]
    return shape[-1] // HIDDEN if leading == (rows,) or (rows == 1 and not leading) else None


def write_body(traced: Any, given: list[list[str]], wanted: list[tuple[str, int]]) -> list[str]:
    """Lines that compute what a trace does from expressions for its inputs into arrays."""
    writer = Writer()
    found = [part for parts in writer.run(traced.jaxpr, traced.consts, given) for part in parts]
    targets = [f"{array}[{k}]" for array, count in wanted for k in range(count)]
    if len(found) != len(targets):
        raise UnsupportedError
    for to, part in zip(targets, found, strict=True):
        # What a vector's cotangent is must be summed over rows, or nothing; nothing else may be.
        if (part in writer.sums) != to.startswith("d_v[") and part != ZERO:
            raise UnsupportedError
    return [*writer.lines, *(f"{to} = {part};" for to, part in zip(targets, found, strict=True))]


class Writer:
    """Lines of C, one for each H columns of each variable of a trace."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sums: set[str] = set()  # what the loop around sums over rows

    def run(self, jaxpr: Any, consts: Any, given: list[list[str]]) -> list[list[str]]:
        """The outputs of a trace, given its inputs."""
        known: dict[Any, list[str]] = {}

        def read(atom: Any) -> list[str]:
            return number(atom.val) if hasattr(atom, "val") else known[atom]

        known |= {var: number(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}
        known |= dict(zip(jaxpr.invars, given, strict=True))
        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            known |= dict(zip(eqn.outvars, self.apply(eqn, operands), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, operands: list[list[str]]) -> list[list[str]]:
        """The results of one operation."""
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS:
            inner = params[CALLS[name]]
            return self.run(inner.jaxpr, inner.consts, operands)
        out = eqn.outvars[0].aval
        if out.ndim > 2 or out.shape[:-1] not in ((), (1,), (BATCH,)):
            raise UnsupportedError
        if name in SAME:
            return [repeat(operands[0], eqn.invars[0].aval, out)]
        if name == "reduce_sum" and params["axes"] == (0,):
            return [self.sum_rows(operands[0], eqn.invars[0].aval)]
        if any(part in self.sums for parts in operands for part in parts):
            raise UnsupportedError
        if name in ARITHMETIC:
            return [self.compute(ARITHMETIC[name], operands, out)]
        if name == "integer_pow" and params["y"] == 2:
            return [self.compute(ARITHMETIC["square"], operands, out)]
        if name == "convert_element_type" and out.dtype == jnp.float32:
            if eqn.invars[0].aval.dtype == jnp.bool_:
                return [self.compute("pick({}, all(1), all(0))", operands, out)]
            return operands
        if name == "slice" and params["strides"] is None:
            if out.shape[:-1] != eqn.invars[0].aval.shape[:-1]:
                raise UnsupportedError  # some of the rows
            start, end = params["start_indices"][-1], params["limit_indices"][-1]
            return [operands[0][cut(start) : cut(end)]]
        if name == "split" and params["axis"] == out.ndim - 1:
            ends = np.cumsum(params["sizes"]).tolist()
            return [operands[0][cut(a) : cut(b)] for a, b in zip([0, *ends], ends, strict=False)]
        if name == "concatenate" and params["dimension"] == out.ndim - 1:
            return [[part for parts in operands for part in parts]]
        if name == "pad":
            before, after, between = params["padding_config"][-1]
            if between or min(before, after) < 0 or any(map(any, params["padding_config"][:-1])):
                raise UnsupportedError
            rim = operands[1]
            return [rim * cut(before) + operands[0] + rim * cut(after)]
        raise UnsupportedError

    def sum_rows(self, parts: list[str], array: Any) -> list[str]:
        """The sum over rows, which the loop around takes: a row's own share of it."""
        if array.shape[0] == 1:
            return parts
        found = self.compute("{}", [parts], array)
        self.sums |= set(found)
        return found

    def compute(self, form: str, operands: list[list[str]], out: Any) -> list[str]:
        """A line for each part."""
        width = max(map(len, operands))
        kind, found = "marks" if out.dtype == jnp.bool_ else "lanes", []
        for k in range(width):
            parts = [parts[k if len(parts) > 1 else 0] for parts in operands]
            found.append(f"t{len(self.lines)}")
            self.lines.append(f"const {kind} {found[-1]} = {form.format(*parts)};")
        return found


def repeat(parts: list[str], array: Any, out: Any) -> list[str]:
    """The same numbers in another shape: one for every entry, or n H for every row."""
    if not array.shape:
        return parts * max(1, out.shape[-1] // HIDDEN if out.shape else 1)
    if not out.shape or out.shape[-1] != array.shape[-1]:
        raise UnsupportedError
    return parts


def number(value: Any) -> list[str]:
    """A constant, in every lane."""
    if np.ndim(value) or not np.isfinite(value):
        raise UnsupportedError
    return [f"all({float(np.float32(value))!r}f)"]


def cut(column: int) -> int:
    """A column that parts two gates, in units of H."""
    if column % HIDDEN:
        raise UnsupportedError
    return int(column) // HIDDEN
