"""The analysis of attention: statistics that no batch size and no order changes, padding that never counts, its figures."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe, ProbeSpec
from stratascope.tasks import preview
from stratascope.tasks.analysis import named
from stratascope.tasks.intake.facts import LoadedNetwork
from stratascope.tasks.intake.load import NetworkTraits
from stratascope.tasks.models import attention_encoder_decoder, text_transformer, vision_transformer
from stratascope.tasks.sequence.attention import AttentionOptions, foretold, gathered
from stratascope.tasks.sequence.attention_axes import patch_grid, spec_with_axes
from stratascope.tasks.sequence.attention_calls import AttentionSpec, captured_attention
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_blocks, sequence_samples
from stratascope.tasks.units import keep_probe

LETTERS = tuple("_abcdefghij")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def text_probe(count=24, half=6, padded=0) -> Probe:
    """Random letters, repeated once; then `padded` places of padding, in every other sample twice as many."""
    first = np.random.default_rng(0).integers(1, 11, (count, half))
    codes = np.pad(np.concatenate([first, first], 1), ((0, 0), (0, padded)))
    if padded:
        codes[::2, -2 * padded :] = 0
    masks = {"": codes != 0} if padded else {}
    return Probe(
        "test", "test", codes, np.roll(codes, -1, 1), np.arange(count), LETTERS, "digest", "text", None, masks
    )


def wrapped(network, **model) -> SequenceNetwork:
    return SequenceNetwork(network.eval(), ModelSpec(factory="none:none", **model))


def measured(network, probe, **options):
    options = AttentionOptions(**options)
    network = network if isinstance(network, SequenceNetwork) else wrapped(network)
    with torch.no_grad():
        return gathered(network, sequence_blocks(probe, options), options)[0]


def small_text(**args):
    return text_transformer(alphabet=11, length=20, width=16, heads=2, depth=2, **args)


def test_neither_batch_size_nor_order_changes_a_number():
    network, probe = small_text(padding_index=0), text_probe(padded=2)
    one = measured(network, probe, batch_size=24)
    turned = np.arange(24)[::-1]
    masks = {"": probe.masks[""][turned]}
    other = Probe("test", "test", probe.inputs[turned], None, turned, LETTERS, "digest", "text", None, masks)
    for found in (measured(network, probe, batch_size=5), measured(network, other, batch_size=7)):
        for layer, statistics in one.items():
            for name, moments in statistics.scores.items():
                again = found[layer].scores[name]
                torch.testing.assert_close(again.mean, moments.mean, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(again.standard_error, moments.standard_error, rtol=1e-3, atol=1e-6)
            arrays, same = dict(statistics.arrays()), dict(found[layer].arrays())
            assert set(arrays) == set(same)
            np.testing.assert_allclose(
                same["lag_profile"].values, arrays["lag_profile"].values, rtol=1e-5, atol=1e-6
            )


def test_padding_never_counts():
    network = small_text(padding_index=0)
    bare, longer = measured(network, text_probe()), text_probe()
    codes = np.pad(longer.inputs, ((0, 0), (0, 3)))
    longer = Probe("test", "test", codes, None, longer.sample_id, LETTERS, "d", "text", None, {"": codes != 0})
    padded = measured(network, longer)
    for layer, statistics in bare.items():
        assert set(statistics.scores) == set(padded[layer].scores)
        for name, moments in statistics.scores.items():
            torch.testing.assert_close(padded[layer].scores[name].mean, moments.mean, rtol=1e-5, atol=1e-6)
        assert "mean_weights" in dict(statistics.arrays())
        assert "mean_weights" not in dict(padded[layer].arrays())


def test_weights_that_the_network_puts_on_padding_are_taken_from_its_rows():
    blind_to_it = small_text(causal=False)
    probe = text_probe(padded=3)
    found = measured(blind_to_it, probe)["blocks.0.attention"]
    assert float(found.scores["attention_entropy_share"].mean.max()) <= 1
    assert found.blind == 0


def test_scores_over_two_batches_are_the_mean_of_the_two():
    network, probe = small_text(), text_probe()
    whole = measured(network, probe)
    halves = []
    for part in (slice(0, 12), slice(12, 24)):
        own = Probe("test", "test", probe.inputs[part], None, probe.sample_id[part], LETTERS, "digest", "text")
        halves.append(measured(network, own))
    for layer, statistics in whole.items():
        for name, moments in statistics.scores.items():
            mean = (halves[0][layer].scores[name].mean + halves[1][layer].scores[name].mean) / 2
            torch.testing.assert_close(moments.mean, mean, rtol=1e-6, atol=1e-8)


class Even(nn.Module):
    """Attention whose scores are all alike."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.zeros_(self.attention.in_proj_weight)

    def forward(self, codes):
        hidden = self.embedding(codes)
        return self.attention(hidden, hidden, hidden, need_weights=False)[0]


def test_an_even_head_has_the_scores_of_an_even_head():
    found = measured(Even(), text_probe())["attention"]
    means = {name: float(moments.mean[0]) for name, moments in found.scores.items()}
    assert means["attention_entropy"] == pytest.approx(np.log(12), abs=1e-6)
    assert means["attention_entropy_share"] == pytest.approx(1, abs=1e-6)
    assert means["sink_mass"] == pytest.approx(1 / 12, abs=1e-6)
    assert means["attention_distance"] == pytest.approx((12**2 - 1) / (3 * 12), abs=1e-5)
    assert means["previous_token_score"] == pytest.approx(1 / 12, abs=1e-6)
    assert float(found.chances["induction_score"].mean) == pytest.approx(means["induction_score"], abs=1e-6)


def test_own_patterns_and_those_that_are_none():
    found = measured(small_text(), text_probe(), patterns={"after_a": {"tokens": [1]}})["blocks.0.attention"]
    rows = [row for row in found.rows("test") if row.metric == "pattern_score"]
    assert [row.part for row in rows] == ["head=0;pattern=after_a", "head=1;pattern=after_a"]
    assert all(row.status == "ok" and "chance=" in row.convention for row in rows)
    with pytest.raises(ValueError, match="has one of offsets"):
        AttentionOptions(patterns={"both": {"offsets": [1], "tokens": [1]}})
    with pytest.raises(ValueError, match="small letters"):
        AttentionOptions(patterns={"A;b": {"offsets": [1]}})


def pair_probe(count=8, source=5, target=5) -> Probe:
    generator = np.random.default_rng(1)
    inputs = {
        "alignment": np.zeros((count, target), np.int64),
        "source": generator.integers(2, 9, (count, source)),
        "target": generator.integers(2, 9, (count, target)),
    }
    inputs["source"][::2, -1] = 0
    masks = {name: inputs[name] != 0 for name in ("source", "target")}
    return Probe("test", "test", inputs, inputs["target"], np.arange(count), (), "digest", "text", None, masks)


class Both(nn.Module):
    """An encoder and a decoder of torch for two inputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.transformer = nn.Transformer(8, 2, 1, 2, 16, batch_first=True)

    def forward(self, inputs):
        hidden = self.embedding(inputs["source"]), self.embedding(inputs["target"])
        mask = nn.Transformer.generate_square_subsequent_mask(inputs["target"].shape[1])
        return self.transformer(*hidden, tgt_mask=mask, src_key_padding_mask=inputs["source"] == 0)


@pytest.mark.parametrize("target", [5, 4])
def test_axes_are_told_apart_also_where_inputs_have_one_length(target):
    network, options = wrapped(Both()), SequenceOptions()
    samples = sequence_samples(pair_probe(target=target), options)
    with torch.no_grad():
        spec = spec_with_axes(network, samples, AttentionSpec())
        with captured_attention(network, spec) as recorder:
            network.run(samples.given)
    found = {call.layer: (call.kind, call.query_input, call.key_input) for call in recorder.take()}
    assert found == {
        "transformer.encoder.layers.0.self_attn": ("self", "source", "source"),
        "transformer.decoder.layers.0.self_attn": ("self", "target", "target"),
        "transformer.decoder.layers.0.multihead_attn": ("cross", "target", "source"),
        "transformer.decoder.layers.1.self_attn": ("self", "target", "target"),
        "transformer.decoder.layers.1.multihead_attn": ("cross", "target", "source"),
    }


def test_additive_attention_is_between_target_and_source():
    network = attention_encoder_decoder(source=9, target=9, embedding=4, width=6)
    found = measured(network, pair_probe())["attention"]
    assert (found.call.query_input, found.call.key_input) == ("target", "source")
    assert found.call.residual < 1e-5
    statuses = {row.metric: row.status for row in found.rows("test")}
    assert statuses["attention_entropy"] == "ok"
    assert statuses["attention_distance"] == statuses["induction_score"] == "does_not_apply"


@pytest.mark.parametrize(
    ("size", "leading", "wanted"), [(16, 0, (0, 4, 4, 4)), (17, 1, (1, 4, 4, 4)), (20, 4, (4, 4, 4, 4))]
)
def test_patches_are_found_behind_other_tokens(size, leading, wanted):
    pictures = Probe("test", "test", np.zeros((2, 1, 16, 16), np.float32), None, np.arange(2), (), "digest")
    samples = sequence_samples(pictures, SequenceOptions())
    grid = patch_grid(samples, size)
    assert (grid.leading, grid.rows, grid.columns, grid.patch) == wanted


def test_distances_of_patches_leave_the_class_token_out():
    network = vision_transformer(size=8, patch=4, width=8, heads=2, depth=1)
    nn.init.zeros_(network.blocks[0].attention.in_proj_weight)
    pictures = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)
    found = measured(network, Probe("test", "test", pictures, None, np.arange(6), (), "digest"))[
        "blocks.0.attention"
    ]
    even = (0 + 1 + 1 + np.sqrt(2)) / 4
    assert float(found.scores["attention_distance"].mean[0]) == pytest.approx(even, abs=1e-6)
    rows = {row.metric: row for row in found.rows("test")}
    assert rows["attention_distance"].unit == "patch"
    assert rows["induction_score"].status == "does_not_apply"
    assert found.call.query_input is None


def test_a_network_without_attention_and_one_that_mixes_samples_are_named():
    probe = text_probe()
    with pytest.raises(DoesNotApply, match="no attention that could be found"):
        measured(nn.Embedding(11, 4), probe)

    class Mixed(Even):
        def __init__(self):
            super().__init__()
            self.attention.batch_first = False

    with pytest.raises(DoesNotApply, match="'attention' has weights of 12 rows for 24 samples"):
        measured(Mixed(), probe)


def test_raw_weights_keep_to_their_size_and_it_is_told_before():
    network, probe = wrapped(small_text()), text_probe()
    values = 2 * 2 * 12 * 12
    options = AttentionOptions(shown=6, megabytes=4.5 * 2 * values / 1e6)
    assert "weights of 4 of 6 shown samples" in foretold(network, probe, options)
    with torch.no_grad():
        layers, gap, _ = gathered(network, sequence_blocks(probe, options), options)
    assert gap < 1e-5
    for statistics in layers.values():
        weights = dict(statistics.arrays())["weights"].values
        assert weights.shape == (4, 2, 12, 12)
        assert weights.dtype == np.float16


def test_a_dry_run_tells_the_size_or_why_there_is_none(tmp_path):
    model = ModelSpec(factory="none:none")
    analyses = {"attention": AttentionOptions(), "outputs": named("outputs").options()}
    told = [
        preview.foretold(LoadedNetwork(network.eval(), NetworkTraits()), model, tmp_path, [text_probe()], analyses)
        for network in (small_text(), nn.Embedding(11, 4))
    ]
    size = 4 * 2 * 2 * 2 * 12 * 12 / 1e6
    assert told[0] == [
        f"attention, probe test: weights of 4 of 4 shown samples, {size:.3g} MB at each checkpoint before compression "
        "(at most 64, `megabytes`)"
    ]
    assert "does not apply: the network has no attention" in told[1][0]


def test_a_query_that_sees_nothing_is_counted_by_its_layer():
    class Blind(Even):
        def forward(self, codes):
            hidden = self.embedding(codes)
            mask = torch.zeros(codes.shape[1], codes.shape[1]).bool()
            mask[2] = True
            return self.attention(hidden, hidden, hidden, attn_mask=mask)[0].nan_to_num()

    found = measured(Blind(), text_probe())["attention"]
    assert found.blind == 24
    rows = [row for row in found.rows("test") if row.metric == "attention_entropy"]
    assert all("see no key: 24" in row.convention for row in rows)
    assert all(np.isfinite(row.value) for row in rows)


@pytest.fixture(scope="module")
def attended(lasting_audit):
    """A text transformer at two steps, the second with a made head that looks at the token before."""
    arguments = {"alphabet": 11, "length": 20, "width": 16, "heads": 2, "depth": 2, "expansion": 0}
    audit = lasting_audit("stratascope.tasks.models:text_transformer", arguments, task="tokens")
    probe = text_probe()
    audit.probe("test", "test", LETTERS, inputs=probe.inputs, targets=probe.targets)
    torch.manual_seed(0)
    for step in (0, 5):
        audit.checkpoint(step, text_transformer(**arguments))
    audit.analyse("attention", patterns={"first": {"offsets": [-2]}})
    return audit


def test_rows_and_arrays_are_filed(attended):
    view = attended.view("attention")
    arrays = view.arrays(5)
    place = "test/blocks.1.attention"
    assert arrays[f"{place}/weights"].shape == (4, 2, 12, 12)
    assert arrays[f"{place}/sink"].shape == (2, 8)
    assert arrays[f"{place}/lag_profile"].shape == (2, 12)
    np.testing.assert_allclose(arrays[f"{place}/weights"].astype(float).sum(-1), 1, atol=2e-3)
    rows = view.rows
    assert set(rows["status"]) == {"ok"}
    residuals = rows[rows["metric"] == "attention_residual"]
    assert (residuals["value"] < 1e-5).all()
    assert sorted(residuals["layer"].unique()) == ["", "blocks.0.attention", "blocks.1.attention"]
    stored = rows[(rows["metric"] == "attention_stored_size") & (rows["step"] == 5)]["value"].iloc[0]
    assert stored == pytest.approx(2 * 2 * 4 * 2 * 12 * 12 / 1e6)


def test_every_figure_has_its_words_and_numbers(attended):
    figures = attended.draw("attention")
    keys = [figure.key for figure in figures]
    assert keys == ["heads-test", "grid-test", "boxes-test", "sinks-test", "patterns-test", "lags-test"]
    for figure in figures:
        assert figure.svg or len(figure.frames) == 2
        assert "not whether the answer depends on it" in figure.caution
        assert any(letter.isdigit() for letter in figure.caution)
        assert "nan" not in figure.caution
        assert "{" not in json.dumps([figure.shows, figure.reading, figure.caution])
        assert len({len(column) for column in figure.table.values()}) == 1


def test_a_broken_newest_checkpoint_is_said_and_drawn_as_nothing(lasting_audit):
    arguments = {"alphabet": 11, "length": 20, "width": 8, "heads": 2, "depth": 1, "expansion": 0}
    audit = lasting_audit("stratascope.tasks.models:text_transformer", arguments, task="tokens")
    audit.probe("test", "test", LETTERS, inputs=text_probe().inputs)
    network = text_transformer(**arguments)
    audit.checkpoint(0, network)
    nn.init.constant_(network.blocks[0].attention.in_proj_weight, float("nan"))
    audit.checkpoint(5, network)
    rows = audit.analyse("attention")
    assert set(rows[rows["step"] == 0]["status"]) == {"ok"}
    broken = rows[(rows["step"] == 5) & (rows["metric"] != "attention_stored_size")]
    assert not (broken["status"] == "ok").any()
    assert (broken["reason"] != "").all()
    assert all("nan" not in figure.caution for figure in audit.draw("attention"))


def test_pictures_are_drawn(lasting_audit):
    arguments = {"size": 8, "patch": 4, "width": 8, "heads": 2, "depth": 2, "outputs": 3}
    audit = lasting_audit("stratascope.tasks.models:vision_transformer", arguments)
    pictures = np.random.default_rng(0).uniform(size=(9, 1, 8, 8)).astype(np.float32)
    audit.probe(
        "test",
        "test",
        ("x", "y", "z"),
        inputs=pictures,
        targets=np.arange(9) % 3,
        denormalize=np.array([0.0, 1.0]),
    )
    audit.checkpoint(0, vision_transformer(**arguments))
    audit.analyse("attention")
    figures = {figure.key: figure for figure in audit.draw("attention")}
    assert {"pictures-test", "picture_heads-test", "grid-test", "boxes-test", "sinks-test"} == set(figures)
    assert "all, blocks.1" in figures["pictures-test"].frames[0][1]


def test_an_alignment_stands_beside_the_words_that_are_said(lasting_audit):
    arguments = {"source": 70, "target": 15, "embedding": 4, "width": 6, "start_index": None}
    audit = lasting_audit("stratascope.tasks.models:attention_encoder_decoder", arguments, task="tokens")
    dates = ProbeSpec(dataset="dates", args={"count": 12})
    keep_probe(str(audit.store.path), "test", dates, str(audit.folder), "test")
    audit.probes.append("test")
    audit.checkpoint(0, attention_encoder_decoder(**arguments))
    audit.analyse("attention")
    figure = {figure.key: figure for figure in audit.draw("attention")}["alignment-test-attention"]
    assert figure.table["query"][0].isdigit()
    assert figure.table["query"][-1] == figure.table["key"][-1] == "<eos>"
    assert sum(figure.table["weight"]) == pytest.approx(11, abs=0.02)
    assert "to the last bit" in figure.caution
