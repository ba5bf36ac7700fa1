"""The processes that train one model together, seen from one of them.

One process is the rule, and then nothing of this happens. Several meet at a coordinator
(`experiments.fit.coordinator`), do the same in the same order, and each writes its part of a
checkpoint; the first alone writes what else a run's folder holds and speaks. When one of them is
lost the others stop within seconds: what the run goes on from is its last checkpoint.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from experiments import cores, flags
from experiments.fit.coordinator import (
    HEARTBEAT_SECONDS,
    JOIN_SECONDS,
    READY,
    keep_alive,
)
from experiments.fit.devices import ALL, DevicesConfig, Place, find_place, why_alone
from lm.mesh import any_process, make_mesh

GRACE = 1.0  # seconds that a process has to end for a reason of its own when another has ended
LOST = 1  # exit status of those that stop since another was lost
LONGEST_TEXT = 4096  # bytes


@dataclass
class Company:
    """The processes and their devices; leave it with `with`."""

    mesh: Mesh | None = None  # None: one device
    index: int = 0
    count: int = 1
    watch: "Watch | None" = None

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.index == 0

    def say(self, line: str) -> None:
        """A line on the terminal, once."""
        if self.first:
            print(line, flush=True)

    def share(self, text: str) -> str:
        """What the first process has as `text`."""
        if self.count == 1:
            return text
        from jax.experimental.multihost_utils import broadcast_one_to_all

        own = np.zeros(LONGEST_TEXT, np.uint8)
        encoded = np.frombuffer(text.encode(), np.uint8)
        own[: len(encoded)] = encoded
        return bytes(np.asarray(broadcast_one_to_all(own))).rstrip(b"\0").decode()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What the first process does before the others: they find what it leaves in a cache."""
        if not self.first:
            self.share("")
        yield
        if self.first:
            self.share("")

    def __enter__(self) -> "Company":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.watch is None:
            return
        if error is None:
            self.watch.finish()
            jax.distributed.shutdown()  # while its service is there: until the last watch is closed
            self.watch.close()
            return
        if isinstance(error, RuntimeError):
            self.watch.wait_for_loss()  # sums over devices and barriers fail where one is gone
        # JAX would wait at its end for processes that wait for this one.
        atexit.register(leave, flags.WRONG_USE)
        self.watch.close()


ALONE = Company()  # one process with one device


def join(config: DevicesConfig, program: str = "train", typed: bool = True) -> Company:
    """Meet the other processes, if there are any, and lay out the mesh.

    Args:
      typed: as for `lay_out`.

    Raises:
      ValueError: they cannot be met, or there are not so many devices.
    """
    if note := why_alone(config, os.environ):
        print(f"{program}: {note}", file=sys.stderr)
    place = find_place(config, os.environ)
    if place is None:
        return Company(lay_out(config, typed))
    cores.leave_uncounted()  # of a host, whose processes would each count all
    watch = Watch(place, program)
    jax.config.update("jax_enable_preemption_service", False)  # signals: experiments.fit.signals
    jax.distributed.initialize(
        watch.service,
        place.count,
        place.index,
        local_device_ids=place.gpus,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        coordinator_bind_address="127.0.0.1:0",  # process 0 starts a service here; nobody comes
    )
    company = Company(index=place.index, count=place.count, watch=watch)
    try:
        company.mesh = lay_out(config)
    except ValueError as error:
        company.__exit__(ValueError, error, None)
        raise
    # Gloo gives up where one process is 30 s behind another when they connect, later never: so
    # they do before anyone reads a text or compiles.
    any_process(company.mesh, False)
    company.share("")
    return company


def lay_out(config: DevicesConfig, typed: bool = True) -> Mesh | None:
    """The mesh that --mesh asks for; None for one device.

    Args:
      typed: by the user, now. A run that was spread over more cores than there are here goes on
        with one device; a line says so.
    """
    devices, wanted = jax.devices(), config.devices
    count = len(devices) if wanted == ALL else wanted
    processes = jax.process_count()
    if count > len(devices) and not typed and devices[0].platform == "cpu":
        print(f"begun with {config.mesh}, which this CPU has not; goes on with one device")
        return None
    if count > len(devices):
        kind = devices[0].platform
        more = f", or JAX_NUM_CPU_DEVICES={count} before the command" if kind == "cpu" else ""
        raise ValueError(
            f"mesh is {config.mesh}, and there are {len(devices)} {kind} devices; wanted at most "
            f"data={len(devices)}{more}"
        )
    if processes > 1 and count != len(devices):
        raise ValueError(
            f"mesh is {config.mesh}, and {processes} processes have {len(devices)} devices; wanted "
            f"all of them: --mesh=data={len(devices)}"
        )
    return None if count == 1 else make_mesh(devices[:count])


class Watch:
    """The connection to the coordinator; ends this process where another is lost."""

    def __init__(self, place: Place, program: str):
        """Returns when all processes are there.

        Raises:
          ValueError: the coordinator does not start, does not answer, or refuses.
        """
        self.place, self.program = place, program
        host, port = place.coordinator.rsplit(":", 1)
        if place.index == 0:
            start_coordinator(place, int(port))
        self._socket = connect(host, int(port), place)
        self._lines = self._socket.makefile("r")
        self._send(f"hello {place.index} {place.count}")
        if place.index == 0:
            others = "process 1" if place.count == 2 else f"{place.count - 1} other processes"
            print(f"{program}: waiting for {others} at {place.coordinator}", file=sys.stderr)
        answer = self._lines.readline().split(maxsplit=1) or ["refuse", "it is gone"]
        if answer[0] != "service":
            raise ValueError(f"coordinator {place.coordinator}: {answer[-1].strip()}")
        self.service = f"{host}:{int(answer[1])}"
        self._end, self._closing = threading.Event(), False
        threading.Thread(target=self._listen, daemon=True).start()

    def finish(self) -> None:
        """Wait until all are done; then nobody's end is a loss any more."""
        self._send("done")
        self._end.wait()

    def wait_for_loss(self) -> None:
        """Let the thread that listens end this process, if it is to."""
        time.sleep(5 * GRACE)

    def close(self) -> None:
        """The others hear that this process is lost."""
        self._closing = True
        self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, line: str) -> None:
        self._socket.sendall(f"{line}\n".encode())

    def _listen(self) -> None:
        while True:
            try:
                line = self._lines.readline().split()
            except OSError:
                line = []
            if line == ["end"]:
                self._end.set()
            if line == ["end"] or self._closing:
                return
            time.sleep(GRACE)  # this one may be ending by itself, and say why
            if self._closing:
                return
            lost = f"process {line[1]} of {self.place.count}" if line else "the coordinator"
            tqdm.write(
                f"{self.program}: {lost} is gone, so process {self.place.index} stops; the run "
                "goes on from its last checkpoint with --resume",
                file=sys.stderr,
            )
            leave(LOST)


def leave(status: int) -> None:
    """End this process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start_coordinator(place: Place, port: int) -> None:
    """Have a coordinator listen to the port.

    Raises:
      ValueError: it does not.
    """
    command = [sys.executable, "-m", "experiments.fit.coordinator", str(port), str(place.count)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # JAX's service logs what the trainers say already
        start_new_session=True,  # Ctrl-C is for the trainers
        text=True,
    )
    assert child.stdout is not None
    if child.stdout.readline().strip() != READY:
        raise ValueError(
            f"coordinator is {place.coordinator}, a port that is taken; wanted a free one"
        )


def connect(host: str, port: int, place: Place) -> socket.socket:
    """A connection to the coordinator, as soon as it is there."""
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=10)
        except OSError as error:
            if time.monotonic() < deadline and not isinstance(error, socket.gaierror):
                time.sleep(0.2)
                continue
            raise ValueError(
                f"coordinator {place.coordinator} does not answer ({error.strerror or error}); "
                "wanted process 0 started there"
            ) from None
        connection.settimeout(None)
        keep_alive(connection)
        return connection
