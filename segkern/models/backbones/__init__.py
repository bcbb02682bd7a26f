"""Trunks of the networks of atrous convolution, under torchvision's names where it has them."""

from segkern.models.backbones.imagenet import load_imagenet
from segkern.models.backbones.resnet import RESNETS, ResNet
from segkern.models.backbones.vgg import VGG16Features
from segkern.models.backbones.xception import XCEPTIONS, Xception

__all__ = ["RESNETS", "XCEPTIONS", "ResNet", "VGG16Features", "Xception", "load_imagenet"]
