"""The pictures of a character model's errors: their kinds, and texts with what the model gave to each character."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.sequence.character_errors_words import WORDS, title_of
from stratascope.tasks.sequence.coloured_text import TextPiece, coloured_text
from stratascope.tasks.sequence.sequence_samples import names_of

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_FRAMES = 6


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the kinds of errors at the last checkpoint; for the leading one also texts."""
    rows = view.metric("character_error_rate")
    if not len(rows):
        return
    lead = leading_probe(view, rows["probe"].unique())
    for probe in sorted(rows["probe"].unique(), key=lambda name: (name != lead, name)):
        own = rows[rows["probe"] == probe]
        yield _types(view, str(probe), own, options, headline=probe == lead)
        if probe == lead and view.show_inputs:
            yield from _texts(view, str(probe), own)


def _types(view: View, probe: str, rows: pd.DataFrame, options: Any, headline: bool) -> Figure:
    from stratascope.tasks.report.style import COLOURS, new_axes, to_svg

    first, last = int(rows["step"].min()), int(rows["step"].max())
    now = rows[(rows["step"] == last) & (rows["part"] != "")]
    before = dict(zip(rows[rows["step"] == first]["part"], rows[rows["step"] == first]["value"], strict=True))
    whole = rows[(rows["step"] == last) & (rows["part"] == "")].iloc[0]
    kinds = [part.removeprefix("type=") for part in now["part"]]
    order = _peeled(kinds)[::-1]
    figure, axes = new_axes(6.4, 0.25 * len(order) + 0.9)
    axes.grid(True, axis="x", alpha=0.15)
    axes.grid(False, axis="y")
    for height, place in enumerate(order):
        row = now.iloc[place]
        axes.barh(height, 100 * row["value"], color=COLOURS[0], height=0.62, alpha=0.8)
        axes.plot([100 * row["low"], 100 * row["high"]], [height, height], color=COLOURS[4], linewidth=1.4)
        if first != last:
            axes.plot(
                100 * before.get(row["part"], np.nan),
                height,
                "x",
                color=COLOURS[1],
                markersize=6,
                markeredgewidth=1.6,
            )
    axes.set_yticks(range(len(order)), [title_of(kinds[place]) for place in order])
    axes.set_xlabel("share of all characters (%)")
    top = now.loc[now["value"].idxmax()]
    untaught = str(whole["convention"])
    tables = "A longer training text would move errors from the lower lines to the n-gram lines."
    words = {
        "untaught": f"There is {untaught}." if untaught else "", "step": plain_step(last), "rate": whole["value"],
        "n": f"{int(whole['n']):,}", "largest": title_of(top["part"].removeprefix("type=")), "rare": options.rare,
        "share": top["value"] / max(whole["value"], 1e-12), "tables": "" if untaught else tables,
    }  # fmt: skip
    return worded(
        WORDS["types"], words, key=figure_key("types", probe), svg=to_svg(figure), run=view.run, probe=probe,
        title=f"What would have avoided the errors, probe {probe}, step {plain_step(last)}", headline=headline,
        table=table_of(rows, ("step", "part", "value", "low", "high", "n")),
    )  # fmt: skip


def _peeled(kinds: list[str]) -> list[int]:
    """Places of `kinds` in the order in which they are peeled off: the ledger sorts them by name."""
    ranks = ("n_gram", "memory", "rare_word", "word_start", "punctuation", "word_end", "near_miss", "other")

    def rank(kind: str) -> tuple[int, int]:
        number = next(place for place, name in enumerate(ranks) if kind.startswith(name))
        ending = kind.rsplit("_", 1)[-1]
        return number, int(ending) if ending.isdecimal() else 0

    return sorted(range(len(kinds)), key=lambda place: rank(kinds[place]))


def _texts(view: View, probe: str, rows: pd.DataFrame) -> Iterator[Figure]:
    names = names_of(view.probes[probe])
    steps = sorted({int(step) for step in rows["step"]})
    frames, wrong = [], 0.0
    for step in even_choice(steps, _FRAMES):
        arrays = view.arrays(step)
        codes, given = arrays[f"{probe}/shown_text"], arrays[f"{probe}/shown_probability"]
        if not len(codes):
            return
        pieces = []
        for text, chance, name in zip(codes, given, arrays[f"{probe}/sample_id"], strict=True):
            kept = np.flatnonzero(text >= 0)
            values = np.concatenate([[np.nan], chance])[kept]
            words = [names[code] for code in text[kept].tolist()]
            pieces.append(TextPiece(f"sample {name}", words, values, np.where(values < 0.5, 0.5, 0.0)))
        frames.append((step, coloured_text(pieces, "probability of the character", "error", signed=False)))
        known = given[np.isfinite(given)]
        wrong, least = float((known < 0.5).mean()), float(known.min())
    losses = view.metric("character_loss", probe=probe)
    last = rows[(rows["step"] == steps[-1]) & (rows["part"] == "")].iloc[0]
    words_of_figure = {
        "step": plain_step(steps[-1]), "loss": float(losses["value"].iloc[-1]), "rate": last["value"], "shown": len(codes),
        "shown_rate": wrong, "worst": f"The least likely character here got {least:.1e}.",
    }  # fmt: skip
    yield worded(
        WORDS["texts"], words_of_figure, key=figure_key("texts", probe), frames=tuple(frames), run=view.run, probe=probe,
        title=f"What the model expected, probe {probe}", table=table_of(losses, ("step", "value", "n")),
    )  # fmt: skip
