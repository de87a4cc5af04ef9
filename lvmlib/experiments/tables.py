"""A table that compares finished runs, made from their result files, and the recipes of the runs that make it."""

import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lvmlib.experiments import checkpoints
from lvmlib.experiments.checkpoints import CheckpointError
from lvmlib.experiments.evaluation import evaluate, mean_and_error, spread
from lvmlib.experiments.results import ResultError
from lvmlib.experiments.runs import CHECKPOINT, EVALUATION, RESULT, Stopped, advance, begin, load_trained, restore, used
from lvmlib.experiments.settings import OBJECTIVES, Settings, fingerprint, networks
from lvmlib.models import GaussianLatentModel
from lvmlib.proposals import GaussianEncoder
from lvmlib.training import trained_parameters

# Burda, Grosse and Salakhutdinov (2016), Table 1: one stochastic layer, dynamic binarization, K = 5,000, nats
PUBLISHED = {
    ("elbo", 1): -86.76,
    ("elbo", 5): -86.47,
    ("elbo", 50): -86.35,
    ("iwae", 1): -86.76,
    ("iwae", 5): -85.54,
    ("iwae", 50): -84.78,
}
# github.com/nbip/IWAE at 3a5e38b, the best public re-runs that we know: dynamic binarization, K = 5,000, 100 latents
RERUN = {
    ("elbo", 1): -86.35,
    ("elbo", 5): -86.10,
    ("elbo", 50): -86.06,
    ("iwae", 1): -86.35,
    ("iwae", 5): -85.18,
    ("iwae", 50): -84.59,
    ("dreg", 1): -86.08,
    ("dreg", 5): -84.90,
    ("dreg", 50): -84.32,
}
PUBLISHED_SIZES = {"data": "mnist", "z_dim": 50, "hidden_dims": [200, 200]}
SAMPLE = 500  # test images whose log p(x) is kept one by one where the weights are kept too
FIRST = 1000  # test images that are easier than the rest of MNIST's
HEAD = (
    "run",
    "data",
    "objective",
    "K",
    "epochs",
    "hours",
    "log p(x)",
    "to the first",
    "ELBO",
    "active",
    "AIS − IS",
    "published",
    "re-run",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a row of the table is made.

    Args:
        settings: of the run.
        start: name of the run whose averaged parameters it begins with.
        evaluation: options of `evaluate`.
    """

    settings: Settings
    start: str | None = None
    evaluation: Mapping = dataclasses.field(default_factory=dict)


def _short(objective: str, num_samples: int) -> Recipe:
    settings = Settings.of("digits", objective=objective, num_samples=num_samples, num_epochs=100)
    return Recipe(settings, None, {"num_samples": 1000, "ais_images": 20, "ais_chains": 10, "ais_steps": 100})


def _full(objective: str, num_samples: int, num_epochs: int, start: str | None = None, **given) -> Recipe:
    usual = {"optimizer": "muon", "batch_size": 250, "num_validation": 0}
    return Recipe(
        Settings.of("mnist", objective=objective, num_samples=num_samples, num_epochs=num_epochs, **usual | given),
        start,
    )


# A minute, on the bundled digits.
SHORT = {f"{name}-{k}": _short(name, k) for name, k in (("elbo", 1), ("elbo", 5), ("iwae", 5), ("dreg", 5))}
# Hours, on MNIST, in this order; the weights and log p(x) of those in KEPT come with the library.
FULL = {
    "elbo-1": _full("elbo", 1, 250),
    "iwae-5": _full("iwae", 5, 80, "elbo-1", learning_rate=0.006),
    "iwae-50": _full("iwae", 50, 25, "elbo-1", learning_rate=0.005),
    "dreg-50": _full("dreg", 50, 25, "elbo-1", learning_rate=0.005),
    "elbo-1-seed-1": _full("elbo", 1, 250, seed=1),
    "elbo-1-seed-2": _full("elbo", 1, 250, seed=2),
    "elbo-5": _full("elbo", 5, 80, "elbo-1", learning_rate=0.006),
    "elbo-50": _full("elbo", 50, 25, "elbo-1", learning_rate=0.005),
}
KEPT = ("elbo-1", "iwae-5", "iwae-50")


def finished(folder: Path) -> tuple[dict[str, tuple[dict, dict]], list[str]]:
    """Return the results of the runs in a folder, by name, and remarks on runs that have no place in a table.

    Args:
        folder: holds the folders of runs.

    Raises:
        ResultError: a result file is damaged.
    """
    found, remarks = {}, []
    for path in sorted(path for path in Path(folder).iterdir() if path.is_dir() and used(path)):
        if not (path / RESULT).exists():
            remarks.append(f"{path}: is not finished; go on with: python -m lvmlib train {path} --resume")
        elif not (path / EVALUATION).exists():
            remarks.append(f"{path}: is not evaluated; do so with: python -m lvmlib evaluate {path}")
        else:
            run, evaluation = _read(path / RESULT), _read(path / EVALUATION)
            if run["averaged_sha256"] == evaluation["averaged_sha256"]:
                found[path.name] = (run, evaluation)
            else:
                remarks.append(f"{path}: the evaluation is of another state of the run; evaluate it again")
    return found, remarks


def rows(found: dict[str, tuple[dict, dict]]) -> list[dict]:
    """Return one row per run, in the order of data, objective, K and seed.

    ``epochs`` and ``seconds`` count what a warm start had before too, if that run is here. ``to_the_first`` compares
    with the first run on the same test images, image by image: its standard error is that of the difference, which is
    far below that of either number.
    """
    table, first = [], {}
    for name, (run, evaluation) in sorted(found.items(), key=_place):
        settings, key = run["settings"], (evaluation["data_sha256"], evaluation["num_samples"])
        values = torch.tensor(evaluation["per_image"])
        base = first.setdefault(key, values)
        whole, cell = len(values) == 10_000, (settings["objective"], settings["num_samples"])
        comparable = all(settings[name] == value for name, value in PUBLISHED_SIZES.items()) and whole
        line = _line(run, found)
        table.append(
            {
                "run": name,
                "data": settings["data"],
                "objective": settings["objective"],
                "num_samples": settings["num_samples"],
                "seed": settings["seed"],
                "optimizer": settings["optimizer"],
                "learning_rate": settings["learning_rate"],
                "batch_size": settings["batch_size"],
                "starts_from": line[1][0] if len(line) > 1 else None,
                "epochs": sum(part["history"]["epoch"][-1] for _, part in line),
                "seconds": round(sum(part["seconds"] for _, part in line)),
                "history": {"bound": [round(value, 3) for value in run["history"]["bound"]]},
                "log_likelihood": evaluation["log_likelihood"],
                "to_the_first": None if base is values else mean_and_error(values - base),
                "elbo": evaluation["elbo"],
                "effective_samples": evaluation["effective_samples"],
                "num_samples_of_evaluation": evaluation["num_samples"],
                "seconds_of_evaluation": evaluation["seconds"],
                "active_units": evaluation["active_units"],
                "ais_minus_is": evaluation.get("ais", {}).get("minus_importance_sampling"),
                "ais": evaluation.get("ais"),
                "first_images": mean_and_error(values[:FIRST]) if whole else None,
                "published": PUBLISHED.get(cell) if comparable else None,
                "rerun": RERUN.get(cell) if comparable else None,
            }
        )
    return table


def _line(run: dict, found: dict[str, tuple[dict, dict]]) -> list[tuple[str, dict]]:
    """Return a run, the run that it began with, and so on, as far as they are here; the names of all but the first."""
    by_weights = {other["averaged_sha256"]: (name, other) for name, (other, _) in found.items()}
    line = [("", run)]
    while (start := line[-1][1]["settings"].get("start")) in by_weights:
        line.append(by_weights[start])
    return line


def _place(item: tuple[str, tuple[dict, dict]]) -> tuple:
    """Return what the rows are sorted by."""
    settings = item[1][0]["settings"]
    objective = list(OBJECTIVES).index(settings["objective"])
    return settings["data"], objective, settings["num_samples"], settings["seed"], item[0]


def markdown(table: list[dict]) -> str:
    """Return the rows as a table in Markdown; numbers in nats per image, ± is a standard error over the images."""
    pair = lambda value: "" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"  # noqa: E731
    cells = [
        (
            row["run"],
            row["data"],
            row["objective"],
            str(row["num_samples"]),
            f"{row['epochs']:.4g}",
            f"{row['seconds'] / 3600:.2f}",
            pair(row["log_likelihood"]),
            pair(row["to_the_first"]),
            f"{row['elbo'][0]:.2f}",
            str(row["active_units"]),
            pair(row["ais_minus_is"]),
            "" if row["published"] is None else f"{row['published']:.2f}",
            "" if row["rerun"] is None else f"{row['rerun']:.2f}",
        )
        for row in table
    ]
    widths = [max(map(len, column)) for column in zip(HEAD, *cells)]
    lines = [HEAD, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def make_runs(
    recipes: Mapping[str, Recipe],
    folder: Path,
    *,
    resume: bool,
    stop: Callable[[], bool],
    progress: bool,
    say: Callable[[str], None],
    command: str,
) -> None:
    """Train and evaluate the runs of some recipes, those that are not there yet.

    Args:
        recipes: by the name of the run, each after the one that it starts from.
        folder: gets one folder per run.
        resume: whether runs that are there may go on; otherwise they are refused.
        stop, progress, say: as for `advance`.
        command: what to note as the origin of the results.

    Raises:
        FileExistsError: the folder holds such a run, and `resume` is false.
        SettingsError: a run that is there has other settings than its recipe.
    """
    folders = {name: Path(folder) / name for name in recipes}
    if not resume:
        for path in folders.values():
            if used(path):
                raise FileExistsError(f"{path}: holds a run already")
    for name, path in folders.items():
        recipe = recipes[name]
        if not (path / RESULT).exists():
            say(f"{path}: training")
            if used(path):
                given = dataclasses.asdict(recipe.settings) | {"hidden_dims": recipe.settings.hidden_dims}
                run = restore(path, given={key: value for key, value in given.items() if key != "start"})
            else:
                start = None if recipe.start is None else folders[recipe.start]
                run = begin(recipe.settings, path, command=command, init_from=start)
            advance(run, stop=stop, progress=progress, say=say)
        if not (path / EVALUATION).exists():
            say(f"{path}: evaluation")
            evaluate(path, progress=progress, command=command, **recipe.evaluation)
        if stop():
            raise Stopped("stopped between two runs")


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
            elif fingerprint(checkpoints.load(file)["averaged"]) != _read(path / RESULT)["averaged_sha256"]:
                raise CheckpointError(f"{file}: is of another run than {path}, which has no checkpoint")
            per_image = torch.tensor(_read(path / EVALUATION)["per_image"], dtype=torch.float64)
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


def _read(path: Path) -> dict:
    """Return a result file of a run (`ResultError` if it is none)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "averaged_sha256" in content:
            return content
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(f"{path}: not a result file ({error})") from error
    raise ResultError(f"{path}: not a result file of a run")
