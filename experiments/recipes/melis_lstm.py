"""The plain LSTM of Melis, Dyer & Blunsom 2017 (arXiv:1707.05589), 4 layers, 24M parameters, PTB.

    ./launch.sh train --recipe=melis_lstm --data_dir=PATH

Published, PTB: valid 60.9, test 58.3.
Not run here to the end yet: it wants a GPU.

4 tied layers of 723, RMSProp (Adam without its mean), dropout of input, between layers, state
and output, one mask for all of a row's steps. Their learning rate falls when validation stalls,
by a rule that is not in the paper's tables: here along a cosine over 150 epochs.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "ptb",
    "cell": "lstm",
    "layers": 4,
    "hidden_size": 723,
    "embedding_size": 723,
    "tied": True,
    "forget_bias": 1.0,
    "batch_size": 64,
    "length": 35,
    "optimizer": "adam",
    "beta1": 0.0,
    "beta2": 0.999,
    "learning_rate": 0.00396,
    "clip": 10.0,
    "weight_decay": 7.45e-05,
    "schedule": "cosine",
    "dropout_masks": "variational",
    "dropout_input": 0.634,
    "dropout_hidden": 0.309,
    "dropout_state": 0.643,
    "dropout_output": 0.701,
    "epochs": 150.0,
}
PUBLISHED: dict[str, float | None] = {"valid": 60.9, "test": 58.3}
