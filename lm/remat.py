"""The gradient of a long row in little memory: activations of about sqrt(T) steps at a time.

The T steps of a batch are cut into T / C chunks of C = sqrt(T) steps or a few more. Forward, only
the state between chunks is kept; backward, each chunk is run once more from its state, and what
its own backward pass needs is there for it alone. So T / C states and C steps' activations are
held, hidden states and the loss included, for one more forward pass.

    J = sum over chunks of J_chunk * tokens_chunk / tokens

Source: Chen, Xu, Zhang & Guestrin 2016 (arXiv:1604.06174), section 4.1.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lm.config import NOT_REGULARIZED, ModelConfig, RegularizeConfig, is_off
from lm.mesh import total
from lm.regularize import NO_MASKS, Masks

BatchNats = Callable[..., tuple[jax.Array, tuple[Any, jax.Array, jax.Array]]]


def rematerialize(batch_nats: BatchNats) -> BatchNats:
    """`lm.train.batch_nats` in chunks: the same loss and gradients to rounding.

    Masks that differ from step to step (dropout_masks=independent) are arguments, and as long as
    the row. A sampled softmax draws words for each chunk.

    Raises (the returned function):
      ValueError: there is a slowness penalty, which needs the outputs on both sides of a cut.
    """

    def chunked_nats(
        config: ModelConfig,
        params: Any,
        carry: Any,
        batch: Any,
        gauges: tuple[jax.Array, ...] | None = None,
        masks: Masks = NO_MASKS,
        regularize: RegularizeConfig = NOT_REGULARIZED,
        key: jax.Array | None = None,
        axis: str | None = None,
    ) -> tuple[jax.Array, tuple[Any, jax.Array, jax.Array]]:
        if not is_off(regularize.slowness_penalty):
            raise ValueError(
                f"slowness_penalty is {regularize.slowness_penalty} with remat, whose chunks do "
                "not see each other's outputs; wanted slowness_penalty=0 or no remat"
            )
        time, rows = batch.inputs.shape
        steps = chunk_steps(time)
        every = total(time * rows if batch.mask is None else batch.mask.sum(), axis)
        every = jnp.maximum(every, 1)
        varying, fixed = split_masks(masks, time)

        def run_chunk(params: Any, carry: Any, part: Any) -> tuple[Any, Any]:
            (inputs, targets, mask, gauges, varying), index = part
            chunk = batch._replace(inputs=inputs, targets=targets, mask=mask)
            chunk_key = None if key is None else jax.random.fold_in(key, index)
            joined = join_masks(varying, fixed)
            found, (carry, nats, tokens) = batch_nats(
                config, params, carry, chunk, gauges, joined, regularize, chunk_key
            )
            return carry, (found * (tokens / jnp.asarray(every, tokens.dtype)), nats, tokens)

        # In a scan nothing can merge the second forward pass with the first.
        run_again = jax.checkpoint(run_chunk, prevent_cse=False)
        whole = time // steps
        timed = batch.inputs, batch.targets, batch.mask, gauges, varying
        cut = jax.tree.map(
            lambda leaf: leaf[: whole * steps].reshape(whole, steps, *leaf.shape[1:]), timed
        )
        carry, sums = lax.scan(
            lambda carry, part: run_again(params, carry, part), carry, (cut, jnp.arange(whole))
        )
        loss, nats, tokens = (each.sum() for each in sums)
        if whole * steps < time:  # what is left is shorter
            rest = jax.tree.map(lambda leaf: leaf[whole * steps :], timed)
            carry, more = jax.checkpoint(run_chunk)(params, carry, (rest, jnp.int32(whole)))
            loss, nats, tokens = loss + more[0], nats + more[1], tokens + more[2]
        return loss, (carry, nats, total(tokens, axis))

    return chunked_nats


def chunk_steps(time: int) -> int:
    """C, the steps of a chunk: from ceil(sqrt(T)) to twice that, a divisor of T if there is one."""
    root = math.isqrt(time - 1) + 1
    return next((steps for steps in range(root, 2 * root) if time % steps == 0), root)


def split_masks(masks: Masks, time: int) -> tuple[Masks, Masks]:
    """The masks with an entry for each of T steps, and the others; each None where it has none."""

    def pick(mask: Any, wanted: bool) -> Any:
        first = mask[0] if isinstance(mask, tuple) else mask
        return mask if first is not None and (first.shape[0] == time) == wanted else None

    stepwise = {name: getattr(masks, name) for name in ("input", "hidden", "output")}
    varying = Masks(**{name: pick(mask, True) for name, mask in stepwise.items()})
    fixed = {name: pick(mask, False) for name, mask in stepwise.items()}
    return varying, masks._replace(**fixed)


def join_masks(varying: Masks, fixed: Masks) -> Masks:
    """What `split_masks` split."""
    stepwise = {name: mask for name, mask in varying._asdict().items() if mask is not None}
    return fixed._replace(**stepwise)
