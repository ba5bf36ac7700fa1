"""Time against the length: a row for each cell and length, and a figure that shows them all."""

import numpy as np

from experiments import figures
from experiments.speed import lengths_drawing
from experiments.speed.lengths import print_lengths, time_lengths


def test_times_by_length_and_their_figure(tmp_path, monkeypatch, capsys):
    rows = time_lengths(("rnn", "mingru"), (4, 9), batch=2, hidden=8, repeats=3)
    found = [(row["cell"], row["length"]) for row in rows]
    assert found == [("rnn", 4), ("mingru", 4), ("rnn", 9), ("mingru", 9)]
    for row in rows:
        low, high = row["ms_quartiles"]
        assert 0 < low <= row["ms"] <= high
        np.testing.assert_allclose(row["us_per_step"] * row["length"], 1e3 * row["ms"])
        assert (row["batch_size"], row["hidden_size"]) == (2, 8)
    print_lengths(rows)
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["T", "rnn", "mingru"]
    assert printed[-1].split()[0] == "9"
    assert f"{rows[-1]['ms']:.2f}" in printed[-1]
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: drawn.append(figure) or [])
    lengths_drawing.plot(tmp_path, rows, "a machine")
    for axis, key in zip(drawn[0].axes, ("ms", "us_per_step"), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        np.testing.assert_allclose(lines["minGRU"].get_xdata(), [4, 9])
        np.testing.assert_allclose(
            lines["minGRU"].get_ydata(), [row[key] for row in rows if row["cell"] == "mingru"]
        )
        assert lines["tanh RNN"].get_linestyle() == "-" != lines["minGRU"].get_linestyle()
