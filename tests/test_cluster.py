"""Sweeps on a cluster, by commands that answer as Slurm's do; slurm_cluster.sh has a real one."""

import itertools
import json
import os

import numpy as np
import pytest
from command_line import TINY, assert_one_line, call, write_book

from experiments import run_folder, sweep
from experiments.search import cluster
from experiments.search.config import ClusterConfig, Config
from experiments.search.points import group_points, make_points
from experiments.search.space import parse_axes
from experiments.search.table import read_rows

# Each notes how it was called. `down` is Slurm's trouble, `queue` the jobs that it has, one a line.
COMMANDS = {
    "sbatch": """
        number=$(($(grep -c ^sbatch called) + 6))
        case $(cat "$1") in *--array*) jobs="0 1" ;; *) jobs= ;; esac
        for job in $jobs; do echo "${number}_$job"; done >>queue
        [ -n "$jobs" ] || echo "$number" >>queue
        echo "Submitted batch job $number" """,
    "squeue": "cat queue",
    "scancel": 'for job; do sed -i "/^$job$/d" queue; done',
    "srun": "exit 1",
}


class Slurm:
    """A folder with the commands, and the state that they share."""

    def __init__(self, folder):
        self.folder = folder
        for name, body in COMMANDS.items():
            lines = [
                *("#!/bin/bash", "case $1 in *.sh) set -- $(realpath $1) ;; esac", f"cd {folder}"),
                f'echo "{name} $*" >>called',
                f'[ ! -e down ] || {{ sed "s/^/{name}: error: /" down >&2; exit 1; }}',
            ]
            (folder / name).write_text("\n".join([*lines, body]))
            (folder / name).chmod(0o755)
        self.set_queue()
        self.called()

    def set_queue(self, *jobs):
        (self.folder / "queue").write_text("".join(f"{job}\n" for job in jobs))

    @property
    def queue(self):
        return (self.folder / "queue").read_text().split()

    def set_trouble(self, *lines):
        down = self.folder / "down"
        down.write_text("".join(f"{line}\n" for line in lines)) if lines else down.unlink()

    def called(self, name=""):
        path = self.folder / "called"
        path.touch()
        return [line for line in path.read_text().splitlines() if line.startswith(name)]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    monkeypatch.setattr(cluster, "LOOK_AT_JOBS", -1.0)
    return Slurm(folder)


def finish(folder, *numbers, status="finished", valid=2.0):
    """As a job does."""
    (folder / "points").mkdir(exist_ok=True)
    for number in numbers:
        record = {"number": number, "status": status, "valid": valid}
        run_folder.write_json(cluster.path_of(folder, number), record)


def groups_of(text):
    return group_points(make_points(parse_axes(text, Config()), 0, 0), Config())


def test_trouble_of_slurm_that_passes_ends_nothing(slurm, tmp_path, capsys):
    """The queue is not answered, then a job that died is refused: it is sent when that is over."""
    config = Config(executor="slurm", retries=1, cluster=ClusterConfig(jobs=2))
    said = cluster.train_on_slurm(tmp_path, config, groups_of("seed=0:4"))
    assert next(said) is None
    assert slurm.queue == ["7_0", "7_1"]
    slurm.set_trouble("Unable to contact slurm controller")
    slurm.set_queue("7_1")  # the other one has died
    for _ in range(5):
        assert next(said) is None
    assert len(slurm.called("sbatch")) == 1
    (told,) = capsys.readouterr().err.splitlines()  # once
    assert "squeue of Slurm does not answer (Unable to contact slurm controller)" in told
    squeue = (slurm.folder / "squeue").read_text()
    (slurm.folder / "squeue").write_text(squeue.replace("down", "never"))
    for _ in range(5):
        assert next(said) is None
    assert "Slurm takes none of 1 jobs (Unable to contact" in capsys.readouterr().err
    slurm.set_trouble()
    assert [next(said), next(said)] == [None, None]
    assert "job 7_0 ended before its time" in capsys.readouterr().err
    (again,) = set(slurm.queue) - {"7_1"}
    noted = json.loads((tmp_path / "jobs.json").read_text())
    assert noted == [{"job": again, "points": [0, 1]}, {"job": "7_1", "points": [2, 3]}]
    finish(tmp_path, 0, 2, 3)
    assert [next(said)["record"]["number"] for _ in range(3)] == [0, 2, 3]
    slurm.set_queue()  # it dies again, as often as it may
    given_up = next(filter(None, said))["record"]
    assert (given_up["number"], given_up["status"]) == (1, "failed")
    assert list(said) == [None]
    assert slurm.called("scancel") == []


def test_a_sweep_that_slurm_refuses_says_so_and_goes_on(slurm, tmp_path, monkeypatch):
    """In one line; the folder goes on with another partition: all programs' jobs in one array."""
    monkeypatch.setattr(sweep, "conclude", lambda *_: None)
    folder = tmp_path / "s"
    flags = ["--sweep=seed=0:3 layers=1,2", f"--corpus={write_book(tmp_path)}", *TINY]
    flags += [f"--run={folder}", "--executor=slurm", "--jobs=2", "--partition=nope"]
    trouble = "invalid partition specified: nope", "Batch job submission failed"
    slurm.set_trouble(*trouble)
    refused = call("sweep", *flags)
    assert_one_line(refused, "; ".join(trouble), "--partition", f"sweep --run={folder} --resume")
    slurm.set_trouble()

    def finish_all(*_):  # while the sweep looks at its watch
        finish(folder, *range(6), valid=np.inf)
        return 1.0

    monkeypatch.setattr(cluster.time, "sleep", finish_all)
    done = call("sweep", f"--run={folder}", "--resume", "--partition=all")
    assert done.returncode == 0, done.stderr
    assert [row["valid"] for row in read_rows(folder)] == [np.inf] * 6
    script = next((folder / "logs").glob("**/*submission.sh")).read_text()
    assert "--partition=all\n" in script
    assert "--array=0-3%2\n" in script


def test_what_jobs_have_done_counts_for_every_executor(slurm, tmp_path, monkeypatch):
    """--resume --executor=local: their points are not trained again, and who runs is cancelled."""
    monkeypatch.setattr(sweep, "conclude", lambda *_: None)
    folder = tmp_path / "s"
    trained = []

    def here(folder, config, groups):
        for point in itertools.chain(*(group.points for group in groups)):
            trained.append(point.number)
            yield {"say": "record", "record": {"number": point.number, "status": "finished"}}

    monkeypatch.setitem(sweep.EXECUTORS, "local", here)
    flags = ["--sweep=seed=0:6", f"--corpus={write_book(tmp_path)}", *TINY, f"--run={folder}"]
    slurm.set_trouble("down")
    call("sweep", *flags, "--executor=slurm")  # refused: all points are left
    slurm.set_queue("7_0", "7_1", "99")
    known = [{"job": "7_0", "points": [0, 1]}, {"job": "7_1", "points": [2, 5]}]
    run_folder.write_json(folder / "jobs.json", [*known, {"job": "6", "points": [3, 4]}])
    finish(folder, 2)
    finish(folder, 4, status="failed")
    sent = len(slurm.called("sbatch"))
    unsure = call("sweep", f"--run={folder}", "--resume")  # which jobs run is not known
    assert_one_line(unsure, "squeue of Slurm does not answer (down)", "--resume")
    assert len(slurm.called("sbatch")) == sent
    slurm.set_trouble()
    finish(folder, 3)
    done = call("sweep", f"--run={folder}", "--resume", "--executor=local")
    assert done.returncode == 0, done.stderr
    assert trained == [0, 1, 4, 5]
    assert slurm.queue == ["99"]
    assert "jobs of before in the queue still: 2; cancelled" in done.stdout
    assert "points that jobs of before have finished: 1" in done.stdout
    assert [row["valid"] for row in read_rows(folder)] == [None, None, 2.0, 2.0, None, None]


def test_jobs_of_before_are_waited_for(slurm, tmp_path):
    """A sweep that was killed leaves jobs behind: only what none of them has is sent."""
    run_folder.write_json(tmp_path / "jobs.json", [{"job": "3_1", "points": [0, 2]}])
    slurm.set_queue("3_1")
    config = Config(executor="slurm", cluster=ClusterConfig(jobs=1))
    said = cluster.train_on_slurm(tmp_path, config, groups_of("seed=0:4"))
    assert slurm.queue == ["3_1", "7"]
    noted = json.loads((tmp_path / "jobs.json").read_text())
    assert [known["points"] for known in noted] == [[0, 2], [1, 3]]
    finish(tmp_path, 1, 3)
    assert [next(said)["record"]["number"] for _ in range(2)] == [1, 3]
    said.close()
    assert slurm.called("scancel") == ["scancel 3_1"]
