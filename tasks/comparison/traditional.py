"""Traditional methods on the same samples, on raw inputs, on principal components, and on a network's own features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.probes import Probe, stratified_sample
from stratascope.tasks.comparison.samples import class_targets

MOST_FEATURES = 20_000
"""Samples of more numbers than this are not learned from as they are."""


@dataclass(frozen=True)
class Learned:
    """What a method answers on the test samples."""

    predicted: np.ndarray
    """int64 (sample,)."""
    constants: dict[str, Any]
    """What cross-validation chose."""
    dimensions: int
    """Numbers a sample that the method sees, after any PCA."""
    note: str = ""


def chosen_rows(probe: Probe, most: int, seed: int) -> np.ndarray:
    """Ascending rows of `probe`, at most `most`, in proportion to the classes."""
    return stratified_sample(class_targets(probe), len(probe), most, seed)


def raw_inputs(probe: Probe, rows: np.ndarray) -> np.ndarray:
    """The inputs of `rows` as float32 (sample, feature). Raises DoesNotApply where they are no plain numbers."""
    leaves = leaves_of(probe.inputs)
    if probe.kind == "text" or len(leaves) != 1:
        raise DoesNotApply(
            f"the inputs of probe {probe.name!r} are token ids or nested: they are no features as they are."
        )
    (values,) = leaves.values()
    width = int(np.prod(values.shape[1:], dtype=np.int64))
    if width > MOST_FEATURES:
        raise DoesNotApply(
            f"a sample of probe {probe.name!r} has {width:,} numbers; at most {MOST_FEATURES:,} are learned from."
        )
    return rows_of(values, rows).reshape(len(rows), -1).astype(np.float32)


def rows_of(values: Any, rows: np.ndarray) -> np.ndarray:
    """`rows` (ascending) of a stored array, read in slices: integer lists would read every chunk anew."""
    found = []
    for start in range(0, len(values), 4_096):
        here = rows[(rows >= start) & (rows < start + 4_096)]
        if len(here):
            found.append(np.asarray(values[start : start + 4_096])[here - start])
    return np.concatenate(found)


def learn(
    method: str,
    train: tuple[np.ndarray, np.ndarray],
    test: np.ndarray,
    *,
    components: int | None = None,
    common_scale: bool = False,
    folds: int = 3,
    seed: int = 0,
) -> Learned:
    """Fit `method` on `train`, inputs (sample, feature) and classes (sample,), and answer `test` (sample, feature).

    Every feature is centred and divided by its spread, both from the training samples; with `common_scale` all are
    divided by one spread, which keeps the pixels of an image in proportion. `components` puts a PCA before the method.
    With `folds` the method's constants are chosen by stratified cross-validation on the training samples. Raises
    DoesNotApply for fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning

    inputs, classes = train
    if len(np.unique(classes)) < 2:
        raise DoesNotApply("the training samples have fewer than two classes.")
    scale = float(inputs.std()) if common_scale else 1.0
    scale = scale if scale > 0 else 1.0
    kept = min(components, *inputs.shape) if components is not None else None
    model = _model(method, kept, common_scale, seed)
    choices = _CHOICES[method]
    smallest = int(np.unique(classes, return_counts=True)[1].min())
    constants: dict[str, Any] = {}
    notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if folds >= 2 and choices and smallest >= folds:
            from sklearn.model_selection import GridSearchCV, StratifiedKFold

            split = StratifiedKFold(folds, shuffle=True, random_state=seed)
            search = GridSearchCV(model, choices, cv=split, n_jobs=None).fit(inputs / scale, classes)
            model = search.best_estimator_
            constants = {name.split("__")[1]: value for name, value in search.best_params_.items()}
        else:
            if folds >= 2 and choices:
                notes.append(f"constants are scikit-learn's own: a class has only {smallest} training samples.")
            model.fit(inputs / scale, classes)
        predicted = model.predict(test / scale)
    if any(issubclass(item.category, ConvergenceWarning) for item in caught):
        notes.append("the optimiser stopped at its limit of iterations.")
    return Learned(np.asarray(predicted, np.int64), constants, kept or inputs.shape[1], " ".join(notes))


_CHOICES: dict[str, dict[str, list[Any]]] = {
    "logistic_regression": {"method__C": [0.001, 0.01, 0.1]},
    "rbf_svm": {"method__C": [1.0, 10.0]},
    "random_forest": {},
    "k_nearest_neighbors": {"method__n_neighbors": [1, 3, 5, 11]},
}
"""What cross-validation chooses from; forests are used as they are."""


def _model(method: str, components: int | None, common_scale: bool, seed: int) -> Any:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[tuple[str, Any]] = [("scale", StandardScaler(with_std=not common_scale))]
    if components is not None:
        steps.append(("pca", PCA(components, random_state=seed)))
    return Pipeline([*steps, ("method", _method(method, seed))])


def _method(method: str, seed: int) -> Any:
    if method == "logistic_regression":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=200, tol=1e-3)
    if method == "rbf_svm":
        from sklearn.svm import SVC

        return SVC(kernel="rbf", gamma="scale")
    if method == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(100, random_state=seed, n_jobs=1)
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier()


def gain(right_with: np.ndarray, right_without: np.ndarray) -> np.ndarray:
    """By sample, how much oftener a method is right with the networks' features: (run, sample) less (sample,) → (sample,)."""
    return right_with.mean(0) - right_without.astype(np.float64)
