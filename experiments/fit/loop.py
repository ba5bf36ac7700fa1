"""The training loop of one run: dispatches, evaluations, checkpoints, and stopping in between."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.fit.company import ALONE, Company
from experiments.fit.config import Config
from experiments.fit.progress import Progress, Silence
from experiments.fit.signals import StopOnSignal
from experiments.fit.startup import Startup
from experiments.run_folder import MetricsLog
from lm import model
from lm.cells import CELLS
from lm.checkpoint import Checkpoints
from lm.data.batches import Batches, cut_windows
from lm.data.corpus import Corpus
from lm.evaluate import Evaluation, evaluate_sentences, evaluate_stream, make_forward, perplexity
from lm.gradients.flow import measure_lags
from lm.mesh import any_process
from lm.monitor import observe
from lm.optim import Hyper, fitting_rate, make_schedule
from lm.train import (
    NotFiniteError,
    TrainState,
    init_state,
    make_block,
    place_state,
    run_blocks,
)

EVALUATED_ROWS = 16  # side by side on each device
Evaluate = Callable[[model.Params, str], Evaluation]  # (parameters, split)


class Fitted(NamedTuple):
    """How training ended."""

    state: TrainState
    finished: bool  # by its last step or by stopping early, not by a signal


def fit(
    config: Config,
    corpus: Corpus,
    batches: Batches,
    folder: Path,
    checkpoints: Checkpoints,
    evaluate: Evaluate,
    stop: StopOnSignal,
    startup: Startup,
    company: Company = ALONE,
    start: model.Params | None = None,
) -> Fitted:
    """Train to the last step, or until a signal asks to stop.

    Args:
      evaluate: from `make_evaluate`.
      stop: open; asked between dispatches.
      company: the devices to train on, and the processes that have them: all call this, and stop
        at the same step whichever of them the signal reaches.
      startup: open; says after the first dispatch how long it took to come.
      start: parameters to begin with, in place of drawn ones.

    Raises:
      NotFiniteError: the loss or the parameters overflowed; says where the last good state is.
    """
    per_epoch = batches.steps_per_epoch
    last = config.steps or max(1, round(config.epochs * per_epoch))
    state = init_state(
        jax.random.key(config.seed),
        config.model,
        config.optim,
        len(corpus.vocabulary),
        batches.batch_size,
    )
    resumed = bool(checkpoints.steps())
    if resumed:
        state = restore_last(checkpoints, place_state(state, company.mesh), company.mesh)
    rate = fitting_rate(config.optim, CELLS[config.model.cell].learning_rate)
    hyper = Hyper(jnp.float32(rate), jnp.float32(config.optim.clip))
    schedule = make_schedule(config.optim, per_epoch, last)
    factor_at = jax.jit(schedule)
    block = startup.watch(
        make_block(
            config.model,
            config.optim,
            schedule,
            regularize=config.regularize,
            log_gradient_flow=config.log_positions,
            remat=config.remat,
            mesh=company.mesh,
        )
    )
    measure = make_measure_lags(config, corpus) if config.log_gradient_flow else None
    begun = bool(MetricsLog.read(folder / "metrics.jsonl"))
    step = first = int(state.step)
    evaluate_every = config.evaluate_every or per_epoch
    per_dispatch = min(config.steps_per_dispatch, config.checkpoint_every, evaluate_every, last)
    with make_progress(company, folder, step, last, config.optim.clip) as progress:
        if not resumed:
            if start is not None:
                state = begin_with(start, state, evaluate, progress)
            state = place_state(state, company.mesh)
            if start is not None:
                checkpoints.save(state, best=True)
        if measure is not None and not begun:  # a run killed at its start has measured it already
            progress.note(0, log10_lag=measure(state.params).tolist())
        done, asked = finished(config, state, last), any_process(company.mesh, stop.asked)
        while not done and not asked:
            # Dispatches end at evaluations, and start from where the last of them ended or from
            # a checkpoint, which is saved after one: at the same steps in every process, whether
            # the run was resumed or not, so that it logs the same lines.
            due = min(last, (step // evaluate_every + 1) * evaluate_every)
            dispatches = run_blocks(
                state, hyper, block, batches, stop=due, steps_per_dispatch=per_dispatch
            )
            try:
                for state, metrics in dispatches:
                    took = startup.finish(len(metrics.nats)) if step == first else None
                    before, step = step, int(state.step)
                    factor = float(state.monitor.rate) * float(factor_at(np.int32(step - 1)))
                    flow = flow_of(config, metrics, measure, state.params)
                    if took is not None:
                        progress.say(f"{took}")
                        flow |= took._asdict()
                    progress.dispatch(step, metrics, rate * factor, flow)
                    every = config.checkpoint_every
                    asked = any_process(company.mesh, stop.asked)
                    if step < due and (asked or step // every > before // every):
                        checkpoints.save(state)
                    if asked:
                        break
                if step == due:
                    valid = evaluate(state.evaluated_params, "valid")
                    loss = valid.nats / valid.tokens
                    if not np.isfinite(perplexity(loss)):  # parameters are, but past all use
                        raise NotFiniteError(step, valid.nats, float(metrics.grad_norm[-1]))
                    known = float(state.monitor.best)
                    state = conclude(config, progress, state, loss)
                    checkpoints.save(state, best=float(state.monitor.best) < known)
            except NotFiniteError as error:
                checkpoints.wait()
                raise NotFiniteError(
                    error.step, error.nats, error.grad_norm, last_good(checkpoints)
                ) from None
            done, asked = finished(config, state, last), any_process(company.mesh, stop.asked)
    checkpoints.wait()
    return Fitted(state, done)


def begin_with(
    start: model.Params, drawn: TrainState, evaluate: Evaluate, progress: Progress
) -> TrainState:
    """The state before the first step with given parameters, evaluated: they may stay the best."""
    valid = evaluate(start, "valid")
    loss = valid.nats / valid.tokens
    progress.evaluation(0, loss)
    monitor = drawn.monitor.replace(best=jnp.float32(loss))  # type: ignore[attr-defined]
    state: TrainState = drawn.replace(  # type: ignore[attr-defined]
        params=jax.tree.map(jnp.array, start), monitor=monitor
    )
    return state


def finished(config: Config, state: TrainState, last: int) -> bool:
    """Whether the last step is done, or training has stalled and is to stop early."""
    return int(state.step) >= last or (config.optim.early_stop and bool(state.monitor.stalled))


def conclude(config: Config, progress: Progress, state: TrainState, loss: float) -> TrainState:
    """The state after a validation loss was seen, and a line where it changes something."""
    before = state
    monitor, average = observe(config.optim, state.monitor, state.average, loss)
    state = state.replace(monitor=monitor, average=average)  # type: ignore[attr-defined]
    step = int(state.step)
    progress.evaluation(step, loss)
    if float(monitor.rate) != float(before.monitor.rate):
        progress.say(f"step {step}: no better than the best; learning rate x {config.optim.decay}")
    if average is not None and before.average is not None and average.on != before.average.on:
        progress.say(f"step {step}: stalled; averaging the parameters from here on")
    return state


def make_progress(company: Company, folder: Path, start: int, last: int, clip: float) -> Progress:
    """The first process's progress; the others keep silent."""
    return Progress(folder, start=start, last=last, clip=clip) if company.first else Silence()


def restore_last(
    checkpoints: Checkpoints, template: TrainState, mesh: Mesh | None = None
) -> TrainState:
    """The last checkpoint that can be read; says so where it is not the last there is.

    Raises:
      ValueError: one process can read what another cannot.
    """
    newest = checkpoints.steps()[-1]
    state = checkpoints.restore(template)
    damaged = int(state.step) != newest
    if any_process(mesh, damaged) and any_process(mesh, not damaged):
        raise ValueError(
            f"checkpoint {newest} in {checkpoints.folder} cannot be read by every process; wanted "
            "a folder that all of them see, or that checkpoint removed"
        )
    if damaged:
        print(
            f"checkpoint {newest} is damaged; going on from {int(state.step)}, the one before",
            file=sys.stderr,
        )
        checkpoints.drop_after(int(state.step))
    return state


def last_good(checkpoints: Checkpoints) -> str:
    """Where to go on from after a failure."""
    steps = checkpoints.steps()
    return f"the state of step {steps[-1]} is kept in {checkpoints.folder}" if steps else ""


def flow_of(
    config: Config,
    metrics: Any,
    measure: Callable[[model.Params], np.ndarray] | None,
    params: model.Params,
) -> dict[str, Any]:
    """The gradient flow of one dispatch, as log10 of norms."""
    flow = {}
    if config.log_positions:  # what the training itself carried back, newest position first
        flow["log10_delta"] = (metrics.log_delta[..., ::-1].mean(axis=0) / np.log(10)).tolist()
    if measure is not None:  # and one loss alone
        flow["log10_lag"] = measure(params).tolist()
    return flow


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


def make_evaluate(config: Config, corpus: Corpus, mesh: Mesh | None = None) -> Evaluate:
    """(params, split) -> Evaluation, in the batching that the model is trained with."""
    forward = make_forward(config.model, mesh)
    rows = EVALUATED_ROWS * (1 if mesh is None else mesh.size)

    def evaluate(params: model.Params, split: str) -> Evaluation:
        measure = evaluate_stream if config.data.batching == "stream" else evaluate_sentences
        return measure(config.model, params, corpus.splits[split], batch=rows, forward=forward)

    return evaluate
