"""One module per command of `mvtrain`. Nothing but `mvtrain.cli` imports these."""
