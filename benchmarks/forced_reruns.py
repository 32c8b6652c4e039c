"""How often an answer that is generated again up to a budget is not what the whole run had written by then.

    python benchmarks/forced_reruns.py RUN      # a folder of `mvtrain evaluate --budget-policy forced`

Without rounding it never would be: a token depends on its seed, its branch and its place only.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from mvtrain.evaluate.records import Sample
from mvtrain.evaluate.run_folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of an evaluation that kept its tokens")
    samples = list(open_run(parser.parse_args().run).samples())
    whole = {sample.key[:-1]: sample for sample in samples if sample.budget is None}
    counts: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for sample in samples:
        if sample.budget is not None:
            differs = differs_before(sample, whole[sample.key[:-1]], sample.budget)
            counts[sample.mode, sample.budget].append(differs)
    for (mode, budget), differing in sorted(counts.items()):
        print(f"{mode}, {budget} tokens: {sum(differing)} of {len(differing)} differ")
    everything = [differs for differing in counts.values() for differs in differing]
    print(f"{sum(everything)} of {len(everything)} ({sum(everything) / max(1, len(everything)):.1%})")


def differs_before(again: Sample, whole: Sample, budget: int) -> bool:
    """Whether a token within the budget is another one. Tokens that the engine put in do not count."""
    a, b = written(again, budget), written(whole, budget)
    return any(a[place] != b[place] for place in a.keys() & b.keys())


def written(sample: Sample, budget: int) -> dict[tuple, str]:
    """(lineage of the branch, position) -> text of the sampled tokens within the budget."""
    tokens = sample.tokens
    if tokens is None:
        raise SystemExit("the run kept no tokens; evaluate without --no-tokens")
    starts = [0, *tokens["ends"]]
    found = {}
    for i, (branch, position, logprob) in enumerate(
        zip(tokens["token_branches"], tokens["positions"], tokens["logprobs"], strict=True)
    ):
        if logprob is not None and position < tokens["num_prompt"] + budget:
            lineage = tuple(tokens["branches"][branch]["lineage"])
            found[lineage, position] = sample.response[starts[i] : tokens["ends"][i]]
    return found


if __name__ == "__main__":
    main()
