"""Large texts: tokenised in blocks to memory-mapped files, the same as in memory."""

import contextlib
import gzip
import os
import resource
import shutil
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lm.config import DataConfig
from lm.data import corpus, stream, text, token_file
from lm.data.batches import SentenceBatches, StreamBatches
from lm.data.corpus import load_corpus
from lm.data.stream import SPLITS, Part, Text, read_blocks
from lm.data.token_file import Cut, load_tokens
from lm.data.vocabulary import END_ID, Vocabulary, build_vocabulary

PIECES = [
    *("a", "b", "A", "Σ", "ς", "é", "漢", "𝄞", "İ", "'", "’", "_", "-", '"', "”", ".", "!", "?"),
    *("Mr.", "J.", "<eos>", "<unk>", "\ufeff", "1"),
    *(
        " ",
        " ",
        " ",
        "\t",
        "\x85",
        "\u2028",
        "\n",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "\n \n",
        ". A",
        ". B",
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=80).map("".join)
WAYS = [
    *((level, rule) for level in ("word", "whitespace") for rule in ("line", "prose")),
    ("char", "line"),
    ("byte", "line"),
]


def small_blocks(block=7, chunks=9):
    """Blocks of a few bytes, so that everything is cut somewhere."""
    return mock.patch.multiple(stream, BLOCK=block, LONG=4 * block, CHUNK_LIMIT=chunks)


def plainly(texts, level, rule, min_count=1, max_size=0):
    """The oracle: (vocabulary, split -> ids) of whole texts in memory."""
    units = {split: list(text.tokenize(whole, level, rule)) for split, whole in texts.items()}
    vocabulary = build_vocabulary(units["train"], level, min_count, max_size)
    return vocabulary, {split: vocabulary.encode(found) for split, found in units.items()}


def cut_90_5_5(whole):
    """The oracle of a text that is cut at lines."""
    lines = text.split_lines(whole)
    first, second = len(lines) * 90 // 100, len(lines) * 95 // 100
    parts = (lines[:first], lines[first:second], lines[second:])
    return {split: "\n".join(part) + "\n" for split, part in zip(SPLITS, parts, strict=True)}


def outcome(make):
    """(what is made, "") or (None, why it is refused)."""
    try:
        return make(), ""
    except ValueError as error:
        return None, str(error)


def assert_same(found, vocabulary, splits):
    assert found.vocabulary == vocabulary
    for split in SPLITS:
        assert found.splits[split].dtype == np.int32
        np.testing.assert_array_equal(found.splits[split], splits[split])


@pytest.mark.parametrize(("level", "rule"), WAYS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example("A b. C d\n", 3, 1, 0)  # an end of sentence that a block's end cuts
@example("a" * 50 + " b. B", 5, 1, 0)
@example("a b c d e f g h i j k l m n o p q r s t. B c d e f g h i j k l m n o p\n \n", 2, 1, 0)
@example("ΑΣ ΣΑ\n\nΣ", 1, 2, 4)
@given(TEXTS, st.integers(1, 9), st.integers(1, 2), st.sampled_from([0, 4]))
def test_streamed_is_the_same_as_in_memory(tmp_path, level, rule, source, block, least, most):
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "text"  # files of one time and size are one
    path.write_bytes(source.encode())
    encoding = "latin-1" if level == "byte" else "utf-8"
    source = Text({split: (Part(path),) for split in SPLITS})

    def whole():
        found = text.read_text(path, encoding)
        return plainly(dict.fromkeys(SPLITS, found), level, rule, least, most)

    def streamed():
        with small_blocks(block):
            return load_tokens(source, Cut(level, rule, least, most), path.parent / "c", "x")

    expected, refusal = outcome(whole)
    found, refused = outcome(streamed)
    assert refused == refusal
    if not refusal:
        assert_same(found, *expected)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xc3\xa9", b"\xf0\x9d", b"\xef\xbb\xbf"])),
    st.integers(1, 5),
)
def test_bytes_are_read_and_refused_as_a_whole_is(tmp_path, pieces, block):
    path = tmp_path / "x.txt"
    path.write_bytes(b"".join(pieces))
    expected = outcome(lambda: text.read_text(path))
    with small_blocks(block):
        assert outcome(lambda: "".join(read_blocks(Part(path)))) == expected


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(["", "a", "b c", " "]), min_size=21, max_size=60), TEXTS)
def test_a_text_is_cut_at_the_same_lines(tmp_path, lines, first):
    names = [tmp_path / name for name in ("a.txt", "b.txt")]
    names[0].write_bytes(f"x{first}".encode())
    names[1].write_bytes("\n".join(["b", *lines]).encode())
    joined = "\n".join(text.read_text(path).removesuffix("\n") for path in names)
    for paths, whole in ((names, joined), (names[1:], text.read_text(names[1]))):
        with small_blocks():
            blocks = list(Text({"all": tuple(map(Part, paths))}).blocks("utf-8"))
        found = {split: "".join(b for name, b in blocks if name == split) for split in SPLITS}
        assert found == cut_90_5_5(whole)


@pytest.mark.parametrize("level", ["word", "char"])
def test_austen_streamed_is_austen(tmp_path, monkeypatch, level):
    config = DataConfig(level=level, cache_dir=str(tmp_path), max_vocabulary=500)
    whole = load_corpus(config)
    assert isinstance(whole.splits["train"], np.ndarray)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(corpus, "STREAM_BYTES", 0)
    streamed = load_corpus(config)
    assert streamed.sha256 == whole.sha256
    assert_same(streamed, whole.vocabulary, whole.splits)
    assert isinstance(streamed.splits["train"].base, np.memmap)


def test_the_vocabulary_of_a_run_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    path.write_text("the cat sat\nthe new dog\n" * 20)
    config = DataConfig(corpus=str(path), cache_dir=str(tmp_path / "cache"))
    vocabulary = Vocabulary(("<unk>", "<eos>", "sat", "dog", "of"), "word")
    whole = load_corpus(config, vocabulary)
    monkeypatch.setattr(corpus, "STREAM_BYTES", 0)
    streamed = load_corpus(config, vocabulary)
    assert streamed.splits["train"][:8].tolist() == [0, 0, 2, END_ID, 0, 0, 3, END_ID]
    assert (streamed.sha256, streamed.vocabulary) == (whole.sha256, vocabulary)
    assert load_corpus(config).sha256 != whole.sha256  # a cache entry of its own


@pytest.fixture
def book(tmp_path):
    """A text and how to load it: (path, load)."""
    path = tmp_path / "book.txt"
    path.write_text("the cat sat\non a mat\n" * 30)

    def load(**options):
        source = Text({"all": (Part(path),)})
        return load_tokens(
            source, Cut("word", "line", 1, 0, **options), tmp_path / "cache", "book.txt"
        )

    return path, load


def entries(path):
    return sorted(p.name for p in (path.parent / "cache").iterdir())


def test_a_text_is_tokenised_once_until_it_changes(book, monkeypatch):
    path, load = book
    first = load()
    with mock.patch.object(token_file, "make_tokens", side_effect=AssertionError):
        assert load().sha256 == first.sha256
    path.write_text("the dog sat\non a mat\n" * 30)  # as long as before, written later
    os.utime(path, ns=(1, 2))
    assert load().sha256 != first.sha256
    assert len(entries(path)) == 2
    monkeypatch.setattr(token_file, "VERSION", token_file.VERSION + 1)
    load()
    assert len(entries(path)) == 3


@pytest.mark.parametrize("damage", ["flip", "short", "gone", "json", "units"])
def test_a_damaged_cache_is_made_again(book, damage):
    path, load = book
    sha256 = load().sha256
    (folder,) = (path.parent / "cache").iterdir()
    ids, stored = folder / "train.ids", folder / "tokens.json"
    if damage == "flip":
        raw = bytearray(ids.read_bytes())
        raw[40] ^= 1
        ids.write_bytes(raw)
    elif damage == "short":
        ids.write_bytes(ids.read_bytes()[:-4])
    elif damage == "gone":
        ids.unlink()
    elif damage == "json":
        stored.write_text(stored.read_text()[:-9])
    else:
        stored.write_text(stored.read_text().replace("cat", "dog"))
    assert token_file.open_tokens(folder) is None
    assert load().sha256 == sha256
    assert token_file.open_tokens(folder).sha256 == sha256
    assert entries(path) == [folder.name]


def test_nothing_half_made_is_left(book):
    path, load = book
    path.write_bytes(path.read_bytes() + b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        load()
    assert entries(path) == []


@contextlib.contextmanager
def full_disk(size):
    """Files end at `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said(book):
    path, load = book
    with full_disk(200), pytest.raises(ValueError, match=r"cache_dir .* cannot be written"):
        load()
    assert entries(path) == []


def test_a_cache_that_is_no_folder_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "STREAM_BYTES", 0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"another --cache_dir"):
        load_corpus(DataConfig(cache_dir=str(tmp_path / "file")))


def test_what_another_process_made_is_kept(book, tmp_path):
    path, load = book
    load()
    (final,) = (path.parent / "cache").iterdir()
    before = final.stat().st_ino
    work = tmp_path / "cache" / ".mine.partial"
    shutil.copytree(final, work)
    token_file.move_folder(work, final)
    assert final.stat().st_ino == before


def test_words_that_are_remembered_are_few():
    table = stream.WordTable("word", "line")
    with small_blocks(chunks=50):
        for k in range(100):
            list(table.encode([" ".join(f"word,{k},{j}." for j in range(10))]))
    assert len(table._chunks) <= 60
    assert len(table) == 2 + 1 + 100 + 2  # <unk>, <eos>, word, numbers, comma and full stop


def test_several_at_once_do_not_mind_each_other(book):
    path, load = book
    with ThreadPoolExecutor(4) as pool:
        found = {tokens.sha256 for tokens in pool.map(lambda _: load(), range(8))}
    assert len(found) == 1
    assert len(entries(path)) == 1


@pytest.mark.parametrize(("level", "rule"), [("word", "line"), ("word", "prose"), ("char", "line")])
def test_memory_does_not_grow_with_a_line(tmp_path, level, rule):
    """A text without a line end, as text8 is, of 0.2 and 1 MB."""
    parts = {split: (Part(tmp_path / split),) for split in SPLITS}
    for split in SPLITS:
        (tmp_path / split).write_bytes(b"short")
    peaks = []
    for count in (12_000, 60_000):
        (tmp_path / "train").write_bytes(b"nor do words end " * count)
        with small_blocks(1 << 13), mock.patch.object(token_file, "PIECE", 1 << 13):
            tracemalloc.start()
            made = load_tokens(Text(parts), Cut(level, rule, 1, 0), tmp_path / "cache", "x")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert len(made.splits["train"]) == count * (17 if level == "char" else 4) + 1
    assert peaks[1] - peaks[0] < 50_000


def test_batches_of_a_mapped_text_leave_it_on_disk(book):
    tokens = load_corpus_mapped(book)
    batches = StreamBatches(tokens, 4, 7)
    assert np.shares_memory(batches._targets, tokens)
    again = StreamBatches(np.array(tokens), 4, 7)
    for step in (0, 3):
        for a, b in zip(batches.at(step), again.at(step), strict=True):
            np.testing.assert_array_equal(a, b)
        assert batches.at(step).inputs.dtype == batches.at(step).targets.dtype == np.int32
    rows, plain = SentenceBatches(tokens, 4, 7), SentenceBatches(np.array(tokens), 4, 7)
    np.testing.assert_array_equal(rows.at(2).targets, plain.at(2).targets)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def load_corpus_mapped(book):
    return book[1]().splits["train"]


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_compressed_texts_are_streamed_too(tmp_path, size):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"some text\r\n" * 99) + gzip.compress(b"and more"))
    with small_blocks(size):
        assert "".join(read_blocks(Part(path))) == "some text\n" * 99 + "and more"
    assert Part(path).size() >= 8


def test_progress_ends_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "STREAM_BYTES", 0)
    path = tmp_path / "x.txt"
    path.write_text("some text\n" * 99)
    seen = []
    with small_blocks(100):
        load_corpus(
            DataConfig(corpus=str(path), cache_dir=str(tmp_path / "c")),
            progress=lambda *report: seen.append(report),
        )
    assert seen[-1] == ("tokenising", 990, 990)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
