"""A trained run as one file that other programs read, and their models as runs.

A safetensors file holds the model with PyTorch's names (examples/word_language_model; with layers
of different sizes AWD-LSTM's), its options and its vocabulary. A file that another program wrote
holds arrays alone: --vocabulary names its units, --cell says which RNN it is where the shapes
cannot tell.

    ./launch.sh convert --run=runs/my_book --output=my_book.safetensors
    ./launch.sh convert --input=my_book.safetensors --run=runs/copy
    ./launch.sh convert --input=model.pt --vocabulary=words.txt --corpus=ptb --run=runs/foreign

    from safetensors.torch import load_file                    # and there:
    network.load_state_dict(load_file("my_book.safetensors"))

What is imported is a run: evaluate, generate, walkthrough and gradient_flow --checkpoint take it.
Its text is read as here: the first input is the end of a sentence, so that each token is predicted
once, and each sentence ends with one. A PyTorch file (.pt) is read if torch is installed, as
numbers only (weights_only): a pickled module is refused.
"""

# ruff: noqa: E402
import dataclasses
from dataclasses import dataclass

from experiments import flags
from lm.config import DataConfig, option, validate

READ_WITH = frozenset({"corpus", "data_dir", "level", "sentences", "batching"})


@dataclass(frozen=True)
class Config:
    """Options of convert."""

    run: str = option("", "folder of the run: a trained one with output, a new one with input")
    output: str = option("", "safetensors file to be made of a run")
    input: str = option("", "safetensors or PyTorch file to be made a run of")
    layout: str = option(
        "pytorch",
        "output: names of arrays; ours: for cells that PyTorch lacks",
        choices=("pytorch", "ours"),
    )
    checkpoint: str = option(
        "best", "output: best by validation, or the last", choices=("best", "last")
    )
    cell: str = option(
        "auto",
        "input: cell of a foreign file, lstm, gru, rnn (tanh) or irnn (ReLU); auto: by the shapes",
        choices=("auto", "lstm", "gru", "rnn", "irnn"),
    )
    vocabulary: str = option(
        "",
        "input: units of a foreign file in id order: a text file of one a line, or a JSON list "
        "(.json)",
    )
    unknown: str = option(
        "<unk>", "input: the unknown unit in that vocabulary; empty: it has none, and gets one"
    )
    end: str = option("<eos>", "input: the end of a sentence in that vocabulary")
    # With input: the text that the run is of. A named corpus's own level is what auto means.
    data: DataConfig = DataConfig(corpus="", level="auto")
    omit = tuple({field.name for field in dataclasses.fields(DataConfig)} - READ_WITH)

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run_folder, train
from experiments.flow.sources import given_options
from experiments.trained import load_run
from lm import model
from lm.checkpoint import Checkpoints
from lm.data.corpus import CORPORA, load_corpus, resolve
from lm.data.text import read_text
from lm.data.vocabulary import Vocabulary
from lm.interop import pytorch
from lm.interop.files import parse_model, read_arrays, rebuild, write_model
from lm.interop.vocabulary import reorder_vocabulary
from lm.train import init_state

FOREIGN = frozenset({"cell", "vocabulary", "unknown", "end"})  # options that our own files answer
NO_CORPUS = "none: imported without --corpus"
TORCH = (2, 6)  # before it, weights_only could be made to run code (CVE-2025-32434)
TORCH_SIGNS = (b"PK\x03\x04", b"\x80")  # its files' first bytes: a zip archive, formerly a pickle
HEADER_AT, HEADER = 8, b"{"  # of safetensors, after its length, which may be any bytes
STATE_DICTS = ("state_dict", "model_state_dict", "model")  # names of what a checkpoint nests


class Run(NamedTuple):
    """A run that is about to be made."""

    config: train.Config
    params: model.Params
    vocabulary: Vocabulary
    corpus: dict[str, Any]  # name and sha256
    step: int
    notes: tuple[str, ...]


def run(config: Config) -> Path:
    """Export or import. Returns what was made: a file, or a run's folder."""
    if bool(config.input) == bool(config.output):
        came = "both are" if config.input else "neither is"
        raise ValueError(f"input and output: {came} given; wanted one, with --run=FOLDER")
    if config.output:
        refuse_idle(config, FOREIGN | READ_WITH | {"input"}, "output")
        return export_run(config)
    refuse_idle(config, frozenset({"layout", "checkpoint"}), "input")
    return import_run(config)


def refuse_idle(config: Config, idle: frozenset[str], with_what: str) -> None:
    """Raise ValueError for an option that was given and does nothing."""
    for name, value in given_options(config):
        if name in idle:
            raise ValueError(
                f"{name} is {value}, which does nothing with {with_what}; leave it out"
            )


def export_run(config: Config) -> Path:
    """A run's parameters, options and vocabulary as a safetensors file."""
    path = Path(config.output)
    if path.exists():
        raise ValueError(f"output {path} exists; give another --output, or remove it first")
    if not path.parent.is_dir():
        raise ValueError(f"output {path}: there is no folder {path.parent}; wanted one that exists")
    trained = load_run(config.run, config.checkpoint)
    about = {
        "config": dataclasses.asdict(dataclasses.replace(trained.config, run="")),
        "corpus": run_folder.read_json(trained.folder / "versions.json")["corpus"],
        "step": trained.step,
    }
    write_model(
        path,
        trained.config.model,
        trained.params,
        trained.vocabulary,
        layout=config.layout,
        about=run_folder.finite(about),
    )
    print(
        f"{path}: {trained.config.model.cell}, {len(trained.vocabulary):,} units, "
        f"{model.count_parameters(trained.params):,} parameters, {path.stat().st_size:,} bytes"
    )
    return path


def import_run(config: Config) -> Path:
    """A file's model as a run."""
    path = Path(config.input)
    if not path.is_file():
        raise ValueError(f"input {path}: no such file; wanted a safetensors or PyTorch file")
    arrays, metadata = (read_torch(path), {}) if is_torch(path) else read_arrays(path)
    try:
        if "format_version" in metadata:
            made = restore(config, arrays, metadata)
        else:
            made = adopt(config, arrays)
    except ValueError as error:
        raise ValueError(f"input {path}: {error}") from None
    folder = write_run(config.run, made)
    source = {"file": str(path), "sha256": hash_file(path), "notes": made.notes}
    run_folder.write_json(folder / "import.json", source)
    for note in made.notes:
        print(f"note: {note}")
    found = made.config.model
    sizes = " ".join(map(str, found.layer_sizes))
    print(
        f"{found.cell}, layers of {sizes} units, embedding {found.embedding_size}"
        f"{', tied' if found.tied else ''}, {len(made.vocabulary):,} units of level "
        f"{made.vocabulary.level}, {model.count_parameters(made.params):,} parameters"
    )
    text = "" if made.config.data.corpus != NO_CORPUS else " --text=FILE"
    print(f"run: {folder}    evaluate it: ./launch.sh evaluate --run={folder}{text}")
    return folder


def restore(config: Config, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> Run:
    """A model that this program wrote, with the options and the corpus that it was trained with."""
    refuse_idle(config, FOREIGN, "a file that holds its own vocabulary and cell")
    stored = parse_model(arrays, metadata)
    about = stored.about
    if not about:  # of the library, not of a run
        return describe_run(config, stored.config, stored.params, stored.vocabulary, ())
    trained = rebuild(train.Config(), about.get("config"), "config")
    corpus, step = about.get("corpus"), about.get("step")
    if not isinstance(corpus, dict) or type(step) is not int or not 0 <= step < 2**31:
        raise ValueError(
            "the metadata lacks the run's corpus or step; wanted a file as it was made"
        )
    given = {name: value for name, value in given_options(config) if name in READ_WITH}
    data = dataclasses.replace(trained.data, **given)
    trained = dataclasses.replace(trained, model=stored.config, data=data, resume=False)
    if given:
        corpus = name_corpus(data, stored.vocabulary)
    return Run(trained, stored.params, stored.vocabulary, corpus, step, ())


def adopt(config: Config, arrays: dict[str, np.ndarray]) -> Run:
    """A model of another program's, its vocabulary put into our order."""
    if not config.vocabulary:
        raise ValueError(
            "the file holds no vocabulary; wanted --vocabulary=FILE, one unit a line in id order, "
            "or a JSON list"
        )
    found = pytorch.import_model(arrays, config.cell)
    params, units = reorder_vocabulary(
        found.params, read_units(Path(config.vocabulary)), unknown=config.unknown, end=config.end
    )
    level = config.data.level
    if level == "auto":
        level = resolve(config.data)[0] if config.data.corpus in CORPORA else "whitespace"
    notes = list(found.notes)
    if level != config.data.level:
        notes.append(f"the vocabulary is taken for units of level {level}; --level says otherwise")
    if not config.unknown:
        notes.append("an unknown unit was added, of probability 0: unknown tokens cost 1e9 nats")
    made = describe_run(config, found.config, params, Vocabulary(units, level), tuple(notes))
    return made


def describe_run(
    config: Config,
    network: Any,
    params: model.Params,
    vocabulary: Vocabulary,
    notes: tuple[str, ...],
) -> Run:
    """A run of which nothing but the model is known; its text is what the options say."""
    data = dataclasses.replace(config.data, level=vocabulary.level)
    corpus = name_corpus(data, vocabulary)
    data = dataclasses.replace(data, corpus=corpus["name"])
    made = train.Config(model=network, data=data)
    return Run(made, params, vocabulary, corpus, 0, notes)


def name_corpus(data: DataConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Name and sha256 of the corpus, for versions.json, where evaluate looks for them."""
    if not data.corpus or data.corpus == NO_CORPUS:
        return {"name": NO_CORPUS, "sha256": ""}
    corpus = load_corpus(data, vocabulary)
    return {"name": corpus.name, "sha256": corpus.sha256}


def write_run(run: str, made: Run) -> Path:
    """The folder of a run with one checkpoint; it is a run once all of it is there."""
    folder = run_folder.create(run, "convert")
    config = dataclasses.replace(made.config, run=str(folder))
    run_folder.write_vocabulary(folder, made.vocabulary)
    state = init_state(
        jax.random.key(config.seed),
        config.model,
        config.optim,
        len(made.vocabulary),
        config.data.batch_size,
    )
    params = jax.tree.map(jnp.asarray, made.params)
    state = state.replace(params=params, step=jnp.int32(made.step))  # type: ignore[attr-defined]
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.steps():
            raise ValueError(f"run {folder} holds checkpoints already; give another --run")
        checkpoints.save(state)
    run_folder.write_start(folder, config, made.corpus)
    return folder


def read_units(path: Path) -> tuple[str, ...]:
    """The units of a vocabulary file, in id order.

    Raises:
      ValueError: a file that cannot be read, or JSON that is no list of texts.
    """
    text = read_text(path)
    if path.suffix != ".json":
        return tuple(text.removesuffix("\n").split("\n"))
    try:
        units = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"vocabulary {path}: no JSON ({error})") from None
    if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
        raise ValueError(f"vocabulary {path}: wanted a JSON list of texts, in id order")
    return tuple(units)


def is_torch(path: Path) -> bool:
    """Whether a file is one of `torch.save`, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(HEADER_AT + len(HEADER))
    return start.startswith(TORCH_SIGNS) and not start.endswith(HEADER, HEADER_AT)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The state dict in a file that `torch.save` wrote. Nothing but numbers is unpickled.

    Raises:
      ValueError: no torch, or one that is not safe; a file that holds more than tensors.
    """
    how = "safetensors.torch.save_file(model.state_dict(), FILE)"
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            f"input {path}: a PyTorch file, which takes torch to read; install torch, or save the "
            f"model there by {how}"
        ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH:
        raise ValueError(
            f"input {path}: torch {torch.__version__} may run code that a file holds; wanted 2.6 "
            f"or newer, or a file made by {how}"
        )
    try:
        with warnings.catch_warnings():  # one line says what is wrong
            warnings.simplefilter("ignore")
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own kinds
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else "damaged"
        raise ValueError(
            f"input {path}: no state dict ({reason}); wanted torch.save(model.state_dict(), FILE), "
            f"or {how}"
        ) from None
    if isinstance(stored, dict):
        nested = [stored[name] for name in STATE_DICTS if isinstance(stored.get(name), dict)]
        stored = nested[0] if nested else stored
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in stored.items()
    ):
        raise ValueError(f"input {path}: wanted a state dict, names to tensors, and nothing else")
    return {name: to_numpy(path, name, tensor) for name, tensor in stored.items()}


def to_numpy(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A tensor as an array of its own dtype."""
    import torch

    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise ValueError(
            f"input {path}: {name} is {tensor.dtype}, {tensor.layout}; wanted dense floating point"
        )
    if tensor.dtype == torch.bfloat16:  # which NumPy has from ml_dtypes, and torch does not know
        return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    array: np.ndarray = tensor.detach().numpy()
    return array


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
