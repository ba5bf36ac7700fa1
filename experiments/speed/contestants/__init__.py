"""Who is timed: a table, and a file each.

A contestant's module has

    make_step(work, weights) -> Program     a training step: embedding, layers, softmax, loss,
                                            backward, clip by the global norm, SGD
    make_layer(work, weights) -> Program    one layer, forward and backward

and each is written as that library's own users write what is fast: the whole step compiled once
with its buffers donated (JAX), time-major, the state carried on, nothing copied to the host.
`weights` are by PyTorch's names, as `experiments.speed.work.draw_weights` draws them.
"""

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contestant:
    """How a library enters.

    Attributes:
      label: for tables and figures.
      package: module to import; empty: always there.
      install: what pip calls it.
      cells: those it has.
      parts: those it is timed in.
      differs: cell -> how its own cell differs from ours, where the work is not the same.
      two_biases: its layers have two biases, with a gradient each: the norm that is clipped and
        the step of their sum are larger, and so is the fall of its loss.
      gpu_only: without a GPU it is not there.
    """

    label: str
    module: str
    package: str = ""
    install: str = ""
    cells: tuple[str, ...] = ("rnn", "irnn", "gru", "lstm")
    parts: tuple[str, ...] = ("step", "layer")
    differs: dict[str, str] = field(default_factory=dict)
    two_biases: bool = False
    gpu_only: bool = False


CONTESTANTS: dict[str, Contestant] = {
    "ours": Contestant("ours", "ours"),
    "torch": Contestant("PyTorch", "pytorch", "torch", "torch", two_biases=True),
    "linen": Contestant("Flax linen", "linen", cells=("rnn", "gru", "lstm")),
    "nnx": Contestant("Flax nnx", "nnx", cells=("rnn", "gru", "lstm")),
    "haiku": Contestant(
        "Haiku",
        "haiku",
        "haiku",
        "dm-haiku",
        differs={
            "rnn": "its VanillaRNN has ReLU for tanh",
            "gru": "its GRU has the reset gate before the product, two products a step",
        },
    ),
    "equinox": Contestant("Equinox", "equinox", "equinox", "equinox", cells=("gru", "lstm")),
    "cudnn": Contestant("JAX cuDNN", "cudnn", cells=("lstm",), two_biases=True, gpu_only=True),
    "ours10": Contestant("ours, 10 a call", "ours10", parts=("step",)),
}
DEFAULT = ("ours", "torch", "linen", "nnx", "haiku", "equinox", "cudnn")


def installed(name: str) -> bool:
    """Whether a contestant's package is there; it is not imported."""
    package = CONTESTANTS[name].package
    return not package or importlib.util.find_spec(package) is not None


def load(name: str) -> Any:
    """The module of a contestant."""
    return importlib.import_module(f"{__name__}.{CONTESTANTS[name].module}")
