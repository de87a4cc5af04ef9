"""Data sets: toy sets drawn from known laws, the bundled 8×8 digits, and MNIST.

Only MNIST may need the network, once; see `lvmlib.downloads`. What lies in a file is checked by a SHA-256.
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
from lvmlib.downloads import Archive, DataIntegrityError, Expected, load
from lvmlib.downloads import DownloadError as DownloadError
from lvmlib.mixtures import GaussianMixture

DIGITS_SHA256 = "ab16ec584c590c625af63e6babf945245be9cf9bbb428a8c157638d9bc75f14e"

MNIST = Archive(
    "mnist.npz",
    arrays={
        "train_images": Expected((60000, 28, 28), "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"),
        "train_labels": Expected((60000,), "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"),
        "test_images": Expected((10000, 28, 28), "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"),
        "test_labels": Expected((10000,), "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"),
    },
    mirrors=("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    files={
        "train_images": "train-images-idx3-ubyte.gz",
        "train_labels": "train-labels-idx1-ubyte.gz",
        "test_images": "t10k-images-idx3-ubyte.gz",
        "test_labels": "t10k-labels-idx1-ubyte.gz",
    },
)
# The pixels of the static binarization, eight to a byte.
STATIC_SHA256 = {
    "train": "ddbf5463f4211958aa2db79f5696f8b6292b05f811fc06c2ce58a3420d891fae",
    "test": "46230bc71e3a3e7c8314a6fd75f8800ddfcc444089371feb51200c4c1ec320a7",
}
FIXED = Archive(
    "binarized_mnist.npz",
    arrays={
        "train": Expected((50000, 98), "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906"),
        "valid": Expected((10000, 98), "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d"),
        "test": Expected((10000, 98), "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2"),
    },
    advice="The page that served the fixed binarization is gone, so it cannot be fetched. Set LVMLIB_DATA to a folder "
    "that has the file: arrays train, valid and test, each numpy.packbits(pixels, axis=1). "
    'pixels="static" needs no such file.',
)


SAMPLE_SHA256 = "53674754f5d39be841ef144d26729899ec1fce0df2c1dc4f0ebd92436571b6a3"


class Digits(NamedTuple):
    """Images `x` of shape ``(N, D)``, row by row, and their `labels` of shape ``(N,)``, None where there are none."""

    x: Tensor
    labels: Tensor | None


class Sample(NamedTuple):
    """Test images: binary `x` and `grey` of shape ``(N, D)``, `labels` and their `rows` in the test set, ``(N,)``."""

    x: Tensor
    grey: Tensor
    labels: Tensor
    rows: Tensor


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

    It takes the noise away that `dynamic` draws. On MNIST, log-likelihoods of such images look 13 nats better or more
    and cannot be compared with published ones.

    Args:
        pixels: grey values in [0, 1].
        threshold: in (0, 1].

    Raises:
        ValueError: a pixel lies outside [0, 1] (divide values up to 255 by 255), or the threshold does.

    >>> binarize(torch.tensor([0.2, 0.5, 0.9]))
    tensor([0., 1., 1.])
    """
    _check_grey("pixels", pixels)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    return (pixels >= threshold).to(pixels.dtype)


@checked
def dynamic(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Draw binary pixels from grey ones, :math:`x_d \sim \mathrm{Bernoulli}(\text{grey}_d)`, anew at every call.

    Call it on each minibatch of ``mnist("train", pixels="grey")``. The model never sees the same draw twice and cannot
    overfit to the noise in it. That is worth about 2 nats: the published one-layer VAE reaches a test NLL of 86.76 nats
    when trained dynamically and of 88.71 when trained on the fixed binarization, the two-layer IWAE with K = 50 reaches
    82.90 and 85.32. Such numbers do not belong in one column. Uses torch's random state.

    Args:
        x: grey values in [0, 1].

    Raises:
        ValueError: a value lies outside [0, 1], or all are 0 or 1: those were binarized before, and a draw from them
            changes nothing.

    Reference:
        Burda, Grosse and Salakhutdinov (2015), Tables 1 and 3, arXiv:1509.00519.

    >>> grey = torch.tensor([[0.0, 0.3, 1.0]])
    >>> sorted({tuple(dynamic(grey)[0].tolist()) for _ in range(100)})
    [(0.0, 0.0, 1.0), (0.0, 1.0, 1.0)]
    """
    _check_grey("x", x)
    if x.numel() and not ((x > 0) & (x < 1)).any():
        raise ValueError('x must be grey, got only 0 and 1: a draw changes nothing; use mnist(…, pixels="grey")')
    return (torch.rand_like(x) < x).to(x.dtype)


def _check_grey(name: str, value: Tensor) -> None:
    check_finite(name, value)
    if value.numel() and (value.min() < 0 or value.max() > 1):
        low, high = value.min().item(), value.max().item()
        raise ValueError(f"{name} must lie in [0, 1], got {low:g} to {high:g}; divide values up to 255 by 255")


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
    _check_choice("split", split, ("train", "test"))
    _check_choice("pixels", pixels, ("binary", "grey"))
    images, labels, test = _load_bundled(
        importlib.resources.files("lvmlib") / "data" / "digits.npz", ("images", "labels", "test"), DIGITS_SHA256
    )
    chosen = test if split == "test" else ~test
    x = torch.from_numpy(images[chosen]).float() / 16
    return Digits(binarize(x) if pixels == "binary" else x, torch.from_numpy(labels[chosen]).long())


def mnist(split: str, *, pixels: str, num_validation: int = 0) -> Digits:
    r"""Return MNIST, 28×28 handwritten digits, from the reader's files or, once, from the network.

    How the pixels become binary is a choice without a default, because it decides what a log-likelihood means:

    * ``"grey"``: counts from 0 to 255, divided by 255. They are probabilities of pixels, not pixels: draw from them
      with `dynamic`. The Bernoulli laws of `lvmlib` refuse them.
    * ``"static"``: one draw :math:`x_d \sim \mathrm{Bernoulli}(\text{grey}_d)`, the same for everybody and for ever.
    * ``"fixed"``: the draw of Larochelle and Murray that older tables use, where ``binarized_mnist.npz`` is present.

    To train on static or fixed pixels costs about 2 nats against `dynamic`; to test on one or another draw from the
    grey values makes no difference (a VAE after 60 epochs: 91.85 to 91.88). A threshold at ½ (`binarize`) is not such a
    draw: the same VAE scores 78.74 on thresholded test images, and one that was trained on them 75.18.

    Held-out images are the last `num_validation` of the 60,000: give the same number to ``"train"`` and to
    ``"validation"``, because with another number the two overlap. The fixed set has its own 50,000, 10,000 and 10,000,
    without labels and in another order. Its validation images lie anywhere among the 60,000, so they must not choose
    between models that were trained on the others. Its test images are MNIST's sorted by digit, so the first thousand
    of them are no sample.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        pixels: ``"grey"``, ``"static"`` or ``"fixed"``.
        num_validation: how many training images are held out, from 0 to 59,999. Not for ``"fixed"``.

    Returns:
        ``Digits(x, labels)``: float32 of shape ``(N, 784)`` and int64 of shape ``(N,)``, None for ``"fixed"``.

    Raises:
        ValueError: another `split` or `pixels`, or a `num_validation` that does not fit.
        DataIntegrityError: a file is present and is not the expected one.
        DownloadError: a file is missing and cannot be fetched; the message says why and what to set.

    Reference:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition. Copyright
        Y. LeCun and C. Cortes; public loaders state the licence CC BY-SA 3.0. Fixed binarization: Larochelle and
        Murray (2011), The neural autoregressive distribution estimator; it states no licence.

    >>> mnist("test", pixels="static").x.shape  # doctest: +SKIP
    torch.Size([10000, 784])
    """
    _check_choice("split", split, ("train", "validation", "test"))
    _check_choice("pixels", pixels, ("grey", "static", "fixed"))
    check_count("num_validation", num_validation, minimum=0)
    if pixels == "fixed":
        if num_validation:
            raise ValueError(f'num_validation must be 0 with pixels="fixed", which has its own, got {num_validation}')
        packed = load(FIXED)["valid" if split == "validation" else split]
        return Digits(torch.from_numpy(np.unpackbits(packed, axis=1)).float(), None)
    source = "test" if split == "test" else "train"
    most = MNIST.arrays["train_images"].shape[0] - 1
    if num_validation > most:
        raise ValueError(f"num_validation must be at most {most}, got {num_validation}")
    if split == "validation" and num_validation == 0:
        raise ValueError(
            "num_validation must be at least 1 for the validation split; give it to the training split too"
        )
    arrays = load(MNIST)
    images, labels = arrays[f"{source}_images"], arrays[f"{source}_labels"]
    images = images.reshape(len(images), -1)
    if pixels == "static":
        images = _static(images, source)
    if source == "train":
        held_out = len(images) - num_validation
        chosen = slice(held_out, None) if split == "validation" else slice(held_out)
        images, labels = images[chosen], labels[chosen]
    x = torch.from_numpy(images).float()
    return Digits(x / 255 if pixels == "grey" else x, torch.from_numpy(labels).long())


def mnist_sample() -> Sample:
    """Return 500 of MNIST's 10,000 test images, which come with the library, spread evenly over them.

    `x` is their static binarization, `grey` what it was drawn from; both as `mnist` returns them.

    Raises:
        DataIntegrityError: the file in the package is missing or damaged.

    Reference:
        LeCun, Bottou, Bengio and Haffner (1998); copyright Y. LeCun and C. Cortes, licence CC BY-SA 3.0.

    >>> sample = mnist_sample()
    >>> sample.x.shape, sample.rows[:3].tolist(), sample.labels[:3].tolist()
    (torch.Size([500, 784]), [0, 20, 40], [7, 9, 1])
    """
    path = importlib.resources.files("lvmlib") / "data" / "mnist_sample.npz"
    grey, static, labels, rows = _load_bundled(path, ("grey", "static", "labels", "rows"), SAMPLE_SHA256)
    x = torch.from_numpy(np.unpackbits(static, axis=1)).float()
    return Sample(
        x, torch.from_numpy(grey).float() / 255, *(torch.from_numpy(array).long() for array in (labels, rows))
    )


def _static(images: np.ndarray, source: str) -> np.ndarray:
    """Return 1 where a number drawn from 0 … 254 is below the grey value g, so with probability g / 255 exactly."""
    # NumPy promises the numbers of RandomState for ever; torch promises none between its versions.
    draws = np.random.RandomState({"train": 0, "test": 1}[source]).randint(0, 255, images.shape, dtype=np.uint8)
    pixels = (draws < images).astype(np.uint8)
    found = hashlib.sha256(np.packbits(pixels, axis=1).tobytes()).hexdigest()
    if found != STATIC_SHA256[source]:
        raise DataIntegrityError(
            f"the static binarization has SHA-256 {found}, expected {STATIC_SHA256[source]}: "
            "this NumPy draws other numbers, so results could not be compared"
        )
    return pixels


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def _load_bundled(path, names: tuple[str, ...], sha256: str) -> tuple[np.ndarray, ...]:
    """Return the arrays of a file in the package."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = tuple(archive[name] for name in names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise DataIntegrityError(f"{path}: not a readable archive of {names} ({error}); reinstall lvmlib") from error
    found = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    if found != sha256:
        raise DataIntegrityError(f"{path}: expected SHA-256 {sha256}, got {found}; reinstall lvmlib")
    return arrays
