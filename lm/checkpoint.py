"""Checkpoints by Orbax: save, restore, resume to the same bits.

A checkpoint is a whole TrainState: parameters, their average, optimizer, carried state, PRNG
key, step, validation losses. The last few are kept, and the best by validation.
Saved on some number of devices, it is restored on any other: the template says what lies where.
Several processes save and restore it together, each its own part of what is spread over them.
Orbax writes each into a temporary folder and renames it when complete, so a kill leaves
either the new checkpoint or the one before. Nothing is unpickled.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lm.train import TrainState


class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the one of least validation loss.

    The last are in `folder`, the best in a folder "best" beside it.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self._last = _open(folder, keep)
        self._best = _open(folder.with_name("best"), 1)

    def save(self, state: TrainState, *, best: bool = False) -> None:
        """Write a checkpoint, off the main thread; `wait` or leaving `with` makes sure of it.

        The arrays are copied to the host before this returns, so the state may be donated.

        Args:
          best: keep it as the best so far as well. That one is complete before the other is
            begun: a kill in between leaves an older state to resume from, which comes by here
            again and finds the best in its place.
        """
        step, plain = int(state.step), _plain(state)
        if jax.process_count() > 1:  # whose barriers have one name in both managers
            self.wait()
        if best and self.best() != step:
            self._best.save(step, args=ocp.args.StandardSave(plain), force=True)
            self._best.wait_until_finished()
        self._last.save(step, args=ocp.args.StandardSave(plain), force=True)

    def wait(self) -> None:
        """Block until what was saved lies on the disk."""
        self._last.wait_until_finished()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending, but for the best."""
        return sorted(self._last.all_steps())

    def best(self) -> int | None:
        """The step of least validation loss; None before the first evaluation."""
        step: int | None = self._best.latest_step()
        return step

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints past `step`, so that training can save them anew."""
        for later in self.steps():
            if later > step:
                self._last.delete(later)

    def restore(self, template: TrainState) -> TrainState:
        """The state of the last checkpoint that can be read.

        One that is damaged is passed over for the one before: compare the state's step with
        the last of `steps()`.

        Args:
          template: a state of the same shapes, as `init_state` makes it.

        Raises:
          ValueError: there is no checkpoint, or none that can be read and fits the template.
        """
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.folder} holds no checkpoint; wanted a run that saved one")
        reasons = []
        for step in reversed(steps):
            try:
                return _read(self._last, step, template)
            except Exception as error:  # Orbax and its storage raise many kinds
                reasons.append(f"{step}: {str(error).strip().splitlines()[0][:150]}")
        raise ValueError(
            f"{self.folder}: no checkpoint can be read ({'; '.join(reasons)}); wanted one saved "
            "with this configuration"
        )

    def restore_best(self, template: TrainState) -> TrainState:
        """The state of least validation loss; the last one where that is damaged or missing."""
        best = self.best()
        if best is not None:
            try:
                return _read(self._best, best, template)
            except Exception:  # of many kinds, as above
                return self.restore(template)
        return self.restore(template)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait()
        self._last.close()
        self._best.close()


def _open(folder: Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager(folder.resolve(), options=options)


def _read(manager: ocp.CheckpointManager, step: int, template: TrainState) -> TrainState:
    restored = manager.restore(step, args=ocp.args.StandardRestore(_plain(template)))
    state: TrainState = restored.replace(key=jax.random.wrap_key_data(restored.key))
    return jax.tree.map(lambda leaf, like: leaf if like.size else like, state, template)


def _plain(state: TrainState) -> Any:
    """The state with its typed PRNG key as the integers that it is made of.

    Orbax refuses arrays without entries, such as W_h of a cell that has none: a 0 stands for one.
    """
    plain = state.replace(key=jax.random.key_data(state.key))  # type: ignore[attr-defined]
    places = state.step.sharding
    return jax.tree.map(
        lambda leaf: leaf if leaf.size else jnp.zeros((), leaf.dtype, device=places), plain
    )
