"""The journal's vocabulary: a closed union of small typed events, enough to rebuild a run.

Events are arrays in MessagePack with a tag in front (see docs/data-format.md). Fields are only ever added at
the end, with a default: an old reader skips them, a new reader fills them in. `Any` fields hold *packed* values:
plain data in which long texts that the task's trace already holds are references (see trace.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from weaverant.message import Count, Dollars, Usage

FORMAT_VERSION = 1

StepKind = Literal["model", "tool", "effect"]
Outcome = Literal["reply", "failure", "cancelled"]
EndState = Literal["done", "rejected", "failed"]

NO_USAGE = Usage(requests=0)

Seconds = Annotated[float, Meta(ge=0.0, le=1e11)]
"""Up to the year 5138: a date can be made of it, and a clock goes on from it."""

Ordinal = Annotated[int, Meta(ge=0, le=(1 << 62) - 1)]


class RunOpened(Struct, frozen=True, array_like=True, tag="open"):
    """A process began to write. `session` counts the openings of this run, from 0; `budget` is the cap it works under,
    in US dollars, 0 for none."""

    session: Count
    time: Seconds
    version: str
    budget: Dollars = 0.0


class AgentBound(Struct, frozen=True, array_like=True, tag="agent"):
    """An agent as this run uses it, written once before the first step that names `spec`."""

    spec: str
    agent: dict[str, Any]


class TaskStarted(Struct, frozen=True, array_like=True, tag="start"):
    """A row entered a workflow. `digest` is the row's content hash; `parents` are the tasks whose results it is."""

    task: str
    stage: Count
    time: Seconds
    digest: bytes
    row: Any
    parents: tuple[str, ...] = ()


class CostReserved(Struct, frozen=True, array_like=True, tag="reserve"):
    """Money was set aside for a model step, before a request was sent.

    `dollars` is all that is set aside for the step under this `claim`, what earlier sessions set aside included: of
    several events with the same step and claim the last holds, one of $0 ending it. The step's `StepEnded`, unless it
    was reused, closes them all: what it cost is then in its usage. `claim` names a purchase that outlives the process.
    """

    task: str
    path: str
    fingerprint: bytes
    occurrence: Count
    dollars: Dollars
    claim: str
    time: Seconds
    name: str = ""


class StepEnded(Struct, frozen=True, array_like=True, tag="step"):
    """One recorded outcome.

    (`path`, `fingerprint`, `occurrence`) is the step's key inside its task. `input` is what was asked: for a model
    step the template's variables, or the messages added to an earlier step's; for others the arguments.
    `value` is the reply, the function's value, or a failure's `[text, detail]`, whose kind is `reason`.
    `clock` is seconds on the task's own clock, which stands still while the run is stopped; `time` is Unix time.
    `host` is the epoch of the peer that made a call which travelled, and 0 where nobody else did. `inside` is the
    branch whose steps have made the reply of a compound model, or its failure; empty for what an engine said.
    """

    task: str
    path: str
    fingerprint: bytes
    occurrence: Count
    kind: StepKind
    name: str
    spec: str
    input: Any
    outcome: Outcome
    value: Any
    started: Seconds
    clock: Seconds
    time: Seconds
    usage: Usage = NO_USAGE
    model: str = ""
    seed: int = 0
    reused: bool = False
    reason: str = ""
    host: Ordinal = 0
    inside: str = ""


class TimerFired(Struct, frozen=True, array_like=True, tag="timer"):
    """A `sleep` or a deadline of the workflow came due. `number` counts the timers of that branch."""

    task: str
    path: str
    number: Count
    clock: Seconds
    time: Seconds


class TaskEnded(Struct, frozen=True, array_like=True, tag="end"):
    """The task is terminal. `value` is the result, or the details of a rejection or failure; `reason` a short word
    to count by; `where` the place in the user's code; `unasked` how many recorded outcomes replay never asked for, and
    `diverged` the first of them."""

    task: str
    stage: Count
    state: EndState
    reason: str
    where: str
    value: Any
    clock: Seconds
    time: Seconds
    unasked: Count = 0
    diverged: str = ""


class TaskReopened(Struct, frozen=True, array_like=True, tag="reopen"):
    """`--retry` took a failed task up again; so many recorded steps, `forgotten`, do not hold any more: what
    failed, what that failure hung on."""

    task: str
    time: Seconds
    forgotten: Count


class TaskSuperseded(Struct, frozen=True, array_like=True, tag="superseded"):
    """A group of a stage gained or lost members: this task's result no longer counts, `by` replaces it."""

    task: str
    by: str
    time: Seconds


class SourceEnded(Struct, frozen=True, array_like=True, tag="source"):
    """The source was read to its end; `rows` are all there are."""

    rows: Count
    time: Seconds


class Capacity(Struct, frozen=True, array_like=True):
    """How much an engine was found to take: so many `calls` at once now, growing to `most` where that is not settled,
    and so many `per_minute` by rate limits, each as large as those so far; 0 for no limit. `hourly` is the price of its
    servers that are paid by the hour, all of them together, in US dollars."""

    calls: int
    most: int
    per_minute: float = 0.0
    hourly: Dollars = 0.0


class Shortfall(Struct, frozen=True, array_like=True):
    """So many `calls` waited for money when the budget had none left. The first of them, of the oldest row, may cost
    `first` US dollars, and any of them `most`."""

    calls: int
    first: float
    most: float


class RunClosed(Struct, frozen=True, array_like=True, tag="close"):
    """The process stopped writing in order. `state` is `finished`, or why it stopped. Of a pilot, `bound` is the most
    that any one of its calls could have cost, in US dollars, 0 where no engine tells; `capacities` are those of its
    engines, by the name of the model they are given for, None for one that does not tell. `why` is the error that
    stopped it, shortened; `short` what a run that stopped for money lacked; `cut` how many calls were cut off that may
    be on a bill, where no money had been set aside for them."""

    state: str
    time: Seconds
    bound: Dollars = 0.0
    capacities: dict[str, Capacity | None] = {}
    why: str = ""
    short: Shortfall | None = None
    cut: Count = 0


TaskEvent = TaskStarted | CostReserved | StepEnded | TimerFired | TaskEnded | TaskReopened | TaskSuperseded


class TaskTaken(Struct, frozen=True, array_like=True, tag="taken"):
    """A task goes on in this journal. `events` are all that happened to it so far; `copy` counts the journals that it
    moved to, from 1. Where several journals have a task, the one with the highest copy holds."""

    task: str
    stage: Count
    copy: Count
    time: Seconds
    events: tuple[TaskEvent, ...]


class PeerOpened(Struct, frozen=True, array_like=True, tag="peer"):
    """A peer began to write this journal, which is its own. `labels` are the places that it offers."""

    epoch: Ordinal
    time: Seconds
    host: str
    pid: Count
    version: str
    labels: tuple[str, ...] = ()


class RowsLeft(Struct, frozen=True, array_like=True, tag="survey"):
    """What was there when a session with peers began: by their numbers the tasks of the source that are `whole` (what
    came of them has ended), and those of which something is `left`, with the epochs of the journals where it stands.
    Epochs above `last` are of that session."""

    last: Ordinal
    whole: tuple[tuple[int, int], ...]
    left: tuple[tuple[int, int, tuple[int, ...]], ...]
    time: Seconds


class RowsTaken(Struct, frozen=True, array_like=True, tag="rows"):
    """The peer leases the tasks of the source from `start` up to `stop`, by their numbers (row times trials plus
    trial). Of several leases of a task the one with the highest `number` holds."""

    number: Ordinal
    start: Ordinal
    stop: Ordinal
    time: Seconds


class RowsCut(Struct, frozen=True, array_like=True, tag="cut"):
    """The lease ends at `stop`: the peer has given the rest of it away, none of which had begun."""

    number: Ordinal
    stop: Ordinal
    time: Seconds


class RowsDone(Struct, frozen=True, array_like=True, tag="whole"):
    """All that began in the lease has ended, what came of it in later stages included."""

    number: Ordinal
    time: Seconds


class PeerClosed(Struct, frozen=True, array_like=True, tag="left"):
    """The peer stopped writing in order: `state` says why, `why` is the error where there was one, shortened. `cut`
    is as in `RunClosed`."""

    state: str
    time: Seconds
    why: str = ""
    cut: Count = 0


PeerEvent = PeerOpened | RowsLeft | RowsTaken | RowsCut | RowsDone | PeerClosed
Event = TaskEvent | TaskTaken | RunOpened | AgentBound | SourceEnded | RunClosed | PeerEvent
