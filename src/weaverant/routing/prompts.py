"""What the compounds say to their members: whole conversations in, whole conversations out.

`Chat` is for models that follow instructions: it puts its text behind the asking agent's own instructions, so that
conversations, images and whatever they hold stay as they are. `Tiny` is for the packaged model's family, in the lines
of `tiny_prompts`: one question, texts only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from weaverant.compound import Served
from weaverant.errors import StepFailed
from weaverant.message import Message, system, user
from weaverant.routing import tiny_prompts

Prompts = Literal["auto", "chat", "tiny"]
Messages = tuple[Message, ...]


class Words(Protocol):
    """One way of asking."""

    def ask(self, messages: Messages) -> Messages:
        """For an answer, with nothing told."""
        ...

    def improve(self, messages: Messages, answers: Sequence[str], role: str = "") -> Messages:
        """For an answer, by somebody in that role who is told others' answers; there may be none."""
        ...

    def final(self, messages: Messages, answers: Sequence[str]) -> Messages:
        """For the one answer that all of these come to."""
        ...

    def read(self, text: str) -> str:
        """The answer in a reply, as others are told it."""
        ...


def words_for(prompts: Prompts, members: Mapping[str, Served]) -> Words:
    """`auto`: tiny where every member is an embedded model, else chat."""
    embedded = all(member.identity.startswith("embedded:") for member in members.values())
    return Tiny() if prompts == "tiny" or (prompts == "auto" and embedded) else Chat()


_IMPROVE = """\
Several models were given the same message as you. These are their answers, in no order of merit; any of them may be \
wrong, also where they agree:

{answers}

Give your own answer to the message. Check each claim that you take over, mend what is faulty, and fill in what all of \
them lack. Whoever reads yours has not seen the others, so do not mention them."""

_FINAL = """\
Several models were given the same message. Their answers, in no order of merit:

{answers}

Settle what the right answer is and write it out in full, in the form that the message asks for. Weigh reasons, not \
numbers of votes: an answer that most of them give may still be wrong. Your reader has seen none of these answers."""

_ROLE = "In this task you are: {role}"


class Chat:
    """For models that follow instructions. Implements `Words`."""

    def ask(self, messages: Messages) -> Messages:
        return messages

    def improve(self, messages: Messages, answers: Sequence[str], role: str = "") -> Messages:
        parts = [_ROLE.format(role=role)] if role else []
        parts += [_IMPROVE.format(answers=numbered(answers))] if answers else []
        return instructed(messages, "\n\n".join(parts)) if parts else messages

    def final(self, messages: Messages, answers: Sequence[str]) -> Messages:
        return instructed(messages, _FINAL.format(answers=numbered(answers)))

    def read(self, text: str) -> str:
        return text


class Tiny:
    """For the small models of `training/specialists` and the packaged one. Implements `Words`."""

    def ask(self, messages: Messages) -> Messages:
        return (user(tiny_prompts.ask(question_in(messages))),)

    def improve(self, messages: Messages, answers: Sequence[str], role: str = "") -> Messages:
        if not answers:
            return self.ask(messages)
        told = answers[: tiny_prompts.MOST_ANSWERS]
        return (user(tiny_prompts.improve(question_in(messages), told)),)

    def final(self, messages: Messages, answers: Sequence[str]) -> Messages:
        return (user(tiny_prompts.aggregate(question_in(messages), answers[: tiny_prompts.MOST_ANSWERS])),)

    def read(self, text: str) -> str:
        return tiny_prompts.answer(text)


def instructed(messages: Messages, text: str) -> Messages:
    """The conversation with this behind its instructions."""
    if messages and messages[0].role == "system":
        return (system(f"{messages[0].text}\n\n{text}"), *messages[1:])
    return (system(text), *messages)


def numbered(answers: Sequence[str]) -> str:
    """One below the other, the first with number 1."""
    return "\n\n".join(f"[{number}]\n{answer.strip()}" for number, answer in enumerate(answers, 1))


def question_in(messages: Messages) -> str:
    """The only user's message, with the instructions before it. `StepFailed` of kind `request` for more than that."""
    users = [message for message in messages if message.role == "user"]
    if len(users) != 1 or messages[-1] is not users[0] or any(one.role not in ("system", "user") for one in messages):
        raise StepFailed("request", "small models are asked one question, and were sent a conversation")
    if any(not isinstance(message.content, str) for message in messages):
        raise StepFailed("request", "small models read texts, and were sent an image")
    return "\n".join(message.text for message in messages)


def query_in(messages: Messages) -> str:
    """What a router is to score: the last thing that the user said."""
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


_ANNOUNCED = re.compile(r"####\s*(.+?)\s*$|\\boxed\{([^{}]+)\}", re.MULTILINE)


def agreed(answers: Sequence[str]) -> bool:
    """Whether all come to the same: what they announce (`####`, `\\boxed{}`), else the whole texts, but for case, white
    space and a full stop."""
    return len({answer_in(text) for text in answers}) == 1


def answer_in(text: str) -> str:
    """What a text comes to, in the form that is compared."""
    found = _ANNOUNCED.findall(text)
    said = (found[-1][0] or found[-1][1]) if found else text
    return " ".join(said.split()).casefold().rstrip(".")
