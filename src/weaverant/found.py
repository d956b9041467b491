"""Where the workflow of a run that is made in Python stands in a file, so that another process finds it again."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from weaverant.errors import UserError
from weaverant.recipe import Recipe, function_of, load_module, recipe_of
from weaverant.workflow import Stages, Workflow


def place_of(workflow: Workflow | Stages) -> str:
    """`FILE.py:NAME`; empty where that would not find it: it was made at a prompt, in a function or in a package, or
    its file starts the run whenever it is loaded."""
    first = workflow.stages[0] if isinstance(workflow, Stages) else workflow
    function = inspect.unwrap(function_of(first))
    for module in (sys.modules.get(function.__module__), sys.modules.get("__main__")):
        file = Path(getattr(module, "__file__", None) or "")
        if module is None or module.__package__ or file.suffix != ".py" or not file.is_file():
            continue
        names = [name for name, value in vars(module).items() if value is workflow]
        if names and not _is_running(file):
            return f"{file.resolve()}:{names[0]}"
    return ""


def recipe_at(place: str) -> Recipe:
    """The recipe of the workflow at `FILE.py:NAME`, the same as of the object itself."""
    file, _, name = place.rpartition(":")
    found = getattr(load_module(Path(file)), name, None) if Path(file).is_file() else None
    if not isinstance(found, Workflow | Stages):
        raise UserError(
            f"the run was made in Python from the workflow {name!r} of {file!r}, and there is none there any more. "
            "Put it back, or go on in Python: weaverant.resume(DIRECTORY, workflow=...)"
        )
    return recipe_of(found)


def _is_running(file: Path) -> bool:
    """Whether the top of this file is what called us, other than under `if __name__ == "__main__":`."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and Path(code.co_filename).resolve() == file.resolve():
            return not _is_guarded(file, frame.f_lineno)
        frame = frame.f_back
    return False


def _is_guarded(file: Path, line: int) -> bool:
    tops = ast.parse(file.read_bytes()).body
    guards = [node for node in tops if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    return any(node.lineno <= line <= (node.body[-1].end_lineno or 0) for node in guards)
