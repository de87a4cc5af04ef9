"""Check that `requirements.txt` can be installed with every supported Python, without installing anything.

pip resolves the list for each version and takes wheels only. Two things need more than pip's own answer:

* pip reads environment markers (`; python_version >= "3.13"`) with the Python that runs it. So the dependencies of all
  resolved packages are read again here, with the markers of the version in question.
* PyTorch's wheels weigh gigabytes with CUDA, and pip may fetch a wheel to read its dependencies. So for PyTorch pip is
  only asked which versions have a wheel; what it depends on, CUDA aside, is pinned like everything else.

"Python 3.11" means 3.11.0, the oldest of its line: a package that needs 3.11.5 does not resolve.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ONLY_ASKED_FOR = "torch"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def parse(text: str) -> dict[str, str]:
    """The pins of a requirements file, name to version; anything that is not `name==version` is refused."""
    pins: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.split("#", 1)[0].strip()
        if not content:
            continue
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!]+)", content)
        if not match:
            raise ValueError(f"requirements.txt line {number} must be `name==version`, got {content!r}")
        name = canonicalize_name(match[1])
        if name in pins:
            raise ValueError(f"requirements.txt line {number} pins {name} a second time")
        pins[name] = match[2]
    if not pins:
        raise ValueError("requirements.txt pins nothing")
    return pins


def versions_listed(output: str) -> set[str]:
    """The public versions in the answer of `pip index versions` (a local label such as `+cpu` is dropped)."""
    line = re.search(r"^Available versions:(.*)$", output, re.M)
    return {version.strip().split("+")[0] for version in line[1].split(",")} if line else set()


def unmet(report: Mapping, pins: Mapping[str, str], python: str) -> list[str]:
    """What the resolved packages require on `python` and `pins` does not give, one sentence each."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    problems = []
    for item in report["install"]:
        metadata = item["metadata"]
        name = canonicalize_name(metadata["name"])
        if name not in pins:
            problems.append(f"{name} {metadata['version']} would be installed but is not pinned")
        for text in metadata.get("requires_dist", ()):
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            needed = canonicalize_name(requirement.name)
            if needed not in pins:
                problems.append(f"{name} requires {text}, which is not pinned")
            elif not requirement.specifier.contains(pins[needed], prereleases=True):
                problems.append(f"{name} requires {text}, but {pins[needed]} is pinned")
    return problems


def last_error(stderr: str) -> str:
    """pip's last error line: those before it list every version that it ignored."""
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    return lines[-1] if lines else stderr.strip()[-300:]


def resolve(pins: Mapping[str, str], python: str, folder: Path) -> list[str]:
    """Resolve all pins for one Python version; returns the problems, none when it works."""
    asked = subprocess.run(
        [*PIP, "index", "versions", ONLY_ASKED_FOR, "--python-version", python, "--only-binary=:all:"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    problems = []
    if ONLY_ASKED_FOR in pins and pins[ONLY_ASKED_FOR] not in versions_listed(asked.stdout):
        problems.append(f"no wheel of {ONLY_ASKED_FOR} {pins[ONLY_ASKED_FOR]}: {last_error(asked.stderr)}")
    rest = folder / "requirements.txt"
    rest.write_text("".join(f"{name}=={version}\n" for name, version in pins.items() if name != ONLY_ASKED_FOR))
    report = folder / f"{python}.json"
    command = [*PIP, "install", "--dry-run", "--ignore-installed", "--quiet", "--only-binary=:all:"]
    command += [
        "--python-version",
        python,
        "--target",
        str(folder / "target"),
        "--report",
        str(report),
        "-r",
        str(rest),
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        return [*problems, last_error(done.stderr)]
    return problems + unmet(json.loads(report.read_text("utf-8")), pins, python)


def main() -> int:
    try:
        pins = parse((ROOT / "requirements.txt").read_text("utf-8"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    failed = []
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as folder:
            problems = resolve(pins, python, Path(folder))
        print(f"Python {python}: {'does not resolve' if problems else f'{len(pins)} pins resolve'}", flush=True)
        for problem in problems:
            print(f"  {problem}", flush=True)
        if problems:
            failed.append(python)
    print(f"resolve: {len(PYTHONS)} Python versions tried, {len(PYTHONS) - len(failed)} resolved")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
