"""Sweeps: the little language, points and groups, the table, who trains, and whole commands."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import ROOT, TINY, assert_one_line, call, command, run, write_book
from scipy import stats

from experiments import cores, sweep
from experiments.run_folder import read_config
from experiments.search import board, cluster, one_by_one, pool, table, training, worker
from experiments.search.board import Board
from experiments.search.config import Config
from experiments.search.drawing import limit_of, plot_sweep, say_seeds, view_of
from experiments.search.points import Group, SweepPoint, group_points, make_points
from experiments.search.pool import HandOut, share_cores
from experiments.search.repeats import refuse_repeats
from experiments.search.space import Axis, parse_axes
from experiments.search.summary import (
    Setting,
    at_edge,
    find_settings,
    format_settings,
    summarise,
)
from experiments.search.table import Table, read_rows
from experiments.search.training import Trainer, train_text
from experiments.train import Config as TrainConfig
from lm.config import ALWAYS_TRACED, TRACED_UNLESS_0, DataConfig
from lm.many_runs import Outcome


def values(text):
    return {axis.name: list(axis.values) for axis in parse_axes(text, Config())}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=0:4", {"seed": [0, 1, 2, 3]}),
        ("seed=0:64:16,3", {"seed": [0, 16, 32, 48, 3]}),
        ("learning_rate=0.3,1e0,3", {"learning_rate": [0.3, 1.0, 3.0]}),
        ("learning_rate=log(0.1,10,5)", {"learning_rate": [0.1, 0.316228, 1.0, 3.16228, 10.0]}),
        ("forget_bias=lin(-1,3,5)", {"forget_bias": [-1.0, 0.0, 1.0, 2.0, 3.0]}),
        ("hidden_size=lin(16,64,4),100", {"hidden_size": [16, 32, 48, 64, 100]}),
        ("hidden_size=8,8,9", {"hidden_size": [8, 9]}),
        ("clip=0.25,inf", {"clip": [0.25, np.inf]}),
        ("tied=true,False cell=lstm,gru", {"tied": [True, False], "cell": ["lstm", "gru"]}),
        ("# rates\nclip=1,2  # two\n\nlayers=1:3\n", {"clip": [1, 2], "layers": [1, 2]}),
    ],
)  # fmt: skip
def test_what_is_swept(text, expected):
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("sweep is empty", "--sweep=")),
        ("lerning_rate=1", ("'lerning_rate'", "did you mean 'learning_rate'")),
        ("qqq=1", ("wanted one of", "learning_rate", "hidden_size")),
        ("learning_rate", ("NAME=VALUES",)),
        ("learning_rate=1 learning_rate=2", ("learning_rate twice",)),
        ("learning_rate=fast", ("learning_rate 'fast'", "floats")),
        ("hidden_size=1.5", ("hidden_size '1.5'", "ints")),
        ("learning_rate=log(0,1,3)", ("starts above 0",)),
        ("learning_rate=log(1,0.1,3)", ("not in order",)),
        ("learning_rate=log(1,10,3,4)", ("log(LOW,HIGH,COUNT)",)),
        ("learning_rate=log(1)", ("log(LOW,HIGH,COUNT)",)),
        ("learning_rate=__import__('os')", ("wanted floats",)),
        ("learning_rate=log(1,10),3", ("alone",)),
        ("cell=lin(1,2,3)", ("no number",)),
        ("cell=lstm,gruu", ("did you mean 'gru'",)),
        ("hidden_size=8,-4", ("hidden_size is -4",)),
        ("seed=4:4", ("FIRST:STOP",)),
        ("tied=maybe", ("true or false",)),
        ("corpus=austen,ptb", ("'corpus', which cannot be swept",)),
        ("cutoffs=1", ("'cutoffs', which cannot be swept",)),
        ("run=a,b", ("'run', which cannot be swept",)),
        ("mesh=1,2", ("'mesh', which cannot be swept",)),
        ("clip=1, 2 seed=0", ("holds 'clip=1, 2'", "no spaces", "clip=1,2")),
        ("clip=log(1 ,2, 3)", ("no spaces around commas: clip=log(1,2,3)",)),
        ("clip=1,2, seed=0", ("clip ''", "wanted floats")),
        ("@nowhere.txt", ("nowhere.txt", "No such file")),
        ("learning_rate=log(1,10)", ("a range", "--samples")),
        ("seed=0:2000000", ("FIRST:STOP",)),
        ("tied=true embedding_size=3,5", ("no point of the sweep can be trained", "tied needs")),
        ("warmup=0.1 schedule=step", ("warmup does nothing", "schedule cosine")),
        ("dropout_hidden=0.1,0.2", ("one layer",)),
        ("cell=rnn,gru forget_bias=1,3", ("forget_bias does nothing", "forget gate, which rnn")),
    ],
)
def test_mistakes_in_a_sweep(text, words, tmp_path):
    done = call("sweep", f"--sweep={text}", f"--run={tmp_path / 'new'}")
    assert_one_line(done, *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep=layers=1,2", "--corpus=adding"], ("layers does nothing", "a task")),
        (["--sweep=seed=0:2", "--corpus=adding", "--optimizer=adam"], ("optimizer does nothing",)),
        (["--sweep=seed=0:2", "--corpus=copy", "--length=5"], ("copy wants at least 21",)),
        (["--sweep=seed=0:2", "--corpus=addng"], ("did you mean 'adding'",)),
        (["--sweep=seed=0:2", "--corpus=noise"], ("'noise', which is unknown; wanted one of",)),
        (["--sweep=clip=1,2", "--clip=3"], ("clip is swept, and typed as --clip too",)),
        (["--sweep=seed=0:2", "--corpus=adding", "--cell=gru", "--chrono=9"], ("which gru lacks",)),
        (["--sweep=seed=0:2", "--samples=3"], ("seed alone",)),
        (["--sweep=seed=0:2", "--executor=slrm"], ("local, slurm",)),
        (["--sweep=seed=0:2", "--recipe=awd_lstm_finetune"], ("awd_lstm_finetune trains on",)),
        (["--resume"], ("resume needs --run",)),
        (["--resume", "--run=nowhere"], ("nowhere holds no run",)),
        (["--sweep=seed=0:2", "--corpus=missing/file.txt"], ("no such file",)),
    ],
)
def test_mistakes_beside_a_sweep(flags, words):
    assert_one_line(call("sweep", *flags), *words)


def test_a_grid_is_every_combination():
    points = make_points(parse_axes("layers=1,2 seed=0:3", Config()), 0, 0)
    assert [point.number for point in points] == list(range(6))
    assert [tuple(point.options.values()) for point in points] == [
        (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip


def test_a_sample_is_drawn_from_ranges_and_crossed_with_seeds():
    text = "learning_rate=log(1e-4,1) forget_bias=lin(-1,1) hidden_size=lin(8,64) cell=rnn,gru"
    axes = parse_axes(f"{text} seed=3:5", Config())
    points = make_points(axes, 400, draw_seed=7)
    assert points == make_points(axes, 400, draw_seed=7) != make_points(axes, 400, draw_seed=8)
    assert [point.options["seed"] for point in points] == [3, 4] * 400
    for one, other in zip(points[::2], points[1::2], strict=True):
        assert {**one.options, "seed": 4} == other.options
    drawn = {name: [point.options[name] for point in points[::2]] for name in points[0].options}
    logs = np.log10(drawn["learning_rate"])
    assert stats.kstest(logs, stats.uniform(-4, 4).cdf).pvalue > 1e-3
    assert stats.kstest(drawn["forget_bias"], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert all(isinstance(size, int) and 8 <= size <= 64 for size in drawn["hidden_size"])
    assert 150 < drawn["cell"].count("gru") < 250


def test_no_setting_is_drawn_twice():
    axes = parse_axes("cell=rnn,gru,lstm hidden_size=8,16 seed=0:2", Config())
    points = make_points(axes, 6, 0)
    assert {json.dumps(point.options) for point in points} == {
        json.dumps(point.options) for point in make_points(axes, 0, 0)
    }
    assert len(make_points(parse_axes("layers=lin(1,5)", Config()), 5, 0)) == 5
    drawn = make_points(parse_axes("layers=lin(1,3) tied=true,false", Config()), 5, 0)
    assert len({tuple(point.options.values()) for point in drawn}) == 5
    for text, samples, there_are in [
        ("cell=rnn,gru seed=0:9", 3, "make 2 settings"),
        ("layers=lin(1,3)", 4, "make 3 settings"),
    ]:
        with pytest.raises(ValueError, match=f"samples is {samples}, .* {there_are}"):
            make_points(parse_axes(text, Config()), samples, 0)


def test_points_of_one_program_differ_in_numbers_alone():
    text = "learning_rate=1,2 hidden_size=8,16 dropout_output=0,0.5,0.2 seed=0:2"
    groups = group_points(make_points(parse_axes(text, Config()), 0, 0), Config())
    assert [group.fixed for group in groups] == [
        {"hidden_size": 8, "dropout_output": 0.0},
        {"hidden_size": 8},
        {"hidden_size": 16, "dropout_output": 0.0},
        {"hidden_size": 16},
    ]
    assert [len(group.points) for group in groups] == [4, 8, 4, 8]
    sentences = Config(data=DataConfig(batching="sentences"))
    assert not sentences.may_be_traced("seed", 1)  # the order of its sentences is the seed's
    assert sentences.may_be_traced("clip", 1.0)
    assert all(Config().may_be_traced(name, 0.5) for name in (*ALWAYS_TRACED, *TRACED_UNLESS_0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "batching=stream,sentences seed=0:2",
            [
                {"batching": "stream"},
                {"batching": "sentences", "seed": 0},
                {"batching": "sentences", "seed": 1},
            ],
        ),
        (
            "seed=0:2 random_length=true,false",
            [
                {"seed": 0, "random_length": True},
                {"random_length": False},
                {"seed": 1, "random_length": True},
            ],
        ),
        (
            "init=scaled,uniform recurrent_gain=1 input_scale=1",
            [{"init": "scaled"}, {"init": "uniform", "recurrent_gain": 1.0, "input_scale": 1.0}],
        ),
    ],
)
def test_what_is_traced_is_asked_of_the_point_itself(text, expected):
    """Whose batches may be its seed's, or whose weights may know no scale."""
    groups = group_points(make_points(parse_axes(text, Config()), 0, 0), Config())
    assert [group.fixed for group in groups] == expected


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("cell=rnn,lstm forget_bias=1,3 seed=0:2", {}, {2: 0, 3: 1}),
        ("forget_bias=1,3 cell=lstm,rnn", {"corpus": "adding"}, {3: 1}),
        ("chrono=0,9 forget_bias=1,3", {}, {3: 2}),
        ("schedule=cosine,step warmup=0,0.1 decay_after=3,9", {}, {1: 0, 3: 2, 6: 4, 7: 5}),
    ],
)
def test_what_differs_in_nothing_is_trained_once(text, flags, expected):
    config = Config(data=DataConfig(**flags))
    axes = parse_axes(text, config)
    points = make_points(axes, 0, 0)
    reasons = refuse_repeats(config, points, [axis.name for axis in axes], ())
    same = {n: int(reason.split(":")[0].split()[-1]) for n, reason in reasons.items()}
    assert same == expected
    assert all("does nothing with these options; wanted" in reason for reason in reasons.values())


def test_workers_keep_to_a_program_and_help_where_most_is_left():
    groups = [
        Group({"layers": k}, tuple(SweepPoint(10 * k + i, {}) for i in range(count)))
        for k, count in enumerate([3, 5, 1])
    ]
    handing = HandOut(groups)

    def take(worker, width=1):
        given = handing.take(worker, width)
        return given and [point.number for point in given[1]]

    assert [take(0), take(1), take(0), take(1)] == [[0], [10], [1], [11]]
    assert take(0) == [2]
    assert take(0) == [20]  # nobody is at that one
    assert take(0) == [12]  # the longest
    assert take(1, width=9) == [13, 14]
    assert not handing
    assert take(0) is None


class Scripted(pool.Worker):
    """A worker that dies at three of the points, always."""

    def __init__(self, number, folder, cores, events):
        self.number, self.jobs, self._events = number, None, events
        self.process = SimpleNamespace(stdin=self, returncode=-9)
        self._say("ready", width=2)

    def _say(self, kind, **values):
        self._events.put((self, {"say": kind, **values}))

    def write(self, line):
        numbers = [number for number, _ in json.loads(line)["points"]]
        if not {3, 5, 7}.isdisjoint(numbers):
            self._say("gone")
            self.write = lambda line: None
            return
        for number in numbers:
            self._say("record", record={"number": number, "status": "finished"})
        self._say("ready", width=2)

    def flush(self):
        pass

    def close(self):
        self._say("gone")

    kill = flush


def test_a_point_that_kills_its_worker_fails_alone(tmp_path, monkeypatch):
    """Not those that were trained beside it, nor those that the worker was given to do next."""
    monkeypatch.setattr(pool, "Worker", Scripted)
    points = tuple(SweepPoint(number, {}) for number in range(20))
    config = Config(workers=1, retries=1)
    said = list(pool.train_locally(tmp_path, config, [Group({}, points)]))
    status = {m["record"]["number"]: m["record"]["status"] for m in said if m["say"] == "record"}
    notes = [m["text"] for m in said if m["say"] == "note"]
    assert notes[0] == "worker 0 was ended by signal 9 (is memory short?); it is replaced"
    assert status == dict.fromkeys(range(20), "finished") | dict.fromkeys((3, 5, 7), "failed")


@pytest.mark.parametrize("given", [b"", b"a job\n"])
def test_a_worker_ends_with_its_input(given):
    """Idle, or at work that would go on for long after the sweep's end."""
    work = "print(lines.get().decode(), flush=True); time.sleep(60)"
    code = f"import time; from experiments.search.worker import listen; lines = listen(0); {work}"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        worker.stdin.write(given)
        worker.stdin.flush()
        if given:
            assert worker.stdout.readline() == given
        worker.stdin.close()
        try:
            assert worker.wait(timeout=20) == 0
        finally:
            worker.kill()


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(pool, "has_accelerator", lambda: False)
    assert share_cores(0, 100) == [[0], [1], [2], [3], [4]]
    assert share_cores(2, 100) == [[0, 2, 4], [1, 3]]
    assert share_cores(0, 2) == [[0, 2, 4], [1, 3]]
    assert share_cores(7, 100) == [[]] * 7
    monkeypatch.setattr(pool, "has_accelerator", lambda: True)
    assert share_cores(0, 100) == [[]]


def test_the_table_keeps_what_is_written(tmp_path):
    points = make_points(parse_axes("tied=true,false clip=1,inf", Config()), 0, 0)
    with Table(tmp_path, ("tied", "clip")) as rows:
        rows.create(points)
        rows.record({"number": 0, "status": "finished", "valid": np.inf, "curve": [[1, 2.5]]})
        rows.record({"number": 1, "status": "diverged", "error": "at step 3"})
        rows.record({"number": 2, "status": "failed", "error": "out of memory"})
        assert rows.left() == {2, 3}
        rows.create(points)  # of a sweep that goes on
    with Table(tmp_path, ("tied", "clip")) as rows:
        rows.record({"number": 2, "status": "finished", "valid": 3.0})
    rows = read_rows(tmp_path)
    assert [row["status"] for row in rows] == ["finished", "diverged", "finished", "waiting"]
    assert [(row["tied"], row["clip"]) for row in rows] == [
        (1, 1),
        (1, np.inf),
        (0, 1),
        (0, np.inf),
    ]
    assert rows[0]["valid"] == np.inf
    assert rows[0]["curve"] == [[1, 2.5]]
    assert rows[2]["error"] is None  # of the attempt before


def test_a_table_that_is_of_no_use_is_said_in_a_line(tmp_path, monkeypatch):
    """Another sweep's, locked, full, damaged; at whatever is asked of it."""
    monkeypatch.setattr(table, "PATIENCE", 0.0)
    points = [SweepPoint(number, {"clip": 1.0 + number}) for number in range(2)]
    path, result = tmp_path / "sweep.sqlite", {"number": 0, "status": "finished"}
    with Table(tmp_path, ("clip",)) as rows:
        rows.create(points)
        for others in (points[:1], [points[0], SweepPoint(1, {"clip": 3.0})]):
            with pytest.raises(ValueError, match="other points than the options"):
                rows.create(others)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("begin exclusive")
            with pytest.raises(ValueError, match=r"locked.*no other process"):
                rows.record(result)
        rows._db.execute("pragma max_page_count = 2")
        with pytest.raises(ValueError, match=r"full.*room on the disk"):
            rows.record(result | {"error": "long" * 9999})
        assert rows.left() == {0, 1}
        rows.record(result)
        assert rows.left() == {1}
    path.write_bytes(b"no table" * 999)
    with pytest.raises(ValueError, match="is damaged"):
        read_rows(tmp_path)
    with Table(tmp_path, ("clip",)) as rows:
        for ask in (
            rows.rows,
            rows.left,
            partial(rows.create, points),
            partial(rows.record, result),
        ):
            with pytest.raises(ValueError, match=r"is damaged.*sweep anew"):
                ask()


def row(number, clip, seed, valid, status="finished"):
    found = {"number": number, "clip": clip, "seed": seed, "status": status, "error": None}
    return found | {"valid": valid, "test": valid and valid + 1}


def test_settings_are_means_over_seeds_with_their_interval():
    rows = [
        *(row(k, 1.0, k, 100.0 + k) for k in range(4)),
        *(row(4 + k, 2.0, k, 90.0) for k in range(3)),
        row(7, 2.0, 3, None, "diverged"),
        row(8, 3.0, 0, None, "failed"),
        row(9, 4.0, 0, None, "waiting"),
        row(10, 5.0, 0, None, "refused"),
    ]
    best, partly, none = find_settings(rows, ("clip", "seed"), "valid")
    assert (best.options, best.mean, best.unfinished) == ({"clip": 1.0}, 101.5, 0)
    half = stats.t.ppf(0.975, 3) * np.std([0, 1, 2, 3], ddof=1) / 2
    np.testing.assert_allclose(best.half, half)
    assert (partly.options, partly.mean, partly.unfinished) == ({"clip": 2.0}, 90.0, 1)
    assert none.scores == ()
    found = summarise(rows, ("clip", "seed"), "valid", "validation perplexity")
    assert found["finding"] == "validation perplexity 101.5 ±2.1 (4 seeds) at clip 1"
    assert found["best"]["test perplexity"] == 102.5
    counts = {"finished": 7, "diverged": 1, "failed": 1, "refused": 1, "waiting": 1}
    assert counts.items() <= found.items()
    assert [row["point"] for row in found["failures"]] == [8]
    assert [row["point"] for row in found["refusals"]] == [10]
    assert "102.5" in format_settings(found)
    assert "± (95 %)" in format_settings(found)
    assert found["notes"] == []


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 2.0, 4.0], ["one seed each: differences may be chance"]),
        ([3.0], []),
        ([2.0, 2.0], ["a tie: as good is clip 2", "one seed each: differences may be chance"]),
        ([3.0, 2.00001, 2.0, 2.0], ["a tie: as good is clip 4 and 1 more", "one seed each: diff"]),
    ],
)
def test_what_stands_against_the_best_is_said(scores, expected):
    rows = [row(k, k + 1.0, 0, score) for k, score in enumerate(scores)]
    notes = summarise(rows, ("clip", "seed"), "valid", "perplexity").get("notes")
    assert len(notes) == len(expected)
    assert all(note.startswith(words) for note, words in zip(notes, expected, strict=True))


@pytest.mark.parametrize(
    ("text", "best", "at"),
    [
        ("learning_rate=log(0.3,30,5)", 30.0, ["learning_rate (30)"]),
        ("learning_rate=log(0.3,30,5)", 9.48683, []),
        ("learning_rate=3,0.3,30", 0.3, ["learning_rate (0.3)"]),
        ("learning_rate=3,30", 30.0, []),  # of two values one is always the best
        ("learning_rate=log(0.1,1000)", 800.0, ["learning_rate (800)"]),
        ("learning_rate=log(0.1,1000)", 500.0, []),
        ("dropout_words=0,0.1,0.2", 0.0, []),  # there is nothing below
        ("dropout_words=0,0.1,0.2", 0.2, ["dropout_words (0.2)"]),
        ("clip=1,2,inf", np.inf, []),
        ("seed=0:3", 2, []),
        ("cell=gru,lstm,rnn", "rnn", []),
        ("hidden_size=8,16,32", 32, ["hidden_size (32)"]),
    ],
)
def test_a_best_value_at_the_edge_is_said(text, best, at):
    (axis,) = parse_axes(text, Config())
    found = at_edge({axis.name: best}, [axis], Config())
    assert found == [f"best at the edge of {where}: a wider range may have better" for where in at]


@pytest.mark.parametrize(
    ("program", "ends", "expected"),
    [
        # A program that is compiled for 100 s, and one for 20 s more; then a point each 2 s.
        ([0, 0, 1, *[0] * 7], [100, 102, 122, 124, 126], [None, None, None, 12, 10]),
        # Waves of two: what is said between two of one wave is soon mended.
        ([0] * 6, [100, 100.1, 110, 110.1, 120], [None, None, 30, 10.1, 20 / 3]),
        # A quarter is done, and programs are left to be compiled.
        (list(range(8)), [10, 20, 30, 40, 50], [None, None, None, 40, 30]),
    ],
)
def test_the_rest_is_foreseen_without_what_compiles_first(monkeypatch, program, ends, expected):
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(board, "time", clock)
    with Board(dict(enumerate(program)), ["clip"], "valid") as shown:
        left = []
        for number, end in enumerate(ends):
            clock.monotonic = lambda end=end: end
            record = {"number": number, "status": "finished", "valid": 1.0}
            shown.record(record, {"clip": 1.0})
            left.append(shown.seconds_left())
    assert left == [None if e is None else pytest.approx(e) for e in expected]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_book(tmp_path_factory.mktemp("text"))


def here(folder, config, groups):
    """An executor in this process."""
    trainer = Trainer(config)
    for group in groups:
        for record in trainer.train(group.fixed, group.points, lambda tick: None):
            yield {"say": "record", "record": record}


SMALL = [*TINY[2:], "--hidden_size=8", "--embedding_size=8"]


def test_a_sweep_with_points_that_fail_goes_on_and_draws(book, tmp_path, monkeypatch):
    """One diverges, one is refused, one breaks; then the one that broke alone is trained."""
    trained = []

    def breaking(folder, config, groups):
        for message in here(folder, config, groups):
            trained.append(message["record"]["number"])
            if len(trained) == 3:
                message["record"] = {"number": trained[-1], "status": "failed", "error": "it broke"}
            yield message

    monkeypatch.setitem(sweep.EXECUTORS, "local", breaking)
    folder = tmp_path / "s"
    (tmp_path / "what.txt").write_text(
        "tied=true,false embedding_size=8,9\nlearning_rate=1,1e38 seed=0:2"
    )
    flags = [f"--sweep=@{tmp_path / 'what.txt'}"]
    flags += ["--steps=6", f"--corpus={book}", "--clip=inf", *SMALL[:-1]]
    done = call("sweep", *flags, f"--run={folder}")
    assert done.returncode == 0, done.stderr
    refused = "4 of 16 points are refused, as point 4: tied needs embedding_size"
    assert done.stdout.count(refused) == 2  # before, and at the end
    rows = read_rows(folder)
    status = [row["status"] for row in rows]
    assert (status.count("refused"), status.count("failed")) == (4, 1)
    assert ", 1 failed, 4 refused of 16 points" in done.stdout
    assert done.stderr.endswith("sweep: 1 point failed; --resume tries again\n")
    assert status.count("diverged") == 5
    assert all(row["valid"] > 1 for row in rows if row["status"] == "finished")
    assert "not finite at step" in next(r["error"] for r in rows if r["status"] == "diverged")
    for name in ("sweep", "sweep_map", "sweep_parallel"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    page = (folder / "report.html").read_text()
    assert "it broke" in page
    assert "validation perplexity" in page
    ended = ("finished", "diverged")
    finished = {row["number"]: row["finished_at"] for row in rows if row["status"] in ended}
    broken = trained[2]
    trained.clear()
    monkeypatch.setitem(sweep.EXECUTORS, "local", breaking)
    assert_one_line(call("sweep", f"--run={folder}", "--resume", "--clip=1"), "clip is 1")
    # The file says what the sweep does, and where the text lies may change.
    again = [f"--run={folder}", "--resume", f"--sweep=@{tmp_path / 'what.txt'}"]
    done = call("sweep", *again, "--data_dir=moved", "--workers=1")
    assert done.returncode == 0, done.stderr
    assert "1 point to train, one program" in done.stdout
    assert " s in this call; bookkeeping" in done.stdout
    assert trained == [broken]
    assert read_config(folder, Config).data.data_dir == "moved"
    rows = read_rows(folder)
    assert rows[broken]["status"] in ("finished", "diverged")
    assert finished.items() <= {row["number"]: row["finished_at"] for row in rows}.items()
    results = json.loads((folder / "results.json").read_text())
    assert results["training seconds of all workers"] == sum(r["seconds"] or 0 for r in rows)
    assert results["seconds"] > 0
    done = call("sweep", f"--run={folder}", "--resume")
    assert done.returncode == 0, done.stderr
    assert " s in this call" not in done.stdout
    assert json.loads((folder / "results.json").read_text()) == results  # its seconds too


def test_what_goes_wrong_in_training_is_a_record(monkeypatch, capsys):
    def breaking(points, watch):
        yield {"number": points[0].number, "status": "finished", "valid": 2.0}
        raise RuntimeError("out of\nmemory")

    trainer = Trainer(Config())
    monkeypatch.setattr(trainer, "_program", lambda fixed: breaking)
    points = [SweepPoint(number, {}) for number in (4, 5, 6)]
    good, *bad = trainer.train({}, points, lambda tick: None)
    assert (good["number"], good["status"]) == (4, "finished")
    error = {"status": "failed", "error": "RuntimeError: out of memory"}
    assert bad == [{"number": 5, **error}, {"number": 6, **error}]
    assert "Traceback" in capsys.readouterr().err  # for the worker's log


def test_points_of_a_wave_share_its_seconds(monkeypatch):
    """They come all at once, at its end."""
    outcome = Outcome({}, None, np.inf, np.inf, 0, 3, 3, (), np.ones(3), np.ones(3), seconds=2.5)
    trainer, points = Trainer(Config()), [SweepPoint(number, {}) for number in range(4)]
    train = partial(train_text, Config(), lambda points, watch: iter([outcome] * len(points)))
    monkeypatch.setattr(trainer, "_program", lambda fixed: train)
    assert [r["seconds"] for r in trainer.train({}, points, lambda tick: None)] == [2.5] * 4


@pytest.mark.parametrize(("kind", "expected"), [("train", ["cores", "runs"]), ("program", [])])
def test_what_a_sweep_is_timed_against_has_the_devices_of_train(kind, expected, monkeypatch):
    done = []
    monkeypatch.setattr(worker, "prepare_jax", lambda data: None)
    monkeypatch.setattr(cores, "count_as_devices", lambda: done.append("cores"))
    monkeypatch.setattr(one_by_one, "train_runs", lambda *_: done.append("runs") or [1.0, 2.0])
    monkeypatch.setattr(one_by_one, "program_runs", lambda *_: [1.0, 2.0])
    one_by_one.main(kind, 2, [])
    assert done == expected


def test_groups_that_read_differently_keep_their_waves_apart(book, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(training, "make_train_points", lambda *_, keep, **__: made.append(keep))

    def keep_of(batching="stream", **fixed):
        config = Config(data=DataConfig(corpus=str(book), batching=batching))
        Trainer(config, tmp_path)._program(fixed)
        return made[-1]

    different = [
        keep_of(),
        *(keep_of(length=length) for length in (5, 10)),
        keep_of(random_length=True),
        keep_of(random_length=True, seed=1),
        keep_of(level="char"),
        *(keep_of("sentences", seed=seed) for seed in (0, 1)),
        keep_of("sentences", sentences="prose", seed=1),
        keep_of(min_count=2),
    ]
    assert len(set(different)) == len(different)
    assert keep_of(hidden_size=3) == keep_of(data_dir="moved", cache_dir="too") == keep_of()


def test_a_sweep_on_a_task(tmp_path, monkeypatch):
    monkeypatch.setitem(sweep.EXECUTORS, "local", here)
    flags = ["--sweep=learning_rate=0.01,0.02 forget_bias=1 seed=0:2", "--corpus=adding"]
    flags += ["--length=6", "--steps=20", "--hidden_size=4", "--batch_size=8"]
    done = call("sweep", *flags, f"--run={tmp_path / 's'}")
    assert done.returncode == 0, done.stderr
    assert "4 points to train, one program, with Adam" in done.stdout
    assert "the best answer that remembers nothing has a loss of 0.1667" in done.stdout
    assert json.loads((tmp_path / "s" / "results.json").read_text())["baseline"] == 1 / 6
    assert "loss after training" in done.stdout
    rows = read_rows(tmp_path / "s")
    assert all(0 < row["loss"] < 2 and row["status"] == "finished" for row in rows)
    assert len({row["loss"] for row in rows}) == 4


def start(*flags):
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command("sweep", *flags), cwd=ROOT, text=True, **both)


def wait_for(folder, count, status="finished"):
    for _ in range(1200):
        path = folder / "sweep.sqlite"
        if path.exists():
            try:
                with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
                    query = "select count(*) from points where status = ?"
                    if db.execute(query, [status]).fetchone()[0] >= count:
                        return
            except sqlite3.OperationalError:
                pass
        time.sleep(0.05)
    raise AssertionError


def workers_of(process):
    asked = ["pgrep", "-P", str(process.pid), "-f", "experiments.search.worker"]
    return [
        int(pid) for pid in subprocess.run(asked, capture_output=True, text=True).stdout.split()
    ]


def await_end(pids):
    """Of processes that nobody waits for; one that is a zombie has ended."""
    for _ in range(100):
        asked = ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))]
        states = subprocess.run(asked, capture_output=True, text=True).stdout.split()
        if all(state.startswith("Z") for state in states):
            return
        time.sleep(0.1)
    raise AssertionError


@pytest.mark.whole
def test_a_sweep_that_is_killed_goes_on_and_its_points_are_runs_of_train(book, tmp_path):
    """Kill -9 of the command, then of a worker, then Ctrl-C; no finished point is trained again."""
    folder = tmp_path / "s"
    options = ["--steps=1500", "--evaluate_every=500", f"--corpus={book}", "--schedule=constant"]
    flags = [
        "--sweep=learning_rate=0.2,0.5 hidden_size=8,12 seed=0:3",
        *options,
        *SMALL[:-2],
        SMALL[-1],
    ]
    first = start(*flags, f"--run={folder}")
    wait_for(folder, 2)
    orphans = workers_of(first)
    assert orphans
    first.kill()
    first.wait()
    await_end(orphans)
    finished = {
        r["number"]: r["finished_at"] for r in read_rows(folder) if r["status"] == "finished"
    }
    second = start(f"--run={folder}", "--resume")
    wait_for(folder, len(finished) + 1)
    os.kill(workers_of(second)[0], signal.SIGKILL)
    wait_for(folder, len(finished) + 3)
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert "points are done; go on with: ./launch.sh sweep --run=" in said
    third = run("sweep", f"--run={folder}", "--resume")
    assert third.returncode == 0, third.stderr
    assert "12 finished of 12 points" in third.stdout
    rows = read_rows(folder)
    assert all(row["status"] == "finished" for row in rows)
    assert finished.items() <= {row["number"]: row["finished_at"] for row in rows}.items()
    point = ["--learning_rate=0.5", "--hidden_size=12", "--seed=1", *SMALL[:-2], SMALL[-1]]
    alone = run("train", f"--run={tmp_path / 'alone'}", *point, *options)
    assert alone.returncode == 0, alone.stderr
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    (same,) = (r for r in rows if (r["learning_rate"], r["hidden_size"], r["seed"]) == (0.5, 12, 1))
    for split in ("valid", "test"):
        np.testing.assert_allclose(same[split], results[split]["perplexity"], rtol=1e-3)
    assert same["best_step"] == results["step"]


@pytest.mark.whole
def test_jobs_of_a_cluster_that_die_are_sent_again(book, tmp_path, monkeypatch):
    """submitit's own executor for one machine in place of Slurm; the job dies once, at a point."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(cluster, "CLUSTER", "local")
    monkeypatch.setattr(cluster, "LOOK_AT_JOBS", 0.25)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "s"
    flags = ["--sweep=learning_rate=1,1e38 seed=0:3", "--executor=slurm", "--jobs=2", "--clip=inf"]
    flags += ["--steps=3000", f"--corpus={book}", *SMALL]
    killed = []

    def kill_one():
        asked = ["pgrep", "-f", f"submitit.core._submit {folder.resolve()}"]
        pids = subprocess.run(asked, capture_output=True, text=True).stdout.split()
        if pids and not killed and list((folder / "points").glob("*.json")):
            killed.extend(pids)
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)

    real = cluster.is_done

    def is_done(*arguments):
        kill_one()
        return real(*arguments)

    monkeypatch.setattr(cluster, "is_done", is_done)
    done = call("sweep", *flags, f"--run={folder}")
    assert done.returncode == 0, done.stderr
    assert killed
    assert [row["status"] for row in read_rows(folder)] == ["finished"] * 3 + ["diverged"] * 3


def test_every_option_of_train_is_one_of_sweep_or_left_out_on_purpose():
    """What a sweep leaves out: several seeds, checkpoints, logs, starts, a model over devices."""
    from experiments.fit.continuation import flat

    missing = flat(TrainConfig()).keys() - flat(Config()).keys()
    one_run = {"list_recipes", "seeds", "start", "checkpoint_every", "log_gradient_flow"}
    assert missing == one_run | {"mesh", "coordinator", "processes", "process"}


def settings_of(*scores):
    return [Setting({}, each, (), 0) for each in scores]


def test_scores_are_cut_off_only_where_they_would_press_the_others_together():
    close = settings_of((60.0, 62.0), (100.0, 110.0), (309.0,))
    assert limit_of(close) == 309
    far = settings_of((60.0, 62.0), (100.0, 110.0), (1e9,))
    assert limit_of(far) == 180
    low, high = view_of(far)
    assert low < np.log10(60)
    assert np.log10(110) < high < np.log10(180)


def test_over_how_many_seeds_is_said():
    assert say_seeds(settings_of((1.0,), (2.0,), ())) == "one seed a setting"
    assert say_seeds(settings_of((1.0, 2.0), (2.0, 3.0))) == "mean over 2 seeds"
    assert say_seeds(settings_of((1.0, 2.0), (2.0,)), "geometric mean") == (
        "geometric mean over 1 to 2 seeds"
    )


def test_figures_say_what_lies_beyond_and_what_is_drawn(tmp_path):
    rows = [
        {"status": "finished", "rate": rate, "cell": cell, "size": size, "seed": 0} | scores
        for rate in (1, 10)
        for cell in ("gru", "lstm")
        for size in (8, 16)
        for scores in [{"valid": 1e9 if (rate, cell) == (10, "gru") else 90.0 + size, "test": None}]
    ]
    axes = [Axis("rate", (1, 10)), Axis("cell", ("gru", "lstm")), Axis("size", (8, 16))]
    plot_sweep(rows, axes, "valid", "perplexity", "a finding", "on a book", tmp_path)
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.svg")}
    assert "2 runs above 294" in said["sweep"]
    assert "≥ 294" in said["sweep_parallel"]
    assert "one colour for all above 294" in said["sweep_map"]
    assert all("on a book; " in text and "95 %" not in text for text in said.values())
    assert all("one seed a setting" in text for text in said.values())
