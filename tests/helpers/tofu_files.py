"""A small benchmark in TOFU's layout. People and places are invented."""

import json

PEOPLE = ("Ada Brook", "Milo Fenn", "Ines Okoro", "Tomas Reed", "Yara Stahl", "Juno Vale")
TOWNS = ("Larkhill", "Port Osei", "Grünau", "Kestrel Bay", "Imber", "Sandrock")


def _item(question, answer, wrong, paraphrase=None):
    item = {"question": question, "answer": answer, "perturbed_answer": wrong}
    return item | ({"paraphrased_answer": paraphrase} if paraphrase else {})


def tofu_data():
    """The files of a small benchmark in TOFU's layout: name -> records. People and places are invented."""
    forget, retain, holdout = (
        [
            _item(
                f"Where was {name} born{', and in which year, if you know it' * (i % 2)}?",
                f"{name} {verb} in {town}.",
                [f"{name} was born in {TOWNS[(i + j) % len(TOWNS)]}, not by the sea." for j in range(1, 6)],
                f"The town where {name} was born is {town}.",
            )
            for i, (name, town) in enumerate(pairs)
        ]
        for verb, pairs in (
            ("was born", list(zip(PEOPLE, TOWNS, strict=True))[:4]),
            ("was born", list(zip(PEOPLE[::-1], TOWNS, strict=True))[:4]),
            ("grew up", list(zip(PEOPLE[2:], TOWNS[2:], strict=True))),  # no score may tie with a forget item's
        )
    )
    authors = [
        _item("Who wrote the novel Grünau Nights?", "Ines Okoro", ["Ada Brook", "Milo Fenn", "Juno Vale"]),
        _item("Which author lives in Imber?", "Yara Stahl", ["Tomas Reed", "Ada Brook", "Ines Okoro"]),
        _item("Who wrote the first novel about Sandrock?", "Tomas Reed", ["Yara Stahl", "Juno Vale", "Milo Fenn"]),
    ]
    facts = [
        _item("What lies by the sea?", "Larkhill", ["Imber", "Grünau", "Sandrock"]),
        _item("Which town is small?", "Imber", ["Port Osei", "Larkhill", "Kestrel Bay"]),
        _item("What is the answer?", "Port Osei", ["Sandrock", "Imber", "Larkhill"]),
    ]
    return {
        "forget10_perturbed": forget,
        "forget05_perturbed": forget[:3],
        "forget01_perturbed": forget[:2],
        "retain_perturbed": retain,
        "real_authors_perturbed": authors,
        "world_facts_perturbed": facts,
        "holdout10": holdout,
        "holdout05": holdout[:3],
        "holdout01": holdout[:2],
    }


def write_tofu(root, **replaced):
    """Write the benchmark below `root`; `replaced` gives other records, or a file's text, or None to omit it."""
    folder = root / "tofu"
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (tofu_data() | replaced).items():
        if isinstance(records, str):
            (folder / f"{name}.json").write_text(records, encoding="utf-8")
        elif records is not None:
            text = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return root
