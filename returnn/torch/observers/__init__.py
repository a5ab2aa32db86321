"""Observers of training and evaluation: what options such as use_tensorboard and torch_profile add to a pass."""
