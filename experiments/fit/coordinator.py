"""What several processes that train one model meet at, and learn of each other's end from.

    python -m experiments.fit.coordinator PORT COUNT

Process 0 starts it, in a process of its own: JAX's coordination service lives here, so that no
trainer takes it along when it dies (a client that loses it aborts on the spot, with pages of log).
Each trainer keeps a connection open, on which these lines pass:

    hello INDEX COUNT      to the coordinator, first
    service PORT           from it, once all are there: where JAX's service is
    refuse REASON          from it, in place of that
    done                   to it: this trainer has nothing left to do
    end                    from it, once all are done
    lost INDEX             from it: a connection broke before that

A killed process's connections are closed by its system at once. A host that vanishes answers no
more keep-alives: its connection is closed after QUIET seconds.
"""

import asyncio
import contextlib
import signal
import socket
import sys

JOIN_SECONDS = 300  # in which all processes have to come
QUIET = 30  # seconds without an answer after which a host is taken for lost
HEARTBEAT_SECONDS = 100  # after which JAX takes a process for dead that is there and does nothing
READY, TAKEN = "ready", "taken"  # what process 0 is told when this one has started


def keep_alive(connection: socket.socket) -> None:
    """Have a connection closed within QUIET seconds where the other end has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


class Coordinator:
    """Who is there, and who is done."""

    def __init__(self, count: int):
        self.count = count
        self.writers: dict[int, asyncio.StreamWriter] = {}
        self.done: set[int] = set()
        self.complete = asyncio.Event()  # all have come
        self.over = asyncio.Event()  # all have gone

    def tell(self, line: str) -> None:
        """A line to everyone who is connected."""
        for writer in self.writers.values():
            with contextlib.suppress(OSError):
                writer.write(f"{line}\n".encode())

    def refusal(self, hello: list[str]) -> str:
        """Why a newcomer may not join; empty where it may."""
        if len(hello) != 3 or hello[0] != "hello" or not (hello[1] + hello[2]).isdigit():
            return "it is no trainer of this project"
        index, count = int(hello[1]), int(hello[2])
        if count != self.count:
            return f"processes is {count} there and {self.count} in process 0"
        if index in self.writers or self.complete.is_set():
            return f"a process {index} is there already"
        return ""

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One trainer, from its hello to its end."""
        keep_alive(writer.get_extra_info("socket"))
        hello = (await reader.readline()).decode(errors="replace").split()
        if refusal := self.refusal(hello):
            writer.write(f"refuse {refusal}\n".encode())
            writer.close()
            return
        index = int(hello[1])
        self.writers[index] = writer
        if len(self.writers) == self.count:
            self.complete.set()
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                if line == b"done\n":
                    self.done.add(index)
                    if len(self.done) == self.count:
                        self.tell("end")
        del self.writers[index]
        if self.complete.is_set() and len(self.done) < self.count:
            self.tell(f"lost {index}")
        if not self.writers:
            self.over.set()


async def coordinate(port: int, count: int) -> None:
    """Serve until all have gone."""
    from jaxlib import _jax

    coordinator = Coordinator(count)
    try:
        server = await asyncio.start_server(coordinator.meet, port=port)
    except OSError:
        print(TAKEN, flush=True)
        return
    service_port = free_port()
    service = _jax.get_distributed_runtime_service(
        f"[::]:{service_port}", count, heartbeat_timeout=HEARTBEAT_SECONDS
    )
    print(READY, flush=True)
    waits = [asyncio.ensure_future(e.wait()) for e in (coordinator.complete, coordinator.over)]
    await asyncio.wait(waits, timeout=JOIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if coordinator.complete.is_set():
        coordinator.tell(f"service {service_port}")
    else:
        missing = ", ".join(str(k) for k in range(count) if k not in coordinator.writers)
        coordinator.tell(f"refuse process {missing} of {count} has not come in {JOIN_SECONDS} s")
    if coordinator.writers:
        await coordinator.over.wait()
    server.close()
    service.shutdown()


if __name__ == "__main__":
    # Signals are for the trainers; this ends when they have.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(coordinate(int(sys.argv[1]), int(sys.argv[2])))
