"""Training on tasks, the verdicts on claims, and what `claims` writes, prints and returns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import assert_one_line, call

from experiments import claims, run_folder
from experiments.claim import laboratory, studies, task_claim
from experiments.claim import outcome as claim_outcome
from experiments.task_training import (
    Hyper,
    Network,
    TaskParams,
    make_train_task,
    measure_sample,
    run_seeds,
)
from lm.cells.cell import CellParams
from lm.tasks import TASKS

HYPER = Hyper(jnp.float32(1e-2), jnp.float32(1.0), jnp.float32(1.0))


@pytest.fixture(scope="module")
def train():
    return jax.jit(make_train_task(Network("lstm", 8), TASKS["adding"](4), steps=150, batch=16))


def test_a_run_is_a_function_of_its_key(train):
    run = run_seeds(train, HYPER, 2, lambda: None)
    again = train(jax.random.key(1), HYPER)
    jax.tree.map(lambda ours, alone: np.testing.assert_array_equal(ours[1], alone), run, again)
    assert (run.losses[0] != run.losses[1]).all(), "seeds share no sample"
    still = train(jax.random.key(0), HYPER._replace(learning_rate=jnp.float32(0.0)))
    assert len(np.unique(still.losses)) == 150, "nor do steps"


def test_seeds_advance_one_by_one(train):
    done = []
    run_seeds(train, HYPER, 3, lambda: done.append(len(done)))
    assert done == [0, 1, 2]


def test_training_learns_a_short_sum(train):
    run = train(jax.random.key(0), HYPER)
    assert run.losses[0] > 0.1
    assert run.loss < TASKS["adding"](4).baseline / 4
    assert np.isnan(run.error)


def test_settings_that_are_traced_change_the_run(train):
    def losses(**changes):
        return np.asarray(train(jax.random.key(0), HYPER._replace(**changes)).losses)

    assert (losses() != losses(forget_bias=jnp.float32(3.0)))[0]
    # Adam divides by the gradient's scale, so clipping shows once norms differ between steps.
    assert (losses() != losses(clip=jnp.float32(1e-3)))[5:].all()
    np.testing.assert_array_equal(losses(clip=jnp.float32("inf")), losses(clip=jnp.float32(1e30)))


def test_errors_count_wrong_classes_where_answers_count():
    task, network = TASKS["temporal_order"](10), Network("rnn", 4)
    sample = task.sample(jax.random.key(0), 50)
    layer = CellParams(jnp.zeros((6, 4)), jnp.zeros((4, 4)), jnp.zeros(4), ())
    # Always 3 nats for the second class and 0 for the other three.
    params = TaskParams(layer, jnp.zeros((4, 4)), jnp.asarray([0.0, 3.0, 0.0, 0.0]))
    loss, error = measure_sample(network, task, params, sample)
    wrong = float(np.mean(np.asarray(sample.targets[-1]) != 1))
    assert error == pytest.approx(wrong, rel=1e-6)
    assert loss == pytest.approx(np.log(np.exp(3) + 3) - 3 * (1 - wrong), rel=1e-5)


def test_windows_average_and_best_skips_what_is_not_finite():
    losses = np.concatenate([np.full(25, 3.0), np.full(25, 2.0), np.full(25, np.nan), [0.0] * 7])
    series = np.stack([losses, np.full_like(losses, np.nan)])
    np.testing.assert_array_equal(task_claim.windowed(series)[0], [3, 2, np.nan])
    np.testing.assert_array_equal(task_claim.best(series), [2, np.inf])


SEEDS = np.ones(10)


def some(low, count, high):
    """Ten scores, `count` of them low."""
    return np.where(np.arange(10) < count, low, high)


@pytest.mark.parametrize(
    ("name", "scores", "passed"),
    [
        ("C2", (some(0.0, 9, 0.5), some(0.0, 2, 0.75)), True),
        ("C2", (some(0.0, 8, 0.5), some(0.0, 0, 0.75)), False),
        ("C2", (some(0.0, 10, 0.5), some(0.0, 3, 0.75)), False),
        ("C2", (some(0.01, 10, 0.5), some(0.0, 0, 0.75)), False),
        ("C3", (some(0.009, 9, np.inf), 0.1 * SEEDS), True),
        ("C3", (some(0.009, 8, 0.01), 0.1 * SEEDS), False),
        ("C3", (0.009 * SEEDS, some(0.099, 1, 0.2)), False),
        ("C4", (some(0.009, 9, 0.2), some(0.09, 1, np.inf)), True),
        ("C4", (some(0.009, 8, 0.2), np.inf * SEEDS), False),
        ("C4", (some(0.009, 10, 0.2), some(0.09, 2, np.inf)), False),
        ("C5", (0.5199 * 1.009 * SEEDS, 0.5199 * 0.929 * SEEDS), True),
        ("C5", (some(0.5199 * 1.011, 1, 0.5199), 0.4 * SEEDS), False),
        ("C5", (0.5199 * SEEDS, some(0.5199 * 0.931, 1, 0.4)), False),
        ("C6", (4.1 * SEEDS, 2.04 * SEEDS, SEEDS), True),
        ("C6", (4.1 * SEEDS, 2.1 * SEEDS, SEEDS), False),
        ("C6", (4.1 * SEEDS, 1.9 * SEEDS, SEEDS), False),
        ("C7", (SEEDS, 3.1 * SEEDS, 2.1 * SEEDS, 0.99 * SEEDS), True),
        ("C7", (SEEDS, 2.9 * SEEDS, 2.1 * SEEDS, 0.99 * SEEDS), False),
        ("C7", (SEEDS, 3.1 * SEEDS, 1.9 * SEEDS, 0.99 * SEEDS), False),
        ("C7", (SEEDS, 3.1 * SEEDS, 2.1 * SEEDS, 1.01 * SEEDS), False),
        ("C6", (4.1 * SEEDS, np.nan * SEEDS, SEEDS), False),
    ],
)
def test_verdicts(name, scores, passed):
    claim = claims.CLAIMS[name]
    by_arm = dict(zip((arm.label for arm in claim.arms), scores, strict=True))
    verdict = claim.judge(TASKS[claim.task](claim.length), by_arm)
    assert verdict.passed is passed
    assert verdict.finding


def slopes(tanh=-0.46, zero=-0.45, one=-0.19, three=-0.004, gap=0.005):
    arrays = {}
    for arm, slope in zip(laboratory.C1.arms, (tanh, zero, one, three), strict=True):
        arrays[f"{arm.label}/slope"] = slope + np.asarray([-1e-4, 1e-4])
        arrays[f"{arm.label}/exponent"] = slope + np.asarray([gap, gap])
        arrays[f"{arm.label}/curve"] = slope * np.tile(np.arange(60.0), (2, 1))
    return arrays


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"gap": 0.011}, False),
        ({"zero": -0.38}, False),
        ({"zero": -0.51}, False),
        ({"one": -0.24}, False),
        ({"three": -0.024}, False),
        ({"gap": np.nan}, False),
    ],
)
def test_verdict_on_slopes(changes, passed):
    assert laboratory.C1.judge(slopes(**changes)).passed is passed


def contexts(far=1.39, near=0.36, exact=0.378):
    nats = np.asarray([[far] * 5 + [exact] + [near] * 5])
    return {"cut": nats, "replaced": np.zeros((1, 10))}


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"far": 1.386}, False),
        ({"exact": 0.38}, False),
        ({"near": 0.31}, False),
        ({"near": np.nan}, False),
    ],
)
def test_verdict_on_context(changes, passed):
    assert laboratory.C8.judge(contexts(**changes)).passed is passed


def test_slope_and_exponent_agree_on_a_small_network():
    small = dataclasses.replace(laboratory.C1, hidden=6, length=300, rows=2, seeds=2)
    curves, exponents = small.measure_arm(small.arms[0])
    assert curves.shape == (2, 300, 2)
    slope = (curves[:, -1] - curves[:, 20]) / 279
    np.testing.assert_allclose(slope, exponents, atol=0.03)


def small_claims():
    """Claims of a size that a test can run: the same code, fewer steps."""
    clipping = dataclasses.replace(studies.C4, steps=6, seeds=2, length=8)
    context = dataclasses.replace(laboratory.C8, steps=20, groups=1, windows=40, width=6)
    return {"C4": clipping, "C8": context}


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims") / "run"
    return claims.settle(claims.Config(run=str(folder)), small_claims())


@pytest.mark.whole
def test_a_run_holds_its_claims(settled):
    records = run_folder.read_json(settled / "results.json")["claims"]
    assert [record["name"] for record in records] == ["C4", "C8"]
    for record in records:
        assert record["passed"] is False
        assert record["measured"]
        assert {len(row) for row in record["table"]["rows"]} == {len(record["table"]["columns"])}
        for kind in ("png", "svg"):
            assert (settled / "figures" / f"{record['figure']}.{kind}").stat().st_size > 1000
    assert len(records[0]["table"]["rows"]) == 4  # two arms, two seeds
    assert "C4  FAILED" in claims.format_table(records)
    assert "0 of 2 claims passed" in claims.format_table(records)


@pytest.mark.whole
def test_figures_are_redrawn_from_the_folder_alone(settled):
    before = {path.name: path.read_bytes() for path in (settled / "figures").glob("*.svg")}
    for path in (settled / "figures").iterdir():
        path.unlink()
    claims.plot(settled)  # the claims of the table, not those that were run
    after = {path.name: path.read_bytes() for path in (settled / "figures").glob("*.svg")}
    assert set(after) == set(before) == {"c4.svg", "c8.svg"}


def test_figure_of_slopes(tmp_path):
    claim = laboratory.C1
    arrays = slopes()
    record = claims.make_record(claim, claim.judge(arrays), 1.0)
    png, svg = claim.plot(record, arrays, tmp_path)
    assert png.exists()
    assert "C1 passes" in svg.read_text(encoding="utf-8")


class Verdict:
    """A claim of which the outcome is known."""

    statement, threshold, seconds = "a statement", "a threshold", 1.0

    def __init__(self, name, passed):
        self.name, self.passed = name, passed

    def settings(self):
        return "none"

    def measure(self, advance):
        advance(1.0)
        nothing = {"x": np.zeros(1)}
        return claim_outcome.Outcome({"x": 1.0}, self.passed, "found", ["x"], [[1.0]], nothing)

    def plot(self, record, arrays, folder):
        return []


def test_a_failed_claim_is_exit_status_1_after_everything_is_written(tmp_path, monkeypatch, capsys):
    table = {"C1": Verdict("C1", False), "C2": Verdict("C2", True)}
    monkeypatch.setattr(claims, "CLAIMS", table)
    with pytest.raises(SystemExit) as ended:
        claims.run(claims.Config(run=str(tmp_path / "both")))
    assert ended.value.code == 1
    records = run_folder.read_json(tmp_path / "both" / "results.json")["claims"]
    assert [record["passed"] for record in records] == [False, True]
    assert "C1 failed" in capsys.readouterr().err
    only = claims.run(claims.Config(only=("C2",), run=str(tmp_path / "one")))
    records = run_folder.read_json(only / "results.json")["claims"]
    assert [record["name"] for record in records] == ["C2"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only=C9"], ("'C9'", "wanted one of: C1, C2")),
        (["--only=C1,c2"], ("'c2'", "C2")),
        (["--only=C1,"], ("only is ''",)),
    ],
)
def test_an_unknown_claim_is_one_line(flags, words, tmp_path):
    done = call("claims", *flags, f"--run={tmp_path / 'new'}")
    assert_one_line(done, *words)
    assert not (tmp_path / "new").exists()
