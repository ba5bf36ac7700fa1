"""An LSTM on the characters of Shakespeare, as Karpathy's char-rnn has it (2015).

    ./launch.sh train --recipe=char_rnn --data_dir=PATH

The layers, batch, U(-0.08, 0.08), RMSProp and decay are char-rnn's defaults. It clips entry by
entry and reads one-hot characters; here the clip is of the global norm, and there is an
embedding as wide as the alphabet. No number was published for this text and cut (90/5/5).
Not run here to the end yet.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "tinyshakespeare",
    "cell": "lstm",
    "layers": 2,
    "hidden_size": 128,
    "embedding_size": 65,
    "init": "uniform",
    "init_range": 0.08,
    "batch_size": 50,
    "length": 50,
    "optimizer": "rmsprop",
    "learning_rate": 0.002,
    "beta2": 0.95,
    "clip": 5.0,
    "schedule": "step",
    "decay": 0.97,
    "decay_after": 10,
    "epochs": 50.0,
}
PUBLISHED: dict[str, float | None] = {"valid": None, "test": None}
