"""Models to and from PyTorch and safetensors: the same logits, the same bits, or one line."""

import dataclasses
import json
import struct
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from command_line import TINY, assert_one_line, call, write_book

from lm import model
from lm.cells.cell import CellParams
from lm.config import ModelConfig
from lm.data.vocabulary import Vocabulary
from lm.interop import pytorch
from lm.interop.files import parse_model, read_arrays, rebuild, write_arrays, write_model
from lm.interop.vocabulary import reorder_vocabulary
from lm.loss import weighted_nats

KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN_TANH", "irnn": "RNN_RELU"}
V, D, H, T, B = 11, 6, 6, 5, 2


def make_config(cell="lstm", layers=1, **options):
    return ModelConfig(cell=cell, layers=layers, hidden_size=H, embedding_size=D, **options)


def make_arrays(cell, layers, *, tied=False, hidden=H, seed=0):
    """A state dict of examples/word_language_model, both biases of every layer random."""
    rng = np.random.default_rng(seed)
    rows = len(pytorch.GATES[cell]) * hidden

    def draw(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    arrays = {"encoder.weight": draw(V, D), "decoder.bias": draw(V)}
    arrays["decoder.weight"] = arrays["encoder.weight"] if tied else draw(V, hidden)
    for k in range(layers):
        arrays |= {
            f"rnn.weight_ih_l{k}": draw(rows, hidden if k else D),
            f"rnn.weight_hh_l{k}": draw(rows, hidden),
            f"rnn.bias_ih_l{k}": draw(rows),
            f"rnn.bias_hh_l{k}": draw(rows),
        }
    return arrays


def make_tokens(seed=0):
    return np.random.default_rng(seed).integers(0, V, (T, B)).astype(np.int32)


@cache
def compiled(cell, layers):
    """(params, carry, tokens) -> (carry, h); whether the softmax is tied is not its business."""
    config = make_config(cell, layers)
    return jax.jit(lambda params, carry, tokens: model.apply(config, params, carry, tokens))


def our_logits(config, params, tokens):
    """Logits of a text read in two chunks of 3 and 2 tokens, the state carried."""
    params = jax.tree.map(jnp.asarray, params)
    body = params._replace(softmax_w=None)
    carry, first = compiled(config.cell, config.layers)(
        body, model.init_carry(config, B), tokens[:3]
    )
    # The second chunk is padded to the first one's length, to spare a compilation.
    rest = np.concatenate([tokens[3:], tokens[:1]])
    _, second = compiled(config.cell, config.layers)(body, carry, rest)
    return np.asarray(model.logits(params, jnp.concatenate([first, second[:2]])))


def random_params(config, seed=0):
    """Parameters all of which are random, the biases too."""
    like = jax.eval_shape(lambda key: model.init(key, config, V), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), like)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


CASES = [
    *(("lstm", layers) for layers in (1, 2, 3)),
    *(("gru", layers) for layers in (1, 2, 3)),
    *(("rnn", layers) for layers in (1, 2)),
    *(("irnn", layers) for layers in (1, 3)),
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("cell", "layers"), CASES)
def test_imported_models_compute_what_pytorch_documents(cell, layers, tied):
    arrays = make_arrays(cell, layers, tied=tied)
    config, params, _ = pytorch.import_model(arrays, "auto" if cell in ("lstm", "gru") else cell)
    assert (config.cell, config.layers, config.tied) == (cell, layers, tied)
    tokens = make_tokens()
    wanted = oracles.torch_logits(KINDS[cell], arrays, layers, tokens)
    np.testing.assert_allclose(our_logits(config, params, tokens), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("cell", "layers"), CASES)
def test_exported_models_come_back_bit_by_bit(cell, layers, tied):
    config = make_config(cell, layers, tied=tied)
    params = random_params(config)
    zero = params.layers[0].b.copy()
    zero[:3] = (0.0, -0.0, 1e-40)  # a sign and a denormal number, which addition would lose
    params = params._replace(layers=(params.layers[0]._replace(b=zero), *params.layers[1:]))
    arrays = pytorch.export_model(config, params)
    tokens = make_tokens()
    wanted = oracles.torch_logits(KINDS[cell], arrays, layers, tokens)
    np.testing.assert_allclose(our_logits(config, params, tokens), wanted, rtol=0, atol=1e-5)
    found = pytorch.import_model(arrays, cell)
    assert found.config == config
    assert_same_bits(found.params, params)


def test_a_single_layer_goes_both_ways():
    rng = np.random.default_rng(0)
    w_x, w_h, b = (rng.normal(size=size).astype(np.float32) for size in ((3, 12), (4, 12), 12))
    layer = CellParams(w_x, w_h, b, (np.arange(4, dtype=np.float32),))
    arrays = pytorch.export_layer("gru", layer, 2)
    assert {name: array.shape for name, array in arrays.items()} == {
        "weight_ih_l2": (12, 3),
        "weight_hh_l2": (12, 4),
        "bias_ih_l2": (12,),
        "bias_hh_l2": (12,),
    }
    np.testing.assert_array_equal(arrays["bias_hh_l2"], [0] * 8 + [0, 1, 2, 3])
    assert_same_bits(pytorch.import_layer("gru", arrays, 2), layer)
    for cell in ("cifg", "mingru"):
        with pytest.raises(ValueError, match=rf"cell is {cell}.*lstm, gru, rnn, irnn"):
            pytorch.export_layer(cell, layer)


def awd_arrays():
    """The names of AWD-LSTM with weight drop, after a forward pass: 3 layers of 6, 6 and 4."""
    rng = np.random.default_rng(1)
    sizes = (6, 6, 4)
    arrays = {"encoder.weight": rng.normal(size=(V, 4)), "decoder.bias": rng.normal(size=V)}
    arrays["decoder.weight"] = arrays["encoder.weight"]
    plain = dict(arrays)
    for k, (below, size) in enumerate(zip((4, 6, 6), sizes, strict=True)):
        for name, shape in (
            ("weight_ih_l0", (4 * size, below)),
            ("weight_hh_l0", (4 * size, size)),
            ("bias_ih_l0", (4 * size,)),
            ("bias_hh_l0", (4 * size,)),
        ):
            array = rng.normal(0, 0.4, shape)
            plain[f"rnns.{k}.{name}"] = array
            if name == "weight_hh_l0":
                arrays[f"rnns.{k}.module.weight_hh_l0"] = array * 0  # all of it dropped
                arrays[f"rnns.{k}.module.weight_hh_l0_raw"] = array
            else:
                arrays[f"rnns.{k}.module.{name}"] = array
    names = {name: array.astype(np.float32) for name, array in arrays.items()}
    return names, {name: array.astype(np.float32) for name, array in plain.items()}


def test_layers_of_different_sizes_with_weight_drop():
    arrays, plain = awd_arrays()
    config, params, notes = pytorch.import_model(arrays)
    assert config.layer_sizes == (6, 6, 4)
    assert config.tied
    assert sum("dropped copy" in note for note in notes) == 3
    tokens = make_tokens()
    _, h = model.apply(
        config, jax.tree.map(jnp.asarray, params), model.init_carry(config, B), tokens
    )
    wanted = oracles.torch_logits("LSTM", plain, 3, tokens, separate=True)
    np.testing.assert_allclose(model.logits(params, h), wanted, rtol=0, atol=1e-5)
    exported = pytorch.export_model(config, params)
    assert exported.keys() == plain.keys()
    assert_same_bits(pytorch.import_model(exported).params, params)
    # fastai keeps all this in a sequence of two, and the embedding once more.
    renamed = {("1." if name.startswith("dec") else "0.") + name: a for name, a in arrays.items()}
    renamed["0.encoder_dp.emb.weight"] = arrays["encoder.weight"]
    assert_same_bits(pytorch.import_model(renamed).params, params)
    wrapped = {f"module.{name}": array for name, array in plain.items()}
    assert_same_bits(pytorch.import_model(wrapped).params, params)


def test_a_decoder_or_a_bias_that_lacks_is_said():
    arrays = make_arrays("lstm", 1, tied=True)
    del arrays["decoder.weight"]
    found = pytorch.import_model(arrays)
    assert found.config.tied
    assert any("tied" in note for note in found.notes)
    bare = {name: array for name, array in arrays.items() if "bias" not in name}
    found = pytorch.import_model(bare)
    assert sum("zeros" in note for note in found.notes) == 2
    assert not found.params.layers[0].b.any()
    assert not found.params.softmax_b.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_become_float32_and_that_is_said(dtype):
    arrays = {k: v.astype(jnp.dtype(dtype)) for k, v in make_arrays("gru", 1).items()}
    config, params, notes = pytorch.import_model(arrays)
    assert notes == (f"7 arrays of {dtype} became float32",)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    wanted = oracles.torch_logits("GRU", wide, 1, make_tokens())
    np.testing.assert_allclose(our_logits(config, params, make_tokens()), wanted, rtol=0, atol=1e-5)


def without(name):
    return lambda arrays: arrays.pop(name)


def replaced(name, change):
    return lambda arrays: arrays.__setitem__(name, change(arrays))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("encoder.weight"), r"encoder\.weight is missing; there are decoder\.bias"),
        (without("rnn.weight_hh_l1"), r"rnn\.weight_hh_l1 is missing"),
        (without("rnn.bias_hh_l0"), r"rnn\.bias_hh_l0 is missing"),
        (replaced("rnn.weight_ih_l7", lambda a: a["rnn.weight_ih_l0"]), "rnn.weight_ih_l2 is miss"),
        (replaced("embed.weight", lambda a: a["encoder.weight"]), r"embed\.weight is superfluous"),
        (replaced("rnn.weight_hh_l01", lambda a: a["encoder.weight"]), "is there twice"),
        (
            replaced("rnn.weight_ih_l0_reverse", lambda a: a["rnn.weight_ih_l0"]),
            r"rnn\.weight_ih_l0_reverse is of a bidirectional layer",
        ),
        (replaced("rnn.weight_hr_l0", lambda a: a["encoder.weight"]), "weight_hr_l0.*proj_size"),
        (
            replaced("rnn.weight_ih_l1", lambda a: a["rnn.weight_ih_l1"][:, :4]),
            r"rnn\.weight_ih_l1 has shape \(24, 4\); wanted \(24, 6\)",
        ),
        (
            replaced("rnn.weight_hh_l0", lambda a: a["rnn.weight_hh_l0"][:18]),
            r"rnn\.weight_hh_l0 has shape \(18, 6\); wanted \(24, 6\), 4 gates of cell lstm",
        ),
        (
            replaced("rnn.bias_ih_l0", lambda a: a["rnn.bias_ih_l0"][:3]),
            r"rnn\.bias_ih_l0 has shape \(3,\); wanted \(24,\)",
        ),
        (
            replaced("decoder.weight", lambda a: a["decoder.weight"][1:]),
            r"decoder\.weight has shape \(10, 6\); wanted \(11, 6\)",
        ),
        (replaced("decoder.bias", lambda a: a["decoder.bias"][1:]), r"decoder\.bias has shape"),
        (replaced("encoder.weight", lambda a: a["encoder.weight"][0]), r"encoder\.weight has sha"),
        (replaced("rnn.weight_hh_l0", lambda a: np.float32(1)), r"weight_hh_l0 has shape \(\)"),
        (
            replaced("encoder.weight", lambda a: a["encoder.weight"].astype(np.int8)),
            r"encoder\.weight has dtype int8; wanted one of float32",
        ),
        (
            replaced("decoder.weight", lambda a: a["decoder.weight"].astype(float) * 1e300),
            r"decoder\.weight holds NaN or infinity in float32",
        ),
        (replaced("rnn.bias_hh_l1", lambda a: a["rnn.bias_hh_l1"] * np.nan), "layer 1 holds NaN"),
    ],
)
def test_arrays_that_are_no_such_model_are_refused(change, words):
    arrays = make_arrays("lstm", 2)
    change(arrays)
    with pytest.raises(ValueError, match=words):
        pytorch.import_model(arrays, "lstm")


def test_what_cannot_be_told_is_asked_for():
    with pytest.raises(ValueError, match=r"cell=rnn \(tanh\) or cell=irnn"):
        pytorch.import_model(make_arrays("rnn", 1))
    arrays = make_arrays("lstm", 1)
    with pytest.raises(ValueError, match=r"\(24, 6\); wanted \(18, 6\), 3 gates of cell gru"):
        pytorch.import_model(arrays, "gru")
    arrays["rnn.weight_hh_l0"] = np.zeros((12, 6), np.float32)
    with pytest.raises(ValueError, match=r"\(12, 6\); wanted \(4 H, H\) of an LSTM"):
        pytorch.import_model(arrays)
    sizes = {"encoder.weight": np.ones((V, 4), np.float32)}
    for k, (below, size) in enumerate(((4, 4), (4, 5), (5, 4))):
        sizes[f"rnns.{k}.weight_ih_l0"] = np.ones((4 * size, below), np.float32)
        sizes[f"rnns.{k}.weight_hh_l0"] = np.ones((4 * size, size), np.float32)
    with pytest.raises(ValueError, match=r"have 4, 5, 4 units"):
        pytorch.import_model(sizes)
    del sizes["rnns.1.weight_ih_l0"]
    with pytest.raises(ValueError, match=r"rnns\.1\.weight_ih_l0 is missing"):
        pytorch.import_model(sizes)


def nats_of_each_unit(config, params, units, text):
    """{unit: nats} after each unit of a text: what must not change with the order of units."""
    tokens = np.asarray([[units.index(unit)] * B for unit in text], np.int32)
    logits = our_logits(config, params, tokens)[:, 0]
    nats = np.log(np.exp(logits).sum(axis=-1, keepdims=True)) - logits
    return [dict(zip(units, row, strict=True)) for row in nats]


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_moves_with_its_rows(tied):
    config, params, _ = pytorch.import_model(make_arrays("lstm", 1, tied=tied))
    units = ["the", "</s>", "cat", "sat", "UNK", "on", "a", "mat", "and", "ran", "."]
    moved, new = reorder_vocabulary(params, units, unknown="UNK", end="</s>")
    assert new == ("<unk>", "<eos>", "the", "cat", "sat", "on", "a", "mat", "and", "ran", ".")
    text = ["the", "cat", "sat", "on", "."]
    before = nats_of_each_unit(config, params, units, text)
    after = nats_of_each_unit(config, moved, list(new), text)
    for old, found in zip(before, after, strict=True):
        old["<unk>"], old["<eos>"] = old.pop("UNK"), old.pop("</s>")
        assert found == pytest.approx(old, abs=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_without_unknown_gets_one_of_probability_zero(tied):
    config, params, _ = pytorch.import_model(make_arrays("lstm", 1, tied=tied))
    units = ["the", "<eos>", "cat", "sat", "i", "on", "a", "mat", "and", "ran", "."]
    moved, new = reorder_vocabulary(params, units, unknown="", end="<eos>")
    assert new[:3] == ("<unk>", "<eos>", "the")
    assert len(new) == 12
    text = ["the", "cat", "sat", "on", "."]
    before = nats_of_each_unit(config, params, units, text)
    after = nats_of_each_unit(config, moved, list(new), text)
    for old, found in zip(before, after, strict=True):
        assert found.pop("<unk>") > 1e8
        assert found == pytest.approx(old, abs=1e-6)


@pytest.mark.parametrize(
    ("units", "specials", "words"),
    [
        ("abcdefghijk", ("<unk>", "a"), "unknown is '<unk>', which the vocabulary lacks"),
        ("abcdefghijk", ("a", "zz"), "end is 'zz'"),
        ("abcdefghij", ("a", "b"), "has 10 units, the embedding 11 rows"),
        ("abcdefghija", ("a", "b"), "'a' twice, as 0 and 10"),
        ("abcdefghijk", ("a", "a"), "both 'a'"),
        (["<eos>", "</s>", *"abcdefghi"], ("a", "</s>"), "<eos> is a unit too"),
        (["<unk>", *"abcdefghij"], ("", "a"), "unknown is empty, but <unk> is a unit"),
        (["<unkn>", *"abcdefghij"], ("<unk>", "a"), "did you mean '<unkn>'"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(units, specials, words):
    params = pytorch.import_model(make_arrays("lstm", 1)).params
    unknown, end = specials
    with pytest.raises(ValueError, match=words):
        reorder_vocabulary(params, list(units), unknown=unknown, end=end)


VOCABULARY = Vocabulary(("<unk>", "<eos>", *"abcdéf\ngh"), "char")


@pytest.fixture
def library():
    return pytest.importorskip("safetensors", reason="safetensors is not installed")


@pytest.mark.parametrize(
    ("cell", "layout", "options"),
    [
        ("lstm", "pytorch", {"layers": 3, "last_hidden_size": 4}),
        ("gru", "pytorch", {"layers": 2, "tied": True}),
        ("irnn", "pytorch", {"forget_bias": 2.5}),
        ("gru", "ours", {"layers": 2, "last_hidden_size": 4}),
        ("cifg", "ours", {"tied": True}),
        ("minlstm", "ours", {"layers": 2}),
    ],
)
def test_files_keep_every_bit(library, cell, layout, options, tmp_path):
    config = make_config(cell, **options)
    params = random_params(config)
    path = tmp_path / "model.safetensors"
    write_model(path, config, params, VOCABULARY, layout=layout, about={"step": 7})
    found = parse_model(*read_arrays(path))
    assert found.config == config
    assert found.vocabulary == VOCABULARY
    assert (found.about, found.layout) == ({"step": 7}, layout)
    assert_same_bits(found.params, params)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_untied_model_whose_softmax_is_its_embedding_stays_untied(library, tmp_path):
    config = make_config()
    params = random_params(config)
    params = params._replace(softmax_w=np.ascontiguousarray(params.embedding.T))
    write_model(tmp_path / "m", config, params, VOCABULARY)
    found = parse_model(*read_arrays(tmp_path / "m"))
    assert found.config == config
    assert_same_bits(found.params, params)


def test_a_file_is_written_whole_or_not_at_all(library, tmp_path, monkeypatch):
    def fail(path, data):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"before")
    monkeypatch.setattr(type(path), "write_bytes", fail)
    with pytest.raises(ValueError, match="No space left"):
        write_arrays(path, {"a": np.ones(3, np.float32)}, {})
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_arrays_that_are_views_are_written_as_they_read(library, tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_arrays(tmp_path / "m", {"a": array.T, "b": array[::2, 1:]}, {"k": "v"})
    arrays, metadata = read_arrays(tmp_path / "m")
    np.testing.assert_array_equal(arrays["a"], array.T)
    np.testing.assert_array_equal(arrays["b"], array[::2, 1:])
    assert metadata == {"k": "v"}


def header(entries, body=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + body


def one(dtype, shape, size):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"<html>404</html>",
        struct.pack("<Q", 2**62) + b"{}",
        header(one("F32", [1], 4), b"\0\0"),
        header(one("F32", [2**40, 2**40], 4), b"\0" * 4),
        header(one("F32", [-1], 4), b"\0" * 4),
        header(one("F32", [1], 4) | {"__metadata__": {"k": [1]}}, b"\0" * 4),
        header(one("F8_E4M3", [4], 4), b"\0" * 4),
        header(one("F4", [8], 4), b"\0" * 4),
        header(one("X9", [4], 4), b"\0" * 4),
    ],
    ids=range(12),
)
def test_a_damaged_or_hostile_file_gets_one_line(library, data, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    done = call("convert", f"--input={path}", f"--run={tmp_path / 'run'}")
    assert_one_line(done, "bad.safetensors")
    assert not (tmp_path / "run").exists()


def spoiled(name, change):
    """A change of one metadata entry."""

    def spoil(arrays, metadata):
        metadata[name] = change(json.loads(metadata[name])) if callable(change) else change

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoiled("format_version", "2"), "format_version is 2"),
        (spoiled("layout", "keras"), "layout is 'keras'"),
        (spoiled("model", "[" * 100_000), "model is no JSON object"),
        (spoiled("model", lambda m: json.dumps(m | {"hidden_size": "6"})), "hidden_size is '6'"),
        (spoiled("model", lambda m: json.dumps(m | {"hidden_size": 60000})), "layer_sizes is"),
        (spoiled("model", lambda m: json.dumps(m | {"layers": True})), "layers is True"),
        (spoiled("model", lambda m: json.dumps(m | {"wings": 2})), "model has wings"),
        (spoiled("model", lambda m: json.dumps(m | {"cell": "lstn"})), "did you mean 'lstm'"),
        (spoiled("vocabulary", lambda v: json.dumps(v | {"units": "abc"})), "has no units"),
        (
            spoiled("vocabulary", lambda v: json.dumps(v | {"units": v["units"][::-1]})),
            "starts with",
        ),
        (spoiled("vocabulary", lambda v: json.dumps(v | {"units": ["a"]})), "1 units"),
        (spoiled("vocabulary", lambda v: json.dumps(v | {"level": {}})), "level is {}"),
        (spoiled("about", "7"), "about is no JSON object"),
        (lambda arrays, metadata: arrays.pop("decoder.bias"), "decoder.bias is missing"),
    ],
)
def test_metadata_that_lies_is_refused(library, spoil, words, tmp_path):
    write_model(tmp_path / "m", make_config(), random_params(make_config()), VOCABULARY)
    arrays, metadata = read_arrays(tmp_path / "m")
    spoil(arrays, metadata)
    with pytest.raises(ValueError, match=words):
        parse_model(arrays, metadata)


def test_our_layout_is_checked_name_by_name(library, tmp_path):
    config = make_config()
    write_model(tmp_path / "m", config, random_params(config), VOCABULARY, layout="ours")
    arrays, metadata = read_arrays(tmp_path / "m")
    for change, words in (
        (
            {"layers.0.w_h": arrays["layers.0.w_h"][1:]},
            r"layers\.0\.w_h is float32 of shape \(5,",
        ),
        ({"layers.0.b": arrays["layers.0.b"].astype(np.float64)}, "is float64 of shape"),
        ({"layers.1.b": arrays["layers.0.b"]}, r"layers\.1\.b is superfluous"),
        ({"softmax_b": arrays["softmax_b"] * np.inf}, r"decoder\.bias holds NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_model(arrays | change, metadata)
    for name in ("softmax_w", "embedding"):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            parse_model({k: v for k, v in arrays.items() if k != name}, metadata)


def test_options_come_back_from_json():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        rates: tuple[float, ...] = (1.0,)
        clip: float = 1.0

    @dataclasses.dataclass(frozen=True)
    class Outer:
        name: str = ""
        inner: Inner = Inner()

    kept = Outer("x", Inner((1.0, 2.0), float("inf")))
    stored = {"name": "x", "inner": {"rates": [1.0, 2.0], "clip": "inf"}}
    assert rebuild(Outer(), stored, "config") == kept
    assert rebuild(Outer(), {"inner": {"clip": 2}}, "config").inner.clip == 2.0
    for wrong in ({"inner": 3}, {"inner": {"clip": "much"}}, {"inner": {"wings": 1}}, [1]):
        with pytest.raises(ValueError, match=r"inner|clip|wings|config"):
            rebuild(Outer(), wrong, "config")


BOOK = ("mat", "</s>", "ran", "the", "UNK", "sat", "on", "cat", "and", "dog", "to")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_book(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(book, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    done = call(
        "train",
        f"--corpus={book}",
        f"--run={folder}",
        "--cell=rnn",  # which its shapes do not tell
        "--averaging=always",
        "--steps=10",
        *TINY,
    )
    assert done.returncode == 0, done.stderr
    return folder


def convert(*options):
    done = call("convert", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluate(folder, *options):
    """{text: perplexity} that evaluate notes in the run."""
    done = call("evaluate", f"--run={folder}", "--batch_size=4", "--length=50", *options)
    assert done.returncode == 0, done.stderr
    noted = json.loads((folder / "evaluation.json").read_text())
    return {name: row["perplexity"] for name, row in noted.items()}


def test_a_run_goes_out_and_comes_back(library, trained, tmp_path):
    found = {"trained": evaluate(trained)}
    for layout in ("pytorch", "ours"):
        path = tmp_path / f"{layout}.safetensors"
        convert(f"--run={trained}", f"--output={path}", f"--layout={layout}")
    convert(f"--input={tmp_path / 'pytorch.safetensors'}", f"--run={tmp_path / 'pytorch'}")
    found["pytorch"] = evaluate(tmp_path / "pytorch")
    assert found["trained"].keys() >= {"valid", "test"}
    assert found["pytorch"] == found["trained"]
    both = [read_arrays(tmp_path / f"{layout}.safetensors") for layout in ("pytorch", "ours")]
    first, second = (parse_model(*read) for read in both)
    assert_same_bits(first.params, second.params)
    stored = [
        json.loads((f / "config.json").read_text())["config"]
        for f in (trained, tmp_path / "pytorch")
    ]
    assert stored[0] | {"run": ""} == stored[1] | {"run": ""}
    assert str(trained) not in both[0][1]["about"]  # where it lay is nobody's business
    done = call("convert", f"--run={trained}", f"--output={path}")
    assert_one_line(done, "exists")
    done = call("convert", f"--input={path}", f"--run={trained}")
    assert_one_line(done, "exists")
    done = call("convert", f"--input={path}", f"--run={tmp_path / 'x'}", "--cell=lstm")
    assert_one_line(done, "cell is lstm", "holds its own")
    done = call("convert", f"--run={trained}", f"--output={tmp_path / 'x'}", "--level=char")
    assert_one_line(done, "level is char", "output")


def foreign_perplexity(arrays, lines):
    """Perplexity of a text by the oracle, in the order of units that is the file's."""
    ids = {unit: row for row, unit in enumerate(BOOK)}
    words = [[*line.replace(".", " .").split(), "</s>"] for line in lines]
    tokens = np.asarray([ids.get(word, ids["UNK"]) for line in words for word in line])
    inputs = np.concatenate([[ids["</s>"]], tokens[:-1]])
    logits = oracles.torch_logits("RNN_RELU", arrays, 1, inputs[:, None])[:, 0]
    nats = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(tokens)), tokens]
    return np.exp(nats.mean())


def test_a_foreign_model_becomes_a_run(library, book, tmp_path):
    arrays = make_arrays("irnn", 1, seed=3)
    path, units = tmp_path / "foreign.safetensors", tmp_path / "units.json"
    write_arrays(path, arrays, {"format": "pt"})
    units.write_text(json.dumps(BOOK))
    done = call("convert", f"--input={path}", f"--run={tmp_path / 'run'}")
    assert_one_line(done, "--vocabulary=FILE")
    named = (f"--input={path}", f"--vocabulary={units}", "--unknown=UNK", "--end=</s>")
    done = call("convert", *named, f"--run={tmp_path / 'run'}")
    assert_one_line(done, "cell=rnn (tanh) or cell=irnn")
    done = call("convert", *named, "--cell=irnn", "--layout=ours", f"--run={tmp_path / 'run'}")
    assert_one_line(done, "layout is ours", "input")
    assert not (tmp_path / "run").exists()
    data = (f"--corpus={book}", "--level=word")
    convert(*named, "--cell=irnn", *data, f"--run={tmp_path / 'run'}")
    lines = book.read_text().splitlines()
    found = evaluate(tmp_path / "run")
    assert found["valid"] == pytest.approx(foreign_perplexity(arrays, lines[360:380]), rel=1e-5)
    assert found["test"] == pytest.approx(foreign_perplexity(arrays, lines[380:]), rel=1e-5)

    (tmp_path / "units.txt").write_text("\n".join(BOOK) + "\n")
    named = (named[0], f"--vocabulary={tmp_path / 'units.txt'}", *named[2:])
    out = convert(*named, "--cell=irnn", "--level=word", f"--run={tmp_path / 'bare'}")
    assert "--text=FILE" in out
    done = call("evaluate", f"--run={tmp_path / 'bare'}")
    assert_one_line(done, "imported without --corpus")
    part = tmp_path / "part.txt"
    part.write_text("\n".join(lines[380:]) + "\n")
    again = evaluate(tmp_path / "bare", f"--text={part}")
    assert again[str(part)] == pytest.approx(found["test"], rel=1e-6)


def test_what_convert_cannot_do_is_one_line(tmp_path, monkeypatch):
    done = call("convert")
    assert_one_line(done, "neither is given")
    done = call("convert", "--input=a", "--output=b")
    assert_one_line(done, "both are given")
    done = call("convert", f"--input={tmp_path}", "--run=x")
    assert_one_line(done, "no such file")
    done = call("convert", f"--output={tmp_path / 'no' / 'm'}", "--run=x")
    assert_one_line(done, "no folder")
    done = call("convert", f"--output={tmp_path / 'm'}", f"--run={tmp_path}")
    assert_one_line(done, "holds no run")
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04rest")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    done = call("convert", f"--input={path}", "--run=x")
    assert_one_line(done, "takes torch to read", "safetensors.torch.save_file")
    path.write_bytes(header(one("F32", [1], 4), b"\0" * 4))
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    done = call("convert", f"--input={path}", "--run=x")
    assert_one_line(done, "safetensors, which is not installed", "pip install")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def make_network(torch, cell, layers, tied):
    """examples/word_language_model's RNNModel."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(V, D)
            kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
            kind = kinds.get(cell, torch.nn.RNN)
            extra = {} if cell in kinds else {"nonlinearity": "relu" if cell == "irnn" else "tanh"}
            self.rnn = kind(D, H, layers, **extra)
            self.decoder = torch.nn.Linear(H, V)
            if tied:
                self.decoder.weight = self.encoder.weight

        def forward(self, tokens, state=None):
            h, state = self.rnn(self.encoder(tokens), state)
            return self.decoder(h), state

    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.4)
    return network


def torch_logits(torch, network, tokens):
    """As `our_logits`: two chunks, the state carried."""
    with torch.no_grad():
        tokens = torch.from_numpy(tokens).long()
        first, state = network(tokens[:3])
        return torch.cat([first, network(tokens[3:], state)[0]]).numpy()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("cell", "layers"), CASES)
def test_pytorch_itself_agrees_both_ways(torch, cell, layers, tied):
    network, tokens = make_network(torch, cell, layers, tied), make_tokens()
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    config, params, _ = pytorch.import_model(arrays, cell)
    assert config.tied == tied
    wanted = torch_logits(torch, network, tokens)
    np.testing.assert_allclose(our_logits(config, params, tokens), wanted, rtol=0, atol=1e-5)

    params = random_params(config, seed=5)
    exported = pytorch.export_model(config, params)
    state = {name: torch.from_numpy(array) for name, array in exported.items()}
    network.load_state_dict(state, strict=True)
    wanted = torch_logits(torch, network, tokens)
    np.testing.assert_allclose(our_logits(config, params, tokens), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 2), ("gru", 1)])
def test_pytorch_finds_the_same_gradients(torch, cell, layers):
    network, tokens = make_network(torch, cell, layers, False), make_tokens()
    targets = make_tokens(1)
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    config, params, _ = pytorch.import_model(arrays, cell)
    logits, _ = network(torch.from_numpy(tokens).long())
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, V), torch.from_numpy(targets).long().reshape(-1)
    )
    loss.backward()

    @jax.jit
    def nats(params):
        _, h = model.apply(config, params, model.init_carry(config, B), tokens)
        weights = jnp.full(T * B, 1 / (T * B))
        w = model.softmax_weights(params)
        return weighted_nats(h.reshape(-1, H), w, params.softmax_b, targets.reshape(-1), weights)

    ours, grads = jax.value_and_grad(nats)(jax.tree.map(jnp.asarray, params))
    assert float(ours) == pytest.approx(loss.item(), abs=1e-5)
    exported = pytorch.export_model(config, grads)
    for name, parameter in network.named_parameters():
        found, wanted = exported[name], parameter.grad.numpy()
        if "bias_hh" in name:  # one bias of ours is the sum of two, and has the gradient of each
            rows = slice(2 * H, None) if cell == "gru" else slice(0, 0)
            found, wanted = found[rows], wanted[rows]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5, err_msg=name)


def test_pytorch_takes_layers_of_different_sizes(torch):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(V, 4)
            sizes = ((4, 6), (6, 6), (6, 4))
            self.rnns = torch.nn.ModuleList(torch.nn.LSTM(below, size) for below, size in sizes)
            self.decoder = torch.nn.Linear(6, V)  # AWD-LSTM's own wrong size, tied over
            self.decoder.weight = self.encoder.weight

    arrays, plain = awd_arrays()
    config, params, _ = pytorch.import_model(arrays)
    exported = pytorch.export_model(config, params)
    state = {name: torch.from_numpy(array) for name, array in exported.items()}
    network = Network()
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        h = network.encoder(torch.from_numpy(make_tokens()).long())
        for layer in network.rnns:
            h, _ = layer(h)
        found = network.decoder(h).numpy()
    wanted = oracles.torch_logits("LSTM", plain, 3, make_tokens(), separate=True)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_the_length_of_a_header_is_not_taken_for_a_pickle(library, tmp_path):
    from experiments.convert import is_torch

    begun = set()
    for padding in range(100):  # a header's length is a multiple of 8
        write_arrays(tmp_path / "m", {"a": np.ones(3, np.float32)}, {"p": "x" * 8 * padding})
        begun.add((tmp_path / "m").read_bytes()[:2])
        assert not is_torch(tmp_path / "m")
    assert b"\x80\x02" in begun  # as a pickle of protocol 2 begins
    (tmp_path / "m").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert is_torch(tmp_path / "m")
    (tmp_path / "m").write_bytes(b"PK\x03\x04")
    assert is_torch(tmp_path / "m")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_state_dicts_are_read_and_pickles_are_not_run(torch, tmp_path):
    from experiments.convert import read_torch

    network = make_network(torch, "lstm", 1, False)
    path = tmp_path / "model.pt"
    for stored in (network.state_dict(), {"epoch": 3, "model": network.state_dict()}):
        torch.save(stored, path)
        arrays = read_torch(path)
        assert arrays.keys() == network.state_dict().keys()
        np.testing.assert_array_equal(arrays["encoder.weight"], network.encoder.weight.detach())
    torch.save({"encoder.weight": network.encoder.weight.bfloat16()}, path)
    assert read_torch(path)["encoder.weight"].dtype == jnp.bfloat16
    for stored in (
        {"model": Hostile(str(tmp_path / "opened"))},
        torch.nn.Linear(2, 2),
        {"encoder.weight": 3},
        [1, 2],
        {"encoder.weight": torch.eye(3).to_sparse()},
        {"encoder.weight": torch.ones(3, dtype=torch.int32)},
    ):
        torch.save(stored, path)
        done = call("convert", f"--input={path}", f"--run={tmp_path / 'run'}")
        assert_one_line(done, "model.pt")
    path.write_bytes(path.read_bytes()[:100])
    assert_one_line(call("convert", f"--input={path}", f"--run={tmp_path / 'run'}"), "model.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]
