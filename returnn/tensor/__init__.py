"""Tensors with named axes, as far as plain-PyTorch configs need them."""

from returnn.tensor.dim import Dim, batch_dim, single_step_dim
from returnn.tensor.tensor import Tensor
from returnn.tensor.tensor_dict import TensorDict

__all__ = ["Dim", "Tensor", "TensorDict", "batch_dim", "single_step_dim"]
