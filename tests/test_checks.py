"""The laws of the sixteen measures, and what `checks` makes of a measure that is wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import assert_one_line, call

from experiments import checks
from experiments.laws import CHECKS, Law, closed_form, error, gates

LAWS = [(number, law) for number, measure in CHECKS.items() for law in measure.laws]


@pytest.mark.parametrize(("number", "law"), LAWS, ids=[law.function for _, law in LAWS])
def test_every_law_holds_in_float64(number, law):
    found = checks.hold(law, ("float64",))
    assert found["verdict"] == "passed", (number, law, found)
    assert np.isfinite(found["float64_error"])


def test_every_measure_has_a_law():
    assert list(CHECKS) == list(range(1, 17))
    functions = [law.function for _, law in LAWS]
    assert len(set(functions)) == len(functions)


def test_a_run_prints_and_keeps_its_table(tmp_path):
    done = call("checks", "--only=14,12", f"--run={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    header, first, second = done.stdout.splitlines()[:3]
    assert header.split() == ["measure", "against", "unit", "float64", "float32", "verdict"]
    assert first.startswith("12")
    assert second.startswith("14")
    assert "2 of 2 checks passed" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["passed"], results["failed"]) == (2, 0)
    for row in results["rows"]:
        for dtype in ("float64", "float32"):
            assert row[f"{dtype}_error"] <= row[f"{dtype}_tolerance"]


def off_by(error):
    """A measure's twin whose result is wrong by that much, relatively."""
    return lambda measure: lambda *args, **kwargs: measure(*args, **kwargs) * (1 + error)


@pytest.mark.parametrize(
    ("number", "module", "measure", "wrong"),
    [
        (14, closed_form, "pascanu_omega", off_by(1e-6)),
        (14, closed_form, "pascanu_omega", lambda f: lambda log: f(log).at[3].set(jnp.nan)),
        (8, closed_form, "horizon", off_by(1e-6)),
        (9, gates, "time_scale", off_by(1e-6)),
        (12, closed_form, "global_norm", lambda _: lambda tree: jnp.linalg.norm(tree["w"])),
        (12, closed_form, "clip_by_global_norm", lambda _: lambda tree, most: tree),
    ],
)
def test_a_wrong_measure_fails(number, module, measure, wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(module, measure, wrong(getattr(module, measure)))
    flags = f"--only={number}", "--dtypes=float64", f"--run={tmp_path / 'run'}"
    done = call("checks", *flags)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert done.stderr.startswith(f"checks: failed: {number} (")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["failed"] == 1
    assert results["rows"][0]["verdict"] == "FAILED"


def test_errors_lose_no_nan():
    assert np.isnan(error.worst(0.0, float("nan"), 1.0))
    assert np.isnan(error.log_error([np.nan, 1.0], [1.0, 1.0]))
    assert error.log_error([-np.inf, 1.0], [-np.inf, 1.5]) == 0.5
    assert error.log_error([-np.inf], [0.0]) == np.inf


def test_one_wrong_type_fails_the_law(monkeypatch):
    def law(dtype):
        return (0.0, 1.0) if dtype == "float64" else (2.0, 1.0)

    monkeypatch.setattr(gates, "made_up", law, raising=False)
    made_up = Law("nothing", "nats", "gates.made_up")
    assert checks.hold(made_up, ("float64",))["verdict"] == "passed"
    assert checks.hold(made_up, ("float64", "float32"))["verdict"] == "FAILED"


def test_mistakes_are_answered_in_one_line(tmp_path):
    assert_one_line(call("checks", "--only=17"), "only", "'17'", "wanted one of: 1, 2")
    assert_one_line(call("checks", "--dtypes=float16"), "dtypes", "float16")
    assert_one_line(call("checks", "--dtypes="), "dtypes", "each once")
    (tmp_path / "config.json").touch()
    assert_one_line(call("checks", f"--run={tmp_path}"), "exists")
