"""Recipes: each is a whole configuration of the size that its paper says; flags override it."""

import json
import shutil
import struct
from itertools import pairwise

import jax
import numpy as np
import pytest
from command_line import assert_one_line, call, write_book
from tensorboardX.proto import event_pb2

from experiments import flags
from experiments.fit.config import Config, with_options
from experiments.recipes import RECIPES, load_recipe
from experiments.trained import load_run, load_state
from lm import model
from lm.data.corpus import CORPORA

# Parameters in millions: of the papers where they say, else counted from their equations.
MILLIONS = {
    "zaremba_small": (10_000, 4.65),
    "zaremba_medium": (10_000, 19.8),
    "zaremba_large": (10_000, 66.0),
    "pytorch_example": (33_278, 14.0),
    "pytorch_example_650": (33_278, 28.4),
    "pytorch_example_1500": (33_278, 86.0),
    "awd_lstm": (10_000, 24.2),
    "awd_lstm_finetune": (10_000, 24.2),
    "awd_lstm_wt2": (33_278, 33.6),
    "awd_lstm_wt2_finetune": (33_278, 33.6),
    "awd_lstm_enwik8": (205, 47.0),
    "melis_lstm": (10_000, 24.0),
    "char_rnn": (67, 0.2444),
    "mikolov_rnn": (10_000, 2.70),
    "sentence_lstm": (10_000, 3.10),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_whole_configuration(name):
    recipe = load_recipe(name)
    config = Config.of_preset(name)
    assert config.recipe == name
    assert config.data.corpus == recipe.OPTIONS["corpus"]
    assert config.data.corpus in CORPORA
    assert f"--recipe={name} " in recipe.__doc__
    assert set(recipe.PUBLISHED) == {"valid", "test"}
    vocabulary, millions = MILLIONS[name]
    shapes = jax.eval_shape(lambda k: model.init(k, config.model, vocabulary), jax.random.key(0))
    assert abs(model.count_parameters(shapes) / 1e6 - millions) < 0.02 * millions
    assert "NUMBERS" not in recipe.__doc__  # that were to be filled in
    assert getattr(recipe, "NEEDS_START", "zaremba_small") in RECIPES


# As ../shared/RECIPES.md has them: rates are of a mean per token, lr x steps and clip / steps.
SETTINGS = {
    "zaremba_small": {"learning_rate": 20, "clip": 0.25, "init_range": 0.1, "decay_after": 4},
    "zaremba_medium": {"learning_rate": 35, "clip": 1 / 7, "decay": 1 / 1.2, "dropout_output": 0.5},
    "zaremba_large": {"learning_rate": 35, "clip": 2 / 7, "decay_after": 14, "dropout_input": 0.65},
    "pytorch_example": {"learning_rate": 20, "clip": 0.25, "decay": 0.25, "dropout_hidden": 0.2},
    "awd_lstm": {
        "learning_rate": 30,
        "dropout_input": 0.4,
        "dropout_hidden": 0.25,
        "dropout_output": 0.4,
        "dropout_words": 0.1,
        "weight_drop": 0.5,
        "activation_penalty": 2,
        "slowness_penalty": 1,
        "weight_decay": 1.2e-6,
        "batch_size": 20,
    },
    "awd_lstm_wt2": {"dropout_input": 0.65, "dropout_hidden": 0.2, "batch_size": 80},
    "awd_lstm_finetune": {"averaging": "always", "early_stop": True, "dropout_hidden": 0.25},
    "melis_lstm": {"learning_rate": 0.00396, "beta1": 0, "dropout_state": 0.643, "clip": 10},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings(name):
    options = load_recipe(name).OPTIONS
    for option, value in SETTINGS[name].items():
        found = options[option]
        assert found == (value if isinstance(value, str) else pytest.approx(value)), option


def parsed(*arguments):
    return flags.parse(Config, list(arguments), "train", "")


def test_flags_override_a_recipe_and_the_recipe_the_defaults():
    config = parsed("--recipe=zaremba_small", "--corpus=x.txt", "--hidden_size=7")
    assert (config.model.hidden_size, config.model.embedding_size) == (7, 200)
    assert (config.data.corpus, config.optim.clip) == ("x.txt", 0.25)
    assert config.given == ("corpus", "hidden_size", "recipe")
    assert config == with_options(
        Config.of_preset("zaremba_small"),
        {"corpus": "x.txt", "hidden_size": 7, "given": config.given},
    )
    assert parsed().model.hidden_size == Config().model.hidden_size
    # A flag that is a default of train is given all the same.
    assert parsed("--recipe=zaremba_medium", "--dropout_input=0").regularize.dropout_input == 0
    with pytest.raises(ValueError, match="no option is called hiden_size"):
        with_options(Config(), {"hiden_size": 3})


def test_mistakes_in_recipes():
    done = call("train", "--recipe=zaremba_smal")
    assert_one_line(done, "recipe is 'zaremba_smal'", "did you mean 'zaremba_small'")
    done = call("train", "--recipe=awd_lstm_finetune")
    assert_one_line(done, "trains on from a run; wanted --start=RUN, a run of awd_lstm")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--decay=0.3"], "decay does nothing with these options; wanted schedule step or plateau"),
        (["--schedule=step", "--warmup=0.1"], "warmup does nothing"),
        (["--beta1=0.5"], "wanted optimizer adam beside it"),
        (["--patience=3"], "wanted averaging triggered, or early_stop"),
        (["--dropout_masks=independent", "--weight_drop=0.5"], "dropout_masks does nothing"),
        (["--cell=mingru", "--weight_drop=0.5"], "a recurrent product, which mingru lacks"),
        (["--last_hidden_size=9"], "wanted layers of 2 or more"),
        (["--cell=rnn", "--forget_bias=3"], "wanted a cell with a forget gate, which rnn lacks"),
        (
            ["--chrono=9", "--forget_bias=3"],
            "forget_bias does nothing with these options; wanted chrono 0",
        ),
        (["--init_range=0.3"], "wanted init uniform or pytorch"),
        (["--early_stop", "--averaging=triggered"], "early_stop stops at the evaluation"),
        (["--dropout_hidden=0.5"], "dropout_hidden is 0.5 with one layer"),
        (["--random_length", "--batching=sentences"], "wanted batching=stream"),
        (["--seed=2147483647", "--seeds=2"], "wanted all below 2^31"),
    ],
)
def test_options_that_do_nothing_are_refused(flags, words, tmp_path):
    assert_one_line(call("train", f"--run={tmp_path / 'r'}", *flags), words)
    assert not (tmp_path / "r").exists()


def test_a_recipes_own_options_may_idle():
    flags = ["--recipe=zaremba_small", "--schedule=constant", "--corpus=missing.txt"]
    assert_one_line(call("train", *flags), "missing.txt")


def test_the_list_names_every_recipe_with_its_numbers():
    printed = call("train", "--list_recipes").stdout
    assert all(name in printed for name in RECIPES)
    assert "120.7" in printed
    assert "114.5" in printed


SMALL = ["--steps=6", "--hidden_size=8", "--embedding_size=8", "--batch_size=4", "--length=5"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two seeds of a run that averages: (book, folder, what was printed)."""
    parent = tmp_path_factory.mktemp("seeds")
    book, folder = write_book(parent), parent / "r"
    flags = ["--seeds=2", "--averaging=always", "--evaluate_every=2", "--learning_rate=60"]
    done = call("train", f"--corpus={book}", f"--run={folder}", *flags, *SMALL)
    assert done.returncode == 0, done.stderr
    return book, folder, done.stdout


def test_seeds_are_runs_below_one_folder(seeds):
    _, folder, printed = seeds
    assert "over 2 seeds" in printed
    assert (folder / "figures" / "perplexity.png").stat().st_size > 5000
    summary = json.loads((folder / "results.json").read_text())
    found = [
        json.loads((folder / f"seed-{s}" / "results.json").read_text())["test"]["perplexity"]
        for s in (0, 1)
    ]
    assert summary["test"]["perplexity"] == pytest.approx(sum(found) / 2)
    assert summary["test"]["sd"] == pytest.approx(abs(found[0] - found[1]) / 2**0.5)
    again = call("train", f"--run={folder}", "--resume").stdout.splitlines()
    assert again[:2] == [line for line in printed.splitlines() if "over 2 seeds" in line]
    assert_one_line(call("generate", f"--run={folder}"), "several seeds", "seed-0", "seed-1")


def test_the_best_checkpoint_is_what_is_evaluated(seeds):
    """Its averaged parameters have the validation perplexity that was least."""
    _, folder, _ = seeds
    one = folder / "seed-0"
    lines = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    valid = {line["step"]: line["valid"] for line in lines if "valid" in line}
    results = json.loads((one / "results.json").read_text())
    assert list(valid) == [2, 4, 6]
    assert results["step"] == min(valid, key=valid.get)
    assert results["valid"]["perplexity"] == pytest.approx(min(valid.values()), rel=1e-6)
    best, last = load_run(str(one)), load_run(str(one), "last")
    assert best.step == results["step"]
    assert last.step == 6
    state = load_state(str(one))
    np.testing.assert_array_equal(last.params.softmax_b, state.average.params.softmax_b)
    assert not np.array_equal(last.params.softmax_b, state.params.softmax_b)
    assert not np.array_equal(best.params.softmax_b, last.params.softmax_b) or best.step == 6


def scalars_of(folder):
    """(tag, step) -> value of every event file, read record by record."""
    found = {}
    for path in folder.glob("events.*"):
        raw, at = path.read_bytes(), 0
        while at < len(raw):  # TFRecord: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", raw[at : at + 8])
            event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            at += 16 + length
    return found


def test_tensorboard_has_the_curves_of_the_json_lines(seeds):
    one = seeds[1] / "seed-0"
    drawn = scalars_of(one / "tensorboard")
    lines = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) > 3
    for line in lines:
        if "valid" in line:
            assert drawn["valid/perplexity", line["step"]] == pytest.approx(line["valid"], rel=1e-6)
        else:
            assert drawn["train/loss", line["step"]] == pytest.approx(line["loss"], rel=1e-6)
            assert drawn["train/learning_rate", line["step"]] > 0


def test_a_start_is_gone_on_from(seeds, tmp_path):
    book, folder, _ = seeds
    start = f"--start={folder / 'seed-1'}"
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 's'}", start, *SMALL)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "s" / "metrics.jsonl").read_text().splitlines()
    from_run = json.loads((folder / "seed-1" / "results.json").read_text())
    first = json.loads(lines[0])
    assert first["step"] == 0
    assert first["valid"] == pytest.approx(from_run["valid"]["perplexity"], rel=1e-5)
    results = json.loads((tmp_path / "s" / "results.json").read_text())
    assert results["valid"]["perplexity"] <= first["valid"] * (1 + 1e-5)  # no worse than its start
    wrong = [flag.replace("hidden_size=8", "hidden_size=9") for flag in SMALL]
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 'w'}", start, *wrong)
    assert_one_line(done, "has another model; wanted --hidden_size=8 beside it")
    assert not (tmp_path / "w").exists()


@pytest.mark.whole
def test_a_start_killed_before_its_first_checkpoint_begins_there_again(seeds, tmp_path):
    book, folder, _ = seeds
    run = tmp_path / "s"
    flags = [f"--corpus={book}", f"--run={run}", f"--start={folder / 'seed-1'}", *SMALL]
    assert call("train", *flags).returncode == 0
    whole = (run / "results.json").read_text()
    for name in ("checkpoints", "best"):  # as a kill at the start leaves it
        shutil.rmtree(run / name)
    (run / "results.json").unlink()
    assert call("train", f"--run={run}", "--resume").returncode == 0
    assert (run / "results.json").read_text() == whole


@pytest.mark.whole
def test_a_seed_that_diverges_does_not_lose_the_others(seeds, tmp_path):
    book, _, _ = seeds
    flags = ["--seeds=2", "--learning_rate=1e30", "--clip=inf", *SMALL]
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 'r'}", *flags)
    assert done.returncode == 2
    assert "seed 0 diverged at step" in done.stderr
    assert "seed 1 diverged at step" in done.stderr
    assert "every seed diverged" in done.stderr


@pytest.mark.whole
def test_early_stopping_ends_a_run_and_its_resumption(seeds, tmp_path):
    book, _, _ = seeds
    flags = ["--early_stop", "--patience=1", "--evaluate_every=2", "--learning_rate=200"]
    flags += ["--clip=100", *SMALL, "--steps=400"]
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 'r'}", *flags)
    assert done.returncode == 0, done.stderr
    whole = (tmp_path / "r" / "results.json").read_text()
    results = json.loads(whole)
    assert results["step"] < results["last_step"] < 400  # the last is not the best
    assert call("train", f"--run={tmp_path / 'r'}", "--resume").returncode == 0
    assert (tmp_path / "r" / "results.json").read_text() == whole


@pytest.mark.whole
def test_dispatches_are_of_few_lengths_where_nothing_divides(seeds, tmp_path):
    """One compilation for each: 7 steps an epoch of the schedule, checkpoints every 5, 3 a call."""
    book, _, _ = seeds
    flags = ["--evaluate_every=7", "--checkpoint_every=5", "--steps_per_dispatch=3", *SMALL]
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 'r'}", *flags, "--steps=30")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "loss" in row]
    assert {b - a for a, b in pairwise([0, *steps])} == {1, 2, 3}  # 2: the last of 30
    assert steps[:6] == [3, 6, 7, 10, 13, 14]
