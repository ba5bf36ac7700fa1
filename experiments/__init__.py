"""The questions: each module is one experiment with its Config, run, plot and command line."""

EXPERIMENTS: dict[str, str] = {
    "gradient_flow": "train an RNN and an LSTM; show how far back each one's gradient reaches",
    "train": "train a language model on any text",
    "sweep": "train every combination of options, or a sample of them; which is the best?",
    "evaluate": "perplexity of a trained run on any text",
    "generate": "sample text from a trained run",
    "score": "surprisal of each word of a text, as a table",
    "convert": "a trained run as a safetensors file, or a PyTorch model as a run",
    "walkthrough": "the lecture on one sentence: next words, loss, gates, gradient, length",
    "ablation": "take a network apart: which piece matters, and is the difference real",
    "claims": "measure eight claims of the field; a verdict, a table and a figure each",
    "checks": "hold every gradient measure against laws that are known exactly",
    "gallery": "figures of gradient flow that nobody else draws, each with its finding",
    "flow_speed": "time the laboratory's one pass against a loop over lengths",
    "throughput": "time training steps and layers against PyTorch, Flax, Haiku and Equinox",
    "sweep_speed": "time a sweep against the same runs one by one",
    "report": "a page about one run or several, with figures and tables that sort",
}
