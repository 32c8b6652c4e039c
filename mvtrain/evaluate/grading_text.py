"""How answers are written: one spelling of what means the same, plain numbers, units. Standard library only."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MOST_DIGITS = 1_000
"""Of a plain number that is read as one; longer ones are compared as text."""
LONGEST_QUANTITY = 400
"""Characters of a value and its unit."""

_EMPHASIS = re.compile(r"(\*\*|__|\*|`)(.*)\1", re.DOTALL)
_MATHS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|[mh]box|operatorname)\s{0,9}\{([^{}]*)\}")
_SPACING = re.compile(
    r"(?<!\\)(?:\\[;:> ,!]|\\(?:quad|qquad|displaystyle|limits|left\.|right\.|boxed|left(?![a-z])|right(?![a-z])"
    r"|[Bb]igg?[lrm]?(?![a-z])))|~"
)
_THIN_SEPARATOR = re.compile(r"(?<=\d)\s*(?:,\s*\\!|\{,\}|\\,|\\!\s*,)\s*(?=\d{3}(?!\d))")
_SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\%|\\text\{percent\}|\bpercent\b", "%"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-z])|\\degree(?![a-z])", r"^\\circ"),
        (r"\\leq?(?:slant)?(?![a-z])|<=", r"\\le "),
        (r"\\geq?(?:slant)?(?![a-z])|>=", r"\\ge "),
        (r"\\neq?(?![a-z])|!=", r"\\ne "),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\[lr]vert(?![a-z])", "|"),
        (r"\\(?:varnothing|emptyset)(?![a-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:ast|star)(?![a-z])|\*", r"\\cdot "),
        (r"\\colon(?![a-z])", ":"),
        (r"\\[lcd]dots(?![a-z])|\.\.\.|…", r"\\ldots "),
        (r"\binfinity\b|\binf\b", r"\\infty "),
        (r"\\text\{(?:,\s*)?(?:and|or)\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", ", "),
        (r",\s*,", ","),
    )
]
_SYMBOLS = {
    name if len(name) == 1 else unicodedata.lookup(name): spelling
    for name, spelling in {
        "MINUS SIGN": "-", "EN DASH": "-", "UNION": r"\cup ", "MULTIPLICATION SIGN": r"\times ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "·": r"\cdot ",
        "⋅": r"\cdot ", "÷": "/", "°": r"^\circ ", "∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ", "≈": r"\approx ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
        "€": r"\text{euros}", "£": r"\text{pounds sterling}",
    }.items()
}  # fmt: skip
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_ROOT = re.compile(r"√\s*(\d+|[A-Za-z]|\([^()]*\))")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")

_SIGN, _INT = r"(?P<sign>[+-]?)", r"(?:\{{\s*(?P<{0}>[+-]?\d+)\s*\}}|\s*(?P<{0}_digit>\d))"
_FRACTION = rf"\\frac\s*{_INT.format('top')}\s*{_INT.format('bottom')}"
_NUMBERS = [
    re.compile(pattern)
    for pattern in (
        rf"{_SIGN}(?P<decimal>\d+\.?\d*|\.\d+)(?:/(?P<bottom>\d+))?",
        rf"{_SIGN}{_FRACTION}",
        rf"{_SIGN}(?P<whole>\d+)\s*{_FRACTION}",
        rf"{_SIGN}(?P<whole>\d+)\s+(?P<top>\d+)/(?P<bottom>\d+)",
        rf"{_SIGN}(?P<decimal>\d+(?:\.\d+)?)(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{{?|[eE])(?P<power>[+-]?\d{{1,3}})\}}?",
        rf"{_SIGN}(?P<start>\d*\.\d*)\\overline\{{(?P<period>\d{{1,99}})\}}",
        rf"{_SIGN}(?P<start>\d*\.\d*?)(?P<period>\d)(?P=period){{2,}}\s*\\ldots",
    )
]
_WITH_BASE = re.compile(r"(\d[0-9A-Za-z]*)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_LARGEST_BASE = 36

_DIMENSIONS = {
    "length": {
        "mm millimeter millimetre": "0.001", "cm centimeter centimetre": "0.01", "m meter metre": "1",
        "km kilometer kilometre": "1000", "in inch inche": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "time": {"s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400", "week wk": "604800"},
    "money": {"cent": "1", "dollar usd": "100"},
    "mass": {"mg milligram": "0.001", "g gram": "1", "kg kilogram kilo": "1000", "oz ounce": "28.349523125",
             "lb pound": "453.59237"},
    "volume": {"ml milliliter millilitre": "0.001", "l liter litre": "1"},
    "angle": {"degree deg": "1"},
    "percent": {"percent": "1"},
    "plain": {"unit": "1"},
}  # fmt: skip
_UNITS = {
    name: (dimension, Fraction(factor))
    for dimension, units in _DIMENSIONS.items()
    for names, factor in units.items()
    for name in names.split()
}
_BARE_UNITS = "|".join(
    sorted((rf"{name}s?" for name in _UNITS if len(name) > 1 and name not in ("mi", "usd")), key=len, reverse=True)
)
_NOT_UNITS = set(
    "more less least most than about approximately around minus times plus over under below above thousand million "
    "billion hundred dozen half mod base not solutions remainder".split()
)
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_QUANTITY = re.compile(
    rf"(?P<value>.*?(?:[\d.)}}]|\\pi|\\infty))\s*(?P<unit>(?:(?:(?<![\\A-Za-z])(?:square |cubic )?(?:{_BARE_UNITS})"
    rf"(?![A-Za-z])|(?<=\s)[A-Za-z]{{3,}}(?![A-Za-z])|\\text\{{[^{{}}]*\}}|\^\\circ|/|%)\s*)+?)"
    r"(?:\^\s*\{?\s*(?P<power>[23])\s*\}?)?"
)


def undress(line: str) -> str:
    """An answer without the full stop, emphasis and maths delimiters around it."""
    before, text = None, line.strip()
    while text != before:
        before = text
        text = text.strip().removesuffix(".").strip()
        emphasised = _EMPHASIS.fullmatch(text)
        text = emphasised[2] if emphasised else text
        for opening, closing in _MATHS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner
    return text.removeprefix("**").removesuffix("**").strip()


def normalise(answer: str) -> str:
    """An answer without what does not change its meaning: maths delimiters, spacing, macros, synonyms, Unicode."""
    text = undress(answer)
    text = _ROOT.sub(lambda m: r"\sqrt{" + m[1].strip("()") + "}", text)
    text = _SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
    text = "".join(_SYMBOLS.get(c, c) for c in text)
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"(?<!\\)\$", "", text)
    text = _THIN_SEPARATOR.sub("", text)
    text = _SPACING.sub(" ", text)
    text = _TEXT.sub(_macro, text)
    text = re.sub(r"\\text\{([^{}]*\d[^{}]*)\}", r"\1", text)
    text = re.sub(r"^\s*\\text\{(\(?[A-Za-z]\)?)\}\s*$", r"\1", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;").strip()


def _macro(match: re.Match) -> str:
    """`\\text{...}` for every text macro; i and e in one are the constants."""
    inner = re.sub(r"\s+", " ", match[1]).strip()
    return inner if inner in ("i", "e", "%", "") or inner.isdigit() else rf"\text{{{inner}}}"


def key(text: str) -> str:
    """Equal for two normalised answers that differ in white space or in braces around one sign only."""
    text = re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", text)
    text = re.sub(r"(?<=[_^])\{(\w)\}", r"\1", text)
    return re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)


def without_thousands(text: str) -> str:
    """10,080 becomes 10080, outside of brackets."""
    pieces, depth, position = [], 0, 0
    for match in _THOUSANDS.finditer(text):
        for character in text[position : match.start()]:
            depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(character, 0)
        number = match[0] if depth else match[0].replace(",", "")
        pieces += [text[position : match.start()], number]
        position = match.end()
    return "".join([*pieces, text[position:]])


def as_number(text: str) -> Fraction | None:
    """A plain number, exactly: 12, -0.5, 3/4, \\frac34, 2\\frac12, 1.5\\times10^3, 0.1\\overline{6}.

    A whole number before a fraction above 1 is a product, which is no plain number.
    """
    text = re.sub(r"^([+-])\s+", r"\1", text)
    if len(text) > MOST_DIGITS:
        return None
    for pattern in _NUMBERS:
        if match := pattern.fullmatch(text):
            return _value(match.groupdict())
    return None


def _value(part: dict[str, str | None]) -> Fraction | None:
    """From what the groups of a pattern of `_NUMBERS` matched."""
    top = Fraction(part.get("top") or part.get("top_digit") or 0)
    bottom = Fraction(part.get("bottom") or part.get("bottom_digit") or 1)
    if not bottom:
        return None
    value = Fraction((part.get("decimal") or "0").rstrip(".")) + top
    value = value / bottom * Fraction(10) ** int(part.get("power") or 0)
    if part.get("whole"):
        if not 0 < value < 1:
            return None
        value += int(part["whole"])
    if period := part.get("period"):
        start = part["start"]
        scale = 10 ** len(start.partition(".")[2])
        value = Fraction("0" + start + "0") + Fraction(int(period), scale * (10 ** len(period) - 1))
    return -value if part["sign"] == "-" else value


def with_base(text: str) -> tuple[str, int] | None:
    """(digits, base) of a number such as 2516_8."""
    match = _WITH_BASE.fullmatch(text)
    if match is None or not 2 <= int(match[2]) <= _LARGEST_BASE or len(match[1]) > MOST_DIGITS:
        return None
    return match[1].upper().lstrip("0") or "0", int(match[2])


def quantity(text: str) -> tuple[str, tuple[str, Fraction] | None]:
    """(value, (dimension, how many of that dimension's smallest named unit)); no unit where none is written.

    The dimension of an unknown unit is its own name.
    """
    money = re.match(r"(-?)\s*\\\$\s*", text)
    if money:
        return money[1] + text[money.end() :], _unit("dollar", None)
    match = _QUANTITY.fullmatch(text) if len(text) <= LONGEST_QUANTITY else None
    if match is None or _is_open(match["value"]) or _LONG_WORD.search(match["value"]):
        return text, None
    if r"\circ" in match["unit"] and _TRIGONOMETRY.search(text):  # the degrees of an argument
        return text, None
    unit = _unit(match["unit"], match["power"])
    return (match["value"], unit) if unit else (text, None)


def _is_open(text: str) -> bool:
    return text.count("{") != text.count("}") or text.count("(") != text.count(")")


def _unit(phrase: str, power: str | None) -> tuple[str, Fraction] | None:
    phrase = phrase.replace(r"^\circ", " degree ").replace("%", " percent ").replace("/", " per ")
    words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", phrase).casefold().replace("^", " ").split()
    if not words or len(words) > 5 or _NOT_UNITS & set(words):
        return None
    powers = {"square": 2, "sq": 2, "squared": 2, "2": 2, "cubic": 3, "cu": 3, "cubed": 3, "3": 3}
    exponent = max([int(power or 1), *(powers.get(word, 1) for word in words)])
    names = [_singular(word.strip(".")) for word in words if word not in powers]
    if len(names) == 1 and names[0] in _UNITS:
        dimension, factor = _UNITS[names[0]]
        return f"{dimension}^{exponent}", factor**exponent
    return f"{' '.join(names)}^{exponent}", Fraction(1)


def _singular(word: str) -> str:
    return word if word in _UNITS or not word.endswith("s") else word[:-1]
