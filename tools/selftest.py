"""Test the tests: plant faults, each in its own copy of this repository, and require the test command to turn red.

Usage: python tools/selftest.py [--only WORD]

A fault counts as found when the smallest stage that must see it fails *and* says why. What was planted and not found is
listed; the last line counts both.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEAD_KERNEL_SECONDS = 60
COMMAND_SECONDS = 400
ALT = "A line that rises from one to two"

EQUATIONS_STUB = '''"""Stands in for the checks of the whole book: the copy has one page and no numbered equation."""

import sys
from pathlib import Path

EQUATIONS = {}

if __name__ == "__main__":
    path = Path(sys.argv[sys.argv.index("--write") + 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]")
'''


class NotFound(Exception):
    """A planted fault that no test has seen; the message says what happened instead."""


# ---------------------------------------------------------------------------------------------------------- the copies


def copy_repository(target):
    """Copy all files that belong to the repository: tracked ones, and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode == 0:
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    else:
        skipped = shutil.ignore_patterns("_build", ".venv", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, target, ignore=skipped, dirs_exist_ok=True)
    if (ROOT / ".venv").exists():
        (target / ".venv").symlink_to(ROOT / ".venv")
    return target


def code(name, source, **metadata):
    """Make a code cell."""
    lines = source.splitlines(keepends=True)
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": metadata,
        "outputs": [],
        "source": lines,
    }


def figure(source):
    """Make the code cell of Figure 1.1."""
    return code("figure", source, mystnb={"figure": {"caption": "Figure 1.1. A line."}, "image": {"alt": ALT}})


def prose(name, source):
    """Make a Markdown cell."""
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}


def setup_cell():
    """Return the setup cell that all chapters share."""
    chapter = json.loads(real_chapter(ROOT).read_text(encoding="utf-8"))
    return next(cell for cell in chapter["cells"] if cell["cell_type"] == "code")


def real_chapter(repository):
    """Return the last numbered chapter."""
    return sorted((repository / "book").glob("[0-9]*.ipynb"))[-1]


def write_notebook(path, cells):
    """Write a notebook in the form that the book's tests ask for."""
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    data = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def reduce_book(repository, *cells):
    """Replace the book by an index and one small chapter with the cells given, so that a build takes seconds."""
    book = repository / "book"
    for path in [*book.rglob("*.ipynb"), *book.rglob("*.md")]:
        path.unlink()
    toc = (
        "format: jb-book\nroot: book/index\nparts:\n  - caption: Start\n    chapters:\n      - file: book/01-scratch\n"
    )
    (repository / "_toc.yml").write_text(toc)
    (book / "index.md").write_text("# Scratch\n\nOne page, for a test.\n")
    (repository / "tests" / "equations.py").write_text(EQUATIONS_STUB)
    chapter = book / "01-scratch.ipynb"
    opening = [prose("title", "# A scratch chapter"), setup_cell()]
    middle = [part for n, cell in enumerate(cells) for part in (prose(f"text-{n}", f"Step {n}."), cell)]
    write_notebook(chapter, opening + middle)
    return chapter


# ---------------------------------------------------------------------------------------------------- running the tests


def run(repository, *arguments):
    """Run one of the repository's commands in a copy; return (exit status, output)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=COMMAND_SECONDS,
    )
    return done.returncode, done.stdout


def must_be_red(result, *messages):
    """Require a run to have failed for the reason planted: every message (a pattern) is in its output."""
    status, output = result
    if status == 0:
        raise NotFound("the run was green")
    for message in messages:
        if not re.search(message, output):
            raise NotFound(f"the run was red, but does not say {message!r}:\n{output[-1500:]}")


def must_be_green(result):
    """Require a run before the fault to pass: otherwise a red one after it proves nothing."""
    status, output = result
    if status:
        raise NotFound(f"the run without the fault was already red:\n{output[-3000:]}")


def build(repository):
    """Build the book, re-using what is valid."""
    return run(repository, "tools/build.py")


def scan(repository):
    """Scan the built pages."""
    return run(repository, "tools/scan_html.py")


def nbval(repository, chapter):
    """Run one chapter as in Colab."""
    return run(repository, "tools/notebooks.py", chapter)


def structure(repository, rule):
    """Run one rule of the structural tests on the real book."""
    return run(
        repository, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_book.py", "-k", f"the_rule and {rule}"
    )


def cells_of(chapter):
    """Read a chapter."""
    return json.loads(chapter.read_text(encoding="utf-8"))


def write_back(chapter, data):
    """Write a changed chapter in its canonical form."""
    chapter.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------- the faults

GOOD_FIGURE = "import matplotlib.pyplot as plt\n\nplt.plot([1, 2]);"
VALUE = 'from lvmlib.weights import log_mean_exp\n\nprint(f"value {float(log_mean_exp(torch.zeros(2, 1))):.3f}")'


def chapter_that_raises(repository):
    """A chapter that raises: red on the first and on the second build."""
    reduce_book(repository, code("boom", 'raise RuntimeError("planted")'))
    for _ in range(2):
        must_be_red(build(repository), "RuntimeError", "planted", "01-scratch")


def page_with_warning(repository):
    """A page that Sphinx warns about: red on the first and on the second build."""
    reduce_book(repository, code("fine", "1 + 1"))
    (repository / "book" / "index.md").write_text("# Scratch\n\n[Away](gone.md)\n")
    for _ in range(2):
        must_be_red(build(repository), "gone.md")


def library_change_with_warm_cache(repository):
    """A change of the library after a build: the old output is not shown any more."""
    reduce_book(repository, code("value", VALUE), figure(GOOD_FIGURE))
    must_be_green(build(repository))
    must_be_green(scan(repository))
    page = repository / "_build" / "html" / "book" / "01-scratch.html"
    if "value 0.000" not in page.read_text(encoding="utf-8"):
        raise NotFound("the page does not show the value of the unchanged library")
    changed = "\n\n_before = log_mean_exp\n\n\ndef log_mean_exp(log_w):\n    return _before(log_w) + 1\n"
    with open(repository / "lvmlib" / "weights.py", "a", encoding="utf-8") as module:
        module.write(changed)
    status, output = build(repository)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if status == 0 and ("value 1.000" not in text or "value 0.000" in text):
        raise NotFound("the build was green and the page shows the output of the old library")
    if status and "value 0.000" in text:
        raise NotFound(f"the build was red, but left the old page:\n{output[-1500:]}")


def missing_figure(repository):
    """A figure cell that leaves no picture."""
    reduce_book(repository, figure(GOOD_FIGURE.rstrip(";") + "\nplt.close()"))
    must_be_green(build(repository))
    must_be_red(scan(repository), "Figure 1.1 is not on the page")


def one_coloured_figure(repository):
    """A figure that shows nothing."""
    reduce_book(repository, figure("import matplotlib.pyplot as plt\n\nplt.figure()\nplt.axis('off');"))
    must_be_green(build(repository))
    must_be_red(scan(repository), "Figure 1.1: the figure .* is (almost )?of one colour")


def lost_picture(repository):
    """A picture file that is gone from the built pages, and a link to an anchor that is not there."""
    reduce_book(repository, figure(GOOD_FIGURE))
    must_be_green(build(repository))
    must_be_green(scan(repository))
    html = repository / "_build" / "html"
    for path in html.rglob("*.png"):
        if "_images" in path.parts:
            path.unlink()
    page = html / "book" / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", "<a href='01-scratch.html#gone'>x</a></body>"))
    must_be_red(scan(repository), "Figure 1.1: the figure .* is missing", "has no anchor #gone")


def dead_kernel(repository):
    """A kernel that is killed: found within a minute, and the cell is named."""
    chapter = reduce_book(repository, code("dead", "import os\n\nos.kill(os.getpid(), 9)"))
    result = nbval(repository, chapter)
    must_be_red(result, "the kernel died", "id dead")
    seconds = float(re.search(r"01-scratch +failed .* wall +([\d.]+) s", result[1])[1])
    if seconds > DEAD_KERNEL_SECONDS:
        raise NotFound(f"found after {seconds:.0f} s, allowed {DEAD_KERNEL_SECONDS}")


def wrong_number(repository):
    """A wrong number in an assertion."""
    source = (
        "from lvmlib.weights import log_mean_exp\n\nassert abs(float(log_mean_exp(torch.zeros(2, 1))) - 0.1) < 1e-6"
    )
    chapter = reduce_book(repository, code("wrong", source))
    must_be_red(nbval(repository, chapter), "AssertionError", "id wrong")


def opposite_claim(repository):
    """The first assertion of a real chapter, with the opposite claim."""
    chapter = real_chapter(repository)
    data = cells_of(chapter)
    for number, cell in enumerate(data["cells"]):
        source = "".join(cell["source"])
        found = cell["cell_type"] == "code" and [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assert)]
        if found:
            claim = ast.get_source_segment(source, found[0].test)
            cell["source"] = source.replace(claim, f"not ({claim})", 1).splitlines(keepends=True)
            data["cells"] = data["cells"][: number + 1]
            write_back(chapter, data)
            must_be_red(nbval(repository, chapter), "AssertionError", f"id {cell['id']}")
            return
    raise NotFound(f"{chapter.name} has no assertion at all")


def warning_in_a_cell(repository):
    """A cell that warns."""
    source = 'import warnings\n\nwarnings.warn("planted", DeprecationWarning)'
    chapter = reduce_book(repository, code("warns", source))
    must_be_red(nbval(repository, chapter), "DeprecationWarning.*: planted", "id warns")


def broken_link(repository):
    """A link from a real chapter to an equation that is not there."""
    chapter = real_chapter(repository)
    data = cells_of(chapter)
    data["cells"][0]["source"] += ["\n\nSee [(9.9)](#eq-9-9)."]
    write_back(chapter, data)
    must_be_red(structure(repository, "check_links"), r"\(#eq-9-9\) leads to no anchor")


def equation_without_a_check(repository):
    """A numbered equation that nothing verifies."""
    chapter = real_chapter(repository)
    data, number = cells_of(chapter), int(chapter.name.split("-")[0])
    data["cells"].append(prose("planted", f"<a id='eq-{number}-999'></a>\n\n$$ 1 = 1 \\tag{{{number}.999}} $$"))
    write_back(chapter, data)
    must_be_red(structure(repository, "check_equation_checks"), rf"equation \({number}\.999\) has no check")


def missing_alt_text(repository):
    """A figure of a real chapter without its alt text."""
    chapter = real_chapter(repository)
    data = cells_of(chapter)
    for cell in data["cells"]:
        if "image" in cell["metadata"].get("mystnb", {}):
            del cell["metadata"]["mystnb"]["image"]
            write_back(chapter, data)
            must_be_red(structure(repository, "check_figures"), f"id {cell['id']}.*needs an alt text")
            return
    raise NotFound(f"{chapter.name} has no figure")


def wrong_formula(repository):
    """A library function that forgets to divide by the number of samples."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_weights.py", "-k", "log_mean_exp"]
    must_be_green(run(repository, *command))
    with open(repository / "lvmlib" / "weights.py", "a", encoding="utf-8") as module:
        module.write("\n\ndef log_mean_exp(log_w):\n    return torch.logsumexp(log_w, 0)\n")
    must_be_red(run(repository, *command), "FAILED .*log_mean_exp")


def wrong_expression(repository):
    """A figure with sliders that computes a divergence with the wrong sign."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_widgets.py", "-k", "reverse_divergence"]
    must_be_green(run(repository, *command))
    path = repository / "lvmlib" / "teaching" / "widgets.py"
    text, right = path.read_text(encoding="utf-8"), "datum.q * (datum.log_q - datum.log_p)"
    if right not in text:
        raise NotFound(f"{path.name} has no expression {right}")
    path.write_text(text.replace(right, "datum.q * (datum.log_p - datum.log_q)"), encoding="utf-8")
    must_be_red(run(repository, *command), "FAILED .*reverse_divergence")


# The longest first: two run at a time.
FAULTS = (
    library_change_with_warm_cache,
    lost_picture,
    missing_figure,
    one_coloured_figure,
    page_with_warning,
    chapter_that_raises,
    dead_kernel,
    opposite_claim,
    wrong_number,
    warning_in_a_cell,
    wrong_formula,
    wrong_expression,
    broken_link,
    equation_without_a_check,
    missing_alt_text,
)


def try_fault(fault):
    """Plant one fault in a fresh copy; return (name, seconds, None or what went wrong)."""
    start, problem = time.monotonic(), None
    with tempfile.TemporaryDirectory(prefix="lvmlib-selftest-") as folder:
        try:
            fault(copy_repository(Path(folder).resolve()))
        except NotFound as error:
            problem = str(error)
        except subprocess.TimeoutExpired as error:
            problem = f"no answer in {error.timeout:.0f} s"
    return fault.__name__.replace("_", " "), time.monotonic() - start, problem


def main(arguments=None):
    """Plant all faults, two at a time; return 0 when all were found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="plant only the faults whose name contains this")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if options.only in fault.__name__.replace("_", " ")]
    found = 0
    with ThreadPoolExecutor(2) as pool:
        for name, seconds, problem in pool.map(try_fault, faults):
            print(f"{name:<36} {'NOT FOUND' if problem else 'found':<9} {seconds:5.0f} s", flush=True)
            if problem:
                print("    " + problem.replace("\n", "\n    "), flush=True)
            found += problem is None
    print(f"selftest: {len(faults)} faults planted, {found} found")
    return 0 if faults and found == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
