"""Which commands there are and what they take. The modules that do the work load with their command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from weaverant.cli.route import route_flags
from weaverant.cli.training import improve_flags, train_flags
from weaverant.errors import UserError

if TYPE_CHECKING:
    from weaverant.recipe import Recipe

Command = Callable[[argparse.Namespace], int]

MODEL_HELP = (
    "what answers: http://HOST:8000/v1#MODEL, openai:gpt-5-mini (see `weaverant models`), embedded:tiny, "
    "simulated:latency=0.2, scripted:FILE ...; "
    "NAME=SPEC for the agents that ask the model NAME, SPEC for all others; may be repeated, servers of one name are "
    "replicas"
)
EXIT_CODES = """exit codes: 0 all finished; 1 the run could not go on; 2 bad usage; 3 finished but some rows failed;
4 stopped and resumable; 5 the budget is used up, resumable with a larger one"""


class Parser(argparse.ArgumentParser):
    """Mistakes are `UserError`s like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{self.prog} --help`")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the chosen command's function as `command`. Ends the process for --help and --version."""
    return _parse_run(arguments) if list(arguments[:1]) == ["run"] else _parsed(_parser(), arguments)


def _parse_run(arguments: Sequence[str]) -> argparse.Namespace:
    """`run` twice: once to learn which recipe it is, once more with the flags that are the recipe's parameters."""
    first = Parser(prog="weaverant run", add_help=False, allow_abbrev=False)
    first.add_argument("-h", "--help", action="store_true")
    _run_flags(first)
    for action in first._actions:  # pyright: ignore[reportPrivateUsage]
        action.required = False
    known, _ = first.parse_known_args(arguments[1:])
    if known.workflow is None:
        return _parsed(_parser(), arguments)
    from weaverant.recipe import load_recipe

    recipe = load_recipe(known.workflow)
    options = _parsed(_parser(recipe), arguments, recipe)
    options.recipe = recipe
    return options


def _parsed(parser: Parser, arguments: Sequence[str], recipe: Recipe | None = None) -> argparse.Namespace:
    """What argparse makes of them; a flag that is not there is named with one that is near to it."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command: Parser = options.parser
        flags = [flag for action in command._actions for flag in action.option_strings]  # pyright: ignore[reportPrivateUsage]
        close = get_close_matches(unknown[0].partition("=")[0], flags, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        own = [] if recipe is None else [_flag(name) for name in sorted(recipe.parameters)]
        offered = "" if recipe is None else f"; flags of {recipe.name!r} itself: {', '.join(own) or 'none'}"
        command.error(f"{unknown[0]!r} was not expected{hint}{offered}")
    return options


def _parser(recipe: Recipe | None = None) -> Parser:
    from weaverant import __version__

    top = Parser(
        prog="weaverant",
        description="Make training data for language models with teams of agents.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"weaverant {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, module: str, about: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=about, description=about, allow_abbrev=False, epilog=EXIT_CODES)
        parser.set_defaults(command=_deferred(module, name), parser=parser)
        return parser

    run = add("run", "weaverant.cli.run", "run a workflow over rows")
    _run_flags(run)
    if recipe is not None:
        _recipe_flags(run, recipe)
    _resume_flags(add("resume", "weaverant.cli.run", "continue a run that was stopped or killed"))
    _join_flags(add("join", "weaverant.cli.join", "be one more peer of a run that goes on"))
    _show_flags(add("show", "weaverant.cli.show", "what a run amounts to, or one task's whole story"))
    _export_flags(add("export", "weaverant.cli.export", "write a run's results as training data"))
    fetch = add("fetch", "weaverant.cli.fetch", "get a run from a store into a directory")
    fetch.add_argument("url", metavar="URL", help="where `weaverant run --store` put it")
    fetch.add_argument("directory", metavar="DIR", help="a new directory, or one that this was done with before")
    train_flags(add("train", "weaverant.cli.train", "train a model on what was exported"))
    improve_flags(add("improve", "weaverant.cli.improve", "weave, train and keep what gains, round after round"))
    route_flags(add("route", "weaverant.cli.route", "learn which model is right on which query"))
    _recipes_flags(add("recipes", "weaverant.cli.recipes", "list the recipes that come with weaverant, or copy one"))
    models = add("models", "weaverant.cli.models", "list the hosted providers, a provider's models, or a server's")
    models.add_argument("where", nargs="?", metavar="PROVIDER|URL", help="whose models (default: list the providers)")
    models.add_argument("--json", action="store_true", help="one JSON document")
    init = add("init", "weaverant.cli.init", "write an example to start from")
    init.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where to (default: here)")
    return top


def _deferred(module: str, name: str) -> Command:
    def command(options: argparse.Namespace) -> int:
        function: Command = getattr(import_module(module), f"{name}_command")
        return function(options)

    return command


def _run_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("workflow", metavar="WORKFLOW", help="a file FILE.py or FILE.py:NAME, a recipe's folder, or a recipe's name")
    add("--input", metavar="PATH", help="rows: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder, a glob, or -")
    add("--run", metavar="DIR", help="the run's directory (default: runs/NAME-TIME)")
    add("--model", action="append", default=[], metavar="[NAME=]SPEC", help=MODEL_HELP)
    add("--set", action="append", default=[], metavar="AGENT.FIELD=VALUE", help="change an agent, as writer.top_p=0.9")
    add("--limit", type=int, metavar="N", help="take the first N rows only")
    add("--trials", type=int, default=1, metavar="N", help="run each row N times")
    add("--reuse", metavar="DIR", help="an earlier run, whose recorded steps answer where they can")
    _store_flag(parser, KEPT)
    add("--no-journal", action="store_true", help="store nothing: nothing to resume, show or export")
    add("--dry-run", action="store_true", help="load everything, print the plan, call no model, write nothing")
    _limit_flags(parser)


IN_STORE = "the URL that `weaverant run --store` was given: DIR is, or becomes, this host's own directory of that run"
KEPT = "keep the run at a URL (s3://BUCKET/NAME, file:///PATH ...), so that hosts need no directory in common"


def _store_flag(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--store", metavar="URL", help=about)


def _limit_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("limits").add_argument
    add(
        "--concurrency",
        type=int,
        metavar="N",
        help="calls at once for each model, waiting ones included (default: 1024)",
    )
    add("--in-flight", type=int, metavar="N", help="rows in flight at once (default: four for each call)")
    add("--threads", type=int, metavar="N", help="step functions and tools that run at once (default: 16)")
    add("--grace", type=float, metavar="S", help="seconds that calls in flight are given at Ctrl-C (default: 30)")
    add(
        "--max-failures",
        type=float,
        metavar="SHARE",
        help="stop when more rows than this fail (default: 0.5; 1: never)",
    )
    add(
        "--budget", type=float, metavar="DOLLARS", help="what all sessions may cost together, in US dollars (0: no cap)"
    )
    add("--peers", type=int, metavar="N", help="work in N processes, which go on for each other when one dies")
    add("--host", metavar="ADDRESS", help="where peers listen for each other (default: 127.0.0.1)")
    add(
        "--swarm",
        default="local",
        choices=("local", "ray"),
        help="where peers run: here, or on the nodes of a Ray cluster",
    )
    add("--address", metavar="HOST:PORT", help="of the Ray cluster (default: a Ray of this host, for this run)")
    add("--label", action="append", default=[], metavar="LABEL[=N]", help="a place that all peers, or N of them, offer")
    add("--spread", choices=("roles",), help="with --peers: each agent has peers of its own, to which its calls travel")
    add("--pilot", type=int, metavar="N", help="stop after the first N rows and estimate cost and time of all")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _flag(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _recipe_flags(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    if not recipe.parameters:
        return
    group = parser.add_argument_group(f"parameters of {recipe.name}")
    taken = {option for action in parser._actions for option in action.option_strings}  # pyright: ignore[reportPrivateUsage]
    for parameter in recipe.parameters.values():
        flag = _flag(parameter.name)
        if flag in taken:
            raise UserError(
                f"{recipe.name!r} has a parameter {parameter.name!r}, but {flag} is a flag of `weaverant run`: "
                "give the parameter another name"
            )
        about = f"default: {parameter.default!r}".replace("%", "%%")
        dest = f"parameter:{parameter.name}"
        if parameter.kind is bool:
            group.add_argument(flag, dest=dest, default=None, action=argparse.BooleanOptionalAction, help=about)
        else:
            kind = getattr(parameter.kind, "__name__", str(parameter.kind)).upper()
            group.add_argument(flag, dest=dest, default=None, metavar=kind, help=about)


def _resume_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="the run's directory")
    add("--retry", metavar="failed[:REASON]", help="take failed rows up again: all, or those that failed for REASON")
    add("--model", action="append", default=[], metavar="[NAME=]SPEC", help="the same model at another address")
    add("--input", metavar="PATH", help="the same rows at another place")
    _store_flag(parser, IN_STORE)
    _limit_flags(parser)


def _join_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="the run's directory; with --store one that only this host uses")
    _store_flag(parser, IN_STORE)
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where other peers reach this one (default: 127.0.0.1)")
    add("--label", action="append", default=[], metavar="LABEL", help="a place that this peer offers")


def _show_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="the run's directory; it may be running")
    add("--json", action="store_true", help="one JSON document")
    add("--task", metavar="KEY", help="one task's story: its row, every step with its messages, its end")
    add("--find", metavar="FIELD=VALUE", help="the keys of the rows that have this value, as in --find id=x1")
    add("--full", action="store_true", help="with --task and --find: texts whole, also on a terminal")


def _export_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("directory", metavar="DIR", help="the run's directory")
    add(
        "--as",
        dest="form",
        default="raw",
        metavar="FORM",
        help="raw: key, row and result of each row; messages: a chat sample of each model step; preference: pairs from "
        "the results' `preferences`; or the name of an @exporter in the workflow's file (default: raw)",
    )
    add(
        "--out",
        required=True,
        metavar="FILE",
        help=".jsonl, .jsonl.gz or .parquet, - for standard output; a folder where the exporter makes several files",
    )
    add("--agent", metavar="NAME", help="messages: only this agent's steps")
    add("--state", default="done", choices=("done", "rejected", "failed"), help="which tasks (default: done)")
    add("--keep-cut", action="store_true", help="messages, preference: keep replies that were cut short")
    add("--force", action="store_true", help="replace a file that another export, another run or somebody else wrote")


def _recipes_flags(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="what to do", metavar="list|copy", dest="action", required=True)
    actions.add_parser("list", help="name, purpose and parameters of each")
    copy = actions.add_parser("copy", help="copy one to a folder of yours, to change it")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("folder", metavar="DIR", help="a folder that does not exist yet")
