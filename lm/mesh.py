"""Several devices for one model: each has all parameters, and its share of the batch's rows.

    dJ/dp = sum over devices d of dJ_d/dp        J_d = nats of d's rows / tokens of all rows

A device runs the whole engine on its rows, as a single one does on all of them: nothing passes
between devices while a text is read and read back. Then the gradient is summed over them, once a
step, and each device takes the same step. Rows are independent but for the mean, so N devices
compute what one does, to the order of sums. What is drawn for a batch (masks, words of a sampled
softmax) is drawn from the key for the whole batch, and is the same on any number of devices.

The devices may belong to several processes. Each reads its own rows alone (`own_rows`), and all
call the same functions in the same order; whatever is not spread over rows has the same value
everywhere, so all of them take the same decisions.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"  # of a mesh: the devices that the rows are spread over

# When the cores of a CPU had better take a share of the rows each: measured for two of them.
MOST_PARAMETERS = 500  # for each token of the batch: each core sums and updates all parameters
LEAST_ROWS = 8  # on each: narrower products take nearly as long

# How an array lies over the devices. They stand where arrays do, in records made for those.
EVERYWHERE: Any = PartitionSpec()  # whole on each
BY_ROW: Any = PartitionSpec(AXIS)  # [B, ...]
BY_COLUMN: Any = PartitionSpec(None, AXIS)  # [T, B, ...]
IN_BLOCK: Any = PartitionSpec(None, None, AXIS)  # [steps, T, B]


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """The devices in a row, those of a process side by side."""
    return Mesh(np.asarray(devices), (AXIS,))


def cores_worth(cores: int, rows: int, tokens: int, parameters: int) -> int:
    """How many cores of a CPU, as devices, train a model the fastest.

    One is the answer for a large model: all cores work on its products together, and the gradient
    is summed in place. The recurrence of a small one is too short a piece of work for that.

    Args:
      rows, tokens: of a batch; the devices divide the rows.
      parameters: of the model.
    """
    if parameters > MOST_PARAMETERS * tokens:
        return 1
    most = min(cores, rows // LEAST_ROWS)
    return next((count for count in range(most, 1, -1) if rows % count == 0), 1)


def total(x: Any, axis: str | None) -> Any:
    """`x` summed over the devices of a mesh axis; `x` where there is none.

    Of a number that is known beforehand (an int, a float) it is known beforehand.
    """
    return x if axis is None else lax.psum(x, axis)


def own_rows(mesh: Mesh | None, batch_size: int) -> slice:
    """The rows of a batch that this process reads.

    Raises:
      ValueError: the devices do not divide the batch.
    """
    if mesh is None:
        return slice(None)
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        nearby = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise ValueError(
            f"batch_size is {batch_size}, which {mesh.size} devices do not divide; wanted "
            f"{nearby}, or another mesh"
        )
    spread = NamedSharding(mesh, BY_ROW).addressable_devices_indices_map((batch_size,))
    edges = [index[0].indices(batch_size) for index in spread.values() if index is not None]
    return slice(min(edge[0] for edge in edges), max(edge[1] for edge in edges))


def place(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """Arrays that every process has whole, laid out over the devices.

    Args:
      specs: a PartitionSpec for each leaf, or for all those of a subtree.
    """

    def lay_out(spec: PartitionSpec, leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(lay_out(spec, jax.random.key_data(leaf)))
        whole = np.asarray(leaf)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return over_specs(lay_out, specs, tree)


def place_rows(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """Arrays of which each process has its own rows, joined over the devices."""

    def join(spec: PartitionSpec, leaf: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), leaf)

    return over_specs(join, specs, tree)


def shardings(mesh: Mesh, specs: Any) -> Any:
    """Specs as jit wants them."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def over_specs(function: Any, specs: Any, tree: Any) -> Any:
    """`function(spec, leaf)` of every leaf; a spec stands for all leaves below it."""
    return jax.tree.map(
        lambda spec, part: jax.tree.map(lambda leaf: function(spec, leaf), part), specs, tree
    )


def any_process(mesh: Mesh | None, flag: bool) -> bool:
    """Whether `flag` is set in any process: all of them ask at the same time and hear the same."""
    if mesh is None or not mesh.is_multi_process:
        return flag
    own = np.full(len(mesh.local_devices), flag)
    return bool(jax.jit(jnp.any)(place_rows(mesh, own, BY_ROW)))
