"""Structure is never trusted: whatever a model writes, the engine goes on, says so, and stays exact."""

from __future__ import annotations

import random

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.markup import Markup
from mvtrain.engine.request import Request
from mvtrain.engine.sampling import Sampler
from mvtrain.engine.scheduler import MAX_ROWS
from mvtrain.engine.script import ScriptedSampler
from mvtrain.engine.verification import RecordingSampler, compare
from tests.tiny import tiny_model, tiny_tags, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = tiny_tags()
EOS = TOKENIZER.eos_token_id
SCHEMES = ("isolated", "original")


def write(script: dict[tuple[int, ...], str], params: SamplingParams | None = None, scheme: str = "isolated"):
    """Run texts through the engine, branch by branch (a branch ends with end of text), checking it at every step."""
    ids = {lineage: TOKENIZER(text)["input_ids"] for lineage, text in script.items()}
    engine = Engine(tiny_model(dtype=torch.float64), TOKENIZER, scheme)
    recorder = RecordingSampler(ScriptedSampler(ids, len(TOKENIZER), EOS))
    engine.sampler = recorder
    checked(engine)
    (completion,) = engine.generate([[1, 2, 3]], params or SamplingParams())
    ((request, records),) = recorder.records.items()
    comparison = compare(engine, request, records)
    assert comparison.ok and comparison.num_wrong_positions == 0, comparison
    return completion


def checked(engine: Engine) -> None:
    """Assert the integrity of requests and cache after every step."""
    step = engine.step

    def checked_step():
        finished = step()
        cache = engine.runner.cache
        for row, request in engine.scheduler.running.items():
            request.check_integrity()
            cached = sum(branch.next_index - len(branch.pending) for branch in request.branches)
            assert cache.used[row] == cached, "a slot per token that went through the model"
            index, node = cache.index_RS[row, :cached], cache.node_RS[row, :cached]
            for branch in request.branches:
                indices = index[node == branch.node].sort().values
                assert indices.tolist() == list(range(branch.next_index - len(branch.pending)))
        for row, used in enumerate(cache.used):
            assert (cache.index_RS[row, used:] == torch.iinfo(torch.int32).max).all()
            assert row in engine.scheduler.running or used == 0, "a row was not released"
        for request, _ in finished:
            request.check_integrity()
        return finished

    engine.step = checked_step


def goal(*outlines: str) -> str:
    inner = "".join(f"<Outline>{outline}</Outline>" for outline in outlines)
    return f"<Parallel><Goal>{inner}</Goal>"


TWO = goal("1: a", "2: b")
CLOSE = "c</Conclusion></Parallel>"


def test_a_goal_without_outlines_goes_on_sequentially():
    completion = write({(): "x<Parallel><Goal>nothing</Goal><Path>y</Path>z"})
    assert completion.text == "x<Parallel><Goal>nothing</Goal><Path>y</Path>z"
    assert completion.parallelism == 1 and completion.num_forced == 0 and completion.trace is None
    assert "its goal has no outline" in completion.problems[0]
    assert "<Path> out of place at the top level" in completion.problems
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        (SamplingParams(max_paths=1), "2 outlines, at most 1 paths are allowed"),
        (SamplingParams(max_depth=0), "depth 1, at most 0 is allowed"),
    ],
)
def test_too_many_and_too_deep(params, problem):
    completion = write({(): f"{TWO}x"}, params)
    assert completion.parallelism == 1 and problem in completion.problems[0]
    nested = {(): TWO + CLOSE, (0, 0): TWO + "x</Path>", (0, 1): "y</Path>"}
    completion = write(nested, SamplingParams(max_depth=1))
    assert completion.num_path_tokens and "a block at path 1 was not forked: depth 2" in completion.problems[0]


def test_thousands_of_outlines():
    ids = TOKENIZER(goal(*["1: a"] * 3000))["input_ids"]
    for max_paths, num_branches in ((64, 1), (4000, 3001)):
        params = SamplingParams(max_tokens=70_000, max_paths=max_paths)
        request = Request([1], params, Markup(TOKENIZER), "isolated", max_positions=100_000)
        for token in ids:
            request.advance(request.root, token, 0.0)
        request.check_integrity()
        assert len(request.branches) == num_branches
        assert ["3000 outlines" in problem for problem in request.problems] == [True] * (num_branches == 1)
    for path in request.root.paths:
        request.advance(path, TAGS.end_path, 0.0)
    request.check_integrity()
    assert request.root.stage == "conclusion" and request.root.needs_token


def test_more_paths_than_fit_into_one_pass():
    completion = write({(): goal(*[""] * 150) + CLOSE}, SamplingParams(max_tokens=2000, max_paths=200))
    assert len(completion.num_path_tokens) == 150 and "150:" in completion.text
    assert completion.num_forced > MAX_ROWS


def test_a_path_that_ends_with_end_of_text_is_closed_by_force():
    for scheme in SCHEMES:
        completion = write({(): TWO + CLOSE, (0, 0): "x", (0, 1): "y</Path>"}, scheme=scheme)
        assert completion.problems == ["path 1 ended by end of text"]
        assert completion.trace is not None and completion.finish_reason == "stop"
        assert completion.text.count("</Path>") == 2 and EOS not in completion.token_ids[:-1]


def test_a_path_that_ends_inside_of_its_block_closes_the_block_first():
    nested = {(): TWO + CLOSE, (0, 0): TWO + "c</Path>", (0, 0, 0, 0): "x</Path>", (0, 0, 0, 1): "x</Path>"}
    for scheme in SCHEMES:
        completion = write({**nested, (0, 1): "y</Path>"}, scheme=scheme)
        assert completion.problems[0] == "a block at path 1 was closed by force"
        assert "c</Conclusion></Parallel></Path>" in completion.text and completion.text.count("<Path>") == 4


def test_labels_come_from_the_outlines_or_from_their_place():
    script = {(): goal("a", "7: b") + CLOSE, (0, 0): goal("", "") + CLOSE + "</Path>", (0, 1): "</Path>"}
    script |= {(0, 0, 0, 0): "</Path>", (0, 0, 0, 1): "</Path>"}
    text = write(script).text
    assert [label in text for label in ("<Path>\n1:", "<Path>\n7:", "<Path>\n1.1:", "<Path>\n1.2:")] == [True] * 4


def test_tags_out_of_place_are_text():
    text = "</Path><Conclusion></Conclusion></Parallel></Goal><Goal><Path>"
    completion = write({(): text})
    assert completion.text == text and completion.parallelism == 1
    assert len(completion.plain_tags) == 7
    completion = write({(): f"<Parallel>x{TWO}{CLOSE}", (0, 0): "</Path>", (0, 1): "</Path>"})
    assert "another <Parallel>" in completion.problems[0] and len(completion.num_path_tokens) == 2
    completion = write({(): f"{TWO}{TWO}{CLOSE}{TWO}{CLOSE}"})  # a block in a conclusion is not one
    assert len(completion.num_path_tokens) == 4


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("max_tokens", [1, 5, 60, 64, 68, 72, 80, 100, 120, 140, 160, 200])
def test_the_critical_path_is_limited(max_tokens, scheme):
    long = "x" * 300
    script = {(): TWO + CLOSE, (0, 0): TWO + long, (0, 1): "y</Path>", (0, 0, 0, 0): long, (0, 0, 0, 1): "z</Path>"}
    completion = write(script, SamplingParams(max_tokens=max_tokens), scheme)
    assert completion.finish_reason == "length"
    num_closing = (
        8  # of what is open at two depths: </Path>, separators, <Conclusion>, </Conclusion>, </Parallel>, </Path>
    )
    assert completion.critical_path <= max_tokens + num_closing
    assert completion.token_ids.count(TAGS.path) == completion.token_ids.count(TAGS.end_path)


def test_all_tokens_together_are_limited():
    script = {(): TWO + CLOSE, (0, 0): "x" * 300, (0, 1): "y" * 300}
    completion = write(script, SamplingParams(max_tokens=1000, max_total_tokens=120))
    assert completion.finish_reason == "length" and 120 <= completion.num_generated <= 120 + 2
    # Tokens before an answer's last are the same without the limit: it only cuts.
    assert completion.text.endswith("y</Path>") and "x</Path>" in completion.text
    completion = write(script, SamplingParams(max_tokens=1000, max_total_tokens=len(TOKENIZER(TWO)["input_ids"]) + 3))
    assert completion.num_path_tokens == [], "no room for the openings of the paths: no fork"


def test_the_position_range_of_the_model_is_a_limit():
    engine = Engine(tiny_model(max_position_embeddings=50), TOKENIZER)
    (completion,) = engine.generate([list(range(40))], SamplingParams(max_tokens=1000))
    assert completion.finish_reason == "length" and max(completion.position_ids) == 49
    with pytest.raises(ValueError, match="expected 1 to 49"):
        engine.generate([list(range(50))])


def test_parallel_off_forks_nothing():
    text = f"{TWO}<Path>1: a</Path><Path>2: b</Path><Conclusion>{CLOSE}"
    completion = write({(): text}, SamplingParams(parallel=False))
    assert completion.text == text and completion.parallelism == 1 and completion.trace is not None
    assert completion.problems == []


class _Noise(Sampler):
    """Random tokens, most of them tags, in an order that often makes sense."""

    LIKELY = (TAGS.parallel, TAGS.goal, TAGS.outline, TAGS.end_goal, TAGS.end_path, TAGS.end_conclusion)

    def choose(self, logits_NV, branches):
        logprobs = logits_NV.log_softmax(-1)
        tokens = [self._token(branch) for branch in branches]
        return [(token, logprobs[row, token].item()) for row, token in enumerate(tokens)]

    def _token(self, branch):
        rng = random.Random(repr((branch.request.params.seed, branch.lineage, branch.num_sampled)))
        follows = {
            "text": TAGS.parallel,
            "parallel": TAGS.goal,
            "goal": TAGS.outline,
            "conclusion": TAGS.end_conclusion,
        }
        likely = follows.get(branch.stage, TAGS.end_parallel)
        if branch.stage == "goal" and branch.tokens[-1] == TAGS.outline:
            likely = TAGS.end_goal
        kind = rng.random()
        if kind < 0.5:
            return likely
        return (
            rng.choice([*TAGS.as_tuple(), EOS]) if kind < 0.7 else rng.randrange(256) if kind < 0.95 else TAGS.end_path
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_tokens_never_raise_and_stay_exact(scheme):
    engine = Engine(tiny_model(dtype=torch.float64), TOKENIZER, scheme, max_batch=24)
    engine.sampler = recorder = RecordingSampler(_Noise(len(TOKENIZER)))
    checked(engine)
    num_requests = 150
    rng = random.Random(1)
    params = [
        SamplingParams(max_tokens=rng.randint(1, 60), max_total_tokens=rng.randint(1, 300), max_depth=3, seed=seed)
        for seed in range(num_requests)
    ]
    completions = engine.generate([[1 + seed % 100, 2] for seed in range(num_requests)], params)
    for completion in completions:
        assert completion.layout.position_ids[2:].tolist() == completion.position_ids
        assert completion.token_ids.count(TAGS.path) >= len(completion.num_path_tokens)
    assert sum(len(completion.num_path_tokens) for completion in completions) > 100
    assert sum(completion.trace is not None for completion in completions) > 2
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    compared = [(request, records) for request, records in recorder.records.items() if len(request.branches) > 2]
    for request, records in compared[:25]:
        comparison = compare(engine, request, records)
        assert comparison.ok, (comparison, request.params)
    assert len(compared) > 20
