"""The lecture on recurrent language models, seen on one sentence.

Reads the sentence with a trained RNN and a trained LSTM, and prints and draws for each
(1) the distribution of the next word after every word: softmax over the vocabulary;
(2) the loss of every word, J = their mean, perplexity = exp(J);
(3) the LSTM's forget, input and output gates and its cell state, word by word;
(4) how much gradient the last word's loss sends back to every word: the vanishing gradient;
(5) time against the length of a text: one step must wait for the one before;
(6) parameters against that length: always the same weights.

Prediction: the LSTM is less surprised, and more of its gradient reaches the first words; time
grows in proportion to the length, parameters not at all.

    ./launch.sh walkthrough                        trains both first: under 3 minutes on 2 cores
    ./launch.sh walkthrough "It is a truth universally acknowledged."
    ./launch.sh walkthrough "it was" --run_rnn=runs/x --run_lstm=runs/y    seconds

The figures lie in the run's folder, and what is printed in its walkthrough.txt.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiments import flags
from lm.cells import CELLS
from lm.config import DataConfig, ModelConfig, OptimConfig, option, validate

SENTENCE = (
    "She coloured as she spoke; but neither that, nor anything else, awakened a suspicion of "
    "the truth."
)


@dataclass(frozen=True)
class Config:
    """Options of walkthrough."""

    omit: ClassVar[tuple[str, ...]] = ("cell",)  # no flag: `cells` says which
    rest: ClassVar[str] = "sentence"

    sentence: str = option(SENTENCE, "the text to read; may be given without --sentence=")
    cells: tuple[str, ...] = option(("rnn", "lstm"), "cells to compare", choices=CELLS)
    run_rnn: str = option("", "folder of a trained rnn; empty: one is trained now")
    run_lstm: str = option("", "folder of a trained lstm; empty: one is trained now")
    top: int = option(5, "likeliest words that are named", least=1, most=20)
    longest: int = option(4096, "longest text that is timed, in words", least=64, most=10**6)
    epochs: float = option(1.0, "passes through the text, of a model trained now", above=0)
    steps: int = option(0, "training steps; 0: as many as epochs makes", least=0)
    seed: int = option(0, "of the training", least=0, most=2**31 - 1)
    run: str = option("", "folder of the run; empty: runs/walkthrough-<date>-<time>")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig(schedule="cosine")

    def __post_init__(self) -> None:
        validate(self)
        if not self.cells or len(set(self.cells)) < len(self.cells):
            raise ValueError(f"cells is {','.join(self.cells)!r}; wanted one or more, each once")
        if not self.sentence.strip():
            raise ValueError(
                "sentence is empty; wanted some words, as ./launch.sh walkthrough "
                '"it was a fine day"'
            )
        for cell, run in self.runs.items():
            if cell not in self.cells:
                raise ValueError(f"run_{cell} is {run}, but cells is {','.join(self.cells)}")

    @property
    def runs(self) -> dict[str, str]:
        """cell -> folder of a trained run, for those that are given."""
        given = {"rnn": self.run_rnn, "lstm": self.run_lstm}
        return {cell: run for cell, run in given.items() if run}


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import shutil

import numpy as np

from experiments import run_folder, train
from experiments.fit.signals import StopOnSignal
from experiments.flow.table import UNITS, forget_gate_start
from experiments.trained import Trained, load_run
from experiments.walk import drawing, text
from experiments.walk.cost import count_sizes, measure_times, time_slope
from experiments.walk.reading import Reading, Sentence, cut_sentence, read_sentence
from lm import model
from lm.data.batches import make_batches
from lm.data.corpus import load_corpus, resolve
from lm.data.vocabulary import UNKNOWN_ID

WIDEST = 110  # columns of the tables, on a terminal that has them
LONG = 256  # words from which on the time's exponent is taken


def run(config: Config) -> Path:
    """Train what is not given, read the sentence, save, print, draw. Returns the folder."""
    written = config.sentence.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    models = {cell: load_trained(cell, folder) for cell, folder in config.runs.items()}
    unit = check_cuts(config, models)
    corpora = {trained.config.data.corpus for trained in models.values()}
    if len(models) < len(config.cells):
        corpora.add(config.data.corpus)
        # What training would refuse is refused before there is a folder.
        make_batches(load_corpus(config.data).splits["train"], config.data)
    folder = run_folder.create(config.run, "walkthrough")
    run_folder.write_start(folder, config, {"name": ", ".join(sorted(corpora))})
    for cell in config.cells:
        if cell not in models:
            models[cell] = train_now(config, cell, folder)
    models = {cell: models[cell] for cell in config.cells}
    sentences, readings = {}, {}
    for cell, trained in models.items():
        sentences[cell] = cut_sentence(written, trained.vocabulary, trained.sentences)
        readings[cell] = read_sentence(
            trained.config.model, trained.params, sentences[cell], config.top
        )
    results = summarise(config, models, sentences, readings, unit)
    run_folder.write_arrays(folder / "results.npz", name_arrays(readings))
    run_folder.write_json(folder / "results.json", results)
    columns = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    printed = describe(models, sentences, readings, results, columns)
    run_folder.write_text(folder / "walkthrough.txt", printed + "\n")
    print(f"\n{printed}\n")
    for path in plot(folder):
        if path.suffix == ".png":
            print(f"figure: {path}")
    print(f"run: {folder}")
    return folder


def load_trained(cell: str, folder: str) -> Trained:
    """A run that was given, if it is one of that cell.

    Raises:
      ValueError: no run, or one of another cell.
    """
    trained = load_run(folder)
    if trained.config.model.cell != cell:
        raise ValueError(
            f"run_{cell} is {folder}, a run of cell {trained.config.model.cell}; wanted one that "
            f"./launch.sh train --cell={cell} made"
        )
    return trained


def train_now(config: Config, cell: str, folder: Path) -> Trained:
    """Train a small model, and keep it below the walkthrough's own folder.

    Raises:
      KeyboardInterrupt: it was asked to stop before its last step.
    """
    print(f"training: {CELLS[cell].name} on {config.data.corpus}", flush=True)
    options = train.Config(
        epochs=config.epochs,
        steps=config.steps,
        seed=config.seed,
        run=str(folder / cell),
        data=config.data,
        model=dataclasses.replace(config.model, cell=cell),
        optim=config.optim,
    )
    with StopOnSignal() as stop:
        made = train.run_one(options, stop)
    if not (made / "results.json").exists():
        raise KeyboardInterrupt
    return load_run(str(made))


def check_cuts(config: Config, models: dict[str, Trained]) -> str:
    """What a token is called: the same in all models, or they cannot be set side by side.

    Raises:
      ValueError: they cut text in different ways.
    """
    cuts = dict.fromkeys(config.cells, resolve(config.data))
    cuts |= {cell: (found.vocabulary.level, found.sentences) for cell, found in models.items()}
    if len(set(cuts.values())) > 1:
        found = "; ".join(
            f"the {cell} is of level {level}, sentences {rule}"
            for cell, (level, rule) in cuts.items()
        )
        raise ValueError(f"{found}; wanted models that cut text in the same way")
    return UNITS[next(iter(cuts.values()))[0]]


def summarise(
    config: Config,
    models: dict[str, Trained],
    sentences: dict[str, Sentence],
    readings: dict[str, Reading],
    unit: str,
) -> dict[str, Any]:
    """All that was found, as results.json holds it."""
    lengths = tuple(4**k for k in range(2, 11) if 4**k <= config.longest)
    times, words = [], []
    for cell, trained in models.items():
        times += [
            {"cell": cell, **row}
            for row in measure_times(trained.config.model, trained.params, lengths)
        ]
        words += list_words(cell, sentences[cell], readings[cell])
    return {
        "unit": unit,
        "sentence": [text.show(word) for word in next(iter(sentences.values())).units],
        "last_word": next(iter(sentences.values())).last_word,
        "models": [
            describe_model(cell, trained, sentences[cell], readings[cell])
            for cell, trained in models.items()
        ],
        "words": words,
        "likeliest": {
            cell: [
                [[text.show(trained.vocabulary.units[i]), float(p)] for i, p in zip(*row)]  # noqa: B905
                for row in zip(readings[cell].top_ids, readings[cell].top_p, strict=True)
            ]
            for cell, trained in models.items()
        },
        "times": times,
        "time_exponents": {
            cell: {what: slope_of(times, cell, what) for what in ("forward", "both")}
            for cell in models
        },
        "sizes": count_sizes(
            {cell: (trained.config.model, trained.params) for cell, trained in models.items()},
            tuple(2**k for k in range(13)),
        ),
    }


def slope_of(times: list[dict[str, Any]], cell: str, what: str) -> float:
    """The exponent of the length in a cell's times, forward or both."""
    rows = [row for row in times if row["cell"] == cell]
    lengths, seconds = ([row[key] for row in rows] for key in ("length", what))
    return time_slope(np.asarray(lengths), np.asarray(seconds), LONG)


def list_words(cell: str, sentence: Sentence, reading: Reading) -> list[dict[str, Any]]:
    """A row for each word that one model was asked for."""
    return [
        {
            "cell": cell,
            "position": k + 1,
            "word": text.show(word),
            "unknown": bool(sentence.targets[k] == UNKNOWN_ID),
            "probability": float(np.exp(-reading.nats[k])),
            "rank": int(reading.rank[k]),
            "nats": float(reading.nats[k]),
            "bits": float(reading.nats[k] / np.log(2)),
        }
        for k, word in enumerate(sentence.units)
    ]


def describe_model(
    cell: str, trained: Trained, sentence: Sentence, reading: Reading
) -> dict[str, Any]:
    """What one model makes of the whole sentence, in a row."""
    mean = float(reading.nats.mean())
    return {
        "cell": cell,
        "run": str(trained.folder),
        "vocabulary": len(trained.vocabulary),
        "hidden_size": trained.config.model.layer_sizes[-1],
        "layers": trained.config.model.layers,
        "forget_bias": forget_gate_start({"cell": cell, "model": vars(trained.config.model)})
        or None,
        "input_scale": trained.config.model.input_scale,
        "uniform": trained.config.model.init_range if trained.config.model.init != "scaled" else 0,
        "parameters": model.count_parameters(trained.params),
        "tokens": len(reading.nats),
        "unknown": int(np.sum(sentence.targets == UNKNOWN_ID)),
        "nats": float(reading.nats.sum()),
        "nats_per_token": mean,
        "bits_per_token": mean / float(np.log(2)),
        "perplexity": float(np.exp(mean)),
        "gradient_lags": len(reading.gradient) - 1,
        "gradient_left_log10": float((reading.gradient[0] - reading.gradient[-1]) / np.log(10)),
    }


def name_arrays(readings: dict[str, Reading]) -> dict[str, np.ndarray]:
    """ "cell/measure" -> array, for results.npz."""
    arrays = {}
    for cell, reading in readings.items():
        arrays[f"{cell}/gradient"] = reading.gradient
        arrays |= {f"{cell}/gate/{name}": value for name, value in reading.gates.items()}
        arrays |= {f"{cell}/state/{name}": value for name, value in reading.state.items()}
    return arrays


def describe(
    models: dict[str, Trained],
    sentences: dict[str, Sentence],
    readings: dict[str, Reading],
    results: dict[str, Any],
    columns: int,
) -> str:
    """What is printed."""
    unit = results["unit"]
    parts = []
    for cell, trained in models.items():
        options = trained.config.model
        header = (
            f"{options.layers} layer{'s' * (options.layers > 1)} of {options.hidden_size} units, "
            f"{model.count_parameters(trained.params):,} parameters, trained {trained.step:,} "
            f"steps on {trained.config.data.corpus} ({trained.folder})"
        )
        parts.append(
            text.format_model(
                CELLS[cell].name,
                header,
                sentences[cell],
                readings[cell],
                trained.vocabulary,
                unit,
                columns,
            )
        )
    slopes = {cell: found["both"] for cell, found in results["time_exponents"].items()}
    parts += [
        f"{'=' * columns}\nSide by side\n{'=' * columns}",
        text.format_comparison(results["models"], unit),
    ]
    if len({row["vocabulary"] for row in results["models"]}) > 1:
        parts.append(
            "These models know different words, so their perplexities are of different questions."
        )
    parts.append(text.format_times(results["times"], slopes, unit))
    return "\n\n".join(parts)


def plot(folder: Path) -> list[Path]:
    """Draw every figure from the run's folder alone."""
    return drawing.plot(
        folder,
        run_folder.read_json(folder / "results.json"),
        run_folder.read_arrays(folder / "results.npz"),
    )


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
