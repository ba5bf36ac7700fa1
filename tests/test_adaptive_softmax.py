"""Adaptive softmax: a distribution like any other, whatever rows fall on whatever cluster."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lm import adaptive_loss, loss, model
from lm.adaptive_softmax import (
    AdaptiveWeights,
    choose_cutoffs,
    first_ids,
    init_tails,
    log_probabilities,
)
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import StreamBatches
from lm.data.vocabulary import Vocabulary
from lm.dynamic_evaluation import Rates, measure_dynamic
from lm.evaluate import evaluate_stream
from lm.gradients.flow import loss_gradient
from lm.interop.files import parse_model, read_arrays, write_model
from lm.optim import Hyper
from lm.surprisal import next_entropy
from lm.train import init_state, make_block, run_blocks

N, H, V = 37, 9, 23
CUTOFFS = (4, 11)
SMALL = ModelConfig(hidden_size=8, embedding_size=8, softmax="adaptive", tail_factor=2)
TARGETS = {
    "all kinds": np.random.default_rng(0).integers(0, V, N),
    "none in a cluster": np.full(N, 3),
    "all in the first": np.full(N, 4),
    "all in the last": np.full(N, V - 1),
    "one in each": np.asarray([10, 11] + [0] * (N - 2)),
}


def problem(dtype=jnp.float64):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    tails = init_tails(jax.random.key(0), H, V, CUTOFFS, 2, dtype)
    tails = tuple(tail._replace(b=normal(*tail.b.shape)) for tail in tails)
    entries = CUTOFFS[0] + len(CUTOFFS)
    return normal(N, H), AdaptiveWeights(normal(H, entries), tails), normal(entries)


def distributions(h, w, b):
    h, w, b = jax.tree.map(np.array, (h, w, b))
    return np.stack([oracles.adaptive_distribution(row, w.head, b, w.tails) for row in h])


def test_log_probabilities_equal_the_oracle_and_sum_to_one(x64):
    h, w, b = problem()
    found = np.asarray(jax.jit(log_probabilities)(h, w, b))
    assert first_ids(w) == CUTOFFS
    np.testing.assert_allclose(found, np.log(distributions(h, w, b)), rtol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("share", [1, 6])
def test_nats_and_gradient_are_those_of_the_whole_distribution(share, x64, monkeypatch):
    """For targets that fall on all clusters, on one alone, or on none."""
    monkeypatch.setattr(adaptive_loss, "ROUND", share)
    arrays = problem()
    weights = np.random.default_rng(1).random(N)
    weights[3:6] = 0

    def plain(h, w, b, weights, targets):
        log_p = log_probabilities(h, w, b)
        return -3 * jnp.sum(jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0] * weights)

    def ours(h, w, b, weights, targets):
        return 3 * adaptive_loss.adaptive_weighted_nats(h, w, b, targets, weights)

    find, expect = (jax.jit(jax.value_and_grad(f, range(4))) for f in (ours, plain))
    token_nats = jax.jit(adaptive_loss.adaptive_token_nats)
    p = distributions(*arrays)
    for kind in TARGETS.values():
        targets = jnp.asarray(kind, jnp.int32)
        nats = -np.log(p[np.arange(N), kind])
        np.testing.assert_allclose(token_nats(*arrays, targets), nats, rtol=1e-12)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
            find(*arrays, weights, targets),
            expect(*arrays, weights, targets),
        )


@pytest.mark.parametrize("kind", TARGETS)
def test_a_cluster_takes_as_many_rounds_as_its_rows_need(kind):
    targets = jnp.asarray(TARGETS[kind], jnp.int32) - CUTOFFS[0]
    order, rounds, rows = adaptive_loss.rows_in_turn(targets, CUTOFFS[1] - CUTOFFS[0], 4)
    selected = np.flatnonzero((TARGETS[kind] >= CUTOFFS[0]) & (TARGETS[kind] < CUTOFFS[1]))
    assert rows == 3  # a sixteenth of 37
    assert rounds == -(-len(selected) // rows)
    np.testing.assert_array_equal(order[: len(selected)], selected)
    assert (order[len(selected) :] == N).all()
    assert len(order) % rows == 0


def test_memory_stays_far_under_all_logits():
    """N x V = 4,096 x 100,000 would be 1.6 GB; every row may fall on one cluster of 75,000."""
    rows, words, hidden = 4096, 100_000, 64
    cutoffs = choose_cutoffs((), words)

    def gradient(h, w, b, targets, weights, key):
        tails = init_tails(key, hidden, words, cutoffs, 4)
        grad = jax.grad(adaptive_loss.adaptive_weighted_nats, argnums=(0, 1, 2))
        return grad(h, AdaptiveWeights(w, tails), b, targets, weights)

    entries = cutoffs[0] + len(cutoffs)
    shapes = ((rows, hidden), (hidden, entries), (entries,), (rows,), (rows,))
    kinds = (jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    given = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, kinds, strict=True)]
    compiled = jax.jit(gradient).lower(*given, jax.random.key(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * loss.LOGITS_BYTES


def test_default_cutoffs_are_near_those_of_the_paper():
    assert choose_cutoffs((), 44_000) == (2750, 11_000)
    assert choose_cutoffs((), 267_735) == (16_733, 66_933)
    assert choose_cutoffs((), 10) == (2,)
    assert choose_cutoffs((), 3) == ()  # nothing to cut: the full softmax
    assert choose_cutoffs((5, 9), 10) == (5, 9)
    with pytest.raises(ValueError, match="cutoffs are 5, 10 with a vocabulary of 10; wanted"):
        choose_cutoffs((5, 10), 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"softmax": "adaptive", "tied": True}, "tied with softmax=adaptive"),
        ({"softmax": "adaptive", "cutoffs": (7, 3)}, "cutoffs are 7, 3; wanted ascending"),
        ({"softmax": "adaptive", "cutoffs": (3, 3)}, "cutoffs are 3, 3; wanted ascending"),
        ({"softmax": "adaptive", "cutoffs": (0, 3)}, "cutoffs is 0; wanted at least 1"),
        ({"cutoffs": (3, 7)}, r"cutoffs is \(3, 7\), which does nothing with softmax=full"),
        ({"softmax": "sampled", "tail_factor": 2}, "tail_factor is 2, which does nothing"),
        ({"softmax": "adaptiv"}, "did you mean"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**options)


@pytest.mark.parametrize("init", ["scaled", "uniform", "pytorch"])
def test_shapes_of_a_model_and_how_it_starts(init):
    words = 1000
    config = ModelConfig(
        hidden_size=32, embedding_size=8, softmax="adaptive", cutoffs=(10, 20), init=init
    )
    params = jax.jit(lambda key: model.init(key, config, words))(jax.random.key(0))
    w = params.softmax_w
    assert w.head.shape == (32, 12)
    assert [tail.projection.shape for tail in w.tails] == [(32, 8), (32, 2)]
    assert [tail.w.shape for tail in w.tails] == [(8, 10), (2, 980)]
    scale = {"scaled": 1 / 2**0.5, "uniform": 0.1 / 3**0.5, "pytorch": 0.1 / 3**0.5}[init]
    np.testing.assert_allclose(w.tails[1].w.std(), scale, rtol=0.1)
    assert [bool(tail.b.any()) for tail in w.tails] == [init == "uniform"] * 2


def test_too_few_words_for_a_cluster_leave_the_full_softmax():
    params = model.init(jax.random.key(0), SMALL, 3)
    assert params.softmax_w.shape == (8, 3)


@pytest.fixture(scope="module")
def trained():
    """A run of 60 steps on Zipf's words in a cycle, and the text."""
    rng = np.random.default_rng(0)
    tokens = np.tile(np.minimum(rng.zipf(1.3, 40), 30), 50).astype(np.int32)
    batches = StreamBatches(tokens, 8, 10)
    optim = OptimConfig(clip=1.0)
    state = init_state(jax.random.key(0), SMALL, optim, 31, 8)
    block = make_block(SMALL, optim, lambda step: jnp.ones(()))
    runs = run_blocks(state, Hyper(2.0, 1.0), block, batches, stop=60, steps_per_dispatch=20)
    states = [(state.params, measured.nats / measured.tokens) for state, measured in runs]
    return states[-1][0], np.concatenate([nats for _, nats in states]), tokens[:200]


def test_training_lowers_the_loss(trained):
    _, nats, _ = trained
    assert nats[0] == pytest.approx(np.log(31), rel=0.3)
    assert nats[-5:].mean() < 0.6 * nats[:5].mean()


def test_every_evaluation_is_of_the_whole_distribution(trained):
    params, _, text = trained
    assert len(params.softmax_w.tails) == 2
    inputs = jnp.asarray(np.concatenate([[1], text[:-1]]), jnp.int32)[:, None]
    apply = jax.jit(lambda *inputs: model.apply(SMALL, *inputs))
    _, h = apply(params, model.init_carry(SMALL, 1), inputs)
    h = h[:, 0]
    p = distributions(h, params.softmax_w, params.softmax_b)
    nats = -np.log(p[np.arange(len(text)), text])
    np.testing.assert_allclose(evaluate_stream(SMALL, params, text).nats, nats.sum(), rtol=1e-5)
    still = measure_dynamic(SMALL, params, text, Rates(0.0, 0.0), window=10, thetas=(0.5,))
    np.testing.assert_allclose(still.nats, nats, rtol=1e-4, atol=1e-5)
    entropy = -np.sum(p * np.log(p), axis=1)
    np.testing.assert_allclose(next_entropy(params, h), entropy, rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(model.logits(params, h)).sum(axis=1), 1, rtol=1e-5)


def test_the_laboratory_starts_from_the_gradient_of_the_same_loss(trained):
    params, _, text = trained
    h = jax.random.normal(jax.random.key(0), (20, 8))
    targets, ones = jnp.asarray(text[:20]), jnp.ones(20)
    exact = jax.jit(jax.grad(adaptive_loss.adaptive_weighted_nats))
    expected = exact(h, params.softmax_w, params.softmax_b, targets, ones)
    found = jax.jit(loss_gradient)(params, h, targets)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_file_of_our_layout_holds_it_and_pytorchs_is_refused(trained, tmp_path):
    pytest.importorskip("safetensors")
    params, _, _ = trained
    vocabulary = Vocabulary(("<unk>", "<eos>", *map(str, range(29))), "word")
    with pytest.raises(ValueError, match=r"the softmax is adaptive, .* wanted full or sampled"):
        write_model(tmp_path / "a", SMALL, params, vocabulary)
    write_model(tmp_path / "b", SMALL, params, vocabulary, layout="ours")
    arrays, metadata = read_arrays(tmp_path / "b")
    assert "softmax_w.tails.1.projection" in arrays
    found = parse_model(arrays, metadata)
    assert found.config == SMALL
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    arrays["softmax_w.tails.1.w"][0] = np.nan
    with pytest.raises(ValueError, match=r"decoder.weight holds NaN or infinity"):
        parse_model(arrays, metadata)


def test_rounded_products_cost_little_accuracy():
    """bfloat16 operands, float32 sums: the gradient arrives in float32, a percent off."""
    h, w, b = problem(jnp.float32)
    targets = jnp.asarray(TARGETS["all kinds"], jnp.int32)

    def grad(dtype):
        def loss_of(h, w, b):
            weights = jnp.full(N, 1 / N)
            return adaptive_loss.adaptive_weighted_nats(h, w, b, targets, weights, dtype)

        return jax.jit(jax.value_and_grad(loss_of, (0, 1, 2)))(h, w, b)

    rounded, exact = grad("bfloat16"), grad(None)
    assert rounded[0] != exact[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max()), rounded, exact
    )
