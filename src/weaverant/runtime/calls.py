"""The work that a run's tasks wait for: model calls through their engines, effects outside the workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from weaverant.binding import Binding
from weaverant.errors import StepFailed, Unavailable, UserError
from weaverant.message import Reply, Request
from weaverant.protocols import CallContext, Engine, Permit, Purse
from weaverant.runtime.budget import Budget
from weaverant.runtime.effects import Effects
from weaverant.runtime.limits import Limits
from weaverant.runtime.outcome import checked
from weaverant.runtime.outlook import Outlook
from weaverant.runtime.slots import Owner, Slots, waits
from weaverant.step import Ask, EffectAsk, ModelAsk, Turn
from weaverant.task import TaskRun
from weaverant.trace import plain

PARK_EVERY = 0.25
"""Seconds after which a run that stops looks for calls that wait by now."""


class Calls:
    """Works on asks: each engine has slots of its own, and the effects have theirs."""

    def __init__(
        self,
        binding: Binding,
        limits: Limits,
        owner: Owner,
        run: str,
        budget: Budget | None,
        outlook: Outlook | None = None,
        afar: Callable[[ModelAsk], Engine | None] | None = None,
        permit: Permit | None = None,
    ) -> None:
        """`afar` gives the engine for a call that is to be made by other peers, None for one to be made here. Engines
        get the `permit`, see `CallContext`."""
        self._permit = permit
        self._afar = afar
        self._placed: dict[tuple[str, str, str], Slots] = {}
        """By agent, place and model."""
        self._binding = binding
        self._concurrency = limits.concurrency
        self._owner = owner
        self._run = run
        self._budget = budget
        self._outlook = outlook
        self._models: dict[str, Slots] = {}
        """By model's name: the slots of its engine."""
        self._engines: dict[int, Slots] = {}
        """By engine, so that calls which wait for a slow model keep no fast one idle."""
        self._performer = Effects(limits.threads)
        self._effects = Slots(limits.threads, self._performer.perform, _value, owner)
        self._parked = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def free(self) -> bool:
        """Whether some model could take one more call than there are for it. Models that nobody has asked yet do not
        count: rows that are started before they are needed only delay the first results, and where nothing but
        functions is asked for, what waits for a thread uses up its deadline."""
        if not self._engines:
            return self._effects.free > 0
        return any(slots.free > 0 for slots in self._engines.values())

    @property
    def room(self) -> int:
        """Calls that could be made at once besides those there are, of the model that could take most."""
        return max((slots.free for slots in self._engines.values()), default=self._concurrency)

    def submit(self, run: TaskRun, ask: Ask) -> None:
        if self._parked:
            return
        if isinstance(ask, ModelAsk) and self._afar is not None:
            self._where(ask, self._afar).submit(run, ask)
        elif isinstance(ask, ModelAsk):
            (self._models.get(ask.model) or self._slots(ask.model)).submit(run, ask)
        else:
            self._effects.submit(run, ask)

    def cancel(self, ask: Ask) -> None:
        if isinstance(ask, EffectAsk) and ask.number < 0 and ask not in self._effects.running:
            self._performer.passed_over(ask)
        for slots in self._all():
            slots.cancel(ask)

    def cancel_all(self) -> None:
        for slots in self._all():
            slots.cancel_all()

    def cancel_effects(self) -> None:
        self._effects.cancel_all()

    def park(self) -> None:
        """Start nothing more: what waits stays unasked, and is asked again when the run is resumed; so does what comes
        to wait for another try."""
        self._parked = True
        self._performer.stop()
        for slots in self._all():
            slots.park()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(PARK_EVERY, self.park) if self.running() else None

    def go_on(self) -> None:
        """It may call again."""
        if not self._parked:
            for slots in self._all():
                slots.go_on()

    def running(self) -> list[Ask]:
        return [ask for slots in self._all() for ask in slots.running]

    def sent(self) -> int:
        """How many of them do not wait inside their engine."""
        return sum(not waits(ask) for ask in self.running())

    def billable(self) -> int:
        """How many of those are model calls."""
        return sum(isinstance(ask, ModelAsk) and not waits(ask) for ask in self.running())

    def abandon(self, run: TaskRun) -> None:
        for slots in self._all():
            slots.abandon(run)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._performer.close()

    def _all(self) -> list[Slots]:
        return [*self._engines.values(), self._effects]

    def _slots(self, model: str) -> Slots:
        engine = self._binding.engine(model)
        assert engine is not None, "an agent is bound only where its model has an engine"
        found = self._models[model] = self._slots_of(engine)
        return found

    def _slots_of(self, engine: Engine) -> Slots:
        found = self._engines.get(id(engine))
        if found is None:
            free = self._budget is None and self._outlook is None
            perform = partial(self._ask_freely if free else self._ask_with_care, engine)
            found = self._engines[id(engine)] = Slots(self._concurrency, perform, _reply, self._owner)
        return found

    def _where(self, ask: ModelAsk, afar: Callable[[ModelAsk], Engine | None]) -> Slots:
        key = ask.name, ask.place, ask.model
        found = self._placed.get(key)
        if found is None:
            engine = afar(ask)
            found = self._placed[key] = self._slots(ask.model) if engine is None else self._slots_of(engine)
        return found

    def _ask_freely(self, engine: Engine, run: TaskRun, ask: ModelAsk) -> Awaitable[Reply]:
        return self._ask(engine, run, ask, ask.by.request(ask.messages, ask.seed), None)

    def _ask(
        self, engine: Engine, run: TaskRun, ask: ModelAsk, request: Request, purse: Purse | None
    ) -> Awaitable[Reply]:
        row, key = run.row, ask.key
        turn = ask.turn = Turn()
        context = CallContext(row.key, key[0], key[2], row.order, self._run, purse, turn, self._permit)
        return engine.generate(request, context)

    async def _ask_with_care(self, engine: Engine, run: TaskRun, ask: ModelAsk) -> Reply:
        """For a run that keeps to a budget, or estimates one."""
        request = ask.by.request(ask.messages, ask.seed)
        purse = None
        if self._budget is not None:
            purse = self._budget.purse(run.row.key, run.row.order, ask, engine, request)
        if self._outlook is not None:
            self._outlook.note(engine, request)
        answer, turn = self._ask(engine, run, ask, request, purse), ask.turn
        try:
            return await answer
        except (asyncio.CancelledError, Unavailable) as error:
            if purse is not None and (isinstance(error, Unavailable) or (turn is not None and turn.waiting)):
                purse.take_back(0.0 if turn is None else turn.kept)
            raise


def _reply(outcome: Any, ask: ModelAsk) -> Reply:
    return checked(outcome, ask.model)


def _value(outcome: Any, ask: EffectAsk) -> Any:
    try:
        return plain(outcome, f"the value of {ask.name}()")
    except UserError as error:
        raise StepFailed("value", str(error)) from None
