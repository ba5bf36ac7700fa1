"""One contestant in a process of its own, told what to do by lines of JSON.

    python -m experiments.speed.worker NAME PRECISION

Requests, a line each, and their answers:

    {"do": "make", "part": "step", "cell": "lstm", "size": "20x35x650x2x10000"}
        {"first_seconds", "losses", "bytes"}            compiled and run; see Program
    {"do": "run", "steps": 5}    {"seconds": [...]}     of each step
    {"do": "peak"}               {"flops_per_second"}   of matrix products
    {"do": "drop"}               {}                     forget what was made

A request that fails is answered {"error": one line}. The end of the input ends the process.
"""

import contextlib
import gc
import json
import os
import sys
import time
from typing import Any

from experiments.speed import contestants
from experiments.speed.work import Work, draw_weights, one_layer, parse_size

PEAK_SIZES = {False: 2048, True: 8192}  # without and with a GPU: rows of the measured peak's
PEAK_REPEATS = 8
LOSSES = 3  # of the first steps, that are compared

# Names that jax.default_matmul_precision takes.
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "BF16_BF16_F32"}


class Worker:
    """What a process holds between requests."""

    def __init__(self, name: str, precision: str):
        self._name, self._precision = name, precision
        self._module = contestants.load(name)
        self._program: Any = None
        if name != "torch":
            import jax

            from experiments.cores import count_as_devices

            own = name in ("ours", "ours10")
            if own:
                count_as_devices()
            # Ours has a bfloat16 of its own, as `train --precision` does.
            default = PRECISIONS["float32" if own and precision == "bfloat16" else precision]
            jax.config.update("jax_default_matmul_precision", default)
            jax.block_until_ready(jax.numpy.zeros(1))  # the device's own memory is no one's model

    def make(self, part: str, cell: str, size: str) -> dict[str, Any]:
        """Build the program and run it, as often as losses are compared."""
        self._program = None  # whose memory this one may want
        work = Work(cell, parse_size(size), self._precision)
        work = one_layer(work) if part == "layer" else work
        build = self._module.make_layer if part == "layer" else self._module.make_step
        self._program = build(work, draw_weights(work))
        start = time.perf_counter()
        self._program.run()
        first = time.perf_counter() - start
        losses = [self._program.loss()]
        while self._program.steps == 1 and len(losses) < LOSSES:
            self._program.run()
            losses.append(self._program.loss())
        return {"first_seconds": first, "losses": losses, "bytes": self._program.peak_bytes()}

    def run(self, steps: int) -> dict[str, Any]:
        """Seconds of each of about `steps` steps; at least two runs."""
        seconds = []
        each = self._program.steps
        for _ in range(max(2, round(steps / each))):
            start = time.perf_counter()
            self._program.run()
            seconds.append((time.perf_counter() - start) / each)
        return {"seconds": seconds}

    def peak(self) -> dict[str, Any]:
        """The best of several large matrix products, by this contestant's own library."""
        measure = self._module.measure_peak if self._name == "torch" else measure_peak
        return {"flops_per_second": measure(PEAK_SIZES, PEAK_REPEATS, self._precision)}

    def drop(self) -> dict[str, Any]:
        """Forget the program."""
        self._program = None
        gc.collect()
        return {}


def measure_peak(sizes: dict[bool, int], repeats: int, precision: str) -> float:
    """The best of several products of two square matrices by XLA, in FLOP/s.

    Args:
      sizes: their rows, without and with a GPU.
    """
    import jax
    import jax.numpy as jnp

    size = sizes[jax.default_backend() == "gpu"]
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a = jax.random.uniform(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.matmul)
    best = float("inf")
    jax.block_until_ready(product(a, a))
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def answer(actions: dict[str, Any], line: str) -> dict[str, Any]:
    """The answer to one request."""
    request = json.loads(line)
    try:
        return actions[request.pop("do")](**request)
    except Exception as error:  # whatever a library raises is this contestant's result
        words = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {words[:160]}"}


def main() -> None:
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        worker = Worker(*sys.argv[1:])
        ready: dict[str, Any] = {}
    except Exception as error:
        words = " ".join(str(error).split())
        ready = {"error": f"{type(error).__name__}: {words[:160]}"}
    print(json.dumps(ready), file=answers, flush=True)
    if ready:
        return
    actions: dict[str, Any] = {
        "make": worker.make,
        "run": worker.run,
        "peak": worker.peak,
        "drop": worker.drop,
    }
    for line in sys.stdin:
        print(json.dumps(answer(actions, line)), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()
