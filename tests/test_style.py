"""How the code reads: what the house style asks of every file, counted from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    file for room in ("jepa_wm", "evals", "launch") for file in (ROOT / room).rglob("*.py")
)
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
WIDEST, LONGEST_FILE, LONGEST_FUNCTION, UNCOMMENTED, MOST_ARGUMENTS = 99, 300, 60, 20, 8
PRONOUNS = {"found", "told", "some", "wanted", "said", "others"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def lines_of(file):
    return file.read_text(encoding="utf-8").splitlines()


def name_of(file):
    return str(file.relative_to(ROOT))


def functions(file):
    return [node for node in ast.walk(TREES[file]) if isinstance(node, FUNCTIONS)]


def body_of(function, lines):
    """The lines of a function behind its docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return lines[(first.end_lineno if has_docstring else function.lineno) : function.end_lineno]


def pronouns(tree):
    """Names that are given to variables or arguments and are pronouns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in PRONOUNS:
            yield f"{node.lineno} {node.id}"
        elif isinstance(node, ast.arg) and node.arg in PRONOUNS:
            yield f"{node.lineno} {node.arg}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_is_easy_to_read(file):
    lines = lines_of(file)
    wide = [number for number, line in enumerate(lines, 1) if len(line) > WIDEST]
    assert not wide, f"lines of more than {WIDEST} columns"
    assert len(lines) <= LONGEST_FILE
    assert not list(pronouns(TREES[file])), "a pronoun tells nothing as a variable's name"
    walrus = [
        node.lineno
        for node in ast.walk(TREES[file])
        if isinstance(node, COMPREHENSIONS)
        and any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node))
    ]
    assert not walrus, "a comprehension that also assigns needs a second reading"
    for function in functions(file):
        where = f"{function.name}, line {function.lineno}"
        assert function.end_lineno - function.lineno < LONGEST_FUNCTION, where
        body = body_of(function, lines)
        comments = [line for line in body if "#" in line and "# fmt:" not in line]
        assert len(body) <= UNCOMMENTED or comments, f"{where}: long, and no comment says why"
        if function.name == "__init__":
            count = len(function.args.args) + len(function.args.kwonlyargs) - 1
            assert count <= MOST_ARGUMENTS, f"{where}: give it a settings object"


def test_what_breaks_the_rules_is_noticed():
    tree = ast.parse("def f(told):\n    found = 1\n    for some in found:\n        pass")
    assert list(pronouns(tree)) == ["1 told", "2 found", "3 some"]
