"""distilabel: a step that loads the rows and a TextGeneration for each call; its calls in flight are a batch."""

from __future__ import annotations

import logging

from asked import asked, tell, texts
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

# The client that openai now sits on logs every request, and distilabel, which silences only the client before it, has
# rich draw that line. An accident of versions, and not counted.
logging.getLogger("httpx2").setLevel(logging.WARNING)


def main() -> None:
    given = asked()
    known = ["text"]
    with Pipeline("peer", cache_dir=given.folder) as pipeline:
        last = LoadDataFromDicts(data=texts(given.rows), batch_size=given.at_once)
        for column, prompt in given.stages:
            step = TextGeneration(
                name=column,
                llm=OpenAILLM(model="light", base_url=given.url, api_key="none"),
                template=prompt,
                columns=list(known),
                output_mappings={"generation": column, "model_name": f"{column}_model"},
                input_batch_size=given.at_once,
            )
            last >> step
            last = step
            known.append(column)
    done = pipeline.run(use_cache=False)["default"]["train"]
    tell("distilabel", sum(bool(text) for text in done[known[-1]]))


if __name__ == "__main__":
    main()
