"""Noise and agreement of samples' gradients: against closed forms, known Gaussians, and a real little audit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.tasks.vision.gradient_flow import GradientFlowOptions, flow_rows
from stratascope.tasks.vision.gradient_noise import (
    GradientSums,
    class_cosines,
    depth_slope,
    gradient_noise,
    noise_interval,
    off_diagonal,
)


def sums_of(gradients: dict[str, np.ndarray], classes=None, size=16, groups=10) -> GradientSums:
    count = len(next(iter(gradients.values())))
    number = 0 if classes is None else int(classes.max()) + 1
    sums = GradientSums(np.arange(count) % groups, classes, number)
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        sums.add(rows, {name: torch.from_numpy(values[rows]) for name, values in gradients.items()})
    return sums


def gaussian(count: int, seed: int = 0) -> np.ndarray:
    """Gradients of 50 weights with mean 0.3 and standard deviation 2: tr Σ = 200, |G|² = 4.5, B = 44.4."""
    return np.random.default_rng(seed).normal(0.3, 2.0, (count, 50))


def test_the_noise_scale_of_a_known_gaussian_without_bias():
    """The mean of both estimates over many draws is the truth, and the interval holds the true scale about as often as it says."""
    variances, signals, inside = [], [], 0
    for seed in range(200):
        sums = sums_of({"a.weight": gaussian(400, seed)}, size=400)
        squared, products = sums.norms()[""] ** 2, sums.group_products()[""]
        noise = gradient_noise(400, squared.mean(), products.sum() / 400**2)
        variances.append(noise.variance)
        signals.append(noise.signal)
        low, high = noise_interval(squared, sums.groups, products)
        inside += low < 200 / 4.5 < high
    assert np.mean(variances) == pytest.approx(200, rel=0.01)
    assert np.mean(signals) == pytest.approx(4.5, abs=3 * np.std(signals) / np.sqrt(200))
    assert 175 <= inside <= 200


def test_it_is_the_formula_of_mccandlish_with_batches_of_one_and_all():
    values = gaussian(30)
    small, big = (values**2).sum(1).mean(), (values.mean(0) ** 2).sum()
    noise = gradient_noise(30, small, big)
    assert noise.signal == pytest.approx((30 * big - small) / 29)
    assert noise.variance == pytest.approx((small - big) / (1 - 1 / 30))
    assert noise.variance == pytest.approx(values.var(0, ddof=1).sum())


def test_signal_to_noise_of_a_known_gaussian_and_of_weights_that_never_differ():
    values = gaussian(2000)
    values[:, :10] = 0.7
    found, weights = sums_of({"a.weight": values}).signal_to_noise()["a"]
    assert weights == 40
    # The expectation of one by an unbiased variance of n samples is (n - 1)/(n - 3) by the true one.
    assert found == pytest.approx(0.3**2 / 2**2, abs=4e-3)
    nothing, weights = sums_of({"a.weight": np.ones((20, 3))}).signal_to_noise()["a"]
    assert np.isnan(nothing)
    assert weights == 0


@pytest.mark.parametrize("size", [1, 7, 60])
def test_nothing_depends_on_the_batches(size: int):
    gradients = {"a.weight": gaussian(60).reshape(60, 5, 10), "a.bias": gaussian(60, 1), "b.weight": gaussian(60, 2)}  # fmt: skip
    classes = np.arange(60) % 3
    one, other = sums_of(gradients, classes), sums_of(gradients, classes, size)
    for layer in ("", "a", "b"):
        np.testing.assert_allclose(one.norms()[layer], other.norms()[layer], rtol=1e-12)
        np.testing.assert_allclose(one.class_products()[layer], other.class_products()[layer], rtol=1e-9, atol=1e-9)  # fmt: skip
        assert one.signal_to_noise()[layer] == pytest.approx(other.signal_to_noise()[layer])
    flat = np.concatenate([values.reshape(60, -1) for values in gradients.values()], 1)
    np.testing.assert_allclose(one.norms()[""], np.linalg.norm(flat, axis=1))
    means = np.stack([flat[classes == value].mean(0) for value in range(3)])
    expected = means @ means.T / np.outer(np.linalg.norm(means, axis=1), np.linalg.norm(means, axis=1))
    np.testing.assert_allclose(class_cosines(one.class_products()[""]), expected, atol=1e-9)


def test_classes_that_pull_against_each_other():
    directions = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    classes = np.arange(30) % 3
    cosines = class_cosines(sums_of({"a.weight": directions[classes]}, classes).class_products()["a"])
    np.testing.assert_allclose(cosines, [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-12)
    assert off_diagonal(cosines).tolist() == [-1.0, 0.0, 0.0]
    rows = rows_of({"a.weight": directions[classes]}, classes=classes, labels=("x", "y", "z%"))
    assert rows["gradient_alignment", "a", ""].value == pytest.approx(-1 / 3)
    assert rows["gradient_conflict_fraction", "a", ""].value == pytest.approx(1 / 3)
    assert rows["gradient_alignment", "", "class=z%25"].value == pytest.approx(0)


def rows_of(gradients, classes=None, labels=(), weighted=("a", "b", "c")):
    sums = sums_of(gradients, classes)
    layers = ["", *dict.fromkeys(name.rpartition(".")[0] for name in gradients)]
    found = flow_rows("probe", sums, layers, weighted, GradientFlowOptions(), labels)
    return {(row.metric, row.layer, row.part): row for row in found}


@pytest.mark.parametrize(("shrink", "vanishing", "exploding"), [(1e-2, 1, 0), (1e2, 0, 1), (0.5, 0, 0)])
def test_gradients_that_shrink_or_grow_on_their_way_back(shrink: float, vanishing: int, exploding: int):
    base = gaussian(40)
    rows = rows_of({"a.weight": base * shrink**2, "b.weight": base * shrink, "c.weight": base})
    assert rows["vanishing_gradient", "", ""].value == vanishing
    assert rows["exploding_gradient", "", ""].value == exploding
    assert rows["gradient_depth_slope", "", ""].value == pytest.approx(-np.log10(shrink))
    assert f"a ratio of {shrink**2:.3g}" in rows["vanishing_gradient", "", ""].reason


def test_what_cannot_be_said_says_why():
    alike = rows_of({"a.weight": np.ones((20, 3)), "b.weight": np.zeros((20, 3))})
    row = alike["gradient_noise_scale", "a", ""]
    assert (row.status, row.reason) == ("does_not_apply", "the gradients of all samples are alike")
    assert "targets are no classes" in alike["gradient_alignment", "", ""].reason
    assert "fewer than three layers" in alike["gradient_depth_slope", "", ""].reason
    assert alike["exploding_gradient", "", ""].value == 1
    hidden = np.concatenate([np.eye(8), -np.eye(8)])
    assert "not told from zero" in rows_of({"a.weight": hidden})["gradient_noise_scale", "a", ""].reason
    broken = gaussian(20)
    broken[3, 3] = np.inf
    rows = rows_of({"a.weight": broken})
    assert rows["exploding_gradient", "", ""].value == 1
    assert rows["sample_gradient_norm", "", ""].status == "failed"
    assert "1 of 20 samples are not finite" in rows["sample_gradient_norm", "", ""].reason
    assert np.isnan(depth_slope(np.ones(2)))


def test_an_audit_has_all_of_it_and_its_mean_is_that_of_gradients(pictured_audit):
    rows = pictured_audit.analyse("gradient_flow", max_samples=24, batch_size=16)
    assert set(rows[rows.status != "ok"].metric) <= {"gradient_noise_scale"}
    wide = rows[(rows.metric == "sample_gradient_norm") & (rows.layer == "") & (rows.part == "quantile=0.5")]
    assert len(wide) == 6
    arrays = pictured_audit.view("gradient_flow").arrays(10)
    assert arrays["test/norm"].shape == (len(arrays["test/layer"]), 24)
    assert arrays["test/layer"][0] == ""
    assert (np.diff(arrays["test/norm_quantiles"], axis=1) >= 0).all()
    assert arrays["test/alignment"].shape[1:] == (4, 4)
    assert (arrays["test/mean_norm"] <= arrays["test/norm"].mean(1) * (1 + 1e-5)).all()
    figures = {figure.key: figure for figure in pictured_audit.draw("gradient_flow")}
    assert {"norms-test", "norm-spread-test", "noise-scale", "alignment-test", "alignment-train"} <= set(figures)
    assert [step for step, _ in figures["alignment-test"].frames] == [0, 10, 40]
    for figure in figures.values():
        assert "nan" not in figure.caution
