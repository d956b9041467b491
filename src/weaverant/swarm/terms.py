"""What peers and the book of leases say to each other, and what journals tell of leases."""

from __future__ import annotations

import msgspec


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """Tasks [start, stop). `prior`: the epochs whose journals may hold some of them."""

    number: int
    start: int
    stop: int
    prior: tuple[int, ...] = ()


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One lease as a journal tells it, cuts applied."""

    epoch: int
    number: int
    start: int
    stop: int
    done: bool


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """One lease as its holder tells it. `stop` is durable in its journal; `next` is the first task not started."""

    number: int
    start: int
    stop: int
    next: int
    prior: tuple[int, ...] = ()


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """Please give up the tasks from `stop` on. The holder may consent to a later stop, or refuse with its own."""

    number: int
    stop: int


class Orders(msgspec.Struct, frozen=True, array_like=True):
    """What a peer is told. `nothing_left`: every task has ended. `soon`: there are tasks, and others come first."""

    grants: list[Grant]
    cuts: list[Cut]
    nothing_left: bool
    soon: bool = False


class Stranger(KeyError):
    """The epoch is not in the book (any more): it must join, or, if it was given up, make an end."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"epoch {epoch} is not in this book")
