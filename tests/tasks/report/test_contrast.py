"""Both themes can be read: text against what it stands on has a contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""

import re
from importlib import resources

import numpy as np
import pytest

from stratascope.tasks.report.svg import COLOURS

CSS = (resources.files("stratascope.tasks.report") / "assets" / "report.css").read_text()
TONES = ("accent", "pass", "info", "warn", "fail", "error")


def theme(number: int) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[: number + 1]:
        for name, colour in re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block):
            found[name] = tuple(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return found


def lightness(colour: tuple[float, ...]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    high, low = sorted((lightness(first), lightness(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def mixed(colour, share, other):
    return tuple(share * a + (1 - share) * b for a, b in zip(colour, other, strict=True))


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_everything_it_stands_on(number):
    tone = theme(number)
    pairs = {
        (text, ground): contrast(tone[text], tone[ground])
        for text in ("ink", "quiet", "accent")
        for ground in ("paper", "card", "accent-soft")
    }
    pairs |= {(name, "card"): contrast(tone[name], tone["card"]) for name in TONES}
    pairs |= {("card", name): contrast(tone["card"], tone[name]) for name in TONES}  # signs and pressed buttons
    for name in (*TONES, "quiet"):
        pairs[(name, "its badge")] = contrast(tone[name], mixed(tone[name], 0.11, tone["card"]))
        pairs[(name, "the verdict")] = contrast(tone[name], mixed(tone[name], 0.12, tone["card"]))
    assert {pair: round(value, 2) for pair, value in pairs.items() if value < 4.5} == {}


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_edges_of_controls_can_be_seen(number):
    tone = theme(number)
    assert min(contrast(tone["edge"], tone[ground]) for ground in ("paper", "card")) >= 3


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_colours_of_data_can_be_told_apart_without_red_and_green_and_seen(number):
    """Machado et al. 2009, table for deuteranopia: any two stay apart in linear light, and from the card."""
    tone = theme(number)
    colours = [tone[f"c{colour[1:].lower()}"] for colour in COLOURS]
    matrix = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    seen = np.array(colours) ** 2.2 @ matrix.T
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(colours), 1)]
    assert distances.min() > 0.06
    # Pale ones are told by their shape and their name at the line's end; none may vanish.
    assert min(contrast(colour, tone["card"]) for colour in colours) > (2 if number == 0 else 4.5)
