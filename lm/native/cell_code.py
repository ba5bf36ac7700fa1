"""The gates of a cell as C: its equations as JAX traces them, an operation a line.

A cell's `linearize` and `pull_back` must treat all units and rows alike: arithmetic, sigmoids and
hyperbolic tangents of whole arrays [B, n H], cut and joined between gates. Then a variable is n
vectors of units of a row, and what one unit does all do. recurrence.h puts the product and the
loops around it. The trace is of the B and H that the code is for, since a cell may make numbers of
them; of most cells it reads the same at any.

There is none of a cell with anything else in its gates, nor of one whose tape has more than such
arrays and vectors, a constant factor say: lm.scans runs those.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.cells.cell import Cell

ZERO = "all(0.0f)"

ARITHMETIC = {
    "add": "{} + {}",
    "add_any": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "square": "{0} * {0}",
    "one_minus_square": "all(1) - {0} * {0}",  # JAX 0.12's, in the derivative of tanh
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


def write_cell(cell: Cell, rows: int, hidden: int) -> CellCode | None:
    """C for a cell's gates; None where there is none.

    Args:
      rows: B of the arrays that it is wanted for.
      hidden: H.
    """
    if not cell.pointwise or cell.feedback or cell.diagonal is not None:
        return None
    try:
        return translate(cell, rows, hidden)
    except Exception:  # UnsupportedError, or whatever else: the scans are there
        return None


def translate(cell: Cell, rows: int, hidden: int) -> CellCode:
    """`write_cell`, for a cell with a recurrent product.

    Raises:
      UnsupportedError: something that is not here.
    """
    gates, fields = len(cell.gates), list(cell.state._fields)  # type: ignore[attr-defined]
    like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    state = cell.state(*(like(rows, hidden) for _ in fields))
    z = like(rows, gates * hidden)
    vectors = tuple(like(vector.gates * hidden) for vector in cell.vectors)
    forward, (_, tape) = jax.make_jaxpr(cell.linearize, return_shape=True)(vectors, state, z, z)
    leaves, tree = jax.tree.flatten(tape)
    is_sum = False

    def pull_back(leaves: Any, d_state: Any) -> Any:
        nonlocal is_sum
        pulled = cell.pull_back(jax.tree.unflatten(tree, leaves), d_state)
        is_sum = pulled.u is pulled.z
        return pulled.state, pulled.z, () if is_sum else pulled.u, pulled.vectors

    backward = jax.make_jaxpr(pull_back)(leaves, state)
    of_rows = [width_of(leaf, rows, hidden) for leaf in leaves]
    shared = tuple(width is None for width in of_rows)
    widths = tuple(
        width or width_of(leaf, 1, hidden) or 0 for width, leaf in zip(of_rows, leaves, strict=True)
    )
    if not all(widths):
        raise UnsupportedError
    over_z = next((k for k, width in enumerate(of_rows) if width == gates), None)
    parts = sum(vector.gates for vector in cell.vectors)
    sizes = {
        "GATES": gates,
        "FIELDS": len(fields),
        "H_FIELD": fields.index("h"),
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
        *write_body(
            Writer(rows, hidden), forward, given, [("next", len(fields)), ("tape", sum(widths))]
        ),
        "}",
        "static inline void pull_back(const lanes *tape, const lanes *d_next, lanes *d_s, "
        "lanes *d_z, lanes *d_u, lanes *d_v) {",
        "(void)d_u, (void)d_v;",
        *write_body(
            Writer(rows, hidden),
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


def width_of(array: Any, rows: int, hidden: int) -> int | None:
    """n of an array [rows, n H], or with one row of [n H] too; None of any other."""
    shape = array.shape
    if array.dtype != jnp.float32 or not shape or shape[-1] % hidden or not shape[-1]:
        return None
    leading = shape[:-1]
    return shape[-1] // hidden if leading == (rows,) or (rows == 1 and not leading) else None


def write_body(
    writer: "Writer", traced: Any, given: list[list[str]], wanted: list[tuple[str, int]]
) -> list[str]:
    """Lines that compute what a trace does from expressions for its inputs into arrays."""
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

    def __init__(self, rows: int, hidden: int) -> None:
        self.rows, self.hidden = rows, hidden  # of the trace
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
        arrays = [atom.aval for atom in eqn.invars]
        kinds = [array.dtype for array in (*arrays, out)]
        if any(kind not in (jnp.float32, jnp.bool_) for kind in kinds):
            raise UnsupportedError
        if out.ndim > 2 or out.shape[:-1] not in ((), (1,), (self.rows,)):
            raise UnsupportedError
        if name in SAME:
            return [self.repeat(operands[0], arrays[0], out)]
        if name == "reduce_sum" and params["axes"] == (0,):
            return [self.sum_rows(operands[0], arrays[0])]
        if any(part in self.sums for parts in operands for part in parts):
            raise UnsupportedError
        if name in ARITHMETIC:
            return [self.compute(ARITHMETIC[name], operands, out)]
        if name == "integer_pow" and params["y"] == 2:
            return [self.compute(ARITHMETIC["square"], operands, out)]
        if name == "convert_element_type" and out.dtype == jnp.float32:
            if arrays[0].dtype == jnp.bool_:
                return [self.compute("pick({}, all(1), all(0))", operands, out)]
            return operands
        if name == "slice" and params["strides"] is None:
            if out.shape[:-1] != arrays[0].shape[:-1]:
                raise UnsupportedError  # some of the rows
            start, end = params["start_indices"][-1], params["limit_indices"][-1]
            return [operands[0][self.cut(start) : self.cut(end)]]
        if name == "split" and params["axis"] == out.ndim - 1:
            ends = np.cumsum(params["sizes"]).tolist()
            return [
                operands[0][self.cut(a) : self.cut(b)]
                for a, b in zip([0, *ends], ends, strict=False)
            ]
        if name == "concatenate" and params["dimension"] == out.ndim - 1:
            return [[part for parts in operands for part in parts]]
        if name == "pad":
            before, after, between = params["padding_config"][-1]
            if between or min(before, after) < 0 or any(map(any, params["padding_config"][:-1])):
                raise UnsupportedError
            rim = operands[1]
            return [rim * self.cut(before) + operands[0] + rim * self.cut(after)]
        raise UnsupportedError

    def sum_rows(self, parts: list[str], array: Any) -> list[str]:
        """The sum over rows, which the loop around takes: a row's own share of it."""
        if array.ndim == 2 and array.shape[0] == 1:
            return parts
        if array.ndim != 2 or any(part in self.sums for part in parts):
            raise UnsupportedError
        found = self.compute("{}", [parts], array)
        self.sums |= set(found)
        return found

    def repeat(self, parts: list[str], array: Any, out: Any) -> list[str]:
        """The same numbers in another shape: one for every entry, or n H for every row."""
        if array.shape:
            if not out.shape or out.shape[-1] != array.shape[-1]:
                raise UnsupportedError
            return parts
        return parts * (self.cut(out.shape[-1]) if out.shape else 1)

    def cut(self, column: int) -> int:
        """A column that parts two gates, in units of H."""
        if column % self.hidden:
            raise UnsupportedError
        return int(column) // self.hidden

    def compute(self, form: str, operands: list[list[str]], out: Any) -> list[str]:
        """A line for each part."""
        width = max(map(len, operands))
        kind, found = "marks" if out.dtype == jnp.bool_ else "lanes", []
        for k in range(width):
            parts = [parts[k if len(parts) > 1 else 0] for parts in operands]
            found.append(f"t{len(self.lines)}")
            self.lines.append(f"const {kind} {found[-1]} = {form.format(*parts)};")
        return found


def number(value: Any) -> list[str]:
    """A constant, in every lane."""
    if np.ndim(value) or np.asarray(value).dtype == np.bool_ or not np.isfinite(value):
        raise UnsupportedError
    return [f"all({float(np.float32(value))!r}f)"]
