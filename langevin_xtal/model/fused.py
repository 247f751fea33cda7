"""The layers of messages of the edge network in C++ (``cpp_ext/``), with their gradients.

The plain path of :mod:`langevin_xtal.model.network` is the specification. Here a tile of messages
goes through all layers while it is in the core's cache; every number is summed in the same order
whatever the batch and the threads, so scores do not depend on either, to the last bit.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from langevin_xtal.graph.batch import GraphBatch

if TYPE_CHECKING:
    from langevin_xtal.graph._multigraph import Plan
    from langevin_xtal.model.network import EdgeNetwork

MULTIPLE = 16
"""Widths that the kernels take are multiples of it."""


@cache
def _kernels() -> Any:
    """The extension, or None where it is not built or has no kernels."""
    try:
        from langevin_xtal.graph import _multigraph
    except ImportError:
        return None
    return _multigraph if _multigraph.network_instructions() != "none" else None


def fits(width: int, triplet_width: int, features: Tensor) -> bool:
    """Whether the kernels are there and take a network of these widths and such features."""
    return (
        features.device.type == "cpu"
        and features.dtype == torch.float32
        and width % MULTIPLE == triplet_width % MULTIPLE == 0
        and not torch.is_autocast_enabled("cpu")
        and _kernels() is not None
    )


def weight_list(network: EdgeNetwork) -> list[Tensor]:
    """The weights of the layers of messages, in the order of the kernels."""
    own: Any = network
    weights = [own.from_edge.weight, *_both(own.embed), *_both(own.output_gate)]
    weights += [*_both(own.output[0]), own.output[2].weight]
    for block in own.blocks:
        weights += [*_both(block.sent), block.radial_gate.weight, block.angular]
        weights += [block.down.weight, block.up.weight, *_both(block.own)]
        weights += [*_both(block.before.first), *_both(block.before.second), *_both(block.skip)]
        weights += [*_both(block.after.first), *_both(block.after.second)]
    return weights


def _both(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias


def edge_network(
    network: EdgeNetwork,
    g: GraphBatch,
    features: Tensor,
    angular: Tensor,
    weight: Tensor,
    of_source: Tensor,
    of_target: Tensor,
    noise: Tensor,
) -> Tensor:
    """(M, 2) what the network says of every message.

    Parameters
    ----------
    features
        (M, F) radial basis and edge features.
    angular
        (M, L, N) angular basis.
    weight
        (M,) factor on the outputs.
    of_source, of_target
        (A, width) what the first layer adds of the sites at both ends.
    noise
        (B, width) the conditions of each crystal.
    """
    config = network.config
    sizes = [
        config.width,
        config.triplet_width,
        config.blocks,
        config.radial,
        config.spherical,
        features.shape[1],
    ]
    plan = _kernels().Plan(
        g.source[g.first_edge].numpy(),
        g.target[g.first_edge].numpy(),
        (~(g.is_long_range | g.is_snap))[g.first_edge].numpy(),
        g.site_crystal.numpy(),
        g.out_message.numpy(),
        g.row_of_message.numpy(),
        _array(g.cosine),
        g.is_triplet.numpy(),
        crystals=len(noise),
        orders=config.spherical,
    )
    blocks: Any = network.blocks
    of_blocks = [block.noise(noise) for block in blocks]
    of_crystal = torch.stack(of_blocks) if of_blocks else noise.new_zeros(0, *noise.shape)
    given = (features, angular, weight)
    learned = (*weight_list(network), of_source, of_target, of_crystal)
    if torch.is_grad_enabled() and any(x.requires_grad for x in learned):
        apply: Any = _Messages.apply
        return apply(plan, sizes, given, *learned)
    return _forward(plan, sizes, given, learned, np.empty(0, np.float32))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _arrays(given: tuple[Tensor, ...], learned: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Arguments of both passes: weights, then what comes with the batch."""
    weights = [_array(x) for x in learned[:-3]]
    return weights, *(_array(x) for x in (*given, *learned[-3:]))


def _forward(
    plan: Plan, sizes: list[int], given: tuple[Tensor, ...], learned: Any, saved: np.ndarray
) -> Tensor:
    out = torch.empty(len(given[0]), 2)
    arrays = _arrays(given, learned)
    _kernels().network_forward(plan, sizes, *arrays, out.numpy(), saved, torch.get_num_threads())
    return out


class _Messages(torch.autograd.Function):
    """Both passes; what the second needs of the first is kept, all else is computed again."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, sizes: list[int], given: tuple[Tensor, ...], *learned: Tensor
    ) -> Tensor:
        saved = torch.empty(plan.saved_size(sizes))
        out = _forward(plan, sizes, given, learned, saved.numpy())
        ctx.save_for_backward(*learned)
        ctx.rest = plan, sizes, given, saved
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan, sizes, given, saved = ctx.rest
        learned = ctx.saved_tensors
        gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in learned]
        _kernels().network_backward(
            plan,
            sizes,
            *_arrays(given, learned),
            saved.numpy(),
            _array(out_gradient),
            [x.numpy() for x in gradients],
            torch.get_num_threads(),
        )
        return None, None, None, *gradients
