"""The value of a formula at a point, exactly or to 120 digits, with bounds on what is computed."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

from mvtrain.evaluate.grading_formulas import Unreadable, name_of

MOST_NODES = 2_000
MOST_BITS = 40_000
"""Of a number that is computed exactly."""
LARGEST_POWER_OF_2 = 10**7
"""Beyond, nothing is computed."""
LARGEST_FACTORIAL = 1_000
DIGITS = 120
SAME = Fraction(1, 10**90)
"""How far two inexact values may be apart, relative to the largest number on the way."""
NO_VALUE = (ArithmeticError, ValueError, TypeError)

_MPMATH_NAMES = set("sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh asinh acosh atanh".split())


def value_at(expression: Any, point: dict[str, Any]) -> tuple[Any, Any]:
    """(the value of an expression where its letters have the values of `point`, the largest number on the way).

    A Fraction where the value is exact, else a number of mpmath with 120 digits. Raises Unreadable for what is too
    large or not known, ArithmeticError, ValueError or TypeError where there is no value.
    """
    evaluation = _Evaluation(point)
    value = evaluation.value(expression, 0)
    return value, evaluation.largest


@functools.lru_cache(maxsize=1)
def _mpmath() -> Any:
    """A context of our own: precision is a setting of the context, and others may use the global one."""
    import mpmath

    context = mpmath.mp.clone()
    context.dps = DIGITS
    return context


class _Evaluation:
    def __init__(self, point: dict[str, Any]) -> None:
        self.point = point
        self.largest: Any = Fraction(0)
        self.num_nodes = 0

    def value(self, node: Any, depth: int) -> Any:
        import sympy

        self.num_nodes += 1
        if self.num_nodes > MOST_NODES or depth > 100:
            raise Unreadable("a formula of too many parts")
        if isinstance(node, sympy.Symbol):
            result = self.symbol(name_of(node))
        elif isinstance(node, sympy.Rational):
            result = Fraction(int(node.p), int(node.q))
        elif node in (sympy.pi, sympy.E):
            result = +(_mpmath().pi if node is sympy.pi else _mpmath().e)
        else:
            result = self.operation(type(node).__name__, [self.value(part, depth + 1) for part in node.args])
        size = abs(result)
        if inexact(size) > inexact(self.largest):
            self.largest = size
        return result

    def symbol(self, name: str) -> Any:
        if name == "e":
            return +_mpmath().e
        return _mpmath().j if name == "i" else self.point[name]

    def operation(self, name: str, parts: list[Any]) -> Any:
        if name in ("Add", "Mul"):
            return functools.reduce(add if name == "Add" else multiply, parts)
        if name == "Pow":
            return power(*parts)
        if name in ("factorial", "binomial") and all(isinstance(part, Fraction) for part in parts):
            return _count(name, parts)
        if name in ("floor", "ceiling", "Abs"):
            return _round(name, parts[0])
        if name == "log":
            logs = [_mpmath().log(inexact(part)) for part in parts]
            return logs[0] / logs[1] if len(logs) > 1 else logs[0]
        if name == "exp":
            return power(+_mpmath().e, parts[0])
        if name in _MPMATH_NAMES:
            return getattr(_mpmath(), name)(_small(parts[0]))
        raise Unreadable(f"{name} is not known")


def inexact(value: Any) -> Any:
    return _mpmath().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _small(value: Any) -> Any:
    """An argument of a periodic function: more digits before the point leave none behind it."""
    value = inexact(value)
    if abs(value) > 10**20:
        raise Unreadable("a number is too large to compute with")
    return value


def add(a: Any, b: Any) -> Any:
    return a + b if isinstance(a, Fraction) is isinstance(b, Fraction) else inexact(a) + inexact(b)


def multiply(a: Any, b: Any) -> Any:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if _bits(a) + _bits(b) > MOST_BITS:
            raise Unreadable("a number is too large to compute with")
        return a * b
    return inexact(a) * inexact(b)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def power(base: Any, exponent: Any) -> Any:
    """base ** exponent: exact for a whole exponent, real for an odd root of a negative number."""
    is_exact = isinstance(base, Fraction) and isinstance(exponent, Fraction)
    if is_exact and exponent.denominator == 1:
        if base in (0, 1, -1):
            return base ** int(exponent % 2 if base == -1 else exponent)
        if _bits(base) * abs(exponent) > MOST_BITS:
            raise Unreadable("a number is too large to compute with")
        return base ** int(exponent)
    if is_exact and base < 0 and exponent.denominator % 2:
        sign = -1 if exponent.numerator % 2 else 1
        return sign * power(-base, exponent)
    mp, base, exponent = _mpmath(), inexact(base), inexact(exponent)
    if base != 0 and abs(exponent) * max(1, abs(mp.log(abs(base), 2))) > LARGEST_POWER_OF_2:
        raise Unreadable("a number is too large to compute with")
    return mp.power(base, exponent)


def _count(name: str, parts: list[Fraction]) -> Any:
    """A factorial or a binomial; of letters, which have broken values, through the gamma function or a product."""
    if max(parts) > LARGEST_FACTORIAL:
        raise Unreadable("a number is too large to compute with")
    if name == "binomial" and parts[1].denominator == 1 and 0 <= parts[1] <= 20:
        return functools.reduce(multiply, [(parts[0] - k) / (k + 1) for k in range(int(parts[1]))], Fraction(1))
    if all(part.denominator == 1 and part >= 0 for part in parts):
        whole = [int(part) for part in parts]
        return Fraction(math.factorial(*whole) if name == "factorial" else math.comb(*whole))
    return getattr(_mpmath(), name)(*map(inexact, parts))


def _round(name: str, value: Any) -> Any:
    if name == "Abs":
        return abs(value)
    if not isinstance(value, Fraction):
        return _mpmath().floor(value) if name == "floor" else _mpmath().ceil(value)
    whole = value.numerator // value.denominator
    return Fraction(whole if name == "floor" or value.denominator == 1 else whole + 1)


def close(x: Any, y: Any, largest: Any) -> bool:
    """Whether two values are equal. Raises ValueError where one is no number."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    difference, bound = abs(inexact(x) - inexact(y)), inexact(SAME) * inexact(largest)
    if difference != difference or difference == _mpmath().inf:
        raise ValueError("no number")
    return bool(difference <= bound)
