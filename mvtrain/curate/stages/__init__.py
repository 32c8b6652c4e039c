"""The five stages, each a function from a draft and a dialogue to a draft with more in it."""
