"""A real training process, killed: it goes on to the same bits."""

import json
import signal
import subprocess
import sys
import time

import pytest
from command_line import ROOT, TINY, assert_one_line, call, command, run, write_book

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_book(tmp_path_factory.mktemp("text"))


def saved_steps(folder):
    """The last step with a checkpoint, complete: Orbax renames it when it is."""
    names = [p.name for p in (folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


# All that a state can hold: masks, an average that begins on the way, a rate that fell.
EVERYTHING = [
    "--random_length",
    "--layers=2",
    "--dropout_words=0.1",
    "--dropout_input=0.1",
    "--dropout_hidden=0.1",
    "--dropout_output=0.1",
    "--dropout_state=0.1",
    "--weight_drop=0.2",
    "--activation_penalty=1",
    "--slowness_penalty=1",
    "--averaging=triggered",
    "--patience=1",
    "--schedule=plateau",
    "--learning_rate=60",
    "--evaluate_every=15",
]


@pytest.mark.parametrize("extra", [EVERYTHING, ["--batching=sentences", "--optimizer=adam"]])
def test_a_killed_run_resumes_to_the_same_bits(extra, book, tmp_path):
    """SIGKILL between checkpoints, SIGTERM once, then to the end: equal to a run left alone."""
    flags = [
        f"--corpus={book}",
        "--steps=130",
        "--checkpoint_every=20",
        "--steps_per_dispatch=10",
        *TINY,
        *extra,
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("train", *flags, f"--run={whole}").returncode == 0

    def start_and_signal(number, *start_flags):
        """Signal a training process once it has saved two checkpoints of its own."""
        already = saved_steps(killed)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command("train", *start_flags), cwd=ROOT, stdout=log, stderr=log
            )
            deadline = time.monotonic() + 100
            while time.monotonic() < deadline and process.poll() is None:
                if saved_steps(killed) >= already + 40:
                    break
                time.sleep(0.005)
            assert process.poll() is None, (tmp_path / "log").read_text()
            process.send_signal(number)
            return process.wait(timeout=60)

    assert start_and_signal(signal.SIGKILL, *flags, f"--run={killed}") == -signal.SIGKILL
    assert not (killed / "results.json").exists()
    resume = [f"--run={killed}", "--resume"]
    assert start_and_signal(signal.SIGTERM, *resume) == 0
    assert 60 <= saved_steps(killed) < 130
    if extra is EVERYTHING:
        assert (whole / "tensorboard").is_dir()
    assert not (killed / "results.json").exists()
    done = run("train", *resume)
    assert done.returncode == 0, done.stderr
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, killed)]
    assert results[0] == results[1]
    compare = (
        "import sys, jax, numpy as np\n"
        "from experiments.trained import load_state\n"
        "states = [[load_state(run, c) for c in ('last', 'best')] for run in sys.argv[1:]]\n"
        "a, b = map(jax.tree.leaves, states)\n"
        "assert len(a) == len(b) > 8\n"
        "for x, y in zip(a, b):\n"
        "    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):\n"
        "        x, y = map(jax.random.key_data, (x, y))\n"
        "    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()\n"
        "print('same bits')"
    )
    done = subprocess.run(
        [sys.executable, "-c", compare, whole, killed], cwd=ROOT, capture_output=True, text=True
    )
    assert "same bits" in done.stdout, done.stderr
    steps = [
        [json.loads(line)["step"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (whole, killed)
    ]
    assert sorted(set(steps[0])) == sorted(set(steps[1]))
    assert len(steps[0]) == len(steps[1])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(book, tmp_path):
    folder = tmp_path / "r"
    flags = [f"--corpus={book}", f"--run={folder}", "--steps=30", "--checkpoint_every=10", *TINY]
    assert call("train", *flags).returncode == 0
    whole = (folder / "results.json").read_text()
    assert saved_steps(folder) == 30
    for path in (folder / "checkpoints" / "30").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = run("train", f"--run={folder}", "--resume")
    assert done.returncode == 0, done.stderr
    assert "checkpoint 30 is damaged; going on from 20" in done.stderr
    assert (folder / "results.json").read_text() == whole
    for path in (folder / "best").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    done = call("generate", f"--run={folder}", "--tokens=3")  # the last is the same state
    assert done.returncode == 0, done.stderr
    for path in (folder / "checkpoints" / "30").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    done = call("generate", f"--run={folder}", "--tokens=3")
    assert done.returncode == 0, done.stderr
    assert "the best checkpoint, 30, is damaged; using that of step 20" in done.stderr


def test_resume_refuses_another_text_and_other_options(book, tmp_path):
    copy = tmp_path / "book.txt"
    copy.write_text(book.read_text())
    flags = [f"--corpus={copy}", f"--run={tmp_path / 'r'}", "--steps=4", *TINY]
    assert call("train", *flags).returncode == 0
    done = call("train", f"--run={tmp_path / 'r'}", "--resume", "--learning_rate=3")
    assert_one_line(done, "learning_rate is 3.0", "made with none")
    done = call("train", f"--run={tmp_path / 'r'}", "--resume", "--recipe=zaremba_small")
    assert_one_line(done, "recipe is zaremba_small", "made with none")
    copy.write_text(book.read_text().replace("cat", "dog"))
    assert_one_line(call("train", f"--run={tmp_path / 'r'}", "--resume"), "has changed")
