"""What `walkthrough` says in words and numbers: tables for a terminal of any width."""

import textwrap
import unicodedata
from typing import Any

import numpy as np

from experiments.walk.reading import Reading, Sentence
from lm.cells import CELLS
from lm.data.vocabulary import END, UNKNOWN_ID, Vocabulary

START = "(start)"
LONGEST = 16  # columns a word takes at most
GAP = "\N{NO-BREAK SPACE}"  # between a word and its probability, which stay on one line


def show(unit: str) -> str:
    """A token as it is printed: spaces seen, control signs spelt out, `<eos>` named."""
    if unit == END:
        return "(end)"
    if unit == " ":
        return "␣"
    return unit if unit.isprintable() else unit.encode("unicode_escape").decode()


def width(text: str) -> int:
    """Columns of a terminal that a text takes: 2 for a wide East Asian sign, 0 for an accent."""
    return sum(
        0 if unicodedata.combining(sign) else 1 + (unicodedata.east_asian_width(sign) in "WF")
        for sign in text
    )


def cell(text: str, columns: int, right: bool = False) -> str:
    """A text padded to a column, shortened where it is too long."""
    while width(text) > columns:
        text = text.removesuffix("…")[:-1] + "…"
    padding = " " * (columns - width(text))
    return padding + text if right else text + padding


def format_p(p: float) -> str:
    """A probability in per cent, to two or three digits."""
    percent = 100 * p
    for least, digits in ((9.95, 0), (0.995, 1), (0.01, 2), (0.00095, 3)):
        if percent >= least:
            return f"{percent:.{digits}f} %"
    return f"{percent:.0e} %"


def describe_unknown(sentence: Sentence, vocabulary: Vocabulary, unit: str) -> str:
    """Which of the sentence's tokens the model does not know, in a line or more."""
    pairs = zip(sentence.units, sentence.targets, strict=True)
    unknown = [show(word) for word, target in pairs if target == UNKNOWN_ID]
    words = len(sentence.units) - sentence.units.count(END)
    known = f"{len(vocabulary):,} {unit}s"
    if not unknown:
        return f"All {words} {unit}s are among the {known} that the model knows."
    return (
        f"{len(unknown)} of {words} {unit}s are not among the {known} that the model knows; it "
        f"reads each as <unk> and is asked for the probability of <unk> there: "
        f"{', '.join(dict.fromkeys(unknown))}"
    )


def format_model(
    name: str,
    header: str,
    sentence: Sentence,
    reading: Reading,
    vocabulary: Vocabulary,
    unit: str,
    columns: int,
) -> str:
    """All that is said of one model.

    Args:
      header: what it is and where it comes from.
      columns: of the terminal.
    """
    rule = "=" * columns
    return "\n\n".join(
        [
            f"{rule}\n{textwrap.fill(f'{name}: {header}', columns)}\n{rule}",
            textwrap.fill(describe_unknown(sentence, vocabulary, unit), columns),
            format_distributions(sentence, reading, vocabulary, unit, columns),
            format_sum(sentence, reading, unit, columns),
        ]
    )


def format_distributions(
    sentence: Sentence, reading: Reading, vocabulary: Vocabulary, unit: str, columns: int
) -> str:
    """The next-word distribution after each word, and where the word that came stands in it."""
    wide = column_of(sentence)
    top = reading.top_ids.shape[1]
    lines = [
        textwrap.fill(
            f"1. The next {unit}. After each {unit} the softmax gives every one of the "
            f"{len(vocabulary):,} {unit}s a probability: that of the {unit} that came, its rank "
            f"(1 is the likeliest), and the {top} likeliest.",
            columns,
        ),
        "",
        f"   {cell('after', wide)}  {cell('comes', wide)}  {'p':>8}  {'rank':>6}   likeliest",
    ]
    indent = " " * (2 * wide + 26)
    for k, came in enumerate(sentence.units):
        after = show(sentence.units[k - 1]) if k else START
        guesses = [
            f"{show(vocabulary.units[token])}{GAP}{format_p(p).replace(' ', GAP)}"
            for token, p in zip(reading.top_ids[k], reading.top_p[k], strict=True)
        ]
        start = (
            f"   {cell(after, wide)}  {cell(show(came), wide)}  "
            f"{format_p(float(np.exp(-reading.nats[k]))):>8}  {reading.rank[k]:>6,}   "
        )
        body = textwrap.wrap(
            ", ".join(guesses),
            max(24, columns - len(indent)),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append((start + f"\n{indent}".join(body)).replace(GAP, " "))
    return "\n".join(lines)


def format_sum(sentence: Sentence, reading: Reading, unit: str, columns: int) -> str:
    """Loss per word, and J and the perplexity as the sum of them is made."""
    wide = column_of(sentence)
    nats, count = reading.nats, len(reading.nats)
    total = nats.sum()
    mean = total / count
    lines = [
        textwrap.fill(
            f"2. The loss. Each {unit} costs -ln p nats (ln 2 nats are a bit); J is the mean of "
            f"what came so far, the perplexity exp(J). The (end) counts as a {unit}.",
            columns,
        ),
        "",
        f"   {cell('', wide)}  {'nats':>7}  {'bits':>6}  {'sum':>9}  {f'J = sum / {unit}s':>18}  "
        f"{'perplexity':>12}",
    ]
    for k, (came, loss) in enumerate(zip(sentence.units, nats, strict=True), 1):
        sum_k = nats[:k].sum()
        division = f"/ {k:<4} = {sum_k / k:7.3f}"
        lines.append(
            f"   {cell(show(came), wide)}  {loss:7.3f}  {loss / np.log(2):6.2f}  {sum_k:9.3f}  "
            f"{division:>18}  {np.exp(sum_k / k):12,.1f}"
        )
    first, last = " + ".join(f"{v:.2f}" for v in nats[:3]), f"{nats[-1]:.2f}"
    terms = f"{first} + ... + {last}" if count > 4 else " + ".join(f"{v:.2f}" for v in nats)
    lines += [
        "",
        f"   J = ({terms}) / {count} = {total:.2f} / {count} = {mean:.4f} nats per {unit} "
        f"({mean / np.log(2):.3f} bits)",
        f"   perplexity = exp(J) = exp({mean:.4f}) = {np.exp(mean):.2f}: as unsure as among "
        f"{np.exp(mean):,.0f} equally likely {unit}s",
    ]
    return "\n".join(lines)


def format_comparison(rows: list[dict[str, Any]], unit: str) -> str:
    """The models side by side, a line each."""
    wide = column_of_names(rows)
    lines = [
        f"{'':{wide}}{'J, nats':>9}{'bits':>7}{'perplexity':>12}{'parameters':>13}"
        f"{'gradient left':>16}"
    ]
    lines += [
        f"{CELLS[row['cell']].name:{wide}}{row['nats_per_token']:9.3f}{row['bits_per_token']:7.2f}"
        f"{row['perplexity']:12.1f}{row['parameters']:13,}"
        f"{'10^' + format(row['gradient_left_log10'], '.1f'):>16}"
        for row in rows
    ]
    lines.append(
        f"Gradient left: of what the last {unit}'s loss sends back, at the (start), "
        f"{rows[0]['gradient_lags']} steps earlier."
    )
    return "\n".join(lines)


def format_times(rows: list[dict[str, Any]], slopes: dict[str, float], unit: str) -> str:
    """Time against length, a line a cell and length."""
    wide = column_of_names(rows)
    lines = [
        f"{'':{wide}}{f'{unit}s':>11}{'forward':>12}{'and backward':>15}{f'per {unit}':>15}"
        f"{'side by side':>15}"
    ]
    lines += [
        f"{CELLS[row['cell']].name:{wide}}{row['length']:11,}{row['forward'] * 1e3:9.2f} ms"
        f"{row['both'] * 1e3:12.2f} ms{row['both'] / row['length'] * 1e6:12.1f} µs"
        f"{row['side_by_side'] * 1e3:12.2f} ms"
        for row in rows
    ]
    found = ", ".join(f"{slope:.2f} ({CELLS[name].name})" for name, slope in slopes.items())
    waits = all(CELLS[name].diagonal is None for name in slopes)
    why = f": each {unit} is a step that waits for the one before" if waits else ""
    lines.append(
        f"Time grows as the length to the power of {found},\nforward and backward, long texts{why}."
        f"\nSide by side: as many {unit}s that need not wait for each other, the same arithmetic."
    )
    return "\n".join(lines)


def column_of_names(rows: list[dict[str, Any]]) -> int:
    """Columns that the names of the cells take."""
    return max(len(CELLS[row["cell"]].name) for row in rows)


def column_of(sentence: Sentence) -> int:
    """Columns that the words of a sentence take."""
    shown = max(width(show(unit)) for unit in sentence.units)
    return min(LONGEST, max(shown, len(START)))
