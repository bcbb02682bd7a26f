"""ImageNet weights for trunks: torchvision's by name, or any file under its names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from segkern.models._weights import WeightsError, read_state_dict

# Of a classifier's state dict, what is no part of a trunk.
_CLASSIFIERS = ("fc.", "classifier.")


def load_imagenet(
    network: nn.Module, trunk: nn.Module, backbone: str, source: str | Path
) -> dict[str, Tensor]:
    """Load a trained classifier's convolutions into ``trunk``, and set the input they expect.

    ``source`` is the name of torchvision weights, ``"ResNet101_Weights.IMAGENET1K_V1"`` or for
    short ``"IMAGENET1K_V1"``, downloaded by torchvision; or the path of a state dict with
    torchvision's names (:class:`Xception`'s own for a trunk that torchvision lacks). torchvision's
    were trained in its scaling, so ``network.recipe.input`` becomes ``"imagenet"``, except for
    ``"IMAGENET1K_FEATURES"`` of VGG16: that is Caffe's own for RGB images, whose first
    convolution is turned round to BGR, and the input becomes ``"caffe"``. A file of an Xception
    leaves the input as it is.

    Of a network with more than 3 input channels the first convolution starts for each further one
    from the mean of those of the three colours, as FCN does for depth.

    Args:
        network: Has ``config`` and ``recipe``.
        trunk: The part to load, whose state dict has the names of ``source``.
        backbone: ``"resnet101"``, ``"vgg16"``, ...
        source: See above.

    Returns:
        The state dict of ``source``, whose classifier the caller may want.

    Raises:
        WeightsError: If ``source`` is neither such a name nor such a file, or does not fit.
    """
    name = network.config["name"]
    state_dict = _open(name, backbone, source)
    own = trunk.state_dict()
    given = {key: value for key, value in state_dict.items() if not key.startswith(_CLASSIFIERS)}
    first = next(iter(own))
    is_caffe = str(source).endswith("IMAGENET1K_FEATURES")
    if is_caffe:
        given[first] = given[first].flip(1)
    if first in given and given[first].dim() == 4 and given[first].shape[1] == 3:
        given[first] = _with_more_channels(given[first], own[first].shape[1] - 3)
    wrong = [
        f"{key}: file {_shape(given.get(key))}, network {_shape(own.get(key))}"
        for key in sorted(own.keys() | given.keys())
        if _shape(given.get(key)) != _shape(own.get(key))
        and not key.endswith("num_batches_tracked")
    ]
    if wrong:
        shown = "\n  ".join(wrong[:20] + ([f"and {len(wrong) - 20} more"] if wrong[20:] else []))
        raise WeightsError(f"{name}: {source} does not fit {backbone}:\n  {shown}")
    trunk.load_state_dict(given, strict=False)
    if not backbone.startswith("xception"):
        mode = "caffe" if is_caffe else "imagenet"
        network.recipe = dataclasses.replace(network.recipe, input=mode)
    return state_dict


def decimate(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Start a convolution from every n-th channel and tap of a larger one, as DeepLab's fc6 does.

    Args:
        conv: The convolution to fill.
        weight: ``(O, C, K, K)`` with multiples of the channels of ``conv`` and more taps than it:
            taps 0, 2, 4, 6 of 7 for 4, taps 0, 3, 6 for 3.
        bias: ``(O,)``.

    Raises:
        WeightsError: If the values are not finite, or the channels are no multiples.
    """
    if not weight.isfinite().all():
        raise WeightsError("VGG16 weights: fc6 or fc7 is not finite; the file has features only")
    outs, ins = (weight.shape[i] // conv.weight.shape[i] for i in (0, 1))
    kernel, own = weight.shape[-1], conv.kernel_size[0]
    step = 1 if own == kernel else -(-kernel // own)
    taken = weight[::outs, ::ins, ::step, ::step]
    if taken.shape != conv.weight.shape:
        raise WeightsError(
            f"VGG16 weights: a dense layer of {tuple(weight.shape)} cannot be thinned out to "
            f"{tuple(conv.weight.shape)}"
        )
    with torch.no_grad():
        conv.weight.copy_(taken)
        conv.bias.copy_(bias[::outs])


def dense_layer(state_dict: dict[str, Tensor], key: str, map_size: int) -> tuple[Tensor, Tensor]:
    """Weight as ``(out, C, map_size, map_size)`` and bias of a fully connected layer."""
    weight, bias = state_dict.get(f"{key}.weight"), state_dict.get(f"{key}.bias")
    if weight is None or bias is None:
        raise WeightsError(f"VGG16 weights: {key}.weight or {key}.bias is missing")
    return weight.reshape(weight.shape[0], -1, map_size, map_size), bias


def _with_more_channels(weight: Tensor, more: int) -> Tensor:
    """The first convolution's weight (O, 3, h, w) with ``more`` input channels, their mean."""
    mean = weight.mean(dim=1, keepdim=True)
    return torch.cat([weight, mean.expand(-1, max(more, 0), -1, -1)], dim=1)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def _open(name: str, backbone: str, source: str | Path) -> dict[str, Tensor]:
    if Path(source).is_file():
        return read_state_dict(Path(source))[0]
    # torchvision's enumerations are called ResNet101_Weights, VGG16_Weights.
    enumeration = backbone.replace("resnet", "ResNet").replace("vgg", "VGG") + "_Weights"
    text = str(source)
    full = text if "." in text else f"{enumeration}.{text}"
    if full.startswith(f"{enumeration}.") and not backbone.startswith("xception"):
        from torchvision.models import get_weight

        try:
            weights = get_weight(full)
        except (ValueError, KeyError, AttributeError):
            weights = None
        if weights is not None:
            return weights.get_state_dict(progress=True, check_hash=True)
    raise WeightsError(
        f"{name}: weights_backbone {text!r} is neither a file nor the name of torchvision weights "
        f"for {backbone}, such as '{enumeration}.IMAGENET1K_V1'"
    )
