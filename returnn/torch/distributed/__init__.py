"""Training with several processes: start, gradients, uneven data, sharded models, failures."""
