"""The features that a user names: matches of a regular expression, numbers from a function of theirs, an array of the probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stratascope.errors import ConfigurationError, DoesNotApply, did_you_mean
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.factories import load_object
from stratascope.tasks.sequence.sequence_samples import SequenceSamples, names_of
from stratascope.tasks.sequence.text_features import FEATURES, TextFeature, inside_matches, text_features

_BLOCK = 512
"""So many samples are looked at at once."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of the measured samples, made when they are asked for, so that memory does not grow with the samples."""

    names: tuple[str, ...]
    titles: tuple[str, ...]
    boolean: np.ndarray
    """bool (feature,)."""
    centre: np.ndarray
    """float64 (feature,): the mean of each over all tokens at which it is known."""
    left_out: Mapping[str, str]
    """Features that are not looked at, with the reason."""
    made: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    def values(self, places: np.ndarray) -> np.ndarray:
        """float32 (sample, token, feature) of the samples at `places`, NaN where a feature is not known."""
        found = self.made(places)
        return np.stack([found[name] for name in self.names], -1).astype(np.float32)


def checked_source(name: str, source: str) -> str:
    """`source` if it is `re:…`, `input:…`, `targets` or `module:name`. Raises ConfigurationError."""
    if source.startswith("re:"):
        inside_matches(source[3:])
    elif source != "targets" and ":" not in source:
        raise ConfigurationError(
            f"feature {name!r}: {source!r} is none of `re:<regular expression>`, `module:name`, `input:<name>`, `targets`."
        )
    if name in FEATURES:
        raise ConfigurationError(
            f"feature {name!r} is a feature of the text by itself; call yours something else."
        )
    return source


def feature_table(
    samples: SequenceSamples,
    built_in: Sequence[str],
    given: Mapping[str, str],
    folder: Path | None,
    name: str = "",
) -> FeatureTable:
    """All features of input `name` of `samples`: those of the text called `built_in`, and the user's `given` ones.

    Raises DoesNotApply where none is left, ConfigurationError for a source that cannot be used.
    """
    real = samples.real(name)
    codes = np.asarray(leaves_of(samples.given.inputs)[name])
    is_text = codes.ndim == 2 and codes.dtype.kind in "iu" and bool(names_of(samples.probe, name))
    wanted: dict[str, TextFeature] = {key: FEATURES[key] for key in built_in} if is_text else {}
    arrays: dict[str, np.ndarray] = {}
    functions: dict[str, Callable[[list[str]], object]] = {}
    for key, source in given.items():
        if source.startswith("re:"):
            wanted[key] = TextFeature(key.replace("_", " "), True, inside_matches(source[3:]))
        elif source == "targets" or source.startswith("input:"):
            arrays[key] = _of_probe(key, source, samples, real)
        else:
            functions[key] = load_object(source, folder)

    def made(places: np.ndarray) -> dict[str, np.ndarray]:
        words = [samples.words(int(place), name) for place in places]
        found = text_features(words, real[places], wanted)
        found |= {key: values[places] for key, values in arrays.items()}
        return found | {
            key: _of_function(key, function, words, real[places]) for key, function in functions.items()
        }

    survey = _surveyed(made, len(samples))
    kept = [key for key, one in survey.items() if one.varies]
    left_out = {key: "it is the same at every token of these samples" for key in survey if key not in kept}
    if not kept:
        why = "its samples are no text" if not is_text else "the built-in ones are the same at every token"
        raise DoesNotApply(f"probe {samples.probe.name!r} has no features: {why}, and `features` names no other.")
    titles = tuple(wanted[key].title if key in wanted else key.replace("_", " ") for key in kept)
    boolean = np.array([survey[key].boolean for key in kept])
    centre = np.array([survey[key].total / survey[key].count for key in kept])
    return FeatureTable(tuple(kept), titles, boolean, centre, left_out, made)


@dataclass
class _Surveyed:
    """What is known of one feature after all samples were looked at."""

    count: int = 0
    total: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    boolean: bool = True

    @property
    def varies(self) -> bool:
        return self.low < self.high

    def add(self, values: np.ndarray) -> None:
        known = values[np.isfinite(values)].astype(np.float64)
        if len(known):
            self.count += len(known)
            self.total += float(known.sum())
            self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))
            self.boolean &= bool(np.isin(known, (0, 1)).all())


def _surveyed(made: Callable[[np.ndarray], Mapping[str, np.ndarray]], samples: int) -> dict[str, _Surveyed]:
    """Each feature over all samples, a block at a time."""
    found: dict[str, _Surveyed] = {}
    for start in range(0, samples, _BLOCK):
        for key, values in made(np.arange(start, min(start + _BLOCK, samples))).items():
            found.setdefault(key, _Surveyed()).add(values)
    return found


def _of_function(
    name: str, function: Callable[[list[str]], object], words: Sequence[list[str]], real: np.ndarray
) -> np.ndarray:
    """float64 (sample, token): what `function` says of the words of each sample's real tokens."""
    found = np.full(real.shape, np.nan)
    for row, sample in enumerate(words):
        places = np.flatnonzero(real[row])
        try:
            said = np.asarray(function([sample[place] for place in places]), np.float64)
        except Exception as error:
            raise ConfigurationError(
                f"feature {name!r}: its function fails: {type(error).__name__}: {error}"
            ) from None
        if said.shape != places.shape:
            raise ConfigurationError(
                f"feature {name!r}: its function returned shape {said.shape} for {len(places)} words; one number a word is needed."
            )
        found[row, places] = said
    return found


def _of_probe(name: str, source: str, samples: SequenceSamples, real: np.ndarray) -> np.ndarray:
    """float64 (sample, token): an input or the targets; one number a sample holds for all of its tokens."""
    leaves = leaves_of(samples.given.inputs)
    wanted = source.removeprefix("input:")
    if source == "targets":
        values = samples.given.targets
        if values is None:
            raise DoesNotApply(f"feature {name!r}: probe {samples.probe.name!r} has no targets.")
    elif wanted in leaves:
        values = leaves[wanted]
    else:
        raise ConfigurationError(
            f"feature {name!r}: probe {samples.probe.name!r} has no input {wanted!r}."
            + did_you_mean(wanted, list(leaves))
        )
    found = np.asarray(values, np.float64)
    if found.ndim == 1:
        found = np.repeat(found[:, None], real.shape[1], axis=1)
    if found.shape != real.shape:
        raise ConfigurationError(f"feature {name!r}: {source} has shape {found.shape}; needed is {real.shape}.")
    return np.where(real, found, np.nan)
