"""Studies, their statistics on known answers, runs kept and taken up again, the command."""

import dataclasses
import math
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, call, command, write_book
from scipy import stats

from experiments import ablation, figures, run_folder
from experiments.ablate.drawing import (
    Results,
    colours,
    label_ratios,
    powers_of_ten,
    same_as,
    view_of,
)
from experiments.ablate.record import Records
from experiments.ablate.runs import Found, FreshBatches
from experiments.ablate.setting import Setting
from experiments.ablate.studies import GREFF, STUDIES, equal_width
from experiments.ablate.summary import footnote, headline, say_ratios, summarise
from experiments.ablate.verdicts import holm, interval, paired_effect, verdict
from experiments.fit.signals import StopOnSignal
from experiments.task_training import Network, init_network, run_layer
from lm import model
from lm.config import DataConfig, ModelConfig, OptimConfig
from lm.data.batches import StreamBatches
from lm.tasks import make_adding

BASE = Setting(DataConfig(), ModelConfig(), OptimConfig(), steps=100, lags=40)


def test_holm_on_a_worked_example():
    """Four tests: .005 x 4, .01 x 3, .03 x 2, and .04 x 1, which may not be less than the last."""
    found = holm(np.asarray([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.asarray([0.04, np.nan, 0.6])), [0.08, np.nan, 0.6])


def test_an_effect_is_scipys_paired_test():
    rng = np.random.default_rng(0)
    variant, baseline = rng.normal(0.3, 1, 8), rng.normal(0, 1, 8)
    expected = stats.ttest_rel(variant, baseline)
    effect = paired_effect(variant, baseline)
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-10)
    low, high = expected.confidence_interval(0.95)
    np.testing.assert_allclose([effect.low, effect.high], [low, high], rtol=1e-10)
    # A seed that diverged takes its pair out; one pair is no test.
    lost = paired_effect(np.r_[variant, np.inf], np.r_[baseline, 0.0])
    assert lost == effect
    assert verdict(paired_effect(np.r_[1.0, np.inf], np.zeros(2)), math.nan) == "too few pairs"
    assert paired_effect(np.ones(3), np.ones(3)).p == 1.0
    assert np.isnan(interval(np.asarray([np.inf]))).all()


def test_survivors_of_many_that_diverged_are_no_sample():
    """Two of eight that are better by far, and consistently: no verdict on the variant."""
    baseline = np.arange(8) / 10
    variant = np.r_[baseline[:2] - 1 + [0, 1e-3], np.full(6, np.inf)]
    few = paired_effect(variant, baseline)
    assert (few.pairs, verdict(few, few.p)) == (2, "diverged")
    assert np.isnan([few.mean, few.p]).all()
    assert verdict(paired_effect(baseline, variant), math.nan) == "no baseline"
    half = paired_effect(np.r_[baseline[:4] - 1 + [0, 0, 0, 1e-3], np.full(4, np.inf)], baseline)
    assert (half.pairs, verdict(half, half.p)) == (4, "better")


def test_a_footnote_says_what_a_reader_has_to_know():
    def said(steps, study, blind=None):
        rows = [{"diverged": 0, "rate_at_edge": False, "steps": number} for number in steps]
        return " ".join(footnote(8, 2, rows, STUDIES[study], blind).split())

    assert "sees nothing has a loss of 0.1767" in said((800, 800), "gates", 0.1767)
    assert "longer chunks in fewer steps" in said((800, 400), "length")
    assert "carries the state" in said((800, 400), "length")
    assert "fewer steps" not in said((800, 800), "gates")


def test_a_signal_is_answered_at_once(capfd):
    with StopOnSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        assert "stopping soon" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_without_a_baseline_nothing_is_found():
    rows = [
        {"label": "LSTM", "verdict": None, "p": None, "diverged": 0},
        {"label": "no input gate", "verdict": "no baseline", "p": math.nan, "diverged": 0},
    ]
    assert headline(rows, False) == "LSTM diverged: there is nothing to compare with"


def test_where_nothing_differs_one_study_in_twenty_says_so():
    """4 comparisons of 8 seeds each: the chance of any false verdict stays at 5 %."""
    rng = np.random.default_rng(1)
    studies, false = 600, 0
    for _ in range(studies):
        baseline = rng.normal(size=8)  # seeds differ more than variants: that is what pairs are for
        effects = [paired_effect(baseline + rng.normal(0, 0.1, 8), baseline) for _ in range(4)]
        false += (holm(np.asarray([effect.p for effect in effects])) < 0.05).any()
    assert stats.binomtest(int(false), studies, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("on_task", [False, True])
def test_every_study_changes_what_it_says(study, on_task):
    config = ablation.Config(data=DataConfig("latch", max_vocabulary=2000))
    variants = STUDIES[study].variants(config, on_task)
    settings = [BASE.of(variant.options) for variant in variants]
    assert len({variant.name for variant in variants}) == len(variants) > 2
    if study != "depth" or not on_task:
        assert len(set(settings)) == len(variants), "no two are the same network"
    read = [setting.steps * setting.data.length for setting in settings]
    np.testing.assert_allclose(read, read[0], rtol=0.02)  # all read as much text
    if study == "gates":
        assert [variant.name for variant in variants] == ["lstm", *GREFF]


def test_a_deep_network_has_as_many_parameters_as_a_wide_one():
    config = ModelConfig(hidden_size=64, embedding_size=32)

    def count(layers, hidden):
        sized = dataclasses.replace(config, layers=layers, hidden_size=hidden)
        shapes = jax.eval_shape(lambda key: model.init(key, sized, 5), jax.random.key(0))
        return model.count_parameters(shapes.layers)

    for layers in (1, 2, 4):
        assert count(layers, equal_width(config, layers)) == pytest.approx(count(1, 64), rel=0.03)


def test_a_truncated_gradient_stops_where_a_chunk_starts():
    task, network = make_adding(10), Network("lstm", 4, truncation=4)
    params = init_network(jax.random.key(0), network, task, 1.0).layer
    x = task.sample(jax.random.key(1), 3).inputs
    whole = dataclasses.replace(network, truncation=0)
    h, same = (run_layer(n, params, x) for n in (network, whole))
    np.testing.assert_allclose(h, same, rtol=1e-6)
    reach = jax.grad(lambda x: jnp.sum(run_layer(network, params, x)[-1]))(x)
    assert np.abs(reach[8:]).min(axis=(1, 2)).all()  # chunks start at 0, 4 and 8
    np.testing.assert_array_equal(reach[:8], 0)


def test_chunks_that_carry_nothing_all_start_from_zero():
    batches = FreshBatches(StreamBatches(np.arange(200, dtype=np.int32), 4, 5))
    assert batches.block(1, 3).reset.tolist() == [True] * 3
    assert (batches.steps_per_epoch, batches.batch_size) == (10, 4)


class PlantedRuns:
    """Runs whose losses are known: best at rate 2 ("good") or 1, with noise that seeds share."""

    vocabulary, corpus = None, {"name": "planted"}

    def __init__(self):
        self.trained = []

    def train(self, setting, points, advance, *, measure):
        worse = {"lstm": 0.0, "nfg": 0.2, "cifg": 0.0, "noaf": np.inf}[setting.model.cell]
        for seed, rate in points:
            noise, own = np.random.default_rng(seed).normal(0, 0.5, 2)
            own *= 1e-3 * (setting.model.cell != "lstm")
            self.trained.append((setting.model.cell, seed, rate, measure))
            loss = 3 + worse + noise + own + np.log(rate / (2 if worse else 1)) ** 2
            failed = 7 if np.isinf(loss) else None
            flow = [(0.0, -0.3 * (1 + worse), -0.6 * (1 + worse))] * 2 if measure else []
            yield Found(loss, loss, failed, 10, *(() if failed else flow))
            advance(1.0)


class NotAsked:
    asked = False


def planted_config():
    names = ("nfg", "noaf", "cifg")
    return ablation.Config(seeds=4, rates=(1.0, 2.0, 4.0), variants=names)


def test_planted_differences_are_found_and_rates_tuned_on_other_seeds(tmp_path):
    config, runs, records = planted_config(), PlantedRuns(), Records(tmp_path)
    variants = ablation.choose_variants(config)
    ablation.train_all(config, variants, runs, records, NotAsked())
    steps = dict.fromkeys((variant.name for variant in variants), 100)
    rows = {row["variant"]: row for row in summarise(records, variants, steps)}
    assert list(rows) == ["lstm", "nfg", "noaf", "cifg"]
    assert [rows[name]["learning_rate"] for name in rows] == [1.0, 2.0, None, 1.0]
    assert [rows[name].get("verdict") for name in rows] == [
        *(None, "worse", "diverged", "no difference shown"),
    ]
    assert rows["nfg"]["ratio"] == pytest.approx(math.exp(0.2), rel=2e-3)
    assert rows["nfg"]["ratio_low"] < math.exp(0.2) < rows["nfg"]["ratio_high"]
    assert rows["lstm"]["rate_at_edge"]
    assert not rows["nfg"]["rate_at_edge"]
    assert rows["nfg"]["slope_trained"] == pytest.approx(-0.36)
    tuning = {seed for _, seed, _, measured in runs.trained if not measured}
    final = {seed for _, seed, _, measured in runs.trained if measured}
    assert (tuning, final) == ({0, 1}, {2, 3, 4, 5})
    budget = [sum(cell == name for cell, *_ in runs.trained) for name in ("lstm", "nfg", "cifg")]
    assert budget == [3 * 2 + 4] * 3


def test_a_study_that_was_killed_goes_on_after_its_last_whole_line(tmp_path):
    config, runs = planted_config(), PlantedRuns()
    variants = ablation.choose_variants(config)

    class AskedSoon:
        @property
        def asked(self):
            return len(runs.trained) == 14

    with pytest.raises(ablation.StoppedError):
        ablation.train_all(config, variants, runs, Records(tmp_path), AskedSoon())
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"variant": "nfg", "sta')  # torn
    kept = len(Records(tmp_path)._records)
    assert kept == 14
    rest, records = PlantedRuns(), Records(tmp_path)
    ablation.train_all(config, variants, rest, records, NotAsked())
    whole = PlantedRuns()
    (tmp_path / "other").mkdir()
    ablation.train_all(config, variants, whole, Records(tmp_path / "other"), NotAsked())
    assert rest.trained == whole.trained[kept:]
    read = [Records(folder)._records for folder in (tmp_path, tmp_path / "other")]
    assert read[0] == read[1]


def test_ratios_are_said_in_one_unit():
    assert say_ratios(1.02, 0.97) == ["+2.0 %", "-3.0 %"]
    assert say_ratios(1.02, 3.0) == ["x 1.02", "x 3"]
    assert say_ratios(math.nan) == ["-"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--study=gate"], ("study is 'gate'", "did you mean 'gates'")),
        (["--variants=xyz"], ("variants is 'xyz'", "nfg")),
        (["--study=depth", "--corpus=adding"], ("depth", "one layer")),
        (["--cell=gru"], ("cell is what study gates sets itself",)),
        (["--corpus=adding", "--length=3"], ("length is 3", "does nothing")),
        (["--corpus=ading"], ("did you mean 'adding'",)),
        (["--corpus=copy", "--lags=12"], ("lags is 12", "at least 21")),
        (["--resume"], ("resume needs --run",)),
        (["--rates=1,1"], ("wanted each once",)),
        (["--study=forget_bias", "--cell=rnn"], ("no forget gate",)),
        (["--study=init", "--cell=mingru"], ("no recurrent weights",)),
        (
            ["--study=init", "--recurrent_gain=0.5"],
            ("variant uniform of study init",),
        ),
        (["--study=depth", "--tied"], ("variant layers2 of study depth", "tied")),
        (["--study=depth", "--last_hidden_size=4"], ("last_hidden_size is what study depth",)),
        (["--beta1=0.5"], ("beta1 does nothing", "optimizer adam")),
        (["--init_range=0.3"], ("init_range does nothing",)),
        (["--study=clipping", "--clip=inf"], ("clip is inf",)),
        (["--study=length", "--batching=sentences"], ("wanted batching=stream",)),
        (["--learning_rate=3"], ("learning_rate", "unknown")),
    ],
)
def test_mistakes_are_answered_in_a_line(options, words, tmp_path):
    folder = [] if "--resume" in options else [f"--run={tmp_path / 'run'}"]
    done = call("ablation", *options, *folder)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "run").exists()


SMALL = [
    *("--study=clipping", "--variants=unclipped", "--rates=1,3", "--steps=6", "--seeds=2"),
    *("--tuning_seeds=1", "--lags=8", "--windows=2"),
]


def test_a_study_on_text_writes_what_a_report_reads(tmp_path, capsys):
    book, folder = write_book(tmp_path), tmp_path / "run"
    flags = [*TINY, *SMALL, f"--corpus={book}", f"--run={folder}"]
    assert call("ablation", *flags).returncode == 0
    results = run_folder.read_json(folder / "results.json")
    first, unclipped = results["rows"]
    assert (first["variant"], unclipped["variant"]) == ("clip0.25", "unclipped")
    assert results["runs"] == 2 * (2 + 2)
    assert unclipped["verdict"] in ("worse", "better", "no difference shown")
    assert 1 < first["test"] < 200
    for name in ("ablation", "lag_curves", "rates"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
    assert "p, Holm" in (folder / "table.txt").read_text()
    arrays = run_folder.read_arrays(folder / "results.npz")
    assert arrays["unclipped/lags_trained"].shape == (2, 8)
    assert call("report", folder).returncode == 0
    page = (folder / "report.html").read_text()
    assert results["finding"] in page
    # Going on with a study that is whole trains nothing, and draws the same.
    before = (folder / "runs.jsonl").read_bytes()
    assert call("ablation", f"--run={folder}", "--resume").returncode == 0
    assert (folder / "runs.jsonl").read_bytes() == before
    assert run_folder.read_json(folder / "results.json")["rows"] == results["rows"]
    other = call("ablation", f"--run={folder}", "--resume", "--steps=7")
    assert (other.returncode, "made with 6" in other.stderr) == (2, True)


def test_a_study_on_a_task(tmp_path):
    flags = ["--corpus=latch", "--study=truncation", "--rates=0.01", "--steps=5", "--seeds=2"]
    sizes = ["--tuning_seeds=1", "--lags=8", "--windows=2", "--hidden_size=4", "--variants=back4"]
    assert call("ablation", *flags, *sizes, f"--run={tmp_path / 'run'}").returncode == 0
    rows = run_folder.read_json(tmp_path / "run" / "results.json")["rows"]
    assert [row["variant"] for row in rows] == ["whole", "back4"]
    assert 0.5 < rows[0]["test"] < 1  # about ln 2, nothing is learnt in five steps


@pytest.mark.whole
def test_killed_and_resumed_is_the_study_in_one_go(tmp_path):
    flags = [*TINY, *SMALL, f"--corpus={write_book(tmp_path)}"]
    folders = [tmp_path / "one", tmp_path / "killed"]
    subprocess.run(command("ablation", *flags, f"--run={folders[0]}"), check=True, timeout=240)
    process = subprocess.Popen(command("ablation", *flags, f"--run={folders[1]}"))
    lines, deadline = folders[1] / "runs.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline and (not lines.exists() or lines.stat().st_size == 0):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 0 < len(Records(folders[1])._records) < 8
    subprocess.run(command("ablation", f"--run={folders[1]}", "--resume"), check=True, timeout=240)
    one, resumed = (run_folder.read_json(folder / "results.json")["rows"] for folder in folders)
    assert one == resumed


def test_labels_of_powers_are_few_and_multiples_of_a_step():
    assert powers_of_ten(-4.2, 5.1, 6) == [-4, -2, 0, 2, 4]
    assert powers_of_ten(-1.0, 1.5, 6) == [-1, 0, 1]
    assert len(powers_of_ten(-300.0, 25.0, 9)) <= 9


@pytest.mark.parametrize(
    ("ratios", "factors", "labels"),
    [
        ([0.997, 1.02, 1.09], False, ["0", "+2 %", "+5 %"]),  # 1.1 would stick out
        ([6e-5, 2.2, 8e4], True, ["x $10^{-4}$", "x 0.01", "x 1", "x 100", "x $10^{4}$"]),
        ([0.5, 2.0], True, ["x 1", "x 1.3", "x 0.7", "x 0.5", "x 2"]),
    ],
)
def test_ratios_at_ticks_are_in_one_unit_and_inside(ratios, factors, labels):
    _, (axis,) = figures.new_figure(1)
    assert label_ratios(axis, [*np.log(ratios), math.inf, math.nan]) is factors
    assert [text.get_text() for text in axis.get_xticklabels()] == labels
    low, high = axis.get_xlim()
    assert all(low < tick < high for tick in axis.get_xticks())


def test_curves_that_are_the_same_have_one_leader():
    one, other = np.zeros((2, 5)), np.ones((2, 5))
    found = same_as({"a": one, "b": other, "c": one + 1e-6, "d": other[:1]})
    assert found == {"a": "a", "b": "b", "c": "a", "d": "d"}


def test_a_view_holds_all_means_and_not_the_widest_band():
    mean = np.asarray([0.0, -4.0])
    low, high = view_of([mean], [mean - 50, mean + 1])
    assert -6.5 < low < -6
    assert 1 < high < 1.5
    assert view_of([np.full(3, np.nan)], []) == (-1.0, 1.0)


def test_the_baseline_alone_is_black():
    rows = [{"variant": name} for name in ("lstm", "nfg", "cifg")]
    found = colours(Results({}, {"rows": rows}, {}))
    assert found["lstm"] == "#000000"
    assert len(set(found.values())) == 3
