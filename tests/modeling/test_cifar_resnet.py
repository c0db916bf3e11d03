"""The CIFAR ResNet."""

import pytest
import torch

from lt_det.errors import ConfigError
from lt_det.modeling.cifar_resnet import CIFARResNet, option_a_shortcut


@pytest.mark.parametrize("depth,millions", [(20, 0.27), (32, 0.46), (110, 1.7)])
def test_sizes_are_those_of_the_paper(depth, millions):
    """He et al., CVPR 2016, table 6, whose counts include a linear layer of 650 parameters."""
    parameters = 650 + sum(p.numel() for p in CIFARResNet(depth=depth).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05 * millions)


def test_shortcut_keeps_every_second_pixel_between_zeros():
    x = torch.arange(2 * 2 * 4 * 5.0).view(2, 2, 4, 5)
    y = option_a_shortcut(x, 6, 2)
    assert y.shape == (2, 6, 2, 3)
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 4:].any()
    assert option_a_shortcut(x, 2, 1) is x


def test_blocks_whose_convolutions_give_nothing_are_shortcuts():
    """With the last scale of every block at zero the network is its stem and its shortcuts."""
    model = CIFARResNet(depth=20).eval()
    for name, parameter in model.named_parameters():
        if ".norm2." in name:
            torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stem = model.stem(x)
    out = model(x)["res4"]
    assert out.shape == (2, 64, 8, 8)
    torch.testing.assert_close(out[:, 24:40], stem[:, :, ::4, ::4])
    assert not out[:, :24].any() and not out[:, 40:].any()


def test_other_depths_are_refused():
    with pytest.raises(ConfigError, match="DEPTH is 34.*32"):
        CIFARResNet(depth=34)
