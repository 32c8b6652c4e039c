"""A small, exact, batched engine that generates paths in parallel. docs/engine.md follows one request through it."""

from mvtrain.engine.completion import Completion
from mvtrain.engine.engine import Engine
from mvtrain.engine.sampling import SamplingParams

__all__ = ["Completion", "Engine", "SamplingParams"]
