"""The claims that the gradient laboratory settles: Lyapunov exponents and the use of context."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.claim.outcome import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILION,
    Outcome,
    draw_level,
    label_figure,
    seeds_text,
)
from lm import model
from lm.cells import CELLS
from lm.cells.cell import init_params
from lm.config import ModelConfig, OptimConfig
from lm.data.batches import Batch
from lm.gradients.context import cut, measure_context, measure_replaced_token
from lm.gradients.flow import measure_layer_lags
from lm.gradients.lyapunov import lyapunov_spectrum
from lm.gradients.statistics import seed_band, slope_per_step
from lm.optim import Hyper, make_schedule
from lm.recurrence import as_step
from lm.tasks import LAG, LAG_SYMBOLS, lag_bayes_nats, sample_lag_process
from lm.train import init_state, make_block, run_blocks

SKIPPED = 20  # lags left out of a slope, steps left out of a Lyapunov exponent: transients


@dataclass(frozen=True)
class DynamicsArm:
    """A network at initialisation."""

    label: str
    colour: str
    cell: str
    forget_bias: float = 0.0


@dataclass(frozen=True)
class SlopeClaim:
    """C1: the slope of the gradient's norm, in reverse, is the top Lyapunov exponent, forward.

    Networks at initialisation (W_h orthogonal gate by gate, W_x ~ N(0, 1/H)) driven by
    x ~ N(0, 1). The slope is the least-squares slope of log ||dL_T/ds_{T-lag}||, the state s
    joint (an LSTM's c and h), over the lags from `SKIPPED` on, of a loss with random gradient at
    the last step; mean over rows, then over seeds.
    """

    name: str = "C1"
    statement: str = (
        "The slope of the gradient's norm is the top Lyapunov exponent; an LSTM with forget bias 0 "
        "vanishes like a tanh RNN, one with 3 hardly at all"
    )
    threshold: str = (
        "|slope - exponent| below 0.01; slope of bias 0 / tanh in 0.85 to 1.1; tanh / bias 1 "
        "above 2; tanh / bias 3 above 20"
    )
    seconds: float = 7
    hidden: int = 64
    length: int = 400
    rows: int = 4
    seeds: int = 16
    arms: tuple[DynamicsArm, ...] = (
        DynamicsArm("tanh RNN", VERMILION, "rnn"),
        DynamicsArm("forget bias 0", PURPLE, "lstm", 0),
        DynamicsArm("forget bias 1", BLUE, "lstm", 1),
        DynamicsArm("forget bias 3", GREEN, "lstm", 3),
    )

    def measure(self, advance: Callable[[float], object]) -> Outcome:
        arrays: dict[str, np.ndarray] = {}
        for arm in self.arms:
            curves, exponents = jax.device_get(self.measure_arm(arm))
            slopes = [
                np.mean([slope_per_step(row, first=SKIPPED) for row in curve.T]) for curve in curves
            ]
            arrays[f"{arm.label}/curve"] = curves.mean(axis=2)
            arrays[f"{arm.label}/slope"] = np.asarray(slopes)
            arrays[f"{arm.label}/exponent"] = exponents.mean(axis=1)
            advance(1 / len(self.arms))
        return self.judge(arrays)

    def measure_arm(self, arm: DynamicsArm) -> Any:
        """All seeds: log norms of the joint state [S, lags, rows], top exponents [S, rows]."""
        cell = CELLS[arm.cell]

        def one_seed(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            key_params, key_x, key_loss = jax.random.split(key, 3)
            params = init_params(
                key_params, cell, self.hidden, self.hidden, forget_bias=arm.forget_bias
            )
            x = jax.random.normal(key_x, (self.length, self.rows, self.hidden))
            d_h = jax.random.normal(key_loss, (self.rows, self.hidden))
            state = cell.init_state(self.rows, self.hidden)
            curves = measure_layer_lags(cell, params, state, x, d_h)
            spectrum = lyapunov_spectrum(
                as_step(cell), params, state, x, exponents=1, warmup=SKIPPED
            )
            return curves.state, spectrum[:, 0]

        keys = jnp.stack([jax.random.key(seed) for seed in range(self.seeds)])
        return jax.jit(lambda keys: jax.lax.map(one_seed, keys))(keys)

    def judge(self, arrays: dict[str, np.ndarray]) -> Outcome:
        rows: list[list[Any]] = []
        measured: dict[str, Any] = {}
        slope: dict[str, float] = {}
        for arm in self.arms:
            band = seed_band(arrays[f"{arm.label}/slope"])
            exponent = float(arrays[f"{arm.label}/exponent"].mean())
            slope[arm.label] = float(band.mean)
            measured[arm.label] = f"slope {band.mean:.4f}, exponent {exponent:.4f}"
            rows.append([arm.label, *map(float, band), exponent, abs(float(band.mean) - exponent)])
        tanh = slope["tanh RNN"]
        zero = slope["forget bias 0"] / tanh
        one, three = (tanh / slope[f"forget bias {bias}"] for bias in (1, 3))
        gap = max(row[-1] for row in rows)
        ratios = {"bias 0 / tanh": zero, "tanh / bias 1": one, "tanh / bias 3": three}
        return Outcome(
            {"largest |slope - exponent|": gap, **measured, **ratios},
            bool(gap < 0.01 and 0.85 <= zero <= 1.1 and one > 2 and three > 20),
            f"The gradient's slope is the top Lyapunov exponent, to {gap:.4f} nats per step; "
            f"forget bias 0 has {zero:.2f} times the tanh RNN's slope",
            ["network", "slope, nats per step", "95 % low", "95 % high", "exponent", "difference"],
            rows,
            arrays,
        )

    def settings(self) -> str:
        return (
            f"initialisation, H = {self.hidden}, W_h orthogonal, x ~ N(0, 1), W_x ~ N(0, 1/H); "
            f"T = {self.length}, {self.rows} rows, {seeds_text(self.seeds)}; joint state"
        )

    def plot(
        self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path
    ) -> list[Path]:
        """Left the curves with the exponents as lines; right slope against exponent."""
        figure, (left, right) = figures.new_figure(2)
        for arm in self.arms:
            curve = arrays[f"{arm.label}/curve"]
            relative = curve - curve[:, SKIPPED : SKIPPED + 1]
            lags = np.arange(curve.shape[1])[SKIPPED:]
            band = [part[SKIPPED:] for part in seed_band(relative)]
            figures.plot_band(left, lags, *band, color=arm.colour, linewidth=3, label=arm.label)
            exponent = arrays[f"{arm.label}/exponent"]
            line = exponent.mean() * (lags - SKIPPED) / np.log(10)
            left.plot(lags, line, color="#000000", linewidth=1, linestyle=(0, (4, 3)))
            slopes = arrays[f"{arm.label}/slope"]
            right.plot(exponent, slopes, "o", color=arm.colour, alpha=0.75, label=arm.label)
        left.plot([], [], color="#000000", linewidth=1, linestyle=(0, (4, 3)), label="exponent")
        left.set(
            title="Backward: the gradient's norm; dashed: the exponent",
            xlabel="lag, steps before the loss",
            ylabel=rf"$\Vert\partial L_T / \partial s_{{T-\mathrm{{lag}}}}\Vert$, "
            f"relative to lag {SKIPPED}",
        )
        figures.label_log10(left)
        left.legend(fontsize=9)
        ends = right.get_xlim()
        right.plot(ends, ends, color="#777777", linewidth=0.9, zorder=0)
        right.set(
            title="A dot a seed; the line is equality",
            xlabel="top Lyapunov exponent, nats per step, forward",
            ylabel="slope of the gradient, nats per step, backward",
        )
        right.legend(fontsize=9)
        label_figure(figure, record)
        return figures.save(figure, folder, record["figure"])


class LagBatches:
    """Fresh stretches of the lag process, each from the zero state."""

    batch_size = 32
    length = 32

    def __init__(self, key: jax.Array, steps: int):
        drawn = sample_lag_process(key, self.length + 1, steps * self.batch_size)
        self._tokens = np.asarray(drawn, np.int32).reshape(-1, steps, self.batch_size)
        self.steps_per_epoch = steps

    def block(self, step: int, most: int) -> Batch:
        tokens = self._tokens[:, step : step + most].swapaxes(0, 1)  # [steps, T + 1, B]
        return Batch(tokens[:, :-1], tokens[:, 1:], None, np.ones(len(tokens), bool))


@dataclass(frozen=True)
class ContextClaim:
    """C8: on a process that looks 5 tokens back, the loss with a cut context finds the 5.

    A one-layer LSTM language model, trained with plain SGD on fresh stretches of the process
    (lm.tasks.sample_lag_process), each from the zero state, is asked for the next token with
    only the last n tokens left, again from the zero state. A model that has been trained with a
    carried state alone does not know the zero state, and is lost for some steps after it.
    """

    name: str = "C8"
    statement: str = (
        f"On a process of lag {LAG}, the loss with the context cut to n tokens finds the lag and "
        "the Bayes loss"
    )
    threshold: str = (
        f"within 0.03 nats of Bayes, {lag_bayes_nats():.3f}, for every n >= {LAG}; at least "
        f"ln {LAG_SYMBOLS} = {np.log(LAG_SYMBOLS):.3f} for every n < {LAG}"
    )
    seconds: float = 15
    seeds: int = 1
    steps: int = 1500
    groups: int = 5
    windows: int = 20_000  # of a group
    width: int = 10
    network: ModelConfig = ModelConfig(cell="lstm", hidden_size=64, embedding_size=16)
    learning_rate: float = 10.0

    def measure(self, advance: Callable[[float], object]) -> Outcome:
        optim = OptimConfig(schedule="cosine", clip=0.25)
        schedule = make_schedule(optim, self.steps, self.steps)
        block = make_block(self.network, optim, schedule)
        hyper = Hyper(jnp.float32(self.learning_rate), jnp.float32(optim.clip))
        cut_nats, replaced = [], []
        for seed in range(self.seeds):
            key_text, key_model, key_test = jax.random.split(jax.random.key(seed), 3)
            batches = LagBatches(key_text, self.steps)
            state = init_state(key_model, self.network, optim, LAG_SYMBOLS, batches.batch_size)
            dispatches = run_blocks(
                state, hyper, block, batches, stop=self.steps, steps_per_dispatch=50
            )
            for state, metrics in dispatches:
                params = state.params
                advance(0.4 * len(metrics.nats) / self.steps / self.seeds)
            measured = self.measure_model(params, key_test)
            cut_nats.append(measured[0])
            replaced.append(measured[1])
            advance(0.6 / self.seeds)
        return self.judge({"cut": np.stack(cut_nats), "replaced": np.stack(replaced)})

    def measure_model(self, params: model.Params, key: jax.Array) -> Any:
        """Mean loss with n = 0 .. width tokens left, and the cost of one replaced token by lag."""

        def measure_group(params: model.Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            key_text, key_change = jax.random.split(key)
            tokens = sample_lag_process(key_text, self.width + 1, self.windows)
            inputs, targets, kept = tokens[:-1], tokens[-1], jnp.arange(self.width + 1)
            losses = measure_context(self.network, params, inputs, targets, kept, cut, key_change)
            costs = measure_replaced_token(self.network, params, inputs, targets, key_change)
            return losses.mean(axis=1), costs.mean(axis=1)

        measure = jax.jit(measure_group)
        groups = [measure(params, k) for k in jax.random.split(key, self.groups)]
        return jax.tree.map(lambda *parts: np.mean(parts, axis=0), *jax.device_get(groups))

    def judge(self, arrays: dict[str, np.ndarray]) -> Outcome:
        nats, costs = arrays["cut"], arrays["replaced"]
        bayes, chance = lag_bayes_nats(), float(np.log(LAG_SYMBOLS))
        near, far = nats[:, LAG:], nats[:, :LAG]
        return Outcome(
            {
                f"last {LAG} tokens, nats": float(nats[:, LAG].max()),
                f"highest with more than {LAG}": float(nats[:, LAG + 1 :].max()),
                f"lowest with fewer than {LAG}": float(far.min()),
                "Bayes loss": bayes,
                f"cost of replacing lag {LAG}": float(costs[:, LAG - 1].mean()),
            },
            bool((abs(near - bayes) <= 0.03).all() and (far >= chance).all()),
            f"The loss falls from {nats[:, LAG - 1].mean():.2f} to {nats[:, LAG].mean():.3f} nats "
            f"when token {LAG} back is left in; Bayes is {bayes:.3f}",
            ["tokens kept", "loss, nats per token", "Bayes, nats", "cost of replacing this lag"],
            [
                [n, float(loss), bayes if n >= LAG else chance, None if n == 0 else float(cost)]
                for n, (loss, cost) in enumerate(
                    zip(nats.mean(axis=0), [0.0, *costs.mean(axis=0)], strict=True)
                )
            ],
            arrays,
        )

    def settings(self) -> str:
        return (
            f"LSTM, H = {self.network.hidden_size}, forget bias {self.network.forget_bias:g}, SGD, "
            f"{self.steps} steps of 32 x 32 tokens; {self.groups * self.windows:,} windows of "
            f"{self.width} tokens, {seeds_text(self.seeds)}"
        )

    def plot(
        self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], folder: Path
    ) -> list[Path]:
        """Left the loss against what is left of the context; right what each token is worth."""
        figure, (left, right) = figures.new_figure(2)
        kept = np.arange(arrays["cut"].shape[1])
        bayes, chance = lag_bayes_nats(), np.log(LAG_SYMBOLS)
        left.step(
            kept,
            np.where(kept < LAG, chance, bayes),
            where="mid",
            color="#777777",
            linewidth=1.2,
            label="Bayes",
        )
        left.plot(kept, arrays["cut"].T, "o-", color=BLUE, label="LSTM")
        draw_level(left, bayes + 0.03, "Bayes + 0.03", "--")
        left.set(
            title="Context cut",
            xlabel="tokens kept before the target",
            ylabel="loss, nats per token",
            ylim=(0, None),
        )
        left.legend(*unique(left), fontsize=9)
        right.bar(kept[1:], arrays["replaced"].mean(axis=0), color=BLUE, zorder=2)
        right.set(
            title="One token replaced by another",
            xlabel="lag of the token, 1: just before the target",
            ylabel="rise of the loss, nats per token",
        )
        for axis in (left, right):
            axis.set_xticks(kept[:: max(1, len(kept) // 10)])
        label_figure(figure, record)
        return figures.save(figure, folder, record["figure"])


def unique(axis: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels of a legend in which every label stands once."""
    handles, labels = axis.get_legend_handles_labels()
    first = {label: handle for handle, label in reversed(list(zip(handles, labels, strict=True)))}
    return list(first.values()), list(first)


C1 = SlopeClaim()
C8 = ContextClaim()
