"""One sentence, read by two models: its numbers by other routes, and what a user sees."""

import json
import re
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, assert_one_line, call, write_book

from experiments import figures, flags, walkthrough
from experiments.walk import cost
from experiments.walk.cost import count_sizes, measure_times, time_slope
from experiments.walk.drawing import format_left, label
from experiments.walk.reading import cut_sentence, gate_order, read_sentence
from experiments.walk.text import cell as column
from experiments.walk.text import format_p, show, width
from lm import model
from lm.config import ModelConfig
from lm.data.vocabulary import Vocabulary
from lm.evaluate import evaluate_sentences
from lm.gradients.flow import measure_lags

VOCABULARY = Vocabulary(("<unk>", "<eos>", *"abcdefghijklmnopqrs", "the", "cat", ",", "."), "word")
TEXT = "The cat, a b\n c unheard-of the d e CAT."


@pytest.fixture(scope="module")
def sentence():
    return cut_sentence(TEXT, VOCABULARY, "prose")


@lru_cache
def make_model(cell):
    config = ModelConfig(cell=cell, layers=2, hidden_size=8, embedding_size=6)
    init = jax.jit(partial(model.init, config=config, vocabulary=len(VOCABULARY)))
    return config, init(jax.random.key(3))


@lru_cache
def read(cell):
    sentence = cut_sentence(TEXT, VOCABULARY, "prose")
    return read_sentence(*make_model(cell), sentence, len(VOCABULARY))


def test_a_sentence_in_tokens(sentence):
    assert sentence.units[:5] == ("the", "cat", ",", "a", "b")
    assert sentence.units[-2:] == (".", "<eos>")
    assert sentence.units[sentence.last_word] == "cat"
    assert sum(sentence.targets == 0) == 3  # unheard - of
    np.testing.assert_array_equal(sentence.inputs[1:], sentence.targets[:-1])
    assert sentence.inputs[0] == 1
    assert cut_sentence("...", VOCABULARY, "line").last_word == 2
    byte = Vocabulary(("<unk>", "<eos>", *"\xc3\xa9"), "byte")
    assert cut_sentence("é", byte, "line").targets.tolist() == [2, 3, 1]
    with pytest.raises(ValueError, match="without a word"):
        cut_sentence(" \n", VOCABULARY, "prose")


def test_distributions_and_loss(sentence):
    reading = read("lstm")
    np.testing.assert_allclose(reading.top_p.sum(axis=1), 1, rtol=1e-5)
    assert (np.diff(reading.top_p, axis=1) <= 0).all()
    for k, target in enumerate(sentence.targets):
        place = reading.rank[k] - 1
        assert reading.top_ids[k, place] == target
        np.testing.assert_allclose(np.exp(-reading.nats[k]), reading.top_p[k, place], rtol=1e-5)
    whole = evaluate_sentences(*make_model("lstm"), sentence.targets, batch=1)
    np.testing.assert_allclose(reading.nats.sum(), whole.nats, rtol=1e-5)
    np.testing.assert_allclose(np.exp(reading.nats.mean()), whole.perplexity, rtol=1e-5)


def test_gradient_is_that_of_the_last_words_loss(sentence):
    config, params = make_model("lstm")
    reading = read("lstm")
    last, half = sentence.last_word, sentence.last_word // 2
    inputs = jnp.asarray(sentence.inputs[: last + 1, None])
    zero = model.init_carry(config, 1)
    target = jnp.asarray(sentence.targets[last : last + 1])
    lags = jax.jit(partial(measure_lags, config))(params, zero, inputs, target)[-1]
    np.testing.assert_allclose(reading.gradient, lags.state[::-1, 0], rtol=1e-6, atol=1e-6)

    @jax.jit
    def by_autodiff(carry):  # from the top layer's state after half of the inputs on
        def loss(top):
            _, h = model.apply(config, params, (carry[0], top), inputs[half + 1 :])
            return -jax.nn.log_softmax(model.logits(params, h[-1]))[0, target[0]]

        return jax.grad(loss)(carry[1])

    carry, _ = jax.jit(partial(model.apply, config))(params, zero, inputs[: half + 1])
    grad = np.concatenate([np.asarray(leaf).ravel() for leaf in by_autodiff(carry)])
    np.testing.assert_allclose(np.exp(reading.gradient[half]), np.linalg.norm(grad), rtol=1e-4)


def test_gates_make_the_cell_state(sentence):
    config, params = make_model("lstm")
    reading = read("lstm")
    gates, c, h = reading.gates, reading.state["c"], reading.state["h"]
    for name in "ifo":
        assert ((gates[name] > 0) & (gates[name] < 1)).all()
    c_prev = np.concatenate([np.zeros_like(c[:1]), c[:-1]])
    np.testing.assert_allclose(c, gates["f"] * c_prev + gates["i"] * gates["g"], rtol=1e-5)
    np.testing.assert_allclose(h, gates["o"] * np.tanh(c), rtol=1e-5)
    tokens = jnp.asarray(sentence.inputs[:, None])
    apply = jax.jit(partial(model.apply, config))
    _, expected = apply(params, model.init_carry(config, 1), tokens)
    np.testing.assert_allclose(h, expected[:, 0], rtol=1e-5, atol=1e-6)  # h crosses 0
    order = gate_order(gates, 4)
    assert len(set(order.tolist())) == 4
    assert (np.diff(gates["f"].mean(axis=0)[order]) <= 0).all()
    assert gate_order({"i": gates["i"]}, 3).tolist() == [0, 3, 7]


def test_parameters_do_not_depend_on_the_length():
    models = {cell: make_model(cell) for cell in ("rnn", "lstm")}
    rows = count_sizes(models, (1, 2, 64))
    for cell, (_, params) in models.items():
        assert {row[cell] for row in rows} == {model.count_parameters(params)}
    assert {row["rnn_core"] for row in rows} == {6 * 8 + 8 * 8 + 8 + 8 * 8 + 8 * 8 + 8}
    v, d, h = len(VOCABULARY), 6, 8
    for row in rows:
        n = row["length"]
        shapes = [(v, d), (n * d, h), (h,), (h, v), (v,)]
        assert row["window"] == sum(int(np.prod(shape)) for shape in shapes)
        assert row["table_log10"] == pytest.approx(np.log10(float(v**n * (v - 1))))
    # A window of one word is as large as one layer of an RNN without its recurrent weights.
    assert rows[0]["rnn"] - rows[0]["window"] == h * h + (2 * h * h + h)


def test_times(monkeypatch):
    monkeypatch.setattr(cost, "ROUNDS", 1)
    rows = measure_times(*make_model("rnn"), (2, 4))
    assert [row["length"] for row in rows] == [2, 4]
    for row in rows:
        assert all(0 < row[what] < 1 for what in ("forward", "both", "side_by_side"))
    lengths = np.asarray([16, 256, 1024, 4096])
    assert time_slope(lengths, 3e-6 * lengths + 0.0, 256) == pytest.approx(1)
    assert time_slope(lengths[:2], lengths[:2] ** 2.0, 256) == pytest.approx(2)


def test_signs_that_terminals_and_figures_find_hard():
    assert show("<eos>") == "(end)"
    assert show("\x1b[2J") == "\\x1b[2J"
    assert width("naïve 東京e\u0301") == 6 + 4 + 1
    assert column("東京タワー", 6) == "東京… "
    assert column("ab", 4, right=True) == "  ab"
    assert label("東$x") == "□\\$x"
    assert len(label("x" * 99)) == 14
    assert [format_p(p) for p in (1, 0.0999, 0.0123, 0.00012, 3e-9)] == [
        "100 %",
        "10 %",
        "1.2 %",
        "0.01 %",
        "3e-07 %",
    ]
    assert [format_left(x) for x in (0.0, -1.02, -1.5, -3, -40, -np.inf)] == [
        "100 %",
        "10 %",
        "3 %",
        "0.1 %",
        "$10^{-40}$",
        "0",
    ]


def test_the_sentence_needs_no_flag():
    parse = partial(flags.parse, walkthrough.Config, program="walkthrough", doc="")
    assert parse(["it", "was", "--top=3", "so,", "very"]).sentence == "it was so, very"
    assert parse(["--top=3"]).sentence == walkthrough.SENTENCE
    assert parse(["--", "--and then"]).sentence == "--and then"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A walkthrough that trains its own models on a small text."""
    folder = tmp_path_factory.mktemp("walk")
    book = write_book(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(figures.STYLE, "savefig.dpi", 30)
        # A worker of the suite is given another width, where lines end elsewhere.
        patch.setenv("COLUMNS", "100")
        patch.setattr(cost, "ROUNDS", 1)
        text = "The cat on 東京 $5 \x07 ran."
        options = [f"--corpus={book}", "--steps=4", "--longest=64", *TINY]
        done = call("walkthrough", text, f"--run={folder / 'w'}", *options)
    assert done.returncode == 0, done.stderr
    return folder / "w", done


@pytest.mark.whole
def test_a_walkthrough_from_nothing(made):
    folder, done = made
    assert (folder / "walkthrough.txt").read_text(encoding="utf-8").strip() in done.stdout
    assert max(map(len, done.stdout.split("=" * 100, 1)[1].splitlines()[1:-9])) <= 100
    for words in ("the 5 likeliest", "J = (", "perplexity = exp(J)", "<unk>", "東京", "\\x07"):
        assert words in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert [row["cell"] for row in results["models"]] == ["rnn", "lstm"]
    for row in results["models"]:
        losses = [word["nats"] for word in results["words"] if word["cell"] == row["cell"]]
        assert len(losses) == row["tokens"] == 10
        assert np.exp(np.mean(losses)) == pytest.approx(row["perplexity"])
        assert row["unknown"] == 4
        assert (folder / row["cell"] / "checkpoints").is_dir()
    with np.load(folder / "results.npz") as arrays:
        assert {name.split("/")[0] for name in arrays if "/gate/" in name} == {"lstm"}
        assert arrays["rnn/gradient"].shape == (results["last_word"] + 1,) == (8,)
    names = {path.name for path in (folder / "figures").iterdir()}
    stems = ["1_sentence", "2_next_words_rnn", "2_next_words_lstm", "3_loss"]
    stems += ["4_time_against_length", "5_parameters_against_length"]
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    drawn = (folder / "figures" / "1_sentence.svg").read_text(encoding="utf-8")
    assert "□□" in drawn
    said = " ".join(re.findall(r">([^<]+)</", drawn))
    assert "tanh RNN at its start: embeddings of standard deviation 1; LSTM at its start" in said
    assert "forget bias 1, embeddings" in said


@pytest.mark.whole
@pytest.mark.parametrize("text", ["cat", "the dog ran to the cat . " * 6])
def test_short_and_long(text, made, tmp_path, monkeypatch):
    times = {"forward": 1.0, "both": 1.0, "side_by_side": 1.0}
    rows = [{"length": length, **times} for length in (16, 64)]
    monkeypatch.setattr(walkthrough, "measure_times", lambda *_: rows)
    drawn = []

    def draw(figure, folder, name):
        figure.set_dpi(30)
        figure.canvas.draw()  # a warning of the layout is an error here
        drawn.append(name)
        return []

    monkeypatch.setattr(figures, "save", draw)
    options = ["--cells=lstm", f"--run_lstm={made[0] / 'lstm'}"]
    done = call("walkthrough", text, f"--run={tmp_path / 'w'}", *options)
    assert done.returncode == 0, done.stderr
    assert len(drawn) == 5
    assert len((tmp_path / "w" / "walkthrough.txt").read_text().splitlines()) > len(text.split())


@pytest.mark.whole
def test_mistakes(made, tmp_path):
    new = f"--run={tmp_path / 'new'}"
    lstm = f"{made[0] / 'lstm'}"
    assert_one_line(call("walkthrough", "", new), "sentence is empty")
    assert_one_line(call("walkthrough", " \n ", new), "sentence is empty")
    assert_one_line(call("walkthrough", f"--run_rnn={lstm}", new), "run of cell lstm", "--cell=rnn")
    assert_one_line(call("walkthrough", f"--run_rnn={tmp_path}", new), "holds no run")
    assert_one_line(call("walkthrough", "--cells=gru", f"--run_lstm={lstm}", new), "cells is gru")
    assert_one_line(call("walkthrough", "--cells=lstm,lstm", new), "each once")
    assert_one_line(call("walkthrough", "--corpus=nowhere.txt", new), "no such file")
    assert_one_line(call("walkthrough", f"--run_lstm={lstm}", "--level=char", new), "level char")
    assert_one_line(call("walkthrough", "--cell=gru", new), "did you mean 'cells'")
    assert not (tmp_path / "new").exists()
