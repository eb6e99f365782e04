"""Select and match: against a search that looks at every stretch, and on a unit that is on inside brackets."""

import csv
import json

import h5py
import numpy as np
import pytest

from stratascope import export_lstmvis
from stratascope.errors import ConfigurationError, StoreError
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.sequence.lstmvis_export import dictionary_words
from stratascope.tasks.sequence.state_matching import matches, selected_units, switched_on
from stratascope.tasks.sequence.state_patterns import StatePatternsOptions, foretold
from stratascope.tasks.vision.image_network import ImageNetwork
from tests.tasks.sequence.planted_cells import ARGUMENTS, LENGTH, PLANTED, WINDOWS, bracket_audit, counting_network

FACTORY = "stratascope.tasks.models:character_model"


def test_selected_units_are_on_inside_and_off_somewhere_around():
    on = np.array([[0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 0]], bool)
    assert selected_units(on, 2, 4, 1, 1).tolist() == [True, False, False, False]
    assert selected_units(on, 2, 4, 2, 1).tolist() == [True, False, True, False]
    assert selected_units(on, 2, 4, 0, 0).tolist() == [True, True, True, False]


def test_a_negative_unit_is_a_unit_of_its_own():
    states = np.array([[[0.5, -0.5, 0.1]]])
    assert switched_on(states, 0.3, True).tolist() == [[[True, False, False, False, True, False]]]
    assert switched_on(states, 0.3, False).tolist() == [[[True, False, False]]]


def test_matches_are_all_maximal_stretches_the_longest_first():
    generator = np.random.default_rng(0)
    on, real = generator.random((6, 15, 4)) < 0.75, np.arange(15) < generator.integers(5, 16, 6)[:, None]
    units = np.array([True, True, False, False])
    wanted = set()
    for sample in range(6):
        good = on[sample, :, 0] & on[sample, :, 1] & real[sample]
        for start in range(15):
            for stop in range(start + 2, 16):
                before, after = start > 0 and good[start - 1], stop < 15 and good[stop]
                if good[start:stop].all() and not before and not after:
                    wanted.add((sample + 10, start, stop, on[sample, start:stop, 2:].sum(1).mean()))
    found = matches(on, real, units, 2, 10)
    assert {(match.sample, match.start, match.stop, match.others) for match in found} == wanted
    assert [match.length for match in found] == sorted((match.length for match in found), reverse=True)
    assert matches(on, real, np.zeros(4, bool)) == []


@pytest.fixture(scope="module")
def patterns(lasting_audit):
    audit = bracket_audit(lasting_audit(FACTORY, ARGUMENTS, task="tokens"))
    return audit, audit.analyse("state_patterns", keep_states=True, batch_size=16, threshold=0.6)


def test_the_unit_of_the_selected_brackets_matches_other_brackets(patterns):
    audit, rows = patterns
    own = rows[(rows.probe == "test") & (rows.step == 10)].set_index("metric")
    assert "inside_brackets" in own.convention["pattern_precision"]
    assert own.value["pattern_precision"] > 0.9
    arrays = audit.view("state_patterns").arrays(10)
    units = arrays["test/input/recurrent.l0/cell/range_0/unit"].tolist()
    assert PLANTED in units
    assert own.value["pattern_units"] == len(units)


def test_a_named_range_is_taken_and_a_wrong_one_refused(patterns):
    audit = patterns[0]
    sample = int(audit.view("state_patterns").arrays(10)["test/input/sample_id"][0])
    rows = audit.analyse("state_patterns", ranges=[[sample, 3, 9]])
    own = rows[(rows.probe == "test") & (rows.metric == "pattern_units")]
    assert own.convention.str.startswith(f"sample {sample}, tokens 3 to 8").all()
    refused = audit.analyse("state_patterns", ranges=[[sample, 3, 99]])
    assert refused[refused.probe == "test"].reason.str.contains("outside of sample").all()
    audit.analyse("state_patterns", keep_states=True, batch_size=16, threshold=0.6)


def test_every_picture_is_drawn(patterns):
    figures = patterns[0].draw("state_patterns")
    assert any(figure.key.startswith("matches") for figure in figures)
    assert all("nan" not in figure.caution.lower().split() for figure in figures)


def test_the_export_is_what_lstmvis_reads(patterns, tmp_path):
    audit = patterns[0]
    audit.analyse("state_patterns", keep_states=True, batch_size=16, threshold=0.6)
    export_lstmvis(audit.store.path, "run", 10, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "lstm.yml").read_text())
    # As LSTMVis reads them: every line of the dictionary parts into a word and a number at its blank.
    lines = (tmp_path / "out" / about["files"]["words"]).read_text().splitlines()
    words = {int(number): word for word, number in (line.split() for line in lines)}
    with h5py.File(tmp_path / "out" / about["files"]["word_ids"]) as file:
        ids = file[about["word_sequence"]["path"]][:]
    with h5py.File(tmp_path / "out" / about["files"]["states"]) as file:
        states = {item["type"]: file[item["path"]][:] for item in about["states"]["types"]}
    assert states["state"].shape == (WINDOWS * LENGTH, ARGUMENTS["width"])
    inside = np.zeros(len(ids), bool)
    for start in range(0, len(ids), LENGTH):
        depth = 0
        for place in range(start, start + LENGTH):
            depth += {"(": 1, ")": -1}.get(words[ids[place]], 0)
            inside[place] = depth > 0
    np.testing.assert_allclose(states["state"][:, PLANTED], np.where(inside, np.tanh(1), 0), atol=1e-3)
    with open(tmp_path / "out" / "samples.csv", newline="") as stream:
        assert [int(row["first_step"]) for row in csv.DictReader(stream)][:3] == [0, LENGTH, 2 * LENGTH]


def test_the_size_of_the_states_is_told_beforehand(patterns):
    network = ImageNetwork(counting_network().eval(), ModelSpec(factory="none:none"))
    probe = patterns[0].subject.probes_of(patterns[0].store)["test"]
    said = foretold(network, probe, StatePatternsOptions(keep_states=True))
    assert f"{2 * WINDOWS * LENGTH * ARGUMENTS['width'] / 1e6:.3g} MB" in said
    assert "no states" in foretold(network, probe, StatePatternsOptions())


def test_an_export_of_what_is_not_there_says_what_to_do(patterns, tmp_path):
    audit = patterns[0]
    with pytest.raises(StoreError, match="keep_states"):
        export_lstmvis(audit.store.path, "run", 10, tmp_path, probe="other")
    with pytest.raises(ConfigurationError, match="no states of layer"):
        export_lstmvis(audit.store.path, "run", 10, tmp_path, layers=["recurrent.l7"])


def test_no_word_of_the_dictionary_is_parted_or_stands_twice():
    words = dictionary_words((" ", "\n", "␣", "a b", "\u2003", "a"), 7)
    assert words == ["␣", "↵", "␣#2", "a␣b", "U+2003", "a", "6"]
