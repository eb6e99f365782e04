"""The search finds the unit that was planted, says when it came to be, and finds nothing where there is nothing."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.tasks.models import mlp
from stratascope.tasks.sequence.cell_search import scan
from stratascope.tasks.sequence.given_features import feature_table
from stratascope.tasks.sequence.interpretable_cells_over_training import formed_at
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_samples
from tests.tasks.sequence.planted_cells import ARGUMENTS, PLANTED, bracket_audit

FACTORY = "stratascope.tasks.models:character_model"
OPTIONS = {"permutations": 19_999, "batch_size": 16, "features": {"letter_b": "re:b"}}


@pytest.fixture(scope="module")
def planted(lasting_audit):
    audit = bracket_audit(lasting_audit(FACTORY, ARGUMENTS, task="tokens"))
    return audit, audit.analyse("interpretable_cells", **OPTIONS)


def best(rows, feature, metric, step=10, probe="test"):
    found = rows[(rows.metric == metric) & (rows.step == step) & (rows.probe == probe) & rows.part.str.startswith(f"feature={feature};")]  # fmt: skip
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("probe", ["test", "train"])
def test_the_planted_unit_is_the_one_that_is_found(planted, probe):
    score = best(planted[1], "inside_brackets", "cell_feature_score", probe=probe)
    assert score.part == f"feature=inside_brackets;state=cell;unit={PLANTED}"
    assert score.value > 0.99
    assert score.low <= score.value <= score.high
    assert best(planted[1], "inside_brackets", "cell_feature_auc", probe=probe).value == 1
    assert best(planted[1], "inside_brackets", "cell_feature_p_value", probe=probe).value < 0.001


def test_random_weights_hold_it_far_less(planted):
    assert best(planted[1], "inside_brackets", "cell_feature_score", step=0).value < 0.75


def test_a_feature_of_the_user_is_looked_for(planted):
    assert best(planted[1], "letter_b", "cell_feature_score").value > 0.3


def test_the_size_of_a_batch_is_no_part_of_the_result(planted, lasting_audit):
    audit = bracket_audit(lasting_audit(FACTORY, ARGUMENTS, task="tokens"), steps=(10,))
    other = audit.analyse("interpretable_cells", **{**OPTIONS, "batch_size": 7})
    rows = planted[1][planted[1].step == 10]
    assert rows.part.tolist() == other.part.tolist()
    np.testing.assert_allclose(rows.value, other.value, atol=1e-5)


def test_its_history_begins_where_it_was_planted(planted):
    rows = planted[0].analyse("interpretable_cells_over_training")
    assert best(rows, "inside_brackets", "cell_formation_step", step=-1).value == 10
    assert best(rows, "inside_brackets", "cell_feature_gain", step=-1).value > 0.3
    followed = rows[(rows.metric == "followed_cell_score") & (rows.probe == "test") & rows.part.str.startswith("feature=inside_brackets")]  # fmt: skip
    assert followed[followed.step == 10].value.iloc[0] == pytest.approx(best(planted[1], "inside_brackets", "cell_feature_score").value, abs=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", ["interpretable_cells", "interpretable_cells_over_training"])
def test_every_picture_is_drawn_with_all_its_words(planted, name):
    planted[0].analyse("interpretable_cells_over_training")
    figures = planted[0].draw(name)
    assert len(figures) >= 4
    for figure in figures:
        assert "nan" not in figure.caution.lower().split()
        assert figure.svg or figure.frames
    if name == "interpretable_cells":
        texts = [figure for figure in figures if figure.key.startswith("text-")]
        assert "inside brackets" in texts[0].title
        assert [step for step, _ in texts[0].frames] == [0, 10]


@pytest.mark.parametrize(
    ("scores", "place"),
    [([0.1, 0.2, 0.9, 1.0], 2), ([0.1, 0.9, 0.2, 1.0], 3), ([0.6, 0.9, 1.0], 0), ([np.nan, 0.6, 1.0], 1)],
)
def test_a_cell_is_formed_where_it_stays(scores, place):
    assert formed_at(np.array(scores), 0.5) == place


@pytest.mark.parametrize("name", ["interpretable_cells", "state_patterns"])
def test_a_network_without_recurrent_layers_is_told_so(little_audit, name):
    audit = little_audit(args={"inputs": 4, "widths": [3], "outputs": 2})
    audit.probe("test", inputs=np.zeros((6, 4), np.float32), targets=np.arange(6) % 2)
    audit.checkpoint(0, mlp(inputs=4, widths=[3], outputs=2))
    rows = audit.analyse(name)
    assert set(rows.status) == {"does_not_apply"}
    assert rows.reason.str.contains("no recurrent layer").all()


class TwoReaders(torch.nn.Module):
    """Reads `source` packed, to its own length, and `target` as it is; both are equally long with their padding."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 5)
        self.encoder = torch.nn.GRU(5, 4, batch_first=True)
        self.decoder = torch.nn.GRU(5, 4, batch_first=True)

    def forward(self, inputs):
        lengths = (inputs["source"] != 0).sum(1)
        packed = pack_padded_sequence(
            self.embedding(inputs["source"]), lengths, batch_first=True, enforce_sorted=False
        )
        self.encoder(packed)
        return self.decoder(self.embedding(inputs["target"]))[0]


def two_probe(count=12):
    generator = np.random.default_rng(0)
    source = np.where(
        np.arange(8) < generator.integers(2, 6, count)[:, None], generator.integers(1, 9, (count, 8)), 0
    )
    inputs = {
        "alignment": np.zeros((count, 8), np.int64),
        "source": source,
        "target": generator.integers(1, 9, (count, 8)),
    }
    names = {"source": tuple("_abcdefgh"), "target": tuple("_ABCDEFGH")}
    masks = {"source": source != 0}
    return Probe("test", "test", inputs, None, np.arange(count), (), "digest", "text", None, masks, names)


@pytest.mark.parametrize("size", [3, 12])
def test_each_layer_is_held_against_the_input_that_it_reads(size):
    torch.manual_seed(0)
    network = SequenceNetwork(TwoReaders().eval(), ModelSpec(factory="none:none"))
    samples = sequence_samples(two_probe(), SequenceOptions())
    tables = {name: feature_table(samples, ("vowel",), {}, None, name) for name in ("source", "target")}
    found = scan(network, samples, tables, size, 128)
    assert {name: [one.place[0] for one in scans] for name, scans in found.items()} == {
        "source": ["encoder.l0"], "target": ["decoder.l0"],
    }  # fmt: skip
    whole = scan(network, samples, tables, 5, 128)
    np.testing.assert_allclose(found["source"][0].z, whole["source"][0].z, atol=1e-4)


def test_a_function_of_the_user_and_the_targets_are_features(planted):
    audit = planted[0]
    (audit.folder / "features_of_mine.py").write_text(
        "def number(words):\n    return [float(word == 'c') for word in words]\n"
    )
    options = {
        "permutations": 199,
        "built_in": [],
        "features": {"mine": "features_of_mine:number", "next": "targets"},
    }
    rows = audit.analyse("interpretable_cells", **options)
    names = set(rows.part.str.extract("feature=([^;]+)")[0].dropna())
    assert names == {"mine", "next"}
