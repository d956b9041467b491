"""The figures of the paper beside ours (arXiv 2412.01928 v3, tables 1, 4 and 5, figure 2), and what differs."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Accuracies in %, as printed: mean and deviation over four seeds where the paper gives one. Empty: not given."""

    gsm8k: str = ""
    csqa: str = ""
    math: str = ""
    qwen: str = ""


COLUMNS = Published("GSM8K", "CSQA", "MATH", "GSM8K, Qwen")
"""Llama-3.1-8B-Instruct three times, then Qwen-2.5-1.5B."""

PAPER: dict[str, Published] = {
    "sa@1": Published("84.25±2.28", "74.50±3.35", "49.50±2.06", "61.75±4.72"),
    "sa@3": Published("86.75±2.38", "75.75±5.49", "52.50±2.50", "65.00±3.56"),
    "ma@1": Published("84.75±2.86", "77.50±5.17", "51.75±3.56", "60.50±2.89"),
    "ma@3": Published("87.00±4.00", "79.00±2.55", "53.50±2.87", "62.25±2.22"),
    "star_sa@1": Published("81.75±0.83", "76.25±4.32", "52.25±1.48", "63.50±1.73"),
    "star_sa@3": Published("84.75±2.68", "78.75±4.26", "54.00±2.73", "64.25±2.06"),
    "star_ma@1": Published("80.00±1.58", "75.50±2.69", "52.50±3.20", "62.50±4.20"),
    "star_ma@3": Published("86.75±2.28", "76.00±1.73", "53.75±2.68", "64.25±2.87"),
    "malt@1": Published("83.50±2.18", "77.50±1.12", "52.25±1.79", "71.00±3.56"),
    "malt@3": Published("90.50±2.06", "81.50±2.29", "57.25±1.48", "74.50±2.65"),
    "g_untrained@3": Published("87.00", "78.75", "54.25"),
    "v_untrained@3": Published("85.75", "76.75", "54.50"),
    "r_untrained@3": Published("86.25", "75.50", "55.25"),
    "g@3": Published("84.75", "78.75", "54.00"),
    "g_v@3": Published("88.75", "78.00", "55.75"),
    "g_r@3": Published("84.75", "76.25", "54.75"),
}
"""By system key, for votes of three."""

FLIPS = Published("9.5 / 81.0 / 5.8 / 3.8", "11.2 / 70.2 / 14.2 / 4.2", "14.2 / 43.0 / 36.2 / 6.5")
"""MALT against SA+MV, figure 2: wrong to right, right in both, wrong in both, right to wrong."""

DIFFERS = (
    "The paper's figures are those of Llama-3.1-8B-Instruct and of Qwen-2.5-1.5B on public benchmarks, at temperature "
    "0.3; ours are those of the models and rows named above. They stand side by side to compare shapes, not sizes.",
    "The paper's deviations are over four seeds on random subsets of the test sets; ours are over seeds that answer "
    "the same problems anew, so they tell nothing about other problems. The intervals do.",
    "STaR MA: which roles the paper's STaR model plays is not said. Here it is the generator, and the base plays the "
    "others, unless --star verifier=SPEC and --star refiner=SPEC say otherwise.",
    "G+V: how the paper reads the answer of a team without a refiner is not said. Here it is the one that the critique "
    "gives, and where it gives none the attempt's.",
    "The vote of as many lone agents as a team's vote has calls, the SFT team, and the single passes of tables 4 and 5 "
    "are ours; the paper has none.",
)


def published(key: str, passes: int) -> Published:
    """The paper's figures for a system; of other votes than three it has none."""
    return PAPER.get(key, Published()) if key.endswith("@1") or passes == 3 else Published()
