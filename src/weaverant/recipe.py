"""Loading what a user wrote: a workflow file or a recipe's folder.

A recipe is a folder with `recipe.py` (workflow, agents, exporters) and its prompts; a single file works the same.
Nothing is registered: what a file defines at its top level is what it offers.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast, get_type_hints

import msgspec

from weaverant.agent import Agent
from weaverant.errors import UserError, WeaverantError, failure_of, place_of
from weaverant.message import digest
from weaverant.story import Story
from weaverant.workflow import Group, Stages, Workflow

RECIPES = Path(__file__).parent / "recipes"
EXPORTER_MARK = "__weaverant_exporter__"

StoryExporter = Callable[[Story], Iterable[dict[str, Any]]]


def exporter(function: StoryExporter) -> StoryExporter:
    """Offer a function from a finished task's story to training samples as `weaverant export --as ITS_NAME`.

    A sample is plain data. Its field `_file`, where there is one, names the file that it goes to (and does not go
    there itself): `--out` is then a folder. One with a field `_left_out` is not written but counted, by what it says.
    """
    setattr(function, EXPORTER_MARK, True)
    return function


def samples_of(function: StoryExporter, name: str, story: Story) -> Iterator[dict[str, Any]]:
    """What an exporter makes of a story; what it raises is a `UserError` that names the task and the place."""
    try:
        yield from function(story)
    except WeaverantError:
        raise
    except Exception as error:  # the boundary to a user's function: it may raise anything
        failure, where = failure_of(error)
        raise UserError(f"exporter {name!r} failed on task {story.key!r}: {failure} ({where})") from error


@dataclass(frozen=True)
class Parameter:
    """A keyword argument of a workflow: on the command line it is a flag."""

    name: str
    kind: Any
    default: Any


@dataclass(frozen=True)
class Recipe:
    """What a file or folder offers."""

    name: str
    path: Path
    """The file."""
    stages: tuple[Workflow | Group, ...]
    agents: tuple[Agent, ...]
    exporters: dict[str, StoryExporter]
    parameters: dict[str, Parameter]
    source: str | None
    """The input to use where none is given: the file's `SOURCE`."""
    model: str | None
    """The model to use where none is given: the file's `MODEL`."""
    code: str
    """A hash of the file and of its neighbours that it imports."""
    given: str
    """What found it: `FILE.py`, `FILE.py:NAME`, a folder, a recipe's name; of an object, its name."""
    about: str
    """The first line of the file's docstring."""

    def with_parameters(self, values: dict[str, Any]) -> Recipe:
        """The recipe with its workflow's keyword arguments set."""
        unknown = sorted(set(values) - set(self.parameters))
        if unknown:
            known = ", ".join(sorted(self.parameters)) or "none"
            raise UserError(f"{self.name!r} has no parameter {unknown[0]!r}; it has: {known}")
        return replace(self, stages=tuple(_bind(stage, values) for stage in self.stages)) if values else self


def find_recipe(name: str) -> Path:
    """The file of `WORKFLOW.py`, of a folder with `recipe.py`, or of a packaged recipe."""
    path = Path(name)
    for candidate in (path, path / "recipe.py", RECIPES / name / "recipe.py"):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate.resolve()
    found = f"the file {name!r} does not end in .py" if path.is_file() else f"there is no workflow {name!r}"
    raise UserError(
        f"{found}. Expected a Python file, a folder with recipe.py, or one of the recipes: "
        f"{', '.join(recipe_names())}. `weaverant init` writes an example"
    )


def recipe_names() -> list[str]:
    return sorted(path.parent.name for path in RECIPES.glob("*/recipe.py"))


def load_recipe(given: str) -> Recipe:
    """Import the file and see what it defines. `FILE.py:NAME` chooses where it defines several workflows."""
    name, _, chosen = given.partition(".py:")
    file = find_recipe(f"{name}.py" if chosen else given)
    module = load_module(file)
    stages = _stages(module, file, chosen or None)
    defined = vars(module).items()
    return Recipe(
        file.parent.name if file.name == "recipe.py" else file.stem,
        file,
        stages,
        tuple(value for _, value in defined if isinstance(value, Agent)),
        {key: value for key, value in defined if getattr(value, EXPORTER_MARK, False)},
        _parameters(stages),
        getattr(module, "SOURCE", None),
        getattr(module, "MODEL", None),
        _code_hash(file),
        given,
        about(module.__doc__),
    )


def recipe_of(workflow: Workflow | Stages) -> Recipe:
    """The same for a workflow that was handed over as an object; agents and exporters are its module's."""
    stages = workflow.stages if isinstance(workflow, Stages) else (workflow,)
    function = inspect.unwrap(function_of(stages[0]))
    module = sys.modules.get(function.__module__)
    defined = [] if module is None else list(vars(module).items())
    file = Path(inspect.getsourcefile(function) or "<memory>")
    code = digest(b"".join(stage.source for stage in stages)).hex()
    return Recipe(
        workflow.name,
        file,
        tuple(stages),
        tuple(value for _, value in defined if isinstance(value, Agent)),
        {key: value for key, value in defined if getattr(value, EXPORTER_MARK, False)},
        _parameters(stages),
        None,
        None,
        code,
        workflow.name,
        about(None if module is None else module.__doc__),
    )


def about(docstring: str | None) -> str:
    """A docstring's first line."""
    return (docstring or "").strip().partition("\n")[0].strip()


_loading: list[Path] = []


def is_loading() -> bool:
    """A workflow's file is being imported right now."""
    return bool(_loading)


class _Uncached(SourceFileLoader):
    """Compiles the source every time: what Python keeps of a file's bytecode is cut short where the disk is full, and
    the file could not be loaded any more until somebody deletes that."""

    def path_stats(self, path: str) -> NoReturn:
        """Without them Python neither reads nor writes bytecode."""
        raise OSError


def load_module(file: Path) -> ModuleType:
    """Import a file, under a name of ours: what it has under `if __name__ == "__main__":` does not run."""
    if file.is_relative_to(RECIPES):
        return importlib.import_module(f"weaverant.recipes.{file.parent.name}.recipe")
    name = f"weaverant_user_{digest(str(file).encode()).hex()[:8]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_Uncached(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that the file can import its neighbours, as a script could
    _loading.append(file)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except SystemExit as error:
        where, way_out = place_of(error) or "at its top", "put that under: if __name__ == '__main__':"
        raise UserError(f"{str(file)!r} cannot be loaded: it ends the process ({where}); {way_out}") from error
    except Exception as error:  # the boundary to a user's file: any line of it may raise anything
        failure, where = failure_of(error)
        cut = isinstance(error, EOFError) and "marshal" in str(error)
        hint = ". The disk was full when Python kept the bytecode of a file beside it: delete __pycache__" * cut
        raise UserError(f"{str(file)!r} cannot be loaded: {failure} ({where or 'at its top'}){hint}") from error
    finally:
        _loading.pop()
    return module


def _stages(module: ModuleType, file: Path, wanted: str | None) -> tuple[Workflow | Group, ...]:
    found = {key: value for key, value in vars(module).items() if isinstance(value, Workflow | Stages)}
    if wanted is not None:
        if wanted not in found:
            raise UserError(f"{str(file)!r} defines no workflow {wanted!r}; it defines: {', '.join(found) or 'none'}")
        found = {wanted: found[wanted]}
    pipelines = [value for value in found.values() if isinstance(value, Stages)]
    if len(pipelines) == 1:
        return pipelines[0].stages
    own = [
        value
        for value in found.values()
        if isinstance(value, Workflow) and value.function.__module__ == module.__name__
    ]
    if not pipelines and len(own) == 1:
        return (own[0],)
    named = ", ".join(repr(key) for key in found) or "none"
    raise UserError(
        f"{str(file)!r} should define one async function with @workflow, or one Stages(...); found {named}. "
        "Choose with FILE.py:NAME"
    )


def _parameters(stages: Iterable[Workflow | Group]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for stage in stages:
        function = inspect.unwrap(function_of(stage))
        hints = get_type_hints(function)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            if parameter.default is parameter.empty:
                raise UserError(f"{stage.name!r}: the parameter {parameter.name!r} needs a default")
            kind = hints.get(parameter.name, type(parameter.default))
            found[parameter.name] = Parameter(parameter.name, kind, parameter.default)
    return found


def _bind(stage: Workflow | Group, values: dict[str, Any]) -> Workflow | Group:
    own = {name: _typed(parameter, values[name]) for name, parameter in _parameters([stage]).items() if name in values}
    if not own:
        return stage
    return replace(stage, function=cast("Any", partial(stage.function, **own)))


def _typed(parameter: Parameter, value: Any) -> Any:
    try:
        return msgspec.convert(value, parameter.kind, strict=False)
    except (msgspec.ValidationError, TypeError) as error:
        raise UserError(f"parameter {parameter.name!r}: {error}; found {value!r}") from None


def function_of(stage: Workflow | Group) -> Any:
    """The function as it was written, without the parameters that were bound."""
    function = stage.function
    return function.func if isinstance(function, partial) else function


def _code_hash(file: Path) -> str:
    """A hash of the file and of the files beside it that it imports, without comments, layout and exporters, which
    change nothing of what runs. Prompts are in the agents' specs."""
    return digest(b"".join(digest(_code(path)) for path in sorted(_own_files(file)))).hex()


def _code(file: Path) -> bytes:
    tree = ast.parse(file.read_bytes())
    tree.body = [node for node in tree.body if not _is_exporter(node) and not _is_our_import(node)]
    return ast.unparse(tree).encode()


def _is_our_import(node: ast.stmt) -> bool:
    """An exporter brings its import of `exporter` along."""
    return isinstance(node, ast.ImportFrom) and node.module == "weaverant"


def _is_exporter(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    return any(ast.unparse(decorator).split(".")[-1] == "exporter" for decorator in node.decorator_list)


def _own_files(file: Path) -> set[Path]:
    """The file and its neighbours among its imports, followed by reading them: the same in every process."""
    found = {file}
    unread = [file]
    while unread:
        for name in _imported(unread.pop()):
            parts = name.removeprefix(f"weaverant.recipes.{file.parent.name}.").split(".")
            path = file.parent.joinpath(*parts)
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if candidate.is_file() and candidate not in found:
                    found.add(candidate)
                    unread.append(candidate)
    return found


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
