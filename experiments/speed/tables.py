"""The tables of throughput, from its rows."""

from typing import Any

import numpy as np

from experiments.speed.contestants import CONTESTANTS
from experiments.speed.work import parse_size

TITLES = {"step": "the whole training step", "layer": "the recurrent layer alone"}
WIDE = 512  # units from which on the share of the matmul peak is summed up


def ratios(rows: list[dict[str, Any]], name: str) -> list[tuple[float, str]]:
    """(times ours' time, size) where both were timed."""
    found = []
    for row in rows:
        ours, theirs = row["contestants"].get("ours", {}), row["contestants"].get(name, {})
        if "ms" in ours and "ms" in theirs:
            found.append((theirs["ms"] / ours["ms"], row["size"]))
    return found


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each part, cell and other contestant: the mean ratio, and the worst size."""
    found = []
    for part, cell in dict.fromkeys((row["part"], row["cell"]) for row in rows):
        some = [row for row in rows if (row["part"], row["cell"]) == (part, cell)]
        for name in contestants_of(some):
            pairs = ratios(some, name)
            if name == "ours" or not pairs:
                continue
            least, where = min(pairs)
            found.append(
                {
                    "part": part,
                    "cell": cell,
                    "contestant": name,
                    "geometric_mean": geometric_mean([ratio for ratio, _ in pairs]),
                    "least": least,
                    "least_size": where,
                    "sizes": len(pairs),
                }
            )
    return found


def contestants_of(rows: list[dict[str, Any]]) -> list[str]:
    """Those that were timed at one size or more, in the table's order."""
    there = {name for row in rows for name, t in row["contestants"].items() if "ms" in t}
    return [name for name in CONTESTANTS if name in there]


def print_rows(rows: list[dict[str, Any]], peak: float) -> None:
    """Every table: times and ratios, then what else was measured, for each part and cell."""
    for part, cell in dict.fromkeys((row["part"], row["cell"]) for row in rows):
        some = [row for row in rows if (row["part"], row["cell"]) == (part, cell)]
        print_times(some, f"{cell}, {TITLES[part]}")
        print_ours(some, peak)
        print_others(some)


def heading(part: str) -> str:
    return (
        f"{'B':>4}{'T':>5}{'H':>6}{'L':>3}{'V':>8}"
        if part == "step"
        else f"{'B':>4}{'T':>5}{'H':>6}"
    )


def size_columns(row: dict[str, Any]) -> str:
    size = parse_size(row["size"])
    text = f"{size.batch:>4}{size.length:>5}{size.hidden:>6}"
    return text + f"{size.layers:>3}{size.vocabulary:>8,}" if row["part"] == "step" else text


def print_times(rows: list[dict[str, Any]], title: str) -> None:
    """Milliseconds, and how many times ours."""
    names = contestants_of(rows)
    labels = "".join(f"{CONTESTANTS[name].label:>16}" for name in names)
    print(f"\n{title}: milliseconds (times ours' time)\n{heading(rows[0]['part'])}{labels}")
    for row in rows:
        print(size_columns(row) + "".join(time_cell(row, name) for name in names))
    summary = {found["contestant"]: found for found in summarise(rows)}
    for what in ("geometric_mean", "least"):
        values = [f"({times(summary[n][what])})" if n in summary else "" for n in names]
        print(
            f"{what.replace('_', ' '):<{len(heading(rows[0]['part']))}}"
            + "".join(f"{v:>16}" for v in values)
        )


def times(ratio: float) -> str:
    """1.58x; 17.7x."""
    return f"{ratio:.2f}x" if ratio < 9.995 else f"{ratio:.1f}x"


def decimals(value: float) -> int:
    """Of a number that wants three digits or four."""
    return 3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0


def time_cell(row: dict[str, Any], name: str) -> str:
    timed = row["contestants"].get(name, {})
    if "ms" not in timed:
        return f"{'-':>16}"
    milliseconds = f"{timed['ms']:,.{decimals(timed['ms'])}f}"
    ours = row["contestants"].get("ours", {})
    if name == "ours" or "ms" not in ours:
        return f"{milliseconds:>16}"
    ratio = f"({times(timed['ms'] / ours['ms'])})"
    return f"{milliseconds:>8}{ratio:>8}"


def print_ours(rows: list[dict[str, Any]], peak: float) -> None:
    """Tokens a second, and the share of the machine's matmul peak, of ours."""
    start = heading(rows[0]["part"])
    print(f"{start}{'ours, tokens/s':>17}{'GFLOP/s':>10}{'share of peak':>15}")
    for row in rows:
        ours = row["contestants"].get("ours", {})
        if "ms" in ours:
            speed = ours["flops_per_second"]
            share = f"{speed / peak:.0%}" if peak else "-"
            print(
                f"{size_columns(row)}{ours['tokens_per_second']:>17,.0f}{speed / 1e9:>10,.0f}"
                f"{share:>15}"
            )


def print_others(rows: list[dict[str, Any]]) -> None:
    """Memory and compilation of everyone."""
    names = contestants_of(rows)
    start = heading(rows[0]["part"])
    labels = "".join(f"{CONTESTANTS[name].label:>16}" for name in names)
    print(f"MiB at the most, + seconds by which the first call was longer\n{start}{labels}")
    for row in rows:
        cells = []
        for name in names:
            timed = row["contestants"].get(name, {})
            text = "-"
            if "ms" in timed:
                mebibytes = timed["bytes"] / 2**20
                held = f"{mebibytes:,.0f}" if mebibytes >= 10 else f"{mebibytes:.2g}"
                text = f"{held} +{timed['compile_seconds']:.1f} s"
            cells.append(f"{text:>16}")
        print(size_columns(row) + "".join(cells))


def print_summary(rows: list[dict[str, Any]], peak: float) -> None:
    """Where ours is slower, and what share of the peak large layers reach."""
    behind = [
        f"\n  {row['cell']} {row['size']} {row['part']}: {CONTESTANTS[name].label}, {ratio:.2f}x"
        for row in rows
        for name in contestants_of([row])
        for ratio, _ in ratios([row], name)
        if name not in ("ours", "ours10") and ratio < 1
    ]
    print(f"\nfaster than ours: {''.join(behind) or 'none'}")
    wide = [
        row["contestants"]["ours"]["flops_per_second"] / peak
        for row in rows
        if row["part"] == "step"
        and parse_size(row["size"]).hidden >= WIDE
        and "ms" in row["contestants"].get("ours", {})
        and peak
    ]
    if wide:
        print(f"whole step at H >= {WIDE}: {min(wide):.0%} to {max(wide):.0%} of the matmul peak")


def refusals(rows: list[dict[str, Any]]) -> list[str]:
    """Who failed where, and why, a line each."""
    return [
        f"{CONTESTANTS[name].label} failed at {row['cell']} {row['size']} ({row['part']}): "
        f"{timed['refused']}"
        for row in rows
        for name, timed in row["contestants"].items()
        if "refused" in timed
    ]
