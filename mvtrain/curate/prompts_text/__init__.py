"""The prompts of the curator, one file each; see `mvtrain.curate.prompts`."""
