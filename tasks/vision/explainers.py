"""Every kind of map as one thing: a name, and how important each place of the picture is for the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import Explained, method_named
from stratascope.tasks.vision.chosen_samples import normal_noise

NULLS = ("random", "edges")
"""Maps that know nothing of the network: what any method must beat."""


@dataclass(frozen=True)
class Explainer:
    """A method as the tests of trust see it."""

    name: str
    title: str
    importance: Callable[[Explained], np.ndarray]
    """float64 (sample, y, x), at the size of the picture: the more important the higher."""
    maps: Callable[[Explained], np.ndarray] | None = None
    """float32 (sample, channel, y, x), where a change of each pixel is told; made once for a question and its importance."""


_FEWER = {"draws": 8, "steps": 16, "most_steps": 16}
"""Settings in the tests, where every method runs about ten times: a rougher map is ranked nearly alike."""


def attribution_explainer(name: str) -> Explainer:
    """A registered attribution method. Of gradients by pixels the size counts, of all others what speaks for the answer."""
    method = method_named(name)
    settings = {key: min(value, _FEWER[key]) if key in _FEWER else value for key, value in method.settings.items()}

    def maps(asked: Explained) -> np.ndarray:
        found: np.ndarray = asked.once(
            ("map", name), lambda: method.compute(replace(asked, settings=settings, shared={})).maps
        )
        return found

    by_size = method.family == "gradient" and name != "gradient_times_input"

    def importance(asked: Explained) -> np.ndarray:
        found = maps(asked).astype(np.float64)
        return np.abs(found).sum(1) if by_size else found.sum(1)

    return Explainer(name, method.title, importance, None if not method.signed else maps)


def cam_explainer(name: str, layer_pattern: str, known: Sequence[Any], size: tuple[int, int]) -> Explainer:
    """A class activation map of one layer, between the centres of its places brought to the size of the picture.

    Raises DoesNotApply where the layer is not spatial; ConfigurationError where there is none of that name.
    """
    from stratascope.tasks.vision.class_activation_methods import METHODS
    from stratascope.tasks.vision.class_activation_passes import Question, layer_maps
    from stratascope.tasks.vision.map_drawing import resized
    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers

    layers = chosen_spatial_layers([layer_pattern], known, size)

    def importance(asked: Explained) -> np.ndarray:
        question = Question(
            asked.network, asked.inputs, asked.indices, asked.target, asked.sample_id, asked.baseline, asked.seed, asked.batch_size
        )  # fmt: skip
        found, refused = layer_maps(question, layers, [name], known)
        if layers[-1].name not in found:
            raise DoesNotApply(refused.get(layers[-1].name, f"{name} gives no map"))
        maps = found[layers[-1].name].maps
        if name not in maps:
            raise DoesNotApply(f"{name} has no map at {layers[-1].name!r}")
        return np.stack([resized(item.astype(np.float64), size) for item in maps[name]])

    return Explainer(name, METHODS[name].title, importance)


def random_importance(asked: Explained) -> np.ndarray:
    """float64 (sample, y, x): noise that belongs to each sample, and to nothing that the network does."""
    shape = tuple(asked.inputs.shape[2:])
    return np.stack(
        [normal_noise(name, slice(0, 1), shape, asked.seed, "random map")[0] for name in asked.sample_id]
    ).astype(np.float64)


def edge_importance(asked: Explained) -> np.ndarray:
    """float64 (sample, y, x): the size of the picture's own edges (Sobel), of the mean over its channels."""
    from scipy.ndimage import sobel

    grey = asked.inputs.double().mean(1).numpy()
    return np.hypot(sobel(grey, axis=1, mode="nearest"), sobel(grey, axis=2, mode="nearest"))


def null_explainers() -> list[Explainer]:
    """`random` and `edges`."""
    return [
        Explainer("random", "random order", random_importance),
        Explainer("edges", "the picture's edges", edge_importance),
    ]
