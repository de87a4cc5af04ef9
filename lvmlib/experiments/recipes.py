"""The runs that the tables compare: what each trains, what it starts from, and how it is made where it is missing."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from lvmlib.experiments.evaluation import evaluate
from lvmlib.experiments.runs import EVALUATION, RESULT, Stopped, advance, begin, restore, used
from lvmlib.experiments.settings import Settings


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
    usual = {"optimizer": "muon", "batch_size": 250, "num_validation": 0, "precision": "bfloat16"}
    return Recipe(
        Settings.of("mnist", objective=objective, num_samples=num_samples, num_epochs=num_epochs, **usual | given),
        start,
    )


def _first(seed: int) -> Recipe:
    return _full("elbo", 1, 600, batch_size=500, learning_rate=0.015, seed=seed)


# A minute, on the bundled digits.
SHORT = {f"{name}-{k}": _short(name, k) for name, k in (("elbo", 1), ("elbo", 5), ("iwae", 5), ("dreg", 5))}
# Hours, on MNIST, in this order.
FULL = {
    "elbo-1": _first(0),
    "iwae-5": _full("iwae", 5, 150, "elbo-1", learning_rate=0.006),
    "iwae-50": _full("iwae", 50, 60, "iwae-5", learning_rate=0.005, num_backward=3),
    "dreg-50": _full("dreg", 50, 60, "iwae-5", learning_rate=0.005, num_backward=3),
    "elbo-1-seed-1": _first(1),
    "elbo-1-seed-2": _first(2),
    "elbo-5": _full("elbo", 5, 80, "elbo-1", learning_rate=0.006),
    "elbo-50": _full("elbo", 50, 4, "elbo-1", batch_size=500, learning_rate=0.002),
}


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
