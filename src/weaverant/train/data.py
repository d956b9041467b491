"""Samples to train on: read from what `weaverant export` writes, checked line by line, and put into tokens.

A sample is a prompt and its replies: one for SFT, chosen and rejected for DPO. Loss falls on the replies only, so the
two are kept apart from the start. Whoever reads a file hears of the first mistake with file, line and field.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from weaverant.errors import UserError

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


class Sample(Struct, frozen=True):
    """A prompt of one message or more, and its replies, each one message of the assistant."""

    prompt: tuple[Message, ...]
    replies: tuple[Message, ...]
    tools: tuple[Any, ...] = ()


class Tokens(Struct, frozen=True):
    """A sample in token numbers: what is read, and what is learned, which begins where the assistant speaks."""

    prompt: list[int]
    replies: tuple[list[int], ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longer reply."""
        return len(self.prompt) + max(map(len, self.replies))

    @property
    def total(self) -> int:
        """Tokens that go through the model: the prompt comes with every reply."""
        return sum(len(self.prompt) + len(reply) for reply in self.replies)


def read_sft(path: Path) -> list[Sample]:
    """`{"messages": [...]}` in each line, the last message being the reply. Raises `UserError`."""
    return _read(path, _conversation)


def read_preferences(path: Path) -> list[Sample]:
    """`{"prompt": [...], "chosen": [...], "rejected": [...]}` in each line. Raises `UserError`."""
    return _read(path, _pair)


def digest(path: Path) -> str:
    """The file's content in 16 hexadecimal digits."""
    with path.open("rb") as file:
        hashed = blake2b(digest_size=8)
        while part := file.read(1 << 20):
            hashed.update(part)
    return hashed.hexdigest()


def _read(path: Path, sample_of: Callable[[Message, str], Sample]) -> list[Sample]:
    if path.is_dir():
        inside = ", ".join(sorted(each.name for each in path.glob("*.jsonl*"))) or "none"
        raise UserError(f"{str(path)!r} is a folder: expected one of its files; .jsonl files in it: {inside}")
    samples: list[Sample] = []
    for where, line in _lines(path):
        try:
            found: object = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{where}: expected a mapping, found {_clip(found)}")
        samples.append(sample_of(cast("Message", found), where))
    if not samples:
        raise UserError(f"{str(path)!r} has no samples: expected one JSON mapping in each line")
    return samples


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, with its address."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path} line {number}", line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read: {error}. Expected a .jsonl or .jsonl.gz file of `weaverant export`"
        ) from None


def _conversation(found: Message, where: str) -> Sample:
    if "messages" not in found and {"prompt", "chosen", "rejected"} <= found.keys():
        raise UserError(f"{where}: this is a preference pair: expected `messages`; `weaverant train dpo` takes pairs")
    messages = _messages(found, "messages", where)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: field 'messages': expected a prompt and, last, the assistant's reply; found the roles "
            f"{[message['role'] for message in messages]}"
        )
    return Sample(tuple(messages[:-1]), (messages[-1],), _tools(found, where))


def _pair(found: Message, where: str) -> Sample:
    if "messages" in found and "chosen" not in found:
        raise UserError(
            f"{where}: this is a conversation: expected `prompt`, `chosen`, `rejected`; "
            "`weaverant train sft` takes conversations"
        )
    prompt = _messages(found, "prompt", where)
    if prompt[-1]["role"] == "assistant":
        raise UserError(f"{where}: field 'prompt': expected a user or tool message last, found the assistant's")
    replies: list[Message] = []
    for side in ("chosen", "rejected"):
        messages = _messages(found, side, where)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise UserError(
                f"{where}: field {side!r}: expected one message of the assistant, found the roles "
                f"{[message['role'] for message in messages]}"
            )
        replies += messages
    if replies[0] == replies[1]:
        raise UserError(f"{where}: 'chosen' and 'rejected' are the same: there is nothing to prefer")
    return Sample(tuple(prompt), tuple(replies), _tools(found, where))


def _messages(found: Message, field: str, where: str) -> list[Message]:
    if field not in found:
        raise UserError(f"{where}: no field {field!r}; found the fields {list(found)}")
    value: object = found[field]
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: field {field!r}: expected a list of messages, found {_clip(found[field])}")
    return [
        _message(one, f"{where}: field '{field}[{number}]'") for number, one in enumerate(cast("list[object]", value))
    ]


def _message(value: object, where: str) -> Message:
    """A message as chat templates take it: content as a text, arguments of tool calls as data."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected {{"role": ..., "content": ...}}, found {_clip(value)}')
    given = cast("Message", value)
    if given.get("role") not in ROLES:
        raise UserError(f"{where}: 'role': expected one of {', '.join(ROLES)}, found {_clip(given.get('role'))}")
    content: object = given.get("content")
    calls: object = given.get("tool_calls") or []
    if isinstance(content, list):
        content = _joined(cast("list[object]", content), where)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise UserError(f"{where}: 'content': expected a text, found {_clip(content)}")
    if not content and not calls and given["role"] == "assistant":
        raise UserError(f"{where}: 'content' is empty, and there are no tool calls: nothing to learn from")
    message: Message = {"role": given["role"], "content": content}
    if calls:
        message["tool_calls"] = [_call(one, where) for one in cast("list[object]", calls)]
    message |= {name: given[name] for name in ("reasoning_content", "tool_call_id", "name") if given.get(name)}
    return message


def _joined(parts: list[object], where: str) -> str:
    texts: list[str] = []
    for part in parts:
        text: object = cast("Message", part).get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{where}: 'content': only texts can be trained on here, found {_clip(parts)}")
        texts.append(text)
    return "".join(texts)


def _call(value: object, where: str) -> Message:
    call = cast("Message", value) if isinstance(value, dict) else {}
    function: object = call.get("function")
    if not isinstance(function, dict) or "name" not in function:
        raise UserError(f"{where}: 'tool_calls': expected calls with function.name, found {_clip(call)}")
    inside = dict(cast("Message", function))
    if isinstance(inside.get("arguments"), str):
        try:
            inside["arguments"] = json.loads(inside["arguments"])
        except ValueError:
            pass  # a model may have written what is no JSON: the template shows it as it is
    return {**call, "function": inside}


def _tools(found: Message, where: str) -> tuple[Any, ...]:
    tools: object = found.get("tools") or []
    if not isinstance(tools, list):
        raise UserError(f"{where}: field 'tools': expected a list, found {_clip(tools)}")
    return tuple(cast("list[Any]", tools))


def _clip(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]} ..."


def tokenised(samples: Sequence[Sample], tokenizer: Any) -> list[Tokens]:
    """Each sample through the model's own chat template.

    The reply is what the whole conversation has after the prompt as it is put at generation. Where a template writes
    the two differently, it begins where they part. `UserError` where a template leaves nothing of a reply.
    """
    texts: list[str] = []
    for sample in samples:
        given: dict[str, Any] = {"tokenize": False, "tools": list(sample.tools) or None}
        try:
            texts.append(tokenizer.apply_chat_template(list(sample.prompt), add_generation_prompt=True, **given))
            texts += [tokenizer.apply_chat_template([*sample.prompt, reply], **given) for reply in sample.replies]
        except (ValueError, TypeError, LookupError, RuntimeError) as error:  # jinja2's errors are RuntimeErrors
            roles = [message["role"] for message in sample.prompt]
            raise UserError(f"the model's chat template refuses a sample with the roles {roles}: {error}") from None
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    size = 1 + len(samples[0].replies)
    return [_split(ids[at], ids[at + 1 : at + size]) for at in range(0, len(ids), size)]


def _split(prompt: list[int], whole: list[list[int]]) -> Tokens:
    shared = min(_common(prompt, each) for each in whole)
    if any(len(each) == shared for each in whole):
        raise UserError("the model's chat template leaves nothing of a reply: expected it to write assistant messages")
    return Tokens(prompt[:shared], tuple(each[shared:] for each in whole))


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens the two share from the start."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))
