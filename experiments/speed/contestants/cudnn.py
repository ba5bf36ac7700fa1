"""Ours with cuDNN's LSTM for layers, by jax.experimental.rnn. Needs a GPU.

All layers are one call, their weights one flat vector with two biases a layer; rows come first.
Loss, clip and SGD are those of ours. cuDNN's LSTM has float32 and TF32 alone: at bfloat16 the
layers run in TF32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import rnn

from experiments.speed.contestants.program import (
    Arrays,
    JaxProgram,
    Layer,
    make_layer_program,
    own,
)
from experiments.speed.work import Work, draw_batch
from lm.config import OptimConfig
from lm.loss import weighted_nats
from lm.optim import Hyper, make_optimizer


def make_step(work: Work, weights: Arrays) -> JaxProgram:
    """A training step."""
    size = work.size
    params = {
        "embedding": weights["encoder.weight"],
        "layers": pack(weights, size.layers),
        "softmax_w": weights["decoder.weight"].T,
        "softmax_b": weights["decoder.bias"],
    }
    hyper = Hyper(work.learning_rate, work.clip)
    optimizer = make_optimizer(OptimConfig(clip=work.clip), hyper, optax.constant_schedule(1.0))
    tokens = size.batch * size.length

    def step(state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state, carry = state

        def mean_nats(params: Any) -> tuple[jax.Array, Any]:
            x = jnp.take(params["embedding"], inputs, axis=0)
            last, h = unroll(work, params["layers"], carry, x)
            nats = weighted_nats(
                h.reshape(tokens, -1),
                params["softmax_w"],
                params["softmax_b"],
                targets.reshape(-1),
                jnp.full(tokens, 1 / tokens),
            )
            return nats, last

        (loss, carry), grads = jax.value_and_grad(mean_nats, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), loss

    def read(state: Any, loss: Any) -> tuple[Any, Arrays]:
        params = state[0]
        arrays = {
            "encoder.weight": np.asarray(params["embedding"]),
            "decoder.weight": np.asarray(params["softmax_w"]).T,
            "decoder.bias": np.asarray(params["softmax_b"]),
            **unpack(params["layers"], work),
        }
        return loss, arrays

    params = own(params)
    state = (params, optimizer.init(params), zero_carry(work))
    return JaxProgram(step, state, draw_batch(work), read)


def make_layer(work: Work, weights: Arrays) -> JaxProgram:
    """The layer alone."""
    return make_layer_program(
        Layer(
            pack(weights, 1),
            zero_carry(work),
            lambda params, carry, x: unroll(work, params, carry, x)[1],
            lambda gradient: unpack(gradient, work),
        ),
        work,
    )


def unroll(work: Work, layers: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """All layers over x [T, B, H] -> ((h, c), h of the last layer [T, B, H])."""
    size = work.size
    lengths = jnp.full(size.batch, size.length, jnp.int32)
    h, h_n, c_n = rnn.lstm(
        row_major(x.swapaxes(0, 1)),
        *carry,
        layers,
        lengths,
        size.hidden,
        size.hidden,
        size.layers,
        0.0,
        False,
    )
    return (h_n, c_n), row_major(h).swapaxes(0, 1)


def row_major(x: jax.Array) -> jax.Array:
    """x, and its gradient, with the last axis innermost in memory.

    The call to cuDNN states no layout (jaxlib 0.10, 0.11): XLA hands it a transposed array as it
    lies, rows and steps exchanged, and cuDNN reads other numbers. A flat array has one layout.
    """
    return lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def zero_carry(work: Work) -> tuple[jax.Array, jax.Array]:
    size = work.size
    shape = (size.layers, size.batch, size.hidden)
    return jnp.zeros(shape), jnp.zeros(shape)


def pack(weights: Arrays, layers: int) -> np.ndarray:
    """cuDNN's flat vector: the matrices of all layers, then the biases; gates as in PyTorch."""
    kinds = (("weight_ih", "weight_hh"), ("bias_ih", "bias_hh"))
    return np.concatenate(
        [
            weights[f"rnn.{name}_l{k}"].reshape(-1)
            for names in kinds
            for k in range(layers)
            for name in names
        ]
    )


def unpack(flat: Any, work: Work) -> Arrays:
    """The inverse of `pack`."""
    size = work.size
    parts = rnn.unpack_lstm_weights(flat, size.hidden, size.hidden, size.layers, False)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {
        f"rnn.{name}_l{k}": np.asarray(part[k])
        for name, part in zip(names, parts, strict=True)
        for k in range(size.layers)
    }
