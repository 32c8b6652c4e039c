"""A causal LM whose forward pass returns the sum of its token losses.

The loss lives inside the module that DeepSpeed wraps: with ZeRO-3 and accumulation, gradients are only right when the
engine itself is called.

Shape suffixes: T tokens, N tokens with a target, C tokens of one chunk, E hidden width, V vocabulary, G tags,
K kinds of targets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mvtrain.attention.sequence_parallel import heads_of_rank
from mvtrain.data.kinds import KINDS
from mvtrain.layout import Layout
from mvtrain.train.tag_rows import add_tag_rows

IGNORED = -100
"""Label of a token that is no target."""

CORRECTS_TAGS = "corrects_tags"


class SumOfTokenLosses(nn.Module):
    """A transformers causal LM (attn_implementation "multiverse") with its loss.

    Args:
        lm: has `model` (the decoder) and `lm_head` (a linear layer without a bias), as Llama, Qwen2 and Qwen3 do.
        chunk: tokens whose logits exist at a time; T x V logits never do.
        attention: backend of `mvtrain.attention.attend`.
        tag_ids: give the tags' rows corrections of their own; see `mvtrain.train.tag_rows`.
        group: ranks that share each sequence's tokens; see `mvtrain.attention.sequence_parallel`.
    """

    def __init__(
        self,
        lm: nn.Module,
        chunk: int = 1024,
        attention: str = "auto",
        tag_ids: tuple[int, ...] | None = None,
        group: Any = None,
    ) -> None:
        super().__init__()
        refuse_unknown_heads(lm)
        correction_GE = add_tag_rows(lm, tag_ids)[-1] if tag_ids else None
        self.lm = lm
        self.head = LossHead(lm.lm_head.weight, chunk, correction_GE, tag_ids or ())
        self.attention = attention
        self.group = group

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        targets: torch.Tensor,
        layout: Layout,
        kinds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses, and the same by kind of target.

        Args:
            input_ids, position_ids: LongTensor (1, T); of this rank's tokens, in a group.
            targets: LongTensor (1, T): what follows each token; -100 = no target.
            layout: of the whole sequence.
            kinds: LongTensor (1, T): the kind of each target, below len(KINDS).

        Returns:
            fp32 scalar; fp32 (len(KINDS),), without a gradient.
        """
        hidden_1TE = self.lm.model(
            input_ids=input_ids,
            position_ids=position_ids,
            layout=layout,
            attention_backend=self.attention,
            sequence_group=self.group,
            use_cache=False,
        ).last_hidden_state
        kinds_T = torch.zeros_like(targets[0]) if kinds is None else kinds[0]
        return self.head(hidden_1TE[0], targets[0], kinds_T)


class LossHead(nn.Module):
    """Cross entropy of a linear head, summed, a chunk of tokens at a time.

    It holds the head's weight itself, so ZeRO-3 gathers it once per pass and not once per chunk; a tied weight is the
    embedding's own tensor. `correction_GE` is added to the rows `tag_ids`.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        chunk: int,
        correction_GE: nn.Parameter | None = None,
        tag_ids: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.weight = weight
        self.chunk = chunk
        self.correction = correction_GE
        self.tag_ids = tag_ids

    def forward(
        self, hidden_TE: torch.Tensor, targets_T: torch.Tensor, kinds_T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        has_target_T = targets_T != IGNORED
        return _ChunkedCrossEntropy.apply(
            hidden_TE[has_target_T],
            self.weight,
            self.correction,
            targets_T[has_target_T],
            kinds_T[has_target_T],
            torch.tensor(self.tag_ids, dtype=torch.long, device=hidden_TE.device),
            self.chunk,
            torch.is_grad_enabled(),
        )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks.

    The gradients follow from the logits alone, so they are computed while a chunk's logits exist: nothing is computed
    twice, and backward only scales. The weight's gradient is summed over chunks in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: torch.Tensor,
        weight_VE: torch.Tensor,
        correction_GE: torch.Tensor | None,
        targets_N: torch.Tensor,
        kinds_N: torch.Tensor,
        tag_ids_G: torch.Tensor,
        chunk: int,
        train: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses_K = torch.zeros(len(KINDS), dtype=torch.float32, device=hidden_NE.device)
        kinds_K1 = torch.arange(len(KINDS), device=hidden_NE.device)[:, None]
        hidden_grad_NE = torch.empty_like(hidden_NE) if train else None
        weight_grad_VE = None
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            logits_CV = F.linear(hidden_NE[rows], weight_VE)
            if correction_GE is not None:
                logits_CV.index_add_(1, tag_ids_G, F.linear(hidden_NE[rows], correction_GE))
            log_probs_CV = logits_CV.float().log_softmax(-1)
            losses_C = -log_probs_CV.gather(1, targets_N[rows, None])[:, 0]
            losses_K += torch.where(kinds_N[rows] == kinds_K1, losses_C, 0.0).sum(1)
            if train:
                grad_CV = log_probs_CV.exp_()
                grad_CV.scatter_add_(1, targets_N[rows, None], -torch.ones_like(grad_CV[:, :1]))
                grad_CV = grad_CV.to(weight_VE.dtype)
                hidden_grad_NE[rows] = grad_CV @ weight_VE
                if correction_GE is not None:
                    hidden_grad_NE[rows] += grad_CV[:, tag_ids_G] @ correction_GE
                part_VE = grad_CV.T @ hidden_NE[rows]
                weight_grad_VE = part_VE if weight_grad_VE is None else weight_grad_VE.float().add_(part_VE)
        if train:
            if weight_grad_VE is None:  # no targets
                weight_grad_VE = torch.zeros_like(weight_VE)
            # A correction adds to its row, so their gradients are the same.
            correction_grad_GE = None if correction_GE is None else weight_grad_VE[tag_ids_G].to(weight_VE.dtype)
            ctx.save_for_backward(hidden_grad_NE, weight_grad_VE.to(weight_VE.dtype), correction_grad_GE)
        ctx.mark_non_differentiable(losses_K)
        return losses_K.sum(), losses_K

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor):
        hidden_grad_NE, weight_grad_VE, correction_grad_GE = ctx.saved_tensors
        correction = None if correction_grad_GE is None else correction_grad_GE * scale
        return hidden_grad_NE * scale, weight_grad_VE * scale, correction, *[None] * 5


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices and embeddings with decay, norms and biases without, corrections of the tags' rows.

    The last are told apart by `"corrects_tags": True`, so that they can have another learning rate.
    """
    corrections = {id(p) for name, p in module.named_parameters() if name.endswith(".correction")}
    # Under ZeRO-3 a partitioned parameter is flat; ds_shape has the shape of the whole.
    shapes = {parameter: getattr(parameter, "ds_shape", parameter.shape) for parameter in module.parameters()}
    trained = [p for p in shapes if p.requires_grad and id(p) not in corrections]
    groups = [
        {"params": [p for p in trained if len(shapes[p]) > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if len(shapes[p]) <= 1], "weight_decay": 0.0},
        {"params": [p for p in shapes if id(p) in corrections], "weight_decay": 0.0, CORRECTS_TAGS: True},
    ]
    return [group for group in groups if group["params"]]


def check_model(folder: str, sequence_parallel_size: int) -> None:
    """Look at config.json alone: whether the model can be trained, and its heads be divided. Loads no weight.

    Raises:
        ValueError: says what does not fit.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    refuse_unknown_heads(lm)
    num_heads = config.num_attention_heads
    heads_of_rank(num_heads, getattr(config, "num_key_value_heads", None) or num_heads, sequence_parallel_size)


def refuse_unknown_heads(lm: nn.Module) -> None:
    """
    Raises:
        ValueError: the loss cannot be computed from the model's last hidden state and a matrix.
    """
    head = getattr(lm, "lm_head", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or not hasattr(lm, "model"):
        raise ValueError(f"{type(lm).__name__} is not supported: needs `model` and a linear `lm_head` without bias")
    if getattr(lm.config, "final_logit_softcapping", None) or getattr(lm.config, "logit_scale", 1) != 1:
        raise ValueError(f"{type(lm).__name__} is not supported: it changes its logits after the head")
