"""Trunks of the networks, under torchvision's names where it has them."""

from segkern.models.backbones.alexnet import CaffeNetFeatures
from segkern.models.backbones.googlenet import GoogLeNetFeatures
from segkern.models.backbones.imagenet import load_imagenet
from segkern.models.backbones.resnet import RESNETS, ResNet
from segkern.models.backbones.vgg import VGG16Features
from segkern.models.backbones.xception import XCEPTIONS, Xception

__all__ = [
    "RESNETS",
    "XCEPTIONS",
    "CaffeNetFeatures",
    "GoogLeNetFeatures",
    "ResNet",
    "VGG16Features",
    "Xception",
    "load_imagenet",
]
