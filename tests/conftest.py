"""Strict JAX for every test: no silent promotion of dtype or rank; float64 where asked for."""

import warnings
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        # Orbax asks for a sharding file that a one-process checkpoint does not need.
        warnings.filterwarnings("ignore", message="Sharding info not provided")
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
