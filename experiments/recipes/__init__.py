"""Published models by name: `./launch.sh train --recipe NAME --corpus PATH`.

Each is a module whose header gives the paper, the command, the published and the measured
perplexities, and the time. OPTIONS are options of `train` by name; PUBLISHED are the paper's
perplexities (bits per character where the corpus is one of characters).
"""

import importlib
from typing import Any

from lm.tables import unknown_name

RECIPES: dict[str, str] = {
    "zaremba_small": "LSTM 2x200, no dropout (Zaremba et al. 2014)",
    "zaremba_medium": "LSTM 2x650, dropout between layers (Zaremba et al. 2014)",
    "zaremba_large": "LSTM 2x1500, dropout between layers (Zaremba et al. 2014)",
    "pytorch_example": "LSTM 2x200, plateau decay (PyTorch's word_language_model)",
    "pytorch_example_650": "LSTM 2x650, tied (PyTorch's word_language_model)",
    "pytorch_example_1500": "LSTM 2x1500, tied (PyTorch's word_language_model)",
    "mikolov_rnn": "vanilla tanh RNN, tuned to beat Mikolov & Zweig's of 2012",
    "sentence_lstm": "LSTM on batches of single sentences with masks, no carried state",
    "char_rnn": "LSTM on characters (Karpathy's char-rnn)",
    "awd_lstm": "AWD-LSTM on PTB (Merity et al. 2017)",
    "awd_lstm_wt2": "AWD-LSTM on WikiText-2",
    "awd_lstm_enwik8": "AWD-LSTM on the bytes of enwik8",
    "awd_lstm_finetune": "AWD-LSTM, PTB, trained on from --start=RUN with averaging throughout",
    "awd_lstm_wt2_finetune": "the same on WikiText-2",
    "melis_lstm": "LSTM of 4 layers, 24M parameters (Melis et al. 2017)",
}


def load_recipe(name: str) -> Any:
    """The module of a recipe.

    Raises:
      ValueError: no recipe of that name.
    """
    if name not in RECIPES:
        raise ValueError(unknown_name("recipe", name, RECIPES))
    return importlib.import_module(f"experiments.recipes.{name}")


def describe_recipes() -> str:
    """A table for people: name, corpus, published valid / test, what it is."""
    lines = [
        "published perplexities:",
        "",
        f"  {'recipe':22}{'corpus':17}{'valid':>8}{'test':>8}   what it is",
    ]
    for name, line in RECIPES.items():
        recipe = load_recipe(name)
        valid, test = (
            "-" if recipe.PUBLISHED.get(split) is None else f"{recipe.PUBLISHED[split]:g}"
            for split in ("valid", "test")
        )
        unit = f"; {recipe.UNIT}" if hasattr(recipe, "UNIT") else ""
        lines.append(f"  {name:22}{recipe.OPTIONS['corpus']:17}{valid:>8}{test:>8}   {line}{unit}")
    return "\n".join(lines)
