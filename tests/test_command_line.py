"""What a user types: mistakes get one line and exit status 2; the experiments work end to end."""

import json
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest
from command_line import ROOT, TINY, assert_one_line, call, run, write_book

from experiments import EXPERIMENTS
from experiments.flow.subjects import cut_stretches
from experiments.flow.training import overlap_note
from experiments.run_folder import MetricsLog
from lm.native.library import load_library


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_book(tmp_path_factory.mktemp("text"))


def test_windows_that_overlap_are_said():
    assert not overlap_note(1000, 100, 5)
    assert not overlap_note(42_371, 128, 128)
    assert "overlap" in overlap_note(144, 128, 128)
    with pytest.raises(ValueError, match="lags is 150"):
        cut_stretches(np.arange(144), 150, 8)


@pytest.fixture(scope="module")
def trained(book, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [f"--corpus={book}", f"--run={folder}", "--steps=30", "--log_gradient_flow", *TINY]
    done = run("train", *flags)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_is_quick_and_whole(experiment):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(experiment, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of its own processor, not of the clock: the tests beside this one have the cores too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert done.returncode == 0
    assert "--run=" in done.stdout
    assert "./launch.sh" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sed=3"], ("did you mean 'seed'",)),
        (["--cell=lstn"], ("did you mean 'lstm'", "rnn, irnn, lstm, gru")),
        (["--corpus=austin"], ("austin", "austen")),
        (["--corpus=missing/file.txt"], ("no such file",)),
        (["--hidden_size=-4"], ("hidden_size is -4", "at least 1")),
        (["--batch_size=0"], ("batch_size is 0", "at least 1")),
        (["--epochs=many"], ("epochs",)),
        (["--learning_rate=nan"], ("learning_rate is nan",)),
        (["--clip=0"], ("clip is 0",)),
        (["--batching=lines"], ("stream, sentences",)),
        (["extra"], ("'extra'", "--name=value")),
        (["--resume"], ("--run",)),
        (["--resume", "--run=no/such/run"], ("no/such/run",)),
        (["--tied", "--embedding_size=3"], ("tied needs",)),
        (["--learning_rate=inf"], ("learning_rate is inf", "finite")),
        (["--init=uniform", "--input_scale=2"], ("init is uniform",)),
        (["--hidden_size=3000000"], ("at most",)),
        (["--seed=99999999999999999999"], ("at most",)),
    ],
)
def test_mistakes_in_flags_of_train(flags, words, tmp_path):
    done = call("train", *flags, *([] if "--resume" in flags else [f"--run={tmp_path / 'new'}"]))
    assert_one_line(done, *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty",)),
        (b"GIF89a\0\0\1" * 40, ("binary", "--level=byte")),
        (b"caf\xe9 au lait\n" * 40, ("not UTF-8", "0xe9", "offset 3")),
        (b"short\n", ("1 lines",)),
        (b"a\n" * 40, ("too few",)),
    ],
)
def test_mistakes_in_files(content, words, tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    done = call("train", f"--corpus={path}", f"--run={tmp_path / 'new'}", "--batch_size=500")
    assert_one_line(done, *words)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(book, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = call("train", f"--corpus={book}", f"--run={tmp_path}/file/run", *TINY)
    assert_one_line(done, "cannot be written")


def test_an_existing_run_is_not_overwritten(trained, book):
    folder, _ = trained
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for experiment in ("train", "gradient_flow"):
        assert_one_line(call(experiment, f"--corpus={book}", f"--run={folder}", *TINY), "exists")
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cells=lstm,gruu"], ("did you mean 'gru'",)),
        (["--cells="], ("cells",)),
        (["--cells=lstm,lstm"], ("each once",)),
        (["--lags=3"], ("lags is 3",)),
        (["--seeds=0"], ("seeds is 0",)),
        (["--cell=gru"], ("did you mean 'cells'",)),
        (["--measures=lags,shars"], ("did you mean 'shares'",)),
        (["--corpus=nosie"], ("did you mean 'noise'",)),
        (["--lengths=4,4000"], ("lengths holds 4000", "at most lags")),
        (["--lengths=four"], ("lengths holds 'four'",)),
        (["--corpus=noise", "--measures=lags,context"], ("context is measured on text",)),
        (["--corpus=copy", "--lags=16"], ("lags is 16; copy wants at least 21",)),
        (["--corpus=noise", "--layers=2"], ("layers is 2, which does nothing with corpus noise",)),
        (["--checkpoint=nowhere"], ("nowhere holds no run",)),
    ],
)
def test_mistakes_in_flags_of_gradient_flow(flags, words, tmp_path):
    assert_one_line(call("gradient_flow", *flags, f"--run={tmp_path / 'new'}"), *words)


@pytest.mark.parametrize("flag", ["--sed=3", "--corpus=austin", "--hidden_size=-4"])
def test_mistakes_as_a_shell_sees_them(flag):
    assert_one_line(run("train", flag), flag.split("=")[1] if "sed" not in flag else "seed")


@pytest.mark.parametrize("experiment", ["evaluate", "generate"])
def test_runs_that_are_not_there(experiment, tmp_path):
    assert_one_line(call(experiment), "run is empty")
    assert_one_line(call(experiment, f"--run={tmp_path}"), "holds no run")


@pytest.mark.whole
def test_a_diverging_run_stops_with_its_step_and_keeps_its_folder(book, tmp_path):
    done = call(
        "train",
        f"--corpus={book}",
        f"--run={tmp_path}/r",
        "--learning_rate=1e38",
        "--clip=1e38",
        *TINY,
    )
    assert done.returncode == 2
    assert "after it finite" in done.stderr.splitlines()[-1]
    assert (tmp_path / "r" / "config.json").exists()


@pytest.mark.whole
def test_a_diverging_seed_does_not_lose_the_others(book, tmp_path):
    folder = tmp_path / "flow"
    flags = ["--steps=6", "--lags=8", "--windows=2", "--seeds=1", "--cells=lstm,rnn", *TINY]
    divergent = ["--learning_rate=1e38", "--clip=1e38"]
    done = call("gradient_flow", f"--corpus={book}", f"--run={folder}", *flags, *divergent)
    assert done.returncode == 0, done.stderr
    assert "diverged at step" in done.stdout + done.stderr
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert ("rnn", "init") in [(r["cell"], r["stage"]) for r in rows]
    assert [0] in [r["diverged_seeds"] for r in rows]
    log = MetricsLog.read(folder / "metrics.jsonl")
    (last,) = (line for line in log if line.get("diverged") and line["cell"] == "rnn")
    assert f"rnn seed 0 diverged at step {last['step']}; lower --learning_rate" in done.stderr


@pytest.mark.whole
def test_a_trained_seed_is_in_the_log_dispatch_by_dispatch(book, tmp_path):
    folder = tmp_path / "flow"
    flags = ["--steps=90", "--lags=8", "--windows=2", "--seeds=2", "--cells=rnn", *TINY]
    done = call("gradient_flow", f"--corpus={book}", f"--run={folder}", *flags)
    assert done.returncode == 0, done.stderr
    log = MetricsLog.read(folder / "metrics.jsonl")
    assert [(line["seed"], line["step"]) for line in log] == [
        (seed, step) for seed in (0, 1) for step in (40, 80, 90)
    ]
    assert log[2]["loss"] < log[0]["loss"] < np.log(50)  # letters of a small book
    assert all(0 < line["grad_norm"] < 100 and 0 <= line["clipped"] <= 1 for line in log)
    assert log[0]["loss"] != log[3]["loss"]


@pytest.fixture(scope="module")
def by_sentence(book, tmp_path_factory):
    """Two layers of a smaller GRU, trained on sentences of a text of its own for two steps."""
    folder = tmp_path_factory.mktemp("runs") / "by_sentence"
    copy = folder.parent / "copy.txt"
    copy.write_text(book.read_text())
    flags = [f"--corpus={copy}", f"--run={folder}", "--steps=2", "--log_gradient_flow", *TINY]
    flags += ["--batching=sentences", "--cell=gru", "--layers=2", "--hidden_size=8"]
    done = call("train", *flags)
    assert done.returncode == 0, done.stderr
    return folder, copy


@pytest.mark.whole
def test_a_changed_corpus_is_not_evaluated_as_the_runs_own(by_sentence, book):
    folder, copy = by_sentence
    copy.write_text(book.read_text().replace("cat", "dog"))
    assert_one_line(call("evaluate", f"--run={folder}"), "has changed")
    copy.write_text(book.read_text())


@pytest.mark.whole
def test_gradient_flow_of_sentences_and_after_a_kill_at_the_start(by_sentence, tmp_path):
    """No curve by position in padded rows; a resumed run's start is in its log once."""
    folder = shutil.copytree(by_sentence[0], tmp_path / "killed")
    shutil.rmtree(folder / "checkpoints")
    (folder / "figures" / "gradient_flow.svg").unlink()
    done = call("train", f"--run={folder}", "--resume")
    assert done.returncode == 0, done.stderr
    for run_ in (by_sentence[0], folder):
        log = MetricsLog.read(run_ / "metrics.jsonl")
        assert [line["step"] for line in log if "log10_lag" in line][:2] == [0, log[1]["step"]]
        assert log[1]["step"] > 0
        assert not any("log10_delta" in line for line in log)
        drawn = (run_ / "figures" / "gradient_flow.svg").read_text()
        assert "beyond the longest row" in drawn
        assert "forget bias" not in drawn


@pytest.mark.whole
def test_gradient_flow_measures_runs_of_train(trained, by_sentence, tmp_path):
    folder, runs = tmp_path / "flow", f"{trained[0]},{by_sentence[0]}"
    flags = ["--measures=lags,context,gates", "--lags=8", "--windows=2", "--lengths=8"]
    done = call("gradient_flow", f"--checkpoint={runs}", f"--run={folder}", *flags)
    assert done.returncode == 0, done.stderr
    networks = json.loads((folder / "results.json").read_text())["networks"]
    assert [n["corpus"] for n in networks] == ["book.txt", "copy.txt"]
    assert [n["model"]["hidden_size"] for n in networks] == [16, 8]
    drawn = (folder / "figures" / "gradient_flow.svg").read_text()
    assert "by_sentence (GRU), trained, hidden size 8, top of 2 layers, on copy.txt" in drawn
    assert "run (LSTM), trained, hidden size 16, on book.txt, forget bias 1" in drawn
    assert "geometric mean over 2 stretches of each network's own text, one seed" in drawn
    assert "austen" not in drawn
    assert "zero state" in (folder / "figures" / "context.svg").read_text()
    gates = (folder / "figures" / "gates.svg").read_text()
    assert "update gate: by_sentence" in gates
    assert "forget gate: run" in gates


def test_train_leaves_a_whole_run(trained):
    folder, done = trained
    assert "perplexity" in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert 1 < results["valid"]["perplexity"] < 20
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["jax"]
    assert versions["matmul_precision"] == "highest"
    assert versions["native"] is load_library()
    assert (folder / "figures" / "perplexity.png").stat().st_size > 5000
    assert (folder / "figures" / "perplexity.svg").read_text().startswith("<?xml")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 30
    assert lines[0]["step"] == 0
    assert len(lines[0]["log10_lag"][0]) == 2 * 10  # twice the length of a chunk
    assert len(lines[1]["log10_delta"][0]) == 10
    assert (folder / "figures" / "gradient_flow.png").stat().st_size > 5000
    assert not list(folder.rglob("*.partial*"))


@pytest.mark.whole
def test_evaluate_agrees_with_train_for_any_batch(trained, book):
    folder, _ = trained
    results = json.loads((folder / "results.json").read_text())
    done = call("evaluate", f"--run={folder}", "--batch_size=7", "--length=9")
    assert done.returncode == 0, done.stderr
    again = json.loads((folder / "evaluation.json").read_text())
    for split in ("valid", "test"):
        expected = results[split]["perplexity"]
        assert again[split]["perplexity"] == pytest.approx(expected, rel=1e-5)
    done = call("evaluate", f"--run={folder}", f"--text={book}")
    assert done.returncode == 0
    assert "perplexity" in done.stdout
    assert_one_line(call("evaluate", f"--run={folder}", "--text=nowhere.txt"), "no such file")


@pytest.mark.whole
def test_generate_is_reproducible(trained):
    folder, _ = trained
    flags = [f"--run={folder}", "--tokens=20", "--prompt=the cat", "--temperature=0.8"]
    one = run("generate", *flags, "--seed=1").stdout
    two, other = (call("generate", *flags, f"--seed={s}").stdout for s in (1, 2))
    assert one == two != other
    assert one.startswith("the cat ")
    assert len(one.split()) >= 12
    assert "<unk>" not in one


@pytest.mark.whole
def test_gradient_flow_leaves_a_whole_run(book, tmp_path):
    folder = tmp_path / "flow"
    done = run(
        "gradient_flow",
        f"--corpus={book}",
        f"--run={folder}",
        "--seeds=2",
        "--steps=10",
        "--lags=16",
        "--lengths=4,8",
        "--windows=4",
        *TINY,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [(r["cell"], r["stage"]) for r in rows] == [
        (c, s) for c in ("rnn", "lstm") for s in ("init", "trained")
    ]
    with np.load(folder / "results.npz", allow_pickle=False) as arrays:
        assert arrays["lstm/trained/lag_h"].shape == (2, 16, 4)
        assert np.isfinite(arrays["lstm/trained/lag_h"]).all()
        assert arrays["rnn/init/length_w"].shape == (2, len(arrays["lengths"]), 4)
    for kind in ("png", "svg"):
        assert (folder / "figures" / f"gradient_flow.{kind}").stat().st_size > 10_000
    assert "forget bias" in (folder / "figures" / "gradient_flow.svg").read_text()
    assert "input rms" in (folder / "figures" / "gradient_flow.svg").read_text()


def test_the_launcher_lists_and_refuses():
    listed = subprocess.run(["./launch.sh"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in EXPERIMENTS:
        assert name in listed.stdout
    done = subprocess.run(["./launch.sh", "gradientflow"], cwd=ROOT, capture_output=True, text=True)
    assert_one_line(done, "did you mean 'gradient_flow'")
    old = {**os.environ, "PYTHON": "/bin/false"}
    for name in ("test", "train", "help"):
        done = subprocess.run(
            ["./launch.sh", name], cwd=ROOT, capture_output=True, text=True, env=old
        )
        assert_one_line(done, "3.11")
