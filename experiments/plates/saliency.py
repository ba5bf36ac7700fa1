"""Saliency against causal use against Bayes, where what is useful is known.

On a process that looks exactly LAG tokens back an LSTM is asked (1) where its loss's gradient
points, (2) what it costs to replace one token, (3) how low its loss is with the last n tokens
alone. The best that anything can do is known, ln 4 and the Bayes loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plates import page
from experiments.plates.plate import Arrays, Config, Done, Found, Plate
from experiments.task_training import Hyper, Network, TaskParams, make_train_task
from lm import model
from lm.config import ModelConfig
from lm.gradients.context import cut, measure_context, measure_replaced_token
from lm.gradients.flow import inject_at, loss_gradient, pull_back_model, run_model
from lm.gradients.statistics import seed_band
from lm.log_space import log_norm
from lm.tasks import LAG, LAG_SYMBOLS, lag_bayes_nats, make_lag, sample_lag_process

WINDOWS = 4000  # of the test
WIDTH = 16  # tokens of a window, in training too
RATE, CLIP = 5e-3, 1.0  # of Adam


class Measured(NamedTuple):
    """Of one network, each [WIDTH] but `context`; entry 0 is lag 1, the token before the target."""

    saliency: Any  # log ||dL/dx||, mean over windows, nats
    use: Any  # nats per token that replacing the one token costs
    context: Any  # nats per token with the last 0 .. WIDTH tokens [WIDTH + 1]


def measure(config: Config, done: Done) -> Arrays:
    """The fields of Measured with leading [S]."""
    hidden = config.hidden_size
    train = jax.jit(make_train_task(Network("lstm", hidden), make_lag(WIDTH), config.task_steps))
    hyper = Hyper(jnp.float32(RATE), jnp.float32(CLIP), jnp.float32(config.forget_bias))
    measures = make_measures(
        ModelConfig(cell="lstm", hidden_size=hidden, embedding_size=LAG_SYMBOLS)
    )
    found = []
    for seed in range(config.seeds):
        params = as_language_model(train(jax.random.key(seed), hyper).after)
        found.append(Measured(*(np.asarray(one(params)) for one in measures)))
        done()
    return {
        name: np.asarray([getattr(one, name) for one in found], np.float64)
        for name in Measured._fields
    }


def as_language_model(trained: TaskParams) -> model.Params:
    """One-hot inputs are embeddings by the identity, the readout is the softmax."""
    eye = jnp.eye(LAG_SYMBOLS, dtype=trained.readout_w.dtype)
    return model.Params(eye, (trained.layer,), trained.readout_w, trained.readout_b)


def make_measures(network: ModelConfig) -> tuple[Any, Any, Any]:
    """params -> the fields of Measured, on windows that training has not seen."""
    key_text, key_change = jax.random.split(jax.random.key(2))
    tokens = sample_lag_process(key_text, WIDTH + 1, WINDOWS)
    inputs, targets = tokens[:-1], tokens[-1]

    def saliency(params: model.Params) -> jax.Array:
        forward = run_model(network, params, model.init_carry(network, WINDOWS), inputs)
        injected = inject_at(WIDTH, WIDTH - 1, loss_gradient(params, forward.h[-1], targets))
        d_x = pull_back_model(network, params, forward, injected)[0].d_x
        return jnp.mean((d_x.log + log_norm(d_x.unit))[::-1], axis=1)

    def use(params: model.Params) -> jax.Array:
        cost = measure_replaced_token(network, params, inputs, targets, key_change)
        return jnp.mean(cost, axis=1)

    def context(params: model.Params) -> jax.Array:
        kept = jnp.arange(WIDTH + 1)
        nats = measure_context(network, params, inputs, targets, kept, cut, key_change)
        return jnp.mean(nats, axis=1)

    return jax.jit(saliency), jax.jit(use), jax.jit(context)


def describe(config: Config, arrays: Arrays) -> Found:
    saliency = np.exp(arrays["saliency"].mean(axis=0))
    use, context = arrays["use"].mean(axis=0), arrays["context"].mean(axis=0)
    others = np.delete(saliency, LAG - 1)
    peak = float(saliency[LAG - 1] / others.max())
    rest = float(np.abs(np.delete(use, LAG - 1)).max())
    finding = (
        f"Saliency is not use: the gradient at lag {LAG} is {peak:.1f} times the largest of the "
        f"others, but replacing that token costs {use[LAG - 1]:.2f} nats, any other at most "
        f"{rest:.2f}"
    )
    return {
        "finding": finding,
        "saliency_peak_ratio": peak,
        "use_at_lag": float(use[LAG - 1]),
        "use_elsewhere_most": rest,
        "loss_with_lag_tokens": float(context[LAG]),
        "loss_with_all": float(context[-1]),
        "bayes": lag_bayes_nats(),
        "chance": float(np.log(LAG_SYMBOLS)),
    }


def draw(config: Config, arrays: Arrays) -> Any:
    """Three panels over the same axis: lag, or tokens kept."""
    figure, axes = page.new_page([["saliency", "use", "context"]], 14.5, 5.6)
    lags = np.arange(1, WIDTH + 1)
    colours = ["#D55E00" if lag == LAG else "#999999" for lag in lags]
    log = arrays["saliency"]
    band = seed_band(log - log[:, LAG - 1 : LAG])
    middle = np.exp(band.mean)
    axes["saliency"].bar(
        lags, middle, color=colours,
        yerr=None if np.isnan(band.low).any()
        else np.abs([middle - np.exp(band.low), np.exp(band.high) - middle]),
        error_kw={"elinewidth": 1},
    )  # fmt: skip
    band = seed_band(arrays["use"])
    axes["use"].bar(
        lags, band.mean, color=colours,
        yerr=None if np.isnan(band.low).any() else band.high - band.mean,
        error_kw={"elinewidth": 1},
    )  # fmt: skip
    axes["saliency"].set(
        title="Saliency: where the gradient points",
        xlabel="lag of the token (1: just before the target)",
        ylabel=rf"$\Vert\partial L/\partial x\Vert$ relative to lag {LAG}",
    )
    axes["use"].set(
        title="Use: what replacing the one token costs",
        xlabel="lag of the token",
        ylabel="rise of the loss (nats per token)",
    )
    draw_context(axes["context"], arrays["context"])
    for axis in axes.values():
        axis.set_xticks(range(0, WIDTH + 1, 5))
    caption = (
        f"LSTM, hidden size {config.hidden_size}, forget bias {config.forget_bias:g}, "
        f"{config.task_steps} steps of Adam on x(t) = x(t − {LAG}) + 1 mod {LAG_SYMBOLS}, a tenth "
        f"of the tokens drawn anew; {WINDOWS} windows of {WIDTH} tokens; mean over "
        f"{config.seeds} seeds with 95 % t intervals (saliency: "
        "geometric, losses: arithmetic)"
    )
    return page.dress(figure, describe(config, arrays)["finding"], caption)


def draw_context(axis: Any, context: np.ndarray) -> None:
    """The loss with the last n tokens alone, between ln 4 and Bayes. context [S, WIDTH + 1]."""
    kept = np.arange(WIDTH + 1)
    bayes, chance = lag_bayes_nats(), float(np.log(LAG_SYMBOLS))
    axis.step(
        kept, np.where(kept < LAG, chance, bayes), where="mid", color="black", linewidth=1.6,
        linestyle="--", label=f"best possible: ln {LAG_SYMBOLS} = {chance:.3f}, Bayes {bayes:.3f}",
    )  # fmt: skip
    band = seed_band(context)
    axis.plot(kept, band.mean, "o-", color="#0072B2", linewidth=2.2, label="LSTM")
    if np.isfinite(band.low).all():
        axis.fill_between(kept, band.low, band.high, color="#0072B2", alpha=0.2, linewidth=0)
    axis.set(
        title="Context: loss with the last n tokens",
        xlabel="n, tokens kept",
        ylabel="nats per token",
        ylim=(0, 1.35 * context.mean(axis=0).max()),
    )
    axis.legend(loc="upper right", fontsize=9.5)


PLATE = Plate(measure, describe, draw, parts=lambda config: config.seeds)
