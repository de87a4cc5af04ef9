"""The tools around the book: their messages for bad input, and that they leave nothing half made."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
URL = "https://github.com/OWNER/latent-variable-models"
NEW = "https://github.com/someone/lvm-notes"


def load(name):
    """A script of tools/ as a module of its own, so that a test may change what it calls."""
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# environment.py


@pytest.fixture
def environment():
    return load("environment")


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "lvmlib"\n')
    return tmp_path


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".venv")]


def pretend_venv(environment, root, monkeypatch):
    """An environment that needs no seconds to make: its interpreter answers, its pip is not called."""
    calls = []

    def call(command, cwd=None):
        calls.append(command)
        if "venv" in command:
            binaries = Path(command[-1]) / "bin"
            binaries.mkdir()
            (binaries / "python").write_text("")
            (binaries / "activate").write_text(f"VIRTUAL_ENV={command[-1]}\n")
            (binaries.parent / "pyvenv.cfg").write_text(f"command = python -m venv {command[-1]}\n")
        return 0, environment.text(sys.version_info[:3])

    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(environment, "install", lambda root, *which: calls.append(["install"]))
    return calls


def test_environment_is_syntax_that_an_old_python_reads():
    source = (ROOT / "tools" / "environment.py").read_text()
    tree = ast.parse(source, feature_version=(3, 7))
    kinds = {type(node) for node in ast.walk(tree)}
    assert not kinds & {ast.JoinedStr, ast.AnnAssign, ast.NamedExpr}
    assert not any(node.returns for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 14)])
def test_too_old_python_gets_one_sentence_and_makes_nothing(environment, checkout, monkeypatch, capsys, version):
    monkeypatch.setattr(environment.sys, "version_info", version)
    status = environment.main(str(checkout))
    monkeypatch.undo()
    message = capsys.readouterr().err
    assert status == 2
    assert message.count("\n") == 1
    assert "needs Python 3.11 to 3.14" in message
    assert ".".join(map(str, version)) in message
    assert hidden(checkout) == []


def test_newer_python_is_allowed_with_a_note(environment, capsys):
    environment.check_python((3, 15, 0))
    assert "3.15 is newer than 3.14" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_missing_venv_or_ensurepip_gets_one_sentence_and_makes_nothing(
    environment, checkout, monkeypatch, capsys, missing
):
    monkeypatch.setitem(sys.modules, missing, None)
    status = environment.main(str(checkout))
    message = capsys.readouterr().err
    assert status == 2
    assert message.count("\n") == 1
    assert f"lacks {missing}" in message
    assert "apt install python3." in message
    assert hidden(checkout) == []


def test_incomplete_checkout_is_refused(environment, checkout, capsys):
    (checkout / "requirements.txt").unlink()
    assert environment.main(str(checkout)) == 2
    assert "has no requirements.txt" in capsys.readouterr().err


def test_failing_venv_leaves_nothing_half_made(environment, checkout, monkeypatch, capsys):
    monkeypatch.setattr(environment, "call", lambda command, cwd=None: (1, "no space left\n"))
    assert environment.main(str(checkout)) == 2
    message = capsys.readouterr().err
    assert message.startswith("no space left\n")
    assert "could not make a virtual environment" in message
    assert hidden(checkout) == []


def test_failing_rebuild_keeps_the_old_environment(environment, checkout, monkeypatch):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "kept").write_text("")
    monkeypatch.setattr(environment, "call", lambda command, cwd=None: (1, ""))
    assert environment.main(str(checkout)) == 2
    assert hidden(checkout) == [".venv"]
    assert (checkout / ".venv" / "kept").exists()


def test_new_environment_names_its_final_folder_only(environment, checkout, monkeypatch):
    pretend_venv(environment, checkout, monkeypatch)
    assert environment.main(str(checkout)) == 0
    assert hidden(checkout) == [".venv"]
    assert (checkout / ".venv/bin/activate").read_text() == f"VIRTUAL_ENV={checkout}/.venv\n"
    assert (checkout / ".venv/pyvenv.cfg").read_text().endswith(f"{checkout}/.venv\n")


def test_environment_is_used_again_until_an_input_changes(environment, checkout, monkeypatch):
    calls = pretend_venv(environment, checkout, monkeypatch)
    for _ in range(2):
        assert environment.main(str(checkout)) == 0
    assert calls.count(["install"]) == 1
    (checkout / "requirements.txt").write_text("torch==2.14.0\n")
    assert environment.main(str(checkout)) == 0
    assert calls.count(["install"]) == 2
    assert sum("venv" in command for command in calls) == 1


def test_interrupted_installation_is_taken_up_by_the_next_call(environment, checkout, monkeypatch, capsys):
    calls = pretend_venv(environment, checkout, monkeypatch)
    install = environment.install

    def interrupted(root, *which):
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "install", interrupted)
    assert environment.main(str(checkout)) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(environment, "install", install)
    assert environment.main(str(checkout)) == 0
    assert calls.count(["install"]) == 1
    assert sum("venv" in command for command in calls) == 1


def test_environment_with_a_broken_interpreter_is_made_anew(environment, checkout, monkeypatch, capsys):
    calls = pretend_venv(environment, checkout, monkeypatch)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(checkout / "gone")
    assert environment.main(str(checkout)) == 0
    assert "no working Python" in capsys.readouterr().out
    assert calls[-1] == ["install"]
    assert hidden(checkout) == [".venv"]


def test_environment_of_another_python_or_another_folder_is_made_anew(environment, checkout, monkeypatch):
    pretend_venv(environment, checkout, monkeypatch)
    assert environment.main(str(checkout)) == 0
    venv = str(checkout / ".venv")
    assert environment.why_not_usable(venv, str(checkout)) == ""
    assert "made in" in environment.why_not_usable(venv, "/elsewhere")
    monkeypatch.setattr(environment, "call", lambda command, cwd=None: (0, "3.12.99\n"))
    assert "holds Python 3.12.99" in environment.why_not_usable(venv, str(checkout))


def test_failed_installation_shows_the_reason_and_leaves_no_stamp(environment, checkout, capsys):
    (checkout / ".venv/bin").mkdir(parents=True)
    # Stands for the environment's Python: pip's last words, then a failure.
    python = checkout / ".venv/bin/python"
    version = environment.text(sys.version_info[:3])
    python.write_text(
        f'#!/bin/sh\nif [ "$2" = -c ]; then echo {version}; else echo "ERROR: no such package"; exit 1; fi\n'
    )
    python.chmod(0o755)
    assert environment.main(str(checkout)) == 1
    message = capsys.readouterr().err
    assert "ERROR: no such package" in message
    assert "could not install requirements.txt" in message
    assert environment.read_marker(str(checkout / ".venv"))["inputs"] is None


# set_url.py


@pytest.fixture
def book(tmp_path):
    """A small copy of what holds the address."""
    (tmp_path / "book").mkdir()
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "set_url.py", tmp_path / "tools")
    (tmp_path / "_config.yml").write_text(
        "title: x\n\n# the only place\nrepository:\n  # comment\n"
        f"  url: {URL}  # comment\n  branch: main\nhtml:\n  url: no\n"
    )
    (tmp_path / "README.md").write_text(f"[b]({URL}/actions) and {URL}. Not {URL}-extra.\r\n", newline="")
    (tmp_path / "book/01.ipynb").write_text(f'{{"cells":\n   ["git+{URL}@v0.1.0 é"]}}', encoding="utf-8")
    (tmp_path / "book/plain.md").write_text("no address\n")
    return tmp_path


def run_set_url(root, *arguments):
    command = [sys.executable, "tools/set_url.py", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_set_url_changes_the_address_and_no_other_byte(book):
    done = run_set_url(book, NEW)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "README.md",
        "book/01.ipynb",
        "_config.yml",
        f"3 files changed; the address is {NEW}",
    ]
    assert (book / "README.md").read_bytes().decode() == f"[b]({NEW}/actions) and {NEW}. Not {URL}-extra.\r\n"
    assert (book / "book/01.ipynb").read_text("utf-8") == f'{{"cells":\n   ["git+{NEW}@v0.1.0 é"]}}'
    assert f"  url: {NEW}  # comment\n" in (book / "_config.yml").read_text()
    assert sorted(path.name for path in book.rglob("*") if path.is_file()) == sorted(
        ["README.md", "_config.yml", "01.ipynb", "plain.md", "set_url.py"]
    )


def test_set_url_twice_changes_nothing_more_and_goes_back(book):
    before = {path: path.read_bytes() for path in book.rglob("*.*") if path.is_file()}
    run_set_url(book, NEW)
    assert run_set_url(book, NEW).stdout == f"0 files changed; the address is {NEW}\n"
    run_set_url(book, URL)
    assert {path: path.read_bytes() for path in book.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/a/b",
        "https://github.com/a/b/",
        "https://github.com/a/b.git",
        "https://github.com/a",
        "https://github.com/a/b/c",
        "https://github.com/a/b?x=1",
        'https://github.com/a/b"',
        "https://github.com/a/b c",
        "https://github.com/a/b\n",
        "github.com/a/b",
    ],
)
def test_set_url_refuses_a_malformed_address_and_changes_nothing(book, url):
    before = {path: path.read_bytes() for path in book.rglob("*.*") if path.is_file()}
    done = run_set_url(book, url)
    assert done.returncode == 2
    assert "https://host/owner/name" in done.stderr
    assert repr(url) in done.stderr
    assert {path: path.read_bytes() for path in book.rglob("*.*") if path.is_file()} == before


def test_set_url_without_an_address_says_how_to_call_it(book):
    for arguments in ((), ("",)):
        done = run_set_url(book, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: make url URL=")


def test_set_url_needs_the_old_address(book):
    (book / "_config.yml").write_text("title: x\n")
    done = run_set_url(book, NEW)
    assert done.returncode == 2
    assert "no `repository:`" in done.stderr


def test_every_address_of_the_repository_is_the_one_of_the_config():
    url = load("set_url").current_url(ROOT)
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        assert url in (ROOT / name).read_text("utf-8"), name


# resolve.py and the pins


@pytest.fixture(scope="module")
def resolve():
    return load("resolve")


def test_resolve_reads_pins_comments_and_blank_lines(resolve):
    assert resolve.parse("# c\nTorch==2.13.0\n\njupyter_book==1.0.4.post1  # c\n") == {
        "torch": "2.13.0",
        "jupyter-book": "1.0.4.post1",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy>=2\n", r"line 1 must be `name==version`, got 'numpy>=2'"),
        ("# c\n-e .\n", "line 2 must be"),
        ("a==1\nA==2\n", "line 2 pins a a second time"),
        ("# nothing\n", "pins nothing"),
    ],
)
def test_resolve_refuses_what_is_not_a_list_of_pins(resolve, text, message):
    with pytest.raises(ValueError, match=message):
        resolve.parse(text)


def test_resolve_reads_the_versions_that_pip_lists(resolve):
    output = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.12.1\n  INSTALLED: 2.13.0\n"
    assert resolve.versions_listed(output) == {"2.15.0", "2.13.0", "2.12.1"}
    assert resolve.versions_listed("ERROR: no matching distribution\n") == set()


def test_resolve_reads_markers_for_the_python_in_question(resolve):
    metadata = {
        "name": "A",
        "version": "1",
        "requires_dist": ['b>=2; python_version >= "3.13"', 'c; extra == "x"', 'd; python_version < "3.12"'],
    }
    report = {"install": [{"metadata": metadata}]}
    assert resolve.unmet(report, {"a": "1", "b": "1", "d": "1"}, "3.12") == []
    assert resolve.unmet(report, {"a": "1", "b": "1", "d": "1"}, "3.13") == [
        'a requires b>=2; python_version >= "3.13", but 1 is pinned'
    ]
    assert resolve.unmet(report, {"a": "1", "b": "2"}, "3.11") == [
        'a requires d; python_version < "3.12", which is not pinned'
    ]
    assert resolve.unmet(report, {"b": "2", "d": "1"}, "3.12") == ["a 1 would be installed but is not pinned"]


def test_requirements_are_pins_and_the_hooks_use_the_same_ruff(resolve):
    pins = resolve.parse((ROOT / "requirements.txt").read_text("utf-8"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert re.search(r"ruff-pre-commit\n +rev: v(\S+)", hooks)[1] == pins["ruff"]


def test_actions_are_pinned_by_commit_hash():
    uses = [
        line
        for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
        for line in path.read_text("utf-8").splitlines()
        if "uses:" in line
    ]
    assert uses
    for line in uses:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line
