"""The bundled digits and the toy sets: what they hold, and what happens to a damaged file."""

import importlib.resources
import math
import pathlib

import numpy as np
import pytest
import torch

import lvmlib.datasets as datasets
from lvmlib.datasets import DataIntegrityError, bars, binarize, digits, dynamic, ring, three_gaussians

FILE = importlib.resources.files("lvmlib") / "data" / "digits.npz"


def test_splits_hold_all_images_once():
    train, test = digits("train", pixels="grey"), digits("test", pixels="grey")
    assert (train.x.shape, test.x.shape) == ((1437, 64), (360, 64))
    with np.load(FILE) as archive:
        images = torch.from_numpy(archive["images"]).float() / 16
    merged = torch.cat([train.x, test.x])
    key = lambda x: sorted(map(tuple, x.tolist()))  # noqa: E731
    assert key(merged) == key(images)


def test_no_image_of_the_test_split_is_in_the_training_split():
    train = {tuple(row) for row in digits("train", pixels="grey").x.tolist()}
    assert not train & {tuple(row) for row in digits("test", pixels="grey").x.tolist()}


def test_binary_pixels_are_one_from_eight_of_sixteen_up():
    grey, binary = digits("test", pixels="grey").x, digits("test").x
    assert torch.equal(binary, (grey * 16 >= 8).float())
    assert binary.dtype == torch.float32


def test_labels_are_the_ten_digits():
    labels = digits("train").labels
    assert labels.dtype == torch.int64
    assert sorted(set(labels.tolist())) == list(range(10))


def test_first_training_image_is_the_zero_it_is_labelled_as():
    train = digits("train")
    image = train.x[train.labels == 0].mean(0).reshape(8, 8)
    assert image[3, 4] < 0.1 < 0.6 < image[3, 2]  # a hole in the middle, a stroke beside it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: digits("valid"), r"split must be one of \('train', 'test'\), got 'valid'"),
        (lambda: digits("train", pixels="gray"), "pixels must be one of"),
        (lambda: binarize(torch.tensor([0.0, 255.0])), "pixels must lie in .* got 0 to 255; divide"),
        (lambda: binarize(torch.tensor([-0.1])), "pixels must lie in"),
        (lambda: binarize(torch.tensor([torch.nan])), "pixels must be finite, got 1 NaN"),
        (lambda: binarize(torch.tensor([0.5]), threshold=0.0), "threshold must lie in"),
        (lambda: binarize(torch.tensor([3], dtype=torch.uint8)), "binarize: pixels must be Float"),
        (lambda: dynamic(torch.tensor([0.0, 255.0])), "x must lie in .* got 0 to 255; divide"),
        (lambda: dynamic(torch.tensor([torch.nan])), "x must be finite, got 1 NaN"),
        (lambda: dynamic(torch.tensor([3], dtype=torch.uint8)), "dynamic: x must be Float"),
        (lambda: bars(0), "num_data must be at least 1"),
        (lambda: bars(3, size=0), "size must be at least 1"),
        (lambda: ring(3, noise=-1.0), "noise >= 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def write(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"<html><body>404 Not Found</body></html>",
        lambda content: content[:20_000] + bytes([content[20_000] ^ 1]) + content[20_001:],
    ],
    ids=["empty", "half", "last byte missing", "html page", "one flipped bit"],
)
def test_damaged_file_is_refused_with_its_path(damage, tmp_path):
    path = write(tmp_path / "digits.npz", damage(FILE.read_bytes()))
    with pytest.raises(DataIntegrityError, match=r"digits\.npz"):
        datasets._load_bundled(path, ("images", "labels", "test"), datasets.DIGITS_SHA256)


def test_other_numbers_in_a_valid_file_are_refused_by_checksum(tmp_path):
    with np.load(FILE) as archive:
        arrays = {name: archive[name].copy() for name in archive.files}
    arrays["images"][0, 0] ^= 1
    np.savez_compressed(tmp_path / "digits.npz", **arrays)
    with pytest.raises(DataIntegrityError, match="expected SHA-256 ab16ec58.*, got .*reinstall lvmlib"):
        datasets._load_bundled(tmp_path / "digits.npz", ("images", "labels", "test"), datasets.DIGITS_SHA256)


def test_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(DataIntegrityError, match="nowhere"):
        datasets._load_bundled(tmp_path / "nowhere.npz", ("images", "labels", "test"), datasets.DIGITS_SHA256)


def test_bars_are_unions_of_full_rows_and_columns():
    torch.manual_seed(0)
    for image in bars(50, size=3).reshape(-1, 3, 3):
        rows, columns = image.all(1), image.all(0)
        assert torch.equal(image.bool(), rows[:, None] | columns[None, :])


def test_ring_without_noise_lies_on_the_circle():
    torch.manual_seed(0)
    torch.testing.assert_close(ring(20, radius=3.0, noise=0.0).norm(dim=1), torch.full((20,), 3.0))


def test_three_gaussians_have_their_weights():
    torch.testing.assert_close(three_gaussians().prior().probs, torch.tensor([1 / 2, 1 / 3, 1 / 6]))


def test_dynamic_draws_anew_at_every_call():
    x = torch.full((3, 50), 0.5)
    assert not torch.equal(dynamic(x), dynamic(x))


def test_dynamic_draws_ones_as_often_as_the_grey_value_says():
    """Hoeffding's bound for 200,000 pixels each: failure below 1e-9."""
    grey = torch.tensor([0.1, 0.25, 0.8], dtype=torch.float64)
    found = dynamic(grey.expand(200_000, 3)).mean(0)
    assert (found - grey).abs().max() < (math.log(6e9) / 400_000) ** 0.5


def test_dynamic_keeps_certain_pixels_dtype_and_argument():
    x = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    drawn = dynamic(x)
    assert drawn.dtype == torch.float64 and set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert (drawn[0, 0], drawn[0, 2]) == (0, 1)
    assert x.tolist() == [[0.0, 0.5, 1.0]]


def test_dynamic_uses_the_random_state_of_torch():
    x = torch.full((3, 50), 0.5)
    torch.manual_seed(3)
    first = dynamic(x)
    torch.manual_seed(3)
    assert torch.equal(dynamic(x), first)


def test_dynamic_refuses_pixels_that_are_binary_already():
    with pytest.raises(ValueError, match="x must be grey, got only 0 and 1"):
        dynamic(digits("test").x)


def test_the_sample_of_mnist_has_grey_images_and_a_draw_of_their_pixels():
    sample = datasets.mnist_sample()
    assert sample.x.shape == sample.grey.shape == (500, 784) and sample.labels.shape == sample.rows.shape == (500,)
    assert set(sample.x.unique().tolist()) == {0.0, 1.0} and sample.labels.unique().tolist() == list(range(10))
    assert sample.rows[0] == 0 and sample.rows[-1] == 9999 and set(sample.rows.diff().tolist()) <= {20, 21}
    assert (sample.x[sample.grey == 0] == 0).all() and (sample.x[sample.grey == 1] == 1).all()
    between = (sample.grey > 0) & (sample.grey < 1)
    error = (sample.x - sample.grey)[between]
    assert error.mean().abs() < 4 * error.std() / len(error) ** 0.5
