"""AWD-LSTM (Merity, Keskar & Socher 2017, arXiv:1708.02182), finetuned, on WikiText-2.

    ./launch.sh train --recipe=awd_lstm_wt2_finetune --data_dir=PATH --start=RUN

Published: valid 67.4, test 64.7.
Not run here to the end yet: it wants a GPU.

3 layers of 1150, 1150 and 400, tied to an embedding of 400; variational dropout everywhere,
dropped recurrent weights, chunks of random length, SGD.

Finetuning trains on from a run of awd_lstm_wt2, averaging from the first step, until it stalls.
"""

from typing import Any

from experiments.recipes import awd_lstm_wt2

OPTIONS: dict[str, Any] = awd_lstm_wt2.OPTIONS | {
    "averaging": "always",
    "early_stop": True,
}
PUBLISHED: dict[str, float | None] = {"valid": 67.4, "test": 64.7}
NEEDS_START = "awd_lstm_wt2"  # the recipe whose run it trains on from
