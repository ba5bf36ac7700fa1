"""PyTorch's examples/word_language_model: LSTM 2 x 1500, tied, dropout 0.65.

    ./launch.sh train --recipe=pytorch_example_1500 --data_dir=PATH

Its README gave, for WikiText-2: test 84.1.
Not run here to the end yet: it wants a GPU.

The learning rate, 20, is divided by 4 after each epoch whose validation loss is no better than
the best.
"""

from typing import Any

from experiments.recipes import pytorch_example

OPTIONS: dict[str, Any] = pytorch_example.OPTIONS | {
    "hidden_size": 1500,
    "embedding_size": 1500,
    "tied": True,
    "epochs": 40.0,
    "dropout_input": 0.65,
    "dropout_hidden": 0.65,
    "dropout_output": 0.65,
}
PUBLISHED: dict[str, float | None] = {"valid": None, "test": 84.1}
