"""The audit of the dependencies passes here, and sees what it is there to see."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

TOOL = Path(__file__).parent.parent / "tools" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", TOOL)
assert spec is not None and spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def test_the_base_environment_is_as_declared():
    done = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "aiohttp" in done.stdout and done.stdout.splitlines()[-1].endswith(" 0 problems")


def test_versions_that_do_not_fit_and_packages_that_are_missing_are_told():
    found = audit.installed()
    wanted = [Requirement("msgspec>=999"), Requirement("no-such-package-of-ours"), Requirement("aiohttp>=3")]
    asked = audit.closure(wanted, found)
    assert {"aiohttp", "yarl", "multidict", "idna"} <= asked.keys()
    told = sorted(audit.versions(asked, found))
    assert told[0].startswith("msgspec: ") and told[0].endswith("msgspec>=999 is asked for")
    assert told[1:] == ["no-such-package-of-ours: not installed"]


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        *(
            ("MIT", True),
            ("Apache-2.0 AND MIT", True),
            ("BSD-3-Clause AND 0BSD AND Zlib", True),
            ("MIT OR GPL-3.0", True),
        ),
        *(("Apache Software License", True), ("Python Software Foundation License", True), ("BSD License", True)),
        *(
            ("GPL-3.0-or-later", False),
            ("MIT AND AGPL-3.0", False),
            ("Proprietary", False),
            ("none", False),
            ("", False),
        ),
        *(("GNU General Public License v3 (GPLv3)", False), ("LGPL-2.1", False), ("Other/Proprietary License", False)),
    ],
)
def test_only_permissive_licences_pass(text: str, fine: bool):
    assert audit.is_permissive(text) is fine


def test_what_is_not_from_the_index_is_told():
    found = audit.installed()
    assert list(audit.origins("weaverant", found["weaverant"]))  # installed from this folder
    assert list(audit.origins("msgspec", found["msgspec"])) == []


def test_a_service_that_is_out_of_reach_is_a_check_that_was_skipped_and_says_so(tmp_path: Path):
    for said, reason in (
        ("echo 'ConnectionError: no route' >&2; exit 1", "no route"),
        ('echo \'{"dependencies": [{"name": "a", "skip_reason": "not found"}]}\'', "1 of 1 packages: not found"),
    ):
        program = tmp_path / "pip-audit"
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        holes, why = audit.known_holes(str(program), ["a==1"])
        assert holes == [] and reason in why
    assert audit.known_holes(None, ["a==1"]) == ([], "pip-audit is not installed")
    program.write_text('#!/bin/sh\necho \'{"dependencies": [{"name": "a", "vulns": [{"id": "CVE-1"}]}]}\'\nexit 1\n')
    assert audit.known_holes(str(program), ["a==1"]) == (["a: CVE-1"], "")
