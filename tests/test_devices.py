"""Several processes for one model: who they are, how they meet, and what one's end is to others."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from command_line import ROOT, TINY, assert_one_line, call, command, run, write_book

from experiments.cores import usable_cores
from experiments.fit import coordinator
from experiments.fit.company import lay_out
from experiments.fit.coordinator import Coordinator, free_port
from experiments.fit.devices import DevicesConfig, Place, find_place, first_host, why_alone

FOUR = DevicesConfig(mesh="data=4")
STEP = {  # what srun tells the second of two tasks on two nodes
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def test_slurm_says_where_a_task_stands():
    assert find_place(FOUR, STEP) == Place(f"node07:{61440 + 1234}", 2, 1)
    assert find_place(DevicesConfig(), STEP) is None  # several devices are asked for by a mesh
    named = DevicesConfig(mesh="data=4", coordinator="here:99")
    assert find_place(named, STEP) == Place("here:99", 2, 1)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell of salloc -n 2
        STEP | {"SLURM_STEP_ID": "batch"},
        *({k: v for k, v in STEP.items() if k != gone} for gone in ("SLURM_STEP_NODELIST",)),
    ],
)
def test_a_part_of_slurm_is_no_step(environ):
    """JAX's own detection takes some of these for a step, and waits for the other tasks."""
    assert find_place(FOUR, environ) is None
    note = why_alone(FOUR, environ)
    assert note.count("\n") == 0
    assert ("not started by srun" in note) == ("SLURM_NTASKS" in environ)
    assert not why_alone(FOUR, STEP)
    assert not why_alone(DevicesConfig(), environ)


def test_tasks_share_the_gpus_that_all_of_them_see():
    both = STEP | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
    assert find_place(FOUR, both | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).gpus == (2, 3)
    assert find_place(FOUR, both | {"CUDA_VISIBLE_DEVICES": "3"}).gpus is None  # Slurm has done so
    own = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}
    assert find_place(FOUR, both | own).gpus is None  # likewise
    assert find_place(FOUR, both).gpus == (1,)
    assert find_place(FOUR, STEP).gpus is None  # alone on its node


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,other", "node1"),
        ("node[003-007,12],other", "node003"),
        ("rack[1-2]n[07,09]", "rack1n07"),
    ],
)
def test_the_first_host_of_slurms_lists(nodes, first):
    assert first_host(nodes) == first


def test_flags_say_all_or_nothing():
    flags = {"mesh": "data=4", "coordinator": "a:1", "processes": 3, "process": 2}
    assert find_place(DevicesConfig(**flags), STEP) == Place("a:1", 3, 2)
    for name in ("coordinator", "processes", "process"):
        partly = DevicesConfig(**{key: value for key, value in flags.items() if key != name})
        with pytest.raises(ValueError, match=f"wanted --{name}"):
            find_place(partly, {})
    assert find_place(DevicesConfig(mesh="data=2", processes=1), STEP) is None
    with pytest.raises(ValueError, match="without a mesh"):
        find_place(DevicesConfig(processes=2), {})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mesh=model=2"], ["mesh is model=2", "data=4"]),
        (["--mesh=data=0"], ["mesh is data=0"]),
        (["--mesh=data=640"], [" cpu devices; wanted at most", "JAX_NUM_CPU_DEVICES=640"]),
        (["--processes=2"], ["without a mesh", "--mesh=data=N"]),
        (["--mesh=data=2", "--coordinator=here"], ["HOST:PORT"]),
        (["--mesh=data=2", "--coordinator=here:0"], ["HOST:PORT"]),
        (["--mesh=data=2", "--processes=2", "--process=2"], ["process is 2 of 2", "0 to 1"]),
        (["--mesh=data=2", "--process=0"], ["--coordinator=HOST:PORT", "--processes=N"]),
    ],
)
def test_a_mistake_is_one_line(flags, words):
    assert_one_line(call("train", *flags), "train: ", *words)


def lines_of(talks, count=2):
    """What each of several trainers hears, each from (said, lines to wait for) after another."""

    async def meet():
        meeting = Coordinator(count)
        server = await asyncio.start_server(meeting.meet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        heard, writers = [], []
        for said, number in talks:
            if isinstance(said, int):  # this trainer goes
                writers[said][1].close()
                reader = writers[number][0]
                heard.append((await reader.readline()).decode().strip())
                continue
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{said}\n".encode())
            writers.append((reader, writer))
            if number:
                heard.append((await reader.readline()).decode().strip())
        server.close()
        return heard

    return asyncio.run(asyncio.wait_for(meet(), 20))


def test_the_coordinator_tells_who_is_lost():
    assert lines_of([("hello 0 2", 0), ("hello 1 2", 0), (1, 0)]) == ["lost 1"]
    assert lines_of([("hello 0 2", 0), ("hello 1 2\ndone", 0), (0, 1)]) == ["lost 0"]
    assert lines_of([("hello 0 2\ndone", 0), ("hello 1 2\ndone", 1)]) == ["end"]


def test_the_coordinator_refuses_who_does_not_belong():
    for hello, reason in [
        ("GET / HTTP/1.1", "no trainer"),
        ("hello 1 3", "processes is 3 there and 2 in process 0"),
        ("hello 0 2", "a process 0 is there already"),
    ]:
        (refusal,) = lines_of([("hello 0 2", 0), (hello, 1)])
        assert refusal.startswith("refuse")
        assert reason in refusal


def test_the_coordinator_ends_where_nobody_comes(monkeypatch, capsys):
    monkeypatch.setattr(coordinator, "JOIN_SECONDS", 0.1)
    asyncio.run(asyncio.wait_for(coordinator.coordinate(free_port(), 2), 10))
    assert capsys.readouterr().out == f"{coordinator.READY}\n"


def test_a_run_of_more_cores_than_there_are_goes_on_with_one(capsys):
    many = DevicesConfig(mesh="data=640")
    assert lay_out(many, typed=False) is None
    assert "begun with data=640" in capsys.readouterr().out
    with pytest.raises(ValueError, match="wanted at most"):
        lay_out(many)


def test_a_vanished_host_is_noticed_in_the_time_that_is_promised():
    with socket.socket() as connection:
        coordinator.keep_alive(connection)
        idle, every, times = (
            connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        )
    assert idle + every * times == coordinator.QUIET


# Whole commands: two processes with two devices each.

FLAGS = [
    "--checkpoint_every=20",
    "--steps_per_dispatch=10",
    "--learning_rate=1",
    "--dropout_output=0.2",
    *TINY,
]


class Pair:
    """Two processes that train one model over loopback."""

    def __init__(self, folder, *flags, environ=None, devices="2"):
        self.logs = [folder / f"process-{k}.log" for k in (0, 1)]
        address = f"localhost:{free_port()}"
        self.processes = []
        for k in (0, 1):
            told = [f"--coordinator={address}"]
            if environ is None:
                told += ["--processes=2", f"--process={k}"]
            counted = {"JAX_NUM_CPU_DEVICES": devices} if devices else {}
            slurm = {} if environ is None else environ | {"SLURM_PROCID": str(k)}
            with self.logs[k].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        command("train", *flags, *told),
                        cwd=ROOT,
                        env=os.environ | counted | slurm,
                        stdout=log,
                        stderr=log,
                    )
                )

    def wait(self, seconds=150):
        """(exit status, output) of each."""
        try:
            codes = [process.wait(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return list(zip(codes, (log.read_text() for log in self.logs), strict=True))


def steps_of(folder):
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def signal_at(pair, index, number, folder, step):
    """Signal one process once there is a checkpoint of that step."""
    deadline = time.monotonic() + 120
    while steps_of(folder) < step and time.monotonic() < deadline:
        assert pair.processes[index].poll() is None, pair.logs[index].read_text()
        time.sleep(0.005)
    pair.processes[index].send_signal(number)
    return time.monotonic()


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_book(tmp_path_factory.mktemp("text"))


@pytest.mark.whole
def test_two_processes_train_as_one_does_and_stop_and_go_on_together(book, tmp_path):
    """Started as by srun; SIGTERM to one of them; the rest on one device, and on four of one."""
    flags = [f"--corpus={book}", "--steps=90", "--evaluate_every=90", *FLAGS]
    assert run("train", *flags, f"--run={tmp_path / 'one'}").returncode == 0
    folder = tmp_path / "two"
    environ = STEP | {"SLURM_STEP_NODELIST": "localhost"}
    pair = Pair(tmp_path, *flags, f"--run={folder}", "--mesh=data=4", environ=environ)
    signal_at(pair, 1, signal.SIGTERM, folder, 20)
    (code, said), (other_code, silence) = pair.wait()
    assert (code, other_code) == (0, 0), said + silence
    stopped = steps_of(folder)
    assert 20 < stopped < 90
    assert f"stopped at step {stopped}" in said
    assert "stopped" not in silence
    done = run(
        "train", f"--run={folder}", "--resume", "--steps=90", "--mesh=data=1"
    )  # on one device
    assert done.returncode == 0, done.stderr
    one, two = curve(tmp_path / "one"), curve(folder)
    assert one.keys() >= {10, 60, 90}
    common = sorted(one.keys() & two.keys())
    assert common[-1] == 90
    np.testing.assert_allclose(
        [two[step] for step in common], [one[step] for step in common], rtol=1e-5
    )
    stored = json.loads((folder / "config.json").read_text())["config"]["devices"]
    assert stored == {"mesh": "data=4", "coordinator": "", "processes": 0, "process": -1}


@pytest.mark.whole
def test_a_process_alone_has_all_cores_and_two_have_a_device_each(book, tmp_path):
    flags = [f"--corpus={book}", "--steps=2", *FLAGS]
    alone = run("train", *flags, "--batch_size=64", "--length=40", f"--run={tmp_path / 'one'}")
    spread = "spread over" in alone.stdout
    assert (alone.returncode, spread) == (0, usable_cores() > 1), alone.stdout + alone.stderr
    pair = Pair(tmp_path, *flags, f"--run={tmp_path / 'two'}", "--mesh=data=2", devices="")
    (code, said), (other_code, other) = pair.wait()
    assert (code, other_code) == (0, 0), said + other


@pytest.mark.whole
def test_one_process_starts_from_a_run_and_evaluates_on_four_devices(book, tmp_path):
    flags = [f"--corpus={book}", "--steps=20", *FLAGS]
    four = {"env": os.environ | {"JAX_NUM_CPU_DEVICES": "4"}}
    assert run("train", *flags, f"--run={tmp_path / 'one'}").returncode == 0
    more = [f"--start={tmp_path / 'one'}", f"--run={tmp_path / 'four'}", "--mesh=data=all"]
    done = run("train", *flags, *more, **four)
    assert done.returncode == 0, done.stderr
    began = json.loads((tmp_path / "four" / "metrics.jsonl").read_text().splitlines()[0])
    ended = json.loads((tmp_path / "one" / "results.json").read_text())["valid"]["perplexity"]
    np.testing.assert_allclose(began["valid"], ended, rtol=1e-5)
    said = [
        run("evaluate", f"--run={tmp_path / 'four'}", *mesh, **four).stdout
        for mesh in ([], ["--mesh=data=4"])
    ]
    assert said[0] == said[1] != ""
    assert_one_line(call("evaluate", "--mesh=data=4", "--adapt=cache"), "reads a text in order")


@pytest.mark.whole
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(killed, book, tmp_path):
    folder = tmp_path / "run"
    flags = [f"--corpus={book}", "--steps=100000", *FLAGS, f"--run={folder}", "--mesh=data=4"]
    pair = Pair(tmp_path, *flags)
    began = signal_at(pair, killed, signal.SIGKILL, folder, 40)
    found = pair.wait(seconds=30)
    assert time.monotonic() - began < 20
    code, said = found[1 - killed]
    assert found[killed][0] == -signal.SIGKILL
    assert code == 1, said
    last = said.splitlines()[-1] if killed == 0 else said
    assert f"process {killed} of 2 is gone" in last
    assert "--resume" in last
    assert "Traceback" not in said
    assert "Terminating process" not in said
    step = steps_of(folder)
    assert step >= 40
    if killed == 1:
        return
    pair = Pair(tmp_path, f"--run={folder}", "--resume")  # the mesh is the run's
    signal_at(pair, 0, signal.SIGTERM, folder, step + 20)
    assert [code for code, _ in pair.wait()] == [0, 0]


@pytest.mark.whole
def test_processes_that_fail_say_why_and_wait_for_nobody(book, tmp_path):
    """A rate that overflows, in both; a run that is there already, which one alone sees."""
    flags = [f"--corpus={book}", *FLAGS, "--mesh=data=4", "--steps=40", f"--run={tmp_path / 'run'}"]
    for code, said in Pair(tmp_path, *flags, "--learning_rate=1e38", "--clip=1e38").wait(60):
        assert code == 2
        assert "wanted these and the parameters after it finite" in said
    (code, said), (other, heard) = Pair(tmp_path, *flags).wait(60)
    assert (code, other) == (2, 1)
    assert "exists; give another --run" in said
    assert "process 0 of 2 is gone" in heard
    port = free_port()
    with socket.create_server(("", port)):
        done = run(
            "train",
            "--mesh=data=2",
            f"--coordinator=localhost:{port}",
            "--processes=2",
            "--process=0",
        )
    assert_one_line(done, "a port that is taken")
