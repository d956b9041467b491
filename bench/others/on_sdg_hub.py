"""sdg_hub: prompt, chat and extraction blocks for each call; every block takes the whole column."""

from __future__ import annotations

import json

import pandas as pd
from asked import Asked, asked, tell, texts
from sdg_hub.core.blocks.llm import LLMChatBlock, LLMResponseExtractorBlock, PromptBuilderBlock
from sdg_hub.core.flow import Flow, FlowMetadata


def blocks(given: Asked) -> list[object]:
    made: list[object] = []
    known = ["text"]
    for column, prompt in given.stages:
        path = given.folder / f"{column}.yaml"
        for name in known[1:]:
            prompt = prompt.replace(f"{{{{ {name.removesuffix('_content')} }}}}", f"{{{{ {name} }}}}")
        path.write_text(json.dumps([{"role": "user", "content": prompt}]))  # JSON is YAML
        asks, said = f"{column}_asks", f"{column}_said"
        made += [
            PromptBuilderBlock(block_name=asks, input_cols=list(known), output_cols=asks, prompt_config_path=str(path)),
            LLMChatBlock(block_name=said, input_cols=asks, output_cols=said, async_mode=True),
            LLMResponseExtractorBlock(
                block_name=f"{column}_", input_cols=said, output_cols=column, field_prefix=f"{column}_"
            ),
        ]
        known.append(f"{column}_content")
    return made


def main() -> None:
    given = asked()
    flow = Flow(blocks=blocks(given), metadata=FlowMetadata(name="peer"))
    flow.set_model_config(model="openai/light", api_base=given.url, api_key="none")
    done = flow.generate(pd.DataFrame(texts(given.rows)), max_concurrency=given.at_once)
    done.to_json(given.folder / "out.jsonl", orient="records", lines=True)
    tell("sdg-hub", int(done[f"{given.stages[-1][0]}_content"].notna().sum()))


if __name__ == "__main__":
    main()
