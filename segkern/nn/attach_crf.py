"""Any network of the registry, ended by a CRF-as-RNN."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from torch import Tensor

from segkern import ops
from segkern.nn.crf_rnn import CRFAsRNN


class CRFNetwork(torch.nn.Module):
    """A network whose scores a :class:`CRFAsRNN` refines; made by :func:`attach_crf`.

    Attributes:
        network: the network as it was.
        crf: the layer.
        config, recipe: the network's; ``config["crf"]`` holds the layer's options, so that
            ``create_model(**config)`` builds both again.

    Shape:
        - Input: (N, in_channels, H, W), what the network takes.
        - Output: the network's dict, ``"out"`` replaced by the refined scores (N, L, H, W).
    """

    def __init__(self, network: torch.nn.Module, crf: CRFAsRNN, crf_config: dict[str, Any]) -> None:
        super().__init__()
        from segkern.models._preprocess import to_levels

        self.network, self.crf = network, crf
        self.config = {**network.config, "crf": crf_config}
        self.recipe = network.recipe
        scale, shift = to_levels(crf_config["input"], network.config["in_channels"])
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.train(network.training)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = self.network(image)
        scores = outputs["out"]
        if scores.shape[-2:] != image.shape[-2:]:
            # The widths are in pixels of the image.
            scores = ops.resize_bilinear(scores, image.shape[-2:])
        levels = image.detach().float() * self.scale.float() + self.shift.float()
        return {**outputs, "out": self.crf(scores, levels)}


def attach_crf(network: torch.nn.Module, *, input: str | None = None, **options: Any) -> CRFNetwork:
    """End a network of the registry with a CRF-as-RNN, to be trained with it end to end.

    Args:
        network: from :func:`segkern.create_model`, with any weights; it becomes part of the result
            and keeps its mode, training or evaluation.
        input: how the network's input is scaled, a mode of :func:`segkern.models.preprocess`; None
            is ``network.recipe.input``. The CRF's colour width is meant in levels of 0 to 255, so
            the layer sees the input brought back to them: ``"unit"`` times 255, ``"imagenet"``
            without mean and deviation, ``"bgr"`` and ``"caffe"`` as they are. ``"caffe"`` keeps its
            mean off, as in the release: that moves the lattice, not the widths. Channels stay in
            the network's order.
        **options: of :class:`CRFAsRNN`. Its widths are the release's, for images of 500 pixels; at
            another resolution scale the two ``sxy`` with it.

    Returns:
        The :class:`CRFNetwork`. Scores smaller than the input (``enet_encoder``) are enlarged
        bilinearly before the CRF.

    Raises:
        TypeError: If an option is not one of CRFAsRNN's.
        ValueError: If the network is not of the registry or has a CRF already, or an option is out
            of range.

    ``create_model(name, crf=True)``, or with a dict of options, is the same; it also takes
    ``weights``, of the network alone or with its CRF.

    Example:
        >>> import torch
        >>> from segkern import create_model
        >>> model = attach_crf(create_model("enet", num_classes=11), bilateral=(80.0, 13.0, 5.0))
        >>> model(torch.rand(2, 3, 24, 40))["out"].shape
        torch.Size([2, 11, 24, 40])
    """
    config = getattr(network, "config", None)
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(
            f"attach_crf: network must be of the registry (create_model), got "
            f"{type(network).__name__}"
        )
    if any(isinstance(module, CRFAsRNN) for module in network.modules()):
        raise ValueError(f"attach_crf: network must have no CRF yet, {config['name']} has one")
    device = next((parameter.device for parameter in network.parameters()), None)
    if device is None:
        raise ValueError(
            f"attach_crf: network must have parameters to train with the CRF, {config['name']} "
            "has none; refine its probabilities by `segkern predict --crf`"
        )
    known = list(inspect.signature(CRFAsRNN).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"attach_crf: there is no option {', '.join(map(repr, unknown))}; there are input, "
            f"{', '.join(known)}"
        )
    crf = CRFAsRNN(config["num_classes"], **options)
    recorded = {"input": network.recipe.input if input is None else input, **options}
    attached = CRFNetwork(network, crf, json.loads(json.dumps(recorded)))
    return attached.to(device)
