"""What a run that goes on must find as it left it: its options and its text."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from experiments import run_folder
from lm.config import ModelConfig
from lm.data.corpus import Corpus

PLACES = ("data_dir", "cache_dir")  # options of the data that may change: a corpus may have moved


def refuse_changes(given: Any, stored: Any, free: Collection[str], otherwise: str) -> None:
    """A resumed run keeps its options: one that was typed must be what it was made with.

    Args:
      given, stored: Configs of one experiment, with `given`, the names of what was typed.
      free: options that may change, beside `run` and `resume`.
      otherwise: what to do for another value, for the message.
    """
    typed, made = flat(given), flat(stored)
    for name in given.given:
        if name in ("run", "resume", *free) or name not in typed:
            continue
        if typed[name] != made[name]:
            raise ValueError(
                f"{name} is {typed[name] or 'empty'}, but the run was made with "
                f"{made[name] or 'none'} and goes on with it; leave the flag out, or {otherwise}"
            )


def flat(config: Any) -> dict[str, Any]:
    """Option -> value, those of nested dataclasses too."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        found.update(flat(value) if dataclasses.is_dataclass(value) else {field.name: value})
    return found


def check_start(start: str, made: ModelConfig, asked: ModelConfig) -> None:
    """Raise ValueError where the run to start from has another model than is asked for."""
    names = ("cell", "layers", "hidden_size", "last_hidden_size", "embedding_size", "tied")
    lacking = [
        f"--{name}={getattr(made, name)}"
        for name in names
        if getattr(made, name) != getattr(asked, name)
    ]
    if lacking:
        raise ValueError(f"start {start} has another model; wanted {' '.join(lacking)} beside it")


def check_corpus(folder: Path, corpus: Corpus) -> None:
    """A run goes on with the text that it began with, or not at all."""
    made_with = run_folder.read_json(folder / "versions.json")["corpus"]["sha256"]
    if made_with != corpus.sha256:
        raise ValueError(
            f"corpus {corpus.name} has changed since {folder} was made "
            f"(sha256 {corpus.sha256[:12]}..., was {made_with[:12]}...); wanted the same text"
        )
