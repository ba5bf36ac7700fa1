"""Whole models as safetensors files: arrays, and in the metadata all that makes them a model.

format_version   of this list
layout           pytorch (names of `lm.interop.pytorch`) or ours (paths in `model.Params`)
model            JSON of the ModelConfig
vocabulary       JSON: level and units, in id order
about            JSON of whatever else the writer knows

A safetensors file is a JSON header and raw numbers: reading one runs no code. A file that another
library wrote has arrays alone.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from lm import model
from lm.config import ModelConfig
from lm.data.vocabulary import END, UNKNOWN, Vocabulary
from lm.interop import pytorch
from lm.interop.vocabulary import check_units
from lm.tables import unknown_name

Options = TypeVar("Options")
FORMAT_VERSION = 1
LAYOUTS = ("pytorch", "ours")
LEVELS = ("word", "whitespace", "char", "byte")


class ModelFile(NamedTuple):
    """A model with everything that its file says of it."""

    config: ModelConfig
    params: model.Params  # NumPy arrays
    vocabulary: Vocabulary
    about: dict[str, Any]
    layout: str


def write_model(
    path: Path,
    config: ModelConfig,
    params: model.Params,
    vocabulary: Vocabulary,
    *,
    layout: str = "pytorch",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, whole or not at all.

    Args:
      about: further metadata, as JSON can hold it.

    Raises:
      ValueError: a cell or a parameter that the layout lacks; an unknown layout; no safetensors.
    """
    if layout not in LAYOUTS:
        raise ValueError(unknown_name("layout", layout, dict.fromkeys(LAYOUTS)))
    as_layout = pytorch.export_model if layout == "pytorch" else flatten_model
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "layout": layout,
        "model": json.dumps(dataclasses.asdict(config)),
        "vocabulary": json.dumps({"level": vocabulary.level, "units": vocabulary.units}),
        "about": json.dumps(dict(about or {})),
    }
    if layout == "pytorch":
        metadata["format"] = "pt"  # whose conventions the arrays follow: some readers want it
    write_arrays(path, as_layout(config, params), metadata)


def parse_model(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> ModelFile:
    """The model in a file that `write_model` wrote, from what `read_arrays` returns.

    Raises:
      ValueError: metadata that is missing, damaged or of a newer version, or that the arrays
        contradict.
    """
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise ValueError(f"format_version is {version}; this program reads {FORMAT_VERSION}")
    parts = {name: parse_json(metadata, name) for name in ("model", "vocabulary", "about")}
    config = rebuild(ModelConfig(), parts["model"], "model")
    layout = metadata.get("layout", "")
    if layout == "pytorch":
        config, params = check_architecture(config, pytorch.import_model(arrays, config.cell))
        if lacking := sorted(pytorch.export_model(config, params).keys() - arrays.keys()):
            raise ValueError(f"{lacking[0]} is missing; wanted a file as it was written")
    elif layout == "ours":
        params = unflatten_model(config, arrays)
    else:
        raise ValueError(unknown_name("layout", layout, dict.fromkeys(LAYOUTS)))
    vocabulary = parse_vocabulary(parts["vocabulary"], len(params.embedding))
    return ModelFile(config, params, vocabulary, parts["about"], layout)


def check_architecture(
    config: ModelConfig, imported: pytorch.Imported
) -> tuple[ModelConfig, model.Params]:
    """The stored options and the parameters, if the arrays are of such a model.

    That a decoder is the embedding, number by number, does not make an untied model tied.
    """
    found, params = pytorch.describe(imported.config), imported.params
    wanted = pytorch.describe(config)
    if found["tied"] and not wanted["tied"]:
        untied = np.ascontiguousarray(np.asarray(params.embedding).T)
        params = params._replace(softmax_w=untied)  # type: ignore[arg-type]
        found["tied"] = False
    if found != wanted:
        name = next(name for name in wanted if found[name] != wanted[name])
        raise ValueError(
            f"the metadata says {name} is {wanted[name]}, the arrays have {found[name]}; wanted a "
            "file as it was written"
        )
    return config, params


def flatten_model(config: ModelConfig, params: model.Params) -> dict[str, np.ndarray]:
    """Arrays by their paths: embedding, layers.0.w_x, layers.0.vectors.0, softmax_b."""
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}


def unflatten_model(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> model.Params:
    """What `flatten_model` flattened.

    Raises:
      ValueError: names, shapes or dtypes that are not of such a model.
    """
    rows = arrays["embedding"].shape[:1] if "embedding" in arrays else ()
    if not rows:
        raise ValueError("embedding is missing; wanted [V, D]")
    like = jax.eval_shape(lambda key: model.init(key, config, rows[0]), jax.random.key(0))
    wanted = named_leaves(like)
    for name in [*wanted, *arrays]:
        if name not in arrays:
            raise ValueError(f"{name} is missing; wanted {tuple(wanted[name].shape)}")
        if name not in wanted:
            raise ValueError(f"{name} is superfluous; wanted {', '.join(wanted)}")
        came, shape = arrays[name], tuple(wanted[name].shape)
        if came.shape != shape or came.dtype != np.float32:
            raise ValueError(
                f"{name} is {came.dtype} of shape {came.shape}; wanted float32 of shape {shape}"
            )
    params: model.Params = jax.tree.unflatten(
        jax.tree.structure(like), [arrays[name] for name in wanted]
    )
    return pytorch.check_finite(params)


def named_leaves(params: Any) -> dict[str, Any]:
    """Path -> leaf of a pytree, in its order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def parse_json(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """One object of the metadata."""
    try:
        value = json.loads(metadata.get(name, ""))
    except (json.JSONDecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(
            f"the metadata's {name} is no JSON object; wanted a file that convert made"
        )
    return value


def parse_vocabulary(stored: Mapping[str, Any], rows: int) -> Vocabulary:
    """The vocabulary in the metadata, if it is one of ours with a unit a row."""
    units, level = stored.get("units"), stored.get("level")
    if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
        raise ValueError("the metadata's vocabulary has no units; wanted a list of texts")
    if level not in LEVELS:
        raise ValueError(
            f"the vocabulary's level is {level!r:.40}; wanted one of {', '.join(LEVELS)}"
        )
    check_units(units, rows)
    if units[:2] != [UNKNOWN, END]:
        raise ValueError(f"the vocabulary starts with {units[:2]}; wanted {UNKNOWN} and {END}")
    return Vocabulary(tuple(units), level)


def rebuild(default: Options, stored: Any, name: str) -> Options:
    """Options from the dictionary that `asdict` and JSON made of them, each of its own type.

    Args:
      default: an instance; what `stored` lacks, being older, keeps its value.
      name: what they are called in messages.

    Raises:
      ValueError: an option that is unknown, of another type, or out of its limits.
    """
    fields = {field.name for field in dataclasses.fields(default)}  # type: ignore[arg-type]
    if not isinstance(stored, dict):
        raise ValueError(f"{name} is {stored!r:.80}; wanted options")
    if unknown := sorted(stored.keys() - fields):
        raise ValueError(f"{name} has {unknown[0]}, which this version lacks; update, or remove it")
    values = {key: retype(getattr(default, key), value, key) for key, value in stored.items()}
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def retype(default: Any, value: Any, name: str) -> Any:
    """One option's value from JSON, of the type of its default."""
    if dataclasses.is_dataclass(default):
        return rebuild(default, value, name)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, float) and value == "inf":
        return float("inf")
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        wanted = type(default).__name__
        raise ValueError(f"{name} is {value!r:.80}; wanted a value of type {wanted}")
    return value


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    from_numpy = load_library("safetensors.numpy")
    partial = path.with_name(path.name + ".partial")
    # The writer copies memory as it lies, whatever the strides say.
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        # Not save_file, whose files are for their owner's eyes alone.
        partial.write_bytes(from_numpy.save(dense, metadata=dict(metadata)))
        partial.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata) of any safetensors file.

    Raises:
      ValueError: missing, damaged, or a dtype that NumPy lacks; one line with the file's name.
    """
    safetensors = load_library("safetensors")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a safetensors file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, file.metadata() or {}
    except (safetensors.SafetensorError, OSError, AttributeError, TypeError) as error:
        # AttributeError, TypeError: how safetensors meets a dtype that NumPy has no name for.
        reason = str(error).strip().splitlines()[0][:150]
        raise ValueError(f"{path}: no whole safetensors file ({reason})") from None


def load_library(name: str) -> ModuleType:
    """safetensors, if it is installed.

    Raises:
      ValueError: it is not; says how to get it.
    """
    import importlib
    import sys

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(
            "this needs safetensors, which is not installed; install it with: "
            f"uv pip install --python {sys.executable} safetensors   (or: {sys.executable} -m pip "
            "install safetensors)"
        ) from None
