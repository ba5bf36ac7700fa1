"""The benchmark compares like with like: every contestant does our step, number by number.

From the same weights each takes one step; what it should find is worked out here from our
gradient: clip by ITS global norm (PyTorch and cuDNN have two biases a layer, each with the
gradient of ours), then SGD.
"""

import dataclasses
import json
from functools import cache

import jax
import numpy as np
import pytest
from command_line import assert_one_line, call

from experiments import run_folder, throughput
from experiments.speed import contestants, drawing, rounds, tables, work
from experiments.speed.contestants import CONTESTANTS, installed, ours
from lm import model
from lm.data.batches import Batch
from lm.interop import pytorch
from lm.train import batch_nats

SIZE = work.Size(3, 4, 5, 2, 11)
CELLS = ("rnn", "gru", "lstm")
WHOLE = pytest.mark.whole
JAX_NAMES = ("linen", "nnx", "haiku", "equinox", "cudnn")
ENTRIES = [
    # Each takes a second or so to compile: the rest is for ./launch.sh test -m whole.
    pytest.param(name, cell, marks=[] if (cell, name != "cudnn") == ("lstm", True) else WHOLE)
    for name in ("torch", *JAX_NAMES)
    for cell in (*CELLS, "irnn")
    if cell in CONTESTANTS[name].cells
    # Its ReLU network is compared with ours of that kind.
    and (name, cell) != ("haiku", "rnn")
]


def random_weights(name, job):
    """Weights with nothing at 0 but what the contestant lacks."""
    rng = np.random.default_rng(3)
    arrays = {
        k: rng.normal(0, 0.5, a.shape).astype(np.float32) for k, a in work.draw_weights(job).items()
    }
    for key in arrays:
        if "bias_hh" in key:
            third = np.arange(arrays[key].size) >= 2 * SIZE.hidden
            candidate = third & (job.cell == "gru") & (name not in ("nnx", "haiku"))
            arrays[key] = np.where(candidate, arrays[key], 0).astype(np.float32)
        if name == "haiku" and job.cell == "gru" and "weight_hh" in key:
            # Where h does not enter the candidate, before or after the product is the same.
            arrays[key][2 * SIZE.hidden :] = 0
    return arrays


@cache
def gradient_of(cell):
    """Compiled once: (parameters, carry, batch) -> (loss, gradient) of lm.train's loss."""
    config = ours.model_config(work.Work(cell, SIZE))

    def nats(params, carry, batch):
        return batch_nats(config, params, carry, batch)[0]

    return config, jax.jit(jax.value_and_grad(nats))


def our_gradient(job, arrays):
    """(loss, gradient by PyTorch's names) of ours."""
    config, gradient = gradient_of(job.cell)
    params = jax.tree.map(jax.numpy.asarray, pytorch.import_model(arrays, job.cell).params)
    inputs, targets = work.draw_batch(job)
    batch = Batch(inputs, targets, None, np.asarray(False))
    loss, found = gradient(params, model.init_carry(config, SIZE.batch), batch)
    return float(loss), pytorch.export_model(config, found)


def as_theirs(found, gradient, cell):
    """Our gradient in the shape of what a contestant returned."""
    wanted = {}
    for key in found:
        if "bias_hn" in key:
            wanted[key] = gradient[key.replace("bias_hn", "bias_hh")][2 * SIZE.hidden :]
        elif "bias_hh" in key:
            same = gradient[key.replace("bias_hh", "bias_ih")].copy()
            if cell == "gru":
                same[2 * SIZE.hidden :] = gradient[key][2 * SIZE.hidden :]
            wanted[key] = same
        else:
            wanted[key] = gradient[key]
    return wanted


def module_of(name, monkeypatch):
    if not installed(name):
        pytest.skip(f"{CONTESTANTS[name].install} is not installed")
    module = contestants.load(name)
    if name == "cudnn":
        monkeypatch.setattr(module.rnn, "lstm", cudnn_by_reference)
    return module


def cudnn_by_reference(x, h_0, c_0, weights, lengths, size, hidden, layers, dropout, both):
    """What jax.experimental.rnn says cuDNN computes."""
    from jax.experimental import rnn

    parts = rnn.unpack_lstm_weights(weights, size, hidden, layers, both)
    return rnn.lstm_ref(x, h_0, c_0, *parts, lengths, size, hidden, layers, dropout, both)


@pytest.mark.parametrize(("name", "cell"), ENTRIES)
def test_a_step_of_theirs_is_a_step_of_ours(name, cell, monkeypatch):
    module = module_of(name, monkeypatch)
    other_gru = (name, cell) == ("haiku", "gru")
    clip = 1e6 if other_gru else 0.3  # the norm of its gradient has a part of its own
    job = work.Work(cell, SIZE, learning_rate=0.7, clip=clip)
    arrays = random_weights(name, job)
    loss, gradient = our_gradient(job, arrays)
    program = module.make_step(job, dict(arrays))
    program.run()
    assert program.loss() == pytest.approx(loss, rel=1e-5)
    found = program.arrays()
    gradient = as_theirs(found, gradient, cell)
    # What a contestant has no parameter for is 0 in the weights, and left out here.
    left = {key for key in arrays if key not in found}
    assert all("bias_hh" in key for key in left)
    if other_gru:
        for key in [key for key in found if "weight_hh" in key]:
            for some in (found, gradient, arrays):
                some[key] = some[key][: 2 * SIZE.hidden]
    norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradient.values()))
    assert (norm > clip) == (clip < 1)
    for key, after in found.items():
        start = arrays.get(key)
        if "bias_hn" in key:
            start = arrays[key.replace("bias_hn", "bias_hh")][2 * SIZE.hidden :]
        wanted = start - job.learning_rate * min(1.0, clip / norm) * gradient[key]
        np.testing.assert_allclose(after, wanted, rtol=0, atol=3e-6, err_msg=key)
    program.run()
    assert program.loss() < loss  # the same batch again, from the state that was carried on
    assert program.peak_bytes() > sum(a.nbytes for a in found.values())


def test_a_step_of_ours_is_sgd_on_the_clipped_gradient():
    job = work.Work("gru", SIZE, learning_rate=0.7, clip=0.3)
    arrays = random_weights("ours", job)
    loss, gradient = our_gradient(job, arrays)
    program = ours.make_step(job, arrays)
    program.run()
    assert program.loss() == pytest.approx(loss, rel=1e-6)
    norm = np.sqrt(sum(float(np.sum(g**2)) for g in gradient.values()))
    for key, after in program.arrays().items():
        wanted = arrays[key] - 0.7 * 0.3 / norm * gradient[key]
        np.testing.assert_allclose(after, wanted, rtol=0, atol=3e-6, err_msg=key)


@pytest.mark.whole
def test_ten_steps_a_dispatch_are_ten_steps():
    job = work.Work("lstm", SIZE, learning_rate=0.7, clip=0.3)
    arrays = random_weights("ours", job)
    one, ten = ours.make_step(job, arrays), contestants.load("ours10").make_step(job, arrays)
    for _ in range(10):
        one.run()
    ten.run()
    assert (one.steps, ten.steps) == (1, 10)
    assert ten.loss() > one.loss()  # it tells the first of the ten
    for key, after in ten.arrays().items():
        np.testing.assert_allclose(after, one.arrays()[key], rtol=0, atol=2e-5, err_msg=key)


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        *(pytest.param(n, marks=WHOLE) for n in ("linen", "nnx", "haiku", "equinox", "cudnn")),
    ],
)
def test_a_layer_of_theirs_is_a_layer_of_ours(name, monkeypatch):
    cell = "lstm"
    module = module_of(name, monkeypatch)
    job = work.one_layer(work.Work(cell, SIZE))
    arrays = random_weights(name, job)
    programs = [m.make_layer(job, dict(arrays)) for m in (ours, module)]
    for program in programs:
        program.run()
    mine, theirs = (program.arrays() for program in programs)
    assert programs[1].loss() == pytest.approx(programs[0].loss(), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(theirs.pop("x"), mine.pop("x"), rtol=0, atol=2e-5)
    for key, wanted in as_theirs(theirs, mine, cell).items():
        np.testing.assert_allclose(theirs[key], wanted, rtol=0, atol=3e-5, err_msg=key)


def test_operations_are_counted():
    """By hand: two LSTM layers of 5 units, 11 words, 12 tokens, forward once and backward twice."""
    job = work.Work("lstm", SIZE)
    layer = 5 * 20 + 5 * 20
    assert work.count_flops(job, "step") == 3 * 2 * 12 * (2 * layer + 5 * 11)
    assert work.count_flops(job, "layer") == 3 * 2 * 12 * layer
    assert work.count_flops(work.Work("gru", SIZE), "layer") == 3 * 2 * 12 * (2 * 5 * 15)


def timing(*seconds, first=1.0, loss=2.0):
    return rounds.Timing(first, [5.0, loss], 2**20, list(seconds))


def row_of(part="step", size="20x20x200x2x10000", **medians):
    entries = {name: timing(s).row(10**9, 400) for name, s in medians.items()}
    return {"part": part, "cell": "lstm", "size": size, "flops": 10**9, "contestants": entries}


def test_rows_and_means():
    row = timing(0.2, 0.1, 0.4).row(10**9, 400)
    assert row["ms"] == pytest.approx(200)
    assert row["ms_quartiles"] == pytest.approx([150, 300])
    assert row["tokens_per_second"] == pytest.approx(2000)
    assert row["flops_per_second"] == pytest.approx(5e9)
    assert row["compile_seconds"] == pytest.approx(0.8)
    rows = [row_of(ours=0.1, torch=0.2), row_of(size="20x35x650x2x10000", ours=0.1, torch=0.05)]
    (found,) = tables.summarise(rows)
    assert found["geometric_mean"] == pytest.approx(1.0)
    assert (found["least"], found["least_size"]) == (0.5, "20x35x650x2x10000")


def test_tables_say_who_is_ahead_and_who_failed(capsys):
    rows = [row_of(ours=0.1, torch=0.158), row_of(size="20x35x650x2x10000", ours=0.1, torch=0.05)]
    rows[0]["contestants"]["haiku"] = rounds.Timing(refused="MemoryError: no").row(1, 1)
    throughput.print_comparison({"rows": rows, "peaks": {"ours": 1e11, "torch": 5e10}})
    out = capsys.readouterr().out
    assert "158.0 (1.58x)" in out
    assert "lstm 20x35x650x2x10000 step: PyTorch, 0.50x" in out
    assert "10% to 10% of the matmul peak" in out
    assert "Haiku failed at lstm 20x20x200x2x10000 (step): MemoryError: no" in out


def test_the_figure_is_drawn_from_the_folder(tmp_path):
    """Also where a contestant failed at one size; and none where ours is alone."""
    rows = [row_of(ours=0.1, torch=0.2, linen=0.05), row_of("layer", ours=0.1)]
    rows.append(row_of(size="20x35x650x2x10000", ours=2.0, linen=2.5))
    rows[-1]["contestants"]["torch"] = rounds.Timing(refused="out of memory").row(1, 1)
    (tmp_path / "figures").mkdir()
    run_folder.write_json(tmp_path / "versions.json", {"device": "cpu", "cpu_cores": 2})
    run_folder.write_json(tmp_path / "results.json", {"rows": rows, "precision": "float32"})
    paths = drawing.plot(tmp_path)
    assert [path.name for path in paths] == ["throughput_step.png", "throughput_step.svg"]
    svg = paths[1].read_text()
    for words in ("2.00x", "0.79x", "medium", "100 ms", "2.00 s", "PyTorch"):
        assert words in svg


def test_other_work_is_refused():
    job = work.Work("lstm", SIZE)
    same = {"ours": timing(1, loss=2.0), "torch": timing(1, loss=2.0001)}
    rounds.check_losses(job, "step", same)
    other = {**same, "linen": timing(1, loss=2.01)}
    with pytest.raises(ArithmeticError, match="Flax linen finds"):
        rounds.check_losses(job, "step", other)
    with pytest.raises(ArithmeticError, match="same work"):
        rounds.check_losses(job, "step", {**same, "nnx": timing(1, loss=float("nan"))})
    gru = work.Work("gru", SIZE)
    rounds.check_losses(gru, "step", {**same, "haiku": timing(1, loss=2.01)})  # another GRU


@pytest.mark.parametrize(
    ("size", "other"),
    [
        ("small", "no layers"),
        ("small", "gates in another order"),
        ("small", "no clip"),
        ("char", "gates in another order"),
    ],
)
def test_another_network_is_seen_in_the_losses(size, other):
    job = work.Work("lstm", work.parse_size(size))
    weights = work.draw_weights(job)

    def losses(job, weights):
        program = ours.make_step(job, weights)
        found = []
        for _ in range(3):
            program.run()
            found.append(program.loss())
        return rounds.Timing(1.0, found, 2**20, [1.0])

    changed, another = dict(weights), job
    for name, array in weights.items():
        if name.startswith("rnn"):
            if other == "no layers":
                changed[name] = np.zeros_like(array)
            elif other == "gates in another order":
                i, f, g, o = np.split(array, 4)
                changed[name] = np.concatenate([f, i, g, o])
    if other == "no clip":
        another = dataclasses.replace(job, clip=1e6)
    found = {"ours": losses(job, weights), "torch": losses(another, changed)}
    with pytest.raises(ArithmeticError, match="same work"):
        rounds.check_losses(job, "step", found)


def test_a_second_bias_may_make_some_difference_to_the_fall_alone():
    job = work.Work("lstm", SIZE)
    ours_, theirs = timing(1), timing(1)
    ours_.losses, theirs.losses = [5.0, 4.0], [5.0, 3.9]
    rounds.check_losses(job, "step", {"ours": ours_, "torch": theirs})
    with pytest.raises(ArithmeticError, match=r"Flax linen finds 3\.9 at step 1"):
        rounds.check_losses(job, "step", {"ours": ours_, "linen": theirs})
    theirs.losses = [5.0, 5.0]  # nothing learned
    with pytest.raises(ArithmeticError, match="PyTorch finds 5 at step 1"):
        rounds.check_losses(job, "step", {"ours": ours_, "torch": theirs})


def test_a_contestant_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(rounds, "LONGEST_SECONDS", 0.3)
    monkeypatch.setattr(rounds.subprocess, "Popen", sleeping(rounds.subprocess.Popen))
    process = rounds.Process("ours", "float32")
    try:
        with pytest.raises(rounds.RefusedError, match="ended with status -9"):
            process.hear()
    finally:
        process.close()


def sleeping(start):
    """In place of a worker, something that never answers."""
    return lambda command, **options: start(["sleep", "60"], **options)


def test_a_precision_is_refused_beside_parts_that_have_none():
    with pytest.raises(ValueError, match="precision is bfloat16 beside the part memory"):
        throughput.Config(parts=("step", "memory"), precision="bfloat16")


@pytest.mark.parametrize(
    ("part", "option"), [("memory", "cells"), ("lengths", "sizes"), ("step", "repeats")]
)
def test_an_option_that_no_part_uses_is_refused(part, option):
    with pytest.raises(ValueError, match=f"{option} is given with --parts={part}, which does not"):
        throughput.Config(parts=(part,), given=(option,))
    assert throughput.Config(parts=("step", "lengths"), given=("cells", "repeats"))


def test_a_turn_is_as_long_as_asked():
    assert rounds.steps_in(0.3, 0.5) == 1 + 2
    assert rounds.steps_in(1.1, 0.1) == 1 + 10 or rounds.steps_in(1.1, 0.1) == 1 + 11
    assert rounds.steps_in(0.3, 1e-6) == rounds.STEPS[1]


def test_sizes_are_read():
    assert work.parse_size("medium") == work.Size(20, 35, 650, 2, 10000)
    assert str(work.parse_size("3x4x5x1x7")) == "3x4x5x1x7"
    for wrong, words in (
        ("20x35x650", "BxTxHxLAYERSxV"),
        ("mediun", "did you mean 'medium'"),
        ("20x35x650x0x10", "layers 0"),
        ("20x35x-1x1x10", "BxTxHxLAYERSxV"),
        ("1x1x1x1x99999999", "V 99999999"),
    ):
        with pytest.raises(ValueError, match=words):
            work.parse_size(wrong)


def test_mistakes_are_one_line():
    assert_one_line(call("throughput", "--sizes=20x35"), "BxTxHxLAYERSxV", "20x35x650x2x10000")
    assert_one_line(call("throughput", "--cells=nig"), "nig", "no other library", "--parts=engine")
    assert_one_line(call("throughput", "--contestants=torch"), "wanted ours among them")
    assert_one_line(call("throughput", "--contestants=keras"), "keras", "one of")
    assert_one_line(call("throughput", "--precision=tf32"), "tf32", "GPU")
    assert_one_line(call("throughput", "--parts=steps"), "did you mean 'step'")
    assert_one_line(call("throughput", "--sizes="), "sizes is empty")


def test_what_is_not_installed_is_said(capsys, monkeypatch):
    monkeypatch.setattr(throughput, "installed", lambda name: name != "haiku")
    names = throughput.choose(throughput.Config(cells=("rnn",)))
    assert names == ["ours", "torch", "linen", "nnx", "equinox"]
    said = capsys.readouterr().err
    assert "Haiku is not installed" in said
    assert "dm-haiku" in said
    assert "Equinox has no rnn" in said


def test_the_engine_is_timed_against_autodiff():
    from experiments.speed.engine import time_layer

    row = time_layer("gru", SIZE, 3)
    assert row["difference"] < 1e-5
    assert row["engine_ms"] > 0


@pytest.mark.whole
def test_a_run_times_saves_and_draws(tmp_path, capsys):
    """Processes and all, at a size where that is all there is."""
    folder = tmp_path / "run"
    names = ("ours", "torch") if installed("torch") else ("ours", "linen")
    config = throughput.Config(
        sizes=("3x4x5x2x11",), contestants=names, rounds=2, seconds=0.01, run=str(folder)
    )
    throughput.run(config)
    results = json.loads((folder / "results.json").read_text())
    assert [row["part"] for row in results["rows"]] == ["step", "layer"]
    for row in results["rows"]:
        assert set(row["contestants"]) == set(names)
        losses = [timed["losses"][0] for timed in row["contestants"].values()]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-3)
        for timed in row["contestants"].values():
            assert timed["steps"] >= 2
            assert timed["bytes"] > 0
    assert set(results["peaks"]) >= {"ours"}
    assert min(results["peaks"].values()) > 1e8
    assert "geometric mean" in capsys.readouterr().out
    assert (folder / "figures" / "throughput_step.png").exists()
    assert "LSTM" in (folder / "figures" / "throughput_layer.svg").read_text()


@pytest.mark.whole
def test_a_contestant_that_fails_is_left_out(tmp_path):
    """Its process ends or says why; the others go on."""
    with rounds.processes(["ours"], "float32") as workers:
        worker = workers["ours"]
        with pytest.raises(rounds.RefusedError, match="KeyError"):
            worker.ask("make", part="step", cell="no-cell", size="3x4x5x2x11")
        assert worker.ask("drop") == {}  # it goes on
        worker._process.kill()
        with pytest.raises(rounds.RefusedError, match="ended with status"):
            worker.ask("peak")
    assert worker._process.returncode is not None
    row = rounds.Timing(refused="why").row(1, 1)
    assert run_folder.finite(row) == {"refused": "why"}
