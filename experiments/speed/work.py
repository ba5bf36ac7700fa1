"""What is timed: a language model of one size, its weights, its batch, its count of operations.

Every contestant starts from the same weights and reads the same tokens, so that its first losses
tell whether it does the same work: the first one the forward pass, those after it the rest.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.interop.pytorch import GATES
from lm.tables import unknown_name

# B, T, H, layers, V of known models.
SIZES = {
    "small": "20x20x200x2x10000",  # Zaremba et al. 2014 on Penn Treebank
    "medium": "20x35x650x2x10000",
    "large": "20x35x1500x2x10000",
    "char": "32x256x128x1x100",
    "char-large": "64x128x512x2x100",
    "wikitext": "20x35x200x2x33000",  # PyTorch's word_language_model on WikiText-2
    "awd": "80x70x1150x3x10000",  # Merity et al. 2018; for a GPU
}
LIMITS = {"B": 10**5, "T": 10**6, "H": 10**5, "layers": 100, "V": 10**7}
LEARNING_RATE = 1.0
CLIP = 0.25


@dataclass(frozen=True)
class Size:
    """B rows, T steps, H units (and embedding size), layers, V words."""

    batch: int
    length: int
    hidden: int
    layers: int
    vocabulary: int

    def __str__(self) -> str:
        return "x".join(map(str, vars(self).values()))


@dataclass(frozen=True)
class Work:
    """One thing to time, in one library or another."""

    cell: str  # rnn, irnn, gru or lstm
    size: Size
    precision: str = "float32"
    learning_rate: float = LEARNING_RATE
    clip: float = CLIP


def parse_size(text: str) -> Size:
    """A Size from its name or from BxTxHxLAYERSxV.

    Raises:
      ValueError: neither, or a number out of its limits.
    """
    written = SIZES.get(text, text)
    if not re.fullmatch(r"\d{1,9}(x\d{1,9}){4}", written):
        if "x" in text and any(c.isdigit() for c in text):
            raise ValueError(
                f"sizes holds {text!r}; wanted BxTxHxLAYERSxV, as 20x35x650x2x10000, or one of "
                f"{', '.join(SIZES)}"
            )
        raise ValueError(f"{unknown_name('size', text, SIZES)}, or BxTxHxLAYERSxV")
    numbers = [int(number) for number in written.split("x")]
    for (name, most), number in zip(LIMITS.items(), numbers, strict=True):
        if not 1 <= number <= most:
            raise ValueError(f"sizes holds {text!r} with {name} {number}; wanted 1 to {most:,}")
    return Size(*numbers)


def draw_weights(work: Work, seed: int = 0) -> dict[str, np.ndarray]:
    """A model's float32 weights by PyTorch's names (see lm.interop.pytorch).

    U(-r, r) with r = H^-1/2 in the layers, 1 in the embedding and 6 H^-1/2 in the softmax: large
    enough for the loss to tell one network from another. A forget bias of 1, every other bias 0,
    so that libraries with one bias where PyTorch has two start alike.
    """
    rng = np.random.default_rng(seed)
    size, gates = work.size, GATES[work.cell]
    hidden, width = size.hidden, size.hidden * len(gates)
    r = hidden**-0.5
    draw: Any = lambda shape, r: rng.uniform(-r, r, shape).astype(np.float32)  # noqa: E731
    bias = np.zeros(width, np.float32)
    if work.cell == "lstm":
        bias[hidden : 2 * hidden] = 1
    arrays = {"encoder.weight": draw((size.vocabulary, hidden), 1)}
    for k in range(size.layers):
        arrays |= {
            f"rnn.weight_ih_l{k}": draw((width, hidden), r),
            f"rnn.weight_hh_l{k}": draw((width, hidden), r),
            f"rnn.bias_ih_l{k}": bias.copy(),
            f"rnn.bias_hh_l{k}": np.zeros(width, np.float32),
        }
    arrays["decoder.weight"] = draw((size.vocabulary, hidden), 6 * r)
    arrays["decoder.bias"] = np.zeros(size.vocabulary, np.float32)
    return arrays


def draw_batch(work: Work, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a step, int32 [T, B] each, every word as likely as another."""
    size = work.size
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, size.vocabulary, (size.length + 1, size.batch), np.int32)
    return tokens[:-1], tokens[1:]


def draw_layer_batch(work: Work, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Input of a layer and the cotangent of its output, float32 [T, B, H] each, from N(0, 1)."""
    size = work.size
    rng = np.random.default_rng(seed)
    shape = (2, size.length, size.batch, size.hidden)
    x, d_h = rng.standard_normal(shape, np.float32)
    return x, d_h


def one_layer(work: Work) -> Work:
    """The work of the recurrent layer alone: no embedding, no softmax."""
    size = work.size
    alone = Size(size.batch, size.length, size.hidden, 1, 1)
    return Work(work.cell, alone, work.precision, work.learning_rate, work.clip)


def count_flops(work: Work, part: str) -> int:
    """Floating-point operations of the matrix products: one forward and two backward.

    3 * 2 B T (sum over layers (D K + H K) + H V), of which a layer alone has 3 * 2 B T (H K + H K).
    Elementwise work, the gather of embeddings and the update are left out.
    """
    size = work.size
    width = size.hidden * len(GATES[work.cell])
    layer = 2 * size.hidden * width
    products = layer if part == "layer" else size.layers * layer + size.hidden * size.vocabulary
    return 6 * size.batch * size.length * products
