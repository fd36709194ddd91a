"""Numbers that never come twice: taken one by one from blocks that the store hands out. Pure."""

from __future__ import annotations

from collections import deque


class Numbers:
    """Growing numbers from blocks.

    Attributes:
        left: how many are there to take before another block must be added.
    """

    __slots__ = ("left", "_next", "_end", "_blocks")

    def __init__(self) -> None:
        self.left = 0
        self._next = 0
        self._end = 0
        self._blocks: deque[tuple[int, int]] = deque()

    def add(self, first: int, count: int) -> None:
        """Add the block `first` … `first + count - 1`; blocks must grow."""
        self._blocks.append((first, first + count))
        self.left += count

    def take_many(self, count: int) -> list[int]:
        """Return the next `count` numbers. The caller has looked at `left`."""
        numbers: list[int] = []
        while len(numbers) < count:
            if self._next == self._end:
                self._next, self._end = self._blocks.popleft()
            end = min(self._end, self._next + count - len(numbers))
            numbers += range(self._next, end)
            self._next = end
        self.left -= count
        return numbers

    def take(self) -> int:
        """Return the next number. The caller has looked at `left`."""
        if self._next == self._end:
            self._next, self._end = self._blocks.popleft()
        number = self._next
        self._next += 1
        self.left -= 1
        return number
