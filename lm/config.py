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


def is_off(value: Any) -> bool:
    """Whether an option is the number 0, which leaves out what it is about.

    A value that is traced (`lm.whole_run`) is not known to be: what it is about is computed.
    """
    return isinstance(value, (int, float)) and value == 0


# Numbers that change no shape and no program: each may be a traced scalar.
ALWAYS_TRACED = (
    *("seed", "learning_rate", "clip", "decay", "beta1", "beta2"),
    *("forget_bias", "input_scale", "recurrent_gain", "init_range"),
)
# Likewise, but 0 leaves out what they are about, which is another program.
TRACED_UNLESS_0 = (
    *("momentum", "weight_decay", "activation_penalty", "slowness_penalty"),
    *("dropout_words", "dropout_input", "dropout_hidden", "dropout_output", "dropout_state"),
    "weight_drop",
)


# Of these, what no init but "scaled" knows: there they stay as they are, and are the program's.
SCALES = ("input_scale", "recurrent_gain")


def is_traced(name: str, value: Any, init: str = "scaled") -> bool:
    """Whether an option at this value may be part of a point; else it is part of the program.

    Args:
      init: how the weights start.
    """
    if name in SCALES and init != "scaled":
        return False
    return name in ALWAYS_TRACED or (name in TRACED_UNLESS_0 and not is_off(value))


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
    last_hidden_size: int = option(
        0, "units of the last recurrent layer; 0: hidden_size", least=0, most=65536
    )
    embedding_size: int = option(128, "units of a word's embedding", least=1, most=65536)
    tied: bool = option(False, "use the embedding as the softmax weights too")
    softmax: str = option(
        "full",
        "full; adaptive (rare words in clusters, Grave et al. 2017); sampled (trained on its "
        "targets and a few words drawn for each batch, evaluated in full)",
        choices=("full", "adaptive", "sampled"),
    )
    cutoffs: tuple[int, ...] = option(
        (),
        "adaptive softmax: how many frequent words come before each cluster, ascending, as "
        "2000,10000; empty: a sixteenth and a quarter of the vocabulary",
        least=1,
    )
    tail_factor: int = option(
        4,
        "adaptive softmax: cluster i sees the output in hidden_size / tail_factor^i units",
        least=1,
    )
    sampled_words: int = option(
        4096, "sampled softmax: room for words drawn for a batch, its targets aside", least=1
    )
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
    recurrent_init: str = option(
        "",
        "how each gate's recurrent weights start: orthogonal, identity, or gaussian (entries from "
        "N(0, 1/hidden_size)); empty: the cell's own, identity for irnn, orthogonal for all others",
        choices=("", "orthogonal", "identity", "gaussian"),
    )
    recurrent_gain: float = option(1.0, "factor on the recurrent weights at the start", least=0)
    init: str = option(
        "scaled",
        "how weights start: scaled (variance kept, W_h orthogonal or identity), uniform (all from "
        "U(-r, r), r = init_range), or pytorch (embedding and softmax so, layers r = H^-1/2)",
        choices=("scaled", "uniform", "pytorch"),
    )
    init_range: float = option(0.1, "r of the uniform and pytorch inits", above=0)
    precision: str = option(
        "float32",
        "what the factors of matrix products are rounded to: float32 or bfloat16; parameters, "
        "gates, states, sums, loss and norms stay float32",
        choices=("float32", "bfloat16"),
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.chrono == 1:
            raise ValueError(
                "chrono is 1; wanted a longest time of at least 2 steps, or 0 for none"
            )
        own = self.input_scale, self.recurrent_gain, self.recurrent_init
        if self.init != "scaled" and own != (1.0, 1.0, ""):
            raise ValueError(
                f"init is {self.init}, which draws weights from a range of its own; wanted "
                "init=scaled with input_scale, recurrent_gain or recurrent_init"
            )
        check_softmax(self)
        if self.tied and self.embedding_size != self.layer_sizes[-1]:
            last = "last_hidden_size" if self.last_hidden_size else "hidden_size"
            raise ValueError(
                f"tied needs embedding_size = {last}; got {self.embedding_size} and "
                f"{self.layer_sizes[-1]}"
            )

    @property
    def product_dtype(self) -> str | None:
        """The dtype that operands of products are rounded to; None: none is."""
        return None if self.precision == "float32" else self.precision

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """H of each layer."""
        last = self.last_hidden_size or self.hidden_size
        return (*(self.hidden_size,) * (self.layers - 1), last)


def check_softmax(config: ModelConfig) -> None:
    """The options of the softmax against each other."""
    for name, kind in (
        ("cutoffs", "adaptive"),
        ("tail_factor", "adaptive"),
        ("sampled_words", "sampled"),
    ):
        value, default = getattr(config, name), getattr(ModelConfig, name)
        if value != default and config.softmax != kind:
            raise ValueError(
                f"{name} is {value}, which does nothing with softmax={config.softmax}; wanted "
                f"softmax={kind} with it"
            )
    if list(config.cutoffs) != sorted(set(config.cutoffs)):
        raise ValueError(f"cutoffs are {', '.join(map(str, config.cutoffs))}; wanted ascending")
    if config.softmax == "adaptive" and config.tied:
        raise ValueError(
            "tied with softmax=adaptive, whose rare words have fewer numbers than their "
            "embeddings; wanted one of the two"
        )


@dataclass(frozen=True)
class RegularizeConfig:
    """What keeps a model from learning its training text by heart. Off in evaluation."""

    dropout_masks: str = option(
        "variational",
        "dropout masks of input, hidden and output: variational (one for all of a row's steps) "
        "or independent (a fresh one each step)",
        choices=("variational", "independent"),
    )
    dropout_words: float = option(
        0.0, "share of the vocabulary whose embeddings are zero for a batch", least=0, most=0.99
    )
    dropout_input: float = option(0.0, "dropout of the embeddings", least=0, most=0.99)
    dropout_hidden: float = option(0.0, "dropout between recurrent layers", least=0, most=0.99)
    dropout_output: float = option(
        0.0, "dropout of the last layer's output, before the softmax", least=0, most=0.99
    )
    dropout_state: float = option(
        0.0,
        "dropout of h_{t-1} before the recurrent product, one mask for all of a row's steps",
        least=0,
        most=0.99,
    )
    weight_drop: float = option(
        0.0, "share of each layer's recurrent weights W_h dropped for a batch", least=0, most=0.99
    )
    activation_penalty: float = option(
        0.0, "AR: factor on the mean square of the last layer's output, after dropout", least=0
    )
    slowness_penalty: float = option(
        0.0, "TAR: factor on the mean square of the output's change from step to step", least=0
    )

    def __post_init__(self) -> None:
        validate(self)


NOT_REGULARIZED = RegularizeConfig()


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is cut into tokens and batches."""

    corpus: str = option(
        "austen",
        "austen, ptb, ptb-char, wikitext-2, wikitext-103, text8, enwik8, tinyshakespeare, or a "
        "path: a text file (its first 90 % of lines to train, 5 % valid, 5 % test), or a folder "
        "that holds train/valid/test files",
    )
    data_dir: str = option(
        "data",
        "folder that named corpora other than austen are found in, and fetched into if they are "
        "not there (ptb is not fetched)",
    )
    cache_dir: str = option(
        "",
        "folder for the tokens of texts over 16 MB, four bytes each, which may be removed at any "
        "time; empty: recurrent-lm in $XDG_CACHE_HOME, or in ~/.cache",
    )
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
    random_length: bool = option(
        False,
        "draw the tokens of each chunk: about length, one time in twenty about half of it; the "
        "learning rate in proportion (stream)",
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.random_length and self.batching != "stream":
            raise ValueError(
                "random_length is set with batching=sentences, whose rows are as long as their "
                "sentences; wanted batching=stream"
            )


@dataclass(frozen=True)
class OptimConfig:
    """Gradient descent and its schedule. Loss is the mean over a batch's tokens."""

    optimizer: str = option(
        "sgd",
        "sgd (with --momentum), adam (--beta1, --beta2), or rmsprop (--beta2)",
        choices=("sgd", "adam", "rmsprop"),
    )
    learning_rate: float = option(
        0.0, "step size; 0: suited to the cell with sgd, 0.002 with adam and rmsprop", least=0
    )
    momentum: float = option(0.0, "sgd: momentum", least=0, most=1)
    beta1: float = option(0.9, "adam: decay of the gradient's running mean", least=0, most=0.9999)
    beta2: float = option(
        0.999, "adam, rmsprop: decay of the squared gradient's running mean", above=0, most=0.99999
    )
    weight_decay: float = option(
        0.0, "factor of the parameters that is added to the clipped gradient", least=0
    )
    clip: float = option(
        0.25, "largest global norm of the gradient; inf: no clipping", above=0, infinite=True
    )
    schedule: str = option(
        "constant",
        "learning rate over steps: constant, step (decayed each epoch after one), cosine "
        "(to zero, after a linear warm-up), plateau (decayed after an evaluation that is no "
        "better than the best)",
        choices=("constant", "step", "cosine", "plateau"),
    )
    decay: float = option(
        0.5, "step schedule: factor each epoch; plateau: factor each time", above=0, most=1
    )
    decay_after: int = option(4, "step schedule: epochs at the full rate", least=0)
    warmup: float = option(
        0.0, "cosine schedule: share of the steps to warm up in", least=0, most=0.9
    )
    averaging: str = option(
        "none",
        "average the parameters over steps, and evaluate the average: none; triggered (NT-ASGD: "
        "from the evaluation that is worse than the best of all but the last --patience ones); "
        "always (from the first step)",
        choices=("none", "triggered", "always"),
    )
    patience: int = option(
        5, "evaluations that may pass without a new best, for averaging and early_stop", least=1
    )
    early_stop: bool = option(
        False, "stop at an evaluation worse than the best of all but the last --patience ones"
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(
                f"momentum is {self.momentum} with optimizer={self.optimizer}; wanted sgd"
            )
        if self.early_stop and self.averaging == "triggered":
            raise ValueError(
                "early_stop stops at the evaluation at which averaging=triggered begins; wanted "
                "averaging none or always with it"
            )
