"""Which tokens may be sampled, and how repetition is made less probable.

A filter keeps all tokens from some score on, so what it keeps does not depend on how ties are sorted. In the order in
which transformers applies them: top-k, then top-p on what is left, then min-p.

Shape suffixes: N branches that need a token, V vocabulary, C most probable tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mvtrain.engine.sampling import SamplingParams

_FEW = 1024
"""A nucleus is looked for among this many tokens first: sorting a whole vocabulary takes longer than a small model."""


def kept_tokens(scores_NV: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor | None:
    """BoolTensor (N, V), or None where no row filters. `scores` are logits over the temperature, float64."""
    if all(p.top_k == 0 and p.top_p == 1 and p.min_p == 0 for p in params):
        return None
    device, size = scores_NV.device, scores_NV.shape[1]
    least_N = torch.full((len(params),), float("-inf"), dtype=scores_NV.dtype, device=device)
    rows = [row for row, p in enumerate(params) if p.top_k or p.top_p < 1]
    few = [row for row in rows if _few_suffice(scores_NV[row], params[row])]
    for group, num_candidates in ((few, min(_FEW, size)), (sorted(set(rows) - set(few)), size)):
        if group:
            sorted_NC = scores_NV[group].topk(num_candidates).values
            least_N[group] = _thresholds(sorted_NC, scores_NV[group], [params[row] for row in group])
    min_p_N = torch.tensor([p.min_p for p in params], dtype=scores_NV.dtype, device=device)
    least_N = torch.maximum(least_N, scores_NV.amax(-1) + min_p_N.log())
    return scores_NV >= least_N[:, None]


def _few_suffice(scores_V: torch.Tensor, params: SamplingParams) -> bool:
    """Whether both thresholds lie among the `_FEW` highest scores, with something to spare."""
    if params.top_k or len(scores_V) <= _FEW:
        return params.top_k <= _FEW
    share = scores_V.topk(_FEW).values.logsumexp(-1) - scores_V.logsumexp(-1)
    return bool(share > math.log(params.top_p) + 1e-9)


def _thresholds(sorted_NC: torch.Tensor, scores_NV: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """The least score that top-k and top-p keep. `sorted_NC`: the highest scores, descending; enough of them."""
    size = sorted_NC.shape[1]
    last_N = torch.tensor([min(p.top_k or size, size) - 1 for p in params], device=sorted_NC.device)
    least_N1 = sorted_NC.gather(1, last_N[:, None])
    unlimited_N1 = torch.tensor([[p.top_k == 0] for p in params], device=sorted_NC.device)
    least_N1 = least_N1.masked_fill(unlimited_N1, float("-inf"))
    total_N1 = scores_NV.masked_fill(scores_NV < least_N1, float("-inf")).logsumexp(-1, keepdim=True)
    before_NC = torch.zeros_like(sorted_NC)
    before_NC[:, 1:] = (sorted_NC - total_N1).exp().cumsum(-1)[:, :-1]
    top_p_N1 = torch.tensor([[p.top_p] for p in params], dtype=sorted_NC.dtype, device=sorted_NC.device)
    inside_NC = (before_NC < top_p_N1) & (sorted_NC >= least_N1)
    last_N1 = (inside_NC.sum(-1, keepdim=True) - 1).clamp(min=0)  # below where scores are no numbers
    nucleus_N = sorted_NC.gather(1, last_N1)[:, 0]
    no_nucleus_N = top_p_N1[:, 0] == 1
    return torch.where(no_nucleus_N, least_N1[:, 0], nucleus_N)


def penalised(logits_V: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits with those of the tokens in `seen` divided by the penalty, or multiplied where negative."""
    values = logits_V[seen]
    return logits_V.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))
