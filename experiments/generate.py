"""Sample text from a trained run, word after word.

    ./launch.sh generate --run=runs/my_book
    ./launch.sh generate --run=runs/my_book --prompt="it is a truth" --temperature=0.7 --seed=3
    ./launch.sh generate --run=runs/my_book --top_p=0.9 --samples=5 --lines=1 --output=five.jsonl

--top_k and --top_p leave out unlikely words before each draw: first all but the k likeliest,
then all but the fewest that have the probability p together (Holtzman et al. 2020,
arXiv:1904.09751). <unk> is never drawn. The same seed draws the same text.
"""

# ruff: noqa: E402
from dataclasses import dataclass

from experiments import flags
from lm.config import option, validate


@dataclass(frozen=True)
class Config:
    """Options of generate."""

    run: str = option("", "folder of a trained run")
    checkpoint: str = option("best", "best by validation, or the last", choices=("best", "last"))
    prompt: str = option("", "text to go on from; empty: the start of a sentence")
    tokens: int = option(100, "tokens to draw", least=1, most=10**7)
    lines: int = option(0, "stop a sample after so many line ends; 0: at --tokens alone", least=0)
    samples: int = option(1, "texts to draw, side by side", least=1, most=10**5)
    temperature: float = option(
        1.0, "1: the model's distribution; lower: likelier tokens; 0: the likeliest", least=0
    )
    top_k: int = option(0, "draw from the k likeliest tokens; 0: from all", least=0, most=2**31 - 1)
    top_p: float = option(
        1.0,
        "draw from the likeliest tokens that have this probability together; 1: from all",
        above=0,
        most=1,
    )
    seed: int = option(0, "of the draws", least=0, most=2**31 - 1)
    output: str = option(
        "", "write the texts to this file too; one JSON object a line if it ends in .jsonl"
    )
    overwrite: bool = option(False, "replace the output file if it is there")

    def __post_init__(self) -> None:
        validate(self)


if __name__ == "__main__":
    flags.answer_help(Config, __doc__)

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import run_folder
from experiments.trained import load_run
from lm.data.text import decode_text, tokenize
from lm.data.vocabulary import UNKNOWN_ID, Vocabulary
from lm.generate import encode_prompt, first_lines, sample

MOST_NAMED = 5  # unknown tokens of the prompt that are named


def run(config: Config) -> list[str]:
    """Print the prompt and what follows it. Returns the texts."""
    output = Path(config.output) if config.output else None
    if output:
        check_output(output, config.overwrite)
    trained = load_run(config.run, config.checkpoint)
    prompt = read_prompt(config.prompt, trained.vocabulary)
    drawn = sample(
        trained.config.model,
        trained.params,
        jax.random.key(config.seed),
        jnp.asarray(prompt),
        config.tokens,
        config.samples,
        jnp.float32(config.temperature),
        jnp.int32(config.top_k),
        jnp.float32(config.top_p),
    )
    texts = []
    for tokens in np.asarray(drawn):
        kept = first_lines(tokens, config.lines) if config.lines else tokens
        texts.append(trained.vocabulary.decode(np.concatenate([prompt[1:], kept])))
    shown = "".join(
        (f"--- {number} of {len(texts)}\n" if len(texts) > 1 else "") + f"{text}\n"
        for number, text in enumerate(texts, 1)
    )
    print(shown, end="")
    if output and output.suffix == ".jsonl":
        asked = {
            name: getattr(config, name) for name in ("run", "temperature", "top_k", "top_p", "seed")
        }
        asked["prompt"] = config.prompt.encode("utf-8", "surrogateescape").decode(
            "utf-8", "replace"
        )
        lines = [
            json.dumps({"sample": number, "text": text, **asked}, ensure_ascii=False)
            for number, text in enumerate(texts, 1)
        ]
        run_folder.write_text(output, "".join(line + "\n" for line in lines))
    elif output:
        run_folder.write_text(output, shown)
    return texts


def read_prompt(prompt: str, vocabulary: Vocabulary) -> np.ndarray:
    """A prompt as the model reads it; says which of its tokens the model does not know.

    Raises:
      ValueError: not UTF-8, and the model does not read bytes.
    """
    # Arguments that are no UTF-8 come as surrogates (PEP 383).
    raw = prompt.encode("utf-8", "surrogateescape")
    encoding = "latin-1" if vocabulary.level == "byte" else "utf-8"
    text = decode_text(raw, "prompt", encoding) if raw.strip() else raw.decode(encoding)
    sentences = list(tokenize(text, vocabulary.level, "line"))
    ids = vocabulary.encode(sentences)
    units = [unit for sentence in sentences for unit in sentence]
    unknown = list(dict.fromkeys(u for u in units if vocabulary.ids.get(u, 0) == UNKNOWN_ID))
    if unknown:
        count = int(np.sum(ids == UNKNOWN_ID))
        named = ", ".join(map(repr, unknown[:MOST_NAMED]))
        more = ", .." if len(unknown) > MOST_NAMED else ""
        print(
            f"generate: {count} of the prompt's {len(units)} tokens are unknown to the model "
            f"({named}{more}); it reads them as <unk>",
            file=sys.stderr,
        )
    return encode_prompt(ids)


def check_output(output: Path, overwrite: bool) -> None:
    """Before anything is computed: whether the file can be written, and may be.

    Raises:
      ValueError: it exists, or cannot be written.
    """
    if output.is_dir() or not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise ValueError(f"output {output} cannot be written; give --output=FILE that can")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; give another --output, or --overwrite to replace it")


if __name__ == "__main__":
    flags.main(Config, run, __doc__)
