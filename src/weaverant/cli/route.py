"""`weaverant route`: its parts and their flags. What does the work loads with its part."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any


def route_flags(parser: argparse.ArgumentParser) -> None:
    """The parts of `route`, each with its own flags."""
    parts = parser.add_subparsers(
        title="what to do", metavar="train|eval|calibrate|explain|learn", dest="part", required=True
    )
    _train_flags(part(parts, "train", "weaverant.cli.route_train", "learn from a table of graded answers who is right"))
    _eval_flags(part(parts, "eval", "weaverant.cli.route_eval", "judge a router by answers it has not learned from"))
    about = "fit a router's probabilities to other graded answers"
    _calibrate_flags(part(parts, "calibrate", "weaverant.cli.route_calibrate", about))
    _explain_flags(part(parts, "explain", "weaverant.cli.route_explain", "whom a router would ask, and why"))
    _learn_flags(part(parts, "learn", "weaverant.cli.route_learn", "learn from the feedback that a run has recorded"))


def part(parts: Any, name: str, module: str, about: str) -> argparse.ArgumentParser:
    """One part: `module` has a function `NAME_command`."""
    parser: argparse.ArgumentParser = parts.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(command=_deferred(module, name), parser=parser)
    return parser


def table_flags(parser: argparse.ArgumentParser) -> None:
    """How a table is read: of all parts that take one."""
    add = parser.add_argument
    add("table", metavar="TABLE", help="graded answers: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder, a glob")
    add("--query-column", metavar="NAME", help="where the query stands (default: query, question or prompt)")
    add("--set-column", metavar="NAME", help="where its set stands (default: set, task, task_name or dataset)")
    add("--models", metavar="NAME,NAME", help="the models wanted (default: all that the table grades)")
    add("--drop", metavar="FILE", help="queries to leave out: a table, or one text a line (.txt)")


def _deferred(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        function: Callable[[argparse.Namespace], int] = getattr(import_module(module), f"{name}_command")
        return function(options)

    return command


def _train_flags(parser: argparse.ArgumentParser) -> None:
    table_flags(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="ROUTER", help="a new folder for what was learned")
    add("--head", default="auto", metavar="KIND", help="auto, knn, clusters, ridge, logistic ... (default: auto)")
    about = "tfidf, minilm, endpoint:URL#MODEL for a server's embeddings, checkpoint:FOLDER (default: tfidf)"
    add("--encoder", default="tfidf", metavar="KIND", help=about)
    add("--setting", action="append", default=[], metavar="NAME=VALUE", help="fix a hyper-parameter, as k=50")
    add("--folds", type=int, default=5, metavar="N", help="parts of the table that are held out in turn (default: 5)")
    add("--seed", type=int, default=0, metavar="N", help="of folds and clusters (default: 0)")
    add("--force", action="store_true", help="replace a router that is there")
    add("--quiet", action="store_true", help="warnings alone")


def _eval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("router", metavar="ROUTER", help="the folder of `weaverant route train`")
    table_flags(parser)
    add = parser.add_argument
    add("--out", metavar="FOLDER", help="a new folder for report.md, evaluation.json and the figures")
    add("--draws", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    add("--json", action="store_true", help="one JSON document")


def _calibrate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("router", metavar="ROUTER", help="the folder of `weaverant route train`")
    table_flags(parser)
    parser.add_argument("--out", metavar="ROUTER", help="a new folder for it (default: the router's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of folds (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="warnings alone")


def _explain_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("router", metavar="ROUTER", help="the folder of `weaverant route train`")
    parser.add_argument("query", metavar="QUERY", help="a text; - for standard input")
    parser.add_argument("--nearest", type=int, default=3, metavar="N", help="graded queries to show (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _learn_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("router", metavar="ROUTER", help="the folder of `weaverant route train`")
    parser.add_argument("run", metavar="RUN", help="the directory of a run whose workflow gave feedback")
    parser.add_argument("--out", metavar="ROUTER", help="a new folder for it (default: the router's own)")
    parser.add_argument("--quiet", action="store_true", help="warnings alone")
