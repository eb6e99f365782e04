"""The analysis of recurrent states on small networks: its rows and arrays, padding, batches, what it says it cannot say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stratascope.storage.archive import join_path
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.names import step_directory
from stratascope.tasks.models import attention_encoder_decoder, character_model, mlp, recurrent_classifier
from stratascope.tasks.sequence.recurrent_state import ANALYSIS
from stratascope.tasks.sequence.recurrent_traces_drawing import trace_figures
from stratascope.tasks.sequence.stored_states import StoredLayer, stored_layers
from tests.tasks.conftest import LittleAudit

WORDS = tuple("abcdefgh")


def texts(count, seed, length=24):
    """Codes (sample, token) of letters that come in runs, and the letter that follows each."""
    generator = np.random.default_rng(seed)
    codes = np.repeat(generator.integers(0, 8, (count, length)), 3, axis=1)[:, : length + 1]
    return codes[:, :-1], codes[:, 1:]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> LittleAudit:
    """A character LSTM of two layers at three steps of its training."""
    arguments = {"cell": "lstm", "alphabet": 8, "embedding": 6, "width": 12, "layers": 2}
    audit = LittleAudit(
        tmp_path_factory.mktemp("written"), "stratascope.tasks.models:character_model", arguments, task="tokens"
    )
    inputs, targets = texts(40, 1)
    audit.probe("test", "test", WORDS, inputs=inputs, targets=targets)
    torch.manual_seed(0)
    network = character_model(**arguments)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    given, wanted = (torch.from_numpy(item) for item in texts(40, 2))
    for step in range(31):
        if step in (0, 10, 30):
            audit.checkpoint(step, network)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(given).flatten(0, 1), wanted.flatten()).backward()
        optimizer.step()
    audit.analyse("recurrent_state", shown=2)
    return audit


def arrays_of(audit, step):
    return audit.view("recurrent_state").arrays(step)


def attributes_of(audit, step, *place):
    return audit.store.array_info(join_path("runs", "run", step_directory(step), "recurrent_state", *place))[3]


def test_every_layer_has_its_rows_and_its_arrays(written):
    rows = written.analyse("recurrent_state", shown=2)
    assert set(rows["status"]) == {"ok"}
    assert set(rows["layer"]) == {"", "recurrent.l0", "recurrent.l1"}
    assert rows[rows["metric"] == "recurrent_residual"]["value"].max() < 1e-5
    saturation = rows[rows["metric"].isin(["left_saturated_fraction", "right_saturated_fraction"])]
    assert set(saturation["part"]) == {f"gate={name}" for name in ("input", "forget", "candidate", "output")}
    constants = rows[(rows["metric"] == "memory_time_constant") & (rows["step"] == 30) & (rows["layer"] == "recurrent.l0")]  # fmt: skip
    by_part = constants.set_index("part")
    assert by_part.loc["quantile=0.1", "value"] <= by_part.loc["quantile=0.5", "value"] <= by_part.loc["quantile=0.9", "value"]  # fmt: skip
    assert by_part.loc["unit=3", "low"] <= by_part.loc["unit=3", "value"] * 1.0001
    arrays = arrays_of(written, 30)
    place = "test/recurrent.l0"
    assert arrays[f"{place}/hidden"].shape == (2, 24, 12)
    assert arrays[f"{place}/cell_state"].dtype == np.float16
    assert arrays[f"{place}/gates"].shape == (2, 24, 4, 12)
    assert arrays[f"{place}/gate_histogram"].sum() == 40 * 24 * 4 * 12
    assert arrays[f"{place}/time_constant"].shape == (3, 12)
    assert arrays[f"{place}/eigenvalues"].shape == (4, 12, 2)
    assert attributes_of(written, 30, "test", "recurrent.l0", "hidden")["input"] == ""
    told = rows[rows["metric"] == "trace_bytes"]["value"].unique()
    stored = sum(arrays[f"test/recurrent.{layer}/{name}"].nbytes for layer in ("l0", "l1") for name in ("hidden", "cell_state", "gates"))  # fmt: skip
    assert told.tolist() == [stored]


def test_shown_states_are_those_of_the_real_network(written):
    arrays = arrays_of(written, 30)
    codes = torch.from_numpy(arrays["test/tokens/input"])
    network = character_model(cell="lstm", alphabet=8, embedding=6, width=12, layers=2)
    network.load_state_dict(load_file(written.folder / "step-30.safetensors"))
    with torch.no_grad():
        hidden, (_, last_state) = network.recurrent(network.embedding(codes))
    np.testing.assert_allclose(arrays["test/recurrent.l1/hidden"], hidden.numpy(), atol=1e-3)
    np.testing.assert_allclose(arrays["test/recurrent.l1/cell_state"][:, -1], last_state[1].numpy(), atol=4e-3)


def test_the_batch_size_is_no_part_of_the_result(written):
    one = written.analyse("recurrent_state", shown=2)
    other = written.analyse("recurrent_state", shown=2, batch_size=7)
    keys = ["step", "layer", "metric", "part"]
    one, other = (rows.set_index(keys)["value"].sort_index() for rows in (one, other))
    np.testing.assert_allclose(one.drop("recurrent_residual", level=2), other.drop("recurrent_residual", level=2), rtol=1e-5, atol=1e-7)  # fmt: skip
    written.analyse("recurrent_state", shown=2)


def test_traces_that_are_too_large_are_left_out_and_the_rest_is_told(written):
    rows = written.analyse("recurrent_state", shown=2, trace_mib=0.001)
    told = rows[rows["metric"] == "trace_bytes"]
    assert set(told["status"]) == {"does_not_apply"}
    assert "would take" in told["reason"].iloc[0]
    assert (rows["metric"] == "memory_time_constant").any()
    assert "test/recurrent.l0/hidden" not in arrays_of(written, 30)
    written.analyse("recurrent_state", shown=2)


def test_an_encoder_and_a_decoder_each_count_their_own_padding(little_audit):
    arguments = {"source": 9, "target": 9, "embedding": 4, "width": 5, "cell": "lstm"}
    audit = little_audit("stratascope.tasks.models:attention_encoder_decoder", arguments, task="tokens")
    generator = np.random.default_rng(0)
    lengths = np.array([[6, 3], [2, 6], [4, 1], [5, 5], [6, 6], [1, 2]])
    codes = generator.integers(2, 9, (2, 6, 6))
    masks = np.stack([np.arange(6) < lengths[:, [side]] for side in (0, 1)])
    codes[~masks] = 0
    module = audit.folder / f"{audit.module}_pairs.py"
    np.savez(audit.folder / "pairs.npz", source=codes[0], target=codes[1])
    module.write_text(
        "import numpy as np\n"
        "def probe(path):\n"
        "    found = dict(np.load(path))\n"
        "    return {'inputs': found, 'targets': found['target'], 'mask': {name: values != 0 for name, values in found.items()}}\n"
    )
    from stratascope.storage.probes import ProbeSpec
    from stratascope.tasks.units import keep_probe

    spec = ProbeSpec(factory=f"{module.stem}:probe", args={"path": str(audit.folder / "pairs.npz")})
    keep_probe(str(audit.store.path), "pairs", spec, str(audit.folder), "pairs")
    audit.probes.append("pairs")
    torch.manual_seed(0)
    audit.checkpoint(0, attention_encoder_decoder(**arguments))
    rows = audit.analyse("recurrent_state", shown=6, batch_size=4)
    assert set(rows["status"]) == {"ok"}, rows[rows["status"] != "ok"]["reason"].unique()
    arrays = arrays_of(audit, 0)
    for layer, side in (("encoder.l0", 0), ("encoder.l0_reverse", 0), ("decoder.l0", 1)):
        assert attributes_of(audit, 0, "pairs", layer, "hidden")["input"] == ("source", "target")[side]
        assert arrays[f"pairs/{layer}/gate_histogram"][0, 0].sum() == lengths[:, side].sum()
        order = arrays["pairs/sample_id"]
        np.testing.assert_array_equal(np.isfinite(arrays[f"pairs/{layer}/hidden"]).all(2), masks[side][order])
        assert arrays[f"pairs/{layer}/hidden"].shape[1] == 6
    assert [layer.layer for layer in stored_layers(audit.view("recurrent_state"), "pairs")] == ["encoder.l0", "encoder.l0_reverse", "decoder.l0"]  # fmt: skip


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_other_cells_say_what_they_can(little_audit, cell):
    arguments = {"cell": cell, "inputs": 4, "width": 6, "outputs": 3}
    audit = little_audit("stratascope.tasks.models:recurrent_classifier", arguments)
    series = np.random.default_rng(0).normal(size=(20, 9, 4)).astype(np.float32)
    audit.probe("test", "test", inputs=series, targets=np.arange(20) % 3)
    torch.manual_seed(0)
    network = recurrent_classifier(**arguments)
    with torch.no_grad():
        network.recurrent.weight_hh_l0[-6:] = 0.9 * torch.linalg.qr(torch.randn(6, 6))[0]
    audit.checkpoint(0, network)
    rows = audit.analyse("recurrent_state")
    assert set(rows["status"]) == {"ok"}
    radius = rows[(rows["metric"] == "recurrent_spectral_radius") & (rows["part"] == "gate=candidate")]
    assert radius["value"].iloc[0] == pytest.approx(0.9, rel=1e-5)
    constants = rows[(rows["metric"] == "memory_time_constant") & (rows["part"] == "quantile=0.5")]
    if cell == "rnn":
        figures = {figure.key: figure for figure in audit.draw("recurrent_state")}
        assert len(figures) == 6
        assert "modes" in figures["time-constants-test"].shows
        assert constants["value"].iloc[0] == pytest.approx(-1 / np.log(0.9), rel=1e-4)
    else:
        assert set(rows["part"]) >= {"gate=reset", "gate=update", "gate=candidate"}


def worded_view(audit):
    """The view of an audit whose probe is a text; what a test's factory makes are plain arrays."""
    view = audit.view("recurrent_state")
    view.__dict__["probes"] = {name: replace(probe, kind="text") for name, probe in view.probes.items()}
    return view


def test_every_layer_is_drawn_with_words_of_its_own_numbers(written):
    written.analyse("recurrent_state", shown=2)
    figures = {figure.key: figure for figure in ANALYSIS.draw(worded_view(written), ANALYSIS.options())}
    assert set(figures) == {
        "saturation-test", "time-constants-test", "memory_time_constant-0.5-test",
        *(f"{kind}-recurrent.{layer}" for kind in ("trace-map", "trace-lines", "spectrum", "likeness") for layer in ("l0", "l1")),
    }  # fmt: skip
    assert [figure.key for figure in figures.values() if figure.headline] == ["saturation-test"]
    for figure in figures.values():
        texts = " ".join((figure.shows, figure.reading, figure.caution, figure.practitioner, figure.researcher))
        assert not {"nan", "{", "}"} & set(texts.split())
        assert any(letter.isdigit() for letter in figure.caution)
        assert figure.table
        assert figure.svg or [step for step, _ in figure.frames] == [0, 10, 30]
    first = arrays_of(written, 30)["test/tokens/input"][0]
    assert figures["trace-lines-recurrent.l1"].table["token"][:24] == [WORDS[code] for code in first]


def test_words_of_samples_are_not_drawn_where_inputs_are_not_to_be_shown(written):
    view = worded_view(written)
    view.show_inputs = False
    figures = list(trace_figures(StoredLayer(view, "test", "recurrent.l0")))
    assert [figure.table["token"][:3] for figure in figures] == [["0", "1", "2"]] * 2


def test_a_still_layer_and_a_broken_one_are_told_apart(little_audit):
    arguments = {"cell": "lstm", "inputs": 4, "width": 6, "outputs": 3}
    audit = little_audit("stratascope.tasks.models:recurrent_classifier", arguments)
    series = np.random.default_rng(0).normal(size=(8, 9, 4)).astype(np.float32)
    audit.probe("test", "test", inputs=series, targets=np.arange(8) % 3)
    network = recurrent_classifier(**arguments)
    with torch.no_grad():
        network.recurrent.weight_ih_l0[12:14] = 0
        network.recurrent.weight_hh_l0[12:14] = 0
        network.recurrent.bias_ih_l0[12:14] = 0
        network.recurrent.bias_hh_l0[12:14] = 0
        audit.checkpoint(0, network)
        network.recurrent.weight_hh_l0[:] = torch.nan
        audit.checkpoint(1, network)
    rows = audit.analyse("recurrent_state")
    still = rows[(rows["metric"] == "still_fraction") & (rows["step"] == 0)]
    assert still["value"].tolist() == [pytest.approx(2 / 6)]
    broken = rows[(rows["step"] == 1) & (rows["layer"] != "")]
    assert set(broken["status"]) == {"failed"}
    assert "not all finite" in broken["reason"].iloc[0]


OWN_NETWORK = """
import torch
from torch import nn
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.projected = nn.LSTM(4, 6, proj_size=3)
        self.cell = nn.GRUCell(3, 5)
        self.fc = nn.Linear(5, 3)
    def forward(self, inputs):
        hidden, _ = self.projected(inputs.transpose(0, 1))
        last = None
        for step in hidden:
            last = self.cell(step, last)
        return self.fc(last)
def build():
    return Own()
"""


def test_a_network_of_ones_own_with_a_projection_and_a_cell(little_audit):
    audit = little_audit()
    name = f"{audit.module}_network"
    (audit.folder / f"{name}.py").write_text(OWN_NETWORK)
    audit.source = audit.source.model_copy(update={"model": ModelSpec(factory=f"{name}:build")})
    series = np.random.default_rng(0).normal(size=(9, 7, 4)).astype(np.float32)
    audit.probe("test", "test", inputs=series, targets=np.arange(9) % 3)
    torch.manual_seed(0)
    made: dict = {}
    exec(OWN_NETWORK, made)
    audit.checkpoint(0, made["build"]())
    rows = audit.analyse("recurrent_state", most_units=5)
    wide = rows[rows["status"] != "ok"]
    assert set(wide["layer"]) == {"projected.l0"}
    assert set(wide["metric"]) == {"recurrent_spectral_radius"}
    arrays = arrays_of(audit, 0)
    assert arrays["test/projected.l0/hidden"].shape == (4, 7, 3)
    assert arrays["test/projected.l0/cell_state"].shape == (4, 7, 6)
    assert arrays["test/cell/gates"].shape == (4, 7, 3, 5)
    assert arrays["test/cell/eigenvalues"].shape == (3, 5, 2)
    assert len(audit.draw("recurrent_state")) == 10


def test_a_network_without_recurrence_is_told_so(little_audit):
    audit = little_audit("stratascope.tasks.models:mlp", {"inputs": 12, "widths": [4], "outputs": 3})
    audit.probe("test", "test", inputs=np.zeros((4, 12), np.float32), targets=np.arange(4) % 3)
    audit.checkpoint(0, mlp(inputs=12, widths=[4], outputs=3))
    rows = audit.analyse("recurrent_state")
    assert set(rows["status"]) == {"does_not_apply"}
    assert "no recurrent layer" in rows["reason"].iloc[0]
