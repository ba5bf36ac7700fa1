"""The options of a model, its data and its optimizer, as frozen dataclasses.

Nothing here imports JAX, so `--help` answers at once. Each option says what it is and its
unit; limits are checked when the dataclass is made, before anything is traced.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from lm.cells import CELLS
from lm.tables import unknown_name


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Any = None,
    infinite: bool = False,
) -> Any:
    """A dataclass field with its one line of help and its limits.

    Args:
      least: smallest value allowed.
      above: value that must be exceeded.
      most: largest value allowed.
      choices: names allowed; anything with `in` and iteration.
      infinite: inf is a value that means something.
    """
    limits = {
        "least": least,
        "above": above,
        "most": most,
        "choices": choices,
        "infinite": infinite,
    }
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def validate(config: Any) -> None:
    """Check every field of a dataclass made with `option` against its limits.

    Raises:
      ValueError: name, what came, what was wanted.
    """
    for field in dataclasses.fields(config):
        values = getattr(config, field.name)
        for value in values if isinstance(values, tuple) else (values,):
            check_limits(field.name, value, field.metadata)


def check_limits(name: str, value: Any, limits: Any) -> None:
    """One value against the limits of its option."""
    choices = limits.get("choices")
    if choices is not None and value not in choices:
        raise ValueError(unknown_name(name, value, dict.fromkeys(choices)))
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float)):
        return
    if value != value:
        raise ValueError(f"{name} is nan; wanted a number")
    if value in (float("inf"), float("-inf")) and not limits.get("infinite"):
        raise ValueError(f"{name} is {value}; wanted a finite number")
    least, above, most = limits.get("least"), limits.get("above"), limits.get("most")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; wanted at least {least}")
    if above is not None and value <= above:
        raise ValueError(f"{name} is {value}; wanted more than {above}")
    if most is not None and value > most:
        raise ValueError(f"{name} is {value}; wanted at most {most}")


@dataclass(frozen=True)
class ModelConfig:
    """Embedding, a stack of recurrent layers, softmax."""

    cell: str = option("lstm", "recurrent cell", choices=CELLS)
    layers: int = option(1, "recurrent layers on top of each other", least=1, most=100)
    hidden_size: int = option(128, "units of each recurrent layer", least=1, most=65536)
    embedding_size: int = option(128, "units of a word's embedding", least=1, most=65536)
    tied: bool = option(False, "use the embedding as the softmax weights too")
    forget_bias: float = option(1.0, "bias that the LSTM's forget gate starts at")
    chrono: int = option(
        0,
        "longest time to be remembered, in steps: forget and input gates start spread over time "
        "scales up to it (chrono initialisation), in place of forget_bias; 0: none",
        least=0,
        most=10**9,
    )
    input_scale: float = option(
        1.0,
        "standard deviation of the embeddings, the cell's input, at the start (tied: of "
        "embeddings times the square root of their size, since they are softmax weights too)",
        above=0,
    )
    recurrent_gain: float = option(1.0, "factor on the recurrent weights at the start", least=0)
    init: str = option(
        "scaled",
        "how weights start: scaled (variance kept, W_h orthogonal or identity) or uniform",
        choices=("scaled", "uniform"),
    )
    init_range: float = option(0.1, "uniform init draws every weight from U(-r, r)", above=0)

    def __post_init__(self) -> None:
        validate(self)
        if self.chrono == 1:
            raise ValueError(
                "chrono is 1; wanted a longest time of at least 2 steps, or 0 for none"
            )
        if self.init == "uniform" and (self.input_scale, self.recurrent_gain) != (1.0, 1.0):
            raise ValueError(
                "init is uniform, which draws every weight from U(-init_range, init_range); wanted "
                "init=scaled with input_scale or recurrent_gain"
            )
        if self.tied and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tied needs embedding_size = hidden_size; got {self.embedding_size} and "
                f"{self.hidden_size}"
            )


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is cut into tokens and batches."""

    corpus: str = option(
        "austen",
        "austen, ptb, wikitext-2, tinyshakespeare, or a path: a text file, or a folder that "
        "holds train/valid/test files",
    )
    data_dir: str = option("data", "folder that named corpora other than austen are found in")
    level: str = option(
        "auto",
        "unit of text: word (lower case, punctuation split off), whitespace (text that is "
        "tokenised already), char, byte; auto: what the corpus is published with, else word",
        choices=("auto", "word", "whitespace", "char", "byte"),
    )
    sentences: str = option(
        "auto",
        "where a sentence ends: line (one a line) or prose (by punctuation, within paragraphs "
        "that blank lines separate); auto: prose for austen, else line",
        choices=("auto", "line", "prose"),
    )
    min_count: int = option(
        0, "training occurrences a unit needs to enter the vocabulary; 0: the corpus's own", least=0
    )
    max_vocabulary: int = option(0, "keep only the most frequent units; 0: no limit", least=0)
    batching: str = option(
        "stream",
        "stream: one contiguous text, state carried from chunk to chunk; sentences: each "
        "sentence for itself, padded and masked",
        choices=("stream", "sentences"),
    )
    batch_size: int = option(20, "rows of a batch", least=1, most=10**6)
    length: int = option(
        35,
        "tokens a row and step: truncated BPTT's length (stream), the longest row (sentences)",
        least=1,
        most=10**6,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class OptimConfig:
    """Stochastic gradient descent and its schedule. Loss is the mean over a batch's tokens."""

    learning_rate: float = option(0.0, "SGD step size; 0: suited to the cell", least=0)
    momentum: float = option(0.0, "momentum of SGD", least=0, most=1)
    clip: float = option(
        0.25, "largest global norm of the gradient; inf: no clipping", above=0, infinite=True
    )
    schedule: str = option(
        "constant",
        "learning rate over steps: constant, step (decayed each epoch after one), cosine "
        "(to zero, after a linear warm-up)",
        choices=("constant", "step", "cosine"),
    )
    decay: float = option(0.5, "step schedule: factor each epoch", above=0, most=1)
    decay_after: int = option(4, "step schedule: epochs at the full rate", least=0)
    warmup: float = option(
        0.0, "cosine schedule: share of the steps to warm up in", least=0, most=0.9
    )

    def __post_init__(self) -> None:
        validate(self)
