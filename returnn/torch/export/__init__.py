"""Export of a model, with the forward_step of its config, as a graph of tensors."""
