"""Cells as their libraries have them: Flax (linen, nnx), Haiku, Equinox, a bare step, ours.

Libraries disagree on everything but the idea: which comes first, state or input; whether a step
returns its output; what an LSTM's state is called and in which order it stands (Flax (c, h),
Equinox (h, c), Haiku LSTMState(hidden, cell)); where the parameters live. Each has a reader here
that returns a `Native`. No library is imported unless the cell given is one of its own.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lm.cells.cell import Cell, CellParams
from lm.recurrence import Step, as_step

ACCEPTED = (
    "a Cell of lm.cells, a step(params, state, x_t) -> (state, h_t), a cell of flax.linen or "
    "flax.nnx, a Haiku transform of f(x_t, state) -> (h_t, state) or a function without arguments "
    "that builds a Haiku core, an Equinox cell"
)


@dataclass(frozen=True)
class Native:
    """A cell as its library has it, called our way: what each library's reader returns."""

    step: Step  # (params, state in the library's form, x_t) -> (state, h_t)
    params: Any
    zero: Callable[[int], Any] | None  # batch -> a state of the library; None: must be given
    name: str
    names: tuple[str, ...] | None = None  # of the leaves of a state that is a bare tuple


def read_cell(cell: Any, params: Any) -> Native:
    """Whose cell this is, from the module its class comes from."""
    origins = {base.__module__.split("._src")[0] for base in type(cell).__mro__}
    if isinstance(cell, Cell):
        return read_ours(cell, params)
    if any(origin.startswith("flax.linen") for origin in origins):
        return read_linen(cell, params)
    if any(origin.startswith("flax.nnx") for origin in origins):
        return read_nnx(cell, params)
    if any(origin.startswith("equinox") for origin in origins):
        return read_equinox(cell, params)
    if "haiku" in origins:
        return read_haiku(cell, params)
    if isinstance(cell, type) or not callable(cell):
        what = f"the class {cell.__name__}" if isinstance(cell, type) else type(cell).__name__
        raise ValueError(f"cell is {what}; wanted {ACCEPTED}")
    if takes_nothing(cell):
        return read_haiku_core(cell, params)
    name = getattr(cell, "__name__", type(cell).__name__)
    need_params(params, f"the step {name}", "its parameters, () where it has none")
    return Native(cell, params, None, name)


def takes_nothing(function: Callable[..., Any]) -> bool:
    """Whether a function has no parameters at all."""
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions do not say
        return False


def read_ours(cell: Cell, params: Any) -> Native:
    need_params(params, f"the {cell.name}", "CellParams, as lm.cells.cell.init_params makes them")
    if not isinstance(params, CellParams):
        raise ValueError(f"params are {type(params).__name__}; wanted CellParams for {cell.name}")
    hidden, dtype = params.w_h.shape[0], params.w_h.dtype
    return Native(
        OurStep(cell), params, lambda batch: cell.init_state(batch, hidden, dtype), cell.name
    )


@dataclass(frozen=True)
class OurStep:
    """(params, state, x_t) -> (state, h_t) of a Cell."""

    cell: Cell

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        return as_step(self.cell)(params, state, x_t)


def read_linen(cell: Any, params: Any) -> Native:
    name = f"flax.linen {type(cell).__name__}"
    need_params(params, name, "what its init returned")
    if isinstance(params, Mapping) and "params" in params:
        others = sorted(key for key, value in params.items() if key != "params" and value)
        if others:
            raise ValueError(
                f"{name} has variables {', '.join(others)} beside its params; wanted a cell "
                "without variables that change, such as the averages of batch normalisation"
            )
        params = params["params"]
    zero = None
    if hasattr(cell, "initialize_carry"):
        # The last size is the input's, which a carry does not depend on.
        zero = lambda batch: cell.initialize_carry(jax.random.key(0), (batch, 1))  # noqa: E731
    return Native(LinenStep(cell), params, zero, name, lstm_names(cell, ("c", "h")))


@dataclass(frozen=True)
class LinenStep:
    cell: Any

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        new, h_t = self.cell.apply({"params": params}, state, x_t)
        return new, h_t


def read_nnx(cell: Any, params: Any) -> Native:
    from flax import nnx

    name = f"flax.nnx {type(cell).__name__}"
    parts: Any = nnx.split(cell, nnx.Param, ...)
    graph, own, rest = parts
    if jax.tree.leaves(rest):
        kinds = {type(variable).__name__ for _, variable in nnx.to_flat_state(rest)}
        raise ValueError(
            f"{name} holds {', '.join(sorted(kinds))} beside its Params; wanted a cell that "
            "is a function of parameters, state and input alone: no batch normalisation, no "
            "dropout with rngs, no keep_rngs"
        )
    weights = own if params is None else params
    if not same_tree(weights, own):
        raise ValueError(f"params do not fit {name}; wanted nnx.state(cell, nnx.Param)")
    zero = None
    if hasattr(cell, "initialize_carry"):
        zero = lambda batch: cell.initialize_carry((batch, 1), nnx.Rngs(0))  # noqa: E731
    return Native(NnxStep(graph), weights, zero, name, lstm_names(cell, ("c", "h")))


@dataclass(frozen=True)
class NnxStep:
    graph: Any

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        from flax import nnx

        new, h_t = nnx.merge(self.graph, params)(state, x_t)
        return new, h_t


def read_equinox(cell: Any, params: Any) -> Native:
    import equinox

    name = f"Equinox {type(cell).__name__}"
    weights, static = equinox.partition(
        cell if params is None else params, equinox.is_inexact_array
    )
    lstm, gru = isinstance(cell, equinox.nn.LSTMCell), isinstance(cell, equinox.nn.GRUCell)
    zero = None
    if lstm or gru:
        dtype = cell.weight_hh.dtype
        zero = lambda batch: jax.tree.map(  # noqa: E731
            lambda size: jnp.zeros((batch, size), dtype),
            (cell.hidden_size,) * 2 if lstm else cell.hidden_size,
        )
    return Native(EquinoxStep(static), weights, zero, name, ("h", "c") if lstm else None)


@dataclass(frozen=True)
class EquinoxStep:
    """A module of one row, over the rows of a batch. It returns its state alone."""

    static: Any

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        import equinox

        new = jax.vmap(equinox.combine(params, self.static))(x_t, state)
        leaves = jax.tree.leaves(new)
        if len(leaves) == 1 or isinstance(self.static, equinox.nn.LSTMCell):
            return new, leaves[0]
        if isinstance(getattr(new, "h", None), jax.Array):
            return new, new.h
        raise ValueError(
            "the output is not to be told from the state; wanted a state of one array, or a "
            "NamedTuple with a field h, or a step(params, state, x_t) -> (state, h_t) around it"
        )


def read_haiku(cell: Any, params: Any) -> Native:
    kind = type(cell).__name__
    if kind == "TransformedWithState":
        raise ValueError(
            "cell is a Haiku transform_with_state; wanted hk.transform: a cell without variables "
            "that change, such as the averages of batch normalisation"
        )
    if kind != "Transformed":
        raise ValueError(
            f"cell is a Haiku {kind}, which lives inside a transform alone; wanted "
            "hk.transform(lambda x_t, state: core(x_t, state)), or a function that builds the core"
        )
    need_params(params, "a Haiku transform", "what its init returned")
    drawn = "rng" in inspect.signature(cell.apply).parameters
    return Native(HaikuStep(cell, drawn), params, None, "Haiku transform")


@dataclass(frozen=True)
class HaikuStep:
    transformed: Any
    takes_key: bool  # whether apply has an argument rng; what is given is None

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        key = (None,) if self.takes_key else ()
        h_t, new = self.transformed.apply(params, *key, x_t, state)
        return new, h_t


def read_haiku_core(build: Callable[[], Any], params: Any) -> Native:
    """A function without arguments, run inside a transform, where cores may be built."""
    try:
        import haiku
    except ImportError:
        raise ValueError(
            "cell is a function without arguments, which is read as one that builds a Haiku core, "
            f"and dm-haiku is not installed; wanted {ACCEPTED}"
        ) from None
    need_params(
        params,
        "a Haiku core",
        "what init of hk.transform(lambda x_t, state: core(x_t, state)) returned",
    )
    start = haiku.transform(lambda batch: build().initial_state(batch))

    def zero(batch: int) -> Any:
        return start.apply(params, None, batch)

    core = haiku.transform(build).apply(params, None)
    if not hasattr(core, "initial_state"):
        raise ValueError(
            f"cell is a function without arguments that returns {type(core).__name__}; wanted one "
            "that builds a Haiku RNNCore"
        )
    return Native(HaikuCoreStep(build), params, zero, f"Haiku {type(core).__name__}")


@dataclass(frozen=True)
class HaikuCoreStep:
    build: Callable[[], Any]

    def __call__(self, params: Any, state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
        import haiku

        run = haiku.transform(lambda x_t, state: self.build()(x_t, state))
        return HaikuStep(run, True)(params, state, x_t)


def need_params(params: Any, whose: str, wanted: str) -> None:
    if params is None:
        raise ValueError(f"params are missing; {whose} needs {wanted}")


def lstm_names(cell: Any, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """`names` for Flax's own LSTMs and what derives from them."""
    flax = [base for base in type(cell).__mro__ if base.__module__.startswith("flax.")]
    return names if any("LSTM" in base.__name__ for base in flax) else None


def same_tree(first: Any, second: Any) -> bool:
    """Whether two pytrees have one structure."""
    tree: Any = jax.tree.structure(first)
    return bool(tree == jax.tree.structure(second))
