"""The code exercises: right answers pass, each usual wrong one is refused with its own hint, the chapters use them."""

import ast
import contextlib
import inspect
import io
import json
import re
import runpy
import warnings
from pathlib import Path

import pytest
import torch

from lvmlib.teaching import answers
from lvmlib.teaching.answers import EXERCISES
from lvmlib.teaching.exercises import NOT_STARTED, check, check_answer

CHAPTERS = sorted((Path(__file__).resolve().parent.parent / "book").glob("*.ipynb"))
FEWEST_WRONG = 3
WRONG = [
    pytest.param(number, hint, id=f"{number}-{i}")
    for number, exercise in EXERCISES.items()
    for i, hint in enumerate(exercise.wrong)
]
# At this many times the tolerance the inputs still tell all answers apart, so that rounding does not decide.
MARGIN = 5


def told(function, *args, **options):
    """Run a check with warnings as errors; return (its result, what it prints)."""
    with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
        warnings.simplefilter("error")
        result = function(*args, **options)
    return result, out.getvalue()


# ------------------------------------------------------------------------------------------------- the check itself

CASES = [(torch.tensor([1.0, 2.0]),), (torch.tensor([3.0, 5.0]),)]
HINTS = {
    "Half of it.": lambda a: a,
    "You added them up.": lambda a: 2 * a.sum(),
    "Not a number.": lambda a: torch.where(a > 2, torch.nan, 2 * a),
}


def double(a):
    return 2 * a


def raises(error):
    """Return an answer that raises."""

    def answer(a):
        raise error

    return answer


@pytest.mark.parametrize(
    "answer, line",
    [
        (double, "Right."),
        (lambda a: (2 * a).tolist(), "Right."),
        (lambda a: (2 * a).requires_grad_(), "Right."),
        (None, NOT_STARTED),
        (..., NOT_STARTED),
        (lambda a: ..., NOT_STARTED),
        (lambda a: None, NOT_STARTED),
        (lambda a: a, "Not yet. Half of it."),
        (lambda a: 2 * a.sum(), "Not yet. You added them up."),
        (lambda a: torch.where(a > 2, torch.nan, 2 * a), "Not yet. Not a number."),
        (lambda a: 3 * a, "Not yet. The first wrong value: got 3, it should be 2."),
        (lambda a: a / 0, "Not yet. The first wrong value: got inf, it should be 2."),
        (lambda a: a * torch.nan, "Not yet. The first wrong value: got nan, it should be 2."),
        (lambda a: 2 * a[None], "Not yet. The answer should have shape (2,), yours has (1, 2)."),
        (lambda a: (a, a), "Not yet. The answer should be a tensor of shape (2,), yours is a tuple."),
        (lambda a: "2 a", "Not yet. The answer should be a tensor of shape (2,), yours is a str."),
        (torch.ones(2), "Not yet. Pass the function itself, not its value (a Tensor)."),
        (raises(ValueError("one\ntwo")), "Not yet. Your function raises ValueError: one"),
        (raises(KeyError()), "Not yet. Your function raises KeyError"),
        (lambda: 2, "Not yet. Your function raises TypeError: <lambda>() takes 0 positional arguments but 1 was given"),
    ],
)
def test_check_answer_says_in_one_line_what_is_wrong(answer, line):
    assert told(check_answer, answer, double, CASES, wrong=HINTS) == (line == "Right.", line + "\n")


def test_an_answer_right_in_the_first_case_only_is_refused():
    assert not check_answer(lambda a: a + a[0] * torch.tensor([1.0, 2.0]), double, CASES)


def test_a_hint_is_not_given_to_an_answer_that_did_better_than_the_mistake():
    # equal to half of it in the second case, but right in the first
    line = told(check_answer, lambda a: a if a[0] > 2 else 2 * a, double, CASES, wrong=HINTS)[1]
    assert line == "Not yet. The first wrong value: got 3, it should be 6.\n"


def test_an_answer_that_works_in_place_changes_no_input():
    before = [case[0].clone() for case in CASES]
    assert check_answer(lambda a: a.mul_(2), double, CASES)
    assert not check_answer(lambda a: a.zero_(), double, CASES, wrong=HINTS)
    assert all(torch.equal(case[0], kept) for case, kept in zip(CASES, before))


def test_an_answer_may_differentiate_in_an_input_that_requires_a_gradient():
    cases = [(torch.tensor([1.0, 2.0], requires_grad=True), 3)]
    assert check_answer(lambda a, n: torch.autograd.grad((a**n).sum(), a)[0], lambda a, n: n * a ** (n - 1), cases)


def test_an_answer_that_draws_leaves_the_random_state():
    before = torch.get_rng_state()
    check_answer(lambda a: a + torch.randn(2), double, CASES)
    check_answer(lambda a: torch.manual_seed(1) and 2 * a, double, CASES)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_case_is_refused():
    with pytest.raises(ValueError, match="cases must hold at least one"):
        check_answer(double, double, [])


def test_an_unknown_number_is_refused_with_the_allowed_ones():
    with pytest.raises(ValueError, match="number must be one of '0.2', .*got str '9.9'") as error:
        check("9.9", None)
    assert all(repr(number) in str(error.value) for number in EXERCISES)


# --------------------------------------------------------------------------------------------- what is registered


def value(function, case):
    """Return what a function makes of copies of the arguments, as float64."""
    return torch.as_tensor(function(*[a.clone() if isinstance(a, torch.Tensor) else a for a in case])).double()


@pytest.mark.parametrize("number", EXERCISES)
def test_the_reference_is_accepted(number):
    assert told(check, number, EXERCISES[number].reference) == (True, "Right.\n")


@pytest.mark.parametrize("number, hint", WRONG)
def test_a_wrong_answer_is_refused_with_its_own_hint(number, hint):
    exercise = EXERCISES[number]
    assert told(check, number, exercise.wrong[hint]) == (False, f"Not yet. {hint}\n")
    wide = {"wrong": exercise.wrong, "tolerance": MARGIN * exercise.tolerance}
    near = told(check_answer, exercise.wrong[hint], exercise.reference, exercise.cases, **wide)
    assert near == (False, f"Not yet. {hint}\n")


@pytest.mark.parametrize("number", EXERCISES)
def test_an_exercise_knows_usual_mistakes_and_says_each_in_a_sentence(number):
    wrong = EXERCISES[number].wrong
    assert len(wrong) >= FEWEST_WRONG
    assert all(hint[0].isupper() and hint.endswith(".") and "\n" not in hint for hint in wrong)


@pytest.mark.parametrize("number", EXERCISES)
def test_cases_are_asymmetric_and_their_answers_finite(number):
    exercise = EXERCISES[number]
    for case in exercise.cases:
        assert value(exercise.reference, case).isfinite().all()
    sizes = value(exercise.reference, exercise.cases[0]).shape
    assert len(set(sizes)) == len(sizes) and 1 not in sizes


@pytest.mark.parametrize("number", EXERCISES)
def test_a_check_leaves_the_random_state_and_the_cases_alone(number):
    exercise = EXERCISES[number]
    before, kept = torch.get_rng_state(), tensors(exercise)

    def spoil(*args):
        torch.manual_seed(1)
        for a in args:
            a.zero_()
        return args[0]

    for answer in (spoil, exercise.reference, *exercise.wrong.values()):
        told(check, number, answer)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, tensors(exercise), kept))


def tensors(exercise):
    """Return copies of all tensors among an exercise's inputs."""
    return [a.clone() for case in exercise.cases for a in case if isinstance(a, torch.Tensor)]


def test_cases_do_not_depend_on_the_random_state_and_importing_leaves_it():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = runpy.run_path(answers.__file__)["EXERCISES"]
    assert torch.equal(torch.get_rng_state(), before)
    for number, exercise in EXERCISES.items():
        assert all(map(torch.equal, tensors(exercise), tensors(again[number])))


# ------------------------------------------------------------------------------------------ where the chapters use it


def calls(source):
    """Return (number, name of the answer) of all calls of check in a cell."""
    return [
        (ast.literal_eval(node.args[0]), ast.unparse(node.args[1]))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
    ]


def imports(source):
    """Return the import statements of a cell."""
    nodes = (node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom))
    return "\n".join(ast.unparse(node) for node in nodes)


def read(path):
    """Return (source, is hidden) of the code cells of a chapter, and its Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [
        ("".join(cell["source"]), "hide-cell" in cell["metadata"].get("tags", []))
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    return code, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


BOOK = {path.name: read(path) for path in CHAPTERS}
# (number, chapter, index of the cell, is hidden, name of the answer) of every call of check
USES = [
    (number, chapter, index, hidden, answer)
    for chapter, (code, _) in BOOK.items()
    for index, (source, hidden) in enumerate(code)
    for number, answer in calls(source)
]


def use(number, hidden):
    """Return (chapter, index of the cell, name of the answer) of the one visible or hidden check of an exercise."""
    found = [(chapter, *rest) for n, chapter, *rest in USES if n == number and rest[1] == hidden]
    assert len(found) == 1, f"exercise {number}: {len(found)} {'hidden' if hidden else 'visible'} checks, not one"
    chapter, index, _, answer = found[0]
    return chapter, index, answer


def prepared(number):
    """Return a namespace with the reader's function as it stands and what the chapter has imported by its solution.

    Nothing else of the chapter is run: a solution uses imports and its own cell.
    """
    chapter, end, _ = use(number, hidden=True)
    answer = use(number, hidden=False)[2]
    code = [source for source, _ in BOOK[chapter][0][:end]]
    (stub,) = [source for source in code if re.search(rf"^def {answer}\(", source, re.MULTILINE)]
    names = {"torch": torch}
    for text in [*map(imports, code), stub]:
        exec(compile(text, chapter, "exec"), names)
    return names


def said(number, hidden):
    """Return what the visible or the hidden check of an exercise prints."""
    chapter, index, _ = use(number, hidden)
    return told(exec, compile(BOOK[chapter][0][index][0], chapter, "exec"), prepared(number))[1]


def test_every_check_in_the_book_has_a_registered_number():
    assert {number for number, *_ in USES} == set(EXERCISES)


def test_no_chapter_shows_a_reference_or_hints():
    spoilers = re.compile(r"check_answer|teaching\.answers|import answers")
    assert not [chapter for chapter, (code, _) in BOOK.items() if any(spoilers.search(source) for source, _ in code)]


def test_the_code_exercises_of_the_book_are_those_registered():
    marked = [
        n for _, text in BOOK.values() for n in re.findall(r"^> \*\*Exercise (\d+\.\d+)\.\*\* \(Code", text, re.M)
    ]
    assert sorted(marked) == sorted(EXERCISES)


@pytest.mark.parametrize("number", EXERCISES)
def test_an_exercise_is_checked_and_solved_once_in_its_own_chapter(number):
    visible, hidden = use(number, hidden=False), use(number, hidden=True)
    assert visible[0] == hidden[0] and int(visible[0].split("-")[0]) == int(number.split(".")[0])
    assert visible[1] < hidden[1]
    source = BOOK[hidden[0]][0][hidden[1]][0]
    assert f'assert check("{number}", {hidden[2]})' in source.splitlines()


@pytest.mark.parametrize("number", EXERCISES)
def test_the_stub_has_the_arguments_of_the_reference(number):
    functions = prepared(number)[use(number, hidden=False)[2]], EXERCISES[number].reference
    stub, reference = [list(inspect.signature(function).parameters) for function in functions]
    assert stub == reference


@pytest.mark.parametrize("number", EXERCISES)
def test_the_stub_is_not_started(number):
    assert said(number, hidden=False) == NOT_STARTED + "\n"


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_in_the_book_is_right(number):
    assert said(number, hidden=True) == "Right.\n"
