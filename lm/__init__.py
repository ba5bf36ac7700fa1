"""Recurrent language models and their gradients: pure functions on arrays.

The library parses no flags, draws no plots and prints nothing. Imports run one way:

    task_lengths <- tasks;  tables, log_space, linalg, mesh <- cells <- config <- data
    cells <- recurrence <- model <- loss, optim, monitor <- {train, evaluate, generate, gradients}
                regularize <- model <- interop
                              evaluate <- neural_cache <- dynamic_evaluation; surprisal

Shape letters, used in every docstring and line-end comment:

    B  batch            T  time (tokens)      N  tokens of a batch, N = T * B
    D  input size       H  hidden size        K  gate pre-activations, K = len(gates) * H
    V  vocabulary       L  layers             S  seeds

Arrays over time have time first: `[T, B, H]`, as `lax.scan` wants them.
"""
