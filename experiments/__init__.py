"""The questions: each module is one experiment with its Config, run, plot and command line."""

EXPERIMENTS: dict[str, str] = {
    "gradient_flow": "train an RNN and an LSTM; show how far back each one's gradient reaches",
    "train": "train a language model on any text",
    "evaluate": "perplexity of a trained run on any text",
    "generate": "sample text from a trained run",
    "throughput": "time the engine's backward pass against autodiff through lax.scan",
}
