"""The medium LSTM of Zaremba, Sutskever & Vinyals 2014 (arXiv:1409.2329): 2 x 650, dropout 0.5.

    ./launch.sh train --recipe=zaremba_medium --data_dir=PATH

Published, PTB: valid 86.2, test 82.7; TensorFlow's reimplementation 86.16 and 82.07, ten reruns of
it 83.6 to 84.0 on test.
Not run here to the end yet: it wants a GPU.

The paper sums the loss over 35 steps, at learning rate 1 and clip 5: with the mean over all
tokens that is 35 and 0.143.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "ptb",
    "cell": "lstm",
    "layers": 2,
    "hidden_size": 650,
    "embedding_size": 650,
    "forget_bias": 0.0,
    "init": "uniform",
    "init_range": 0.05,
    "batch_size": 20,
    "length": 35,
    "learning_rate": 35.0,
    "clip": 5 / 35,
    "schedule": "step",
    "decay": 1 / 1.2,
    "decay_after": 6,
    "epochs": 39.0,
    "dropout_masks": "independent",
    "dropout_input": 0.5,
    "dropout_hidden": 0.5,
    "dropout_output": 0.5,
}
PUBLISHED: dict[str, float | None] = {"valid": 86.2, "test": 82.7}
