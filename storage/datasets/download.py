"""Public data sets: where they lie, what their bytes are, and how they come into the data folder.

A file is kept only where its digest is the published one. `STRATASCOPE_DATA_MIRROR` names one address that stands in
for all public ones; below it, files lie as in the data folder.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from stratascope.errors import ConfigurationError, ProbeError, did_you_mean
from stratascope.storage.datasets import SOURCES, data_folder
from stratascope.storage.datasets.cifar import RECORD

MIRROR = "STRATASCOPE_DATA_MIRROR"
_TIMEOUT = 30
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PublicFile:
    """One published file."""

    path: str
    """Where it lies in the data folder, and below a mirror."""
    digest: str
    """`sha256:…`, or `md5:…` where that is what was published."""
    at_most: int
    """Bytes after which a download is given up: what is longer is something else."""
    addresses: tuple[str, ...]
    """Where it is published, in the order in which they are tried."""
    members: dict[str, int] = field(default_factory=dict)
    """For an archive: which members are kept, beside the archive's place, and how many bytes each has."""

    def results(self, folder: Path) -> list[Path]:
        """What is in `folder` once the file is there."""
        place = folder / self.path
        return [place.parent / Path(name).name for name in self.members] or [place]


def _below(bases: tuple[str, ...], folder: str, entries: dict[str, tuple[str, int]]) -> tuple[PublicFile, ...]:
    return tuple(
        PublicFile(f"{folder}/{name}", f"sha256:{digest}", size, tuple(f"{base}/{name}" for base in bases))
        for name, (digest, size) in entries.items()
    )


# fmt: off
_MNIST = {
    "train-images-idx3-ubyte.gz": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
    "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
    "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
    "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
}
_FASHION = {
    "train-images-idx3-ubyte.gz": ("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880),
    "train-labels-idx1-ubyte.gz": ("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
    "t10k-images-idx3-ubyte.gz": ("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102),
    "t10k-labels-idx1-ubyte.gz": ("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
}
_MULTI30K = {
    "train.en.gz": ("d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f", 568_929),
    "train.de.gz": ("726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6", 637_044),
    "val.en.gz": ("14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28", 21_650),
    "val.de.gz": ("f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a", 24_681),
    "test_2016_flickr.en.gz": ("611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9", 21_077),
    "test_2016_flickr.de.gz": ("9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8", 22_890),
    "test_2017_flickr.en.gz": ("76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074", 19_138),
    "test_2017_flickr.de.gz": ("a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee", 21_471),
}
_SPEEDS = {
    "los_speed.csv": ("7b732d86ae32b2930595becba28aff39dacbfb2197e250fc0332e1744ce2cbf4", 3_402_125),
    "los_adj.csv": ("7a6eb41e10677992b5af50f5ab187c6c05c5c3a92cb973950cfddbf857361e76", 111_686),
}
# fmt: on
_GITHUB = "https://raw.githubusercontent.com"
_TGCN = f"{_GITHUB}/lehaifeng/T-GCN/master"
_DCRNN = f"{_GITHUB}/liyaguang/DCRNN/master/data/sensor_graph"
_CIFAR_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")

PUBLIC: dict[str, tuple[PublicFile, ...]] = {
    "mnist": _below(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
        "mnist",
        _MNIST,
    ),
    "fashion_mnist": _below(
        (
            f"{_GITHUB}/zalandoresearch/fashion-mnist/master/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        ),
        "fashion-mnist",
        _FASHION,
    ),
    "cifar10": (
        PublicFile(
            "cifar10/cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            200_000_000,
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            {f"cifar-10-batches-bin/{name}": 10_000 * RECORD for name in _CIFAR_BATCHES},
        ),
    ),
    "tiny_shakespeare": (
        PublicFile(
            "text/tinyshakespeare.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            1_115_394,
            (f"{_GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        ),
    ),
    "multi30k": _below(
        (f"{_GITHUB}/multi30k/dataset/master/data/task1/raw",),
        "text/multi30k",
        _MULTI30K,
    ),
    "metr_la_week": (
        *_below(
            (f"{_TGCN}/T-GCN/T-GCN-PyTorch/data", f"{_TGCN}/T-GCN/T-GCN-TensorFlow/data", f"{_TGCN}/data"),
            "traffic-los",
            _SPEEDS,
        ),
        PublicFile(
            "traffic-los/graph_sensor_locations.csv",
            "sha256:eb8ea96e07358b45d0e4ba3b89c2673fa20c54af50150249e627389e749ade6f",
            6_341,
            (f"{_DCRNN}/graph_sensor_locations.csv",),
        ),
    ),
}


def fetch(name: str, folder: Path | None = None) -> list[Path]:
    """The files of the public data set `name` in `folder` (default: the data folder), fetched where they are missing.

    Raises ConfigurationError for a name without public files, ProbeError where no address has the right bytes.
    """
    if name not in PUBLIC:
        known = name in SOURCES
        reason = "is made up here, published nowhere as it is used here, or your own" if known else "is not known"
        raise ConfigurationError(
            f"data set {name!r} {reason}; `data get` fetches {', '.join(PUBLIC)}." + did_you_mean(name, PUBLIC)
        )
    folder = data_folder() if folder is None else folder
    found: list[Path] = []
    for file in PUBLIC[name]:
        if not _is_here(file, folder):
            try:
                _bring(name, file, folder)
            except OSError as error:
                raise ProbeError(
                    f"data set {name!r} cannot be written to {folder}: {error.strerror or error}. Set "
                    "STRATASCOPE_DATA to a folder of yours with room in it."
                ) from None
        found += file.results(folder)
    return found


def _is_here(file: PublicFile, folder: Path) -> bool:
    import pooch

    paths = file.results(folder)
    if not all(path.is_file() for path in paths):
        return False
    if file.members:
        return [path.stat().st_size for path in paths] == list(file.members.values())
    algorithm, _, digest = file.digest.partition(":")
    return pooch.file_hash(str(paths[0]), alg=algorithm) == digest


def _bring(name: str, file: PublicFile, folder: Path) -> None:
    """Fetch `file` aside, check it, and only then move it to its place."""
    with _workplace(folder) as aside:
        fetched = _download(name, file, aside)
        pieces = _unpack(name, fetched, file.members, aside) if file.members else [fetched]
        for piece, target in zip(pieces, file.results(folder), strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(piece, target)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder beside the data that is gone at the end, as is the data folder where nothing came into it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as aside:
            yield Path(aside)
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _addresses(file: PublicFile) -> tuple[str, ...]:
    mirror = os.environ.get(MIRROR, "").strip()
    if not mirror:
        return file.addresses
    if not mirror.startswith(("https://", "http://")):
        raise ConfigurationError(f"{MIRROR} is {mirror!r}; it must begin with https:// or http://.")
    return (f"{mirror.rstrip('/')}/{file.path}",)


def _download(name: str, file: PublicFile, aside: Path) -> Path:
    import pooch
    from requests.exceptions import RequestException

    # pooch tells everything it does, and with each address that fails a warning more.
    pooch.get_logger().setLevel("ERROR")
    last = Path(file.path).name
    failures = []
    for address in _addresses(file):
        try:
            return Path(
                pooch.retrieve(
                    address, known_hash=file.digest, fname=last, path=aside, downloader=_downloader(file.at_most)
                )
            )
        except RequestException as error:
            failures.append(f"{address} {_reason(error)}")
        except ValueError:
            failures.append(f"{address} gives other bytes than the published ones ({file.digest[:14]}…)")
    raise ProbeError(
        f"data set {name!r}: {file.path} could not be fetched, and nothing of it was kept: {'; '.join(failures)}. "
        f"Try again later, or set {MIRROR} to an address that has the file."
    )


def _reason(error: Exception) -> str:
    from requests import exceptions

    response = getattr(error, "response", None)
    if response is not None:
        return f"answers {response.status_code}"
    if isinstance(error, exceptions.Timeout):
        return f"did not answer within {_TIMEOUT} s"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "broke off in the middle"
    return "cannot be reached" if isinstance(error, exceptions.ConnectionError) else f"failed: {error}"


def _downloader(at_most: int) -> Any:
    """What pooch calls for the transfer: over HTTP, with a bar on a terminal, up to `at_most` bytes."""
    import pooch

    # Without this header some servers send a .gz file as a compressed transfer, which arrives unpacked.
    transfer = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=_BLOCK,
        timeout=_TIMEOUT,
        headers={"Accept-Encoding": "identity"},
    )

    def download(address: str, output: str, source: Any) -> None:
        with open(output, "wb") as stream:
            transfer(address, _Bounded(stream, at_most), source)

    return download


class _Bounded:
    """A stream that takes so many bytes and no more."""

    def __init__(self, stream: BinaryIO, at_most: int) -> None:
        self._stream, self._left = stream, at_most

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("longer than the published file")
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _unpack(name: str, archive: Path, members: dict[str, int], aside: Path) -> list[Path]:
    """The wanted `members` of a tar archive: plain files of the right size, by their last name alone."""
    found: dict[str, Path] = {}
    try:
        with tarfile.open(archive, mode="r:gz") as content:
            for member in content:
                stream = content.extractfile(member) if member.isreg() and member.name in members else None
                if stream is None:
                    continue
                if member.size != members[member.name]:
                    raise ProbeError(
                        f"data set {name!r}: {member.name} in {archive.name} has {member.size} bytes, not "
                        f"{members[member.name]}; nothing of it was kept."
                    )
                found[member.name] = aside / f"unpacked-{Path(member.name).name}"
                with open(found[member.name], "wb") as target:
                    while block := stream.read(_BLOCK):
                        target.write(block)
    except (tarfile.TarError, EOFError) as error:
        raise ProbeError(f"data set {name!r}: {archive.name} is damaged: {error}; nothing was kept.") from None
    missing = sorted(members.keys() - found.keys())
    if missing:
        raise ProbeError(f"data set {name!r}: {archive.name} lacks {missing[0]}; nothing of it was kept.")
    return [found[member] for member in members]
