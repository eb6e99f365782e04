"""Whatever a file is, reading it ends in weights or in one clear sentence that names it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed
from safetensors.torch import save_file

from stratascope.errors import CheckpointError, DeferredCheckpointError, UnsafeCheckpointError
from stratascope.storage.checkpoint_files import CheckpointFile
from stratascope.tasks.intake.facts import checkpoint_facts, load_network
from stratascope.tasks.intake.load import load_weights


class CreatesFile:
    """What a hostile pickle does: it names a function that unpickling calls."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def complaint(pair) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_weights(*pair)
    assert type(caught.value) in (CheckpointError, UnsafeCheckpointError)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, open_source, old, nested):
    made, path = tmp_path / "made", tmp_path / "step-1.pt"
    evil = CreatesFile(made)
    torch.save({"model": {"w": torch.ones(2)}, "extra": evil} if nested else evil, path, _use_new_zipfile_serialization=not old)  # fmt: skip
    with pytest.raises(UnsafeCheckpointError, match=r"step-1\.pt holds more than weights"):
        load_weights(*open_source(path))
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists(), "the file was not hostile after all"


def test_a_plain_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, open_source):
    made, path = tmp_path / "made", tmp_path / "step-1.pt"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"w": CreatesFile(made)}, protocol=protocol))
        assert "step-1.pt" in complaint(open_source(path))
        assert not made.exists()


def test_a_hostile_description_of_a_distributed_checkpoint_is_refused_and_does_not_run(
    tmp_path: Path, open_source
):
    made, path = tmp_path / "made", tmp_path / "step-1"
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"x")
    (path / ".metadata").write_bytes(pickle.dumps(CreatesFile(made)))
    with pytest.raises(UnsafeCheckpointError, match=r"step-1/\.metadata .*posix\.mkdir"):
        load_weights(*open_source(path))
    assert not made.exists()
    pickle.loads((path / ".metadata").read_bytes())
    assert made.exists(), "the description was not hostile after all"


def rewrite(path: Path, change) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def test_a_distributed_checkpoint_cannot_reach_outside_its_folder_nor_fill_the_memory(tmp_path: Path, open_source):
    path = tmp_path / "step-1"
    distributed.save({"w": torch.ones(8)}, checkpoint_id=path, no_dist=True)
    shutil.copytree(path, tmp_path / "outside")
    shutil.copytree(path, tmp_path / "huge")

    def outside(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = "../step-1/__0_0.distcp"

    def huge(metadata):
        metadata.state_dict_metadata["w"].size = torch.Size([1 << 40])

    rewrite(tmp_path / "outside", outside)
    rewrite(tmp_path / "huge", huge)
    assert "'../step-1/__0_0.distcp'; expected one beside it" in complaint(open_source(tmp_path / "outside"))
    assert "claims tensors of 4,398,046,511,104" in complaint(open_source(tmp_path / "huge"))


def test_a_damaged_distributed_checkpoint_is_named(tmp_path: Path, open_source):
    path = tmp_path / "step-1"
    distributed.save({"w": torch.ones(300)}, checkpoint_id=path, no_dist=True)
    pair = open_source(path)
    (data,) = path.glob("*.distcp")
    whole, description = data.read_bytes(), (path / ".metadata").read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    assert "step-1 cannot be read" in complaint(pair)
    data.write_bytes(whole)
    (path / ".metadata").write_bytes(description[: len(description) // 2])
    assert "step-1/.metadata cannot be read" in complaint(pair)
    (path / ".metadata").write_bytes(description)
    assert torch.equal(load_weights(*pair).tensors["w"], torch.ones(300))
    data.unlink()
    assert "__0_0.distcp is missing" in complaint(pair)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, open_source):
    path = tmp_path / "step-1.pt"
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        archive.writestr("archive/data/9", bytes(200 << 20))
    assert path.stat().st_size < 1 << 20
    assert "refused as a bomb" in complaint(open_source(path))


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path, open_source):
    path = tmp_path / "step-1.pt"
    for old in (True, False):
        torch.save({"w": torch.ones(1).expand(1 << 36)}, path, _use_new_zipfile_serialization=not old)
        assert "'w' claims the shape (68719476736,), 274,877,906,944 bytes, and has 4" in complaint(
            open_source(path)
        )


def test_an_old_file_that_claims_an_absurd_storage_is_no_whole_file(tmp_path: Path, open_source):
    path = tmp_path / "step-1.pt"
    torch.save({"w": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    place = data.index(b"cpu") + 3
    assert b"K\x07" in data[place : place + 8]
    path.write_bytes(data[:place] + data[place:].replace(b"K\x07", b"\x8a\x06\x00\x00\x00\x00\x00\x10", 1))
    assert "step-1.pt is no whole file of torch.save" in complaint(open_source(path))


@pytest.mark.parametrize(
    "data",
    [
        safetensors({"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}, bytes(8)),
        safetensors({"w": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        safetensors({}, length=1 << 62), safetensors(b"[1, 2]"), safetensors(b"{" * 50_000), b"\x00" * 5,
        safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(80)),
    ],
)  # fmt: skip
def test_a_header_of_safetensors_that_lies_is_refused(tmp_path: Path, open_source, data: bytes):
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(data)
    assert "step-1.safetensors is no whole safetensors file" in complaint(open_source(path))


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "old.pt"])
def test_a_file_cut_anywhere_is_named_and_never_half_read(tmp_path: Path, weights, open_source, suffix: str):
    path = tmp_path / f"step-1.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization="old" not in suffix)
    whole = path.read_bytes()
    pair = open_source(path)
    complaints = []
    for length in [0, 1, 7, 8, 9, *range(16, len(whole), max(1, len(whole) // 40)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        try:
            found = load_weights(*pair).tensors
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            # Bytes behind the last one that counts may go.
            assert all(torch.equal(found[name], weights[name]) for name in weights)
            assert length > 0.9 * len(whole)
    assert len(complaints) > 30
    assert all(path.name in text for text in complaints)


@pytest.mark.parametrize("name", ["step-1.pt", "step-1.safetensors", "step-1.ckpt", "step-1.pt2", "step-1.bin"])
@pytest.mark.parametrize(
    "data",
    [b"hello, this is a log\n", b"", b"PK\x03\x04 nearly", b"\x80\x02.", b"\x80\x04\x95", b"{}", b"\x00" * 64],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, open_source, name, data, trusted):
    path = tmp_path / name
    path.write_bytes(data)
    assert name in complaint(open_source(path, allow_pickle=trusted))


@pytest.mark.parametrize(
    "content", [3, "text", [torch.ones(2)], {}, {"a": 1}, torch.ones(3), None, {"a": {"b": {}}}]
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, open_source, content):
    path = tmp_path / "step-1.pt"
    torch.save(content, path)
    assert "step-1.pt holds" in complaint(open_source(path))


def test_missing_files_folders_links_and_pipes_are_named(tmp_path: Path, open_source):
    _, run = open_source_for_nothing(tmp_path, open_source)
    for name, make, words in (
        ("gone.pt", lambda path: None, "gone.pt is missing"),
        ("folder.pt", lambda path: path.mkdir(), "folder.pt is a folder; expected a file"),
        ("loop.pt", lambda path: path.symlink_to(path), "loop.pt is missing, a link to nothing"),
        ("dangling.pt", lambda path: path.symlink_to(tmp_path / "nowhere"), "a link to nothing"),
        ("pipe.pt", lambda path: os.mkfifo(path), "pipe.pt is no ordinary file"),
    ):
        path = tmp_path / name
        make(path)
        assert words in complaint((CheckpointFile("run", 0, path, "torch", (path,)), run))


def open_source_for_nothing(tmp_path: Path, open_source):
    path = tmp_path / "any.pt"
    torch.save({"w": torch.ones(1)}, path)
    return open_source(path)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, weights, factory_folder, open_source):
    for name in ("step-1.pt", "step-2.safetensors"):
        path = tmp_path / name
        save_file(weights, path) if "safe" in name else torch.save(weights, path)
        pair = open_source(path)
        path.chmod(0)
        root = os.geteuid() == 0
        if root:
            for folder in (tmp_path, *tmp_path.parents[:2]):
                folder.chmod(0o755)
            os.seteuid(65534)
        try:
            facts = checkpoint_facts(*pair, factory_folder)
        finally:
            if root:
                os.seteuid(0)
        assert facts["status"] == "quarantined"
        assert name in facts["reason"]
        assert "ermission denied" in facts["reason"]


@pytest.mark.parametrize(
    "index",
    [
        b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"w": "../other.safetensors"}}',
        b'{"weight_map": {"w": "gone.safetensors"}}', b'{"weight_map": {"v": "a.safetensors", "w": "a.safetensors"}}',
        b"[" * 100_000, b'{"weight_map": {"w": 5}}',
    ],
)  # fmt: skip
def test_an_index_of_shards_that_lies_is_named(tmp_path: Path, open_source, index: bytes):
    folder = tmp_path / "step-1"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "a.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(index)
    text = complaint(open_source(folder))
    assert "step-1" in text or "model.safetensors.index.json" in text


class ChangesFile:
    """Stands for a writer that is still at work: unpickling it appends to the file that is being read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (_append, (str(self.path),))


def _append(path: str) -> int:
    with open(path, "ab") as stream:
        return stream.write(b"more")


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_audit(
    tmp_path: Path, factory_folder, open_source
):
    path = tmp_path / "step-1.pt"
    stream = io.BytesIO()
    torch.save({"model": {"w": torch.ones(2)}, "writer": ChangesFile(path)}, stream)
    path.write_bytes(stream.getvalue())
    pair = open_source(path, allow_pickle=True)
    with pytest.raises(DeferredCheckpointError, match=r"step-1\.pt changed while it was read"):
        checkpoint_facts(*pair, factory_folder)
    # A file that its writer replaces by something broken is deferred too, not quarantined.
    torch.save(ChangesFile(path), path)
    with pytest.raises(DeferredCheckpointError):
        checkpoint_facts(*pair, factory_folder)


def test_code_in_a_trusted_file_that_fails_is_told_in_a_sentence(tmp_path: Path, open_source):
    class Exits:
        def __reduce__(self):
            return (exit, (3,))

    path = tmp_path / "step-1.pt"
    torch.save({"w": Exits()}, path)
    assert "step-1.pt cannot be unpickled" in complaint(open_source(path, allow_pickle=True))


def test_a_network_of_another_shape_is_told_with_both_shapes(tmp_path: Path, weights, factory_folder, open_source):
    path = tmp_path / "step-1.pt"
    torch.save(weights, path)
    pair = open_source(path, args={"width": 9})
    facts = checkpoint_facts(*pair, factory_folder)
    assert facts["status"] == "quarantined"
    assert (
        "'features.0.weight' has shape (6, 4), the network expects (9, 4) (6 more do not fit)" in facts["reason"]
    )
    with pytest.raises(CheckpointError, match=r"step-1\.pt does not fit"):
        load_network(*pair, factory_folder)


def test_missing_parameters_quarantine_with_the_nearest_name(tmp_path: Path, weights, factory_folder, open_source):
    path = tmp_path / "step-1.pt"
    torch.save({name.replace("head.weight", "heads.weight"): value for name, value in weights.items()}, path)
    facts = checkpoint_facts(*open_source(path), factory_folder)
    assert facts["status"] == "quarantined"
    assert "1 of 10 tensors are missing, first 'head.weight'; it has 'heads.weight'" in facts["reason"]
    del weights["features.1.running_var"]
    torch.save(weights, path)
    assert "running_var" in checkpoint_facts(*open_source(path), factory_folder)["reason"]


def test_buffers_that_the_factory_sets_may_be_missing_and_extra_tensors_are_told(
    tmp_path: Path, network, weights, factory_folder, open_source
):
    path = tmp_path / "step-1.pt"
    kept = {
        name: value for name, value in weights.items() if name not in ("features.1.num_batches_tracked", "mask")
    }
    torch.save(kept | {"masks": torch.ones(4), "total_ops": torch.ones(1)}, path)
    file, run = open_source(path)
    facts = checkpoint_facts(file, run, factory_folder)
    assert facts["status"] == "ok"
    assert facts["missing_keys"] == ["features.1.num_batches_tracked", "mask"]
    assert facts["unexpected_keys"] == ["masks (near mask)", "total_ops"]
    batch = torch.randn(5, 4)
    assert torch.equal(load_network(file, run, factory_folder)(batch), network(batch))


def test_a_missing_buffer_that_is_random_quarantines(tmp_path: Path, weights, factory_folder, open_source):
    path = tmp_path / "step-1.pt"
    torch.save(weights, path)
    facts = checkpoint_facts(*open_source(path, factory="intake_network:Noisy"), factory_folder)
    assert facts["status"] == "quarantined"
    assert "lacks the buffer 'frequencies'" in facts["reason"]


def test_weights_that_are_not_finite_are_counted_and_not_quarantined(
    tmp_path: Path, weights, factory_folder, open_source
):
    weights["head.weight"][0, :2] = float("nan")
    weights["head.bias"][1] = float("inf")
    path = tmp_path / "step-1.safetensors"
    save_file(weights, path)
    facts = checkpoint_facts(*open_source(path), factory_folder)
    assert (facts["status"], facts["non_finite_count"]) == ("ok", 3)
    finite = weights["head.weight"].flatten()[2:].double()
    assert facts["tensors"]["head.weight"]["norm"] == pytest.approx(float(finite.norm()))
    json.dumps(facts, allow_nan=False)


def test_tensors_that_are_sparse_or_quantized_are_named(tmp_path: Path, open_source):
    path = tmp_path / "step-1.pt"
    for tensor in (torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)):
        torch.save({"w": tensor}, path)
        assert "'w' is" in complaint(open_source(path))
