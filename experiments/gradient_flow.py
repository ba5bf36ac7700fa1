"""How far back does a recurrent language model's gradient reach: RNN against LSTM?

Trains a vanilla RNN and an LSTM on the same text, several seeds each, and measures at the
start and after training (1) the norm of the last word's gradient at every earlier hidden
state, ||dL_T/dh_t|| against the lag T - t, all lags in one backward pass; (2) the norm of the
recurrent weights' gradient, ||dL_T/dW_h||, against the length T of the sequence.

Prediction: the RNN's curve falls by the same factor at every step and is lost within some
tens of words; the LSTM's falls far more slowly, the slower the larger its forget bias.

    ./launch.sh gradient_flow                      under 3 minutes on 2 CPU cores
    ./launch.sh gradient_flow --corpus=my_book.txt --seeds=3
    ./launch.sh gradient_flow --cells=rnn,gru,lstm --forget_bias=3
"""

# ruff: noqa: E402
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from experiments import flags
from lm.cells import CELLS
from lm.config import DataConfig, ModelConfig, OptimConfig, option, validate


@dataclass(frozen=True)
class Config:
    """Options of gradient_flow."""

    omit: ClassVar[tuple[str, ...]] = ("cell",)  # no flags: `cells` says which

    cells: tuple[str, ...] = option(("rnn", "lstm"), "cells to compare", choices=CELLS)
    seeds: int = option(4, "runs of each cell, seeded 0 upward", least=1, most=10_000)
    epochs: float = option(0.8, "passes through the training text", above=0)
    steps: int = option(0, "training steps; 0: as many as epochs makes", least=0)
    lags: int = option(128, "steps back that the gradient is followed", least=8, most=10_000)
    windows: int = option(128, "stretches of validation text that the measures average", least=1)
    run: str = option("", "folder of the run; empty: runs/gradient_flow-<date>-<time>")
    data: DataConfig = DataConfig(max_vocabulary=5000)
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig(schedule="cosine")

    def __post_init__(self) -> None:
        validate(self)
        if not self.cells or len(set(self.cells)) < len(self.cells):
            raise ValueError(f"cells is {','.join(self.cells)!r}; wanted one or more, each once")


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import figures, run_folder
from lm import model
from lm.data.batches import make_batches
from lm.data.corpus import Corpus, load_corpus
from lm.evaluate import evaluate_sentences, evaluate_stream, make_forward, perplexity
from lm.gradients.flow import measure_lags, measure_lengths
from lm.gradients.statistics import (
    E_FOLD,
    FLOAT32_EPSILON,
    horizon,
    seed_band,
    slope_per_step,
)
from lm.optim import Hyper, make_schedule
from lm.train import NotFiniteError, init_state, make_block, run_blocks

STAGES = ("init", "trained")
UNITS = {"word": "word", "whitespace": "word", "char": "character", "byte": "byte"}
STEPS_PER_DISPATCH = 40


class Measured(NamedTuple):
    """What one model's gradients look like on the windows; natural logs of L2 norms."""

    lag_h: Any  # ||dL_T/dh_{T - lag}|| [lags, windows]
    lag_state: Any  # the whole state, for an LSTM c and h jointly
    length_w: Any  # ||dL_T/dW_h|| [lengths, windows]
    input_rms: Any  # root mean square of the words' embeddings, []


def run(config: Config) -> Path:
    """Train, measure, save, plot. Returns the run's folder."""
    corpus = load_corpus(config.data)
    windows = cut_windows(corpus.splits["valid"], config.lags, config.windows)
    batches = make_batches(
        corpus.splits["train"], config.data.batching, config.data.batch_size, config.data.length
    )
    steps = config.steps or max(1, round(config.epochs * batches.steps_per_epoch))
    folder = run_folder.create(config.run, "gradient_flow")
    run_folder.write_vocabulary(folder, corpus.vocabulary)
    run_folder.write_start(folder, config, {"name": corpus.name, "sha256": corpus.sha256})
    note_line = overlap_note(len(corpus.splits["valid"]), config.lags, config.windows)
    if note_line:
        print(note_line, file=sys.stderr)
    arrays: dict[str, np.ndarray] = {"lengths": np.asarray(lengths(config.lags))}
    started = time.monotonic()
    total = steps * config.seeds * len(config.cells)
    with tqdm(total=total, unit="step", dynamic_ncols=True, smoothing=0.05) as bar:
        for cell in config.cells:
            arrays |= run_cell(config, cell, corpus, batches, windows, steps, folder, bar)
            run_folder.write_arrays(folder / "results.npz", arrays)  # what is done is kept
    summary = summarise(config, arrays)
    run_folder.write_json(
        folder / "results.json",
        {"seconds": time.monotonic() - started, "steps": steps, "rows": summary},
    )
    paths = plot(folder)
    print(format_table(summary, config.lags))
    print(f"\n{headline(arrays, config.cells, UNITS[corpus.vocabulary.level])}")
    print(f"run: {folder}    figure: {paths[0]}    {time.monotonic() - started:.0f} s")
    return folder


def run_cell(
    config: Config,
    cell: str,
    corpus: Corpus,
    batches: Any,
    windows: tuple[np.ndarray, np.ndarray],
    steps: int,
    folder: Path,
    bar: Any,
) -> dict[str, np.ndarray]:
    """All seeds of one cell, one compilation: "cell/stage/measure" -> [S, ...].

    A seed that diverges is said, logged and counted; its trained network is not measured.
    """
    model_config = dataclasses.replace(config.model, cell=cell)
    rate = config.optim.learning_rate or CELLS[cell].learning_rate
    hyper = Hyper(jnp.float32(rate), jnp.float32(config.optim.clip))
    block = make_block(
        model_config, config.optim, make_schedule(config.optim, batches.steps_per_epoch, steps)
    )
    measure = make_measure(model_config, windows, lengths(config.lags))
    forward = make_forward(model_config)
    evaluate = evaluate_stream if config.data.batching == "stream" else evaluate_sentences
    log = run_folder.MetricsLog(folder)
    found: dict[str, list[Any]] = {f"{cell}/diverged": []}
    for seed in range(config.seeds):
        state = init_state(
            jax.random.key(seed),
            model_config,
            config.optim,
            len(corpus.vocabulary),
            batches.batch_size,
        )
        note(found, cell, "init", measure(state.params))
        dispatches = run_blocks(
            state, hyper, block, batches, stop=steps, steps_per_dispatch=STEPS_PER_DISPATCH
        )
        bar.set_description(f"{cell} seed {seed}")
        try:
            for state, metrics in dispatches:
                loss = float(metrics.nats.sum() / metrics.tokens.sum())
                bar.set_postfix_str(f"loss {loss:.2f} perplexity {perplexity(loss):.0f}")
                bar.update(len(metrics.nats))
                log.write(
                    cell=cell,
                    seed=seed,
                    step=int(state.step),
                    loss=loss,
                    grad_norm=float(metrics.grad_norm.mean()),
                    clipped=float((metrics.grad_norm > config.optim.clip).mean()),
                )
        except NotFiniteError as error:
            bar.write(f"{cell} seed {seed} diverged at {error}")
            log.write(cell=cell, seed=seed, step=error.step, diverged=True)
            found[f"{cell}/diverged"].append(np.asarray(seed))
            continue
        note(found, cell, "trained", measure(state.params))
        for split in ("valid", "test"):
            result = evaluate(model_config, state.params, corpus.splits[split], forward=forward)
            found.setdefault(f"{cell}/{split}", []).append(result.perplexity)
    return {name: np.asarray(values) for name, values in found.items()}


def note(found: dict[str, list[Any]], cell: str, stage: str, measured: Measured) -> None:
    for name, value in measured._asdict().items():
        found.setdefault(f"{cell}/{stage}/{name}", []).append(np.asarray(value))


def make_measure(
    config: ModelConfig, windows: tuple[np.ndarray, np.ndarray], at: tuple[int, ...]
) -> Any:
    """Compile params -> Measured, of the top layer."""
    inputs, targets = windows

    def measure(params: model.Params) -> Measured:
        carry = model.init_carry(config, inputs.shape[1])
        lags = measure_lags(config, params, carry, jnp.asarray(inputs), jnp.asarray(targets[-1]))
        by_length = measure_lengths(
            config, params, carry, jnp.asarray(inputs), jnp.asarray(targets), at
        )
        embedded = jnp.take(params.embedding, inputs, axis=0)
        return Measured(lags[-1].h, lags[-1].state, by_length[-1], jnp.sqrt(jnp.mean(embedded**2)))

    return jax.jit(measure)


def cut_windows(tokens: np.ndarray, time: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` stretches of text, evenly spread: inputs and targets, int32 [T, windows]."""
    spare = len(tokens) - (time + 1)
    if spare < 0:
        raise ValueError(
            f"lags is {time}; wanted fewer than the {len(tokens)} tokens of the validation text"
        )
    starts = np.unique(np.linspace(0, spare, count).astype(int))
    rows = np.stack([tokens[start : start + time + 1] for start in starts], axis=1)
    return rows[:-1], rows[1:]


def overlap_note(tokens: int, time: int, count: int) -> str:
    """A line that says when the stretches are nearly the same text; empty when they are not."""
    if count == 1 or (tokens - time - 1) / (count - 1) >= time / 2:
        return ""
    return (
        f"gradient_flow: stretches of {time} overlap by more than half in a validation text of "
        f"{tokens}; give more text, or lower --lags or --windows"
    )


def lengths(lags: int) -> tuple[int, ...]:
    """Sequence lengths measured: 2 to `lags`, two an octave. (T = 1 has no gradient.)"""
    steps = int(np.log2(lags / 2) * 2) + 1
    return tuple(sorted({round(2 * 2 ** (k / 2)) for k in range(steps)} | {lags}))


def measured(cells: tuple[str, ...], arrays: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """Every (cell, stage) that has results: a cell of which all seeds diverged has no `trained`."""
    pairs = itertools.product(cells, STAGES)
    return [(cell, stage) for cell, stage in pairs if f"{cell}/{stage}/lag_h" in arrays]


def summarise(config: Config, arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each cell and stage: perplexity, slope, horizons."""
    rows = []
    for cell, stage in measured(config.cells, arrays):
        by_seed = arrays[f"{cell}/{stage}/lag_h"].mean(axis=2)  # log of the geometric mean
        slopes = [slope_per_step(curve) for curve in by_seed]
        mean = by_seed.mean(axis=0)
        row: dict[str, Any] = {
            "cell": cell,
            "forget_bias": config.model.forget_bias if CELLS[cell].forget_gate else None,
            "stage": stage,
            "diverged_seeds": arrays[f"{cell}/diverged"].tolist(),
            "input_rms": float(arrays[f"{cell}/{stage}/input_rms"].mean()),
            "slope_per_step": float(np.mean(slopes)),
            "slope_sd": float(np.std(slopes, ddof=1)) if len(slopes) > 1 else None,
            "horizon_e": horizon(mean, E_FOLD),
            "horizon_epsilon": horizon(mean, FLOAT32_EPSILON),
        }
        for split in ("valid", "test") if stage == "trained" else ():
            values = arrays[f"{cell}/{split}"]
            row[split] = float(values.mean())
            row[f"{split}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return rows


def format_table(rows: list[dict[str, Any]], lags: int) -> str:
    """The table that the run prints."""
    lines = [
        f"{'cell':6}{'forget bias':>12}  {'':8}{'perplexity valid / test':>25}"
        f"{'slope per step':>17}{'horizon 1/e':>13}{'epsilon':>9}"
    ]
    for row in rows:
        bias = "-" if row["forget_bias"] is None else f"{row['forget_bias']:g}"
        perplexity = f"{row['valid']:.1f} / {row['test']:.1f}" if "valid" in row else ""
        slope = f"{row['slope_per_step']:.3f}"
        if row["slope_sd"] is not None:
            slope += f" ±{row['slope_sd']:.3f}"
        reach = [format_horizon(row[key], lags) for key in ("horizon_e", "horizon_epsilon")]
        lines.append(
            f"{row['cell']:6}{bias:>12}  {row['stage']:8}{perplexity:>25}{slope:>17}"
            f"{reach[0]:>13}{reach[1]:>9}"
        )
    lines.append(
        "slope: natural log of ||dL_T/dh_t|| per step back, mean ± sd over seeds; horizons: steps\n"
        "beyond the first until the norm has fallen by 1/e, and by float32's epsilon (1.2e-7)"
    )
    return "\n".join(lines)


def format_horizon(steps: float, lags: int) -> str:
    """A horizon in steps; `>` where it lies beyond the lags measured, `-` where unknown."""
    if np.isnan(steps):
        return "-"
    return f"{steps:.1f}" if np.isfinite(steps) else f">{lags - 2}"


def headline(
    arrays: dict[str, np.ndarray], cells: tuple[str, ...], unit: str, lag: int = 50
) -> str:
    """What the picture shows, in a sentence."""
    shrunk = []
    for cell, stage in measured(cells, arrays):
        if stage != "trained":
            continue
        mean = arrays[f"{cell}/trained/lag_h"].mean(axis=(0, 2))
        lag = min(lag, len(mean) - 1)
        shrunk.append(f"{format_factor((mean[1] - mean[lag]) / np.log(10))} ({CELLS[cell].name})")
    if not shrunk:
        return "No trained network to measure: every seed diverged"
    return f"{lag} {unit}s back, the trained gradient has shrunk " + ", ".join(shrunk)


def format_factor(log10: float) -> str:
    """10^log10 as a person reads it: to two digits, in words of size."""
    if np.isnan(log10):
        return "by an unknown factor"
    if np.isinf(log10):
        return "to nothing"
    if log10 >= 15:
        return f"10^{log10:.0f} times"
    for exponent, word in ((12, "trillion"), (9, "billion"), (6, "million"), (0, "")):
        if log10 >= exponent:
            value = float(f"{10 ** (log10 - exponent):.2g}")
            return f"{value:,.0f} {word}".rstrip() + " times"
    return f"to {100 * 10**-log10:.0f} %"


def plot(folder: Path) -> list[Path]:
    """Draw the figure of a run from its folder alone."""
    stored = run_folder.read_json(folder / "config.json")["config"]
    arrays = run_folder.read_arrays(folder / "results.npz")
    cells = tuple(stored["cells"])
    unit = UNITS[run_folder.read_vocabulary(folder).level]
    figure, (left, right) = figures.new_figure(2)
    for index, (cell, stage) in enumerate(measured(cells, arrays)):
        rms = arrays[f"{cell}/{stage}/input_rms"].mean()
        bias = (
            f", forget bias {stored['model']['forget_bias']:g}" if CELLS[cell].forget_gate else ""
        )
        line: dict[str, Any] = {
            "color": figures.colour(cell, index),
            "linestyle": "-" if stage == "trained" else (0, (4, 2)),
            "linewidth": 2.2 if stage == "trained" else 1.6,
            "label": f"{CELLS[cell].name}, {stage}{bias}, input rms {rms:.2g}",
        }
        lag_h = arrays[f"{cell}/{stage}/lag_h"].mean(axis=2)  # [S, lags]
        with np.errstate(invalid="ignore"):  # a dead curve, -inf at lag 1, has no ratio
            band = seed_band(lag_h - lag_h[:, 1:2])
        figures.plot_band(left, np.arange(1, lag_h.shape[1]), *(part[1:] for part in band), **line)
        band = seed_band(arrays[f"{cell}/{stage}/length_w"].mean(axis=2))
        figures.plot_band(right, arrays["lengths"], *band, **line)
    seeds, rows = arrays[f"{cells[0]}/init/lag_h"].shape[::2]
    left.set(
        title=f"How much of the last {unit}'s loss reaches back",
        xlabel=f"lag: {unit}s before the last",
        ylabel=r"$\Vert\partial L_T / \partial h_{T-\mathrm{lag}}\Vert$, relative to lag 1",
    )
    right.set(
        title="What the recurrent weights learn from a longer text",
        xlabel=f"sequence length T ({unit}s)",
        ylabel=r"$\Vert\partial L_T / \partial W_h\Vert$",
        xscale="log",
    )
    ticks = [t for t in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= arrays["lengths"][-1]]
    right.set_xticks(ticks, [str(t) for t in ticks], minor=False)
    right.set_xticks([], minor=True)
    left.axhline(FLOAT32_EPSILON / np.log(10), color="#777777", linewidth=0.8, linestyle=":")
    left.annotate(
        "float32 epsilon",
        (0.01, FLOAT32_EPSILON / np.log(10)),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color="#555555",
    )
    figures.label_log10(left)
    figures.label_log10(right)
    left.legend(fontsize=9, loc="lower left")
    title = textwrap.fill(headline(arrays, cells, unit), 100)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    band_note = f"95 % t band over {seeds} seeds" if seeds > 1 else "one seed, no band"
    figure.supxlabel(
        f"geometric mean over {rows} stretches of {stored['data']['corpus']}, "
        f"{band_note}; hidden size {stored['model']['hidden_size']}, "
        f"SGD, global-norm clip {stored['optim']['clip']}",
        fontsize=8.5,
        color="#555555",
    )
    return figures.save(figure, folder / "figures", "gradient_flow")


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
