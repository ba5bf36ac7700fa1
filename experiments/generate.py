"""Sample text from a trained run, word after word.

./launch.sh generate --run=runs/my_book
./launch.sh generate --run=runs/my_book --prompt="it is a truth" --temperature=0.7 --seed=3
"""

# ruff: noqa: E402
from dataclasses import dataclass

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of generate."""

    run: str = option("", "folder of a trained run")
    prompt: str = option("", "text to go on from; empty: the start of a sentence")
    tokens: int = option(100, "tokens to draw", least=1)
    temperature: float = option(
        1.0, "1: the model's distribution; lower: likelier tokens; 0: the likeliest", least=0
    )
    seed: int = option(0, "of the draws", least=0, most=2**31 - 1)

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import sys

import jax
import jax.numpy as jnp
import numpy as np

from experiments.trained import load_run
from lm.data.text import tokenize
from lm.data.vocabulary import UNKNOWN_ID
from lm.generate import encode_prompt, sample


def run(config: Config) -> str:
    """Print the prompt and what follows it. Returns the text."""
    trained = load_run(config.run)
    level = trained.vocabulary.level
    text = config.prompt.encode().decode("latin-1") if level == "byte" else config.prompt
    sentences = list(tokenize(text, level, "line"))
    ids = trained.vocabulary.encode(sentences)
    unknown = int(np.sum(ids == UNKNOWN_ID))
    if unknown and config.prompt:
        print(
            f"generate: {unknown} of the prompt's tokens are unknown to the model", file=sys.stderr
        )
    prompt = encode_prompt(ids)
    tokens = sample(
        trained.config.model,
        trained.params,
        jax.random.key(config.seed),
        jnp.asarray(prompt),
        config.tokens,
        jnp.float32(config.temperature),
    )
    drawn = trained.vocabulary.decode(np.concatenate([prompt[1:], np.asarray(tokens)]))
    print(drawn)
    return drawn


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
