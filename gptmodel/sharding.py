"""A model whose weights, gradients and moments are cut up between the processes that train it.

By torch's FSDP2 (`fully_shard`; Zhao et al. 2023, arXiv:2304.11277), which is stage 3 of Rajbhandari et al. 2020,
arXiv:1910.02054. Attention and feed-forward of each block are groups: their weights are gathered when they work,
forward and back, and let go after. The rest is the root's group, which is gathered once for both ways: the token table
stands at either end, as lookup and as head, and the loss reads it before the root's forward pass returns. Norms are in
it too, since they are small and work in float32, where under autocast the groups' weights are gathered in bfloat16.

torch's part is imported late: it takes seconds, and most trainings have one process.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from gptmodel.model import GPT, Attention, FeedForward


def shard(model: GPT, device: torch.device, precision: str, *, compiled: bool = False) -> None:
    """Leave to this process its part of every weight, on the device. Every process calls it, with the same weights.

    The optimizer is made after it, of the parts. With precision bfloat16 the products' weights travel as what autocast
    would make of them; gradients add up and travel in float32. Compiled are the groups, each by itself.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Torch warns of writes in place on what a group returns, which is a view; a block adds to it out of place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    as_products = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = as_products if precision == "bfloat16" else MixedPrecisionPolicy()
    for group in [module for module in model.modules() if isinstance(module, (Attention, FeedForward))]:
        if compiled:
            group.compile()
        fully_shard(group, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


def is_sharded(model: GPT) -> bool:
    """Whether `shard` was called on it."""
    return _is_part(model.wte.weight)


def _is_part(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")  # a DTensor, without the import


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is cut up, which every process must ask for at once; any other as it is."""
    whole: Tensor = tensor.full_tensor() if _is_part(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    part: Tensor = tensor.to_local() if _is_part(tensor) else tensor  # type: ignore[attr-defined]
    return part


def laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as a parameter of its shape lies: on its device, and cut up where that is. Nothing is sent.

    One of another shape, such as the optimizer's count of steps, stays whole.
    """
    if not _is_part(parameter) or value.shape != parameter.shape:
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def whole(model: GPT) -> GPT:
    """A model to evaluate: itself, or where it is cut up a whole copy, for which every process must ask at once.

    With the copy each process goes its own way, over other windows or none; with the parts, each forward pass would
    need all of them. The copy takes 4 bytes a parameter, while there are neither activations nor gradients.
    """
    if not is_sharded(model):
        return model
    with torch.device("meta"):
        copy = GPT(model.config, seed=0)
    weights = {name: gathered(parameter.detach()) for name, parameter in model.named_parameters()}
    copy.load_state_dict(weights, assign=True)
    return copy.train(model.training)
