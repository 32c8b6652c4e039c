"""Structure is never trusted: whatever a model writes, the engine goes on, says so, and stays exact."""

from __future__ import annotations

import random

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.completion import complete
from mvtrain.engine.markup import Markup
from mvtrain.engine.request import MAX_ROWS, Request
from mvtrain.engine.script import ScriptedSampler
from mvtrain.engine.verification import RecordingSampler, compare
from tests.engine_models import EOS, TAGS, TOKENIZER, Noise, checked
from tests.tiny import tiny_model

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
        assert any("3000 outlines" in problem for problem in request.problems) == (num_branches == 1)
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
    inner = goal("1.1: a", "1.2: b") + "c</Path>"
    nested = {(): TWO + CLOSE, (0, 0): inner, (0, 0, 0, 0): "x</Path>", (0, 0, 0, 1): "x</Path>"}
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_path_has_a_budget_of_its_own_and_the_answer_goes_on(scheme):
    nested = goal("1.1: a", "1.2: b") + CLOSE + "w" * 90
    script = {(): TWO + CLOSE + "the end", (0, 0): nested, (0, 1): "y" * 300}
    script |= {(0, 0, 0, 0): "z" * 300, (0, 0, 0, 1): "v</Path>"}
    completion = write(script, SamplingParams(max_tokens=900, max_path_tokens=60), scheme)
    assert completion.finish_reason == "stop" and completion.text.endswith("the end") and completion.trace is not None
    ended = {branch.label: branch.ended_by for branch in completion.branches}
    assert ended == {None: "", "1": "limit", "1.1": "limit", "1.2": "end_path", "2": "limit"}
    limited = [f"path {label} ended by the length limit" for label in ("1", "1.1", "2")]
    assert sorted(completion.problems) == ["a block at path 1 was closed by force", *limited]
    assert completion.num_forced_closes == 4
    lengths = {branch.label: branch.num_tokens for branch in completion.branches}
    assert lengths["2"] == 60 + 1, "the tag that closes it comes on top"


def test_a_path_without_room_for_its_paths_goes_on_sequentially():
    script = {(): TWO + CLOSE, (0, 0): "x" * 30 + goal("1.1: a", "1.2: b") + "more</Path>", (0, 1): "y</Path>"}
    completion = write(script, SamplingParams(max_tokens=500, max_path_tokens=60))
    assert completion.problems[0] == ("a block at path 1 was not forked: no room for its paths within the length limit")
    assert completion.finish_reason == "stop" and len(completion.num_path_tokens) == 2


def test_paths_and_answers_without_text_are_flagged():
    completion = write({(): TWO + CLOSE, (0, 0): "\n \n</Path>", (0, 1): "</Path>"})
    assert sorted(completion.problems) == ["path 1 is empty", "path 2 is empty"]
    assert completion.trace is not None and completion.num_forced_closes == 0
    assert write({(): "\n\n"}).problems == ["the answer is empty"]
    only_separators = write({(): "\n" * 300}, SamplingParams(max_tokens=50))
    assert only_separators.problems == ["the answer is empty"] and only_separators.finish_reason == "length"


def test_unexpected_labels_are_flagged_and_unusable_ones_replaced():
    long = "1." * 200 + "1"
    script = {(): goal("3: a", "", f"{long}: c") + CLOSE} | {(0, k): "x</Path>" for k in range(3)}
    completion = write(script)
    assert [text in completion.text for text in ("<Path>\n3:", "<Path>\n2:", "<Path>\n3:")] == [True] * 3
    assert completion.problems[:3] == [
        "outline 1 at the top level has the label 3, expected 1",
        "outline 2 at the top level has no label, expected 2",
        f"outline 3 at the top level has the label {long[:24]}, expected 3",
    ]


def test_nesting_without_end_stops_at_the_depth_allowed():
    request = Request([1], SamplingParams(max_tokens=90_000, max_depth=64), Markup(TOKENIZER), "isolated", 100_000)
    opening = TOKENIZER(goal("1: a"))["input_ids"]
    branch = request.root
    for _ in range(80):
        for token in opening:
            request.advance(branch, token, 0.0)
        branch = branch.paths[0] if branch.paths else branch
        request.check_integrity()
    assert branch.depth == 64 and any("depth 65" in problem for problem in request.problems)
    request.cancel()
    request.check_integrity()
    completion = complete(request)
    assert completion.finish_reason == "cancelled" and completion.num_forced_closes == 64 + 63
    assert completion.token_ids.count(TAGS.path) == completion.token_ids.count(TAGS.end_path) == 64


def test_no_more_than_some_problems_are_kept():
    tags = "".join(f"{goal(*['x'] * 3)}{CLOSE}" for _ in range(40))
    script = {(): tags} | {(block, k): "</Goal></Path>" for block in range(40) for k in range(3)}
    completion = write(script, SamplingParams(max_tokens=4000))
    assert len(completion.problems) < 60 and len(completion.branches) == 121


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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_tokens_never_raise_and_stay_exact(scheme):
    engine = Engine(tiny_model(dtype=torch.float64), TOKENIZER, scheme, max_batch=24)
    engine.sampler = recorder = RecordingSampler(Noise(len(TOKENIZER)))
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
    assert sum(completion.trace is not None for completion in completions) > 1
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    compared = [(request, records) for request, records in recorder.records.items() if len(request.branches) > 2]
    for request, records in compared[:25]:
        comparison = compare(engine, request, records)
        assert comparison.ok, (comparison, request.params)
    assert len(compared) > 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_gives_no_numbers_ends_its_answers_and_no_others(temperature):
    model = tiny_model()
    engine = Engine(model, TOKENIZER)
    run = engine.runner.run

    def spoiled(pieces):
        logits_NV = run(pieces)
        for row, piece in enumerate(p for p in pieces if p.samples is not None):
            if piece.samples.request.params.seed == 1 and len(piece.samples.tokens) == 3:
                logits_NV[row] = float("nan")
        return logits_NV

    engine.runner.run = spoiled
    params = [SamplingParams(max_tokens=9, seed=s, temperature=temperature, top_p=0.9, top_k=3) for s in range(3)]
    good, bad, other = engine.generate([[1], [1], [1]], params)
    assert bad.finish_reason == "error" and bad.num_generated == 3, bad
    assert "the model's output at the top level is not a number" in bad.problems
    alone = Engine(model, TOKENIZER).generate([[1]], params[2])
    assert good.finish_reason != "error" and other.token_ids == alone[0].token_ids
