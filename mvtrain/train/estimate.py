"""How much memory a rank will need, estimated before anything is loaded.

Widths are those of the run's precision: 2 bytes in bf16, 4 in fp32. P parameters, N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mvtrain.train.batching import Batching
from mvtrain.train.config import TrainConfig


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


def estimate(size: ModelSize, config: TrainConfig, batching: Batching, settings: dict[str, Any]) -> dict[str, int]:
    """Bytes on a rank's device while training, by use.

    ZeRO stage 1 divides the optimizer's state among the ranks, 2 the gradients too, 3 the parameters too (Rajbhandari
    et al. 2020). State that the DeepSpeed settings offload lies in host memory and is left out: see `host_bytes`. What
    an allocator wastes, and a CUDA context of about half a GiB, come on top.
    """
    zero = settings["zero_optimization"]
    stage, ranks = zero["stage"], batching.world_size
    width = 2 if config.precision == "bf16" else 4
    share = [ranks if stage >= needed else 1 for needed in (3, 2, 1)]
    summed = 4 if width == 2 and batching.accumulation_steps > 1 else 0  # gradients are summed in fp32
    gathered = width * (size.layer + size.head) if stage == 3 and ranks > 1 else 0
    parameters = 0 if "offload_param" in zero else width * size.parameters // share[0]
    return {
        "parameters": parameters + gathered,
        "gradients": (width + summed) * size.parameters // share[1] + width * size.head,
        "optimizer": 0 if "offload_optimizer" in zero else _optimizer_bytes(size, width, stage) // share[2],
        "activations": _activations(size, config, batching, width),
        "logits": _logits(size, config, batching, width),
        "attention": _attention(size, config, batching),
        "buckets": _buckets(zero, width, size.parameters) if ranks > 1 else 0,
    }


def host_bytes(size: ModelSize, config: TrainConfig, batching: Batching, settings: dict[str, Any]) -> int:
    """Bytes of host memory per rank that offloading takes."""
    zero = settings["zero_optimization"]
    width = 2 if config.precision == "bf16" else 4
    optimizer = _optimizer_bytes(size, width, zero["stage"]) + 4 * size.parameters if "offload_optimizer" in zero else 0
    parameters = width * size.parameters if "offload_param" in zero else 0
    return (optimizer + parameters) // batching.world_size


def _optimizer_bytes(size: ModelSize, width: int, stage: int) -> int:
    """Two moments in fp32, and the fp32 copy that ZeRO keeps in fp32 training too."""
    master = 4 if width == 2 or stage > 0 else 0
    return (8 + master) * size.parameters


def _tokens(config: TrainConfig, batching: Batching) -> int:
    """Of one micro-step on one rank."""
    return config.context * batching.micro_batch_size // batching.sequence_parallel_size


def _activations(size: ModelSize, config: TrainConfig, batching: Batching, width: int) -> int:
    """What autograd keeps: per layer two norms (input and fp32 copy), q k v and output, and four MLP tensors."""
    tokens = _tokens(config, batching)
    norms = 2 * size.hidden * (width + 4)
    attention = width * (3 * size.hidden + 4 * size.kv_width)
    mlp = width * 4 * size.intermediate
    layer = norms + attention + mlp
    if config.gradient_checkpointing:
        kept = 2 if config.save_attention else 1  # the layer's input, and the output of its attention
        return tokens * (size.num_layers * kept * width * size.hidden + layer)
    return tokens * size.num_layers * layer


def _logits(size: ModelSize, config: TrainConfig, batching: Batching, width: int) -> int:
    """One chunk in both widths and the gradient of it, and the head's gradient in fp32."""
    rows = min(config.loss_chunk, _tokens(config, batching))
    return rows * size.vocab * (8 + width) + 4 * size.head


def _attention(size: ModelSize, config: TrainConfig, batching: Batching) -> int:
    """Of one layer: gradients of q, k and v summed over kernel calls in fp32, and two parts being merged in fp32."""
    return _tokens(config, batching) * 4 * (3 * size.hidden + 2 * size.kv_width)


def _buckets(zero: dict[str, Any], width: int, num_parameters: int) -> int:
    """DeepSpeed's buffers for communication; two of them where it overlaps with computing."""
    stage = zero["stage"]
    if stage == 0:
        return 0
    elements = int(zero.get("reduce_bucket_size", 500_000_000)) * (2 if zero.get("overlap_comm") else 1)
    elements += int(zero.get("stage3_prefetch_bucket_size" if stage == 3 else "allgather_bucket_size", 50_000_000))
    return width * min(elements, 3 * num_parameters)
