"""The chains of the named models that take examples of numbers: sizes of inputs follow from the data, outputs are told."""

from __future__ import annotations

from framework.layers import (
    BatchNorm,
    Chain,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Upsample2d,
)
from framework.parameters import HeNormal

#: Of all that ReLU follows.
_HE = HeNormal()


def mlp(outputs: int, dropout: float, width: int, depth: int) -> Chain:
    """`depth` hidden layers of `width` with ReLU, each followed by dropout if there is any.

    Shapes: (N, features) to (N, outputs).
    """
    layers: list[Layer] = []
    for _ in range(depth):
        layers += [Linear(width, initializer=_HE), ReLU(), *_dropout(dropout).values()]
    return Chain(*layers, Linear(outputs))


def lenet(outputs: int, dropout: float) -> Chain:
    """Two convolutions with pools and three linear layers (after LeCun et al. 1998, LeNet-5), with ReLU and maxima.

    Both convolutions keep the image's size, so that images of 8 x 8 suffice. Dropout is before the last layer.

    Shapes: (N, channels, H, W) with H and W from 4 to (N, outputs).
    """
    return Chain(
        conv1=Conv2d(16, 5, padding=2, initializer=_HE),
        act1=ReLU(),
        pool1=MaxPool2d(2),
        conv2=Conv2d(32, 5, padding=2, initializer=_HE),
        act2=ReLU(),
        pool2=MaxPool2d(2),
        flatten=Flatten(),
        linear1=Linear(120, initializer=_HE),
        act3=ReLU(),
        linear2=Linear(84, initializer=_HE),
        act4=ReLU(),
        **_dropout(dropout),
        head=Linear(outputs),
    )


def resnet(outputs: int, dropout: float, widths: tuple[int, ...], blocks: int) -> Chain:
    """`blocks` residual blocks of each width, all widths but the first begun with stride 2 (He et al. 2015, arXiv 1512.03385, section 4.2).

    Each convolution is followed by BatchNorm. Where a block changes the shape, its shortcut is a convolution of one pixel. Dropout is before
    the last layer.

    Shapes: (N, channels, H, W) to (N, outputs).
    """
    found: dict[str, Layer] = {}
    for number, width in enumerate(width for width in widths for _ in range(blocks)):
        found[f"block{number}"] = _block(width, changes=number > 0 and number % blocks == 0)
    return Chain(
        stem=Chain(**_convolution(widths[0], "", 3), act=ReLU()),
        **found,
        pool=GlobalAveragePool(),
        **_dropout(dropout),
        head=Linear(outputs),
    )


def _block(width: int, changes: bool) -> Chain:
    stride = 2 if changes else 1
    inner = Chain(**_convolution(width, "1", 3, stride), act1=ReLU(), **_convolution(width, "2", 3))
    shortcut = Chain(**_convolution(width, "", 1, stride)) if changes else None
    return Chain(residual=Residual(inner, shortcut), act=ReLU())


def _convolution(width: int, name: str, kernel: int, stride: int = 1) -> dict[str, Layer]:
    convolution = Conv2d(width, kernel, stride, padding=kernel // 2, bias=False, initializer=_HE)  # the norm has a bias
    return {f"conv{name}": convolution, f"norm{name}": BatchNorm()}


def unet(outputs: int, dropout: float, widths: tuple[int, ...]) -> Chain:
    """An encoder and a decoder whose levels are joined by Concats in Concats (Ronneberger et al. 2015, arXiv 1505.04597).

    Each level has two convolutions on the way down and two on the way up; the lowest has two alone, and then dropout. A pool halves the
    image between levels.

    Shapes: (N, channels, H, W) with H and W divisible by 2^(levels - 1) to (N, outputs, H, W).
    """
    inside: dict[str, Layer] = {}
    for width in reversed(widths[1:]):
        level = {"pool": MaxPool2d(2), "down": _convolutions(width), **inside}
        if inside:
            level["up"] = _convolutions(width)
        else:
            level |= _dropout(dropout)
        inside = {"level": Concat(Chain(**level, upsample=Upsample2d(2)))}
    return Chain(down=_convolutions(widths[0]), **inside, up=_convolutions(widths[0]), head=Conv2d(outputs, 1))


def _convolutions(width: int) -> Chain:
    convolution = Conv2d(width, 3, padding=1, initializer=_HE)
    return Chain(conv1=convolution, act1=ReLU(), conv2=convolution, act2=ReLU())


def _dropout(rate: float) -> dict[str, Layer]:
    return {"dropout": Dropout(rate)} if rate else {}
