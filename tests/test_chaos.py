"""A few short chaos trials (`tests/chaos`): two hosts of network namespaces, real processes, one fault each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos import rays
from chaos.faults import Struck
from chaos.hosts import why_not
from chaos.model import Call
from chaos.trial import attempt, computed
from chaos.verdict import Home, Journals, unleased

ROWS = 400
LONG_S = 5.0
"""Longer than it takes to give a peer up."""


@pytest.fixture(autouse=True, scope="module")
def possible() -> None:
    if why := why_not():
        pytest.skip(why)


def test_a_call_under_a_lease_that_is_not_durable_yet_was_in_flight_and_no_other():
    """Of five rows that were asked for twice; the fault strikes at 100 s."""
    home = Home(held={1: (30, 40, 99.0)})
    first = {10: 99.8, 20: 98.0, 30: 99.8, 40: 100.5, 50: 99.8}
    asked = {(row, 0): [Call(when, row, 0, "near"), Call(105.0, row, 0, "far")] for row, when in first.items()}
    asked[50, 0].pop()
    found = unleased(Journals({}, {1: home}), asked, Struck("peer 1 killed", 100.0))
    assert found == [10], "20 was long under way, 30's lease is recorded, 40 came after it, 50 came once"


@pytest.mark.parametrize(("fault", "seed"), [("kill-far", 1), ("cut", 2), ("kill-driver", 1), ("kill-head", 1)])
def test_a_struck_run_ends_whole_and_pays_nothing_twice(fault: str, seed: int):
    trial = attempt(fault, seed, ROWS, computed(ROWS), long_s=LONG_S)
    assert trial.held, f"{trial.what}: {trial.verdict.faults}\n{trial.said}"
    assert trial.what, "it was struck"


def test_hosts_that_share_only_a_store_lose_nothing_with_one_of_them():
    trial = attempt("kill-far", 3, ROWS, computed(ROWS), long_s=LONG_S, private=True)
    assert trial.held, f"{trial.what}: {trial.verdict.faults}\n{trial.said}"
    assert trial.what, "it was struck"


@pytest.mark.heavy
@pytest.mark.skipif(bool(rays.why_not()), reason=rays.why_not() or "-")
def test_a_node_of_ray_whose_raylet_is_killed_costs_its_peer_only():
    trial = attempt("raylet", 1, ROWS, computed(ROWS))
    assert trial.held, f"{trial.what}: {trial.verdict.faults}\n{trial.said}"
    assert trial.what, "it was struck"


@pytest.mark.skipif(not rays.why_not(), reason="Ray is here")
def test_a_fault_that_needs_ray_is_skipped_in_so_many_words_where_there_is_none():
    told = subprocess.run(
        [sys.executable, "-m", "chaos", "--fault", "raylet", "--trials", "1"], cwd=Path(__file__).parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 2 and "skipped: raylet" in told.stderr and "weaverant[ray]" in told.stderr
