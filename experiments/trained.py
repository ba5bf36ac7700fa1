"""Loading what `train` made: its configuration, vocabulary and parameters."""

import sys
from pathlib import Path
from typing import NamedTuple

import jax

from experiments import run_folder
from experiments.fit.config import Config
from lm import model
from lm.checkpoint import Checkpoints
from lm.data.corpus import resolve
from lm.data.vocabulary import Vocabulary
from lm.train import TrainState, init_state

WHICH = ("best", "last")


class Trained(NamedTuple):
    """A run as the experiments that use it need it."""

    folder: Path
    config: Config
    vocabulary: Vocabulary
    sentences: str  # line or prose, as the corpus was cut
    params: model.Params
    step: int


def load_run(run: str, checkpoint: str = "best") -> Trained:
    """The parameters of a run, averaged ones where it averages.

    Args:
      checkpoint: best (on validation; the last where none was evaluated) or last.

    Raises:
      ValueError: no run, or a run without a checkpoint.
    """
    folder, config, vocabulary = read_run(run)
    state = load_state(run, checkpoint)
    _, sentences = resolve(config.data)
    return Trained(folder, config, vocabulary, sentences, state.evaluated_params, int(state.step))


def read_run(run: str) -> tuple[Path, Config, Vocabulary]:
    """A run's folder, configuration and vocabulary.

    Raises:
      ValueError: no run; or several seeds, each of which is one.
    """
    folder = run_folder.require(run)
    config = run_folder.read_config(folder, Config)
    if config.seeds > 1:
        ones = ", ".join(sorted(str(path.parent) for path in folder.glob("seed-*/config.json")))
        raise ValueError(f"{run} holds runs of several seeds; wanted one of them: {ones or 'none'}")
    return folder, config, run_folder.read_vocabulary(folder)


def load_state(run: str, checkpoint: str = "last") -> TrainState:
    """The whole state of a run at its last checkpoint, or at the best."""
    folder, config, vocabulary = read_run(run)
    template = init_state(
        jax.random.key(config.seed),
        config.model,
        config.optim,
        len(vocabulary),
        config.data.batch_size,
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoint == "best":
            return restore_best(checkpoints, template)
        return checkpoints.restore(template)


def restore_best(checkpoints: Checkpoints, template: TrainState) -> TrainState:
    """The state that was best on validation; says so where it has to be another."""
    best = checkpoints.best()
    state = checkpoints.restore_best(template)
    if best is not None and int(state.step) != best:
        print(
            f"the best checkpoint, {best}, is damaged; using that of step {int(state.step)}",
            file=sys.stderr,
        )
    return state
