"""The files of a batch: lines of requests going up, lines of answers coming down.

Shapes as OpenAI documents them. A line answers with a `response`, whose status is that of a live call, or with an
`error`, where the call was never made (the batch expired, or was cancelled).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

from weaverant.engines.http.attempt import Trouble
from weaverant.engines.http.client.transport import Answer
from weaverant.errors import StepFailed

PATH = "/v1/chat/completions"


class LineResponse(Struct):
    status_code: int | None = None
    body: Raw = Raw()


class LineError(Struct):
    code: str | int | None = None
    message: str | None = None


class Line(Struct):
    """One line of an output or error file. It keeps the whole file's bytes alive."""

    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None

    def answer(self) -> Answer | Trouble:
        """What a live call would have got; where it was never made, why."""
        if self.response is not None and self.response.status_code:
            return Answer(self.response.status_code, {}, bytes(self.response.body))
        error = self.error or LineError()
        if isinstance(error.code, int) and 400 <= error.code < 600:
            return Answer(error.code, {}, msgspec.json.encode({"error": {"message": error.message}}))
        kind = "timeout" if error.code in ("batch_expired", "request_timeout") else "server"
        said = error.message or "the line has neither a response nor an error"
        return Trouble(StepFailed(kind, f"{error.code or 'no answer'}: {said}"), "server", again=True)


class _Request(Struct):
    custom_id: str


def encode_line(custom_id: str, body: bytes) -> bytes:
    """A line of an input file. `body` is a request's JSON, on one line."""
    head = f'{{"custom_id":"{custom_id}","method":"POST","url":"{PATH}","body":'
    return b"".join((head.encode(), body, b"}\n"))


def multipart(filename: str, lines: Sequence[bytes]) -> tuple[str, bytes]:
    """A form with the lines as a file for the batch API: its content type and its bytes."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    body = b"".join((head.encode(), *lines, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}", body


def read_answers(content: bytes) -> Iterator[Line | None]:
    """The lines of an output or error file; None for one that is garbled."""
    for text in _split(content):
        try:
            yield _decode_line(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield None


def read_identities(content: bytes) -> Iterator[str]:
    """The custom_ids in a batch's file of either direction."""
    for text in _split(content):
        try:
            yield _decode_request(text).custom_id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue


def _split(content: bytes) -> Iterator[memoryview]:
    """The lines that are not empty, without a copy: files are large."""
    view = memoryview(content)
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        if end > start:
            yield view[start:end]
        start = end + 1


_decode_line = msgspec.json.Decoder(Line).decode
_decode_request = msgspec.json.Decoder(_Request).decode
