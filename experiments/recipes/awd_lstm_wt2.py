"""AWD-LSTM (Merity, Keskar & Socher 2017, arXiv:1708.02182) on WikiText-2.

    ./launch.sh train --recipe=awd_lstm_wt2 --data_dir=PATH

Published: valid 68.7, test 65.6 without finetuning.
Not run here to the end yet: it wants a GPU.

3 layers of 1150, 1150 and 400, tied to an embedding of 400; variational dropout everywhere,
dropped recurrent weights, chunks of random length, SGD. It turns to averaging when the
validation loss stalls.
"""

from typing import Any

from experiments.recipes import awd_lstm

OPTIONS: dict[str, Any] = awd_lstm.OPTIONS | {
    "corpus": "wikitext-2",
    "batch_size": 80,
    "dropout_input": 0.65,
    "dropout_hidden": 0.2,
    "epochs": 750.0,
}
PUBLISHED: dict[str, float | None] = {"valid": 68.7, "test": 65.6}
