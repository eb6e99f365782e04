"""The one shape that every attribution method has: what it is given, what it hands back, what is said about it.

A method is a plain function that is registered here under its name; `attribution` runs those that its options name,
and the analyses that ask whether a map can be trusted run the same functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stratascope.errors import ConfigurationError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.targets import Target

_MODULES = ("gradient_maps", "path_maps", "rescale_maps", "relevance_maps", "perturbation_maps")
"""Files of this folder that register methods."""


@dataclass(frozen=True)
class Explained:
    """What is to be explained: samples, and for each the output that is asked about."""

    network: ImageNetwork
    inputs: Tensor
    """float32 (sample, channel, y, x) on the processor."""
    indices: Tensor
    """int64 (sample,)."""
    target: Target
    sample_id: np.ndarray
    """(sample,): random numbers belong to these."""
    baseline: Tensor
    """float32, of the shape of `inputs`."""
    baselines: Tensor | None = None
    """float32 (baseline, channel, y, x): a set to take the mean over, for methods that need a distribution."""
    seed: int = 0
    batch_size: int = 64
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's own options by name."""
    shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What one method found and another may use, by the question; see `once`."""

    def once(self, question: Hashable, answer: Callable[[], Any]) -> Any:
        """What `answer` returns; computed a single time for all methods that ask the same `question` of these samples."""
        if question not in self.shared:
            self.shared[question] = answer()
        return self.shared[question]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def can_be_asked_less(self) -> bool:
        """Whether fewer samples may be in the network at once, should memory run out."""
        return self.batch_size > 1 and self.network.fixed_batch_size is None

    def part(self, rows: slice) -> Explained:
        """The same question about some of the samples."""
        return replace(
            self, inputs=self.inputs[rows], indices=self.indices[rows], sample_id=self.sample_id[rows],
            baseline=self.baseline[rows], shared={},
        )  # fmt: skip


@dataclass(frozen=True)
class Attributed:
    """What a method says, raw and signed, before any scaling."""

    maps: np.ndarray
    """float32 (sample, channel, y, x)."""
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    """float (sample,) by name, such as `completeness_gap`: the sum of a map less the difference of scores it should be."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """More by name, the sample axis first, such as `spread` (sample, y, x) or a coarse grid of windows."""
    warnings: tuple[str, ...] = ()
    """Why these maps are not what their name says on this network; marked in every figure."""


@dataclass(frozen=True)
class AttributionMethod:
    """A registered method with its words."""

    name: str
    title: str
    family: Literal["gradient", "path", "rescale", "relevance", "perturbation"]
    formula: str
    source: str
    lies_when: str
    """In which case its picture misleads."""
    compute: Callable[[Explained], Attributed]
    signed: bool = True
    """Whether the sign of a map means for and against."""
    complete: bool = False
    """Whether the map adds up to the difference of the scores, so that `completeness_gap` is filed."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its own options with their defaults."""


_METHODS: dict[str, AttributionMethod] = {}


def register_method(method: AttributionMethod) -> AttributionMethod:
    """Add `method` to those that configurations can name."""
    _METHODS[method.name] = method
    return method


def attribution_methods() -> dict[str, AttributionMethod]:
    """All methods by name."""
    _import_all()
    return dict(_METHODS)


@cache
def _import_all() -> None:
    for module in _MODULES:
        importlib.import_module(f"stratascope.tasks.vision.{module}")


def method_named(name: str) -> AttributionMethod:
    """Raises ConfigurationError with the nearest names for an unknown one."""
    methods = attribution_methods()
    if name not in methods:
        raise ConfigurationError(
            f"there is no attribution method {name!r}; there are {', '.join(methods)}."
            + did_you_mean(name, methods)
        )
    return methods[name]


def known_methods(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names`, if each is a method's; for validators of options. Raises ValueError with the nearest names."""
    try:
        for name in names:
            method_named(name)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return names
