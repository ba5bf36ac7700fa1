"""Options that would do nothing beside the others: refused where they were typed."""

from collections.abc import Iterator
from typing import Any

from experiments.fit.config import Config
from lm.cells import CELLS

STARTS = (
    "init",
    "init_range",
    "forget_bias",
    "chrono",
    "input_scale",
    "recurrent_gain",
    "recurrent_init",
)


def refuse_idle(config: Config) -> None:
    """Raise ValueError for a typed option that changes nothing.

    Those of a recipe may: what a flag of the user's switches off is left as it was.
    """
    for name, wanted in idle_options(config):
        raise ValueError(idle_line(name, wanted))


def idle_line(name: str, wanted: str) -> str:
    """The line that answers an option that does nothing."""
    return f"{name} does nothing with these options; wanted {wanted} beside it"


def idle_options(config: Config) -> Iterator[tuple[str, str]]:
    """(name, what would make it do something) of each typed option that changes nothing."""
    optim, network, regularize = config.optim, config.model, config.regularize
    masked = regularize.dropout_input, regularize.dropout_hidden, regularize.dropout_output
    watched = optim.averaging == "triggered" or optim.early_stop
    product = (
        CELLS[network.cell].diagonal is None,
        f"a recurrent product, which {network.cell} lacks,",
    )
    gated = CELLS[network.cell].forget_gate is not None
    gate = f"a cell with a forget gate, which {network.cell} lacks,"
    # option -> (whether it does something, what would make it)
    needs: dict[str, tuple[bool, str]] = {
        "decay": (optim.schedule in ("step", "plateau"), "schedule step or plateau"),
        "decay_after": (optim.schedule == "step", "schedule step"),
        "warmup": (optim.schedule == "cosine", "schedule cosine"),
        "beta1": (optim.optimizer == "adam", "optimizer adam"),
        "beta2": (optim.optimizer != "sgd", "optimizer adam or rmsprop"),
        "patience": (watched, "averaging triggered, or early_stop"),
        "dropout_masks": (any(masked), "dropout_input, dropout_hidden or dropout_output"),
        "init_range": (network.init != "scaled", "init uniform or pytorch"),
        **dict.fromkeys(
            ("dropout_state", "weight_drop", "recurrent_gain", "recurrent_init"), product
        ),
        "forget_bias": (gated and not network.chrono, "chrono 0" if gated else gate),
        "chrono": (gated, gate),
        "last_hidden_size": (network.layers > 1, "layers of 2 or more"),
        **dict.fromkeys(STARTS if config.start else (), (False, "no start, whose weights it has")),
    }
    for name in config.given:
        works, wanted = needs.get(name, (True, ""))
        if not works:
            yield name, wanted


def refuse_lost_start(config: Config, recipe: Any) -> None:
    """Raise ValueError for a recipe that trains on from a run, without one."""
    if getattr(recipe, "NEEDS_START", False) and not config.start:
        raise ValueError(
            f"recipe {config.recipe} trains on from a run; wanted --start=RUN, a run of "
            f"{recipe.NEEDS_START}"
        )
