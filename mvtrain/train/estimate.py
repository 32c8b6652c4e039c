"""How much memory a rank will need, estimated before anything is loaded.

Widths are those of the run's precision: 2 bytes in bf16, 4 in fp32. P parameters, N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mvtrain.train.batching import Batching
from mvtrain.train.config import TrainConfig

USES = ("parameters", "gradients", "optimizer", "activations", "logits", "attention", "buffers")


@dataclass(frozen=True)
class ModelSize:
    """What the estimate needs to know of a model, in elements."""

    parameters: int
    head: int
    """Of the output matrix, tied or not."""
    layer: int
    """Parameters of one layer."""
    num_layers: int
    hidden: int
    kv_width: int
    intermediate: int
    vocab: int

    @classmethod
    def of_checkpoint(cls, folder: str) -> ModelSize:
        """Read from config.json alone: no weight is loaded."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config)
        head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            parameters=sum(p.numel() for p in lm.parameters()),
            head=lm.lm_head.weight.numel(),
            layer=sum(p.numel() for p in lm.model.layers[0].parameters()),
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            kv_width=config.num_key_value_heads * head_width,
            intermediate=config.intermediate_size,
            vocab=lm.lm_head.weight.shape[0],
        )


@dataclass(frozen=True)
class _Run:
    """The numbers that the terms below share."""

    size: ModelSize
    config: TrainConfig
    batching: Batching
    zero: dict[str, Any]
    width: int
    """Bytes of a weight."""

    @property
    def stage(self) -> int:
        return self.zero["stage"]

    @property
    def is_mixed(self) -> bool:
        """bf16 weights whose gradients are summed in fp32; see `deepspeed_settings`."""
        return self.width == 2 and self.stage > 0

    @property
    def tokens(self) -> int:
        """Of one micro-step on one rank, in full packs."""
        return self.config.context * self.batching.micro_batch_size // self.batching.sequence_parallel_size

    def share(self, stage: int) -> int:
        """Parameters a rank holds of what ZeRO divides from this stage on."""
        return self.size.parameters // (self.batching.world_size if self.stage >= stage else 1)


def estimate(
    size: ModelSize, config: TrainConfig, batching: Batching, settings: dict[str, Any]
) -> dict[str, dict[str, int]]:
    """Bytes on a rank's device by use, at the moments of a step that may be its fullest.

    Not everything is there at once: logits are gone when backward begins, and backward frees activations as gradients
    come. So a run needs what its fullest moment needs, not the sum; see `fullest`.

    ZeRO stage 1 divides the optimizer's state among the ranks, 2 the gradients too, 3 the parameters too (Rajbhandari
    et al. 2020). State that the DeepSpeed settings offload lies in host memory and is left out: see `host_bytes`. What
    an allocator wastes, and a CUDA context of about half a GiB, come on top.
    """
    run = _Run(size, config, batching, settings["zero_optimization"], width=2 if config.precision == "bf16" else 4)
    parameters = 0 if "offload_param" in run.zero else run.width * run.share(3)
    resting = {
        "parameters": parameters,
        "gradients": _gradient_buffer(run),
        "optimizer": 0
        if "offload_optimizer" in run.zero
        else _optimizer_bytes(size, run.width, run.stage) // (batching.world_size if run.stage >= 1 else 1),
        "buffers": _bucket(run) if run.stage == 3 else 0,
    }
    new_gradients = _gradients_of_a_step(run)
    earlier = new_gradients if batching.accumulation_steps > 1 else 0
    computing = {"parameters": _gathered(run), "gradients": earlier}
    kept, layer = _activations(run)
    head = run.width * size.head
    receiving = {"buffers": _bucket(run) if run.stage == 2 else 0}
    moments = {
        "forward": [computing, {"activations": kept, "logits": _logits(run)}],
        "backward": [computing, receiving, {"activations": kept + layer, "logits": head, "attention": _attention(run)}],
        # The embedding's gradient comes last, and is added to that of a tied head.
        "gradients": [{"parameters": _gathered(run), "gradients": new_gradients}, receiving, {"logits": 3 * head}],
        "update": [{"gradients": new_gradients}, receiving, {"optimizer": _update(run)}],
    }
    return {moment: _total([resting, *parts]) for moment, parts in moments.items()}


def fullest(moments: dict[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    """The moment that decides, and its bytes by use."""
    return max(moments.items(), key=lambda moment: sum(moment[1].values()))


def host_bytes(size: ModelSize, config: TrainConfig, batching: Batching, settings: dict[str, Any]) -> int:
    """Bytes of host memory per rank that offloading takes."""
    zero = settings["zero_optimization"]
    width = 2 if config.precision == "bf16" else 4
    optimizer = _optimizer_bytes(size, width, zero["stage"]) + 4 * size.parameters if "offload_optimizer" in zero else 0
    parameters = width * size.parameters if "offload_param" in zero else 0
    return (optimizer + parameters) // batching.world_size


def _total(parts: list[dict[str, int]]) -> dict[str, int]:
    return {use: sum(part.get(use, 0) for part in parts) for use in USES}


def _optimizer_bytes(size: ModelSize, width: int, stage: int) -> int:
    """Two moments in fp32, and the fp32 copy that ZeRO keeps in fp32 training too."""
    master = 4 if width == 2 or stage > 0 else 0
    return (8 + master) * size.parameters


def _gradient_buffer(run: _Run) -> int:
    """What DeepSpeed keeps for gradients: a partition at stage 3, an undivided fp32 copy at stage 1 in bf16."""
    if "offload_optimizer" in run.zero:
        return 0
    if run.stage == 3:
        return 4 * run.share(3)
    return 4 * run.size.parameters if run.stage == 1 and run.is_mixed else 0


def _gradients_of_a_step(run: _Run) -> int:
    """From backward to the update."""
    if run.stage == 3 or (run.stage == 2 and "offload_optimizer" in run.zero):
        return 0
    if run.stage == 2:
        return 4 * run.share(2)
    return run.width * run.size.parameters


def _update(run: _Run) -> int:
    """Beside the gradients: an fp32 copy of a group of them, or the updated weights as they are gathered."""
    zero, stage = run.zero, run.stage
    if "offload_optimizer" in zero:
        return 0
    if stage == 3:
        return 4 * min(run.share(3), int(zero.get("sub_group_size", 10**9)))
    if run.is_mixed:
        return run.width * run.size.parameters if stage == 1 and run.batching.world_size > 1 else 0
    return 4 * run.share(1) if stage > 0 or run.width == 2 else 0


def _gathered(run: _Run) -> int:
    """Parameters of other ranks that are at hand while computing: as many as DeepSpeed may keep for their next use."""
    if run.stage < 3 or run.batching.world_size == 1:
        return 0
    live = max(int(run.zero.get("stage3_max_live_parameters", 10**9)), run.size.layer + run.size.head)
    return run.width * min(live, run.size.parameters)


def _bucket(run: _Run) -> int:
    """DeepSpeed's buffer for gradients on their way; stage 2 has two where communication overlaps with computing."""
    elements = min(int(run.zero.get("reduce_bucket_size", 500_000_000)), run.size.parameters)
    if run.stage == 3:
        return run.width * elements
    return 4 * elements * (2 if run.zero.get("overlap_comm") else 1)


def _activations(run: _Run) -> tuple[int, int]:
    """What autograd keeps of all layers, and what backward computes again of one.

    Of a layer: two norms (input and fp32 copy), q k v and output, and four MLP tensors.
    """
    size, width = run.size, run.width
    norms = 2 * size.hidden * (width + 4)
    attention = width * (3 * size.hidden + 4 * size.kv_width)
    mlp = width * 4 * size.intermediate
    layer = run.tokens * (norms + attention + mlp)
    if run.config.gradient_checkpointing:
        kept = 2 if run.config.save_attention else 1  # the layer's input, and the output of its attention
        return run.tokens * size.num_layers * kept * width * size.hidden, layer
    return size.num_layers * layer, 0


def _logits(run: _Run) -> int:
    """Of a chunk: logits, fp32 copy and log-probabilities; the head's gradient, summed in fp32."""
    rows = min(run.config.loss_chunk, run.tokens)
    low = run.width if run.width < 4 else 0
    return rows * run.size.vocab * (8 + low) + (4 + run.width) * run.size.head


def _attention(run: _Run) -> int:
    """Of one layer: gradients of q, k and v summed over kernel calls in fp32, and two parts being merged in fp32."""
    return run.tokens * 4 * (3 * run.size.hidden + 2 * run.size.kv_width)
