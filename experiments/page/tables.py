"""Tables out of a run's files: results of any experiment, metrics, options.

Nothing here knows an experiment. A list of flat records is a table; so are dictionaries beside
each other that hold the same fields; what is neither is walked into.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.page.svg import words

LONGEST_LIST = 12  # items of a list shown in one cell
MOST_ROWS = 1000
SMALL, LARGE = 1e-3, 1e6  # numbers outside are written with a power of ten
SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 180, 36, 180


class Value(NamedTuple):
    """One cell: what is read, the number it is sorted by, and all of its digits."""

    text: str
    number: float | None = None
    exact: str = ""
    note: str = ""  # behind it, in smaller letters
    anchor: str = ""  # id on the page that it links to
    spark: "Spark | None" = None


class Spark(NamedTuple):
    """A small curve: points of a polyline in its own pixels, and what it shows in words."""

    points: str
    last: tuple[float, float]
    description: str


class Table(NamedTuple):
    title: str
    columns: list[str]
    rows: list[list[Value]]
    note: str = ""

    def is_numeric(self, column: int) -> bool:
        return any(row[column].number is not None for row in self.rows)

    def without_empty(self) -> "Table":
        """Without the columns in which no row says anything."""
        kept = [
            column
            for column in range(len(self.columns))
            if any(row[column].spark or row[column].text not in ("", "-") for row in self.rows)
        ]
        rows = [[row[column] for column in kept] for row in self.rows]
        return self._replace(columns=[self.columns[column] for column in kept], rows=rows)


def value(given: Any) -> Value:
    """A cell for anything that JSON holds."""
    if given is None or given == "":
        return Value("-")
    if isinstance(given, bool):
        return Value("yes" if given else "no")
    if isinstance(given, (int, float)):
        return Value(format_number(given), float(given), repr(given))
    if isinstance(given, (list, tuple)):
        shown = ", ".join(value(item).text for item in given[:LONGEST_LIST])
        more = f", ... ({len(given)} in all)" if len(given) > LONGEST_LIST else ""
        return Value(shown + more if given else "-")
    if isinstance(given, Mapping):
        return Value(", ".join(f"{words(str(k))} {value(v).text}" for k, v in given.items()) or "-")
    return Value(str(given))


def format_number(number: float) -> str:
    """Four significant digits, fewer where they are all; whole numbers in full."""
    if isinstance(number, float) and not math.isfinite(number):
        return "-" if math.isnan(number) else str(number)
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    if not SMALL <= abs(number) < LARGE:
        return f"{number:.3g}"
    text = f"{number:,.{max(0, 3 - math.floor(math.log10(abs(number))))}f}"
    return min(text, repr(number), key=len) if abs(number) < 1000 else text


def is_flat(record: Any) -> bool:
    """A dictionary of scalars and lists of scalars."""
    return isinstance(record, Mapping) and all(
        not isinstance(v, Mapping)
        and not (isinstance(v, list) and any(isinstance(i, (list, Mapping)) for i in v))
        for v in record.values()
    )


def table_of(title: str, records: Sequence[Mapping[str, Any]]) -> Table:
    """Records as rows; a column for every field that any of them has, in order of appearance."""
    fields = list(dict.fromkeys(name for record in records for name in record))
    rows = [[value(record.get(name)) for name in fields] for record in records[:MOST_ROWS]]
    note = f"the first {MOST_ROWS:,} of {len(records):,} rows" if len(records) > MOST_ROWS else ""
    return Table(title, [words(name) for name in fields], rows, note)


def scalars_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dictionary that are single values."""
    return {k: v for k, v in results.items() if not isinstance(v, (list, Mapping))}


def find_tables(results: Mapping[str, Any], title: str = "") -> Iterator[Table]:
    """Every table in a nested dictionary."""
    inner = {str(k): v for k, v in results.items() if isinstance(v, Mapping) and v}
    named = [{"": name, **record} for name, record in inner.items() if is_flat(record)]
    if named and len(named) == len(inner):
        yield table_of(title, named)
        inner = {}
    for name, item in results.items():
        below = f"{title}, {words(str(name))}" if title else words(str(name))
        if not isinstance(item, list) or not item:
            continue
        if all(map(is_flat, item)):
            yield table_of("" if name == "rows" else below, item)
        elif all(isinstance(record, Mapping) for record in item):
            for number, record in enumerate(item, 1):
                yield from walk(record, f"{below} {number}")
        else:
            yield table_of(below, [{"values": item}])
    for name, item in inner.items():
        yield from walk(item, f"{title}, {words(name)}" if title else words(name))


def walk(item: Mapping[str, Any], title: str) -> Iterator[Table]:
    """The tables of a part of the results, what it says in single values first."""
    if table := from_columns(title, item):
        yield table
        return
    if single := scalars_of(item):
        yield table_of(title, [single])
    yield from find_tables(item, title)


def from_columns(title: str, item: Any) -> Table | None:
    """{"columns": [...], "rows": [[...], ...]} as a table; None where it is no such thing."""
    if not isinstance(item, Mapping):
        return None
    columns, rows = item.get("columns"), item.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        return None
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        return None
    cells = [[value(cell) for cell in row] for row in rows]
    return Table(title, [words(str(column)) for column in columns], cells)


def metrics_tables(lines: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What training logged: a row for each series, and one for each pass over validation text."""
    tables = [summarise_series(lines), summarise_validation(lines)]
    return [table for table in tables if table.rows]


def summarise_series(lines: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each cell and seed: where it stood last, and the curve of its loss."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "loss" in line or line.get("diverged"):
            named = {k: v for k, v in line.items() if isinstance(v, str) or k == "seed"}
            series.setdefault(json.dumps(named), []).append(line)
    records = []
    for name, members in series.items():
        last = members[-1]
        measured = [line for line in members if isinstance(line.get("loss"), (int, float))]
        record = {**json.loads(name), "step": last.get("step")}
        if measured:
            single = scalars_of(measured[-1])
            shown = {k: v for k, v in single.items() if k not in (*record, "time")}
            record |= {"loss curve": None, **shown}
        if any(line.get("diverged") for line in members):
            record["state"] = f"diverged at step {last.get('step')}"
        records.append(record)
    table = table_of("Training, as last logged", records)
    if "loss curve" in table.columns:
        column = table.columns.index("loss curve")
        for row, members in zip(table.rows, series.values(), strict=False):
            row[column] = loss_curve(members)
    return table


def loss_curve(lines: Sequence[Mapping[str, Any]]) -> Value:
    """The loss against the step as a small curve."""
    points = [
        (float(line.get("step") or 0), float(line["loss"]))
        for line in lines
        if isinstance(line.get("loss"), (int, float)) and math.isfinite(line["loss"])
    ]
    if len(points) < 2:
        return Value("-")
    first, last = points[0], points[-1]
    points = points[:: math.ceil(len(points) / SPARK_POINTS)]
    points = points if points[-1] == last else [*points, last]
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = 4
    drawn = [
        (
            margin + (SPARK_WIDTH - 2 * margin) * (x - first[0]) / ((last[0] - first[0]) or 1),
            margin + (SPARK_HEIGHT - 2 * margin) * (high - y) / ((high - low) or 1),
        )
        for x, y in points
    ]
    told = (
        f"loss from {format_number(first[1])} at step {first[0]:,.0f} "
        f"to {format_number(last[1])} at step {last[0]:,.0f}"
    )
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    return Value("", last[1], spark=Spark(text, drawn[-1], told))


def summarise_validation(lines: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each pass over the validation text, with the training since the one before."""
    records, since = [], []
    for line in lines:
        if isinstance(line.get("loss"), (int, float)):
            since.append(line)
        if "valid" not in line:
            continue
        record: dict[str, Any] = {"step": line.get("step")}
        if since:
            mean = sum(member["loss"] for member in since) / len(since)
            record["training perplexity"] = math.exp(min(mean, 700.0))
            for name in ("clipped", "tokens_per_second"):
                given = [m[name] for m in since if isinstance(m.get(name), (int, float))]
                if given:
                    record[f"mean {name}"] = sum(given) / len(given)
        records.append(record | {"validation perplexity": line["valid"]})
        since = []
    return table_of("Perplexity through training", records)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    found: dict[str, Any] = {}
    for name, item in config.items():
        if isinstance(item, Mapping):
            found |= flatten(item, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = item
    return found
