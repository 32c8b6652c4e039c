"""Multiverse Attention: causal attention in which a path never sees its siblings."""

from mvtrain.attention.registry import BACKENDS, attend
from mvtrain.attention.transformers_backend import NAME, register

__all__ = ["BACKENDS", "NAME", "attend", "register"]
