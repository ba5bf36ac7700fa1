"""The perplexity of a trained run on its own corpus or any other text.

perplexity = exp(total nats / total tokens), every token counted once, `<eos>` included. The
batch size changes the time and not the number.

    ./launch.sh evaluate --run=runs/my_book
    ./launch.sh evaluate --run=runs/my_book --text=other.txt
"""

# ruff: noqa: E402
from dataclasses import dataclass
from pathlib import Path

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of evaluate."""

    run: str = option("", "folder of a trained run")
    text: str = option("", "a text file, read as the run's corpus was; empty: that corpus")
    batch_size: int = option(16, "rows evaluated side by side", least=1, most=10**6)
    length: int = option(64, "tokens a row in one compiled call", least=1, most=10**6)

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import numpy as np

from experiments import run_folder
from experiments.train import check_corpus
from experiments.trained import load_run
from lm.data.corpus import load_corpus
from lm.data.text import read_text, tokenize
from lm.data.vocabulary import UNKNOWN_ID
from lm.evaluate import evaluate_sentences, evaluate_stream, make_forward


def run(config: Config) -> None:
    """Evaluate, print, and note the result in the run's folder."""
    trained = load_run(config.run)
    if config.text:
        encoding = "latin-1" if trained.vocabulary.level == "byte" else "utf-8"
        text = read_text(Path(config.text), encoding)
        sentences = tokenize(text, trained.vocabulary.level, trained.sentences)
        texts = {config.text: trained.vocabulary.encode(sentences)}
    else:
        corpus = load_corpus(trained.config.data, trained.vocabulary)
        check_corpus(trained.folder, corpus)
        texts = {name: corpus.splits[name] for name in ("valid", "test")}
    model_config = trained.config.model
    forward = make_forward(model_config)
    rows = {}
    for name, tokens in texts.items():
        if trained.config.data.batching == "stream":
            result = evaluate_stream(
                model_config,
                trained.params,
                tokens,
                batch=config.batch_size,
                length=config.length,
                forward=forward,
            )
        else:
            result = evaluate_sentences(
                model_config, trained.params, tokens, batch=config.batch_size, forward=forward
            )
        unknown = float(np.mean(tokens == UNKNOWN_ID))
        print(
            f"{name}: perplexity {result.perplexity:.2f}   {result.nats / result.tokens:.4f} nats "
            f"per token   {result.tokens:,} tokens, {unknown:.1%} <unk>"
        )
        rows[name] = result._asdict() | {"perplexity": result.perplexity, "unknown": unknown}
    path = trained.folder / "evaluation.json"
    before = run_folder.read_json(path) if path.exists() else {}
    run_folder.write_json(path, before | rows)


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
