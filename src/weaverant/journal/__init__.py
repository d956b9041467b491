"""What a run remembers: append-only segments of events, written in groups, read by index (docs/data-format.md).

Writing: `SegmentJournal`, or `NullJournal` for none. Reading: `JournalReader` and `BlobStore.get`.
"""

from weaverant.journal.blobs import BlobStore
from weaverant.journal.counts import StageCounts
from weaverant.journal.lock import RunLock, is_locked, last_words
from weaverant.journal.null import NullJournal
from weaverant.journal.parts import Place
from weaverant.journal.reader import Batch, JournalReader, TaskSummary
from weaverant.journal.reserved import Reservations
from weaverant.journal.store import Repair
from weaverant.journal.writer import SegmentJournal

__all__ = [
    "Batch",
    "BlobStore",
    "JournalReader",
    "NullJournal",
    "Place",
    "Repair",
    "Reservations",
    "RunLock",
    "SegmentJournal",
    "StageCounts",
    "TaskSummary",
    "is_locked",
    "last_words",
]
