"""Many runs through one program: each is the run that it would be alone; one that diverges, too."""

import dataclasses
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT

from lm import many_runs, model
from lm.cells import CELLS
from lm.config import (
    ALWAYS_TRACED,
    TRACED_UNLESS_0,
    ModelConfig,
    OptimConfig,
    RegularizeConfig,
    is_traced,
)
from lm.data.batches import SentenceBatches, StreamBatches
from lm.evaluate import (
    cut_rows,
    evaluate_sentences,
    evaluate_stream,
    make_forward,
    scan_stream,
)
from lm.many_runs import make_train_points, measure_lanes
from lm.monitor import observe
from lm.optim import Hyper, make_schedule
from lm.train import init_state, make_block, run_blocks
from lm.unfinished import Keep
from lm.whole_run import Fixed

V = 13
TOKENS = np.random.default_rng(0).integers(1, V, 2003).astype(np.int32)
SPLITS = {"valid": TOKENS[:700], "test": TOKENS[700:1200]}
SMALL = ModelConfig(hidden_size=8, embedding_size=8)
STEPS, EVERY = 24, 10


def run_alone(fixed, point, batches, every=EVERY, sentences=False):
    """The run as `train` has it, from its own parts, with the point's numbers in its options."""
    sections = {}
    for name in ("model", "optim", "regularize"):
        section = getattr(fixed, name)
        own = {n: value for n, value in point.items() if hasattr(section, n)}
        sections[name] = dataclasses.replace(section, **own)
    fixed = dataclasses.replace(fixed, **sections)
    optim, key = fixed.optim, jax.random.key(point.get("seed", 0))
    state = init_state(key, fixed.model, optim, V, batches.batch_size)
    schedule = make_schedule(optim, batches.steps_per_epoch, STEPS)
    block = make_block(fixed.model, optim, schedule, regularize=fixed.regularize)
    hyper = Hyper(jnp.float32(optim.learning_rate), jnp.float32(optim.clip))
    measure = evaluate_sentences if sentences else evaluate_stream
    evaluate = partial(measure, fixed.model, forward=make_forward(fixed.model))
    losses, curve, best, step = [], [], None, 0
    while step < STEPS and not (optim.early_stop and bool(state.monitor.stalled)):
        due = min(STEPS, (step // every + 1) * every)
        run = run_blocks(state, hyper, block, batches, stop=due, steps_per_dispatch=EVERY)
        for after, metrics in run:
            state = after
            losses.extend(metrics.nats / metrics.tokens)
        step = int(state.step)
        params = jax.tree.map(jnp.copy, state.evaluated_params)
        found = evaluate(params, SPLITS["valid"])
        if found.nats / found.tokens < float(state.monitor.best):
            best = step, params
        loss = found.nats / found.tokens
        monitor, average = observe(optim, state.monitor, state.average, loss)
        state = state.replace(monitor=monitor, average=average)
        curve.append((step, loss))
    test = evaluate(best[1], SPLITS["test"])
    return losses, curve, best, test.nats / test.tokens


def assert_same(outcome, alone, rtol=1e-5):
    losses, curve, (best_step, params), test_loss = alone
    np.testing.assert_allclose(outcome.losses, losses, rtol=rtol)
    np.testing.assert_allclose(outcome.evaluations, curve, rtol=rtol)
    np.testing.assert_allclose(outcome.test_loss, test_loss, rtol=rtol)
    assert outcome.best_step == best_step
    assert outcome.valid_loss == dict(outcome.evaluations)[best_step]
    assert outcome.last_step == len(losses)
    assert outcome.diverged_at is None
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), outcome.params, params
    )


PLAIN = Fixed(SMALL, OptimConfig(schedule="cosine"))
PLAIN_POINTS = [
    {
        "seed": seed,
        "learning_rate": rate,
        "clip": clip,
        "forget_bias": seed - 1.0,
        "input_scale": scale,
        "recurrent_gain": gain,
    }
    for seed, rate, clip, scale, gain in [
        (0, 0.5, 0.25, 1.0, 1.0),
        (3, 4.0, np.inf, 0.3, 1.2),
        (3, 1e38, 1e38, 1.0, 1.0),
        (3, 2.0, 0.1, 2.0, 0.5),
    ]
]
FULL = Fixed(
    dataclasses.replace(SMALL, init="uniform", layers=2),
    OptimConfig(schedule="plateau", averaging="triggered", patience=1),
    RegularizeConfig(),
)
FULL_NAMES = ("seed", "init_range", "decay", "learning_rate", *TRACED_UNLESS_0)
FULL_POINTS = [
    dict(
        zip(("seed", "init_range", "decay", "learning_rate", *TRACED_UNLESS_0), given, strict=True)
    )
    for given in [
        (1, 0.2, 0.5, 2.0, 0.3, 1e-3, 0.2, 0.5, 0.1, 0.2, 0.3, 0.4, 0.1, 0.25),
        (2, 0.4, 0.1, 4.0, 0.9, 1e-5, 2.0, 1.0, 0.2, 0.1, 0.2, 0.1, 0.4, 0.5),
    ]
]


@pytest.mark.parametrize(
    ("fixed", "points", "lanes"),
    [(PLAIN, PLAIN_POINTS, 1), (PLAIN, PLAIN_POINTS, 3), (FULL, FULL_POINTS, 2)],
    ids=["plain, alone", "plain", "full"],
)
def test_a_point_among_others_is_the_run_alone(fixed, points, lanes):
    """Traced numbers against options; a wave that is not full, a run that fails."""
    batches = StreamBatches(TOKENS, 4, 16)
    train = make_train_points(
        fixed, SPLITS, V, batches, steps=STEPS, evaluate_every=EVERY, lanes=lanes
    )
    ticks, began = [], time.monotonic()
    outcomes = list(train(points, ticks.append))
    seconds, took = [outcome.seconds for outcome in outcomes], time.monotonic() - began
    assert 0.9 * took < sum(seconds) <= took
    if lanes > 1:  # those of a wave share its time
        width = lanes * jax.local_device_count()
        assert len({*seconds[:width]}) == 1
    assert [outcome.point for outcome in outcomes] == points
    for outcome, point in zip(outcomes, points, strict=True):
        if point["learning_rate"] == 1e38:
            assert_diverged(outcome)
        else:
            assert_same(outcome, run_alone(fixed, point, batches))
    assert len({outcome.valid_loss for outcome in outcomes}) == len(points)
    whole = sum(outcome.diverged_at is None for outcome in outcomes) * STEPS
    assert sum(tick.taken for tick in ticks) == whole + EVERY * (len(points) - whole // STEPS)
    assert sum(np.isnan(tick.loss) for tick in ticks) == (whole < STEPS * len(points)) * (
        lanes == 1
    )
    if lanes == 1 or whole == STEPS * len(points):  # no tick is of sound runs and one that fails
        told = sum(tick.loss * tick.taken for tick in ticks if np.isfinite(tick.loss))
        sound = [outcome for outcome in outcomes if outcome.diverged_at is None]
        np.testing.assert_allclose(told, sum(o.losses.sum() for o in sound), rtol=1e-5)


def assert_diverged(outcome):
    assert 0 < outcome.diverged_at < EVERY
    assert outcome.last_step == outcome.diverged_at == len(outcome.losses)
    assert np.isfinite(outcome.losses).all()
    assert outcome.valid == outcome.test == np.inf
    assert outcome.params is None
    assert outcome.evaluations == ()


@pytest.mark.whole
def test_sentences_and_early_stopping():
    """Batches that are padded; runs that stop apart from each other."""
    fixed = Fixed(SMALL, OptimConfig(optimizer="adam", early_stop=True, patience=1))
    batches = SentenceBatches(TOKENS, 4, 8)
    points = [{"seed": 0, "learning_rate": rate} for rate in (0.002, 0.5)]
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32
        train = make_train_points(
            fixed, SPLITS, V, batches, steps=STEPS, evaluate_every=2, sentences=True
        )
        slow, fast = train(points)
        assert_same(fast, run_alone(fixed, fast.point, batches, 2, sentences=True))
    assert fast.last_step < slow.last_step == STEPS


def test_later_calls_compile_nothing(caplog):
    batches = StreamBatches(TOKENS, 4, 16)
    train = make_train_points(PLAIN, {"valid": TOKENS[:300]}, V, batches, steps=12)
    (first,) = train([{"seed": 0, "learning_rate": 1.0}])
    with jax.log_compiles(True), caplog.at_level("DEBUG"):
        (again,) = train([{"seed": 0, "learning_rate": 1.0}])
        (other,) = train([{"seed": 5, "learning_rate": 2.0}])
    assert not [r for r in caplog.records if "Compiling" in r.message]
    assert again.valid_loss == first.valid_loss != other.valid_loss
    assert np.isnan(first.test_loss)


def test_a_learning_rate_of_0_is_the_one_that_suits():
    batches = StreamBatches(TOKENS, 4, 16)
    train = make_train_points(PLAIN, {"valid": TOKENS[:300]}, V, batches, steps=2)
    (outcome,) = train([{"learning_rate": 0.0}])
    assert outcome.point == {"seed": 0, "learning_rate": CELLS["lstm"].learning_rate}


def test_what_no_point_may_hold():
    train = make_train_points(PLAIN, SPLITS, V, StreamBatches(TOKENS, 4, 16), steps=2)
    with pytest.raises(ValueError, match="hidden_size, in which runs of one program"):
        list(train([{"hidden_size": 3}]))
    with pytest.raises(ValueError, match="wanted the same options"):
        list(train([{"clip": 1.0}, {"forget_bias": 1.0}]))
    assert list(train([])) == []
    uniform = Fixed(dataclasses.replace(SMALL, init="uniform"), PLAIN.optim)
    train = make_train_points(uniform, SPLITS, V, StreamBatches(TOKENS, 4, 16), steps=2)
    with pytest.raises(ValueError, match="recurrent_gain, in which runs of one program"):
        list(train([{"recurrent_gain": 1.0}]))


def test_traced_options_are_options():
    sections = (ModelConfig, OptimConfig, RegularizeConfig)
    known = {field.name for section in sections for field in dataclasses.fields(section)}
    assert {*ALWAYS_TRACED, *TRACED_UNLESS_0} - {"seed"} <= known
    assert is_traced("clip", 0.5)
    assert is_traced("momentum", 0.9)
    assert not is_traced("momentum", 0.0)
    assert not is_traced("hidden_size", 8)


@pytest.mark.parametrize("forget_bias", [1.0, 12.0])
@pytest.mark.parametrize(("tokens", "batch"), [(2003, 7), (40, 16), (700, 1)])
def test_scanned_perplexity_is_the_streamed_one(forget_bias, tokens, batch):
    """Forget bias 12 never forgets: guesses are wrong and rows are read several times."""
    config = ModelConfig(hidden_size=8, embedding_size=8, forget_bias=forget_bias)
    params, text = model.init(jax.random.key(0), config, V), TOKENS[:tokens]
    expected = evaluate_stream(config, params, text, batch=batch, length=16)
    scan = jax.jit(partial(scan_stream, config))
    nats = np.asarray(scan(params, cut_rows(text, batch=batch, length=16)))
    np.testing.assert_allclose(nats.sum(), expected.nats, rtol=1e-5)


@pytest.mark.parametrize("damage", [False, True])
def test_a_wave_that_is_killed_goes_on_to_the_same_bits(damage, tmp_path):
    """At its second dispatch, after an evaluation; from the start where the file is torn."""
    fixed = Fixed(SMALL, OptimConfig(schedule="plateau", averaging="always", momentum=0.9))
    options = {"steps": STEPS, "evaluate_every": EVERY, "steps_per_dispatch": 6, "lanes": 2}
    train, kept = (
        make_train_points(fixed, SPLITS, V, StreamBatches(TOKENS, 4, 16), **options, keep=keep)
        for keep in (None, Keep(tmp_path, seconds=0.0))
    )
    points = [{"seed": 1, "learning_rate": 0.5}, {"seed": 2, "learning_rate": 1.0}]

    def die(tick):
        if tick.step == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(kept(points, die))
    (file,) = tmp_path.iterdir()
    if damage:
        file.write_bytes(file.read_bytes()[:5000])
    ticks = []
    for again, whole in zip(kept(points, ticks.append), train(points), strict=True):
        jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
        np.testing.assert_array_equal(again.losses, whole.losses)
        np.testing.assert_array_equal(again.grad_norms, whole.grad_norms)
        assert again.evaluations == whole.evaluations
        assert again.test_loss == whole.test_loss
    assert ticks[0].step == (6 if damage else 20)
    assert not list(tmp_path.iterdir())


def test_a_kept_wave_is_of_its_program_its_points_and_what_they_read(tmp_path, monkeypatch):
    """Programs that differ in their batches alone share a folder, as the groups of a sweep do."""
    made = []

    def unfinished(keep, identity):
        made.append(identity)
        raise KeyboardInterrupt

    monkeypatch.setattr(many_runs, "Unfinished", unfinished)
    program = SimpleNamespace(width=1, place=lambda tree: tree, start=lambda stacked: (0, 0))
    plan = many_runs.Plan(PLAIN, V, StreamBatches(TOKENS, 4, 16), 24, 10, 10)

    def name(plan=plan, seed=0, **changes):
        keep = Keep(tmp_path)._replace(**changes)
        with pytest.raises(KeyboardInterrupt):
            many_runs.run_wave(program, plan, None, [{"seed": seed}], lambda tick: None, keep)
        return made[-1]

    assert name() == name(seconds=1.0)
    others = name(reads="length 12"), name(plan._replace(steps=25)), name(seed=1)
    assert len({name(), *others}) == 4


def test_a_wave_that_has_no_room_is_cut(monkeypatch):
    real, widths = many_runs.run_wave, []

    def run_wave(program, plan, texts, points, *rest):
        widths.append(program.width)
        if program.width > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(program, plan, texts, points, *rest)

    monkeypatch.setattr(many_runs, "run_wave", run_wave)
    batches = StreamBatches(TOKENS, 4, 16)
    one = jax.local_devices()[:1]
    splits = {"valid": TOKENS[:300]}
    train = make_train_points(PLAIN, splits, V, batches, steps=2, lanes=5, devices=one)
    outcomes = list(train([{"seed": seed} for seed in range(5)]))
    assert [outcome.point["seed"] for outcome in outcomes] == list(range(5))
    assert widths == [5, 1, 1, 1, 1, 1]


def test_lanes_are_chosen_by_the_clock(monkeypatch):
    """The fastest; a fourfold step that gains nothing ends the search, memory too."""

    def choose(seconds, each):
        monkeypatch.setattr(many_runs, "time_step", lambda lanes, plan, points: seconds(lanes))
        return measure_lanes(lambda lanes: lanes, None, [], each)

    def full(lanes):
        if lanes > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return 1 / lanes

    assert choose(lambda lanes: 1 / lanes, each=100) == 64
    assert choose(lambda lanes: 1 / lanes, each=20) == 16
    assert choose(lambda lanes: 1.0, each=100) == 1
    assert choose(lambda lanes: abs(lanes - 4) + 1, each=100) == 4
    assert choose(full, each=100) == 4


@pytest.mark.whole
def test_a_wave_is_spread_over_the_devices():
    code = f"""if True:
        import jax, sys
        jax.config.update("jax_num_cpu_devices", 3)
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import test_many_runs as t
        assert jax.device_count() == 3
        batches = t.StreamBatches(t.TOKENS, 4, 16)
        for lanes in (1, 2):
            train = t.make_train_points(
                t.PLAIN, t.SPLITS, t.V, batches, steps=t.STEPS, evaluate_every=t.EVERY, lanes=lanes
            )
            points = [*t.PLAIN_POINTS, t.PLAIN_POINTS[0] | {{"seed": 9}}]
            for outcome in train(points):
                if outcome.point["learning_rate"] == 1e38:
                    t.assert_diverged(outcome)
                else:
                    t.assert_same(outcome, t.run_alone(t.PLAIN, outcome.point, batches))
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=240)
