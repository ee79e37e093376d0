"""Structured pruning: remove whole neurons and channels, for smaller, faster networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from training.errors import CompressionFailed

# Layers that keep channels separate, so that single channels can be removed.
_SEPARATE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish,
    nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
SHARE = 0.5  # share of neurons and channels that --compress prune removes
STEPS = 2  # prunings, each followed by training
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# A layer, the normalizations of its channels, and the layer that reads its outputs.
Pair = tuple[nn.Module, list[nn.Module], nn.Module]


def prune(
    model: nn.Module, share: float, tune: Callable[[nn.Module], None], *, steps: int = 1
) -> nn.Module:
    """Return a copy of a model without its weakest neurons and channels.

    The weakest `share` of each layer is removed in `steps`; after each step, `tune` trains the
    rest. Pruned are layers that follow each other in an nn.Sequential, anywhere in the model, and
    the feed-forward part of nn.TransformerEncoderLayer.

    Raises:
        CompressionFailed: the share is not between 0 and 1, or the model has no such layers.
    """
    if not 0 < share < 1:
        raise CompressionFailed(f"a share of {share} cannot be pruned; it lies between 0 and 1")
    smaller = copy.deepcopy(model)
    widths = [_width(pair[0]) for pair in _pairs(smaller)]
    if not widths:
        raise CompressionFailed(
            "the model has no two layers in a row in an nn.Sequential, so nothing can be pruned"
        )
    for step in range(1, steps + 1):
        for width, pair in zip(widths, list(_pairs(smaller)), strict=True):
            _shrink(pair, math.ceil(width * (1 - share * step / steps)))
        tune(smaller)
    return smaller


def _pairs(model: nn.Module) -> Iterator[Pair]:
    """Yield each prunable layer with the layer that reads its outputs."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            yield module.linear1, [], module.linear2
        if not isinstance(module, nn.Sequential):
            continue
        layer: nn.Module | None = None
        norms: list[nn.Module] = []
        for child in module:
            if isinstance(child, _LAYERS) and getattr(child, "groups", 1) == 1:
                if layer is not None and _fit(layer, child):
                    yield layer, norms, child
                layer, norms = child, []
            elif isinstance(child, _NORMS):
                norms.append(child)
            elif not isinstance(child, _SEPARATE):
                layer = None


def _width(layer: nn.Module) -> int:
    """Return a layer's number of output neurons or channels."""
    return int(layer.weight.shape[0])  # type: ignore[index]


def _fit(layer: nn.Module, reader: nn.Module) -> bool:
    """Return whether one layer's outputs, possibly flattened, fit another layer's inputs.

    Flattening turns each channel into a block of inputs.
    """
    inputs, outputs = int(reader.weight.shape[1]), _width(layer)  # type: ignore[index]
    return inputs == outputs or (isinstance(reader, nn.Linear) and inputs % outputs == 0)


@torch.no_grad()
def _shrink(pair: Pair, count: int) -> None:
    """Keep only the `count` strongest neurons or channels of a layer.

    Their strength is the product of the norms of their weights in and out.
    """
    layer, norms, reader = pair
    width = _width(layer)
    block = int(reader.weight.shape[1]) // width  # type: ignore[index]
    read = reader.weight.transpose(0, 1).reshape(width, -1)  # type: ignore[operator]
    strength = layer.weight.reshape(width, -1).norm(dim=1) * read.norm(dim=1)  # type: ignore[operator]
    for norm in norms:
        if norm.weight is not None:
            strength = strength * norm.weight.abs()  # type: ignore[operator]
    kept = strength.topk(count).indices.sort().values
    inputs = (kept[:, None] * block + torch.arange(block, device=kept.device)).flatten()
    _cut(layer, "weight", kept)
    _cut(layer, "bias", kept)
    for norm in norms:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _cut(norm, name, kept)
        norm.num_features = count  # type: ignore[assignment]
    reader.weight = nn.Parameter(reader.weight.index_select(1, inputs))  # type: ignore[operator]
    _rename(layer, ("out_features", "out_channels"), count)
    _rename(reader, ("in_features", "in_channels"), len(inputs))


def _cut(module: nn.Module, name: str, kept: Tensor) -> None:
    values = getattr(module, name, None)
    if values is not None:
        shorter = values.index_select(0, kept)
        setattr(
            module, name, nn.Parameter(shorter) if isinstance(values, nn.Parameter) else shorter
        )


def _rename(module: nn.Module, names: tuple[str, ...], count: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, count)
