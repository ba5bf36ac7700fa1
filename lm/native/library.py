"""The C of this folder, compiled for this processor by the C compiler that is found here.

Once: a library is kept in the user's cache, under a name that tells source, compiler, processor and
version of JAX. One has what all cells share, and each cell's loops are in another. A process that
cannot keep them there makes its own. Where there is no compiler, or whatever else goes wrong, there
is no library, and XLA does the same, to float32's rounding, and slower.

What `lm` is elsewhere without, a file that it writes and a cache in its process, is here alone: a
program can be compiled for XLA only once the functions that it calls are there.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import jax
import jaxlib

from lm.machine import describe_processor, user_cache

FOLDER = Path(__file__).parent
FUNCTIONS = ("pack", "pack_transposed", "packed_product", "log_normalizer", "softmax_gradient")
CELL_FUNCTIONS = ("run_cell", "pull_cell")  # of the library of a cell
PREFIX = "lm_"  # of the names under which XLA knows them
MACHINES = ("x86_64", "AMD64")  # of which vectors.h knows the registers
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared")
SWITCH = "RECURRENT_LM_NATIVE"  # environment variable; 0: XLA's products alone
LONGEST_SECONDS = 20  # that the compiler may take; it takes one
LOCK = threading.Lock()


def load_library() -> bool:
    """Whether there is a library; its functions are known to XLA from here on."""
    with LOCK:  # two threads that trace at once make one between them
        return _load_once()


def load_cell(code: str) -> str | None:
    """What the names of a cell's functions end with, known to XLA from here on; None: no library.

    Args:
      code: C, as lm.native.cell_code writes it.
    """
    with LOCK:
        suffix = "_" + hashlib.sha256(code.encode()).hexdigest()[:16]
        return suffix if _load_once(code, suffix) else None


@cache
def _load_once(code: str = "", suffix: str = "") -> bool:
    try:
        library = find_library(code)
        for name in () if library is None else CELL_FUNCTIONS if code else FUNCTIONS:
            function = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(PREFIX + name + suffix, function, platform="cpu")
    except Exception:  # whatever it is, XLA's products are there
        return False
    return library is not None


def find_library(code: str = "") -> ctypes.CDLL | None:
    """A library, made now where it has not been; None where that cannot be.

    Args:
      code: of a cell; empty: the library of what all cells have in common.
    """
    compiler = find_compiler()
    if compiler is None or os.environ.get(SWITCH) == "0" or platform.machine() not in MACHINES:
        return None
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        try:
            return open_library(compiler, user_cache() / "native", code)
        except (OSError, RuntimeError):  # a folder that is no use: one for this process alone
            with tempfile.TemporaryDirectory(prefix="recurrent-lm-") as folder:
                return open_library(compiler, Path(folder), code)  # open when its file is gone
    return None


def find_compiler() -> str | None:
    """The path of $CC, or else of cc, gcc or clang, whichever is found first."""
    for name in (os.environ.get("CC") or "cc", "gcc", "clang"):
        found = shutil.which(name)
        if found is not None:
            return found
    return None


def open_library(compiler: str, folder: Path, code: str = "") -> ctypes.CDLL:
    """The library that is kept in `folder`; made now if it is not there, or damaged.

    Raises:
      OSError: the folder cannot be written, others can write to it, or what was made cannot be
        opened.
      subprocess.SubprocessError: the compiler fails.
    """
    path = folder / f"{make_key(compiler, code)}.so"
    if not path.exists():
        make_library(compiler, path, code)
    refuse_of_others(folder)
    refuse_of_others(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        make_library(compiler, path, code, instead=True)
        return ctypes.CDLL(str(path))


def refuse_of_others(path: Path) -> None:
    """Raise OSError where another user may have written what is about to be run."""
    about = path.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"{path} is another user's, or others may write to it")


def make_library(compiler: str, path: Path, code: str = "", instead: bool = False) -> None:
    """Compile the library, whole or not at all.

    Of several processes that do so at once the first one's stays, since the others may have opened
    it: on a network's disk, a file that is replaced is lost to who has it open.

    Args:
      instead: of one that is there, and damaged.

    Raises:
      OSError: the folder cannot be written.
      subprocess.SubprocessError: the compiler fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    sources = sorted(FOLDER.glob("*.c"))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".partial") as work:
        made = Path(work) / path.name
        if code:
            sources = [Path(work) / "cell.c"]
            sources[0].write_text(code)
        include = f"-I{FOLDER}", f"-I{jax.ffi.include_dir()}"
        command = [compiler, *FLAGS, *include, *map(str, sources), "-o", str(made), "-lm"]
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONGEST_SECONDS,
        )
        if instead:
            made.replace(path)
        elif not path.exists():
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(made)


def make_key(compiler: str, code: str = "") -> str:
    """A digest of all that a library is made from: 16 hexadecimal digits."""
    versions = jax.__version__, jaxlib.__version__
    about = [describe_processor(), str(Path(compiler).resolve()), *FLAGS, *versions]
    digest = hashlib.sha256("\n".join([*about, code]).encode())
    for source in sorted(FOLDER.glob("*.h" if code else "*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
