"""Surprisal: the oracle's numbers, the words as they were written, sums that are evaluate's."""

import csv
import dataclasses
import io
import json
import sys
import unicodedata
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from command_line import TINY, assert_one_line, call, write_book
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import evaluate, score, trained
from lm import model, surprisal
from lm.config import ModelConfig
from lm.data.text import read_text, split_lines, split_prose, tokenize, tokenize_words
from lm.data.vocabulary import END_ID, UNKNOWN_ID, build_vocabulary
from lm.evaluate import evaluate_sentences, evaluate_stream, make_forward
from lm.surprisal import make_entropy_forward, measure_surprisal, next_entropy

V = 13
SMALL = ModelConfig(hidden_size=8, embedding_size=8)
TOKENS = np.random.default_rng(0).integers(2, V, 60).astype(np.int32)
TOKENS[[0, 6, 12, 13, 19, 27, 30, 37, 44, 52, 59]] = END_ID  # sentences of one to eight tokens
FORWARD = make_forward(SMALL)
ENTROPY = make_entropy_forward(SMALL)

# Words that tokenisers trip over: lower case that is longer, accents, quotes, other scripts.
HARD = (
    "The house, \"so he said\" -- wasn't İstanbul's ΟΔΟΣ. <unk> <eos> _a_ b|c $5\n"
    "\n"
    "  나는\t학교에 \x0b 간다. cafe\u0301, 👩‍👩‍👧 ❤️ 10\u00a0km \u2028 end\r middle\n"
    '"" \' , \u200b\n'
    "last line"
)


def params_of(seed=0, scale=3.0):
    """Weights three times as large as at the start: far from a uniform model."""
    return jax.tree.map(lambda a: a * scale, model.init(jax.random.key(seed), SMALL, V))


def to_oracle(params):
    layers = [
        {k: np.array(getattr(layer, k), np.float64) for k in ("w_x", "w_h", "b")}
        for layer in params.layers
    ]
    return {
        "layers": layers,
        "embedding": np.array(params.embedding, np.float64),
        "softmax_w": np.array(model.softmax_weights(params), np.float64),
        "softmax_b": np.array(params.softmax_b, np.float64),
    }


def oracle_nats(params, tokens, targets, context):
    """nll of `targets`, which stand in place of `tokens` for the prediction alone."""
    pieces = [np.arange(len(tokens))]
    if context == "sentence":
        pieces = np.split(pieces[0], np.flatnonzero(tokens == END_ID) + 1)
    return np.concatenate(
        [
            oracles.model_nats(
                "lstm", params, np.concatenate([[END_ID], tokens[part][:-1]]), targets[part]
            )
            for part in pieces
            if len(part)
        ]
    )


@pytest.mark.parametrize("context", ["text", "sentence"])
def test_every_token_has_the_oracles_surprisal_and_entropy(context):
    params = params_of()
    exact, tokens = to_oracle(params), TOKENS
    expected = oracle_nats(exact, tokens, tokens, context)
    every = np.stack([oracle_nats(exact, tokens, np.full(60, v), context) for v in range(V)])
    entropy = (np.exp(-every) * every).sum(axis=0)
    assert np.ptp(entropy) > 0.5
    for batch, length in ((1, 64), (3, 7)):
        options = {"context": context, "batch": batch, "length": length}
        found = measure_surprisal(SMALL, params, tokens, FORWARD, **options)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        found = measure_surprisal(SMALL, params, tokens, ENTROPY, **options)
        np.testing.assert_allclose(found, entropy, rtol=2e-5, atol=2e-5)


def test_surprisals_sum_to_what_evaluate_says():
    params = params_of()
    stream = evaluate_stream(SMALL, params, TOKENS, batch=3, length=7, forward=FORWARD)
    sentences = evaluate_sentences(SMALL, params, TOKENS, batch=3, forward=FORWARD)
    for context, result in (("text", stream), ("sentence", sentences)):
        nats = measure_surprisal(SMALL, params, TOKENS, FORWARD, context=context, batch=1)
        np.testing.assert_allclose(nats.sum(), result.nats, rtol=1e-6)
    with pytest.raises(ValueError, match="did you mean 'text'"):
        measure_surprisal(SMALL, params, TOKENS, FORWARD, context="txt")
    with pytest.raises(ValueError, match="no token"):
        measure_surprisal(SMALL, params, TOKENS[:0], FORWARD)


def test_entropy_of_known_distributions_in_chunks_of_any_size(monkeypatch):
    params = jax.tree.map(jnp.zeros_like, params_of())
    h = jnp.zeros((11, 8))
    np.testing.assert_allclose(next_entropy(params, h), np.log(V), rtol=1e-6)
    certain = params._replace(softmax_b=params.softmax_b.at[3].set(1e30))
    np.testing.assert_array_equal(next_entropy(certain, h), 0)
    certain = params._replace(softmax_b=jnp.full(V, -jnp.inf).at[3:5].set(0))
    np.testing.assert_allclose(next_entropy(certain, h), np.log(2), rtol=1e-6)
    h = jax.random.normal(jax.random.key(0), (11, 8))
    whole = next_entropy(params_of(), h)
    monkeypatch.setattr(surprisal, "chunk_rows", lambda *_: 4)
    np.testing.assert_allclose(next_entropy(params_of(), h), whole, rtol=1e-6)


# ---- words and their tokens


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.sampled_from(" \t\n\r\x0b\x1c\x85\u00a0\u2028.,-_'’\"<>!?()AΣσİßǅ나e\u0301👩\u200d"),
            st.characters(blacklist_categories=("Cs",)),
        ),
        max_size=40,
    ),
    st.sampled_from(["word", "whitespace", "char", "byte"]),
    st.sampled_from(["line", "prose"]),
    st.sampled_from(["after", "before"]),
)
def test_words_have_the_tokens_of_the_text(source, level, rule, space):
    """Cut into words, a text has the tokens that training and evaluation make of it."""
    text = source.encode().decode("latin-1") if level == "byte" else source
    cut = list(tokenize_words(text, level, rule, space))
    assert [[u for w in words for u in w.units] for words in cut] == list(
        tokenize(text, level, rule)
    )
    assert all(word.units for words in cut for word in words)
    prose = rule == "prose" and level in ("word", "whitespace")
    sentences = list(split_prose(source)) if prose else split_lines(source)
    assert [[w.text for w in words if w.text] for words in cut] == [s.split() for s in sentences]


def test_bytes_that_are_no_utf8_are_kept():
    raw = b"caf\xe9 \xf0\x9f na\xc3\xafve\r"
    cut = list(tokenize_words(raw.decode("latin-1"), "byte", "line"))
    assert [w.text for w in cut[0]] == ["caf\udce9", "\udcf0\udc9f", "naïve"]
    assert "".join(u for w in cut[0] for u in w.units).encode("latin-1") == raw


@pytest.mark.parametrize(
    ("text", "level", "units", "bare"),
    [
        ("“House,”", "word", ["“", "house", ",", "”"], ["house"]),
        ("aunt--surprised!", "word", ["aunt", "--", "surprised", "!"], ["aunt", "--", "surprised"]),
        ("cafe\u0301,", "word", ["cafe", "\u0301", ","], ["cafe", "\u0301"]),
        ("<unk>", "word", ["<unk>"], ["<unk>"]),
        ("--", "word", ["--"], []),
        ("❤️", "char", list("❤️"), []),
        ("house,", "whitespace", ["house,"], ["house,"]),
        ("(he's)", "char", list("(he's)"), list("he's")),
        ("학!", "byte", list("\xed\x95\x99!"), list("\xed\x95\x99")),
    ],
)
def test_what_a_word_is_made_of(text, level, units, bare):
    source = text.encode().decode("latin-1") if level == "byte" else text
    ((word,),) = tokenize_words(source, level, "line")
    assert word.text == text
    assert list(word.units) == units
    assert list(word.units[word.bare]) == bare


def test_white_space_goes_to_a_neighbour():
    def cut(space):
        lines = tokenize_words("  a  bc \n \n", "char", "line", space)
        return [[(w.text, "".join(w.units)) for w in line] for line in lines]

    assert cut("after") == [[("a", "  a  "), ("bc", "bc ")], [("", " ")]]
    assert cut("before") == [[("a", "  a"), ("bc", "  bc ")], [("", " ")]]


# ---- the command


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run that `train` made."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    book = write_book(folder.parent)
    done = call("train", f"--corpus={book}", f"--run={folder}", "--steps=2", *TINY)
    assert done.returncode == 0, done.stderr
    return trained.load_run(str(folder)), book


# Compiled once for all tests.
make_forward, make_entropy_forward = cache(make_forward), cache(make_entropy_forward)


@pytest.fixture
def runs(real, monkeypatch, tmp_path):
    """`load_run` by the level of the text, with `-sentences` for runs trained on sentences."""
    monkeypatch.chdir(tmp_path)
    known = HARD.replace("house", "").replace("학", "")

    def load(name, *_):
        level, _, batching = name.partition("-")
        config = real[0].config
        if batching:
            data = dataclasses.replace(config.data, batching=batching)
            config = dataclasses.replace(config, data=data)
        found = real[0]._replace(folder=tmp_path, config=config)
        if level == "book":
            return found
        source = known.encode().decode("latin-1") if level == "byte" else known
        vocabulary = build_vocabulary(tokenize(source, level, "line"), level)
        params = model.init(jax.random.key(0), config.model, len(vocabulary))
        return found._replace(vocabulary=vocabulary, params=params)

    monkeypatch.setattr(score, "make_forward", make_forward)
    monkeypatch.setattr(score, "make_entropy_forward", make_entropy_forward)
    monkeypatch.setattr(score, "load_run", load)
    monkeypatch.setattr(evaluate, "load_run", load)
    return load


def read_table(path, delimiter="\t"):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def bits_of(rows):
    return sum(float(row["surprisal"]) for row in rows)


@pytest.mark.parametrize("name", ["book", "book-sentences"])
def test_the_rows_make_the_perplexity_that_evaluate_says(name, runs, real):
    path = real[1]
    done = call("score", path, f"--run={name}", "--output=out.tsv")
    assert done.returncode == 0, done.stderr
    rows = read_table("out.tsv")
    done_too = call("evaluate", f"--run={name}", f"--text={path}")
    assert done_too.returncode == 0, done_too.stderr
    expected = json.loads(Path("evaluation.json").read_text())[str(path)]
    tokens = sum(int(row["tokens"]) for row in rows)
    assert tokens == expected["tokens"]
    perplexity = np.exp(bits_of(rows) * np.log(2) / tokens)
    np.testing.assert_allclose(perplexity, expected["perplexity"], rtol=1e-5)
    assert f"perplexity {perplexity:.2f} " in done.stdout
    assert f"{tokens:,} tokens" in done.stdout
    assert ("context text" if name == "book" else "context sentence") in done.stdout


@pytest.mark.parametrize("level", ["word", "whitespace", "char", "byte"])
def test_a_hard_text_comes_back_as_it_was_written(level, runs, tmp_path):
    """BOM and CRLF gone, everything else as it was; in CSV too; line numbers; exact sums."""
    path = tmp_path / "hard.txt"
    path.write_bytes(b"\xef\xbb\xbf" * (level != "byte") + HARD.replace("\n", "\r\n").encode())
    flags = [path, f"--run={level}", "--overwrite"]
    (found,) = score.run(score.Config(run=level, files=(str(path),), output="out.csv"))
    rows = read_table("out.csv", ",")
    lines = [line.split() for line in HARD.split("\n")]
    expected = [
        (str(n), str(k), word)
        for n, words in enumerate(lines, 1)
        for k, word in enumerate([*words, "<eos>"], 1)
    ]
    assert [(r["sentence"], r["position"], r["word"]) for r in rows] == expected
    np.testing.assert_allclose(bits_of(rows), found.bits.sum(), rtol=1e-6)
    assert sum(int(row["tokens"]) for row in rows) == len(found.bits)
    encoding = "latin-1" if level == "byte" else "utf-8"
    sentences = tokenize(read_text(path, encoding), level, "line")
    np.testing.assert_array_equal(found.ids, runs(level).vocabulary.encode(sentences))
    # A row a token: the same words, parted.
    entropy = ["--entropy"] * (level == "word")
    assert call("score", *flags, "--units=token", *entropy, "--output=t.tsv").returncode == 0
    parts = read_table("t.tsv")
    assert list(dict.fromkeys((r["sentence"], r["position"], r["word"]) for r in parts)) == expected
    np.testing.assert_allclose(
        [float(r["surprisal"]) for r in parts], found.bits, rtol=1e-5, atol=1e-5
    )
    if entropy:
        most = np.log2(len(runs(level).vocabulary)) + 1e-4
        assert all(0 < float(r["entropy"]) < most for r in parts)


def test_unknown_words_are_flagged_and_cost_what_unk_costs(runs, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the house, said\nthe zyzzyva, said\n")
    assert call("score", path, "--run=word", "--output=a.tsv", "--context=sentence").returncode == 0
    rows = read_table("a.tsv")
    assert [r["in_vocabulary"] for r in rows] == ["1", "0", "1", "1"] * 2
    assert [r["split"] for r in rows[:4]] == ["the", "house ,", "said", "<eos>"]
    assert [r["surprisal"] for r in rows[:4]] == [r["surprisal"] for r in rows[4:]]
    run = runs("word")
    _, h = model.apply(
        run.config.model,
        run.params,
        model.init_carry(run.config.model, 1),
        jnp.asarray([[END_ID], [run.vocabulary.ids["the"]]]),
    )
    log_p = jax.nn.log_softmax(model.logits(run.params, h[-1])[0])
    bare = float(rows[1]["surprisal_bare"])
    np.testing.assert_allclose(bare, -log_p[UNKNOWN_ID] / np.log(2), rtol=1e-5)
    assert bare < float(rows[1]["surprisal"])


def test_context_and_sentence_rules(runs, tmp_path):
    """A sentence alone is the same after any other; in the text it is not."""
    path = tmp_path / "a.txt"
    path.write_text("He said so. The end was\nlast. He said so.\n")
    tables = {}
    for context in ("text", "sentence"):
        flags = [f"--context={context}", "--sentences=prose", f"--output={context}.tsv"]
        assert call("score", path, "--run=word", *flags).returncode == 0
        tables[context] = read_table(f"{context}.tsv")
        assert [r["sentence"] for r in tables[context]] == list("11112222" + "23333")[:13]
    for context, same in (("text", False), ("sentence", True)):
        first, last = ([r["surprisal"] for r in tables[context]][k] for k in (0, 9))
        assert (first == last) is same
    assert call("score", path, "--run=word", "--output=line.tsv", "--noeos").returncode == 0
    rows = read_table("line.tsv")
    assert [r["sentence"] for r in rows] == list("111111") + list("2222")
    assert "<eos>" not in [r["word"] for r in rows]


def test_columns_of_a_character_model(runs):
    done = call("score", "--text=the  end", "--run=char", "--entropy")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
    assert [(r["word"], r["split"]) for r in rows] == [
        ("the", "t h e ␣ ␣"),
        ("end", "e n d"),
        ("<eos>", "<eos>"),
    ]
    parts = call("score", "--text=the  end", "--run=char", "--units=token", "--entropy").stdout
    parts = list(csv.DictReader(io.StringIO(parts), delimiter="\t"))
    bits = [float(p["surprisal"]) for p in parts]
    np.testing.assert_allclose(float(rows[0]["surprisal"]), sum(bits[:5]), atol=1e-5)
    np.testing.assert_allclose(float(rows[0]["surprisal_bare"]), sum(bits[:3]), atol=1e-5)
    assert [r["entropy"] for r in rows] == [parts[k]["entropy"] for k in (0, 5, 8)]
    before = call("score", "--text=the  end", "--run=char", "--space=before").stdout
    assert "␣ ␣ e n d" in before
    blank = call("score", "--text=a\n \nb", "--run=char").stdout.splitlines()
    assert [line.split("\t")[2] for line in blank[1:]] == ["a", "<eos>", "<eos>", "b", "<eos>"]
    assert blank[3].split("\t")[-1] == "␣ <eos>"


def test_standard_input_and_output(runs, monkeypatch):
    raw = b'the "end"\r\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    done = call("score", "-", "--run=word")
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == [
        "word",
        "the",
        '"""end"""',
        "<eos>",
    ]
    assert "stdin: perplexity" in done.stderr
    assert "perplexity" not in done.stdout
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert_one_line(call("score", "-", "--run=word"), "standard input: not UTF-8")


def test_tables_are_not_overwritten_and_files_keep_apart(runs, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("the end\n")
        (tmp_path / folder / f"{folder}.txt").write_text(f"the end {folder}\n")
    done = call("score", "a/a.txt", "b/b.txt", "--run=word")
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        rows = read_table(f"{name}.txt.surprisal.tsv")
        assert [r["word"] for r in rows] == ["the", "end", name, "<eos>"]
    before = (tmp_path / "a.txt.surprisal.tsv").read_text()
    assert_one_line(call("score", "a/a.txt", "--run=char"), "exists", "--overwrite")
    assert (tmp_path / "a.txt.surprisal.tsv").read_text() == before
    assert call("score", "a/a.txt", "--run=char", "--overwrite").returncode == 0
    assert (tmp_path / "a.txt.surprisal.tsv").read_text() != before
    assert_one_line(call("score", "a/x.txt", "b/x.txt", "--run=word"), "table of two files")


def test_a_figure_of_the_first_words(runs, tmp_path):
    flags = ["--text=costs $x^$ 나는 <unk>", "--run=word", "--plot", "--entropy"]
    assert_one_line(call("score", *flags), "--output=FILE")
    done = call("score", *flags, "--output=bars.tsv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bars.png").stat().st_size > 5000
    drawn = (tmp_path / "bars.svg").read_text()
    assert "나는" in drawn
    assert "$x^$" in drawn
    (tmp_path / "bars.tsv").unlink()
    assert_one_line(call("score", *flags, "--output=bars.tsv"), "bars.png exists")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ("neither was given",)),
        (["x.txt", "--text=hello"], ("both were given",)),
        (["x.txt", "y.txt", "--output=z.tsv"], ("for 2 files",)),
        (["nowhere.txt"], ("no such file",)),
        (["--text=  "], ("text: empty",)),
        (["--text=the end", "--output=no/such/folder/x.tsv"], ("cannot be written",)),
        (["--text=the end", "--output=."], ("cannot be written",)),
        (["--text=caf\udce9"], ("text: not UTF-8",)),
        (["--text=the end", "--context=txt"], ("did you mean 'text'",)),
        (["--text=the end", "--units=letters"], ("wanted one of: word, token",)),
        (["--txt=the end"], ("did you mean 'text'",)),
    ],
)
def test_mistakes(runs, flags, words):
    assert_one_line(call("score", "--run=word", *flags), *words)


def test_a_run_that_is_not_there(tmp_path):
    assert_one_line(call("score", "--text=hello", f"--run={tmp_path}"), "holds no run")


def test_hard_is_hard():
    """The text of these tests has what it is there for."""
    assert len("İ".lower()) == 2
    assert any(unicodedata.combining(c) for c in HARD)
    assert {"\u00a0", "\u2028", "\x0b", "\r", "\t", '"'} <= set(HARD)
