"""The VGG16 trunk with batch norm and recorded pooling, and its ImageNet weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models._port_rules import CAFFE_NORM_EPS, TORCH_NORM_EPS, change_eps
from segkern.models._sizes import check_batch_statistics
from segkern.models._weights import WeightsError, read_state_dict
from segkern.nn import MaxPool2d

# Channels of the convolutions of each stage; a pool follows each stage.
VGG16_STAGES = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
)

# Start of the batch norm shift in Caffe's segmentation forks.
CAFFE_NORM_SHIFT = 1e-3

# A pool's indices and the size (H, W) of what it pooled.
Route = tuple[Tensor, tuple[int, int]]


class ConvNormReLU(nn.Module):
    """Convolution with bias, batch norm and, unless ``relu`` is False, ReLU.

    Args:
        conv: The convolution, plain or transposed.
        relu: Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, relu: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=CAFFE_NORM_EPS)
        self.relu = relu
        nn.init.constant_(self.norm.bias, CAFFE_NORM_SHIFT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return functional.relu(x, inplace=True) if self.relu else x


class VGG16Encoder(nn.Module):
    """VGG16's 13 convolutions as conv-BN-ReLU, with ceil pooling that keeps its indices.

    ``stage5.3`` is conv5_3. Forward returns the pooled features, ``(N, 512, H/32, W/32)`` rounded
    up at each pool, and the route of each pool, first to last.

    Args:
        network: Name of the network for error messages.
        in_channels: Channels of the image.
        dropout: Rates of elementwise dropout after the pools; no layer for a rate of 0.
        stages: Channels of the convolutions of each stage.
    """

    def __init__(
        self,
        network: str,
        in_channels: int,
        dropout: Sequence[float] = (0, 0, 0, 0, 0),
        stages: Sequence[Sequence[int]] = VGG16_STAGES,
    ) -> None:
        super().__init__()
        self.network = network
        channels = in_channels
        for i, widths in enumerate(stages, start=1):
            stage = nn.Sequential()
            for j, width in enumerate(widths, start=1):
                conv = nn.Conv2d(channels, width, 3, padding=1)
                stage.add_module(str(j), ConvNormReLU(conv))
                channels = width
            self.add_module(f"stage{i}", stage)
            self.add_module(f"dropout{i}", make_dropout(dropout[i - 1]))
        self.pool = MaxPool2d(2, ceil_mode=True, return_indices=True)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Route]]:
        routes = []
        for i in range(1, len(VGG16_STAGES) + 1):
            check_batch_statistics(self.network, f"encoder.stage{i}.1.norm", x, self.training)
            x = self.get_submodule(f"stage{i}")(x)
            size = tuple(x.shape[-2:])
            x, indices = self.pool(x)
            routes.append((indices, size))
            x = self.get_submodule(f"dropout{i}")(x)
        return x, routes

    def convolutions(self) -> list[ConvNormReLU]:
        """The 13 blocks in order."""
        return [
            block
            for i in range(1, len(VGG16_STAGES) + 1)
            for block in self.get_submodule(f"stage{i}")
        ]


def make_dropout(rate: float) -> nn.Module:
    """Caffe's dropout, which drops elements; a layer that does nothing for a rate of 0."""
    return nn.Dropout(rate) if rate else nn.Identity()


def msra_(network: nn.Module) -> None:
    """Caffe's msra filler (He et al.): normal with variance 2 / fan-in; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def load_vgg16(network: nn.Module, source: str | Path) -> dict[str, Tensor]:
    """Load torchvision's VGG16 or VGG16-BN into ``network.encoder`` and set the input it expects.

    Convolutions are taken by their order and, from VGG16-BN, the batch norms too. ``source`` is

    - the name of torchvision weights: ``"VGG16_Weights.IMAGENET1K_V1"``, for short
      ``"IMAGENET1K_V1"``, or ``"VGG16_BN_Weights.IMAGENET1K_V1"``, downloaded by torchvision; or
    - the path of a state dict of ``torchvision.models.vgg16`` or ``vgg16_bn``.

    These were trained on RGB images in torchvision's scaling, so ``network.recipe.input`` becomes
    ``"imagenet"``. The exception is ``"IMAGENET1K_FEATURES"``: it holds Caffe's own VGG16 for RGB
    images in 0..255 less their mean; the channels of conv1_1 are turned round to BGR and the
    input becomes ``"caffe"``.

    Args:
        network: Has ``encoder`` (:class:`VGG16Encoder`), ``config`` and ``recipe``.
        source: See above.

    Returns:
        The state dict of ``source``, whose classifier the caller may want.

    Raises:
        WeightsError: If ``source`` is neither such a name nor such a file, or the network has
            not 3 input channels.
    """
    name = network.config["name"]
    state_dict = _open_vgg16(name, source)
    if network.config["in_channels"] != 3:
        raise WeightsError(
            f"{name}: VGG16's weights are for 3 input channels, "
            f"the network has {network.config['in_channels']}"
        )
    convs, norms = _split_features(state_dict)
    blocks = network.encoder.convolutions()
    shapes = [tuple(state_dict[f"{key}.weight"].shape) for key in convs]
    wanted = [tuple(block.conv.weight.shape) for block in blocks]
    fits = shapes == wanted and len(norms) in (0, len(blocks))
    if norms and not hasattr(blocks[0], "norm"):
        raise WeightsError(f"{name}: {source} is VGG16-BN, the network has no batch norm")
    if not fits:
        raise WeightsError(
            f"{name}: {source} is not a torchvision VGG16: its features hold {len(convs)} "
            f"convolutions {shapes} and {len(norms)} batch norms, wanted are {wanted} and 0 or "
            f"{len(blocks)}"
        )
    # As in the ports: the same results at evaluation in spite of another eps.
    state_dict = change_eps(state_dict, TORCH_NORM_EPS, CAFFE_NORM_EPS)
    is_caffe = str(source).endswith("IMAGENET1K_FEATURES")
    for i, block in enumerate(blocks):
        weight = state_dict[f"{convs[i]}.weight"]
        block.conv.load_state_dict(
            {
                "weight": weight.flip(1) if is_caffe and i == 0 else weight,
                "bias": state_dict[f"{convs[i]}.bias"],
            }
        )
        if norms:
            keys = block.norm.state_dict()
            block.norm.load_state_dict(
                {key: state_dict.get(f"{norms[i]}.{key}", keys[key]) for key in keys}
            )
    mode = "caffe" if is_caffe else "imagenet"
    network.recipe = dataclasses.replace(network.recipe, input=mode)
    return state_dict


def load_dense(conv: nn.Conv2d, state_dict: dict[str, Tensor], key: str) -> None:
    """Load a fully connected layer into the convolution that computes the same.

    Args:
        conv: Convolution whose window covers the map that the layer had flattened.
        state_dict: torchvision's, with ``key.weight`` ``(out, C * kh * kw)`` and ``key.bias``.
        key: Name of the layer.

    Raises:
        WeightsError: If the layer is missing, has another size, or is not finite.
    """
    weight, bias = state_dict.get(f"{key}.weight"), state_dict.get(f"{key}.bias")
    if weight is None or bias is None:
        raise WeightsError(f"VGG16 weights: {key}.weight or {key}.bias is missing")
    if weight.numel() != conv.weight.numel() or bias.shape != conv.bias.shape:
        raise WeightsError(
            f"VGG16 weights: {key} is {tuple(weight.shape)}, wanted is "
            f"{tuple(conv.weight.shape)} flattened"
        )
    if not torch.isfinite(weight).all():
        raise WeightsError(f"VGG16 weights: {key} is not finite; the file has features only")
    conv.load_state_dict({"weight": weight.reshape(conv.weight.shape), "bias": bias})


def _open_vgg16(name: str, source: str | Path) -> dict[str, Tensor]:
    if Path(source).is_file():
        return read_state_dict(Path(source))[0]
    from torchvision.models import get_weight

    text = str(source)
    full = text if "." in text else f"VGG16_Weights.{text}"
    known = full.partition(".")[0] in ("VGG16_Weights", "VGG16_BN_Weights")
    try:
        if known:
            return get_weight(full).get_state_dict(progress=True, check_hash=True)
    except (ValueError, KeyError, AttributeError):
        known = False
    raise WeightsError(
        f"{name}: weights_backbone {text!r} is neither a file nor the name of torchvision weights "
        "for VGG16, such as 'VGG16_Weights.IMAGENET1K_V1' or 'VGG16_BN_Weights.IMAGENET1K_V1'"
    )


def _split_features(state_dict: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names of the convolutions and of the batch norms under ``features``, in order."""
    numbers = sorted({int(key.split(".")[1]) for key in state_dict if _is_feature(key)})
    convs, norms = [], []
    for number in numbers:
        key = f"features.{number}"
        (norms if f"{key}.running_mean" in state_dict else convs).append(key)
    return convs, norms


def _is_feature(key: str) -> bool:
    parts = key.split(".")
    return len(parts) == 3 and parts[0] == "features" and parts[1].isdigit()
