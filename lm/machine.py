"""The machine that runs this: its processor, and where its user's caches are."""

import hashlib
import os
import platform
from pathlib import Path


def user_cache() -> Path:
    """The folder for all that can be made again: in $XDG_CACHE_HOME, or in ~/.cache.

    Raises:
      RuntimeError: the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # one that is not absolute does not count
    return (base if base.is_absolute() else Path.home() / ".cache") / "recurrent-lm"


def describe_processor() -> str:
    """A digest of this machine's processor and what it can do: 12 hexadecimal digits."""
    about = {platform.machine(), platform.processor()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = ("model name", "flags", "Features", "CPU part")
        about |= {line for line in cpuinfo.read_text().splitlines() if line.startswith(names)}
    return hashlib.sha256("\n".join(sorted(about)).encode()).hexdigest()[:12]
