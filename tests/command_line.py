"""Running the experiments as a user does, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TINY = [
    "--hidden_size=16",
    "--embedding_size=16",
    "--batch_size=8",
    "--length=10",
    "--max_vocabulary=200",
]


def command(experiment, *flags):
    return [sys.executable, "-m", f"experiments.{experiment}", *map(str, flags)]


def run(experiment, *flags, **options):
    return subprocess.run(
        command(experiment, *flags),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


def write_book(folder):
    """A small text that has something to learn."""
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "and",
        "the",
        "dog",
        "ran",
        "to",
        "the",
        "cat",
    ]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 8)) + "." for _ in range(400)]
    path = folder / "book.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_one_line(done, *words):
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
