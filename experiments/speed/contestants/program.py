"""What a contestant makes: something that runs a step at a time, and for JAX the common part of it.

The libraries that compile with JAX differ in how a model is written and where its parameters
live; loss, clip and SGD are optax's for all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments.speed.work import Work, draw_batch, draw_layer_batch

Arrays = dict[str, np.ndarray]


class Program(Protocol):
    """One contestant at one size."""

    steps: int  # in one run

    def run(self) -> None:
        """Run, the first time compiling; everything has been computed when it returns."""
        ...

    def loss(self) -> float:
        """Of the last run: mean nats per token; of a layer, the product of output and cotangent."""
        ...

    def arrays(self) -> Arrays:
        """By PyTorch's names: of a step the parameters after it, of a layer the gradient, and its
        gradient to the input as `x`."""
        ...

    def peak_bytes(self) -> int:
        """The most that one step holds at once: weights, batch, gradients, activations, workspace.

        By the library's own account: XLA's assignment of buffers, PyTorch's allocator. What a
        product packs its operands into is in neither.
        """
        ...


class Network(NamedTuple):
    """A language model in a library that compiles with JAX."""

    params: Any
    carry: Any  # the zero state
    forward: Callable[
        [Any, Any, Any], tuple[Any, Any]
    ]  # params, carry, tokens -> logits [T B, V], carry
    export: Callable[[Any], Arrays]  # params, or a gradient -> by PyTorch's names


class Layer(NamedTuple):
    """A recurrent layer in a library that compiles with JAX."""

    params: Any
    carry: Any
    forward: Callable[[Any, Any, Any], Any]  # (params, carry, x [T, B, H]) -> h [T, B, H]
    export: Callable[[Any], Arrays]


class JaxProgram:
    """A compiled function (state, *inputs) -> (state, value), run on its own state.

    The state is donated: its buffers are reused for the new one.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        state: Any,
        inputs: tuple[Any, ...],
        read: Callable[[Any, Any], tuple[Any, Arrays]],
        steps: int = 1,
        mesh: Any = None,
        out_shardings: Any = None,
    ):
        """`read` gives (loss, arrays) of a state and the value that came with it.

        Args:
          mesh: of the devices that state and inputs are laid out over; None: one.
          out_shardings: of what the function returns.
        """
        import jax

        self.steps = steps
        self._devices = 1 if mesh is None else mesh.size
        self._state = state
        self._inputs = jax.tree.map(jax.numpy.asarray, inputs)
        self._jitted = jax.jit(function, donate_argnums=0, out_shardings=out_shardings)
        self._compiled: Any = None
        self._value: Any = None
        self._read = read
        self._wait = jax.block_until_ready

    def run(self) -> None:
        if self._compiled is None:
            # Called as fast as the jitted function, and it tells what memory it takes.
            self._compiled = self._jitted.lower(self._state, *self._inputs).compile()
        self._state, self._value = self._wait(self._compiled(self._state, *self._inputs))

    def loss(self) -> float:
        return float(self._read(self._state, self._value)[0])

    def arrays(self) -> Arrays:
        return self._read(self._state, self._value)[1]

    def peak_bytes(self) -> int:
        use = self._compiled.memory_analysis()
        held = use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes
        return self._devices * int(held - use.alias_size_in_bytes)


def make_step_program(network: Network, work: Work) -> JaxProgram:
    """A training step as users of optax write it."""
    import jax
    import optax

    optimizer = optax.chain(optax.clip_by_global_norm(work.clip), optax.sgd(work.learning_rate))
    # By name: a closure that held `network` would keep the first parameters alive.
    params, carry, forward, export = network

    def step(state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state, carry = state

        def mean_nats(params: Any) -> tuple[jax.Array, Any]:
            logits, last = forward(params, carry, inputs)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets.reshape(-1))
            return nats.mean(), last

        (loss, carry), grads = jax.value_and_grad(mean_nats, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), loss

    params, carry = own(params), own(carry)
    return JaxProgram(
        step,
        (params, optimizer.init(params), carry),
        draw_batch(work),
        lambda state, loss: (loss, export(state[0])),
    )


def make_layer_program(layer: Layer, work: Work) -> JaxProgram:
    """Forward and backward of one layer: gradients to its parameters and its input."""
    import jax
    import jax.numpy as jnp

    def product(params: Any, x: jax.Array, carry: Any, d_h: jax.Array) -> jax.Array:
        return jnp.sum(layer.forward(params, carry, x) * d_h)

    gradient = jax.value_and_grad(product, argnums=(0, 1))

    def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
        return state, gradient(*inputs)

    x, d_h = draw_layer_batch(work)

    def read(_: Any, value: Any) -> tuple[Any, Arrays]:
        loss, (d_params, d_x) = value
        return loss, {**layer.export(d_params), "x": np.asarray(d_x)}

    return JaxProgram(step, (), (layer.params, x, layer.carry, d_h), read)


def own(tree: Any) -> Any:
    """A pytree as arrays on the device that share nothing with NumPy's and may be donated."""
    import jax

    return jax.tree.map(lambda a: jax.numpy.array(a, copy=True), tree)
