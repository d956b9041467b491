"""What earlier sessions of a run have asked: their batches, as the server lists them, and the lines in each."""

from __future__ import annotations

from collections.abc import Set

from weaverant.engines.http.batch.api import BatchApi, BatchState, Refused
from weaverant.engines.http.batch.files import read_identities

NAME = "weaverant"
MOST_VALUE = 500
"""Characters of a value in a batch's metadata; OpenAI takes 512."""


class Mark:
    """How a session's files and batches are told from others. `run` and `session` are hexadecimal."""

    def __init__(self, run: str, session: str, model: str) -> None:
        self.run = run
        self.session = session
        self.model = model[:MOST_VALUE]

    def filename(self, part: int) -> str:
        return f"{NAME}-{self.run}-{self.session}-{part}.jsonl"

    def metadata(self, part: int) -> dict[str, str]:
        return {NAME: self.run, "session": self.session, "model": self.model, "part": str(part)}

    def owns(self, filename: str) -> bool:
        """Whether the file is of any session of the run."""
        return filename.startswith(f"{NAME}-{self.run}-")

    def adopts(self, batch: BatchState, living: Set[str]) -> bool:
        """Whether a batch of the run may hold answers that only we shall fetch, whom it was not asked by."""
        marks = batch.marks
        mine = marks.get("model", self.model) == self.model and marks.get("session") not in living
        return mine and batch.outcome != "failed"


async def look_back(api: BatchApi, mark: Mark, living: Set[str]) -> list[tuple[BatchState, list[str]]]:
    """The batches of the run's earlier sessions, the oldest first, with the identities of their lines.

    A server that forgets metadata still knows the names of files. `living` are the sessions in this process. A file
    that has no batch is deleted: should the request for its batch be still on the way, it will fail.
    """
    files = {file.id: file.filename for file in await api.files() if mark.owns(file.filename)}
    batches = await api.batches()
    used = {batch.input_file_id for batch in batches}
    orphans = [
        file for file, name in files.items() if file not in used and not any(session in name for session in living)
    ]
    for file in orphans:
        await api.delete(file)
    if orphans:  # one may have become a batch just before it was deleted
        batches = await api.batches()
    own = [batch for batch in batches if batch.marks.get(NAME) == mark.run or batch.input_file_id in files]
    return [(batch, await _identities(api, batch)) for batch in reversed(own) if mark.adopts(batch, living)]


async def _identities(api: BatchApi, batch: BatchState) -> list[str]:
    """From the batch's input, or where that is gone, from what it gave."""
    for files in ((batch.input_file_id,), (batch.output_file_id, batch.error_file_id)):
        try:
            contents = [await api.content(file) for file in files if file]
        except Refused as refused:
            if refused.status != 404:
                raise
            continue
        return [identity for content in contents for identity in read_identities(content)]
    return []
