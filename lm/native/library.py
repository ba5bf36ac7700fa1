"""The C of this folder, compiled for this processor by the C compiler that is found here.

Once: the library is kept in the user's cache, under a name that tells source, compiler, processor
and version of JAX. Where there is no compiler, or whatever else goes wrong, there is no library,
and XLA's own products are used: the same to the order of sums, and slower.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import jax

FOLDER = Path(__file__).parent
FUNCTIONS = ("pack", "pack_transposed", "packed_product")
PREFIX = "lm_"  # of the names under which XLA knows them
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared")
SWITCH = "RECURRENT_LM_NATIVE"  # environment variable; 0: XLA's products alone
LONGEST_SECONDS = 60  # that the compiler may take


@cache
def load_library() -> bool:
    """Whether there is a library; its functions are known to XLA from here on."""
    library = find_library()
    for name in FUNCTIONS if library else ():
        call = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(PREFIX + name, call, platform="cpu")
    return library is not None


def find_library() -> ctypes.CDLL | None:
    """The library, made now where it has not been; None where that cannot be."""
    compiler = find_compiler()
    if os.environ.get(SWITCH) == "0" or compiler is None:
        return None
    try:
        return open_library(compiler, cache_folder())
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def find_compiler() -> str | None:
    """The path of $CC, or else of cc, gcc or clang, whichever is found first."""
    for name in (os.environ.get("CC") or "cc", "gcc", "clang"):
        found = shutil.which(name)
        if found is not None:
            return found
    return None


def cache_folder() -> Path:
    """Where compiled libraries are kept.

    Raises:
      RuntimeError: the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recurrent-lm" / "native"


def open_library(compiler: str, folder: Path) -> ctypes.CDLL:
    """The library that is kept in `folder`; made now if it is not there, or damaged.

    Raises:
      OSError: the folder cannot be written, or what was made cannot be opened.
      subprocess.SubprocessError: the compiler fails.
    """
    path = folder / f"{make_key(compiler)}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink(missing_ok=True)
    make_library(compiler, path)
    return ctypes.CDLL(str(path))


def make_library(compiler: str, path: Path) -> None:
    """Compile the library, whole or not at all.

    Raises:
      OSError: the folder cannot be written.
      subprocess.SubprocessError: the compiler fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    sources = [str(source) for source in sorted(FOLDER.glob("*.c"))]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".partial") as work:
        made = Path(work) / path.name
        command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", *sources, "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=LONGEST_SECONDS)
        made.replace(path)


def make_key(compiler: str) -> str:
    """A digest of all that a library is made from: 16 hexadecimal digits."""
    about = [describe_processor(), str(Path(compiler).resolve()), *FLAGS, jax.__version__]
    digest = hashlib.sha256("\n".join(about).encode())
    for source in sorted(FOLDER.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def describe_processor() -> str:
    """A digest of this machine's processor and what it can do: 12 hexadecimal digits."""
    about = {platform.machine(), platform.processor()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = ("model name", "flags", "Features", "CPU part")
        about |= {line for line in cpuinfo.read_text().splitlines() if line.startswith(names)}
    return hashlib.sha256("\n".join(sorted(about)).encode()).hexdigest()[:12]
