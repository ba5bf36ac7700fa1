"""Laws that the laboratory's measures must obey, and which measure obeys which.

One function a law: dtype -> (largest error, tolerance), in the unit that `CHECKS` names.
Networks are small, and made by NumPy in float64. Tolerances stand some ten times above the errors
seen on CPUs. A new law is its function and a line here.
"""

from typing import NamedTuple


class Law(NamedTuple):
    """What is known exactly of a measure."""

    statement: str  # what the measure is held against
    unit: str  # of error and tolerance
    function: str  # module.name in experiments.laws: dtype -> (largest error, tolerance)


class Measure(NamedTuple):
    """A measure of the laboratory and the laws that it must obey."""

    name: str
    laws: tuple[Law, ...]


CHECKS: dict[int, Measure] = {
    1: Measure(
        "gradient by lag",
        (
            Law("W = rho Q: rho^lag, to lag 1,000", "nats", "closed_form.rotation_lags"),
            Law("h, c, joint: explicit Jacobian products", "nats", "autodiff.jacobian_products"),
        ),
    ),
    2: Measure(
        "Jacobian norms",
        (
            Law("W = rho Q: rho^lag, to lag 1,000", "nats", "closed_form.rotation_norms"),
            Law("at most prod max phi' sigma, (gamma sigma)^lag", "nats", "autodiff.norm_bounds"),
            Law("E over unit v of ||J^T v||^2: ||J||_F^2 / H", "nats", "autodiff.mean_square"),
        ),
    ),
    3: Measure(
        "error carousel",
        (Law("W = U = 0: sigmoid(b_f)^lag, to lag 1,000", "nats", "gates.carousel"),),
    ),
    4: Measure(
        "components",
        (
            Law("gradients of untied copies of W", "relative", "autodiff.untied_copies"),
            Law("sum: dL/dW; shares by lag sum to 1", "relative", "autodiff.component_sum"),
        ),
    ),
    5: Measure(
        "gradient by length",
        (
            Law("scalar: T lambda^(T-1), to T = 10,000", "nats", "closed_form.scalar_lengths"),
            Law("autodiff per length; T = 1: exactly 0", "nats", "autodiff.separate_lengths"),
        ),
    ),
    6: Measure(
        "singular values",
        (Law("known factors, over 900 nats", "nats", "closed_form.known_factors"),),
    ),
    7: Measure(
        "Lyapunov exponents",
        (
            Law("constant J: log |eigenvalues|", "nats/step", "closed_form.constant_jacobian"),
            Law("sum: mean of log |det J|, joint state", "nats/step", "autodiff.log_determinant"),
            Law("largest: slope of measure 1", "nats/step", "autodiff.largest_exponent"),
        ),
    ),
    8: Measure(
        "horizon",
        (Law("W = rho Q: -1 / ln rho", "relative", "closed_form.rotation_horizons"),),
    ),
    9: Measure(
        "gate time scale",
        (
            Law("f = sigmoid(b): 1 + e^b", "relative", "gates.bias_time_scales"),
            Law("chrono: uniform on [2, T_max]", "sqrt(n) D", "gates.chrono_time_scales"),
        ),
    ),
    10: Measure(
        "gate saturation",
        (Law("limits b -> +-inf, driven gate", "share", "gates.saturation"),),
    ),
    11: Measure(
        "context use",
        (
            Law("lag 5: ln 4 below 5 tokens, then Bayes", "nats", "context.bayes_loss"),
            Law("lag 5: the same on samples", "std errors", "context.sampled_loss"),
            Law("cut: loss of the shorter text", "nats", "context.shorter_text"),
        ),
    ),
    12: Measure(
        "clipping", (Law("norm: min(norm, threshold)", "relative", "closed_form.clipped_norms"),)
    ),
    13: Measure(
        "truncated BPTT",
        (Law("autodiff stopped k steps back, every k", "relative", "autodiff.stopped_gradients"),),
    ),
    14: Measure(
        "Pascanu's Omega",
        (Law("W = rho Q: (rho - 1)^2", "absolute", "closed_form.rotation_omega"),),
    ),
    15: Measure(
        "sensitivity",
        (Law("(1 + lambda^2) / (1 - lambda^2)^3", "relative", "closed_form.impulse_response"),),
    ),
    16: Measure(
        "paths via c and h",
        (Law("the parts sum to the whole", "relative", "autodiff.path_sum"),),
    ),
}
