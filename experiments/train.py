"""Train a recurrent language model on any text, word after word, with SGD.

J = mean over tokens of the cross-entropy of the next word; perplexity = exp(J). Logs and draws
the perplexity of the validation text after each epoch; prints both texts' at the end.

    ./launch.sh train                                     Austen, LSTM, a few minutes
    ./launch.sh train --corpus=my_book.txt --cell=gru --run=runs/my_book
    ./launch.sh train --corpus=ptb --data_dir=PATH --batching=sentences
    ./launch.sh train --run=runs/my_book --resume         go on where it stopped
    ./launch.sh train --log_gradient_flow                 and how far back its gradient reaches

A run can be killed at any moment; --resume continues it to the same parameters, bit for bit.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import flags
from lm.config import DataConfig, ModelConfig, OptimConfig, option, validate


@dataclass(frozen=True)
class Config:
    """Options of train."""

    epochs: float = option(3.0, "passes through the training text", above=0)
    steps: int = option(0, "training steps; 0: as many as epochs makes", least=0)
    seed: int = option(0, "of the parameters and the order of sentences", least=0, most=2**31 - 1)
    run: str = option("", "folder of the run; empty: runs/train-<date>-<time>")
    resume: bool = option(False, "go on with the run in --run, with the options it was made with")
    steps_per_dispatch: int = option(50, "training steps in one compiled call", least=1)
    checkpoint_every: int = option(500, "steps between checkpoints", least=1)
    log_gradient_flow: bool = option(
        False,
        "log and draw how far back the gradient reaches, through training; with "
        "batching=sentences of one loss on validation text only, since positions in padded rows "
        "have nothing in common",
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig(schedule="cosine")

    def __post_init__(self) -> None:
        validate(self)
        if self.resume and not self.run:
            raise ValueError("resume needs --run=FOLDER, the run to go on with")

    @property
    def log_positions(self) -> bool:
        """Whether the gradient is logged by its position in a chunk: where chunks are whole."""
        return self.log_gradient_flow and self.data.batching == "stream"


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import signal
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments import figures, run_folder
from experiments.flow.table import forget_gate_start
from lm import model
from lm.cells import CELLS
from lm.checkpoint import Checkpoints
from lm.data.batches import Batches, cut_windows, make_batches
from lm.data.corpus import Corpus, load_corpus
from lm.evaluate import (
    Evaluation,
    evaluate_sentences,
    evaluate_stream,
    make_forward,
    perplexity,
)
from lm.gradients.flow import measure_lags
from lm.optim import Hyper, make_schedule
from lm.train import TrainState, init_state, make_block, run_blocks


def run(config: Config) -> Path:
    """Train, evaluate, save. Returns the run's folder."""
    if config.resume:
        folder = run_folder.require(config.run)
        stored = run_folder.read_config(folder, Config)
        refuse_changes(config, stored, Config())
        data_dir = config.data.data_dir  # a corpus may have moved
        if data_dir == DataConfig().data_dir:
            data_dir = stored.data.data_dir
        data = dataclasses.replace(stored.data, data_dir=data_dir)
        config = dataclasses.replace(stored, run=config.run, data=data)
        corpus = load_corpus(config.data, run_folder.read_vocabulary(folder))
        check_corpus(folder, corpus)
        batches = make_training_batches(config, corpus)
    else:
        corpus = load_corpus(config.data)
        batches = make_training_batches(config, corpus)  # refuses a text that is too short
        folder = run_folder.create(config.run, "train")
        run_folder.write_vocabulary(folder, corpus.vocabulary)
        run_folder.write_start(folder, config, {"name": corpus.name, "sha256": corpus.sha256})
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, finished = train(config, corpus, batches, folder, checkpoints)
    if not finished:
        again = f"./launch.sh train --run={folder} --resume"
        print(f"stopped at step {int(state.step)}; go on with: {again}")
        return folder
    evaluate = make_evaluate(config, corpus)
    rows = {split: evaluate(state.params, split) for split in ("valid", "test")}
    run_folder.write_json(
        folder / "results.json",
        {
            "step": int(state.step),
            "parameters": model.count_parameters(state.params),
            **{
                split: row._asdict() | {"perplexity": row.perplexity} for split, row in rows.items()
            },
        },
    )
    paths = plot(folder)
    for split, row in rows.items():
        print(f"{split:6} perplexity {row.perplexity:8.2f}   ({row.tokens:,} tokens)")
    print(f"run: {folder}    figure: {paths[0]}")
    return folder


def train(
    config: Config, corpus: Corpus, batches: Batches, folder: Path, checkpoints: Checkpoints
) -> tuple[TrainState, bool]:
    """Train to the last step, or until a signal asks to stop: (state, finished)."""
    per_epoch = batches.steps_per_epoch
    last = config.steps or max(1, round(config.epochs * per_epoch))
    vocabulary = len(corpus.vocabulary)
    state = init_state(
        jax.random.key(config.seed), config.model, config.optim, vocabulary, batches.batch_size
    )
    if checkpoints.steps():
        state = checkpoints.restore(state)
        if int(state.step) != checkpoints.steps()[-1]:
            print(
                f"checkpoint {checkpoints.steps()[-1]} is damaged; going on from "
                f"{int(state.step)}, the one before",
                file=sys.stderr,
            )
            checkpoints.drop_after(int(state.step))
    rate = config.optim.learning_rate or CELLS[config.model.cell].learning_rate
    hyper = Hyper(jnp.float32(rate), jnp.float32(config.optim.clip))
    block = make_block(
        config.model,
        config.optim,
        make_schedule(config.optim, per_epoch, last),
        log_gradient_flow=config.log_positions,
    )
    evaluate = make_evaluate(config, corpus)
    measure = make_measure_lags(config, corpus) if config.log_gradient_flow else None
    log = run_folder.MetricsLog(folder)
    log.keep_until(int(state.step))
    if measure is not None and int(state.step) == 0 and not log_begun(folder):
        log.write(step=0, log10_lag=measure(state.params).tolist())
    stop = StopOnSignal()
    start = int(state.step)
    with tqdm(total=last, initial=start, unit="step", dynamic_ncols=True) as bar, stop:
        # Dispatches end where a checkpoint or an epoch is due, at the same steps in every
        # process, whether the run was resumed or not.
        while int(state.step) < last:
            step = int(state.step)
            due = min(
                last,
                (step // config.checkpoint_every + 1) * config.checkpoint_every,
                (step // per_epoch + 1) * per_epoch,
            )
            dispatches = run_blocks(
                state, hyper, block, batches, stop=due, steps_per_dispatch=config.steps_per_dispatch
            )
            for state, metrics in dispatches:
                report(bar, log, state, metrics, config, measure)
                if stop.asked:
                    break
            step = int(state.step)
            if step % per_epoch == 0 or step == last:
                log.write(step=step, valid=evaluate(state.params, "valid").perplexity)
            if stop.asked or step == last or step % config.checkpoint_every == 0:
                checkpoints.save(state)
            if stop.asked:
                break
    checkpoints.wait()
    return state, int(state.step) >= last


def log_begun(folder: Path) -> bool:
    """Whether a run that was killed before its first checkpoint has measured its start already."""
    path = folder / "metrics.jsonl"
    return path.exists() and bool(run_folder.MetricsLog.read(path))


def make_training_batches(config: Config, corpus: Corpus) -> Batches:
    """The training split in the batching that the configuration names."""
    data = config.data
    return make_batches(
        corpus.splits["train"], data.batching, data.batch_size, data.length, config.seed
    )


def make_measure_lags(config: Config, corpus: Corpus) -> Callable[[model.Params], np.ndarray]:
    """params -> log10 ||dL_T/dh_{T - lag}|| of each layer on validation text, [L, lags].

    One loss, at the end of stretches twice as long as a chunk: to see beyond the truncation.
    """
    data = config.data
    lags = min(2 * data.length, len(corpus.splits["valid"]) - 1)
    windows = cut_windows(corpus.splits["valid"], lags, data.batch_size)
    inputs, targets = jnp.asarray(windows[0]), jnp.asarray(windows[1][-1])
    carry = model.init_carry(config.model, inputs.shape[1])

    @jax.jit
    def measure(params: model.Params) -> jax.Array:
        curves = measure_lags(config.model, params, carry, inputs, targets)
        return jnp.stack([layer.h.mean(axis=1) for layer in curves]) / jnp.log(10.0)

    return lambda params: np.asarray(measure(params))


def report(
    bar: Any,
    log: run_folder.MetricsLog,
    state: TrainState,
    metrics: Any,
    config: Config,
    measure: Callable[[model.Params], np.ndarray] | None,
) -> None:
    """Progress bar and metrics line of one dispatch."""
    loss = float(metrics.nats.sum() / metrics.tokens.sum())
    bar.update(len(metrics.nats))
    elapsed = max(bar.format_dict["elapsed"], 1e-9)
    done = bar.n - bar.initial
    speed = done / elapsed * float(metrics.tokens.mean())
    bar.set_postfix_str(f"loss {loss:.3f} perplexity {perplexity(loss):.1f} {speed:,.0f} tokens/s")
    flow = {}
    if config.log_positions:  # what the training itself carried back, newest position first
        flow["log10_delta"] = (metrics.log_delta[..., ::-1].mean(axis=0) / np.log(10)).tolist()
    if measure is not None:  # and one loss alone
        flow["log10_lag"] = measure(state.params).tolist()
    log.write(
        step=int(state.step),
        loss=loss,
        grad_norm=float(metrics.grad_norm.mean()),
        clipped=float((metrics.grad_norm > config.optim.clip).mean()),
        tokens_per_second=speed,
        time=time.time(),
        **flow,
    )


def make_evaluate(config: Config, corpus: Corpus) -> Callable[[model.Params, str], Evaluation]:
    """(params, split) -> Evaluation, in the batching that the model is trained with."""
    forward = make_forward(config.model)

    def evaluate(params: model.Params, split: str) -> Evaluation:
        measure = evaluate_stream if config.data.batching == "stream" else evaluate_sentences
        return measure(config.model, params, corpus.splits[split], forward=forward)

    return evaluate


class StopOnSignal:
    """While it is open, SIGINT and SIGTERM ask to stop at the next dispatch; twice, at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopOnSignal":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def refuse_changes(given: Any, stored: Any, default: Any) -> None:
    """A resumed run keeps its options: one that differs from it and from the default was meant."""
    for field in dataclasses.fields(stored):
        values = [getattr(config, field.name) for config in (given, stored, default)]
        if dataclasses.is_dataclass(values[0]):
            refuse_changes(*values)
        elif values[0] not in values[1:] and field.name not in ("run", "resume", "data_dir"):
            raise ValueError(
                f"{field.name} is {values[0]}, but the run was made with {values[1]} and goes on "
                "with it; leave the flag out, or start a new run"
            )


def check_corpus(folder: Path, corpus: Corpus) -> None:
    """A run goes on with the text that it began with, or not at all."""
    made_with = run_folder.read_json(folder / "versions.json")["corpus"]["sha256"]
    if made_with != corpus.sha256:
        raise ValueError(
            f"corpus {corpus.name} has changed since {folder} was made "
            f"(sha256 {corpus.sha256[:12]}..., was {made_with[:12]}...); wanted the same text"
        )


def plot(folder: Path) -> list[Path]:
    """Perplexity against step, from the run's folder alone."""
    lines = run_folder.MetricsLog.read(folder / "metrics.jsonl")
    stored = run_folder.read_json(folder / "config.json")["config"]
    cell, corpus = stored["model"]["cell"], stored["data"]["corpus"]
    figure, (axis,) = figures.new_figure(1, width=8)
    trained = [(line["step"], line["loss"] / np.log(10)) for line in lines if "loss" in line]
    valid = [(line["step"], np.log10(float(line["valid"]))) for line in lines if line.get("valid")]
    axis.plot(*zip(*trained, strict=True), color=figures.colour(cell), alpha=0.6, label="training")
    axis.plot(*zip(*valid, strict=True), "o-", color="#000000", label="validation, whole text")
    axis.set(
        title=f"{CELLS[cell].name} on {Path(corpus).name}, SGD",
        xlabel="step",
        ylabel="perplexity, exp(nats per token)",
    )
    figures.label_log10(axis)
    axis.legend()
    paths = figures.save(figure, folder / "figures", "perplexity")
    if stored.get("log_gradient_flow"):
        plot_flow(folder, stored, lines)
    return paths


def plot_flow(folder: Path, stored: Any, lines: list[dict[str, Any]]) -> list[Path]:
    """Gradient flow of the top layer through training, from what the run logged."""
    logged = [line for line in lines if "log10_lag" in line]
    picked = np.unique(np.linspace(0, len(logged) - 1, 6).round().astype(int))
    stream = stored["data"]["batching"] == "stream"
    figure, axes = figures.new_figure(2 if stream else 1, width=12 if stream else 8)
    for shade, line in zip(figures.shades(len(picked)), [logged[k] for k in picked], strict=True):
        style: dict[str, Any] = {"color": shade, "linewidth": 2, "label": f"step {line['step']:,}"}
        axes[0].plot([float(norm) for norm in line["log10_lag"][-1]], **style)
        if stream and "log10_delta" in line:  # not before the first step
            axes[1].plot([float(norm) for norm in line["log10_delta"][-1]], **style)
    length = stored["data"]["length"]
    beyond = " beyond truncated BPTT" if stream else " beyond the longest row of training"
    axes[0].axvline(length, color="#777777", linewidth=0.8, linestyle=":")
    axes[0].annotate(
        beyond, (length, axes[0].get_ylim()[1]), fontsize=8.5, va="top", color="#555555"
    )
    axes[0].set(
        title="The last word's loss alone, on validation text",
        xlabel="lag: tokens before the last",
        ylabel=r"$\Vert\partial L_T / \partial h_{T-\mathrm{lag}}\Vert$",
    )
    if stream:
        axes[1].set(
            title="All losses of a chunk, as training sends them back",
            xlabel="tokens before the end of the chunk",
            ylabel=r"$\Vert\partial J / \partial z_t\Vert$ over batch and gates",
        )
    for axis in axes:
        figures.label_log10(axis)
        axis.legend(fontsize=9)
    name = CELLS[stored["model"]["cell"]].name
    called = f"How far back the gradient of the {name} reaches, through training"
    figure.suptitle(called, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    means = "stretches (left) and steps (right); before clipping" if stream else "stretches"
    text = f"top layer; geometric means over {means}; {describe_start(stored['model'])}"
    figure.supxlabel(text, fontsize=8.5, color="#555555")
    return figures.save(figure, folder / "figures", "gradient_flow")


def describe_start(stored: dict[str, Any]) -> str:
    """What a figure says of a model's parameters at the start."""
    start = forget_gate_start({"cell": stored["cell"], "model": stored})
    bias = start if start.startswith("chrono") else f"forget bias {start}"
    scale = f"input scale {stored['input_scale']:g}"
    if stored["init"] == "uniform":
        scale = f"weights from U(-{stored['init_range']:g}, {stored['init_range']:g})"
    return (f"{bias}, " if start else "") + f"{scale} at the start"


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
