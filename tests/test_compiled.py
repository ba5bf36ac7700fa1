"""Compiled programs that outlive the process, and the count of them before the first step."""

import json
import os
import time
import types
import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest
from command_line import TINY, call, run, write_book

from experiments import compiled, flags
from experiments.fit.startup import Startup


@dataclass(frozen=True)
class Nothing:
    """No options of its own."""


def write_entry(folder, name, content, age=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-cache"
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def no_cache():
    """JAX without a folder for compiled programs, for the length of a test."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_a_folder_of_the_processor(no_cache, tmp_path):
    compiled.keep_compiled(tmp_path)
    folder = tmp_path / "compiled" / compiled.describe_processor()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert (folder / compiled.CHECKED).exists()
    assert compiled.describe_processor() == compiled.describe_processor()


def test_a_folder_that_is_chosen_already_stays(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compiled.keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert not (tmp_path / "compiled").exists()


def test_a_folder_that_cannot_be_made_stops_nothing(no_cache, tmp_path):
    (tmp_path / "compiled").write_text("in the way")
    compiled.keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir is None


def test_torn_entries_of_another_compression_are_too(tmp_path, monkeypatch):
    """zstd, of Python 3.14 or zstandard: a stand-in with its two names."""

    class ZstdError(Exception):
        pass

    def decompress(data):
        if not data.endswith(b"whole"):
            raise ZstdError("Src size is incorrect")

    module = types.SimpleNamespace(ZstdError=ZstdError, decompress=decompress)
    monkeypatch.setattr(compiled, "find_zstd", lambda: module)
    good = write_entry(tmp_path, "good", b"\x28\xb5\x2f\xfd whole")
    torn = write_entry(tmp_path, "torn", b"\x28\xb5\x2f\xfd who")
    compiled.remove_torn(tmp_path)
    assert good.exists()
    assert not torn.exists()


def test_torn_entries_are_removed(tmp_path):
    whole = zlib.compress(os.urandom(1000))
    good = write_entry(tmp_path, "good", whole)
    other = write_entry(tmp_path, "other", b"of no method that is known")
    torn = [write_entry(tmp_path, "torn", whole[:500]), write_entry(tmp_path, "empty", b"")]
    compiled.remove_torn(tmp_path)
    assert good.exists()
    assert other.exists()
    assert not any(path.exists() for path in torn)
    # What was looked at before is not read again.
    seen = write_entry(tmp_path, "seen", whole[:500], age=60)
    late = write_entry(tmp_path, "late", whole[:500], age=-1)
    compiled.remove_torn(tmp_path)
    assert seen.exists()
    assert not late.exists()


def test_the_entries_that_were_unused_for_longest_go_first(tmp_path):
    paths = [
        write_entry(tmp_path / kind, f"p{age}", b"x" * 100, age)
        for kind, age in (("a", 3), ("b", 1), ("a", 2), ("b", 4))
    ]
    compiled.remove_oldest(tmp_path, 250)
    assert [path.exists() for path in paths] == [False, True, True, False]


def test_every_experiment_can_do_without():
    arguments = ["--nocompilation_cache"]
    assert not flags.parse_all(Nothing, arguments, "x", "")[1].compilation_cache
    assert flags.parse_all(Nothing, [], "x", "")[1].compilation_cache
    done = call("train", "--compilation_cach=0")
    assert done.returncode == 2
    assert "compilation_cache" in done.stderr


def test_compilations_are_counted_until_the_first_step():
    def block(x):
        return jnp.sin(x) * 1.2345  # of no other test: not compiled yet

    began = time.monotonic() - 10
    with Startup(began) as startup:
        startup.watch(jax.jit(block))(jnp.float32(3))
        time.sleep(0.2)
        took = startup.finish(4)
    jax.jit(lambda x: x * 5.4321)(jnp.float32(3))  # closed: not counted
    assert took.programs >= 1
    assert 0 <= took.programs_from_cache <= took.programs
    assert 0 < took.compile_seconds < took.first_step_seconds
    assert 10.05 < took.first_step_seconds < 40
    assert startup.finish(1).programs == took.programs
    # A fourth of the dispatch's 0.2 s and more is the first step's.
    assert startup.finish(1).first_step_seconds > took.first_step_seconds + 0.1
    assert f"{took.programs} programs" in str(took)


@pytest.mark.whole
def test_a_second_run_compiles_nothing(tmp_path):
    """Its programs are those of the first; a torn one is made anew; without a folder it trains."""
    book = write_book(tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMP")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    environment.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)

    def train(name, *more):
        folder = tmp_path / name
        flags = [f"--corpus={book}", f"--run={folder}", "--steps=7", *TINY, *more]
        done = run("train", *flags, env=environment)
        assert done.returncode == 0, done.stderr
        assert "machine" not in done.stderr.lower()  # no complaint about the processor
        assert "Warning" not in done.stderr
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert 0 < line["compile_seconds"] < line["first_step_seconds"]
        assert "first step after" in done.stdout + done.stderr
        results = json.loads((folder / "results.json").read_text())
        return line["programs"], line["programs_from_cache"], results

    programs, hits, results = train("first")
    assert (programs > 10, hits) == (True, 0)
    assert train("second", "--seed=0") == (programs, programs, results)
    (entry,) = (tmp_path / "cache").glob("recurrent-lm/compiled/*/jit_run_steps-*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:1000])
    # Another rate, clip and seed: the same programs.
    other = train("third", "--learning_rate=3", "--clip=1", "--seed=5")
    assert other[:2] == (programs, programs - 1)
    assert len(entry.read_bytes()) > len(whole) / 2
    assert train("fourth", "--nocompilation_cache")[1:] == (0, results)
    environment["XDG_CACHE_HOME"] = str(book)  # a file: no folder can be made in it
    assert train("fifth")[1:] == (0, results)
