"""A plain client for any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, Ollama, ...)."""

from weaverant.engines.http.client import ChatCompletions

__all__ = ["ChatCompletions"]
