"""What a comparison is asked to do, as far as the work itself must know it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

COMPARISON_VERSION = 1
TRADITIONAL_VERSION = 1
PREFIX = "comparison:"
"""What the analysis of a comparison's unit begins with; its name follows."""
TRADITIONAL_PREFIX = "traditional:"
"""The same of its traditional methods; the comparison's name and the method follow."""

Method = Literal["logistic_regression", "rbf_svm", "random_forest", "k_nearest_neighbors"]
FeatureSet = Literal["raw", "pca", "network"]
METHODS: tuple[Method, ...] = ("logistic_regression", "rbf_svm", "random_forest", "k_nearest_neighbors")


class Part(BaseModel):
    """Base of all parts: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TraditionalSpec(Part):
    """Which traditional methods are held against the networks, on which features, on how many samples."""

    methods: tuple[Method, ...] = METHODS
    features: tuple[FeatureSet, ...] = ("raw", "pca", "network")
    """The inputs as they are, their principal components, and what enters the network's last linear layer."""
    train_probe: str | None = None
    """The probe that the methods learn from; not given, it is the first one with the role `train`."""
    pca_components: int = Field(default=50, ge=1)
    max_samples: int = Field(default=2_000, ge=10)
    """At most so many samples are learned from, drawn in proportion to the classes."""
    max_test_samples: int = Field(default=2_000, ge=10)
    folds: int = Field(default=3, ge=0)
    """Folds of the cross-validation, within the training samples, that chooses each method's constants; 0 takes
    scikit-learn's own."""


class ComparisonSpec(Part):
    """How two groups of runs are compared."""

    probe: str | None = None
    """The probe whose samples are compared one by one; not given, it is the first one with the role `test`."""
    metrics: tuple[str, ...] | None = None
    """Globs; not given, every metric that both groups have."""
    layers: tuple[str, ...] = ()
    """Globs of layers, compared where every run has them; `@last_linear:input` is whatever that is in each network.
    Numbers of the whole network are always compared."""
    parts: tuple[str, ...] = ()
    """Globs of parts, such as `class=*`; numbers of the whole are always compared."""
    pair: bool = False
    """Whether the runs belong together in the order of their names, as with common seeds."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    test: Literal["welch", "permutation"] = "welch"
    """Whose p-values are corrected and decide; both are given. With `pair`, `welch` is the paired t test."""
    correction: Literal["holm", "benjamini_hochberg"] = "holm"
    resamples: int = Field(default=9_999, ge=99)
    """Of permutations that are too many to be tried all, and of the bootstrap."""
    seed: int = Field(default=0, ge=0)
    pictures: int = Field(default=12, ge=0, le=60)
    """At most so many samples of each kind of disagreement are shown."""
