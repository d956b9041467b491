"""The floors of AGENTS.md: imports point down only, kinds know no siblings, heavy packages have one seam each."""

import ast
from pathlib import Path

import weaverant

SRC = Path(weaverant.__file__).parent

FLOORS = {
    0: ["message", "row", "bytecode", "talk", "step", "trace", "events", "errors", "prompt"],
    1: ["protocols"],
    2: [
        *(
            "agent",
            "binding",
            "effect",
            "schema",
            "jsontext",
            "workflow",
            "recipe",
            "task",
            "past",
            "branch",
            "refused",
        ),
        *("replay", "history", "compound"),
        *("story", "__init__", "fields", "namesakes", "coroutine", "engines", "journal", "sources", "export"),
    ],
    3: ["runtime", "swarm", "train", "routing"],
    4: ["recipes"],
    5: ["launch", "session", "given", "found", "blocking", "rundir", "summary", "pilot", "peers"],
    6: ["cli", "testing", "__main__"],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
KINDS = ("engines", "sources", "export")
LAUNCHED = {"run", "resume", "Run"}
"""Names of the package that load floor 5 on first use."""
HEAVY = {
    "ray",
    "torch",
    "trl",
    "peft",
    "accelerate",
    "vllm",
    "transformers",
    "pyarrow",
    "datasets",
    "fsspec",
    "s3fs",
    "math_verify",
    "sentence_transformers",
}


def modules():
    return [path for path in SRC.rglob("*.py") if "__pycache__" not in path.parts]


def place(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def floor_of(path: Path) -> int:
    inside = path.relative_to(SRC).parts
    if inside[0] == "recipes" and (
        inside[-1] in ("__main__.py", "evaluate.py", "main.py", "picture.py") or "loop" in inside
    ):
        return 6  # a recipe's own door: a script that runs it, or trains on what it wove
    return FLOOR_OF[place(path)]


def imports(path: Path):
    """(dotted name, names imported from it) for every import in the file, deferred ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, set()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", {alias.name for alias in node.names}


def target_floor(module: str, names: set[str]) -> int:
    parts = module.split(".")
    if len(parts) == 1:
        return 5 if names & LAUNCHED else FLOOR_OF["__init__"]
    return FLOOR_OF[parts[1]]


def test_every_module_has_a_floor():
    assert {place(path) for path in modules()} <= set(FLOOR_OF)


def test_imports_point_down_only():
    wrong = [
        f"{path.relative_to(SRC)} (floor {floor_of(path)}) imports {module} (floor {target_floor(module, names)})"
        for path in modules()
        if path != SRC / "__init__.py"
        for module, names in imports(path)
        if module.split(".")[0] == "weaverant" and target_floor(module, names) > floor_of(path)
    ]
    assert wrong == []


def test_kinds_know_none_of_their_siblings():
    """One engine may not import another; only the folder's `__init__`, which opens them by name, knows them all."""
    wrong = []
    for path in modules():
        inside = path.relative_to(SRC).parts
        if inside[0] not in KINDS or (inside[-1] == "__init__.py" and len(inside) == 2):
            continue
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] == "weaverant" and len(parts) > 1 and parts[1] in KINDS and parts[1] != inside[0]:
                wrong.append(f"{path.relative_to(SRC)} imports {module}")
    assert wrong == []


def test_the_wings_of_floor_3_know_nothing_of_each_other():
    """What moves tasks, what trains, what routes: none imports another."""
    moves, trains, routes = ["runtime", "swarm"], ["train"], ["routing"]
    wings = dict.fromkeys(moves, trains + routes) | {"train": moves + routes, "routing": moves + trains}
    wrong = [
        f"{path.relative_to(SRC)} imports {module}"
        for path in modules()
        for module, _ in imports(path)
        if module.startswith("weaverant.") and module.split(".")[1] in wings.get(place(path), ())
    ]
    assert wrong == []


def test_no_import_cycle():
    graph = {}
    for path in modules():
        if path.name == "__init__.py":
            continue  # a folder's public names come from its own files
        name = ".".join(("weaverant", *path.relative_to(SRC).with_suffix("").parts))
        top = {alias for node in ast.parse(path.read_text()).body for alias in _top_level(node)}
        graph[name] = {module for module in top if module.startswith("weaverant.")}
    done, trail = set(), []

    def visit(name):
        assert name not in trail, f"import cycle: {' -> '.join([*trail, name])}"
        if name in done or name not in graph:
            return
        trail.append(name)
        for module in graph[name]:
            visit(module)
        trail.pop()
        done.add(name)

    for name in graph:
        visit(name)


def _top_level(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


def test_heavy_packages_are_imported_at_one_seam_each():
    seams = {}
    for path in modules():
        for module, _ in imports(path):
            if module.split(".")[0] in HEAVY:
                seams.setdefault(module.split(".")[0], set()).add(str(path.relative_to(SRC)))
    assert {name: files for name, files in seams.items() if len(files) > 1 and name != "pyarrow"} == {}


BOUNDARIES = {
    "errors.py", "replay.py", "compound.py", "task.py", "recipe.py", "blocking.py",
    "runtime/slots.py", "runtime/arrivals.py", "runtime/effects.py", "runtime/local.py", "runtime/intake.py",
    "runtime/feed.py", "runtime/stagebook.py", "runtime/threads.py",
    "engines/embedded.py", "journal/writer.py", "journal/remote.py", "swarm/serving.py", "swarm/travel.py",
    "swarm/intake.py", "swarm/peer.py", "swarm/rays.py",
}  # fmt: skip
"""Where a user's code, an engine or a source ends, and what a thread must hand over to those who wait for it."""


def test_broad_excepts_stand_only_at_boundaries():
    found = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
                if caught & {"Exception", "BaseException"}:
                    found.add(str(path.relative_to(SRC)))
    assert found <= BOUNDARIES
