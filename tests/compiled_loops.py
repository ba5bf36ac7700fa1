"""Reading what XLA has compiled: the instructions inside loops."""

import re


def loop_lines(compiled: str, depth: int) -> list[str]:
    """The instructions of all bodies of loops `depth` deep, and of all that those call."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in compiled.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line):
            lines = computations[found[1]] = []
        else:
            lines.append(line)
    text = compiled
    for _ in range(depth):
        waiting, seen = re.findall(r"body=%?([\w.\-]+)", text), set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                called = "".join(computations[name])
                waiting += re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", called)
        text = "\n".join(line for name in seen for line in computations[name])
    return text.splitlines()
