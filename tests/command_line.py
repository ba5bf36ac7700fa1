"""Running the experiments as a user does, in processes of their own."""

import importlib
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np

from experiments import flags as experiment_flags

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


def call(experiment, *flags):
    """`run` inside this process: for mistakes that end it before anything is computed."""
    module = importlib.import_module(f"experiments.{experiment}")
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = [f"{experiment}.py", *map(str, flags)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            experiment_flags.main(module.Config, module.run, module.__doc__)
        except SystemExit as exit_:
            code = exit_.code
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


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
