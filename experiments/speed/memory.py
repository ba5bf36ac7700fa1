"""What the gradient of a long row, and the loss over a large vocabulary, take in memory.

    python -m experiments.speed.memory                              all rows, a few minutes
    python -m experiments.speed.memory gradient 65536 --remat       one row, as JSON

Each row is measured in a fresh process, whose peak no earlier row has raised.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH, HIDDEN, VOCABULARY = 8, 256, 100  # of the gradient of a long row
LENGTHS = (8_192, 16_384, 65_536)
LARGE_VOCABULARY, TOKENS = 267_000, 4_096  # of the loss
LOSS_HIDDEN = (256, 400)
SPARE = 0.8  # share of the free memory that a program may take

ROWS = (
    *(("gradient", length, remat) for length in LENGTHS for remat in (False, True)),
    *(("loss", hidden, False) for hidden in LOSS_HIDDEN),
)


def measure_memory() -> list[dict[str, Any]]:
    """Every row, each from a process of its own.

    Returns:
      dictionaries with "what" ("gradient" or "loss"), "length" or "hidden_size", "remat",
      "temporary_bytes" (of the compiled program, beside its arguments and results),
      "held_bytes" (arguments and results), "base_bytes" (of the process before it ran),
      "peak_bytes" (of the process; on a GPU of its memory) and "seconds" of a second call; the
      last two None where the program would not have fitted into the machine's memory. Of a
      process that failed "what", "size", "remat" and "refused": the last line that it said.
    """
    return list(each_row())


def each_row() -> Iterator[dict[str, Any]]:
    """`measure_memory`, row by row."""
    for what, size, remat in ROWS:
        command = [sys.executable, "-m", __spec__.name, what, str(size), *["--remat"] * remat]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            yield {"what": what, "size": size, "remat": remat, "refused": said}
            continue
        yield json.loads(done.stdout.splitlines()[-1])


def print_memory(rows: list[dict[str, Any]]) -> None:
    """A table of the rows; of a gradient with remat its time against the one without."""
    sizes = f"B = {BATCH}, H = {HIDDEN}, V = {VOCABULARY}"
    print(f"LSTM language model, {sizes}: the gradient of T tokens a row")
    print(f"{'T':>8}{'remat':>7}{'activations':>13}{'peak':>10}{'seconds':>10}{'time':>8}")
    plain = {}
    refused = [row for row in rows if "refused" in row]
    rows = [row for row in rows if "refused" not in row]
    for row in rows:
        if row["what"] == "gradient":
            length, seconds = row["length"], row["seconds"]
            if not row["remat"]:
                plain[length] = seconds
            known = row["remat"] and seconds and plain.get(length)
            ratio = f"{seconds / plain[length]:7.2f}x" if known else ""
            print(
                f"{length:>8,}{'yes' if row['remat'] else 'no':>7}"
                f"{format_bytes(row['temporary_bytes']):>13}{format_bytes(row['peak_bytes']):>10}"
                f"{'not run' if seconds is None else f'{seconds:.1f}':>10}{ratio:>8}"
            )
    print(f"loss, forward and backward: B x T = {TOKENS:,}, V = {LARGE_VOCABULARY:,}")
    print(f"{'H':>8}{'weights, gradient':>20}{'beside them':>13}{'peak':>10}{'seconds':>10}")
    for row in rows:
        if row["what"] == "loss":
            print(
                f"{row['hidden_size']:>8}{format_bytes(row['held_bytes']):>20}"
                f"{format_bytes(row['temporary_bytes']):>13}{format_bytes(row['peak_bytes']):>10}"
                f"{'not run' if row['seconds'] is None else format(row['seconds'], '.1f'):>10}"
            )
    for row in refused:
        print(f"{row['what']} {row['size']:,}{' --remat' * row['remat']} failed: {row['refused']}")


def format_bytes(count: int | None) -> str:
    """In GB or MB, of 10^9 and 10^6 bytes."""
    if count is None:
        return ""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def measure_gradient(length: int, remat: bool) -> dict[str, Any]:
    """The row of one gradient of the language model, in this process."""
    import jax
    import numpy as np

    from lm import model
    from lm.config import ModelConfig
    from lm.data.batches import Batch
    from lm.remat import rematerialize
    from lm.train import batch_nats

    config = ModelConfig(hidden_size=HIDDEN, embedding_size=HIDDEN)
    params = model.init(jax.random.key(0), config, VOCABULARY)
    carry = model.init_carry(config, BATCH)
    rng = np.random.default_rng(0)
    words = rng.integers(0, VOCABULARY, (2, length, BATCH)).astype(np.int32)
    nats = rematerialize(batch_nats) if remat else batch_nats

    def gradient(params: Any, carry: Any, words: Any) -> Any:
        batch = Batch(words[0], words[1], None, np.asarray(False))
        return jax.value_and_grad(lambda p: nats(config, p, carry, batch)[0])(params)

    return {"what": "gradient", "length": length, "remat": remat} | run_compiled(
        gradient, params, carry, words
    )


def measure_loss(hidden: int) -> dict[str, Any]:
    """The row of the loss alone with its gradients, over a large vocabulary, in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lm.loss import weighted_nats

    rng = np.random.default_rng(0)
    key_h, key_w = jax.random.split(jax.random.key(0))
    h = jax.random.normal(key_h, (TOKENS, hidden))
    w = jax.random.uniform(key_w, (hidden, LARGE_VOCABULARY), maxval=0.05)
    b = jnp.zeros(LARGE_VOCABULARY)
    targets = jnp.asarray(rng.integers(0, LARGE_VOCABULARY, TOKENS).astype(np.int32))
    weights = jnp.full(TOKENS, 1 / TOKENS)
    gradient = jax.value_and_grad(weighted_nats, argnums=(0, 1, 2))
    return {"what": "loss", "hidden_size": hidden, "remat": False} | run_compiled(
        gradient, h, w, b, targets, weights
    )


def run_compiled(function: Any, *arguments: Any) -> dict[str, Any]:
    """Compile, run twice where there is room, and what that took."""
    import jax

    with jax.default_matmul_precision("highest"):
        compiled = jax.jit(function).lower(*arguments).compile()
    analysis: Any = compiled.memory_analysis()
    row = {
        "temporary_bytes": analysis.temp_size_in_bytes,
        "held_bytes": analysis.argument_size_in_bytes + analysis.output_size_in_bytes,
        "base_bytes": peak_bytes(),
        "peak_bytes": None,
        "seconds": None,
    }
    wanted = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    free = free_bytes()
    if free is None or wanted < SPARE * free:
        jax.block_until_ready(compiled(*arguments))  # the first call waits for its memory too
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        row |= {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}
    return row


def peak_bytes() -> int:
    """Most memory so far: of the device where it has one of its own, else of this process."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory at the fork too
        return read_kilobytes(status, "VmHWM:")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def free_bytes() -> int | None:
    """What a program may take: None where it is not known."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    meminfo = Path("/proc/meminfo")
    return read_kilobytes(meminfo, "MemAvailable:") if meminfo.exists() else None


def read_kilobytes(path: Path, name: str) -> int:
    """The line `name` of one of Linux's tables, in bytes."""
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print_memory(measure_memory())
    else:
        what, size = sys.argv[1], int(sys.argv[2])
        found = measure_loss(size) if what == "loss" else measure_gradient(size, len(sys.argv) > 3)
        print(json.dumps(found))
