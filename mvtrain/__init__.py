"""mvtrain: turn autoregressive language models into Multiverse models that reason in parallel."""

__version__ = "0.1.0"
