"""The list of mutants fits the library, and the tool that plants them tells a kill from a survivor and a broken one."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_tools import load

ROOT = Path(__file__).resolve().parent.parent
DATA = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
MUTANTS = DATA["mutant"]


@pytest.fixture(scope="module")
def tool():
    return load("mutants")


# the list


def test_each_mutant_applies_once_to_the_present_sources_and_has_tests(tool):
    assert len(tool.read_list(ROOT)[0]) == len(MUTANTS)


def test_there_are_at_least_40_mutants():
    assert len(MUTANTS) >= 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["name"].replace(" ", "-"))
def test_a_mutant_is_valid_code_and_other_code(tool, mutant):
    text = (ROOT / "lvmlib" / mutant["file"]).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(tool.planted(mutant, text))) != ast.dump(ast.parse(text))


def test_no_bug_is_planted_twice():
    planted = [(mutant["file"], mutant["old"], mutant["new"]) for mutant in MUTANTS]
    assert len(set(planted)) == len(planted)


def test_the_tests_that_are_left_out_exist():
    for name in DATA["left_out"]:
        path, test = name.split("::")
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), name


# the tool, on a small library


LIBRARY = "def total(a, b):\n    return a + b\n\n\ndef twice(a):\n    return 2 * a\n"
TESTS = "from lvmlib.small import total\n\n\ndef test_total_of_2_and_3_is_5():\n    assert total(2, 3) == 5\n"
SETTINGS = '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = ["--import-mode=importlib"]\n'
PLANTED = {
    "minus": ("a + b", "a - b"),
    "raises": ("return a + b", "raise ArithmeticError"),
    "comment": ("a + b", "a + b  # harmless"),
    "other function": ("2 * a", "3 * a"),
    "syntax": ("a + b", "a +"),
    "unknown name": ("a + b", "a + c"),
    "unknown module": ("return a + b", "import nowhere"),
    "end of the process": ("return a + b", "__import__('os')._exit(0)"),
}


def entry(name, old, new, **changes):
    """Return a mutant of the small library as it stands in a list."""
    fields = {
        "name": name,
        "file": "small.py",
        "old": old,
        "new": new,
        "bug": "What is wrong.",
        "tests": ["test_small.py"],
    }
    return "[[mutant]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in (fields | changes).items())


def make(root, *entries, tests=TESTS):
    """Make a repository with the small library and a list of mutants."""
    files = {
        "lvmlib/__init__.py": "",
        "lvmlib/small.py": LIBRARY,
        "tests/__init__.py": "",
        "tests/test_small.py": tests,
        "tests/mutants.toml": "".join(entries),
        "pyproject.toml": SETTINGS,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def run_tool(root, *options):
    command = [sys.executable, str(ROOT / "tools" / "mutants.py"), "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Plant all of PLANTED, and return what the tool did."""
    root = make(tmp_path_factory.mktemp("small"), *(entry(name, *lines) for name, lines in PLANTED.items()))
    return run_tool(root)


def verdict(report, name):
    """Return the line on a mutant."""
    (line,) = [line for line in report.stdout.splitlines() if line.startswith(f"{name}  ")]
    return line


@pytest.mark.parametrize("name", ["minus", "raises"])
def test_a_mutant_on_which_a_test_fails_is_killed_by_that_test(report, name):
    assert re.search(r" killed +[\d.]+ s  test_small.py::test_total_of_2_and_3_is_5$", verdict(report, name))


@pytest.mark.parametrize("name", ["comment", "other function"])
def test_a_mutant_on_which_all_tests_pass_has_survived(report, name):
    assert re.search(r" SURVIVED +[\d.]+ s  all tests passed$", verdict(report, name))


def test_a_survivor_is_shown_in_full(report):
    told = report.stdout.partition("other function")[2].split("\n")[1:8]
    assert [line.strip() for line in told] == [
        "What is wrong.",
        "--- lvmlib/small.py",
        "+++ lvmlib/small.py",
        "@@ -6 +6 @@",
        "-    return 2 * a",
        "+    return 3 * a",
        "tests: test_small.py",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("syntax", "pytest ended with status 2 before a test failed"),
        ("unknown name", "a name, an import or the syntax is wrong, says tests/test_small.py::"),
        ("unknown module", "a name, an import or the syntax is wrong, says tests/test_small.py::"),
        ("end of the process", "the process that ran the tests died"),
    ],
)
def test_a_mutant_that_is_no_working_code_is_broken_and_not_killed(report, name, reason):
    assert re.search(rf" BROKEN +[\d.]+ s  {reason}", verdict(report, name))


def test_the_last_line_counts_the_killed_and_the_command_fails_unless_all_are(report):
    assert report.stdout.splitlines()[-1] == "mutants: 8 planted, 2 killed" and report.returncode == 1


def test_the_command_succeeds_where_all_are_killed(tmp_path):
    done = run_tool(make(tmp_path, entry("minus", *PLANTED["minus"])))
    assert done.stdout.splitlines()[-1] == "mutants: 1 planted, 1 killed" and done.returncode == 0


def test_a_run_without_an_answer_is_ended_and_broken(tmp_path):
    done = run_tool(make(tmp_path, entry("sleeps", "return a + b", "__import__('time').sleep(100)")), "--limit", "10")
    assert "no answer in 10 s" in verdict(done, "sleeps") and done.returncode == 1


def test_tests_that_fail_without_a_mutant_stop_the_command(tmp_path):
    done = run_tool(make(tmp_path, entry("minus", *PLANTED["minus"]), tests=TESTS.replace("== 5", "== 6")))
    assert done.stdout.startswith("the tests fail without a mutant: tests/test_small.py::test_total_of_2_and_3_is_5")
    assert done.stdout.splitlines()[-1] == "mutants: 0 planted, 0 killed" and done.returncode == 1


def test_the_sources_are_left_alone(tmp_path):
    root = make(tmp_path, entry("minus", *PLANTED["minus"]))
    run_tool(root)
    assert sorted(path.name for path in root.rglob("*.*")) == [
        "__init__.py",
        "__init__.py",
        "mutants.toml",
        "pyproject.toml",
        "small.py",
        "test_small.py",
    ]
    assert (root / "lvmlib" / "small.py").read_text() == LIBRARY


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry("gone", "a * b", "a")], "gone: its lines must stand exactly once in small.py, found 0 times"),
        ([entry("vague", "return", "yield")], "vague: its lines must stand exactly once in small.py, found 2 times"),
        ([entry("away", "a + b", "a", file="away.py")], "away: its lines must stand exactly once in away.py, found 0"),
        ([entry("one", "a + b", "a"), entry("one", "a + b", "b")], "one: the name is taken twice"),
        ([entry("blind", "a + b", "a", tests=[])], "blind: no test file at all"),
        ([entry("blind", "a + b", "a", tests=["test_no.py"])], "blind: no test file test_no.py"),
        ([entry("odd", "a + b", "a", line=3)], r"odd: the keys must be \['bug', .*, got .*'line'"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tool, tmp_path, entries, message):
    with pytest.raises(tool.ListError, match=message):
        tool.read_list(make(tmp_path, *entries))


def test_a_list_that_does_not_fit_fails_the_command(tmp_path):
    done = run_tool(make(tmp_path, entry("gone", "a * b", "a")))
    assert "gone: its lines must stand exactly once" in done.stdout
    assert done.stdout.splitlines()[-1] == "mutants: 0 planted, 0 killed" and done.returncode == 1
