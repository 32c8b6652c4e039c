"""What kind of thing an answer is, such as a list, an interval or an equation, and whether two are equal.

Lists and sets are equal in any order, points and matrices entry by entry, intervals with their brackets. Every function
that compares gives True, False, or None where equality cannot be told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mvtrain.evaluate.grading_equality import same_equation, same_inequality
from mvtrain.evaluate.grading_leaves import Verdict, same_leaf
from mvtrain.evaluate.grading_text import key

MOST_ITEMS = 60
Form = Literal["leaf", "list", "set", "bracket", "union", "matrix", "relation"]

_OPENING, _CLOSING = "([{", ")]}"
_SIGNS = ("=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx")
_SIGN = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[=<>]")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_CUP = re.compile(r"\\cup(?![A-Za-z])|(?<=[)\]])\s*U\s*(?=[(\[])")
_SEPARATOR = re.compile(r"[,;]")
_MATRIX = re.compile(r"\\begin\{([a-z]*)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\s*\(\s*[A-Za-z]\s*\))?|(?:\\text\{[^{}]*\}\s*)+|[A-Za-z]{3,}(?: [A-Za-z]+)*"
)
_NOT_TAKEN_APART = re.compile(r"\\(?:begin|setminus|cap|mathbb|pm|mp)(?![A-Za-z])|\\text\{[^{}]* [^{}]*\}")
_EMPTY = re.compile(r"\\emptyset|(?:\\text\{)?(?:the )?(?:no (?:real )?solutions?|empty set)\}?", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu|phi)")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "="}


@dataclass(frozen=True)
class Shape:
    """An answer taken apart."""

    form: Form
    text: str
    items: tuple[Shape, ...] = ()
    signs: tuple[str, ...] = ()
    """Of a relation, between its items; of a bracket the two brackets; of a matrix its delimiter and its width."""


def shape(text: str) -> Shape:
    """Take a normalised answer apart."""
    text = text.strip()
    if _EMPTY.fullmatch(text):
        return Shape("set", text)
    if matrix := _matrix(text):
        return matrix
    items = _split(text, _SEPARATOR)
    if len(items) > 1:
        return Shape("list", text, _items(items))
    parts = _split(text, _CUP)
    if len(parts) > 1:
        return Shape("union", text, tuple(shape(part) for part in parts))
    if found := _relation(text) or _bracket(text):
        return found
    signed = _both_signs(text)
    return Shape("list", text, tuple(Shape("leaf", t) for t in signed)) if len(signed) > 1 else Shape("leaf", text)


def _items(texts: Sequence[str]) -> tuple[Shape, ...]:
    """Of a list: 1 \\pm 2 counts as two."""
    return tuple(part for s in map(shape, texts) for part in (s.items if _is_signed(s) else (s,)))


def _is_signed(s: Shape) -> bool:
    return s.form == "list" and len(_PLUS_MINUS.findall(s.text)) == 1


def _both_signs(text: str) -> list[str]:
    """The two that 1 \\pm 2 stands for; what has several such signs is left as it is."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        return [text]
    return [re.sub(r"^\s*\+\s*", "", _PLUS_MINUS.sub(sign, text)) for sign in "+-"]


def _split(text: str, pattern: re.Pattern) -> list[str]:
    """At what `pattern` finds outside of all brackets; the whole text where a piece would be empty."""
    pieces, start = [], 0
    for match in _outside(text, pattern):
        pieces.append(text[start : match.start()].strip())
        start = match.end()
    pieces.append(text[start:].strip())
    return pieces if all(pieces) and len(pieces) <= MOST_ITEMS else [text]


def _outside(text: str, pattern: re.Pattern) -> list[re.Match]:
    depths, depth = [], 0
    for character in text:
        depth -= character in _CLOSING
        depths.append(depth)
        depth += character in _OPENING
    return [match for match in pattern.finditer(text) if depths[match.start()] == 0]


def _bracket(text: str) -> Shape | None:
    """(a, b), [a, b), \\{a, b\\} or \\langle a, b \\rangle as a whole."""
    inner, brackets = text[1:-1], text[:1] + text[-1:]
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner, brackets = text[2:-2], "{}"
    elif text.startswith(r"\langle") and text.endswith(r"\rangle"):
        inner, brackets = text[7:-7], "<>"
    elif brackets not in ("()", "[]", "(]", "[)"):
        return None
    if not _is_closed(inner):
        return None
    items = _items(_split(inner, _SEPARATOR)) if inner.strip() else ()
    if brackets == "{}":
        return Shape("set", text, items)
    return Shape("bracket", text, items, tuple(brackets)) if len(items) > 1 else None


def _is_closed(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth < 0:
            return False
    return depth == 0


def _matrix(text: str) -> Shape | None:
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[2]:
        return None
    rows = [row.split("&") for row in match[2].split("\\\\") if row.strip()]
    entries = tuple(Shape("leaf", entry.strip()) for row in rows for entry in row)
    if not rows or len({len(row) for row in rows}) > 1 or len(entries) > MOST_ITEMS:
        return None
    delimiter = match[1] if match[1] in ("v", "V") else ""
    return Shape("matrix", text, entries, (delimiter, str(len(rows[0]))))


def _relation(text: str) -> Shape | None:
    matches = _outside(text, _SIGN)
    if not matches:
        return None
    edges = [0, *(edge for match in matches for edge in match.span()), len(text)]
    sides = [text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)]
    signs = tuple(match[0] for match in matches)
    if signs == ("=",) and not sides[0] and sides[1]:
        return shape(sides[1])
    if not all(sides) or len(sides) > MOST_ITEMS:
        return Shape("leaf", text)
    if signs[-1] == r"\approx":  # what is about the same does not count
        return shape(sides[0]) if len(signs) == 1 else _relation(text[: matches[-1].start()])
    return Shape("relation", text, (Shape("leaf", sides[0]), *map(shape, sides[1:])), signs)


def same_shape(a: Shape, b: Shape) -> Verdict:
    """Whether two answers are equal. `Unreadable` formulas raise."""
    if key(a.text) == key(b.text):
        return True
    if "relation" in (a.form, b.form):
        return _same_relation(a, b)
    if a.form == b.form:
        return _SAME_FORM[a.form](a, b)
    forms = {a.form, b.form}
    if forms == {"list", "set"}:
        return _in_any_order(a.items, b.items)
    if forms <= {"leaf", "list", "set"} and 1 in (len(a.items), len(b.items)):
        return same_shape(*(s.items[0] if len(s.items) == 1 else s for s in (a, b)))
    if forms == {"union", "list"}:
        return _same_union(*((a, b) if a.form == "union" else (b, a)))
    if "bracket" in forms and "list" in forms and "set" not in forms:
        return _without_certainty(_in_order(a.items, b.items))
    if forms == {"bracket", "matrix"}:
        return _without_certainty(_in_order(a.items, b.items))
    return None if any(s.form == "leaf" and _NOT_TAKEN_APART.search(s.text) for s in (a, b)) else False


def _without_certainty(verdict: Verdict) -> Verdict:
    """Of the same numbers written as another kind of thing nobody can tell whether it was meant."""
    return None if verdict is True else verdict


def _same_union(union: Shape, listed: Shape) -> Verdict:
    """x < 2 or x > 3 is a union; a list of intervals may be meant as one."""
    intervals = [_as_intervals(item) for item in listed.items]
    if None in intervals:
        return None if any(intervals) else False
    verdict = _in_any_order(union.items, [interval for part in intervals for interval in part])
    are_relations = all(item.form == "relation" for item in listed.items)
    is_one_letter = len({_variable(item) for item in listed.items if item.form == "relation"}) == 1
    return verdict if are_relations and is_one_letter else _without_certainty(verdict)


def _same_bracket(a: Shape, b: Shape) -> Verdict:
    verdict = _in_order(a.items, b.items)
    if a.signs == b.signs:
        return verdict
    return _without_certainty(verdict) if "<" in a.signs + b.signs else False


def _same_matrix(a: Shape, b: Shape) -> Verdict:
    if a.signs == b.signs:
        return _in_order(a.items, b.items)
    return False if a.signs[0] == b.signs[0] else None


def _in_order(a: Sequence[Shape], b: Sequence[Shape]) -> Verdict:
    if len(a) != len(b):
        return False
    verdicts = {same_shape(x, y) for x, y in zip(a, b, strict=True)}
    return False if False in verdicts else None if None in verdicts else True


def _in_any_order(a: Sequence[Shape], b: Sequence[Shape]) -> Verdict:
    """Pairs off equal items; equality is transitive, so that the first that fits will do."""
    if len(a) != len(b):
        return False
    rest, is_unsure = list(b), False
    for item in a:
        verdicts = [same_shape(item, other) for other in rest]
        if True in verdicts:
            rest.pop(verdicts.index(True))
        elif None in verdicts:
            is_unsure = True
        else:
            return False
    return None if is_unsure else True


def _same_set(a: Shape, b: Shape) -> Verdict:
    return _in_any_order(_distinct(a.items), _distinct(b.items))


def _distinct(items: Sequence[Shape]) -> list[Shape]:
    kept: list[Shape] = []
    for item in items:
        if not any(same_shape(item, other) for other in kept):
            kept.append(item)
    return kept


_SAME_FORM: dict[str, Callable[[Shape, Shape], Verdict]] = {
    "leaf": lambda a, b: same_leaf(a.text, b.text),
    "list": lambda a, b: _same_list(a, b),
    "set": _same_set,
    "bracket": _same_bracket,
    "union": lambda a, b: _in_any_order(a.items, b.items),
    "matrix": _same_matrix,
}


def _same_list(a: Shape, b: Shape) -> Verdict:
    """x = 1, x = 2 is the list 1, 2; but x = 1, y = 2 is not."""
    unassigned = [_unassigned_list(s) for s in (a, b)]
    if (unassigned[0] is None) != (unassigned[1] is None):
        return _in_any_order(*(u if u is not None else s.items for u, s in zip(unassigned, (a, b), strict=True)))
    return _in_any_order(a.items, b.items)


def _unassigned_list(s: Shape) -> tuple[Shape, ...] | None:
    """The values of a list of equations for one and the same letter."""
    if not all(item.form == "relation" and item.signs == ("=",) and _is_named(item) for item in s.items):
        return None
    is_one_letter = len({key(item.items[0].text) for item in s.items}) == 1
    return tuple(item.items[-1] for item in s.items) if is_one_letter else None


def _is_named(relation: Shape) -> bool:
    return _NAME.fullmatch(relation.items[0].text) is not None


def _same_relation(a: Shape, b: Shape) -> Verdict:
    """x = 5 is 5, x > 3 is the interval behind 3; two equations are equal where their solutions are."""
    intervals = [_as_intervals(s) for s in (a, b)]
    if None not in intervals:
        variables = {_variable(s) for s in (a, b) if s.form == "relation"}
        return _in_any_order(*intervals) if len(variables) < 2 else False
    if a.form == b.form == "relation":
        return _same_relations(a, b)
    relation, other = (a, b) if a.form == "relation" else (b, a)
    if set(relation.signs) <= {"="} and (_is_named(relation) or not re.search("[A-Za-z]", relation.items[0].text)):
        return same_shape(relation.items[-1], other)
    if relation.signs == (r"\in",) and _is_named(relation):
        return same_shape(relation.items[-1], other)
    if other.form == "list" and relation.signs == ("=",):
        values = _unassigned_list(other)
        return False if values is not None and _is_named(relation) else None
    num_letters = len(set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", relation.text)))
    has_relations = any(item.form == "relation" for item in other.items)
    is_unclear = other.form == "leaf" and _NOT_TAKEN_APART.search(other.text)
    return None if num_letters == 1 or has_relations or is_unclear else False


def _same_relations(a: Shape, b: Shape) -> Verdict:
    if {*a.signs, *b.signs} == {"="}:
        (left_a, right_a), (left_b, right_b) = ((s.items[0], s.items[-1]) for s in (a, b))
        if key(left_a.text) == key(left_b.text) and _is_named(a):
            return same_shape(right_a, right_b)
        if any(len(s.items) > 2 or s.items[-1].form != "leaf" for s in (a, b)) or "text" in left_a.text + left_b.text:
            return None
        return same_equation((left_a.text, right_a.text), (left_b.text, right_b.text))
    if len(a.signs) == len(b.signs) == 1 and a.signs[0] in _FLIPPED and b.signs[0] in _FLIPPED:
        sides = [(s.items[0].text, s.signs[0], s.items[1].text) for s in (a, b)]
        return same_inequality(*sides)
    return False if set(a.signs).isdisjoint(b.signs) and len(a.signs) == len(b.signs) == 1 else None


def _variable(s: Shape) -> str:
    return next((item.text for item in s.items if _VARIABLE.fullmatch(item.text)), key(s.items[0].text))


def _as_intervals(s: Shape) -> tuple[Shape, ...] | None:
    """The intervals of x > 3, -2 \\le x < 7, x \\in (1, 2), (1, 2) \\cup (3, 4); None for anything else."""
    if s.form == "union":
        return s.items
    if s.form == "bracket":
        return (s,)
    if s.form != "relation":
        return None
    if s.signs == (r"\in",) and _is_named(s):
        return _as_intervals(s.items[1])
    sides, signs = [item.text for item in s.items], list(s.signs)
    if any(sign not in _FLIPPED or sign == "=" for sign in signs):
        return None
    if signs[0] in (">", r"\ge"):  # read from small to large
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    if len(signs) == 1 and _VARIABLE.fullmatch(sides[0]):
        sides, signs = [r"-\infty", *sides], ["<", *signs]
    elif len(signs) == 1 and _VARIABLE.fullmatch(sides[1]):
        sides, signs = [*sides, r"\infty"], [*signs, "<"]
    if len(signs) != 2 or not _VARIABLE.fullmatch(sides[1]) or {*signs} - {"<", r"\le"}:
        return None
    brackets = ("(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]")
    ends = tuple(Shape("leaf", side) for side in sides[::2])
    return (Shape("bracket", f"{brackets[0]}{sides[0]},{sides[2]}{brackets[1]}", ends, brackets),)
