"""Weights come back as they were saved, from every format; and the same weights have the same digest in all of them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed
from safetensors.torch import save_file, save_model

from stratascope.errors import CheckpointError, UnsafeCheckpointError
from stratascope.tasks.intake.facts import checkpoint_facts, load_network, open_network
from stratascope.tasks.intake.load import load_weights


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sharded(weights, folder: Path) -> Path:
    folder.mkdir()
    names = sorted(weights)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for shard, chosen in parts.items():
        save_file({name: weights[name] for name in chosen}, folder / shard)
    places = {name: shard for shard, chosen in parts.items() for name in chosen}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def as_distributed(content, folder: Path) -> Path:
    distributed.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def prefixed(weights, prefix: str):
    return {prefix + name: value for name, value in weights.items()}


WRITERS = {
    "safetensors": lambda w, p: save_file(w, p / "m.safetensors") or p / "m.safetensors",
    "sharded": lambda w, p: sharded(w, p / "sharded"),
    "torch": lambda w, p: torch.save(w, p / "m.pt") or p / "m.pt",
    "torch before 1.6": lambda w, p: torch.save(w, p / "m.pt", _use_new_zipfile_serialization=False) or p / "m.pt",
    "state_dict": lambda w, p: torch.save({"state_dict": w, "optimizer": {"state": {0: {"m": torch.ones(3, 3)}}}}, p / "m.pt") or p / "m.pt",
    "model": lambda w, p: torch.save({"model": w, "ema": w, "best": torch.tensor(0.1)}, p / "m.pt") or p / "m.pt",
    "model_state_dict, deeper": lambda w, p: torch.save({"saved": {"model_state_dict": w}}, p / "m.pt") or p / "m.pt",
    "any single place": lambda w, p: torch.save({"backbone": w, "note": "x"}, p / "m.pt") or p / "m.pt",
    "data parallel": lambda w, p: torch.save(prefixed(w, "module."), p / "m.pt") or p / "m.pt",
    "compiled data parallel": lambda w, p: torch.save(prefixed(w, "_orig_mod.module."), p / "m.pt") or p / "m.pt",
    "lightning": lambda w, p: torch.save({
        "epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.4.0", "state_dict": prefixed(w, "model.") | {"loss.weight": torch.ones(3)},
        "hyper_parameters": {"rate": 0.1}, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(6, 4)}}}], "lr_schedulers": [], "callbacks": {},
    }, p / "m.ckpt") or p / "m.ckpt",
    "compiled part": lambda w, p: torch.save({k.replace("features.", "features._orig_mod."): v for k, v in w.items()}, p / "m.pt") or p / "m.pt",
    "parallel part": lambda w, p: torch.save({k.replace("features.", "features.module."): v for k, v in w.items()}, p / "m.pt") or p / "m.pt",
    "distributed": lambda w, p: as_distributed(dict(w), p / "dcp"),
    "distributed, nested": lambda w, p: as_distributed({"model": dict(w), "optimizer": {"exp_avg": torch.ones(4)}, "step": 7}, p / "dcp"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_weights_and_the_same_digest(
    tmp_path: Path, kind, weights, factory_folder, open_source
):
    plain = tmp_path / "plain.pt"
    torch.save(weights, plain)
    expected = checkpoint_facts(*open_source(plain), factory_folder)
    file, run = open_source(WRITERS[kind](weights, tmp_path))
    facts = checkpoint_facts(file, run, factory_folder)
    assert facts["status"] == "ok", facts
    assert facts["weights_digest"] == expected["weights_digest"]
    assert facts["sketch"] == expected["sketch"]
    network = load_network(file, run, factory_folder)
    assert equal(network.state_dict(), weights)
    assert not network.training


def test_other_weights_shapes_and_types_have_other_digests(tmp_path: Path, weights, factory_folder, open_source):
    digests = set()
    for number, change in enumerate(
        (
            {}, {"head.bias": torch.zeros(3)}, {"head.bias": weights["head.bias"].half()},
            {"head.bias": weights["head.bias"].bfloat16()}, {"features.1.num_batches_tracked": torch.tensor(9)},
        )
    ):  # fmt: skip
        path = tmp_path / f"{number}.safetensors"
        save_file(weights | change, path)
        facts = checkpoint_facts(*open_source(path), factory_folder)
        digests.add(facts["weights_digest"])
        assert facts["tensors"]["head.bias"]["dtype"] == ("float16" if number == 2 else "bfloat16" if number == 3 else "float32")  # fmt: skip
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ({"global_step": 1200, "step": 5, "epoch": 3}, 1200), ({"step": torch.tensor(8), "epoch": 1}, 8),
        ({"epoch": 4}, 4), ({"epoch": 2.5}, None), ({"step": -1}, None), ({"step": True}, None), ({}, None),
    ],
)  # fmt: skip
def test_a_key_inside_tells_the_step(tmp_path: Path, weights, open_source, content, step):
    torch.save({"model": weights, **content}, tmp_path / "m.pt")
    assert load_weights(*open_source(tmp_path / "m.pt")).inner_step == step


def test_metadata_of_safetensors_and_scalars_of_distributed_tell_the_step(tmp_path: Path, weights, open_source):
    save_file(weights, tmp_path / "m.safetensors", metadata={"step": "31"})
    assert load_weights(*open_source(tmp_path / "m.safetensors")).inner_step == 31
    as_distributed({"model": dict(weights), "step": 7}, tmp_path / "number")
    assert load_weights(*open_source(tmp_path / "number")).inner_step == 7
    as_distributed({"model": dict(weights), "step": torch.tensor(9)}, tmp_path / "tensor")
    assert load_weights(*open_source(tmp_path / "tensor")).inner_step == 9


def test_a_key_and_a_prefix_can_be_named(tmp_path: Path, weights, factory_folder, open_source):
    both = {"callbacks": {"EMA": prefixed(weights, "student.")}, "state_dict": {"other": torch.ones(2)}}
    torch.save(both, tmp_path / "m.pt")
    keys = {"key": "callbacks.EMA", "strip_prefix": "student."}
    facts = checkpoint_facts(*open_source(tmp_path / "m.pt", state_dict=keys), factory_folder)
    assert facts["status"] == "ok"
    facts = checkpoint_facts(*open_source(tmp_path / "m.pt", state_dict={"key": "gone"}), factory_folder)
    assert "no key 'gone'; it has 'callbacks', 'state_dict'" in facts["reason"]


def test_two_places_that_fit_equally_well_are_not_guessed_between(
    tmp_path: Path, weights, factory_folder, open_source
):
    torch.save({"model": weights, "state_dict": weights}, tmp_path / "places.pt")
    facts = checkpoint_facts(*open_source(tmp_path / "places.pt"), factory_folder)
    assert facts["reason"].startswith("places.pt holds weights under 'state_dict' and 'model'")
    torch.save(prefixed(weights, "student.") | prefixed(weights, "teacher."), tmp_path / "prefixes.pt")
    facts = checkpoint_facts(*open_source(tmp_path / "prefixes.pt"), factory_folder)
    assert "under 'student.' and 'teacher.'; say which" in facts["reason"]
    named = open_source(tmp_path / "prefixes.pt", state_dict={"strip_prefix": "teacher"})
    assert checkpoint_facts(*named, factory_folder)["status"] == "ok"


def test_tied_weights_may_be_saved_once(tmp_path: Path, factory_folder, network, open_source):
    tied = type(network)(tied=True)
    save_model(tied, str(tmp_path / "once.safetensors"))
    torch.save(tied.state_dict(), tmp_path / "twice.pt")
    facts = [
        checkpoint_facts(*open_source(path, args={"tied": True}), factory_folder)
        for path in (tmp_path / "once.safetensors", tmp_path / "twice.pt")
    ]
    assert facts[0]["status"] == "ok"
    assert facts[0]["missing_keys"] == []
    assert facts[0]["weights_digest"] == facts[1]["weights_digest"]


def test_a_whole_module_is_refused_unless_its_origin_is_trusted(
    tmp_path: Path, network, factory_folder, open_source
):
    path = tmp_path / "module.pt"
    torch.save(network, path)
    facts = checkpoint_facts(*open_source(path), factory_folder)
    assert facts["status"] == "quarantined"
    assert "could run code" in facts["reason"]
    assert "allow_pickle" in facts["reason"]
    file, run = open_source(path, allow_pickle=True)
    assert checkpoint_facts(file, run, factory_folder)["status"] == "ok"
    assert equal(load_network(file, run, factory_folder).state_dict(), network.state_dict())
    # Without a factory the module itself is the network.
    bare = open_source(path, factory="", allow_pickle=True)
    assert equal(load_network(*bare, factory_folder).state_dict(), network.state_dict())


def test_p14_objects_beside_the_weights_need_trust_too(tmp_path: Path, weights, factory_folder, open_source):
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": weights, "hyper_parameters": Namespace(rate=0.1)}, path)
    with pytest.raises(UnsafeCheckpointError, match=r"m\.ckpt .*argparse\.Namespace"):
        load_weights(*open_source(path))
    assert equal(load_weights(*open_source(path, allow_pickle=True)).tensors, weights)


def test_a_torchscript_archive_gives_outputs_and_weights_and_says_so(
    tmp_path: Path, network, factory_folder, open_source
):
    path = tmp_path / "scripted.pt"
    torch.jit.script(network).save(str(path))
    with pytest.raises(UnsafeCheckpointError, match=r"scripted\.pt is a program \(torchscript\)"):
        load_weights(*open_source(path))
    file, run = open_source(path, factory="", allow_pickle=True)
    facts = checkpoint_facts(file, run, factory_folder)
    assert facts["status"] == "ok"
    assert facts["network"]["kind"] == "torchscript"
    assert not facts["network"]["hookable"]
    assert "no hooks" in facts["network"]["note"]
    batch = torch.randn(5, 4)
    loaded = open_network(file, run, factory_folder)
    assert not loaded.traits.hookable
    assert torch.equal(loaded.module(batch), network(batch))
    assert facts["parameter_count"] == sum(item.numel() for item in network.parameters())
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    plain = checkpoint_facts(*open_source(tmp_path / "plain.pt"), factory_folder)
    assert facts["weights_digest"] == plain["weights_digest"]


@pytest.mark.parametrize("fixed", [True, False])
def test_an_exported_program_is_unflattened_and_tells_its_batch_size(
    tmp_path: Path, network, factory_folder, open_source, fixed: bool
):
    path = tmp_path / "program.pt2"
    batch = torch.randn(5, 4)
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (batch,), dynamic_shapes=shapes), path)
    with pytest.raises(UnsafeCheckpointError, match=r"program\.pt2 is a program \(exported\)"):
        load_weights(*open_source(path))
    file, run = open_source(path, factory="", allow_pickle=True)
    facts = checkpoint_facts(file, run, factory_folder)
    assert facts["network"]["fixed_batch_size"] == (5 if fixed else None)
    assert ("exactly 5" in facts["network"]["note"]) is fixed
    loaded = open_network(file, run, factory_folder)
    seen = []
    loaded.module.get_submodule("features.0").register_forward_hook(lambda *given: seen.append(given[2]))
    assert torch.allclose(loaded.module(batch), network(batch))
    assert torch.allclose(seen[0], network.features[0](batch * network.mask))
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    plain = checkpoint_facts(*open_source(tmp_path / "plain.pt"), factory_folder)
    assert facts["weights_digest"] == plain["weights_digest"]


def test_weights_that_changed_since_they_were_digested_are_not_captured(
    tmp_path: Path, weights, factory_folder, open_source
):
    path = tmp_path / "m.safetensors"
    save_file(weights, path)
    file, run = open_source(path)
    digest = checkpoint_facts(file, run, factory_folder)["weights_digest"]
    assert load_network(file, run, factory_folder, digest) is not None
    save_file(weights | {"head.bias": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"m\.safetensors has changed since this audit began"):
        load_network(file, run, factory_folder, digest)
