"""Which settings the gradient methods have on which benchmark, and who says so.

A preset goes by the forget set's name, the method and the model's width. What a preset does not set is the method's own
default, which is OpenUnlearning's for TOFU where it has the method. `--set NAME=VALUE` overrides any of it, and
`--no-preset` all.

OpenUnlearning has the same rates for Llama 3.2 1B, Llama 3.1 8B and Llama 2 7B. Nobody has published settings for
narrower models; theirs are those of Llama 3.2 1B with a rate that grows as the width falls, as the step of Adam on a
hidden matrix has to (Tensor Programs V, arXiv 2203.03466), and the preset says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Settings = Mapping[str, str]


@dataclass(frozen=True)
class UnlearningPreset:
    """The settings of one method on one benchmark.

    Attributes:
        name: the benchmark.
        source: who published them, or how they were derived.
        settings: as text, like `--set`.
    """

    name: str
    source: str
    settings: Settings


_OPEN = "OpenUnlearning@d3d7cf9e"
_TRAINING = {"batch_size": "32", "learning_rate": "1e-5", "weight_decay": "0.01", "warmup_epochs": "1"}
_TEN, _FIVE = _TRAINING | {"epochs": "10"}, _TRAINING | {"epochs": "5"}
_TOFU: dict[str, tuple[str, Settings]] = {
    "gradient_ascent": (f"{_OPEN}, configs/experiment/unlearn/tofu", _TEN),
    "gradient_difference": (f"{_OPEN}, configs/trainer/GradDiff", _TEN | {"retain_weight": "1"}),
    "kl": ("TOFU, arXiv 2401.06121; locuslab/tofu@bdc209ea, config/forget.yaml", _FIVE),
    "idk": ("TOFU, arXiv 2401.06121; locuslab/tofu@bdc209ea, config/forget.yaml", _FIVE),
    "dpo": (f"{_OPEN}, configs/trainer/DPO", _TEN | {"beta": "0.1"}),
    "npo": (f"{_OPEN}, configs/trainer/NPO", _TEN | {"beta": "0.1"}),
    "simnpo": (
        f"{_OPEN}, configs/trainer/SimNPO",
        _TEN | {"beta": "4.5", "margin": "0", "forget_weight": "0.125"},
    ),
    "rmu": (
        f"{_OPEN}, configs/trainer/RMU; the coefficient of Adaptive RMU, RebelsNLU-jaist/llm-unlearning@0da98e5c, in "
        "place of its 2",
        _TEN | {"variant": "openunlearning", "adaptive": "true", "steering": "5", "retain_weight": "1"},
    ),
    "undial": (
        f"{_OPEN}, community/methods/UNDIAL (the middle of its grid; its experiment would train at 1e-5)",
        _TEN | {"learning_rate": "1e-4", "strength": "10", "retain_weight": "0"},
    ),
    # The experiment's ten epochs replace the five of the trainers' own files.
    "wga": (f"{_OPEN}, community/methods/WGA", _TEN | {"power": "1", "retain_weight": "1"}),
    # configs/trainer/SatImp has the two weights exchanged; these are those of the authors' README.
    "satimp": (
        f"{_OPEN}, community/methods/SatImp",
        _TEN | {"saturation": "5", "importance": "1", "forget_weight": "1", "retain_weight": "0.1"},
    ),
    "ceu": (f"{_OPEN}, community/methods/CEU", _TEN | {"variant": "paper", "skip": "1"}),
    "altpo": (
        f"{_OPEN}, community/methods/AltPO (the middle of its grid)",
        _TRAINING | {"epochs": "2", "learning_rate": "2e-5", "beta": "0.1", "retain_weight": "2"},
    ),
    "unlikelihood": ("arXiv 2410.12949, its settings for athletes and Gemma-7B", {"batch_size": "64"}),
    "pdu": (
        f"{_OPEN}, community/methods/PDU (4 rows on each of 8 GPUs, 4 steps gathered)",
        _TEN
        | {"batch_size": "128", "retain_weight": "100", "bound": "0.3", "dual_step": "5", "dual_warmup_epochs": "5"},
    ),
}
_PISTOL = {
    "batch_size": "4",
    "epochs": "20",
    "learning_rate": "1e-5",
    "weight_decay": "0.01",
    "lora_rank": "8",
    "lora_alpha": "32",
    "lora_dropout": "0.05",
}
_PISTOL_OWN = {"gradient_ascent", "gradient_difference", "kl", "dpo"}
_ANY_FACTS: dict[str, tuple[str, Settings]] = {  # methods with the same settings on every set
    "ft_m": (
        "EasyEdit@14cea824, hparams/FT, and the stop in its code",
        {"epochs": "25", "learning_rate": "5e-4", "weight_decay": "0", "stop_loss": "0.01"},
    ),
    "overwrite": (
        "FUSED, arXiv 2502.20709 (its LoRA); the rest is ours: it has published nothing for single facts",
        {"batch_size": "4", "epochs": "10", "lora_rank": "16", "lora_alpha": "32", "lora_dropout": "0.1"},
    ),
}
_OF_ONE_SPLIT: dict[tuple[str, str], tuple[str, Settings]] = {  # over those of the benchmark
    ("simnpo", "tofu:forget05"): (
        "OPTML-Group/Unlearn-Simple@f1a355d3, TOFU/README.md",
        {"beta": "2.5", "forget_weight": "0.1375"},
    ),
}
_NARROWEST, _LEAST_WIDTH = 2048, 512  # width of Llama 3.2 1B; below the second the rate grows no further
_OURS_FOR_FACTS = "TOFU's settings with batches of 4: nobody has published any for single facts"


def unlearning_preset(method: str, forget_set: str, model: PreTrainedModel | None = None) -> UnlearningPreset | None:
    """The preset of a method on a forget set, or None if there is none.

    Args:
        method: its name.
        forget_set: the set's name.
        model: what is trained; None is a model for which settings were published.
    """
    found = _published(method, forget_set)
    return found if found is None or model is None else _for_width(found, model)


def _for_width(preset: UnlearningPreset, model: PreTrainedModel) -> UnlearningPreset:
    """A preset for whole weights with the rate of a narrower model than those that it was published for."""
    width = int(getattr(model.config.get_text_config(), "hidden_size", _NARROWEST))
    if preset.name not in ("TOFU", "facts") or width >= _NARROWEST or "learning_rate" not in preset.settings:
        return preset
    rate = float(preset.settings["learning_rate"]) * _NARROWEST / max(width, _LEAST_WIDTH)
    source = f"{preset.source}; the learning rate for a width of {width}, from that for {_NARROWEST} (arXiv 2203.03466)"
    return replace(preset, source=source, settings={**preset.settings, "learning_rate": f"{rate:.2g}"})


def _published(method: str, forget_set: str) -> UnlearningPreset | None:
    benchmark = forget_set.partition(":")[0]
    if method in _ANY_FACTS:
        return UnlearningPreset("single facts", *_ANY_FACTS[method])
    if method not in _TOFU:
        return None
    if benchmark == "tofu" and forget_set != "tofu:factual":
        source, settings = _TOFU[method]
        own_source, own = _OF_ONE_SPLIT.get((method, forget_set), ("", {}))
        return UnlearningPreset("TOFU", f"{source}; {own_source}" if own else source, {**settings, **own})
    if benchmark == "pistol":
        source = "bill-shen-BS/PISTOL@9851fb5e, config/config.yaml"
        if method not in _PISTOL_OWN:
            source += " (training); the objective as on TOFU"
        return UnlearningPreset("PISTOL", source, {**_TOFU[method][1], **_PISTOL})
    if benchmark == "facts" or forget_set == "tofu:factual":
        return UnlearningPreset("facts", _OURS_FOR_FACTS, {**_TOFU[method][1], "batch_size": "4"})
    return None
