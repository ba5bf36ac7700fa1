"""Haiku: its cores under hk.dynamic_unroll, layer by layer.

Its VanillaRNN is a ReLU network. Its GRU has the reset gate before the product (Cho et al. 2014),
which makes two products of every step. Its LSTM adds 1 to the forget gate's bias.
"""

from typing import Any

import haiku as hk
import numpy as np

from experiments.speed.contestants.linen import zero_carry
from experiments.speed.contestants.program import (
    Arrays,
    JaxProgram,
    Layer,
    Network,
    make_layer_program,
    make_step_program,
)
from experiments.speed.work import Work
from lm.interop.pytorch import GATES, reorder

LSTM_ORDER = ("i", "g", "f", "o")
GRU_ORDER = ("q", "r", "n")  # q is its z, the update gate, of which it has 1 - PyTorch's


def make_core(work: Work, k: int) -> Any:
    """The core of layer k; inside a transform."""
    hidden, name = work.size.hidden, f"layer_{k}"
    if work.cell == "lstm":
        return hk.LSTM(hidden, name=name)
    if work.cell == "gru":
        return hk.GRU(hidden, name=name)
    return hk.VanillaRNN(hidden, double_bias=False, name=name)


def make_step(work: Work, weights: Arrays) -> JaxProgram:
    """A training step: hk.Embed, the cores, hk.Linear."""
    size = work.size

    def model(carry: Any, tokens: Any) -> tuple[Any, Any]:
        h = hk.Embed(size.vocabulary, size.hidden, name="encoder")(tokens)
        last = []
        for k in range(size.layers):
            h, state = hk.dynamic_unroll(make_core(work, k), h, carry[k])
            last.append(state)
        return hk.Linear(size.vocabulary, name="decoder")(h.reshape(-1, size.hidden)), tuple(last)

    transformed: Any = hk.without_apply_rng(hk.transform(model))
    params: dict[str, Any] = {
        "encoder": {"embeddings": weights["encoder.weight"]},
        "decoder": {"w": weights["decoder.weight"].T, "b": weights["decoder.bias"]},
    }
    for k in range(size.layers):
        params |= import_core(work.cell, weights, k)

    def export(params: Any) -> Arrays:
        arrays = {
            "encoder.weight": np.asarray(params["encoder"]["embeddings"]),
            "decoder.weight": np.asarray(params["decoder"]["w"]).T,
            "decoder.bias": np.asarray(params["decoder"]["b"]),
        }
        for k in range(size.layers):
            arrays |= export_core(work, params, k, 1.0)
        return arrays

    carry = tuple(start(work) for _ in range(size.layers))
    return make_step_program(Network(params, carry, transformed.apply, export), work)


def make_layer(work: Work, weights: Arrays) -> JaxProgram:
    """A core under hk.dynamic_unroll alone."""

    def unroll(carry: Any, x: Any) -> Any:
        return hk.dynamic_unroll(make_core(work, 0), x, carry)[0]

    transformed: Any = hk.without_apply_rng(hk.transform(unroll))
    return make_layer_program(
        Layer(
            import_core(work.cell, weights, 0),
            start(work),
            transformed.apply,
            lambda gradient: export_core(work, gradient, 0, 0.0),
        ),
        work,
    )


def start(work: Work) -> Any:
    """The zero state; an LSTM's is LSTMState(hidden, cell)."""
    zero = zero_carry(work)
    return hk.LSTMState(*zero) if work.cell == "lstm" else zero


def import_core(cell: str, weights: Arrays, k: int) -> dict[str, Any]:
    """The parameters of layer k by Haiku's names."""
    w_x, w_h, b = (weights[f"rnn.{part}_l{k}"].T for part in ("weight_ih", "weight_hh", "bias_ih"))
    if cell == "lstm":
        b = shift_forget_gate(b, -1.0)
        packed = np.concatenate([w_x, w_h])
        w, b = (reorder(a, GATES["lstm"], LSTM_ORDER) for a in (packed, b))
        return {f"layer_{k}/linear": {"w": w, "b": b}}
    if cell == "gru":
        w_i, w, b = (turn_update(reorder(a, GATES["gru"], GRU_ORDER)) for a in (w_x, w_h, b))
        return {f"layer_{k}": {"w_i": w_i, "w_h": w, "b": b}}
    return {f"layer_{k}/linear": {"w": w_x, "b": b}, f"layer_{k}/linear_1": {"w": w_h}}


def export_core(work: Work, params: Any, k: int, forget: float) -> Arrays:
    """The inverse of `import_core`; `forget` is added to the LSTM's forget bias."""
    if work.cell == "lstm":
        linear = params[f"layer_{k}/linear"]
        w, b = (reorder(np.asarray(linear[n]), LSTM_ORDER, GATES["lstm"]) for n in ("w", "b"))
        w_x, w_h = np.split(w, [work.size.hidden])
        b = shift_forget_gate(b, forget)
    elif work.cell == "gru":
        core = params[f"layer_{k}"]
        w_x, w_h, b = (
            reorder(turn_update(np.asarray(core[n])), GRU_ORDER, GATES["gru"])
            for n in ("w_i", "w_h", "b")
        )
    else:
        linear = params[f"layer_{k}/linear"]
        w_x, b = np.asarray(linear["w"]), np.asarray(linear["b"])
        w_h = np.asarray(params[f"layer_{k}/linear_1"]["w"])
    return {
        f"rnn.weight_ih_l{k}": w_x.T,
        f"rnn.weight_hh_l{k}": w_h.T,
        f"rnn.bias_ih_l{k}": b,
    }


def shift_forget_gate(b: np.ndarray, by: float) -> np.ndarray:
    """A bias in PyTorch's order with `by` added to its second block, the forget gate's."""
    hidden = b.size // 4
    return np.concatenate([b[:hidden], b[hidden : 2 * hidden] + np.float32(by), b[2 * hidden :]])


def turn_update(packed: np.ndarray) -> np.ndarray:
    """The sign of the first third turned: its update gate is 1 minus PyTorch's."""
    third = packed.shape[-1] // 3
    return np.concatenate([-packed[..., :third], packed[..., third:]], axis=-1)
