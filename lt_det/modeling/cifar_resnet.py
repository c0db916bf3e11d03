"""The ResNet of CIFAR experiments: three stages of 16, 32 and 64 channels."""

from __future__ import annotations

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError

CHANNELS = (16, 32, 64)
OUTPUT = "res4"


def option_a_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Identity shortcut without parameters: every `stride`-th pixel, zeros as new channels.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, option A; the zeros
    stand half before and half after the old channels, as in the published CIFAR code.

    Args:
        x: (N, C, H, W).
        out_channels: C', at least C; C' - C is even.
        stride: 1 or 2.

    Returns:
        (N, C', ceil(H / stride), ceil(W / stride)).
    """
    if stride == 1 and out_channels == x.shape[1]:
        return x
    missing = (out_channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing, missing))


class CIFARBlock(nn.Module):
    """Two 3x3 convolutions around an option-A shortcut.

    Args:
        in_channels, out_channels: C and C'.
        stride: of the first convolution.
        norm: as in Detectron2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str):
        super().__init__()
        self.stride, self.out_channels = stride, out_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = get_norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = get_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + option_a_shortcut(x, self.out_channels, self.stride))


class CIFARResNet(Backbone):
    """ResNet-(6n + 2) for images of about 32 x 32 pixels; 32 layers have 0.46 M parameters.

    Weights start from a Kaiming normal distribution (fan in), as in the published code of LDAM
    and its successors.

    Args:
        depth: 6n + 2: 20, 32, 44, 56, 110.
        norm: as in Detectron2, "BN".

    Raises:
        ConfigError: another depth.
    """

    def __init__(self, *, depth: int = 32, norm: str = "BN"):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(
                f"MODEL.RESNETS.DEPTH is {depth}; a CIFAR ResNet has 6n + 2 layers: 20, 32, 44, "
                "56, 110"
            )
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS[0], 3, 1, 1, bias=False), get_norm(norm, CHANNELS[0]), nn.ReLU()
        )
        before = CHANNELS[0]
        for k, channels in enumerate(CHANNELS):
            stage = [
                CIFARBlock(before if b == 0 else channels, channels, 2 if b == 0 and k else 1, norm)
                for b in range(blocks)
            ]
            setattr(self, f"res{k + 2}", nn.Sequential(*stage))
            before = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"res4": (N, 64, H / 4, W / 4)}."""
        return {OUTPUT: self.res4(self.res3(self.res2(self.stem(x))))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """As in Detectron2."""
        return {OUTPUT: ShapeSpec(channels=CHANNELS[-1], stride=4)}

    @property
    def size_divisibility(self) -> int:
        """Any image size will do."""
        return 1


@BACKBONE_REGISTRY.register()
def build_cifar_resnet_backbone(cfg, input_shape: ShapeSpec) -> CIFARResNet:
    """The backbone of ``MODEL.RESNETS.{DEPTH, NORM}``."""
    if input_shape.channels != 3:
        raise ConfigError(f"a CIFAR ResNet takes 3 channels, got {input_shape.channels}")
    return CIFARResNet(depth=cfg.MODEL.RESNETS.DEPTH, norm=cfg.MODEL.RESNETS.NORM)
