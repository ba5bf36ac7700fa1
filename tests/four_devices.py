"""Four devices against one, in a process that has them: `test_mesh.py` runs this file by pytest."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, call, write_book
from compiled_loops import loop_lines

from experiments.fit.config import Config
from experiments.fit.devices import DevicesConfig
from experiments.run_folder import read_config, write_start
from experiments.train import settle_mesh
from lm import model
from lm.checkpoint import Checkpoints
from lm.config import DataConfig, ModelConfig, OptimConfig, RegularizeConfig
from lm.data.batches import make_batches
from lm.evaluate import evaluate_sentences, evaluate_stream, make_forward
from lm.mesh import EVERYWHERE, any_process, make_mesh, own_rows, place, place_rows
from lm.optim import Hyper, make_schedule
from lm.train import BLOCK, init_state, make_block, place_state, run_blocks

V, STEPS = 50, 6
TOKENS = np.random.default_rng(0).integers(0, V, 2003).astype(np.int32)
TOKENS[::9] = 0  # sentences of nine words and more
SMALL = ModelConfig(layers=2, hidden_size=12, embedding_size=12)
STREAM = DataConfig(batch_size=8, length=10)
DROPPED = RegularizeConfig(
    dropout_words=0.1,
    dropout_input=0.1,
    dropout_hidden=0.1,
    dropout_output=0.1,
    dropout_state=0.1,
    weight_drop=0.2,
    activation_penalty=1,
)
SLOW = RegularizeConfig(slowness_penalty=1, dropout_masks="independent", dropout_output=0.2)
# Each way of laying out a batch, of drawing masks, of taking the loss.
CASES = {
    "plain": (SMALL, STREAM, RegularizeConfig(), {"log_gradient_flow": True}),
    "sentences": (
        ModelConfig(hidden_size=12, embedding_size=12, softmax="adaptive"),
        DataConfig(batch_size=8, length=30, batching="sentences"),
        SLOW,
        {},
    ),
    "random_length": (
        ModelConfig(
            layers=2, hidden_size=12, embedding_size=12, softmax="sampled", sampled_words=20
        ),
        DataConfig(batch_size=8, length=10, random_length=True),
        DROPPED,
        {"remat": True},
    ),
}
EVERY_CASE = [
    pytest.param(name, marks=[pytest.mark.whole] if name == "sentences" else []) for name in CASES
]


def mesh_of(devices):
    return make_mesh(jax.devices()[:devices]) if devices > 1 else None


def start(name, devices):
    """(the state before the first step, block, batches) of a case."""
    config, data, regularize, options = CASES[name]
    mesh, optim = mesh_of(devices), OptimConfig(momentum=0.9)
    batches = make_batches(TOKENS, data, 0, own_rows(mesh, data.batch_size))
    schedule = make_schedule(optim, batches.steps_per_epoch, STEPS)
    block = make_block(config, optim, schedule, regularize=regularize, mesh=mesh, **options)
    drawn = init_state(jax.random.key(0), config, optim, V, data.batch_size)
    return place_state(drawn, mesh), block, batches


HYPER = Hyper(jnp.float32(1.0), jnp.float32(0.5))


def go_on(state, block, batches, stop=STEPS):
    """(the state at step `stop`, metrics of each dispatch)."""
    metrics = []
    run = run_blocks(state, HYPER, block, batches, stop=stop, steps_per_dispatch=3)
    for after, measured in run:
        state = after
        metrics.append(measured)
    return state, metrics


def plain(tree):
    """Leaves as NumPy arrays."""
    keys = jax.dtypes.prng_key
    return [
        np.asarray(jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, keys) else a)
        for a in jax.tree.leaves(tree)
    ]


def assert_close(tree, other, rtol, atol=0.0):
    for a, b in zip(plain(tree), plain(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def assert_same_bits(tree, other):
    for a, b in zip(plain(tree), plain(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", EVERY_CASE)
def test_four_devices_compute_what_one_does(name):
    """The loss curve to 1e-5; the same masks and words are drawn, or it would be another one."""
    one, curve = go_on(*start(name, 1))
    four, spread = go_on(*start(name, 4))
    assert_close(curve, spread, rtol=1e-5)
    assert_close(one.params, four.params, rtol=1e-4, atol=1e-5)
    assert_close(one.carry, four.carry, rtol=1e-4, atol=1e-5)
    assert_same_bits((one.step, one.key), (four.step, four.key))


COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)"
    r"(-start)?\("
)


def compiled_block(name):
    """A block of a case on four devices, as compiled text."""
    state, block, batches = start(name, 4)
    (run,) = [c.cell_contents for c in block.__closure__ if hasattr(c.cell_contents, "lower")]
    rows = place_rows(mesh_of(4), batches.block(0, 3), BLOCK)
    return run.lower(state, HYPER, rows, np.int32(3)).compile().as_text()


@pytest.mark.parametrize("name", EVERY_CASE)
def test_the_gradient_is_summed_once_a_step_and_nothing_else_passes_between_devices(name):
    """Loops one deep are over steps of training, those below over time, chunks, words."""
    text = compiled_block(name)
    a_step = [line for line in loop_lines(text, 1) if COLLECTIVE.search(line)]
    within = [line for line in loop_lines(text, 2) if COLLECTIVE.search(line)]
    assert not within
    config = CASES[name][0]
    gradients = [line for line in a_step if line.count("f32[") > len(jax.tree.leaves(SMALL)) + 8]
    assert len(gradients) == 1, a_step
    width = 4 * config.hidden_size
    assert f"f32[{config.hidden_size},{width}]" in gradients[0]
    # Beside it, what is a number: tokens of the masks; or log norms.
    for line in a_step:
        if line is not gradients[0]:
            sizes = re.findall(r"f32\[([\d,]*)\]", line.split(" all-")[0])
            assert all(size in ("", "4,2,10") for size in sizes), line


@pytest.mark.whole
def test_the_same_devices_give_the_same_bits():
    found = [go_on(*start("random_length", 4))[0] for _ in range(2)]
    assert_same_bits(*found)


@pytest.mark.parametrize(
    ("saved_on", "restored_on"),
    [
        (4, 1),
        pytest.param(4, 2, marks=pytest.mark.whole),
        pytest.param(1, 4, marks=pytest.mark.whole),
    ],
)
def test_a_checkpoint_goes_on_on_another_number_of_devices(saved_on, restored_on, tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        begun, metrics = go_on(*start("plain", saved_on), stop=3)
        checkpoints.save(begun)
        checkpoints.wait()
        template, block, batches = start("plain", restored_on)
        restored = checkpoints.restore(template)
    assert_same_bits(begun, restored)
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    _, more = go_on(restored, block, batches)
    _, curve = go_on(*start("plain", 1))
    assert_close(metrics + more, curve, rtol=1e-5)


@pytest.mark.parametrize("rows", [3, pytest.param(8, marks=pytest.mark.whole)])
def test_evaluation_is_spread_over_any_number_of_rows(rows):
    mesh = mesh_of(4)
    params = model.init(jax.random.key(0), SMALL, V)
    placed, forward = place(mesh, params, EVERYWHERE), make_forward(SMALL, mesh)
    for evaluate in (evaluate_stream, evaluate_sentences):
        one = evaluate(SMALL, params, TOKENS, batch=rows)
        four = evaluate(SMALL, placed, TOKENS, batch=rows, forward=forward)
        assert (one.tokens, one.passes) == (four.tokens, four.passes)
        np.testing.assert_allclose(four.nats, one.nats, rtol=1e-6)


def test_a_second_dispatch_compiles_nothing(caplog):
    """The state comes back as it went in, and so does a restored one."""
    state, block, batches = start("plain", 4)
    state, _ = go_on(state, block, batches, stop=3)
    with jax.log_compiles():
        go_on(state, block, batches)
    assert not [r for r in caplog.records if "Compiling jit(run_steps)" in r.getMessage()]


def test_a_run_is_spread_over_cores_where_they_pay_and_stays_as_it_was_begun(tmp_path):
    text = DataConfig(batch_size=32, length=100)
    small = Config(data=text, model=SMALL)
    assert settle_mesh(small, None, V) == "data=4"
    assert settle_mesh(small, None, 100_000) == "data=1"
    for mesh, kept in (("data=2", "data=2"), ("", "data=1")):  # a run older than this has none
        begun = dataclasses.replace(small, run=str(tmp_path), devices=DevicesConfig(mesh=mesh))
        write_start(tmp_path, begun, {})
        assert settle_mesh(small, tmp_path, V) == kept
    typed = dataclasses.replace(small, devices=DevicesConfig(mesh="data=all"))
    assert settle_mesh(typed, tmp_path, V) == "data=all"


def test_train_spreads_a_small_model_and_says_so(tmp_path):
    folder, sizes = tmp_path / "run", ("--batch_size=32", "--steps=2", "--level=char")
    done = call("train", *TINY, *sizes, f"--corpus={write_book(tmp_path)}", f"--run={folder}")
    assert done.returncode == 0
    assert "spread over 4 cores; --mesh=data=1 keeps them on one" in done.stdout
    assert read_config(folder, Config).devices.mesh == "data=4"


def test_rows_that_devices_do_not_divide_are_refused():
    mesh = mesh_of(4)
    assert own_rows(mesh, 8) == slice(0, 8)
    assert own_rows(None, 7) == slice(None)
    with pytest.raises(ValueError, match=r"is 10, which 4 devices .* wanted 8 or 12"):
        own_rows(mesh, 10)
    with pytest.raises(ValueError, match=r"is 3, .* wanted 4"):
        own_rows(mesh, 3)


def test_one_process_asks_itself():
    assert any_process(mesh_of(4), True)
    assert not any_process(None, False)
