"""What gradient_flow's networks read, and which of its options then mean something.

Nothing here imports JAX: the command line is checked before it is loaded.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lm.config import DataConfig, ModelConfig, OptimConfig
from lm.data.corpus import CORPORA
from lm.task_lengths import LEAST_STEPS

SHORT_COPY = " (10 symbols, a delay, 10 blanks)"


def names(config: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(config))


TEXT_OPTIONS = names(DataConfig) - {"corpus"}
TRAINING_OPTIONS = names(OptimConfig) | {"epochs", "steps"}
MODEL_OPTIONS = names(ModelConfig) - {"cell"}

# source -> options that do nothing there: noise is read by single layers as they start, a task by
# one layer that Adam trains, and a checkpoint is measured as it is, on its own text.
IDLE: dict[str, frozenset[str]] = {
    "text": frozenset(),
    "noise": TEXT_OPTIONS
    | TRAINING_OPTIONS
    | {"layers", "last_hidden_size", "tied", "init", "init_range"},
    "task": TEXT_OPTIONS
    | MODEL_OPTIONS - {"hidden_size", "forget_bias", "chrono"}
    | TRAINING_OPTIONS - {"steps", "learning_rate", "clip"},
    "checkpoint": TEXT_OPTIONS | MODEL_OPTIONS | TRAINING_OPTIONS | {"cells", "seeds", "corpus"},
}


def source_of(corpus: str, checkpoint: Any) -> str:
    """What the networks read, a key of IDLE."""
    if checkpoint:
        return "checkpoint"
    if corpus == "noise":
        return "noise"
    return "task" if corpus in LEAST_STEPS else "text"


def refuse_near_name(corpus: str, known: Collection[str] = tuple(LEAST_STEPS)) -> None:
    """Raise ValueError for a text that is none, but nearly one of the `known` names, of tasks."""
    close = difflib.get_close_matches(corpus, known, n=1, cutoff=0.75)
    if close and not Path(corpus).exists() and corpus not in CORPORA:
        raise ValueError(
            f"corpus is {corpus!r}, which is no text here; did you mean {close[0]!r}? wanted a "
            f"text as for train, or one of: {', '.join(known)}"
        )


def refuse_idle(config: Any, source: str) -> None:
    """Raise ValueError for an option that was given and does nothing with the source."""
    where = "checkpoint" if source == "checkpoint" else f"corpus {config.data.corpus}"
    for name, value in given_options(config):
        if name in IDLE[source]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            raise ValueError(f"{name} is {text}, which does nothing with {where}; leave it out")


def given_options(config: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of the options that differ from their defaults, nested dataclasses' too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value):
            if value != field.default:
                yield field.name, value
            continue
        for inner in dataclasses.fields(value):
            given = getattr(value, inner.name)
            if given != getattr(field.default, inner.name):
                yield inner.name, given


def refuse_short(corpus: str, lags: int) -> None:
    """Raise ValueError for sequences that are too short for their task."""
    least = LEAST_STEPS[corpus]
    if lags < least:
        why = SHORT_COPY if corpus == "copy" else ""
        raise ValueError(f"lags is {lags}; {corpus} wants at least {least}{why}")
