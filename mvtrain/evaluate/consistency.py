"""The engine held against the training forward pass before anything is measured by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.engine import Engine


def check_consistency(engine: Engine) -> dict[str, Any]:
    """Compare log-probabilities on a short nested trace that is forced through the engine.

    Returns what the header says of it. Raises ValueError where the two differ: no number would mean anything.
    """
    from mvtrain.engine.probe import QUESTION, SHORT_TRACE
    from mvtrain.engine.verification import verify_trace
    from mvtrain.grammar import parse

    comparison = verify_trace(engine, QUESTION, parse(SHORT_TRACE))
    if not comparison.ok:
        raise ValueError(
            f"engine and training differ: log-probabilities of sampled tokens by {comparison.sampled_difference:.2e}, "
            f"of any by {comparison.max_difference:.2e} ({comparison.dtype}, {comparison.limited} limited to "
            f"{comparison.threshold:.0e}); `mvtrain verify` says more, --no-verify evaluates nevertheless"
        )
    return {
        "ok": True,
        "dtype": comparison.dtype,
        "max_difference": comparison.max_difference,
        "sampled_difference": comparison.sampled_difference,
        "limit": comparison.threshold,
        "limited": comparison.limited,
    }
