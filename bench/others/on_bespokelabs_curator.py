"""bespokelabs-curator: one `curator.LLM` over the rows, on its own aiohttp client."""

from __future__ import annotations

import json

from asked import asked, tell, texts
from bespokelabs import curator
from tiktoken import Encoding
from tiktoken.registry import ENCODINGS

BYTES = {bytes([value]): value for value in range(256)}
PLENTY = 1_000_000_000


class Writer(curator.LLM):
    def prompt(self, input):
        return f"write {input['text']}"

    def parse(self, input, response):
        return {**input, "draft": response}


def main() -> None:
    given = asked()
    # curator counts the tokens of every prompt with a vocabulary that tiktoken downloads; one of single bytes serves.
    ENCODINGS["cl100k_base"] = Encoding("cl100k_base", pat_str=r"\S+|\s+", mergeable_ranks=BYTES, special_tokens={})
    limits = {
        "base_url": given.url,
        "api_key": "none",
        "max_requests_per_minute": PLENTY,
        "max_tokens_per_minute": PLENTY,
        "max_concurrent_requests": given.at_once,
    }
    writer = Writer(model_name="light", backend="openai", backend_params=limits)
    done = writer(texts(given.rows), working_dir=str(given.folder)).dataset
    with (given.folder / "out.jsonl").open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in done)
    tell("bespokelabs-curator", sum(bool(row["draft"]) for row in done))


if __name__ == "__main__":
    main()
