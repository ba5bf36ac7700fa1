"""Corpora by name or by path, as token arrays.

Named corpora are checked against the sha256 of their texts. Austen is part of the package;
the others are read from a folder of the user's: `CORPORA` says which files it must hold.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lm.config import DataConfig
from lm.data.text import read_text, split_lines, tokenize
from lm.data.vocabulary import Vocabulary, build_vocabulary
from lm.tables import unknown_name

SPLITS = ("train", "valid", "test")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """Where a named corpus lies and how it is cut.

    Attributes:
      files: split -> path below the folder; one file for all is cut 90/5/5.
      sha256: split -> digest of the text.
      level, sentences, min_count: what `auto` and 0 stand for; the count for this level alone.
      shipped: inside the package rather than in the user's data folder.
    """

    files: Mapping[str, str]
    sha256: Mapping[str, str]
    level: str
    sentences: str = "line"
    min_count: int = 1
    shipped: bool = False


CORPORA: dict[str, Source] = {
    "austen": Source(
        {split: f"austen/{split}.txt.gz" for split in SPLITS},
        {
            "train": "cbbf152d527c859b683fb4a59602f69ffc232a2016a7d160f12103d2ec52a533",
            "valid": "84c4f49260af53e063df3efdb403f2ca7cd83b040d6d8681b2b2410c1d19edfe",
            "test": "eee6e8c6e96b52e87d9cd03fb71bd9de6d3711d54a31c2fd9e056250dc39d2bd",
        },
        level="word",
        sentences="prose",
        min_count=2,
        shipped=True,
    ),
    "ptb": Source(
        {split: f"ptb/ptb.{split}.txt" for split in SPLITS},
        {
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
        level="whitespace",
    ),
    "wikitext-2": Source(
        {split: f"wikitext-2/{split}.txt" for split in SPLITS},
        {
            "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
        level="whitespace",
    ),
    "tinyshakespeare": Source(
        {"all": "tinyshakespeare/input.txt"},
        {"all": ("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")},
        level="char",
    ),
}


@dataclass(frozen=True)
class Corpus:
    """A corpus, tokenised.

    Attributes:
      name: as asked for.
      splits: train, valid, test -> int32 ids, `<eos>` after each sentence.
      vocabulary: of the training split.
      sha256: of the token arrays and the vocabulary: what a resumed run must find again.
    """

    name: str
    splits: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    sha256: str


def load_corpus(config: DataConfig, vocabulary: Vocabulary | None = None) -> Corpus:
    """Read, cut and encode a corpus.

    Args:
      config: which, and how.
      vocabulary: of an earlier run, in place of one built from this corpus.

    Raises:
      ValueError: unknown corpus; a file missing, empty, binary, not UTF-8, or not the
        published one.
    """
    source = CORPORA.get(config.corpus)
    level, rule = resolve(config)
    if vocabulary is not None:
        level = vocabulary.level
    published = source is not None and level == source.level
    min_count = config.min_count or (source.min_count if source and published else 1)
    encoding = "latin-1" if level == "byte" else "utf-8"
    texts = _read_named(config, encoding) if source else _read_path(config, encoding)
    units = {split: list(tokenize(text, level, rule)) for split, text in texts.items()}
    if vocabulary is None:
        vocabulary = build_vocabulary(units["train"], level, min_count, config.max_vocabulary)
    splits = {split: vocabulary.encode(sentences) for split, sentences in units.items()}
    for split in SPLITS:
        if not len(splits[split]):
            raise ValueError(
                f"corpus {config.corpus}: its {split} part has no sentence; give more text, or a "
                "folder with train, valid and test files"
            )
    digest = hashlib.sha256("\n".join(vocabulary.units).encode("utf-8", "surrogatepass"))
    for split in SPLITS:
        digest.update(splits[split].tobytes())
    return Corpus(config.corpus, splits, vocabulary, digest.hexdigest())


def resolve(config: DataConfig) -> tuple[str, str]:
    """(level, sentences) with `auto` replaced by what the corpus is published with."""
    source = CORPORA.get(config.corpus)
    level, rule = config.level, config.sentences
    if level == "auto":
        level = source.level if source else "word"
    if rule == "auto":
        rule = source.sentences if source else "line"
    return level, rule


def _read_named(config: DataConfig, encoding: str) -> dict[str, str]:
    """split -> text of a corpus in CORPORA, each file checked."""
    source = CORPORA[config.corpus]
    folder = HERE if source.shipped else Path(config.data_dir)
    texts = {}
    for split, name in source.files.items():
        path = folder / name
        if not path.exists():
            raise ValueError(
                f"corpus {config.corpus}: {path} is not there; put the corpus below "
                f"--data_dir (now {config.data_dir}), or give its path as --corpus"
            )
        text = read_text(path, encoding)
        digest = hashlib.sha256(text.encode(encoding)).hexdigest()
        if digest != source.sha256[split]:
            raise ValueError(
                f"corpus {config.corpus}: {path} has sha256 {digest[:12]}..., the published "
                f"file {source.sha256[split][:12]}...; replace it, or give its path as --corpus"
            )
        texts[split] = text
    return cut(texts["all"]) if "all" in texts else texts


def _read_path(config: DataConfig, encoding: str) -> dict[str, str]:
    """split -> text of a file or a folder of the user's."""
    path = Path(config.corpus)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        named = {split: [p for p in files if is_split(p, split)] for split in SPLITS}
        if all(len(found) == 1 for found in named.values()):
            return {split: read_text(found[0], encoding) for split, found in named.items()}
        texts = [p for p in files if p.suffix in (".txt", ".gz", ".tokens")]
        if any(named.values()) or not texts:
            raise ValueError(
                f"corpus {path}: wanted one file each for train, valid and test in its name, or "
                f".txt files of which none is; found {', '.join(p.name for p in files) or 'none'}"
            )
        return cut("\n".join(read_text(p, encoding).removesuffix("\n") for p in texts))
    if not path.exists() and "/" not in config.corpus and "." not in config.corpus:
        line = unknown_name("corpus", config.corpus, CORPORA)
        raise ValueError(f"{line}, or the path of a text file or folder")
    return cut(read_text(path, encoding))


def is_split(path: Path, split: str) -> bool:
    """Whether a file's name marks it as train, valid (val, dev) or test."""
    parts = path.name.lower().replace("-", ".").replace("_", ".").split(".")
    names = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
    return any(part in names[split] for part in parts)


def cut(text: str) -> dict[str, str]:
    """One text -> its first 90 % of lines for training, 5 % valid, 5 % test."""
    lines = split_lines(text)
    if len(lines) < 20:
        raise ValueError(
            f"the text has {len(lines)} lines; wanted at least 20 to cut 90/5/5, or a folder "
            "with train, valid and test files"
        )
    first, second = len(lines) * 90 // 100, len(lines) * 95 // 100
    parts = {"train": lines[:first], "valid": lines[first:second], "test": lines[second:]}
    return {split: "\n".join(part) + "\n" for split, part in parts.items()}
