"""Autoregressive checkpoint -> Multiverse checkpoint.

The twelve tags become special tokens, and each gets an embedding row (and an lm_head row where that is not tied) that
starts as the mean of the rows of its own name. Nothing else changes, and the result is checked before it gets its name:
it is written into a folder beside the output, which is renamed at the very end and removed on any failure.

Shape suffixes: V rows of the embedding matrix, D hidden width.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from mvtrain import __version__
from mvtrain.conversion_checks import (
    ConversionError,
    Observation,
    check_logits,
    check_old_rows,
    check_saved_tokenizer,
    check_saved_weights,
    check_tokenizer,
    observe,
    render_chat,
    warn_of_reading,
    warn_of_spaces,
)
from mvtrain.layout import SCHEMES, TAGS
from mvtrain.manifest import read_manifest, write_manifest
from mvtrain.sources import DTYPES, Source, find_source, gguf_parsed_once

__all__ = ["ConversionError", "convert_checkpoint", "read_manifest"]

_CHUNK_ROWS = 8192
_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Rows:
    """What became of the rows of the embedding matrix."""

    known: int
    """Entries of the tokenizer before the tags: one past its largest id."""
    before: int
    after: int
    reused: int
    """Tags that took an existing row which no token used."""

    @property
    def padding_added(self) -> int:
        """New rows that belong to no tag."""
        return self.after - self.before - (len(TAGS) - self.reused)


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    scheme: str = "isolated",
    dtype: str | torch.dtype | None = None,
    pad_to_multiple_of: int = 64,
    verify: bool = True,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Add the tags to the checkpoint `source` and write the result to the new folder `out`.

    Args:
        source: a local folder, a GGUF file or a hub id of a Qwen2, Qwen3 or Llama model.
        out: must not exist, or be an empty folder.
        scheme: the layout that training and generation are to use with this checkpoint; kept in the manifest.
        dtype: "float32", "bfloat16" or "float16"; by default the checkpoint's own, bfloat16 for GGUF.
        pad_to_multiple_of: a matrix that has to grow gets a multiple of this many rows. None ever shrinks.
        verify: check rows, logits and the files on disk; without it only the tags' ids are checked.
        revision: branch, tag or commit of a hub id.
        progress: called with one line per step.

    Returns:
        The manifest, as written to `mvtrain.json`.

    Raises:
        ValueError: the source cannot be converted, the settings are wrong, or (ConversionError) a check failed.
        OSError: the output cannot be written. Whatever is raised, `out` is as it was before.
    """
    say = progress or (lambda line: None)
    dtype = _check_settings(scheme, dtype, pad_to_multiple_of)
    out = _check_out(source, Path(out).expanduser())
    with gguf_parsed_once():
        found = find_source(source, revision, say)
        tokenizer = found.load_tokenizer()
        _refuse_tags(found, tokenizer)
        say(f"loading {found.name}")
        model = found.load_model(dtype)
    _check_space(out, model, pad_to_multiple_of)
    say(f"loaded {sum(p.numel() for p in model.parameters()):,} parameters in {_dtype_name(model)}")

    before = observe(model, tokenizer) if verify else None
    pieces = {tag: tokenizer(tag.strip("<>"), add_special_tokens=False).input_ids for tag in TAGS}
    known = max(tokenizer.get_vocab().values()) + 1
    warnings = warn_of_reading(found.folder, tokenizer) if found.gguf_file is None else []
    tag_ids = _add_tags(tokenizer)
    verified = [check_tokenizer(tokenizer, tag_ids, known, before)]
    rows, old = _widen(model, {tag_ids[tag]: pieces[tag] for tag in TAGS}, known, pad_to_multiple_of)
    warnings += [*_settle_generation(model, tokenizer), *warn_of_spaces(tokenizer)]
    if before is not None:
        say("checking rows and logits")
        verified += _check_model(model, old, tag_ids, before, rows)
    del old

    with _folder_beside(out) as folder:
        say(f"writing {out}")
        _save(model, tokenizer, folder)
        if verify:
            say("reading the files back")
            verified += [check_saved_weights(folder, model), check_saved_tokenizer(folder, tokenizer)]
        manifest = _describe(found, model, scheme, tag_ids, rows)
        manifest |= {"verified": verified, "warnings": warnings}
        write_manifest(folder, manifest)
    return manifest


def _check_settings(scheme: str, dtype: str | torch.dtype | None, multiple: int) -> torch.dtype | None:
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    if multiple < 1:
        raise ValueError(f"pad_to_multiple_of is {multiple}; expected 1 or more")
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _check_out(source: str | Path, out: Path) -> Path:
    if out.resolve() == Path(source).expanduser().resolve():
        raise ValueError(f"{out}: source and output are the same; a conversion never writes into its source")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: the output folder is not empty; give a new folder, or remove this one first")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: the output is a file; give a new folder")
    return out


def _check_space(out: Path, model: torch.nn.Module, multiple: int) -> None:
    row = sum(matrix.weight[0].numel() * matrix.weight.element_size() for matrix in _matrices(model).values())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = weights + (len(TAGS) + multiple) * row + 64 * 2**20  # the tokenizer's files come on top
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(f"{out}: the checkpoint needs {needed / 1e9:.2f} GB, and only {free / 1e9:.2f} GB are free there")


def _refuse_tags(found: Source, tokenizer: Any) -> None:
    present = [tag for tag in TAGS if tag in tokenizer.get_vocab()]
    if present:
        raise ValueError(
            f"{found.name}: the tokenizer already has {', '.join(present[:3])}{' ...' if len(present) > 3 else ''}; "
            "a checkpoint is converted only once"
        )


def _add_tags(tokenizer: Any) -> dict[str, int]:
    """Append the tags in their fixed order to the special tokens, of which none is dropped."""
    # transformers 5 files `additional_special_tokens` under this name, and by default replaces the list.
    tokenizer.add_special_tokens({"extra_special_tokens": list(TAGS)}, replace_extra_special_tokens=False)
    return {tag: tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}


def _matrices(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules whose rows belong to tokens: the embedding, and lm_head unless it is the same matrix."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    return {"embedding": embedding} if tied else {"embedding": embedding, "lm_head": head}


def _widen(
    model: torch.nn.Module, tag_pieces: dict[int, list[int]], known: int, multiple: int
) -> tuple[Rows, dict[str, torch.Tensor]]:
    """Give every tag its row. Returns what was done, and the matrices (V, D) as they were."""
    before = model.get_input_embeddings().weight.shape[0]
    needed = max(tag_pieces) + 1
    after = before if needed <= before else -(-needed // multiple) * multiple
    rows = Rows(known, before, after, reused=sum(id < before for id in tag_pieces))
    # Growing copies the matrix anyway; otherwise the one copy made here is what the check compares with.
    old = {name: m.weight.data if after > before else m.weight.data.clone() for name, m in _matrices(model).items()}
    if after > before:
        model.resize_token_embeddings(after, mean_resizing=False)
    for name, matrix in _matrices(model).items():
        _fill_rows(matrix.weight.data, old[name], tag_pieces, known)
    return rows, old


def _fill_rows(weight_VD: torch.Tensor, old_VD: torch.Tensor, tag_pieces: dict[int, list[int]], known: int) -> None:
    """Each tag's row is the mean of its pieces' rows; a new row without a tag is the mean of all tokens' rows."""
    if len(weight_VD) > len(old_VD):
        total_D = sum(chunk.sum(0, dtype=torch.float64) for chunk in old_VD[:known].split(_CHUNK_ROWS))
        weight_VD[len(old_VD) :] = (total_D / min(known, len(old_VD))).to(weight_VD.dtype)
    for id, pieces in tag_pieces.items():
        weight_VD[id] = old_VD[pieces].double().mean(0).to(weight_VD.dtype)


def _settle_generation(model: torch.nn.Module, tokenizer: Any) -> list[str]:
    """Make generation stop where the chat template ends a turn. Returns warnings for the manifest."""
    warnings = []
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        # Saving would refuse it. What it asks for is undefined, so only its token ids are kept.
        warnings.append(
            f"generation_config contradicts itself and was reduced to token ids: {str(error).splitlines()[0]}"
        )
        keep = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = transformers.GenerationConfig(
            **{key: getattr(model.generation_config, key) for key in keep}
        )
    end = None
    if not tokenizer.chat_template:
        warnings.append(
            "the tokenizer has no chat template: training needs one; set tokenizer.chat_template and save it"
        )
    else:
        end = _end_of_turn(tokenizer)
        if end is None:
            warnings.append(
                "the chat template ends turns with no special token: generation will not know where to stop"
            )
    for config in (model.config, model.generation_config):
        if end is not None and end not in eos_ids(config):
            config.eos_token_id = [*eos_ids(config), end]
    return warnings


def eos_ids(config: Any) -> list[int]:
    """`config.eos_token_id` as a list."""
    ids = config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The id of the first special token that the chat template puts behind an assistant's answer."""
    answer = "forty-two"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    _, found, tail = (render_chat(tokenizer, turns) or "").rpartition(answer)
    if not found:
        return None
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id for id in tokenizer(tail, add_special_tokens=False).input_ids if id in special), None)


def _check_model(
    model: torch.nn.Module, old: dict[str, torch.Tensor], tag_ids: dict[str, int], before: Observation, rows: Rows
) -> list[dict[str, Any]]:
    checks = [check_old_rows(name, old[name], matrix.weight.data, tag_ids) for name, matrix in _matrices(model).items()]
    return [*checks, check_logits(model, before, rows.before)]


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the body succeeds and disappears when it does not."""
    out = out.absolute()
    made = [folder for folder in out.parents if not folder.exists()]
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        yield folder
        _open_up(folder)
        folder.rename(out)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def _open_up(folder: Path) -> None:
    """Give folder and files the usual permissions: mkdtemp and safetensors make theirs for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def _save(model: torch.nn.Module, tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers have their own exceptions for a full disk
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else error
        raise OSError(f"cannot write the checkpoint into {folder.parent}: {reason}") from error


def _describe(
    found: Source, model: torch.nn.Module, scheme: str, tag_ids: dict[str, int], rows: Rows
) -> dict[str, Any]:
    return {
        "source": found.name,
        "source_kind": found.kind,
        "revision": found.revision,
        "model_type": model.config.model_type,
        "scheme": scheme,
        "tags": tag_ids,
        "tokenizer_entries": {"before": rows.known, "after": max(tag_ids.values()) + 1},
        "rows": {
            "before": rows.before,
            "after": rows.after,
            "tags_on_unused_rows": rows.reused,
            "padding_added": rows.padding_added,
        },
        "tied": "lm_head" not in _matrices(model),
        "dtype": _dtype_name(model),
        "eos_token_ids": eos_ids(model.generation_config),
        "versions": {"mvtrain": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _dtype_name(model: torch.nn.Module) -> str:
    return str(model.dtype).removeprefix("torch.")
