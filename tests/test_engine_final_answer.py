"""Answers that are forced at a length limit: all that is open is closed, and the model answers from there, exactly."""

from __future__ import annotations

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.sampling import Sampler
from mvtrain.grammar import check
from tests.engine_models import EOS, TOKENIZER, Noise, WritesBlocks, checked
from tests.test_engine_structure import CLOSE, TWO, goal, write
from tests.tiny import tiny_model

SCHEMES = ("isolated", "original")
OPENING = "\n\nAnswer: \\boxed{"


def params(max_tokens: int, **changes) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, answer_tokens=4, **changes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cut_in_a_path(scheme):
    """Both paths are still open at the limit; afterwards the top level goes on with its script, here `42}`."""
    script = {(): f"<Think>a{TWO}42}}", (0, 0): "x" * 500, (0, 1): "y" * 500}
    completion = write(script, params(60), scheme)
    assert completion.answer_forced and completion.finish_reason == "stop"
    assert completion.text.endswith(f"</Path>\n<Conclusion></Conclusion></Parallel>\n</Think>{OPENING}42}}")
    assert completion.trace is not None and "the answer was forced at the length limit" in completion.problems
    assert [branch.ended_by for branch in completion.branches] == ["", "limit", "limit"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cut_in_nested_paths(scheme):
    inner = goal("1.1: a", "1.2: b")
    script = {(): f"<Think>{TWO}7}}", (0, 0): inner, (0, 1): "y</Path>"}
    script |= {(0, 0, 0, 0): "x" * 500, (0, 0, 0, 1): "y" * 500}
    completion = write(script, params(110, max_total_tokens=160), scheme)
    assert completion.answer_forced and completion.finish_reason == "stop" and check(completion.text) == []
    assert completion.text.endswith(f"</Think>{OPENING}7}}")


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("<Think>" + "a" * 300, f"\n</Think>{OPENING}"),
        ("a" * 300, OPENING),
        ("<Think>a</Think>" + "b" * 300, ""),
        ("<Think>" + TWO[:20] + "c" * 300, f"\n</Think>{OPENING}"),
    ],
)
def test_cut_in_sequential_text(text, ending):
    completion = write({(): text}, params(60))
    assert completion.answer_forced and completion.text[:-4].endswith(ending)
    assert completion.num_forced == len(TOKENIZER(ending)["input_ids"]), "an answer that has begun just goes on"
    assert completion.finish_reason == "length", "the text goes on, so the answer's own limit ends it"
    assert completion.critical_path == 60 + len(TOKENIZER(ending)["input_ids"]) + 4


def test_cut_in_a_conclusion():
    script = {(): f"<Think>{TWO}" + "c" * 300, (0, 0): "x</Path>", (0, 1): "y</Path>"}
    completion = write(script, params(80))
    assert (
        completion.text[:-4].endswith(f"c</Conclusion></Parallel>\n</Think>{OPENING}") and completion.trace is not None
    )


def test_what_fits_is_not_touched():
    script = {(): f"<Think>{TWO}{CLOSE}</Think>5", (0, 0): "x</Path>", (0, 1): "y</Path>"}
    plain, forced = write(script, SamplingParams(max_tokens=200)), write(script, params(200))
    assert plain.token_ids == forced.token_ids and not forced.answer_forced and plain.finish_reason == "stop"


def test_the_limit_of_the_model_holds():
    engine = Engine(tiny_model(max_position_embeddings=60), TOKENIZER)
    (completion,) = engine.generate([[1] * 20], SamplingParams(max_tokens=500, answer_tokens=500))
    assert max(completion.position_ids) < 60 + len(OPENING) and completion.finish_reason == "length"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sampler", [WritesBlocks, Noise])
def test_whatever_is_written_ends_with_an_answer(scheme, sampler):
    engine = Engine(tiny_model(), TOKENIZER, scheme, sampler=sampler(len(TOKENIZER)))
    checked(engine)
    few = [params(20 + 7 * k, seed=k, temperature=1.0, max_total_tokens=60 + 5 * k) for k in range(40)]
    forced = [c for c in engine.generate([[1, 2, 3]] * 40, few) if c.answer_forced]
    assert len(forced) > 10
    assert all(OPENING in completion.text or "</Think>" in completion.text for completion in forced)
    assert sum(OPENING in completion.text for completion in forced) > 5


def eager_to_end(chosen: list, branches: list) -> list:
    """End of text at the top level after 12 tokens of it, so that some answers end within a limit and some do not."""
    ends = [branch.parent is None and branch.num_sampled > 12 + branch.request.params.seed for branch in branches]
    return [(EOS, -1.0) if end else choice for end, choice in zip(ends, chosen, strict=True)]


class EndsSometime(WritesBlocks):
    def choose(self, logits_NV: torch.Tensor, branches: list) -> list:
        return eager_to_end(super().choose(logits_NV, branches), branches)


def test_a_shorter_limit_gives_the_same_answer_up_to_its_cut():
    """So accuracy at any smaller budget can be read off one long run: what ended within it would have ended there."""
    engine = Engine(tiny_model(), TOKENIZER, sampler=EndsSometime(len(TOKENIZER)))

    def seeds(limit: int) -> list[SamplingParams]:
        return [SamplingParams(max_tokens=limit, max_total_tokens=4000, temperature=1, seed=k) for k in range(12)]

    long = engine.generate([[1, 2, 3]] * 12, seeds(400))
    assert all(c.finish_reason == "stop" for c in long)
    lengths = sorted({c.critical_path for c in long})
    assert len(lengths) > 4
    for limit in [lengths[0], lengths[2] - 1, lengths[2], lengths[-1] - 1]:
        short = engine.generate([[1, 2, 3]] * 12, seeds(limit))
        within = [c.critical_path <= limit for c in long]
        assert [c.finish_reason == "stop" for c in short] == within and any(within)
        for a, b, fits in zip(long, short, within, strict=True):
            assert a.token_ids == b.token_ids if fits else a.token_ids != b.token_ids


def test_who_is_asked_for_what():
    asked = []

    class Spy(Sampler):
        def choose(self, logits_NV, branches):
            asked.extend(TOKENIZER.decode(branch.request.prompt) for branch in branches)
            return super().choose(logits_NV, branches)

    engine = Engine(tiny_model(), TOKENIZER, sampler=Spy(len(TOKENIZER)))
    for parallel, ask, expected in [
        (True, None, True),
        (True, False, False),
        (False, None, False),
        (False, True, True),
    ]:
        asked.clear()
        engine.generate(["why?"], SamplingParams(max_tokens=1, parallel=parallel, ask_parallel=ask))
        assert all(("in parallel" in prompt) is expected for prompt in asked) and asked
