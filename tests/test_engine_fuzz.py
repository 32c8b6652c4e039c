"""Random token streams through the engine, all bookkeeping checked after every step. `tests/soak.py` has more."""

from __future__ import annotations

import pytest

from tests.engine_models import TOKENIZER, HollowModel, checked
from tests.soak import soak


@pytest.mark.parametrize(("model", "num_streams"), [("hollow", 2000), ("tiny", 300)])
@pytest.mark.parametrize("scheme", ["isolated", "original"])
def test_random_streams_are_all_answered_and_nothing_is_left(model, num_streams, scheme):
    counts = soak(num_streams, model, scheme, seed=7)
    assert counts["finished"] == counts["added"] == num_streams
    assert counts["stop"] + counts["length"] + counts["cancelled"] == num_streams
    for happened in ("paths", "pre-emptions", "cancelled", "forced closes", "with problems"):
        assert counts[happened] > num_streams / 100, (happened, counts)


def test_the_checks_find_a_slot_that_leaked_and_one_that_is_seen_by_mistake():
    from mvtrain.engine import Engine, SamplingParams

    engine = checked(Engine(HollowModel(), TOKENIZER))
    close = engine.cache.pages.close
    engine.cache.pages.close = lambda row: close(row) or engine.cache.pages._returned.pop()
    with pytest.raises(AssertionError):
        engine.generate([[1], [2]], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=5)])

    engine = checked(Engine(HollowModel(), TOKENIZER))
    prepare = engine.cache.prepare

    def spoiled(pieces):
        forward_pass = prepare(pieces)
        forward_pass.runs[0].mask[:] = 0  # row 2 is longer than row 1, whose empty slots are seen now
        return forward_pass

    engine.cache.prepare = spoiled
    with pytest.raises(AssertionError, match="attention saw a slot that holds nothing"):
        engine.generate([[1], [2] * 9], SamplingParams(max_tokens=2))
