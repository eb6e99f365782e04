"""One checkpoint to the disk: ResNet-20, batch 256, 4,096 CIFAR-10 images, one thread, all leaves.

    STRATASCOPE_DATA=… python benchmarks/extraction.py [--rounds 3] [--images 4096]

Each case is a process of its own, rounds are interleaved. The bare forward passes are measured in every process just
before the case, so a ratio compares two numbers of the same process. captum, nnsight and torchextractor are measured
where they are installed (`pip install captum nnsight==0.8.1 torchextractor==0.3.0`). Without the CIFAR-10 files the
images are noise, and the results say so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, folder_bytes, in_own_process, interleaved, measured, summary, write_results

BATCH = 256
OURS: dict[str, dict[str, Any]] = {
    "pooled": {"statistics": []},
    "pooled, moments, Gram, top examples": {"statistics": ["moments", "top", "covariance"]},
    "pooled, all default statistics": {},
    "full, codec none": {"keep": ["full"], "statistics": [], "codec": "none"},
    "full, codec zstd": {"keep": ["full"], "statistics": []},
}
PEERS = (
    "hooks, numpy.save, pooled",
    "hooks, numpy.save, full",
    "captum, full",
    "nnsight, pooled",
    "torchextractor, pooled",
)
ALONE = "numpy.save alone, full"


def images(count: int) -> tuple[Any, Any, str]:
    """Normalised images (sample, 3, 32, 32), targets, and what they are."""
    import numpy as np

    from stratascope.errors import StratascopeError
    from stratascope.storage.datasets import load_dataset

    try:
        data = load_dataset("cifar10", split="train")
    except StratascopeError:
        generator = np.random.default_rng(0)
        return generator.normal(size=(count, 3, 32, 32)).astype("float32"), np.arange(count) % 10, "noise"
    raw = np.asarray(data.inputs[:count]).astype("float32") / 255
    mean = np.array([0.4914, 0.4822, 0.4465], "float32").reshape(1, 3, 1, 1)
    std = np.array([0.2470, 0.2435, 0.2616], "float32").reshape(1, 3, 1, 1)
    return (raw - mean) / std, np.asarray(data.targets[:count]), "CIFAR-10"


def one_case(case: str, count: int) -> dict[str, Any]:
    """Forward passes alone, then the case, in this process."""
    import torch

    from stratascope.tasks.models import cifar_resnet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, targets, _ = images(count)
    network = cifar_resnet(20).eval()
    batches = torch.from_numpy(inputs)

    def forward() -> None:
        with torch.inference_mode():
            for start in range(0, count, BATCH):
                network(batches[start : start + BATCH])

    forward()
    bare = min(measured(forward)["seconds"] for _ in range(2))
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=WORK))
    try:
        work = {**dict.fromkeys(OURS, ours), ALONE: save_alone}.get(case, peer)
        found = measured(lambda: work(case, network, inputs, targets, folder))
        return {**found, "forward_seconds": bare, "ratio": found["seconds"] / bare, "bytes": folder_bytes(folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ours(case: str, network: Any, inputs: Any, targets: Any, folder: Path) -> None:
    """The capture unit, from an open store to its manifest."""
    import numpy as np

    from stratascope.storage.model_spec import ModelSpec
    from stratascope.storage.probes import Probe
    from stratascope.storage.store import Store
    from stratascope.storage.units import Unit
    from stratascope.tasks.capture.extract import extract
    from stratascope.tasks.capture.spec import CaptureSpec

    probe = Probe("test", "test", inputs, targets, np.arange(len(inputs)), (), "digest")
    store = Store.open(folder / "store", create=True)
    spec = CaptureSpec(batch_size=BATCH, **OURS[case])
    with store.stage(Unit("checkpoint", "run", 0, "capture"), "identity", {}) as staged:
        staged.summary = extract(network, probe, None, [], spec, ModelSpec(factory="made:here"), staged)
        staged.commit()


def leaves_of(network: Any) -> list[str]:
    return [name for name, module in network.named_modules() if name and not list(module.children())]


def pooled(value: Any) -> Any:
    return value.flatten(2).mean(2) if value.ndim == 4 else value


def save(folder: Path, found: dict[str, list[Any]]) -> None:
    """One `.npy` a layer, on the disk when it returns."""
    import numpy as np

    for name, parts in found.items():
        with open(folder / f"{name}.npy", "wb") as stream:
            np.save(stream, np.concatenate(parts))
            stream.flush()
            os.fsync(stream.fileno())


def save_alone(case: str, network: Any, inputs: Any, targets: Any, folder: Path) -> None:
    """The arrays that `full` keeps, saved batch by batch; the forward that made them is taken off by the caller."""
    hooks(network, inputs, folder, lambda value: value, by_batch=True)


def peer(case: str, network: Any, inputs: Any, targets: Any, folder: Path) -> None:
    if case.startswith("hooks"):
        hooks(
            network, inputs, folder, pooled if "pooled" in case else lambda value: value, by_batch="full" in case
        )
    elif case.startswith("captum"):
        with_captum(network, inputs, targets, folder)
    elif case.startswith("nnsight"):
        with_nnsight(network, inputs, folder)
    else:
        with_torchextractor(network, inputs, folder)


def hooks(network: Any, inputs: Any, folder: Path, reduce: Any, *, by_batch: bool) -> None:
    """Plain hooks: the lower bound. Whole layers are saved batch by batch, or they would not fit the memory."""
    import torch

    batch: dict[str, Any] = {}
    kept: dict[str, list[Any]] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, arguments, output, name=name: batch.__setitem__(name, reduce(output).numpy())
        )
        for name in leaves_of(network)
    ]
    with torch.inference_mode():
        for start in range(0, len(inputs), BATCH):
            network(torch.from_numpy(inputs[start : start + BATCH]))
            if by_batch:
                save(folder, {f"{name}-{start}": [value] for name, value in batch.items()})
            else:
                for name, value in batch.items():
                    kept.setdefault(name, []).append(value)
    save(folder, kept)
    for handle in handles:
        handle.remove()


def with_captum(network: Any, inputs: Any, targets: Any, folder: Path) -> None:
    import torch
    from captum._utils.av import AV
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets))
    AV.generate_dataset_activations(
        str(folder), network, "resnet", leaves_of(network), DataLoader(data, batch_size=BATCH), identifier="one",
        load_from_disk=False, return_activations=False,
    )  # fmt: skip


def with_nnsight(network: Any, inputs: Any, folder: Path) -> None:
    import torch
    from nnsight import NNsight

    wrapped = NNsight(network)
    names = leaves_of(network)
    kept: dict[str, list[Any]] = {name: [] for name in names}
    with torch.no_grad():
        for start in range(0, len(inputs), BATCH):
            found: list[Any] = []
            with wrapped.trace(torch.from_numpy(inputs[start : start + BATCH])):
                saved = list().save()  # noqa: C408 - nnsight gives the type this method, not the literal
                for name in names:
                    part = wrapped
                    for piece in name.split("."):
                        part = part[int(piece)] if piece.isdigit() else getattr(part, piece)
                    value = part.output
                    saved.append(value.flatten(2).mean(2) if value.ndim == 4 else value)
            found = saved
            for name, value in zip(names, found, strict=True):
                kept[name].append(value.numpy())
    save(folder, kept)


def with_torchextractor(network: Any, inputs: Any, folder: Path) -> None:
    import torch
    import torchextractor

    wrapped = torchextractor.Extractor(network, leaves_of(network))
    kept: dict[str, list[Any]] = {}
    with torch.inference_mode():
        for start in range(0, len(inputs), BATCH):
            _, found = wrapped(torch.from_numpy(inputs[start : start + BATCH]))
            for name, value in found.items():
                kept.setdefault(name, []).append(pooled(value).numpy())
    save(folder, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--case")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peers installed")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one_case(options.case, options.images)))
        return
    cases = [*OURS, ALONE, *PEERS]
    runs = interleaved(
        options.rounds,
        cases,
        lambda case: in_own_process(
            __file__, "--case", case, "--images", options.images,
            python=options.python if case.split(",")[0] in ("captum", "nnsight", "torchextractor") else sys.executable,
        ),
    )  # fmt: skip
    table = {
        case: {
            "ratio to the forward passes": summary(found, "ratio"),
            "seconds": summary(found),
            "forward seconds": summary(found, "forward_seconds"),
            "megabytes on disk": found[0]["bytes"] / 1e6,
            "peak megabytes": statistics.median(item["peak_bytes"] for item in found) / 1e6,
        }
        for case, found in runs.items()
    }

    def beyond(case: str) -> float:
        return statistics.median(item["seconds"] - item["forward_seconds"] for item in runs[case])

    against_save = {case: beyond(case) / beyond(ALONE) for case in OURS if case.startswith("full")}
    write_results(
        "extraction",
        {
            "setting": f"ResNet-20, batch {BATCH}, {options.images} images ({images(1)[2]}), one thread, all leaves",
            "rounds": options.rounds,
            "cases": table,
            "time beyond the forward, against numpy.save with fsync of the same arrays": against_save,
        },
    )


if __name__ == "__main__":
    main()
