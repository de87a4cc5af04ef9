"""The command line of long runs, ``python -m lvmlib``: train, evaluate, table."""

import argparse
import dataclasses
import difflib
import math
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from lvmlib.experiments import checkpoints, kept, recipes, runs, tables
from lvmlib.experiments.evaluation import evaluate
from lvmlib.experiments.results import ResultError, provenance, write_result
from lvmlib.experiments.runs import CHECKPOINT, EVALUATION, Stopped
from lvmlib.experiments.settings import (
    OBJECTIVES,
    OPTIMIZERS,
    PRECISIONS,
    SOURCES,
    Settings,
    SettingsError,
    choice,
    fingerprint,
)
from lvmlib.progress import in_notebook
from lvmlib.training import NonFiniteError

PROGRAM = "python -m lvmlib"
DONE, FAILED, MISUSED = 0, 1, 2
FALL_BACK = "use the checkpoint before the last one if the last is damaged"
SETTINGS = {field.name: field.name for field in dataclasses.fields(Settings) if field.name != "start"}
SETTINGS |= {"num_epochs": "epochs", "num_backward": "backward_samples"}  # the options that give them
EXAMPLES = {
    "train": """
examples:
  python -m lvmlib train runs/small --epochs 50
  python -m lvmlib train runs/iwae-5 --data mnist --objective iwae --num-samples 5 --time-limit 8h
  python -m lvmlib train runs/iwae-5 --resume
  python -m lvmlib train runs/warm --data mnist --objective iwae --num-samples 50 --init-from runs/elbo-1

Ctrl-C and SIGTERM save and stop (exit status 130 and 143); --resume goes on from there, bit for bit, and after a
SIGKILL or a power cut from the last checkpoint. Status 1: it failed, 2: it was called wrongly.""",
    "evaluate": """
examples:
  python -m lvmlib evaluate runs/iwae-5
  python -m lvmlib evaluate runs/small --num-samples 1000 --num-images 100 --ais-images 0""",
    "table": """
examples:
  python -m lvmlib table runs
  python -m lvmlib table runs --output table.json
  python -m lvmlib table runs/short --short
  python -m lvmlib table runs/mnist --full --resume --output lvmlib/data/mnist_table.json --force --keep lvmlib/data""",
}


class Signals:
    """Note SIGINT and SIGTERM instead of dying of them; a signal that was ignored before stays ignored."""

    def __init__(self):
        self.caught: int | None = None

    def __enter__(self) -> "Signals":
        wanted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        self.before = {number: signal.signal(number, self._note) for number in wanted}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.caught = self.caught or number

    def __call__(self) -> bool:
        """Return whether one came."""
        return self.caught is not None


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str):
        self.exit(MISUSED, f"{self.prog}: {message}\n")


def count(minimum: int) -> Callable[[str], int]:
    """Return a function that reads a whole number of at least `minimum`.

    >>> count(1)("12")
    12
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return read


def positive(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be finite and above 0, got {text}")
    return value


def duration(text: str) -> float:
    """Read a time in seconds, minutes or hours.

    >>> duration("90"), duration("15m"), duration("1.5h")
    (90.0, 900.0, 5400.0)
    """
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return positive(text.rstrip("smh")) * (units[text[-1]] if text[-1:] in units else 1)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 15m or 8h, got {text!r}") from None


def one_of(allowed: Collection[str]) -> Callable[[str], str]:
    """Return a function that reads one of some names."""

    def read(text: str) -> str:
        try:
            choice("", text, list(allowed))
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None
        return text

    return read


def parser() -> Parser:
    """Return the parser of all commands."""
    top = Parser(
        prog=PROGRAM,
        description="Train and evaluate autoencoders for hours, and compare them.",
        epilog="Each command has its own --help, with examples.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{train,evaluate,table}")
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    for name, help_text, add in (
        ("train", "train an autoencoder, or go on with one", _add_train),
        ("evaluate", "estimate log p(x) of the test images under a trained one", _add_evaluate),
        ("table", "compare the runs in a folder", _add_table),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text, epilog=EXAMPLES[name], **options)
        add(command)
        command.add_argument("--threads", type=count(1), default=1, help="threads of torch (default 1)")
        command.add_argument("--quiet", action="store_true", help="show no progress")
    return top


def _add_train(command: Parser) -> None:
    """Add the options of train. Those of the run have no default here: a resumed run has them already."""
    command.add_argument("folder", type=Path, help="where the run lives")
    what = command.add_argument_group("what to train (kept with the run; with --resume not needed again)")
    length = what.add_mutually_exclusive_group()
    for group, name, kind, metavar, text in (
        (what, "data", one_of(SOURCES), None, "digits (bundled, 8x8) or mnist; default digits"),
        (what, "objective", one_of(OBJECTIVES), None, "elbo, iwae or dreg; default elbo"),
        (what, "num-samples", count(1), "K", "samples per image; default 1"),
        (
            what,
            "backward-samples",
            count(1),
            "M",
            "of the K of iwae or dreg, resampled by weight, get a backward pass: faster, noisier; default all",
        ),
        (what, "precision", one_of(PRECISIONS), None, "of matrix products: float32 or bfloat16; default float32"),
        (what, "z-dim", count(1), "N", "dimension of z; default 8 (digits) or 50 (mnist)"),
        (what, "batch-size", count(1), "N", "images per step; default 100 (digits) or 20 (mnist)"),
        (what, "optimizer", one_of(OPTIMIZERS), None, "adam, or muon for the weight matrices; default adam"),
        (what, "learning-rate", positive, "RATE", "at first, then down to a fiftieth; default 0.001 (muon 0.01)"),
        (what, "seed", count(0), "N", "of torch's generator; default 0"),
        (length, "epochs", count(1), "N", "length of the run; default 300"),
        (length, "time-limit", duration, "TIME", "length of the run, such as 90s, 15m or 8h"),
        (
            what,
            "num-validation",
            count(0),
            "N",
            "training images held out to watch; 0 for none; default 200 (digits) or 400 (mnist)",
        ),
        (what, "validate-every", count(1), "N", "look at them every N epochs; default 5"),
        (
            what,
            "init-from",
            Path,
            "PATH",
            "warm start from a checkpoint, the run in a folder, or weights such as lvmlib/data/mnist-elbo-1.lvm",
        ),
    ):
        group.add_argument(f"--{name}", type=kind, metavar=metavar or name.upper(), help=text)
    text = "sizes of the encoder's hidden layers, reversed in the decoder; default 128 (digits) or 200 200 (mnist)"
    what.add_argument("--hidden-dims", type=count(1), nargs="+", metavar="N", help=text)
    files = command.add_argument_group("files")
    present = files.add_mutually_exclusive_group()
    present.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    present.add_argument("--force", action="store_true", help="delete the run in the folder first")
    files.add_argument("--fall-back", action="store_true", help=FALL_BACK)
    files.add_argument("--save-every", type=duration, default=60.0, metavar="TIME", help="default 60s")


def _add_evaluate(command: Parser) -> None:
    command.add_argument("folder", type=Path, help="where the run lives, or a checkpoint")
    for name, kind, default, metavar, text in (
        ("num-samples", count(1), 5000, "K", "per image; default 5000"),
        ("num-images", count(1), None, "N", "test images, spread evenly; default all"),
        ("ais-images", count(0), 50, "N", "test images that annealed importance sampling sees too; default 50"),
        ("ais-chains", count(1), 10, "N", "per image; default 10"),
        ("ais-steps", count(1), 500, "T", "laws between prior and posterior; default 500"),
        ("seed", count(0), 0, "N", "of torch's generator; default 0"),
        ("output", Path, None, "FILE", "default: evaluation.json in the folder of the run"),
    ):
        command.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
    command.add_argument("--force", action="store_true", help="replace the file if it is there")
    command.add_argument("--fall-back", action="store_true", help=FALL_BACK)


def _add_table(command: Parser) -> None:
    command.add_argument("folder", type=Path, help="holds the folders of the runs")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the rows to this JSON file too")
    made = command.add_mutually_exclusive_group()
    made.add_argument("--short", action="store_true", help="first train and evaluate small runs on digits: a minute")
    made.add_argument("--full", action="store_true", help="first train and evaluate the runs on MNIST: many hours")
    command.add_argument("--resume", action="store_true", help="with --short or --full: go on with what is there")
    command.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep weights of the full table there, for the library"
    )
    command.add_argument("--force", action="store_true", help="replace the file if it is there")


def train(options: argparse.Namespace, command: str) -> int:
    """Begin or resume a run, and bring it to its end."""
    folder = options.folder
    given = {name: value for name, option in SETTINGS.items() if (value := getattr(options, option)) is not None}
    if "hidden_dims" in given:
        given["hidden_dims"] = tuple(given["hidden_dims"])
    with Signals() as signals:
        if options.resume and runs.used(folder):
            run = _resume(folder, given, options)
        else:
            how = {"command": command, "init_from": options.init_from, "force": options.force}
            run = runs.begin(Settings.of(**given), folder, **how)
        try:
            result = runs.advance(run, save_every=options.save_every, stop=signals, **_shown(options))
        except Stopped as stopped:
            _say(f"{folder}: {stopped}; go on with: {PROGRAM} train {shlex.quote(str(folder))} --resume")
            return 128 + signals.caught
    history, value = result["history"], result["history"]["validation"][-1]
    validation = "" if value is None else f", validation {value:.2f}"
    print(
        f"{folder}: {history['epoch'][-1]:g} epochs in {result['seconds']:.0f} s, bound {history['bound'][-1]:.2f}"
        f"{validation} nats per image"
    )
    return DONE


def _resume(folder: Path, given: dict, options: argparse.Namespace) -> runs.Run:
    """Return the run in a folder, after comparing it with what was asked for."""
    if options.init_from is not None:
        stored = checkpoints.load_or_previous(folder / CHECKPOINT, options.fall_back)[0]["settings"]
        start = runs.start_of(options.init_from, Settings(**stored | {"hidden_dims": tuple(stored["hidden_dims"])}))
        given = given | {"start": fingerprint(start)}
    run = runs.restore(folder, given=given, fall_back=options.fall_back)
    _say(f"{folder}: goes on after step {run.at.step}, {100 * run.share:.1f} % of the run")
    if run.changes:
        _say(f"note: {'; '.join(run.changes)}, so the rest need not be the same bit for bit")
    return run


def measure(options: argparse.Namespace, command: str) -> int:
    """Evaluate a run."""
    folder = options.folder if options.folder.is_dir() else options.folder.parent
    output = options.output or folder / EVALUATION
    _refuse_existing(output, options.force)
    names = ("num_samples", "num_images", "ais_images", "ais_chains", "ais_steps", "seed", "fall_back")
    chosen = {name: getattr(options, name) for name in names}
    result = evaluate(options.folder, command=command, output=output, progress=_shown(options)["progress"], **chosen)
    sizes = f"K = {result['num_samples']}, {result['num_images']} images"
    lines = [
        f"log p(x)     {_pair(result['log_likelihood'])} nats; {sizes}",
        f"ELBO         {_pair(result['elbo'])} nats",
        f"active units {result['active_units']} of {result['z_dim']}",
    ]
    if "ais" in result:
        ais = result["ais"]
        difference = _pair(ais["minus_importance_sampling"])
        lines.append(f"AIS          {_pair(ais['log_likelihood'])} nats on {ais['num_images']} of the images")
        lines.append(f"  minus importance sampling on these: {difference} nats")
    print("\n".join(lines))
    return DONE


def compare(options: argparse.Namespace, command: str) -> int:
    """Print the table of the runs in a folder."""
    if options.output is not None:
        _refuse_existing(options.output, options.force)
    if options.keep is not None and not options.keep.is_dir():
        raise FileNotFoundError(f"{options.keep}: there is no such folder")
    if options.short or options.full:
        chosen = recipes.SHORT if options.short else recipes.FULL
        with Signals() as signals:
            try:
                shown = _shown(options) | {"say": _say}
                recipes.make_runs(chosen, options.folder, resume=options.resume, stop=signals, command=command, **shown)
            except Stopped as stopped:
                _say(f"{stopped}; go on with --resume")
                return 128 + signals.caught
    if not options.folder.is_dir():
        raise FileNotFoundError(f"{options.folder}: there is no such folder")
    found, remarks = tables.finished(options.folder)
    for remark in remarks:
        _say(remark)
    if not found:
        raise ResultError(f"{options.folder}: holds no run that is finished and evaluated")
    rows = tables.rows(found)
    print(tables.markdown(rows))
    if options.keep is not None:
        kept.keep(options.folder, kept.KEPT, options.keep, rows)
    if options.output is not None:
        write_result(options.output, provenance(command) | {"rows": rows}, rows=True)
    return DONE


def _pair(value: list[float]) -> str:
    return f"{value[0]:.2f} ± {value[1]:.2f}"


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path}: exists already; --force replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: there is no such folder")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _shown(options: argparse.Namespace) -> dict:
    """Return how progress is shown: by a bar in a terminal or a notebook, by lines elsewhere, or not at all."""
    if options.quiet:
        return {"progress": False, "say": lambda text: None}
    if sys.stderr.isatty() or in_notebook():
        return {"progress": True, "say": lambda text: None}
    return {"progress": False, "say": _say}


def _unknown(parsed: Parser, command: str, left: list[str]) -> str:
    """Say what was not understood, and what is near."""
    word = next((word for word in left if word.startswith("-")), left[0]).partition("=")[0]
    known = parsed._subparsers._group_actions[0].choices[command]._option_string_actions
    near = difflib.get_close_matches(word, known, n=1)
    return f"unknown argument {word}" + (f"; did you mean {near[0]}?" if near else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    Args:
        arguments: what stands after ``python -m lvmlib``; by default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = {"train": train, "evaluate": measure, "table": compare}
    top = parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        top.error(f"the command must be {', '.join(commands)}, got {arguments[0]!r}{hint}")
    options, left = top.parse_known_args(arguments)
    if left:
        top.error(_unknown(top, options.command, left))
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        return commands[options.command](options, shlex.join([*PROGRAM.split(), *arguments]))
    except (SettingsError, FileExistsError) as error:
        hint = "; --resume goes on with it, --force deletes it" if "holds a run already" in str(error) else ""
        top.exit(MISUSED, f"{PROGRAM} {options.command}: {error}{hint}\n")
    except (OSError, NonFiniteError, ResultError) as error:
        top.exit(FAILED, f"{PROGRAM} {options.command}: {error}\n")
    except KeyboardInterrupt:
        top.exit(128 + signal.SIGINT, f"{PROGRAM} {options.command}: interrupted\n")
    finally:
        torch.set_num_threads(threads)
