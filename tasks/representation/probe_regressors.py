"""Ridge regression on features for targets that are amounts: the same path, folds and choice as the classifiers have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from stratascope.tasks.representation.probe_classifiers import CrossValidated


class RidgePath:
    """Ridge regressions on one training set for every penalty 1 / C and any number of targets, from one decomposition.

    Minimises ‖y - Xw - b‖² + ‖w‖² / C, b unpenalised (Hoerl and Kennard 1970); exact, whatever the scale of y.
    """

    def __init__(self, features: np.ndarray, path: Sequence[float]) -> None:
        from scipy.linalg import eigh

        self.mean = features.mean(0)
        self.centred = features - self.mean
        sizes, self.axes = eigh(self.centred.T @ self.centred)
        self.shrink = 1.0 / (np.clip(sizes, 0, None)[None] + 1.0 / np.asarray(path)[:, None])
        self.turned = self.axes.T @ self.centred.T

    def coefficients(self, targets: np.ndarray) -> np.ndarray:
        """float64 (C, feature) for `targets` (sample,) of the training set, centred."""
        found: np.ndarray = (self.shrink * (self.turned @ targets)) @ self.axes.T
        return found


def cross_validated_ridge(
    features: np.ndarray, targets: np.ndarray, fold: np.ndarray, path: Sequence[float]
) -> CrossValidated:
    """Nested cross-validation of ridge regression of `targets` (sample,) on `features` (sample, feature).

    As `cross_validated`, C chosen by the least squared error. Scores are R² about the mean of the samples that are
    scored; the targets must not be constant.
    """
    count = int(fold.max()) + 1
    shape = (count, len(path))
    inner = np.zeros(shape)
    for one, other in combinations(range(count), 2):
        train = (fold != one) & (fold != other)
        for outer, test in ((one, fold == other), (other, fold == one)):
            errors = _predictions(features, targets, train, test, path)[0] - targets[test]
            inner[outer] += (errors**2).sum(1)
    chosen = inner.argmin(1)
    predicted = np.empty(len(targets))
    train_score, held_out, loss, norm = (np.empty(shape) for _ in range(4))
    for number in range(count):
        test = fold == number
        given, norm[number] = _predictions(features, targets, ~test, test, path)
        fitted, _ = _predictions(features, targets, ~test, ~test, path)
        predicted[test] = given[chosen[number]]
        loss[number] = ((given - targets[test]) ** 2).mean(1)
        held_out[number] = [explained(targets[test], row) for row in given]
        train_score[number] = [explained(targets[~test], row) for row in fitted]
    return CrossValidated(predicted, chosen, train_score, held_out, loss, norm)


def permuted_r2(
    features: np.ndarray, orders: Sequence[np.ndarray], targets: np.ndarray, fold: np.ndarray, strength: float
) -> np.ndarray:
    """float64 (round,): R² of held-out predictions where targets are put in each of `orders`; one C, one decomposition."""
    found = np.empty((len(orders), len(targets)))
    for number in range(int(fold.max()) + 1):
        test = fold == number
        path = RidgePath(features[~test], (strength,))
        for place, order in enumerate(orders):
            shuffled = targets[order][~test]
            coefficients = path.coefficients(shuffled - shuffled.mean())
            found[place, test] = (features[test] - path.mean) @ coefficients[0] + shuffled.mean()
    return np.array([explained(targets[order], row) for order, row in zip(orders, found, strict=True)])


def explained(targets: np.ndarray, predicted: np.ndarray) -> float:
    """R²: 1 less the squared error of `predicted` (sample,) by that of the mean of `targets` (sample,); NaN if constant."""
    spread = ((targets - targets.mean()) ** 2).sum()
    return float(1.0 - ((targets - predicted) ** 2).sum() / spread) if spread > 0 else float("nan")


def _predictions(
    features: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray, path: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(C, test sample) predictions, and (C,) norms of the coefficients for targets of spread 1."""
    fitted = RidgePath(features[train], path)
    mean = targets[train].mean()
    coefficients = fitted.coefficients(targets[train] - mean)
    spread = targets[train].std()
    norms = np.linalg.norm(coefficients, axis=1) / (spread if spread > 0 else 1.0)
    return coefficients @ (features[test] - fitted.mean).T + mean, norms
