"""Whether a run can be joined now: told at once, before the one that would join has made anything."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from weaverant.errors import UserError
from weaverant.journal import is_locked
from weaverant.journal.homes import OWN
from weaverant.journal.shelf import shelf_of, store_of
from weaverant.peers.given import check_files
from weaverant.rundir import load_config
from weaverant.summary import has_ended
from weaverant.swarm.lost import WrongKey
from weaverant.swarm.places import KEY_VARIABLE, knows_key, read_key
from weaverant.swarm.sight import ask_office

PATIENCE_S = 1.0
"""Seconds that a session has to show itself: it may just begin, or replace its office."""
STORE_PATIENCE_S = 5.0
"""As many where only the office can tell."""
LOOK_S = 0.1
HEARD_S = 0.5
"""A command on another host has spoken to the office within so many seconds at some look, where it lives."""


def check_key(run: Path, store: str) -> None:
    """`UserError` where the key of a run in a store is not known, before it has a directory here."""
    if not knows_key(run):
        raise UserError(
            f"the key of the run in {store!r} is not known here: set the variable {KEY_VARIABLE} to what it is where "
            "the run was begun"
        )


def check_labels(labels: Sequence[str]) -> None:
    """`UserError` for what is no label of one peer."""
    for label in labels:
        if not label or "=" in label:
            raise UserError(f"--label {label!r}: expected LABEL, a place that this one peer offers")


def check_joinable(run: Path) -> None:
    """Return once the run has peers that another can join, or is about to; else `UserError` says why not."""
    load_config(run)
    shelf_of(run).fetch((OWN,))
    until = time.monotonic() + (PATIENCE_S if store_of(run) is None else STORE_PATIENCE_S)
    while why := _why_not(run):
        if time.monotonic() > until:
            raise UserError(why)
        time.sleep(LOOK_S)
    check_files(run, load_config(run))


def _why_not(run: Path) -> str:
    """Why it cannot be joined yet; empty where it can. `UserError` where no waiting helps."""
    name, again = repr(str(run)), f"`weaverant resume {shlex.quote(str(run))} --peers N`, and join then"
    goes_on, ended = is_locked(run), has_ended(run)
    if ended == "finished":
        raise UserError(f"the run in {name} has finished: there is nothing to join")
    if ended and not goes_on:
        raise UserError(f"the run in {name} has stopped ({ended}), and nobody works on it: go on with {again}")
    if goes_on and not (run / "peers" / "key").exists():
        return f"one process works on the run in {name}, without peers, and none can join: stop it, go on with {again}"
    gone = f"the command that worked on the run in {name} is gone: go on with {again}"
    if not knows_key(run):
        return gone
    read_key(run)
    try:
        told = ask_office(run)
    except WrongKey as error:
        raise UserError(f"the run in {name} cannot be joined with the key that is given here: {error}") from None
    if told is None:
        return "" if goes_on else gone  # its office is slow to come: a peer waits for it
    if told.finished or (told.stop is not None and goes_on):
        raise UserError(f"the peers of the run in {name} are about to end: there is nothing to join")
    return "" if told.stop is None and (goes_on or told.unheard < HEARD_S) else gone
