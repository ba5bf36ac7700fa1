"""AWD-LSTM on the bytes of enwik8 (Merity, Keskar & Socher 2018, arXiv:1803.08240), 47M parameters.

    ./launch.sh train --recipe=awd_lstm_enwik8 --data_dir=PATH

Published: 1.232 bits per character on test, after 50 epochs and two days.
Not run here to the end yet: it wants a GPU.

3 layers of 1840, 1840 and 400, tied to an embedding of 400; Adam at 0.001, which the authors
divide by 10 after epochs 25 and 35. Here it is multiplied by 0.83 an epoch from epoch 25 on: a
tenth by epoch 37, a hundredth by epoch 49.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "enwik8",
    "cell": "lstm",
    "layers": 3,
    "hidden_size": 1840,
    "last_hidden_size": 400,
    "embedding_size": 400,
    "tied": True,
    "forget_bias": 0.0,
    "init": "pytorch",
    "batch_size": 128,
    "length": 200,
    "random_length": True,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "clip": 0.25,
    "weight_decay": 1.2e-06,
    "schedule": "step",
    "decay": 0.83,
    "decay_after": 25,
    "dropout_masks": "variational",
    "dropout_input": 0.1,
    "dropout_hidden": 0.1,
    "dropout_output": 0.4,
    "weight_drop": 0.2,
    "epochs": 50.0,
}
PUBLISHED: dict[str, float | None] = {"valid": None, "test": 1.232}
UNIT = "bits per character"
