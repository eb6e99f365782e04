"""The tests of maps know a right map from a wrong one, and say which methods failed on this network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from scipy.stats import pearsonr
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision import map_tests
from stratascope.tasks.vision.map_similarity import rank_correlations
from stratascope.tasks.vision.trust_marks import failed_methods
from stratascope.tasks.vision.weight_randomization import cascade, weighted_modules
from tests.tasks.vision.conftest import wrapped

WEIGHTS = np.random.default_rng(0).normal(size=(2, 6, 7)).astype(np.float32)


def linear(pictures: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (pictures.astype(np.float64) * WEIGHTS).sum((1, 2, 3))


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 2, 6, 7)).astype(np.float32)


def test_the_true_map_of_a_linear_score_deletes_and_inserts_best(inputs):
    true = (inputs * WEIGHTS).sum(1)
    zero = np.zeros_like(inputs)
    shares = np.linspace(0, 1, 11)
    areas = {}
    for name, importance in (("true", true), ("opposite", -true), ("other", np.random.default_rng(2).normal(size=true.shape))):  # fmt: skip
        deletion, insertion = map_tests.exchange_curves(linear, inputs, zero, importance, shares)
        np.testing.assert_allclose(deletion[:, 0], linear(inputs, None), rtol=1e-6)
        np.testing.assert_allclose(deletion[:, -1], 0, atol=1e-6)
        np.testing.assert_allclose(
            insertion[:, ::-1] + 0, linear(inputs, None)[:, None] - deletion[:, ::-1], atol=1e-5
        )
        areas[name] = map_tests.area_below(deletion, shares), map_tests.area_below(insertion, shares)
    assert (areas["true"][0] < areas["other"][0]).all()
    assert (areas["other"][0] < areas["opposite"][0]).all()
    assert (areas["true"][1] > areas["other"][1]).all()


def test_area_below_a_line():
    assert map_tests.area_below(np.array([[1.0, 0.0], [1.0, 1.0]]), [0.0, 1.0]).tolist() == [0.5, 1.0]
    assert map_tests.area_below(np.array([[0.0, 1.0, 1.0]]), [0.0, 0.5, 1.0]).tolist() == [0.75]


def test_removed_pixels_are_the_weighted_mean_of_their_neighbours():
    picture = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    removed = np.zeros((5, 6), bool)
    removed[2, 3] = True
    found = map_tests.imputed(picture, removed, np.zeros_like(picture))
    near = picture[:, 1:4, 2:5].astype(np.float64)
    kernel = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    np.testing.assert_allclose(found[:, 2, 3], (near * kernel).sum((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(found[:, ~removed], picture[:, ~removed])


def test_a_slope_is_filled_as_a_slope_and_a_corner_from_what_is_there():
    """The system's solution is harmonic: a linear picture is its own, and all removed means the mean."""
    y, x = np.mgrid[:7, :8]
    slope = (2.0 * y - x)[None].astype(np.float32)
    removed = np.zeros((7, 8), bool)
    removed[2:5, 3:6] = True
    np.testing.assert_allclose(map_tests.imputed(slope, removed, np.zeros_like(slope)), slope, atol=1e-4)
    corner = np.zeros((7, 8), bool)
    corner[0, 0] = True
    expected = (slope[0, 0, 1] * 2 + slope[0, 1, 0] * 2 + slope[0, 1, 1]) / 5
    assert map_tests.imputed(slope, corner, np.zeros_like(slope))[0, 0, 0] == pytest.approx(expected)
    whole = map_tests.imputed(slope, np.ones((7, 8), bool), np.zeros_like(slope))
    np.testing.assert_allclose(whole, slope.mean(), atol=1e-5)


def test_road_gives_a_random_order_nothing_and_the_opposite_map_the_opposite(inputs):
    true = (inputs * WEIGHTS).sum(1)
    noise = np.zeros_like(inputs)
    scores = []
    for importance in (true, -true):
        most, least = map_tests.road_scores(linear, inputs, importance, noise, (0.2, 0.5))
        scores.append((least - most).mean(1) / 2)
    np.testing.assert_allclose(scores[0], -scores[1], atol=1e-5)
    assert (scores[0] > 0).all()


def test_infidelity_of_a_linear_score(inputs):
    noise = np.random.default_rng(3).normal(size=(5, 40, 2, 6, 7)).astype(np.float32)
    maps = np.repeat(WEIGHTS[None], 5, 0)
    np.testing.assert_allclose(map_tests.infidelity(linear, inputs, maps, noise), 0, atol=1e-6)
    np.testing.assert_allclose(map_tests.infidelity(linear, inputs, 3 * maps, noise), 0, atol=1e-6)
    np.testing.assert_allclose(map_tests.infidelity(linear, inputs, 0 * maps, noise), 1)
    assert np.isnan(
        map_tests.infidelity(lambda pictures, rows: np.zeros(len(pictures)), inputs, maps, noise)
    ).all()


def test_infidelity_equals_captums_normalized_one(inputs):
    """captum divides by the best factor too; its perturbations are handed the very noise that ours has."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(84, 8), nn.Tanh(), nn.Linear(8, 1))
    noise = 0.3 * np.random.default_rng(3).normal(size=(5, 30, 2, 6, 7)).astype(np.float32)
    maps = np.random.default_rng(4).normal(size=inputs.shape).astype(np.float32)

    def score(pictures, rows):
        with torch.no_grad():
            return network(torch.from_numpy(np.asarray(pictures, np.float32))).double().numpy()[:, 0]

    ours = map_tests.infidelity(score, inputs, maps, noise)
    for row in range(5):

        def perturb(given, row=row):
            made = torch.from_numpy(noise[row])
            return made, given - made

        theirs = captum_infidelity(
            lambda pictures: network(pictures)[:, 0], perturb, torch.from_numpy(inputs[row : row + 1]),
            torch.from_numpy(maps[row : row + 1]), n_perturb_samples=30, normalize=True,
        )  # fmt: skip
        changes = score(inputs[row : row + 1], None) - score(inputs[row] - noise[row], None)
        assert ours[row] == pytest.approx(float(theirs) / (changes**2).mean(), rel=1e-3)


def test_confidence_drop_with_a_map_of_ones_and_of_zeros(inputs):
    zero = np.zeros_like(inputs)
    np.testing.assert_allclose(map_tests.confidence_drop(linear, inputs, zero, np.ones((5, 6, 7))), 0, atol=1e-6)
    np.testing.assert_allclose(map_tests.confidence_drop(linear, inputs, zero, np.zeros((5, 6, 7))), linear(inputs, None))  # fmt: skip


def test_the_cascade_shuffles_from_the_last_layer_and_leaves_the_network_alone():
    from stratascope.tasks.models import convnet

    network = wrapped(convnet(1, (4, 5), 3))
    before = {name: value.clone() for name, value in network.network.state_dict().items()}
    assert weighted_modules(network) == ["conv1", "conv2", "fc"]
    changed = []
    for share, copied in cascade(network, (0.0, 0.67, 1.0), 0):
        state = copied.network.state_dict()
        changed.append(
            (share, {name.split(".")[0] for name in state if not torch.equal(state[name], before[name])})
        )
        assert (
            pearsonr(*(np.sort(item["fc.weight"].numpy().ravel()) for item in (state, before))).statistic
            > 0.999999
        )
    assert changed == [(0.0, {"fc"}), (0.67, {"fc", "conv2"}), (1.0, {"fc", "conv2", "conv1"})]
    assert all(torch.equal(value, before[name]) for name, value in network.network.state_dict().items())
    again = [copied.network.state_dict()["fc.weight"] for _, copied in cascade(network, (0.0,), 0)]
    assert torch.equal(again[0], next(iter(cascade(network, (0.0,), 0)))[1].network.state_dict()["fc.weight"])
    with pytest.raises(DoesNotApply, match="no weights"):
        next(cascade(wrapped(nn.Flatten()), (1.0,), 0))


def test_an_audit_finds_who_can_be_trusted(pictured_audit):
    options = {"samples": 12, "methods": ("gradient_times_input", "integrated_gradients"), "cam_methods": ("grad_cam",), "draws": 8, "nudges": 1, "shuffled": (1.0,)}  # fmt: skip
    rows = pictured_audit.analyse("attribution_trust", **options)
    last = rows[(rows["step"] == 40) & (rows["probe"] == "test")].set_index(["metric", "part"])
    assert abs(last.loc[("road_score", "method=random"), "value"].item()) < 0.1
    assert last.loc[("road_score", "method=integrated_gradients"), "value"].item() > 0.1
    assert last.loc[("shuffled_weights_similarity", "method=edges;shuffled=1"), "value"].item() == pytest.approx(1)
    assert last.loc[("attribution_trusted", "method=integrated_gradients"), "value"].item() == 1
    marks = failed_methods(pictured_audit.view("attribution_trust"), "test")
    assert "knows nothing" in marks["random"]
    assert "hardly change" in marks["edges"]
    assert "integrated_gradients" not in marks
    arrays = pictured_audit.view("attribution_trust").arrays(40)
    assert arrays["test/random/deletion"].shape == (12, 11)
    assert arrays["test/grad_cam/road"].shape == (12, 2, 4)
    figures = {figure.key: figure for figure in pictured_audit.draw("attribution_trust")}
    assert {"ranking-test", "verdicts-test", "deletion-test", "insertion-test", "shuffled-test", "infidelity-test", "max_sensitivity-test"} == set(figures)  # fmt: skip
    assert "failed" not in figures["ranking-test"].title
    assert "random order" in figures["ranking-test"].svg


def test_too_few_samples_are_not_judged(pictured_audit):
    rows = pictured_audit.analyse(
        "attribution_trust", samples=3, methods=("gradient",), cam_methods=(), nudges=0, draws=2
    )
    verdicts = rows[(rows["metric"] == "attribution_trusted") & (rows["part"] == "method=gradient")]
    assert set(verdicts["status"]) == {"does_not_apply"}
    assert verdicts["reason"].str.contains("3 samples are too few").all()
    assert not (rows["metric"] == "max_sensitivity").any()


def test_rank_correlation_of_equal_orders_is_one():
    values = np.random.default_rng(0).normal(size=(3, 4, 5))
    np.testing.assert_allclose(rank_correlations(values, np.exp(values)), 1)


def test_figures_of_a_failed_method_are_marked():
    from stratascope.tasks.analysis import Figure
    from stratascope.tasks.vision.trust_marks import marked

    def figure(title: str, methods: list[str]) -> Figure:
        words = dict.fromkeys(("shows", "reading", "caution", "audience", "practitioner", "researcher"), "Words.")
        return Figure(key="key", title=title, probe="test", table={"method": methods}, **words)

    failed = {"test": {"grad_cam": "it is blind"}}
    titles = {"grad_cam": "Grad-CAM", "eigen": "Eigen-Grad-CAM"}
    drawn = [figure("Eigen-Grad-CAM over steps", ["eigen"]), figure("Grad-CAM over steps", []), figure("All maps", ["eigen", "grad_cam"])]  # fmt: skip
    found = list(marked(drawn, failed, titles))
    assert [item.title.endswith("(with a warning)") for item in found] == [False, True, True]
    assert found[0] == drawn[0]
    assert "Grad-CAM: it is blind" in found[2].caution
