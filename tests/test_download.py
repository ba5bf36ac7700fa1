"""Downloads from a server in this process: whole and verified, or not there at all."""

import contextlib
import hashlib
import io
import resource
import sys
import tarfile
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest

from lm.config import DataConfig
from lm.data import corpus, download, stream
from lm.data.corpus import load_corpus
from lm.data.download import Hub, Remote, export_hub
from lm.data.stream import Part, read_blocks
from tests.command_line import call

BODY = b"".join(b"line %d of the text\n" % k for k in range(40_000))
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
SHA1 = "sha1:" + hashlib.sha1(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def answer(self, body=None, code=200, **headers):
        self.send_response(code)
        for name, value in ({"Content_Length": len(BODY)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(BODY if body is None else body)

    def do_GET(self):
        name = self.path.strip("/")
        with contextlib.suppress(ConnectionError):
            if name == "good":
                self.answer()
            elif name == "short":
                self.answer(BODY[:-1000])
            elif name == "changed":
                self.answer(b"X" + BODY[1:])
            elif name == "long":
                self.answer(BODY * 2, Content_Length=2 * len(BODY))
            elif name == "endless":  # as long as it likes, no length given
                self.send_response(200)
                self.end_headers()
                for _ in range(1000):
                    self.wfile.write(BODY)
            elif name == "chunked":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"10\r\n" + BODY[:16] + b"\r\nff\r\ncut")
            elif name.isdigit():
                self.send_response(int(name), "\x1b[31mwords of the server")
                self.end_headers()
            elif name == "moved":
                self.answer(b"", 302, Location="/good", Content_Length=0)
            elif name == "loop":
                self.answer(b"", 302, Location="/loop", Content_Length=0)
            elif name.startswith("on"):  # always elsewhere
                self.answer(b"", 302, Location=f"/on?{time.time()}", Content_Length=0)
            elif name == "file":
                self.answer(b"", 302, Location="file:///etc/hostname", Content_Length=0)
            elif name == "named":
                self.answer(Content_Disposition='attachment; filename="../../elsewhere"')
            elif name == "hang":
                time.sleep(0.6)
            elif name == "stall":
                self.answer(BODY[:1000])
                time.sleep(0.6)
            elif name == "noise":
                self.wfile.write(b"this is no HTTP\r\n\r\n")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(server, name, target, digest=SHA256, timeout=5.0, **options):
    remote = Remote(f"{server}/{name}", digest, len(BODY))
    download.download(remote, target, timeout=timeout, **options)


@pytest.mark.parametrize("digest", [SHA256, SHA1])
@pytest.mark.parametrize("name", ["good", "moved", "named"])
def test_a_file_is_fetched(server, tmp_path, name, digest):
    target, seen = tmp_path / "data" / "text", []
    fetch(server, name, target, digest, progress=lambda *report: seen.append(report))
    assert target.read_bytes() == BODY
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["text"]
    assert seen[-1] == ("downloading text", len(BODY), len(BODY))
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", r"ended after 907,890 of 908,890 bytes"),
        ("changed", r"has sha256 \w{12}\.\.\., the published file \w{12}"),
        ("long", "offers '1817780' bytes, not 908,890"),
        ("endless", "more than the 908,890 bytes"),
        ("chunked", "ended before the file did"),
        ("403", "answers 403 Forbidden$"),
        ("404", "answers 404 Not Found$"),
        ("503", "answers 503 Service Unavailable$"),
        ("599", "answers 599$"),
        ("loop", "redirects without end"),
        ("on", "redirects without end"),
        ("file", "redirects from http to file"),
        ("hang", "does not answer in time"),
        ("stall", "does not answer in time"),
        ("noise", "no HTTP that can be read"),
    ],
)
def test_what_goes_wrong_is_said_and_leaves_nothing(server, tmp_path, name, words):
    timeout = 0.2 if name in ("hang", "stall") else 5.0
    with pytest.raises(ValueError, match=words) as found:
        fetch(server, name, tmp_path / "text", timeout=timeout)
    assert str(found.value).startswith(f"{server}/{name}: ")
    assert str(found.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_when_a_download_fails(server, tmp_path):
    (tmp_path / "text").write_text("mine")
    with pytest.raises(ValueError, match="published"):
        fetch(server, "changed", tmp_path / "text")
    assert (tmp_path / "text").read_text() == "mine"


def test_few_redirects_are_followed(server, tmp_path):
    send = BaseHTTPRequestHandler.send_response
    with (
        mock.patch.object(Handler, "send_response", autospec=True, side_effect=send) as sent,
        pytest.raises(ValueError, match="redirects without end"),
    ):
        fetch(server, "on", tmp_path / "text")
    assert sent.call_count == 6


def test_nobody_there_is_said(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        port = gone.server_port
    with pytest.raises(ValueError, match="Connection refused"):
        fetch(f"http://127.0.0.1:{port}", "good", tmp_path / "text")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "/etc/x"])
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(ValueError, match="wanted a http or https address"):
        download.download(Remote(url, SHA256, 1), tmp_path / "text")
    known = [type(h).__name__ for h in download.make_opener().handlers]
    assert not {"FileHandler", "FTPHandler", "DataHandler"} & set(known)


def test_no_way_back_from_https():
    assert download.follow("https://a.org/x/y", "z w") == "https://a.org/x/z%20w"
    assert download.follow("http://a.org/x", "https://b.org/") == "https://b.org/"
    for url, location in (("https://a.org/x", "http://a.org/x"), ("http://a.org", "ftp://a.org")):
        with pytest.raises(download._RefusedError, match="it redirects from http"):
            download.follow(url, location)


def test_a_full_disk_is_said(server, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ValueError, match=r"text cannot be written \(File too large\)"):
            fetch(server, "good", tmp_path / "text")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be written"):
        fetch(server, "good", tmp_path / "file" / "text")


def test_several_at_once_do_not_mind_each_other(server, tmp_path):
    def one(k):
        with contextlib.suppress(ValueError):
            fetch(server, ["good", "changed", "short"][k % 3], tmp_path / "text")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(12)))
    assert (tmp_path / "text").read_bytes() == BODY
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_in_time(server, tmp_path):
    old, new = tmp_path / ".text.a.partial", tmp_path / ".text.b.partial"
    for path in (old, new):
        path.touch()
    download.os.utime(old, (1, 1))
    fetch(server, "good", tmp_path / "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == [new.name, "text"]


# Archives: read in place, so there is nothing that could be written elsewhere.


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members:
            archive.writestr(name, raw)


def write_tar(path, members, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


EVIL = [
    ("../outside", b"x"),
    ("/tmp/outside-of-it", b"x"),
    ("C:\\outside", b"x"),
    ("a/../../outside", b"x"),
]


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_an_archive_writes_nothing(tmp_path, kind):
    folder = tmp_path / "in" / "data"
    folder.mkdir(parents=True)
    path = folder / f"x.{kind}"
    members = [*EVIL, ("./data/text" if kind == "tgz" else "data/text", BODY)]
    write_zip(path, members) if kind == "zip" else write_tar(path, members)
    part = Part(path, "data/text", SHA256)
    assert "".join(read_blocks(part)).encode() == BODY
    assert part.size() == len(BODY)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    with pytest.raises(ValueError, match="no such file in the archive"):
        list(read_blocks(Part(path, "data/other")))


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not to be read")
    write_tar(tmp_path / "x.tgz", [("a", b"text")], links=[("text", str(secret)), ("b", "a")])
    for member in ("text", "b"):
        with pytest.raises(ValueError, match="no such file"):
            list(read_blocks(Part(tmp_path / "x.tgz", member)))


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_member_that_is_too_large_is_refused(tmp_path, monkeypatch, kind):
    path = tmp_path / f"bomb.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, [("text", b"0" * 2_000_000)])
    monkeypatch.setattr(stream, "MEMBER_LIMIT", 1_000_000)
    with pytest.raises(ValueError, match="2,000,000 bytes; wanted at most 1,000,000"):
        list(read_blocks(Part(path, "text")))


@pytest.mark.parametrize("kind", ["zip", "tgz"])
@pytest.mark.parametrize("at", ["end", "middle", "start"])
def test_a_damaged_archive_is_named(tmp_path, kind, at):
    path = tmp_path / f"x.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, [("text", BODY)])
    raw = bytearray(path.read_bytes())
    if at == "end":
        raw = raw[: len(raw) // 2]
    else:
        place = len(raw) // 2 if at == "middle" else 0
        raw[place : place + 20] = b"\0" * 20
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"damaged|not the published|published file"):
        list(read_blocks(Part(path, "text", SHA256)))


# From the hub, by way of `datasets`.


class Rows(list):
    def iter(self, batch_size):
        for k in range(0, len(self), batch_size):
            yield {"text": self[k : k + batch_size]}


def hub_with(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))


def test_wikitext_of_the_hub_is_the_published_one(tmp_path, monkeypatch, data_dir):
    """The hub holds a row a line, in which blank lines are empty and others keep their end."""
    asked = []

    def load(name, config):
        asked.append((name, config))
        lines = {
            split: (data_dir / "wikitext-2" / f"{split}.txt").read_text().split("\n")[:-1]
            for split in ("train", "valid", "test")
        }
        rows = {s: Rows(f"{x}\n" if x.strip() else "" for x in found) for s, found in lines.items()}
        return {"validation": rows.pop("valid")} | rows

    hub_with(monkeypatch, load)
    source = corpus.CORPORA["wikitext-2"]
    config = DataConfig(corpus="wikitext-2", data_dir=str(tmp_path))
    parts = corpus.find_named(config, source, "whitespace").parts
    assert asked == [("Salesforce/wikitext", "wikitext-2-v1")]
    for split, (part,) in parts.items():
        assert part.path == tmp_path / "wikitext-2" / f"{split}.txt"
        assert part.path.read_bytes() == (data_dir / "wikitext-2" / part.path.name).read_bytes()
    corpus.find_named(config, source, "whitespace")
    assert len(asked) == 1  # it is in the folder now


def test_another_text_of_the_hub_is_refused(tmp_path, monkeypatch):
    def load(name, config):
        return {split: Rows(["ab"]) for split in ("train", "validation", "test")}

    hub_with(monkeypatch, load)
    digest = "sha256:" + hashlib.sha256(b"ababab").hexdigest()
    export_hub(Hub("x/y"), {"all": tmp_path / "text"}, {"all": digest}, None)
    assert (tmp_path / "text").read_bytes() == b"ababab"
    with pytest.raises(ValueError, match=r"x/y: the all text has sha256"):
        export_hub(Hub("x/y"), {"all": tmp_path / "other"}, {"all": SHA256}, None)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_a_hub_out_of_reach_is_said(tmp_path, monkeypatch):
    def load(name, config):
        raise ConnectionError("Couldn't reach\nthe hub")

    hub_with(monkeypatch, load)
    with pytest.raises(ValueError, match="ConnectionError: Couldn't reach the hub"):
        export_hub(Hub("x/y"), {}, {}, None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets"):
        export_hub(Hub("x/y"), {}, {}, None)


# Corpora by name.


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)


def aim(monkeypatch, name, url, **changes):
    """Let a named corpus be fetched from elsewhere."""
    source = corpus.CORPORA[name]
    remote = replace(source.remote, url=url, **changes.pop("remote", {}))
    monkeypatch.setitem(corpus.CORPORA, name, replace(source, remote=remote, **changes))


@pytest.mark.usefixtures("no_hub")
def test_a_named_corpus_is_fetched_and_read_in_its_archive(server, tmp_path, monkeypatch):
    text = "".join(f"{k} of a text without line ends " for k in range(2000)).encode()
    raw = io.BytesIO()
    write_zip(raw, [("text8", text)])
    monkeypatch.setattr(sys.modules[__name__], "BODY", raw.getvalue())
    digest = "sha1:" + hashlib.sha1(raw.getvalue()).hexdigest()
    aim(
        monkeypatch,
        "text8",
        f"{server}/good",
        remote={"digest": digest, "size": len(raw.getvalue())},
        digests={"all": "sha1:" + hashlib.sha1(text).hexdigest()},
        cut=(50_000, 2_000),
    )
    config = DataConfig(corpus="text8", data_dir=str(tmp_path), cache_dir=str(tmp_path / "c"))
    found = load_corpus(config)
    assert {split: len(ids) for split, ids in found.splits.items()} == {
        "train": 50_001,
        "valid": 2_001,
        "test": len(text) - 52_000 + 1,  # each with the <eos> at its end
    }
    assert [p.name for p in tmp_path.iterdir()] == ["text8.zip"]
    monkeypatch.setattr(corpus, "STREAM_BYTES", 0)
    assert load_corpus(config).sha256 == found.sha256
    valid = found.vocabulary.decode(found.splits["valid"][:-1])
    assert valid.encode() == text[50_000:52_000]


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["text8", "enwik8", "wikitext-2", "wikitext-103"])
def test_without_a_network_one_line_says_what_to_do(server, tmp_path, monkeypatch, name):
    aim(monkeypatch, name, f"{server}/403")
    done = call("train", f"--corpus={name}", f"--data_dir={tmp_path}", f"--run={tmp_path}/run")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    remote = corpus.CORPORA[name].remote
    for words in (
        f"{server}/403: it answers 403 Forbidden",
        f"put it at {tmp_path / corpus.CORPORA[name].target} ({remote.size:,} bytes",
        remote.digest.split(":")[1],
        "" if name == "enwik8" else "needs the package datasets",
    ):
        assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ptb", "ptb-char"])
def test_ptb_is_not_fetched(tmp_path, name):
    with pytest.raises(ValueError, match=r"LDC and is not fetched: bring .*ptb\.train\.txt"):
        load_corpus(DataConfig(corpus=name, data_dir=str(tmp_path)))
