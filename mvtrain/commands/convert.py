"""Turn an autoregressive checkpoint into one that knows the twelve tags, and check the result."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a local folder, a GGUF file or a hub id (Qwen2, Qwen3, Llama)")
    parser.add_argument("out", metavar="OUT", help="the folder to write; must not exist or be empty")
    parser.add_argument(
        "--scheme",
        choices=("isolated", "original"),
        default="isolated",
        help="positions and visibility to train and generate with; original: for checkpoints of the original code",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: the checkpoint's own; bfloat16 for GGUF",
    )
    parser.add_argument(
        "--pad-to-multiple-of", type=int, default=64, metavar="N", help="rows of a matrix that must grow (default: 64)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--no-verify", action="store_true", help="skip the checks of rows, logits and files")
    parser.add_argument("--json", action="store_true", help="print the manifest instead of the summary")


def run(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a half-written folder is removed then, too
    started = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print while they are imported is not the result
        manifest = _convert(args)
    if args.json:
        print(json.dumps(manifest, indent=2, ensure_ascii=False))
    else:
        _print_summary(manifest, args.out, time.monotonic() - started)
    return 0


def _convert(args: argparse.Namespace) -> dict:
    import transformers

    from mvtrain.convert import convert_checkpoint

    transformers.utils.logging.disable_progress_bar()
    return convert_checkpoint(
        args.model,
        args.out,
        scheme=args.scheme,
        dtype=args.dtype,
        pad_to_multiple_of=args.pad_to_multiple_of,
        verify=not args.no_verify,
        revision=args.revision,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _print_summary(manifest: dict, out: str, seconds: float) -> None:
    rows, ids = manifest["rows"], list(manifest["tags"].values())
    head = "tied lm_head" if manifest["tied"] else "lm_head of its own"
    print(f"{out}: {manifest['model_type']}, {manifest['dtype']}, {head}, scheme {manifest['scheme']}")
    print(
        f"  rows       {rows['before']} -> {rows['after']}: {rows['tags_on_unused_rows']} tags on unused rows, "
        f"{len(ids) - rows['tags_on_unused_rows']} on new ones, {rows['padding_added']} padding rows added"
    )
    print(f"  tags       {ids[0]} to {ids[-1]}")
    print(f"  stops at   {', '.join(map(str, manifest['eos_token_ids'])) or 'nothing: no eos token'}")
    for entry in manifest["verified"]:
        print(f"  verified   {entry['check']}: {entry['detail']}")
    for warning in manifest["warnings"]:
        print(f"  warning    {warning}")
    print(f"  took       {seconds:.1f} s")
