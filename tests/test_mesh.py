"""Several devices for one model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT

from experiments.cores import usable_cores
from lm.config import DataConfig
from lm.data.batches import make_batches
from lm.mesh import cores_worth

TOKENS = np.random.default_rng(0).integers(0, 20, 1003).astype(np.int32)


@pytest.mark.parametrize("which", ["not whole", pytest.param("whole", marks=pytest.mark.whole)])
def test_on_four_devices(which):
    """four_devices.py, in a process that has four: a backend counts them once."""
    tests = Path(__file__).with_name("four_devices.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-o", "addopts=-q", "-m", which, tests],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("cores", "rows", "tokens", "parameters", "count"),
    [
        (2, 32, 8192, 135_000, 2),
        (2, 20, 700, 4_600_000, 1),  # too large a model
        (2, 15, 8192, 135_000, 1),  # too few rows for two
        (8, 40, 8192, 135_000, 5),  # what divides the rows
        (64, 23, 8192, 135_000, 1),
        (1, 32, 8192, 135_000, 1),
    ],
)
def test_cores_of_a_cpu_that_pay(cores, rows, tokens, parameters, count):
    assert cores_worth(cores, rows, tokens, parameters) == count


def test_cores_are_devices_until_several_processes_share_them():
    counted = "import jax; from experiments.cores import *; {}; print(jax.device_count())"
    environ = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    for calls, expected in (
        ("count_as_devices()", usable_cores()),
        ("count_as_devices(); leave_uncounted()", 1),
        ("jax.devices(); count_as_devices()", 1),  # too late
    ):
        found = subprocess.check_output(
            [sys.executable, "-c", counted.format(calls)], cwd=ROOT, env=environ, text=True
        )
        assert int(found) == expected


@pytest.mark.parametrize(
    "data",
    [
        DataConfig(batch_size=6, length=7),
        DataConfig(batch_size=6, length=9, random_length=True),
        DataConfig(batch_size=6, length=16, batching="sentences"),
    ],
)
def test_the_rows_of_all_processes_are_the_batch(data):
    """Three processes with two rows each, batches with a short last one among them."""
    whole = make_batches(TOKENS, data, 3)
    parts = [make_batches(TOKENS, data, 3, slice(k, k + 2)) for k in (0, 2, 4)]
    assert {part.batch_size for part in parts} == {6}
    for step in range(min(40, 2 * whole.steps_per_epoch)):
        expected = whole.block(step, 2)
        found = [part.block(step, 2) for part in parts]
        for name in ("inputs", "targets", "mask"):
            columns = [getattr(block, name) for block in found]
            if getattr(expected, name) is None:
                assert columns == [None] * 3
            else:
                np.testing.assert_array_equal(np.concatenate(columns, 2), getattr(expected, name))
        for block in found:
            np.testing.assert_array_equal(block.reset, expected.reset)
