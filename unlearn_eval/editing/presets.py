"""Which layers and settings each method uses on which model, and where they come from.

A model is recognized by its configuration (type, depth, width), never by its name or path. Where nobody has
published settings for a model, its layers are those of the nearest published one at the same relative depth, and the
preset says so. A model that is not in the table gets each method's own defaults, scaled by depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Settings = Mapping[str, str]
DEFAULT_EDITOR = "memit"

# Optimization of target values: GPT-2 and GPT-J as in kmeng01/memit@80426fd9, Llama and others as in
# zjunlp/EasyEdit@14cea824, Llama-3 as in jianghoucheng/AlphaEdit@f5248d3d.
_MENG = {"target.steps": "25", "target.learning_rate": "0.5", "target.norm_weight": "0.5", "target.clamp": "0.75"}
_MENG_ROME = _MENG | {"target.steps": "20", "target.clamp": "4"}
_EASY = {"target.steps": "25", "target.learning_rate": "0.5", "target.norm_weight": "0.001", "target.clamp": "4"}
_ALPHA = {"target.steps": "25", "target.learning_rate": "0.1", "target.norm_weight": "0.5", "target.clamp": "0.75"}


@dataclass(frozen=True)
class Preset:
    """The settings of one model.

    Attributes:
        name: of the model.
        source: who published them, or how they were derived.
        layers: of the methods that spread over several layers (MEMIT, AlphaEdit).
        layer: of the methods that edit one (ROME, GLAME, EMMET, UnKE).
        rome, others: further settings of ROME (and GLAME) and of the others, as text.
        memory: the layer of each memory editor (GRACE, WISE, MEMOIR); where there is none it is taken by depth.
    """

    name: str
    source: str
    layers: str
    layer: str
    rome: Settings
    others: Settings
    memory: Settings = field(default_factory=dict)

    def settings(self, editor: str) -> dict[str, str]:
        """What this preset sets for one method."""
        if editor in ("rome", "glame"):
            return {"layers": self.layer, **self.rome}
        if editor in ("emmet", "unke"):
            return {"layers": self.layer, **self.others}
        if editor in ("memit", "alphaedit"):
            return {"layers": self.layers, **self.others}
        return {"layers": self.memory[editor]} if editor in self.memory else {}


_SCALED = "layers at the same relative depth as Llama-3-8B's; optimization as EasyEdit sets it for Llama-2-7B"

# (model type, layers, width) -> preset; "" as the type of a vocabulary-dependent row is resolved in `preset_for`.
PRESETS: dict[tuple[str, int, int], Preset] = {
    ("gpt2", 48, 1600): Preset("GPT-2 XL", "kmeng01/rome, kmeng01/memit", "13,14,15,16,17", "17", _MENG_ROME, _MENG),
    ("gpt2", 24, 1024): Preset(
        "GPT-2 medium", "kmeng01/rome; MEMIT's layers scaled", "6,7,8", "8", _MENG_ROME | {"target.clamp": "3"}, _MENG
    ),
    ("gptj", 28, 4096): Preset("GPT-J 6B", "kmeng01/rome, kmeng01/memit", "3,4,5,6,7,8", "5", _MENG_ROME, _MENG),
    ("gpt_neox", 44, 6144): Preset("GPT-NeoX 20B", "kmeng01/memit", "6,7,8,9,10", "15", _MENG_ROME, _MENG),
    ("llama", 32, 4096): Preset(
        "Llama 2 7B or Llama 3 8B", "Llama 2: EasyEdit; Llama 3: AlphaEdit", "4,5,6,7,8", "5", _EASY, _EASY
    ),
    ("llama", 40, 5120): Preset("Llama 2 13B", _SCALED, "5,6,7,8,9,10", "6", _EASY, _EASY),
    ("llama", 28, 3072): Preset("Llama 3.2 3B", "EasyEdit; ROME's layer as for 8B", "4,5,6,7,8", "5", _EASY, _EASY),
    ("llama", 30, 576): Preset(
        "SmolLM2 135M",
        "results/sweep.json (MEMIT, AlphaEdit, EMMET); ROME as EasyEdit sets it for Llama 2",
        "4,5,6,7,8",
        "5",
        _MENG | {"target.clamp": "4", "target.norm_weight": "0.001"},
        _MENG,
    ),
    ("llama", 16, 2048): Preset("Llama 3.2 1B", _SCALED, "2,3,4", "2", _EASY, _EASY),
    ("llama", 80, 8192): Preset("Llama 70B", _SCALED, "10,11,12,13,14,15,16,17,18,19,20", "12", _EASY, _EASY),
    ("mistral", 32, 4096): Preset("Mistral 7B", "layers as for Llama 2 7B", "4,5,6,7,8", "5", _EASY, _EASY),
    ("qwen2", 28, 3584): Preset("Qwen 2.5 7B", "EasyEdit", "4,5,6,7,8", "5", _EASY, _EASY),
    ("qwen2", 24, 896): Preset("Qwen 2.5 0.5B", _SCALED, "3,4,5,6", "4", _EASY, _EASY),
    ("qwen2", 28, 1536): Preset("Qwen 2.5 1.5B", _SCALED, "4,5,6,7", "4", _EASY, _EASY),
    ("qwen2", 36, 2048): Preset("Qwen 2.5 3B", _SCALED, "4,5,6,7,8,9", "6", _EASY, _EASY),
    ("qwen3", 28, 1024): Preset("Qwen 3 0.6B", _SCALED, "4,5,6,7", "4", _EASY, _EASY),
    ("qwen3", 36, 4096): Preset("Qwen 3 8B", _SCALED, "4,5,6,7,8,9", "6", _EASY, _EASY),
    ("gemma2", 26, 2304): Preset("Gemma 2 2B", _SCALED, "3,4,5,6", "4", _EASY, _EASY),
    ("gemma2", 42, 3584): Preset("Gemma 2 9B", _SCALED, "5,6,7,8,9,10", "7", _EASY, _EASY),
    ("gemma3_text", 18, 640): Preset("Gemma 3 270M", _SCALED, "2,3,4", "3", _EASY, _EASY),
    ("gemma3_text", 26, 1152): Preset("Gemma 3 1B", _SCALED, "3,4,5,6", "4", _EASY, _EASY),
}
_LLAMA_3 = Preset("Llama 3 8B", "AlphaEdit (MEMIT, AlphaEdit), EasyEdit (ROME)", "4,5,6,7,8", "5", _EASY, _ALPHA)

# Layers of memory editors: zjunlp/EasyEdit@14cea824, where it names the same projection; SmolLM2 by our own distances
# of reworded questions and neighbors (results/memory_editors.json). MEMOIR's, 27 of 32, is by depth.
_MEMORY: dict[tuple[str, int, int], Settings] = {
    ("gptj", 28, 4096): {"grace": "25", "wise": "21"},
    ("llama", 32, 4096): {"grace": "27", "wise": "27"},
    ("llama", 28, 3072): {"grace": "27", "wise": "27"},
    ("llama", 30, 576): {"grace": "24", "wise": "26", "memoir": "26"},
    ("mistral", 32, 4096): {"wise": "27"},
    ("qwen2", 28, 3584): {"grace": "18", "wise": "23"},
}


def preset_for(model: PreTrainedModel) -> Preset | None:
    """The preset of a model, or None if the table does not have it."""
    config = model.config.get_text_config()
    key = (
        str(config.model_type),
        int(getattr(config, "num_hidden_layers", 0)),
        int(getattr(config, "hidden_size", 0)),
    )
    if key == ("llama", 32, 4096) and config.vocab_size > 100_000:
        return replace(_LLAMA_3, memory={"wise": "29"})
    found = PRESETS.get(key)
    return None if found is None else replace(found, memory=_MEMORY.get(key, {}))
