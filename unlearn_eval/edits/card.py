"""Model cards of edits, written from `edit.json` and from the result of an evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from unlearn_eval.edits.base import DENSE, LOW_RANK, MEMORY, EditInfo
from unlearn_eval.edits.redaction import Names
from unlearn_eval.metrics.catalogue import interval
from unlearn_eval.metrics.edit_checks import unrelated_line
from unlearn_eval.results.schema import Metric, Result
from unlearn_eval.utils.provenance import redact as without_home

_ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)  # names of models, which folders are not
_DOES = {
    LOW_RANK: "It changes a few weights by a low-rank product, in PEFT's LoRA layout.",
    DENSE: "It replaces the weight tensors that training changed.",
    MEMORY: "It leaves the weights unchanged; a memory decides at inference time which prompts it answers.",
}
_FILTER = """## A memory is a filter

The weights of the base model still hold the facts. At inference time the memory decides for each prompt whether to
answer in their place: a prompt that it does not recognize, and anyone who loads the base model alone, gets the facts.
"""


def edit_card(
    description: Mapping[str, Any], repository: str, names: Names, result: Result | None = None, redacted: bool = False
) -> str:
    """The model card of an edit; it names no subject, question, answer or id of what was forgotten.

    Args:
        description: Its `edit.json`.
        repository: ORG/NAME, of which the card says how to load it.
        names: What must not be named.
        result: Evaluation of the edit.
        redacted: Whether the files name none of it either.
    """
    kind, info = description["kind"], EditInfo(**without_home(description["info"]))
    parts = [
        _front_matter(kind, info),
        f"# {repository.rpartition('/')[2]}\n",
        f"An edit of {_base_name(info)} that makes it forget {_facts(info)}, made with unlearn-eval by "
        f"`{info.editor}`. {_DOES.get(kind, '')}\n",
        _table(("", ""), _rows(info, kind, names, redacted)),
        "## Settings\n",
        f"```json\n{json.dumps(names.clean(info.config), indent=2, ensure_ascii=False)}\n```\n",
        "## Self-check\n",
        "\n".join(_check(info)) + "\n",
        "## Evaluation\n",
        _measured(result, names),
        _FILTER if kind == MEMORY else "",
        "## How to load it\n",
        _loading(info, repository, kind),
    ]
    return "\n".join(part for part in parts if part)


# Details ---------------------------------------------------------------------------------------------------


def _front_matter(kind: str, info: EditInfo) -> str:
    base = info.base.id or ""
    tags = ["unlearn-eval", "machine-unlearning", "knowledge-editing", info.editor]
    own: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"} if _ON_HUB.fullmatch(base) else {}
    own |= {"library_name": "unlearn-eval", "tags": tags + (["peft", "lora"] if kind == LOW_RANK else [])}
    return f"---\n{yaml.safe_dump(own, sort_keys=False, allow_unicode=True)}---\n"


def _base_name(info: EditInfo) -> str:
    base = info.base.id
    if not base:
        return "a model that it does not name"
    return f"[{base}](https://huggingface.co/{base})" if _ON_HUB.fullmatch(base) else f"`{base}`"


def _facts(info: EditInfo) -> str:
    n = info.requests.n
    return "facts" if n is None else f"{n} fact{'s' * (n != 1)}"


def _rows(info: EditInfo, kind: str, names: Names, redacted: bool) -> Iterator[tuple[str, str]]:
    requests = info.requests
    sets = dict.fromkeys(str(entry["name"]) for entry in requests.sets or ())
    yield "base model", _base_name(info) + (f" at `{info.base.revision}`" if info.base.revision else "")
    weights = info.base.canonical_hash
    yield "its weights (SHA-256 at bfloat16)", f"`{weights}`" if weights else "unknown"
    yield "architecture", str(info.base.architecture or "unknown")
    yield "method", f"`{info.editor}`"
    yield "kind of edit", kind
    yield "facts", "unknown" if requests.n is None else str(requests.n)
    if sets and not redacted:
        yield "forget set", ", ".join(f"`{names.clean(name)}`" for name in sets)
    if requests.retain_set and not redacted:
        yield "retain set", f"`{names.clean(requests.retain_set)}`"
    if requests.target:
        yield "targets", str(names.clean(requests.target))
    yield "prompts", {None: "unknown", True: "through the chat template", False: "plain"}[requests.chat]
    yield "seed", "unknown" if info.seed is None else str(info.seed)
    if info.seconds is not None:
        yield "time to make it", f"{info.seconds:.0f} s"
    if info.versions:
        yield "made with", ", ".join(f"{name} {version}" for name, version in info.versions.items())
    if redacted:
        yield "redacted", "subjects, questions, answers and ids are left out of all files"


def _check(info: EditInfo) -> Iterator[str]:
    check = info.self_check
    if check is None or not check.n:
        yield "- The edit was not checked when it was made."
        return
    before, after = check.target_probability_before, check.target_probability_after
    yield (
        f"- {check.n_took} of {check.n} targets became the most likely answer; their probability per token "
        f"went from {before:.3f} to {after:.3f}."
    )
    if check.answer_probability_before is not None and check.answer_probability_after is not None:
        yield (
            f"- The probability per token of the answers to forget went from {check.answer_probability_before:.3f} "
            f"to {check.answer_probability_after:.3f}."
        )
    if check.unrelated:
        yield f"- Harm: of {unrelated_line(check.unrelated)}."
    for fault in info.faults:
        yield f"- **Warning**: {fault}."


def _measured(result: Result | None, names: Names) -> str:
    if result is None:
        return "No evaluation is attached: nothing here says what the model still knows, or what else broke.\n"
    rows = [
        (f"`{task}`", f"`{name}`", *_numbers(name, metric))
        for task, metrics in result.metrics.items()
        for name, metric in metrics.items()
        if not names.names(name)
    ]
    return "\n".join(
        [
            f"Measured on {result.created[:10]} (UTC) with seed {result.seed}; 95 % intervals over items.\n",
            _table(("task", "metric", "value", "95 % interval", "n"), rows),
        ]
    )


def _numbers(name: str, metric: Metric) -> tuple[str, str, str]:
    if metric.value is None:
        return "undefined", "–", str(metric.n)
    ends = interval(name, metric)
    return f"{metric.value:.4g}", "–" if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}", str(metric.n)


def _loading(info: EditInfo, repository: str, kind: str) -> str:
    base = info.base.id if _ON_HUB.fullmatch(info.base.id or "") else "BASE"
    lines = [
        "```python",
        "from unlearn_eval import applied, load_edit, load_model",
        "",
        f'base = load_model("{base}")',
        f'with applied(load_edit("hub:{repository}"), base.model):',
        "    ...  # the edited model",
        "```",
        "",
        "```sh",
        f"lm_eval --model edited --model_args pretrained={base},edit=hub:{repository} --tasks ...",
        f"unlearn-eval serve hub:{repository}",
        "```",
        "",
        "Another base model than the one above is refused, and so is a file that has changed since the edit was made.",
    ]
    if kind == LOW_RANK:
        lines.append(f'`PeftModel.from_pretrained(model, "{repository}")` loads it too, without these checks.')
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) + "\n"
