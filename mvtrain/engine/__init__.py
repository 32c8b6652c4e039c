"""A small, exact, batched engine that generates paths in parallel. docs/engine.md follows one request through it."""

from mvtrain.engine.asynchronous import AsyncEngine
from mvtrain.engine.completion import Completion
from mvtrain.engine.engine import Engine
from mvtrain.engine.events import Event
from mvtrain.engine.sampling import SamplingParams

__all__ = ["AsyncEngine", "Completion", "Engine", "Event", "SamplingParams"]
