"""The small LSTM of Zaremba, Sutskever & Vinyals 2014 (arXiv:1409.2329): 2 x 200, no dropout.

    ./launch.sh train --recipe=zaremba_small --data_dir=PATH --seeds=3

Published, PTB: valid 120.7, test 114.5; TensorFlow's reimplementation 121.39 and 115.91.
Measured: valid 118.7 (sd 0.1), test 114.4 (sd 0.5) over seeds 0, 1, 2; 42 to 80 minutes a seed on
one core of an AMD EPYC (Zen 5), beside other work, 2026-11-23.

The paper sums the loss over 20 steps, at learning rate 1 and clip 5: with the mean over all
tokens that is 20 and 0.25.
"""

from typing import Any

OPTIONS: dict[str, Any] = {
    "corpus": "ptb",
    "cell": "lstm",
    "layers": 2,
    "hidden_size": 200,
    "embedding_size": 200,
    "forget_bias": 0.0,
    "init": "uniform",
    "init_range": 0.1,
    "batch_size": 20,
    "length": 20,
    "learning_rate": 20.0,
    "clip": 5 / 20,
    "schedule": "step",
    "decay": 0.5,
    "decay_after": 4,
    "epochs": 13.0,
}
PUBLISHED: dict[str, float | None] = {"valid": 120.7, "test": 114.5}
