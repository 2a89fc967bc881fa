"""Which settings the gradient methods have on which benchmark, and who says so.

A preset goes by the forget set's name and the method. What a preset does not set is the method's own default, which is
OpenUnlearning's for TOFU where it has the method. `--set NAME=VALUE` overrides any of it, `--no-preset` all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    "rmu": (f"{_OPEN}, configs/trainer/RMU (which trains all weights)", _TEN | {"steering": "2"}),
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
    "ceu": (f"{_OPEN}, community/methods/CEU", _TEN | {"skip": "1"}),
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
    "ft_m": ("EasyEdit@14cea824, hparams/FT", {"epochs": "25", "learning_rate": "5e-4", "weight_decay": "0"}),
}
_OURS_FOR_FACTS = "TOFU's settings with batches of 4: nobody has published any for single facts"


def unlearning_preset(method: str, forget_set: str) -> UnlearningPreset | None:
    """The preset of a method on a forget set, or None if there is none."""
    benchmark = forget_set.partition(":")[0]
    if method in _ANY_FACTS:
        return UnlearningPreset("single facts", *_ANY_FACTS[method])
    if method not in _TOFU:
        return None
    if benchmark == "tofu" and forget_set != "tofu:factual":
        return UnlearningPreset("TOFU", *_TOFU[method])
    if benchmark == "pistol":
        source = "bill-shen-BS/PISTOL@9851fb5e, config/config.yaml"
        if method not in _PISTOL_OWN:
            source += " (training); the objective as on TOFU"
        return UnlearningPreset("PISTOL", source, {**_TOFU[method][1], **_PISTOL})
    if benchmark == "facts" or forget_set == "tofu:factual":
        return UnlearningPreset("facts", _OURS_FOR_FACTS, {**_TOFU[method][1], "batch_size": "4"})
    return None
