"""Every text that the sources can say to a caller: errors, warnings and findings, put together from their pieces."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("ropescale", "evals", "recipes")
FILLED = "{}"  # stands for what is filled in
RAISED = ("Error", "Warning", "warn", "Finding")  # ends of names of what is called with a text


@dataclass(frozen=True)
class Message:
    """A text, or a piece of one that is made elsewhere in its file."""

    file: str
    line: int
    text: str


def sources() -> dict[str, str]:
    """Path below the root -> source, of all that ships."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def messages(file: str, source: str) -> list[Message]:
    """The messages of one file.

    What is interpolated is followed to where it is made, as far as that is in the same file: a constant, a variable,
    a function. It counts as a message of its own, since its words are said too.
    """
    tree = ast.parse(source)
    made: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                for name in names:
                    if isinstance(name, ast.Name | ast.Attribute):
                        made.setdefault(ast.unparse(name).rpartition(".")[2], []).append(node.value)
        elif isinstance(node, ast.FunctionDef):
            returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            made.setdefault(node.name, []).extend(returned)
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Tuple):
            for name in node.target.elts:
                made.setdefault(ast.unparse(name), []).append(node.iter)
    found, followed = [], set()

    def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                yield node.lineno, node.value
            return
        if isinstance(node, ast.JoinedStr):
            pieces = [one.value if isinstance(one, ast.Constant) else FILLED for one in node.values]
            yield node.lineno, "".join(map(str, pieces))
        elif isinstance(node, ast.Name | ast.Attribute | ast.Call):
            name = ast.unparse(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2]
            if name in made and name not in followed:
                followed.add(name)
                for one in made[name]:
                    yield from texts(one)
        for inner in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.JoinedStr) and isinstance(inner, ast.Constant)):
                yield from texts(inner)

    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func).endswith(RAISED):
                found += [pair for one in (*node.args, *(word.value for word in node.keywords)) for pair in texts(one)]
            else:
                told = [word.value for word in node.keywords if word.arg in ("remedy", "rule")]
                found += [pair for one in told for pair in texts(one)]
    return [Message(file, line, text) for line, text in dict.fromkeys(found)]


def every_message() -> list[Message]:
    """Those of all that ships."""
    return [one for file, source in sources().items() for one in messages(file, source)]
