"""The trained model as a Hugging Face folder, reloaded and compared with what was trained.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mvtrain.layout import TAGS, Layout
from mvtrain.manifest import read_manifest, write_manifest
from mvtrain.train.engine_setup import DTYPES, read_checkpoint
from mvtrain.train.plan import Plan
from mvtrain.train.processes import Ranks
from mvtrain.train.tag_rows import merge_tag_rows

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest difference of two logits, as a share of the largest logit. Same numbers, perhaps other kernels."""

SAMPLE_TOKENS = 512
LOGITS_COMPARED = 64


class ExportError(RuntimeError):
    """The model was not exported. Checkpoints are untouched: the same command goes on from the last, and exports."""


def export_model(engine: Any, ranks: Ranks, plan: Plan, step: int, stage: int) -> tuple[Path, float]:
    """Write output_dir/export. Called by every rank; the first writes and compares.

    Returns:
        The folder, and the largest difference of a logit between the trained and the exported model (0 on other ranks).

    Raises:
        ExportError: on every rank. The export could not be written, or is not the trained model; then it stands beside,
            as `export.partial`.
    """
    dtype = DTYPES[plan.config.export_precision]
    state = whole_state(engine, stage)
    sample = _sample(plan)
    trained_TV = _logits(engine.module.lm, sample, ranks.device)
    folder = Path(plan.config.output_dir) / "export"
    difference, problem = 0.0, None
    if ranks.is_first:
        beside = folder.with_name("export.partial")
        state = {name: value.to(dtype) for name, value in state.items()}
        try:
            _write(engine.module.lm, merged(engine, state, plan), plan, step, beside)
            del state
            difference = _compare(beside, trained_TV, sample, plan.config.export_precision, ranks.device)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        except ExportError as error:
            problem = str(error)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            free = shutil.disk_usage(folder.parent).free / 2**30
            problem = f"could not export {folder} ({free:.2f} GiB free on its disk): {str(error).splitlines()[0]}"
    problem = ranks.gather(problem)[0]
    if problem:
        raise ExportError(problem)
    return folder, difference


def write_model(engine: Any, ranks: Ranks, plan: Plan, step: int, stage: int, folder: Path) -> None:
    """Write the weights as they are, in the run's precision. Called by every rank; the first writes."""
    state = whole_state(engine, stage)
    if ranks.is_first:
        dtype = DTYPES[plan.config.precision]
        state = {name: value.to(dtype) for name, value in state.items()}
        _write(engine.module.lm, merged(engine, state, plan), plan, step, folder)
    ranks.wait()


def merged(engine: Any, state: dict[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """The state with the tags' rows in their places."""
    return merge_tag_rows(state, plan.tags.as_tuple(), engine.module.lm.config.tie_word_embeddings)


def whole_state(engine: Any, stage: int) -> dict[str, torch.Tensor]:
    """The language model's weights on the first rank, whole, on the CPU; empty elsewhere."""
    state = engine._zero3_consolidated_16bit_state_dict() if stage == 3 else engine.module.state_dict()
    return {name.removeprefix("lm."): value for name, value in (state or {}).items() if name.startswith("lm.")}


def _write(lm: torch.nn.Module, state: dict[str, torch.Tensor], plan: Plan, step: int, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    dtype = next(iter(state.values())).dtype
    if lm.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    lm.config.dtype = dtype
    lm.save_pretrained(folder, state_dict=state)
    plan.tokenizer.save_pretrained(folder)
    write_manifest(folder, _manifest(plan, step, dtype))
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.iterdir():  # safetensors makes its files for the owner alone
        file.chmod(0o666 & ~umask)


def _manifest(plan: Plan, step: int, dtype: torch.dtype) -> dict[str, Any]:
    manifest = read_manifest(plan.config.model) or {"tags": dict(zip(TAGS, plan.tags.as_tuple(), strict=True))}
    manifest["scheme"] = plan.scheme
    manifest["dtype"] = str(dtype).removeprefix("torch.")
    steps = plan.steps[:step]
    manifest["trained"] = {
        "from": plan.config.model,
        "steps": step,
        "tokens": sum(item.num_tokens for item in steps),
        "learning_rate": plan.config.learning_rate,
        "context": plan.config.context,
        "curriculum": plan.config.data.curriculum,
    }
    return manifest


def _sample(plan: Plan) -> tuple[torch.Tensor, Layout]:
    """The shortest example and its layout; the first tokens, as plain causal text, if it is long."""
    shortest = min(plan.examples, key=lambda example: example.num_tokens)
    ids_T = torch.as_tensor(shortest.input_ids[:SAMPLE_TOKENS], dtype=torch.long)
    if shortest.num_tokens <= SAMPLE_TOKENS:
        return ids_T, Layout.from_ids(ids_T, plan.tags, plan.scheme)
    return ids_T, Layout.from_ids(torch.zeros_like(ids_T), plan.tags, plan.scheme)


@torch.no_grad()
def _logits(lm: torch.nn.Module, sample: tuple[torch.Tensor, Layout], device: torch.device) -> torch.Tensor:
    """(T, V) fp32 on the CPU, of the last tokens of the sample."""
    ids_T, layout = sample
    lm.eval()
    logits_1TV = lm(
        input_ids=ids_T[None].to(device),
        position_ids=layout.position_ids[None].to(device),
        layout=layout,
        use_cache=False,
        logits_to_keep=LOGITS_COMPARED,
    ).logits
    return logits_1TV[0].float().cpu()


def _compare(
    folder: Path, trained_TV: torch.Tensor, sample: tuple[torch.Tensor, Layout], precision: str, device: torch.device
) -> float:
    exported = read_checkpoint(folder, DTYPES[precision])
    if _fits(exported, device):
        exported = exported.to(device)
    logits_TV = _logits(exported, sample, next(exported.parameters()).device)
    difference = (logits_TV - trained_TV).abs().max().item()
    limit = TOLERANCE[precision] * trained_TV.abs().max().item()
    if not difference <= limit:
        raise ExportError(
            f"the exported model differs from the trained one: a logit by {difference:.3g}, more than {limit:.3g}; "
            f"the export was left in {folder}"
        )
    return difference


def _fits(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether the device has room for the model beside what is being trained."""
    if device.type != "cuda":
        return True
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    return torch.cuda.mem_get_info(device)[0] > 1.2 * needed
