"""Activations of sqrt(T) steps: the same loss and gradients, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import model
from lm.config import ModelConfig, RegularizeConfig
from lm.data.batches import Batch
from lm.regularize import NO_MASKS, draw_masks
from lm.remat import chunk_steps, rematerialize
from lm.train import batch_nats

V, B = 17, 3
SMALL = ModelConfig(cell="rnn", hidden_size=32, embedding_size=32)
DROPPED = RegularizeConfig(
    dropout_words=0.2,
    dropout_input=0.3,
    dropout_hidden=0.3,
    dropout_output=0.3,
    dropout_state=0.3,
    weight_drop=0.3,
    activation_penalty=2.0,
)
INDEPENDENT = RegularizeConfig(dropout_masks="independent", dropout_input=0.3, dropout_output=0.3)


def draw_batch(time, padded=False):
    """Tokens; where padded, rows of which no one reaches the last chunk."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(0, V, (2, time, B)).astype(np.int32)
    mask = np.arange(time)[:, None] < np.array([time // 2, 1, time // 3]) if padded else None
    return Batch(inputs, targets, mask, np.asarray(False))


def all_gradients(nats, config, batch, regularize):
    """Loss and what comes with it, and its gradients: parameters, state, gauges."""
    time = len(batch.inputs)
    params = model.init(jax.random.key(0), config, V)
    carry = jax.tree.map(lambda s: s + 0.3, model.init_carry(config, B))
    gauges = (jnp.zeros(time),) * config.layers
    masks = NO_MASKS
    if regularize != RegularizeConfig():
        masks = draw_masks(jax.random.key(1), regularize, config, V, time, B)

    def loss(params, carry, gauges):
        return nats(config, params, carry, batch, gauges, masks, regularize)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, carry, gauges)


@pytest.mark.parametrize(
    ("cell", "layers", "time", "padded", "regularize"),
    [
        ("lstm", 1, 25, False, RegularizeConfig()),
        ("gru", 2, 23, True, DROPPED),  # 4 chunks of 5, and 3 steps
        ("rnn", 1, 23, False, INDEPENDENT),
    ],
)
def test_the_same_loss_and_gradients(cell, layers, time, padded, regularize):
    config = ModelConfig(cell=cell, hidden_size=8, embedding_size=8, layers=layers)
    batch = draw_batch(time, padded)
    plain, chunked = (
        all_gradients(nats, config, batch, regularize)
        for nats in (batch_nats, rematerialize(batch_nats))
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(chunked), strict=True):
        # -inf: the log norm of what never reaches a padded step
        scale = np.max(np.abs(a), where=np.isfinite(a), initial=1e-3)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def test_activations_grow_with_the_square_root_of_time():
    """Temporary memory of the compiled gradient; 16 times the steps are 4 times the memory."""

    def temporary(nats, time):
        batch = draw_batch(time)

        def gradient(params, carry):
            return jax.grad(lambda p: nats(SMALL, p, carry, batch)[0])(params)

        params, carry = model.init(jax.random.key(0), SMALL, V), model.init_carry(SMALL, B)
        compiled = jax.jit(gradient).lower(params, carry).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = [temporary(batch_nats, time) for time in (256, 4096)]
    chunked = [temporary(rematerialize(batch_nats), time) for time in (256, 4096)]
    assert plain[1] > 12 * plain[0]
    assert chunked[1] < 6 * chunked[0]
    assert chunked[1] < plain[1] / 10


def test_chunks_are_the_square_root():
    assert [chunk_steps(time) for time in (1, 2, 16, 17, 65536)] == [1, 2, 4, 5, 256]
    assert [chunk_steps(time) for time in (8192, 70, 35)] == [128, 10, 7]  # nothing is left over


def test_a_slowness_penalty_is_refused():
    config = RegularizeConfig(slowness_penalty=1.0)
    params, carry = model.init(jax.random.key(0), SMALL, V), model.init_carry(SMALL, B)
    with pytest.raises(ValueError, match="slowness_penalty is"):
        rematerialize(batch_nats)(SMALL, params, carry, draw_batch(9), regularize=config)
