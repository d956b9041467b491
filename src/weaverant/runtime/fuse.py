"""The error fuse: a run in which too many rows fail is stopped."""

from __future__ import annotations

from weaverant.errors import UserError


class Fuse:
    """Blows where more than a share of a session's first rows have failed: of the first `after` that began, of twice as
    many, of four times as many, and so on; and not before `after` have ended.

    Rows that have not ended count as good. Rows that fail are often the first to end, so that of those which have ended
    half may have failed where one of fifty does.
    """

    def __init__(self, share: float, after: int) -> None:
        self._share = share
        self._after = after
        self._begun = self._ended = 0
        self._under_way: dict[str, int] = {}
        """How many had begun before it."""
        self._failed: list[int] = []
        """Of the first `after`, `2 * after`, `4 * after` ... rows."""
        self._total = 0

    def began(self, key: str) -> None:
        self._under_way[key] = self._begun
        self._begun += 1

    def ended(self, key: str, failed: bool) -> UserError | None:
        """Why the run is to stop, if it is."""
        number = self._under_way.pop(key)
        self._ended += 1
        if not failed or self._share >= 1:
            return None
        size = (number // self._after).bit_length()
        while len(self._failed) <= size:
            self._failed.append(self._total)
        self._total += 1
        for bigger in range(size, len(self._failed)):
            self._failed[bigger] += 1
            rows = self._after << bigger
            if self._failed[bigger] > self._share * rows and self._ended >= self._after:
                return UserError(
                    f"of the first {rows:,} rows that this session began, {self._failed[bigger]:,} have failed; "
                    f"max_failures allows {self._share:.0%} (--max-failures; 1 lets all fail)"
                )
        return None
