"""Linear layers in float32 through oneDNN, for encoding on a CPU.

torch hands float32 products to MKL, which takes a slow path on processors of other makers. oneDNN,
which torch brings along, does not: 465 against 200 GFLOP/s on two cores of an AMD EPYC.
"""

from typing import Any

import torch
from torch import nn

# Rows of a typical product: oneDNN lays the weights out for this many. Any number is correct.
ROWS = 96


class OneDnnLinear(nn.Module):
    """What a linear layer computes, in float32, with weights in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> Any:
        """[..., in] -> [..., out]"""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def linear_layers_through_onednn(module: nn.Module) -> None:
    """Replace every ``nn.Linear`` below ``module`` by one that computes the same, for inference."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, OneDnnLinear(child))
        else:
            linear_layers_through_onednn(child)
