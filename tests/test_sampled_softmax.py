"""Sampled softmax: what is drawn, the loss over it, and that it teaches the full softmax."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from lm import loss, model, sampled_softmax
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import StreamBatches
from lm.evaluate import evaluate_stream
from lm.optim import Hyper
from lm.sampled_softmax import Sample, draw_words, drawn_nats, sampled_weighted_nats, word_chances
from lm.train import batch_nats, init_state, make_block, run_blocks

N, H, V = 19, 5, 40
SAMPLED = ModelConfig(hidden_size=8, embedding_size=8, softmax="sampled", sampled_words=12)


compiled_draw = jax.jit(draw_words, static_argnums=(1, 2))


def problem(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    h, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((N, H), (H, V), V))
    targets = rng.integers(0, V, N).astype(np.int32)
    targets[:3] = 0
    weights = rng.random(N).astype(dtype)
    weights[3:6] = 0
    return h, w, b, targets, weights


def sample(room=25):
    """Some targets among the words, and room that is left."""
    found = compiled_draw(jax.random.key(7), V, room)
    words = np.asarray(found.words)
    assert 0 < (words < V).sum() < len(words) == room
    return found


@pytest.mark.parametrize("limit", [3 * 25 * 8, 2**30])
def test_nats_equal_the_oracle_and_the_gradient_autodiff(limit, x64, monkeypatch):
    monkeypatch.setattr(loss.chunk_rows, "__defaults__", (8, limit))
    h, w, b, targets, weights = problem()
    drawn = sample()
    words = [int(v) for v in drawn.words if v < V]
    assert set(np.array(targets)) & set(words)
    assert set(np.array(targets)) - set(words)
    q = word_chances(V, 25)
    nats = oracles.sampled_nats(*map(np.array, (h, w, b)), np.array(targets), words, q)

    def ours(h, w, b, weights):
        return 3 * sampled_weighted_nats(h, w, b, targets, weights, drawn)

    def plain(h, w, b, weights):
        scores = h @ w + b[None] - jnp.log(q)[None]
        among = jnp.zeros(V, bool).at[jnp.asarray(words)].set(True)[None]
        among = among | (jnp.arange(V, dtype=jnp.int32)[None] == targets[:, None])
        own = jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
        return 3 * jnp.sum((jax.nn.logsumexp(scores, axis=1, where=among) - own) * weights)

    value, grad = jax.jit(jax.value_and_grad(ours, range(4)))(h, w, b, weights)
    np.testing.assert_allclose(value, 3 * np.sum(nats * np.array(weights)), rtol=1e-6)  # log q
    np.testing.assert_allclose(grad[3], 3 * nats, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        grad,
        jax.jit(jax.grad(plain, range(4)))(h, w, b, weights),
    )


def test_with_all_words_drawn_it_is_the_full_softmax(x64):
    h, w, b, targets, weights = problem()
    drawn = compiled_draw(jax.random.key(0), V, V + 3)
    np.testing.assert_array_equal(drawn.words, np.arange(V))

    def ours(*arrays):
        return sampled_weighted_nats(*arrays, targets, weights, drawn)

    def full(*arrays):
        return loss.weighted_nats(*arrays, targets, weights)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13),
        jax.jit(jax.value_and_grad(ours, range(3)))(h, w, b),
        jax.jit(jax.value_and_grad(full, range(3)))(h, w, b),
    )


def test_the_true_distribution_is_where_the_loss_is_least(x64):
    """Its mean over targets ~ p and all 2^5 draws, each with its probability, has no slope."""
    p, q = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([1.0, 0.9, 0.5, 0.2, 0.6])
    subsets = list(itertools.product([0, 1], repeat=5))
    chances = [np.prod([q[v] if x else 1 - q[v] for v, x in enumerate(s)]) for s in subsets]
    words = [[*np.flatnonzero(s), *[5] * (5 - sum(s))] for s in subsets]
    words = jnp.asarray(words, jnp.int32)

    def mean_loss(scores, log_q):
        def one(words, target, weight):
            drawn = Sample(words, log_q)
            h, w = jnp.ones((1, 1)), scores[None]
            return sampled_weighted_nats(h, w, jnp.zeros(5), target[None], weight[None], drawn)

        each = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))
        return each(words, jnp.arange(5, dtype=jnp.int32), jnp.outer(np.array(chances), p)).sum()

    slope = jax.jit(jax.grad(mean_loss))
    np.testing.assert_allclose(slope(jnp.log(p) + 7, jnp.log(q)), 0, atol=1e-12)
    assert np.abs(slope(jnp.log(p), jnp.zeros(5))).max() > 0.01  # without the correction it has


@pytest.mark.parametrize("most", [1, 8, 30, V - 1])
def test_chances_follow_the_rank_and_leave_room(most):
    q = word_chances(V, most)
    zipf = np.log((np.arange(V) + 2) / (np.arange(V) + 1))
    uncapped = q < 1
    np.testing.assert_allclose(q[uncapped] / q[-1], zipf[uncapped] / zipf[-1], rtol=1e-9)
    assert uncapped[-1]
    spread = np.sqrt(np.sum(q * (1 - q)))
    np.testing.assert_allclose(q.sum() + 5 * spread, most, rtol=1e-6)
    assert (word_chances(V, V) == 1).all()


def test_words_are_drawn_as_often_as_their_chances_say():
    draws, most = 4000, 30
    keys = jax.random.split(jax.random.key(1), draws)
    draw = jax.jit(jax.vmap(lambda key: draw_words(key, V, most).words))
    words = np.asarray(draw(keys))
    counts = np.bincount(words.ravel(), minlength=V + 1)[:V]
    q = word_chances(V, most)
    spread = np.sqrt(draws * q * (1 - q))
    assert (np.abs(counts - draws * q) <= 4.5 * spread).all()
    held = np.sum(words < V, axis=1)
    assert held.max() <= most
    assert held.std() > 1
    assert all((np.diff(row[row < V]) > 0).all() for row in words[:100])  # none comes twice
    together = np.mean(np.any(words == 30, axis=1) & np.any(words == 35, axis=1))
    np.testing.assert_allclose(together, q[30] * q[35], atol=5 * np.sqrt(q[30] * q[35] / draws))


def test_memory_stays_under_the_stated_chunk():
    """N x K = 4,096 x 50,000 would be 819 MB."""
    rows, words, hidden = 4096, 50_000, 64
    shapes = ((rows, hidden), (hidden, words), (words,), (rows,), (words,), (rows,), (rows,))
    kinds = (jnp.float32,) * 4 + (jnp.int32,) * 2 + (jnp.float32,)
    given = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, kinds, strict=True)]
    compiled = (
        jax.jit(jax.grad(lambda *a: drawn_nats(*a), argnums=(0, 1, 2, 3))).lower(*given).compile()
    )
    planned = compiled.memory_analysis().temp_size_in_bytes
    assert planned < 3 * loss.LOGITS_BYTES + 4 * hidden * words * 4


@pytest.mark.parametrize("tied", [False, True])
def test_training_lowers_the_exact_loss_and_draws_anew_each_step(tied, monkeypatch):
    tokens = np.tile(np.minimum(np.random.default_rng(0).zipf(1.3, 40), 30), 50).astype(np.int32)
    config = ModelConfig(**{**vars(SAMPLED), "tied": tied})
    optim = OptimConfig(clip=1.0)
    state = init_state(jax.random.key(0), config, optim, 31, 8)
    before = evaluate_stream(config, state.params, tokens[:400])
    seen = []
    draw = sampled_softmax.draw_words

    def watch(key, vocabulary, most):
        found = draw(key, vocabulary, most)
        jax.debug.callback(lambda words: seen.append(tuple(map(int, words))), found.words)
        return found

    monkeypatch.setattr("lm.softmax.draw_words", watch)
    block = make_block(config, optim, lambda step: jnp.ones(()))
    batches = StreamBatches(tokens, 8, 10)
    runs = run_blocks(state, Hyper(2.0, 1.0), block, batches, stop=60, steps_per_dispatch=20)
    states = [state.params for state, _ in runs]
    jax.effects_barrier()
    assert len(seen) == 60
    assert len(set(seen)) > 50
    after = evaluate_stream(config, states[-1], tokens[:400])
    assert after.nats < 0.7 * before.nats
    # evaluation is the full softmax's, whose parameters these are
    full = ModelConfig(hidden_size=8, embedding_size=8, tied=tied)
    assert after == evaluate_stream(full, states[-1], tokens[:400])


def test_without_a_key_the_loss_is_exact():
    batch = StreamBatches(np.arange(V, dtype=np.int32), 2, 10).at(0)
    params = model.init(jax.random.key(0), SAMPLED, V)

    @partial(jax.jit, static_argnums=0)
    def measure(config, key):
        return batch_nats(config, params, model.init_carry(config, 2), batch, key=key)[0]

    exact = measure(SAMPLED, None)
    assert exact == measure(ModelConfig(hidden_size=8, embedding_size=8), None)
    assert abs(measure(SAMPLED, jax.random.key(0)) - exact) > 1e-3


def test_rounded_products_cost_little_accuracy():
    """bfloat16 operands, float32 sums: the gradient arrives in float32, a percent off."""
    h, w, b, targets, weights = problem(jnp.float32)
    drawn = sample()

    def grad(dtype):
        def loss_of(h, w, b):
            return sampled_weighted_nats(h, w, b, targets, weights, drawn, dtype)

        return jax.jit(jax.value_and_grad(loss_of, (0, 1, 2)))(h, w, b)

    rounded, exact = grad("bfloat16"), grad(None)
    assert rounded[0] != exact[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max()), rounded, exact
    )
