"""What each study changes, one thing at a time, and what was published about it.

A study is a list of variants of one network, the first of which is the baseline that the others
are compared with. A variant is the options that it has in place of the run's own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm.cells import CELLS
from lm.task_lengths import LEAST_STEPS

TRUNCATIONS = (5, 10, 20, 35, 70)  # tokens
CONTEXTS = (10, 35, 140)  # tokens
DEPTHS = (1, 2, 3, 4)  # layers
FORGET_BIASES = (1.0, -1.0, 0.0, 2.0, 3.0)
NOT_CLIPPED = float("inf")


@dataclass(frozen=True)
class Variant:
    """One network of a study.

    Attributes:
      name: for files and flags.
      label: for figures and tables.
      options: option -> value, in place of the run's own.
      published: what the literature says of it beside the baseline, in a few words.
    """

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    published: str = ""


@dataclass(frozen=True)
class Study:
    """A question, and the networks that answer it.

    Attributes:
      question: in one line.
      source: of `Variant.published`, the head of its column; empty where nothing is quoted.
      variants: (options of the run, whether it is on a task) -> variants, the baseline first.
      on: "text", "task" or "both": where the question makes sense.
      fixes: options of the run that the study sets itself.
      remark: what a reader of its table has to know.
    """

    question: str
    variants: Callable[[Any, bool], list[Variant]]
    source: str = ""
    on: str = "both"
    fixes: tuple[str, ...] = ()
    remark: str = ""


# Greff et al. 2015, as their abstract and section on the variants put it.
GREFF = {
    "nig": "worse on some tasks",
    "nfg": "worse: critical",
    "nog": "worse on some tasks",
    "niaf": "worse on some tasks",
    "noaf": "worse: critical",
    "cifg": "no difference",
    "peephole": "no difference",
    "fgr": "no better",
}


def gates(config: Any, on_task: bool) -> list[Variant]:
    """The LSTM, and it with one piece left out, tied or added."""
    return [
        Variant("lstm", "LSTM", {"cell": "lstm"}),
        *(
            Variant(name, CELLS[name].name.removeprefix("LSTM "), {"cell": name}, published)
            for name, published in GREFF.items()
        ),
    ]


def forget_bias(config: Any, on_task: bool) -> list[Variant]:
    """The bias that the forget gate starts at, and chrono initialisation."""
    cell = CELLS[config.model.cell]
    if cell.forget_gate is None:
        raise ValueError(
            f"study is forget_bias of a {cell.name}, which has no forget gate; wanted one that has"
        )
    published = {0.0: "worse than 1"}
    return [
        *(
            Variant(
                f"bias{bias:g}",
                f"forget bias {bias:g}",
                {"forget_bias": bias, "chrono": 0},
                published.get(bias, ""),
            )
            for bias in FORGET_BIASES
        ),
        Variant(
            "chrono",
            f"chrono {config.lags}",
            {"chrono": config.lags, "forget_bias": 1.0},
            "better at long lags",
        ),
    ]


def clipping(config: Any, on_task: bool) -> list[Variant]:
    """The largest norm of the gradient, about the run's own."""
    norm = config.optim.clip
    if math.isinf(norm):
        raise ValueError("clip is inf, about which there is no other; wanted a finite norm")
    return [
        Variant(f"clip{value:g}", f"clip {value:g}", {"clip": value})
        for value in (norm, norm / 16, norm / 4, norm * 4)
    ] + [Variant("unclipped", "no clipping", {"clip": NOT_CLIPPED})]


def truncation(config: Any, on_task: bool) -> list[Variant]:
    """Steps that the gradient goes back; the state is carried on all the same."""
    if on_task:
        whole = config.lags
        parts = [whole // n for n in (2, 4, 8) if whole // n]
        return [Variant("whole", f"all {whole} steps")] + [
            Variant(f"back{n}", f"{n} steps back", {"truncation": n}) for n in parts
        ]
    own = config.data.length
    return [
        Variant(f"back{n}", f"{n} tokens back", {"length": n})
        for n in (own, *(n for n in TRUNCATIONS if n != own))
    ]


def init(config: Any, on_task: bool) -> list[Variant]:
    """How weights start."""
    cell = CELLS[config.model.cell]
    if cell.diagonal is not None:
        raise ValueError(
            f"study is init of a {cell.name}, which has no recurrent weights; wanted another cell"
        )
    found = [
        Variant(name, f"{name} W_h", {"recurrent_init": name})
        for name in ("orthogonal", "gaussian", "identity")
    ]
    if on_task:
        return found
    small = f"all from U(±{config.model.init_range:g})"
    return [
        *found,
        Variant("uniform", small, {"init": "uniform", "recurrent_init": ""}),
        Variant("pytorch", "as PyTorch", {"init": "pytorch", "recurrent_init": ""}),
    ]


def depth(config: Any, on_task: bool) -> list[Variant]:
    """Layers, all of them together with as many parameters as the run's own."""
    own = config.model.layers
    found = []
    for layers in (own, *(n for n in DEPTHS if n != own)):
        width = equal_width(config.model, layers)
        options = {"layers": layers, "hidden_size": width, "last_hidden_size": 0}
        found.append(Variant(f"layers{layers}", f"{layers} x {width}", options))
    return found


def equal_width(model: Any, layers: int) -> int:
    """H with which so many layers have about as many parameters as the model's own."""

    def parameters(hidden: int, layers: int) -> int:
        cell, total = CELLS[model.cell], 0
        for inputs in (model.embedding_size, *(hidden,) * (layers - 1)):
            columns = len(cell.gates) * inputs + cell.recurrent_gates * hidden + cell.biased_gates
            total += hidden * (columns + sum(vector.gates for vector in cell.vectors))
        return total

    wanted = parameters(model.hidden_size, model.layers)
    widest = 4 * model.hidden_size * model.layers
    return min(range(1, widest), key=lambda hidden: abs(parameters(hidden, layers) - wanted))


def length(config: Any, on_task: bool) -> list[Variant]:
    """How much is read at once: of a task its steps, of a text what comes before a new start.

    Evaluation carries the state through the whole text, as everywhere.
    """
    if on_task:
        least = LEAST_STEPS[config.data.corpus]
        steps = [config.lags, *(n * config.lags // 4 for n in (1, 2, 8))]
        return [Variant(f"steps{n}", f"{n} steps", {"lags": n}) for n in steps if n >= least]
    own = config.data.length
    return [Variant("carried", f"{own} tokens, state carried")] + [
        Variant(f"fresh{n}", f"{n} tokens, from zero", {"length": n, "carried": False})
        for n in CONTEXTS
    ]


STUDIES: dict[str, Study] = {
    "gates": Study("Which piece of the LSTM matters?", gates, "Greff et al. 2015", fixes=("cell",)),
    "forget_bias": Study(
        "Where should the forget gate start?",
        forget_bias,
        "Jozefowicz 15, Tallec 18",
        fixes=("forget_bias", "chrono"),
    ),
    "clipping": Study("How far should gradients be clipped?", clipping),
    "truncation": Study("How far back does the gradient have to go?", truncation),
    "init": Study("How should weights start?", init, fixes=("recurrent_init", "init")),
    "depth": Study(
        "Is a deep network better than a wide one?", depth, on="text", fixes=("last_hidden_size",)
    ),
    "length": Study(
        "How much has to be read at once?",
        length,
        remark="Evaluation carries the state through the whole text, for every variant.",
    ),
}
