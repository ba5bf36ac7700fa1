"""What a sweep is timed against: runs one after another in one process.

    python -m experiments.search.one_by_one KIND COUNT [--flag=value ...]

KIND is `train` (the command's own run, COUNT times) or `program` (runs through one compiled
program, nothing saved). The flags are those of train. Prints seconds as JSON: before the first run,
of the first, and of each after it.
"""

# ruff: noqa: E402
import dataclasses
import json
import sys
import tempfile
import time

BEGAN = time.monotonic()

from experiments import flags
from experiments.fit.config import Config


def main(kind: str, count: int, arguments: list[str]) -> None:
    """Run, then print the times."""
    from experiments.cores import count_as_devices
    from experiments.search.worker import prepare_jax

    config = flags.parse(Config, arguments, "train", "")
    prepare_jax(config.data)
    if kind == "train":
        count_as_devices()  # as the command does: it spreads a small model's rows over the cores
    answers, sys.stdout = sys.stdout, sys.stderr
    ends = train_runs(config, count) if kind == "train" else program_runs(config, count)
    first, *rest = ends
    each = [end - start for start, end in zip(ends, rest, strict=False)]
    print(json.dumps({"first": first - BEGAN, "each": each}), file=answers)


def train_runs(config: Config, count: int) -> list[float]:
    """When each of `count` runs of train, of different seeds, was over."""
    from experiments import train

    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            train.run(dataclasses.replace(config, seed=seed, run=f"{folder}/{seed}"))
            ends.append(time.monotonic())
    return ends


def program_runs(config: Config, count: int) -> list[float]:
    """When each of `count` runs through one program was over."""
    from lm.data.batches import make_batches
    from lm.data.corpus import load_corpus
    from lm.many_runs import make_train_points
    from lm.whole_run import Fixed

    corpus = load_corpus(config.data)
    batches = make_batches(corpus.splits["train"], config.data)
    train = make_train_points(
        Fixed(config.model, config.optim, config.regularize),
        corpus.splits,
        len(corpus.vocabulary),
        batches,
        steps=config.steps,
        lanes=1,
    )
    return [time.monotonic() for _ in train([{"seed": seed} for seed in range(count)])]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
