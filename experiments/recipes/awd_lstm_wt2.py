"""AWD-LSTM (Merity, Keskar & Socher 2017, arXiv:1708.02182) on WikiText-2.

    ./launch.sh train --recipe=awd_lstm_wt2 --data_dir=PATH

Published: valid 68.7, test 65.6 without finetuning.
Not run here to the end yet: it wants a GPU.

3 layers of 1150, 1150 and 400, tied to an embedding of 400; variational dropout everywhere,
dropped recurrent weights, chunks of random length, SGD. It turns to averaging when the
validation loss stalls.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "wikitext-2",
    "cell": "lstm",
    "layers": 3,
    "hidden_size": 1150,
    "last_hidden_size": 400,
    "embedding_size": 400,
    "tied": True,
    "forget_bias": 0.0,
    "init": "pytorch",
    "init_range": 0.1,
    "batch_size": 80,
    "length": 70,
    "random_length": True,
    "learning_rate": 30.0,
    "clip": 0.25,
    "weight_decay": 1.2e-06,
    "schedule": "constant",
    "averaging": "triggered",
    "patience": 5,
    "dropout_masks": "variational",
    "dropout_words": 0.1,
    "dropout_input": 0.65,
    "dropout_hidden": 0.2,
    "dropout_output": 0.4,
    "weight_drop": 0.5,
    "activation_penalty": 2.0,
    "slowness_penalty": 1.0,
    "epochs": 750.0,
}
PUBLISHED: dict[str, float | None] = {"valid": 68.7, "test": 65.6}
