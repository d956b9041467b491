"""The one place of routing that knows torch: an encoder from a folder, as it is or tuned on graded queries.

The folder is what `save_pretrained` of transformers writes: shape, tokenizer files, weights. Nothing is fetched.
Needs the extra `weaverant[train]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.scores import Floats

TOKENS = 512
"""Of a longer text the end counts, as in RouterDC."""


class Transformer:
    """A text's vector is the last layer's at the first token (CLS)."""

    def __init__(self, folder: str, weights: Mapping[str, NDArray[np.generic]] | None = None) -> None:
        """With other `weights` than the folder's, by their names. `UserError` where the folder holds no encoder."""
        missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
        if missing:
            raise UserError(f'an encoder from a folder needs {" and ".join(missing)}: pip install "weaverant[train]"')
        path = Path(folder).expanduser()
        if not (path / "config.json").is_file():
            raise UserError(
                f"there is no encoder in {folder!r}: expected a folder with config.json, tokenizer files and weights, "
                "as `hf download microsoft/mdeberta-v3-base --local-dir FOLDER` gets them"
            )
        self._torch: Any = import_module("torch")
        library: Any = import_module("transformers")
        try:
            self._tokenizer: Any = library.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, truncation_side="left"
            )
            self._model: Any = library.AutoModel.from_pretrained(str(path), local_files_only=True).float().eval()
            if weights is not None:
                self._model.load_state_dict({name: self._torch.from_numpy(each) for name, each in weights.items()})
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"the encoder in {folder!r} cannot be loaded: {error}") from None

    @property
    def dims(self) -> int:
        return int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(n, dims) of length 1. One text at a time: beside others it would be padded, and its vector not be the same
        to the last bit."""
        with cast("AbstractContextManager[None]", self._torch.no_grad()):
            rows = [self._cls((text,))[0].numpy() for text in texts]
        found = np.array(rows, dtype=np.float32).reshape(len(texts), self.dims)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    def weights(self) -> dict[str, NDArray[np.generic]]:
        """By name."""
        state: dict[str, Any] = self._model.state_dict()
        return {name: each.detach().cpu().numpy().copy() for name, each in state.items()}

    def tune(
        self,
        texts: Sequence[str],
        models: Floats,
        batches: Sequence[NDArray[np.int64]],
        rate: float,
        loss: Callable[[NDArray[np.int64], Any, Any], Any],
        seed: int,
    ) -> Floats:
        """Train it and one vector for each model, (M, dims), by AdamW, one step for each batch of places in `texts`.
        `loss` has the places, the texts' vectors and the models', as tensors. Returns the models' vectors."""
        torch = self._torch
        torch.manual_seed(seed)
        vectors = torch.nn.Parameter(torch.from_numpy(models.astype(np.float32)))
        optimiser = torch.optim.AdamW([*self._model.parameters(), vectors], lr=rate)
        self._model.train()
        try:
            for batch in batches:
                optimiser.zero_grad()
                numbers: list[int] = batch.tolist()
                found = loss(batch, self._cls([texts[n] for n in numbers]), vectors)
                found.backward()
                optimiser.step()
        finally:
            self._model.eval()
        return vectors.detach().numpy().astype(np.float64)

    def _cls(self, texts: Sequence[str]) -> Any:
        given = self._tokenizer(list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        return self._model(**given).last_hidden_state[:, 0]


def router_dc(z: Any, above: NDArray[np.bool_], below: NDArray[np.bool_], near: Any, far: Any, weight: float) -> Any:
    """The mean of RouterDC's loss over a batch, to be differentiated: see `heads.losses`. `near` (n,) and `far` (n, H)
    are empty where the batch is of one cluster."""
    torch: Any = import_module("torch")
    good, bad = torch.from_numpy(above), torch.from_numpy(below)
    e = z.exp()
    against = (e * bad).sum(dim=1, keepdim=True)
    loss = -(((e / (e + against)).log()) * good).sum(dim=1).mean()
    if len(near):
        loss = loss + weight * ((near.exp() + far.exp().sum(dim=1)).log() - near).mean()
    return loss
