"""What a run that goes on must find as it left it: its options and its text."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import run_folder
from lm.data.corpus import Corpus

PLACES = ("data_dir", "cache_dir")  # options of the data that may change: a corpus may have moved


def refuse_changes(given: Any, stored: Any, default: Any) -> None:
    """A resumed run keeps its options: one that differs from it and from the default was meant."""
    for field in dataclasses.fields(stored):
        values = [getattr(config, field.name) for config in (given, stored, default)]
        if dataclasses.is_dataclass(values[0]):
            refuse_changes(*values)
        elif values[0] not in values[1:] and field.name not in ("run", "resume", *PLACES):
            raise ValueError(
                f"{field.name} is {values[0]}, but the run was made with {values[1]} and goes on "
                "with it; leave the flag out, or start a new run"
            )


def check_corpus(folder: Path, corpus: Corpus) -> None:
    """A run goes on with the text that it began with, or not at all."""
    made_with = run_folder.read_json(folder / "versions.json")["corpus"]["sha256"]
    if made_with != corpus.sha256:
        raise ValueError(
            f"corpus {corpus.name} has changed since {folder} was made "
            f"(sha256 {corpus.sha256[:12]}..., was {made_with[:12]}...); wanted the same text"
        )
