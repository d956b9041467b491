"""Reads `.safetensors` files: 8 bytes of header length, a JSON header, raw little-endian tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the file by name, as float32. `ValueError` where the file is not of this format."""
    data = path.read_bytes()
    body = 8 + int.from_bytes(data[:8], "little")
    if body > len(data):
        raise ValueError(f"not a safetensors file: expected a header of {body} bytes, found {len(data)}: {path}")
    header: dict[str, dict[str, Any]] = json.loads(data[8:body])
    header.pop("__metadata__", None)
    return {name: _tensor(data, body, name, about) for name, about in header.items()}


def _tensor(data: bytes, body: int, name: str, about: dict[str, Any]) -> NDArray[np.float32]:
    if about["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r}: expected one of {list(DTYPES)}, found {about['dtype']!r}")
    start, end = about["data_offsets"]
    flat = np.frombuffer(data[body + start : body + end], DTYPES[about["dtype"]])
    if about["dtype"] == "BF16":  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(about["shape"]).astype(np.float32)
