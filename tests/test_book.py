"""Structural tests of the book's sources: what a build lets pass silently. Reads files, runs nothing.

Each rule is a function that takes a `Book` and returns sentences that name the chapter, the cell, what is there and
what is allowed. The rules are tried twice: on the real book, and on a tiny book in which one fault each is planted.
"""

import ast
import copy
import importlib
import json
import re
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TAGS = {"hide-input", "hide-cell", "hide-output", "remove-cell"}
SECTIONS = ("Against the truth", "How it fails", "Summary", "Exercises", "Solutions", "Further reading")
CELL_LINES = 20
MEDIAN_LINES = 8
ALT_LETTERS = 20
FILE_BYTES = 2_000_000
# Calls of matplotlib and of the plotting module that draw nothing by themselves.
NOT_DRAWING = re.compile(r"^(use|set|style|rcParams|rc|close|switch_backend|get_cmap|colormaps)")
ANCHOR = r"""<a id=['"]((?:eq|fig)-\d+-\d+)['"]>\s*</a>"""
LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)"
)
CITATION = re.compile(r"\((?:19|20)\d\d[a-z]?\)$|, (?:19|20)\d\d[a-z]?$")


# -------------------------------------------------------------------------------------------- the book


@dataclass
class Cell:
    """One cell of a notebook."""

    notebook: str
    number: int
    data: dict

    @property
    def source(self):
        """The text of the cell."""
        return "".join(self.data["source"])

    @property
    def is_code(self):
        """Whether it is a code cell."""
        return self.data["cell_type"] == "code"

    @property
    def tags(self):
        """The tags, an empty list where there are none."""
        return self.data["metadata"].get("tags", [])

    @property
    def figure(self):
        """The metadata of the figure that the cell draws, or None."""
        mystnb = self.data["metadata"].get("mystnb", {})
        return mystnb if "figure" in mystnb or "image" in mystnb else None

    @property
    def prose(self):
        """Markdown without code, and without the marks of block quotes."""
        return "" if self.is_code else without_code(self.source)

    def __str__(self):
        return f"{self.notebook}, cell {self.number} (id {self.data.get('id')})"


@dataclass
class Book:
    """The sources of the book, as read from the disk or made up in a test."""

    notebooks: dict  # path -> parsed notebook
    texts: dict  # path of every .md and .ipynb under book/ -> its text
    config: dict
    toc: dict
    equations: dict
    callouts: tuple  # first words of the block quotes that the extension turns into boxes
    version: str
    files: dict = field(default_factory=dict)  # path of every file of the book -> size
    library: str = ""  # the text of lvmlib, whose docstrings cite papers
    places: dict = field(default_factory=dict)  # other files that name the repository's URL -> text

    def cells(self, path):
        """All cells of a notebook."""
        return [Cell(Path(path).name, number, data) for number, data in enumerate(self.notebooks[path]["cells"])]

    def in_order(self):
        """The notebooks in the order of the table of contents, those that are not in it last."""
        order = [f"{name}.ipynb" for name in toc_files(self.toc)]
        return sorted(self.notebooks, key=lambda path: (order.index(path) if path in order else len(order), path))

    def chapters(self):
        """The numbered chapters: (path, number), without the primer (number 0)."""
        return [(path, number) for path in self.in_order() if (number := chapter_number(path))]

    @property
    def url(self):
        """The address of the repository."""
        return self.config.get("repository", {}).get("url", "")


def read_book(root=ROOT):
    """Read the sources."""
    files = {path.relative_to(root).as_posix(): path for path in sorted((root / "book").rglob("*")) if path.is_file()}
    files = {
        name: path for name, path in files.items() if "__pycache__" not in name and ".ipynb_checkpoints" not in name
    }
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.suffix in (".md", ".ipynb")}
    notebooks = {name: json.loads(text) for name, text in texts.items() if name.endswith(".ipynb")}
    named = ("README.md", "CITATION.cff", "pyproject.toml", "CONTRIBUTING.md", "CHANGELOG.md")
    version = re.search(r'__version__ = "([^"]+)"', (root / "lvmlib" / "__init__.py").read_text(encoding="utf-8"))
    equations = importlib.import_module("tests.equations").EQUATIONS
    extension = (root / "book" / "_ext" / "lvmbook.py").read_text(encoding="utf-8")
    callouts = re.search(r"^CALLOUTS = (\{.*?^\})", extension, re.MULTILINE | re.DOTALL)
    return Book(
        notebooks=notebooks,
        texts=texts,
        config=yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")),
        toc=yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")),
        equations=equations,
        callouts=tuple(ast.literal_eval(callouts[1])),
        version=version[1] if version else "",
        files={name: path.stat().st_size for name, path in files.items()},
        library="\n".join(path.read_text(encoding="utf-8") for path in sorted((root / "lvmlib").rglob("*.py"))),
        places={name: (root / name).read_text(encoding="utf-8") for name in named if (root / name).is_file()},
    )


def toc_files(toc):
    """Return all documents of a table of contents without their suffix, the root first."""
    if isinstance(toc, list):
        return [name for entry in toc for name in toc_files(entry)]
    own = [re.sub(r"\.(md|ipynb)$", "", toc[key]) for key in ("root", "file") if key in toc]
    return own + [name for value in toc.values() if isinstance(value, list) for name in toc_files(value)]


def chapter_number(path):
    """Return the number at the start of a chapter's file name, or None."""
    match = re.match(r"(\d+)-", Path(path).name)
    return int(match[1]) if match and path.endswith(".ipynb") else None


def without_code(text):
    """Return Markdown without code, and without the marks of block quotes."""
    text = re.sub(r"^[ >]*```.*?^[ >]*```[ ]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    return re.sub(r"^ {0,3}> ?", "", text, flags=re.MULTILINE)


def without_fences(text):
    """Return Markdown without fenced code; inline code stays."""
    return re.sub(r"^[ >]*```[ \w]*$.*?^[ >]*```[ ]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text):
    """Return (level, title) of all headings of a Markdown text."""
    return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#{1,6})\s+(.+?)\s*#*$", text, re.MULTILINE)]


def slug(title):
    """Return the anchor that MyST gives a heading."""
    title = re.sub(r"[^\w\- ]", "", title.lower())
    return title.strip().replace(" ", "-")


def markdown_of(book, path):
    """Return the Markdown of a page or of a notebook, without code."""
    if path in book.notebooks:
        return "\n\n".join(cell.prose for cell in book.cells(path))
    return without_code(book.texts[path])


def anchors_of(book, path):
    """Return all anchors of a page or a notebook, without those that autodoc adds."""
    text = markdown_of(book, path)
    own = re.findall(r"""<(?:a|span|div)\s+(?:id|name)=['"]([^'"]+)['"]""", text) + re.findall(
        r"^\(([\w-]+)\)=", text, re.MULTILINE
    )
    return {*own, *(slug(title) for _, title in headings(text))}


def links_of(book):
    """Return (where, path of the page, text, target, is an image) for all Markdown links of the book."""
    found = []
    for path in book.texts:
        if path in book.notebooks:
            parts = [(str(cell), cell.prose) for cell in book.cells(path) if not cell.is_code]
        else:
            parts = [(path, without_code(book.texts[path]))]
        for where, text in parts:
            found += [(where, path, label, target, mark == "!") for mark, label, target in LINK.findall(text)]
    return found


def marked(cell, kind):
    """Return the numbers of the exercises or solutions that a Markdown cell holds."""
    return [] if cell.is_code else re.findall(rf"^> \*\*{kind} (\d+\.\d+)\b", cell.source, re.MULTILINE)


def as_pair(number):
    """Turn "3.2" into (3, 2), and what is not of that form into None."""
    return tuple(map(int, number.split("."))) if re.fullmatch(r"\d+\.\d+", number) else None


def ascending(numbers, what):
    """Say where numbers (where, "3.2") repeat or go down."""
    problems, last = [], (0, 0)
    for where, number in numbers:
        pair = as_pair(number)
        if pair is None:
            problems.append(f"{where}: {what} {number!r}, allowed is chapter.number, like 3.2")
        elif pair <= last:
            problems.append(f"{where}: {what} {number} comes after {last[0]}.{last[1]}")
        last = max(last, pair or last)
    return problems


# ------------------------------------------------------------------------------ the file and its cells


def check_clean_notebooks(book):
    """No outputs, no counts, kernel python3, ids unique, keys sorted, a newline at the end."""
    problems = []
    for path, data in book.notebooks.items():
        name = Path(path).name
        kernel = data["metadata"].get("kernelspec", {}).get("name")
        if kernel != "python3":
            problems.append(f"{name}: kernelspec {kernel!r}, allowed is 'python3'")
        if (data["nbformat"], data["nbformat_minor"]) < (4, 5):
            problems.append(f"{name}: nbformat {data['nbformat']}.{data['nbformat_minor']}, allowed is 4.5 or later")
        ids = [cell.get("id", "") for cell in data["cells"]]
        for identity in ids:
            if not re.fullmatch(r"[\w-]{1,64}", identity) or ids.count(identity) > 1:
                problems.append(f"{name}: cell id {identity!r} is missing, malformed or used twice")
        for cell in book.cells(path):
            if cell.is_code and cell.data.get("outputs"):
                problems.append(f"{cell}: has outputs; commit notebooks without (nbstripout)")
            if cell.is_code and cell.data.get("execution_count") is not None:
                problems.append(f"{cell}: has the execution count {cell.data['execution_count']}; allowed is null")
        if book.texts[path] != canonical(data):
            problems.append(f"{name}: not in canonical form: sorted keys, indent 1, UTF-8, a newline at the end")
    return problems


def canonical(data):
    """Return the one form in which a notebook is committed."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def check_toc(book):
    """Every page is in _toc.yml, and every entry of _toc.yml is a page."""
    listed = toc_files(book.toc)
    pages = {re.sub(r"\.(md|ipynb)$", "", path) for path in book.texts}
    problems = [f"_toc.yml: {name} is no file" for name in listed if name not in pages]
    problems += [f"_toc.yml: {name} is listed twice" for name in sorted({n for n in listed if listed.count(n) > 1})]
    return problems + [f"{name}: not in _toc.yml" for name in sorted(pages - set(listed))]


def check_files(book):
    """File names are lower case with hyphens; no file is large."""
    problems = []
    for path, size in book.files.items():
        if path.endswith((".md", ".ipynb")) and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", Path(path).stem):
            problems.append(f"{path}: allowed are lower-case letters, digits and hyphens")
        if size > FILE_BYTES:
            problems.append(f"{path}: {size:,} bytes, allowed are {FILE_BYTES:,}")
    return problems


def check_config(book):
    """The settings without which a broken book builds green."""
    execute = book.config.get("execute", {})
    wanted = {
        "execute.raise_on_error": (execute.get("raise_on_error"), True),
        "execute.allow_errors": (execute.get("allow_errors", False), False),
        "only_build_toc_files": (book.config.get("only_build_toc_files"), True),
    }
    problems = [
        f"_config.yml: {name} is {got!r}, must be {must!r}" for name, (got, must) in wanted.items() if got is not must
    ]
    if not isinstance(book.config.get("author"), str):
        problems.append("_config.yml: author must be a string")
    for part in [book.toc, *book.toc.get("parts", [])]:
        for options in (part, part.get("options", {})):
            if not isinstance(options.get("numbered", True), bool):
                problems.append(f"_toc.yml: numbered is {options['numbered']!r}, must be true or false")
    return problems


def check_setup_cells(book):
    """The first code cell is the same everywhere and installs this version from the address in _config.yml."""
    problems, texts = [], {}
    for path in book.in_order():
        code = [cell for cell in book.cells(path) if cell.is_code]
        if not code:
            problems.append(f"{Path(path).name}: has no setup cell")
            continue
        cell = code[0]
        texts.setdefault(cell.source, cell)
        if cell.tags != ["hide-input"] or cell.data["metadata"].get("cellView") != "form":
            problems.append(f"{cell}: the setup cell needs tags ['hide-input'] and cellView 'form'")
        address = f"git+{book.url}@v{book.version}"
        if f'"{address}"' not in cell.source:
            problems.append(f"{cell}: the setup cell must install {address}")
    first, *others = texts.values() or [None]
    return problems + [f"{cell}: its setup cell differs from that of {first}" for cell in others]


def check_url(book):
    """Every other file that names the repository names the address in _config.yml."""
    name = book.url.rstrip("/").rpartition("/")[2]
    problems = [] if name else ["_config.yml: repository.url is empty"]
    owner = book.url.rstrip("/").split("/")[-2] if name else ""
    texts = {**book.places, **book.texts}
    for path, text in texts.items():
        for found in re.findall(rf"(?:github\.com|/github)/([\w.-]+)/{re.escape(name)}\b", text):
            if found != owner:
                problems.append(f"{path}: names the owner {found}, _config.yml {owner} (make url URL=…)")
    return problems


def check_tags(book):
    """Only known tags: a mistyped one does nothing."""
    return [
        f"{cell}: unknown tag {tag!r}, allowed are {sorted(TAGS)}"
        for path in book.notebooks
        for cell in book.cells(path)
        for tag in cell.tags
        if tag not in TAGS or not cell.is_code
    ]


def check_code(book):
    """Code is plain Python without magics, installs and paths of one machine."""
    problems = []
    for path in book.notebooks:
        code = [cell for cell in book.cells(path) if cell.is_code]
        for number, cell in enumerate(code):
            for line in cell.source.splitlines():
                if re.match(r"\s*[%!]", line):
                    problems.append(f"{cell}: magic or shell line {line.strip()!r}; allowed is plain Python")
            if number and re.search(r"pip['\", ]+install", cell.source):
                problems.append(f"{cell}: pip install; only the setup cell installs")
            try:
                ast.parse(cell.source)
            except SyntaxError as error:
                problems.append(f"{cell}: not Python: {error}")
            if not cell.source.strip():
                problems.append(f"{cell}: empty code cell")
    for path, text in book.texts.items():
        for found in re.findall(r"(?<![\w./~-])/(?:work|tmp|home|root|Users|mnt|content)/[\w./-]*|[A-Z]:\\\\\w+", text):
            problems.append(f"{path}: the path {found} is that of one machine")
    return problems


def check_cell_lengths(book):
    """Code cells are short: none over the limit, and half of them under the median."""
    problems = []
    for path in book.notebooks:
        lengths = [(len(cell.source.splitlines()), cell) for cell in book.cells(path) if cell.is_code]
        problems += [f"{cell}: {lines} lines, allowed {CELL_LINES}" for lines, cell in lengths if lines > CELL_LINES]
        median = statistics.median(lines for lines, _ in lengths) if lengths else 0
        if median > MEDIAN_LINES:
            problems.append(f"{Path(path).name}: median of {median} lines a code cell, allowed {MEDIAN_LINES}")
    return problems


def check_rhythm(book):
    """A sentence stands between two code cells, unless the second is folded or the first is the setup cell."""
    problems = []
    for path in book.notebooks:
        cells = book.cells(path)
        setup = next((cell.number for cell in cells if cell.is_code), None)
        for before, cell in pairwise(cells):
            folded = {"hide-input", "hide-cell", "remove-cell"} & set(cell.tags)
            if before.is_code and cell.is_code and before.number != setup and not folded:
                problems.append(f"{cell}: follows a code cell without a sentence between them")
    return problems


# ---------------------------------------------------------------------------------------- the Markdown


def check_portable_markdown(book):
    """Notebooks use no MyST that Colab shows literally."""
    patterns = {
        "a role": r"\{[a-z][\w:.+-]*\}`",
        "a directive": r"^[ >]*(`{3,}|~{3,})\{",
        "a ::: fence": r"^[ >]*:::",
        "a (label)=": r"^[ >]*\([\w-]+\)=\s*$",
        "an empty link text": r"(?<!!)\[\s*\]\(",
        "a substitution": r"\{\{.*?\}\}(?=\s|$)",
        "a macro definition": r"\\(newcommand|renewcommand|DeclareMathOperator|def)\b",
    }
    problems = []
    for path in book.notebooks:
        for cell in book.cells(path):
            text = "" if cell.is_code else without_fences(cell.source)
            for what, pattern in patterns.items():
                if match := re.search(pattern, text, re.MULTILINE):
                    problems.append(f"{cell}: {what}, {match[0].strip()!r}; Colab shows it as typed")
            for title in re.findall(r"^>\s*\*\*(.+?)\*\*", text, re.MULTILINE):
                if not re.match(rf"({'|'.join(book.callouts)})\b", title):
                    problems.append(f"{cell}: callout {title!r}, allowed are {', '.join(book.callouts)}")
    return problems


def check_displays(book):
    """Displays that render everywhere: no \\tag with \\\\ in one $$, no un-starred environment, none inside $$."""
    problems = []
    for path in book.notebooks:
        for cell in book.cells(path):
            text = cell.prose
            for display in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL):
                start = " ".join(display.split())[:50]
                if "\\tag" in display and "\\\\" in display:
                    problems.append(f"{cell}: \\tag and \\\\ in one $$ render red: {start}; use align*")
                if re.search(r"\\begin\{(align|equation|gather|multline)", display):
                    problems.append(f"{cell}: an environment inside $$: {start}; write it bare")
                if display.count("\\tag") > 1:
                    problems.append(f"{cell}: two \\tag in one $$: {start}")
            for name in re.findall(r"\\begin\{(align|alignat|equation|gather|multline|flalign|eqnarray)\}", text):
                problems.append(f"{cell}: un-starred {name}; allowed is {name}*")
            if len(re.findall(r"\$\$", text)) % 2:
                problems.append(f"{cell}: an odd number of $$")
    return problems


def check_equation_tags(book):
    """Tags are unique, ascending, and begin with the chapter's number; each has its anchor and a blank line."""
    problems, numbers = [], []
    for path in book.in_order():
        for cell in book.cells(path):
            text = cell.prose
            tags = re.findall(r"\\tag\*?\{([^}]*)\}", text)
            numbers += [(cell, tag) for tag in tags]
            for tag in tags:
                if as_pair(tag) and as_pair(tag)[0] != chapter_number(path):
                    problems.append(f"{cell}: equation ({tag}) in chapter {chapter_number(path)}")
            anchors = re.findall(r"""<a id=['"]eq-(\d+)-(\d+)['"]>\s*</a>""", text)
            if [f"{a}.{b}" for a, b in anchors] != tags:
                found = [f"eq-{a}-{b}" for a, b in anchors]
                problems.append(f"{cell}: the anchors {found} do not match the tags {tags}")
            for group in re.finditer(r"""(?:<a id=['"]eq-\d+-\d+['"]>\s*</a>[ \n]*?)+""", text):
                after = text[group.end() :]
                if not re.match(r"[ \t]*\n[ \t]*\n+[ \t]*(\$\$|\\begin\{)", after) and "<a id" not in after[:8]:
                    problems.append(
                        f"{cell}: after {group[0].strip()} come a blank line and the equation, not {after[:20]!r}"
                    )
    return problems + ascending(numbers, "equation")


def check_equation_checks(book):
    """Every numbered equation has a check that verifies it, and every check an equation; the functions exist."""
    tags = {
        tag: cell
        for path in book.notebooks
        for cell in book.cells(path)
        for tag in re.findall(r"\\tag\*?\{([^}]*)\}", cell.prose)
    }
    problems = [
        f"{cell}: equation ({tag}) has no check in tests/equations.py"
        for tag, cell in tags.items()
        if tag not in book.equations
    ]
    for tag, equation in book.equations.items():
        where = f"tests/equations.py, {tag}"
        if tag not in tags:
            problems.append(f"{where}: no chapter has an equation ({tag})")
        if equation.tag != tag:
            problems.append(f"{where}: its own tag is {equation.tag}")
        if equation.test != f"tests/equations.py::eq_{tag.replace('.', '_')}":
            problems.append(f"{where}: its test is named {equation.test}")
        if not 0 <= equation.tolerance < 1:
            problems.append(f"{where}: tolerance {equation.tolerance}, allowed is [0, 1)")
        problems += [f"{where}: there is no {name}" for name in equation.functions if not exists(name)]
    return problems


def exists(dotted):
    """Return whether a dotted name, such as lvmlib.weights.log_mean_exp, leads to an object of lvmlib."""
    parts = dotted.split(".")
    if parts[0] != "lvmlib":
        return False
    found = importlib.import_module("lvmlib")
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:number]))
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def check_links(book):
    """Every relative link leads to a file and an anchor that exist; a link to a numbered thing shows its number."""
    problems = []
    for where, path, label, target, is_image in links_of(book):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target):
            continue
        name, _, fragment = target.partition("#")
        other = (Path(path).parent / name).as_posix() if name else path
        other = normalized(other)
        if not target or (name and other not in book.files):
            problems.append(f"{where}: the link [{label}]({target}) leads to no file of the book")
            continue
        automatic = fragment.startswith("lvmlib.") and "auto" in book.texts.get(other, "")
        if fragment and other in book.texts and fragment not in anchors_of(book, other) and not automatic:
            problems.append(f"{where}: the link [{label}]({target}) leads to no anchor")
        if match := re.fullmatch(r"(eq|fig)-(\d+)-(\d+)", fragment):
            shown = f"({match[2]}.{match[3]})" if match[1] == "eq" else f"Figure {match[2]}.{match[3]}"
            if shown not in label:
                problems.append(f"{where}: the link [{label}]({target}) must show {shown}")
        if is_image and len(label.strip()) < ALT_LETTERS:
            problems.append(f"{where}: the image {target} needs an alt text of {ALT_LETTERS} letters, got {label!r}")
    return problems


def normalized(path):
    """Return a relative path without '..' and '.'."""
    parts = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in (".", ""):
            parts.append(part)
    return "/".join(parts)


# --------------------------------------------------------------------------------------------- figures


WIDGETS = "lvmlib.teaching.widgets"
DRAWING = ("lvmlib.teaching.plotting", WIDGETS, "matplotlib.pyplot")


def drawing_calls(cell, names):
    """Return (what is called, module) for the calls in a code cell that draw.

    `names` collects what the imports so far have bound: name in the notebook -> the module that it is or comes from.
    """
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in DRAWING:
            names["functions"] |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names["modules"] |= {name: module for name, module in found.items() if module in DRAWING}
        elif isinstance(node, ast.Import):
            names["modules"] |= {
                alias.asname or alias.name: alias.name for alias in node.names if alias.name in DRAWING
            }
    found = [(node, drawing_module(node, names)) for node in ast.walk(tree)]
    return [(ast.unparse(node.func), module) for node, module in found if module]


def drawing_module(node, names):
    """Return the module of the drawing function that a node calls, or None."""
    if not isinstance(node, ast.Call):
        return None
    module, _, function = ast.unparse(node.func).rpartition(".")
    found = names["modules"].get(module) if module else names["functions"].get(function)
    return None if NOT_DRAWING.match(function) else found


def is_shown(cell, names):
    """Return whether a cell that makes a figure with sliders shows it: its last line is the call and nothing else."""
    last = ast.parse(cell.source).body[-1]
    shown = isinstance(last, ast.Expr) and drawing_module(last.value, names) == WIDGETS
    return shown and not cell.source.rstrip().endswith(";")


def check_figures(book):
    """Every cell that draws has an alt text, a numbered caption, and its anchor in the Markdown above it."""
    problems, numbers, anchors_used = [], [], []
    for path in book.in_order():
        names, above, above_number = {"modules": {}, "functions": {}}, "", None
        for cell in book.cells(path):
            if not cell.is_code:
                above, above_number = cell.prose, cell.number
                anchors_used += [(cell, a, b) for a, b in re.findall(r"<a id=['\"]fig-(\d+)-(\d+)['\"]>", above)]
                continue
            calls = drawing_calls(cell, names)
            if calls and cell.figure is None and "remove-cell" not in cell.tags:
                problems.append(f"{cell}: calls {calls[0][0]} but has no mystnb image and figure metadata")
            sliders = [call for call, module in calls if module == WIDGETS]
            if sliders and (len(calls) > 1 or not is_shown(cell, names)):
                problems.append(f"{cell}: {sliders[0]} must be the only figure of its cell, and its last line")
            if cell.figure is None:
                continue
            alt = str(cell.figure.get("image", {}).get("alt", ""))
            caption = str(cell.figure.get("figure", {}).get("caption", ""))
            if len(alt.strip()) < ALT_LETTERS:
                problems.append(f"{cell}: the figure needs an alt text of at least {ALT_LETTERS} letters, got {alt!r}")
            match = re.match(r"Figure (\d+\.\d+)\. \S", caption)
            if not match:
                problems.append(f"{cell}: the caption must begin like 'Figure 3.2. …', got {caption[:30]!r}")
                continue
            numbers.append((cell, match[1]))
            if as_pair(match[1])[0] != chapter_number(path):
                problems.append(f"{cell}: Figure {match[1]} in chapter {chapter_number(path)}")
            anchor = f"fig-{match[1].replace('.', '-')}"
            if not re.search(rf"<a id=['\"]{anchor}['\"]>\s*</a>", above):
                problems.append(f"{cell}: no <a id='{anchor}'></a> in the Markdown above it (cell {above_number})")
            if "name" in cell.figure.get("figure", {}):
                problems.append(f"{cell}: a figure has no name; link to its anchor")
    captions = {number for _, number in numbers}
    problems += [
        f"{cell}: no figure {a}.{b} for the anchor fig-{a}-{b}"
        for cell, a, b in anchors_used
        if f"{a}.{b}" not in captions
    ]
    return problems + ascending(numbers, "figure")


# ------------------------------------------------------------------------------ the shape of a chapter


def check_sections(book):
    """A numbered chapter has a title, its goals and all sections that every chapter has."""
    problems = []
    for path, _ in book.chapters():
        name, text = Path(path).name, markdown_of(book, path)
        found = headings(text)
        if [level for level, _ in found].count(1) != 1 or found[0][0] != 1:
            problems.append(f"{name}: needs exactly one title (# …), as its first heading")
        for section in SECTIONS:
            if not any(title.lower().startswith(section.lower()) for _, title in found):
                problems.append(f"{name}: has no section {section!r}")
        for (above, _), (below, title) in pairwise(found):
            if below > above + 1:
                problems.append(f"{name}: the heading {title!r} skips a level")
        if "**After this chapter you can" not in text:
            problems.append(f"{name}: does not say what the reader can do after it")
    return problems


def check_truth(book):
    """A numbered chapter asserts its estimate against the truth in a cell that every reader sees."""
    problems = []
    for path, _ in book.chapters():
        section, found = "", False
        for cell in book.cells(path):
            for _, title in headings(cell.prose):
                section = title.lower()
            visible = cell.is_code and not {"hide-input", "hide-cell", "remove-cell"} & set(cell.tags)
            asserts = visible and re.search(r"^\s*assert\b|testing\.assert_", cell.source, re.MULTILINE)
            found = found or (section.startswith("against the truth") and bool(asserts))
        if not found:
            problems.append(f"{Path(path).name}: the section 'Against the truth' has no visible cell with an assertion")
    return problems


def check_exercises(book):
    """Three to five exercises, each with a solution of the same number under the heading Solutions."""
    problems = []
    for path, chapter in book.chapters():
        name, section, exercises, solutions = Path(path).name, "", [], []
        for cell in book.cells(path):
            for line in [] if cell.is_code else cell.source.splitlines():
                section = next((title for _, title in headings(line)), section)
                if re.match(r"> \*\*Solution", line) and not section.startswith("Solutions"):
                    problems.append(f"{cell}: a solution outside the section Solutions")
            exercises += [(cell, number) for number in marked(cell, "Exercise")]
            solutions += [(cell, number) for number in marked(cell, "Solution")]
            if cell.is_code and section.startswith("Solutions") and "hide-cell" not in cell.tags:
                problems.append(f"{cell}: code among the solutions needs the tag hide-cell")
        given, solved = [number for _, number in exercises], [number for _, number in solutions]
        if not 3 <= len(given) <= 5:
            problems.append(f"{name}: {len(given)} exercises, allowed are three to five")
        if given != solved:
            problems.append(f"{name}: exercises {given}, but solutions {solved}")
        problems += [f"{cell}: number {n} in chapter {chapter}" for cell, n in exercises if as_pair(n)[0] != chapter]
        problems += ascending(exercises, "exercise")
    return problems


def check_collapsed(book):
    """Colab folds the solutions: their heading opens a cell that is listed in colab.collapsed_sections."""
    problems = []
    for path in book.notebooks:
        listed = book.notebooks[path]["metadata"].get("colab", {}).get("collapsed_sections", [])
        cells = {cell.data.get("id"): cell for cell in book.cells(path)}
        problems += [
            f"{Path(path).name}: collapsed_sections names no cell {name}" for name in listed if name not in cells
        ]
        for name, cell in cells.items():
            titles = [title for _, title in headings(cell.prose)]
            if any(title.startswith("Solutions") for title in titles) and name not in listed:
                problems.append(f"{cell}: the heading Solutions must be in colab.collapsed_sections, got {listed}")
            # Colab folds whole cells: what stands above such a heading in its cell would be on the wrong side.
            for title in titles:
                opens = cell.source.lstrip("# ").startswith(title) and cell.source.startswith("#")
                if title.startswith(("Solutions", "Further reading")) and not opens:
                    problems.append(f"{cell}: the cell must begin with its heading {title!r}")
    return problems


def reference_entries(text):
    """Return (entry, its addresses, is further reading) for all list items or paragraphs with a link."""
    entries, section = [], ""
    for block in re.split(r"\n(?=\s*[-*] |\s*\d+\. |#|\s*\n)|\n\s*\n", text):
        if block.strip().startswith("#"):
            section = block.strip().splitlines()[0]
        addresses = [address for _, _, address in LINK.findall(block) if address.startswith("http")]
        addresses += [address for address in re.findall(r"<(https?://[^>]+)>", block)]
        if addresses:
            entries.append((" ".join(block.split())[:60], addresses, "further reading" in (section + block).lower()))
    return entries


def arxiv_id(address):
    """Return how a docstring cites the paper of an arXiv address, or the address of another one."""
    match = re.search(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", address)
    return f"arXiv:{match[1]}" if match else address


def check_citations(book):
    """Every author-year link has an entry with the same address in references.md, and every entry is cited."""
    references = next((path for path in book.texts if path.endswith("references.md")), None)
    if references is None:
        return ["book/references.md: missing"]
    entries = reference_entries(book.texts[references])
    known = {address for _, addresses, _ in entries for address in addresses}
    linked = [(where, label, target) for where, path, label, target, _ in links_of(book) if path != references]
    problems = [
        f"{where}: the citation [{label}]({target}) has no entry in references.md"
        for where, label, target in linked
        if target.startswith("http") and CITATION.search(label) and target not in known
    ]
    targets = {target for _, _, target in linked}
    for entry, addresses, further in entries:
        in_docstrings = any(address in book.library or arxiv_id(address) in book.library for address in addresses)
        if not further and not in_docstrings and not targets & set(addresses):
            problems.append(f"{references}: {entry!r} is cited nowhere; cite it or mark it as further reading")
    return problems


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}


# --------------------------------------------------------------------------------------- the real book


@pytest.fixture(scope="module")
def book():
    """The book in this repository."""
    return read_book()


@pytest.mark.parametrize("name", CHECKS)
def test_the_book_keeps_the_rule(book, name):
    problems = CHECKS[name](book)
    assert not problems, "\n".join([f"{len(problems)} problems", *problems])


def test_the_book_has_numbered_chapters(book):
    assert book.chapters()


# ---------------------------------------------------------------- a tiny book, and one fault at a time

SETUP = 'import lvmlib\n\nsource = "git+https://example.org/OWNER/tiny@v0.1.0"'
SECTION_TEXT = "\n\n".join(f"## {name}" for name in ("How it fails", "Summary"))
TINY_CELLS = (
    (
        "title",
        "# A tiny chapter\n\nSee [(1.1)](#eq-1-1), [Figure 1.1](#fig-1-1)"
        " and [Burda et al. (2016)](https://example.org/burda).",
    ),
    ("goals", "> **After this chapter you can** count."),
    ("setup", SETUP),
    ("equation", "<a id='eq-1-1'></a>\n\n$$ 1 + 1 = 2 \\tag{1.1} $$\n\n> **Note.** True.\n\n<a id='fig-1-1'></a>"),
    ("figure", "import matplotlib.pyplot as plt\n\nplt.plot([1, 2])"),
    ("truth", "## Against the truth\n\nWe count."),
    ("proof", "assert 1 + 1 == 2"),
    ("middle", SECTION_TEXT + "\n\n## Exercises\n\n" + "\n\n".join(f"> **Exercise 1.{i}.** Why?" for i in (1, 2, 3))),
    ("solutions", "## Solutions"),
    *((f"solution-{i}", f"> **Solution 1.{i}.** So.") for i in (1, 2, 3)),
    ("answer", "assert 1 + 1 == 2"),
    ("end", "## Further reading\n\nThe [index](index.md#for-whom)."),
)


def tiny_cell(name, source):
    """Make one cell; the names above say which are code."""
    cell = {"cell_type": "markdown", "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
    if name in ("setup", "figure", "proof", "answer"):
        cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
    if name == "answer":
        cell["metadata"] = {"tags": ["hide-cell"]}
    if name == "setup":
        cell["metadata"] = {"cellView": "form", "tags": ["hide-input"]}
    if name == "figure":
        alt = "A line that rises from one to two"
        cell["metadata"] = {"mystnb": {"figure": {"caption": "Figure 1.1. A line."}, "image": {"alt": alt}}}
    return cell


def tiny_book():
    """Make a book of one chapter that keeps every rule."""
    metadata = {"colab": {"collapsed_sections": ["solutions"]}, "kernelspec": {"name": "python3"}}
    cells = [tiny_cell(name, source) for name, source in TINY_CELLS]
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    check = SimpleNamespace(
        tag="1.1", test="tests/equations.py::eq_1_1", tolerance=0.1, functions=("lvmlib.__version__",)
    )
    tiny = Book(
        notebooks={"book/01-tiny.ipynb": notebook},
        texts={
            "book/index.md": "# Tiny\n\n## For whom\n\n[One](01-tiny.ipynb#eq-1-1) shows (1.1)".replace(
                "[One]", "[(1.1)]"
            ),
            "book/references.md": "# References\n\n- Burda et al. [paper](https://example.org/burda)\n",
        },
        config={
            "author": "The authors",
            "only_build_toc_files": True,
            "execute": {"raise_on_error": True, "allow_errors": False},
            "repository": {"url": "https://example.org/OWNER/tiny"},
        },
        toc={
            "root": "book/index",
            "parts": [{"caption": "I", "chapters": [{"file": "book/01-tiny"}, {"file": "book/references"}]}],
        },
        equations={"1.1": check},
        callouts=("Note", "Exercise", "Solution", "After this chapter you can"),
        version="0.1.0",
        places={"README.md": "https://github.com/OWNER/tiny"},
    )
    return settled(tiny)


def settled(tiny):
    """Bring the texts and sizes of a changed tiny book in line with its notebooks."""
    tiny.texts |= {path: canonical(data) for path, data in tiny.notebooks.items()}
    tiny.files = {path: len(text) for path, text in tiny.texts.items()}
    return tiny


def edit(cell, old, new):
    """Return a fault that replaces text in one cell of the tiny book."""

    def plant(tiny):
        found = next(data for data in tiny.notebooks["book/01-tiny.ipynb"]["cells"] if data["id"] == cell)
        source = "".join(found["source"])
        assert old in source
        found["source"] = source.replace(old, new).splitlines(keepends=True)

    return plant


def change(action):
    """Return a fault that changes the cell data: `action` gets the cells by their id, and the book."""

    def plant(tiny):
        action({data["id"]: data for data in tiny.notebooks["book/01-tiny.ipynb"]["cells"]}, tiny)

    return plant


def insert(after, name, source, **changes):
    """Return a fault that adds a cell after another one."""

    def plant(tiny):
        cells = tiny.notebooks["book/01-tiny.ipynb"]["cells"]
        position = next(number for number, data in enumerate(cells) if data["id"] == after) + 1
        cells.insert(position, tiny_cell(name, source) | {"id": "planted"} | changes)

    return plant


def second_notebook(tiny):
    """Plant a second chapter whose setup cell differs."""
    tiny.notebooks["book/02-other.ipynb"] = copy.deepcopy(tiny.notebooks["book/01-tiny.ipynb"])
    tiny.notebooks["book/02-other.ipynb"]["cells"][2]["source"][0] = "import lvmlib  # other\n"


def unsorted_keys(tiny):
    """Plant a notebook whose keys are not sorted."""
    tiny.texts["book/01-tiny.ipynb"] = json.dumps(tiny.notebooks["book/01-tiny.ipynb"], indent=1) + " \n"


SLIDERS = "from lvmlib.teaching import widgets\n\nwidgets.two_divergences(1.5, 0.5)"


def with_sliders(cells, spoil=lambda mystnb: None, source=SLIDERS):
    """Make the figure of the tiny book one with sliders, and spoil its metadata."""
    cells["figure"]["source"] = source.splitlines(keepends=True)
    metadata = cells["figure"]["metadata"]
    spoil(metadata["mystnb"])
    if not metadata["mystnb"]:
        del metadata["mystnb"]


LONG = "\n".join(f"x{i} = {i}" for i in range(21))
FAULTS = [
    ("check_clean_notebooks", change(lambda c, b: c["figure"].update(outputs=[{}])), "outputs"),
    ("check_clean_notebooks", change(lambda c, b: c["figure"].update(execution_count=3)), "count 3"),
    ("check_clean_notebooks", change(lambda c, b: c["goals"].update(id="title")), "used twice"),
    ("check_clean_notebooks", change(lambda c, b: b.notebooks["book/01-tiny.ipynb"].update(nbformat_minor=4)), "4.4"),
    (
        "check_clean_notebooks",
        change(lambda c, b: b.notebooks["book/01-tiny.ipynb"]["metadata"].pop("kernelspec")),
        "kernelspec",
    ),
    ("check_clean_notebooks", unsorted_keys, "canonical"),
    ("check_toc", change(lambda c, b: b.toc["parts"][0]["chapters"].pop(0)), "not in _toc.yml"),
    ("check_toc", change(lambda c, b: b.toc["parts"][0]["chapters"].append({"file": "book/gone"})), "is no file"),
    ("check_toc", change(lambda c, b: b.toc["parts"][0]["chapters"].append({"file": "book/index"})), "twice"),
    ("check_files", change(lambda c, b: b.files.update({"book/a_page.md": 1})), "hyphens"),
    ("check_files", change(lambda c, b: b.files.update({"book/a.png": 3_000_000})), "bytes"),
    ("check_config", change(lambda c, b: b.config["execute"].update(raise_on_error=False)), "raise_on_error"),
    ("check_config", change(lambda c, b: b.config.update(author=["A", "B"])), "author"),
    ("check_config", change(lambda c, b: b.toc["parts"][0].update(numbered=2)), "numbered"),
    ("check_setup_cells", second_notebook, "differs"),
    ("check_setup_cells", edit("setup", "v0.1.0", "v0.0.9"), "v0.1.0"),
    ("check_setup_cells", edit("setup", "OWNER", "ELSE"), "must install"),
    ("check_setup_cells", change(lambda c, b: c["setup"]["metadata"].pop("cellView")), "cellView"),
    ("check_url", change(lambda c, b: b.places.update({"README.md": "https://github.com/ELSE/tiny"})), "ELSE"),
    ("check_tags", change(lambda c, b: c["figure"]["metadata"].update(tags=["hide_input"])), "hide_input"),
    ("check_code", insert("goals", "answer", "%matplotlib inline"), "magic"),
    ("check_code", insert("goals", "answer", "!ls"), "magic"),
    ("check_code", insert("solution-3", "answer", 'run(["pip", "install", "x"])'), "pip install"),
    ("check_code", edit("answer", "assert 1", "assert ("), "not Python"),
    ("check_code", edit("answer", "assert", 'path = "/home/me/x"\nassert'), "/home/me/x"),
    ("check_cell_lengths", edit("answer", "assert", LONG + "\nassert"), "22 lines"),
    (
        "check_cell_lengths",
        change(lambda c, b: [c[n].update(source=LONG[:70].splitlines(True)) for n in ("figure", "proof", "answer")]),
        "median",
    ),
    ("check_rhythm", insert("proof", "proof", "1 + 1"), "without a sentence"),
    ("check_portable_markdown", edit("goals", "count", "{math}`x`"), "a role"),
    ("check_portable_markdown", edit("goals", "count.", "count.\n\n```{note}\nx\n```"), "a directive"),
    ("check_portable_markdown", edit("goals", "count.", "count.\n\n:::{note}\nx\n:::"), "::: fence"),
    ("check_portable_markdown", edit("goals", "count.", "count.\n\n(label)=\n"), "(label)="),
    ("check_portable_markdown", edit("title", "[(1.1)]", "[]"), "empty link text"),
    ("check_portable_markdown", edit("equation", "**Note.**", "**Notte.**"), "callout 'Notte.'"),
    ("check_portable_markdown", edit("equation", "1 + 1", "\\newcommand{\\x}{1} 1 + 1"), "macro"),
    ("check_displays", edit("equation", "1 + 1", "0 \\\\ 1 + 1"), "render red"),
    ("check_displays", edit("goals", "count.", "\n\n\\begin{align} 1 \\end{align}"), "un-starred align"),
    ("check_displays", edit("goals", "count.", "\n\n$$\\begin{align*} 1 \\end{align*}$$"), "inside $$"),
    ("check_displays", edit("equation", "\\tag{1.1} $$", "\\tag{1.1}"), "odd number"),
    ("check_equation_tags", edit("equation", "</a>\n\n$$", "</a>\n$$"), "blank line"),
    ("check_equation_tags", edit("equation", "\\tag{1.1}", "\\tag{2.1}"), "in chapter 1"),
    ("check_equation_tags", edit("equation", "eq-1-1", "eq-1-2"), "do not match"),
    ("check_equation_tags", insert("equation", "again", TINY_CELLS[3][1]), "comes after 1.1"),
    ("check_equation_tags", edit("equation", "\\tag{1.1}", "\\tag{one}"), "like 3.2"),
    ("check_equation_checks", change(lambda c, b: b.equations.clear()), "no check"),
    ("check_equation_checks", edit("equation", "\\tag{1.1}", ""), "no chapter has"),
    (
        "check_equation_checks",
        change(lambda c, b: setattr(b.equations["1.1"], "functions", ("lvmlib.none",))),
        "no lvmlib.none",
    ),
    ("check_equation_checks", change(lambda c, b: setattr(b.equations["1.1"], "test", "x")), "named x"),
    ("check_equation_checks", change(lambda c, b: setattr(b.equations["1.1"], "tolerance", float("nan"))), "tolerance"),
    ("check_links", edit("end", "index.md", "gone.md"), "no file"),
    ("check_links", edit("end", "#for-whom", "#for-what"), "no anchor"),
    ("check_links", edit("title", "#eq-1-1", "#eq-1-9"), "no anchor"),
    ("check_links", edit("title", "[(1.1)]", "[above]"), "must show (1.1)"),
    ("check_links", edit("title", "[Figure 1.1]", "[picture]"), "must show Figure 1.1"),
    ("check_links", edit("title", "See", "![x](index.md) See"), "alt text"),
    ("check_figures", change(lambda c, b: c["figure"].update(metadata={})), "no mystnb"),
    ("check_figures", change(lambda c, b: c["figure"]["metadata"]["mystnb"].pop("image")), "alt text"),
    (
        "check_figures",
        change(lambda c, b: c["figure"]["metadata"]["mystnb"]["figure"].update(caption="A line")),
        "must begin",
    ),
    ("check_figures", edit("equation", "<a id='fig-1-1'></a>", ""), "no <a id='fig-1-1'>"),
    (
        "check_figures",
        insert("figure", "figure", "plt.plot([1])", metadata=tiny_cell("figure", "")["metadata"]),
        "comes after",
    ),
    ("check_figures", edit("goals", "count", "<a id='fig-1-7'></a>"), "no figure 1.7"),
    ("check_figures", change(lambda c, b: with_sliders(c, lambda mystnb: mystnb.clear())), "no mystnb"),
    ("check_figures", change(lambda c, b: with_sliders(c, lambda mystnb: mystnb.pop("image"))), "alt text"),
    (
        "check_figures",
        change(lambda c, b: with_sliders(c, lambda mystnb: mystnb["figure"].update(caption="A line"))),
        "must begin",
    ),
    (
        "check_figures",
        change(lambda c, b: with_sliders(c, lambda mystnb: mystnb["figure"].update(caption="Figure 1.2. A line"))),
        "no <a id='fig-1-2'>",
    ),
    ("check_figures", change(lambda c, b: with_sliders(c, source=SLIDERS + ";")), "its last line"),
    (
        "check_figures",
        change(lambda c, b: with_sliders(c, source=SLIDERS.replace("widgets.t", "w = widgets.t"))),
        "last",
    ),
    ("check_figures", change(lambda c, b: with_sliders(c, source=f"{SLIDERS}\n{SLIDERS}")), "the only figure"),
    ("check_sections", edit("middle", "## How it fails", "## Failing"), "How it fails"),
    ("check_sections", edit("title", "# A", "## A"), "one title"),
    ("check_sections", edit("middle", "## Summary", "#### Summary"), "skips a level"),
    ("check_sections", edit("goals", "After", "Before"), "after it"),
    ("check_truth", edit("proof", "assert", "print"), "no visible cell"),
    ("check_truth", change(lambda c, b: c["proof"]["metadata"].update(tags=["hide-cell"])), "no visible cell"),
    ("check_exercises", change(lambda c, b: c["answer"]["metadata"].clear()), "needs the tag hide-cell"),
    ("check_exercises", edit("middle", "> **Exercise 1.3.** Why?", ""), "2 exercises"),
    ("check_exercises", edit("solution-2", "1.2", "1.4"), "but solutions"),
    ("check_exercises", edit("solutions", "## Solutions", "## Answers"), "outside"),
    ("check_exercises", edit("solution-3", "So.", "So.\n\n## Further reading\n\n> **Solution 1.4.** So."), "outside"),
    ("check_exercises", edit("middle", "Exercise 1.1", "Exercise 2.1"), "in chapter 1"),
    (
        "check_collapsed",
        change(lambda c, b: b.notebooks["book/01-tiny.ipynb"]["metadata"].pop("colab")),
        "collapsed_sections",
    ),
    ("check_collapsed", edit("solutions", "##", "Now\n\n##"), "begin with its heading 'Solutions'"),
    ("check_collapsed", edit("end", "##", "Now\n\n##"), "begin with its heading 'Further reading'"),
    ("check_citations", edit("title", "/burda", "/burdb"), "has no entry"),
    ("check_citations", edit("title", "[Burda et al. (2016)](https://example.org/burda)", "nobody"), "cited nowhere"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_a_tiny_book_without_fault_passes(name):
    assert CHECKS[name](tiny_book()) == []


def test_a_figure_with_sliders_passes():
    tiny = tiny_book()
    change(lambda c, b: with_sliders(c))(tiny)
    assert CHECKS["check_figures"](settled(tiny)) == []


@pytest.mark.parametrize(("name", "plant", "message"), FAULTS, ids=[f"{n[6:]}-{m}" for n, _, m in FAULTS])
def test_a_planted_fault_is_found(name, plant, message):
    tiny = tiny_book()
    plant(tiny)
    if plant is not unsorted_keys:
        planted_files = {path: size for path, size in tiny.files.items() if path not in tiny.texts}
        large = tiny.files | planted_files
        settled(tiny).files |= {path: size for path, size in large.items() if path not in tiny.texts}
    problems = CHECKS[name](tiny)
    assert any(message in problem for problem in problems), problems


def test_every_rule_has_a_planted_fault():
    assert {name for name, _, _ in FAULTS} == set(CHECKS)
