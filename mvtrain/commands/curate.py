"""Turn sequential chains of thought into traces with parallel blocks, through any OpenAI-compatible endpoint.

IN: JSON Lines, parquet, or owner/name on the hub. OUT: a folder. The same command goes on where a run was interrupted,
and no answer is asked for twice. The key is read from the environment (OPENAI_API_KEY, or --api-key-env NAME).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.curate.endpoint import ClientConfig
    from mvtrain.curate.outputs import Summary
    from mvtrain.curate.records import Source
    from mvtrain.curate.run import Ended

STOPPED = 3
"""Exit status of a run that ended early: the ceiling, or an endpoint that refuses."""
CLIENT_FLAGS = (
    "model", "base_url", "api_key_env", "temperature", "concurrency", "timeout_s", "max_retries", "price_input",
    "price_output", "max_spend", "extra_body", "token_limit_field",
)  # fmt: skip
MAKING_FLAGS = ("limit", "tries", "max_tokens", "keep_sequential", "judge")
INTERRUPTED = "interrupted"
PAGE_ROWS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvtrain curate IN OUT --model MODEL [options]"
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=120)
    parser.add_argument("source", metavar="IN", help="file or hub id with questions, chains and answers")
    parser.add_argument(
        "out", metavar="OUT", help="folder: traces.jsonl, rejected.jsonl, stages.jsonl, README.md, page.html"
    )
    add = parser.add_argument_group("endpoint (also as keys of --config)").add_argument
    add("--model", help="its name at the endpoint")
    add("--base-url", metavar="URL", help="such as http://localhost:8000/v1 (default: OPENAI_BASE_URL, or OpenAI)")
    add("--api-key-env", metavar="NAME", help="environment variable with the key (default: OPENAI_API_KEY)")
    add("--temperature", type=float, help="default: 0.6")
    add("--concurrency", type=int, metavar="N", help="requests at the same time (default: 64)")
    add("--timeout", type=float, dest="timeout_s", metavar="S", help="seconds for a request (default: 600)")
    add("--retries", type=int, dest="max_retries", metavar="N", help="of a request that failed (default: 6)")
    add("--extra-body", type=_json_object, metavar="JSON", help="goes into every request, such as '{\"top_p\": 0.95}'")
    add("--token-limit-field", metavar="NAME", help="max_tokens (default), or max_completion_tokens")
    add("--price-input", type=float, metavar="USD", help="per million tokens")
    add("--price-output", type=float, metavar="USD", help="per million tokens")
    add("--max-spend", type=float, metavar="USD", help="a ceiling that is never exceeded; all runs into OUT count")
    add("--batch", action="store_true", help="ask through the endpoint's batch API: slower, and mostly half the price")
    add = parser.add_argument_group("making (also as keys of --config)").add_argument
    add("--limit", type=float, help="edit distance of a trace from its chain, over its length, at most (default: 0.2)")
    add(
        "--tries",
        type=int,
        metavar="N",
        help="how often a question is asked before its record is given up (default: 3)",
    )
    add("--max-tokens", type=int, metavar="N", help="limit of each answer (default: 16384)")
    add(
        "--keep-sequential",
        action="store_true",
        default=None,
        help="keep chains without anything parallel, as they are",
    )
    add("--no-judge", action="store_const", const=False, dest="judge", help="do not ask whether paths stand alone")
    add("--prompts", metavar="DIR", help="prompts of your own; files that are not there are ours")
    add = parser.add_argument_group("input").add_argument
    for what in ("question", "chain", "answer", "reference"):
        add(f"--{what}-column", metavar="NAME", help=f"default: {_defaults_of(what)}")
    add("--rows", type=int, metavar="N", help="only the first N")
    add = parser.add_argument_group("run").add_argument
    add("--config", metavar="YAML", help="settings by the names of the flags; flags go before them")
    add(
        "--dry-run",
        action="store_true",
        help="ask nothing; say how many requests and tokens it would be, and what they cost",
    )
    add(
        "--overwrite",
        action="store_true",
        help="start anew in a folder that other settings have made; answers are kept",
    )
    add("--push", metavar="HUB_ID", help="upload traces and card to this data set when all is done")
    add("--json", action="store_true", help="print one JSON object")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object, such as {{"top_p": 0.95}}, not {text}')
    return value


def _defaults_of(what: str) -> str:
    from mvtrain.curate.sources import COLUMNS

    return ", ".join(COLUMNS[what][:3])


def run(args: argparse.Namespace) -> int:
    from mvtrain.curate.curator import CurateSettings
    from mvtrain.curate.endpoint import Endpoint
    from mvtrain.curate.prompts import Prompts

    options = _options(args)
    making = CurateSettings(**{name: options[name] for name in MAKING_FLAGS if name in options})
    prompts = Prompts.read(args.prompts or options.get("prompts"))
    if args.dry_run:
        return _dry_run(args, options, prompts)
    if not options.get("model"):
        raise ValueError("no model; give --model, the name that the endpoint knows it by")
    config = _client_config(options)
    from mvtrain.folders import FolderLock

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    if Path(args.source).exists() and out.resolve() in Path(args.source).resolve().parents:
        raise ValueError(f"{args.source} is in {out}, where results would take its place; give another folder")
    _check_push(args.push)
    Endpoint(config)  # a key that is missing, and a file that cannot be read, are told before a folder is made
    next(_sources(args), None)
    out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(out, "curation")
    try:
        return _curate(args, out, config, making, prompts)
    finally:
        lock.release()


# Settings and input


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """--config, and what was given by flags in its place."""
    options: dict[str, Any] = {}
    if args.config:
        import yaml

        try:
            options = yaml.safe_load(Path(args.config).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{args.config}: not YAML: {error}") from None
        known = {*_client_settings(), *MAKING_FLAGS, "prompts", "batch"}
        unknown = sorted(set(options) - known) if isinstance(options, dict) else ["a mapping of settings is expected"]
        if unknown:
            raise ValueError(
                f"{args.config}: unknown {', '.join(map(str, unknown))}; known: {', '.join(sorted(known))}"
            )
    flags = {name: getattr(args, name) for name in (*CLIENT_FLAGS, *MAKING_FLAGS)}
    options |= {name: value for name, value in flags.items() if value is not None}
    if not isinstance(options.get("batch", False), bool):
        raise ValueError(f"{args.config}: batch is {options['batch']!r}; expected true or false")
    if not isinstance(options.get("prompts", ""), str):
        raise ValueError(f"{args.config}: prompts is {options['prompts']!r}; expected a folder")
    if args.rows is not None and args.rows < 1:
        raise ValueError(f"--rows {args.rows}: expected at least 1")
    args.batch = args.batch or options.get("batch", False)
    return options


def _client_config(options: dict[str, Any]) -> ClientConfig:
    from mvtrain.curate.endpoint import ClientConfig

    return ClientConfig(**{name: options[name] for name in _client_settings() if name in options})


def _client_settings() -> list[str]:
    from mvtrain.curate.endpoint import ClientConfig

    return [field.name for field in fields(ClientConfig)]


def _sources(args: argparse.Namespace) -> Iterator[Source]:
    """Rows of the input, as they are needed. A row that cannot be read becomes an empty source, which is rejected."""
    from mvtrain.curate.records import Source
    from mvtrain.curate.sources import SourceColumns
    from mvtrain.data.sources import RowError, read_fields
    from mvtrain.evaluate.grading_answers import last_box

    columns = SourceColumns(args.question_column, args.chain_column, args.answer_column, args.reference_column)
    for number, (where, row) in enumerate(islice(read_fields(args.source), args.rows)):
        try:
            if isinstance(row, RowError):
                raise row
            yield columns.read(where, number, row, last_box)
        except ValueError as error:
            if number == 0 and not isinstance(error, RowError):
                raise  # the columns of the whole file
            read = (row.line or None) if isinstance(row, RowError) else dict(row)
            yield Source(f"row-{number + 1}", "", "", "", fault=str(error), row=read)


def _dry_run(args: argparse.Namespace, options: dict[str, Any], prompts: Any) -> int:
    from mvtrain.curate.estimate import ASKED_AGAIN, SHARE_IN_BLOCKS, estimate

    found = estimate(_sources(args), prompts)
    cost = found.cost(options.get("price_input"), options.get("price_output"))
    if args.json:
        counts = {name: dict(getattr(found, name)) for name in ("requests", "prompt_tokens", "completion_tokens")}
        print(json.dumps({"num_records": found.num_records, "cost": cost, **counts}))
        return 0
    print(f"{found.num_records} records; nothing was asked")
    for stage in found.requests:
        print(
            f"  {stage:<12} {found.requests[stage]:>9,} requests, {found.prompt_tokens[stage]:>12,} tokens in, "
            f"{found.completion_tokens[stage]:>12,} out"
        )
    price = f"${cost:.2f}" if cost is not None else "unknown; give --price-input and --price-output"
    print(f"cost: {price}")
    print(
        f"An estimate from lengths: it assumes that {SHARE_IN_BLOCKS:.0%} of the text stands on paths and that "
        f"{ASKED_AGAIN - 1:.0%} of the answers are asked for again."
    )
    return 0


# The run


def _curate(args: argparse.Namespace, out: Path, config: ClientConfig, making: Any, prompts: Any) -> int:
    from mvtrain.curate.identity import identity_of, take_up
    from mvtrain.curate.journal import Journal
    from mvtrain.curate.outputs import write_outputs
    from mvtrain.data.statistics import Statistics

    identity = identity_of(args.source, config, making, prompts)
    take_up(out, identity, args.overwrite)
    journal = Journal(out / "work" / "finished.jsonl")
    try:
        ended, spending = asyncio.run(_ask(args, out, config, making, prompts, journal))
        complete = not ended.reason
        if complete and args.rows is None:
            journal.forget_from(ended.num_sources)
        summary = write_outputs(journal, out, Statistics())
        _describe(args, out, identity, summary, 0 if complete and args.rows is None else None)
    finally:
        journal.close()
    if complete and args.push:
        _push(out, args.push)
    _tell(args, out, ended, summary, spending)
    if ended.reason == INTERRUPTED:
        return 130
    return 0 if complete else STOPPED


async def _ask(
    args: argparse.Namespace, out: Path, config: ClientConfig, making: Any, prompts: Any, journal: Any
) -> tuple[Ended, dict[str, Any]]:
    from mvtrain.curate.admission import Admission
    from mvtrain.curate.batches import BatchClient
    from mvtrain.curate.client import Client
    from mvtrain.curate.curator import Curator
    from mvtrain.curate.estimate import expected_cost
    from mvtrain.curate.progress import CurationProgress
    from mvtrain.curate.run import Ended, curate_all
    from mvtrain.evaluate.grading_answers import last_box
    from mvtrain.evaluate.grading_pool import GradingPool

    with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # only a main thread gets signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    kind = BatchClient if args.batch else Client
    ended = Ended(reason=INTERRUPTED)
    with GradingPool() as pool:
        async with kind(config, out / "work" / "answers.sqlite") as client:
            shown = None if args.json else sys.stderr
            with CurationProgress(_count(args), client.snapshot, shown) as progress:
                same = functools.partial(_same_answer, pool)
                curator = Curator(client, prompts, making, same, last_box, progress.stage)
                factor = config.batch_discount if args.batch else 1.0
                admission = Admission(
                    lambda source: factor * expected_cost(source, prompts, config.price_input, config.price_output),
                    lambda: client.snapshot().spent,
                    config.max_spend,
                )
                at_once = 100_000 if args.batch else 2 * config.concurrency
                try:
                    ended = await curate_all(_sources(args), curator, journal, admission, at_once, progress.finished)
                except asyncio.CancelledError:
                    print("curate: interrupted; the same command goes on from here", file=sys.stderr)
            return ended, client.snapshot().as_dict()


SHORT = 120
"""Characters of an answer that is taken for a bare one, where it has no box and no answer line."""
SENTENCE = 3
"""Words from which such an answer is a sentence: that it is not the reference, as it stands, does not make it wrong."""
_WORD = re.compile(r"(?<![\\\w])[A-Za-z]{2,}")
"""Of a language; commands of LaTeX and names of variables are none."""


async def _same_answer(pool: Any, answer: str, reference: str) -> bool | None:
    """By the grader of evaluations, in a process of its own."""
    from mvtrain.evaluate.grading_answers import final_answer

    if final_answer(answer) is not None:
        return (await asyncio.wrap_future(pool.submit(answer, reference))).correct
    if len(answer) > SHORT:
        return None
    correct = (await asyncio.wrap_future(pool.submit(f"\\boxed{{{answer}}}", reference))).correct
    return None if correct is False and len(_WORD.findall(answer)) >= SENTENCE else correct


def _count(args: argparse.Namespace) -> int | None:
    """Rows of a file in lines, which are counted fast; None for others."""
    path = Path(args.source)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return args.rows
    with path.open("rb") as lines:
        num = sum(1 for line in lines if line.strip())
    return min(num, args.rows) if args.rows is not None else num


# What is left and said


def _describe(args: argparse.Namespace, out: Path, identity: Any, summary: Summary, num_unfinished: int | None) -> None:
    from mvtrain.curate.card import card
    from mvtrain.folders import write_whole

    write_whole(out / "README.md", card(identity, summary, num_unfinished))
    if summary.num_accepted:
        from mvtrain.commands.view import write_page

        write_page(out / "traces.jsonl", out / "page.html", "deepseek_thinking_trajectory_parallel", PAGE_ROWS)


def _check_push(hub_id: str | None) -> None:
    if hub_id is not None and hub_id.count("/") != 1:
        raise ValueError(f"--push {hub_id}: expected owner/name")


def _push(out: Path, hub_id: str) -> None:
    """Traces and card; not the stages, nor what was rejected. The token is the hub's (`hf auth login`, HF_TOKEN)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        api = HfApi()
        api.create_repo(hub_id, repo_type="dataset", exist_ok=True)
        api.upload_folder(
            folder_path=out, repo_id=hub_id, repo_type="dataset", allow_patterns=["traces.jsonl", "README.md"]
        )
    except (OSError, HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ValueError(f"--push {hub_id}: {error}; the folder is complete, give the same command again") from None


def _tell(args: argparse.Namespace, out: Path, ended: Ended, summary: Summary, spending: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps({"out": str(out), "stopped": ended.reason or None, **summary.as_dict(), "spending": spending}))
        return
    print(f"{summary.num_accepted} accepted, {summary.num_rejected} rejected: {out}")
    if summary.num_repeated:
        print(f"  {summary.num_repeated} of them have the question and the chain of another record")
    for row in summary.as_dict()["rejections"]:
        print(f"  rejected in {row['stage']}: {row['kind']}: {row['records']}")
    total = spending["total"]
    print(f"spent: ${spending['spent']:.4f}; {total['requests']} requests, {total['cached']} cached")
    if ended.reason:
        print(f"curate: stopped early: {ended.reason}", file=sys.stderr)
