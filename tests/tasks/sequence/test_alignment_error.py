"""Alignment over a little real run: dates, whose alignment is known; and probes and networks that have none."""

import numpy as np
import pytest
import torch

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe, ProbeSpec
from stratascope.tasks.sequence.alignment_error import reference_of
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_samples
from stratascope.tasks.units import keep_probe
from tests.tasks.conftest import LittleAudit

ARGUMENTS = {"source": 70, "target": 15, "embedding": 12, "width": 16, "start_index": None}


def dates_probe(audit: LittleAudit, count: int) -> None:
    spec = ProbeSpec(dataset="dates", split="test", args={"count": count}, role="test")
    keep_probe(str(audit.store.path), "test", spec, str(audit.folder), "test")
    audit.probes.append("test")


@pytest.fixture(scope="module")
def dates_audit(tmp_path_factory) -> LittleAudit:
    """An encoder and decoder as it begins, and one whose attention was trained on the reference itself."""
    from stratascope.storage.datasets import load_dataset
    from stratascope.tasks.models import attention_encoder_decoder

    audit = LittleAudit(tmp_path_factory.mktemp("dates"), "stratascope.tasks.models:attention_encoder_decoder", ARGUMENTS, task="tokens")  # fmt: skip
    dates_probe(audit, 60)
    torch.manual_seed(0)
    network = attention_encoder_decoder(**ARGUMENTS)
    audit.checkpoint(0, network)
    data = load_dataset("dates", split="train", folder=audit.folder, count=96)
    source, target, first = (torch.from_numpy(np.asarray(data.inputs[name])) for name in ("source", "target", "alignment"))  # fmt: skip
    weights = []
    network.attention.register_forward_hook(lambda module, given, output: weights.append(output[1]))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for _ in range(40):
        network({"source": source, "target": target})
        loss = torch.nn.functional.nll_loss(weights.pop().clamp_min(1e-9).log().flatten(0, 1), first.flatten(), ignore_index=-1)  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    audit.checkpoint(60, network.eval())
    return audit


@pytest.fixture(scope="module")
def rows(dates_audit):
    return dates_audit.analyse("alignment_error", batch_size=16)


def value(rows, metric: str, step: int, part="head=0"):
    chosen = rows[(rows["metric"] == metric) & (rows["step"] == step) & (rows["part"] == part)]
    return chosen.iloc[0]


def test_chance_at_the_start_and_far_above_it_after_training(rows):
    chance = value(rows, "alignment_accuracy", 0, "null=uniform")["value"]
    assert 0.05 < chance < 0.2
    assert value(rows, "alignment_accuracy", 0)["value"] < 2 * chance
    trained = value(rows, "alignment_accuracy", 60)
    assert trained["value"] > 0.5
    assert trained["low"] < trained["value"] < trained["high"]
    assert trained["n"] == 60 * 8
    assert value(rows, "alignment_error_rate", 60)["value"] < value(rows, "alignment_error_rate", 0)["value"]


def test_the_number_is_that_of_the_network_itself(dates_audit, rows):
    """Every weight by hand from the network's own output, span by span."""
    from safetensors.torch import load_file

    from stratascope.storage.datasets import load_dataset
    from stratascope.tasks.models import attention_encoder_decoder

    network = attention_encoder_decoder(**ARGUMENTS)
    network.load_state_dict(load_file(dates_audit.files[-1].path))
    data = load_dataset("dates", split="test", folder=dates_audit.folder, count=60)
    given = {name: torch.from_numpy(np.asarray(values)) for name, values in data.inputs.items()}
    kept = []
    network.attention.register_forward_hook(lambda module, inputs, output: kept.append(output[1].detach()))
    network.eval()({"source": given["source"], "target": given["target"]})
    strongest = kept[0].argmax(-1)
    known = given["alignment"] >= 0
    right = (strongest >= given["alignment"]) & (strongest <= given["alignment_end"])
    assert value(rows, "alignment_accuracy", 60)["value"] == pytest.approx(
        right[known].double().mean().item(), abs=1e-9
    )


def test_batch_size_changes_nothing(dates_audit, rows):
    other = dates_audit.analyse("alignment_error", batch_size=60)
    for metric in ("alignment_accuracy", "alignment_mass", "alignment_error_rate"):
        assert value(other, metric, 60)["value"] == pytest.approx(value(rows, metric, 60)["value"], abs=1e-5)


def test_pictures_hold_the_numbers_and_the_words(dates_audit, rows):
    figures = {figure.key: figure for figure in dates_audit.draw("alignment_error")}
    assert set(figures) == {"alignment-test", "places-test", "samples-test"}
    assert figures["alignment-test"].headline
    assert (
        f"{value(rows, 'alignment_accuracy', 60)['value']:.3f} of 480 target tokens"
        in figures["alignment-test"].caution
    )
    frames = dict(figures["samples-test"].frames)
    assert list(frames) == [0, 60]
    assert "&lt;eos&gt;" in frames[60]
    places = figures["places-test"].table["place"]
    assert places == [0, 1, 2, 3, 5, 6, 8, 9]


def pairs_probe(alignment: np.ndarray, **more) -> Probe:
    source = np.array([[3, 4, 5, 0]] * len(alignment))
    inputs = {"alignment": alignment, **more, "source": source, "target": np.full((len(alignment), 3), 2)}
    masks = {"source": source != 0}
    return Probe("test", "test", inputs, None, np.arange(len(alignment)), (), "digest", "text", None, masks, {"source": tuple("abcdef")})  # fmt: skip


def test_a_reference_without_an_end_is_single_places():
    samples = sequence_samples(pairs_probe(np.array([[0, 1, -1], [2, -1, 0]])), SequenceOptions())
    first, last = reference_of(samples)
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize(
    ("alignment", "more", "reason"),
    [
        (np.full((2, 3), -1), {}, "no token of the measured samples"),
        (np.zeros((2, 3), np.float32), {}, "float32 of 2 x 3"),
        (
            np.ones((2, 3), np.int64),
            {"alignment_end": np.zeros((2, 3), np.int64)},
            "lies before `alignment` for 6 tokens",
        ),
    ],
)
def test_what_is_no_reference_says_so(alignment, more, reason):
    samples = sequence_samples(pairs_probe(alignment, **more), SequenceOptions())
    with pytest.raises(DoesNotApply, match=reason):
        reference_of(samples)


def test_probes_without_a_reference_are_told_how_to_bring_one(little_audit):
    from stratascope.tasks.models import text_transformer

    arguments = {"alphabet": 5, "length": 6, "width": 8, "heads": 2, "depth": 1}
    audit = little_audit("stratascope.tasks.models:text_transformer", arguments, task="tokens")
    audit.probe("test", inputs=np.arange(12).reshape(2, 6) % 5, targets=np.arange(12).reshape(2, 6) % 5)
    audit.checkpoint(0, text_transformer(**arguments))
    found = audit.analyse("alignment_error")
    assert set(found["status"]) == {"does_not_apply"}
    assert found["reason"].str.contains("give it as an input `alignment`").all()
