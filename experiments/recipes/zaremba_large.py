"""The large LSTM of Zaremba, Sutskever & Vinyals 2014 (arXiv:1409.2329): 2 x 1500, dropout 0.65.

    ./launch.sh train --recipe=zaremba_large --data_dir=PATH

Published, PTB: valid 82.2, test 78.4; TensorFlow's reimplementation 82.62 and 78.29.
Not run here to the end yet: it wants a GPU.

The paper sums the loss over 35 steps, at learning rate 1 and clip 10: with the mean over all
tokens that is 35 and 0.286.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "ptb",
    "cell": "lstm",
    "layers": 2,
    "hidden_size": 1500,
    "embedding_size": 1500,
    "forget_bias": 0.0,
    "init": "uniform",
    "init_range": 0.04,
    "batch_size": 20,
    "length": 35,
    "learning_rate": 35.0,
    "clip": 10 / 35,
    "schedule": "step",
    "decay": 1 / 1.15,
    "decay_after": 14,
    "epochs": 55.0,
    "dropout_masks": "independent",
    "dropout_input": 0.65,
    "dropout_hidden": 0.65,
    "dropout_output": 0.65,
}
PUBLISHED: dict[str, float | None] = {"valid": 82.2, "test": 78.4}
