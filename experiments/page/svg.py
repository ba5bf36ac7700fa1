"""Figures of a run as parts of a page: inline SVG that clashes with nothing and fetches nothing.

Matplotlib writes each SVG as a file of its own: its ids (clip paths, markers) repeat from file
to file, its style element would reach the whole page, its size is fixed and its colours suit
white paper. Here an SVG becomes an element of the page with ids of its own, the width of its
place, and neutral colours that follow the page into dark mode.
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

SVG = "{http://www.w3.org/2000/svg}"
# What a drawing needs. Scripts, foreign content, animation and external images are not in it.
ELEMENTS = {
    *("svg", "g", "defs", "use", "symbol", "marker", "clipPath", "mask", "pattern"),
    *("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "image"),
    *("text", "tspan", "linearGradient", "radialGradient", "stop"),
}
LARGEST_SVG = 3_000_000  # bytes; a PNG beside it stands in for anything larger
MOST_PANELS = 4  # whose titles make a caption
PIXELS_PER_POINT = 4 / 3
PIXELS_PER_CSS_PIXEL = 150 / 96  # at the resolution that figures are saved with
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"  # then the width


class Figure(NamedTuple):
    """A figure as the page shows it."""

    stem: str
    title: str  # over all panels: the finding; may be empty
    caption: str
    description: str  # what a screen reader says
    width: float  # natural width in CSS pixels
    dark: bool  # its neutral colours follow the page's; else it stays on white paper
    markup: Markup


def load_figures(folder: Path, prefix: str, main: str = "") -> list[Figure]:
    """Every figure of a run, by name: SVG, or PNG where there is no SVG or a huge one.

    Args:
      folder: the run's `figures`; may be missing.
      prefix: begins all ids of this run's figures.
      main: name of the figure that comes first, if it is there.

    Raises:
      ValueError: a file is damaged.
    """
    names = {p.stem for kind in ("svg", "png") for p in folder.glob(f"*.{kind}")}
    stems = sorted(names, key=lambda stem: (stem != main, stem))
    found = []
    for number, stem in enumerate((s for s in stems if not s.endswith(".partial")), 1):
        svg, png = (folder / f"{stem}.{kind}" for kind in ("svg", "png"))
        if svg.exists() and (svg.stat().st_size <= LARGEST_SVG or not png.exists()):
            found.append(inline_svg(svg, f"{prefix}f{number}-"))
        else:
            found.append(inline_png(png))
    return found


def inline_png(path: Path) -> Figure:
    """A PNG as a data URI.

    Raises:
      ValueError: it is no PNG.
    """
    data, name = path.read_bytes(), words(path.stem)
    if not data.startswith(PNG):
        raise ValueError(f"{path} is damaged (it begins otherwise); wanted a PNG: draw it again")
    width = int.from_bytes(data[len(PNG) : len(PNG) + 4], "big") / PIXELS_PER_CSS_PIXEL
    encoded = base64.b64encode(data).decode()
    image = Markup('<img alt="{}" src="data:image/png;base64,{}">').format(name, encoded)
    return Figure(path.stem, "", name, name, width, False, image)


def inline_svg(path: Path, prefix: str) -> Figure:
    """An SVG file as an element of the page.

    Raises:
      ValueError: it is no SVG.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is damaged ({error}); wanted an SVG: draw it again") from None
    if root.tag != SVG + "svg":
        raise ValueError(f"{path} is damaged (it begins with {root.tag}); wanted an SVG")
    keep_drawing(root)
    title, caption, description = describe(root, words(path.stem))
    width = natural_width(root)
    # A coloured field (heat map) has light and dark of its own: it stays as it was drawn.
    dark = root.find(".//image") is None and not any(
        (e.get("id") or "").startswith(("QuadMesh", "contour")) for e in root.iter()
    )
    if dark:
        drop_background(root)
    make_ids_unique(root, prefix)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", page_style(element.attrib["style"], dark))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": description})
    markup = Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))
    return Figure(path.stem, title, caption, description, width, dark, markup)


def keep_drawing(root: ElementTree.Element) -> None:
    """Drop, in place, all that is no drawing, and namespaces, which HTML knows by itself."""
    for parent in root.iter():
        parent.tag = parent.tag.removeprefix(SVG)
        for child in list(parent):
            if str(child.tag).removeprefix(SVG) not in ELEMENTS:
                parent.remove(child)
        for name, value in list(parent.attrib.items()):
            del parent.attrib[name]
            name = name.rpartition("}")[2]
            fetches = re.search(r"url\(\s*['\"]?(?!#)", value, re.IGNORECASE)
            linked = name == "href" and not value.startswith(("#", "data:image/png;base64,"))
            if not (name.lower().startswith("on") or fetches or linked):
                parent.set(name, value)


def drop_background(root: ElementTree.Element) -> None:
    """Without the white rectangle under everything: the page shows through."""
    for figure in root.findall("g"):
        for patch in figure.findall("g[@id='patch_1']"):
            figure.remove(patch)


def natural_width(root: ElementTree.Element) -> float:
    """The width that the figure was drawn for, in CSS pixels; gives it a viewBox if it has none."""
    numbers = [re.match(r"[\d.]+", root.get(name, "")) for name in ("width", "height")]
    width, height = (float(n.group()) if n else 600.0 for n in numbers)
    if "viewBox" not in root.attrib:
        root.set("viewBox", f"0 0 {width:g} {height:g}")
    return width * (PIXELS_PER_POINT if root.get("width", "").endswith("pt") else 1)


def make_ids_unique(root: ElementTree.Element, prefix: str) -> None:
    """Prefix, in place, the ids that something refers to; drop the others."""
    reference = re.compile(r"url\(\s*['\"]?#([^'\")]+)['\"]?\s*\)")
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used |= set(reference.findall(value))
            if name == "href" and value.startswith("#"):
                used.add(value[1:])
                element.set(name, f"#{prefix}{value[1:]}")
            elif "url(" in value:
                element.set(name, reference.sub(rf"url(#{prefix}\1)", value))
    for element in root.iter():
        if (name := element.attrib.pop("id", "")) in used:
            element.set("id", f"{prefix}{name}")


def page_style(style: str, dark: bool) -> str:
    """A style attribute without the font that the page sets, its greys as the page's own."""
    kept = [d for d in style.split(";") if not re.match(r"\s*font-family:\s*'DejaVu Sans'(,|$)", d)]
    style = ";".join(kept).strip()
    if dark:
        style = re.sub(r"#([0-9a-fA-F]{6})\b", page_colour, style)
    return style


def page_colour(match: re.Match[str]) -> str:
    """A grey as a mixture of ink and paper; a colour as itself, lightened on dark paper."""
    red, green, blue = (int(match.group(1)[i : i + 2], 16) for i in (0, 2, 4))
    if not red == green == blue:
        return f"color-mix(in srgb, {match.group()} var(--figure-own), white)"
    ink = 100 * (1 - red / 255)
    if ink in (0, 100):
        return "var(--figure-ink)" if ink else "var(--figure-paper)"
    return f"color-mix(in srgb, var(--figure-ink) {ink:.0f}%, var(--figure-paper))"


def describe(root: ElementTree.Element, name: str) -> tuple[str, str, str]:
    """(title over all panels, caption, description) from the text that is in the figure.

    Matplotlib groups the text: the figure's own titles, then for each panel its two axes with
    ticks and a label, its title, and its legend.
    """
    top = root.find("g")
    if top is None:
        return "", name, name
    panels = [g for axes in groups(top, "axes_") for g in axes.iter("g")]
    first = min(map(height, panels), default=0.0)
    own = [(height(group) < first, read_group(group)) for group in groups(top, "text_")]
    title = " ".join(text for above, text in own if above)
    notes = [text for above, text in own if not above]
    titles, parts = [], []
    for axes in groups(top, "axes_"):
        heading = panel_title(axes)
        labels = [
            " ".join(read_group(group) for group in groups(axis, "text_"))
            for axis in groups(axes, "matplotlib.axis_")
        ]
        legend = [read(e) for g in groups(axes, "legend_") for e in g.iter("text")]
        part = heading
        if any(labels):
            part += f" ({' against '.join(filter(None, reversed(labels)))})"
        if legend:
            part += f": {'; '.join(legend)}"
        if heading:
            titles.append(heading)
        if part.strip():
            parts.append(part.strip())
    caption = "; ".join(titles) if 0 < len(titles) <= MOST_PANELS else title or name
    described = ". ".join(part for part in (title, *parts, *notes) if part)
    return title, caption, f"Figure {name}. {described}" if described else f"Figure {name}"


def panel_title(axes: ElementTree.Element) -> str:
    """The last text of a panel, if it stands above all others: notes in the panel come before."""
    texts = list(groups(axes, "text_"))
    others = [g for axis in groups(axes, "matplotlib.axis_") for g in axis.iter("g")]
    if not texts or height(texts[-1]) > min(map(height, [*others, *texts])):
        return ""
    return read_group(texts[-1])


def height(group: ElementTree.Element) -> float:
    """How far below the figure's top a group's first text is; infinite if it has none."""
    if not (group.get("id") or "").startswith("text_"):
        return float("inf")
    for element in group.iter():
        moved = re.search(r"translate\([-\d.]+[ ,]+([-\d.]+)\)", element.get("transform", ""))
        if moved or element.get("y"):
            return float(moved.group(1) if moved else element.get("y", ""))
    return float("inf")


def groups(element: ElementTree.Element, prefix: str) -> Iterator[ElementTree.Element]:
    """The child groups whose id begins with `prefix`."""
    return (g for g in element.findall("g") if (g.get("id") or "").startswith(prefix))


def read_group(group: ElementTree.Element) -> str:
    """All lines of a text."""
    return " ".join(read(text) for text in group.iter("text"))


def read(text: ElementTree.Element) -> str:
    """What a text element says; the pieces of a formula from left to right."""
    pieces = text.findall(".//tspan")
    if not pieces:
        return " ".join("".join(text.itertext()).split())
    if all(len((p.get("x") or "").split()) == 1 for p in pieces):
        pieces.sort(key=lambda piece: float(piece.get("x") or 0))
    return "".join((piece.text or "").strip() or " " for piece in pieces)


def words(name: str) -> str:
    """A file's or field's name as words."""
    return name.replace("_", " ").replace("-", " ").strip()
