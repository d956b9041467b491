"""A batch of the test server, with the shapes and statuses of OpenAI's: what is checked, and how it can end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

MOST_LINES, MOST_BYTES = 50_000, 200_000_000
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")

Line = dict[str, Any]


class File(Struct):
    id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class Batch(Struct, eq=False):
    """`fate` is one of `Settings.fates`. `answer` works a line's body out: its status and the body of its reply."""

    id: str
    file: File
    metadata: dict[str, str]
    fate: str
    answer: Callable[[Line], tuple[int, bytes]]
    keep: Callable[[str, bytes], str]
    """Stores an output file under a name; its id."""
    began: float = msgspec.field(default_factory=time.monotonic)
    created_at: int = msgspec.field(default_factory=lambda: int(time.time()))
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    status: str = "validating"
    output: str | None = None
    mistakes: str | None = None
    done: int = 0
    failed: int = 0

    def validate(self, room: int | None) -> None:
        """What OpenAI checks before a batch begins. `room` is how many lines may still be under way."""
        seen: set[str] = set()
        models: set[str] = set()
        for number, text in enumerate(self.file.content.splitlines(), 1):
            line = parsed(text)
            body: Any = line.get("body") if line is not None else None
            if line is None or line.get("method") != "POST" or not isinstance(body, dict):
                self._blame("invalid_json_line", "This line is not parseable as valid JSON.", number)
                continue
            identity = str(line.get("custom_id"))
            if identity in seen or not 0 < len(identity) <= 64:
                self._blame("duplicate_custom_id", "The custom_id must be unique for each request.", number)
            if line.get("url") != ENDPOINT:
                self._blame("url_mismatch", f"The URL is not the batch's, {ENDPOINT}.", number)
            seen.add(identity)
            models.add(str(line["body"].get("model")))
            self.lines.append(line)
        if len(models) > 1:
            self._blame("model_mismatch", f"A batch has one model, found {sorted(models)}.")
        if not self.lines:
            self._blame("empty_file", "The file is empty.")
        if len(self.lines) > MOST_LINES or len(self.file.content) > MOST_BYTES:
            self._blame("too_many_tasks", f"A batch has {MOST_LINES} requests at most.")
        if self.fate == "failed":
            self._blame("invalid_request", "The second line is wrong on purpose.", 2)
        if self.fate == "refused":
            self._blame("invalid_request", "Refused on purpose.")
        if room is not None and len(self.lines) > room:
            self._blame("token_limit_exceeded", "Enqueued token limit reached. Please try again later.")

    def advance(self, seconds: float) -> None:
        """Let the time since the last look do its work, in a batch that takes so many seconds."""
        if self.status in ENDED:
            return
        share = (time.monotonic() - self.began) / max(1e-9, seconds)
        if self.errors:
            self.status = "failed" if share >= 0.5 else "validating"
        elif share >= 1:
            self.finish()
        elif share >= 0.1:
            self.status = "in_progress"
            self.done = int(share * len(self.lines))

    def finish(self) -> None:
        name = self.fate.removeprefix("bare-")
        broken_off = name in ("expired", "cancelled")
        self.status = name if broken_off else "completed"
        output: list[Line] = []
        mistakes: list[Line] = []
        for number, line in enumerate(self.lines):
            if broken_off and number % 2:
                if self.fate == name:
                    text = "This request could not be executed before the completion window ended."
                    mistakes.append(_answered(line, None, {"code": f"batch_{name}", "message": text}))
            elif self.fate != "missing" or number % 3:
                status, body = self.answer(line)
                status = 0 if self.fate == "status-0" else status
                response = {"status_code": status, "request_id": "req_1", "body": parsed(body) or {"text": "garbled"}}
                (output if status in (0, 200) else mistakes).append(_answered(line, response, None))
        self.done, self.failed = len(output), len(self.lines) - len(output)
        self.output = self._written("output", output) if output else None
        # An empty text where nothing failed, as users of OpenAI's have seen it.
        self.mistakes = self._written("error", mistakes) if mistakes else ""

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": {"object": "list", "data": self.errors} if self.status == "failed" else None,
            "input_file_id": self.file.id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.mistakes,
            "created_at": self.created_at,
            "expires_at": self.created_at + 86_400,
            "request_counts": {"total": len(self.lines), "completed": self.done, "failed": self.failed},
            "metadata": self.metadata,
        }

    def _blame(self, code: str, text: str, line: int | None = None) -> None:
        self.errors.append({"code": code, "message": text, "param": None, "line": line})

    def _written(self, kind: str, lines: list[Line]) -> str:
        content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        return self.keep(f"{self.id}_{kind}.jsonl", content)


def parsed(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _answered(line: Line, response: Line | None, error: Line | None) -> Line:
    identity = line["custom_id"]
    return {"id": f"batch_req_{identity}", "custom_id": identity, "response": response, "error": error}
