"""Training: ensembles, DP-SGD, per-example gradients and what is recorded on the way."""
