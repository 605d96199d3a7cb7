"""Weights laid out anew for products of a few rows: what writing text on a processor spends its time on.

A product with one row reads the weights once, at the speed of the memory. With two to some dozens of rows torch's
kernels lay the weights out again at every call, which takes longer than the product. oneDNN can be given weights laid
out beforehand: the same numbers and the same float32 sums in another order. The copy costs the model's size in memory
and about four products of eight rows in time (docs/performance.md).

Shapes: B rows; weights are [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PAID_BACK = 8  # steps: fewer do not pay for the copy


class Linear(nn.Linear):
    """A layer that works with its packed weights while `Packed` lends it some."""

    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return super().forward(x) if self.packed is None else packed_linear(x, self.packed, self.bias)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with packed weights, in their dtype; no gradients."""
    bias = None if bias is None else bias.to(packed.dtype)
    rows_BC = x.to(packed.dtype).flatten(0, -2).contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows_BC, packed, bias, "none", [], "")
    return found.view(*x.shape[:-1], -1)


class Packed:
    """Packed weights of the layers of a model, and of its head, which `at_work` lends to them.

    They are copies: after a change of the model make them anew.
    """

    def __init__(self, model: nn.Module, head: Tensor, rows: int) -> None:
        device = head.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
        self._layers = [module for module in model.modules() if isinstance(module, Linear)]
        self._weights = [self._pack(layer.weight, rows) for layer in self._layers]
        self.head = self._pack(head, rows)

    def _pack(self, weight: Tensor, rows: int) -> Tensor:
        plain = weight.detach().to(self.dtype).contiguous()
        laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(plain, rows)
        return laid_out

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The layers use them while the body runs."""
        for layer, packed in zip(self._layers, self._weights, strict=True):
            layer.packed = packed
        try:
            yield
        finally:
            for layer in self._layers:
                layer.packed = None


def packing_pays(head: Tensor, rows: int) -> bool:
    """Whether products of so many rows get faster: on a processor, from two rows on, in 16 bits from one."""
    device = head.device.type
    sixteen_bits = head.dtype == torch.bfloat16 or torch.is_autocast_enabled(device)
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    there = device == "cpu" and torch.backends.mkldnn.is_available() and known  # type: ignore[no-untyped-call]
    return there and head.dtype in (torch.float32, torch.bfloat16) and (rows > 1 or sixteen_bits)
