"""How much memory a rank will need, estimated before anything is loaded, and how much it did need."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch

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


def estimate(
    size: ModelSize, config: TrainConfig, stage: int, world_size: int, offload: bool = False
) -> dict[str, int]:
    """Bytes per rank while training, by use. An estimate: allocators and communication buffers come on top.

    Stage 1 divides the optimizer's state among the ranks, 2 the gradients too, 3 the parameters too. With `offload` the
    optimizer's state lies in host memory and is left out.
    """
    width = 2 if config.precision == "bf16" else 4
    share = [world_size if stage >= needed else 1 for needed in (3, 2, 1)]
    summed = 4 if width == 2 and config.gradient_accumulation_steps > 1 else 0  # gradients are summed in fp32
    master = 4 if width == 2 or stage > 0 else 0  # ZeRO keeps its flat fp32 copy in fp32 training too
    gathered = width * (size.layer + size.head) if stage == 3 and world_size > 1 else 0
    return {
        "parameters": width * size.parameters // share[0] + gathered,
        "gradients": (width + summed) * size.parameters // share[1] + width * size.head,
        "optimizer": 0 if offload else (8 + master) * size.parameters // share[2],
        "activations": _activations(size, config, width),
        "logits": min(config.loss_chunk, config.context) * size.vocab * (8 + width) + 4 * size.head,
    }


def _activations(size: ModelSize, config: TrainConfig, width: int) -> int:
    """What autograd keeps: per layer two norms (input and fp32 copy), q k v and output, and four MLP tensors."""
    tokens = config.context * config.micro_batch_size
    norms = 2 * size.hidden * (width + 4)
    attention = width * (3 * size.hidden + 4 * size.kv_width)
    mlp = width * 4 * size.intermediate
    layer = norms + attention + mlp
    if config.gradient_checkpointing:
        kept = 2 if config.save_attention else 1  # the layer's input, and the output of its attention
        return tokens * (size.num_layers * kept * width * size.hidden + layer)
    return tokens * size.num_layers * layer


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB: peak resident memory of this process, and peak of the CUDA allocator where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts KiB on Linux
    peak: dict[str, Any] = {"rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        peak["cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return {key: round(value, 3) for key, value in peak.items()}
