"""The tree over one question as a picture, from the journal of a `malt` run:

    python -m weaverant.recipes.malt.picture runs/malt-... 0.17.0 > tree.svg

Without a task it takes the one whose attempts differ most in value, the first of several.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from weaverant import UserError
from weaverant.cli.show import read_story
from weaverant.recipes.malt.drawing import drawn
from weaverant.recipes.malt.evaluate import command, stories_of
from weaverant.recipes.malt.tree import Tree
from weaverant.story import Story

LOOKED_AT = 500
"""Tasks among which the most telling is looked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m weaverant.recipes.malt.picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the directory of a malt run")
    parser.add_argument("task", nargs="?", help="a task's key, as `weaverant show RUN --find TEXT` gives it")
    theme = parser.add_mutually_exclusive_group()
    theme.add_argument("--light", action="store_false", dest="dark", default=None, help="light whatever the reader has")
    theme.add_argument("--dark", action="store_true", default=None, help="dark; by default the reader's own choice")
    options = parser.parse_args(arguments)
    directory = Path(options.run)
    tree = most_telling(directory) if options.task is None else tree_of(read_story(directory, options.task))
    sys.stdout.write(drawn(tree, options.dark))
    return 0


def tree_of(story: Story) -> Tree:
    """The tree that the task grew. `UserError` where it grew none."""
    if story.state != "done" or "attempts" not in (story.result or ()):
        raise UserError(f"task {story.key!r} has no tree: expected a task of the recipe malt that is done")
    return cast("Tree", story.result)


def most_telling(directory: Path) -> Tree:
    """Of the first trees the one with the widest range of values, among attempts and, of equals, among critiques."""
    trees = list(_trees(directory))
    if not trees:
        raise UserError(f"the run {str(directory)!r} has no tree yet: expected a run of the recipe malt")
    return max(trees, key=_range)


def _trees(directory: Path) -> Iterator[Tree]:
    for story in stories_of(directory, LOOKED_AT):
        if story.state == "done":
            yield tree_of(story)


def _range(tree: Tree) -> tuple[float, float]:
    attempts = [attempt["value"] for attempt in tree["attempts"]]
    critiques = [critique["value"] for attempt in tree["attempts"] for critique in attempt["critiques"]]
    return max(attempts) - min(attempts), max(critiques) - min(critiques)


if __name__ == "__main__":
    command(main)
