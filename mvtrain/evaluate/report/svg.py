"""matplotlib's SVG made fit for the page: no style attributes, colours by class, no ids that meet another plot's.

The page's policy allows no style attributes, and a dark page needs other colours than a light one. So every colour of
`CLASSES` becomes a class that the style sheet gives a colour, and what is left of a style becomes attributes.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

INK, SOFT, GRID = "#101112", "#606162", "#d0d1d2"
MODE_COLOURS = {"parallel": "#1a5fd1", "unasked": "#7a3fc2", "sequential": "#c2571a"}
OTHER_COLOUR = "#0f7a62"

CLASSES = {INK: "ink", SOFT: "soft", GRID: "grid"}
CLASSES |= {colour: mode for mode, colour in MODE_COLOURS.items()} | {OTHER_COLOUR: "other"}

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"(?:(bold|italic|[1-9]00)\s+)*([\d.]+)px\b")
_DEFAULTS = {("stroke-linejoin", "miter"), ("fill-opacity", "1"), ("stroke-opacity", "1"), ("opacity", "1")}


def clean_svg(text: str, name: str, title: str, description: str) -> str:
    """The `<svg>` element to put into a page. `name` is unique on the page; title and description are what is read out.

    Args:
        text: an SVG file as matplotlib writes it, with text kept as text.
    """
    root = ElementTree.fromstring(text)
    used = {found for element in root.iter() for found in _references(element)}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = _clean_attributes(element, name, used)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style") or (child.tag in ("g", "defs") and not len(child)):
                parent.remove(child)
        parent.text = parent.text if parent.tag == "text" else None
        for child in parent:
            child.tail = None
    _label(root, name, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    found = []
    for key, value in element.attrib.items():
        found += _REFERENCE.findall(value)
        if key.endswith("href") and value.startswith("#"):
            found.append(value[1:])
    return found


def _clean_attributes(element: ElementTree.Element, name: str, used: set[str]) -> dict[str, str]:
    cleaned: dict[str, str] = {}
    classes = []
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    for key, value in {**attributes, **_declarations(attributes.pop("style", ""))}.items():
        if key == "style" or (key, value) in _DEFAULTS or key in ("version",):
            continue
        if key == "id":
            cleaned |= {"id": f"{name}-{value}"} if value in used else {}
        elif key in ("fill", "stroke") and value.lower() in CLASSES:
            classes.append(f"{key}-{CLASSES[value.lower()]}")
        elif key == "href" and value.startswith("#"):
            cleaned[key] = f"#{name}-{value[1:]}"
        elif key == "font":
            cleaned |= _font(value)
        else:
            cleaned[key] = _REFERENCE.sub(rf"url(#{name}-\1)", _NUMBER.sub(_shorten, value))
    return cleaned | ({"class": " ".join(classes)} if classes else {})


def _declarations(style: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in style.split(";"))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _font(value: str) -> dict[str, str]:
    found = _FONT.search(value)
    assert found, f"an unknown font: {value}"
    weight = {"font-weight": "bold"} if found[1] in ("bold", "600", "700") else {}
    return {"font-size": found[2], **weight}


def _shorten(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _label(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{'title' if tag == 'title' else 'description'}"})
        element.text = text
        root.insert(place, element)
