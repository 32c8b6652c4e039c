"""The paper's claims at laptop scale; `python examples/reproduce.py` runs it all."""
