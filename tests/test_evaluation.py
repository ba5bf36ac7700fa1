"""Evaluation that adapts: against float64 loops, known answers, and that nothing leaks."""

import json

import command_line
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from command_line import TINY, assert_one_line, write_book

from experiments import flags as flags_of
from experiments import run_folder, train
from experiments.adapt import drawing, tuning
from lm import dynamic_evaluation, model, neural_cache
from lm.checkpoint import Checkpoints
from lm.config import ModelConfig
from lm.data.corpus import load_corpus
from lm.data.vocabulary import END_ID, Vocabulary
from lm.dynamic_evaluation import Rates, Statistics, measure_dynamic, measure_statistics
from lm.evaluate import (
    count_characters,
    cut_pieces,
    make_forward,
    read_blocks,
    read_pieces,
    sentence_nats,
    stream_nats,
)
from lm.neural_cache import Reading, measure_cache, mix
from lm.train import init_state

V = 13
CONFIG = ModelConfig(cell="rnn", layers=2, hidden_size=8, embedding_size=8)
TEXT = np.random.default_rng(0).integers(1, V, 203).astype(np.int32)
INPUTS = np.concatenate([[END_ID], TEXT[:-1]])
THETAS = (0.0, 8.0)
RATES = Rates(1e-2, 0.05, 1e-3)


@pytest.fixture(scope="module")
def params():
    """Larger than at the start of training, so that states and predictions differ."""
    return jax.tree.map(lambda a: 2 * a, model.init(jax.random.key(0), CONFIG, V))


@pytest.fixture(scope="module")
def forward():
    return make_forward(CONFIG)


@pytest.fixture(scope="module")
def cache_block():
    return neural_cache.make_block(CONFIG)


@pytest.fixture(scope="module")
def dynamic_block():
    return dynamic_evaluation.make_block(CONFIG)


@pytest.fixture(scope="module")
def statistics(params):
    return measure_statistics(CONFIG, params, np.tile(TEXT, 3), batch=7)


def to_oracle(params):
    layers = [
        {k: np.array(getattr(layer, k), np.float64) for k in ("w_x", "w_h", "b")}
        | {"vectors": [np.array(v, np.float64) for v in layer.vectors]}
        for layer in params.layers
    ]
    return {
        "layers": layers,
        "embedding": np.array(params.embedding, np.float64),
        "softmax_w": np.array(model.softmax_weights(params), np.float64),
        "softmax_b": np.array(params.softmax_b, np.float64),
    }


# How a text is cut, and what each token costs


@pytest.mark.parametrize("sentences", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_segments_hold_the_text_once_and_in_order(batch, sentences):
    pieces = cut_pieces(TEXT, 5, batch=batch, sentences=sentences)
    segments = read_pieces(TEXT, pieces, 5)
    flat = [np.moveaxis(a, 2, 0).reshape(-1) for a in segments[:3]]
    inputs, targets, mask = flat
    np.testing.assert_array_equal(targets[mask], TEXT)
    np.testing.assert_array_equal(inputs[mask], INPUTS)
    held = segments.mask.sum(axis=1)
    assert (np.sort(~segments.mask, axis=1) == ~segments.mask).all()  # padding stands last
    assert segments.reset[0].all()
    if not sentences:
        assert segments.reset.sum() == batch
        assert (held.T.ravel()[: len(TEXT) // 5] == 5).all()
    else:  # a sentence's first token, and only that, starts anew (but for the rows' starts)
        first = segments.inputs[:, 0] == END_ID
        assert (segments.reset | ~first | (held == 0)).all()
        assert (segments.reset[1:] == first[1:])[held[1:] > 0].all()
        ends = (segments.targets == END_ID) & segments.mask
        assert not (ends[:, :-1] & segments.mask[:, 1:]).any()


def test_blocks_have_one_shape():
    blocks = list(read_blocks(TEXT, cut_pieces(TEXT, 5), 5, 16))
    assert {b.inputs.shape for b in blocks} == {(16, 5, 1)}
    np.testing.assert_array_equal(
        np.concatenate([b.targets for b in blocks])[np.concatenate([b.mask for b in blocks])], TEXT
    )


def test_nats_of_each_token_stand_in_the_order_of_the_text(params, forward):
    expected = oracles.model_nats("rnn", to_oracle(params), INPUTS, TEXT)
    nats, _ = stream_nats(CONFIG, params, TEXT, batch=3, length=10, forward=forward)
    np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)  # states agree to 1e-5
    nats = sentence_nats(CONFIG, params, TEXT, batch=3, forward=forward)
    ends = np.flatnonzero(TEXT == END_ID)
    for start, stop in zip([0, *ends[:-1] + 1], ends + 1, strict=True):
        x, y = INPUTS[start:stop], TEXT[start:stop]
        alone = oracles.model_nats("rnn", to_oracle(params), x, y)
        np.testing.assert_allclose(nats[start:stop], alone, rtol=1e-4, atol=1e-5)


def test_characters_are_those_of_the_text():
    units = ("<unk>", "<eos>", "a", "bcd", "ef")
    lines = [["a", "bcd", "zz"], [], ["ef"]]
    words = Vocabulary(units, "whitespace")
    tokens = words.encode(lines)
    assert count_characters(words, tokens) == len("a bcd <unk>\n\nef\n")
    assert count_characters(words, tokens) == len(words.decode(tokens))
    chars = Vocabulary(("<unk>", "<eos>", "a", "b"), "char")
    tokens = chars.encode([list("abba"), list("b")])
    assert count_characters(chars, tokens) == len(chars.decode(tokens)) == 7


# The cache


@pytest.mark.parametrize(
    ("window", "sentences"), [(1, False), (20, True), (100, False), (500, False)]
)
def test_cache_equals_the_oracle(params, cache_block, forward, window, sentences):
    found = measure_cache(
        CONFIG, params, TEXT, window=window, thetas=THETAS, sentences=sentences, block=cache_block
    )
    weights = to_oracle(params)
    if sentences:
        pieces = np.split(np.arange(len(TEXT)), np.flatnonzero(TEXT == END_ID) + 1)
    else:
        pieces = [np.arange(len(TEXT))]
    read = [
        oracles.read_on("rnn", weights, oracles.zero_states("rnn", weights), INPUTS[p], TEXT[p])
        for p in pieces
        if len(p)
    ]
    h, nats = (np.concatenate([each[k] for each in read]) for k in (1, 2))
    np.testing.assert_allclose(found.nats, nats, rtol=1e-5, atol=1e-6)
    for k, theta in enumerate(THETAS):
        for weight in (0.0, 0.2):
            expected = oracles.cache_nats(h, nats, TEXT, window, theta, weight)
            np.testing.assert_allclose(mix(found, weight, k), expected, rtol=1e-5, atol=1e-6)


def test_a_cache_of_one_word_by_hand(params, cache_block):
    """It says: the same word again."""
    text = np.asarray([5, 5, 7, 7, 7, 2], np.int32)
    found = measure_cache(CONFIG, params, text, window=1, thetas=THETAS, block=cache_block)
    p = np.exp(-found.nats.astype(np.float64))
    expected = np.where([0, 1, 0, 1, 1, 0], 0.75 * p + 0.25, 0.75 * p)
    expected[0] = p[0]  # nothing is remembered yet
    np.testing.assert_allclose(np.exp(-mix(found, 0.25)), expected, rtol=1e-6)
    np.testing.assert_array_equal(np.isinf(mix(found, 1.0)), [0, 0, 1, 0, 0, 1])


def test_theta_zero_counts_words(params, cache_block):
    """Without likeness the cache is the share of the word among the last W."""
    found = measure_cache(CONFIG, params, TEXT, window=20, thetas=THETAS, block=cache_block)
    share = [np.mean(TEXT[max(0, t - 20) : t] == TEXT[t]) for t in range(1, len(TEXT))]
    np.testing.assert_allclose(np.exp(found.log_cache[1:, 0]), share, atol=1e-6)


# Dynamic evaluation


TINY_TEXT = np.random.default_rng(1).integers(1, 6, 14).astype(np.int32)
TINY_INPUTS = np.concatenate([[END_ID], TINY_TEXT[:-1]])


def tiny_params(tied):
    config = ModelConfig(hidden_size=2, embedding_size=2, tied=tied)
    return config, model.init(jax.random.key(3), config, 6, dtype=jnp.float64)


def tiny_oracle(params):
    """As `to_oracle`; where weights are tied, one array is a view of the other."""
    weights = to_oracle(params)
    if params.softmax_w is None:
        weights["softmax_w"] = weights["embedding"].T
    return weights


def as_params(arrays, like):
    """`arrays`, ordered as by `oracle_arrays`, in the place of those of `like`."""
    embedding, softmax_b, softmax_w, w_x, w_h, b = map(jnp.asarray, arrays)
    (layer,) = like.layers
    layer = layer._replace(w_x=w_x, w_h=w_h, b=b)
    return like._replace(
        embedding=embedding, layers=(layer,), softmax_w=softmax_w, softmax_b=softmax_b
    )


def oracle_arrays(params):
    """The arrays of `params` in the order of `oracles.parameter_arrays`."""
    (layer,) = params.layers
    arrays = [params.embedding, params.softmax_b]
    arrays += [] if params.softmax_w is None else [params.softmax_w]
    return [np.asarray(a) for a in (*arrays, layer.w_x, layer.w_h, layer.b, *layer.vectors)]


@pytest.mark.parametrize("batches", [0, 1])
def test_statistics_equal_the_oracle(x64, batches):
    config, params = tiny_params(tied=False)
    found = measure_statistics(config, params, TINY_TEXT, bptt=3, batch=2, batches=batches)
    rows = [slice(0, 9), slice(9, 14)]  # three segments each, the last ones short or empty
    if batches:
        rows = [slice(0, 3), slice(9, 12)]
    texts = [(TINY_INPUTS[row], TINY_TEXT[row]) for row in rows]
    expected = oracles.gradient_rms("lstm", tiny_oracle(params), texts, 3)
    for ours, theirs in zip(oracle_arrays(found.rms), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.mean, np.mean([a.mean() for a in expected]), rtol=1e-6)


@pytest.mark.parametrize(
    ("update", "decay", "tied"),
    [("rms", 0.02, False), ("rms", 0.9, False), ("sgd", 0.1, False), ("sgd", 0.1, True)],
)
def test_dynamic_evaluation_equals_the_oracle(x64, update, decay, tied):
    """With a decay of 0.9 the frequent parameters' is clipped at 1. The last segment is short."""
    config, params = tiny_params(tied)
    rates = Rates(0.02 if update == "rms" else 0.5, decay, 1e-3)
    statistics, rms = None, None
    if update == "rms":
        rms = [0.1 * np.random.default_rng(2).random(a.shape) for a in oracle_arrays(params)]
        mean = np.mean([a.mean() for a in rms])
        assert decay < 0.1 or max(a.max() for a in rms) * decay > mean
        statistics = Statistics(as_params(rms, params), jnp.asarray(mean))
    found = measure_dynamic(
        config, params, TINY_TEXT, rates, statistics, bptt=3, window=4, thetas=(1.5,)
    )
    nats, h = oracles.dynamic_nats(
        "lstm", tiny_oracle(params), TINY_INPUTS, TINY_TEXT, 3, *rates, rms=rms
    )
    np.testing.assert_allclose(found.nats, nats, rtol=1e-6)
    static = oracles.model_nats("lstm", to_oracle(params), TINY_INPUTS, TINY_TEXT)
    assert np.abs(nats - static).max() > 0.01
    mixed = oracles.cache_nats(h, nats, TINY_TEXT, 4, 1.5, 0.3)
    np.testing.assert_allclose(mix(found, 0.3), mixed, rtol=1e-6)


def test_rates_of_zero_are_static_evaluation(params, dynamic_block, statistics, forward):
    static, _ = stream_nats(CONFIG, params, TEXT, batch=1, forward=forward)
    found = measure_dynamic(
        CONFIG,
        params,
        TEXT,
        Rates(0.0, 0.3, 1e-3),
        statistics,
        window=20,
        thetas=THETAS,
        block=dynamic_block,
    )
    np.testing.assert_allclose(found.nats, static, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mix(found, 0.0, 1), found.nats, rtol=1e-12)


def test_adaptation_is_the_same_beside_a_cache_or_without(params, dynamic_block, statistics):
    alone = measure_dynamic(CONFIG, params, TEXT, RATES, statistics, block=dynamic_block)
    beside = measure_dynamic(
        CONFIG, params, TEXT, RATES, statistics, window=20, thetas=THETAS, block=dynamic_block
    )
    assert alone.log_cache.shape == (len(TEXT), 0)
    np.testing.assert_allclose(alone.nats, beside.nats, rtol=1e-5, atol=1e-6)


def test_each_sentence_starts_anew_but_what_is_learnt_stays(params, dynamic_block, forward):
    static = sentence_nats(CONFIG, params, TEXT, forward=forward)
    settings = {"window": 20, "thetas": THETAS, "sentences": True, "block": dynamic_block}
    still = measure_dynamic(CONFIG, params, TEXT, Rates(0.0, 0.0), None, **settings)
    np.testing.assert_allclose(still.nats, static, rtol=1e-4, atol=1e-5)
    text = np.tile(TEXT, 4)
    found = measure_dynamic(CONFIG, params, text, Rates(0.3, 0.0), None, **settings)
    assert found.nats[-len(TEXT) :].mean() < static.mean() - 0.2


def test_repeated_text_gets_cheaper(params, cache_block, dynamic_block, statistics, forward):
    text = np.tile(TEXT[:15], 6)
    static, _ = stream_nats(CONFIG, params, text, batch=1, forward=forward)
    cached = measure_cache(CONFIG, params, text, window=20, thetas=THETAS, block=cache_block)
    learnt = measure_dynamic(
        CONFIG, params, text, RATES, statistics, window=20, thetas=THETAS, block=dynamic_block
    )
    still = static.reshape(6, -1).mean(axis=1)
    for nats in (mix(cached, 0.3, 1), learnt.nats, mix(learnt, 0.3, 1)):
        by_round = nats.reshape(6, -1).mean(axis=1)
        assert by_round[-1] < by_round[0] - 0.1
        assert by_round[-1] < still[-1] - 0.1


@pytest.mark.parametrize("where", [0, 50, 54, 64])
def test_nothing_of_a_word_enters_its_own_prediction(
    params, cache_block, dynamic_block, statistics, where
):
    """In place of the word `where`, every word in turn: the probabilities that it is given sum to
    1, and what came before stays. (What comes after may change; with segments of 5, 50 is the
    first of one, 54 the last.)"""
    text = TEXT[: where + 8]
    readers = {
        "cache": lambda t: mix(
            measure_cache(CONFIG, params, t, window=20, thetas=THETAS, block=cache_block), 0.4, 1
        ),
        "both": lambda t: mix(
            measure_dynamic(
                CONFIG,
                params,
                t,
                RATES,
                statistics,
                window=20,
                thetas=THETAS,
                block=dynamic_block,
            ),
            0.4,
            1,
        ),
        "dynamic": lambda t: (
            measure_dynamic(CONFIG, params, t, RATES, statistics, block=dynamic_block).nats
        ),
    }
    for name, read in readers.items():
        nats = []
        for word in range(V):
            changed = text.copy()
            changed[where] = word
            nats.append(read(changed))
        nats = np.stack(nats).astype(np.float64)
        assert (nats[:, :where] == nats[0, :where]).all(), name
        np.testing.assert_allclose(np.exp(-nats[:, where]).sum(), 1, rtol=1e-5, err_msg=name)
        assert np.ptp(nats[:, where + 1 :]) > 1e-3


def test_one_compilation_for_all_rates_and_texts(params, statistics):
    cache_block = neural_cache.make_block(CONFIG)
    dynamic_block = dynamic_evaluation.make_block(CONFIG)
    for count, rate, theta in [(203, 1e-3, 1.0), (7, 1e-2, 0.5), (150, 0.0, 0.0)]:
        text = TEXT[:count]
        found = measure_cache(
            CONFIG, params, text, window=20, thetas=(theta, 2.0), block=cache_block
        )
        assert found.nats.shape == (count,)
        read = []
        found = measure_dynamic(
            CONFIG,
            params,
            text,
            Rates(rate, rate),
            statistics,
            block=dynamic_block,
            progress=read.append,
        )
        assert sum(read) == len(found.nats) == count
    assert cache_block._cache_size() == dynamic_block._cache_size() == 1


def test_what_cannot_be_is_refused(params):
    with pytest.raises(ValueError, match="window is 20 and thetas are"):
        measure_dynamic(CONFIG, params, TEXT, RATES, window=20)
    with pytest.raises(ValueError, match="window is 0; wanted at least 1"):
        measure_cache(CONFIG, params, TEXT, window=0, thetas=(1.0,))


# The command line


def test_descend_finds_the_bottom_and_avoids_nan():
    asked = []

    def bowl(place):
        asked.append(place)
        return np.nan if place[0] > 3 else (place[0] - 3) ** 2 + (place[1] + 2) ** 2

    assert tuning.descend(bowl) == (3, -2)
    assert len(set(asked)) == len(asked) < 20
    assert tuning.descend(lambda place: -place[0], most=4) == (4, 0)


def test_the_best_mixture_is_found():
    """A cache that is right where the model is wrong: its weight, by calculus, is 1/4."""
    p_model, p_cache = np.full(400, 0.5), np.zeros((400, len(tuning.THETAS)))
    p_cache[:250, 5] = 1.0  # d/dw [5/8 log(1/2 + w/2) + 3/8 log(1/2 - w/2)] = 0 at w = 1/4
    with np.errstate(divide="ignore"):
        reading = Reading(-np.log(p_model), np.log(p_cache))
    start = tuning.Mixture(0.1, 1.0)
    assert tuning.best_mixture(reading, start) == (0.25, tuning.THETAS[5])


def test_the_sliding_mean_by_hand():
    read, mean = drawing.slide(np.asarray([1.0, 2.0, 6.0, 4.0]), 2)
    np.testing.assert_array_equal(read, [2, 3, 4])
    np.testing.assert_allclose(mean, [1.5, 4.0, 5.0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run as `train` leaves it, but for the training."""
    folder = tmp_path_factory.mktemp("evaluation")
    flags = [f"--corpus={write_book(folder)}", *TINY, "--cell=rnn"]
    config = flags_of.parse(train.Config, flags, "train", "")
    corpus = load_corpus(config.data)
    state = init_state(
        jax.random.key(0),
        config.model,
        config.optim,
        len(corpus.vocabulary),
        config.data.batch_size,
    )
    # Further from uniform than the start of training, so that there is something to mend.
    state = state.replace(params=jax.tree.map(lambda a: 2 * a, state.params))
    folder = run_folder.create(str(folder / "run"), "train")
    run_folder.write_vocabulary(folder, corpus.vocabulary)
    run_folder.write_start(folder, config, {"name": corpus.name, "sha256": corpus.sha256})
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state)
    return folder


@pytest.mark.whole
def test_evaluate_shows_every_method_and_keeps_the_numbers(trained):
    folder = trained
    flags = ["--adapt=both", "--tune", "--tune_tokens=60", "--cache_window=30"]
    done = command_line.call("evaluate", f"--run={folder}", *flags, "--tokens=150")
    assert done.returncode == 0, done.stderr
    for words in ("static", "dynamic evaluation", "cache", "dynamic evaluation with a cache"):
        assert f"\n{words}" in done.stdout
    rows = json.loads((folder / "evaluation.json").read_text())
    assert list(rows) == [f"{name} (first 150 tokens only)" for name in ("valid", "test")]
    row = rows["test (first 150 tokens only)"]
    assert row["tokens"] == 150
    assert row["bits_per_token"] == pytest.approx(np.log2(row["perplexity"]))
    assert row["bits_per_character"] < row["bits_per_token"]
    assert list(row["adapted"]) == ["dynamic", "cache", "both"]
    assert row["adapted"]["both"]["settings"]["window"] == 30
    assert row["adapted"]["dynamic"]["perplexity"] != row["perplexity"]
    arrays = np.load(folder / "evaluation.npz", allow_pickle=False)
    assert np.exp(arrays["1/cache"].mean()) == pytest.approx(row["adapted"]["cache"]["perplexity"])
    assert (folder / "figures" / "evaluation.png").stat().st_size > 5000
    assert "first 150 tokens only" in (folder / "figures" / "evaluation.svg").read_text()
    # A plain evaluation leaves what adapting found.
    flags = ["--checkpoint=last", "--tokens=150", "--batch_size=3"]
    done = command_line.call("evaluate", f"--run={folder}", *flags)
    assert done.returncode == 0, done.stderr
    after = json.loads((folder / "evaluation.json").read_text())
    again = after["test (first 150 tokens only)"]
    assert again["adapted"] == row["adapted"]
    assert again["perplexity"] == pytest.approx(row["perplexity"], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tune"], ["tune needs --adapt"]),
        (["--adapt=dynamic", "--cache_theta=1"], ["cache_theta does nothing with adapt=dynamic"]),
        (["--bptt=7"], ["bptt does nothing with adapt=none"]),
        (["--adapt=cahce"], ["did you mean 'cache'"]),
        (["--adapt=cache", "--cache_weight=1.5"], ["cache_weight is 1.5", "at most 1"]),
    ],
)
def test_wrong_options_are_refused(trained, flags, words):
    done = command_line.call("evaluate", f"--run={trained}", *flags)
    assert_one_line(done, *words)
