"""Makes src/weaverant/engines/http/money/prices.json from the price list that the package litellm ships (MIT;
facts only).

To refresh it, and to look at what changed (`git diff --stat`, then the tests of tests/test_money.py):

    pip download --no-deps -d wheels litellm
    python tools/prices.py wheels/litellm-*.whl YYYY-MM-DD

The date is the day of the download. Taken are the chat models of our presets that answer /v1/chat/completions in text
and are not retired on that day. A model without a price, or with a price of zero, is left out: its price is unknown.
OpenRouter is not in the list; its own prices are read when it is opened.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

LIST = "litellm/model_prices_and_context_window_backup.json"
OUT = Path(__file__).parent.parent / "src/weaverant/engines/http/money/prices.json"

PROVIDERS = {
    "openai": ("openai", "https://developers.openai.com/api/docs/pricing"),
    "anthropic": ("anthropic", "https://platform.claude.com/docs/en/about-claude/pricing"),
    "gemini": ("google", "https://ai.google.dev/gemini-api/docs/pricing"),
    "mistral": ("mistral", "https://mistral.ai/pricing"),
    "deepseek": ("deepseek", "https://api-docs.deepseek.com/quick_start/pricing"),
    "together_ai": ("together", "https://www.together.ai/pricing"),
    "groq": ("groq", "https://groq.com/pricing"),
}
"""The list's name of a provider: ours, and where the provider publishes its prices."""

OTHER = re.compile(
    r"^ft:|audio|search|computer-use|deep-research|container|-tts|lyria|robotics|omni|guard|fim|voxtral|streaming"
    r"|^together-ai-"
)
"""Names of what is no chat model for text, or costs more than its tokens."""

ABOVE = re.compile(r"^input_cost_per_token_above_(\d+)k_tokens$")


def main(wheel: str, date: str) -> None:
    listed: dict[str, dict[str, Any]] = json.loads(zipfile.ZipFile(wheel).read(LIST))
    package = "-".join(Path(wheel).name.split("-")[:2])
    tables: dict[str, Any] = {
        ours: {"date": date, "source": f"{url}, as listed by {package}", "models": {}}
        for ours, url in PROVIDERS.values()
    }
    for name, entry in sorted(listed.items()):
        provider = entry.get("litellm_provider")
        if provider not in PROVIDERS or not is_chat(name, entry, date):
            continue
        model = name.removeprefix(f"{provider}/")
        tables[PROVIDERS[provider][0]]["models"][model] = price(entry, provider)
    OUT.write_text(rendered(tables))
    for provider, table in tables.items():
        print(f"{provider}: {len(table['models'])} models")


def is_chat(name: str, entry: dict[str, Any], date: str) -> bool:
    endpoints = entry.get("supported_endpoints", ["/v1/chat/completions"])
    return (
        entry.get("mode") == "chat"
        and "/v1/chat/completions" in endpoints
        and "text" in entry.get("supported_output_modalities", ["text"])
        and not OTHER.search(name)
        and bool(entry.get("input_cost_per_token")) and bool(entry.get("output_cost_per_token"))
        and entry.get("deprecation_date", date) >= date
    )  # fmt: skip


def price(entry: dict[str, Any], provider: str) -> dict[str, Any]:
    """A `Price` without its defaults: dollars for a million tokens."""
    above = [(int(found.group(1)), name) for name in entry if (found := ABOVE.match(name))]
    result = rates(entry, "")
    if "write" in result and provider == "openai":
        result["stores"] = True
    if above:
        thousands, _ = min(above)
        result["long"] = {"above": thousands * 1000, **rates(entry, f"_above_{thousands}k_tokens")}
    if entry.get("max_input_tokens") or entry.get("max_tokens"):
        result["context"] = int(entry.get("max_input_tokens") or entry["max_tokens"])
    if entry.get("max_output_tokens"):
        result["most_output"] = int(entry["max_output_tokens"])
    return result


def rates(entry: dict[str, Any], suffix: str) -> dict[str, float]:
    def dollars(name: str) -> float | None:
        found = entry.get(name + suffix)
        return None if found is None else round(found * 1e6, 6)

    output = max(dollars("output_cost_per_token") or 0.0, dollars("output_cost_per_reasoning_token") or 0.0)
    found = {
        "input": dollars("input_cost_per_token"),
        "output": output or None,
        "cached": dollars("cache_read_input_token_cost"),
        "write": dollars("cache_creation_input_token_cost") or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def rendered(tables: dict[str, Any]) -> str:
    """One line a model, so that a refresh shows what changed."""
    parts: list[str] = []
    for provider, table in tables.items():
        head = f'"date": {json.dumps(table["date"])}, "source": {json.dumps(table["source"])}'
        models = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table["models"].items())
        parts.append(f'{json.dumps(provider)}: {{{head}, "models": {{\n{models}\n}}}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
