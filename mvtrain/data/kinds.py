"""What sort of token each one is, for losses that are told apart. Shape suffixes: T tokens."""

from __future__ import annotations

import torch

from mvtrain.layout import TagIds

KINDS = ("tag", "path", "rest")
"""tag: one of the tags; path: text inside of a path, at any depth; rest: everything else."""


def token_kinds(ids_T: torch.Tensor, tags: TagIds) -> torch.Tensor:
    """ids_T: LongTensor (T,) of one well-formed document -> LongTensor (T,), indices into KINDS."""
    depth_T = (ids_T == tags.path).long().cumsum(0) - (ids_T == tags.end_path).long().cumsum(0)
    kinds_T = torch.full_like(ids_T, KINDS.index("rest"))
    kinds_T[depth_T > 0] = KINDS.index("path")
    kinds_T[torch.isin(ids_T, ids_T.new_tensor(tags.as_tuple()))] = KINDS.index("tag")
    return kinds_T
