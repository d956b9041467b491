"""A character-level tokenizer, read from the files that transformers' `PreTrainedTokenizerFast` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template

from weaverant.message import Message
from weaverant.prompt import Sandbox


class CharTokenizer:
    """One token per character, and a few special ones. A character it does not know becomes the unknown token."""

    def __init__(self, tokens: dict[str, int], special: Iterable[str], unknown: str, end: str, chat: str) -> None:
        self.ids = tokens
        self.unknown = tokens[unknown]
        self.end = tokens[end]
        self.characters = {number: text for text, number in tokens.items() if text not in set(special)}
        self._special = re.compile("|".join(map(re.escape, special)))
        self._chat = _template(chat)

    @staticmethod
    def load(folder: Path) -> CharTokenizer:
        """Reads `tokenizer.json` and `tokenizer_config.json`. `ValueError` for any tokenizer with merges."""
        fast: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
        config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
        model = fast["model"]
        if model["type"] != "BPE" or model["merges"]:
            raise ValueError(
                f"the embedded engine reads character-level tokenizers: expected BPE without merges, found "
                f"{model['type']} with {len(model.get('merges', ()))} merges in {folder}; serve this model over HTTP"
            )
        template = folder / "chat_template.jinja"
        chat = template.read_text() if template.exists() else config["chat_template"]
        special: list[str] = [added["content"] for added in fast["added_tokens"]]
        end = config["eos_token"]  # a text, or with older versions of transformers a token in full
        end = end if isinstance(end, str) else end["content"]
        return CharTokenizer(model["vocab"], special, model["unk_token"], end, chat)

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, in which special tokens stand as they are written."""
        ids: list[int] = []
        at = 0
        for found in self._special.finditer(text):
            ids += self._plain(text[at : found.start()])
            ids.append(self.ids[found.group()])
            at = found.end()
        return ids + self._plain(text[at:])

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation, up to where the assistant's reply begins."""
        plain = [{"role": message.role, "content": message.text} for message in messages]
        return self.encode(self._chat.render(messages=plain, add_generation_prompt=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers. Special tokens have none."""
        return "".join(self.characters.get(number, "") for number in ids)

    def _plain(self, text: str) -> list[int]:
        return [self.ids.get(character, self.unknown) for character in text]


def _template(chat: str) -> Template:
    """A chat template, with the whitespace rules that transformers applies."""
    return Sandbox(trim_blocks=True, lstrip_blocks=True).from_string(chat)
