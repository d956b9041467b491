"""The table of graded answers that a part of `weaverant route` was given."""

from __future__ import annotations

import argparse

from weaverant.errors import UserError
from weaverant.routing.reading import read_queries, read_table
from weaverant.routing.table import Table


def table_given(options: argparse.Namespace) -> Table:
    """As `cli.route.table_flags` say. `UserError` where nothing is left of it."""
    if options.table == "-":
        raise UserError("a table is a file, a folder or a glob; found '-': standard input cannot be one")
    models = [name.strip() for name in options.models.split(",")] if options.models else None
    table = read_table(options.table, query=options.query_column, set=options.set_column, models=models)
    if options.drop:
        table = table.without(read_queries(options.drop, options.query_column))
    if not table.queries:
        raise UserError(f"no query of {options.table!r} is left: all of them are in --drop {options.drop}")
    return table
