"""Loading what `train` made: its configuration, vocabulary and parameters."""

from pathlib import Path
from typing import NamedTuple

import jax

from experiments import run_folder
from experiments.train import Config
from lm import model
from lm.checkpoint import Checkpoints
from lm.data.corpus import resolve
from lm.data.vocabulary import Vocabulary
from lm.train import TrainState, init_state


class Trained(NamedTuple):
    """A run as the experiments that use it need it."""

    folder: Path
    config: Config
    vocabulary: Vocabulary
    sentences: str  # line or prose, as the corpus was cut
    params: model.Params
    step: int


def load_run(run: str) -> Trained:
    """The last checkpoint of a run.

    Raises:
      ValueError: no run, or a run without a checkpoint.
    """
    folder, config, vocabulary = read_run(run)
    state = load_state(run)
    _, sentences = resolve(config.data)
    return Trained(folder, config, vocabulary, sentences, state.params, int(state.step))


def read_run(run: str) -> tuple[Path, Config, Vocabulary]:
    """A run's folder, configuration and vocabulary."""
    folder = run_folder.require(run)
    return folder, run_folder.read_config(folder, Config), run_folder.read_vocabulary(folder)


def load_state(run: str) -> TrainState:
    """The whole state of a run's last checkpoint."""
    folder, config, vocabulary = read_run(run)
    template = init_state(
        jax.random.key(config.seed),
        config.model,
        config.optim,
        len(vocabulary),
        config.data.batch_size,
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(template)
