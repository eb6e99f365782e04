"""The pictures of state patterns: matched phrases, and how many of them have the selected feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import encode_path_part, step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import counted, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.coloured_text import TextPiece, coloured_text
from stratascope.tasks.sequence.found_cells import KINDS
from stratascope.tasks.sequence.sequence_samples import names_of, token_words
from stratascope.tasks.sequence.state_patterns_words import WORDS
from stratascope.tasks.sequence.text_features import FEATURES, text_features

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_FRAMES, _SHOWN, _AROUND = 6, 10, 22


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe, layer and range the matched phrases, and over the steps how many have the feature."""
    rows = view.metric("pattern_units")
    if not len(rows):
        return
    lead = leading_probe(view, rows["probe"].unique())
    own = rows[rows["probe"] == lead]
    for (layer, part), group in own.groupby(["layer", "part"], sort=False):
        steps = sorted({int(step) for step in group["step"]})
        if view.show_inputs:
            yield from _matches(view, lead, str(layer), str(part), steps, options)
        found = view.metric("pattern_precision", probe=lead, layer=layer, part=part)
        if len(found) > 1:
            yield _precision(view, lead, str(layer), str(part), found, len(steps))


def _arrays(
    view: View, step: int, probe: str, layer: str, part: str
) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """The input's name, what was filed of one range at one step, and the facts beside it."""
    kind, number = (item.split("=")[1] for item in part.split(";"))
    root = join_path("runs", view.run, step_directory(step), "state_patterns", encode_path_part(probe))
    ending = f"/{encode_path_part(layer)}/{kind}/range_{number}/"
    found, name, facts = {}, "", {}
    for path in view.store.list_arrays(root):
        if ending in path:
            key = path.rsplit("/", 1)[1]
            found[key] = view.store.array(path)
            name = path[len(root) + 1 :].split("/")[0]
            if key == "unit":
                facts = view.store.array_info(path)[3]
    return name, found, facts


def _pieces(view: View, probe: str, name: str, found: dict[str, np.ndarray], feature: str) -> list[TextPiece]:
    """The stretches with what stands around them."""
    names = names_of(view.probes[probe], "" if name == "input" else name)
    pieces = []
    for place, (start, stop) in enumerate(found["place"][: _SHOWN + 1].tolist()):
        kept = np.flatnonzero(found["real"][place])
        words = [token_words(found["tokens"][place], names)[token] for token in kept]
        strip = None
        if feature:
            strip = text_features([words], np.ones((1, len(words)), bool), {feature: FEATURES[feature]})[feature][
                0
            ]
        low, high = max(start - _AROUND, 0), min(stop + _AROUND, len(words), found["share"].shape[1])
        head = "selected" if place == 0 else f"{place}."
        others = "" if place == 0 else f", {found['others'][place]:.0f} other units on"
        pieces.append(TextPiece(
            f"{head} sample {found['sample_id'][place]}, {counted(stop - start, 'token')}{others}", words[low:high],
            found["share"][place, low:high].astype(np.float64), None if strip is None else strip[low:high],
            (start - low, stop - low),
        ))  # fmt: skip
    return pieces


def _matches(view: View, probe: str, layer: str, part: str, steps: list[int], options: Any) -> Iterator[Figure]:
    frames, last = [], None
    for step in even_choice(steps, _FRAMES):
        name, found, facts = _arrays(view, step, probe, layer, part)
        if "tokens" not in found or "share" not in found:
            continue
        feature = str(facts.get("feature", ""))
        legend = f"share of the {len(found['unit'])} selected units that are on"
        label = FEATURES[feature].title if feature else ""
        frames.append((step, coloured_text(_pieces(view, probe, name, found, feature), legend, label, signed=False, breaks=False)))  # fmt: skip
        last = step, found, feature
    if last is None:
        return
    step, found, feature = last
    where = {"probe": probe, "layer": layer, "part": part}
    count = view.metric("pattern_matches", **where)
    precision = view.metric("pattern_precision", **where)
    at = precision[precision["step"] == step]
    told = "no feature was named to hold them against."
    if len(at):
        told = f"{at['value'].iloc[0]:.0%} of the best {int(at['n'].iloc[0])} lie where “{FEATURES[feature].title}” holds."
    words = {
        "units": len(found["unit"]), "layer": layer, "kind": KINDS[part.split(";")[0].split("=")[1]], "step": plain_step(step),
        "strip": f"the green strip marks “{FEATURES[feature].title}”." if feature else "no strip is drawn.",
        "count": f"{int(count[count['step'] == step]['value'].iloc[0]):,}", "precision": told, "threshold": options.threshold, "off_before": options.off_before, "off_after": options.off_after,
        "causal": "That units are on together does not show that the network uses them so.",
    }  # fmt: skip
    table = {
        "sample": [str(item) for item in found["sample_id"]], "start": found["place"][:, 0].tolist(),
        "stop": found["place"][:, 1].tolist(), "others_on": found["others"].tolist(),
    }  # fmt: skip
    yield worded(
        WORDS["matches"], words, key=figure_key("matches", probe, layer, part), frames=tuple(frames), run=view.run,
        probe=probe, layer=layer, title=f"Phrases in the same state, {layer}, probe {probe}", headline=True, table=table,
    )  # fmt: skip


def _precision(view: View, probe: str, layer: str, part: str, rows: pd.DataFrame, steps: int) -> Figure:
    from stratascope.tasks.report.style import lines

    facts = _arrays(view, int(rows["step"].iloc[-1]), probe, layer, part)[2]
    base, title = float(facts["base_rate"]), FEATURES[str(facts["feature"])].title
    last = rows.iloc[-1]
    words = {
        "title": title, "step": plain_step(last["step"]), "value": last["value"], "n": int(last["n"]), "base": base,
        "missing": steps - len(rows), "steps": steps,
    }  # fmt: skip
    series = {"best matches": (rows["step"].tolist(), rows["value"].tolist())}
    svg = lines(series, f"share in “{title}”", references={"all tokens": (base, base, base)})
    return worded(
        WORDS["precision"], words, key=figure_key("precision", probe, layer, part), svg=svg, run=view.run, probe=probe,
        layer=layer, title=f"What the matched phrases have in common, {layer}, probe {probe}",
        table=table_of(rows, ("step", "value", "n", "convention")),
    )  # fmt: skip
