"""Classifiers of torchvision made dense: fully connected layers become convolutions."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional


class DenseClassifier(nn.Module):
    """A classifier that scores every window of an image in one pass.

    Attributes:
        features: The convolutional part.
        classifier: The convolutions that were fully connected layers, with what lies between.
        pool: (h, w) of the average pool before them, of stride 1; (1, 1) for none.
        transform_input: GoogLeNet's change from torchvision's scaling to its own, or False.

    Shape:
        - Input: ``(N, 3, H, W)``, from the size that gives one window on (224 for torchvision's).
        - Output: ``(N, classes, h, w)``, a score for every window, 32 pixels apart.
    """

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Sequential,
        pool: tuple[int, int] = (1, 1),
        transform_input: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.pool = pool
        self.transform_input = transform_input

    def forward(self, image: Tensor) -> Tensor:
        if self.transform_input:
            # From mean and deviation of ImageNet to those of 0.5.
            image = image.clone()
            for i, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
                image[:, i] = image[:, i] * (std / 0.5) + (mean - 0.5) / 0.5
        x = self.features(image)
        if self.pool != (1, 1):
            x = functional.avg_pool2d(x, self.pool, stride=1)
        return self.classifier(x)


def convolutionalize(classifier: nn.Module) -> DenseClassifier:
    """Turn an AlexNet, VGG or GoogLeNet of torchvision into a dense classifier.

    A fully connected layer on a flattened C x h x w map equals a convolution of that window with
    its weights reshaped. On an image of the training size the scores are the classifier's. On a
    larger one, score (i, j) is the classifier's on the window that starts at 32 i and 32 j but for
    the zeros that the classifier's own convolutions see around a window: where no padding is
    reached, or there is none, they are equal.

    Args:
        classifier: ``torchvision.models.AlexNet``, ``VGG`` (with batch norm too) or ``GoogLeNet``;
            left as it is. Auxiliary heads of GoogLeNet are dropped.

    Returns:
        A network of copied weights, in the same mode (training or evaluation).

    Raises:
        TypeError: If it is another network.
        ValueError: If its fully connected layers do not fit its map.

    Paper: arXiv:1411.4038 section 3.1.

    Example:
        >>> import segkern, torch, torchvision
        >>> classifier = torchvision.models.googlenet(init_weights=False)
        >>> dense = segkern.convert.convolutionalize(classifier)
        >>> tuple(dense.eval()(torch.zeros(1, 3, 288, 320)).shape)
        (1, 1000, 3, 4)
    """
    from torchvision.models import VGG, AlexNet, GoogLeNet

    if isinstance(classifier, GoogLeNet):
        layers = (copy.deepcopy(classifier.dropout), _as_convolution(classifier.fc, (1, 1)))
        features = nn.Sequential()
        for name, module in classifier.named_children():
            if name not in ("aux1", "aux2", "avgpool", "dropout", "fc"):
                features.add_module(name, copy.deepcopy(module))
        # 224 pixels leave 7 x 7.
        dense = DenseClassifier(
            features, nn.Sequential(*layers), (7, 7), bool(classifier.transform_input)
        )
    elif isinstance(classifier, (AlexNet, VGG)):
        size = classifier.avgpool.output_size
        window = (size, size) if isinstance(size, int) else tuple(size)
        layers = []
        for module in classifier.classifier:
            if isinstance(module, nn.Linear):
                layers.append(_as_convolution(module, window))
                window = (1, 1)
            else:
                layers.append(copy.deepcopy(module))
        dense = DenseClassifier(copy.deepcopy(classifier.features), nn.Sequential(*layers))
    else:
        raise TypeError(
            "convolutionalize: classifier must be torchvision's AlexNet, VGG or GoogLeNet, got "
            f"{type(classifier).__name__}"
        )
    return dense.train(classifier.training)


def _as_convolution(layer: nn.Linear, window: tuple[int, int]) -> nn.Conv2d:
    """The convolution of a window that computes what a layer does on it, flattened."""
    pixels = window[0] * window[1]
    if layer.in_features % pixels:
        raise ValueError(
            f"convolutionalize: classifier must have a first layer of C * {window[0]} * "
            f"{window[1]} inputs, got {layer.in_features}"
        )
    conv = nn.Conv2d(
        layer.in_features // pixels,
        layer.out_features,
        window,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    state = {key: value.detach() for key, value in layer.state_dict().items()}
    state["weight"] = state["weight"].reshape(conv.weight.shape)
    conv.load_state_dict(state)
    return conv
