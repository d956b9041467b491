"""What a model server tells of its own load: a few lines of its Prometheus page (GET /metrics).

vLLM (both engines), SGLang (with --enable-metrics), llama.cpp's llama-server (with --metrics) and TGI.
"""

from __future__ import annotations

from typing import NamedTuple


class Gauges(NamedTuple):
    """Requests a server works on and requests that wait in it, from all its clients; and how full its key-value
    cache is, from 0 to 1 (0.0 where it does not tell). Summed over engines, of the cache the fullest."""

    running: float
    waiting: float
    cache_used: float = 0.0


class _Names(NamedTuple):
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    cache: tuple[str, ...] = ()


_SERVERS = (
    # V1 renamed the cache's gauge; some versions print both names for the same number.
    _Names(
        ("vllm:num_requests_running",),
        ("vllm:num_requests_waiting", "vllm:num_requests_swapped"),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    _Names(("sglang:num_running_reqs",), ("sglang:num_queue_reqs",), ("sglang:token_usage",)),
    _Names(("llamacpp:requests_processing",), ("llamacpp:requests_deferred",), ("llamacpp:kv_cache_usage_ratio",)),
    _Names(("tgi_batch_current_size",), ("tgi_queue_size",)),
)


def parse_gauges(text: str) -> Gauges | None:
    """The gauges on a metrics page; None if it is no page of a server we know."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        sample = _sample(line)
        if sample is not None:
            found.setdefault(sample[0], []).append(sample[1])
    for names in _SERVERS:
        if any(name in found for name in names.running):
            running, waiting, cache = ([v for name in kind for v in found.get(name, ())] for kind in names)
            return Gauges(sum(running), sum(waiting), max(cache, default=0.0))
    return None


def _sample(line: str) -> tuple[str, float] | None:
    """Name and value of a sample such as `name{label="a b"} 3.0 1700000000`; None for anything else."""
    name, brace, rest = line.partition("{")
    if brace:
        rest = rest.rpartition("}")[2]
    else:
        name, _, rest = line.partition(" ")
    if not rest or name.startswith("#"):
        return None
    try:
        value = float(rest.split()[0])
    except (ValueError, IndexError):
        return None
    return (name.strip(), value) if 0.0 <= value < float("inf") else None
