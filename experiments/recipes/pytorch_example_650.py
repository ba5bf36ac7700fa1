"""PyTorch's examples/word_language_model: LSTM 2 x 650, tied, dropout 0.5.

    ./launch.sh train --recipe=pytorch_example_650 --data_dir=PATH

Its README gave, for WikiText-2: valid 91.7, test 86.7.
Not run here to the end yet: it wants a GPU.

The learning rate, 20, is divided by 4 after each epoch whose validation loss is no better than
the best.
"""

from typing import Any

from experiments.recipes import pytorch_example

OPTIONS: dict[str, Any] = pytorch_example.OPTIONS | {
    "hidden_size": 650,
    "embedding_size": 650,
    "tied": True,
    "epochs": 40.0,
    "dropout_input": 0.5,
    "dropout_hidden": 0.5,
    "dropout_output": 0.5,
}
PUBLISHED: dict[str, float | None] = {"valid": 91.7, "test": 86.7}
