"""Batches as pure functions of the step: the same step gives the same batch, in any process.

Inputs start with `<eos>`, as after a line that came before, so that every token of the text
is predicted once.
"""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from lm.config import DataConfig
from lm.data.vocabulary import END_ID

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
RUN = 8  # batches of one length that follow each other, to be trained in one dispatch
SHORT_SHARE = 0.05  # of random lengths, those about half as long
LENGTH_SD = 5  # standard deviation of a random length, tokens
LEAST_LENGTH = 5  # tokens
ALL = slice(None)  # rows of each batch; a part of them where several processes read the rest


class Batch(NamedTuple):
    """One batch, or a block of several with a leading axis."""

    inputs: np.ndarray  # int32 [T, B]
    targets: np.ndarray  # int32 [T, B], the token after each input
    mask: np.ndarray | None  # bool [T, B], False on padding; None: no padding
    reset: np.ndarray  # bool []: start from the zero state
    rate: np.ndarray | None = None  # float32 []: factor on the learning rate; None: 1


class Batches(Protocol):
    """A batching of a text."""

    steps_per_epoch: int
    batch_size: int  # of the whole batch, B, however many of its rows are read here

    def block(self, step: int, most: int) -> Batch:
        """The batches of steps step, step + 1, ..., at most `most`, stacked [steps, ...]."""
        ...


class StreamBatches:
    """The text as `batch_size` contiguous rows, read `length` tokens at a time.

    The state is carried from step to step and starts anew with each epoch. What does not
    fill a row or a step (fewer than batch_size + batch_size * length tokens) is left out of
    training; evaluation leaves out nothing.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, length: int, rows: slice = ALL):
        per_row = len(tokens) // batch_size
        if per_row < 1:
            raise ValueError(
                f"the training text has {len(tokens)} tokens, too few for batch_size "
                f"{batch_size}; wanted at least {batch_size}: lower batch_size"
            )
        self.batch_size = batch_size
        self.length = min(length, per_row)
        self.per_row = per_row
        self.steps_per_epoch = per_row // self.length
        used = per_row * batch_size
        whole = tokens[:used].reshape(batch_size, per_row)
        self._first = np.concatenate([[END_ID], whole[:-1, -1]]).astype(np.int32)[rows]
        self._targets = whole[rows]

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        index = step % self.steps_per_epoch
        inputs, targets = self.read(index * self.length, (index + 1) * self.length)
        return Batch(inputs, targets, None, np.asarray(index == 0))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the rows from token `start` to `stop`, int32 [tokens, B]."""
        targets = self._targets[:, start:stop]
        before = self._first if start == 0 else self._targets[:, start - 1]
        inputs = np.concatenate([before[:, None], targets[:, :-1]], axis=1)
        return np.ascontiguousarray(inputs.T), np.ascontiguousarray(targets.T)

    def block(self, step: int, most: int) -> Batch:
        return stack([self.at(step + k) for k in range(most)])


class RandomLengthBatches:
    """The text as contiguous rows like `StreamBatches`, each chunk of a length of its own.

    A chunk has max(5, int(x)) tokens, x ~ N(length, 5), one time in twenty N(length / 2, 5),
    and no more than length + 15 (three standard deviations). Chunks are padded to that and
    masked, so one compiled step serves all; `rate` is tokens / length, since a longer chunk's
    mean gradient comes less often. With each pass the rows are cut at other places; lengths are
    a function of (seed, pass).

    Passes differ in their number of steps; `steps_per_epoch` is what the mean length makes, so
    evaluations after each epoch come near the end of a pass, and not at it.

    Source: Merity, Keskar & Socher 2017 (arXiv:1708.02182), section 5, and its code, which
    has no upper bound and scales the last chunk of a pass by the length that was drawn for it.
    """

    def __init__(
        self, tokens: np.ndarray, batch_size: int, length: int, seed: int = 0, rows: slice = ALL
    ):
        self._rows = StreamBatches(tokens, batch_size, 1, rows)
        self.batch_size = batch_size
        self.length = length
        self.longest = length + 3 * LENGTH_SD
        self._seed = seed
        mean = (1 - SHORT_SHARE) * length + SHORT_SHARE * length / 2 - 0.5  # int() cuts half off
        self.steps_per_epoch = max(1, round(self._rows.per_row / mean))
        self._first_step = [0]  # of each pass that was asked for
        self._edges = lru_cache(maxsize=2)(self._draw_edges)

    def _draw_edges(self, epoch: int) -> np.ndarray:
        """Where the chunks of a pass end, with 0 before them."""
        rng = np.random.default_rng((self._seed, epoch))
        per_row = self._rows.per_row
        count = per_row // LEAST_LENGTH + 1  # enough, however short they are
        centre = np.where(rng.random(count) < SHORT_SHARE, self.length / 2, self.length)
        drawn = rng.normal(centre, LENGTH_SD).astype(int)
        ends = np.cumsum(np.clip(drawn, LEAST_LENGTH, self.longest))
        inner = ends[ends < per_row]
        return np.concatenate([[0], inner, [per_row]])

    def _find(self, step: int) -> tuple[int, int]:
        """(pass, chunk within it) of a step."""
        while self._first_step[-1] <= step:
            epoch = len(self._first_step) - 1
            self._first_step.append(self._first_step[-1] + len(self._edges(epoch)) - 1)
        epoch = bisect_right(self._first_step, step) - 1
        return epoch, step - self._first_step[epoch]

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        epoch, index = self._find(step)
        start, stop = self._edges(epoch)[index : index + 2]
        inputs, targets = self._rows.read(start, stop)
        padding = ((0, self.longest - len(inputs)), (0, 0))
        mask = np.arange(self.longest)[:, None] < np.full(inputs.shape[1], len(inputs))
        return Batch(
            np.pad(inputs, padding, constant_values=END_ID),
            np.pad(targets, padding, constant_values=END_ID),
            mask,
            np.asarray(index == 0),
            np.asarray(len(inputs) / self.length, np.float32),
        )

    def block(self, step: int, most: int) -> Batch:
        return stack([self.at(step + k) for k in range(most)])


class SentenceBatches:
    """Each sentence a row of its own, from the zero state, with others of about its length.

    Sentences are shuffled each epoch by (seed, epoch), put into buckets of like length,
    padded to the bucket's length, and the batches shuffled. A sentence longer than `length`
    is cut into pieces that each start from the zero state.
    """

    def __init__(
        self, tokens: np.ndarray, batch_size: int, length: int, seed: int = 0, rows: slice = ALL
    ):
        self.batch_size = batch_size
        self._rows = rows
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
        size, sentences, _ = self._plan(epoch)[index]
        own, width = sentences[self._rows], len(range(self.batch_size)[self._rows])
        return pad(self._tokens, self._starts[own], self._lengths[own], size, width)

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
    first = np.cumsum(pieces) - pieces  # piece that each sentence begins with
    piece = np.arange(pieces.sum()) - np.repeat(first, pieces)
    starts = np.repeat(begins, pieces) + length * piece
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
    rates = [b.rate for b in batches if b.rate is not None]
    return Batch(
        np.stack([b.inputs for b in batches]),
        np.stack([b.targets for b in batches]),
        np.stack(masks) if masks else None,
        np.stack([b.reset for b in batches]),
        np.stack(rates) if rates else None,
    )


def make_batches(
    tokens: np.ndarray, config: DataConfig, seed: int = 0, rows: slice = ALL
) -> Batches:
    """The batching that `config` names, of the training text.

    Args:
      seed: of the order of sentences, or of random lengths.
      rows: which rows of each batch are read.
    """
    if config.batching == "sentences":
        return SentenceBatches(tokens, config.batch_size, config.length, seed, rows)
    if config.random_length:
        return RandomLengthBatches(tokens, config.batch_size, config.length, seed, rows)
    return StreamBatches(tokens, config.batch_size, config.length, rows)


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
