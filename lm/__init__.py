"""Recurrent language models and their gradients: pure functions on arrays.

The library parses no flags, draws no plots and prints nothing. Imports run one way:

    tables, log_space, linalg, tasks <- cells <- config <- data
              cells <- recurrence <- model <- loss, optim <- {train, evaluate, generate, gradients}

Shape letters, used in every docstring and line-end comment:

    B  batch            T  time (tokens)      N  tokens of a batch, N = T * B
    D  input size       H  hidden size        K  gate pre-activations, K = len(gates) * H
    V  vocabulary       L  layers             S  seeds

Arrays over time have time first: `[T, B, H]`, as `lax.scan` wants them.
"""
