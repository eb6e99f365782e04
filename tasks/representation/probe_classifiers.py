"""Linear classifiers on features: a path of penalties, and accuracy on samples that neither fit nor choice have seen.

The classifier is scikit-learn's multinomial logistic regression with an L2 penalty, fitted by L-BFGS. All values of the
path are fitted from the strongest penalty to the weakest, each starting from the one before. Features are centred and
divided by one common scale, so that the probe is blind to rotation, shift and scale of the layer, and C means the same in
every layer. Held-out answers come from fits in float32, which is what layers are stored in; it halves the time.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from stratascope.errors import DoesNotApply

ITERATIONS = 200
TOLERANCE = 1e-4
_LEAST_PROBABILITY = 1e-12
_NO_VARIANCE = 1e-12
"""Principal components with a smaller share of the variance are rounding: features are float32."""


@dataclass(frozen=True)
class CrossValidated:
    """What a probe answers on held-out samples, and what the penalties did."""

    predicted: np.ndarray
    """(sample,): for each sample what the probe says that has not seen its fold."""
    chosen: np.ndarray
    """int64 (fold,): the place in the path that the other folds chose."""
    train_score: np.ndarray
    """float64 (fold, C): accuracy, or R², on the training samples."""
    held_out_score: np.ndarray
    """float64 (fold, C): on the samples held out."""
    held_out_loss: np.ndarray
    """float64 (fold, C): mean -log2 p of the true class on the samples held out, or their mean squared error."""
    weight_norm: np.ndarray
    """float64 (fold, C): Frobenius norm of the coefficients, for features of the common scale."""
    unfinished: int = 0
    """So many fits stopped at the limit of iterations."""

    @property
    def main_choice(self) -> int:
        """The place in the path that most folds chose: their median, the stronger penalty of two."""
        return int(np.sort(self.chosen)[(len(self.chosen) - 1) // 2])

    @property
    def overfit(self) -> float:
        """By how much the chosen probes score better on their training samples than on those held out, mean over folds."""
        folds = np.arange(len(self.chosen))
        gap = self.train_score[folds, self.chosen] - self.held_out_score[folds, self.chosen]
        return float(gap.mean())


def prepared(values: np.ndarray) -> np.ndarray:
    """`values` (sample, feature) as a probe takes them: float64, centred, with mean variance 1 over what varies.

    Where features are no fewer than samples, their principal components stand for them: an L2 penalty cannot tell the
    difference, and they are fewer. The features must be finite and not constant.
    """
    from stratascope.tasks.representation.maps import principal_components

    centred = np.asarray(values, np.float64)
    centred = centred - centred.mean(0)
    variance = np.einsum("ij,ij->j", centred, centred) / len(centred)
    varying = variance > 0
    scaled = centred[:, varying] / np.sqrt(variance[varying].mean())
    if scaled.shape[1] < len(scaled):
        return scaled
    scores, shares = principal_components(scaled, len(scaled) - 1)
    return np.ascontiguousarray(scores[:, shares > _NO_VARIANCE])


class LogisticPath:
    """Logistic regressions on one training set, along a path of C; probabilities have a column for each class."""

    def __init__(
        self, classes: int, path: Sequence[float], tolerance: float = TOLERANCE, iterations: int = ITERATIONS
    ) -> None:
        from sklearn.linear_model import LogisticRegression

        self.classes, self.path = classes, tuple(path)
        self.model = LogisticRegression(warm_start=True, max_iter=iterations, tol=tolerance)
        self.unfinished = 0

    def fits(self, features: np.ndarray, places: np.ndarray) -> Iterator[LogisticPath]:
        """Fit each C in turn on `features` (sample, feature) and `places` (sample,) of classes; self after each.

        Raises DoesNotApply where all samples are of one class.
        """
        from sklearn.exceptions import ConvergenceWarning

        if len(np.unique(places)) < 2:
            raise DoesNotApply("the training samples of a fold are all of one class")
        for strength in self.path:
            self.model.C = strength
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.model.fit(features, places)
            self.unfinished += any(issubclass(item.category, ConvergenceWarning) for item in caught)
            yield self

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float64 (sample, class); 0 for a class that the training set lacks."""
        from scipy.special import softmax

        model = self.model
        scores = features.astype(np.float64) @ model.coef_.T.astype(np.float64) + model.intercept_
        if scores.shape[1] == 1:  # two classes share one line of coefficients
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        found = np.zeros((len(features), self.classes))
        found[:, model.classes_] = softmax(scores, axis=1)
        return found

    @property
    def weight_norm(self) -> float:
        return float(np.linalg.norm(self.model.coef_))


def bits(probabilities: np.ndarray, places: np.ndarray) -> np.ndarray:
    """-log2 (sample,) of the probability (sample, class) that each sample's class `places` (sample,) was given."""
    given = probabilities[np.arange(len(places)), places]
    return -np.log2(np.maximum(given, _LEAST_PROBABILITY))


def cross_validated(
    features: np.ndarray, places: np.ndarray, fold: np.ndarray, path: Sequence[float]
) -> CrossValidated:
    """Nested cross-validation of `features` (sample, feature), as from `prepared`, with classes `places` (sample,).

    Each fold of `fold` (sample,) is held out in turn; C is chosen by the other folds alone, as the one with the least
    cross-entropy on each of them, held out too: a probe that has seen neither of two folds serves both as a test of the
    other (so K (K - 1) / 2 inner fits of the path do, not K (K - 1)). Such a fit ends once both losses have risen from
    one C to the next: weaker penalties are out of the choice then. Of equal losses the stronger penalty wins. `path`
    ascends. Raises DoesNotApply where a training set has one class only.
    """
    count, classes = int(fold.max()) + 1, int(places.max()) + 1
    features = features.astype(np.float32)
    inner = np.zeros((count, len(path)))
    unfinished = 0
    for pair in combinations(range(count), 2):
        train, losses = ~np.isin(fold, pair), np.full((2, len(path)), np.inf)
        fitted = LogisticPath(classes, path)
        for number, model in enumerate(fitted.fits(features[train], places[train])):
            for row, tested in enumerate(reversed(pair)):
                test = fold == tested
                losses[row, number] = bits(model.probabilities(features[test]), places[test]).sum()
            if number and (losses[:, number] > losses[:, number - 1]).all():
                break
        inner[list(pair)] += losses
        unfinished += fitted.unfinished
    answers = _Answers(features, places, fold, inner.argmin(1), inner.shape)
    for held_out in range(count):
        fitted = LogisticPath(classes, path)
        for number, model in enumerate(fitted.fits(features[fold != held_out], places[fold != held_out])):
            answers.note(held_out, number, model)
        unfinished += fitted.unfinished
    return CrossValidated(
        answers.predicted, answers.chosen, answers.train, answers.held_out, answers.loss, answers.norm, unfinished
    )


class _Answers:
    """Collects what the probes of the outer folds answer."""

    def __init__(
        self,
        features: np.ndarray,
        places: np.ndarray,
        fold: np.ndarray,
        chosen: np.ndarray,
        shape: tuple[int, ...],
    ) -> None:
        self.features, self.places, self.fold, self.chosen = features, places, fold, chosen
        self.predicted = np.empty(len(places), np.int64)
        self.train, self.held_out, self.loss, self.norm = (np.empty(shape) for _ in range(4))

    def note(self, held_out: int, number: int, model: LogisticPath) -> None:
        test = self.fold == held_out
        given = model.probabilities(self.features[test])
        answers = given.argmax(1)
        trained = model.probabilities(self.features[~test]).argmax(1)
        where = held_out, number
        self.train[where] = (trained == self.places[~test]).mean()
        self.held_out[where] = (answers == self.places[test]).mean()
        self.loss[where] = bits(given, self.places[test]).mean()
        self.norm[where] = model.weight_norm
        if number == self.chosen[held_out]:
            self.predicted[test] = answers


def held_out_answers(
    features: np.ndarray,
    places: np.ndarray,
    fold: np.ndarray,
    strength: float,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> np.ndarray:
    """int64 (sample,): the held-out answers of probes with one C, `strength`, for classes `places` (sample,).

    Raises DoesNotApply where a training set has one class only.
    """
    features = features.astype(np.float32)
    found = np.empty(len(places), np.int64)
    for held_out in np.unique(fold):
        test = fold == held_out
        fitted = LogisticPath(int(places.max()) + 1, (strength,), tolerance, iterations)
        for model in fitted.fits(features[~test], places[~test]):
            found[test] = model.probabilities(features[test]).argmax(1)
    return found
