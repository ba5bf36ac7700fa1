"""A vocabulary in another library's order, put into ours: 0 is `<unk>`, 1 is `<eos>`.

The rows of the embedding, and the columns and biases of the softmax, move along.
"""

import difflib
from collections.abc import Sequence

import numpy as np

from lm import model
from lm.data.vocabulary import END, UNKNOWN

# Score of a unit that the model lacks: far enough below all others for a probability of 0, and
# finite, so that nothing becomes NaN.
NEVER = -1e9


def check_units(units: Sequence[str], rows: int) -> None:
    """Raise ValueError for a vocabulary that is not one unit a row of the embedding."""
    if len(units) != rows:
        raise ValueError(
            f"the vocabulary has {len(units)} units, the embedding {rows} rows; wanted as many"
        )
    first: dict[str, int] = {}
    for index, unit in enumerate(units):
        if first.setdefault(unit, index) != index:
            raise ValueError(
                f"the vocabulary has {unit!r} twice, as {first[unit]} and {index}; wanted each once"
            )


def reorder_vocabulary(
    params: model.Params, units: Sequence[str], *, unknown: str, end: str
) -> tuple[model.Params, tuple[str, ...]]:
    """A model whose unit 0 is `<unk>` and 1 `<eos>`, all others in the order in which they came.

    Args:
      params: NumPy arrays, V rows.
      units: V units in id order.
      unknown: how the unknown unit is spelled there; empty: there is none, and a unit is added
        that is never predicted and embedded as zeros.
      end: how the end of a sentence is spelled there.

    Returns:
      (params, units), the specials spelled as ours.

    Raises:
      ValueError: units that are not one a row; a special that is not among them, or whose
        spelling here is taken by another unit.
    """
    check_units(units, len(params.embedding))
    if not unknown:
        if UNKNOWN in units:
            raise ValueError(f"unknown is empty, but {UNKNOWN} is a unit; wanted unknown={UNKNOWN}")
        params, units, unknown = add_unknown(params), (*units, UNKNOWN), UNKNOWN
    if unknown == end:
        raise ValueError(f"unknown and end are both {end!r}; wanted two units")
    index = {unit: row for row, unit in enumerate(units)}
    for name, unit, ours in (("unknown", unknown, UNKNOWN), ("end", end, END)):
        if unit not in index:
            close = difflib.get_close_matches(unit, units, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{name} is {unit!r}, which the vocabulary lacks{hint}; wanted {name}=UNIT, as it "
                "is spelled there"
            )
        if ours in index and unit != ours and ours not in (unknown, end):
            raise ValueError(
                f"{name} is {unit!r}, but {ours} is a unit too; wanted {name}={ours}, or that unit "
                "spelled otherwise"
            )
    special = [index[unknown], index[end]]
    order = np.asarray([*special, *(k for k in range(len(units)) if k not in special)])
    softmax_w = None if params.softmax_w is None else np.asarray(params.softmax_w)[:, order]
    moved = params._replace(
        embedding=params.embedding[order],
        softmax_w=softmax_w,  # type: ignore[arg-type]
        softmax_b=params.softmax_b[order],
    )
    return moved, (UNKNOWN, END, *(units[k] for k in order[2:]))


def add_unknown(params: model.Params) -> model.Params:
    """One more unit, the last: embedded as zeros, and with probability 0."""
    embedding, softmax_w = np.asarray(params.embedding), params.softmax_w
    zeros = np.zeros((1, embedding.shape[1]), embedding.dtype)
    if softmax_w is not None:
        softmax_w = np.pad(np.asarray(softmax_w), ((0, 0), (0, 1)))  # type: ignore[assignment]
    return params._replace(
        embedding=np.concatenate([embedding, zeros]),  # type: ignore[arg-type]
        softmax_w=softmax_w,
        softmax_b=np.append(params.softmax_b, np.float32(NEVER)),  # type: ignore[arg-type]
    )
