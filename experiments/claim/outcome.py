"""What the measurement of a claim comes to, and what the figures of all claims share."""

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments import figures

VERMILION, ORANGE, BLUE, GREEN = (figures.COLOURS[name] for name in ("rnn", "irnn", "lstm", "gru"))
PURPLE, SKY, BLACK, _ = figures.OTHER_COLOURS


class Outcome(NamedTuple):
    """What the measurement of a claim found: all that its table and figure need."""

    measured: dict[str, Any]
    passed: bool
    finding: str  # in a sentence, the figure's title
    columns: list[str]
    rows: list[list[Any]]
    arrays: dict[str, np.ndarray]


class Verdict(NamedTuple):
    """A judge's answer."""

    measured: dict[str, Any]
    passed: bool
    finding: str


def seeds_text(seeds: int) -> str:
    return f"seeds 0 to {seeds - 1}" if seeds > 1 else "seed 0"


def draw_level(axis: Any, level: float, text: str, style: Any) -> None:
    """A labelled horizontal line."""
    axis.axhline(level, color="#777777", linewidth=0.9, linestyle=style)
    axis.annotate(
        text,
        (0.99, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color="#555555",
    )


def label_figure(figure: Any, record: Mapping[str, Any]) -> None:
    """The finding above, how it was made below."""
    verdict = "passes" if record["passed"] else "FAILS"
    title = f"{record['name']} {verdict}: {record['finding']}"
    figure.suptitle(textwrap.fill(title, 95), x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    figure.supxlabel(record["settings"], fontsize=8.5, color="#555555")
