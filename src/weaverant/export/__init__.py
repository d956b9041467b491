"""From finished tasks to training data: pure functions from a story to samples, and the files they go to.

`GENERIC` holds the exporters that suit any workflow; a workflow's file may define more with `@exporter`.
"""

from weaverant.export.cut import CUT_SHORT, Inherited, cut_texts
from weaverant.export.files import Sink, open_sink
from weaverant.export.order import row_order
from weaverant.export.samples import GENERIC, LEFT_OUT, NotFinite, messages, preference, raw
from weaverant.export.written import Written

__all__ = [
    "CUT_SHORT",
    "GENERIC",
    "LEFT_OUT",
    "Inherited",
    "NotFinite",
    "Sink",
    "Written",
    "cut_texts",
    "messages",
    "open_sink",
    "preference",
    "raw",
    "row_order",
]
