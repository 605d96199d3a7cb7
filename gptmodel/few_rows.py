"""Products of a few rows with large weights: what writing text on a processor spends its time on.

Such a product reads the weights once and computes little. torch's float32 product reads them with one core for one row,
and lays them out again at every call for two to some dozens of rows. Here oneDNN is called instead, which shares the
reading between the cores; for three rows or more, and in 16 bits, with weights laid out beforehand. It gives the same
float32 sums in another order. The layout is a copy: the model's size in memory, and a few steps' time
(docs/performance.md).

Shapes: B rows; weights are [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gptmodel.padded_head import product_dtype

_LAID_OUT_ROWS = 3  # fewer gain nothing by it in float32
_PAID_BACK = 8  # steps: fewer do not pay for the copy


class Linear(nn.Linear):
    """A layer that works with the weights that `FewRows` lends it, while it lends some."""

    lent: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return super().forward(x) if self.lent is None else few_rows_linear(x, self.lent, self.bias)


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN, with weights of `FewRows`, in their dtype; no gradients."""
    bias = None if bias is None else bias.to(weight.dtype)
    rows_BC = x.to(weight.dtype).flatten(0, -2).contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows_BC, weight, bias, "none", [], "")
    return found.view(*x.shape[:-1], -1)


class FewRows:
    """Weights of a model's layers, and of its head, for products of so many rows; `at_work` lends them to the layers.

    Some are copies: after a change of the model make them anew.
    """

    def __init__(self, model: nn.Module, head: Tensor, rows: int, *, lay_out: bool) -> None:
        self._dtype = product_dtype(head)
        self._rows, self._lay_out = rows, lay_out
        self._layers = [module for module in model.modules() if isinstance(module, Linear)]
        self._weights = [self._prepared(layer.weight) for layer in self._layers]
        self.head = self._prepared(head)

    def _prepared(self, weight: Tensor) -> Tensor:
        plain = weight.detach().to(self._dtype).contiguous()
        if not self._lay_out:
            return plain
        laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(plain, self._rows)
        return laid_out

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The layers use them while the body runs."""
        for layer, weight in zip(self._layers, self._weights, strict=True):
            layer.lent = weight
        try:
            yield
        finally:
            for layer in self._layers:
                layer.lent = None


def _lays_out_bfloat16() -> bool:
    """oneDNN does so on processors with AVX-512 or what came after it; on others it raises."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and bool(known())


def few_rows_of(model: nn.Module, head: Tensor, rows: int, steps: int) -> FewRows | None:
    """What makes so many steps of so many rows fastest; None where that is torch's own product."""
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    there = torch.backends.mkldnn.is_available() and known  # type: ignore[no-untyped-call]
    if head.device.type != "cpu" or not there or head.dtype not in (torch.float32, torch.bfloat16):
        return None
    pays = steps >= _PAID_BACK
    if product_dtype(head) == torch.bfloat16:  # where torch's own product is oneDNN's already
        return FewRows(model, head, rows, lay_out=True) if pays and _lays_out_bfloat16() else None
    return FewRows(model, head, rows, lay_out=pays and rows >= _LAID_OUT_ROWS)
