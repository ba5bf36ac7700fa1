"""Batches as pure functions of the step: the same step gives the same batch, in any process.

Inputs start with `<eos>`, as after a line that came before, so that every token of the text
is predicted once.
"""

from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from lm.data.vocabulary import END_ID

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
RUN = 8  # batches of one length that follow each other, to be trained in one dispatch


class Batch(NamedTuple):
    """One batch, or a block of several with a leading axis."""

    inputs: np.ndarray  # int32 [T, B]
    targets: np.ndarray  # int32 [T, B], the token after each input
    mask: np.ndarray | None  # bool [T, B], False on padding; None: no padding
    reset: np.ndarray  # bool []: start from the zero state


class Batches(Protocol):
    """A batching of a text."""

    steps_per_epoch: int
    batch_size: int

    def block(self, step: int, most: int) -> Batch:
        """The batches of steps step, step + 1, ..., at most `most`, stacked [steps, ...]."""
        ...


class StreamBatches:
    """The text as `batch_size` contiguous rows, read `length` tokens at a time.

    The state is carried from step to step and starts anew with each epoch. What does not
    fill a row or a step (fewer than batch_size + batch_size * length tokens) is left out of
    training; evaluation leaves out nothing.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, length: int):
        per_row = len(tokens) // batch_size
        if per_row < 1:
            raise ValueError(
                f"the training text has {len(tokens)} tokens, too few for batch_size "
                f"{batch_size}; wanted at least {batch_size}: lower batch_size"
            )
        self.batch_size = batch_size
        self.length = min(length, per_row)
        self.steps_per_epoch = per_row // self.length
        used = per_row * batch_size
        self._targets = tokens[:used].reshape(batch_size, per_row)
        self._first = np.concatenate([[END_ID], self._targets[:-1, -1]]).astype(np.int32)

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        index = step % self.steps_per_epoch
        start, stop = index * self.length, (index + 1) * self.length
        targets = self._targets[:, start:stop]
        before = self._first if start == 0 else self._targets[:, start - 1]
        inputs = np.concatenate([before[:, None], targets[:, :-1]], axis=1)
        return Batch(
            np.ascontiguousarray(inputs.T),
            np.ascontiguousarray(targets.T),
            None,
            np.asarray(index == 0),
        )

    def block(self, step: int, most: int) -> Batch:
        return stack([self.at(step + k) for k in range(most)])


class SentenceBatches:
    """Each sentence a row of its own, from the zero state, with others of about its length.

    Sentences are shuffled each epoch by (seed, epoch), put into buckets of like length,
    padded to the bucket's length, and the batches shuffled. A sentence longer than `length`
    is cut into pieces that each start from the zero state.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, length: int, seed: int = 0):
        self.batch_size = batch_size
        self._tokens = tokens
        self._seed = seed
        self._starts, self._lengths = cut_sentences(tokens, length)
        sizes = np.asarray([b for b in BUCKETS if b < length] + [length])
        self._bucket = sizes[np.searchsorted(sizes, self._lengths)]
        self._sizes = np.unique(self._bucket)
        self.steps_per_epoch = sum(
            -(-int((self._bucket == size).sum()) // batch_size) for size in self._sizes
        )
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def _make_plan(self, epoch: int) -> list[tuple[int, np.ndarray, int]]:
        """(bucket length, sentences of the batch, batches left in its run) for each step."""
        rng = np.random.default_rng((self._seed, epoch))
        runs = []
        for size in self._sizes:
            order = rng.permutation(np.flatnonzero(self._bucket == size))
            batches = [
                order[k : k + self.batch_size] for k in range(0, len(order), self.batch_size)
            ]
            for k in range(0, len(batches), RUN):
                run = batches[k : k + RUN]
                runs.append([(int(size), rows, len(run) - j) for j, rows in enumerate(run)])
        return [batch for index in rng.permutation(len(runs)) for batch in runs[index]]

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        size, rows, _ = self._plan(epoch)[index]
        starts, lengths = self._starts[rows], self._lengths[rows]
        return pad(self._tokens, starts, lengths, size, self.batch_size)

    def block(self, step: int, most: int) -> Batch:
        epoch, index = divmod(step, self.steps_per_epoch)
        count = min(most, self._plan(epoch)[index][2])
        return stack([self.at(step + k) for k in range(count)])


def cut_sentences(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each sentence starts and how long it is, `<eos>` counted, none over `length`."""
    ends = np.flatnonzero(tokens == END_ID) + 1
    if not len(ends) or ends[-1] != len(tokens):
        ends = np.append(ends, len(tokens))
    begins = np.concatenate([[0], ends[:-1]])
    pieces = -(-(ends - begins) // length)
    starts = np.concatenate(
        [begin + length * np.arange(count) for begin, count in zip(begins, pieces, strict=True)]
    )
    stops = np.minimum(starts + length, np.repeat(ends, pieces))
    return starts, stops - starts


def pad(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, time: int, batch: int
) -> Batch:
    """Rows tokens[start : start + length] as the columns of a padded batch [time, batch].

    The input before a row's first token is the token before it in the text: `<eos>` for
    whole sentences.
    """
    inputs = np.full((time, batch), END_ID, np.int32)
    targets = np.full((time, batch), END_ID, np.int32)
    mask = np.zeros((time, batch), bool)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        targets[:length, row] = tokens[start : start + length]
        inputs[1:length, row] = tokens[start : start + length - 1]
        inputs[0, row] = tokens[start - 1] if start else END_ID
        mask[:length, row] = True
    return Batch(inputs, targets, mask, np.asarray(True))


def stack(batches: list[Batch]) -> Batch:
    """Batches of one shape -> a block with a leading axis."""
    masks = [b.mask for b in batches if b.mask is not None]
    return Batch(
        np.stack([b.inputs for b in batches]),
        np.stack([b.targets for b in batches]),
        np.stack(masks) if masks else None,
        np.stack([b.reset for b in batches]),
    )


def make_batches(
    tokens: np.ndarray, batching: str, batch_size: int, length: int, seed: int = 0
) -> StreamBatches | SentenceBatches:
    """The batching that `DataConfig` names: stream or sentences."""
    if batching == "sentences":
        return SentenceBatches(tokens, batch_size, length, seed)
    return StreamBatches(tokens, batch_size, length)


def cut_windows(tokens: np.ndarray, time: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` stretches of text, evenly spread: inputs and targets, int32 [T, windows].

    Raises:
      ValueError: the text is shorter than one stretch.
    """
    spare = len(tokens) - (time + 1)
    if spare < 0:
        raise ValueError(f"time is {time}; wanted fewer than the {len(tokens)} tokens of the text")
    starts = np.unique(np.linspace(0, spare, count).astype(int))
    rows = np.stack([tokens[start : start + time + 1] for start in starts], axis=1)
    return rows[:-1], rows[1:]
