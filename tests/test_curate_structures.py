"""Whatever structure a competent model describes, the trace has it: random trees of steps, without a server."""

from __future__ import annotations

import asyncio
from itertools import count
from types import SimpleNamespace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvtrain.curate.curator import CurateSettings, Curator
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.records import Done, Source
from mvtrain.grammar import Block, check, parse
from tests import curate_model
from tests.curate_chains import BY_QUESTION, Chain, M, P, S, original

LETTERS = "bcdfghjklmnpqrstvwz"
PROMPTS = Prompts.read()


def word(number: int) -> str:
    """Words without digits, so that no number of a path is another's result."""
    number, digit = divmod(number, len(LETTERS))
    return (word(number - 1) if number else "") + LETTERS[digit] + "a"


@st.composite
def chains(draw) -> Chain:
    numbers = count()

    def leaf() -> S:
        name = word(next(numbers))
        lines = [f"The part {name} says {word(next(numbers))}." for _ in range(draw(st.integers(1, 3)))]
        return S(name, "\n".join(lines))

    def block(inner) -> P:
        paths = tuple(tuple(inner() for _ in range(draw(st.integers(1, 2)))) for _ in range(draw(st.integers(2, 3))))
        name = word(next(numbers))
        return P(paths, tuple(f"do {name} {word(k)}" for k in range(len(paths))), f"All of {name} is done.")

    def main_step() -> S | M:
        if draw(st.booleans()):
            return leaf()
        parts = [block(leaf) if draw(st.booleans()) else leaf() for _ in range(draw(st.integers(1, 3)))]
        return M(word(next(numbers)), tuple(parts))

    parts = [block(main_step) if draw(st.booleans()) else main_step() for _ in range(draw(st.integers(1, 4)))]
    return Chain("random", "random", "What is it?", "yes", tuple(parts))


class Played:
    async def ask(self, messages, *, stage, max_tokens, attempt=0):
        request = {"messages": messages}
        assert curate_model.stage_of(request) == stage and attempt == 0, "nothing has to be asked again"
        return SimpleNamespace(text=curate_model.competent(request), finish_reason="stop")


async def _same(a: str, b: str) -> bool:
    return a == b


def curate(chain: Chain) -> Done:
    curator = Curator(Played(), PROMPTS, CurateSettings(keep_sequential=True), _same, lambda text: None)
    return asyncio.run(curator.curate(0, Source("id", chain.question, chain.text, chain.answer)))


def shape(parts) -> list:
    """Texts, and blocks as lists of paths; neighbouring texts are one, as in a trace."""
    found: list = []
    for part in parts:
        if isinstance(part, M):
            inner = shape(part.parts)
        elif isinstance(part, P):
            inner = [[shape(path) for path in part.paths]]
        else:
            inner = [original(part.text)]
        for piece in inner:
            if isinstance(piece, str) and found and isinstance(found[-1], str):
                found[-1] += "\n" + piece
            else:
                found.append(piece)
    return found


def shape_of_trace(parts) -> list:
    return [[shape_of_trace(path.parts) for path in p.paths] if isinstance(p, Block) else p for p in parts]


@given(chains())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_trace_has_the_structure_of_the_chain(chain):
    BY_QUESTION[chain.question] = chain
    try:
        done = curate(chain)
    finally:
        del BY_QUESTION[chain.question]
    assert done.status == "accepted", done.complaints
    assert check(done.trace) == []
    assert shape_of_trace(parse(done.trace).parts[0].parts) == shape(chain.parts)
    assert done.distance == 0
