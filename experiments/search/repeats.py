"""Points of a sweep that are one run, as what they differ in does nothing: it is trained once."""

import json
from collections.abc import Container, Sequence

from experiments.fit.config import with_options
from experiments.fit.idle import idle_line
from experiments.search.config import Config
from experiments.search.points import SweepPoint


def refuse_repeats(
    config: Config, points: Sequence[SweepPoint], swept: Sequence[str], refused: Container[int]
) -> dict[int, str]:
    """Point -> which one before it is the same run, and why.

    Args:
      swept: names of the options that differ from point to point.
      refused: points that are not trained anyway.

    Raises:
      ValueError: an option does nothing at any point.
    """
    reasons: dict[int, str] = {}
    first: dict[str, int] = {}
    everywhere: dict[str, str] | None = None
    for point in points:
        if point.number in refused:
            continue
        idle = with_options(config, point.options).idle(tuple(swept))
        before = idle if everywhere is None else everywhere
        everywhere = {name: why for name, why in before.items() if name in idle}
        working = {name: value for name, value in point.options.items() if name not in idle}
        same = first.setdefault(json.dumps(working, sort_keys=True), point.number)
        if same != point.number:
            why = ", ".join(idle_line(n, w) for n, w in idle.items() if n in point.options)
            reasons[point.number] = f"the same run as point {same}: {why}"
    for name, wanted in (everywhere or {}).items():
        raise ValueError(f"no point of the sweep is as asked for: {idle_line(name, wanted)}")
    return reasons
