"""What `attention` filed, as its figures need it: weights of real tokens with their words, heads in an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe
from stratascope.tasks.given_samples import given_samples
from stratascope.tasks.representation.drift_mosaics import class_label, probe_rows
from stratascope.tasks.representation.pictures import even_choice, table_of
from stratascope.tasks.sequence.importance_note import importance_note
from stratascope.tasks.sequence.sequence_samples import SequenceSamples, names_of, token_words

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

READ = "attention"
_FRAMES = 8
_TABLE = ("step", "probe", "layer", "part", "metric", "value", "low", "high", "n", "unit", "convention")
_TOKENS = 40
"""So many tokens stand on an axis at most."""


@dataclass(frozen=True)
class Axis:
    """The tokens of an axis that are drawn."""

    label: str
    words: list[str]
    places: np.ndarray
    """int64: where among all tokens they stand."""
    real: int
    """So many are real; the others that are not drawn come after."""


@dataclass
class FiledLayer:
    """The attention of one layer on one probe."""

    view: View
    probe: Probe
    layer: str

    def array(self, step: int, name: str) -> np.ndarray | None:
        """What was filed at `step`, None where there is none."""
        place = self._place(step, name)
        return self.view.store.array(place) if self.view.store.has_array(place) else None

    def _place(self, step: int, *parts: str) -> str:
        return join_path("runs", self.view.run, step_directory(step), READ, self.probe.name, self.layer, *parts)

    @cached_property
    def steps(self) -> list[int]:
        return [step for step in sorted(self.view.steps) if self.view.store.has_array(self._place(step, "scores"))]

    @cached_property
    def about(self) -> dict[str, Any]:
        """Attributes of the scores at the newest step: `score`, `kind`, `query_input`, `key_input`, `residual`, `grid` …"""
        return self.view.store.array_info(self._place(self.steps[-1], "scores"))[3]

    @cached_property
    def lags(self) -> list[int]:
        return list(self.view.store.array_info(self._place(self.steps[-1], "lag_profile"))[3]["lag"])

    def scores(self, step: int) -> dict[str, np.ndarray]:
        """(head,) by score."""
        values = self.array(step, "scores")
        names = self.view.store.array_info(self._place(step, "scores"))[3]["score"]
        return {} if values is None else dict(zip(names, values, strict=True))

    @cached_property
    def is_picture(self) -> bool:
        return "grid" in self.about

    @cached_property
    def ranked(self) -> list[int]:
        """Heads, those first that do one thing most: by their highest pattern score, or by how few keys they look at."""
        scores = self.scores(self.steps[-1])
        doing = [values for name, values in scores.items() if name.endswith("_score")]
        doing = doing or [1 - scores["attention_entropy_share"]]
        best = np.nan_to_num(np.stack(doing), nan=-1.0).max(0)
        return sorted(range(len(best)), key=lambda head: (-best[head], head))

    def known_for(self, head: int) -> str:
        """The score that a head has highest among those that name what it does, with its value; empty where there is none."""
        scores = {name: values for name, values in self.scores(self.steps[-1]).items() if name.endswith("_score")}
        known = {name: float(values[head]) for name, values in scores.items() if np.isfinite(values[head])}
        if not known:
            return ""
        best = max(known, key=lambda name: known[name])
        return f"{best.removesuffix('_score').replace('_', ' ')} {known[best]:.2f}"

    def one_sample(self, step: int) -> np.ndarray | None:
        """(head, query, key): the weights of the first shown sample, else the mean over samples."""
        shown = self.array(step, "weights")
        return self.array(step, "mean_weights") if shown is None or not len(shown) else shown[0].astype(np.float32)


@dataclass
class FiledAttention:
    """All layers of one probe."""

    view: View
    probe: Probe

    @cached_property
    def layers(self) -> list[FiledLayer]:
        """In the order of execution."""
        rows = self.view.rows
        own = rows[
            (rows["probe"] == self.probe.name) & (rows["metric"] == "attention_entropy") & (rows["layer"] != "")
        ]
        found = [FiledLayer(self.view, self.probe, layer) for layer in own["layer"].unique()]
        return sorted(
            (layer for layer in found if layer.steps), key=lambda layer: (layer.about.get("place", 0), layer.layer)
        )

    @cached_property
    def samples(self) -> SequenceSamples:
        """The shown samples of the newest step."""
        step = max(step for layer in self.layers for step in layer.steps)
        path = join_path("runs", self.view.run, step_directory(step), READ, self.probe.name, "sample_id")
        rows = probe_rows(self.probe, self.view.store.array(path))
        return SequenceSamples(self.probe, given_samples(self.probe, rows), len(rows))

    def sample_name(self, place: int) -> str:
        """The class and the id of a shown sample."""
        given = self.samples.given
        name = f"sample {given.sample_id[place]}"
        if given.classes is None or not self.view.show_inputs:
            return name
        return f"{class_label(self.probe, int(given.classes[place]))}, {name}"

    def axes(self, layer: FiledLayer, place: int, shape: Sequence[int]) -> tuple[Axis, Axis]:
        """The query and the key axis of `layer`, whose weights of the shown sample at `place` have `shape` (…, query, key)."""
        query, key = layer.about.get("query_input"), layer.about.get("key_input")
        said = self._said(layer, place, shape[-2])
        across = query != key and query is not None
        labels = (f"{query or 'input'}, as it is said" if said else f"{query} token") if across else "query", f"{key} token" if across else "key"  # fmt: skip
        return self._axis(query, place, shape[-2], labels[0], said), self._axis(
            key, place, shape[-1], labels[1], None
        )

    def _axis(self, name: str | None, place: int, count: int, label: str, words: list[str] | None) -> Axis:
        real = np.ones(count, bool)
        if name is not None:
            mask = self.samples.real(name)[place]
            real[: len(mask)] = mask[:count]
        if words is None and name is not None and self.view.show_inputs:
            words = self.samples.words(place, name)
        words = words or [str(number) for number in range(count)]
        words = [*words, *(f"added {number + 1}" for number in range(count - len(words)))]
        places = np.flatnonzero(real)
        return Axis(label, [words[number] for number in places[:_TOKENS]], places[:_TOKENS], len(places))

    def _said(self, layer: FiledLayer, place: int, count: int) -> list[str] | None:
        """The words that a decoder is to say at each query; None where queries are not those of a decoder."""
        targets, about = self.samples.given.targets, layer.about
        if (
            about.get("query_input") in (None, about.get("key_input"))
            or targets is None
            or not self.view.show_inputs
        ):
            return None
        if targets.ndim != 2 or targets.shape[1] != count or targets.dtype.kind not in "iu":
            return None
        return token_words(targets[place], names_of(self.probe, str(about["query_input"])))

    @cached_property
    def pictures(self) -> list[np.ndarray] | None:
        """uint8 (y, x, channel) of each shown sample; None where inputs are no pictures, or may not be shown."""
        from stratascope.tasks.vision.map_drawing import shown_inputs

        if not self.view.show_inputs:
            return None
        rows = self.samples.given.rows
        known = [self.probe.pictures_at(slice(int(row), int(row) + 1)) for row in rows]
        if known and all(item is not None for item in known):
            return [item[0] for item in known if item is not None]
        images = [values for values in leaves_of(self.samples.given.inputs).values() if values.ndim == 4]
        return shown_inputs(np.asarray(images[0])) if images else None


def residual_note(layers: Sequence[FiledLayer]) -> str:
    """How far the output made of the weights was from the real one, of the worst layer."""
    gaps = {
        layer.layer: float(layer.about.get("residual") if layer.about.get("residual") is not None else np.nan)
        for layer in layers
    }
    known = {name: gap for name, gap in gaps.items() if np.isfinite(gap)}
    if not known:
        return "These weights could not be held against the output of their module, which hides what it does with them."
    worst = max(known, key=lambda name: known[name])
    if known[worst] == 0:
        return "The output made of the weights is that of the layer to the last bit."
    said = f"The output made of the weights is within {known[worst]:.1g} of the layer's own"
    return (
        f"{said}."
        if known[worst] <= 1e-4
        else f"Warning: {said.replace('within', 'off by')} in {worst}: do not trust them."
    )


def drawn_steps(steps: Sequence[int]) -> list[int]:
    """Those of `steps` that a slider shows."""
    return even_choice(list(steps), _FRAMES)


def note_of(filed: FiledAttention, layers: Sequence[FiledLayer], score: str) -> str:
    """That a weight is not importance, with what this run's ablation says beside `score`."""
    values = {
        (layer.layer, head): float(value)
        for layer in layers
        for head, value in enumerate(layer.scores(layer.steps[-1]).get(score, ()))
    }
    return importance_note(filed.view, filed.probe.name, values)


def rows_of(filed: FiledAttention, *metrics: str) -> dict[str, list[Any]]:
    """The rows of `metrics` as the table of a figure."""
    rows = filed.view.rows
    chosen = rows[(rows["probe"] == filed.probe.name) & rows["metric"].isin(metrics) & (rows["status"] == "ok")]
    return table_of(chosen.sort_values(["metric", "step", "layer", "part"]), _TABLE)


def in_line(filed: FiledAttention) -> list[FiledLayer]:
    """Layers whose queries and keys are the tokens of one sequence."""
    return [
        layer for layer in filed.layers if "locality" in layer.scores(layer.steps[-1]) and not layer.is_picture
    ]
