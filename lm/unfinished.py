"""A wave of runs that is under way, kept in a file: a kill costs it a minute and not its hours.

Whatever the runs are between two dispatches is in it, so going on gives the same bits. The file
is written whole or not at all, carries a digest of what is trained in its name, and holds arrays
alone: nothing is unpickled. One that cannot be read is as good as none.
"""

import hashlib
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Keep(NamedTuple):
    """Where waves are kept, and how often."""

    folder: Path
    seconds: float = 60.0  # at least, between two times
    reads: str = ""  # which texts and batches: programs that differ in these share the folder


class Unfinished:
    """The file of one wave."""

    def __init__(self, keep: Keep, identity: str):
        """
        Args:
          identity: what tells this wave from any other.
        """
        name = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._path, self._seconds = keep.folder / f"{name}.npz", keep.seconds
        self._saved = time.monotonic()

    def save_if_due(self, tree: Any, host: Mapping[str, np.ndarray]) -> None:
        """Write the device's arrays and the host's, if it is some time since the last.

        Args:
          tree: any pytree of arrays and PRNG keys.
          host: arrays by name.
        """
        if time.monotonic() - self._saved < self._seconds:
            return
        leaves = jax.device_get([_plain(leaf) for leaf in jax.tree.leaves(tree)])
        numbered = {f"leaf{k}": leaf for k, leaf in enumerate(leaves)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **numbered, **host)  # type: ignore[arg-type]
        partial.replace(self._path)
        self._saved = time.monotonic()

    def load(self, like: Any) -> tuple[Any, dict[str, np.ndarray]] | None:
        """(tree, host's arrays) as they were saved, NumPy and PRNG keys; None where there is none.

        Args:
          like: a tree of the same structure and shapes.
        """
        leaves, structure = jax.tree.flatten(like)
        try:
            with np.load(self._path, allow_pickle=False) as file:
                stored = dict(file)
            found = [stored.pop(f"leaf{k}") for k in range(len(leaves))]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        if any(a.shape != jnp.shape(_plain(b)) for a, b in zip(found, leaves, strict=True)):
            return None
        wrapped = [
            jax.random.wrap_key_data(a) if _is_key(b) else a
            for a, b in zip(found, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, wrapped), stored

    def remove(self) -> None:
        """The wave is finished."""
        self._path.unlink(missing_ok=True)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _plain(leaf: Any) -> Any:
    """A PRNG key as the integers that it is made of."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
