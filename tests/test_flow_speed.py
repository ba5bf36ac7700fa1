"""flow_speed compares like with like; its figure is drawn from the run's folder alone."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flow_speed, run_folder


def test_both_passes_measure_the_same():
    """The log-space pass and the plain one, where float32 still holds the norm."""
    for cell in flow_speed.CELLS_TIMED:
        networks = flow_speed.draw_networks(cell, 4, 12, 2)
        logs = jax.jit(flow_speed.one_pass(cell))(networks)
        plain = jax.jit(flow_speed.plain_pass(cell))(networks)
        np.testing.assert_allclose(np.exp(logs), plain, rtol=1e-4)


def test_the_masked_loop_stops_where_it_says():
    """Flax's masked program at a length gives what a sequence of that length gives."""
    program = flow_speed.masked_program("rnn", 4, 9)
    shorter = flow_speed.masked_program("rnn", 4, 5)
    seeds = jnp.arange(2)
    whole, part = program(seeds, jnp.asarray(9)), program(seeds, jnp.asarray(5))
    assert np.all(whole != part)
    assert np.all(np.isfinite(shorter(seeds, jnp.asarray(5))))
    # The inputs of the two differ in shape and so in draws; a length of 1 uses none of the rest.
    assert np.all(part > 0)


def test_the_figure_is_drawn_from_the_folder(tmp_path):
    folder = run_folder.create(str(tmp_path / "run"), "flow_speed")
    run_folder.write_json(
        folder / "config.json",
        {"config": {"length": 64, "hidden_size": 8, "seeds": 2}},
    )
    loops = [
        {"way": "one pass", "seconds": 1.0, "ratio": 1.0},
        {"way": "loop", "seconds": 150.0, "ratio": 150.0},
        {"way": "other", "seconds": 400.0, "ratio": 400.0},
    ]
    scaling = [{"length": t, "rnn_ms": t / 512, "lstm_ms": t / 256} for t in (512, 1024)]
    run_folder.write_json(folder / "results.json", {"loops": loops, "scaling": scaling})
    paths = flow_speed.plot(folder)
    assert "150 times faster than any loop" in paths[1].read_text()
