"""Compiled programs, kept on disk for the next process by JAX's persistent compilation cache.

The folder is the cache of this user: it may be removed at any time, and whatever goes wrong with
it costs a compilation, never the run. It has a folder for each kind of processor, since programs
made for one may not run on another that shares the disk.
"""

import importlib
import os
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax

from lm.machine import describe_processor

LIMIT_BYTES = 1 << 30
CHECKED = "checked"  # its time is that of the last look for entries that are torn


def keep_compiled(cache: Path) -> None:
    """Keep every program that is compiled from here on in cache/compiled, and look there first.

    Where JAX has a folder for them already, as from $JAX_COMPILATION_CACHE_DIR, that one stays.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache / "compiled" / describe_processor()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_torn(folder)
        remove_oldest(folder.parent, LIMIT_BYTES)
    except OSError:
        return
    # JAX warns of an entry that it cannot read or write, and compiles.
    warnings.filterwarnings("ignore", message="Error (read|writ)ing persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The many small programs that a run begins with take as long as its large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def remove_torn(folder: Path) -> None:
    """Remove entries that a killed process has left half-written: JAX would never replace them."""
    marker, now = folder / CHECKED, time.time()
    since = marker.stat().st_mtime if marker.exists() else 0.0
    for entry in folder.glob("*-cache"):
        if entry.stat().st_mtime >= since and is_torn(entry.read_bytes()):
            entry.unlink(missing_ok=True)
    marker.touch()
    os.utime(marker, (now, now))


def is_torn(entry: bytes) -> bool:
    """Whether a compressed program breaks off."""
    if entry[:1] in (b"", b"\x78"):
        module: Any = zlib
    elif entry[:4] == b"\x28\xb5\x2f\xfd":
        module = find_zstd()
    else:
        return False  # compressed by a method that is not known here
    try:
        if module is not None:
            module.decompress(entry)
    except (zlib.error, getattr(module, "ZstdError", zlib.error)):
        return True
    return False


def find_zstd() -> Any:
    """The module that JAX compresses with where it finds one: of Python 3.14, or zstandard."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def remove_oldest(folder: Path, limit: int) -> None:
    """Remove the entries that have not been used for longest, until `limit` bytes are left."""
    entries = [(path, path.stat()) for path in folder.glob("*/*-cache")]
    entries.sort(key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime))
    excess = sum(stat.st_size for _, stat in entries) - limit
    for path, stat in entries:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= stat.st_size
