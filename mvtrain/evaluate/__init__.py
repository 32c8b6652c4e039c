"""Measuring what a checkpoint does: how well it answers, and how much of it in parallel."""

from mvtrain.evaluate.benchmark import Sample, Summary, run_benchmark, summarise
from mvtrain.evaluate.grading import Grade, grade

__all__ = ["Grade", "Sample", "Summary", "grade", "run_benchmark", "summarise"]
