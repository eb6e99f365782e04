"""What a probe could learn without the layer: labels that mean nothing, labels of look-alikes, features nobody trained."""

from __future__ import annotations

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.comparison.traditional import raw_inputs
from stratascope.tasks.representation.maps import principal_components
from stratascope.tasks.representation.probe_classifiers import prepared

_COMPONENTS = 50
"""Clusters are sought in so many principal components of the raw inputs."""


def inputs_in_order(probe: Probe, rows: np.ndarray) -> np.ndarray:
    """The raw inputs of `rows` as float64 (row, number), in their order. Raises DoesNotApply where they are no numbers,
    are constant, not finite or too many.
    """
    ascending = np.sort(rows)
    values = raw_inputs(probe, ascending)[np.searchsorted(ascending, rows)].astype(np.float64)
    if not np.isfinite(values).all():
        raise DoesNotApply("some raw inputs are not finite")
    if not len(values) or np.ptp(values, axis=0).max(initial=0.0) == 0:
        raise DoesNotApply("the raw inputs are constant")
    return values


def control_labels(inputs: np.ndarray, places: np.ndarray, groups: int, seed: int) -> np.ndarray:
    """int64 (sample,): a class for each sample that says nothing of its own class, yet can be learned from its looks.

    The control task of Hewitt and Liang 2019, section 2, draws one label for each word type. Other inputs have no types,
    so clusters of the raw `inputs` (sample, number) stand for them (k-means in the leading principal components, as
    many as `groups`): each gets one class, drawn with the shares that `places` (sample,) have. What a probe scores on
    these labels is what it can learn by heart of how samples look.
    """
    from sklearn.cluster import KMeans

    values = prepared(inputs)
    if values.shape[1] > _COMPONENTS:
        values = principal_components(values, _COMPONENTS)[0]
    count = min(groups, len(values))
    clusters = KMeans(count, n_init=1, random_state=seed).fit(values).labels_
    shares = np.bincount(places) / len(places)
    drawn = np.random.default_rng([seed, 2, count]).choice(len(shares), size=count, p=shares)
    return np.asarray(drawn[clusters], np.int64)


def random_features(inputs: np.ndarray, width: int, seed: int) -> np.ndarray:
    """float64 (sample, width): the raw `inputs` (sample, number) through one random layer and a ReLU.

    Weights are normal with variance 2 / number, as He et al. 2015, section 2.2, start a network; no bias, inputs centred
    and of mean variance 1.
    """
    values = prepared(inputs)
    weights = np.random.default_rng([seed, 3, values.shape[1], width]).normal(size=(values.shape[1], width))
    found: np.ndarray = np.maximum(values @ weights * np.sqrt(2.0 / values.shape[1]), 0.0)
    return found
