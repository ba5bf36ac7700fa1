"""Recipes: each is a whole configuration of the size that its paper says; flags override it."""

import jax
import pytest
from command_line import assert_one_line, call, write_book

from experiments import flags
from experiments.fit.config import Config, with_options
from experiments.recipes import RECIPES, load_recipe
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
    if name in MILLIONS:
        vocabulary, millions = MILLIONS[name]
        shapes = jax.eval_shape(
            lambda k: model.init(k, config.model, vocabulary), jax.random.key(0)
        )
        assert abs(model.count_parameters(shapes) / 1e6 - millions) < 0.02 * millions


def parsed(*arguments):
    return flags.parse(Config, list(arguments), "train", "")


def test_flags_override_a_recipe_and_the_recipe_the_defaults():
    config = parsed("--recipe=zaremba_small", "--corpus=x.txt", "--hidden_size=7")
    assert (config.model.hidden_size, config.model.embedding_size) == (7, 200)
    assert (config.data.corpus, config.optim.clip) == ("x.txt", 0.25)
    assert config == with_options(
        Config.of_preset("zaremba_small"), {"corpus": "x.txt", "hidden_size": 7}
    )
    assert parsed().model.hidden_size == Config().model.hidden_size
    # A flag that is a default of train is given all the same.
    assert parsed("--recipe=zaremba_medium", "--dropout_input=0").regularize.dropout_input == 0
    with pytest.raises(ValueError, match="no option is called hiden_size"):
        with_options(Config(), {"hiden_size": 3})


def test_mistakes_in_recipes():
    done = call("train", "--recipe=zaremba_smal")
    assert_one_line(done, "recipe is 'zaremba_smal'", "did you mean 'zaremba_small'")


def test_the_list_names_every_recipe_with_its_numbers():
    printed = call("train", "--list_recipes").stdout
    assert all(name in printed for name in RECIPES)
    assert "120.7" in printed
    assert "114.5" in printed


def test_seeds_are_runs_below_one_folder_and_a_start_is_gone_on_from(tmp_path):
    book, folder = write_book(tmp_path), tmp_path / "r"
    flags = ["--steps=6", "--hidden_size=8", "--embedding_size=8", "--batch_size=4", "--length=5"]
    done = call("train", f"--corpus={book}", f"--run={folder}", "--seeds=2", *flags)
    assert done.returncode == 0, done.stderr
    assert "over 2 seeds" in done.stdout
    assert (folder / "figures" / "perplexity.png").stat().st_size > 5000
    again = call("train", f"--run={folder}", "--resume")
    assert again.stdout.splitlines()[:2] == [
        line for line in done.stdout.splitlines() if "over 2 seeds" in line
    ]
    assert_one_line(call("generate", f"--run={folder}"), "several seeds", "seed-0", "seed-1")
    start = f"--start={folder / 'seed-1'}"
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 's'}", start, *flags)
    assert done.returncode == 0, done.stderr
    wrong = [flag.replace("hidden_size=8", "hidden_size=9") for flag in flags]
    done = call("train", f"--corpus={book}", f"--run={tmp_path / 'w'}", start, *wrong)
    assert_one_line(done, "start holds a model of", "the same cell, sizes and vocabulary")
