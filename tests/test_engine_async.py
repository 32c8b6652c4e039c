"""Streams of one engine in asyncio: what they say, that they share a batch, and that they leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from mvtrain.engine import AsyncEngine, Engine, SamplingParams
from tests.engine_models import TOKENIZER, WritesBlocks
from tests.tiny import tiny_model

PARAMS = SamplingParams(max_tokens=60, temperature=1.0)


def engine() -> Engine:
    return Engine(tiny_model(), TOKENIZER, sampler=WritesBlocks(len(TOKENIZER)))


def test_concurrent_streams_say_what_they_say_alone_and_share_passes():
    subject = engine()

    async def ask(service: AsyncEngine, k: int):
        await asyncio.sleep(0.01 * k)
        return await service.generate([k, k + 1], SamplingParams(max_tokens=60, temperature=1.0, seed=k, n=1 + k % 2))

    async def main():
        async with AsyncEngine(subject) as service:
            return await asyncio.gather(*(ask(service, k) for k in range(6)))

    answers = asyncio.run(main())
    passes = 0
    for k, completions in enumerate(answers):
        params = SamplingParams(max_tokens=60, temperature=1.0, seed=k, n=1 + k % 2)
        alone = engine().generate([[k, k + 1]], params)
        assert [c.token_ids for c in completions] == [c.token_ids for c in alone]
        passes += sum(completion.num_passes for completion in alone)
    assert subject.num_passes < passes / 2
    assert not subject.cache.pages.rows and not subject.scheduler.has_work


def test_events_come_while_it_generates_and_leaving_early_frees_everything():
    subject = engine()

    async def main():
        async with AsyncEngine(subject) as service:
            seen = []
            stream = service.stream([1, 2], SamplingParams(max_tokens=3000, max_total_tokens=3000, parallel=False))
            async for event in stream:
                seen.append(event)
                if len(seen) == 5:
                    break
            await stream.aclose()
            assert subject.num_passes < 1000, "events came while it ran"
            answer = await service.generate([3], SamplingParams(max_tokens=4, parallel=False))
            return seen, answer

    seen, answer = asyncio.run(main())
    assert [event.kind for event in seen] == ["text"] * 5 and answer[0].num_generated == 4
    assert not subject.cache.pages.rows and not subject.scheduler.has_work


def test_a_cancelled_task_ends_its_request():
    subject = engine()

    async def main():
        async with AsyncEngine(subject) as service:
            task = asyncio.create_task(service.generate([1], SamplingParams(max_tokens=4000, parallel=False)))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await service.generate([3], PARAMS)

    assert asyncio.run(main())[0].num_generated > 0
    assert not subject.cache.pages.rows


def test_mistakes_reach_the_caller_alone_and_failures_all_callers():
    subject = engine()

    async def main():
        async with AsyncEngine(subject) as service:
            good = asyncio.create_task(service.generate([1], PARAMS))
            with pytest.raises(ValueError, match="a prompt of 0 tokens"):
                await service.generate([], PARAMS)
            assert (await good)[0].num_generated > 0
            run = subject.runner.run
            subject.runner.run = lambda pieces: 1 / 0
            failed = await asyncio.gather(*(service.generate([k], PARAMS) for k in range(3)), return_exceptions=True)
            assert [type(error) for error in failed] == [ZeroDivisionError] * 3
            subject.runner.run = run
            assert (await service.generate([1], PARAMS))[0].num_generated > 0

    asyncio.run(main())
    assert not subject.cache.pages.rows


def test_closing_ends_what_runs_and_refuses_what_comes():
    subject = engine()

    async def main():
        service = AsyncEngine(subject)
        task = asyncio.create_task(service.generate([1], SamplingParams(max_tokens=4000, parallel=False)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(service.close)
        with pytest.raises(RuntimeError, match="the service is closed"):
            await task
        with pytest.raises(RuntimeError, match="the service is closed"):
            await service.generate([1])

    asyncio.run(main())
    assert not subject.cache.pages.rows and subject.model.config._attn_implementation != "multiverse_engine"
