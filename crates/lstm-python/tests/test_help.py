"""The texts and signatures that `help` shows are those of the declarations, for every public name."""

from __future__ import annotations

import ast
import inspect
import pydoc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lstm
from lstm import _lstm

FOLDER = Path(lstm.__file__).parent
DECLARATIONS = ast.parse((FOLDER / "_lstm.pyi").read_text())
Node = ast.ClassDef | ast.FunctionDef

# What the declarations contain for type checkers alone.
TYPES = {"StepReport", "DeviceInfo", "ParameterGroup"}


def definitions(tree: ast.Module) -> Iterator[tuple[str, Node]]:
    """All classes, functions, methods and properties by name; of overloads, the last."""
    found: dict[str, Node] = {}
    for node in tree.body:
        if isinstance(node, Node) and node.name not in TYPES:
            found[node.name] = node
        if isinstance(node, ast.ClassDef) and node.name not in TYPES:
            setters = [f for f in node.body if isinstance(f, ast.FunctionDef) and "setter" in ast.dump(f)]
            found |= {f"{node.name}.{f.name}": f for f in node.body if isinstance(f, ast.FunctionDef) and f not in setters}
    yield from found.items()


DECLARED = dict(definitions(DECLARATIONS))
# Python makes the text of a call and of a constructor; the class has that of the latter.
WITH_TEXT = {name: node for name, node in DECLARED.items() if not name.endswith("__")}


def actual(name: str) -> Any:
    """What the declaration of a name declares."""
    value: Any = _lstm
    for part in name.split("."):
        value = inspect.getattr_static(value, part)
    return value.__func__ if isinstance(value, staticmethod) else value


def parameters(node: ast.FunctionDef) -> list[tuple[str, Any, Any]]:
    """The name, the kind and the default of each parameter, without `self` and `cls`."""
    kinds, a = inspect.Parameter, node.args
    none = [kinds.empty]
    defaults = [*none * (len(a.args) - len(a.defaults)), *map(ast.literal_eval, a.defaults)]
    found: list[tuple[str, Any, Any]] = [
        (arg.arg, kinds.POSITIONAL_OR_KEYWORD, value) for arg, value in zip(a.args, defaults, strict=True)
    ]
    found += [(a.vararg.arg, kinds.VAR_POSITIONAL, kinds.empty)] if a.vararg else []
    for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        found.append((arg.arg, kinds.KEYWORD_ONLY, kinds.empty if default is None else ast.literal_eval(default)))
    return [parameter for parameter in found if parameter[0] not in ("self", "cls")]


def test_every_public_name_is_declared() -> None:
    public = [name for name in lstm.__all__ if name != "__version__"]
    assert set(public) <= WITH_TEXT.keys()
    for name in public:
        value = getattr(lstm, name)
        members = [f"{name}.{member}" for member in vars(value) if member[0] != "_"] if inspect.isclass(value) else []
        assert set(members) <= WITH_TEXT.keys()


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text(name: str) -> None:
    declared = ast.get_docstring(WITH_TEXT[name])
    assert declared and inspect.getdoc(actual(name)) == declared


@pytest.mark.parametrize("name", [name for name, node in WITH_TEXT.items() if inspect.isroutine(actual(name))])
def test_signature(name: str) -> None:
    node = WITH_TEXT[name]
    assert isinstance(node, ast.FunctionDef)
    signature = inspect.signature(actual(name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in signature if p.name != "self"] == parameters(node)


@pytest.mark.parametrize("name", ["LSTM", "Trainer"])
def test_signature_of_a_constructor(name: str) -> None:
    node = DECLARED[f"{name}.__new__"]
    assert isinstance(node, ast.FunctionDef)
    signature = inspect.signature(getattr(lstm, name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in signature] == parameters(node)


def test_help_shows_what_users_look_for() -> None:
    text = pydoc.plain(pydoc.render_doc(lstm.LSTM))
    assert "class LSTM(builtins.object)" in text
    assert "hidden_size, num_layers=1, bias=True, batch_first=False" in text
    for part in ["Number of stacked layers.", "forward(self, /, ", "lengths=None)", "Returns:", "Raises:"]:
        assert part in text
    assert "The content determines the format." in pydoc.plain(pydoc.render_doc(lstm.Model.open))


def test_python_code_has_texts() -> None:
    tree = ast.parse((FOLDER / "torch.py").read_text())
    names = [name for name, _ in definitions(tree) if not any(part[0] == "_" for part in name.split("."))]
    assert {"LSTM", "LSTM.forward", "convert"} <= {*names}
    without = [name for name, node in definitions(tree) if name in names and not ast.get_docstring(node)]
    assert not without
