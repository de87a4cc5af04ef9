"""Long trainings of an autoencoder, which can be killed at any moment and go on bit for bit as if they had not been.

A run lives in a folder. What decides its numbers is in `Settings`; where it stands is in a checkpoint. Both are enough
to go on: the parameters and their averages, the optimizer's moments, torch's random state now and at the start of the
epoch, the order of the images and the position in it. The promise holds on one machine with one number of threads.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lvmlib.bounds import iwae_bound
from lvmlib.experiments import checkpoints
from lvmlib.experiments.checkpoints import CheckpointError
from lvmlib.experiments.results import provenance, write_result
from lvmlib.experiments.settings import (
    OBJECTIVES,
    OPTIMIZERS,
    SOURCES,
    Settings,
    SettingsError,
    decay,
    fingerprint,
    networks,
)
from lvmlib.laws import BernoulliVector
from lvmlib.models import GaussianLatentModel, check_data
from lvmlib.progress import bar
from lvmlib.proposals import GaussianEncoder
from lvmlib.training import NonFiniteError, broken_terms, check_step, trained_parameters

CHECKPOINT, RESULT, EVALUATION = "checkpoint.lvm", "run.json", "evaluation.json"
AVERAGE_EVERY = 10  # steps
AVERAGE_EPOCHS = 16  # longest memory of the averages
VALIDATION_SAMPLES = 50
ROWS = 5000  # z's per pass of the decoder where nothing is trained


class Stopped(Exception):
    """A run was asked to stop, and has saved where it stands."""


@dataclasses.dataclass
class Position:
    """Where a run stands: steps and whole epochs done, images and sum of the objective in the epoch since, seconds."""

    step: int = 0
    epoch: int = 0
    images: int = 0
    total: float = 0.0
    seconds: float = 0.0


class Run:
    """A training and where it stands. Make one with `begin` or `restore`, and let `advance` bring it to its end."""

    def __init__(self, folder: Path, settings: Settings, command: str):
        self.folder, self.settings, self.command, self.at = folder, settings, command, Position()
        self.source = SOURCES[settings.data]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        x, validation = (self.source.images(split, settings.num_validation) for split in ("train", "validation"))
        if settings.batch_size > len(x):
            raise SettingsError(f"batch_size must be at most {len(x)}, the training images, got {settings.batch_size}")
        if not self.source.grey:
            check_data(x, BernoulliVector(torch.zeros_like(x[0])))
        self.checksum = fingerprint({"train": x, "validation": validation})
        torch.manual_seed(settings.seed)  # callers put the caller's random state back
        model, encoder = networks(settings, x.mean(0), training=True)
        self.x, self.validation = x.to(self.device), validation.to(self.device)
        self.model, self.encoder = model.to(self.device), encoder.to(self.device)
        self.named = trained_parameters(self.model, self.encoder)
        self.optimizers = OPTIMIZERS[settings.optimizer](list(self.named.values()), settings.learning_rate)
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.full_rates = [group["lr"] for group in self.groups]
        self.averaged_nets = tuple(net.to(self.device) for net in networks(settings))
        self.averaged = trained_parameters(*self.averaged_nets)
        self.objective = OBJECTIVES[settings.objective](settings.num_samples, settings.num_backward)
        self.history: dict[str, list] = {"epoch": [], "step": [], "seconds": [], "bound": [], "validation": []}
        self.changes: list[str] = []  # of versions, threads or device since the run was saved
        self.order: Tensor | None = None  # of this epoch's images; None between two epochs
        self.images = torch.empty_like(self.x)  # of this epoch, in its order
        torch.manual_seed(settings.seed + 1)
        self.random = self.random_at_epoch = random_state(self.device)
        self.set_parameters(self.named)

    def set_parameters(self, values: dict[str, Tensor]) -> None:
        """Take these parameters, also as the averages."""
        for name in self.named:
            self.named[name].data.copy_(values[name])
            self.averaged[name].data.copy_(values[name])

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps in an epoch."""
        return math.ceil(len(self.x) / self.settings.batch_size)

    @property
    def share(self) -> float:
        """Return the share of the run that is done."""
        if self.settings.num_epochs is None:
            return min(1.0, self.at.seconds / self.settings.time_limit)
        return self.at.step / (self.settings.num_epochs * self.steps_per_epoch)

    @property
    def finished(self) -> bool:
        """Return whether nothing is left to do: the end of the last epoch was looked at."""
        return self.share >= 1.0 and self.order is None

    def wake(self) -> None:
        """Make what is not saved: this epoch's images, and torch's random state."""
        if self.order is not None:
            order = self.order
            set_random_state(self.random_at_epoch)
            self._draw_epoch()
            if not torch.equal(self.order, order):
                raise CheckpointError(f"{self.folder / CHECKPOINT}: this torch shuffles the images in another order")
        set_random_state(self.random)
        self.clock = time.monotonic()

    def forward(self) -> None:
        """Do the next thing: a step, or what comes between two epochs."""
        if self.order is None:
            self.random_at_epoch = random_state(self.device)
            self._draw_epoch()
        self._step()
        if self.at.images == len(self.x) or (self.settings.num_epochs is None and self.share >= 1.0):
            self._end_epoch()

    def _draw_epoch(self) -> None:
        """Draw the order of the images, and their pixels where these are grey."""
        self.order = torch.randperm(len(self.x))
        for rows in torch.arange(len(self.x)).split(1000):  # no second copy of all images
            x = self.x[self.order[rows].to(self.device)]
            # what `datasets.dynamic` draws, without its checks, which take as long as the draw
            self.images[rows[0] : rows[-1] + 1] = torch.rand_like(x) < x if self.source.grey else x

    def _step(self) -> None:
        at, size = self.at, self.settings.batch_size
        x = self.images[at.images : at.images + size]
        for group, rate in zip(self.groups, self.full_rates, strict=True):
            group["lr"] = rate * decay(self.share)
        try:
            values = self.objective(self.model, self.encoder, x)
        except NonFiniteError as error:  # the weights or the scales that the objective met
            raise NonFiniteError(f"{self._where()}: {error}{broken_terms(self.model, self.encoder, x)}") from error
        for parameter in self.named.values():
            parameter.grad = None
        (-values.mean()).backward()
        total = values.detach().sum().item()
        gradients = [parameter.grad for parameter in self.named.values() if parameter.grad is not None]
        if not (math.isfinite(total) and math.isfinite(nn.utils.get_total_norm(gradients).item())):
            self._refuse(values)
        for optimizer in self.optimizers:
            optimizer.step()
        at.step, at.images, at.total = at.step + 1, at.images + len(x), at.total + total
        if at.step % AVERAGE_EVERY == 0 or at.step < AVERAGE_EVERY:
            self._average()
        now = time.monotonic()
        at.seconds, self.clock = at.seconds + now - self.clock, now

    def _where(self) -> str:
        return f"step {self.at.step + 1} (epoch {self.at.epoch + 1})"

    def _refuse(self, values: Tensor) -> None:
        """Raise a `NonFiniteError` with the term or the parameter that is not finite, if there is one."""
        index = self.order[self.at.images : self.at.images + len(values)].to(self.device)
        images = self.images[self.at.images : self.at.images + len(values)]
        terms = lambda bad: broken_terms(self.model, self.encoder, images[torch.isin(index, bad)])  # noqa: E731
        check_step(values, self.named, index, self._where(), terms)

    def _average(self) -> None:
        """Let the averages forget: their memory is a tenth of the run so far, or 16 epochs if that is less."""
        memory = min(self.at.step / 10, AVERAGE_EPOCHS * self.steps_per_epoch) / AVERAGE_EVERY
        for name, average in self.averaged.items():
            average.data.lerp_(self.named[name].data, 1 / max(1.0, memory))

    def _end_epoch(self) -> None:
        """Note how the epoch went, and look at the validation images."""
        at, settings = self.at, self.settings
        last = self.share >= 1.0
        watched = last or (at.epoch + 1) % settings.validate_every == 0
        value = self.validate() if watched and len(self.validation) else None
        row = (at.epoch + at.images / len(self.x), at.step, round(at.seconds, 2), at.total / at.images, value)
        for name, number in zip(self.history, row, strict=True):
            self.history[name].append(number)
        at.epoch, at.images, at.total, self.order = at.epoch + 1, 0, 0.0, None

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean of log p̂ with 50 samples over the validation images, at the averaged parameters.

        The random numbers are the same each time, and none are taken from the training.
        """
        with own_random_state(self.device):
            torch.manual_seed(0)
            batches = self.validation.split(ROWS // VALIDATION_SAMPLES)
            model, encoder = self.averaged_nets
            return torch.cat([iwae_bound(model, x, encoder, VALIDATION_SAMPLES) for x in batches]).mean().item()

    # what is saved

    def save(self) -> None:
        """Write the checkpoint."""
        self.random = random_state(self.device)
        checkpoints.save(self.folder / CHECKPOINT, self.content())

    def content(self) -> dict:
        """Return what a checkpoint holds."""
        return {
            "settings": dataclasses.asdict(self.settings) | {"hidden_dims": list(self.settings.hidden_dims)},
            "command": self.command,
            "made_with": self.made_with(),
            "data": self.checksum,
            "at": dataclasses.asdict(self.at),
            "history": self.history,
            "order": None if self.order is None else self.order.int(),
            "random": self.random,
            "random_at_epoch": self.random_at_epoch,
            "parameters": {name: parameter.data for name, parameter in self.named.items()},
            "averaged": {name: parameter.data for name, parameter in self.averaged.items()},
            "moments": {
                name: state for name, state in zip(self.named, map(self.moments, self.named.values())) if state
            },
        }

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return what the optimizer keeps for a parameter; nothing before the first step."""
        states = [optimizer.state[parameter] for optimizer in self.optimizers if parameter in optimizer.state]
        return dict(states[0]) if states else {}

    def _moments_expected(self) -> dict[str, Tensor]:
        """Return tensors like those that the optimizers will keep, by name."""
        names, expected = {parameter: name for name, parameter in self.named.items()}, {}
        for optimizer in self.optimizers:
            adam = isinstance(optimizer, torch.optim.Adam)
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = names[parameter]
                keys = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
                expected |= {f"{name}.{key}": parameter for key in keys}
                expected |= {f"{name}.step": torch.zeros(())} if adam else {}
        return expected

    def made_with(self) -> dict:
        """Return the command, the versions, and the number of threads and the device that decide the last digits."""
        return provenance(self.command) | {"threads": torch.get_num_threads(), "device": self.device.type}

    def take(self, content: dict, path: Path) -> None:
        """Take over what a checkpoint holds.

        Raises:
            CheckpointError: it belongs to other networks or other data.
        """
        if content["data"] != self.checksum:
            raise CheckpointError(f"{path}: was made from other training images")
        check_parameters(path, content, self.named)
        if content["moments"]:
            _check_part(path, "moments", content["moments"], self._moments_expected())
        now = self.made_with()
        self.changes = [
            f"{name} {was} then, {now[name]} now" for name, was in content["made_with"].items() if now[name] != was
        ]
        self.at, self.history = Position(**content["at"]), content["history"]
        self.order = None if content["order"] is None else content["order"].long()
        self.random, self.random_at_epoch = content["random"], content["random_at_epoch"]
        for name in self.named:
            self.named[name].data.copy_(content["parameters"][name])
            self.averaged[name].data.copy_(content["averaged"][name])
        names = {parameter: name for name, parameter in self.named.items()}
        for optimizer in self.optimizers:
            kept = [content["moments"].get(names[p]) for group in optimizer.param_groups for p in group["params"]]
            state = {number: moments for number, moments in enumerate(kept) if moments is not None}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def write_result(self) -> dict:
        """Write what the run came to, and return it."""
        result = self.made_with() | {
            "settings": dataclasses.asdict(self.settings),
            "seconds": round(self.at.seconds, 1),
            "steps": self.at.step,
            "data_sha256": self.checksum,
            "averaged_sha256": fingerprint(self.averaged),
            "parameters_sha256": fingerprint(self.named),
            "history": self.history,
        }
        write_result(self.folder / RESULT, result, rows=True)
        return result

    def left(self) -> float:
        """Return how many seconds the run will take from here, as far as can be said."""
        if self.settings.num_epochs is None:
            return self.settings.time_limit - self.at.seconds
        return self.at.seconds * (1 / self.share - 1) if self.share > 0 else math.inf


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return torch's random states, as tensors."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(states: dict[str, Tensor]) -> None:
    """Set torch's random states."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def own_random_state(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context in which random numbers may be drawn and seeded as if nobody else did."""
    return torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else [])


def check_parameters(path: Path, content: dict, expected: dict[str, Tensor]) -> None:
    """Refuse parameters or averages of other names, shapes or dtypes than expected (`CheckpointError`)."""
    for part in ("parameters", "averaged"):
        _check_part(path, part, content[part], expected)


def _check_part(path: Path, part: str, found: dict, expected: dict[str, Tensor]) -> None:
    have, right = (
        {name: f"{tuple(value.shape)} {value.dtype}" for name, value in tensors}
        for tensors in (checkpoints.tensors(found), expected.items())
    )
    differences = [
        f"{name} is {have.get(name, 'missing')} and should be {right.get(name, 'missing')}"
        for name in dict.fromkeys([*right, *have])
        if have.get(name) != right.get(name)
    ]
    if differences:
        raise CheckpointError(f"{path}: {part} of other networks: {'; '.join(differences[:3])}")


PARTS = ("settings", "command", "made_with", "data", "at", "history", "order", "random", "random_at_epoch")
PARTS = (*PARTS, "parameters", "averaged", "moments")


def settings_in(content: dict, path: Path) -> Settings:
    """Return the settings in a checkpoint; refuse one that lacks a part (`CheckpointError`)."""
    if missing := [part for part in PARTS if part not in content]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
    try:
        return Settings(**content["settings"] | {"hidden_dims": tuple(content["settings"]["hidden_dims"])})
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: has settings that this lvmlib does not know ({error})") from error


# ------------------------------------------------------------------------------------------------ begin, go on, advance


def used(folder: Path) -> list[str]:
    """Return the files of a run that a folder holds."""
    names = (CHECKPOINT, checkpoints.previous(folder / CHECKPOINT).name, RESULT, EVALUATION)
    return [name for name in names if (folder / name).exists()]


def begin(
    settings: Settings,
    folder: Path,
    *,
    command: str = "lvmlib.experiments.runs",
    init_from: Path | None = None,
    force: bool = False,
) -> Run:
    """Return a new run, and write its first checkpoint.

    Args:
        settings: what to train. `start` follows from `init_from`.
        folder: where the run lives; made if it is not there.
        command: what to note as the origin of the results.
        init_from: checkpoint, or folder of a run, whose averaged parameters the run starts with.
        force: whether a run that is in the folder may be deleted, once everything else is in order.

    Raises:
        FileExistsError: the folder holds a run, and `force` is false.
        SettingsError: the settings do not fit the data.
        CheckpointError: the folder cannot be written to, or `init_from` does not fit.
    """
    folder = Path(folder)
    found = used(folder)
    if found and not force:
        raise FileExistsError(f"{folder}: holds a run already ({', '.join(found)})")
    start = None if init_from is None else start_of(init_from, settings)
    with own_random_state(_device()):
        run = Run(folder, dataclasses.replace(settings, start=start and fingerprint(start)), command)
        if start is not None:
            run.set_parameters(start)
        with checkpoints.explained(folder / CHECKPOINT, 0):
            folder.mkdir(parents=True, exist_ok=True)
            for name in found:
                (folder / name).unlink()
        _sweep(folder)
        set_random_state(run.random)
        run.save()
    return run


def start_of(init_from: Path, settings: Settings) -> dict[str, Tensor]:
    """Return the averaged parameters of a checkpoint, of the run in a folder, or of weights that were kept.

    Raises:
        CheckpointError: the file is damaged, or belongs to other networks.
    """
    path = init_from / CHECKPOINT if init_from.is_dir() else init_from
    content = checkpoints.load(path)
    if "averaged" not in content:
        raise CheckpointError(f"{path}: lacks averaged")
    with own_random_state(_device()):
        expected = trained_parameters(*networks(settings))
    _check_part(path, "averaged", content["averaged"], expected)
    return content["averaged"]


def restore(folder: Path, *, given: dict | None = None, fall_back: bool = False) -> Run:
    """Return the run in a folder, as it was when it was saved.

    Args:
        folder: where the run lives.
        given: settings that it must have.
        fall_back: whether the checkpoint before the last one may be used where the last is damaged.

    Raises:
        CheckpointError: there is none, or it is damaged.
        SettingsError: its settings are others than those given; lists the differences.
    """
    folder = Path(folder)
    _sweep(folder)
    content, path = checkpoints.load_or_previous(folder / CHECKPOINT, fall_back)
    settings = settings_in(content, path)
    stored = dataclasses.asdict(settings)
    differences = [
        f"{name} is {stored[name]} there, not {value}" for name, value in (given or {}).items() if stored[name] != value
    ]
    if differences:
        raise SettingsError(f"{path}: the run has other settings: {'; '.join(differences)}")
    with own_random_state(_device()):
        run = Run(folder, settings, content["command"])
        run.take(content, path)
    if path != folder / CHECKPOINT:
        checkpoints.put_previous_back(folder / CHECKPOINT)
    checkpoints.probe(folder / CHECKPOINT, (folder / CHECKPOINT).stat().st_size)
    return run


def advance(
    run: Run,
    *,
    save_every: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Bring a run to its end, and write its result.

    Args:
        run: from `begin` or `restore`.
        save_every: seconds between two checkpoints.
        stop: asked after each step; if true the run saves and raises `Stopped`.
        progress: show a progress bar.
        say: called with a line of text after each look at the validation images.

    Returns:
        What stands in the result file ``run.json``.

    Raises:
        Stopped: as asked.
        NonFiniteError: the objective, a gradient or a parameter is NaN or infinite; the last checkpoint remains.
        CheckpointError: a checkpoint cannot be written; the last one remains.
    """
    with own_random_state(run.device), contextlib.closing(_bar(run, progress)) as shown:
        run.wake()
        saved = time.monotonic()
        while not run.finished:
            run.forward()
            _show(run, shown, say)
            if stop():
                run.save()
                raise Stopped(f"stopped after step {run.at.step}, {100 * run.share:.1f} % of the run")
            if time.monotonic() - saved >= save_every:
                run.save()
                saved = time.monotonic()
        run.save()
    return run.write_result()


def _bar(run: Run, progress: bool):
    """Return the progress bar of a run, in steps, or in seconds where the time is limited."""
    by_time = run.settings.num_epochs is None
    shown = bar([], "train", "s" if by_time else "step", show=progress)
    shown.total = int(run.settings.time_limit) if by_time else run.settings.num_epochs * run.steps_per_epoch
    shown.n = shown.initial = int(run.at.seconds) if by_time else run.at.step
    return shown


def _show(run: Run, shown, say: Callable[[str], None]) -> None:
    """Show where a run stands."""
    done = int(run.at.seconds) if run.settings.num_epochs is None else run.at.step
    history = run.history
    if run.order is not None:
        bound, epoch = run.at.total / run.at.images, run.at.epoch + 1
    else:
        bound, epoch = history["bound"][-1], run.at.epoch
    if not shown.disable:
        shown.set_postfix_str(f"epoch {epoch}, {bound:.2f} nats", refresh=False)
        shown.update(min(done, shown.total) - shown.n)
    watched = run.order is None and (run.finished or run.at.epoch % run.settings.validate_every == 0)
    if watched:
        seen = "" if history["validation"][-1] is None else f", validation {history['validation'][-1]:.2f}"
        say(
            f"epoch {epoch}, step {run.at.step}: bound {bound:.2f}{seen} nats; "
            f"{_clock(run.at.seconds)} gone, {_clock(run.left())} left"
        )


def _clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds.

    >>> _clock(3725.0)
    '1:02:05'
    """
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _sweep(folder: Path) -> None:
    for name in (CHECKPOINT, RESULT, EVALUATION):
        checkpoints.sweep(folder / name)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_trained(path: Path, *, fall_back: bool = False) -> tuple[Settings, GaussianLatentModel, GaussianEncoder, dict]:
    """Return the settings of a run, its model and encoder at the averaged parameters, and its position.

    Args:
        path: checkpoint, or folder of a run.
        fall_back: whether the checkpoint before the last one may be used where the last is damaged.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(path) / CHECKPOINT if Path(path).is_dir() else Path(path)
    content, path = checkpoints.load_or_previous(path, fall_back)
    settings = settings_in(content, path)
    with own_random_state(_device()):
        model, encoder = networks(settings)
    named = trained_parameters(model, encoder)
    check_parameters(path, content, named)
    for name, parameter in named.items():
        parameter.data.copy_(content["averaged"][name])
    return settings, model.to(_device()).requires_grad_(False), encoder.to(_device()).requires_grad_(False), content
