"""Checkpoints by Orbax: save, restore, resume to the same bits.

A checkpoint is a whole TrainState: parameters, optimizer, carried state, PRNG key, step.
Orbax writes each into a temporary folder and renames it when complete, so a kill leaves
either the new checkpoint or the one before. Nothing is unpickled.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from lm.train import TrainState


class Checkpoints:
    """The checkpoints of one run, the last `keep` of them."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, off the main thread; `wait` or leaving `with` makes sure of it.

        The arrays are copied to the host before this returns, so the state may be donated.
        """
        self._manager.save(int(state.step), args=ocp.args.StandardSave(_plain(state)), force=True)

    def wait(self) -> None:
        """Block until what was saved lies on the disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints past `step`, so that training can save them anew."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

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
                args = ocp.args.StandardRestore(_plain(template))
                restored = self._manager.restore(step, args=args)
                return restored.replace(key=jax.random.wrap_key_data(restored.key))
            except Exception as error:  # Orbax and its storage raise many kinds
                reasons.append(f"{step}: {str(error).strip().splitlines()[0][:150]}")
        raise ValueError(
            f"{self.folder}: no checkpoint can be read ({'; '.join(reasons)}); wanted one saved "
            "with this configuration"
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait()
        self._manager.close()


def _plain(state: TrainState) -> Any:
    """The state with its typed PRNG key as the integers that it is made of."""
    return state.replace(key=jax.random.key_data(state.key))  # type: ignore[attr-defined]
