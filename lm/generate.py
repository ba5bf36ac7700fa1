"""Sampling: one compiled scan from a prompt to as many tokens as asked for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lm import model
from lm.config import ModelConfig
from lm.data.vocabulary import END_ID, UNKNOWN_ID


@partial(jax.jit, static_argnums=(0, 4))
def sample(
    config: ModelConfig,
    params: model.Params,
    key: jax.Array,
    prompt: jax.Array,
    count: int,
    temperature: jax.Array | float,
) -> jax.Array:
    """Tokens drawn one after another from p(w_{t+1} | w_1 .. w_t)^(1 / temperature).

    Args:
      key: a typed PRNG key; the same key gives the same tokens.
      prompt: int [P], P >= 1, read first; `<eos>` where nothing is given.
      count: tokens to draw. `<unk>` is never drawn.
      temperature: 1: the model's own distribution; towards 0: the likeliest token.

    Returns:
      int32 [count].
    """
    carry, h = model.apply(config, params, model.init_carry(config, 1), prompt[:, None])
    forbidden = jnp.zeros(params.softmax_b.shape).at[UNKNOWN_ID].set(-jnp.inf)

    def step(state: Any, step_key: jax.Array) -> tuple[Any, jax.Array]:
        carry, h_t = state
        scores = model.logits(params, h_t)[0]
        # Gumbel-max with the noise scaled, in place of logits / temperature: exact at 0.
        noise = jax.random.gumbel(step_key, scores.shape) * temperature
        token = jnp.argmax(scores + forbidden + noise).astype(jnp.int32)
        carry, h_next = model.apply(config, params, carry, token[None, None])
        return (carry, h_next[-1]), token

    _, tokens = lax.scan(step, (carry, h[-1]), jax.random.split(key, count))
    return tokens


def encode_prompt(ids: np.ndarray) -> np.ndarray:
    """A prompt as the model reads it: after a line end, and without one of its own."""
    return np.concatenate([[END_ID], ids[:-1]]).astype(np.int32)
