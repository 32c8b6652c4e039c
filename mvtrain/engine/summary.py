"""What a run of the engine came to, in the figures that people compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.engine.completion import Completion
    from mvtrain.engine.engine import Engine


@dataclass(frozen=True)
class RunSummary:
    """Sums and rates over all answers of a run."""

    num_answers: int
    num_generated: int
    critical_path: int
    """Tokens on the critical paths of all answers together."""
    parallelism: float
    """Ratio of the two sums."""
    seconds: float
    tokens_per_second: float
    seconds_to_first_token: float
    """The mean over answers; waiting in line counts."""
    cache_peak_tokens: int
    """The most slots of the KV cache that were taken at a time, in whole pages."""
    cache_peak_mib: float
    num_preemptions: int
    num_forced_closes: int
    num_with_problems: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """One or two lines for people."""
        lines = [
            f"{self.num_answers} {'answer' if self.num_answers == 1 else 'answers'}, {self.num_generated} tokens, "
            f"{self.critical_path} on critical paths, parallelism {self.parallelism:.2f}",
            f"{self.seconds:.1f} s, {self.tokens_per_second:.1f} tokens/s, first token after "
            f"{self.seconds_to_first_token:.2f} s, KV cache {self.cache_peak_tokens} tokens "
            f"({self.cache_peak_mib:.1f} MiB) at its peak",
        ]
        remarks = [
            (self.num_with_problems, "with problems"),
            (self.num_forced_closes, "paths or blocks closed by force"),
            (self.num_preemptions, "pre-emptions"),
        ]
        found = ", ".join(f"{count} {what}" for count, what in remarks if count)
        return "\n".join([*lines, found] if found else lines)


def summarise_run(engine: Engine, completions: Sequence[Completion], seconds: float) -> RunSummary:
    """Sum up the completions of one run that took `seconds`."""
    generated = sum(completion.num_generated for completion in completions)
    critical = sum(completion.critical_path for completion in completions)
    pages = engine.cache.pages
    peak = pages.peak * pages.page_size
    return RunSummary(
        num_answers=len(completions),
        num_generated=generated,
        critical_path=critical,
        parallelism=generated / critical if critical else 1.0,
        seconds=seconds,
        tokens_per_second=generated / seconds if seconds else 0.0,
        seconds_to_first_token=sum(c.seconds_to_first_token for c in completions) / max(1, len(completions)),
        cache_peak_tokens=peak,
        cache_peak_mib=peak * engine.cache.bytes_per_token / 2**20,
        num_preemptions=sum(completion.num_preemptions for completion in completions),
        num_forced_closes=sum(completion.num_forced_closes for completion in completions),
        num_with_problems=sum(bool(completion.problems) for completion in completions),
    )
