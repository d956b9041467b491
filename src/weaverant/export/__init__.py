"""From finished tasks to training data: pure functions from a story to samples, and the files they go to.

`GENERIC` holds the exporters that suit any workflow; a workflow's file may define more with `@exporter`.
"""

from weaverant.export.files import Sink, open_sink
from weaverant.export.order import row_order
from weaverant.export.samples import GENERIC, messages, preference, raw

__all__ = ["GENERIC", "Sink", "messages", "open_sink", "preference", "raw", "row_order"]
