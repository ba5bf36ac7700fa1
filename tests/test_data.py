"""Text to tokens to batches."""

import gzip
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import DataConfig
from lm.data import text
from lm.data.batches import SentenceBatches, StreamBatches, cut_sentences
from lm.data.corpus import CORPORA, load_corpus, look_for
from lm.data.stream import cut_at_bytes, read_blocks, underscore
from lm.data.vocabulary import END_ID, UNKNOWN_ID, build_vocabulary

WORDS = [["the", "cat", "sat"], ["the", "dog"], [], ["the", "cat"]]


def test_vocabulary_is_by_frequency_after_the_specials():
    vocabulary = build_vocabulary(WORDS, "whitespace")
    assert vocabulary.units == ("<unk>", "<eos>", "the", "cat", "dog", "sat")
    ids = vocabulary.encode([["the", "bird"], []])
    assert ids.tolist() == [2, UNKNOWN_ID, END_ID, END_ID]
    assert ids.dtype == np.int32


def test_vocabulary_limits():
    assert build_vocabulary(WORDS, "word", min_count=2).units[2:] == ("the", "cat")
    assert len(build_vocabulary(WORDS, "word", max_size=3)) == 3
    with pytest.raises(ValueError, match="lower min_count"):
        build_vocabulary(WORDS, "word", min_count=9)


def test_vocabulary_knows_the_training_split_alone(tmp_path):
    for split, words in {"train": "a b", "valid": "a secret", "test": "b other"}.items():
        (tmp_path / f"{split}.txt").write_text(words + "\n")
    corpus = load_corpus(DataConfig(corpus=str(tmp_path), level="whitespace"))
    assert set(corpus.vocabulary.units) == {"<unk>", "<eos>", "a", "b"}
    assert UNKNOWN_ID in corpus.splits["valid"]


def test_words_of_prose():
    got = list(text.tokenize('Mr. Dash\'s cat--\nit SAT! "Why?" she said.', "word", "prose"))
    assert got == [
        ["mr", ".", "dash's", "cat", "--", "it", "sat", "!"],
        ['"', "why", "?", '"', "she", "said", "."],
    ]


def test_prose_ends_sentences_at_blank_lines_too():
    assert list(text.split_prose("CHAPTER 1\n\n\nIt was. He\nwent.")) == [
        "CHAPTER 1",
        "It was.",
        "He went.",
    ]


def test_words_are_put_together_line_by_line():
    vocabulary = build_vocabulary([["a", "b", ","]], "word")
    a, b, comma = (vocabulary.ids[unit] for unit in ("a", "b", ","))
    tokens = [END_ID, a, comma, b, END_ID, END_ID, b]
    assert vocabulary.decode(tokens) == "\na, b\n\nb"


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=60))
def test_characters_come_back_as_they_were(source):
    sentences = list(text.tokenize(source, "char", "line"))
    vocabulary = build_vocabulary([*sentences, ["x"]], "char")
    decoded = vocabulary.decode(vocabulary.encode(sentences))
    assert decoded == source.removesuffix("\n") + "\n"


@given(st.binary(max_size=60))
def test_bytes_come_back_as_they_were(raw):
    sentences = list(text.tokenize(raw.decode("latin-1"), "byte", "line"))
    vocabulary = build_vocabulary([*sentences, ["x"]], "byte")
    ids = vocabulary.encode(sentences)
    again = "".join("\n" if i == END_ID else vocabulary.units[i] for i in ids).encode("latin-1")
    assert again == raw.removesuffix(b"\n") + b"\n"


@settings(max_examples=50)
@given(st.lists(st.integers(2, 9), min_size=30, max_size=90), st.integers(1, 5), st.integers(1, 7))
def test_stream_rows_are_the_text(tokens, batch, length):
    tokens = np.asarray(tokens, np.int32)
    batches = StreamBatches(tokens, batch, length)
    steps = [batches.at(k) for k in range(batches.steps_per_epoch)]
    targets = np.concatenate([s.targets for s in steps]).T  # [B, T]
    inputs = np.concatenate([s.inputs for s in steps]).T
    per_row = len(tokens) // batch
    for row in range(batch):
        expected = tokens[row * per_row :][: targets.shape[1]]
        np.testing.assert_array_equal(targets[row], expected)
        np.testing.assert_array_equal(inputs[row, 1:], expected[:-1])
        before = tokens[row * per_row - 1] if row else END_ID
        assert inputs[row, 0] == before
    assert [bool(s.reset) for s in steps] == [True] + [False] * (len(steps) - 1)


def sentences_of(batches, steps):
    found = []
    for step in steps:
        batch = batches.at(step)
        for row in range(batch.inputs.shape[1]):
            length = batch.mask[:, row].sum()
            assert batch.mask[:length, row].all()
            if length:
                found.append(tuple(batch.targets[:length, row]))
                assert batch.inputs[0, row] == END_ID
                np.testing.assert_array_equal(
                    batch.inputs[1:length, row], batch.targets[: length - 1, row]
                )
    return sorted(found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 6))
def test_an_epoch_of_sentences_is_every_sentence_once(lengths, batch):
    tokens = np.concatenate([[*range(2, 2 + n), END_ID] for n in lengths]).astype(np.int32)
    batches = SentenceBatches(tokens, batch, 64)
    expected = sorted((*range(2, 2 + n), END_ID) for n in lengths)
    per_epoch = batches.steps_per_epoch
    assert sentences_of(batches, range(per_epoch)) == expected
    assert sentences_of(batches, range(per_epoch, 2 * per_epoch)) == expected


def test_long_sentences_are_cut_and_lose_nothing():
    tokens = np.asarray([*range(2, 25), END_ID, 3, END_ID], np.int32)
    starts, lengths = cut_sentences(tokens, 10)
    assert lengths.tolist() == [10, 10, 4, 2]
    rebuilt = np.concatenate([tokens[s : s + n] for s, n in zip(starts, lengths, strict=True)])
    np.testing.assert_array_equal(rebuilt, tokens)


@pytest.mark.parametrize("kind", ["stream", "sentences"])
def test_a_batch_is_a_pure_function_of_the_step(kind):
    tokens = np.random.default_rng(0).integers(1, 9, 3000).astype(np.int32)

    def make():
        if kind == "stream":
            return StreamBatches(tokens, 4, 9)
        return SentenceBatches(tokens, 4, 32, seed=5)

    walked, jumped = make(), make()
    for step in range(3 * walked.steps_per_epoch):
        walked.at(step)
    for step in (2 * walked.steps_per_epoch + 3, 1, 7):
        for a, b in zip(walked.at(step), jumped.at(step), strict=True):
            np.testing.assert_array_equal(a, b)
    block = jumped.block(5, 4)
    for k in range(len(block.reset)):
        np.testing.assert_array_equal(block.inputs[k], jumped.at(5 + k).inputs)


def test_sentences_are_shuffled_by_seed_and_epoch():
    tokens = np.random.default_rng(0).integers(1, 9, 3000).astype(np.int32)
    one, other = SentenceBatches(tokens, 4, 32, seed=0), SentenceBatches(tokens, 4, 32, seed=1)
    first = [one.at(k).targets.tobytes() for k in range(one.steps_per_epoch)]
    second = [one.at(k + one.steps_per_epoch).targets.tobytes() for k in range(len(first))]
    assert first != second
    assert first != [other.at(k).targets.tobytes() for k in range(len(first))]


def test_austen_is_shipped_and_whole():
    corpus = load_corpus(DataConfig())
    assert len(corpus.vocabulary) == 9268  # about 9,300 at min count 2
    assert 0.004 < np.mean(corpus.splits["valid"] == UNKNOWN_ID) < 0.02
    assert corpus.sha256 == load_corpus(DataConfig()).sha256
    assert corpus.sha256 != load_corpus(DataConfig(max_vocabulary=100)).sha256
    chars = load_corpus(DataConfig(level="char"))
    assert len(chars.vocabulary) == 81  # 80 characters, the newline being <eos>, and <unk>


@pytest.mark.parametrize(
    ("name", "vocabulary", "tokens"),
    [
        ("ptb", 10_000, (929_589, 73_760, 82_430)),
        ("ptb-char", 51, (5_017_482, 393_042, 442_423)),
        ("wikitext-2", 33_278, (2_088_628, 217_646, 245_569)),
        ("wikitext-103", 267_735, (103_227_021, 217_646, 245_569)),
        ("text8", 29, (90_000_001, 5_000_001, 5_000_001)),  # 27 characters, <unk>, <eos>
    ],
)
def test_published_counts(name, vocabulary, tokens, data_dir):
    """Counts of Zaremba et al. 2014, Mikolov et al. 2012 and Merity et al. 2016."""
    source = CORPORA[name]
    if not look_for(source, data_dir):
        pytest.skip(f"{name} is not at {data_dir}")
    corpus = load_corpus(DataConfig(corpus=name, data_dir=str(data_dir)))
    assert len(corpus.vocabulary) == vocabulary
    assert tuple(len(corpus.splits[s]) for s in ("train", "valid", "test")) == tokens


def test_tinyshakespeare_has_65_characters(data_dir):
    corpus = load_corpus(DataConfig(corpus="tinyshakespeare", data_dir=str(data_dir)))
    assert len(corpus.vocabulary) == 66  # 65 and <unk>
    assert sum(len(s) for s in corpus.splits.values()) == 1_115_394


def test_a_file_is_cut_90_5_5(tmp_path):
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress("".join(f"line {k}\n" for k in range(100)).encode()))
    corpus = load_corpus(DataConfig(corpus=str(path)))
    counts = {split: int((t == END_ID).sum()) for split, t in corpus.splits.items()}
    assert counts == {"train": 90, "valid": 5, "test": 5}


def test_a_folder_of_texts_is_one_text(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("word\n" * 20)
    corpus = load_corpus(DataConfig(corpus=str(tmp_path)))
    assert sum(len(s) for s in corpus.splits.values()) == 80


def write(path, content):
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"PNG\0\1\2" * 50, "binary"),
        (b"caf\xe9\n" * 50, "not UTF-8"),
        (b"one line\n", "at least 20"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, content, words):
    path = write(tmp_path / "x.txt", content)
    with pytest.raises(ValueError, match=words):
        load_corpus(DataConfig(corpus=path))


@pytest.mark.parametrize("keep", [20, -9])
def test_a_damaged_gz_is_named(tmp_path, keep):
    path = write(tmp_path / "x.txt.gz", gzip.compress(b"some text\n" * 99)[:keep])
    with pytest.raises(ValueError, match="damaged"):
        load_corpus(DataConfig(corpus=path))


def test_a_split_without_a_sentence_is_named(tmp_path):
    path = write(tmp_path / "x.txt", b"Words are here.\n" * 50 + b"\n" * 100)
    with pytest.raises(ValueError, match="no sentence"):
        load_corpus(DataConfig(corpus=path, sentences="prose"))


def test_bytes_take_any_file(tmp_path):
    path = write(tmp_path / "x.bin", b"\0\xff\xe9\n" * 40)
    corpus = load_corpus(DataConfig(corpus=path, level="byte"))
    assert len(corpus.vocabulary) == 5


@pytest.mark.parametrize("name", ["austin", "no/such/file.txt"])
def test_unknown_corpora_are_named(name):
    with pytest.raises(ValueError, match=r"unknown; did you mean .austen|no such file"):
        load_corpus(DataConfig(corpus=name))


def test_a_named_corpus_must_be_the_published_one(tmp_path):
    (tmp_path / "ptb").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / CORPORA["ptb"].files[split][0]).write_text("not the published text\n")
    with pytest.raises(ValueError, match="sha256"):
        load_corpus(DataConfig(corpus="ptb", data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="--data_dir"):
        load_corpus(DataConfig(corpus="ptb", data_dir=str(tmp_path / "elsewhere")))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("ptb", "penn/{split}.txt"),
        ("ptb", "simple-examples/data/ptb.{split}.txt"),
        ("ptb", "ptb.{split}.txt.gz"),
        ("wikitext-2", "wikitext-2/wiki.{split}.tokens"),
    ],
)
def test_layouts_that_corpora_are_found_in(tmp_path, data_dir, name, layout):
    source = CORPORA[name]
    for split, files in source.files.items():
        path = tmp_path / layout.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = (data_dir / files[0]).read_bytes()
        path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)
    found = look_for(source, tmp_path)
    assert found.keys() == source.files.keys()
    for split, part in found.items():
        whole = "".join(read_blocks(part))  # which checks the digest
        assert whole == (data_dir / source.files[split][0]).read_text()
    (tmp_path / layout.format(split="valid")).unlink()
    assert not look_for(source, tmp_path)


def test_an_archive_of_ptb_is_read(tmp_path, data_dir):
    with tarfile.open(tmp_path / "simple-examples.tgz", "w:gz", compresslevel=1) as archive:
        for split in ("train", "valid", "test"):
            name = f"ptb.{split}.txt"
            archive.add(data_dir / "ptb" / name, f"./simple-examples/data/{name}")
    found = load_corpus(DataConfig(corpus="ptb", data_dir=str(tmp_path)))
    assert len(found.splits["train"]) == 929_589
    assert [p.name for p in tmp_path.iterdir()] == ["simple-examples.tgz"]


@given(st.lists(st.sampled_from(["a", "b c", " ", "\n", " \n ", "\n\n"]), min_size=1, max_size=20))
def test_underscored_lines(pieces):
    """Mikolov's characters of PTB: lines stripped, `_` for a space, wherever blocks are cut."""
    lines = "".join(pieces).split("\n")
    assert "".join(underscore(pieces)) == "\n".join(x.strip().replace(" ", "_") for x in lines)


@settings(max_examples=50)
@given(st.text("aé漢", min_size=1, max_size=30), st.integers(1, 20), st.integers(1, 20))
def test_a_text_cut_at_bytes_keeps_its_characters(whole, first, second):
    cut = list(cut_at_bytes([whole[:3], whole[3:]], (first, second), "utf-8"))
    assert "".join(block for _, block in cut) == whole
    train = "".join(block for split, block in cut if split == "train").encode()
    assert len(train) <= first
    assert first - len(train) < 3 or train == whole.encode()


@pytest.mark.parametrize("name", ["text8", "enwik8"])
def test_the_last_ten_million_are_valid_and_test(name):
    assert CORPORA[name].cut == (90_000_000, 5_000_000)
    blocks = ["a" * 30_000_000] * 3 + ["b" * 5_000_000 + "c" * 5_000_000]
    found = dict(cut_at_bytes(blocks, CORPORA[name].cut, "utf-8"))
    assert (found["valid"], found["test"]) == ("b" * 5_000_000, "c" * 5_000_000)
