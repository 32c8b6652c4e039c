"""Training: `deepspeed launch/sft.py RECIPE.yaml`. Importing this package imports neither torch nor deepspeed."""
