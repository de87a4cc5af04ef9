"""Make or re-use the virtual environment `.venv` that builds and tests the book.

Run it with any Python: `python3 tools/environment.py`. With the argument `bench` it makes `.venv-bench`, which holds
what lvmlib's speed is compared with (`requirements-bench.txt`) and takes lvmlib from the checkout. It needs only the
standard library, and its syntax is old on purpose (no f-strings, no annotations), so that a Python that is too old
still reads it and says one clear sentence.

Exit status: 0 the environment is ready, 1 something could not be installed, 2 this Python cannot make it.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

OLDEST = (3, 11)
NEWEST = (3, 14)  # the newest version that the pinned packages have been resolved for
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOK = (".venv", "requirements.txt")
BENCH = (".venv-bench", "requirements-bench.txt")
TEMPORARY = ".venv-new-"
RETIRED = ".venv-old-"
MARKER = "lvmbook.json"


class Refused(Exception):
    """This Python cannot make the environment."""


class Failed(Exception):
    """A step did not work; the next call may go on from there."""


def text(version):
    return ".".join(str(part) for part in version)


def say(message):
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


def check_python(version):
    """Refuse a Python that is too old; only remark on one that is newer than what was tried."""
    if tuple(version[:2]) < OLDEST:
        raise Refused(
            "The book needs Python {} to {}, but {} is Python {}; name a newer one: make book PYTHON=python{}".format(
                text(OLDEST), text(NEWEST), sys.executable, text(version[:3]), text(NEWEST)
            )
        )
    if tuple(version[:2]) > NEWEST:
        say("note: Python {} is newer than {}, the newest that was tried".format(text(version[:2]), text(NEWEST)))


def check_venv():
    """Debian and Ubuntu ship Python without `ensurepip`; an environment made there would have no pip."""
    missing = []
    for name in ("venv", "ensurepip"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise Refused(
            "{} cannot make a virtual environment because it lacks {}; on Debian and Ubuntu install it with: "
            "apt install python{}-venv".format(sys.executable, " and ".join(missing), text(sys.version_info[:2]))
        )


def venv_python(folder):
    return os.path.join(folder, "bin", "python")


def clean_variables():
    """The environment variables without those that lead Python or pip astray inside a virtual environment."""
    leave_out = (
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONWARNINGS",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
        "__PYVENV_LAUNCHER__",
    )
    return {name: value for name, value in os.environ.items() if name not in leave_out}


def call(command, cwd=None):
    """Run a command and return (exit status, combined output)."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def read(path):
    with open(path, "rb") as stream:
        return stream.read()


def fingerprint(root, requirements="requirements.txt"):
    """A hash of all that decides what the environment holds."""
    digest = hashlib.sha256()
    for name in (requirements, "pyproject.toml"):
        digest.update(read(os.path.join(root, name)) + b"\0")
    # The version of lvmlib is part of its installed metadata; its other lines reach the environment without installing.
    package = os.path.join(root, "lvmlib", "__init__.py")
    version = re.search(b"(?m)^__version__.*$", read(package)) if os.path.exists(package) else None
    digest.update((version.group(0) if version else b"") + b"\0" + text(sys.version_info[:3]).encode("ascii"))
    return digest.hexdigest()


def read_marker(folder):
    try:
        return json.loads(read(os.path.join(folder, MARKER)).decode("utf-8"))
    except (OSError, IOError, ValueError):
        return {}


def write_marker(folder, root, inputs):
    """Written in one step, so that an interruption leaves the old marker or the new one."""
    path = os.path.join(folder, MARKER)
    with open(path + ".new", "w") as stream:
        json.dump({"root": root, "inputs": inputs}, stream)
    os.rename(path + ".new", path)


def why_not_usable(folder, root):
    """Why the environment in `folder` has to be made anew, or "" when it can be used."""
    if not os.path.exists(venv_python(folder)):
        return "it has no working Python"
    made_for = read_marker(folder).get("root", root)
    if made_for != root:
        return "it was made in {}".format(made_for)
    question = "import sys, pip; print('%d.%d.%d' % sys.version_info[:3])"
    try:
        status, output = call([venv_python(folder), "-I", "-c", question])
    except OSError as error:
        return "its Python does not start ({})".format(error)
    if status != 0:
        return "its Python or its pip does not work"
    if output.strip() != text(sys.version_info[:3]):
        return "it holds Python {}, and Python {} is asked for".format(output.strip(), text(sys.version_info[:3]))
    return ""


def remove(path):
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)


def remove_leftovers(root):
    for name in os.listdir(root):
        if name.startswith((TEMPORARY, RETIRED)):
            remove(os.path.join(root, name))


def correct_paths(folder, old, new):
    """Replace the temporary folder's name in the environment's own small text files (activate, pip, pyvenv.cfg)."""
    files = [os.path.join(folder, "pyvenv.cfg")]
    files += [os.path.join(folder, "bin", name) for name in os.listdir(os.path.join(folder, "bin"))]
    for path in files:
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        content = read(path)
        # A prompt and a `command` line carry the bare folder name.
        changed = content.replace(old.encode(), new.encode())
        changed = changed.replace(os.path.basename(old).encode(), os.path.basename(new).encode())
        if b"\0" not in content and changed != content:
            with open(path, "wb") as stream:
                stream.write(changed)


def create(root, venv=".venv"):
    """Make the empty environment under a temporary name and move it into place once its pip works."""
    check_venv()
    target = os.path.join(root, venv)
    temporary = tempfile.mkdtemp(prefix=TEMPORARY, dir=root)
    try:
        status, output = call([sys.executable, "-I", "-m", "venv", temporary])
        if status == 0:
            status, output = call([venv_python(temporary), "-I", "-m", "pip", "--version"])
        if status != 0:
            sys.stderr.write(output)
            raise Refused("{} could not make a virtual environment with a working pip".format(sys.executable))
        correct_paths(temporary, temporary, target)
        write_marker(temporary, root, None)
        if os.path.lexists(target):
            # A rename is one step; removing the old environment is thousands.
            os.rename(target, tempfile.mkdtemp(prefix=RETIRED, dir=root) + "/venv")
        os.rename(temporary, target)
    finally:
        remove_leftovers(root)


def show_progress(command, root, total):
    """Run pip, print a line now and then, and show the end of its output if it fails."""
    found = 0
    lines = []
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=root, env=clean_variables(), stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT
    ) as process:
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip()
                lines.append(line)
                if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied: ")):
                    found += 1
                    if found % 25 == 0:
                        say("  {} packages found ({} are pinned)".format(found, total))
                elif line.startswith("Installing collected packages"):
                    say("  installing them (a minute or two)")
        except BaseException:
            # Leaving the block waits for pip, so it has to be told.
            process.terminate()
            raise
    if process.returncode != 0:
        # pip's remarks about places that it did not look at would bury the reason.
        shown = [line for line in lines if not line.startswith("WARNING: Location ")]
        sys.stderr.write("\n".join(shown[-25:]) + "\n")
    return process.returncode


def install(root, venv=".venv", requirements="requirements.txt"):
    """Install the pinned packages, then, for the book, lvmlib itself as an editable package."""
    folder = os.path.join(root, venv)
    pip = [venv_python(folder), "-I", "-m", "pip"]
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    pinned = len(re.findall(b"(?m)^[A-Za-z0-9_.-]+==", read(os.path.join(root, requirements))))
    say("installing {} into {}: {} pinned packages".format(requirements, venv, pinned))
    if show_progress(pip + ["install"] + options + ["-r", requirements], root, pinned) != 0:
        raise Failed("pip could not install {} (its last lines are above)".format(requirements))
    if venv != ".venv":
        return
    # setuptools is pinned too, so nothing has to be fetched to build lvmlib.
    editable = ["install", "--no-deps", "--no-build-isolation", "-e", "."]
    question = "import importlib.util; print(importlib.util.find_spec('lvmlib').origin)"
    for step, command in (
        ("install lvmlib", pip + editable[:1] + options + editable[1:]),
        ("import lvmlib", [venv_python(folder), "-I", "-c", question]),
        ("agree with the installed packages (pip check)", pip + ["check", "--disable-pip-version-check"]),
    ):
        status, output = call(command, cwd=root)
        if status != 0:
            sys.stderr.write(output)
            raise Failed("the new environment could not {} (the reason is above)".format(step))


def ensure(root, venv=".venv", requirements="requirements.txt"):
    """Bring an environment in `root` to the state that the files ask for, doing as little as possible."""
    check_python(sys.version_info)
    for name in (requirements, "pyproject.toml"):
        if not os.path.isfile(os.path.join(root, name)):
            raise Refused("{} has no {}; run this from a complete checkout".format(root, name))
    folder = os.path.join(root, venv)
    inputs = fingerprint(root, requirements)
    reason = why_not_usable(folder, root) if os.path.lexists(folder) else "there is none"
    if reason:
        say("making {} with Python {} ({})".format(venv, text(sys.version_info[:3]), reason))
        create(root, venv)
    elif read_marker(folder).get("inputs") == inputs:
        return
    # The marker loses its hash first: an installation that is cut short is taken up by the next call.
    write_marker(folder, root, None)
    install(root, venv, requirements)
    write_marker(folder, root, inputs)
    say("{} is ready".format(venv))


def stop(number, frame):
    raise KeyboardInterrupt


def main(root=ROOT, which=BOOK):
    try:
        signal.signal(signal.SIGTERM, stop)
        ensure(root, *which)
    except Refused as error:
        sys.stderr.write("{}\n".format(error))
        return 2
    except (Failed, OSError, IOError) as error:
        sys.stderr.write("{}; the same command goes on from here\n".format(error))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(which=BENCH if sys.argv[1:] == ["bench"] else BOOK))
