"""The time to a run's first step, and what of it is compiling."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
FROM_CACHE = "/jax/compilation_cache/cache_hits"


class FirstStep(NamedTuple):
    """What came before the end of the first step."""

    first_step_seconds: float  # since the command began
    compile_seconds: float  # of these, or to load what was compiled before
    programs: int
    programs_from_cache: int

    def __str__(self) -> str:
        return (
            f"first step after {self.first_step_seconds:.1f} s, {self.compile_seconds:.1f} s of "
            f"them compiling: {self.programs} programs, {self.programs_from_cache} of them kept "
            "from earlier runs"
        )


class Startup:
    """Counts compilations while it is open; `finish` says how long the first step took to come."""

    def __init__(self, began: float):
        """
        Args:
          began: when the command did, on the clock of time.monotonic.
        """
        self._began = began
        self._dispatched = began
        self._compile_seconds, self._programs, self._from_cache = 0.0, 0, 0

    def watch(self, block: Callable[..., Any]) -> Callable[..., Any]:
        """`block`, and note when its dispatch has begun: it returns once it is compiled."""

        def watched(*arguments: Any) -> Any:
            result = block(*arguments)
            self._dispatched = time.monotonic()
            return result

        return watched

    def finish(self, steps: int) -> FirstStep:
        """Now that the first dispatch, of `steps` steps, has ended.

        They end together: the first one is said to take an equal share of its time.
        """
        share = (time.monotonic() - self._dispatched) / steps
        seconds = self._dispatched + share - self._began
        return FirstStep(seconds, self._compile_seconds, self._programs, self._from_cache)

    def _count_compilation(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            self._compile_seconds += duration_secs
            self._programs += 1

    def _count_hit(self, event: str, **_: Any) -> None:
        self._from_cache += event == FROM_CACHE

    def __enter__(self) -> "Startup":
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)
        jax.monitoring.register_event_listener(self._count_hit)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._count_compilation)
        jax.monitoring.unregister_event_listener(self._count_hit)
