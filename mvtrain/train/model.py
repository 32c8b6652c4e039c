"""A causal LM whose forward pass returns the sum of its token losses.

The loss lives inside the module that DeepSpeed wraps: with ZeRO-3 and accumulation, gradients are only right when the
engine itself is called.

Shape suffixes: T tokens, N tokens with a target, C tokens of one chunk, E hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mvtrain.layout import Layout

IGNORED = -100
"""Label of a token that is no target."""


class SumOfTokenLosses(nn.Module):
    """A transformers causal LM (attn_implementation "multiverse") with its loss.

    Args:
        lm: has `model` (the decoder) and `lm_head` (a linear layer without a bias), as Llama, Qwen2 and Qwen3 do.
        chunk: tokens whose logits exist at a time; T x V logits never do.
        attention: backend of `mvtrain.attention.attend`.
    """

    def __init__(self, lm: nn.Module, chunk: int = 1024, attention: str = "auto") -> None:
        super().__init__()
        _refuse_unknown_heads(lm)
        self.lm = lm
        self.head = LossHead(lm.lm_head.weight, chunk)
        self.attention = attention

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, labels: torch.Tensor, layout: Layout
    ) -> torch.Tensor:
        """input_ids, position_ids, labels: LongTensor (1, T), labels unshifted, -100 = no target -> fp32 scalar."""
        hidden_1TE = self.lm.model(
            input_ids=input_ids,
            position_ids=position_ids,
            layout=layout,
            attention_backend=self.attention,
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden_1TE[0, :-1], labels[0, 1:])


class LossHead(nn.Module):
    """Cross entropy of a linear head, summed, a chunk of tokens at a time.

    It holds the head's weight itself, so ZeRO-3 gathers it once per pass and not once per chunk; a tied weight is the
    embedding's own tensor.
    """

    def __init__(self, weight: nn.Parameter, chunk: int) -> None:
        super().__init__()
        self.weight = weight
        self.chunk = chunk

    def forward(self, hidden_TE: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
        has_target_T = targets_T != IGNORED
        return _ChunkedCrossEntropy.apply(
            hidden_TE[has_target_T], self.weight, targets_T[has_target_T], self.chunk, torch.is_grad_enabled()
        )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks.

    The gradients follow from the logits alone, so they are computed while a chunk's logits exist: nothing is computed
    twice, and backward only scales. The weight's gradient is summed over chunks in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NE: torch.Tensor, weight_VE: torch.Tensor, targets_N: torch.Tensor, chunk: int, train: bool
    ) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NE.device)
        hidden_grad_NE = torch.empty_like(hidden_NE) if train else None
        weight_grad_VE = None
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            log_probs_CV = F.linear(hidden_NE[rows], weight_VE).float().log_softmax(-1)
            loss -= log_probs_CV.gather(1, targets_N[rows, None]).sum()
            if train:
                grad_CV = log_probs_CV.exp_()
                grad_CV.scatter_add_(1, targets_N[rows, None], -torch.ones_like(grad_CV[:, :1]))
                grad_CV = grad_CV.to(weight_VE.dtype)
                hidden_grad_NE[rows] = grad_CV @ weight_VE
                part_VE = grad_CV.T @ hidden_NE[rows]
                weight_grad_VE = part_VE if weight_grad_VE is None else weight_grad_VE.float().add_(part_VE)
        if train:
            if weight_grad_VE is None:  # no targets
                weight_grad_VE = torch.zeros_like(weight_VE)
            ctx.save_for_backward(hidden_grad_NE, weight_grad_VE.to(weight_VE.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor):
        hidden_grad_NE, weight_grad_VE = ctx.saved_tensors
        return hidden_grad_NE * scale, weight_grad_VE * scale, None, None, None


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices and embeddings with decay, norms and biases without."""
    # Under ZeRO-3 a partitioned parameter is flat; ds_shape has the shape of the whole.
    shapes = {parameter: getattr(parameter, "ds_shape", parameter.shape) for parameter in module.parameters()}
    trained = [parameter for parameter in shapes if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if len(shapes[p]) > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if len(shapes[p]) <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _refuse_unknown_heads(lm: nn.Module) -> None:
    head = getattr(lm, "lm_head", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or not hasattr(lm, "model"):
        raise ValueError(f"{type(lm).__name__} is not supported: needs `model` and a linear `lm_head` without bias")
    if getattr(lm.config, "final_logit_softcapping", None) or getattr(lm.config, "logit_scale", 1) != 1:
        raise ValueError(f"{type(lm).__name__} is not supported: it changes its logits after the head")
