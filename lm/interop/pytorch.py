"""Language models as PyTorch writes them down, and back. Arrays are NumPy's; torch is not needed.

Names and shapes, of examples/word_language_model:

    encoder.weight [V, D]
    rnn.weight_ih_l{k} [K, D]    rnn.weight_hh_l{k} [K, H]    rnn.bias_ih_l{k}, rnn.bias_hh_l{k} [K]
    decoder.weight [V, H]    decoder.bias [V]

Layers of different sizes are modules of their own, `rnns.{k}.weight_ih_l0`, as in AWD-LSTM, whose
weight drop adds `module.` before a name and `_raw` after it.

PyTorch keeps matrices transposed and the gates' blocks in the order i, f, g, o (LSTM) and r, z, n
(GRU). Of its two biases, which it adds to each other, one is enough, except in the GRU's n:

    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))

Source: documentation of torch.nn.LSTM, GRU and RNN, PyTorch 2.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import model
from lm.adaptive_softmax import AdaptiveWeights
from lm.cells import CELLS
from lm.cells.cell import CellParams
from lm.config import ModelConfig

Arrays = Mapping[str, np.ndarray]

# Cell -> our names of the gates in PyTorch's order. A cell that is not here has no PyTorch module.
GATES: dict[str, tuple[str, ...]] = {
    "lstm": ("i", "f", "g", "o"),
    "gru": ("r", "q", "n"),
    "rnn": ("h",),
    "irnn": ("h",),
}
CELL_OF_GATES = {4: "lstm", 3: "gru"}
FLOATS = ("float32", "float16", "bfloat16", "float64")
LAYER_NAME = re.compile(
    r"(?:rnn|rnns\.(\d{1,3}))\.(?:module\.)?"
    r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d{1,3})(_raw)?"
)


class Imported(NamedTuple):
    """A model that came from elsewhere."""

    config: ModelConfig
    params: model.Params  # float32, NumPy arrays
    notes: tuple[str, ...]  # what was inferred or changed on the way, a line each


class Found(NamedTuple):
    """Arrays by the names that this module uses, and what they were called where they came from."""

    arrays: dict[str, np.ndarray]
    called: dict[str, str]
    separate: bool  # layers are modules of their own
    notes: tuple[str, ...]


def export_layer(cell: str, params: CellParams, index: int = 0) -> dict[str, np.ndarray]:
    """One layer with the names of nn.LSTM, nn.GRU or nn.RNN.

    Args:
      cell: lstm, gru, rnn (tanh) or irnn (ReLU).
      params: w_x [D, K], w_h [H, K], b [K], vectors.
      index: k of the names.

    Returns:
      weight_ih_l{k} [K, D], weight_hh_l{k} [K, H], bias_ih_l{k} and bias_hh_l{k} [K]; bias_hh is 0
      but for the GRU's n.

    Raises:
      ValueError: a cell that PyTorch lacks.
    """
    gates = gates_of(cell)
    ours = CELLS[cell].gates
    w_x, w_h, b = (reorder(np.asarray(w), ours, gates) for w in params[:3])
    b_hh = np.zeros_like(b)
    if cell == "gru":
        b_hh[-b.size // 3 :] = np.asarray(params.vectors[0])
    return {
        f"weight_ih_l{index}": np.ascontiguousarray(w_x.T),
        f"weight_hh_l{index}": np.ascontiguousarray(w_h.T),
        f"bias_ih_l{index}": b,
        f"bias_hh_l{index}": b_hh,
    }


def import_layer(cell: str, arrays: Arrays, index: int = 0) -> CellParams:
    """One layer from the names of nn.LSTM, nn.GRU or nn.RNN, in float32.

    Args:
      cell: lstm, gru, rnn (tanh) or irnn (ReLU).
      arrays: holds what `export_layer` returns, in any dtype.
    """
    gates, ours = gates_of(cell), CELLS[cell].gates
    w_ih, w_hh, b_ih, b_hh = (
        np.asarray(arrays[f"{part}_l{index}"])
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    vectors: tuple[np.ndarray, ...] = ()
    if cell == "gru":
        last = b_hh.size - b_hh.size // 3
        vectors = (b_hh[last:].astype(np.float32),)
        b_hh = np.concatenate([b_hh[:last], np.zeros_like(b_hh[last:])])
    # Where there is nothing to add, not even the sign of a zero changes.
    wide = b_ih.astype(np.float64)
    b = np.where(b_hh == 0, wide, wide + b_hh.astype(np.float64)).astype(np.float32)
    w_x, w_h, b = (
        reorder(np.ascontiguousarray(w.T), gates, ours)
        for w in (w_ih.astype(np.float32), w_hh.astype(np.float32), b)
    )
    return CellParams(w_x, w_h, b, vectors)  # type: ignore[arg-type]


def gates_of(cell: str) -> tuple[str, ...]:
    """PyTorch's order of a cell's gates.

    Raises:
      ValueError: a cell that PyTorch lacks.
    """
    if cell not in GATES:
        raise ValueError(
            f"cell is {cell}, which PyTorch has no module for; wanted one of "
            f"{', '.join(GATES)}, or the layout that is ours"
        )
    return GATES[cell]


def reorder(packed: np.ndarray, held: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """Blocks of the last axis [..., K], one a gate, in another order."""
    blocks = np.split(packed, len(held), axis=-1)
    return np.concatenate([blocks[held.index(gate)] for gate in wanted], axis=-1)


def export_model(config: ModelConfig, params: model.Params) -> dict[str, np.ndarray]:
    """A language model by PyTorch's names; a tied decoder.weight is encoder.weight once more.

    Returns:
      What `load_state_dict(strict=True)` of examples/word_language_model takes; with layers of
      different sizes, of AWD-LSTM's model without weight drop.

    Raises:
      ValueError: a cell or parameters that PyTorch lacks.
    """
    gates_of(config.cell)
    known = ("embedding", "layers", "softmax_w", "softmax_b")
    # A model that computes more than PyTorch's modules do must not lose that in silence.
    beyond = [name for name in params._fields if name not in known and getattr(params, name)]
    if beyond:
        raise ValueError(
            f"the model has {', '.join(beyond)}, which PyTorch's modules lack; wanted embedding, "
            "layers and softmax alone, or the layout that is ours"
        )
    untied = params.softmax_w
    if isinstance(untied, AdaptiveWeights):
        raise ValueError(
            "the softmax is adaptive, which the modules that are written for lack; wanted full or "
            "sampled, or the layout that is ours"
        )
    embedding = np.asarray(params.embedding)
    arrays = {"encoder.weight": embedding}
    separate = len(set(config.layer_sizes)) > 1
    for k, layer in enumerate(params.layers):
        prefix, index = (f"rnns.{k}", 0) if separate else ("rnn", k)
        for name, array in export_layer(config.cell, layer, index).items():
            arrays[f"{prefix}.{name}"] = array
    arrays["decoder.weight"] = (
        embedding if untied is None else np.ascontiguousarray(np.asarray(untied).T)
    )
    arrays["decoder.bias"] = np.asarray(params.softmax_b)
    return arrays


def import_model(arrays: Arrays, cell: str = "auto") -> Imported:
    """A language model from PyTorch's names.

    The softmax is tied where decoder.weight lacks or is encoder.weight, number by number. A module
    without biases gets zeros.

    Args:
      arrays: name -> array, as a state dict holds them, of any floating dtype.
      cell: lstm, gru, rnn (tanh) or irnn (ReLU); auto: by the shapes, which tell all but the last
        two from each other.

    Raises:
      ValueError: a name that is missing or superfluous; a shape that does not fit; a cell that
        cannot be told; bidirectional or projected layers; numbers that are none in float32.
    """
    found = find_names(arrays)
    layers = sorted({name.rsplit("_l", 1)[1] for name in found.arrays if "_l" in name}, key=int)
    require(found, "encoder.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0")
    for k in range(len(layers)):
        require(found, f"rnn.weight_ih_l{k}", f"rnn.weight_hh_l{k}")
    notes = [*found.notes, *convert_dtypes(found)]
    cell = infer_cell(found, cell)
    notes += fill_biases(found, len(layers))
    sizes = check_layers(found, cell, len(layers))
    tied, note = find_tying(found, sizes[-1])
    check_shape(found, "decoder.bias", (len(found.arrays["encoder.weight"]),))
    config = ModelConfig(
        cell=cell,
        layers=len(layers),
        hidden_size=sizes[0],
        last_hidden_size=0 if sizes[-1] == sizes[0] else sizes[-1],
        embedding_size=found.arrays["encoder.weight"].shape[1],
        tied=tied,
    )
    if config.layer_sizes != sizes:
        raise ValueError(
            f"the layers have {', '.join(map(str, sizes))} units; wanted one size, of which only "
            "the last layer may differ"
        )
    plain = {name.removeprefix("rnn."): array for name, array in found.arrays.items()}
    softmax_w = None if tied else np.ascontiguousarray(plain["decoder.weight"].T)
    params = model.Params(
        embedding=plain["encoder.weight"],  # type: ignore[arg-type]
        layers=tuple(import_layer(cell, plain, k) for k in range(len(layers))),
        softmax_w=softmax_w,  # type: ignore[arg-type]
        softmax_b=plain["decoder.bias"],  # type: ignore[arg-type]
    )
    return Imported(config, check_finite(params), (*notes, *note))


def check_finite(params: model.Params) -> model.Params:
    """The parameters, if all are numbers.

    Raises:
      ValueError: NaN or infinite, as from float64 values beyond float32.
    """
    named: dict[str, tuple[Any, ...]] = {
        "encoder.weight": (params.embedding,),
        **{f"layer {k}": (*layer[:3], *layer.vectors) for k, layer in enumerate(params.layers)},
        "decoder.weight": tuple(jax.tree.leaves(params.softmax_w)),
        "decoder.bias": (params.softmax_b,),
    }
    for name, arrays in named.items():
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(f"{name} holds NaN or infinity in float32; wanted finite numbers")
    return params


def find_names(arrays: Arrays) -> Found:
    """Every array by one name, whichever of the known modules wrote it.

    Raises:
      ValueError: a name that is superfluous, or given twice; a layer of a kind that is not ours.
    """
    found = Found({}, {}, any("rnns." in name for name in arrays), ())
    notes: list[str] = []
    prefixes = common_prefixes(arrays)
    raw = set()
    for called, array in sorted(arrays.items(), key=lambda item: not item[0].endswith("_raw")):
        name = next((called.removeprefix(p) for p in prefixes if called.startswith(p)), called)
        refuse_kind(called)
        match = LAYER_NAME.fullmatch(name)
        if match and (match[1] is None or match[3] == "0"):
            # int: PyTorch never writes leading zeros, and two spellings must not be two layers.
            name = f"rnn.{match[2]}_l{int(match[1] or match[3])}"
            if name in raw and not match[4]:
                notes.append(f"{called} left out: the dropped copy of {found.called[name]}")
                continue
            raw |= {name} if match[4] else set()
        elif name == "encoder_dp.emb.weight":  # fastai's second name of the encoder
            continue
        elif name not in ("encoder.weight", "decoder.weight", "decoder.bias"):
            raise ValueError(
                f"{called} is superfluous; wanted encoder.weight, decoder.weight, decoder.bias and "
                "rnn.weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k} (or rnns.{k}.)"
            )
        if name in found.arrays:
            raise ValueError(f"{called} is there twice, also as {found.called[name]}")
        found.arrays[name] = np.asarray(array)
        found.called[name] = called
    return found._replace(notes=tuple(notes))


def common_prefixes(arrays: Arrays) -> tuple[str, ...]:
    """What wrappers put before every name: nn.DataParallel, and fastai's sequence of two."""
    for prefixes in (("module.",), ("0.", "1.")):
        if all(name.startswith(prefixes) for name in arrays):
            return prefixes
    return ()


def refuse_kind(called: str) -> None:
    """Raise ValueError for layers that read backwards or project their output."""
    if called.endswith("_reverse"):
        raise ValueError(f"{called} is of a bidirectional layer; a language model reads one way")
    if "weight_hr_l" in called:
        raise ValueError(
            f"{called} is of a layer with proj_size, which ours lack; wanted proj_size=0"
        )


def require(found: Found, *names: str) -> None:
    """Raise ValueError for a name that is missing."""
    for name in names:
        if name not in found.arrays:
            match = re.fullmatch(r"rnn\.(\w+_l)(\d+)", name)
            if match and found.separate:
                name = f"rnns.{match[2]}.{match[1]}0"
            there = ", ".join(sorted(found.called.values())[:12]) or "nothing"
            raise ValueError(f"{name} is missing; there are {there}")


def convert_dtypes(found: Found) -> list[str]:
    """Refuse what are no floating numbers; say which arrays will change their dtype.

    Matrices become float32 here, biases later, when they are added to each other.
    """
    counts: dict[str, int] = {}
    for name, array in found.arrays.items():
        dtype = array.dtype.name
        if dtype not in FLOATS:
            raise ValueError(
                f"{found.called[name]} has dtype {dtype}; wanted one of {', '.join(FLOATS)}"
            )
        if dtype != "float32":
            counts[dtype] = counts.get(dtype, 0) + 1
        if not name.startswith("rnn."):
            with np.errstate(over="ignore"):  # found by check_finite
                found.arrays[name] = array.astype(np.float32)
    return [f"{count} arrays of {dtype} became float32" for dtype, count in counts.items()]


def infer_cell(found: Found, cell: str) -> str:
    """The cell that was named, or the one that has as many gates as the first layer.

    Raises:
      ValueError: one gate, or a number that no cell has.
    """
    if cell != "auto":
        gates_of(cell)
        return cell
    shape = found.arrays["rnn.weight_hh_l0"].shape
    gates = shape[0] / shape[1] if len(shape) == 2 and shape[1] else 0
    if gates == 1:
        raise ValueError(
            "cell is auto, and one gate may be tanh or ReLU; wanted cell=rnn (tanh) or cell=irnn "
            "(ReLU)"
        )
    if gates not in CELL_OF_GATES:
        raise ValueError(
            f"{found.called['rnn.weight_hh_l0']} has shape {shape}; wanted (4 H, H) of an LSTM, "
            "(3 H, H) of a GRU or (H, H) of an RNN"
        )
    return CELL_OF_GATES[gates]


def fill_biases(found: Found, layers: int) -> list[str]:
    """Zeros for modules that have no bias at all; a bias that lacks beside others is an error."""
    notes = []
    parts = [f"rnn.{part}_l{k}" for k in range(layers) for part in ("bias_ih", "bias_hh")]
    if any(name in found.arrays for name in parts):
        require(found, *parts)
    else:
        for name in parts:
            rows = found.arrays[name.replace("bias", "weight")].shape[:1]
            found.arrays[name], found.called[name] = np.zeros(rows, np.float32), name
        notes.append("the recurrent layers have no biases: zeros")
    if "decoder.bias" not in found.arrays:
        rows = found.arrays["encoder.weight"].shape[:1]
        found.arrays["decoder.bias"] = np.zeros(rows, np.float32)
        found.called["decoder.bias"] = "decoder.bias"
        notes.append("the decoder has no bias: zeros")
    return notes


def check_layers(found: Found, cell: str, layers: int) -> tuple[int, ...]:
    """H of each layer, if every array has the shape that the others ask for.

    Raises:
      ValueError: name, what came, what was wanted.
    """
    gates = len(GATES[cell])
    embedding = found.arrays["encoder.weight"]
    if embedding.ndim != 2 or not embedding.size:
        raise ValueError(f"encoder.weight has shape {embedding.shape}; wanted (V, D)")
    below = embedding.shape[1]
    sizes = []
    for k in range(layers):
        name = f"rnn.weight_hh_l{k}"
        shape = found.arrays[name].shape
        hidden = shape[-1] if shape else 0
        if not hidden:
            raise ValueError(f"{found.called[name]} has shape {shape}; wanted ({gates} H, H)")
        check_shape(found, name, (gates * hidden, hidden), f", {gates} gates of cell {cell}")
        check_shape(found, f"rnn.weight_ih_l{k}", (gates * hidden, below))
        for bias in ("bias_ih", "bias_hh"):
            check_shape(found, f"rnn.{bias}_l{k}", (gates * hidden,))
        below = hidden
        sizes.append(hidden)
    return tuple(sizes)


def check_shape(found: Found, name: str, wanted: tuple[int, ...], why: str = "") -> None:
    """Raise ValueError for a shape that does not fit."""
    came = found.arrays[name].shape
    if came != wanted:
        raise ValueError(f"{found.called[name]} has shape {came}; wanted {wanted}{why}")


def find_tying(found: Found, hidden: int) -> tuple[bool, tuple[str, ...]]:
    """(whether the softmax's weights are the embedding, what to say of it)."""
    vocabulary, size = found.arrays["encoder.weight"].shape
    if "decoder.weight" not in found.arrays:
        if size != hidden:
            require(found, "decoder.weight")
        return True, ("there is no decoder.weight: tied to encoder.weight",)
    check_shape(found, "decoder.weight", (vocabulary, hidden))
    tied = size == hidden and np.array_equal(
        found.arrays["decoder.weight"], found.arrays["encoder.weight"]
    )
    return tied, ("decoder.weight is encoder.weight: tied",) if tied else ()


def describe(config: ModelConfig) -> dict[str, Any]:
    """What of a model's options is in its arrays: cell, sizes, tying."""
    names = ("cell", "layers", "embedding_size", "tied")
    return {name: getattr(config, name) for name in names} | {"layer_sizes": config.layer_sizes}
