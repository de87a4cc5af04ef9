"""A table that compares finished runs, made from their result files."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from lvmlib.experiments.evaluation import evaluate, mean_and_error
from lvmlib.experiments.results import ResultError
from lvmlib.experiments.runs import EVALUATION, OBJECTIVES, RESULT, Settings, Stopped, advance, begin, restore, used

# Burda, Grosse and Salakhutdinov (2016), Table 1: one stochastic layer, dynamic binarization, K = 5,000, nats
PUBLISHED = {
    ("elbo", 1): -86.76,
    ("elbo", 5): -86.47,
    ("elbo", 50): -86.35,
    ("iwae", 1): -86.76,
    ("iwae", 5): -85.54,
    ("iwae", 50): -84.78,
}
PUBLISHED_SIZES = {"data": "mnist", "z_dim": 50, "hidden_dims": [200, 200]}
SHORT = (("elbo", 1), ("elbo", 5), ("iwae", 5), ("dreg", 5))  # (objective, K)
SHORT_EPOCHS = 100
SHORT_EVALUATION = {"num_samples": 1000, "ais_images": 20, "ais_chains": 10, "ais_steps": 100}
HEAD = (
    "run",
    "data",
    "objective",
    "K",
    "epochs",
    "minutes",
    "log p(x)",
    "to the first",
    "ELBO",
    "active",
    "AIS − IS",
    "published",
)


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

    ``to_the_first`` compares with the first run on the same test images, image by image: its standard error is that of
    the difference, which is far below that of either number.
    """
    table, first = [], {}
    for name, (run, evaluation) in sorted(found.items(), key=_place):
        settings, key = run["settings"], (evaluation["data_sha256"], evaluation["num_samples"])
        values = torch.tensor(evaluation["per_image"])
        base = first.setdefault(key, values)
        comparable = all(settings[name] == value for name, value in PUBLISHED_SIZES.items()) and len(values) == 10_000
        table.append(
            {
                "run": name,
                "data": settings["data"],
                "objective": settings["objective"],
                "num_samples": settings["num_samples"],
                "seed": settings["seed"],
                "epochs": run["history"]["epoch"][-1],
                "seconds": run["seconds"],
                "log_likelihood": evaluation["log_likelihood"],
                "to_the_first": None if base is values else mean_and_error(values - base),
                "elbo": evaluation["elbo"],
                "active_units": evaluation["active_units"],
                "ais_minus_is": evaluation.get("ais", {}).get("minus_importance_sampling"),
                "published": PUBLISHED.get((settings["objective"], settings["num_samples"])) if comparable else None,
            }
        )
    return table


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
            f"{row['seconds'] / 60:.1f}",
            pair(row["log_likelihood"]),
            pair(row["to_the_first"]),
            f"{row['elbo'][0]:.2f}",
            str(row["active_units"]),
            pair(row["ais_minus_is"]),
            "" if row["published"] is None else f"{row['published']:.2f}",
        )
        for row in table
    ]
    widths = [max(map(len, column)) for column in zip(HEAD, *cells)]
    lines = [HEAD, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def make_short_runs(
    folder: Path, *, resume: bool, stop: Callable[[], bool], progress: bool, say: Callable[[str], None], command: str
) -> None:
    """Train and evaluate small runs on the digits, those that are not there yet: minutes, not hours.

    Args:
        folder: gets one folder per run.
        resume: whether runs that are there may go on; otherwise they are refused.
        stop, progress, say: as for `advance`.
        command: what to note as the origin of the results.

    Raises:
        FileExistsError: the folder holds such a run, and `resume` is false.
    """
    folders = {pair: Path(folder) / f"{pair[0]}-{pair[1]}" for pair in SHORT}
    if not resume:
        for path in folders.values():
            if used(path):
                raise FileExistsError(f"{path}: holds a run already")
    for (name, num_samples), path in folders.items():
        if not (path / RESULT).exists():
            settings = Settings.of("digits", objective=name, num_samples=num_samples, num_epochs=SHORT_EPOCHS)
            say(f"{path}: training")
            run = restore(path) if used(path) else begin(settings, path, command=command)
            advance(run, stop=stop, progress=progress)
        if not (path / EVALUATION).exists():
            say(f"{path}: evaluation")
            evaluate(path, progress=progress, command=command, **SHORT_EVALUATION)
        if stop():
            raise Stopped("stopped between two runs")


def _read(path: Path) -> dict:
    """Return a result file of a run (`ResultError` if it is none)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "averaged_sha256" in content:
            return content
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(f"{path}: not a result file ({error})") from error
    raise ResultError(f"{path}: not a result file of a run")
