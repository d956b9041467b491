"""The exporters that suit any workflow. Each is a pure function from one task's story to samples, plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from weaverant.errors import UserError
from weaverant.export.cut import CUT_SHORT, cut_texts, text_key
from weaverant.message import ImagePart, Message
from weaverant.story import Story

Sample = dict[str, Any]

LEFT_OUT = "_left_out"
"""The field of a sample that says why it is left out: the export counts it by that, and does not write it."""

MISFIT = "that did not fit the output and were asked again"
SAME = "with chosen the same as rejected"

HOW_TO_PREFER = (
    'Let the workflow return {"preferences": [{"prompt": ..., "chosen": ..., "rejected": ...}, ...]}, each a text or a '
    "list of messages, or define an @exporter in its file and name it with --as"
)


def raw(story: Story) -> Iterator[Sample]:
    """`{"key", "row", "result"}`; of a task that is not done also its state, reason and place."""
    sample: Sample = {"key": story.key, "row": story.row, "result": story.result}
    if story.state != "done":
        sample |= {"state": story.state, "reason": story.reason, "where": story.where}
    yield sample


def messages(story: Story) -> Iterator[Sample]:
    """A chat sample of each step in which a model answered: `{"messages", "agent", "task", "model"}`, in OpenAI's
    form, the reply last; with `tools` where the agent has some. Suits TRL's SFT and any chat template. Of several
    replies (`n`) it is the first: which ones are good only the workflow knows. One that was cut short is left out, and
    one that did not fit the output, so that its agent was asked again."""
    misfits = {step.follows for step in story.model_steps if step.messages and step.messages[-1].role == "user"}
    for step in story.model_steps:
        assert step.reply is not None
        said = (*step.messages, step.reply.message)
        sample: Sample = {
            "messages": [chat_message(message) for message in said],
            "agent": step.name,
            "task": story.key,
            "model": step.model,
        }
        if step.tools:
            sample["tools"] = [{"type": "function", "function": tool} for tool in step.tools]
        if step.reply.finish in CUT_SHORT:
            sample[LEFT_OUT] = CUT_SHORT[step.reply.finish]
        elif step.number in misfits:
            sample[LEFT_OUT] = MISFIT
        yield sample


def preference(story: Story, cut: Mapping[bytes, str] | None = None) -> Iterator[Sample]:
    """The pairs that the result lists under `preferences`, in the conversational form of TRL and Hugging Face
    `datasets`: `prompt`, `chosen` and `rejected` are lists of messages. Other fields of a pair are kept. A pair is
    left out where both sides are the same, or one is a reply that was cut short: by `cut`, which `cut_texts` gives."""
    known = cut_texts(story) if cut is None else cut
    result: object = story.result
    pairs = cast("dict[str, object]", result).get("preferences") if isinstance(result, dict) else None
    if not isinstance(pairs, list):
        found = f"fields {list(cast('Sample', result))}" if isinstance(result, dict) else type(result).__name__
        raise UserError(
            f"the result of task {story.key!r} has no list of preferences; found {found}. {HOW_TO_PREFER}"
        )  # fmt: skip
    for number, pair in enumerate(cast("list[object]", pairs)):
        where = f"pair {number} of task {story.key!r}"
        if not isinstance(pair, dict) or not {"prompt", "chosen", "rejected"} <= pair.keys():
            raise UserError(f"{where} has not all of prompt, chosen, rejected; found {pair!r:.200}. {HOW_TO_PREFER}")
        given = cast("Sample", pair)
        sides = {
            "prompt": conversation(given["prompt"], "user", f"{where}: prompt"),
            "chosen": conversation(given["chosen"], "assistant", f"{where}: chosen"),
            "rejected": conversation(given["rejected"], "assistant", f"{where}: rejected"),
        }
        sample = {**given, **sides, "task": story.key}
        why = SAME if sides["chosen"] == sides["rejected"] else _side_cut(sides, known)
        yield {**sample, LEFT_OUT: why} if why else sample


def _side_cut(sides: Mapping[str, Sequence[Sample]], cut: Mapping[bytes, str]) -> str:
    """Why one of the two replies is not whole; empty where both are."""
    last = [sides[side][-1]["content"] for side in ("chosen", "rejected")]
    return next((cut[key] for text in last if isinstance(text, str) and (key := text_key(text)) in cut), "")


GENERIC: dict[str, Callable[[Story], Iterator[Sample]]] = {
    "raw": raw,
    "messages": messages,
    "preference": preference,
}


def conversation(value: Any, role: str, where: str) -> list[Sample]:
    """A text as one message of `role`; a list of messages as it is, when it is one."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, Sequence) and all(map(_is_message, cast("Sequence[object]", value))) and value:
        return [dict(message) for message in cast("Sequence[Sample]", value)]
    raise UserError(
        f'{where} is {value!r:.200}; expected a text or a list of messages {{"role": ..., "content": ...}}'
    )  # fmt: skip


def _is_message(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    message = cast("Sample", value)
    return message.get("role") in ("system", "user", "assistant", "tool") and "content" in message


def chat_message(message: Message) -> Sample:
    """A message in the form that OpenAI's API, chat templates and trainers know."""
    chat: Sample = {"role": message.role, "content": _content(message)}
    if message.reasoning is not None:
        chat["reasoning_content"] = message.reasoning
    if message.tool_calls:
        chat["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        chat["tool_call_id"] = message.tool_call_id
    return chat


def _content(message: Message) -> Any:
    if isinstance(message.content, str):
        return message.content
    return [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]


def encode(sample: Sample, where: str) -> bytes:
    """One line of JSON, without its end. The same sample is the same bytes, everywhere. `NotFinite` for a number that
    JSON has not."""
    try:
        line = msgspec.json.encode(sample)
    except (TypeError, ValueError, OverflowError) as error:
        text = f"{where} gave a sample that JSON cannot hold: {error}. Expected plain data"
        raise UserError(text) from None
    if b"null" in line and (field := _not_finite(msgspec.to_builtins(sample), "")) is not None:
        raise NotFinite(f"with NaN or infinity in {field!r}, which JSON cannot hold")
    return line


class NotFinite(Exception):
    """A sample has a number that would be written as null; the text is why it is left out."""


def _not_finite(value: Any, path: str) -> str | None:
    """Where in plain data a number is not finite, as `result.scores`; None where all are."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        dot = "." if path else ""
        items = cast("dict[object, object]", value).items()
        found = (_not_finite(inside, f"{path}{dot}{name}") for name, inside in items)
    elif isinstance(value, list | tuple):
        found = (_not_finite(inside, path) for inside in cast("Sequence[object]", value))
    else:
        return None
    return next((where for where in found if where is not None), None)


def decode(line: bytes) -> Sample:
    """The inverse of `encode`."""
    return json.loads(line)
