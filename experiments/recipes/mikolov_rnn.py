"""A vanilla tanh RNN on PTB, tuned, against Mikolov & Zweig's of 2012 ("Context dependent RNN LM").

    ./launch.sh train --recipe=mikolov_rnn --data_dir=PATH

Published, PTB: test 124.7 (6M parameters).
Measured: valid 127.5, test 119.6, seed 0; 37 minutes on one core of an AMD EPYC (Zen 5), beside
other work, 2026-11-23.

What is taken from them is the cell, not the training: weights are tied, words and outputs
dropped, and Adam's learning rate falls along a cosine. (Plain SGD learns the same more slowly;
at an LSTM's learning rate a vanilla RNN fails.)
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "ptb",
    "cell": "rnn",
    "layers": 1,
    "hidden_size": 256,
    "embedding_size": 256,
    "tied": True,
    "batch_size": 20,
    "length": 35,
    "optimizer": "adam",
    "learning_rate": 0.002,
    "clip": 0.25,
    "schedule": "cosine",
    "epochs": 12.0,
    "dropout_words": 0.05,
    "dropout_input": 0.1,
    "dropout_output": 0.3,
}
PUBLISHED: dict[str, float | None] = {"valid": None, "test": 124.7}
