"""Models of the papers, dense; ``openwork.sparsify`` makes them sparse."""

from openwork.models.cifar_resnet import CifarResNet, CifarResNet18
from openwork.models.digits import DigitsNet
from openwork.models.mlp import MLP
from openwork.models.vgg import VGG
from openwork.models.wrn import WideResNet

__all__ = ["MLP", "VGG", "CifarResNet", "CifarResNet18", "DigitsNet", "WideResNet"]
