"""What the table of memory measures, and the limits that it is there to show."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.speed import memory
from lm.loss import weighted_nats


@pytest.fixture
def small(monkeypatch):
    """Shapes that take no time."""
    for name, value in [
        ("BATCH", 2),
        ("HIDDEN", 8),
        ("VOCABULARY", 11),
        ("LARGE_VOCABULARY", 100),
        ("TOKENS", 16),
    ]:
        monkeypatch.setattr(memory, name, value)


def test_rows_and_their_table(small, capsys, monkeypatch):
    rows = [memory.measure_gradient(64, remat) for remat in (False, True)]
    monkeypatch.setattr(memory, "SPARE", 0)  # of memory that would not do
    rows.append(memory.measure_loss(8))
    plain, chunked, loss = rows
    assert chunked["temporary_bytes"] < plain["temporary_bytes"]
    for row in (plain, chunked):
        assert row["seconds"] > 0
        assert row["peak_bytes"] >= row["base_bytes"] > 1e7
    weights = 8 * 100 * 4
    assert loss["held_bytes"] > 2 * weights  # with their gradient
    assert loss["seconds"] is None
    memory.print_memory(rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 + 2 + 1
    assert lines[3].split()[:2] == ["64", "yes"]
    ratio = chunked["seconds"] / plain["seconds"]
    assert lines[3].endswith(f"{ratio:.2f}x")
    assert "not run" in lines[-1]


def test_a_row_that_fails_is_said(monkeypatch, capsys):
    monkeypatch.setattr(memory, "ROWS", (("gradient", -1, False),))
    memory.print_memory(memory.measure_memory())
    assert capsys.readouterr().out.splitlines()[-1].startswith("gradient -1 failed: ValueError")


def test_the_peak_is_of_this_process():
    """In a process of its own, which has not held as much before."""
    code = (
        "import numpy as np; from experiments.speed.memory import peak_bytes; a = peak_bytes(); "
        "block = np.ones(a // 8 + 2**23); print(peak_bytes() - a)"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 2**25


def test_no_loss_holds_all_logits():
    """They would be 4.4 GB at V = 267,000 and 4,096 tokens."""
    tokens, vocabulary, hidden = 4096, 267_000, 400
    f32, i32 = jnp.float32, jnp.int32
    shapes = [
        ((tokens, hidden), f32),
        ((hidden, vocabulary), f32),
        ((vocabulary,), f32),
        ((tokens,), i32),
        ((tokens,), f32),
    ]
    gradient = jax.jit(jax.value_and_grad(weighted_nats, argnums=(0, 1, 2)))
    compiled = gradient.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9


def test_a_row_of_65536_tokens_needs_less_than_100_mb(monkeypatch):
    """As compiled; running it, a quarter of a minute and more, is for the table."""
    monkeypatch.setattr(memory, "SPARE", 0)
    row = memory.measure_gradient(65_536, True)
    assert row["temporary_bytes"] + row["held_bytes"] < 0.1e9
    plain = memory.measure_gradient(65_536, False)
    assert plain["temporary_bytes"] > 20 * row["temporary_bytes"]
