"""A table that compares finished runs, made from their result files."""

import json
from pathlib import Path

import torch

from lvmlib.experiments.evaluation import mean_and_error
from lvmlib.experiments.results import ResultError
from lvmlib.experiments.runs import EVALUATION, RESULT, used
from lvmlib.experiments.settings import OBJECTIVES

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
            run, evaluation = read(path / RESULT), read(path / EVALUATION)
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
                "num_backward": settings.get("num_backward"),
                "precision": settings.get("precision", "float32"),
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


def read(path: Path) -> dict:
    """Return a result file of a run (`ResultError` if it is none)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "averaged_sha256" in content:
            return content
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(f"{path}: not a result file ({error})") from error
    raise ResultError(f"{path}: not a result file of a run")
