"""Change the repository's public address everywhere: `python tools/set_url.py https://github.com/OWNER/NAME`.

`_config.yml` (`repository.url`) says what the address is now. That text is replaced byte for byte, so notebooks keep
their formatting. `_config.yml` is written last: a run that was cut short can be repeated.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*.yml", "*.md", "*.cff", "*.toml", "book/**/*.md", "book/**/*.ipynb", "book/**/*.py", "lvmlib/**/*.py")
ALLOWED = "https://host/owner/name, without a trailing slash, `.git`, query or fragment"


def current_url(root: Path) -> str:
    """`repository.url` of `_config.yml`, read without a YAML parser so that this works before anything is installed."""
    config = root / "_config.yml"
    if not config.is_file():
        raise ValueError(f"{config} is missing; run this in a complete checkout")
    block = re.search(r"^repository:[ \t]*\n((?:[ \t]+.*\n|[ \t]*#.*\n|\n)+)", config.read_text("utf-8") + "\n", re.M)
    line = block and re.search(r"^[ \t]+url:[ \t]*[\"']?([^\s\"'#]+)", block.group(1), re.M)
    if not line:
        raise ValueError(f"{config} has no `repository:` with an indented `url:`")
    return line.group(1)


def checked(url: str) -> str:
    """The address itself when it is well formed, otherwise a `ValueError` that says what is allowed."""
    if not re.fullmatch(r"https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(/[A-Za-z0-9._~-]+)+", url) or url.endswith(".git"):
        raise ValueError(f"URL must be {ALLOWED}; got {url!r}")
    parts = url.removeprefix("https://").split("/")
    if len(parts) < 3 or (parts[0] in ("github.com", "www.github.com") and len(parts) != 3):
        raise ValueError(f"URL must be {ALLOWED}, so exactly one owner and one name on GitHub; got {url!r}")
    return url


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step and keep its mode."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, path.stat().st_mode & 0o777)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def set_url(root: Path, url: str) -> list[str]:
    """Replace the current address under `root` by `url`; returns the changed files, relative to `root`."""
    new = checked(url)
    old = current_url(root)
    if old == new:
        return []
    # The address also stands in front of `@v0.1.0`, `/issues` and a full stop, but never in front of more of a name.
    occurrence = re.compile(re.escape(old.encode()) + rb"(?![A-Za-z0-9_~-])")
    files = {
        path
        for pattern in PATTERNS
        for path in root.glob(pattern)
        if path.is_file() and not any(part.startswith((".ipynb_checkpoints", "_build")) for part in path.parts)
    }
    changed = []
    for path in sorted(files, key=lambda path: (path.name == "_config.yml", path)):
        before = path.read_bytes()
        after = occurrence.sub(lambda match: new.encode(), before)
        if after != before:
            write_atomically(path, after)
            changed.append(path.relative_to(root).as_posix())
    return changed


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0]:
        print("usage: make url URL=https://github.com/OWNER/NAME", file=sys.stderr)
        return 2
    try:
        changed = set_url(ROOT, arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in changed:
        print(name)
    print(f"{len(changed)} files changed; the address is {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
