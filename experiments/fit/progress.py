"""What a training run says while it runs: a bar, JSON lines, TensorBoard."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from experiments.run_folder import MetricsLog
from lm.evaluate import perplexity


@contextlib.contextmanager
def corpus_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for `load_corpus`, of each thing that it does, in bytes."""
    bars: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in bars:
            close()
            bars[what] = tqdm(
                total=total or None, desc=what, unit="B", unit_scale=True, dynamic_ncols=True
            )
        bars[what].update(done - bars[what].n)

    def close() -> None:
        for bar in bars.values():
            bar.close()

    try:
        yield show
    finally:
        close()


class Progress:
    """Progress bar, metrics.jsonl and TensorBoard of one run; open it with `with`."""

    def __init__(self, folder: Path, *, start: int, last: int, clip: float):
        """
        Args:
          start: the step that a resumed run goes on from; what was logged past it is dropped.
          last: the step that the run ends at.
          clip: largest gradient norm, for the share of clipped steps.
        """
        from tensorboardX import SummaryWriter  # a second's import

        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        self._log = MetricsLog(folder)
        self._log.keep_until(start)
        self._clip = clip
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._bar: Any = tqdm(total=last, initial=start, unit="step", dynamic_ncols=True)
        self._bar.set_postfix_str("compiling")
        self._valid = ""  # the last evaluation, for the bar

    def dispatch(
        self, step: int, metrics: Any, rate: float, more: Mapping[str, Any] | None = None
    ) -> None:
        """One dispatch of training that ended at `step`.

        Args:
          metrics: StepMetrics of arrays [steps].
          rate: learning rate of its last step.
          more: what else to log.
        """
        loss = float(metrics.nats.sum() / metrics.tokens.sum())
        elapsed = max(self._bar.format_dict["elapsed"], 1e-9)
        done = self._bar.n - self._bar.initial + len(metrics.nats)
        speed = done / elapsed * float(metrics.tokens.mean())
        self._bar.set_postfix_str(
            f"loss {loss:.3f} perplexity {perplexity(loss):.1f}{self._valid} {speed:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(len(metrics.nats))
        scalars = {
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": float(metrics.grad_norm.mean()),
            "clipped": float((metrics.grad_norm > self._clip).mean()),
            "tokens_per_second": speed,
        }
        self._log.write(step=step, **scalars, time=time.time(), **(more or {}))
        self._draw(step, {f"train/{name}": value for name, value in scalars.items()})
        self._draw(step, {"train/perplexity": perplexity(loss)})

    def evaluation(self, step: int, loss: float, **more: Any) -> None:
        """A validation loss, nats per token."""
        self._log.write(step=step, valid=perplexity(loss), **more)
        self._valid = f" (valid {perplexity(loss):.1f})"
        self._draw(step, {"valid/loss": loss, "valid/perplexity": perplexity(loss)})

    def note(self, step: int, **measured: Any) -> None:
        """Anything else, for metrics.jsonl alone."""
        self._log.write(step=step, **measured)

    def say(self, message: str) -> None:
        """A line for the person at the terminal, above the bar."""
        self._bar.write(message)

    def _draw(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._board.close()


class Silence(Progress):
    """The progress of a process that is not to say any: another one does."""

    def __init__(self) -> None:
        pass

    def dispatch(
        self, step: int, metrics: Any, rate: float, more: Mapping[str, Any] | None = None
    ) -> None:
        pass

    def evaluation(self, step: int, loss: float, **more: Any) -> None:
        pass

    def note(self, step: int, **measured: Any) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass
