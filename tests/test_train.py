"""Training and evaluation: known answers, invariances, one compilation."""

import logging
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cell_names import EACH_CELL

from lm import model, optim
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import Batch, SentenceBatches, StreamBatches
from lm.data.vocabulary import END_ID
from lm.evaluate import evaluate_sentences, evaluate_stream, layout_rows, make_forward
from lm.optim import Hyper, make_schedule
from lm.train import NotFiniteError, batch_nats, init_state, make_block, run_blocks

V = 13
SMALL = ModelConfig(hidden_size=8, embedding_size=8)
TOKENS = np.random.default_rng(0).integers(1, V, 2003).astype(np.int32)


@cache
def params_of(config):
    return model.init(jax.random.key(0), config, V)


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


@pytest.mark.parametrize("cell", EACH_CELL)
@pytest.mark.parametrize("tied", [False, True])
def test_nats_and_perplexity_equal_the_oracle(cell, tied):
    """Two layers, one row, float32 against the float64 loop."""
    config = ModelConfig(cell=cell, layers=2, hidden_size=8, embedding_size=8, tied=tied)
    params, text = params_of(config), TOKENS[:200]
    inputs = np.concatenate([[END_ID], text[:-1]])
    nats = oracles.model_nats(cell, to_oracle(params), inputs, text)
    result = evaluate_stream(config, params, text, batch=1)
    assert result.tokens == 200
    np.testing.assert_allclose(result.nats, nats.sum(), rtol=1e-5)
    if cell != "irnn":  # at its start it explodes: the perplexity is beyond a float
        np.testing.assert_allclose(result.perplexity, np.exp(nats.mean()), rtol=1e-5)


def test_a_uniform_model_has_perplexity_v():
    params = jax.tree.map(jnp.zeros_like, params_of(SMALL))
    np.testing.assert_allclose(evaluate_stream(SMALL, params, TOKENS).perplexity, V, rtol=1e-6)
    np.testing.assert_allclose(evaluate_sentences(SMALL, params, TOKENS).perplexity, V, rtol=1e-6)


@pytest.mark.parametrize("forget_bias", [1.0, 12.0])
def test_stream_perplexity_is_the_same_for_any_batch_and_chunk(forget_bias):
    """Forget bias 12 never forgets: rows must be right even where no guess can be."""
    config = ModelConfig(hidden_size=8, embedding_size=8, forget_bias=forget_bias)
    params = params_of(config)
    results = [
        evaluate_stream(config, params, TOKENS, batch=batch, length=length)
        for batch, length in [(1, 64), (7, 64), (32, 64), (7, 10), (32, 1000)]
    ]
    for result in results[1:]:
        np.testing.assert_allclose(result.perplexity, results[0].perplexity, rtol=1e-5)
    if forget_bias == 12.0:
        assert max(result.passes for result in results) > 2


def test_sentence_perplexity_is_the_same_for_any_batch():
    params = params_of(SMALL)
    results = [evaluate_sentences(SMALL, params, TOKENS, batch=b) for b in (1, 7, 32)]
    for result in results[1:]:
        np.testing.assert_allclose(result.perplexity, results[0].perplexity, rtol=1e-5)


def test_sentence_perplexity_equals_each_sentence_alone():
    params, total, text = params_of(SMALL), 0.0, TOKENS[:500]
    forward = make_forward(SMALL)
    for sentence in np.split(text, np.flatnonzero(text == END_ID) + 1):
        if len(sentence):
            one = evaluate_stream(SMALL, params, sentence, batch=1, forward=forward)
            assert one.tokens == len(sentence)
            total += one.nats
    result = evaluate_sentences(SMALL, params, text)
    np.testing.assert_allclose(result.nats, total, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_rows_hold_the_text_once(batch):
    inputs, targets, mask = layout_rows(TOKENS[:97], batch, 5)
    np.testing.assert_array_equal(targets.T[mask.T], TOKENS[:97])
    np.testing.assert_array_equal(inputs.T[mask.T][1:], TOKENS[:96])


@pytest.mark.parametrize("kind", [StreamBatches, SentenceBatches])
def test_loss_is_the_mean_over_tokens(kind):
    params, batch = params_of(SMALL), kind(TOKENS, 4, 16).at(0)
    carry = model.init_carry(SMALL, 4)
    mean, (_, nats, tokens) = jax.jit(partial(batch_nats, SMALL))(params, carry, batch)
    forward = make_forward(SMALL)
    mask = np.ones(batch.inputs.shape, bool) if batch.mask is None else batch.mask
    each = np.asarray(forward(params, carry, batch.inputs, batch.targets, mask)[1])
    assert float(tokens) == mask.sum()
    np.testing.assert_allclose(nats, each.sum(), rtol=1e-5)
    np.testing.assert_allclose(mean, float(each.sum()) / mask.sum(), rtol=1e-5)


def train(config, optim, batches, stop, rate=1.0, clip=0.5, dispatch=8, state=None):
    state = state or init_state(jax.random.key(0), config, optim, V, batches.batch_size)
    block = make_block(config, optim, make_schedule(optim, batches.steps_per_epoch, stop))
    losses = []
    hyper = Hyper(jnp.float32(rate), jnp.float32(clip))
    run = run_blocks(state, hyper, block, batches, stop=stop, steps_per_dispatch=dispatch)
    for after, metrics in run:
        losses.extend(metrics.nats / metrics.tokens)
        state = after
    return state, losses


def test_sgd_step_by_hand():
    """p - rate * clip / norm * gradient, with the gradient from plain autodiff."""
    batches = StreamBatches(TOKENS, 4, 16)
    before = init_state(jax.random.key(0), SMALL, OptimConfig(), V, 4)
    carry = model.init_carry(SMALL, 4)
    grads = jax.jit(jax.grad(lambda p: batch_nats(SMALL, p, carry, batches.at(0))[0]))(
        before.params
    )
    params, grads = jax.tree.map(np.asarray, (before.params, grads))
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    assert norm > 0.1
    after, _ = train(SMALL, OptimConfig(), batches, 1, rate=2.0, clip=0.1)
    jax.tree.map(
        lambda p, g, q: np.testing.assert_allclose(
            p - np.float32(2.0 * 0.1) / norm * g, q, rtol=1e-5, atol=1e-6
        ),
        params,
        grads,
        after.params,
    )


@pytest.mark.parametrize("kind", [StreamBatches, SentenceBatches])
def test_training_learns_a_cycle(kind):
    """Words that follow each other in a circle: from perplexity V to nearly 1."""
    text = np.tile(np.arange(1, V), 300).astype(np.int32)
    _, losses = train(SMALL, OptimConfig(), kind(text, 4, 12), 250, rate=5.0)
    assert losses[0] > 2
    assert losses[-1] < 0.1


def test_the_carried_state_is_that_of_the_whole_text():
    """With frozen parameters, the state after k chunks is the state after k * length tokens."""
    batches = StreamBatches(TOKENS, 4, 16)
    state, _ = train(SMALL, OptimConfig(), batches, 9, rate=0.0, dispatch=4)
    inputs = np.concatenate([batches.at(k).inputs for k in range(9)])
    apply = jax.jit(partial(model.apply, SMALL))
    expected, _ = apply(state.params, model.init_carry(SMALL, 4), inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.carry, expected
    )


class AlwaysReset(StreamBatches):
    """A stream that forgets its state between chunks."""

    def at(self, step):
        return super().at(step)._replace(reset=np.asarray(True))


def test_the_stream_carries_its_state():
    """The answer lies in the chunk before: with a carried state alone can it be known."""
    half = np.random.default_rng(1).integers(2, 4, 4000)
    fixed = np.full_like(half, 4)
    text = np.stack([half, fixed, fixed + 1, half + 4], axis=1).reshape(-1).astype(np.int32)
    config = ModelConfig(hidden_size=16, embedding_size=16)
    entropy = np.log(2) / 4  # of the one random word in four
    losses = {}
    for kind in (StreamBatches, AlwaysReset):
        # Chunks are (random, 4) and (5, answer); rows begin with a whole period.
        _, found = train(config, OptimConfig(), kind(text, 4, 2), 3000, rate=2.0, dispatch=200)
        losses[kind] = np.mean(found[-200:])
    assert entropy * 0.9 < losses[StreamBatches] < entropy * 1.3
    assert losses[AlwaysReset] > entropy * 1.8


@pytest.mark.parametrize("dispatch", [1, 3, 50])
def test_steps_per_dispatch_change_no_bit(dispatch):
    batches = StreamBatches(TOKENS, 4, 16)
    expected, losses = train(SMALL, OptimConfig(momentum=0.9), batches, 20, dispatch=20)
    got, same = train(SMALL, OptimConfig(momentum=0.9), batches, 20, dispatch=dispatch)
    np.testing.assert_array_equal(same, losses)
    jax.tree.map(
        np.testing.assert_array_equal, (expected.params, expected.carry), (got.params, got.carry)
    )


def test_a_nan_names_its_step():
    """Embeddings of infinity after two good dispatches."""
    batches = StreamBatches(TOKENS, 4, 16)
    with pytest.raises(NotFiniteError, match="after it finite") as error:
        train(SMALL, OptimConfig(), batches, 20, rate=1e38, clip=1e38, dispatch=4)
    assert 0 < error.value.step < 20


def test_one_program_for_all_rates_seeds_and_numbers_of_steps(caplog):
    """And for sentences one for each length of a padded row."""
    optim = OptimConfig()
    stream, sentences = StreamBatches(TOKENS, 4, 16), SentenceBatches(TOKENS, 4, 16)
    block = make_block(SMALL, optim, make_schedule(optim, stream.steps_per_epoch, 8))

    def compilations(batches, seed, rate, stop):
        state = init_state(jax.random.key(seed), SMALL, optim, V, 4, forget_bias=rate)
        hyper = Hyper(jnp.float32(rate), jnp.float32(rate / 2))
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            for _ in run_blocks(state, hyper, block, batches, stop=stop, steps_per_dispatch=4):
                pass
        return sum("Compiling jit(run_steps)" in r.getMessage() for r in caplog.records)

    assert compilations(stream, 0, 1.0, 8) == 1
    assert compilations(stream, 1, 0.1, 7) == 0  # the last dispatch has three steps
    assert compilations(stream, 2, 0.2, 1) == 0
    epoch = [sentences.at(k) for k in range(sentences.steps_per_epoch)]
    lengths = {len(batch.inputs) for batch in epoch}
    # A row of 16 tokens has been compiled without a mask: with one it is another program.
    assert compilations(sentences, 0, 1.0, len(epoch)) == len(lengths) > 1
    assert compilations(sentences, 1, 0.1, 2 * len(epoch) - 1) == 0


def test_parameters_that_overflow_are_found_after_the_last_step():
    """The loss of step 0 is finite; what it leaves behind is not."""
    with pytest.raises(NotFiniteError, match="step 0"):
        train(SMALL, OptimConfig(), StreamBatches(TOKENS, 4, 16), 1, rate=np.inf)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_clipping_outside_the_range_of_a_square(scale):
    """Entries of 1e25 have a plain norm of inf, and those of 1e-25 one of 0."""
    grads = {"a": np.full((3, 4), scale, np.float32), "b": np.full(4, -scale, np.float32)}
    clip_by_global_norm = jax.jit(optim.clip_by_global_norm)
    np.testing.assert_allclose(jax.jit(optim.global_norm)(grads), 4 * scale, rtol=1e-6)
    clipped = clip_by_global_norm(grads, 0.5 * scale)
    np.testing.assert_allclose(clipped["a"], scale / 8, rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], -scale / 8, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, clip_by_global_norm(grads, np.inf), grads)
    zeros = jax.tree.map(np.zeros_like, grads)
    jax.tree.map(np.testing.assert_array_equal, clip_by_global_norm(zeros, 0.5), zeros)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", EACH_CELL)
def test_training_starts_near_the_uniform_loss(cell, tied):
    config = ModelConfig(cell=cell, tied=tied)
    tokens = np.random.default_rng(0).integers(0, 1000, (2, 20, 8)).astype(np.int32)
    batch = Batch(tokens[0], tokens[1], None, np.asarray(True))

    params = model.init(jax.random.key(0), config, 1000)
    carry = model.init_carry(config, 8)
    nats = jax.jit(partial(batch_nats, config))(params, carry, batch)[0]
    # The identity RNN's state grows with every word, and its scores with the state.
    assert float(nats) == pytest.approx(np.log(1000), rel=0.6 if cell == "irnn" else 0.08)


def test_schedules():
    step = make_schedule(OptimConfig(schedule="step", decay=0.5, decay_after=2), 10, 50)
    assert [float(step(k)) for k in (0, 19, 20, 30, 49)] == [1, 1, 0.5, 0.25, 0.125]
    cosine = make_schedule(OptimConfig(schedule="cosine", warmup=0.2), 10, 50)
    assert float(cosine(10)) == 1
    assert float(cosine(5)) == pytest.approx(0.5)
    assert float(cosine(50)) == pytest.approx(0)


def test_uniform_init_and_tied_weights():
    config = ModelConfig(
        hidden_size=40, embedding_size=40, tied=True, init="uniform", init_range=0.05, forget_bias=0
    )
    params = params_of(config)
    assert params.softmax_w is None
    assert model.softmax_weights(params).shape == (40, V)
    for leaf in jax.tree.leaves(params):
        assert np.max(np.abs(leaf)) <= 0.05
    assert np.std(params.layers[0].w_h) == pytest.approx(0.05 / 3**0.5, rel=0.05)
    with pytest.raises(ValueError, match="tied needs"):
        ModelConfig(tied=True, embedding_size=3)


def test_embedding_scale_is_the_input_scale():
    config = ModelConfig(embedding_size=400, hidden_size=4, input_scale=0.3)
    assert np.std(params_of(config).embedding) == pytest.approx(0.3, rel=0.05)


def test_logging_gradient_flow_changes_no_parameter():
    """The gauge only reads; a step's delta norms are those of plain autodiff."""
    batches = StreamBatches(TOKENS, 4, 6)
    hyper = Hyper(jnp.float32(0.5), jnp.float32(1.0))
    schedule = make_schedule(OptimConfig(), batches.steps_per_epoch, 3)
    found = []
    for flag in (False, True):
        block = make_block(SMALL, OptimConfig(), schedule, log_gradient_flow=flag)
        state = init_state(jax.random.key(0), SMALL, OptimConfig(), V, 4)
        found.append(block(state, hyper, batches.block(0, 3))[:2])
    (plain, without), (logged, metrics) = found
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        plain.params,
        logged.params,
    )
    assert without.log_delta is None
    assert metrics.log_delta.shape == (3, SMALL.layers, 6)
    assert np.all(np.isfinite(metrics.log_delta))
