"""What the package stands on: `python tools/audit.py [--strict] [--pip-audit PROGRAM]`.

Of the base dependencies and all of theirs, as installed here: versions fit what every one of them asks for, licences
are permissive, nothing was built on the spot or comes from elsewhere than the index. With `--strict` nothing else is
installed than these and the development group, the index still has these versions as wheels, none of them withdrawn,
and pip-audit knows of no hole. What cannot be asked, because the index or pip-audit's service is out of reach, is said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OWN = "weaverant"
INSTALLERS = {"pip", "setuptools", "wheel"}
PERMISSIVE = re.compile(
    r"(MIT|MIT-0|0BSD|ISC|Zlib|CC0-1\.0|Unlicense|Apache-2\.0|BSD-[23]-Clause|PSF-2\.0|Python-2\.0|MPL-2\.0|HPND)"
    r"|(the )?(MIT|BSD|Apache|Apache 2\.0|PSF|Python|ISC)( Software)?( Foundation)?( License)?( \(?.*\)?)?"
    r"|Apache License,? (Version )?2\.0",
    re.IGNORECASE,
)
UNREACHABLE = re.compile(
    r"ConnectionError|NewConnection|Max retries|Temporary failure|timed out|Network is unreach", re.I
)


def installed() -> dict[str, Distribution]:
    return {canonicalize_name(each.metadata["Name"]): each for each in distributions()}


def closure(roots: Iterable[Requirement], found: dict[str, Distribution]) -> dict[str, list[Requirement]]:
    """By name, everything that the roots need, and how it was asked for. A name may be missing in `found`."""
    asked: dict[str, list[Requirement]] = {}
    seen: set[str] = set()
    unseen = [(each, "") for each in roots]
    while unseen:
        requirement, extra = unseen.pop()
        if str((requirement, extra)) in seen or (
            requirement.marker and not requirement.marker.evaluate({"extra": extra})
        ):
            continue
        seen.add(str((requirement, extra)))
        name = canonicalize_name(requirement.name)
        asked.setdefault(name, []).append(requirement)
        needs = (found[name].requires or []) if name in found else []
        unseen += [(Requirement(text), each) for text in needs for each in {"", *requirement.extras}]
    return asked


def versions(asked: dict[str, list[Requirement]], found: dict[str, Distribution]) -> Iterator[str]:
    for name, requirements in asked.items():
        if name not in found:
            yield f"{name}: not installed"
            continue
        for requirement in requirements:
            if not requirement.specifier.contains(found[name].version, prereleases=True):
                yield f"{name}: {found[name].version} is installed, {requirement} is asked for"


def licence(distribution: Distribution) -> str:
    """The licence's expression, else its classifiers, else the first line of its free text."""
    about = distribution.metadata
    if about["License-Expression"]:
        return about["License-Expression"]
    classifiers = [
        text.split(" :: ")[-1] for text in about.get_all("Classifier") or () if text.startswith("License ::")
    ]
    classifiers = [text for text in classifiers if text != "OSI Approved"]
    return " AND ".join(classifiers) or (about["License"] or "none").strip().splitlines()[0]


def is_permissive(text: str) -> bool:
    """Of `A AND B` all, of `A OR B` one."""
    parts = re.split(r"\s+AND\s+", text.strip("() "))
    if len(parts) > 1:
        return all(map(is_permissive, parts))
    return any(PERMISSIVE.fullmatch(part.strip("() ")) for part in re.split(r"\s+OR\s+", text))


def origins(name: str, distribution: Distribution) -> Iterator[str]:
    """Why an installed package may not be what the index has."""
    if distribution.read_text("direct_url.json"):
        yield f"{name}: installed from an address of its own, not from the index"
    wheel = distribution.read_text("WHEEL") or ""
    if not wheel or re.search(r"^Tag: .*-linux_", wheel, re.MULTILINE):
        yield f"{name}: built on this machine, not installed from a wheel of the index"


def on_index(pinned: list[str]) -> tuple[list[str], str]:
    """What the index says against these versions, and why it could not be asked."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--retries", "1"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", *pinned], capture_output=True, text=True, check=False, timeout=600
    )
    said = done.stdout + done.stderr
    if done.returncode and UNREACHABLE.search(said):
        return [], "the index is out of reach"
    found = [line.strip() for line in said.splitlines() if "yanked" in line]
    return found + ([] if done.returncode == 0 else [f"pip: {said.strip().splitlines()[-1]}"]), ""


def known_holes(program: str | None, pinned: list[str]) -> tuple[list[str], str]:
    """What pip-audit finds, and why it could not be asked."""
    if program is None or not Path(program).exists():
        return [], "pip-audit is not installed"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pinned))
        file.flush()
        command = [program, "--format", "json", "--no-deps", "--disable-pip", "--timeout", "10", "-r", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return [], f"its service did not answer: {(done.stderr.strip().splitlines() or ['no text'])[-1][:200]}"
    holes = [(each["name"], hole["id"]) for each in report["dependencies"] for hole in each.get("vulns", ())]
    skipped = [each["skip_reason"] for each in report["dependencies"] if "skip_reason" in each]
    why = f"its service knows nothing of {len(skipped)} of {len(pinned)} packages: {skipped[0]}" if skipped else ""
    return [f"{name}: {hole}" for name, hole in holes], why


def declared() -> tuple[list[Requirement], list[Requirement]]:
    """The base dependencies, and those for development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]["dev"]
    return [list(map(Requirement, texts)) for texts in (project["project"]["dependencies"], groups)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="ask the index and pip-audit, too")
    parser.add_argument("--pip-audit", metavar="PROGRAM")
    options = parser.parse_args()
    found, (base, development) = installed(), declared()
    asked = closure(base, found)
    problems = list(versions(asked, found))
    for name in sorted(asked.keys() & found.keys()):
        text = licence(found[name])
        print(f"{name:28} {found[name].version:14} {text}")
        problems += [] if is_permissive(text) else [f"{name}: its licence {text!r} is not known to be permissive"]
        problems += origins(name, found[name])
    skipped: list[str] = []
    if options.strict:
        known = {*closure([*base, *development], found), *INSTALLERS, OWN}
        problems += [
            f"{name}: installed, and nothing that is declared needs it" for name in sorted(found.keys() - known)
        ]
        pinned = [f"{name}=={found[name].version}" for name in sorted(asked.keys() & found.keys())]
        for what, (faults, why) in (("index", on_index(pinned)), ("pip-audit", known_holes(options.pip_audit, pinned))):
            problems += faults
            skipped += [f"skipped: {what}, {why}"] if why else []
    for line in (*problems, *skipped):
        print(line, file=sys.stderr)
    print(f"{len(asked)} packages, {len(problems)} problems" + f", {len(skipped)} checks skipped" * bool(skipped))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
