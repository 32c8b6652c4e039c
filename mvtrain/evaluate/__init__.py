"""Measuring what a checkpoint does: how well it answers, and how much of it in parallel."""

from mvtrain.evaluate.grading import Grade, grade
from mvtrain.evaluate.records import Problem, Sample

__all__ = ["Grade", "Problem", "Sample", "grade"]
