"""A run is a folder: everything that made it and everything it found.

config.json      the resolved configuration and the command
versions.json    Python, packages, device, matmul precision, commit, corpus
vocabulary.json  the model's units
metrics.jsonl    one line a measurement, as training went
tensorboard/     the same curves for TensorBoard
checkpoints/     Orbax: the last two
best/            and the one of least validation loss
results.json, results.npz      what plots and reports read
figures/         PNG and SVG
"""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments import flags
from lm.data.vocabulary import Vocabulary

Config = TypeVar("Config")
GO_ON = ("train", "sweep", "ablation")  # those whose runs can be taken up again
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def create(run: str, experiment: str) -> Path:
    """Make the folder of a new run.

    Args:
      run: its path; empty for runs/<experiment>-<date>-<time>.

    Raises:
      ValueError: there is a run in it already, or it cannot be made or written.
    """
    folder = Path(run)
    if run and (folder / "config.json").exists():
        on = "go on with it by --resume, " if experiment in GO_ON else ""
        raise ValueError(f"run {folder} exists; give another --run, {on}or remove it first")
    try:
        if not run:
            folder = claim_new(Path("runs"), f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}")
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run {folder} cannot be written ({error.strerror}); give a --run that can"
        ) from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"run {folder} cannot be written; give a --run that can")
    return folder


def claim_new(parent: Path, name: str) -> Path:
    """Make parent/name, or parent/name-2 and so on: a folder that no other process has."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def require(run: str) -> Path:
    """The folder of a run that exists.

    Raises:
      ValueError: no run is there; names those that are nearby.
    """
    folder = Path(run)
    if run and (folder / "config.json").exists():
        return folder
    nearby = sorted(str(p.parent) for p in Path("runs").glob("*/config.json"))
    known = f"; there are: {', '.join(nearby)}" if nearby else ""
    came = f"{run} holds no run" if run else "run is empty"
    raise ValueError(f"{came}; wanted the folder of a trained run, as --run=runs/NAME{known}")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; infinities become "inf" and "-inf", NaN null."""
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def finite(value: Any) -> Any:
    """A value as strict JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, float) and np.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
    partial.replace(path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write_start(folder: Path, config: Any, corpus: Mapping[str, Any]) -> None:
    """What is known before the first step: configuration, command, versions, corpus."""
    import jax

    from lm.native.library import load_library

    in_c = jax.default_backend() == "cpu" and load_library()
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "matmul_precision": flags.MATMUL_PRECISION,
        "native": in_c,  # whether lm.native does its part
        "commit": git_commit(),
        "corpus": dict(corpus),
    }
    write_json(folder / "versions.json", versions)
    command = [Path(sys.argv[0]).stem, *sys.argv[1:]]
    # Last, since its presence is what makes the folder a run.
    write_json(folder / "config.json", {"command": command, "config": dataclasses.asdict(config)})


def rewrite_config(folder: Path, config: Any) -> None:
    """The configuration of a run that goes on, changed as it may be; its command stays."""
    command = read_json(folder / "config.json")["command"]
    write_json(folder / "config.json", {"command": command, "config": dataclasses.asdict(config)})


def read_config(folder: Path, config_class: type[Config], maker: str = "train") -> Config:
    """The configuration of a run.

    Args:
      maker: the experiment whose configuration it is.

    Raises:
      ValueError: it does not fit the dataclass: made by another version or experiment.
    """
    try:
        stored = read_json(folder / "config.json")["config"]
        return from_dict(config_class, stored)
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(
            f"{folder} holds no run of {maker}, or one of another version; wanted the folder that "
            f"./launch.sh {maker} made"
        ) from None


def from_dict(config_class: Any, stored: Mapping[str, Any]) -> Any:
    """A dataclass from the dictionary that `asdict` and JSON made of it; what lacks is default."""
    fields = {}
    known = dataclasses.fields(config_class)
    if not stored.keys() <= {field.name for field in known}:
        raise KeyError  # another experiment's
    for field in known:
        if field.name not in stored:  # an option that is younger than the run
            continue
        value = stored[field.name]
        if isinstance(value, Mapping):
            value = from_dict(field.type, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif value == "inf" and field.type is float:
            value = float("inf")
        fields[field.name] = value
    return config_class(**fields)


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    write_json(folder / "vocabulary.json", {"level": vocabulary.level, "units": vocabulary.units})


def read_vocabulary(folder: Path) -> Vocabulary:
    stored = read_json(folder / "vocabulary.json")
    return Vocabulary(tuple(stored["units"]), stored["level"])


class MetricsLog:
    """Appends one JSON line a measurement; after a kill, a torn last line is dropped."""

    def __init__(self, folder: Path):
        self._path = folder / "metrics.jsonl"

    def keep_until(self, step: int) -> None:
        """Drop what a resumed run will measure again: lines past `step`, and a torn line."""
        if self._path.exists():
            lines = self.read(self._path)
            kept = [json.dumps(line) for line in lines if line.get("step", 0) <= step]
            write_text(self._path, "".join(line + "\n" for line in kept))

    def write(self, **measured: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(measured)) + "\n")

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All whole lines; none where there is no file."""
        lines: list[dict[str, Any]] = []
        if not path.exists():
            return lines
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines


def git_commit() -> str | None:
    """The commit of the code, or None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
