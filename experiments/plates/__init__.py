"""The figures of `gallery`. A new one is a module with a PLATE, a line here and its tests."""

from lm.tables import LazyTable

PLATES: LazyTable = LazyTable(
    "figure",
    {
        "certificate": ("experiments.plates.certificate", "PLATE"),
        "underflow": ("experiments.plates.underflow", "PLATE"),
        "gram": ("experiments.plates.gram", "PLATE"),
        "spectrum": ("experiments.plates.spectrum", "PLATE"),
        "lyapunov": ("experiments.plates.lyapunov", "PLATE"),
        "horizon": ("experiments.plates.horizon", "PLATE"),
        "saliency": ("experiments.plates.saliency", "PLATE"),
    },
)
