"""An LSTM on PTB sentence by sentence: batches of sentences with masks, each from the zero state.

    ./launch.sh train --recipe=sentence_lstm --data_dir=PATH

The lecture's setting. A known result for it, without carried state: test 115.
Measured: valid 103.8, test 99.7, seed 0; 56 minutes on one core of an AMD EPYC (Zen 5), beside
other work, 2026-11-23.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "ptb",
    "cell": "lstm",
    "layers": 1,
    "hidden_size": 256,
    "embedding_size": 256,
    "tied": True,
    "forget_bias": 1.0,
    "batching": "sentences",
    "batch_size": 20,
    "length": 100,
    "learning_rate": 20.0,
    "clip": 0.25,
    "schedule": "cosine",
    "epochs": 12.0,
    "dropout_words": 0.05,
    "dropout_input": 0.1,
    "dropout_output": 0.3,
}
PUBLISHED: dict[str, float | None] = {"valid": None, "test": 115.0}
