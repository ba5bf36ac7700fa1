"""gradient_flow's sources, measures and figures; what a run says is what the library measures."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, run

from experiments import gradient_flow, run_folder
from experiments.flow import drawing, table, training
from experiments.flow.measures import DERIVED, TAKEN, compile_measures, map_seeds
from experiments.flow.subjects import noise_subject, task_subject, text_subject
from experiments.task_training import Network, init_network, run_seeds
from lm import model
from lm.cells import CELLS
from lm.config import DataConfig, ModelConfig, OptimConfig
from lm.gradients.flow import measure_lags, measure_layer_lags, measure_lengths
from lm.gradients.sensitivity import pascanu_omega
from lm.task_lengths import LEAST_STEPS
from lm.tasks import TASKS, make_task

ALL = ",".join(name for name in gradient_flow.MEASURES if name != "context")
SMALL = ["--hidden_size=8", "--lags=16", "--windows=4", "--seeds=2"]


def test_every_measure_is_taken():
    assert {*TAKEN, *DERIVED, "context"} == set(gradient_flow.MEASURES)


def test_the_least_lengths_are_the_tasks_own():
    assert set(LEAST_STEPS) == set(TASKS)
    for name, least in LEAST_STEPS.items():
        assert make_task(name, least).length == least
        with pytest.raises(ValueError, match="wanted at least"):
            make_task(name, least - 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": DataConfig("noise"), "epochs": 2.0}, "epochs is 2.0, which does nothing with"),
        (
            {"data": DataConfig("noise"), "model": ModelConfig(layers=2)},
            "layers is 2.*corpus noise",
        ),
        (
            {"data": DataConfig("noise"), "optim": OptimConfig(clip=1.0)},
            "clip is 1.0.*corpus noise",
        ),
        ({"data": DataConfig("copy"), "model": ModelConfig(recurrent_gain=2.0)}, "recurrent_gain"),
        ({"data": DataConfig("copy", batch_size=3)}, "batch_size is 3.*corpus copy"),
        ({"checkpoint": ("a",), "cells": ("gru",)}, "cells is gru.*with checkpoint"),
        ({"checkpoint": ("a",), "data": DataConfig("noise")}, "corpus is noise.*with checkpoint"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, words):
    if "data" in options:  # gradient_flow's own default, where nothing else is said
        options["data"] = dataclasses.replace(options["data"], max_vocabulary=5000)
    with pytest.raises(ValueError, match=words):
        gradient_flow.Config(**options)


def test_options_that_tasks_and_noise_have():
    gradient_flow.Config(
        data=DataConfig("copy", max_vocabulary=5000),
        model=ModelConfig(hidden_size=9, forget_bias=3.0, chrono=20),
        optim=OptimConfig(learning_rate=0.1, clip=1.0, schedule="cosine"),
        steps=3,
    )
    gradient_flow.Config(
        data=DataConfig("noise", max_vocabulary=5000),
        model=ModelConfig(embedding_size=9, input_scale=3.0, recurrent_gain=2.0),
    )


@pytest.mark.parametrize("lags", [8, 9, 100, 128, 1000])
def test_lengths_by_default(lags):
    """Two an octave, from 2 to lags."""
    at = gradient_flow.Config(lags=lags).at_lengths
    assert at[:3] == (2, 3, 4)
    assert at[-1] == lags
    assert list(at) == sorted(set(at))
    assert max(b / a for a, b in itertools.pairwise(at)) < 1.51
    assert gradient_flow.Config(lags=lags, lengths=(5, 3)).at_lengths == (3, 5, lags)


def test_text_subject_is_the_top_layer_of_the_model():
    config = ModelConfig(layers=2, hidden_size=6, embedding_size=5)
    params = model.init(jax.random.key(0), config, 9)
    tokens = jax.random.randint(jax.random.key(1), (13, 3), 0, 9, jnp.int32)
    targets = jax.random.randint(jax.random.key(2), (13, 3), 0, 9, jnp.int32)
    carry, lengths = model.init_carry(config, 3), (4, 13)
    subject = text_subject(config, params, tokens, targets, lengths)
    measure = compile_measures(
        gradient_flow.Config(lags=13, lengths=(4,), windows=3), config, lambda s: s
    )
    found = measure(jax.tree.map(lambda leaf: leaf[None], subject))
    lags = measure_lags(config, params, carry, tokens, targets[-1])[-1]
    by_length = measure_lengths(config, params, carry, tokens, targets, lengths)[-1]
    np.testing.assert_allclose(found["lag_h"][0], lags.h, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["length_w"][0], by_length, rtol=1e-5, atol=1e-5)


def test_task_subject_is_the_gradient_of_the_tasks_own_loss():
    task, cell = TASKS["adding"](9), CELLS["lstm"]
    params = init_network(jax.random.key(1), Network("lstm", 5), task, 1.0)
    subject = task_subject(cell, task, params, 4, (3, 9))
    sample = task.sample(jax.random.key(0), 4)
    np.testing.assert_array_equal(subject.x, sample.inputs)
    state = cell.init_state(4, 5)
    for t in range(9):
        z = sample.inputs[t] @ params.layer.w_x + params.layer.b[None]
        state = cell.gate((), state, z, state.h @ params.layer.w_h)
    out = state.h @ params.readout_w + params.readout_b[None]
    expected = 2 * (out[:, 0] - sample.targets[-1])[:, None] * params.readout_w.T
    np.testing.assert_allclose(subject.d_h[-1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [8, 4096])
def test_seeds_map_one_by_one_or_together(width):
    config = ModelConfig(hidden_size=4, embedding_size=4)
    keys = jax.vmap(jax.random.key)(jnp.arange(3))

    def lag(key):
        subject = noise_subject(config, key, 7, 2, (7,))
        cell = CELLS["lstm"]
        state = cell.init_state(2, 4)
        return measure_layer_lags(cell, subject.layer, state, subject.x, subject.d_h[-1]).h

    found = map_seeds(lag, keys, width)
    each = jnp.stack([lag(key) for key in keys])
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "noise"
    flags = ["--corpus=noise", f"--measures={ALL}", "--dtype=float64", "--cells=rnn,lstm"]
    flags += ["--embedding_size=8", "--lengths=4,8"]
    done = run("gradient_flow", *flags, f"--run={folder}", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.whole
def test_all_measures_of_noise(noise):
    folder, done = noise
    assert "before training the gradient has shrunk" in done.stdout
    with np.load(folder / "results.npz", allow_pickle=False) as file:
        arrays = dict(file)
    for cell, fields in (("rnn", 1), ("lstm", 2)):
        at = f"{cell}/init/"
        assert arrays[at + "lag_h"].shape == (2, 16, 4)
        assert arrays[at + "lag_h"].dtype == np.float64
        assert arrays[at + "singular"].shape == (2, len(arrays["lengths"]), 8 * fields)
        np.testing.assert_allclose(arrays[at + "share"].sum(axis=1), 1, rtol=1e-9)
        # Measures that say the same in two ways.
        spectral = arrays[at + "jacobian_spectral"][:, -1, 0]
        np.testing.assert_allclose(arrays[at + "singular"][:, -1, 0], spectral, rtol=1e-8)
        parts = np.logaddexp(arrays[at + "path_carried"], arrays[at + "path_recurrent"])
        assert np.all(arrays[at + "lag_state"] <= parts + 1e-9)
        assert np.all(arrays[at + "omega"] >= 0)
    assert "lstm/init/tau" in arrays
    assert "rnn/init/tau" not in arrays
    omega = pascanu_omega(jnp.asarray(arrays["rnn/init/lag_state"][0], jnp.float32))
    np.testing.assert_allclose(arrays["rnn/init/omega"][0], omega, rtol=1e-3, atol=1e-6)
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == set(drawing.FIGURES) - {"context"}


@pytest.mark.whole
def test_figures_are_redrawn_from_the_folder_alone(noise):
    folder, _ = noise
    path = folder / "figures" / "lyapunov.svg"
    before = path.read_text()
    path.unlink()
    assert len(gradient_flow.plot(folder)) == len(drawing.FIGURES) - 1
    captions = {
        name: (folder / "figures" / f"{name}.svg").read_text()
        for name in ("gradient_flow", "jacobian", "lyapunov", "singular", "gates")
    }
    assert (
        "geometric mean over 4 rows of noise, 95 % t band over 2 seeds" in captions["gradient_flow"]
    )
    assert "over 2 rows of noise, 95 % t band over 2 seeds" in captions["jacobian"]
    assert "mean over 2 rows of noise and 2 seeds" in captions["lyapunov"]
    assert "over 1 row of noise and 2 seeds" in captions["singular"]
    assert "forget gate: LSTM" in captions["gates"]
    assert path.read_text() == before


@pytest.mark.whole
def test_a_task_is_trained_on_and_measured(tmp_path):
    """Without clipping, which its caption says; the GRU has gates but no forget gate."""
    flags = ["--corpus=adding", "--cells=gru", "--steps=5", "--measures=lags,gates", "--clip=inf"]
    done = call("gradient_flow", *flags, f"--run={tmp_path / 'task'}", *SMALL)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "task" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == 2 * [0, 1, 2, 3, 4]
    assert "update gate: GRU" in (tmp_path / "task" / "figures" / "gates.svg").read_text()
    assert "no clipping" in (tmp_path / "task" / "figures" / "gradient_flow.svg").read_text()
    rows = json.loads((tmp_path / "task" / "results.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["init", "trained"]
    assert 0.05 < rows[1]["loss"] < 2
    assert "task loss" in done.stdout


@pytest.mark.whole
def test_a_seed_that_diverges_on_a_task_is_said_and_left_out(tmp_path, monkeypatch, capsys):
    def with_a_broken_seed(*arguments):
        runs = run_seeds(*arguments)
        runs.losses[1, 2:], runs.loss[1] = np.nan, np.nan
        return runs._replace(after=jax.tree.map(lambda a: a * runs_scale(a), runs.after))

    def runs_scale(leaf):
        """Seed 1's parameters become NaN."""
        return np.asarray([1, np.nan], leaf.dtype).reshape(2, *[1] * (leaf.ndim - 1))

    monkeypatch.setattr(training, "run_seeds", with_a_broken_seed)
    config = gradient_flow.Config(
        cells=("rnn",), seeds=2, steps=200, lags=8, windows=2, measures=("lags",),
        data=DataConfig("adding", max_vocabulary=5000), model=ModelConfig(hidden_size=4),
    )  # fmt: skip
    (network,) = training.plan_task(config).measure(tmp_path)
    assert network.arrays["diverged"].tolist() == [1]
    assert network.arrays["init/lag_h"].shape == (2, 8, 2)
    assert network.arrays["trained/lag_h"].shape == (1, 8, 2)
    assert np.isfinite(network.arrays["trained/lag_h"]).all()
    assert np.isfinite(network.arrays["loss"]).all()
    assert "rnn seed 1 diverged at step 2" in capsys.readouterr().err
    log = run_folder.MetricsLog.read(tmp_path / "metrics.jsonl")
    assert len(log) <= 2 * 100
    assert log[-1] == {"cell": "rnn", "seed": 1, "step": 2, "diverged": True}


def test_factors_a_person_reads():
    assert table.format_factor(-5.0) == "to 10^5 times itself"
    assert table.format_factor(3.2) == "1,600 times"
    assert table.format_factor(6.3) == "2 million times"
    assert table.format_factor(-0.3) == "to 200 %"
    assert table.format_factor(np.inf) == "to nothing"
