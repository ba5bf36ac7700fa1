"""Any recurrent cell as one record: ours, a bare step, Flax (linen, nnx), Haiku, Equinox.

A `Recurrence` is a cell with all that libraries disagree on settled (`lm.gradients.libraries`):
a pure step(params, state, x_t) -> (state, h_t), whose state is a dict of its leaves by name. What
does not fit is refused here, before anything is computed, in one line.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.gradients.libraries import Native, read_cell, same_tree
from lm.recurrence import Step

State = dict[str, jax.Array]  # leaves [B, ...] by name; in tree order, which is alphabetical


@dataclass(frozen=True)
class Recurrence:
    """A recurrent cell of any origin.

    Attributes:
      step: (params, state, x_t [B, ...]) -> (state, h_t), pure. Equal cells have equal steps, so
        that a function compiled for one serves the other.
      params: pytree of arrays.
      state_shapes: shape and dtype of each leaf of the state, [1, ...].
      output: index in `fields` of the leaf that is h_t itself, one variable returned twice; None
        where h_t is computed apart.
      name: of the cell, for messages.
    """

    step: Step
    params: Any
    state_shapes: dict[str, jax.ShapeDtypeStruct]
    output: int | None
    name: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the state's leaves in tree order: an LSTM's are c, h in every library."""
        return tuple(sorted(self.state_shapes))

    def init_state(self, batch: int) -> State:
        """The zero state, leaves [batch, ...], whatever the library's own start is."""
        return {
            name: jnp.zeros((batch, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in self.state_shapes.items()
        }


def as_recurrence(
    cell: Any, params: Any = None, *, x: Any, state: Any = None
) -> tuple[Recurrence, State]:
    """Read a recurrent cell of any accepted kind.

    | cell | params | state may be left out |
    |---|---|---|
    | `Cell` of lm.cells | CellParams | yes |
    | step(params, state, x_t) -> (state, h_t) | any pytree of arrays | no |
    | flax.linen RNNCellBase | its variables, or their "params" | yes |
    | flax.nnx RNNCellBase | nnx.State; None: the cell's own | yes |
    | hk.transform of f(x_t, state) -> (h_t, state) | what its init returned | no |
    | function that builds a core, `lambda: hk.LSTM(64)` | likewise | yes |
    | Equinox module (x_t, state) -> state, of one row | None: the cell's own | LSTMCell, GRUCell |

    Args:
      cell: as above.
      params: as above.
      x: inputs [T, B, ...]; shape and dtype alone count.
      state: s_0 in the library's own form, leaves [B, ...]; left out: zeros.

    Returns:
      (Recurrence, s_0).

    Raises:
      ValueError: another kind of object; parameters or state missing; a step that does not take
        such an input, draws random numbers, changes variables of its own, or returns a state of
        another structure, shape or dtype.
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}; wanted [T, B, ...], time first")
    native = read_cell(cell, params)
    weights = check_params(native)
    batch = x.shape[1]
    if state is None:
        state = zero_state(native, weights, batch)
    else:
        state = jax.tree.map(jnp.asarray, state)
    names = leaf_names(state)
    if native.names and names == ("0", "1"):
        names = native.names
    check_state(native.name, names, state, batch)
    x_t = jax.ShapeDtypeStruct((batch, *x.shape[2:]), x.dtype)
    leaf = output_leaf(native, names, weights, state, x_t)
    named = dict(zip(names, jax.tree.leaves(state), strict=True))
    shapes = {k: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype) for k, v in named.items()}
    return Recurrence(
        NamedStep(hashable(native.step), jax.tree.structure(state), names),
        weights,
        shapes,
        None if leaf is None else sorted(names).index(names[leaf]),
        native.name,
    ), named


@dataclass(frozen=True)
class NamedStep:
    """A library's step between states that are dicts of their leaves."""

    step: Step
    tree: Any  # of the library's state
    names: tuple[str, ...]  # of its leaves, in the library's order

    def __call__(self, params: Any, state: State, x_t: jax.Array) -> tuple[State, jax.Array]:
        own = jax.tree.unflatten(self.tree, [state[name] for name in self.names])
        new, h_t = self.step(params, own, x_t)
        return dict(zip(self.names, jax.tree.leaves(new), strict=True)), h_t


def leaf_names(state: Any) -> tuple[str, ...]:
    """Names of the leaves of a state: its fields, keys or indices; h for an array alone."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    names = [jax.tree_util.keystr(p, simple=True, separator=".") or "h" for p in paths]
    if sorted(names) == ["cell", "hidden"]:  # Haiku's words
        return tuple("c" if name == "cell" else "h" for name in names)
    return tuple(names)


def hashable(step: Step) -> Step:
    """A step that jit can tell from others: itself, or a function of its own around it."""
    try:
        hash(step)
    except TypeError:
        return lambda params, state, x_t: step(params, state, x_t)
    return step


def zero_state(native: Native, params: Any, batch: int) -> Any:
    """Zeros of the shapes that the library starts from, in the dtype of the parameters."""
    if native.zero is None:
        raise ValueError(
            f"state is missing; {native.name} does not tell what its state is: pass state=, s_0 "
            "with the batch first"
        )
    floats = [p.dtype for p in jax.tree.leaves(params) if jnp.issubdtype(p.dtype, jnp.floating)]
    try:
        shapes = jax.eval_shape(lambda: native.zero(batch))  # type: ignore[misc]
    except Exception as error:
        raise ValueError(
            f"state is missing; asked for its own, {native.name} fails: {first_line(error)}"
        ) from error

    def zeros(leaf: Any) -> jax.Array:
        inexact = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.zeros(leaf.shape, floats[0] if inexact and floats else leaf.dtype)

    return jax.tree.map(zeros, shapes)


def check_params(native: Native) -> Any:
    """The parameters as arrays, or a ValueError that names the leaf that is none."""

    def check(path: Any, leaf: Any) -> jax.Array:
        where = jax.tree_util.keystr(path, simple=True, separator=".")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, float)):
            raise ValueError(
                f"params of {native.name} hold a {type(leaf).__name__} at {where!r}; wanted arrays"
            )
        array = jnp.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"params of {native.name} hold {array.dtype} at {where!r}; wanted floating point, "
                "which has a gradient: let the step close over other arrays"
            )
        return array

    return jax.tree_util.tree_map_with_path(check, native.params)


def check_state(name: str, names: tuple[str, ...], state: Any, batch: int) -> None:
    """Every leaf is real, floating and has the batch first."""
    leaves = jax.tree.leaves(state)
    if not leaves:
        raise ValueError(f"the state of {name} has no leaves; wanted a recurrent cell")
    for field, leaf in zip(names, leaves, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"state leaf {field!r} of {name} is {leaf.dtype}; wanted real floating point, "
                "which has a gradient (no counters, no keys; complex numbers as two leaves)"
            )
        if leaf.ndim < 2 or leaf.shape[0] != batch:
            raise ValueError(
                f"state leaf {field!r} of {name} has shape {leaf.shape}; wanted [B, ...] "
                f"with B = {batch} as in x"
            )


def output_leaf(
    native: Native, names: tuple[str, ...], params: Any, state: Any, x_t: Any
) -> int | None:
    """Trace one step, check what it returns, and find the leaf of the state that h_t is.

    Returns:
      index in the library's order; None where the output is a value of its own.
    """
    try:
        traced, (new, h_t) = jax.make_jaxpr(native.step, return_shape=True)(params, state, x_t)
    except Exception as error:
        raise ValueError(
            f"{native.name} does not run on x_t {x_t.dtype}{list(x_t.shape)} with these "
            f"parameters and this state: {first_line(error)}"
        ) from error
    if not same_tree(new, state):
        raise ValueError(
            f"the step of {native.name} returns the state {jax.tree.structure(new)}; wanted "
            f"{jax.tree.structure(state)}, as it came in"
        )
    for field, before, after in zip(
        names, jax.tree.leaves(state), jax.tree.leaves(new), strict=True
    ):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                f"the step of {native.name} returns state leaf {field!r} as {after.dtype}"
                f"{list(after.shape)}; wanted {before.dtype}{list(before.shape)}, as it came in"
            )
    outputs = jax.tree.leaves(h_t)
    if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[0] != x_t.shape[0]:
        raise ValueError(
            f"{native.name} puts out {[list(h.shape) for h in outputs]}; wanted one array [B, H]"
        )
    *leaves, h = traced.jaxpr.outvars
    same = [k for k, leaf in enumerate(leaves) if same_value(traced.jaxpr, leaf, h)]
    return same[0] if same else None


def first_line(error: Exception) -> str:
    """What a library says of a mistake, without its pages of advice."""
    said = str(error).strip().split("\n")[0][:300]
    return f"{said} ({type(error).__name__})" if said else type(error).__name__


def same_value(jaxpr: Any, first: Any, second: Any) -> bool:
    """Whether two outputs of a jaxpr are one variable, be it inside a call that both come from."""
    if first is second:
        return True
    for equation in jaxpr.eqns:
        if first in equation.outvars and second in equation.outvars:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner = getattr(inner, "jaxpr", inner)  # of a closed one
            if inner is None or len(inner.outvars) != len(equation.outvars):
                return False
            a, b = (inner.outvars[equation.outvars.index(v)] for v in (first, second))
            return same_value(inner, a, b)
    return False
