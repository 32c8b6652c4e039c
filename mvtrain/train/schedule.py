"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, num_steps: int, peak: float, warmup_ratio: float = 0.05, min_ratio: float = 0.0) -> float:
    """The rate of a step (counted from 0): linear rise to `peak`, then a cosine towards `min_ratio * peak`.

    The first step of a warm-up already moves (1 / W of the peak for W warm-up steps); the last step
    stays just above the minimum, so that no step is wasted at a rate of 0.
    """
    warmup_steps = math.ceil(num_steps * warmup_ratio)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (num_steps - warmup_steps + 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return peak * (min_ratio + (1 - min_ratio) * cosine)
