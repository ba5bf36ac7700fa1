"""Cells as parameters of the wider tests.

Each cell has its oracle and its gradient checked in every run. The other cells are made of the
same pieces as these: what they go through beside that is for `./launch.sh test -m whole`.
`.ci/run` leaves the others out altogether (`-m "not rest"`) on the second of its Pythons, where
it is JAX that is another, and compiles a cell in four times the time.
"""

import pytest

from lm.cells import CELLS

OFTEN = ("rnn", "gru", "lstm", "fgr", "mingru")
EACH_CELL = [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.rest) for name in CELLS]
EVERY_CELL = [
    pytest.param(name, marks=[] if name in OFTEN else pytest.mark.whole) for name in CELLS
]
EVERY_RECURRENT_CELL = [cell for cell in EVERY_CELL if CELLS[cell.values[0]].diagonal is None]
