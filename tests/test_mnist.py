"""MNIST: its splits never mix, its binarizations are what they say, and the real files are the public ones.

Small synthetic files stand in for the real ones, which are read only where ``LVMLIB_DATA`` has them.
"""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lvmlib import datasets
from lvmlib.datasets import DataIntegrityError, Digits, DownloadError, binarize, mnist
from lvmlib.downloads import Archive, Expected, read

NUM_TRAIN, NUM_TEST = 23, 7
SEEDS = {"train": 0, "test": 1}


def expected(array):
    return Expected(array.shape, hashlib.sha256(array.tobytes()).hexdigest())


def rows(x):
    """The hashes of the rows of a tensor."""
    return {hashlib.sha256(row.tobytes()).digest() for row in x.numpy()}


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """Synthetic images and labels in LVMLIB_DATA, and no connection."""
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 256, (NUM_TRAIN, 28, 28), dtype=np.uint8),
        "train_labels": random.integers(0, 10, NUM_TRAIN, dtype=np.uint8),
        "test_images": random.integers(0, 256, (NUM_TEST, 28, 28), dtype=np.uint8),
        "test_labels": random.integers(0, 10, NUM_TEST, dtype=np.uint8),
    }
    arrays["train_images"][0, :10] = 0
    arrays["train_images"][0, 10:20] = 255
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("LVMLIB_DATA", str(tmp_path))
    monkeypatch.setenv("LVMLIB_OFFLINE", "1")
    monkeypatch.setattr(datasets, "MNIST", Archive("mnist.npz", {name: expected(a) for name, a in arrays.items()}))
    pinned = {}
    for name, seed in SEEDS.items():
        images = arrays[f"{name}_images"].reshape(-1, 784)
        pixels = np.random.RandomState(seed).randint(0, 255, images.shape, dtype=np.uint8) < images
        pinned[name] = hashlib.sha256(np.packbits(pixels, axis=1).tobytes()).hexdigest()
    monkeypatch.setattr(datasets, "STATIC_SHA256", pinned)
    return arrays


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """A synthetic fixed binarization in LVMLIB_DATA."""
    random = np.random.default_rng(1)
    pixels = {
        name: random.integers(0, 2, (n, 784), dtype=np.uint8) for name, n in dict(train=5, valid=3, test=2).items()
    }
    packed = {name: np.packbits(array, axis=1) for name, array in pixels.items()}
    np.savez_compressed(tmp_path / "binarized_mnist.npz", **packed)
    monkeypatch.setenv("LVMLIB_DATA", str(tmp_path))
    archive = Archive("binarized_mnist.npz", {name: expected(array) for name, array in packed.items()})
    monkeypatch.setattr(datasets, "FIXED", archive)
    return pixels


# splits


@pytest.mark.parametrize("split, name", [("train", "train"), ("test", "test")])
def test_grey_values_are_counts_divided_by_255(split, name, arrays):
    found = mnist(split, pixels="grey")
    assert isinstance(found, Digits) and found.x.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert np.array_equal((found.x.double() * 255).round().numpy(), arrays[f"{name}_images"].reshape(-1, 784))
    assert np.array_equal(found.labels.numpy(), arrays[f"{name}_labels"])
    assert (found.x.min(), found.x.max()) == (0, 1)


@pytest.mark.parametrize("pixels", ["grey", "static"])
def test_training_and_validation_images_are_all_once(pixels, arrays):
    everything = mnist("train", pixels=pixels)
    train, validation = (mnist(split, pixels=pixels, num_validation=6) for split in ("train", "validation"))
    assert len(validation.x) == len(validation.labels) == 6
    assert torch.equal(torch.cat([train.x, validation.x]), everything.x)
    assert torch.equal(torch.cat([train.labels, validation.labels]), everything.labels)


@pytest.mark.parametrize("pixels", ["grey", "static"])
def test_no_row_is_in_two_splits(pixels, arrays):
    train, validation, test = (
        rows(mnist(split, pixels=pixels, num_validation=6).x) for split in ("train", "validation", "test")
    )
    assert (len(train), len(validation), len(test)) == (NUM_TRAIN - 6, 6, NUM_TEST)
    assert not train & validation and not train & test and not validation & test


@pytest.mark.parametrize("pixels", ["grey", "static"])
def test_the_test_split_does_not_depend_on_num_validation(pixels, arrays):
    assert torch.equal(mnist("test", pixels=pixels, num_validation=6).x, mnist("test", pixels=pixels).x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mnist("valid", pixels="grey"), ValueError, r"split must be one of \('train', 'validation', 'test'\)"),
        (lambda: mnist("train", pixels="binary"), ValueError, r"pixels must be one of \('grey', 'static', 'fixed'\)"),
        (lambda: mnist("train"), TypeError, "pixels"),
        (
            lambda: mnist("validation", pixels="grey"),
            ValueError,
            "num_validation must be at least 1 for the validation",
        ),
        (
            lambda: mnist("train", pixels="grey", num_validation=NUM_TRAIN),
            ValueError,
            "num_validation must be at most 22",
        ),
        (lambda: mnist("train", pixels="grey", num_validation=-1), ValueError, "num_validation must be at least 0"),
        (lambda: mnist("test", pixels="grey", num_validation=True), TypeError, "num_validation must be an int"),
        (
            lambda: mnist("train", pixels="fixed", num_validation=3),
            ValueError,
            'num_validation must be 0 with pixels="fixed"',
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(call, error, message, arrays):
    with pytest.raises(error, match=message):
        call()


# static


def test_static_pixels_are_the_same_at_every_call_and_leave_the_random_states_alone(arrays):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = mnist("train", pixels="static").x
    torch.manual_seed(5)
    torch.set_rng_state(before[0])
    assert torch.equal(mnist("train", pixels="static").x, first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_static_pixels_are_binary_and_follow_certain_grey_values(arrays):
    grey, static = mnist("train", pixels="grey"), mnist("train", pixels="static")
    assert set(static.x.unique().tolist()) == {0.0, 1.0} and static.x.dtype == torch.float32
    assert torch.equal(static.x[grey.x == 0], torch.zeros_like(static.x[grey.x == 0]))
    assert torch.equal(static.x[grey.x == 1], torch.ones_like(static.x[grey.x == 1]))
    assert torch.equal(static.labels, grey.labels)


def test_a_static_pixel_is_on_for_exactly_its_grey_value_of_255_draws(monkeypatch):
    """The exact probability: all 255 equally likely draws, for each of the 256 grey values."""

    class Each:
        def __init__(self, seed):
            pass

        def randint(self, low, high, shape, dtype):
            return np.broadcast_to(np.arange(low, high, dtype=dtype)[:, None], shape)

    monkeypatch.setattr(np.random, "RandomState", Each)
    images = np.broadcast_to(np.arange(256, dtype=np.uint8), (255, 256))
    packed = np.packbits(np.arange(255)[:, None] < np.arange(256), axis=1)
    monkeypatch.setattr(datasets, "STATIC_SHA256", {"train": hashlib.sha256(packed.tobytes()).hexdigest()})
    assert datasets._static(images, "train").sum(0).tolist() == list(range(256))


def test_training_and_test_pixels_have_draws_of_their_own(arrays):
    same = np.full((4, 784), 128, np.uint8)
    drawn = {}
    for name in SEEDS:
        with pytest.raises(DataIntegrityError) as caught:
            datasets._static(same, name)
        drawn[name] = str(caught.value).split()[5]
    assert drawn["train"] != drawn["test"]


def test_other_random_numbers_are_refused(arrays, monkeypatch):
    monkeypatch.setattr(datasets, "STATIC_SHA256", {"train": "0" * 64, "test": "0" * 64})
    with pytest.raises(DataIntegrityError, match="static binarization has SHA-256 .*, expected 000"):
        mnist("train", pixels="static")


# fixed


@pytest.mark.parametrize("split, name", [("train", "train"), ("validation", "valid"), ("test", "test")])
def test_fixed_pixels_are_unpacked_and_have_no_labels(split, name, fixed):
    found = mnist(split, pixels="fixed")
    assert np.array_equal(found.x.numpy(), fixed[name]) and found.x.dtype == torch.float32
    assert found.labels is None


def test_a_missing_fixed_file_is_not_fetched_and_the_message_says_what_to_do(arrays, monkeypatch):
    monkeypatch.delenv("LVMLIB_OFFLINE")
    with pytest.raises(DownloadError, match=r"binarized_mnist\.npz is missing.*is gone.*LVMLIB_DATA.*packbits"):
        mnist("train", pixels="fixed")


def test_the_fixed_test_set_in_place_of_the_training_set_is_refused(fixed, tmp_path):
    packed = np.packbits(fixed["test"], axis=1)
    np.savez(tmp_path / "binarized_mnist.npz", train=packed, valid=packed, test=packed)
    with pytest.raises(DataIntegrityError, match="expected"):
        mnist("train", pixels="fixed")


# the real files


FOLDER = Path(os.environ.get("LVMLIB_DATA") or "nowhere").absolute()
needs_mnist = pytest.mark.skipif(not (FOLDER / "mnist.npz").exists(), reason="LVMLIB_DATA has no mnist.npz")
needs_fixed = pytest.mark.skipif(not (FOLDER / "binarized_mnist.npz").exists(), reason="LVMLIB_DATA has no such file")


@needs_mnist
@pytest.mark.parametrize("pixels", ["grey", "static"])
def test_no_real_image_is_in_two_splits(pixels):
    train, validation, test = (
        rows(mnist(split, pixels=pixels, num_validation=10_000).x) for split in ("train", "validation", "test")
    )
    assert (len(train), len(validation), len(test)) == (50_000, 10_000, 10_000)
    assert not train & validation and not train & test and not validation & test


@needs_fixed
def test_no_real_image_of_the_fixed_binarization_is_in_two_splits():
    train, validation, test = (rows(mnist(split, pixels="fixed").x) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (50_000, 10_000, 10_000)
    assert not train & validation and not train & test and not validation & test


@needs_mnist
def test_the_real_images_rebuild_the_public_idx_file():
    images = read(FOLDER / "mnist.npz", datasets.MNIST.arrays)["train_images"]
    content = struct.pack(">4I", 0x803, 60_000, 28, 28) + images.tobytes()
    public = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    assert hashlib.sha256(content).hexdigest() == public


@needs_mnist
def test_the_static_binarization_of_real_images_has_their_mean():
    """Each pixel is bounded by 1, so Hoeffding's bound for 7.84 million of them: failure below 1e-9."""
    grey, static = mnist("test", pixels="grey").x.double(), mnist("test", pixels="static").x.double()
    assert abs(grey.mean() - static.mean()) < (np.log(2e9) / (2 * grey.numel())) ** 0.5
    assert 0.02 < (static != binarize(grey)).double().mean() < 0.05


@needs_mnist
@needs_fixed
def test_the_fixed_test_images_are_the_test_images_of_mnist_sorted_by_digit():
    """A pixel of grey value 0 is never on and one of 255 never off: no other order of the images passes."""
    fixed, grey = mnist("test", pixels="fixed").x, mnist("test", pixels="grey")
    x = grey.x[grey.labels.argsort(stable=True)]
    assert not ((fixed == 1) & (x == 0) | (fixed == 0) & (x == 1)).any()


@needs_mnist
def test_the_bundled_sample_is_what_its_rows_say():
    sample = datasets.mnist_sample()
    assert torch.equal(sample.x, mnist("test", pixels="static").x[sample.rows])
    assert torch.equal(sample.grey, mnist("test", pixels="grey").x[sample.rows])
    assert torch.equal(sample.labels, mnist("test", pixels="grey").labels[sample.rows])
