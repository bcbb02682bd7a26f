"""Folding batch norms into the convolutions before them."""

from __future__ import annotations

import torch
from torch import fx

from segkern.nn.atrous import Norm
from segkern.ops._convolution import check_statistics, norm_affine


class _Tracer(fx.Tracer):
    """Sees the layers of torch and of this package as they are, and into all others."""

    def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
        ours = type(module).__module__.startswith("segkern.nn.")
        return ours or super().is_leaf_module(module, name)


def check_foldable(model: torch.nn.Module) -> None:
    """Raises ValueError where :func:`fold_norms` could not fold, before anything is changed."""
    if model.training:
        raise ValueError("convert: model must be in eval mode to fold its norms, call model.eval()")
    for conv, name in _pairs(model):
        norm = model.get_submodule(name)
        check_statistics(f"convert: {name}", norm.running_mean, norm.running_var)
        if any(parameter.is_meta for parameter in conv.parameters()):
            raise ValueError("convert: model must have its weights to fold its norms, got meta")


def fold_norms(model: torch.nn.Module) -> None:
    """Every batch norm that alone follows a convolution goes into it, in place."""
    for conv, name in _pairs(model):
        norm = model.get_submodule(name)
        with torch.no_grad():
            scale, shift = norm_affine(
                name, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
            )
            if conv.bias is not None:
                shift = shift + conv.bias * scale
            conv.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
            if conv.bias is None:
                conv.bias = torch.nn.Parameter(shift.to(conv.weight.dtype))
            else:
                conv.bias.copy_(shift)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, torch.nn.Identity())


def _pairs(model: torch.nn.Module) -> list[tuple[torch.nn.Conv2d, str]]:
    """(convolution, name of the norm) for each norm that can be folded."""
    try:
        graph = _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"convert: model must be traceable to fold its norms: {error}") from error
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], Norm):
            continue
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        conv, norm = modules[before.target], modules[node.target]
        alone = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
        if isinstance(conv, torch.nn.Conv2d) and alone and norm.running_mean is not None:
            pairs.append((conv, node.target))
    return pairs
