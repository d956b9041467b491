"""A peer whose home is a small file system of its own: `python -m chaos.small_home RUN --host ADDRESS`.

The mount is real, and so is its end; only that it is made in the instant the peer takes its epoch is arranged here.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

from weaverant.journal import homes
from weaverant.journal.homes import home_of, make_room, new_epoch
from weaverant.peers.member import Member

MIB = 64


def on_own_disk(run: Path) -> int:
    epoch = new_epoch(run)
    home = home_of(run, epoch)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MIB}m", "tmpfs", str(home)], check=True)
    make_room(home)
    return epoch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--host", required=True)
    options = parser.parse_args()
    homes.new_epoch = on_own_disk
    return asyncio.run(Member(options.directory, options.host, ()).work())


if __name__ == "__main__":
    sys.exit(main())
