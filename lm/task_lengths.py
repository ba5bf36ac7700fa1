"""The fewest steps that a sequence of each task has. No JAX: a command line is checked by it."""

COPY_LENGTH = 10  # symbols that the copy task asks to be remembered

LEAST_STEPS: dict[str, int] = {
    "adding": 2,
    "multiplication": 2,
    "copy": 2 * COPY_LENGTH + 1,  # the symbols, a delay of 1, and room to repeat them
    "temporal_order": 10,
    "temporal_order_8": 10,
    "latch": 2,
    "lag": 5,
}
