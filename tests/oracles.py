"""Slow float64 NumPy loops written from the papers. Nothing of ours is imported."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rnn_step(p, s, x):
    """Elman 1990, tanh."""
    h = np.tanh(x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"])
    return {"h": h}


def irnn_step(p, s, x):
    """Le, Jaitly, Hinton 2015."""
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"]
    return {"h": np.where(a > 0, a, 0.0)}


def lstm_step(p, s, x):
    """Gers, Schmidhuber, Cummins 2000, without peepholes; columns i, f, o, g."""
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"]
    i, f, o = sigmoid(a[:, :n]), sigmoid(a[:, n : 2 * n]), sigmoid(a[:, 2 * n : 3 * n])
    g = np.tanh(a[:, 3 * n :])
    c = f * s["c"] + i * g
    return {"c": c, "h": o * np.tanh(c)}


def gru_step(p, s, x):
    """Cho et al. 2014 with the reset gate after the product; columns r, z, n."""
    n = s["h"].shape[-1]
    a, u = x @ p["w_x"] + p["b"], s["h"] @ p["w_h"]
    r, z = sigmoid(a[:, :n] + u[:, :n]), sigmoid(a[:, n : 2 * n] + u[:, n : 2 * n])
    new = np.tanh(a[:, 2 * n :] + r * (u[:, 2 * n :] + p["vectors"][0]))
    return {"h": (1 - z) * new + z * s["h"]}


def greff_gates(p, s, x, gates):
    """f, i, o and g of Greff et al. 2015 without peepholes; a gate without a column is 1."""
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"]
    column = {name: a[:, k * n : (k + 1) * n] for k, name in enumerate(gates)}
    f = sigmoid(column["f"]) if "f" in column else 1.0
    i = sigmoid(column["i"]) if "i" in column else 1.0
    return f, i, sigmoid(column["o"]), np.tanh(column["g"])


def no_input_gate_step(p, s, x):
    """Greff et al. 2015, NIG; columns f, o, g."""
    f, _, o, g = greff_gates(p, s, x, "fog")
    c = f * s["c"] + g
    return {"c": c, "h": o * np.tanh(c)}


def no_forget_gate_step(p, s, x):
    """Greff et al. 2015, NFG: Hochreiter & Schmidhuber 1997; columns i, o, g."""
    _, i, o, g = greff_gates(p, s, x, "iog")
    c = s["c"] + i * g
    return {"c": c, "h": o * np.tanh(c)}


def coupled_step(p, s, x):
    """Greff et al. 2015, CIFG, i = 1 - f; columns f, o, g."""
    f, _, o, g = greff_gates(p, s, x, "fog")
    c = f * s["c"] + (1 - f) * g
    return {"c": c, "h": o * np.tanh(c)}


STEPS = {
    "rnn": rnn_step,
    "irnn": irnn_step,
    "lstm": lstm_step,
    "gru": gru_step,
    "nig": no_input_gate_step,
    "nfg": no_forget_gate_step,
    "cifg": coupled_step,
}
FIELDS = {
    "rnn": ("h",),
    "irnn": ("h",),
    "lstm": ("c", "h"),
    "gru": ("h",),
    "nig": ("c", "h"),
    "nfg": ("c", "h"),
    "cifg": ("c", "h"),
}


def unroll(cell, p, s, xs, mask=None):
    """Step by step, row by row of the mask. xs [T, B, D] -> (last state, h [T, B, H])."""
    hs = []
    for t in range(len(xs)):
        new = STEPS[cell](p, s, xs[t])
        if mask is not None:
            new = {k: np.where(mask[t][:, None], new[k], s[k]) for k in new}
        s = new
        hs.append(s["h"])
    return s, np.stack(hs)


def numeric_gradient(f, x, step=1e-6):
    """Central differences of a scalar function, entry by entry."""
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        up = f()
        x[index] = kept - step
        down = f()
        x[index] = kept
        grad[index] = (up - down) / (2 * step)
    return grad


def cross_entropy(h, w, b, targets):
    """nll of each row, in nats, term by term."""
    out = []
    for row, target in zip(h, targets, strict=True):
        scores = row @ w + b
        top = scores.max()
        out.append(top + np.log(np.exp(scores - top).sum()) - scores[target])
    return np.asarray(out)


def model_nats(cell, params, tokens, targets):
    """A one-row language model from the zero state: nll of each token, in nats."""
    hidden = params["layers"][0]["w_h"].shape[0]
    states = [{k: np.zeros((1, hidden)) for k in FIELDS[cell]} for _ in params["layers"]]
    nats = []
    for token, target in zip(tokens, targets, strict=True):
        h = params["embedding"][token][None]
        for k, layer in enumerate(params["layers"]):
            states[k] = STEPS[cell](layer, states[k], h)
            h = states[k]["h"]
        nats.append(cross_entropy(h, params["softmax_w"], params["softmax_b"], [target])[0])
    return np.asarray(nats)
