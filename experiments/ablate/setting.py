"""One network and how it is trained: the run's options with a variant's in their places."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.fit.config import with_options
from lm.config import DataConfig, ModelConfig, OptimConfig


@dataclass(frozen=True)
class Setting:
    """What a variant may change.

    Attributes:
      steps: of training.
      lags: of a task, the steps of its sequences.
      carried: text: the state is carried from chunk to chunk; else each starts from zero.
      truncation: of a task, steps that the gradient goes back; 0: all.
    """

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    steps: int
    lags: int
    carried: bool = True
    truncation: int = 0

    def of(self, options: Mapping[str, Any]) -> "Setting":
        """With options in place of its own; longer chunks of text in fewer steps.

        All settings of a study read as many tokens.
        """
        setting: Setting = with_options(self, options)
        tokens = self.steps * self.data.length
        return dataclasses.replace(setting, steps=max(1, round(tokens / setting.data.length)))
