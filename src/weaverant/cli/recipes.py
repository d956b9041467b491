"""`weaverant recipes`: what comes with the package, and a copy of it to change."""

from __future__ import annotations

import argparse
import shutil

from weaverant.cli.options import named, near, new_folder
from weaverant.errors import UserError
from weaverant.recipe import RECIPES, load_recipe, recipe_names


def recipes_command(options: argparse.Namespace) -> int:
    return _copy(options.name, options.folder) if options.action == "copy" else _list()


def _list() -> int:
    for name in recipe_names():
        try:
            recipe = load_recipe(name)
        except (UserError, ImportError) as error:
            print(f"{name}: cannot be loaded: {error}")
            continue
        print(f"{name}: {recipe.about}")
        for parameter in recipe.parameters.values():
            print(f"    --{parameter.name.replace('_', '-')} (default: {parameter.default!r})")
        if recipe.exporters:
            print(f"    export --as {named(recipe.exporters)}")
    return 0


def _copy(name: str, folder: str) -> int:
    if name not in recipe_names():
        raise UserError(f"there is no recipe {name!r}{near(name, recipe_names())}; there are: {named(recipe_names())}")
    target = new_folder(folder)
    shutil.copytree(RECIPES / name, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    print(f"copied {name!r} to {str(target)!r}. Run it: weaverant run {target}")
    return 0
