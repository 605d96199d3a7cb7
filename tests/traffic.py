"""Counts what the processes of a training send each other, where torch hands it to the process group.

`Traffic` is entered around the code that sends; torch's reducer, FSDP2 and DTensor all come through there, and on a
processor in the thread that counts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The one of a call's tensors that is the whole: what is gathered, scattered or averaged over all processes.
_WHOLE = {
    "_allgather_base_": 0,
    "_reduce_scatter_base_": 1,
    "allreduce_": 0,
}


class Traffic(TorchDispatchMode):
    """Bytes of the whole of each collective call, by its kind; `calls` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.split("::")[1]
            tensors = [leaf for leaf in tree_leaves(args[_WHOLE.get(name, 0)]) if isinstance(leaf, Tensor)]
            self.bytes[name] += sum(tensor.nbytes for tensor in tensors)
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
