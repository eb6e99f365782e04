"""Words and numbers for people: names from outside made visible, numbers without needless digits."""

from __future__ import annotations

import math
import re
from typing import Any

from markupsafe import Markup, escape

# C0 and C1 controls, line and paragraph separators, lone surrogates, and what reorders the text around it.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """`text` with every character that hides, breaks or reorders what stands around it written as an escape.

    A right-to-left override becomes the six characters ``\\u202e``, so that a name cannot pass for another; a name of
    blanks alone becomes as many ``␣``.
    """
    if text.isspace():
        return "␣" * len(text)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def shortened(name: str, longest: int = 28) -> str:
    """`name` in at most `longest` characters: the middle gives way, since layers differ at their ends."""
    name = visible(name)
    if len(name) <= longest:
        return name
    tail = (longest - 1) * 2 // 3
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"


def plain_number(value: Any) -> str:
    """A number for people: four significant digits, no exponent where it can be helped."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if 1e-4 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def plain_step(step: float) -> str:
    """A training step as people say it: 0, 12, 1,500, 2M."""
    step = round(step)
    if abs(step) >= 1_000_000 and step % 100_000 == 0:
        return f"{step / 1e6:g}M"
    return f"{step:,}"


def joined(items: list[str], most: int = 6) -> str:
    """`items` as a list in words, cut after `most`."""
    shown = "; ".join(items[:most])
    return f"{shown}; and {len(items) - most} more" if len(items) > most else shown


def counted(number: int, thing: str) -> str:
    """`number` and `thing`, in the plural where there is not exactly one."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key by which `run-2` comes before `run-10`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def marked(text: str) -> Markup:
    """`text`, escaped, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))
