"""Asking a run to stop without losing anything."""

import os
import signal
from typing import Any

HEARD = b"\nstopping soon, with what is done kept; the same again stops at once\n"


class StopOnSignal:
    """While it is open, SIGINT and SIGTERM ask to stop at the next dispatch; twice, at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopOnSignal":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, HEARD)  # and not print: what is interrupted may be printing
