"""What does one backward pass save over a loop over sequence lengths?

The gradient's norm against T = 1 .. 512 for an RNN and an LSTM, several seeds, end to end with
compilation: the laboratory's one pass against what one would write in PyTorch (nn.RNN and
nn.LSTM, eager) and in Flax (nn.RNN, compiled for every length, or compiled once for the longest
with the shorter ones masked): a forward and a backward pass for every length.
The loops run at `--samples` lengths, evenly spread, and what all lengths would take is worked
out from those; `--samples=512` runs them all. PyTorch is left out where it is not installed.

Then: the log-space pass against a plain one, the pass's time and memory against T, and what
`train --log_gradient_flow` costs a training run.

Prediction: the loop's work grows with the square of T, the pass's with T: hundreds of times.

    ./launch.sh flow_speed                        a minute and a half on 2 CPU cores
    ./launch.sh flow_speed --samples=512          the whole loops, some twenty minutes
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of flow_speed."""

    hidden_size: int = option(128, "H, and the input size", least=1, most=8192)
    length: int = option(512, "longest sequence, T", least=8, most=10_000)
    seeds: int = option(32, "networks of each cell", least=1, most=1000)
    samples: int = option(16, "lengths at which the loops are really run", least=2)
    longest: int = option(16384, "longest sequence of the scaling table", least=512, most=10**6)
    repeats: int = option(5, "timed runs of each, of which the median counts", least=3)
    run: str = option("", "folder of the run; empty: runs/flow_speed-<date>-<time>")

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures, run_folder
from lm.cells import CELLS
from lm.cells.cell import CellParams
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import StreamBatches
from lm.gradients.flow import measure_lags, measure_layer_lags
from lm.optim import Hyper, make_schedule
from lm.recurrence import unroll
from lm.train import init_state, make_block

CELLS_TIMED = ("rnn", "lstm")
# Not Flax's orthogonal default: its QRs, one a gate, lock each other out (see lm.linalg).
FLAX_START: dict[str, Any] = {"recurrent_kernel_init": nn.initializers.lecun_normal()}


def run(config: Config) -> Path:
    """Time, print, save, draw. Returns the run's folder."""
    folder = run_folder.create(config.run, "flow_speed")
    run_folder.write_start(folder, config, {})
    curves = compare_loops(config)
    print_loops(curves, config)
    log_space = compare_plain(config)
    print(f"\nlog space / plain float32, one pass, compiled: {log_space['ratio']:.2f}x")
    scaling = time_lengths(config)
    print(f"\n{'T':>8}{'rnn':>12}{'lstm':>12}{'microseconds a step':>22}{'MiB':>8}")
    for row in scaling:
        each = f"{row['rnn_us_per_step']:.1f} / {row['lstm_us_per_step']:.1f}"
        print(
            f"{row['length']:>8}{row['rnn_ms']:>9.1f} ms{row['lstm_ms']:>9.1f} ms"
            f"{each:>22}{row['lstm_mib']:>8.1f}"
        )
    monitoring = time_monitoring(config)
    print(
        f"\ntrain --log_gradient_flow: {monitoring['overhead']:+.1%} "
        f"({monitoring['plain_ms']:.2f} -> {monitoring['logged_ms']:.2f} ms a step)"
    )
    run_folder.write_json(
        folder / "results.json",
        {"loops": curves, "log_space": log_space, "scaling": scaling, "monitoring": monitoring},
    )
    paths = plot(folder)
    print(f"run: {folder}    figure: {paths[0]}")
    return folder


class Networks(NamedTuple):
    """Layers and what they read, one a seed."""

    params: CellParams  # [S, ...], from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch starts its layers
    x: Any  # [S, T, 1, H], from N(0, 1)
    d_h: Any  # [S, 1, H], likewise


def draw_networks(cell_name: str, hidden: int, time_steps: int, seeds: int) -> Networks:
    """On the host, whose generator needs no compilation; drawing counts in the times."""
    rng = np.random.default_rng(0)
    width = hidden * len(CELLS[cell_name].gates)
    shapes = ((seeds, hidden, width), (seeds, hidden, width), (seeds, width))
    bound = hidden**-0.5
    drawn: list[Any] = [rng.uniform(-bound, bound, shape).astype(np.float32) for shape in shapes]
    x = rng.standard_normal((seeds, time_steps, 1, hidden), np.float32)
    return Networks(
        CellParams(drawn[0], drawn[1], drawn[2], ()),
        x,
        rng.standard_normal((seeds, 1, hidden), np.float32),
    )


def one_pass(cell_name: str) -> Callable[[Networks], jax.Array]:
    """Networks -> log ||dL_T/dh_{T - lag}|| [S, T], all lags at once."""
    cell = CELLS[cell_name]

    def one_seed(params: CellParams, x: jax.Array, d_h: jax.Array) -> jax.Array:
        state = cell.init_state(1, d_h.shape[-1])
        return measure_layer_lags(cell, params, state, x, d_h).h[:, 0]

    return lambda networks: jax.vmap(one_seed)(networks.params, networks.x, networks.d_h)


def compare_loops(config: Config) -> list[dict[str, Any]]:
    """Seconds of each way to get the curves of both cells, all seeds, with compilation."""
    jax.clear_caches()
    start = time.perf_counter()
    for cell in CELLS_TIMED:
        networks = draw_networks(cell, config.hidden_size, config.length, config.seeds)
        jax.block_until_ready(jax.jit(one_pass(cell))(networks))
    ours = time.perf_counter() - start
    lengths = np.unique(np.linspace(1, config.length, config.samples).round().astype(int))
    rows: list[dict[str, Any]] = [
        {"way": "one pass", "seconds": ours, "ratio": 1.0, "lengths_run": config.length}
    ]
    loops = {
        "Flax, compiled for each length": time_flax,
        "Flax, compiled once, masked": time_masked,
    }
    if importlib.util.find_spec("torch"):
        loops["PyTorch, eager"] = time_torch
    else:
        print("PyTorch is not installed: its loop is left out (pip install torch)")
    for way, timed in loops.items():
        each = np.asarray([timed(config, int(length)) for length in lengths])
        # The seconds at all lengths from those at the lengths run, straight lines between.
        compiling = each[0] - np.median(each) if way.endswith("masked") and len(each) > 2 else 0.0
        each[0] -= max(0.0, compiling)
        total = float(np.interp(np.arange(1, config.length + 1), lengths, each).sum()) + compiling
        rows.append(
            {"way": way, "seconds": total, "ratio": total / ours, "lengths_run": len(lengths)}
        )
    return rows


def print_loops(rows: list[dict[str, Any]], config: Config) -> None:
    print(
        f"gradient against T = 1 .. {config.length}, RNN and LSTM, H = {config.hidden_size}, "
        f"{config.seeds} seeds, with compilation"
    )
    for row in rows:
        note = (
            "" if row["lengths_run"] >= config.length else f"   from {row['lengths_run']} lengths"
        )
        print(f"  {row['way']:32}{row['seconds']:>9.2f} s{row['ratio']:>9.0f}x{note}")


def time_flax(config: Config, length: int) -> float:
    """Both cells at one length in Flax, all seeds side by side: compile and run."""
    start = time.perf_counter()
    for cell in (nn.SimpleCell, nn.OptimizedLSTMCell):
        layer = nn.RNN(cell(config.hidden_size, **FLAX_START))

        def norm(seed: jax.Array, layer: nn.RNN = layer) -> jax.Array:
            keys = jax.random.split(jax.random.key(seed), 3)
            x = jax.random.normal(keys[1], (1, length, config.hidden_size))
            carry = layer.cell.initialize_carry(keys[0], (1, config.hidden_size))
            params = layer.init(keys[0], x)
            weight = jax.random.normal(keys[2], (1, config.hidden_size))

            def loss(carry: Any) -> jax.Array:
                out: Any = layer.apply(params, x, initial_carry=carry)
                return jnp.vdot(out[:, -1], weight)

            leaves = jax.tree.leaves(jax.grad(loss)(carry))
            return jnp.linalg.norm(leaves[-1])

        jax.block_until_ready(jax.jit(jax.vmap(norm))(jnp.arange(config.seeds)))
    return time.perf_counter() - start


def time_masked(config: Config, length: int) -> float:
    """Both cells at one length with the program of the longest; the first call compiles it."""
    start = time.perf_counter()
    for name in CELLS_TIMED:
        run = masked_program(name, config.hidden_size, config.length)
        jax.block_until_ready(run(jnp.arange(config.seeds), jnp.asarray(length)))
    return time.perf_counter() - start


@functools.cache
def masked_program(name: str, hidden: int, longest: int) -> Callable[..., jax.Array]:
    """(seeds, length) -> norms, by Flax's own masking of sequences shorter than the longest."""
    cell = {"rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell}[name]
    layer = nn.RNN(cell(hidden, **FLAX_START), return_carry=True)

    def norm(seed: jax.Array, length: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), 3)
        x = jax.random.normal(keys[1], (1, longest, hidden))
        carry = layer.cell.initialize_carry(keys[0], (1, hidden))
        params = layer.init(keys[0], x)
        weight = jax.random.normal(keys[2], (1, hidden))

        def loss(carry: Any) -> jax.Array:
            last, _ = layer.apply(params, x, initial_carry=carry, seq_lengths=length[None])
            return jnp.vdot(jax.tree.leaves(last)[-1], weight)

        return jnp.linalg.norm(jax.tree.leaves(jax.grad(loss)(carry))[-1])

    return jax.jit(jax.vmap(norm, in_axes=(0, None)))


def time_torch(config: Config, length: int) -> float:
    """Both cells at one length in PyTorch, seed after seed."""
    import torch

    hidden = config.hidden_size
    start = time.perf_counter()
    for kind in (torch.nn.RNN, torch.nn.LSTM):
        for seed in range(config.seeds):
            torch.manual_seed(seed)
            layer = kind(hidden, hidden)
            x = torch.randn(length, 1, hidden)
            h = torch.zeros(1, 1, hidden, requires_grad=True)
            state = (h, torch.zeros(1, 1, hidden)) if kind is torch.nn.LSTM else h
            out, _ = layer(x, state)
            (gradient,) = torch.autograd.grad((out[-1] * torch.randn(1, hidden)).sum(), h)
            gradient.norm().item()
    return time.perf_counter() - start


def median_ms(run_once: Callable[[], Any], repeats: int) -> float:
    run_once()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run_once())
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def compare_plain(config: Config) -> dict[str, float]:
    """The log-space pass beside one that takes naive norms of plain cotangents, interleaved."""
    sums = {"log_ms": 0.0, "plain_ms": 0.0}
    for name in CELLS_TIMED:
        drawn = draw_networks(name, config.hidden_size, config.length, config.seeds)
        networks = jax.tree.map(jnp.asarray, drawn)
        ways = {"log_ms": jax.jit(one_pass(name)), "plain_ms": jax.jit(plain_pass(name))}
        for way in ways.values():
            jax.block_until_ready(way(networks))
        times: dict[str, list[float]] = {key: [] for key in ways}
        for _ in range(2 * config.repeats + 1):
            for key, way in ways.items():
                start = time.perf_counter()
                jax.block_until_ready(way(networks))
                times[key].append(1e3 * (time.perf_counter() - start))
        for key, values in times.items():
            sums[key] += float(np.median(values))
    return {**sums, "ratio": sums["log_ms"] / sums["plain_ms"]}


def plain_pass(cell_name: str) -> Callable[[Networks], jax.Array]:
    """As `one_pass`, by the engine's training pass and jnp.linalg.norm: 0 beyond 10^-23."""
    cell = CELLS[cell_name]

    def one_seed(params: CellParams, x: jax.Array, d_h: jax.Array) -> jax.Array:
        state = cell.init_state(1, d_h.shape[-1])
        probe = jax.tree.map(lambda s: jnp.zeros((len(x), *s.shape)), state)

        def loss(probe: Any) -> jax.Array:
            return jnp.vdot(unroll(cell, params, state, x, probe=probe)[1][-1], d_h)

        return jnp.linalg.norm(jax.grad(loss)(probe).h[::-1, 0], axis=-1)

    return lambda networks: jax.vmap(one_seed)(networks.params, networks.x, networks.d_h)


def time_lengths(config: Config) -> list[dict[str, float]]:
    """Milliseconds and megabytes of one pass over one network, T doubling."""
    rows = []
    length = 512
    while length <= config.longest:
        row: dict[str, float] = {"length": length}
        for cell in CELLS_TIMED:
            networks = jax.tree.map(jnp.asarray, draw_networks(cell, config.hidden_size, length, 1))
            compiled = jax.jit(one_pass(cell)).lower(networks).compile()
            memory = compiled.memory_analysis()
            row[f"{cell}_ms"] = median_ms(lambda: compiled(networks), config.repeats)  # noqa: B023
            row[f"{cell}_us_per_step"] = 1e3 * row[f"{cell}_ms"] / length
            row[f"{cell}_mib"] = memory.temp_size_in_bytes / 2**20 if memory else float("nan")
        rows.append(row)
        length *= 2
    return rows


def time_monitoring(config: Config) -> dict[str, float]:
    """What train's default model pays for `--log_gradient_flow`, dispatches interleaved."""
    model, optim, steps = ModelConfig(), OptimConfig(), 50
    vocabulary = 9268
    tokens = np.random.default_rng(0).integers(0, vocabulary, 20 * 35 * 60).astype(np.int32)
    batches = StreamBatches(tokens, 20, 35)
    schedule = make_schedule(optim, batches.steps_per_epoch, steps)
    hyper = Hyper(jnp.float32(1.0), jnp.float32(0.25))
    windows = jnp.asarray(tokens[: 70 * 20].reshape(70, 20))

    @jax.jit
    def lags(params: Any) -> jax.Array:
        carry = init_state(jax.random.key(0), model, optim, vocabulary, 20).carry
        return measure_lags(model, params, carry, windows, windows[-1])[-1].h.mean(axis=1)

    blocks = {
        flag: make_block(model, optim, schedule, log_gradient_flow=flag) for flag in (False, True)
    }
    states = {flag: init_state(jax.random.key(0), model, optim, vocabulary, 20) for flag in blocks}
    times: dict[bool, list[float]] = {False: [], True: []}
    chunk = batches.block(0, steps)
    for _ in range(config.repeats + 1):
        for flag, block in blocks.items():
            start = time.perf_counter()
            states[flag], metrics, _ = block(states[flag], hyper, chunk)
            if flag:
                np.asarray(lags(states[flag].params))
            jax.tree.map(np.asarray, dataclasses.asdict(metrics))
            times[flag].append(1e3 * (time.perf_counter() - start) / steps)
    plain, logged = (float(np.median(times[flag][1:])) for flag in (False, True))
    return {"plain_ms": plain, "logged_ms": logged, "overhead": logged / plain - 1}


def plot(folder: Path) -> list[Path]:
    """Seconds of each way, and the pass's time against T, from the run's folder alone."""
    results = run_folder.read_json(folder / "results.json")
    config = run_folder.read_json(folder / "config.json")["config"]
    figure, (left, right) = figures.new_figure(2)
    ways = [row["way"] for row in results["loops"]][::-1]
    seconds = [row["seconds"] for row in results["loops"]][::-1]
    bars = left.barh(ways, seconds, color=["#999999"] * (len(ways) - 1) + [figures.COLOURS["lstm"]])
    left.bar_label(bars, [f" {s:,.1f} s" for s in seconds], fontsize=10)
    left.set(
        xscale="log",
        xlim=(min(seconds) / 2, max(seconds) * 6),
        xlabel="seconds, compilation included",
        title=f"Gradient norms at T = 1 .. {config['length']}",
    )
    lengths = [row["length"] for row in results["scaling"]]
    for cell in CELLS_TIMED:
        times = [row[f"{cell}_ms"] for row in results["scaling"]]
        right.plot(lengths, times, "o-", color=figures.COLOURS[cell], label=CELLS[cell].name)
        right.plot(
            lengths,
            [times[0] * t / lengths[0] for t in lengths],
            ":",
            color="#777777",
            linewidth=0.9,
        )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="sequence length T (steps)",
        ylabel="milliseconds, one network",
        title="One pass for all lags, dotted: proportional to T",
    )
    right.set_xticks(lengths, [f"{t:,}" for t in lengths])
    right.set_xticks([], minor=True)
    right.legend()
    least = min(row["ratio"] for row in results["loops"][1:])
    figure.suptitle(
        f"One backward pass gives every lag: {least:,.0f} times faster than any loop over lengths",
        x=0.01,
        ha="left",
        fontsize=12.5,
        fontweight="bold",
    )
    figure.supxlabel(
        f"RNN and LSTM, hidden size {config['hidden_size']}, {config['seeds']} seeds (left), "
        "batch 1, float32",
        fontsize=8.5,
        color="#555555",
    )
    return figures.save(figure, folder / "figures", "flow_speed")


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
