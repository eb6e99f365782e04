"""Matplotlib's drawings made fit for a page: small, in the page's own colours, with text that is safe to show."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from stratascope.tasks.report.text import plain_number, visible

# Okabe and Ito's palette for colour-blind readers, extended by lightness; the black became a blue-grey. The page
# has a lighter variant of each for its dark scheme (`--c` and the colour, in report.css).
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00", "#7A5195", "#6E7F8D", "#B03A5B",
)  # fmt: skip
INK = "#123456"
"""Stands for the page's text colour while Matplotlib draws."""
_SETTINGS = {
    "svg.hashsalt": "stratascope",
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
}
_TONES = {"#000000": "currentColor", INK: "currentColor"}
_TONES |= {colour.lower(): f"var(--c{colour[1:].lower()})" for colour in COLOURS}
_NOTHING = {"Date": None, "Creator": None, "Format": None, "Type": None}
_MANY = 3
"""Above so many equal round markers they become one path of dots."""


def to_svg(figure: Any) -> str:
    """`figure` as SVG to stand inside a page: text stays text, ink follows the theme, equal figures give equal bytes."""
    return compact(_drawn(figure))


def moving_frames(
    figure: Any, steps: Sequence[int], artists: Sequence[Any], update: Callable[[int], None]
) -> tuple[tuple[int, str], ...]:
    """(step, svg) for each of `steps`: `update(place)` changes `artists`, and only those are drawn anew.

    Axes, ticks and legend are laid out and drawn once, so a frame costs milliseconds, and the eye has a fixed frame
    of reference while the slider moves. `artists` must keep to the limits that the axes have when this is called.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import RendererSVG

    figure.set_dpi(72)
    for artist in artists:
        artist.set_visible(False)
    base = _drawn(figure)
    end = base.rindex("</svg>")
    width, height = (size * 72 for size in figure.get_size_inches())
    frames = []
    for artist in artists:
        artist.set_visible(True)
    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        for place, step in enumerate(steps):
            update(place)
            stream = io.StringIO()
            renderer = RendererSVG(width, height, stream, image_dpi=72, metadata=_NOTHING)
            for artist in artists:
                artist.draw(renderer)
            renderer.finalize()
            drawn = stream.getvalue()
            start = drawn.index(">", drawn.index("<svg")) + 1
            frames.append((int(step), compact(base[:end] + drawn[start : drawn.rindex("</svg>")] + "</svg>")))
    return tuple(frames)


def _drawn(figure: Any) -> str:
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis)
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():  # type: ignore[arg-type]
        # A name may use characters that the font for measuring lacks; the browser has its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata=_NOTHING)
    return stream.getvalue()


def _plain_ticks(axis: Any) -> None:
    """Numbers of logarithmic axes as people write them, instead of mathematical typesetting."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    if isinstance(axis.get_major_formatter(), LogFormatter):
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(float(f"{value:.6g}"))))
        axis.set_minor_formatter(NullFormatter())


# -- making it small -------------------------------------------------------------------------------------


def compact(text: str) -> str:
    """The SVG `text` without what a page does not need: about a fifth of its size, the same to the eye.

    Coordinates are rounded to a tenth of a unit, and characters that cannot be seen are written as escapes. Raises ValueError where `text` is no SVG.
    """
    try:
        root = ElementTree.fromstring(visible(text[text.index("<svg") :]))
    except ElementTree.ParseError as error:
        raise ValueError(f"the drawing is no well-formed SVG: {error}.") from None
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for definition in root.iter("defs"):
        for path in definition.iter("path"):
            path.set("d", _short_path(path.get("d", ""), 100))
            path.set("defined", "")
    circles = {}
    for path in root.iter("path"):
        round_one = re.match(r"m0 ?(-?[\d.]+)c", path.get("d", "")) if "defined" in path.attrib else None
        if round_one:
            look = _style(path)
            edge = float(look.get("stroke-width", 1)) if look.get("stroke", "none") != "none" else 0.0
            circles[str(path.get("id"))] = 2 * abs(float(round_one.group(1))) + edge
    children = _runs([item for child in root for item in _tidied(child)], circles)
    written = "".join(map(_written, children))
    used = set(re.findall(r"#([\w-]+)", written))
    kept = _without_unused(children, used)
    names = {name: f"s{number}" for number, name in enumerate(dict.fromkeys(_ids(kept)))}
    body = "".join(map(_written, kept))
    body = re.sub(
        r'(id="|href="#|url\(#)([\w-]+)',
        lambda found: found.group(1) + names.get(found.group(2), found.group(2)),
        body,
    )
    box = " ".join(f"{float(size):g}" for size in root.get("viewBox", "0 0 1 1").split())
    return f'<svg viewBox="{box}" style="--w:{float(box.split()[2]):.0f}">{body}</svg>'


def with_prefix(svg: str, prefix: str) -> str:
    """`svg` as `compact` made it, its inner names made unique in a page by `prefix` (letters, digits, '-')."""
    return re.sub(r'(id="|href="#|url\(#)(s\d+)', rf"\g<1>{prefix}\g<2>", svg)


def _style(element: Any) -> dict[str, str]:
    pairs = (item.partition(":")[::2] for item in element.get("style", "").split(";") if ":" in item)
    return {name.strip(): value.strip() for name, value in pairs}


def _tidied(element: Any) -> list[Any]:
    """What stands for `element` on the page: nothing, itself, or its children."""
    tag = element.tag
    if tag in ("metadata", "style"):
        return []
    element[:] = [item for child in element for item in _tidied(child)]
    if tag != "text" and tag != "tspan":
        element.text = None
    element.tail = None
    defined = "defined" in element.attrib
    element.attrib.pop("defined", None)
    if tag == "g" or tag == "text":
        element.attrib.pop("id", None)
    style = _short_style(_style(element), tag)
    if tag == "path" and not defined:
        if style.get("fill") == "none" and style.get("stroke", "none") == "none":
            return []
        element.set("d", _short_path(element.get("d", ""), 10))
        element.attrib.pop("id", None)
    element.attrib.pop("style", None)
    if style:
        element.set("style", ";".join(f"{name}:{value}" for name, value in style.items()))
    for name in ("x", "y", "width", "height"):
        if name in element.attrib:
            element.set(name, _tenths(round(float(element.get(name)) * 10)))
    _shorten_transform(element)
    if tag in ("g", "defs") and not len(element):
        return []
    return list(element) if tag == "g" and not element.attrib else [element]


def _short_style(style: dict[str, str], tag: str) -> dict[str, str]:
    kept = {}
    for name, value in style.items():
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            name, value = "font-size", f"{float(size.group(1)):g}px" if size else "10px"
        if name in ("font-family", "font-stretch") or (name, value) == ("stroke-linecap", "butt"):
            continue
        value = _TONES.get(value, value)
        if name == "fill" and value == "currentColor" and tag in ("text", "tspan", "g"):
            continue
        kept[name] = value
    return kept


def _shorten_transform(element: Any) -> None:
    text = element.get("transform")
    if text is None:
        return
    text = re.sub(r"rotate\(-0 [^)]*\)", "", text).strip()
    moves = re.sub(
        r"(translate|rotate)\(([^)]*)\)",
        lambda found: (
            f"{found.group(1)}({' '.join(f'{round(float(n), 1):g}' for n in found.group(2).replace(',', ' ').split())})"
        ),
        text,
    )
    element.attrib.pop("transform")
    if moves:
        element.set("transform", moves)


def _runs(children: list[Any], circles: dict[str, float]) -> list[Any]:
    """Neighbours that say the same about themselves, joined: groups into one, many round markers into dots."""
    joined: list[Any] = []
    for child in children:
        if child.tag == "g" and joined and joined[-1].tag == "g" and joined[-1].attrib == child.attrib:
            joined[-1].extend(list(child))
        else:
            joined.append(child)
    for child in joined:
        if child.tag == "g":
            child[:] = _runs(list(child), circles)
            _dots(child, circles)
    return joined


def _dots(group: Any, circles: dict[str, float]) -> None:
    """Turn a group of many equal circles into one path: a dot is a stroke of no length with a round cap."""
    kinds = {(item.tag, item.get("href"), item.get("style")) for item in group}
    if len(group) <= _MANY or len(kinds) != 1:
        return
    tag, href, style = kinds.pop()
    width = circles.get(str(href)[1:], 0.0)
    if tag != "use" or not width:
        return
    looks = _style(ElementTree.Element("g", {"style": style or ""}))
    dots = "".join(f"M{item.get('x', '0')} {item.get('y', '0')}h0" for item in group)
    stroke = {
        "fill": "none",
        "stroke": looks.get("fill", "currentColor"),
        "stroke-width": f"{width:.3g}",
        "stroke-linecap": "round",
    }
    if "fill-opacity" in looks:
        stroke["stroke-opacity"] = looks["fill-opacity"]
    path = ElementTree.Element("path", {"d": dots, "style": ";".join(f"{k}:{v}" for k, v in stroke.items())})
    group[:] = [path]


def _without_unused(children: list[Any], used: set[str]) -> list[Any]:
    kept = []
    for child in children:
        if child.tag == "defs":
            child[:] = [item for item in child if item.get("id") in used]
            if not len(child):
                continue
        else:
            child[:] = _without_unused(list(child), used)
        kept.append(child)
    return kept


def _ids(children: list[Any]) -> list[str]:
    return [str(item.get("id")) for child in children for item in child.iter() if "id" in item.attrib]


def _written(element: Any) -> str:
    attributes = "".join(
        f' {name}="{escape(value, {chr(34): "&quot;"})}"' for name, value in element.attrib.items()
    )
    inner = escape(element.text or "", {'"': "&quot;"}) + "".join(map(_written, element))
    return f"<{element.tag}{attributes}>{inner}</{element.tag}>" if inner else f"<{element.tag}{attributes}/>"


def _tenths(number: int, scale: int = 10) -> str:
    """`number` of `scale`-ths, written as short as SVG allows."""
    text = f"{number / scale:.2f}".rstrip("0").rstrip(".")
    text = text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
    return "0" if text in ("", "-", "-0") else text


def _short_path(text: str, scale: int) -> str:
    """The path `text` (absolute M, L, C, Q and z, as Matplotlib writes it) rounded to 1/`scale` and made relative."""
    out: list[str] = []
    here = start = (0, 0)
    for command, points in _commands(text, scale):
        moved = [(x - here[0], y - here[1]) for x, y in points]
        if command == "z":
            out.append("z")
            here = start
            continue
        if command == "L" and 0 in moved[0]:
            direction, length = ("h", moved[0][0]) if moved[0][1] == 0 else ("v", moved[0][1])
            _go_on(out, direction, length, scale)
        else:
            numbers = [_tenths(value, scale) for pair in moved for value in pair]
            joined = numbers[0] + "".join(n if n.startswith("-") else f" {n}" for n in numbers[1:])
            out.append(command.lower() + joined)
        here = points[-1]
        if command == "M":
            start = here
    return "".join(out)


def _commands(text: str, scale: int) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    tokens = re.findall(r"[MLCQZz]|-?\d[\d.]*(?:e-?\d+)?", text)
    place = 0
    while place < len(tokens):
        command = tokens[place]
        count = {"M": 1, "L": 1, "Q": 2, "C": 3}.get(command, 0)
        numbers = [round(float(item) * scale) for item in tokens[place + 1 : place + 1 + 2 * count]]
        place += 1 + 2 * count
        yield command if count else "z", list(zip(numbers[::2], numbers[1::2], strict=True))


def _go_on(out: list[str], direction: str, length: int, scale: int) -> None:
    """Add a level or upright stretch to `out`, as part of the one before where that goes the same way."""
    if length == 0:
        return
    if out and out[-1][0] == direction and (out[-1][1] == "-") == (length < 0):
        length += round(float(out.pop()[1:]) * scale)
    out.append(direction + _tenths(length, scale))
