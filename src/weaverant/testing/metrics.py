"""GET /metrics as model servers serve it: Prometheus text."""

from __future__ import annotations

from weaverant.testing.settings import Metrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES: dict[str, tuple[str, str, str]] = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:gpu_cache_usage_perc"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"),
    "llamacpp": ("llamacpp:requests_processing", "llamacpp:requests_deferred", "llamacpp:kv_cache_usage_ratio"),
}
"""Calls worked on, calls that wait, the share of the cache in use."""


def exposition(kind: Metrics, running: int, waiting: int, slots: int) -> str:
    """The text. llama.cpp's gauges have no labels, the others name the model."""
    labels = "" if kind == "llamacpp" else '{model_name="mock"}'
    values = (running, waiting, running / max(1, slots))
    lines: list[str] = []
    for name, value in zip(_GAUGES[kind], values, strict=True):
        lines += [f"# HELP {name} {name.replace('_', ' ')}", f"# TYPE {name} gauge", f"{name}{labels} {float(value)}"]
    return "\n".join(lines) + "\n"
