"""Weights of finished runs that come with the library, and log p̂ of single test images beside them."""

import dataclasses
import importlib.resources
from pathlib import Path

import torch

from lvmlib.experiments import checkpoints
from lvmlib.experiments.checkpoints import CheckpointError
from lvmlib.experiments.evaluation import spread
from lvmlib.experiments.runs import CHECKPOINT, EVALUATION, RESULT, load_trained
from lvmlib.experiments.settings import Settings, fingerprint, networks
from lvmlib.experiments.tables import read
from lvmlib.models import GaussianLatentModel
from lvmlib.proposals import GaussianEncoder
from lvmlib.training import trained_parameters

KEPT = ("elbo-1", "iwae-5", "iwae-50")
SAMPLE = 500  # test images whose log p(x) is kept one by one: those of `mnist_sample`


def keep(folder: Path, names: tuple[str, ...], data: Path, table: list[dict]) -> None:
    """Keep the weights of some runs, and log p̂ of `SAMPLE` test images in their rows, to come with the library.

    Args:
        folder: holds the folders of the runs.
        names: of the runs; those that the table lacks are skipped.
        data: folder that gets one file per run.
        table: the rows, which are changed in place.

    Raises:
        CheckpointError: a run has no checkpoint, and its weights were not kept before.
    """
    for row in table:
        if row["run"] in names:
            path, file = Path(folder) / row["run"], weights_file(data, row["run"])
            if (path / CHECKPOINT).exists():
                settings, _, _, content = load_trained(path)
                kept = {"settings": dataclasses.asdict(settings) | {"hidden_dims": list(settings.hidden_dims)}}
                checkpoints.save(file, kept | {"averaged": content["averaged"]})
                checkpoints.previous(file).unlink(missing_ok=True)
            elif fingerprint(checkpoints.load(file)["averaged"]) != read(path / RESULT)["averaged_sha256"]:
                raise CheckpointError(f"{file}: is of another run than {path}, which has no checkpoint")
            per_image = torch.tensor(read(path / EVALUATION)["per_image"], dtype=torch.float64)
            row["sample_log_p"] = spread(per_image, SAMPLE).tolist()


def weights_file(data: Path, name: str) -> Path:
    """Return where the weights of a run are kept.

    >>> weights_file(Path("data"), "iwae-50").name
    'mnist-iwae-50.lvm'
    """
    return Path(data) / f"mnist-{name}.lvm"


def pretrained(name: str) -> tuple[GaussianLatentModel, GaussianEncoder]:
    """Return a model and its encoder as a run of the table left them, from the weights that come with the library.

    Args:
        name: of the run, one of `KEPT`.

    Raises:
        ValueError: another name.
        CheckpointError: the file is missing or damaged.
    """
    if name not in KEPT:
        raise ValueError(f"name must be {' or '.join(KEPT)}, got {name!r}")
    content = checkpoints.load(weights_file(Path(str(importlib.resources.files("lvmlib"))) / "data", name))
    settings = Settings(**content["settings"] | {"hidden_dims": tuple(content["settings"]["hidden_dims"])})
    with torch.random.fork_rng(devices=[]):
        model, encoder = networks(settings)
    for key, parameter in trained_parameters(model, encoder).items():
        parameter.data.copy_(content["averaged"][key])
    return model.requires_grad_(False), encoder.requires_grad_(False)
