"""Data that come with the library: small toy sets drawn from known laws, and the 8×8 handwritten digits.

Nothing is downloaded. The digits are shipped inside the package, with a checksum.
"""

import hashlib
import importlib.resources
import zipfile
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvmlib.contracts import check_count, check_finite, checked
from lvmlib.mixtures import GaussianMixture

DIGITS_SHA256 = "ab16ec584c590c625af63e6babf945245be9cf9bbb428a8c157638d9bc75f14e"


class DataIntegrityError(OSError):
    """A data file is missing, unreadable, or not the file that the library was released with."""


class Digits(NamedTuple):
    """Images x of shape ``(N, 64)``, row by row, and their `labels` of shape ``(N,)``."""

    x: Tensor
    labels: Tensor


def three_gaussians() -> GaussianMixture:
    r"""Return the lecture's first model: three Gaussians in the plane with weights ½, ⅓, ⅙ and one known scale.

    Draw data with ``three_gaussians().sample(n)``.

    Reference:
        Berkeley CS294-158, lecture 4; chapter 2.

    >>> three_gaussians().loc.shape
    torch.Size([3, 2])
    """
    weights = torch.tensor([1 / 2, 1 / 3, 1 / 6])
    loc = torch.tensor([[-2.0, 0.0], [2.0, 0.5], [0.5, 3.0]])
    return GaussianMixture(weights, loc, torch.tensor(0.8))


def ring(num_data: int, radius: float = 2.0, noise: float = 0.2) -> Float[Tensor, "n 2"]:
    r"""Draw points on a noisy circle: :math:`x = (\text{radius} + \text{noise} \cdot \epsilon)(\cos t, \sin t)`.

    A one-dimensional cause (the angle t, uniform) moves two coordinates at once. Uses torch's random state.

    Args:
        num_data: N ≥ 1.
        radius: of the circle.
        noise: standard deviation across the circle, ≥ 0.

    >>> ring(5).shape
    torch.Size([5, 2])
    """
    check_count("num_data", num_data)
    if not (radius > 0 and noise >= 0):
        raise ValueError(f"radius must be > 0 and noise >= 0, got {radius} and {noise}")
    angle = 2 * torch.pi * torch.rand(num_data)
    distance = radius + noise * torch.randn(num_data)
    return torch.stack([distance * angle.cos(), distance * angle.sin()], 1)


def bars(num_data: int, size: int = 4) -> Float[Tensor, "n d"]:
    r"""Draw binary images of crossing bars: each row and each column is on with probability 1 / `size`.

    2·size independent hidden causes, all their effects visible, and two causes that meet in a pixel compete to
    explain it. Uses torch's random state.

    Args:
        num_data: N ≥ 1.
        size: side of the image; D = size².

    Reference:
        Földiák (1990), Forming sparse representations by local anti-Hebbian learning.

    >>> bars(3).shape
    torch.Size([3, 16])
    """
    check_count("num_data", num_data)
    check_count("size", size)
    rows, columns = (torch.rand(2, num_data, size) < 1 / size).unbind(0)
    return (rows[:, :, None] | columns[:, None, :]).flatten(1).float()


@checked
def binarize(pixels: Float[Tensor, "*shape"], threshold: float = 0.5) -> Float[Tensor, "*shape"]:
    """Return 1 where a pixel is at least `threshold`, else 0: a fixed rule, the same at every call.

    Args:
        pixels: grey values in [0, 1].
        threshold: in (0, 1].

    Raises:
        ValueError: a pixel lies outside [0, 1] (divide values up to 255 by 255), or the threshold does.

    >>> binarize(torch.tensor([0.2, 0.5, 0.9]))
    tensor([0., 1., 1.])
    """
    check_finite("pixels", pixels)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    if pixels.numel() and (pixels.min() < 0 or pixels.max() > 1):
        low, high = pixels.min().item(), pixels.max().item()
        raise ValueError(f"pixels must lie in [0, 1], got {low:g} to {high:g}; divide values up to 255 by 255")
    return (pixels >= threshold).to(pixels.dtype)


def digits(split: str, *, pixels: str = "binary") -> Digits:
    """Return the bundled 8×8 handwritten digits: 1,437 images to train on and 360 to test on.

    The split was drawn once and is stored with the images. Grey values are the original counts from 0 to 16,
    divided by 16. Binary pixels are 1 where the grey value is at least ½.

    Args:
        split: ``"train"`` or ``"test"``.
        pixels: ``"binary"`` or ``"grey"``.

    Returns:
        ``Digits(x, labels)``: float32 of shape ``(N, 64)`` and int64 of shape ``(N,)``.

    Raises:
        ValueError: another `split` or `pixels`.
        DataIntegrityError: the file in the package is missing or damaged.

    Reference:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
        doi:10.24432/C50P49, licence CC BY 4.0. These are the 1,797 images of its test file.

    >>> [len(digits(split).x) for split in ("train", "test")]
    [1437, 360]
    """
    for name, value, allowed in [("split", split, ("train", "test")), ("pixels", pixels, ("binary", "grey"))]:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    images, labels, test = _load_digits(importlib.resources.files("lvmlib") / "data" / "digits.npz")
    chosen = test if split == "test" else ~test
    x = torch.from_numpy(images[chosen]).float() / 16
    return Digits(binarize(x) if pixels == "binary" else x, torch.from_numpy(labels[chosen]).long())


def _load_digits(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = ("images", "labels", "test")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = tuple(archive[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise DataIntegrityError(f"{path}: not a readable archive of {names} ({error}); reinstall lvmlib") from error
    found = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    if found != DIGITS_SHA256:
        raise DataIntegrityError(f"{path}: expected SHA-256 {DIGITS_SHA256}, got {found}; reinstall lvmlib")
    return arrays
