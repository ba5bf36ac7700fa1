"""Sampling: the exact truncated distribution, greedy limits, ties, seeds, the command line."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from command_line import assert_one_line, call
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experiments import generate, trained
from lm import model
from lm.config import DataConfig, ModelConfig
from lm.data.text import tokenize
from lm.data.vocabulary import END_ID, UNKNOWN_ID, build_vocabulary
from lm.generate import encode_prompt, first_lines, sample, truncate

V = 13
SMALL = ModelConfig(hidden_size=8, embedding_size=8)
PROMPT = jnp.asarray([END_ID])
COUNT = 10_000
FEW = 300


def params_of(seed=0, scale=1.0):
    params = model.init(jax.random.key(seed), SMALL, V)
    return jax.tree.map(lambda a: a * scale, params)


def fixed(p):
    """A model of fixed frequencies, by its softmax bias."""
    params = jax.tree.map(jnp.zeros_like, params_of())
    return params._replace(softmax_b=jnp.log(jnp.asarray(p, jnp.float32)))


def draw(params, count=COUNT, *, seed=0, prompt=PROMPT, samples=1, temperature=1.0, k=0, p=1.0):
    values = jnp.float32(temperature), jnp.int32(k), jnp.float32(p)
    return np.asarray(sample(SMALL, params, jax.random.key(seed), prompt, count, samples, *values))


@pytest.mark.parametrize(
    ("temperature", "k", "p"),
    [(1, 0, 1), (0.5, 0, 1), (2, 4, 1), (1, 0, 0.6), (0.3, 10, 0.8), (1.3, 100, 0.999)],
)
def test_draws_follow_the_exact_truncated_distribution(temperature, k, p):
    """Pearson's chi-square against the oracle's distribution: below the 99.9 % quantile."""
    chances = np.random.default_rng(0).permutation(np.arange(1.0, V + 1))
    expected = oracles.truncated(np.log(chances), temperature, k, p, UNKNOWN_ID)
    counts = np.bincount(draw(fixed(chances), temperature=temperature, k=k, p=p)[0], minlength=V)
    assert counts.sum() == COUNT
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert counts[UNKNOWN_ID] == 0
    wanted = COUNT * expected[possible]
    chi_square = ((counts[possible] - wanted) ** 2 / wanted).sum()
    freedom = possible.sum() - 1
    # Wilson and Hilferty 1931: the quantile of chi-square, here of 0.999.
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


cut = jax.jit(truncate)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-6, 6), min_size=12, max_size=12),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
)
def test_what_is_kept_is_what_sorting_keeps(scores, temperature, k, p):
    """Whole scores are full of ties; negative zero is zero; -inf is never kept."""
    scores = np.asarray([-np.inf, *scores])
    expected = oracles.truncated(scores, temperature, k, p, UNKNOWN_ID)
    # The sums of float32 may fall on the other side of p where they all but meet it.
    near = [oracles.truncated(scores, temperature, k, p + d, UNKNOWN_ID) for d in (-1e-5, 1e-5)]
    assume(all(np.array_equal(a > 0, expected > 0) for a in near if p < 1))
    both = np.stack([scores, np.where(scores == 0, -0.0, scores)]).astype(np.float32)
    kept = cut(both, jnp.float32(temperature), jnp.int32(k), jnp.float32(p))
    for row in np.asarray(kept):
        if temperature == 0:  # what is drawn: the first of the likeliest
            assert np.argmax(row) == np.argmax(expected)
        else:
            np.testing.assert_array_equal(np.isfinite(row), expected > 0)


def test_greedy_limits_and_a_prompt():
    """Temperature 0, k = 1 and p -> 0 all give the likeliest token of the whole text so far."""
    params = params_of(scale=3.0)
    prompt = jnp.asarray([END_ID, 5, 3, 7])
    found = draw(params, 12, prompt=prompt, samples=2, temperature=0)
    assert len(set(found[0])) > 1
    text = np.concatenate([prompt, found[0]])[:, None]
    _, h = model.apply(SMALL, params, model.init_carry(SMALL, 1), jnp.asarray(text))
    scores = model.logits(params, h)[len(prompt) - 1 : -1, 0].at[:, UNKNOWN_ID].set(-jnp.inf)
    for options in ({"temperature": 0}, {"k": 1}, {"p": 1e-7}):
        found = draw(params, 12, prompt=prompt, samples=2, **options)
        np.testing.assert_array_equal(found, [scores.argmax(axis=1)] * 2)
    assert not np.array_equal(draw(params, 12, prompt=prompt, samples=2), found)


def test_ties_go_to_the_lower_id():
    """Where all tokens are equally likely, the first that may be drawn is the likeliest."""
    params = fixed(np.ones(V))
    for options in ({"temperature": 0}, {"k": 1}, {"p": 1e-7}):
        np.testing.assert_array_equal(draw(params, FEW, **options), UNKNOWN_ID + 1)
    assert set(draw(params, FEW, k=3)[0]) == {1, 2, 3}
    assert set(draw(params, FEW, p=0.4)[0]) == {1, 2, 3, 4, 5}  # 5 of 12 are the first above


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"k": 2}, {"p": 0.5}, {"k": 1}])
def test_the_unknown_word_is_never_drawn(options):
    chances = np.ones(V)
    chances[UNKNOWN_ID] = 1e6
    assert UNKNOWN_ID not in draw(fixed(chances), FEW, **options)


def test_no_truncation_is_plain_sampling():
    """All tokens kept through the truncation draw what sampling without it draws."""
    params = params_of(scale=2.0)
    plain = draw(params, FEW)
    np.testing.assert_array_equal(draw(params, FEW, k=V - 1), plain)
    np.testing.assert_array_equal(draw(params, FEW, k=10**9), plain)
    assert not np.array_equal(draw(params, FEW, k=3), plain)


def test_a_seed_draws_the_same_text_whatever_is_drawn_beside_it():
    params = params_of(scale=2.0)
    one = draw(params, FEW, p=0.9)
    several = draw(params, FEW, p=0.9, samples=3)
    np.testing.assert_array_equal(several[:1], one)
    assert len({tuple(row) for row in several}) == 3
    np.testing.assert_array_equal(draw(params, COUNT, p=0.9)[:, :FEW], one)
    assert not np.array_equal(draw(params, FEW, p=0.9, seed=1), one)


def test_new_values_compile_nothing(caplog):
    params = params_of()
    draw(params, FEW, temperature=1.0, k=0, p=1.0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):  # values of no other test
        draw(params, FEW, temperature=0.31, k=5, p=0.37, seed=4)
    assert not [r for r in caplog.records if "sample" in r.getMessage()]
    # The witness that the log would have shown it:
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        draw(params, FEW + 1)
    assert [r for r in caplog.records if "sample" in r.getMessage()]


def test_lines_end_a_sample():
    tokens = np.asarray([4, END_ID, END_ID, 5, END_ID, 6])
    assert [first_lines(tokens, n).tolist() for n in (1, 2, 3, 4)] == [
        [4],
        [4, END_ID],
        [4, END_ID, END_ID, 5],
        tokens.tolist(),
    ]


def test_a_prompt_goes_on_after_itself():
    assert encode_prompt(np.asarray([5, 6, END_ID])).tolist() == [END_ID, 5, 6]
    assert encode_prompt(np.asarray([END_ID])).tolist() == [END_ID]


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """`load_run` of untrained models by the level of their text."""
    texts = {
        "word": "the cat sat , and <unk> .\nthe dog ran .",
        "char": "나는 학교에\n간다 the cat",
        "byte": "학교 the cat".encode().decode("latin-1"),
    }

    def load(level, *_):
        vocabulary = build_vocabulary(tokenize(texts[level], level, "line"), level)
        config = trained.Config(model=SMALL, data=DataConfig(level=level))
        params = model.init(jax.random.key(0), SMALL, len(vocabulary))
        return trained.Trained(tmp_path, config, vocabulary, "line", params, 0)

    monkeypatch.setattr(generate, "load_run", load)


def test_the_command_draws_several_samples_and_writes_them(runs, tmp_path):
    flags = ["--run=word", "--tokens=30", "--samples=3", "--lines=1", "--prompt=the cat"]
    jsonl, plain = tmp_path / "out.jsonl", tmp_path / "out.txt"
    done = call("generate", *flags, f"--output={jsonl}", "--seed=3", "--top_p=0.9")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [row["sample"] for row in rows] == [1, 2, 3]
    assert {(row["seed"], row["top_p"], row["prompt"]) for row in rows} == {(3, 0.9, "the cat")}
    for row in rows:
        assert row["text"].startswith("the cat")
        assert "\n" not in row["text"]
        assert row["text"] in done.stdout
    again = call("generate", *flags, f"--output={plain}", "--seed=3", "--top_p=0.9")
    assert plain.read_text() == again.stdout == done.stdout
    assert_one_line(call("generate", *flags, f"--output={plain}"), "exists", "--overwrite")
    assert plain.read_text() == done.stdout
    assert call("generate", *flags, f"--output={plain}", "--overwrite").returncode == 0
    assert plain.read_text() != done.stdout


def test_prompts_of_any_script(runs):
    empty = generate.read_prompt("", generate.load_run("char").vocabulary)
    assert empty.tolist() == [END_ID]
    for level, prompt in (("char", "나는 학"), ("byte", "학교")):
        done = call("generate", f"--run={level}", f"--prompt={prompt}", "--tokens=5")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(prompt)
        assert "---" not in done.stdout
        assert not done.stderr
    done = call("generate", "--run=word", "--prompt=the 나는 <unk> 학교에", "--tokens=5")
    assert done.returncode == 0
    assert "3 of the prompt's 4 tokens" in done.stderr
    assert "'나는', '<unk>', '학교에'" in done.stderr
    assert done.stdout.startswith("the <unk> <unk> <unk>")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--top_p=0"], ("top_p is 0", "more than 0")),
        (["--top_p=1.5"], ("top_p is 1.5", "at most 1")),
        (["--top_k=-1"], ("top_k is -1",)),
        (["--temperature=-1"], ("temperature is -1",)),
        (["--samples=0"], ("samples is 0",)),
        (["--lines=-2"], ("lines is -2",)),
        (["--output=no/such/folder/x.txt"], ("cannot be written",)),
        (["--prompt=caf\udce9"], ("prompt: not UTF-8",)),
        (["--topp=0.5"], ("did you mean 'top_p'",)),
    ],
)
def test_mistakes_in_flags(runs, flags, words):
    assert_one_line(call("generate", "--run=word", *flags), *words)
