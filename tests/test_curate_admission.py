"""Which records are begun under a ceiling: by hand, with costs that are told."""

from __future__ import annotations

import asyncio

from mvtrain.curate.admission import Admission
from mvtrain.curate.records import Source

SOURCE = Source("a", "Which?", "One.", "7")


class Money:
    spent = 0.0

    def admission(self, expected: float, max_spend: float | None) -> Admission:
        return Admission(lambda source: expected, lambda: self.spent, max_spend)


async def begun(admission: Admission, numbers: range) -> int:
    """How many come in while none leaves."""
    for count, number in enumerate(numbers):
        try:
            await asyncio.wait_for(admission.enter(number, SOURCE), 0.02)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            return count
    return len(numbers)


def test_as_many_as_fit_and_others_as_soon_as_one_has_left():
    async def run() -> None:
        money = Money()
        admission = money.admission(expected=1.0, max_spend=3.5)
        assert await begun(admission, range(10)) == 3
        money.spent = 1.0  # for one record and about half of two: half of what was expected
        admission.leave(0)
        assert await begun(admission, range(10, 20)) == 3  # 1 + 0.5 x (2 + 3) = 3.5

    asyncio.run(run())


def test_without_a_ceiling_all_come_in():
    assert asyncio.run(begun(Money().admission(1.0, None), range(100))) == 100


def test_records_that_cost_nothing_take_no_room():
    """Rows that are rejected before anything is asked."""

    async def run() -> None:
        admission = Money().admission(expected=1.0, max_spend=3.5)
        for number in range(50):
            assert await begun(admission, range(number, number + 1)) == 1
            admission.leave(number, asked=False)
        assert await begun(admission, range(100, 110)) == 3

    asyncio.run(run())


def test_records_that_cost_more_than_expected_let_fewer_in():
    async def run() -> None:
        money = Money()
        admission = money.admission(expected=1.0, max_spend=10.0)
        assert await begun(admission, range(1)) == 1
        money.spent = 4.0  # four times as much: six dollars are left for one more
        admission.leave(0)
        assert await begun(admission, range(1, 9)) == 1

    asyncio.run(run())


def test_the_last_one_comes_in_whatever_it_may_cost():
    """Or nobody would find out that the ceiling is too low."""
    assert asyncio.run(begun(Money().admission(expected=5.0, max_spend=1.0), range(5))) == 1


def test_who_waits_comes_in_when_another_leaves():
    async def run() -> bool:
        admission = Money().admission(expected=1.0, max_spend=1.5)
        await admission.enter(0, SOURCE)
        waiting = asyncio.create_task(admission.enter(1, SOURCE))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        admission.leave(0)
        await asyncio.wait_for(waiting, 1)
        return True

    assert asyncio.run(run())
