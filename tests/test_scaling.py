"""The plan for many devices, against sums done by hand, and as the documentation prints it."""

import jax
import numpy as np
import pytest
from command_line import ROOT

from experiments.speed import scaling
from experiments.speed.scaling import Machine, lstm_weights, plan, plan_table, rows_for
from experiments.speed.work import Size
from lm import model
from lm.config import ModelConfig

SIZE = Size(4, 10, 8, 2, 50)


def test_weights_are_those_of_the_model():
    config = ModelConfig(layers=2, hidden_size=8, embedding_size=8)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), config, 50))
    parameters, multiplied = lstm_weights(SIZE)
    assert parameters == model.count_parameters(params)
    products = [layer.w_x.size + layer.w_h.size for layer in params.layers]
    assert multiplied == sum(products) + params.softmax_w.size


def test_the_plan_by_hand():
    """P = 1,938 parameters; M = 1,424 of them multiply 40 tokens, there and back."""
    machine = Machine(rate=1e6, bandwidth=1e4, latency=0.01)
    found = plan(SIZE, 4, machine)
    assert found.gradient_bytes == 4 * 1938
    assert found.sent_bytes == 1.5 * found.gradient_bytes
    assert found.compute_seconds == pytest.approx(6 * 1424 * 40 / 1e6)
    assert found.sum_seconds == pytest.approx(1.5 * 4 * 1938 / 1e4 + 4 * 0.01)
    one = plan(SIZE, 1, machine)
    assert (one.sent_bytes, one.sum_seconds, one.efficiency) == (0, 0, 1)


def test_rows_buy_efficiency():
    rows = rows_for(SIZE, 8)
    for more, enough in ((0, True), (-1, False)):
        size = Size(rows + more, *list(vars(SIZE).values())[1:])
        assert (plan(size, 8).efficiency >= 0.9) == enough


def test_the_documentation_has_the_plan():
    assert plan_table() in (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")


def test_what_cannot_be_timed_is_refused_before_anything_is():
    with pytest.raises(ValueError, match="devices is 3, which does not divide the 4 rows"):
        next(scaling.each_row(SIZE, (1, 3)))
    with pytest.raises(ValueError, match="wanted fewer"):
        scaling.measure(640, SIZE)


def test_a_measured_step_is_printed(capsys):
    found = [scaling.measure(1, SIZE) | {"growth": growth} for growth in (False, True)]
    assert found[0]["tokens"] == 40
    assert found[0]["seconds"] > 0
    assert np.isfinite(found[0]["nats"])
    scaling.print_scaling(found)
    printed = capsys.readouterr().out
    assert "one batch shared: 4x10x8x2x50 on 1" in printed
    assert plan_table() in printed
