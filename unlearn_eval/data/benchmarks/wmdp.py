"""WMDP (Li et al. 2024, arXiv 2403.03218): multiple-choice questions on hazardous knowledge."""

from __future__ import annotations

from unlearn_eval.data.benchmark import Benchmark
from unlearn_eval.data.documents import Metadata, Splits, document
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.utils.errors import UserError, unknown_name

PARTS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
SIZES = {"bio": 1273, "chem": 408, "cyber": 1987}


def _splits(metadata: Metadata) -> Splits:
    """WMDP's multiple-choice questions; `group` is the subject's name in lm-eval's prompt."""
    wanted = metadata.get("forget")
    parts = list(PARTS) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    splits: Splits = {}
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of WMDP", str(part), PARTS)
        own = []
        source = Source("wmdp", f"wmdp-{part}", "cais/wmdp", f"wmdp-{part}", "test", size=SIZES[part])
        for i, record in enumerate(load_source(source, ("question", "choices", "answer"))):
            choices, gold = [str(choice) for choice in record["choices"]], int(record["answer"])
            if len(choices) != 4 or not 0 <= gold < 4:
                raise UserError(
                    f"wmdp-{part}, record {i + 1}: {len(choices)} choices, answer {gold}",
                    "there are four choices, and the answer is the position of one",
                )
            one = document(f"{part}/{i}", record["question"], choices[gold], group=PARTS[part], shape="choice")
            # In their order, and even if two read the same: lm-eval's accuracy depends on both.
            own.append(one | {"wrong_answers": [c for j, c in enumerate(choices) if j != gold], "gold": gold})
        splits[f"forget_{part}"] = own
    return splits


BENCHMARK = Benchmark(
    name="wmdp",
    title="WMDP",
    paper="arXiv 2403.03218",
    source="the hub's cais/wmdp",
    licence="MIT",
    readers={"wmdp": _splits},
    tasks={"unlearn_wmdp": None},
)
