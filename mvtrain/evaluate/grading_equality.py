"""Whether two formulas, equations or inequalities say the same, told from their values at a few points."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from mvtrain.evaluate.grading_formulas import Unreadable, names, read
from mvtrain.evaluate.grading_values import NO_VALUE, add, close, inexact, multiply, power, value_at

_SLASH = re.compile(r"(\d+)\s*/\s*(\d+)\s*(?=[A-Za-z\\(])")
_PLAIN_LOG = re.compile(r"\\log(?!\s*_)(?![a-z])")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}
_LEAST_POINTS = 3


def same_value(a: str, b: str) -> bool | None:
    """Whether two normalised formulas are equal; None where it depends on how they are read or where they are taken.

    Raises Unreadable.
    """
    verdicts = {_same(read(x), read(y)) for x, y in _readings(a, b)}
    return verdicts.pop() if len(verdicts) == 1 else None


def _readings(a: str, b: str) -> Iterable[tuple[str, str]]:
    """1/2x is half of x or 1/(2x); log is that of base 10 or of base e."""
    for x, y in itertools.product(*[dict.fromkeys((t, _SLASH.sub(r"\\frac{\1}{\2} ", t))) for t in (a, b)]):
        yield x, y
        if _PLAIN_LOG.search(x) or _PLAIN_LOG.search(y):
            yield _PLAIN_LOG.sub(r"\\ln", x), _PLAIN_LOG.sub(r"\\ln", y)


def points(symbols: Iterable[str]) -> list[dict[str, Any]]:
    """Two points each of positive values, of mixed ones and of whole ones; fixed, so that a grade never changes."""
    rows: list[dict[str, Any]] = []
    for k in range(6):
        row = {}
        for i, symbol in enumerate(sorted(symbols)):
            size = Fraction(7 + 5 * k + 11 * i * i + 3 * i, 5 + 2 * k + i)
            sign = -1 if k in (2, 3) and (i + k) % 2 == 0 else 1
            row[symbol] = sign * size if k < 4 else Fraction(5 + 2 * k + i * (k + 1))
        rows.append(row)
    return rows


def _same(a: Any, b: Any) -> bool | None:
    """Equal at all points: True. Equal at those of one kind, as sqrt(x^2) and x: None. Else False."""
    symbols = names(a) | names(b)
    if not symbols:
        return _same_at(a, b, {})
    found = [_same_at(a, b, point) for point in points(symbols)]
    told = [verdict for verdict in found if verdict is not None]
    if len(told) < _LEAST_POINTS:
        return None
    if all(told):
        return True
    return None if any(pair == (True, True) for pair in zip(found[::2], found[1::2], strict=True)) else False


def _same_at(a: Any, b: Any, point: dict[str, Any]) -> bool | None:
    """None where one of them has no value."""
    try:
        (x, large_x), (y, large_y) = value_at(a, point), value_at(b, point)
        return close(x, y, max(large_x, large_y, key=inexact))
    except Unreadable:
        raise
    except NO_VALUE:
        return None


class _Zero:
    """left - right of an equation, as a function of its letters."""

    def __init__(self, sides: tuple[str, str]) -> None:
        self.sides = [read(side) for side in sides]
        self.names = names(self.sides[0]) | names(self.sides[1])

    def at(self, point: dict[str, Any]) -> tuple[Any, Any]:
        """(value, the largest number on the way)."""
        (x, large_x), (y, large_y) = (value_at(side, point) for side in self.sides)
        return add(x, multiply(y, Fraction(-1))), max(large_x, large_y, key=inexact)

    def vanishes(self, point: dict[str, Any]) -> bool:
        value, largest = self.at(point)
        return close(value, Fraction(0), largest)


def same_equation(a: tuple[str, str], b: tuple[str, str]) -> bool | None:
    """Whether two equations (left, right) have the same solutions, None where nobody can tell. Raises Unreadable."""
    f, g = _Zero(a), _Zero(b)
    symbols = sorted(f.names | g.names)
    if not symbols:
        return None
    if _proportion(f, g, symbols) is not None:
        return True
    verdicts = [_same_roots(f, g, symbols, symbol) for symbol in symbols]
    if False in verdicts:
        return False
    return True if True in verdicts else None


def same_inequality(a: tuple[str, str, str], b: tuple[str, str, str]) -> bool | None:
    """Whether two inequalities (left, sign, right) hold at the same points. Raises Unreadable."""
    f, g = _Zero((a[0], a[2])), _Zero((b[0], b[2]))
    symbols = sorted(f.names | g.names)
    factor = _proportion(f, g, symbols)
    if factor is None:
        return False if f.names != g.names else None
    sign = b[1] if factor > 0 else _FLIPPED[b[1]]
    return a[1] == sign


def _proportion(f: _Zero, g: _Zero, symbols: list[str]) -> Any | None:
    """The factor by which f is g at all points; None where there is none that is constant and real."""
    first: tuple[Any, Any] | None = None
    for point in points(symbols):
        try:
            (x, large_x), (y, large_y) = f.at(point), g.at(point)
            if first is None:
                if close(x, Fraction(0), large_x) or close(y, Fraction(0), large_y):
                    return None
                first = x, y
            left, right = multiply(x, first[1]), multiply(y, first[0])
            if not close(left, right, multiply(large_x + abs(first[0]), large_y + abs(first[1]))):
                return None
        except Unreadable:
            raise
        except NO_VALUE:
            return None
    factor = inexact(first[0]) / inexact(first[1]) if first else None
    return None if factor is None or getattr(factor, "imag", 0) != 0 else factor.real


def _same_roots(f: _Zero, g: _Zero, symbols: list[str], symbol: str) -> bool | None:
    """Whether both vanish at the same values of one letter, with the others fixed at a few points."""
    verdicts = set()
    for point in points(symbols)[:3]:
        try:
            roots_f, roots_g = _roots(f, point, symbol), _roots(g, point, symbol)
            if roots_f is None or roots_g is None or not (roots_f or roots_g):
                return None
            verdicts.add(
                all(g.vanishes({**point, symbol: r}) for r in roots_f)
                and all(f.vanishes({**point, symbol: r}) for r in roots_g)
            )
        except Unreadable:
            raise
        except NO_VALUE:
            return None
    return verdicts.pop() if len(verdicts) == 1 else None


def _roots(f: _Zero, point: dict[str, Any], symbol: str) -> list[Any] | None:
    """Of a polynomial of degree 1 or 2 in `symbol`; an empty list where it does not depend on it; else None."""
    y = [f.at({**point, symbol: Fraction(x)})[0] for x in (-2, -1, 0, 1, 2, 3)]
    if not all(isinstance(value, Fraction) for value in y):
        return None
    c, b, a = y[2], (y[3] - y[1]) / 2, (y[3] + y[1]) / 2 - y[2]
    if any(a * x * x + b * x + c != value for x, value in ((-2, y[0]), (2, y[4]), (3, y[5]))):
        return None
    if a == 0:
        return [-c / b] if b else []
    root = power(b * b - 4 * a * c, Fraction(1, 2))
    return [multiply(add(-b, multiply(root, Fraction(s))), 1 / (2 * a)) for s in (1, -1)]
