"""How surprising is each word of a text to a trained run? One table row a word, in bits.

A row is a word of the input as its author wrote it, as in corpora of reading times: what stands
between two stretches of white space (`str.split`). Its surprisal is the sum over the tokens
that the model reads for it, so that `house,` is `house` and `,` together; `surprisal_bare`
leaves out the punctuation at either end. `<eos>`, which ends each sentence, has a row of its
own, so that the rows sum to the bits that the run's perplexity of the text is made of.

    ./launch.sh score story.txt --run=runs/my_book          # story.txt.surprisal.tsv
    ./launch.sh score a.txt b.txt --run=runs/my_book        # a table each, in this folder
    ./launch.sh score --text="The horse raced past the barn fell." --run=runs/my_book
    ./launch.sh score - --run=runs/my_book --entropy <story.txt | less

Columns:
  sentence        1, 2, ..: lines, the empty ones counted, or sentences of prose
  position        of the word in its sentence: 1, 2, ..
  word            as written; <eos> for the end of the sentence
  surprisal       -log2 p(word | what came before), summed over its tokens
  surprisal_bare  the same without punctuation and white space at its ends; empty: nothing is left
  in_vocabulary   1, or 0 where a token is unknown: it has the surprisal of <unk>, which is the
                  chance of any unknown word at all, and says nothing of this one
  tokens          how many the word was split into
  split           the tokens as the model has them; white space is shown as ␣, \\t, ..
  entropy         with --entropy: of the next token's distribution before the word's first token
--units=token has a row a token instead, with columns token (1, 2, .. in its word) and unit.

Models of characters and bytes have tokens for white space too. It counts to the word before it,
as the sign that the word has ended: so the probabilities of all words sum to one. (Pimentel &
Meister 2024, arXiv:2406.14561; Oh & Schuler 2024, arXiv:2406.10851. --space=before: to the word
that it leads to, which is what the leading white space of subword vocabularies amounts to.) The
last word of a line is ended by its <eos>: add the two for its probability in their sense. White
space in a line without a word counts to its <eos>.
Bytes that are not UTF-8 are shown as \\xe9.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of score."""

    rest: ClassVar[str] = "files"  # what is no flag names a file

    run: str = option("", "folder of a trained run")
    checkpoint: str = option("best", "best by validation, or the last", choices=("best", "last"))
    files: tuple[str, ...] = option((), "text files, .gz too, each read for itself; -: stdin")
    text: str = option("", "a text, in place of files")
    output: str = option(
        "",
        "the table, CSV if it ends so, else TSV; -: standard output; empty: FILE.surprisal.tsv in "
        "the current folder, standard output for stdin and --text",
    )
    overwrite: bool = option(False, "replace tables and figures that are there")
    units: str = option("word", "what a row is: word or token", choices=("word", "token"))
    context: str = option(
        "auto",
        "what a word is read after: text (all that came before), sentence (its own sentence "
        "alone); auto: as the run was trained",
        choices=("auto", "text", "sentence"),
    )
    sentences: str = option(
        "auto",
        "where a sentence ends: line (one a line) or prose (by punctuation, within paragraphs "
        "that blank lines separate); auto: as the run's corpus. Characters and bytes: lines",
        choices=("auto", "line", "prose"),
    )
    space: str = option(
        "after",
        "characters and bytes: white space counts to the word before it (after the word) or to "
        "the word behind it (before the word)",
        choices=("after", "before"),
    )
    eos: bool = option(True, "a row for the <eos> of each sentence; totals count it always")
    entropy: bool = option(False, "a column with the entropy before each word (token), in bits")
    plot: bool = option(False, "draw the first words as bars, beside the table: PNG and SVG")
    batch_size: int = option(16, "rows read side by side", least=1, most=10**6)
    length: int = option(64, "tokens a row in one compiled call", least=1, most=10**6)

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import csv
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments import run_folder
from experiments.trained import Trained, load_run
from lm.data.text import Word, decode_text, read_text, tokenize_words
from lm.data.vocabulary import END, UNKNOWN_ID, Vocabulary
from lm.evaluate import Forward, make_forward, perplexity
from lm.surprisal import make_entropy_forward, measure_surprisal

STDOUT = "-"  # and standard input, in place of a file
WORD_COLUMNS = (
    "sentence",
    "position",
    "word",
    "surprisal",
    "surprisal_bare",
    "in_vocabulary",
    "tokens",
    "split",
)
TOKEN_COLUMNS = ("sentence", "position", "word", "token", "unit", "surprisal", "in_vocabulary")
MOST_BARS = 48  # words of the figure
NATS_PER_BIT = np.log(2)


class Source(NamedTuple):
    """A text to be read, and where its table goes."""

    name: str
    file: str  # a path; "-": standard input; empty: the text of --text
    output: str  # a path; "-": standard output


class Place(NamedTuple):
    """A row: a word in the text, or the end of a sentence."""

    sentence: int  # from 1
    position: int  # in its sentence, from 1
    word: Word
    is_end: bool
    tokens: slice  # of the text


class Scored(NamedTuple):
    """A text as a model reads it. N tokens, `<eos>` counted."""

    places: list[Place]  # every word, `<eos>` among them
    ids: np.ndarray  # int32 [N]
    bits: np.ndarray  # float64 [N], surprisal
    entropy: np.ndarray | None  # float64 [N], in bits, before each token

    @property
    def known(self) -> np.ndarray:
        """Which tokens the model has in its vocabulary, bool [N]."""
        return self.ids != UNKNOWN_ID

    @property
    def perplexity(self) -> float:
        return perplexity(float(self.bits.sum()) * NATS_PER_BIT / len(self.bits))


def run(config: Config) -> list[Scored]:
    """Score every text, write its table, and say its perplexity."""
    sources = list(plan(config))
    trained = load_run(config.run, config.checkpoint)
    level = trained.vocabulary.level
    rule = trained.sentences if config.sentences == "auto" else config.sentences
    context = config.context
    if context == "auto":
        context = "text" if trained.config.data.batching == "stream" else "sentence"
    texts = [read_source(source, config.text, level) for source in sources]
    forward = make_forward(trained.config.model)
    entropy_forward = make_entropy_forward(trained.config.model)

    def measure_bits(ids: np.ndarray, used: Forward) -> np.ndarray:
        nats = measure_surprisal(
            trained.config.model,
            trained.params,
            ids,
            used,
            context=context,
            batch=config.batch_size,
            length=config.length,
        )
        return nats / NATS_PER_BIT

    scored = []
    for source, text in zip(sources, texts, strict=True):
        places = list(lay_out(tokenize_words(text, level, rule, config.space)))
        ids = encode(trained.vocabulary, places)
        entropy = measure_bits(ids, entropy_forward) if config.entropy else None
        found = Scored(places, ids, measure_bits(ids, forward), entropy)
        make = token_table if config.units == "token" else word_table
        table = format_table(make(found, level, config.eos), source.output)
        if source.output == STDOUT:
            print(table, end="")
        else:
            run_folder.write_text(Path(source.output), table)
        report(source, found, context)
        if config.plot:
            plot(found, source, trained, config.eos)
        scored.append(found)
    return scored


def plan(config: Config) -> Iterator[Source]:
    """What is read and written, checked before anything is computed.

    Raises:
      ValueError: nothing to read; two tables of one name, one that exists, or one that cannot
        be written.
    """
    if bool(config.files) == bool(config.text):
        came = "both were given" if config.files else "neither was given"
        raise ValueError(f"text files or --text: {came}; wanted one, as score FILE --run=RUN")
    if config.output and len(config.files) > 1:
        raise ValueError(
            f"output is {config.output} for {len(config.files)} files; wanted one file, or no "
            "--output, which makes a table for each"
        )
    taken: set[Path] = set()
    for file in config.files or ("",):
        name = {"": "text", STDOUT: "stdin"}.get(file, file)
        output = config.output or (f"{Path(file).name}.surprisal.tsv" if name == file else STDOUT)
        if output == STDOUT and config.plot:
            raise ValueError(
                "plot draws beside the table, which goes to standard output; give --output=FILE"
            )
        if output != STDOUT:
            path = Path(output)
            written = {path, *(figure_paths(path) if config.plot else ())}
            if taken & written:
                raise ValueError(
                    f"{path} would be the table of two files; score one of them with --output"
                )
            taken |= written
            if path.is_dir() or not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
                raise ValueError(f"output {path} cannot be written; give --output=FILE that can")
            there = [str(p) for p in sorted(written) if p.exists()]
            if there and not config.overwrite:
                raise ValueError(
                    f"{there[0]} exists; give another --output, or --overwrite to replace it"
                )
        yield Source(name, file, output)


def read_source(source: Source, text: str, level: str) -> str:
    """The text of a file, of standard input or of `--text`, as the model's level wants it."""
    encoding = "latin-1" if level == "byte" else "utf-8"
    if source.file == STDOUT:
        return decode_text(sys.stdin.buffer.read(), "standard input", encoding)
    if source.file:
        return read_text(Path(source.file), encoding)
    # Arguments that are no UTF-8 come as surrogates (PEP 383).
    return decode_text(text.encode("utf-8", "surrogateescape"), "text", encoding)


def lay_out(sentences: Iterator[list[Word]]) -> Iterator[Place]:
    """Words with their numbers, each sentence ended by `<eos>`.

    White space in a line of nothing else (characters and bytes) belongs to its `<eos>`.
    """
    start = 0
    for number, words in enumerate(sentences, 1):
        written = [word for word in words if word.text]
        units = (*(unit for word in words if not word.text for unit in word.units), END)
        end = Word(END, units, slice(len(units) - 1, len(units)))
        for position, word in enumerate([*written, end], 1):
            stop = start + len(word.units)
            yield Place(number, position, word, word is end, slice(start, stop))
            start = stop


def encode(vocabulary: Vocabulary, places: list[Place]) -> np.ndarray:
    """Ids of all tokens, int32 [N], as `Vocabulary.encode` of the sentences has them."""
    ids = vocabulary.ids
    return np.asarray(
        [ids.get(unit, UNKNOWN_ID) for place in places for unit in place.word.units], np.int32
    )


def word_table(scored: Scored, level: str, eos: bool) -> Iterator[list[Any]]:
    """The header, then a row a word."""
    yield [*WORD_COLUMNS, *["entropy"] * (scored.entropy is not None)]
    for place in scored.places:
        if place.is_end and not eos:
            continue
        word, bits = place.word, scored.bits[place.tokens]
        bare = bits[word.bare]
        yield [
            place.sentence,
            place.position,
            show_word(word.text, level),
            f"{bits.sum():.6f}",
            f"{bare.sum():.6f}" if len(bare) else "",
            int(scored.known[place.tokens].all()),
            len(bits),
            " ".join(show_unit(unit, level) for unit in word.units),
            *([f"{scored.entropy[place.tokens][0]:.6f}"] if scored.entropy is not None else []),
        ]


def token_table(scored: Scored, level: str, eos: bool) -> Iterator[list[Any]]:
    """The header, then a row a token."""
    yield [*TOKEN_COLUMNS, *["entropy"] * (scored.entropy is not None)]
    for place in scored.places:
        if place.is_end and not eos:
            continue
        for number, unit in enumerate(place.word.units):
            index = place.tokens.start + number
            yield [
                place.sentence,
                place.position,
                show_word(place.word.text, level),
                number + 1,
                show_unit(unit, level),
                f"{scored.bits[index]:.6f}",
                int(scored.known[index]),
                *([f"{scored.entropy[index]:.6f}"] if scored.entropy is not None else []),
            ]


def show_word(word: str, level: str) -> str:
    """A word as UTF-8 can hold it: bytes that are none as \\xe9."""
    if level != "byte":
        return word
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def show_unit(unit: str, level: str) -> str:
    """A token as it can be seen and told apart in a list that is parted by spaces."""
    if unit == " ":
        return "␣"
    if (level == "byte" and not unit.isascii()) or any(
        c.isspace() or not c.isprintable() for c in unit
    ):
        return unit.encode("unicode_escape").decode("ascii")
    return unit


def format_table(rows: Iterator[list[Any]], output: str) -> str:
    """Rows as CSV or TSV; what holds the delimiter or a quote is quoted, quotes doubled."""
    out = io.StringIO()
    delimiter = "," if output.lower().endswith(".csv") else "\t"
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


def report(source: Source, scored: Scored, context: str) -> None:
    """Print the totals; to standard error where the table has the standard output."""
    out = sys.stderr if source.output == STDOUT else sys.stdout
    words = [place for place in scored.places if not place.is_end]
    unknown = sum(not scored.known[place.tokens].all() for place in words)
    total = float(scored.bits.sum())
    print(
        f"{source.name}: perplexity {scored.perplexity:.2f}   {total / len(scored.bits):.4f} bits "
        f"per token   {total:,.2f} bits, {len(scored.bits):,} tokens with <eos>, context {context}",
        file=out,
    )
    share = unknown / len(words) if words else 0.0
    print(
        f"  {len(words):,} words, {share:.1%} unknown"
        + (" (theirs is the surprisal of <unk>)" if unknown else "")
        + ("" if source.output == STDOUT else f"; table: {source.output}"),
        file=out,
    )


def figure_paths(output: Path) -> list[Path]:
    """The figure's files, beside its table."""
    return [output.with_name(f"{output.stem}.{kind}") for kind in ("png", "svg")]


def plot(scored: Scored, source: Source, trained: Trained, eos: bool) -> None:
    """Bars of the first words' surprisal; entropy as dots where it was measured."""
    from experiments import figures  # here, since matplotlib takes a second to import

    shown = [p for p in scored.places if eos or not p.is_end][:MOST_BARS]
    x = np.arange(len(shown))
    heights = np.asarray([scored.bits[p.tokens].sum() for p in shown])
    known = np.asarray([scored.known[p.tokens].all() for p in shown], bool)
    figure, (axis,) = figures.new_figure(1, width=max(6.0, 0.28 * len(shown) + 1.5), height=4.4)
    cell = figures.colour(trained.config.model.cell)
    for part, face, label in ((known, cell, "surprisal"), (~known, "#BBBBBB", "with <unk>")):
        if part.any():
            axis.bar(x[part], heights[part], width=0.72, color=face, label=label)
    if scored.entropy is not None:
        before = scored.entropy[[p.tokens.start for p in shown]]
        axis.plot(x, before, "o", color="black", markersize=3.5, label="entropy before it")
    for k, place in enumerate(shown):
        if k and place.sentence != shown[k - 1].sentence:
            axis.axvline(k - 0.5, color="#888888", linewidth=0.8)
    axis.set_xticks(x, [show_word(p.word.text, trained.vocabulary.level) for p in shown])
    for label in axis.get_xticklabels():
        label.set(rotation=90, parse_math=False)  # a word may hold a $
    axis.grid(False, axis="x")
    axis.set_axisbelow(True)
    axis.set_ylabel("bits")
    axis.margins(x=0.01)
    axis.set_title(
        f"{trained.config.model.cell}, step {trained.step:,}: perplexity {scored.perplexity:.1f}"
    )
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9)
    path = Path(source.output)
    with warnings.catch_warnings(record=True) as missing:
        warnings.filterwarnings("always", message="Glyph .* missing from")
        drawn = figures.save(figure, path.parent, path.stem)
    print(f"figure: {drawn[0]}", file=sys.stderr)
    if missing:
        print(
            "no font here has some of the signs: boxes in the PNG, while the SVG holds the text; "
            f"fonts looked for: {', '.join(figures.FALLBACKS)}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
