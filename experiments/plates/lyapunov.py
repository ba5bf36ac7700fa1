"""Joint Lyapunov spectrum of LSTM language models against forget bias, through training.

All 2 H exponents of (c, h), driven by text: does training move the network to the edge of
vanishing, and does what it starts from last?
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plates import page
from experiments.plates.language_model import make_trainer
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from lm import model
from lm.cells import CELLS
from lm.config import ModelConfig
from lm.data.batches import Batches, make_batches
from lm.data.corpus import Corpus, load_corpus
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.gradients.statistics import seed_band
from lm.recurrence import as_step

FORGET_BIASES = (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
WARMUP, COUNTED = 50, 200  # words of text that the tangents are pushed through
LSTM = CELLS["lstm"]


def stops(config: Config) -> tuple[int, ...]:
    """Steps at which the spectrum is taken: 0, 1/12, 1/3 and all of the training."""
    return tuple(sorted({0, max(1, config.steps // 12), max(1, config.steps // 3), config.steps}))


def check(config: Config) -> None:
    """Refuse a text that is not there or too short."""
    load_text(config)


def load_text(config: Config) -> tuple[Corpus, Batches]:
    """The corpus and its training batches.

    Raises:
      ValueError: no such corpus; too little text to train on or to push tangents through.
    """
    data = config.data
    corpus = load_corpus(data)
    batches = make_batches(corpus.splits["train"], data)
    found = len(corpus.splits["valid"])
    if found < WARMUP + COUNTED:
        raise ValueError(
            f"the validation text has {found} tokens; lyapunov wanted {WARMUP + COUNTED}: "
            "give more text"
        )
    return corpus, batches


def measure(config: Config, done: Done) -> Arrays:
    """ "exponents" [S, biases, stops, 2 H], nats per step, descending."""
    corpus, batches = load_text(config)
    network = model_config(config)
    train = make_trainer(
        network, batches, len(corpus.vocabulary), LSTM.learning_rate, stops(config)
    )
    spectrum = jax.jit(make_spectrum(corpus.splits["valid"][: WARMUP + COUNTED]))
    found = []
    for seed in range(config.model_seeds):
        for bias in FORGET_BIASES:
            found.append([np.sort(spectrum(params))[::-1] for _, params in train(seed, bias)])
            done()
    shape = (config.model_seeds, len(FORGET_BIASES), *np.shape(found)[1:])
    return {"exponents": np.asarray(found, np.float64).reshape(shape)}


def model_config(config: Config) -> ModelConfig:
    size = config.hidden_size // 2
    return ModelConfig(cell="lstm", hidden_size=size, embedding_size=size)


def make_spectrum(text: np.ndarray) -> Any:
    """params -> all exponents of the layer, driven by the text [2 H]."""

    def spectrum(params: model.Params) -> jax.Array:
        layer = params.layers[0]
        x = jnp.take(params.embedding, jnp.asarray(text), axis=0)[:, None]
        state = LSTM.init_state(1, layer.w_h.shape[0], x.dtype)
        return lyapunov_spectrum(as_step(LSTM), layer, state, x, warmup=WARMUP)[0]

    return spectrum


def describe(config: Config, arrays: Arrays) -> Found:
    top = arrays["exponents"][..., 0].mean(axis=0)  # [biases, stops]
    rows = [
        {
            "forget_bias": bias,
            **{
                f"step_{step}": float(value) for step, value in zip(stops(config), row, strict=True)
            },
        }
        for bias, row in zip(FORGET_BIASES, top, strict=True)
    ]
    spread = top.max(axis=0) - top.min(axis=0)
    finding = (
        f"The largest exponent is set by the forget bias ({top[0, 0]:.2f} to {top[-1, 0]:.3f}) and "
        f"by training: after {config.steps} steps it is {top[0, -1]:.2f} to {top[-1, -1]:.3f}"
    )
    return {"finding": finding, "rows": rows, "spread": spread.tolist()}


def draw(config: Config, arrays: Arrays) -> Any:
    """A panel a stop with the whole spectrum; below, the largest exponent through training."""
    at = stops(config)
    names = [f"step {step}" for step in at]
    figure, axes = page.new_page([names, ["top"] * len(at)], 14, 10, height_ratios=(1.35, 1))
    exponents = arrays["exponents"].mean(axis=0)  # [biases, stops, 2 H]
    low = np.floor(np.quantile(exponents, 0.03))
    size = exponents.shape[-1] // 2
    for index, (name, step) in enumerate(zip(names, at, strict=True)):
        axis = axes[name]
        axis.plot(FORGET_BIASES, exponents[:, index, size:], color="#BBBBBB", linewidth=0.6)
        axis.plot(FORGET_BIASES, exponents[:, index, 1:size], color="#56B4E9", linewidth=0.8)
        axis.plot(FORGET_BIASES, exponents[:, index, 0], "o-", color="#0072B2", linewidth=2.4)
        biases = np.linspace(FORGET_BIASES[0], FORGET_BIASES[-1], 50)
        axis.plot(
            biases, -np.log1p(np.exp(-biases)), color="#D55E00", linewidth=1.8, linestyle="--"
        )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(
            title=f"step {step}" + (" (start)" if step == 0 else ""),
            xlabel="forget bias at the start",
            ylim=(low, 0.25),
            xticks=FORGET_BIASES,
        )
    axes[names[0]].set_ylabel("Lyapunov exponents of (c, h)\n(nats per step)")
    label_lines(axes[names[-1]], size)
    draw_top(axes["top"], config, arrays["exponents"][..., 0])
    caption = (
        f"LSTM language models on {config.data.corpus}, hidden size {size}, recurrent gain 1, "
        f"inputs: embeddings N(0, 1) at the start; SGD, rate {LSTM.learning_rate:g} with cosine "
        f"decay, clip 0.25; arithmetic mean over {config.model_seeds} seeds, {COUNTED} words of "
        f"validation text; exponents below {low:g} are not shown"
    )
    return page.dress(figure, describe(config, arrays)["finding"], caption)


def label_lines(axis: Any, size: int) -> None:
    for colour, style, label in (
        ("#0072B2", "-", "largest: the gradient's slope"),
        ("#56B4E9", "-", f"the next {size - 1}"),
        ("#BBBBBB", "-", f"the other {size}"),
        ("#D55E00", "--", "ln sigmoid(forget bias): c alone"),
    ):
        axis.plot([], [], style, color=colour, linewidth=2, label=label)
    axis.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def draw_top(axis: Any, config: Config, top: np.ndarray) -> None:
    """The largest exponent against training steps, a line a forget bias. top [S, biases, stops]."""
    from matplotlib import colormaps

    places = np.arange(top.shape[-1])
    for index, bias in enumerate(FORGET_BIASES):
        band = seed_band(top[:, index])
        colour = colormaps["viridis_r"](0.12 + 0.88 * index / (len(FORGET_BIASES) - 1))
        axis.plot(places, band.mean, "o-", color=colour, linewidth=2, label=f"{bias:g}")
        axis.plot(places, top[:, index].T, ".", color=colour, markersize=5, alpha=0.7)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(
        title="The largest exponent through training (dots: seeds)",
        xlabel="training step",
        ylabel="nats per step",
    )
    axis.set_xticks(places, [str(step) for step in stops(config)])
    axis.legend(title="forget bias\nat the start", loc="center left", bbox_to_anchor=(1, 0.5))


PLATE = Plate(
    measure, describe, draw, parts=lambda config: config.model_seeds * len(FORGET_BIASES),
    check=check,
)  # fmt: skip
