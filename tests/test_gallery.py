"""The gallery: every figure's arrays say what they claim, and are all that it is drawn from."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import assert_one_line, call, write_book

from experiments import gallery
from experiments.figures import STYLE
from experiments.plates import (
    PLATES,
    certificate,
    gram,
    horizon,
    library_defaults,
    saliency,
    spectrum,
)
from experiments.plates.plate import Config
from experiments.task_training import TaskParams
from lm.cells import CELLS
from lm.cells.cell import CellParams
from lm.config import DataConfig, ModelConfig
from lm.gradients.statistics import E_FOLD
from lm.tasks import LAG, LAG_NOISE, LAG_SYMBOLS, lag_bayes_nats

SMALL = {"hidden_size": 8, "seeds": 2, "lags": 40, "cells": ("rnn",)}
OF_ONE_RUN = ("certificate", "gram", "spectrum", "lyapunov")


def measure(name, **options):
    config = Config(**{**SMALL, **options})
    done = []
    arrays = PLATES[name].measure(config, lambda: done.append(1))
    assert len(done) == PLATES[name].parts(config)
    return config, arrays


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """One run of the figures but those that have tests of their own."""
    folder = tmp_path_factory.mktemp("gallery")
    data = DataConfig(corpus=str(write_book(folder)), batch_size=8, length=10)
    figures = tuple(name for name in PLATES if name in OF_ONE_RUN)
    config = Config(
        **SMALL, figures=figures, steps=2, model_seeds=1, run=str(folder / "run"),
        data=data,
    )  # fmt: skip
    short = {
        "lyapunov.FORGET_BIASES": (0.0, 2.0),
        "lyapunov.WARMUP": 4,
        "lyapunov.COUNTED": 20,
        "spectrum.POINTS": 3,
        "gram.LAGS": 30,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in short.items():
            patch.setattr(f"experiments.plates.{name}", value)
        patch.setitem(STYLE, "savefig.dpi", 40)
        gallery.run(config)
    return config, folder / "run"


@pytest.mark.whole
def test_a_run_keeps_its_figures_numbers_and_findings(small_run):
    config, folder = small_run
    results = json.loads((folder / "results.json").read_text())
    assert list(results["figures"]) == list(config.figures)
    for name, found in results["figures"].items():
        assert found["finding"]
        for kind in ("png", "svg"):
            assert (folder / "figures" / f"{name}.{kind}").stat().st_size > 5000


@pytest.mark.whole
def test_figures_are_redrawn_from_the_folder_alone(small_run, tmp_path):
    _, folder = small_run
    shutil.copy(folder / "results.npz", tmp_path)
    stored = json.loads((folder / "config.json").read_text())
    stored["config"]["figures"] = ["gram"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "figures").mkdir()
    png, svg = gallery.plot(tmp_path)
    assert png.stat().st_size > 5000
    assert "Steps that make up 90" in svg.read_text()


def arrays_of(small_run, name):
    config, folder = small_run
    with np.load(folder / "results.npz") as file:
        return config, {
            key.removeprefix(f"{name}/"): file[key] for key in file if key.startswith(f"{name}/")
        }


@pytest.mark.whole
def test_certificate_meets_the_analytic_rates(small_run):
    config, arrays = arrays_of(small_run, "certificate")
    exact = 0
    for number, network in enumerate(certificate.networks(config)):
        if np.isfinite(network.exact):
            exact += 1
            np.testing.assert_allclose(arrays[f"{number}/slope"], network.exact, atol=1e-5)
            np.testing.assert_allclose(arrays[f"{number}/exponent"], network.exact, atol=1e-5)
    assert exact == 2
    rows = certificate.describe(config, arrays)["rows"]
    assert [row["network"] for row in rows][:2] == [
        "tanh RNN",
        certificate.networks(config)[1].label,
    ]
    assert rows[0]["slope"] == pytest.approx(rows[0]["exponent"], abs=0.1)  # 40 steps of 8 units


def test_the_naive_norm_dies_where_the_recovered_curve_goes_on():
    config, arrays = measure("underflow", lags=150, hidden_size=16)
    vanishing = arrays["vanishing/naive"]
    found = PLATES["underflow"].describe(config, arrays)
    zero, gone = found["naive_zero_from"], found["entries_zero_from"]
    assert zero < gone
    assert np.all(vanishing[zero:] == 0)
    assert np.isfinite(arrays["vanishing/recovered"]).all()
    assert arrays["vanishing/recovered"][-1] < np.log(np.finfo(np.float32).tiny)
    assert np.isfinite(arrays["exploding/recovered"]).all()
    for side in ("vanishing", "exploding"):
        naive = arrays[f"{side}/naive"]
        there = (naive > 1e-15) & (naive < 1e15)
        np.testing.assert_allclose(
            np.log(naive[there]), arrays[f"{side}/recovered"][there], atol=1e-3
        )
        np.testing.assert_allclose(
            arrays[f"{side}/recovered"], arrays[f"{side}/float64"], atol=1e-2
        )


@pytest.mark.whole
def test_gram_is_symmetric_and_its_shares_sum_to_one(small_run):
    config, arrays = arrays_of(small_run, "gram")
    for name in config.cells:
        cosine = arrays[f"{name}/cosine"]
        np.testing.assert_allclose(cosine, cosine.T, atol=1e-5)
        np.testing.assert_allclose(np.diagonal(cosine), 1, atol=1e-5)
        np.testing.assert_allclose(arrays[f"{name}/shares"].sum(axis=1), 1, atol=1e-5)
        assert np.max(gram.magnitudes(arrays, name)[0, 0]) == pytest.approx(0, abs=1e-5)
        # Newest first: the first step's component is the one that a distant loss moves least.
        assert arrays[f"{name}/log"][0] > arrays[f"{name}/log"][-1]


@pytest.mark.whole
def test_spectrum_and_plain_svd_part_where_epsilon_says(small_run):
    config, arrays = arrays_of(small_run, "spectrum")
    for name in config.cells:
        swept, plain = arrays[f"{name}/swept"], arrays[f"{name}/plain"]
        np.testing.assert_allclose(swept[0], plain[0], atol=1e-8)  # one step: both are right
        np.testing.assert_allclose(swept[:, 0], plain[:, 0], atol=1e-8)  # the largest always is
        assert np.all(np.diff(swept, axis=1) <= 1e-9)
    assert arrays["rnn/swept"][-1, -1] < arrays["rnn/plain"][-1, -1] - 5
    assert spectrum.describe(config, arrays)["rows"][0]["state_size"] == 4


@pytest.mark.whole
def test_lyapunov_spectra_are_whole_and_sorted(small_run):
    config, arrays = arrays_of(small_run, "lyapunov")
    exponents = arrays["exponents"]
    assert exponents.shape == (1, 2, 3, config.hidden_size)  # at steps 0, 1 and 2
    assert np.all(np.diff(exponents, axis=-1) <= 0)
    assert np.all(exponents[0, 1, :, 0] > exponents[0, 0, :, 0])  # bias 2 keeps more than bias 0


@pytest.mark.whole
def test_saliency_measures_what_a_network_that_remembers_does(monkeypatch):
    """A linear shift register that copies x(t - LAG) into the scores, and nothing else."""
    monkeypatch.setattr(saliency, "WINDOWS", 200)
    monkeypatch.setitem(CELLS._entries, "rnn", ("experiments.laws.layer", "LINEAR"))
    hidden = LAG * LAG_SYMBOLS
    shift = np.eye(hidden, k=LAG_SYMBOLS, dtype=np.float32)
    w_x = np.eye(LAG_SYMBOLS, hidden, dtype=np.float32)
    likely = np.log((1 - LAG_NOISE + LAG_NOISE / 4) / (LAG_NOISE / 4))  # Bayes' log odds
    readout = np.zeros((hidden, LAG_SYMBOLS), np.float32)
    readout[-LAG_SYMBOLS:] = likely * np.roll(np.eye(LAG_SYMBOLS), 1, axis=1)
    layer = CellParams(*map(jnp.asarray, (w_x, shift, np.zeros(hidden, np.float32))), ())
    params = saliency.as_language_model(
        TaskParams(layer, jnp.asarray(readout), jnp.zeros(LAG_SYMBOLS))
    )
    network = ModelConfig(cell="rnn", hidden_size=hidden, embedding_size=LAG_SYMBOLS)
    points, use, context = (np.asarray(one(params)) for one in saliency.make_measures(network))
    assert np.flatnonzero(np.isfinite(points)).tolist() == [LAG - 1]
    assert np.flatnonzero(np.abs(use) > 1e-5).tolist() == [LAG - 1]
    np.testing.assert_allclose(context[:LAG], np.log(LAG_SYMBOLS), rtol=1e-5)
    np.testing.assert_allclose(context[LAG:], lag_bayes_nats(), atol=0.15)  # of 200 windows
    arrays = {"saliency": np.where(np.isfinite(points), points, -9), "use": use}
    seeds = {
        name: np.stack([value, value]) for name, value in (arrays | {"context": context}).items()
    }
    config = Config(**SMALL)
    assert saliency.describe(config, seeds)["use_elsewhere_most"] == pytest.approx(0, abs=1e-5)
    saliency.draw(config, seeds)


def test_horizon_of_a_linear_network_is_analytic(monkeypatch):
    """W_h = gain Q without a nonlinearity: 1 / -ln gain steps, whatever the input scale."""
    monkeypatch.setitem(CELLS._entries, "rnn", ("experiments.laws.layer", "LINEAR"))
    config = Config(**SMALL)
    columns = jax.jit(horizon.make_columns(config, "rnn"))(jnp.asarray([0.5, 0.9, 1.1]))
    scales = jnp.broadcast_to(jnp.asarray([0.1, 1.0]), (3, 2))
    curves = np.asarray(jax.jit(horizon.make_curves(config, "rnn"))(columns, scales))
    expected = [-1 / np.log(0.5), -1 / np.log(0.9), np.inf]
    for column in range(2):
        steps = horizon.horizons(curves[:, column], E_FOLD)
        np.testing.assert_allclose(steps, expected, rtol=1e-4)


@pytest.mark.whole
def test_horizon_draws_every_library(monkeypatch):
    monkeypatch.setattr(horizon, "SCALES", np.asarray([0.1, 1.0, 10.0]))
    monkeypatch.setattr(horizon, "AXES", {"lstm": np.linspace(0, 6, 3)})
    config, arrays = measure("horizon")
    found = horizon.describe(config, arrays)
    assert [row["library"] for row in found["rows"]] == ["PyTorch", "Keras", "Flax", "Haiku"]
    assert arrays["lstm/curves"].shape == (3, 3, config.lags + 2)
    slow, fast = arrays["lstm/curves"][2, 0, -1], arrays["lstm/curves"][0, 0, -1]
    assert slow > fast  # forget bias 6 against 0
    PLATES["horizon"].draw(config, arrays)


@pytest.mark.parametrize("library", library_defaults.LIBRARIES, ids=lambda entry: entry.name)
def test_library_defaults_have_the_scales_that_place_them(library):
    hidden, gates = 64, 4
    draw = jax.jit(library.init, static_argnums=(1, 2))
    params = jax.tree.map(np.asarray, draw(jax.random.key(0), CELLS["lstm"], hidden))
    for w, gain in ((params.w_h, library.gain(gates)), (params.w_x, library.input_gain(gates))):
        assert w.shape == (hidden, gates * hidden)
        assert w.std() * hidden**0.5 == pytest.approx(gain, rel=0.03)
    assert params.b.shape == (gates * hidden,)
    b_f = params.b[hidden : 2 * hidden]  # gates i, f, o, g
    assert b_f.mean() == pytest.approx(library.forget_bias, abs=0.05)


def test_flax_draws_are_flax_s():
    """Against the library itself: the same moments, and rotations gate by gate."""
    from flax import linen

    cell = linen.OptimizedLSTMCell(64)
    carry = cell.initialize_carry(jax.random.key(0), (1, 64))
    theirs = cell.init(jax.random.key(1), carry, jnp.zeros((1, 64)))["params"]
    ours = library_defaults.init_flax(jax.random.key(0), CELLS["lstm"], 64)
    for k, gate in enumerate("ifog"):
        block = ours.w_h[:, k * 64 : (k + 1) * 64]
        for w in (block, theirs[f"h{gate}"]["kernel"]):
            np.testing.assert_allclose(w.T @ w, np.eye(64), atol=1e-5)
        assert float(theirs[f"i{gate}"]["kernel"].std()) == pytest.approx(
            float(ours.w_x.std()), rel=0.05
        )
        assert not np.any(theirs[f"h{gate}"]["bias"])
    embedded = linen.Embed(500, 64)
    table = embedded.init(jax.random.key(0), jnp.zeros(1, int))["params"]["embedding"]
    flax = next(entry for entry in library_defaults.LIBRARIES if entry.name == "Flax")
    assert float(table.std()) == pytest.approx(flax.embedding_std(64), rel=0.02)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--figures=certificat"], ("did you mean 'certificate'", "horizon")),
        (["--figures="], ("figures", "wanted 1 to 7")),
        (["--figures=gram,gram"], ("each once",)),
        (["--cells=rnn,lstn"], ("did you mean 'lstm'",)),
        (["--cells=rnn,mingru"], ("figures has gram", "cells mingru, which have no W_h")),
        (["--hidden_size=4"], ("hidden_size is 4",)),
        (["--lags=2"], ("lags is 2",)),
        (["--corpus=typo.txt"], ("no such file", "typo.txt")),  # before the other figures
        (["--corpus=SHORT"], ("validation text has", "wanted 250")),
    ],
)
def test_mistakes_get_one_line(flags, words, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Some words, and no more.\n" * 400)
    flags = [flag.replace("SHORT", str(short)) for flag in flags]
    done = call("gallery", *flags, f"--run={tmp_path / 'new'}")
    assert_one_line(done, *words)
    assert not (tmp_path / "new").exists()


def test_a_cells_forget_biases_can_be_told_apart():
    networks = certificate.networks(Config(cells=("rnn", "lstm", "cifg")))
    looks = [(one.line["color"], str(one.line.get("linestyle")), one.marker) for one in networks]
    assert len(set(looks)) == len(looks) == 1 + 2 * 4 + 2
    for cell in ("LSTM, chrono", "coupled"):
        chrono = [one for one in networks if cell in one.label and "chrono" in one.label]
        assert all("linestyle" in one.line and one.marker == "D" for one in chrono)
