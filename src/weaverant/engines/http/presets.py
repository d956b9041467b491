"""Hosted providers as data: where each is, which key it takes, and in what its dialect differs from OpenAI's.

`source` says where the facts were read. A field that a provider refuses or ignores is not sent; what an agent asked
for and cannot get is a failure that says so.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from weaverant.errors import StepFailed
from weaverant.message import Request


class Preset(Struct, frozen=True):
    """One provider. The defaults are what any other OpenAI-compatible server is taken for."""

    name: str = ""
    base: str = ""
    key_env: str = "WEAVERANT_API_KEY"
    example: str = ""
    """A model's name, for messages."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What bounds a reply, its reasoning included: so do all providers below."""
    schema: Literal["server", "prompt"] = "server"
    """Who is told the schema of an output."""
    json_object: bool = False
    """With the schema in the prompt: whether the server can be told that the reply is JSON of some kind."""
    seed_field: str = "seed"
    """Empty where it takes none."""
    n: bool = True
    """Whether it gives several replies to one prompt."""
    logprobs: Literal["flag", "count", ""] = "flag"
    """`flag`: `logprobs` is true, `top_logprobs` a number. `count`: `logprobs` is that number."""
    batch: float = 0.0
    """What a request costs in its OpenAI-compatible batch API, as a share of the price; 0: it has none."""
    always: dict[str, Any] = {}
    """Fields that go with every request."""
    source: str = ""

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""

    def adapt(self, body: dict[str, Any], request: Request) -> None:
        """Put a body of OpenAI's fields, before the agent's `extra`, into this provider's dialect."""
        sampling = request.sampling
        if sampling.n > 1 and not self.n:
            raise StepFailed("request", f"{self.name} gives one reply a request, and the agent asks for n={sampling.n}")
        if (sampling.logprobs or sampling.top_logprobs) and not self.logprobs:
            raise StepFailed("request", f"{self.name} tells no log probabilities, and the agent asks for them")
        if self.logprobs == "count" and "logprobs" in body:
            body["logprobs"] = max(1, body.pop("top_logprobs", 0))
        if "seed" in body and self.seed_field != "seed":
            seed = body.pop("seed")
            if self.seed_field:
                body[self.seed_field] = seed
        body.update(self.always)


OTHER = Preset()

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="openai",
            base="https://api.openai.com/v1",
            key_env="OPENAI_API_KEY",
            example="gpt-5-mini",
            limit_field="max_completion_tokens",
            batch=0.5,
            source="https://platform.openai.com/docs/api-reference/chat/create, /docs/guides/batch",
        ),
        # response_format, seed and logprobs are ignored, n must be 1; its batch API is not OpenAI's.
        Preset(
            name="anthropic",
            base="https://api.anthropic.com/v1",
            key_env="ANTHROPIC_API_KEY",
            example="claude-haiku-4-5",
            schema="prompt",
            seed_field="",
            n=False,
            logprobs="",
            source="https://platform.claude.com/docs/en/api/openai-sdk",
        ),
        # An unknown field is refused with 400, seed among them. Batches take no file that was uploaded OpenAI's way.
        # That the limit bounds thinking as well is no promise of the documentation, but what users measured.
        Preset(
            name="google",
            base="https://generativelanguage.googleapis.com/v1beta/openai",
            key_env="GEMINI_API_KEY",
            example="gemini-2.5-flash",
            seed_field="",
            logprobs="",
            source="https://ai.google.dev/gemini-api/docs/openai, https://github.com/mcpchecker/mcpchecker/pull/188, "
            "https://github.com/googleapis/python-genai/issues/2062",
        ),
        # An unknown field is refused with 422. Its batch API has other routes than OpenAI's.
        Preset(
            name="mistral",
            base="https://api.mistral.ai/v1",
            key_env="MISTRAL_API_KEY",
            example="mistral-small-latest",
            seed_field="random_seed",
            logprobs="",
            source="https://docs.mistral.ai/api, https://github.com/mistralai/platform-docs-public/issues/7",
        ),
        # The documentation names neither seed nor n. JSON mode wants the word JSON in the prompt.
        Preset(
            name="deepseek",
            base="https://api.deepseek.com",
            key_env="DEEPSEEK_API_KEY",
            example="deepseek-v4-flash",
            schema="prompt",
            json_object=True,
            seed_field="",
            n=False,
            source="https://api-docs.deepseek.com/api/create-chat-completion",
        ),
        # Its batch API takes files by another route than OpenAI's.
        Preset(
            name="together",
            base="https://api.together.xyz/v1",
            key_env="TOGETHER_API_KEY",
            example="openai/gpt-oss-120b",
            logprobs="count",
            source="https://raw.githubusercontent.com/togethercomputer/openapi/main/openapi.yaml",
        ),
        # logprobs and n above 1 are refused with 400.
        Preset(
            name="groq",
            base="https://api.groq.com/openai/v1",
            key_env="GROQ_API_KEY",
            example="openai/gpt-oss-20b",
            limit_field="max_completion_tokens",
            n=False,
            logprobs="",
            batch=0.5,
            source="https://console.groq.com/docs/openai, https://console.groq.com/docs/batch",
        ),
        # n is not among its parameters.
        Preset(
            name="openrouter",
            base="https://openrouter.ai/api/v1",
            key_env="OPENROUTER_API_KEY",
            example="openai/gpt-oss-120b",
            n=False,
            always={"usage": {"include": True}},
            source="https://openrouter.ai/docs/api-reference/overview, /docs/use-cases/usage-accounting",
        ),
    )
}
"""By the scheme of a spec, as in `openai:gpt-5-mini`."""

_BY_HOST = {preset.host: preset for preset in PRESETS.values()}


def preset_at(host: str) -> Preset:
    """The provider with that host, else what stands for all others."""
    return _BY_HOST.get(host, OTHER)
