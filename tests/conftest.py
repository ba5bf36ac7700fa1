"""Strict JAX for every test: no silent promotion of dtype or rank; float64 where asked for."""

import gc
import os
import warnings
from pathlib import Path

from quick_compiling import QUICKLY

os.environ.update(QUICKLY | os.environ)

import jax
import pytest

from experiments import compiled

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.devices()  # one of a CPU, whatever a command that is called in this process would make of it


def pytest_configure(config):
    """One compilation cache for the suite's workers and the processes they start.

    It is kept, as pytest's own cache is: what is compiled again in the next run is what changed.
    (`--cache-clear` empties both.)
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = config.cache.mkdir("compiled") / compiled.describe_processor()
    folder.mkdir(exist_ok=True)
    compiled.remove_torn(folder)
    compiled.remove_oldest(folder.parent, compiled.LIMIT_BYTES)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # This process, which runs the tests where there are no workers, has read its environment.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_finish():
    """Modules and tests stay until the end: the garbage collector need not walk them each time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        # Orbax asks for a sharding file that a one-process checkpoint does not need.
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        # One worker reads what another is still writing: JAX then compiles it anew.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        yield


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def data_dir():
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the corpora that may not be shipped are not at {SHARED_DATA}")
    return SHARED_DATA
