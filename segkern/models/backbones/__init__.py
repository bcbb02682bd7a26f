"""Trunks of the networks, with holes on request, under torchvision's names where it has them."""

from segkern.models.backbones.imagenet import load_imagenet
from segkern.models.backbones.resnet import BASIC_RESNETS, RESNETS, ResNet
from segkern.models.backbones.vgg import VGG16Features
from segkern.models.backbones.xception import XCEPTIONS, Xception

__all__ = [
    "BASIC_RESNETS",
    "RESNETS",
    "XCEPTIONS",
    "ResNet",
    "VGG16Features",
    "Xception",
    "load_imagenet",
]
