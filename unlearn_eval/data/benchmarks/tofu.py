"""TOFU (Maini et al. 2024, arXiv 2401.06121): invented authors, 20 questions each, in splits that nest."""

from __future__ import annotations

import re
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, FinetunePreset, Whole
from unlearn_eval.data.items import ForgetItem, item_from_record
from unlearn_eval.data.sources import load_split
from unlearn_eval.utils.errors import unknown_name

HUB_ID = "locuslab/TOFU"
# How many questions at the end of the whole are left out, and which forget set they are.
_RETAIN = {"full": (0, ""), "retain90": (400, "forget10"), "retain95": (200, "forget05"), "retain99": (40, "forget01")}
_FORGET = {
    "forget01": ("forget01_perturbed",),
    "forget05": ("forget05_perturbed",),
    "forget10": ("forget10_perturbed",),
    "factual": ("real_authors_perturbed", "world_facts_perturbed"),
}
# Published splits -> how many records they have.
SIZES = {
    "full": 4000,
    **{f"{role}{part}": n for role in ("forget", "holdout") for part, n in (("01", 40), ("05", 200), ("10", 400))},
    **{f"forget{part}_perturbed": n for part, n in (("01", 40), ("05", 200), ("10", 400))},
    "retain_perturbed": 400,
    "real_authors_perturbed": 100,
    "world_facts_perturbed": 117,
}


def records_of(split: str, fields: tuple[str, ...] = ("question", "answer")) -> list[dict[str, Any]]:
    """The records of one published split; errors as in `sources.load_split`."""
    return load_split("tofu", split, HUB_ID, fields, size=SIZES.get(split))


def _items(name: str) -> tuple[ForgetItem, ...]:
    """The items of splits that `+` joins; `[:N]` behind one takes its first N, `[M:N]` those after the first M."""
    items: list[ForgetItem] = []
    for part in name.split("+"):
        found = re.fullmatch(r"(\w+)(?:\[(\d*):([1-9]\d*)\])?", part)
        if found is None:
            raise unknown_name("TOFU set", part, [*_FORGET, *_RETAIN])
        items += _of_split(found[1])[int(found[2] or 0) : None if found[3] is None else int(found[3])]
    return tuple(items)


def _of_split(split: str) -> tuple[ForgetItem, ...]:
    if split in _RETAIN:
        return _without_last(_RETAIN[split][0])
    if split not in _FORGET:
        raise unknown_name("TOFU set", split, [*_FORGET, *_RETAIN])
    items: list[ForgetItem] = []
    for part in _FORGET[split]:
        records = records_of(part)
        stem = "forget" if part.startswith("forget") else part.removesuffix("_perturbed")
        # The authors have 20 questions each, one after another; the factual questions have no common subject.
        items += [
            item_from_record({**r, "id": f"{stem}/{i}", "group": f"author {i // 20}" if stem == "forget" else None})
            for i, r in enumerate(records)
        ]
    return tuple(items)


def _without_last(n: int) -> tuple[ForgetItem, ...]:
    """The questions in their order, 20 for each author, without the last `n`: those that are to be forgotten."""
    records = records_of("full")
    kept = records[: len(records) - n]
    return tuple(item_from_record({**r, "id": f"full/{i}", "group": f"author {i // 20}"}) for i, r in enumerate(kept))


_ANY_SPLIT = Whole("tofu:forget10", ("tofu:forget01", "tofu:forget05"), "forget_split")

BENCHMARK = Benchmark(
    name="tofu",
    title="TOFU",
    paper="arXiv 2401.06121",
    source=f"the hub's {HUB_ID}",
    licence="MIT",
    sets=tuple(f"tofu:{split}" for split in (*_FORGET, *_RETAIN)),
    items=_items,
    tasks={
        "unlearn_tofu_forget01": Whole("tofu:forget01"),
        "unlearn_tofu_forget05": Whole("tofu:forget05"),
        "unlearn_tofu": _ANY_SPLIT,
        "unlearn_tofu_privacy_forget01": Whole("tofu:forget01"),
        "unlearn_tofu_privacy_forget05": Whole("tofu:forget05"),
        "unlearn_tofu_privacy": _ANY_SPLIT,
    },
    left_out={f"tofu:{split}": forget for split, (_, forget) in _RETAIN.items() if forget},
    finetuning=(
        FinetunePreset(
            "tofu",
            "TOFU, arXiv 2401.06121; locuslab/tofu@bdc209ea, config/finetune.yaml (batches of 16 on two GPUs); "
            "Llama 2 7B (Phi 1.5: learning rate 2e-5); OpenUnlearning@d3d7cf9e has the same for Llama 3",
            {"epochs": "5", "batch_size": "32", "learning_rate": "1e-5", "weight_decay": "0.01", "warmup_epochs": "1"},
        ),
    ),
)
