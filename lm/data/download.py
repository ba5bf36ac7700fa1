"""Published texts from the web: a file is there whole and verified, or not at all.

What is fetched, under which name and with which digest is said by tables of ours; nothing that a
server sends names a file. Archives are never unpacked: `lm.data.stream` reads them in place.
"""

import contextlib
import hashlib
import http
import http.client
import importlib
import os
import string
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, urljoin, urlsplit

# (what is done, bytes done, bytes in all or 0 where that is not known)
Progress = Callable[[str, int, int], None]

PIECE = 1 << 18  # bytes taken from the network at a time
REDIRECTS = 5  # that are followed
STALE = 24 * 3600.0  # seconds after which a partial file is taken for a killed process's
ROWS = 1000  # rows taken from a hub data set at a time


@dataclass(frozen=True)
class Remote:
    """One file on the web.

    Attributes:
      url: http or https; redirects are followed, but not from https to http.
      digest: what it must have, as algorithm:hex ("sha1:6c70...").
      size: in bytes.
    """

    url: str
    digest: str
    size: int


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub whose rows make a published text.

    Attributes:
      name, config: as `datasets.load_dataset` takes them.
      blank: the text of a row that the hub holds as empty.
    """

    name: str
    config: str | None = None
    blank: str = ""


def download(
    remote: Remote, target: Path, *, timeout: float = 30.0, progress: Progress | None = None
) -> None:
    """Fetch a file, verify it, move it into place.

    Several processes may fetch the same file: each has a partial file of its own, and what is
    moved into place is the same. A broken download starts anew at the next call.

    Args:
      target: where it goes; its folder is made.
      timeout: seconds without an answer or a byte.

    Raises:
      ValueError: the server cannot be reached or refuses, the file is not the published one, or
        cannot be written; says what to do.
    """
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise ValueError(f"{remote.url}: wanted a http or https address")
    algorithm, wanted = remote.digest.split(":")
    digest, received = hashlib.new(algorithm), 0
    try:
        with open_url(remote.url, timeout) as response, whole_file(target) as file:
            offered = response.headers.get("Content-Length", str(remote.size))
            if offered != str(remote.size):
                raise _RefusedError(f"it offers {offered[:20]!r} bytes, not {remote.size:,}")
            while piece := response.read(PIECE):
                received += len(piece)
                if received > remote.size:
                    raise _RefusedError(f"it sends more than the {remote.size:,} bytes published")
                digest.update(piece)
                write(file, piece, target)
                if progress:
                    progress(f"downloading {target.name}", received, remote.size)
            if received < remote.size:
                raise _RefusedError(
                    f"the connection ended after {received:,} of {remote.size:,} bytes"
                )
            if digest.hexdigest() != wanted:
                raise _RefusedError(
                    f"what it sends has {algorithm} {digest.hexdigest()[:12]}..., "
                    f"the published file {wanted[:12]}..."
                )
    except (_RefusedError, OSError, http.client.HTTPException) as error:
        raise ValueError(f"{remote.url}: {reason(error)}") from None


class _RefusedError(Exception):
    """What a server sent is not what was asked for."""


def reason(error: Exception) -> str:
    """Why a download failed, in words that no server chose."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        known = {status.value: status.phrase for status in http.HTTPStatus}
        return f"it answers {error.code} {known.get(error.code, '')}".rstrip()
    if isinstance(error, urllib.error.URLError):
        cause = error.reason
        return reason(cause) if isinstance(cause, Exception) else ascii(str(cause))[:200]
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended before the file did"
    if isinstance(error, http.client.HTTPException):
        return f"no HTTP that can be read ({type(error).__name__})"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def open_url(url: str, timeout: float) -> http.client.HTTPResponse:
    """Ask for a file, following a few redirects, whose own pages are not read.

    Raises:
      _RefusedError: redirects without end, to another scheme, or from https to http.
      OSError, http.client.HTTPException: everything else that goes wrong.
    """
    opener = make_opener()
    for _ in range(REDIRECTS + 1):
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
        try:
            found: http.client.HTTPResponse = opener.open(request, timeout=timeout)
            return found
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308):
                raise
            error.close()
            url = follow(url, error.headers.get("Location", ""))
    raise _RefusedError("it redirects without end")


def follow(url: str, location: str) -> str:
    """Where a redirect leads."""
    onward = urljoin(url, quote(location, safe=string.punctuation))
    old, new = urlsplit(url).scheme, urlsplit(onward).scheme
    if new not in ("http", "https") or (old == "https" and new == "http"):
        raise _RefusedError(f"it redirects from {old} to {new[:20]}")
    return onward


def make_opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone, where `urllib.request.urlopen` takes file and ftp too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def export_hub(
    hub: Hub, files: Mapping[str, Path], digests: Mapping[str, str], progress: Progress | None
) -> None:
    """Write the text of a hub data set, so that it need not be asked for again.

    Args:
      files: split -> where its text goes; "all": the three splits after each other.
      digests: of the texts, likewise.

    Raises:
      ValueError: `datasets` is not installed, the hub cannot be reached, or its text is not the
        published one.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            f"Hugging Face {hub.name}: needs the package datasets in this environment"
        ) from None
    try:
        data = datasets.load_dataset(hub.name, hub.config)
        splits = {"train": data["train"], "valid": data["validation"], "test": data["test"]}
    except Exception as error:  # whatever the library and the libraries below it raise
        words = " ".join(str(error).split())[:200]
        raise ValueError(f"Hugging Face {hub.name}: {type(error).__name__}: {words}") from None
    for name, path in files.items():
        algorithm, wanted = digests[name].split(":")
        digest, done = hashlib.new(algorithm), 0
        with whole_file(path) as file:
            for split in splits if name == "all" else (name,):
                for rows in splits[split].iter(batch_size=ROWS):
                    raw = "".join(text or hub.blank for text in rows["text"]).encode()
                    digest.update(raw)
                    write(file, raw, path)
                    done += len(raw)
                    if progress:
                        progress(f"writing {path.name}", done, 0)
            if digest.hexdigest() != wanted:
                raise ValueError(
                    f"Hugging Face {hub.name}: the {name} text has {algorithm} "
                    f"{digest.hexdigest()[:12]}..., the published one {wanted[:12]}..."
                )


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[IO[bytes]]:
    """A file to be written that gets its name when the block ends well, and is gone otherwise.

    Raises:
      ValueError: its folder cannot be made or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed below, kept until it is moved
            dir=target.parent, prefix=f".{target.name}.", suffix=".partial", delete=False
        )
    except OSError as error:
        raise ValueError(f"{target.parent} cannot be written ({error.strerror})") from None
    try:
        yield file
        write(file, b"", target)
        file.close()
        try:
            Path(file.name).chmod(0o644)  # temporary files are their owner's alone
            Path(file.name).replace(target)
        except OSError as error:
            raise ValueError(f"{target} cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):  # a full disk, which was said already
            file.close()
        Path(file.name).unlink(missing_ok=True)


def write(file: IO[bytes], raw: bytes, target: Path) -> None:
    """Write, and with b"" bring to the disk; a full one is the user's to know of."""
    try:
        file.write(raw)
        if not raw:
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error.strerror}); make room, or name another folder"
        ) from None


def sweep(folder: Path) -> None:
    """Remove what processes that were killed long ago left half-written in a folder."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):  # another process sweeps too, or it is not ours
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
