"""NeMo Data Designer: a seed of the rows and an LLM text column for each call."""

from __future__ import annotations

import data_designer.config as dd
import pandas as pd
from asked import asked, tell, texts
from data_designer.interface import DataDesigner


def main() -> None:
    given = asked()
    params = dd.ChatCompletionInferenceParams(max_parallel_requests=given.at_once)
    model = dd.ModelConfig(alias="light", model="light", provider="local", inference_parameters=params)
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame(texts(given.rows))))
    for column, prompt in given.stages:
        builder.add_column(dd.LLMTextColumnConfig(name=column, prompt=prompt, model_alias="light"))
    provider = dd.ModelProvider(name="local", endpoint=given.url, api_key="none")
    designer = DataDesigner(artifact_path=given.folder, model_providers=[provider])
    designer.set_run_config(dd.RunConfig(otel_metrics_port=None))
    made = designer.create(builder, num_records=given.rows, dataset_name="peer").load_dataset()
    tell("data-designer", int(made[given.stages[-1][0]].notna().sum()))


if __name__ == "__main__":
    main()
