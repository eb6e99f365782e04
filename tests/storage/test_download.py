"""`data get` against a real server on loopback: good, corrupted, absent and interrupted files."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from stratascope.errors import ConfigurationError, ProbeError
from stratascope.storage.datasets import data_folder, download, load_dataset
from stratascope.storage.datasets.cifar import RECORD
from stratascope.storage.datasets.download import PUBLIC, PublicFile, fetch

TEXT = b"To be, or not to be: that is the question.\n" * 500


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]
    cut: set[str]

    def do_GET(self):
        self.asked.append(self.path)
        if self.path not in self.cut:
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    def log_message(self, *arguments):
        pass


class Mirror:
    """A folder that is served on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        asked: list[str] = []
        cut: set[str] = set()
        self.asked, self.cut = asked, cut
        served = type("Served", (Handler,), {"asked": asked, "cut": cut})
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), lambda *arguments: served(*arguments, directory=str(folder))
        )
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, path: str, data: bytes) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(data)


@contextmanager
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder.mkdir(exist_ok=True)
    mirror = Mirror(folder)
    try:
        yield mirror
    finally:
        mirror.server.shutdown()
        mirror.server.server_close()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serve(tmp_path / "mirror", monkeypatch) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, the mirror in the place of all addresses, and a small text as a public file."""
    monkeypatch.setenv("STRATASCOPE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("STRATASCOPE_DATA_MIRROR", mirror.address)
    monkeypatch.setitem(PUBLIC, "tiny_shakespeare", (public_text(),))
    return tmp_path / "data"


def public_text(*addresses: str) -> PublicFile:
    digest = f"sha256:{hashlib.sha256(TEXT).hexdigest()}"
    return PublicFile("text/tinyshakespeare.txt", digest, len(TEXT), addresses)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_a_good_file_is_kept_where_its_loader_reads_it_and_fetched_once(folder: Path, mirror: Mirror):
    mirror.put("text/tinyshakespeare.txt", TEXT)
    assert fetch("tiny_shakespeare") == [folder / "text" / "tinyshakespeare.txt"]
    assert everything_in(folder) == ["text", "text/tinyshakespeare.txt"]
    assert len(load_dataset("tiny_shakespeare")) > 0
    assert mirror.asked == ["/text/tinyshakespeare.txt"]
    fetch("tiny_shakespeare")
    assert mirror.asked == ["/text/tinyshakespeare.txt"]


def corrupted(mirror: Mirror) -> None:
    data = bytearray(TEXT)
    data[100] ^= 1
    mirror.put("text/tinyshakespeare.txt", bytes(data))


def absent(mirror: Mirror) -> None:
    pass


def interrupted(mirror: Mirror) -> None:
    mirror.put("text/tinyshakespeare.txt", TEXT)
    mirror.cut.add("/text/tinyshakespeare.txt")


def truncated(mirror: Mirror) -> None:
    mirror.put("text/tinyshakespeare.txt", TEXT[:-1])


def endless(mirror: Mirror) -> None:
    mirror.put("text/tinyshakespeare.txt", TEXT * 1000)


def stopped(mirror: Mirror) -> None:
    mirror.server.shutdown()
    mirror.server.server_close()


FAILURES = {
    corrupted: "gives other bytes than the published ones",
    absent: "answers 404",
    interrupted: "broke off in the middle",
    truncated: "gives other bytes",
    endless: "gives other bytes",
    stopped: "cannot be reached",
}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_what_fails_is_told_in_a_sentence_and_leaves_nothing_behind(folder: Path, mirror: Mirror, failure):
    failure(mirror)
    with pytest.raises(ProbeError, match=FAILURES[failure]) as caught:
        fetch("tiny_shakespeare")
    assert f"{mirror.address}/text/tinyshakespeare.txt" in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert not folder.exists()


def test_an_older_file_stays_where_the_new_one_fails_and_is_replaced_where_it_comes(folder: Path, mirror: Mirror):
    corrupted(mirror)
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "tinyshakespeare.txt").write_bytes(b"older")
    with pytest.raises(ProbeError):
        fetch("tiny_shakespeare")
    assert (folder / "text" / "tinyshakespeare.txt").read_bytes() == b"older"
    assert everything_in(folder) == ["text", "text/tinyshakespeare.txt"]
    mirror.put("text/tinyshakespeare.txt", TEXT)
    fetch("tiny_shakespeare")
    assert (folder / "text" / "tinyshakespeare.txt").read_bytes() == TEXT


def test_addresses_are_tried_in_their_order(folder: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STRATASCOPE_DATA_MIRROR")
    mirror.put("wrong", TEXT[::-1])
    mirror.put("cut", TEXT)
    mirror.put("right", TEXT)
    mirror.cut.add("/cut")
    names = ("absent", "wrong", "cut", "right", "never")
    file = public_text(*(f"{mirror.address}/{name}" for name in names))
    monkeypatch.setitem(PUBLIC, "tiny_shakespeare", (file,))
    fetch("tiny_shakespeare")
    assert mirror.asked == ["/absent", "/wrong", "/cut", "/right"]
    assert load_dataset("tiny_shakespeare", length=16).class_names


def test_a_mirror_must_be_an_address(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STRATASCOPE_DATA_MIRROR", "file:///etc")
    with pytest.raises(ConfigurationError, match="https://"):
        fetch("tiny_shakespeare")


def test_a_name_without_public_files_is_refused():
    with pytest.raises(ConfigurationError, match=r"not known.*Did you mean 'mnist'"):
        fetch("mnits")
    with pytest.raises(ConfigurationError, match="published nowhere"):
        fetch("cifar10_jpeg")


def test_a_folder_that_cannot_be_written_is_told(folder: Path, mirror: Mirror):
    mirror.put("text/tinyshakespeare.txt", TEXT)
    folder.write_text("a file in the way")
    with pytest.raises(ProbeError, match="cannot be written"):
        fetch("tiny_shakespeare")


# -- the archive of CIFAR-10 ---------------------------------------------------------------------------------


def cifar_archive(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for entry, data in entries:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def batches(count: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    generator = np.random.default_rng(0)
    entries = []
    for name in PUBLIC["cifar10"][0].members:
        records = generator.integers(0, 256, (count, RECORD), dtype=np.uint8)
        records[:, 0] %= 10
        entries.append((tarfile.TarInfo(name), records.tobytes()))
    return entries


def offer(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, data: bytes, count: int = 4) -> None:
    """Serve `data` as the archive that was published, with batches of `count` images."""
    (published,) = PUBLIC["cifar10"]
    file = PublicFile(
        published.path, f"md5:{hashlib.md5(data).hexdigest()}", len(data), (), dict.fromkeys(published.members, count * RECORD)
    )  # fmt: skip
    monkeypatch.setitem(PUBLIC, "cifar10", (file,))
    mirror.put(published.path, data)


def test_the_batches_of_cifar10_are_unpacked_and_nothing_else_is(folder: Path, mirror: Mirror, monkeypatch):
    hostile = [
        tarfile.TarInfo("../escaped.bin"),
        tarfile.TarInfo("/tmp/escaped.bin"),
        tarfile.TarInfo("data_batch_9.bin"),
    ]
    link = tarfile.TarInfo("cifar-10-batches-bin")
    link.type, link.linkname = tarfile.SYMTYPE, str(folder.parent)
    wanted = batches(4)
    offer(mirror, monkeypatch, cifar_archive([(link, b""), *((entry, b"x") for entry in hostile), *wanted]))
    fetch("cifar10")
    names = sorted(Path(entry.name).name for entry, _ in wanted)
    assert everything_in(folder) == ["cifar10", *(f"cifar10/{name}" for name in names)]
    assert not (folder.parent / "escaped.bin").exists()
    train = load_dataset("cifar10", split="train")
    assert train.inputs.shape == (20, 3, 32, 32)
    np.testing.assert_array_equal(
        train.inputs[:4].reshape(4, -1), np.frombuffer(wanted[0][1], np.uint8).reshape(4, RECORD)[:, 1:]
    )
    asked = list(mirror.asked)
    fetch("cifar10")
    assert mirror.asked == asked
    (folder / "cifar10" / "test_batch.bin").write_bytes(b"cut")
    fetch("cifar10")
    assert len(mirror.asked) == len(asked) + 1
    assert len(load_dataset("cifar10")) == 4


def _symbolic(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return entry


@pytest.mark.parametrize("case", ["a batch of another size", "a batch is missing", "a batch is a link", "cut"])
def test_an_archive_that_is_not_as_expected_leaves_nothing(folder: Path, mirror: Mirror, monkeypatch, case: str):
    entries = batches(4)
    last, data = entries[-1]
    data = {
        "a batch of another size": lambda: cifar_archive([*entries[:-1], (last, data[:-1])]),
        "a batch is missing": lambda: cifar_archive(entries[:-1]),
        "a batch is a link": lambda: cifar_archive([*entries[:-1], (_symbolic(last), b"")]),
        "cut": lambda: cifar_archive(entries)[:-20_000],
    }[case]()
    offer(mirror, monkeypatch, data)
    with pytest.raises(ProbeError, match=r"has \d+ bytes, not|lacks|is damaged"):
        fetch("cifar10")
    assert not folder.exists()


# -- what was published --------------------------------------------------------------------------------------


def test_every_public_file_has_an_address_and_a_digest_and_no_two_share_a_place():
    files = [file for files in PUBLIC.values() for file in files]
    assert len({file.path for file in files}) == len(files)
    for file in files:
        algorithm, _, digest = file.digest.partition(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
        assert file.addresses
        assert all(address.startswith("http") for address in file.addresses)


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"cifar10"}))
def test_the_real_files_have_the_digests_that_are_asked_for(name: str, tmp_path: Path, monkeypatch):
    originals = data_folder()
    if not all((originals / file.path).exists() for file in PUBLIC[name]):
        pytest.skip(f"the files of {name} are not in {originals}: set STRATASCOPE_DATA")
    with serve(originals, monkeypatch) as mirror:
        monkeypatch.setenv("STRATASCOPE_DATA_MIRROR", mirror.address)
        monkeypatch.setenv("STRATASCOPE_DATA", str(tmp_path / "data"))
        fetch(name)
        assert len(mirror.asked) == len(PUBLIC[name])
        fetch(name)
        assert len(mirror.asked) == len(PUBLIC[name])
        for split in ("train", "test"):
            assert len(load_dataset(name, split=split)) > 0


# -- the command line ----------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stratascope", "data", *arguments], capture_output=True, text=True, env=os.environ
    )


def test_the_command_prints_what_it_fetched_and_the_list_tells_what_is_here(folder: Path, mirror: Mirror):
    import json

    originals = PUBLIC["metr_la_week"]
    states = {item["name"]: item for item in json.loads(command("list", "--json").stdout)["data"]}
    assert states["digits"] == {
        "name": "digits",
        "state": "here",
        "splits": ["train", "test", "all"],
        "public": False,
    }
    assert states["mnist"] == {"name": "mnist", "state": "not here", "splits": [], "public": True}
    assert states["npz"]["state"] == "yours to point at"
    failed = command("get", "metr_la_week")
    assert failed.returncode == 2
    assert "answers 404" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert originals[0].path in failed.stderr
    assert not folder.exists()
    (folder / "mnist").mkdir(parents=True)
    for stem in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / "mnist" / f"{stem}.gz").write_bytes(gzip.compress(b""))
    listed = command("list")
    assert listed.returncode == 0
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("mnist")]
    assert line.split() == ["mnist", "here", "test", "yes"]


def test_loading_the_table_of_addresses_asks_nobody():
    assert download.MIRROR == "STRATASCOPE_DATA_MIRROR"
    code = "import sys, stratascope.storage.datasets.download; print({'pooch', 'requests', 'socket'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pooch" not in found
    assert "requests" not in found
