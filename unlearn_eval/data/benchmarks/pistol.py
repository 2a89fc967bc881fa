"""PISTOL (Qiu et al. 2024, arXiv 2406.16810): invented companies, and contracts between two of them (edges)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn_eval.data.benchmark import Benchmark, ByIds, FinetunePreset
from unlearn_eval.data.documents import Metadata, Splits, choose, document, without_empty
from unlearn_eval.data.items import ForgetItem, ForgetSet, item_from_record
from unlearn_eval.data.sources import DATA_VARIABLE, Source, is_there, load_source
from unlearn_eval.utils.errors import UserError, unknown_name

SIZES = {"sample_data_1.json": 400, "sample_data_2.json": 1500}
FILES = tuple(SIZES)


def _splits(metadata: Metadata) -> Splits:
    """PISTOL's contracts: the edges to forget, those that share a company with them, and the others."""
    file = str(metadata.get("file", FILES[0]))
    documents = [
        document(f"{edge}/{i}", record["question"], record["answer"], group=edge)
        for edge, records in _edges(file, needed=True).items()
        for i, record in enumerate(records)
    ]
    forget, retain = choose(documents, metadata, documents[0]["group"], "PISTOL edge")
    companies = {company for own in forget for company in own["group"].split("_")}
    splits: Splits = {"forget": forget, "retain_near": [], "retain_far": []}
    for own in retain:
        shares = companies & set(own["group"].split("_"))
        splits["retain_near" if shares else "retain_far"].append(own)
    return without_empty(splits)


def _items(which: str) -> tuple[ForgetItem, ...]:
    edges = list(dict.fromkeys(edge.strip() for edge in which.split("+")))
    known: dict[str, list[Mapping[str, Any]]] = {}
    for file in FILES:
        if set(edges) <= set(known):
            break  # the second file need not be there
        if edges == ["all"] and known:
            break  # of the first sample, as in the paper
        for edge, records in _edges(file, needed=file == FILES[0]).items():
            known.setdefault(edge, records)
    if edges == ["all"]:
        edges = list(known)
    for edge in edges:
        if edge not in known:
            raise unknown_name("PISTOL edge", edge, [*known, "all"])
    return tuple(
        item_from_record({**record, "id": f"pistol/{edge}/{i}", "group": edge})
        for edge in edges
        for i, record in enumerate(known[edge])
    )


def _edges(file: str, needed: bool) -> dict[str, list[Mapping[str, Any]]]:
    """PISTOL's questions by edge, from one of its files; none if the file is not there and not needed."""
    source = Source("pistol", Path(file).stem, size=SIZES.get(file))
    if not is_there(source):
        root = os.environ.get(DATA_VARIABLE)
        if root and not needed:
            return {}
        path = Path(root or "").expanduser() / "pistol" / file
        raise UserError(
            f"no PISTOL data: {path} is not there" if root else f"no PISTOL data: {DATA_VARIABLE} is not set",
            "it has no licence, so it is not shipped: put data/ of github.com/bill-shen-BS/PISTOL into a folder as"
            f" pistol/, and set {DATA_VARIABLE} to that folder",
        )
    edges: dict[str, list[Mapping[str, Any]]] = {}
    for record in load_source(source, ("question", "answer", "edge")):
        edges.setdefault(str(record["edge"]), []).append(record)
    return edges


def _file_of(items: ForgetSet) -> dict[str, str]:
    """Metadata that name the file in which all the items' edges are, if it is not the first."""
    edges = {str(item.group) for item in items}
    for file in FILES:
        if edges <= set(_edges(file, needed=file == FILES[0])):
            return {} if file == FILES[0] else {"file": file}
    raise UserError(f"no file of PISTOL has all the edges {', '.join(sorted(edges))}", "ask the edges of one file")


BENCHMARK = Benchmark(
    name="pistol",
    title="PISTOL",
    paper="arXiv 2406.16810",
    source="data/ of github.com/bill-shen-BS/PISTOL",
    licence="none",
    readers={"pistol": _splits},
    sets=("pistol:all", "pistol:EDGE"),
    items=_items,
    tasks={"unlearn_pistol": ByIds("pistol:", "pistol/", more=_file_of)},
    finetuning=(
        FinetunePreset(
            "pistol",
            "bill-shen-BS/PISTOL@9851fb5e, config/config.yaml (LoRA)",
            {
                "epochs": "20",
                "batch_size": "16",
                "learning_rate": "1e-4",
                "weight_decay": "0",
                "warmup_epochs": "2",
                "lora_rank": "8",
                "lora_alpha": "32",
                "lora_dropout": "0.05",
            },
        ),
        FinetunePreset(
            "pistol-full",
            "bill-shen-BS/PISTOL@9851fb5e, README (all weights; Llama 2 7B; Mistral 7B: learning rate 1e-5)",
            {"epochs": "20", "batch_size": "16", "learning_rate": "2e-5", "weight_decay": "0", "warmup_epochs": "2"},
        ),
    ),
)
