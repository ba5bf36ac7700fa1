"""Our cells' weights, copied into the cells of Flax, Haiku and Equinox.

Each function takes CellParams and returns (cell, params) as `lm.gradients.any_cell` takes them.
Ours pack an LSTM's columns as i, f, o, g and a GRU's as r, q, n.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.cells import CELLS
from lm.cells.cell import CellParams, init_params, split_gates

T, B, D, H = 7, 3, 5, 6


def sizes(p):
    return p.w_x.shape[0], p.w_h.shape[0]


def reorder(packed, order):
    """Columns i, f, o, g of an LSTM in another order."""
    gates = dict(zip("ifog", split_gates(packed, 4), strict=True))
    return np.concatenate([gates[name] for name in order], axis=-1)


def linen_lstm(kind):
    def copy(p):
        w_x, w_h, b = (
            dict(zip("ifog", split_gates(a, 4), strict=True)) for a in (p.w_x, p.w_h, p.b)
        )
        inputs = {f"i{k}": {"kernel": w_x[k]} for k in "ifog"}
        hidden = {f"h{k}": {"kernel": w_h[k], "bias": b[k]} for k in "ifog"}
        return kind(sizes(p)[1], param_dtype=p.b.dtype), {"params": inputs | hidden}

    return copy


def linen_gru(p):
    w_x, w_h, b = (dict(zip("rzn", split_gates(a, 3), strict=True)) for a in (p.w_x, p.w_h, p.b))
    inputs = {f"i{k}": {"kernel": w_x[k], "bias": b[k]} for k in "rzn"}
    hidden = {f"h{k}": {"kernel": w_h[k]} for k in "rzn"}
    hidden["hn"]["bias"] = p.vectors[0]
    return nn.GRUCell(sizes(p)[1], param_dtype=p.b.dtype), inputs | hidden


def linen_rnn(p):
    params = {"i": {"kernel": p.w_x, "bias": p.b}, "h": {"kernel": p.w_h}}
    return nn.SimpleCell(sizes(p)[1], param_dtype=p.b.dtype), params


def nnx_cell(kind, p, **weights):
    """An nnx cell with its layers' arrays put in: dense_i=(kernel, bias or None)."""
    make = lambda: kind(*sizes(p), rngs=nnx.Rngs(0), param_dtype=p.b.dtype, dtype=p.b.dtype)  # noqa: E731
    cell = nnx.eval_shape(make)
    for name, (kernel, bias) in weights.items():
        layer = getattr(cell, name)
        assert layer.kernel.shape == kernel.shape
        assert bias is None or layer.bias.shape == bias.shape
        layer.kernel = nnx.Param(jnp.asarray(kernel))
        if bias is not None:
            layer.bias = nnx.Param(jnp.asarray(bias))
    return cell, None


def nnx_lstm(p):
    w_x, w_h, b = (split_gates(a, 4) for a in p[:3])
    names = ("i", "f_", "o", "g")
    inputs = {f"i{k}": (w, None) for k, w in zip(names, w_x, strict=True)}
    hidden = {f"h{k[0]}": (w, c) for k, w, c in zip(names, w_h, b, strict=True)}
    return nnx_cell(nnx.LSTMCell, p, **inputs, **hidden)


def nnx_optimized_lstm(p):
    w_x, w_h, b = (reorder(a, "ifgo") for a in p[:3])
    return nnx_cell(nnx.OptimizedLSTMCell, p, dense_i=(w_x, None), dense_h=(w_h, b))


def nnx_gru(p):
    return nnx_cell(nnx.GRUCell, p, dense_i=(p.w_x, p.b), dense_h=(p.w_h, None))


def nnx_rnn(p):
    return nnx_cell(nnx.SimpleCell, p, dense_i=(p.w_x, p.b), dense_h=(p.w_h, None))


def haiku_lstm(p):
    """Haiku adds 1 to the forget gate inside, so its bias is 1 less for the same cell."""
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    hidden = sizes(p)[1]
    b = p.b.copy()
    b[hidden : 2 * hidden] -= 1
    linear = {"w": reorder(np.concatenate([p.w_x, p.w_h]), "igfo"), "b": reorder(b, "igfo")}
    return lambda: hk.LSTM(hidden), {"lstm/linear": linear}


def haiku_relu_rnn(p):
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")
    params = {"vanilla_rnn/linear": {"w": p.w_x, "b": p.b}, "vanilla_rnn/linear_1": {"w": p.w_h}}
    return lambda: hk.VanillaRNN(sizes(p)[1], double_bias=False), params


def equinox_cell(kind, p, **arrays):
    import equinox

    cell = equinox.filter_eval_shape(kind, *sizes(p), dtype=p.b.dtype, key=jax.random.key(0))
    where = lambda c: [getattr(c, name) for name in arrays]  # noqa: E731
    return equinox.tree_at(where, cell, [jnp.asarray(a) for a in arrays.values()]), None


def equinox_lstm(p):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    w_x, w_h, b = (reorder(a, "ifgo") for a in p[:3])
    return equinox_cell(eqx.nn.LSTMCell, p, weight_ih=w_x.T, weight_hh=w_h.T, bias=b)


def equinox_gru(p):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    arrays = {"weight_ih": p.w_x.T, "weight_hh": p.w_h.T, "bias": p.b, "bias_n": p.vectors[0]}
    return equinox_cell(eqx.nn.GRUCell, p, **arrays)


# name: (our cell, copy of its weights)
TWINS = {
    "linen LSTMCell": ("lstm", linen_lstm(nn.LSTMCell)),
    "linen OptimizedLSTMCell": ("lstm", linen_lstm(nn.OptimizedLSTMCell)),
    "linen GRUCell": ("gru", linen_gru),
    "linen SimpleCell": ("rnn", linen_rnn),
    "nnx LSTMCell": ("lstm", nnx_lstm),
    "nnx OptimizedLSTMCell": ("lstm", nnx_optimized_lstm),
    "nnx GRUCell": ("gru", nnx_gru),
    "nnx SimpleCell": ("rnn", nnx_rnn),
    "Haiku LSTM": ("lstm", haiku_lstm),
    "Haiku VanillaRNN": ("irnn", haiku_relu_rnn),
    "Equinox LSTMCell": ("lstm", equinox_lstm),
    "Equinox GRUCell": ("gru", equinox_gru),
}
WITHOUT_CANDIDATE_BIAS = {"nnx GRUCell"}  # its recurrent product has no bias: b_n is 0


def twin(name, dtype):
    """(our cell, its params, the foreign cell, its params, inputs [T, B, D])."""
    ours, copy = TWINS[name]
    params, x = random_weights(CELLS[ours], dtype)
    if name in WITHOUT_CANDIDATE_BIAS:
        params = params._replace(vectors=tuple(np.zeros_like(v) for v in params.vectors))
    return CELLS[ours], params, *copy(params), x


def random_weights(cell, dtype):
    """CellParams of NumPy arrays with nothing at 0, and inputs [T, B, D]."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    shapes = jax.eval_shape(lambda key: init_params(key, cell, D, H), jax.random.key(0))
    vectors = tuple(draw(*vector.shape) for vector in shapes.vectors)
    w_x, w_h = draw(*shapes.w_x.shape) / D**0.5, draw(*shapes.w_h.shape) / H**0.5
    params = CellParams(w_x, w_h, draw(*shapes.b.shape), vectors)
    return jax.tree.map(lambda a: a.astype(dtype), params), jnp.asarray(draw(T, B, D))
