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
from stratascope.tasks.sequence.text_features import FEATURES, TextFeature, inside_matches, text_features, varies


@dataclass(frozen=True)
class FeatureTable:
    """Features of the measured samples: `values` float32 (sample, token, feature), NaN where not known."""

    names: tuple[str, ...]
    titles: tuple[str, ...]
    boolean: np.ndarray
    """bool (feature,)."""
    values: np.ndarray
    left_out: Mapping[str, str]
    """Features that are not looked at, with the reason."""


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
    words = [samples.words(place, name) for place in range(len(samples))]
    wanted: dict[str, TextFeature] = {key: FEATURES[key] for key in built_in} if is_text else {}
    arrays: dict[str, np.ndarray] = {}
    for key, source in given.items():
        if source.startswith("re:"):
            wanted[key] = TextFeature(key.replace("_", " "), True, inside_matches(source[3:]))
        elif source == "targets" or source.startswith("input:"):
            arrays[key] = _of_probe(key, source, samples, real)
        else:
            arrays[key] = _of_function(key, load_object(source, folder), words, real)
    found = {**text_features(words, real, wanted), **arrays}
    kept = {key: values for key, values in found.items() if varies(values)}
    left_out = {key: "it is the same at every token of these samples" for key in found if key not in kept}
    if not kept:
        why = "its samples are no text" if not is_text else "the built-in ones are the same at every token"
        raise DoesNotApply(f"probe {samples.probe.name!r} has no features: {why}, and `features` names no other.")
    order = tuple(kept)
    boolean = np.array([np.isin(values[np.isfinite(values)], (0, 1)).all() for values in kept.values()])
    titles = tuple(wanted[key].title if key in wanted else key.replace("_", " ") for key in order)
    return FeatureTable(order, titles, boolean, np.stack([kept[key] for key in order], -1).astype(np.float32), left_out)  # fmt: skip


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
