"""Formulas: read by math-verify's LaTeX grammar, with nothing in them computed.

math-verify's own normalisation and comparison are not used. They take R for r, so that R - r is zero, and `2m`, `3t`
and `2516_8` for 2, 3 and 2516; 2(1/2) becomes the mixed number 2.5; decimals are equal where a number of digits are;
and simplifying may never end. Here only known commands reach the grammar, and `grading_values` compares by value,
exactly or to 120 digits, with bounds.
"""

from __future__ import annotations

import functools
import re
from typing import Any

LONGEST = 300
"""Characters of a formula that are read."""
MOST_GROUPS = 12
"""In brackets beside each other or within each other."""
MOST_BARS = 8
"""A bar opens or closes; the grammar tries both."""
DEEPEST = 10
"""Braces and brackets within each other; the grammar needs 50 ms for each level."""

_FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split()
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"
).split()
_KNOWN = {*_FUNCTIONS, *_GREEK, *"frac sqrt pi cdot times div binom lfloor rfloor lceil rceil".split()}
_TOKEN = re.compile(r"\\[A-Za-z]+|\d+\.?\d*|\.\d+|[A-Za-z]|\S")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\\circ")
_PRIMES = set("fgh")
_AFTER = {"(": ")", "{": ")", "^": "}", "_": "}", r"\frac": "}", r"\binom": "}", r"\sqrt": "}"}
"""What stands last when all that belongs to a token is written."""
_OPERATORS = {r"\cdot", r"\times", r"\div", "+", "-", "/"}


class Unreadable(ValueError):
    """A formula that is not read, or too large to compute."""


def read(text: str) -> Any:
    """A sympy expression of a normalised answer, nothing in it computed. Raises Unreadable."""
    expression = _read(text)
    if isinstance(expression, str):
        raise Unreadable(expression)
    return expression


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> Any:
    """The expression, or why there is none."""
    try:
        from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    except ImportError:
        raise ImportError("grading needs math-verify: pip install 'mvtrain[eval]'") from None
    try:
        latex = canonical(text)
        # Neither units nor case nor anything else is to be changed on the way, hence no normalisation.
        config = ConversionConfig(lowercase_symbols=False)
        return latex2sympy(latex, normalization_config=None, conversion_config=config)
    except Unreadable as error:
        return str(error)
    except Exception:  # the grammar raises Exception itself
        return f"{text[:200]!r} cannot be read as a formula"


def canonical(text: str) -> str:
    """LaTeX that the grammar reads in one way only: braces around every argument, a sign for every product of numbers.

    Raises Unreadable where a command is not known, or the text is too long or nests too deeply.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters: formulas are read up to {LONGEST}")
    if text.count("|") > MOST_BARS:
        raise Unreadable(f"more than {MOST_BARS} vertical bars")
    text = _DEGREES.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
    writer = _Writer(_TOKEN.findall(text))
    return writer.write()


class _Writer:
    """Goes over the tokens of a formula once and writes them anew."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.num_groups = 0

    def write(self) -> str:
        out = self.sequence("", 0)
        if self.position < len(self.tokens):
            raise Unreadable(f"a stray {self.tokens[self.position]!r}")
        return out

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1] if self.position <= len(self.tokens) else ""

    def sequence(self, end: str, depth: int) -> str:
        """Everything up to the token `end`, which is taken."""
        if depth > DEEPEST:
            raise Unreadable(f"brackets nest more than {DEEPEST} deep")
        pieces: list[str] = []
        before = ""
        while (token := self.peek()) and token != end:
            if self._multiplies(before, token):
                pieces.append(r"\cdot")
            pieces.append(self.item(self.take(), before, depth))
            is_called = token[1:] in _FUNCTIONS and pieces[-1].endswith(")")
            before = ")" if is_called else _AFTER.get(token, token)
        if self.take() != end:
            raise Unreadable(f"{end!r} is missing")
        if not pieces or before in _OPERATORS or before[1:] in _FUNCTIONS:
            raise Unreadable("the formula is not complete")
        return " ".join(pieces)

    def _multiplies(self, before: str, token: str) -> bool:
        """Whether to write a product out: the grammar takes 2(1/2) for a mixed number and k(2) for a function."""
        if before[:1].isdigit() and token[:1].isdigit():
            raise Unreadable("two numbers beside each other")
        if before.isalpha() and token[:1].isdigit():
            raise Unreadable("a number behind a letter")
        if before in _PRIMES and token == "(":
            raise Unreadable("a function that is not known")
        is_factor = before and (before[0].isalnum() or before in (")", "}", "!") or before[1:] in {*_GREEK, "pi"})
        return bool(is_factor) and (token in ("(", r"\frac", r"\sqrt", r"\binom") or token[:1].isdigit())

    def item(self, token: str, before: str, depth: int) -> str:
        if token[0].isdigit() or token[0] == ".":
            return _number(token)
        if token.isalpha():
            return _letter(token)
        if token in ("(", "{"):
            self.num_groups += 1
            if self.num_groups > MOST_GROUPS:
                raise Unreadable(f"more than {MOST_GROUPS} groups in brackets")
            return "(" + self.sequence(")" if token == "(" else "}", depth + 1) + ")"
        if token in ("^", "_"):
            if token == "_" and not (before.isalpha() or before[1:] in _GREEK):
                raise Unreadable("a subscript of what is no letter")
            return "^{" + self.argument(depth, script=True) + "}" if token == "^" else self.subscript()
        if token in ("+", "-", "/", "!", "|"):
            return token
        if token.startswith("\\") and token[1:] in _KNOWN:
            return self.command(token, depth)
        raise Unreadable(f"{token!r} is not known in a formula")

    def command(self, token: str, depth: int) -> str:
        if token == r"\div":
            return "/"
        if token in (r"\frac", r"\binom"):
            top, bottom = self.argument(depth), self.argument(depth)
            if token == r"\binom" and re.search(r"\d{5}|\^|!", f"{top} {bottom}"):
                raise Unreadable("a number is too large to compute with")
            return f"{token}{{{top}}}{{{bottom}}}"
        if token == r"\sqrt":
            return self.root(depth)
        if token[1:] in _FUNCTIONS and self.peek() in ("^", "_"):
            return self.function_with_script(token, depth)
        return {r"\times": r"\cdot", r"\cdot": r"\cdot"}.get(token, token)

    def root(self, depth: int) -> str:
        index = ""
        if self.peek() == "[":
            self.take()
            index = self.take()
            if not re.fullmatch(r"\d{1,3}", index) or self.take() != "]":
                raise Unreadable("a root that is no whole number")
            index = f"[{index}]"
        return rf"\sqrt{index}{{{self.argument(depth, whole=True)}}}"

    def function_with_script(self, token: str, depth: int) -> str:
        """\\sin^2 x and \\log_2 x: the script is written here, so that no product is put behind it."""
        scripts = ""
        while self.peek() in ("^", "_"):
            scripts += self.take() + "{" + self.argument(depth, script=True) + "}"
        if self.peek() in ("(", "{"):
            scripts += "(" + self.sequence(")" if self.take() == "(" else "}", depth + 1) + ")"
        return token + scripts

    def argument(self, depth: int, script: bool = False, whole: bool = False) -> str:
        """What a command applies to, without its braces. Of a number it is one digit, but for `whole` or `script`."""
        token = self.take()
        if token == "{" or (token == "(" and script):
            return self.sequence("}" if token == "{" else ")", depth + 1)
        if script and token == "-" and (self.peek()[:1].isalnum()):
            return "-" + self.argument(depth, script=True)
        if token.isdigit() and len(token) > 1 and not (script or whole):
            self.position -= 1
            self.tokens[self.position] = token[1:]
            return token[0]
        if token and (token[0].isalnum() or token[0] == "\\"):
            return self.item(token, "", depth + 1)
        raise Unreadable("the formula is not complete")

    def subscript(self) -> str:
        """The name of a letter goes on: a number, a letter, or one of them in braces."""
        token = self.take()
        if token == "{":
            token = self.take()
            if self.take() != "}":
                raise Unreadable("a subscript that is no number and no letter")
        if not token.isalnum():
            raise Unreadable("a subscript that is no number and no letter")
        return "_{" + token + "}"


def _number(token: str) -> str:
    """Decimals as fractions: the grammar would round them."""
    whole, point, decimals = token.partition(".")
    if not point or not decimals:
        return whole
    return rf"(\frac{{{int((whole + decimals)[:LONGEST])}}}{{1{'0' * len(decimals)}}})"


def _letter(token: str) -> str:
    """Letters that the grammar would take for something else become names; `constants` knows e and i again."""
    return rf"\mathit{{{token}}}" if token in "deEI" else token


def names(expression: Any) -> set[str]:
    """Of the letters in an expression that are no constants."""
    return {name_of(symbol) for symbol in expression.free_symbols} - {"e", "i"}


def name_of(symbol: Any) -> str:
    match = re.fullmatch(r"math\{(.)\}", symbol.name)
    return match[1] if match else symbol.name
