"""PyTorch's examples/word_language_model: LSTM 2 x 200, dropout 0.2.

    ./launch.sh train --recipe=pytorch_example --data_dir=PATH

Its README gave, for WikiText-2: valid 123.3, test 115.0.
Not run here to the end yet: it wants a GPU.

The learning rate, 20, is divided by 4 after each epoch whose validation loss is no better than
the best.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "wikitext-2",
    "cell": "lstm",
    "layers": 2,
    "hidden_size": 200,
    "embedding_size": 200,
    "tied": False,
    "forget_bias": 0.0,
    "init": "pytorch",
    "init_range": 0.1,
    "batch_size": 20,
    "length": 35,
    "learning_rate": 20.0,
    "clip": 0.25,
    "schedule": "plateau",
    "decay": 0.25,
    "epochs": 12.0,
    "dropout_masks": "independent",
    "dropout_input": 0.2,
    "dropout_hidden": 0.2,
    "dropout_output": 0.2,
}
PUBLISHED: dict[str, float | None] = {"valid": 123.3, "test": 115.0}
