"""Many training runs through one compiled program, wave after wave.

The points of a wave are spread over the devices that are there; on each device a few of them, its
lanes, go side by side by vmap. On a CPU one lane is the fastest, as was measured for H = 16 to 64;
elsewhere a short measurement chooses. A run that diverges is a result: its step is noted and the
others go on.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import model
from lm.cells import CELLS
from lm.config import ALWAYS_TRACED, TRACED_UNLESS_0, ModelConfig, OptimConfig, is_traced
from lm.data.batches import Batches
from lm.evaluate import Rows, cut_rows, evaluate_sentences, make_forward, perplexity, scan_stream
from lm.optim import fitting_rate, make_schedule
from lm.train import TrainState, fill
from lm.unfinished import Keep, Unfinished
from lm.whole_run import Fixed, Point, advance, conclude, start

POINTS = "points"  # the mesh axis that a wave is spread over
MOST_LANES = 64
TRIAL_STEPS = 5  # of a dispatch that is timed to choose the lanes
LONG_WORK = 20_000  # steps of all points together from which choosing by measurement pays
WORTH = 0.9  # more lanes are taken where a step then takes less than this share of the time


@dataclass(frozen=True)
class Outcome:
    """What one run came to. Losses are in nats per token."""

    point: Point
    params: model.Params | None  # of least validation loss, NumPy; None: it diverged before one
    valid_loss: float  # theirs; inf: the run diverged
    test_loss: float  # likewise; NaN: there is no test text
    best_step: int
    last_step: int
    diverged_at: int | None  # the first step whose loss, gradient or parameters are not finite
    evaluations: tuple[tuple[int, float], ...]  # (step, validation loss), as training went
    losses: np.ndarray  # of each step's batch [steps]
    grad_norms: np.ndarray  # global L2 norm of each step, before clipping [steps]
    seconds: float  # that its wave took, compiling included, divided among the wave's points

    @property
    def valid(self) -> float:
        """Perplexity on the validation text."""
        return perplexity(self.valid_loss)

    @property
    def test(self) -> float:
        """Perplexity on the test text."""
        return perplexity(self.test_loss)


class Tick(NamedTuple):
    """What is said after each dispatch."""

    taken: int  # steps of all points of the wave together, in this dispatch
    step: int  # that the wave is at
    loss: float  # of this dispatch, nats per token, mean over the points that are finite; or NaN


Watch = Callable[[Tick], object]
TrainPoints = Callable[..., Iterator[Outcome]]  # (points, watch=...)


class Plan(NamedTuple):
    """How long each run is and what it reads."""

    fixed: Fixed
    vocabulary: int
    batches: Batches
    steps: int
    evaluate_every: int
    steps_per_dispatch: int

    @property
    def identity(self) -> Any:
        """What tells it from another plan on the same texts and batches."""
        return self.fixed, self.vocabulary, self.batches.batch_size, self[3:]

    @property
    def averages(self) -> bool:
        """Whether what is evaluated is an average of the parameters."""
        return self.fixed.optim.averaging != "none"

    def schedule_of(self, optim: OptimConfig) -> optax.Schedule:
        """Step -> factor on the learning rate."""
        return make_schedule(optim, self.batches.steps_per_epoch, self.steps)


def make_train_points(
    fixed: Fixed,
    splits: Mapping[str, np.ndarray],
    vocabulary: int,
    batches: Batches,
    *,
    steps: int,
    evaluate_every: int = 0,
    steps_per_dispatch: int = 50,
    sentences: bool = False,
    lanes: int = 0,
    devices: Sequence[Any] | None = None,
    keep: Keep | None = None,
) -> TrainPoints:
    """Compile whole runs: `train(points, watch)` yields the Outcome of each point.

    Outcomes come in the order of the points, wave after wave. `watch` is told after each
    dispatch; what it raises ends the training, and with it the wave that is under way. Calls
    after the first compile nothing. A wave that a device has no room for is tried as smaller ones.

    Args:
      fixed: what is not in a point; a learning rate of 0 is the one that suits the cell.
      splits: "valid" and, if its loss is wanted, "test": int32 tokens.
      vocabulary: V.
      batches: of the training text, one and the same for all points.
      steps: of each run.
      evaluate_every: steps between passes over the validation text, and always after the last
        step; 0: each epoch.
      steps_per_dispatch: most steps in one compiled call.
      sentences: evaluate each sentence for itself.
      lanes: points side by side on a device; 0: chosen, see `measure_lanes`.
      devices: those to use; None: all of this process.
      keep: where a wave that is under way is kept, to go on from after a kill. It names the
        texts and batches, which must be the same then. None: nowhere.
    """
    rate = fitting_rate(fixed.optim, CELLS[fixed.model.cell].learning_rate)
    every = min(evaluate_every or batches.steps_per_epoch, steps)
    plan = Plan(
        fixed.at({"learning_rate": rate}),
        vocabulary,
        batches,
        steps,
        every,
        min(steps_per_dispatch, every),
    )
    texts = Texts(fixed.model, splits, sentences)
    present = jax.local_devices() if devices is None else devices
    programs: dict[tuple[int, int], Program] = {}
    chosen = lanes

    def program_of(lanes: int, used: int) -> Program:
        if (lanes, used) not in programs:
            programs[lanes, used] = make_program(plan, lanes, present[:used])
        return programs[lanes, used]

    def train(points: Sequence[Point], watch: Watch = lambda tick: None) -> Iterator[Outcome]:
        nonlocal chosen
        left = [complete(point, rate, fixed.model.init) for point in points]
        refuse_differing(left)
        used = min(len(present), len(left))
        each = math.ceil(len(left) / max(1, used))
        if not chosen and each > 1 and len(left) * steps >= LONG_WORK:
            chosen = measure_lanes(lambda lanes: program_of(lanes, used), plan, left, each)
        side_by_side = min(each, chosen or (1 if on_cpu() else MOST_LANES))
        while left:
            program = program_of(side_by_side, used)
            try:
                outcomes = run_wave(program, plan, texts, left[: program.width], watch, keep)
            except jax.errors.JaxRuntimeError as error:
                if side_by_side == 1 or not is_memory_short(error):
                    raise
                side_by_side = chosen = max(1, side_by_side // 4)
                continue
            del left[: len(outcomes)]
            yield from outcomes

    return train


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def is_memory_short(error: Exception) -> bool:
    """Whether a device has no room for what it was to do."""
    return "RESOURCE_EXHAUSTED" in str(error)


def complete(point: Point, rate: float, init: str) -> Point:
    """A point as it is trained: with a seed, and for a learning rate of 0 the fitting one.

    Args:
      init: how the weights start.

    Raises:
      ValueError: it names an option that runs of one program cannot differ in.
    """
    known = [name for name in (*ALWAYS_TRACED, *TRACED_UNLESS_0) if is_traced(name, 1.0, init)]
    for name in point:
        if name not in known:
            raise ValueError(
                f"a point holds {name}, in which runs of one program cannot differ; wanted of: "
                f"{', '.join(known)}"
            )
    found = {"seed": 0, **point}
    if found.get("learning_rate") == 0:
        found["learning_rate"] = rate
    return found


def refuse_differing(points: Sequence[Point]) -> None:
    """Raise ValueError where two points name different options."""
    for point in points:
        if point.keys() != points[0].keys():
            raise ValueError(
                f"points hold {', '.join(points[0])} and {', '.join(point)}; wanted the same "
                "options in each"
            )


class Program(NamedTuple):
    """The compiled functions of one width of wave; what is a point's has a leading [points]."""

    width: int  # points of a wave
    place: Callable[[Any], Any]  # NumPy arrays [points, ...] -> on their devices
    start: Callable[..., Any]
    advance: Callable[..., Any]
    averaged: Callable[[TrainState], model.Params]  # the parameters that evaluation is of
    score: Callable[..., Any]  # (parameters, Rows) -> nats [points, S]
    conclude: Callable[..., Any]


def make_program(plan: Plan, lanes: int, devices: Sequence[Any]) -> Program:
    """Compile, at first use, for waves of `lanes` points on each device."""
    mesh = Mesh(np.asarray(devices), (POINTS,))
    spread, everywhere = PartitionSpec(POINTS), PartitionSpec()

    def mapped(function: Callable[..., Any], own: int, shared: int = 0, donate: Any = ()) -> Any:
        """Over points: of the arguments, the first `own` are each point's, the rest all points'."""

        def local(*arguments: Any) -> Any:
            mine, common = arguments[:own], arguments[own:]
            if lanes > 1:
                return jax.vmap(lambda *mine: function(*mine, *common))(*mine)
            result = function(*jax.tree.map(lambda a: a[0], mine), *common)
            return jax.tree.map(lambda a: a[None], result)

        if len(devices) > 1:
            local = jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(spread,) * own + (everywhere,) * shared,
                out_specs=spread,
                check_vma=False,
            )
        return jax.jit(local, donate_argnums=donate)

    def advance_living(
        point: Point, state: TrainState, alive: jax.Array, batches: Any, count: jax.Array
    ) -> Any:
        # Alone, a run that is over takes no steps; side by side they cost nothing more.
        count = jnp.where(alive, count, 0) if lanes == 1 else count
        return advance(plan.fixed, plan.schedule_of, point, state, batches, count)

    rows = plan.batches.batch_size
    return Program(
        width=len(devices) * lanes,
        place=lambda tree: jax.device_put(tree, NamedSharding(mesh, spread)),
        start=mapped(partial(start, plan.fixed, plan.vocabulary, rows), 1),
        advance=mapped(advance_living, 3, 2, donate=1),
        averaged=mapped(lambda state: state.evaluated_params, 1),
        score=mapped(partial(scan_stream, plan.fixed.model), 1, 1),
        conclude=mapped(partial(conclude, plan.fixed), 5, donate=(1, 2)),
    )


class Texts:
    """The texts that runs are evaluated on; on the device once they are needed."""

    def __init__(self, config: ModelConfig, splits: Mapping[str, np.ndarray], sentences: bool):
        self._config, self._splits, self._sentences = config, splits, sentences
        self._rows: dict[str, Rows] = {}
        self._forward = make_forward(config)

    def losses(self, program: Program, params: model.Params, split: str) -> np.ndarray:
        """Nats per token of each point [points]; NaN where there is no such text."""
        count = len(params.embedding)
        if split not in self._splits:
            return np.full(count, np.nan)
        tokens = self._splits[split]
        if self._sentences:
            each = (jax.tree.map(lambda a, p=p: a[p], params) for p in range(count))
            found = [
                evaluate_sentences(self._config, alone, tokens, forward=self._forward).nats
                for alone in each
            ]
            return np.asarray(found) / len(tokens)
        if split not in self._rows:
            self._rows[split] = jax.tree.map(jnp.asarray, cut_rows(tokens))
        nats = np.asarray(program.score(params, self._rows[split]), np.float64)
        return nats.sum(axis=1) / len(tokens)


class Ledger:
    """What is known on the host about the runs of a wave; arrays are [points]."""

    def __init__(self, points: Sequence[Point], width: int):
        self.points = points
        self._began = time.monotonic()
        self.alive = np.arange(width) < len(points)  # the rest fills the wave up
        self.step = 0
        self._diverged = np.full(width, -1)
        self._last = np.zeros(width, int)
        self._losses: list[np.ndarray] = []
        self._grad_norms: list[np.ndarray] = []
        self._evaluations: list[tuple[int, np.ndarray]] = []

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for `Unfinished`."""
        return {
            "alive": self.alive,
            "step": np.asarray(self.step),
            "diverged": self._diverged,
            "last": self._last,
            "losses": np.concatenate(self._losses, axis=1),
            "grad_norms": np.concatenate(self._grad_norms, axis=1),
            "evaluated": np.asarray([step for step, _ in self._evaluations], int),
            "valid": np.asarray([valid for _, valid in self._evaluations]),
        }

    def go_on_from(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take in what `arrays` gave before a kill."""
        self.alive, self.step = arrays["alive"], int(arrays["step"])
        self._diverged, self._last = arrays["diverged"], arrays["last"]
        self._losses, self._grad_norms = [arrays["losses"]], [arrays["grad_norms"]]
        evaluated = map(int, arrays["evaluated"])
        self._evaluations = list(zip(evaluated, arrays["valid"], strict=True))

    def take_steps(self, count: int, metrics: Any, finite: Any) -> Tick:
        """One dispatch of `count` steps. `metrics`: StepMetrics [points, steps]."""
        nats, tokens, norms, finite = jax.device_get(
            (metrics.nats, metrics.tokens, metrics.grad_norm, finite)
        )
        with np.errstate(invalid="ignore"):
            losses = np.where(self.alive[:, None], nats / tokens, np.nan)[:, :count]
        norms = np.where(self.alive[:, None], norms, np.nan)[:, :count]
        bad = ~(np.isfinite(losses) & np.isfinite(norms))
        bad[:, -1] |= ~finite
        taken = count * int(self.alive.sum())
        self._losses.append(losses)
        self._grad_norms.append(norms)
        self._strike(bad.any(axis=1), self.step + bad.argmax(axis=1))
        self.step += count
        self._last[self.alive] = self.step
        living = losses[self.alive]
        return Tick(taken, self.step, float(living.mean()) if len(living) else math.nan)

    def take_evaluation(self, losses: np.ndarray) -> None:
        """A validation loss of each, nats per token; beyond a float's perplexity it has diverged.

        Its parameters are finite still, but past all use.
        """
        useless = [not math.isfinite(perplexity(loss)) for loss in losses]
        self._strike(np.asarray(useless), np.full(len(losses), self.step))
        self._evaluations.append((self.step, np.where(self.alive, losses, np.nan)))

    def _strike(self, these: Any, steps: np.ndarray) -> None:
        struck = self.alive & these
        self._diverged[struck] = steps[struck]
        self._last[struck] = steps[struck]
        self.alive = self.alive & ~struck

    def outcomes(self, params: model.Params, best_step: Any, test: np.ndarray) -> list[Outcome]:
        """Of each point. `params` are the best, NumPy, with a leading [points]."""
        losses, norms = np.concatenate(self._losses, 1), np.concatenate(self._grad_norms, 1)
        seconds = (time.monotonic() - self._began) / len(self.points)
        found = []
        for p, point in enumerate(self.points):
            curve = {s: float(valid[p]) for s, valid in self._evaluations if np.isfinite(valid[p])}
            best, last, failed = int(best_step[p]), int(self._last[p]), self._diverged[p] >= 0
            found.append(
                Outcome(
                    point=point,
                    params=jax.tree.map(lambda a, p=p: a[p], params) if best else None,
                    valid_loss=math.inf if failed else curve[best],
                    test_loss=math.inf if failed else float(test[p]),
                    best_step=best,
                    last_step=last,
                    diverged_at=int(self._diverged[p]) if failed else None,
                    evaluations=tuple(curve.items()),
                    losses=losses[p, :last],
                    grad_norms=norms[p, :last],
                    seconds=seconds,
                )
            )
        return found


def run_wave(
    program: Program,
    plan: Plan,
    texts: Texts,
    points: Sequence[Point],
    watch: Watch,
    keep: Keep | None = None,
) -> list[Outcome]:
    """Train the points of one wave from their first step, or from where it is kept, to the last."""
    ledger = Ledger(points, program.width)
    stacked = program.place(stack_points(points, program.width))
    state, best = program.start(stacked)
    identity = repr((keep and keep.reads, plan.identity, program.width, points))
    file = Unfinished(keep, identity) if keep else None
    if file and (kept := file.load((state, best))):
        (state, best), arrays = program.place(kept[0]), kept[1]
        ledger.go_on_from(arrays)
    while ledger.step < plan.steps and ledger.alive.any():
        step, every = ledger.step, plan.evaluate_every
        due = min(plan.steps, (step // every + 1) * every)
        block = plan.batches.block(step, min(plan.steps_per_dispatch, due - step))
        count, block = len(block.reset), fill(block, plan.steps_per_dispatch)
        alive = program.place(ledger.alive)
        state, metrics, finite = program.advance(stacked, state, alive, block, np.int32(count))
        tick = ledger.take_steps(count, metrics, finite)
        if ledger.step == due and ledger.alive.any():
            params = program.averaged(state) if plan.averages else state.params
            losses = texts.losses(program, params, "valid")
            ledger.take_evaluation(losses)
            placed = program.place((losses.astype(np.float32), ledger.alive))
            state, best = program.conclude(stacked, state, best, *placed)
            if plan.fixed.optim.early_stop:
                ledger.alive &= ~np.asarray(state.monitor.stalled)
        if file:
            file.save_if_due((state, best), ledger.arrays())
        watch(tick)
    test = texts.losses(program, best.params, "test")
    if file:
        file.remove()
    return ledger.outcomes(jax.device_get(best.params), jax.device_get(best.step), test)


def measure_lanes(
    program_of: Callable[[int], Program], plan: Plan, points: Sequence[Point], each: int
) -> int:
    """How many points side by side on a device train fastest: a few steps of each are timed.

    Fourfold more are tried as long as a step of one point gets quicker for it. More than fit into
    the device's memory count as slower.

    Args:
      program_of: lanes -> Program.
      each: points there are for a device.
    """
    fastest, least, lanes = 1, math.inf, 1
    while lanes <= min(each, MOST_LANES):
        try:
            took = time_step(program_of(lanes), plan, points)
        except jax.errors.JaxRuntimeError as error:
            if not is_memory_short(error):
                raise
            break
        if took > WORTH * least:
            break
        fastest, least, lanes = lanes, took, 4 * lanes
    return fastest


def time_step(program: Program, plan: Plan, points: Sequence[Point]) -> float:
    """Seconds that a training step of one point takes in a wave, once it is compiled."""
    stacked = program.place(stack_points(points[: program.width], program.width))
    state, _ = program.start(stacked)
    alive = program.place(np.ones(program.width, bool))
    block = plan.batches.block(0, min(TRIAL_STEPS, plan.steps_per_dispatch))
    count, block = len(block.reset), fill(block, plan.steps_per_dispatch)
    least = math.inf
    for _ in range(3):  # the first one compiles
        began = time.perf_counter()
        state, _, finite = program.advance(stacked, state, alive, block, np.int32(count))
        jax.block_until_ready(finite)
        least = min(least, time.perf_counter() - began)
    return least / (count * program.width)


def stack_points(points: Sequence[Point], width: int) -> dict[str, np.ndarray]:
    """Numbers of several points by option, [width]; the last point fills the wave up."""
    filled = [*points, *[points[-1]] * (width - len(points))]
    dtypes = {"seed": np.int32}
    return {
        name: np.asarray([point[name] for point in filled], dtypes.get(name, np.float32))
        for name in points[0]
    }
