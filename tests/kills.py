"""Kill runs at every point that matters, and see what they come to: ``python -m tests.kills FOLDER`` prints JSON.

One process imports everything and is forked for each run, so that a run costs a tenth of a second. A run is a call of
the command line on 23 grey digits. Hooks make events of what it does: steps, draws of an epoch, looks at the validation
images, and the calls of the operating system that write a file. At one event something happens.
"""

import contextlib
import functools
import gc
import json
import os
import resource
import signal
import sys
import types
from pathlib import Path

import torch

from lvmlib import datasets
from lvmlib.experiments import checkpoints, cli, runs, settings
from lvmlib.experiments.settings import TrustingModel

SETTINGS = ["--data", "tiny", "--objective", "dreg", "--num-samples", "2", "--epochs", "3", "--batch-size", "7"]
SETTINGS += ["--hidden-dims", "6", "--z-dim", "2", "--validate-every", "2", "--seed", "5"]
SAVE_EVERY = ["--save-every", "5"]  # of the clock below: every third step
STEPS = 12  # of the run: 23 images in batches of 7, 3 epochs


GREY = datasets.digits("train", pixels="grey").x
IMAGES = {"train": GREY[:23], "validation": (GREY[23:28] > 0.5).float(), "test": (GREY[28:36] > 0.5).float()}
TINY = settings.Source(lambda split, num_validation: IMAGES[split], 64, True, {"num_validation": 5})


class Clock:
    """A clock that advances by one second whenever somebody looks at it."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


class Events:
    """Count what a run does, and act at one event."""

    def __init__(self, at, action):
        self.at, self.action, self.names = at, action, []

    def __call__(self, name):
        self.names.append(name)
        if len(self.names) - 1 == self.at:
            self.action()

    def hook(self, owner, name, label):
        """Make events of what comes before and after a function."""
        function = getattr(owner, name)

        def hooked(*args, **kwargs):
            self(f"before {label}")
            result = function(*args, **kwargs)
            self(f"after {label}")
            return result

        setattr(owner, name, hooked)

    def install(self):
        for owner, name, label in (
            (runs.Run, "_step", "a step"),
            (runs.Run, "_draw_epoch", "the draw of an epoch"),
            (runs.Run, "_end_epoch", "the end of an epoch"),
            (runs, "iwae_bound", "validation"),
            (os, "fsync", "fsync"),
            (os, "link", "link"),
            (os, "replace", "replace"),
        ):
            self.hook(owner, name, label)
        opened = os.fdopen

        @contextlib.contextmanager
        def fdopen(handle, mode, **options):
            with opened(handle, mode, **options) as file:

                def halves(data):
                    file.write(data[: len(data) // 2])
                    file.flush()
                    self("in the middle of a file")
                    file.write(data[len(data) // 2 :])

                yield types.SimpleNamespace(write=halves, flush=file.flush, fileno=file.fileno)

        os.fdopen = fdopen


def forked(work):
    """Do something in a forked process; return its exit status as a shell has it, and what it wrote."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
            status = work()
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            status = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return (128 - status if status < 0 else status), text


def train(folder, at=-1, action=None, names=None, settings=SETTINGS):
    """Run the command line in a fork, with an action at an event."""

    def work():
        runs.time = Clock()
        events = Events(at, action)
        events.install()
        status = cli.main(["train", str(folder), *settings, *SAVE_EVERY, "--resume", "--quiet"])
        if names is not None:
            Path(names).write_text(json.dumps(events.names))
        return status

    return forked(work)


def outcome(folder):
    """Return what must not differ between two runs."""
    result = json.loads((Path(folder) / runs.RESULT).read_text())
    history = {name: result["history"][name] for name in ("epoch", "step", "bound", "validation")}
    return [result["parameters_sha256"], result["averaged_sha256"], history]


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def loadable(folder):
    """Return whether the checkpoint is good, or was not there yet."""
    path = folder / runs.CHECKPOINT
    return not runs.used(folder) or bool(checkpoints.load(path))


def killed_everywhere(folder, names, expected):
    """Kill a run at each event; and at every sixth kill what goes on from there too."""
    told = []
    for number, name in enumerate(names):
        place = folder / f"kill-{number}"
        first = train(place, number, kill)[0]
        good = [loadable(place)]
        second = None
        if number % 6 == 0:
            second = train(place, number * 7 % 31, kill)[0]
            good.append(loadable(place))
        statuses, same = [first, second, train(place)[0]], outcome(place) == expected
        left = [path.name for path in place.iterdir() if path.suffix == ".part"]
        told.append({"event": name, "statuses": statuses, "loadable": good, "left": left, "same": same})
    return told


def signalled(folder, names, expected):
    """Send signals at some events: in a step, in the validation, in the middle of a file, twice."""
    told = []
    for number, (signals, wanted, skip) in enumerate(
        (
            (["SIGTERM"], "before a step", 4),
            (["SIGINT"], "before a step", 6),
            (["SIGTERM"], "before validation", 0),
            (["SIGINT"], "in the middle of a file", 2),
            (["SIGTERM", "SIGTERM", "SIGINT"], "before a step", 5),
        )
    ):
        event = [position for position, name in enumerate(names) if name == wanted][skip]
        place = folder / f"signal-{number}"
        status, text = train(place, event, functools.partial(send, signals))
        step = checkpoints.load(place / runs.CHECKPOINT)["at"]["step"]
        last, same = train(place)[0], outcome(place) == expected
        told.append({"signals": signals, "status": status, "text": text, "step": step, "last": last, "same": same})
    return told


def send(signals):
    for name in signals:
        os.kill(os.getpid(), getattr(signal, name))


def forbid_large_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def full_disk(folder, names, expected):
    """Forbid files of more than 1,000 bytes, at the start and after some steps, and allow them again."""
    told = {}
    for when, name, skip in (("start", names[0], 0), ("later", "before a step", 7)):
        place = folder / f"full-{when}"
        event = [position for position, other in enumerate(names) if other == name][skip]
        status, text = train(place, event, forbid_large_files)
        good, files = loadable(place), sorted(path.name for path in place.iterdir())
        last, same = train(place)[0], outcome(place) == expected
        told[when] = {"status": status, "text": text, "loadable": good, "files": files, "last": last, "same": same}
    return told


def not_a_number(folder, expected, objective):
    """Let log p(x | z) be NaN from step 8 on, in one process, and go on in another."""
    place, settings = folder / f"nan-{objective}", [*SETTINGS[:3], objective, *SETTINGS[4:]]

    def work():
        whole, calls = TrustingModel.log_likelihood, []

        def broken(self, x, z):
            calls.append(1)
            return whole(self, x, z) * (float("nan") if len(calls) >= 8 else 1.0)

        TrustingModel.log_likelihood, runs.time = broken, Clock()
        return cli.main(["train", str(place), *settings, *SAVE_EVERY, "--quiet"])

    status, text = forked(work)
    content = checkpoints.load(place / runs.CHECKPOINT)
    last = train(place, settings=settings)[0]
    same = outcome(place) == expected if objective == "dreg" else None
    return {"status": status, "text": text, "step": content["at"]["step"], "last": last, "same": same}


def main(folder):
    torch.set_num_threads(1)
    runs.SOURCES["tiny"] = TINY
    names_file = folder / "names.json"
    with contextlib.redirect_stdout(sys.stderr):
        cli.main(["train", str(folder / "warm"), *SETTINGS, "--quiet"])  # torch imports much at its first step
    gc.freeze()
    whole = train(folder / "whole", names=names_file)
    again = train(folder / "again")
    expected, names = outcome(folder / "whole"), json.loads(names_file.read_text())
    other = train(folder / "other", settings=[*SETTINGS[:-1], "6"])
    told = {
        "whole": whole,
        "repeats": [again[0], outcome(folder / "again") == expected],
        "other seed": [other[0], outcome(folder / "other") == expected],
        "kills": killed_everywhere(folder, names, expected),
        "signals": signalled(folder, names, expected),
        "full disk": full_disk(folder, names, expected),
        "nan": {name: not_a_number(folder, expected, name) for name in ("dreg", "iwae", "elbo")},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
