"""Long runs that must leave nothing behind: random structure, cancellations, a cache that is too small, for hours.

    python -m tests.soak --streams 100000            # a hollow model: every step is checked
    python -m tests.soak --model tiny --streams 10000

Prints requests, tokens, pre-emptions, cancellations and the process's memory as it goes; exits with 1 where a request
is lost, a slot leaked, or memory grew.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from mvtrain.engine import Engine, SamplingParams
from tests.engine_models import TOKENIZER, HollowModel, Noise, checked
from tests.tiny import tiny_model

SLACK_MIB = 48
"""Growth from the first quarter on that is not a leak: pages of the cache that no request had touched before."""


def soak(
    num_streams: int,
    model: str = "hollow",
    scheme: str = "isolated",
    seed: int = 0,
    every: int = 1,
    report=None,
    paged: bool = False,
) -> Counter:
    """Feed random requests into one engine, cancel one in twenty at a random time, and count what comes out."""
    rng = random.Random(seed)
    subject = Engine(
        HollowModel() if model == "hollow" else tiny_model(), TOKENIZER, scheme, max_batch=24, cache_tokens=1536,
        sampler=Noise(len(TOKENIZER)), paged=paged,
    )  # fmt: skip
    checked(subject, every)
    counts: Counter = Counter()
    open_requests: dict = {}
    with subject.runner.engine_attention():
        while counts["finished"] < num_streams:
            while len(open_requests) < 40 and counts["added"] < num_streams:
                new = subject.add(_prompt(rng), _params(rng, seed + counts["added"], num_streams - counts["added"]))
                open_requests.update(dict.fromkeys(new))
                counts["added"] += len(new)
            if rng.random() < 0.08:
                subject.cancel(rng.choice(list(open_requests)))
            for request, completion in subject.step():
                del open_requests[request]
                _check(request, completion)
                counts.update(("finished", completion.finish_reason))
                counts["tokens"] += completion.num_generated
                counts["paths"] += len(completion.num_path_tokens)
                counts["forced closes"] += completion.num_forced_closes
                counts["with problems"] += bool(completion.problems)
                if report and counts["finished"] % max(1, num_streams // 20) == 0:
                    report(counts, subject)
    subject.check_integrity()
    assert not open_requests and not subject.scheduler.has_work and not subject.cache.pages.rows, "something is left"
    counts["pre-emptions"] = subject.scheduler.num_preemptions
    counts["passes"] = subject.num_passes
    return counts


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(200) for _ in range(rng.choice((1, 3, 30, 90, 700)))]


def _params(rng: random.Random, seed: int, most: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randint(1, 90), max_total_tokens=rng.choice((None, rng.randint(1, 400))), seed=seed,
        max_path_tokens=rng.choice((None, None, rng.randint(1, 30))), max_paths=rng.choice((2, 64)),
        max_depth=rng.randint(0, 4), n=min(most, rng.choice((1, 1, 1, 3))), parallel=rng.random() < 0.95,
        stop=rng.choice(((), (), ("ab", "\n<"))),
    )  # fmt: skip


def _check(request, completion) -> None:
    """What must hold for every answer: positions are the layout's, tags of paths are closed, limits were kept."""
    start = len(request.prompt)
    assert completion.layout.position_ids[start:].tolist() == completion.position_ids
    assert len(completion.token_ids) == len(completion.passes) == len(completion.token_branches)
    assert request.row is None
    if completion.finish_reason != "cancelled":
        assert completion.critical_path <= request.params.max_tokens + 40  # tags that close what is open, 4 deep


def resident_mib() -> float:
    """Memory of this process."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--streams", type=int, default=100_000, help="requests (default: 100000)")
    parser.add_argument("--model", choices=("hollow", "tiny"), default="hollow")
    parser.add_argument("--scheme", choices=("isolated", "original"), default="isolated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="steps between checks of the cache (default: 1)")
    args = parser.parse_args()
    began, memory = time.perf_counter(), []

    def report(counts: Counter, subject: Engine) -> None:
        memory.append(resident_mib())
        print(f"{time.perf_counter() - began:6.0f} s  {memory[-1]:6.0f} MiB  {dict(counts)}", flush=True)

    counts = soak(args.streams, args.model, args.scheme, args.seed, args.every, report)
    growth = max(memory[len(memory) // 4 :]) - memory[len(memory) // 4]
    print(f"{dict(counts)}; memory grew by {growth:.0f} MiB after the first quarter")
    return int(growth > SLACK_MIB or counts["finished"] != args.streams)


if __name__ == "__main__":
    sys.exit(main())
