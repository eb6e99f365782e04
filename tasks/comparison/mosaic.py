"""The samples on which two groups of networks disagree, as pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Figure
from stratascope.tasks.comparison.samples import KINDS, class_targets
from stratascope.tasks.comparison.words import WORDS
from stratascope.tasks.report.mosaic import Tile, mosaic, pictures_of
from stratascope.tasks.report.text import counted, shortened
from stratascope.tasks.representation.pictures import worded

if TYPE_CHECKING:
    from stratascope.tasks.comparison.drawing import Drawn


def mosaic_figures(drawn: Drawn) -> Iterator[Figure]:
    """One figure for each kind of disagreement that happened: with pictures, or with the samples' ids alone."""
    probe = drawn.probe()
    targets = class_targets(probe)
    sides = {
        part: tuple(drawn.array(f"samples/{part}_{side}") for side in "ab")
        for part in ("answer", "probability", "votes")
    }
    samples = drawn.found["samples"]
    totals = {
        "only_a": samples["only_a_right"], "only_b": samples["only_b_right"],
        "both_wrong": samples["both_wrong_differently"],
    }  # fmt: skip
    for kind in KINDS:
        rows = drawn.array(f"shown/{kind}")
        if rows is None or not len(rows):
            continue
        cards = [_card(probe, targets, sides, int(row)) for row in rows]
        pictures = pictures_of(probe, rows) if drawn.show_inputs else None
        yield _figure(drawn, kind, cards, pictures, totals[kind], probe)


def _card(probe: Probe, targets: np.ndarray, sides: dict[str, Any], row: int) -> dict[str, Any]:
    names = probe.class_names

    def name(value: int) -> str:
        return names[value] if value < len(names) else str(value)

    card: dict[str, Any] = {"sample_id": str(probe.sample_id[row]), "true": name(int(targets[row]))}
    for place, side in enumerate("ab"):
        card[f"answer_{side}"] = name(int(sides["answer"][place][row]))
        card[f"probability_{side}"] = float(sides["probability"][place][row])
        card[f"votes_{side}"] = float(sides["votes"][place][row])
    return card


def _figure(
    drawn: Drawn,
    kind: str,
    cards: list[dict[str, Any]],
    pictures: list[np.ndarray] | None,
    total: int,
    probe: Probe,
) -> Figure:
    a, b = drawn.labels
    sure = [card for card in cards if min(card["probability_a"], card["probability_b"]) >= 0.9]
    sure_text = (
        f"On {counted(len(sure), 'sample')} of them both sides are at least 90 % sure, which often means a wrong label."
        if sure
        else "On none of them are both sides at least 90 % sure: most are close calls, which another seed may turn."
    )
    pairs = [(card["answer_a"], card["answer_b"]) for card in cards]
    common = max(pairs, key=pairs.count)
    numbers = {
        "a": a, "b": b, "shown": len(cards), "total": f"{total:,}", "n": f"{len(probe):,}",
        "sure": sure_text, "probe": probe.name, "pair": f"{common[0]} against {common[1]}",
        "pair_count": pairs.count(common), "what": "picture" if pictures else "line of the table",
    }  # fmt: skip
    titles = {
        "only_a": f"Only {a} is right", "only_b": f"Only {b} is right", "both_wrong": "Both are wrong, differently",
    }  # fmt: skip
    table = {key: [card[key] for card in cards] for key in cards[0]}
    return worded(
        WORDS[kind], numbers, key=f"shown-{kind}", title=titles[kind], probe=probe.name, table=table,
        svg=_mosaic(cards, pictures, (a, b)),
    )  # fmt: skip


def _mosaic(cards: Sequence[dict[str, Any]], pictures: list[np.ndarray] | None, labels: tuple[str, str]) -> str:
    """Pictures in rows of four, each with its true class and both answers; without pictures the words alone."""
    from stratascope.tasks.report.style import COLOURS, INK

    tiles = []
    for number, card in enumerate(cards):
        true = (
            f"true: {shortened(card['true'], 13)}"
            if pictures
            else f"{shortened(card['sample_id'], 9)}: {shortened(card['true'], 9)}"
        )
        lines = [(true, INK)]
        for label, key in zip(labels, "ab", strict=True):
            answer, chance = card[f"answer_{key}"], card[f"probability_{key}"]
            text = f"{shortened(label, 7)}: {shortened(answer, 9)} · {_percent(chance)}"
            lines.append((text, COLOURS[2] if answer == card["true"] else COLOURS[4]))
        tiles.append(Tile(tuple(lines), pictures[number] if pictures else None))
    return mosaic(tiles)


def _percent(chance: float) -> str:
    """A probability that is not 1 is never written as if it were."""
    return ">99 %" if chance >= 0.995 else f"{chance * 100:.0f} %"
