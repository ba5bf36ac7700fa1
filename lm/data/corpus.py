"""Corpora by name or by path, as token arrays.

Named corpora are checked against the published digests of their texts. Austen is part of the
package; the others are looked for below a folder of the user's, in the layouts that they are
found in, and fetched into it if they are not there. Texts of more than `STREAM_BYTES` are
tokenised to memory-mapped files; the tokens are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lm.config import DataConfig
from lm.data import token_file
from lm.data.download import Hub, Progress, Remote, download, export_hub
from lm.data.stream import SPLITS, Part, Text
from lm.data.text import tokenize
from lm.data.vocabulary import Vocabulary, build_vocabulary
from lm.machine import user_cache
from lm.tables import unknown_name

HERE = Path(__file__).parent
STREAM_BYTES = 16 << 20  # of text; what is larger is tokenised to a file


@dataclass(frozen=True)
class Source:
    """Where a named corpus lies and how it is cut.

    Attributes:
      files: split -> paths below the folder, the first that is there is taken, .gz too; "all":
        one file for all splits.
      digests: split -> digest of the text, as algorithm:hex.
      level, sentences, min_count: what `auto` and 0 stand for; the count for this level alone.
      cut: bytes of the training and validation split of "all"; None: 90 and 5 % of its lines.
      archives: paths below the folder of archives that hold the files, taken likewise.
      members: split -> file in such an archive.
      remote: where `target`, a path below the folder, is fetched from.
      hub: a data set of the Hugging Face hub that has the text.
      bring: what a user does where nothing of this may be fetched.
      underscore: spaces become `_`, for characters.
      shipped: inside the package rather than in the user's data folder.
    """

    files: Mapping[str, tuple[str, ...]]
    digests: Mapping[str, str]
    level: str
    sentences: str = "line"
    min_count: int = 1
    cut: tuple[int, int] | None = None
    archives: tuple[str, ...] = ()
    members: Mapping[str, str] | None = None
    remote: Remote | None = None
    target: str = ""
    hub: Hub | None = None
    bring: str = ""
    underscore: bool = False
    shipped: bool = False


def wikitext(name: str, digests: Mapping[str, str], sha256: str, size: int) -> Source:
    """WikiText-2 or -103 (Merity et al. 2016): the host of its authors' archives is gone since
    2024; one of them keeps a copy.
    """
    archive = f"{name}-v1.zip"
    return Source(
        {
            split: (
                f"{name}/{split}.txt",
                f"{name}/wiki.{split}.tokens",
                f"{name}/wiki.{split}.txt",
            )
            for split in SPLITS
        },
        digests,
        level="whitespace",
        archives=(archive, f"{name}/{archive}"),
        members={split: f"{name}/wiki.{split}.tokens" for split in SPLITS},
        remote=Remote(f"https://wikitext.smerity.com/{archive}", f"sha256:{sha256}", size),
        target=archive,
        hub=Hub("Salesforce/wikitext", f"{name}-v1", blank=" \n"),
    )


def hutter(name: str, level: str, text_sha1: str, sha1: str, size: int, hub: Hub | None) -> Source:
    """text8 or enwik8 (Mahoney): the last 5 + 5 million bytes are valid and test."""
    return Source(
        {"all": (name, f"{name}/{name}", f"{name}.txt", f"{name}/{name}.txt")},
        {"all": f"sha1:{text_sha1}"},
        level=level,
        cut=(90_000_000, 5_000_000),
        archives=(f"{name}.zip", f"{name}/{name}.zip"),
        members={"all": name},
        remote=Remote(f"http://mattmahoney.net/dc/{name}.zip", f"sha1:{sha1}", size),
        target=f"{name}.zip",
        hub=hub,
    )


PTB = Source(
    {
        split: (
            f"ptb/ptb.{split}.txt",
            f"ptb/{split}.txt",
            f"penn/{split}.txt",
            f"simple-examples/data/ptb.{split}.txt",
            f"ptb.{split}.txt",
        )
        for split in SPLITS
    },
    {
        "train": "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        "valid": "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        "test": "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    },
    level="whitespace",
    archives=("simple-examples.tgz", "ptb/simple-examples.tgz"),
    members={split: f"simple-examples/data/ptb.{split}.txt" for split in SPLITS},
    bring="it derives from data of the LDC and is not fetched: bring Mikolov's "
    "ptb.train.txt, ptb.valid.txt and ptb.test.txt in a folder ptb, or his simple-examples.tgz",
)

CORPORA: dict[str, Source] = {
    "austen": Source(
        {split: (f"austen/{split}.txt.gz",) for split in SPLITS},
        {
            "train": "sha256:cbbf152d527c859b683fb4a59602f69ffc232a2016a7d160f12103d2ec52a533",
            "valid": "sha256:84c4f49260af53e063df3efdb403f2ca7cd83b040d6d8681b2b2410c1d19edfe",
            "test": "sha256:eee6e8c6e96b52e87d9cd03fb71bd9de6d3711d54a31c2fd9e056250dc39d2bd",
        },
        level="word",
        sentences="prose",
        min_count=2,
        shipped=True,
    ),
    "ptb": PTB,
    "ptb-char": replace(PTB, level="char", underscore=True),
    "wikitext-2": wikitext(
        "wikitext-2",
        {
            "train": "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
        sha256="92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
        size=4_475_746,
    ),
    "wikitext-103": wikitext(
        "wikitext-103",
        {
            "train": "sha1:b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
            "valid": "sha1:c326ac59dc587676d58c422eb8a03e119582f92b",
            "test": "sha1:8a5befc548865cec54ed4273cf87dbbad60d1e47",
        },
        sha256="242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
        size=190_229_076,
    ),
    "text8": hutter(
        "text8",
        "char",
        text_sha1="0dc3edebc970dcc96137e7deda4d9995af9d93de",
        sha1="6c70299b93b7e1f927b42cd8f6ac1a31547c7a2e",
        size=31_344_016,
        hub=Hub("afmck/text8"),
    ),
    "enwik8": hutter(
        "enwik8",
        "byte",
        text_sha1="57b8363b814821dc9d47aa4d41f58733519076b2",
        sha1="d856b1ccd937c51aeb9c342e47666fb8c38e7e72",
        size=36_445_475,
        hub=None,  # its one data set there is a script, which `datasets` no longer runs
    ),
    "tinyshakespeare": Source(
        {"all": ("tinyshakespeare/input.txt", "tinyshakespeare.txt", "tinyshakespeare")},
        {"all": "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
        level="char",
        remote=Remote(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
            "input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            1_115_394,
        ),
        target="tinyshakespeare/input.txt",
    ),
}


@dataclass(frozen=True)
class Corpus:
    """A corpus, tokenised.

    Attributes:
      name: as asked for.
      splits: train, valid, test -> int32 ids, `<eos>` after each sentence; memory-mapped and
        not to be written where the text is large.
      vocabulary: of the training split.
      sha256: of the token arrays and the vocabulary: what a resumed run must find again.
    """

    name: str
    splits: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    sha256: str


def load_corpus(
    config: DataConfig,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read, cut and encode a corpus.

    Args:
      config: which, and how.
      vocabulary: of an earlier run, in place of one built from this corpus.
      progress: called as a large text is fetched and tokenised.

    Raises:
      ValueError: unknown corpus; a file missing, empty, binary, not UTF-8, or not the
        published one; a text that cannot be fetched.
    """
    source = CORPORA.get(config.corpus)
    level, rule = resolve(config)
    if vocabulary is not None:
        level = vocabulary.level
    published = source is not None and level == source.level
    min_count = config.min_count or (source.min_count if source and published else 1)
    text = find_named(config, source, level, progress) if source else find_path(config)
    cut = token_file.Cut(level, rule, min_count, config.max_vocabulary, vocabulary)
    if text.size() > STREAM_BYTES:
        name = Path(config.corpus).name or "text"
        tokens = token_file.load_tokens(text, cut, cache_folder(config), name, progress)
    else:
        tokens = encode(text, cut)
    for split in SPLITS:
        if not len(tokens.splits[split]):
            raise ValueError(
                f"corpus {config.corpus}: its {split} part has no sentence; give more text, or a "
                "folder with train, valid and test files"
            )
    return Corpus(config.corpus, tokens.splits, tokens.vocabulary, tokens.sha256)


def resolve(config: DataConfig) -> tuple[str, str]:
    """(level, sentences) with `auto` replaced by what the corpus is published with."""
    source = CORPORA.get(config.corpus)
    level, rule = config.level, config.sentences
    if level == "auto":
        level = source.level if source else "word"
    if rule == "auto":
        rule = source.sentences if source else "line"
    return level, rule


def encode(text: Text, cut: token_file.Cut) -> token_file.Tokens:
    """A small text's tokens, in memory."""
    read: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, block in text.blocks("latin-1" if cut.level == "byte" else "utf-8"):
        read[split].append(block)
    units = {
        split: list(tokenize("".join(blocks), cut.level, cut.sentences))
        for split, blocks in read.items()
    }
    vocabulary = cut.vocabulary or build_vocabulary(
        units["train"], cut.level, cut.min_count, cut.max_size
    )
    splits = {split: vocabulary.encode(sentences) for split, sentences in units.items()}
    sha256 = token_file.digest(vocabulary, (splits[split] for split in SPLITS))
    return token_file.Tokens(splits, vocabulary, sha256)


def cache_folder(config: DataConfig) -> Path:
    """Where tokenised texts are kept."""
    return Path(config.cache_dir) if config.cache_dir else user_cache()


def find_named(
    config: DataConfig, source: Source, level: str, progress: Progress | None = None
) -> Text:
    """The files of a corpus in CORPORA, fetched if they are not there.

    Raises:
      ValueError: they are not there and cannot be fetched.
    """
    folder = HERE if source.shipped else Path(config.data_dir)
    parts = look_for(source, folder)
    if not parts:
        fetch(config, source, folder, progress)
        parts = look_for(source, folder)
    if not parts:
        raise ValueError(f"corpus {config.corpus}: {folder} changes while it is read; try again")
    underscore = source.underscore and level == "char"
    return Text({split: (part,) for split, part in parts.items()}, source.cut, underscore)


def look_for(source: Source, folder: Path) -> dict[str, Part]:
    """split -> file or member of an archive; empty if one of them is missing."""
    found = {}
    for split, names in source.files.items():
        paths = (folder / f"{name}{end}" for name in names for end in ("", ".gz"))
        path = next((path for path in paths if path.is_file()), None)
        if path:
            found[split] = Part(path, digest=source.digests[split])
    if len(found) == len(source.files):
        return found
    for name in source.archives:
        if source.members and (folder / name).is_file():
            return {
                split: Part(folder / name, member, source.digests[split])
                for split, member in source.members.items()
            }
    return {}


def fetch(config: DataConfig, source: Source, folder: Path, progress: Progress | None) -> None:
    """Bring a named corpus into the user's folder, from the hub or else from its address.

    Raises:
      ValueError: neither can be had; says what was tried, and what to put where by hand.
    """
    tried = []
    if source.hub:
        try:
            files = {split: folder / names[0] for split, names in source.files.items()}
            export_hub(source.hub, files, source.digests, progress)
            return
        except ValueError as error:
            tried.append(str(error))
    if source.remote:
        try:
            download(source.remote, folder / source.target, progress=progress)
            return
        except ValueError as error:
            tried.append(str(error))
    words = f"tried {'; '.join(tried)}; " if tried else ""
    if source.remote:
        algorithm, digest = source.remote.digest.split(":")
        advice = (
            f"put it at {folder / source.target} ({source.remote.size:,} bytes, {algorithm} "
            f"{digest})"
        )
    else:
        advice = source.bring
    raise ValueError(
        f"corpus {config.corpus} is not below --data_dir (now {folder}); {words}{advice}, or give "
        "the folder that holds it as --data_dir"
    )


def find_path(config: DataConfig) -> Text:
    """The files of a text or a folder of the user's."""
    path = Path(config.corpus)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        named = {split: [p for p in files if is_split(p, split)] for split in SPLITS}
        if all(len(found) == 1 for found in named.values()):
            return Text({split: (Part(found[0]),) for split, found in named.items()})
        texts = [p for p in files if p.suffix in (".txt", ".gz", ".tokens")]
        if any(named.values()) or not texts:
            raise ValueError(
                f"corpus {path}: wanted one file each for train, valid and test in its name, or "
                f".txt files of which none is; found {', '.join(p.name for p in files) or 'none'}"
            )
        return Text({"all": tuple(Part(p) for p in texts)})
    if not path.exists() and "/" not in config.corpus and "." not in config.corpus:
        line = unknown_name("corpus", config.corpus, CORPORA)
        raise ValueError(f"{line}, or the path of a text file or folder")
    return Text({"all": (Part(path),)})


def is_split(path: Path, split: str) -> bool:
    """Whether a file's name marks it as train, valid (val, dev) or test."""
    parts = path.name.lower().replace("-", ".").replace("_", ".").split(".")
    names = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
    return any(part in names[split] for part in parts)
