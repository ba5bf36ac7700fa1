"""The recurrent cells. A new one is its gate equations, a line here and an oracle row in tests."""

from lm.tables import LazyTable

CELLS: LazyTable = LazyTable(
    "cell",
    {
        "rnn": ("lm.cells.rnn", "TANH_RNN"),
        "irnn": ("lm.cells.rnn", "IDENTITY_RNN"),
        "lstm": ("lm.cells.lstm", "LSTM"),
        "gru": ("lm.cells.gru", "GRU"),
        "nig": ("lm.cells.lstm_variants", "NO_INPUT_GATE"),
        "nfg": ("lm.cells.lstm_variants", "NO_FORGET_GATE"),
        "nog": ("lm.cells.lstm_variants", "NO_OUTPUT_GATE"),
        "niaf": ("lm.cells.lstm_variants", "NO_INPUT_ACTIVATION"),
        "noaf": ("lm.cells.lstm_variants", "NO_OUTPUT_ACTIVATION"),
        "cifg": ("lm.cells.lstm_variants", "COUPLED"),
        "peephole": ("lm.cells.lstm_variants", "PEEPHOLE"),
        "fgr": ("lm.cells.lstm_variants", "FULL_GATE_RECURRENCE"),
        "lnlstm": ("lm.cells.layer_norm_lstm", "LAYER_NORM_LSTM"),
        "mingru": ("lm.cells.minimal", "MINIMAL_GRU"),
        "minlstm": ("lm.cells.minimal", "MINIMAL_LSTM"),
    },
)
