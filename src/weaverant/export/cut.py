"""Replies that were cut short: nobody should learn to stop in the middle, so exports leave them out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from weaverant.message import digest
from weaverant.story import Story

CUT_SHORT = {"length": "cut short (max_tokens)", "content_filter": "cut short (content filter)"}
"""By how a reply finished: why it is left out."""

NONE: Mapping[bytes, str] = MappingProxyType({})


def cut_texts(story: Story, before: Mapping[bytes, str] = NONE) -> dict[bytes, str]:
    """What the task's cut replies said, each text by its `text_key`, with why nobody should learn it; `before` is the
    same of the tasks that it was made from. A text that another reply of the task gave as a whole is none."""
    choices = [choice for step in story.model_steps if step.reply is not None for choice in step.reply.choices]
    found = {**before}
    found |= {text_key(one.text): CUT_SHORT[one.finish] for one in choices if one.finish in CUT_SHORT}
    if found:
        for one in choices:
            if one.finish not in CUT_SHORT:
                found.pop(text_key(one.text), None)
    return found


def text_key(text: str) -> bytes:
    """Names a text, whatever space is around it."""
    return digest(text.strip().encode(errors="surrogatepass"))


class Inherited:
    """Of tasks of later stages, what the cut replies said of those that they were made from. It holds 16 bytes for a
    cut reply of an earlier stage, and nothing for others."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[bytes, str]] = {}

    def add(self, story: Story) -> None:
        """A finished task, after those that it was made from."""
        if found := cut_texts(story, self.of(story)):
            self._texts[story.key] = found

    def of(self, story: Story) -> dict[bytes, str]:
        """The `before` of `cut_texts`."""
        return {key: why for parent in story.parents for key, why in self._texts.get(parent, NONE).items()}
