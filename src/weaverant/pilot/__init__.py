"""What the whole input will take, judged by the rows of a run that have ended."""

from weaverant.pilot.estimate import Estimate, estimate
from weaverant.pilot.intervals import Interval

__all__ = ["Estimate", "Interval", "estimate"]
