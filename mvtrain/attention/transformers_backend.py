"""Multiverse Attention for unmodified transformers models.

    register()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="multiverse")
    model(input_ids=..., position_ids=..., layout=layout, use_cache=False)

Without `layout` the model is the stock causal model; documents packed by their position ids alone are not kept apart.

Shape suffixes: T tokens, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mvtrain.attention.registry import attend
from mvtrain.attention.sequence_parallel import attend_in_group
from mvtrain.layout import Layout

NAME = "multiverse"


def register() -> str:
    """Make `attn_implementation="multiverse"` known to transformers. Returns the name. May be called again."""
    AttentionInterface.register(NAME, multiverse_attention)
    AttentionMaskInterface.register(NAME, multiverse_mask)
    return NAME


def multiverse_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    attention_backend: str = "auto",
    sequence_group: Any = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D).

    With `sequence_group`, a process group, T are this rank's tokens, and `layout` is that of all ranks' together.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    _refuse_what_layouts_lack(query, attention_mask, dropout, kwargs)
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))

    def whole(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> torch.Tensor:
        return attend(q_THD, k_TKD, v_TKD, layout, attention_backend, scaling)

    if sequence_group is None:
        return whole(q_THD, k_TKD, v_TKD)[None], None
    return attend_in_group(q_THD, k_TKD, v_TKD, whole, sequence_group)[None], None


def multiverse_mask(*args, attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor | None:
    """No mask where the layout says it all; transformers' own where a 2-D padding mask asks for one."""
    is_square = kwargs.get("q_length") == kwargs.get("kv_length")
    if attention_mask is None and is_square and kwargs.get("local_size") is None:
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def _refuse_what_layouts_lack(query, attention_mask, dropout: float, others: dict) -> None:
    if query.shape[0] != 1:
        raise ValueError(f"a layout describes one packed sequence; got a batch of {query.shape[0]}: pack it instead")
    if attention_mask is not None:
        raise ValueError("attention_mask and layout exclude each other: packed sequences need no padding mask")
    if dropout:
        raise ValueError(f"attention dropout {dropout} is not supported; set attention_dropout to 0 in the config")
    if others.get("sliding_window"):
        raise ValueError(f"sliding-window attention ({others['sliding_window']} tokens) is not supported")
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise ValueError(f"attention with {name} is not supported: the kernels have plain softmax only")
