"""The perplexity of a trained run on its own corpus or any other text, as it is or adapting.

perplexity = exp(total nats / total tokens), every token counted once, `<eos>` included. The
batch size changes the time and not the number. Bits per character are total bits / characters,
a line's end being one character.

With --adapt the model goes on from what it has just read: `dynamic` learns from each segment of
a few words after it has predicted them, `cache` looks up which words followed a hidden state
like this one among the last few hundred, `both` does both and shows all four. Nothing of a word
enters its own prediction. The figure follows the perplexity through the text.

    ./launch.sh evaluate --run=runs/my_book
    ./launch.sh evaluate --run=runs/my_book --text=other.txt
    ./launch.sh evaluate --run=runs/my_book --adapt=both --tune
    ./launch.sh evaluate --run=runs/my_book --adapt=cache --tokens=20000     a quick look

A cache costs little more than evaluation itself; dynamic evaluation touches every parameter
each few words: a PTB text takes some minutes at 2 x 200 units, --tune some ten times that.
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments import flags
from experiments.adapt import METHODS
from experiments.fit.devices import DevicesConfig
from lm.config import option, validate

SHOWN = {  # methods that each --adapt measures
    "none": ("static",),
    "dynamic": ("static", "dynamic"),
    "cache": ("static", "cache"),
    "both": METHODS,
}


@dataclass(frozen=True)
class DynamicConfig:
    """Dynamic evaluation. Defaults: Krause et al. 2018, for PTB."""

    update: str = option(
        "rms",
        "rms: steps divided by the RMS of the training text's gradients; sgd: plain steps",
        choices=("rms", "sgd"),
    )
    bptt: int = option(5, "tokens predicted before they are learnt from", least=1, most=10**5)
    dynamic_rate: float = option(
        0.0, "step size eta; 0: at 5 tokens 5e-5 (rms) or 0.2 (sgd), in proportion to bptt", least=0
    )
    dynamic_decay: float = option(
        -1.0,
        "share lambda of the way back to the trained parameters that a segment takes (rms: of an "
        "average parameter); -1: at 5 tokens 2e-3, in proportion to bptt",
        least=-1,
        most=1,
    )
    epsilon: float = option(2e-5, "added to the RMS", above=0)
    statistics_batch: int = option(
        100, "rows of the batches whose gradients the RMS is over", least=1, most=10**5
    )
    statistics_batches: int = option(
        0, "batches of the training text that the RMS is over; 0: all", least=0
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class CacheConfig:
    """The neural cache. Defaults: AWD-LSTM's settings for PTB and WikiText-2."""

    cache_weight: float = option(
        0.0, "share lambda of the cache in the mixture; 0: the corpus's", least=0, most=1
    )
    cache_theta: float = option(
        -1.0,
        "how much likeness of hidden states counts, 0: not at all; -1: the corpus's",
        least=-1,
    )
    cache_window: int = option(
        0, "words before each one that are looked up; 0: the corpus's", least=0, most=10**7
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Config:
    """Options of evaluate."""

    run: str = option("", "folder of a trained run")
    text: str = option("", "a text file, read as the run's corpus was; empty: that corpus")
    checkpoint: str = option("best", "best by validation, or the last", choices=("best", "last"))
    adapt: str = option("none", "what the model does with what it has read", choices=tuple(SHOWN))
    tune: bool = option(
        False, "search the rates of --adapt on validation text, starting from those given"
    )
    tune_tokens: int = option(
        30_000, "tokens of the validation text that --tune reads each time; 0: all", least=0
    )
    tokens: int = option(
        0, "read only so many tokens from the start of each text, for a quick look; 0: all", least=0
    )
    average: int = option(
        2000, "tokens that the figure's sliding perplexity is over", least=1, most=10**9
    )
    batch_size: int = option(16, "rows evaluated side by side", least=1, most=10**6)
    length: int = option(64, "tokens a row in one compiled call", least=1, most=10**6)
    mesh: str = option(
        "", "devices that share the rows, where nothing adapts: data=4, or data=all; empty: one"
    )
    dynamic: DynamicConfig = DynamicConfig()
    cache: CacheConfig = CacheConfig()

    def __post_init__(self) -> None:
        validate(self)
        _ = DevicesConfig(mesh=self.mesh)
        if self.mesh and self.adapt != "none":
            raise ValueError(
                f"mesh is {self.mesh} with adapt={self.adapt}, which reads a text in order; wanted "
                "one of the two"
            )
        if self.tune and self.adapt == "none":
            raise ValueError("tune needs --adapt=dynamic, cache or both: what is to be tuned")
        for part, default, name in (
            (self.dynamic, DynamicConfig(), "dynamic"),
            (self.cache, CacheConfig(), "cache"),
        ):
            changed = [f for f in vars(default) if getattr(part, f) != getattr(default, f)]
            if changed and self.adapt not in (name, "both"):
                raise ValueError(
                    f"{changed[0]} does nothing with adapt={self.adapt}; wanted --adapt={name} or "
                    "both"
                )


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
from tqdm import tqdm

from experiments import run_folder
from experiments.adapt.drawing import NAMES, plot
from experiments.adapt.tuning import THETAS, Mixture, best_mixture, descend, rates_at, with_start
from experiments.fit.company import lay_out
from experiments.fit.continuation import check_corpus
from experiments.trained import Trained, load_run
from lm import dynamic_evaluation, neural_cache
from lm.data.corpus import load_corpus
from lm.data.text import read_text, tokenize
from lm.data.vocabulary import UNKNOWN_ID
from lm.dynamic_evaluation import Rates, Statistics, measure_dynamic, measure_statistics
from lm.evaluate import (
    Evaluation,
    count_characters,
    make_forward,
    perplexity,
    sentence_nats,
    stream_nats,
)
from lm.mesh import EVERYWHERE, place
from lm.neural_cache import Reading, measure_cache, mix

# Weight, theta and window of the cache: Merity et al. 2018, AWD-LSTM's repository.
DEFAULT_CACHE = (0.1, 1.0, 500)  # PTB's
CACHES = {"wikitext-2": (0.1279, 0.662, 3785), "wikitext-103": (0.1279, 0.662, 3785)}
RATES = {"rms": (5e-5, 2e-3), "sgd": (0.2, 2e-3)}  # eta and lambda at 5 tokens a segment
PAPER_BPTT = 5


class Settings(NamedTuple):
    """The rates of every method."""

    rates: Rates
    cache: Mixture
    both: Mixture


class Found(NamedTuple):
    """What a method makes of a text."""

    nats: np.ndarray  # [N] of each token
    seconds: float
    settings: dict[str, Any]
    passes: int = 1


def run(config: Config) -> None:
    """Evaluate, print, and note the result in the run's folder."""
    trained = load_run(config.run, config.checkpoint)
    texts = load_texts(config, trained)
    adapter = Adapter(config, trained)
    settings = adapter.start
    if config.tune:
        settings = tune(adapter, config)
    found: dict[str, dict[str, Found]] = {}
    for name, tokens in texts.items():
        found[name] = {"static": adapter.read_static(tokens)}
        print(describe(name, tokens, found[name]["static"], trained))
    if config.adapt != "none":
        for name, tokens in texts.items():
            found[name] |= adapter.read_adapting(name, tokens, settings)
        print(make_table(found))
    write(trained, texts, found)
    if config.adapt != "none":
        print(f"figure: {plot(trained.folder, config.average)[0]}")


def load_texts(config: Config, trained: Trained) -> dict[str, np.ndarray]:
    """Name -> tokens of what is to be read; a part of a text says so in its name."""
    if config.text:
        encoding = "latin-1" if trained.vocabulary.level == "byte" else "utf-8"
        whole = read_text(Path(config.text), encoding)
        sentences = tokenize(whole, trained.vocabulary.level, trained.sentences)
        texts = {config.text: trained.vocabulary.encode(sentences)}
    else:
        splits = load_splits(trained)
        texts = {name: splits[name] for name in ("valid", "test")}
    if config.tokens:
        most, part = config.tokens, f" (first {config.tokens:,} tokens only)"
        texts = {name + part * (len(text) > most): text[:most] for name, text in texts.items()}
    return texts


def load_splits(trained: Trained) -> Mapping[str, np.ndarray]:
    """The run's own corpus, which must be what it was trained on."""
    corpus = load_corpus(trained.config.data, trained.vocabulary)
    check_corpus(trained.folder, corpus)
    return corpus.splits


class Adapter:
    """A trained run with all that is compiled and measured once for it."""

    def __init__(self, config: Config, trained: Trained):
        self.config, self.trained = config, trained
        self.model, self.params = trained.config.model, trained.params
        self.sentences = trained.config.data.batching == "sentences"
        mesh = lay_out(DevicesConfig(mesh=config.mesh))
        self.forward = make_forward(self.model, mesh)
        if mesh is not None:
            self.params = place(mesh, self.params, EVERYWHERE)
        self.cache_block = neural_cache.make_block(self.model)
        self.dynamic_block = dynamic_evaluation.make_block(self.model)
        weight, theta, window = CACHES.get(trained.config.data.corpus, DEFAULT_CACHE)
        cache, dynamic = config.cache, config.dynamic
        self.window = cache.cache_window or window
        mixture = Mixture(
            cache.cache_weight or weight, theta if cache.cache_theta == -1 else cache.cache_theta
        )
        rate, decay = RATES[dynamic.update]
        scale = dynamic.bptt / PAPER_BPTT
        rates = Rates(
            dynamic.dynamic_rate or rate * scale,
            min(1.0, decay * scale) if dynamic.dynamic_decay == -1 else dynamic.dynamic_decay,
            dynamic.epsilon,
        )
        self.start = Settings(rates, mixture, mixture)

    @cached_property
    def splits(self) -> Mapping[str, np.ndarray]:
        """The run's own corpus."""
        return load_splits(self.trained)

    @cached_property
    def statistics(self) -> Statistics | None:
        """RMS of the training text's gradients; None for plain SGD."""
        dynamic, text = self.config.dynamic, self.splits["train"]
        if dynamic.update == "sgd":
            return None
        batch = min(dynamic.statistics_batch, max(1, len(text) // dynamic.bptt))
        total = -(-len(text) // (batch * dynamic.bptt))
        if dynamic.statistics_batches:
            total = min(total, dynamic.statistics_batches)
        with progress_bar("RMS of the training text's gradients", total, "batch") as advance:
            return measure_statistics(
                self.model,
                self.params,
                text,
                bptt=dynamic.bptt,
                batch=batch,
                batches=dynamic.statistics_batches,
                sentences=self.sentences,
                progress=advance,
            )

    def read_static(self, tokens: np.ndarray) -> Found:
        """The model as it was trained."""
        begin, batch, passes = time.perf_counter(), self.config.batch_size, 1
        if self.sentences:
            nats = sentence_nats(self.model, self.params, tokens, batch=batch, forward=self.forward)
        else:
            nats, passes = stream_nats(
                self.model,
                self.params,
                tokens,
                batch=batch,
                length=self.config.length,
                forward=self.forward,
            )
        return Found(nats, time.perf_counter() - begin, {}, passes)

    def read_cache(self, what: str, tokens: np.ndarray, thetas: tuple[float, ...]) -> Reading:
        """The model beside a cache."""
        with progress_bar(f"cache, {what}", len(tokens)) as advance:
            return measure_cache(
                self.model,
                self.params,
                tokens,
                window=self.window,
                thetas=thetas,
                sentences=self.sentences,
                block=self.cache_block,
                progress=advance,
            )

    def read_dynamic(
        self, what: str, tokens: np.ndarray, rates: Rates, thetas: tuple[float, ...] = ()
    ) -> Reading:
        """The learning model, beside a cache if there are thetas."""
        statistics = self.statistics  # its own bar first
        with progress_bar(f"dynamic, {what}", len(tokens)) as advance:
            return measure_dynamic(
                self.model,
                self.params,
                tokens,
                rates,
                statistics,
                bptt=self.config.dynamic.bptt,
                window=self.window if thetas else 0,
                thetas=thetas,
                sentences=self.sentences,
                block=self.dynamic_block,
                progress=advance,
            )

    def read_adapting(self, name: str, tokens: np.ndarray, settings: Settings) -> dict[str, Found]:
        """What --adapt asks for, method by method."""
        found, adapt = {}, self.config.adapt
        if adapt in ("dynamic", "both"):
            _ = self.statistics  # counted in no method's time
            begin = time.perf_counter()
            thetas = (settings.both.theta,) if adapt == "both" else ()
            reading = self.read_dynamic(name, tokens, settings.rates, thetas)
            seconds = time.perf_counter() - begin
            rates = {"update": self.config.dynamic.update, "bptt": self.config.dynamic.bptt}
            rates |= settings.rates._asdict()
            # One pass serves both: the cache reads the learning model and changes nothing in it.
            found["dynamic"] = Found(reading.nats, seconds, rates)
            if adapt == "both":
                mixture = settings.both._asdict() | {"window": self.window}
                mixed = mix(reading, settings.both.weight)
                found["both"] = Found(mixed, seconds, rates | mixture)
        if adapt in ("cache", "both"):
            begin = time.perf_counter()
            reading = self.read_cache(name, tokens, (settings.cache.theta,))
            mixture = settings.cache._asdict() | {"window": self.window}
            mixed = mix(reading, settings.cache.weight)
            found["cache"] = Found(mixed, time.perf_counter() - begin, mixture)
        return {method: found[method] for method in METHODS if method in found}


@contextmanager
def progress_bar(what: str, total: int, unit: str = "token") -> Iterator[Callable[[int], object]]:
    """A bar while it is open; yields what advances it."""
    with tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False) as bar:
        yield bar.update


def tune(adapter: Adapter, config: Config) -> Settings:
    """The rates that suit the start of the validation text best; the test text is not read."""
    text = adapter.splits["valid"]
    text = text[: config.tune_tokens or len(text)]
    start, rates = adapter.start, adapter.start.rates
    cache = both = start.cache
    print(f"tuning on {len(text):,} tokens of the validation text")
    if config.adapt in ("cache", "both"):
        reading = adapter.read_cache("tuning", text, with_start(THETAS, start.cache.theta))
        cache = best_mixture(reading, start.cache)
        print(f"cache: weight {cache.weight:g}, theta {cache.theta:g}")
    if config.adapt in ("dynamic", "both"):

        def measure(place: tuple[int, int]) -> float:
            tried = rates_at(rates, place)
            nats = adapter.read_dynamic("tuning", text, tried).nats.mean(dtype=np.float64)
            print(
                f"dynamic: rate {tried.rate:.3g}, decay {tried.decay:.3g}: perplexity "
                f"{perplexity(float(nats)):.2f}",
                flush=True,
            )
            return float(nats)

        rates = rates_at(rates, descend(measure))
        print(f"dynamic: rate {rates.rate:.3g}, decay {rates.decay:.3g}")
    if config.adapt == "both":
        thetas = with_start(THETAS, start.both.theta)
        both = best_mixture(adapter.read_dynamic("tuning", text, rates, thetas), start.both)
        print(f"both: weight {both.weight:g}, theta {both.theta:g}")
    return Settings(rates, cache, both)


def summary(found: Found) -> Evaluation:
    """Totals of a text."""
    nats = float(found.nats.sum(dtype=np.float64))
    return Evaluation(nats, len(found.nats), found.passes)


def describe(name: str, tokens: np.ndarray, found: Found, trained: Trained) -> str:
    """One text on one line."""
    result = summary(found)
    per_token = result.nats / result.tokens
    bits = result.nats / np.log(2) / count_characters(trained.vocabulary, tokens)
    unit = "byte" if trained.vocabulary.level == "byte" else "character"
    return (
        f"{name}: perplexity {result.perplexity:.2f}   {per_token:.4f} nats "
        f"({per_token / np.log(2):.4f} bits) per token   {bits:.4f} bits per {unit}   "
        f"{result.tokens:,} tokens, {np.mean(tokens == UNKNOWN_ID):.1%} <unk>"
    )


def make_table(found: Mapping[str, Mapping[str, Found]]) -> str:
    """A row a method, the perplexity of every text, and the time."""
    names = [Path(name).name for name in found]
    width = [max(10, len(name)) for name in names]
    methods = list(next(iter(found.values())))
    head = [f"{'perplexity':31}", *(f"{n:>{w}}" for n, w in zip(names, width, strict=True))]
    lines = ["  ".join([*head, "s per 1,000 tokens"])]
    for method in methods:
        rows = [texts[method] for texts in found.values()]
        values = [f"{summary(r).perplexity:{w}.2f}" for r, w in zip(rows, width, strict=True)]
        # The last text's, since the first one's time holds the compilation.
        speed = rows[-1].seconds / len(rows[-1].nats) * 1000
        lines.append("  ".join([f"{NAMES[method]:31}", *values, f"{speed:18.3f}"]))
    return "\n".join(lines)


def write(
    trained: Trained,
    texts: Mapping[str, np.ndarray],
    found: Mapping[str, Mapping[str, Found]],
) -> None:
    """evaluation.json: every text ever evaluated; evaluation.npz: nats of each token, this time.

    What adapting found earlier stays until the same method is measured again.
    """
    path = trained.folder / "evaluation.json"
    before = run_folder.read_json(path) if path.exists() else {}
    rows = {}
    for name, methods in found.items():
        characters = count_characters(trained.vocabulary, texts[name])

        def entry(method: Found, characters: int = characters) -> dict[str, object]:
            result = summary(method)
            return result._asdict() | {
                "perplexity": result.perplexity,
                "bits_per_token": result.nats / result.tokens / np.log(2),
                "characters": characters,
                "bits_per_character": result.nats / np.log(2) / characters,
                "seconds": method.seconds,
                "step": trained.step,
            }

        adapted = {
            name: entry(method) | {"settings": method.settings}
            for name, method in methods.items()
            if name != "static"
        }
        rows[name] = entry(methods["static"]) | {
            "unknown": float(np.mean(texts[name] == UNKNOWN_ID)),
            "adapted": before.get(name, {}).get("adapted", {}) | adapted,
        }
    run_folder.write_json(path, before | rows)
    arrays = {"texts": np.asarray([Path(name).name for name in found])}
    for index, methods in enumerate(found.values()):
        for method, result in methods.items():
            arrays[f"{index}/{method}"] = np.asarray(result.nats, np.float32)
    run_folder.write_arrays(trained.folder / "evaluation.npz", arrays)


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
