"""`weaverant recipes`: what comes with the package, and a copy of it to change."""

from __future__ import annotations

import argparse
import shutil

from weaverant.cli.options import named, near, new_folder
from weaverant.cli.streams import put
from weaverant.errors import UserError
from weaverant.recipe import RECIPES, load_recipe, recipe_names


def recipes_command(options: argparse.Namespace) -> int:
    return _copy(options.name, options.folder) if options.action == "copy" else _list()


def _list() -> int:
    for name in recipe_names():
        try:
            recipe = load_recipe(name)
        except (UserError, ImportError) as error:
            put(f"{name}: cannot be loaded: {error}")
            continue
        put(f"{name}: {recipe.about}")
        for parameter in recipe.parameters.values():
            put(f"    --{parameter.name.replace('_', '-')} (default: {parameter.default!r})")
        if recipe.exporters:
            put(f"    export --as {named(recipe.exporters)}")
    return 0


def _copy(name: str, folder: str) -> int:
    if name not in recipe_names():
        raise UserError(f"there is no recipe {name!r}{near(name, recipe_names())}; there are: {named(recipe_names())}")
    target = new_folder(folder)
    try:
        shutil.copytree(RECIPES / name, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    except OSError as error:  # of files it is one with a list: which, to where, why
        shutil.rmtree(target, ignore_errors=True)
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise UserError(f"the folder {str(target)!r} cannot be written: {why}. Nothing was copied") from None
    put(f"copied {name!r} to {str(target)!r}. Run it: weaverant run {target}")
    return 0
