"""A training step on several devices: what it takes here, and what it would take on many more.

    python -m experiments.speed.scaling DEVICES BxTxHxLAYERSxV      one row, as JSON

Each device multiplies for its own rows; then the gradient of all P parameters is summed over the N
devices, 4 bytes each, once a step. In a ring, or in a double tree, each device sends and receives

    2 (N - 1) / N * 4 P   bytes, in 2 log2 N rounds or more

    seconds(N) = 6 M b T / rate + 2 (N - 1) / N * 4 P / bandwidth + 2 log2 N * latency

with b rows a device, T tokens a row and M weights that each token is multiplied by: of the layers
and the softmax, there and back, 2 operations each, three times; the embedding is looked up. The
share of the first addend is the efficiency: N devices read `efficiency * N` times the tokens of
one in the same time. Nothing of the sum is hidden behind the backward pass in this, which it could
only be where layers are many.

Sources: Patarasuk & Yuan 2009 (J. Parallel Distrib. Comput. 69) for the ring; Sanders, Speck &
Traff 2009 (Parallel Computing 35) for double trees.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.speed.work import Size, parse_size

WARM_UP, STEPS = 3, 10  # steps of a dispatch; how many are timed


@dataclass(frozen=True)
class Machine:
    """What a device and its way to the others can do. Assumed, not measured."""

    rate: float = 30e12  # operations a second: about half of an H100's 67e12 in float32
    bandwidth: float = 50e9  # bytes a second each way: 400 Gbit/s for each device
    latency: float = 10e-6  # seconds a round


class Planned(NamedTuple):
    """A step on N devices, on paper."""

    devices: int
    gradient_bytes: int  # of one copy
    sent_bytes: float  # by each device, a step
    compute_seconds: float
    sum_seconds: float

    @property
    def efficiency(self) -> float:
        return self.compute_seconds / (self.compute_seconds + self.sum_seconds)


def lstm_weights(size: Size) -> tuple[int, int]:
    """(parameters P, weights M that each token is multiplied by) of an LSTM language model."""
    hidden, vocabulary = size.hidden, size.vocabulary
    layer = 4 * hidden * (hidden + hidden)
    multiplied = size.layers * layer + hidden * vocabulary
    biases = size.layers * 4 * hidden + vocabulary
    return multiplied + biases + vocabulary * hidden, multiplied


def plan(size: Size, devices: int, machine: Machine = Machine()) -> Planned:
    """One step of an LSTM language model with `size.batch` rows on each of N devices."""
    parameters, multiplied = lstm_weights(size)
    sent = 2 * (devices - 1) / devices * 4 * parameters
    rounds = 2 * math.ceil(math.log2(devices))
    return Planned(
        devices,
        4 * parameters,
        sent,
        6 * multiplied * size.batch * size.length / machine.rate,
        sent / machine.bandwidth + rounds * machine.latency,
    )


def rows_for(
    size: Size, devices: int, efficiency: float = 0.9, machine: Machine = Machine()
) -> int:
    """The rows a device that it takes for an efficiency; `size.batch` does not matter."""
    one = plan(Size(1, *list(vars(size).values())[1:]), devices, machine)
    share = efficiency / (1 - efficiency)
    return max(1, math.ceil(share * one.sum_seconds / one.compute_seconds))


PLANNED = {  # model -> B x T x H x layers x V, B on each device
    "Zaremba's large LSTM, PTB": "20x35x1500x2x10000",
    "the same, 320 rows a device": "320x35x1500x2x10000",
    "3 x 1150, WikiText-2": "80x70x1150x3x33000",
}
PLANNED_DEVICES = (8, 64, 256, 1024)


def plan_table() -> str:
    """The plan for 8 to 1,024 devices, as Markdown."""
    lines = [
        "| model, B x T a device | devices | gradient | sent by each, a step | products | sum | "
        "efficiency | rows a device for 90 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, text in PLANNED.items():
        size = parse_size(text)
        for devices in PLANNED_DEVICES:
            found = plan(size, devices)
            lines.append(
                f"| {name}, {size.batch} x {size.length} | {devices:,} "
                f"| {found.gradient_bytes / 1e6:,.0f} MB | {found.sent_bytes / 1e6:,.0f} MB "
                f"| {1e3 * found.compute_seconds:.1f} ms | {1e3 * found.sum_seconds:.1f} ms "
                f"| {found.efficiency:.0%} | {rows_for(size, devices)} |"
            )
    return "\n".join(lines)


def each_row(size: Size, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """`measure` for each number of devices, in a process of its own: the batch shared, and grown.

    Yields:
      what `measure` returns, with "growth": whether the batch grew with the devices.
    """
    root = Path(__file__).parents[2]
    for devices in counts:
        if size.batch % devices:
            raise ValueError(
                f"devices is {devices}, which does not divide the {size.batch} rows of {size}; "
                "wanted numbers that do"
            )
    for growth in (False, True):
        for devices in counts:
            rows = size.batch * (devices if growth else 1)
            text = str(Size(rows, *list(vars(size).values())[1:]))
            command = [sys.executable, "-m", __spec__.name, str(devices), text]
            done = subprocess.run(
                command,
                cwd=root,
                env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
                raise ValueError(f"{devices} devices could not be timed: {said}")
            yield {"growth": growth, **json.loads(done.stdout.splitlines()[-1])}


def measure(devices: int, size: Size) -> dict[str, Any]:
    """Seconds of a training step, the median of STEPS, in a process with so many devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from experiments import flags
    from lm.config import ModelConfig, OptimConfig
    from lm.data.batches import StreamBatches
    from lm.mesh import make_mesh
    from lm.optim import Hyper
    from lm.train import init_state, make_block, place_state

    jax.config.update("jax_default_matmul_precision", flags.MATMUL_PRECISION)
    if len(jax.devices()) < devices:
        kind = jax.devices()[0].platform
        raise ValueError(f"there are {len(jax.devices())} {kind} devices; wanted fewer")
    mesh = make_mesh(jax.devices()[:devices]) if devices > 1 else None
    config = ModelConfig(layers=size.layers, hidden_size=size.hidden, embedding_size=size.hidden)
    tokens = np.random.default_rng(0).integers(0, size.vocabulary, size.batch * (size.length + 1))
    batches = StreamBatches(tokens.astype(np.int32), size.batch, size.length)
    optim = OptimConfig()
    state = init_state(jax.random.key(0), config, optim, size.vocabulary, size.batch)
    state = place_state(state, mesh)
    block = make_block(config, optim, optax.constant_schedule(1.0), mesh=mesh)
    hyper, one = Hyper(jnp.float32(1.0), jnp.float32(0.25)), batches.block(0, 1)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        state, metrics, _ = block(state, hyper, one)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    return {
        "devices": devices,
        "size": str(size),
        "seconds": float(np.median(seconds[WARM_UP:])),
        "tokens": size.batch * size.length,
        "nats": float(metrics.nats[0] / metrics.tokens[0]),
    }


def print_scaling(rows: Sequence[dict[str, Any]]) -> None:
    """Two tables: one batch shared among the devices, and a batch on each."""
    for growth, title in ((False, "one batch shared"), (True, "as large a batch on each")):
        own = [row for row in rows if row["growth"] == growth]
        one = own[0]["tokens"] / own[0]["seconds"]
        print(f"\n{title}: {own[0]['size']} on {own[0]['devices']}")
        print(f"{'devices':>8}{'ms a step':>12}{'tokens/s':>12}{'times':>8}")
        for row in own:
            speed = row["tokens"] / row["seconds"]
            print(
                f"{row['devices']:>8}{1e3 * row['seconds']:>12.1f}{speed:>12,.0f}"
                f"{speed / one:>8.2f}"
            )
    print("\non paper, for devices with their own processor (docs/devices.md has what is assumed):")
    print(plan_table())


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), parse_size(sys.argv[2]))))
