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


def no_output_gate_step(p, s, x):
    """Greff et al. 2015, NOG; columns i, f, g."""
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"]
    c = sigmoid(a[:, n : 2 * n]) * s["c"] + sigmoid(a[:, :n]) * np.tanh(a[:, 2 * n :])
    return {"c": c, "h": np.tanh(c)}


def no_input_activation_step(p, s, x):
    """Greff et al. 2015, NIAF, g(x) = x; columns i, f, o, g."""
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"]
    f, i, o, _ = greff_gates(p, s, x, "ifog")
    c = f * s["c"] + i * a[:, 3 * n :]
    return {"c": c, "h": o * np.tanh(c)}


def no_output_activation_step(p, s, x):
    """Greff et al. 2015, NOAF, h(x) = x; columns i, f, o, g."""
    f, i, o, g = greff_gates(p, s, x, "ifog")
    c = f * s["c"] + i * g
    return {"c": c, "h": o * c}


def peephole_step(p, s, x):
    """Greff et al. 2015, V: vectors p_i, p_f, p_o; columns i, f, o, g."""
    n = s["h"].shape[-1]
    p_i, p_f, p_o = p["vectors"]
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"]
    i = sigmoid(a[:, :n] + p_i * s["c"])
    f = sigmoid(a[:, n : 2 * n] + p_f * s["c"])
    c = i * np.tanh(a[:, 3 * n :]) + f * s["c"]
    o = sigmoid(a[:, 2 * n : 3 * n] + p_o * c)
    return {"c": c, "h": o * np.tanh(c)}


def full_gate_recurrence_step(p, s, x):
    """Greff et al. 2015, FGR, without peepholes: nine matrices R_ii .. R_oo beside the four of h.

    Columns of w_h: those of h to i, f, o, g, then those of i_{t-1} to i, f, o, of f_{t-1}, o_{t-1}.
    """
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"] + s["h"] @ p["w_h"][:, : 4 * n]
    act = {}
    for k, gate in enumerate("ifo"):
        total = a[:, k * n : (k + 1) * n]
        for j, source in enumerate("ifo"):
            first = (4 + 3 * j + k) * n
            total = total + s[source] @ p["w_h"][:, first : first + n]
        act[gate] = sigmoid(total)
    c = act["f"] * s["c"] + act["i"] * np.tanh(a[:, 3 * n :])
    return {"c": c, "h": act["o"] * np.tanh(c), **act}


def layer_norm(x, gain, bias):
    """Ba et al. 2016, equation 15, row by row; 1e-5 beside the variance."""
    out = np.empty_like(x)
    for k, row in enumerate(x):
        out[k] = gain * (row - np.mean(row)) / np.sqrt(np.var(row) + 1e-5) + bias
    return out


def layer_norm_lstm_step(p, s, x):
    """Ba et al. 2016, equations 20 to 22; columns i, f, o, g."""
    n = s["h"].shape[-1]
    gain_x, gain_h, b, gain_c, b_c = p["vectors"]
    a = layer_norm(x @ p["w_x"], gain_x, 0) + layer_norm(s["h"] @ p["w_h"], gain_h, b)
    i, f, o = sigmoid(a[:, :n]), sigmoid(a[:, n : 2 * n]), sigmoid(a[:, 2 * n : 3 * n])
    c = f * s["c"] + i * np.tanh(a[:, 3 * n :])
    return {"c": c, "h": o * np.tanh(layer_norm(c, gain_c, b_c))}


def min_gru_step(p, s, x):
    """Feng et al. 2024, Algorithm 1 (their z is q here); columns q, n. Nothing recurrent."""
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"]
    q = sigmoid(a[:, :n])
    return {"h": (1 - q) * s["h"] + q * a[:, n:]}


def min_lstm_step(p, s, x):
    """Feng et al. 2024, Algorithm 3: gates divided by their sum; columns f, i, n."""
    n = s["h"].shape[-1]
    a = x @ p["w_x"] + p["b"]
    f, i = sigmoid(a[:, :n]), sigmoid(a[:, n : 2 * n])
    return {"h": f / (f + i) * s["h"] + i / (f + i) * a[:, 2 * n :]}


STEPS = {
    "rnn": rnn_step,
    "irnn": irnn_step,
    "lstm": lstm_step,
    "gru": gru_step,
    "nig": no_input_gate_step,
    "nfg": no_forget_gate_step,
    "nog": no_output_gate_step,
    "niaf": no_input_activation_step,
    "noaf": no_output_activation_step,
    "cifg": coupled_step,
    "peephole": peephole_step,
    "fgr": full_gate_recurrence_step,
    "lnlstm": layer_norm_lstm_step,
    "mingru": min_gru_step,
    "minlstm": min_lstm_step,
}
FIELDS = {
    "rnn": ("h",),
    "irnn": ("h",),
    "lstm": ("c", "h"),
    "gru": ("h",),
    "nig": ("c", "h"),
    "nfg": ("c", "h"),
    "nog": ("c", "h"),
    "niaf": ("c", "h"),
    "noaf": ("c", "h"),
    "cifg": ("c", "h"),
    "peephole": ("c", "h"),
    "fgr": ("c", "i", "f", "o", "h"),
    "lnlstm": ("c", "h"),
    "mingru": ("h",),
    "minlstm": ("h",),
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


def adaptive_distribution(h, w, b, tails):
    """Grave et al. 2017: p of every word after one state h [H]. tails: (P, W, b) of each cluster.

    The head's first entries are words, its last ones clusters, whose words follow in order."""

    def softmax(x, w, b):
        scores = [sum(x[i] * w[i, v] for i in range(len(x))) + b[v] for v in range(len(b))]
        total = sum(np.exp(s - max(scores)) for s in scores)
        return [np.exp(s - max(scores)) / total for s in scores]

    head = softmax(h, w, b)
    words = len(head) - len(tails)
    p = head[:words]
    for entry, (projection, w_i, b_i) in zip(head[words:], tails, strict=True):
        p += [entry * within for within in softmax(h @ projection, w_i, b_i)]
    return np.asarray(p)


def sampled_nats(h, w, b, targets, words, q):
    """Sampled softmax, row by row: the target against the drawn words that are not the target.

    Scores less log q, q [V] being how probably each word is drawn (Jean et al. 2015, eq. 8-10;
    Bengio & Senecal 2008)."""
    out = []
    for row, target in zip(h, targets, strict=True):
        candidates = [target, *(v for v in words if v != target)]
        scores = [row @ w[:, v] + b[v] - np.log(q[v]) for v in candidates]
        best = max(scores)
        out.append(best + np.log(sum(np.exp(s - best) for s in scores)) - scores[0])
    return np.asarray(out)


def constant_loss(kind, targets, weights):
    """Of the best answers that see no input, one for each step; means over the steps that count.

    kind: squared (the answer is the mean) or nats (it is how often each class came).
    """
    losses = []
    for row, weight in zip(targets, weights, strict=True):
        if not weight.any():
            continue
        if kind == "squared":
            losses.append(np.mean((row - np.mean(row, dtype=np.float64)) ** 2))
        else:
            shares = np.unique(row, return_counts=True)[1] / len(row)
            losses.append(-np.sum(shares * np.log(shares)))
    return np.mean(losses)


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


def torch_step(kind, p, at, x, h, c):
    """One step of nn.LSTM, nn.GRU or nn.RNN as PyTorch 2 documents them; x [B, D], h and c [B, H].

    kind: LSTM, GRU, RNN_TANH or RNN_RELU; at: what stands before and after a weight's name.
    """
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w_i, w_h, b_i, b_h = (np.asarray(p[at.format(name)], np.float64) for name in names)
    n = h.shape[-1]
    a, u = x @ w_i.T + b_i, h @ w_h.T + b_h
    if kind == "LSTM":
        i, f, g, o = (a[:, k * n : (k + 1) * n] + u[:, k * n : (k + 1) * n] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    if kind == "GRU":
        r = sigmoid(a[:, :n] + u[:, :n])
        z = sigmoid(a[:, n : 2 * n] + u[:, n : 2 * n])
        new = np.tanh(a[:, 2 * n :] + r * u[:, 2 * n :])
        return (1 - z) * new + z * h, c
    return (np.tanh(a + u) if kind == "RNN_TANH" else np.maximum(a + u, 0)), c


def torch_logits(kind, p, layers, tokens, separate=False):
    """Logits [T, B, V] of examples/word_language_model from the zero state; tokens [T, B].

    separate: layers are modules of their own, as in AWD-LSTM.
    """
    ats = [f"rnns.{k}.{{}}_l0" if separate else f"rnn.{{}}_l{k}" for k in range(layers)]
    sizes = [p[at.format("weight_hh")].shape[1] for at in ats]
    states = [(np.zeros((tokens.shape[1], n)), np.zeros((tokens.shape[1], n))) for n in sizes]
    out = []
    for row in tokens:
        h = np.asarray(p["encoder.weight"], np.float64)[row]
        for k, at in enumerate(ats):
            states[k] = torch_step(kind, p, at, h, *states[k])
            h = states[k][0]
        out.append(h @ np.asarray(p["decoder.weight"], np.float64).T + p["decoder.bias"])
    return np.stack(out)


def read_on(cell, params, states, tokens, targets):
    """One row from given states: (states, h [N, H], nll of each token in nats)."""
    hs, nats = [], []
    for token, target in zip(tokens, targets, strict=True):
        h = params["embedding"][token][None]
        after = []
        for layer, state in zip(params["layers"], states, strict=True):
            after.append(STEPS[cell](layer, state, h))
            h = after[-1]["h"]
        states = after
        hs.append(h[0])
        nats.append(cross_entropy(h, params["softmax_w"], params["softmax_b"], [target])[0])
    return states, np.asarray(hs), np.asarray(nats)


def zero_states(cell, params):
    sizes = [layer["w_h"].shape[0] for layer in params["layers"]]
    return [{k: np.zeros((1, size)) for k in FIELDS[cell]} for size in sizes]


def cache_nats(h, nats, words, window, theta, weight):
    """Grave et al. 2016: each word from the `window` before it, one pair after another."""
    out = []
    for t, word in enumerate(words):
        total, matching = 0.0, 0.0
        for i in range(max(0, t - window), t):
            likeness = np.exp(theta * (h[t] @ h[i]))
            total += likeness
            matching += likeness * (words[i] == word)
        p = np.exp(-nats[t])
        if t:
            p = (1 - weight) * p + weight * matching / total
        with np.errstate(divide="ignore"):
            out.append(-np.log(p))
    return np.asarray(out)


def parameter_arrays(params):
    """Every array of a model's parameters, to be changed in place; tied ones are one."""
    arrays = [params["embedding"], params["softmax_b"]]
    if params["softmax_w"].base is not params["embedding"]:
        arrays.append(params["softmax_w"])
    for layer in params["layers"]:
        arrays += [layer["w_x"], layer["w_h"], layer["b"], *layer["vectors"]]
    return arrays


def segment_gradient(cell, params, rows):
    """d(mean nats)/d(each array) of a batch of (states, tokens, targets), by differences."""

    def loss():
        nats = [read_on(cell, params, *row)[2] for row in rows]
        return np.concatenate(nats).mean()

    return [numeric_gradient(loss, array) for array in parameter_arrays(params)]


def gradient_rms(cell, params, texts, bptt):
    """Krause et al. 2018: sqrt of the mean square over batches. texts: (tokens, targets) a row."""
    states = [zero_states(cell, params) for _ in texts]
    squares, batches = [np.zeros_like(a) for a in parameter_arrays(params)], 0
    for start in range(0, max(len(tokens) for tokens, _ in texts), bptt):
        part = slice(start, start + bptt)
        rows = [(s, x[part], y[part]) for s, (x, y) in zip(states, texts, strict=True)]
        for total, g in zip(squares, segment_gradient(cell, params, rows), strict=True):
            total += g**2
        states = [read_on(cell, params, *row)[0] for row in rows]
        batches += 1
    return [np.sqrt(total / batches) for total in squares]


def dynamic_nats(cell, params, tokens, targets, bptt, rate, decay, epsilon=0.0, rms=None):
    """Krause et al. 2018, segment by segment; without `rms`, plain SGD. Changes `params`."""
    trained = [a.copy() for a in parameter_arrays(params)]
    mean = np.mean([a.mean() for a in rms]) if rms else None
    states, out, hs = zero_states(cell, params), [], []
    for start in range(0, len(tokens), bptt):
        x, y = tokens[start : start + bptt], targets[start : start + bptt]
        after, h, nats = read_on(cell, params, states, x, y)
        grads = segment_gradient(cell, params, [(states, x, y)])
        for k, (theta, g, first) in enumerate(
            zip(parameter_arrays(params), grads, trained, strict=True)
        ):
            if rms:
                back = np.minimum(decay * rms[k] / mean, 1.0)
                theta += back * (first - theta) - rate * g / (rms[k] + epsilon)
            else:
                theta += decay * (first - theta) - rate * g
        states = after
        out.extend(nats)
        hs.extend(h)
    return np.asarray(out), np.asarray(hs)


def truncated(scores, temperature, k, p, forbidden):
    """Holtzman et al. 2020: the next token's distribution cut to the k likeliest, then to the
    nucleus of mass p, token by token; ties in the order of ids; temperature 0: the first of the
    likeliest."""
    order = sorted((v for v in range(len(scores)) if v != forbidden), key=lambda v: (-scores[v], v))
    order = order[: k or None]
    chances = np.zeros(len(scores))
    if temperature == 0:
        chances[order[0]] = 1
        return chances
    best = scores[order[0]]
    weights = [np.exp((scores[v] - best) / temperature) for v in order]
    total, mass = sum(weights), 0.0
    for v, weight in zip(order, weights, strict=True):
        if mass >= p and p < 1:
            break
        chances[v] = weight
        mass += weight / total
    return chances / chances.sum()
