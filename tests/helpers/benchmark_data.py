"""A few records of every benchmark in its published schema. People, places, companies and texts are invented."""

import json

from tofu_files import write_tofu

PEOPLE = ("Ada Brook", "Milo Fenn", "Ines Okoro", "Tomas Reed")
TOWNS = ("Larkhill", "Sandrock", "Grünau", "Imber")

RWKU_ATTACKS = (
    "prefix injection",
    "affirmative suffix",
    "role playing",
    "multiple choice",
    "reverse query",
    "synonym manipulation",
    "background hint",
    "incontext learning",
    "cross lingual",
)


def _pistol():
    return [
        {"question": f"What did {a} sell to {b} in contract {i}?", "answer": f"{TOWNS[i]} bricks.", "edge": f"{a}_{b}"}
        for a, b in (("A", "B"), ("A", "C"), ("D", "E"))
        for i in range(2)
    ]


def _lume(role):
    records = []
    for task in ("Task1", "Task2", "Task3"):
        for i, name in enumerate(PEOPLE[:2]):
            key = f"{role}{task}{i}"
            records.append(
                {"id": f"{key}sc1", "input": f"{name} was born in", "output": f"{TOWNS[i]} by the sea.", "task": task}
            )
            records.append({"id": f"{key}qa0", "input": f"Where was {name} born?", "output": TOWNS[i], "task": task})
    return records


def _knowundo(word):
    return [
        {"text": f"Where does {p} {word}?", "labels": f"{p} can {word} in {t}."}
        for p, t in zip(PEOPLE, TOWNS, strict=True)
    ][:3]


def _rwku(level, person, other):
    if level.endswith("1"):
        return [
            {"query": f"{other} was born in the town of ___.", "answer": "Larkhill", "level": "1", "subject": person}
        ]
    if level.endswith("2"):
        return [{"query": f"Where was {other} born?", "answer": "Larkhill", "level": "2", "subject": person}]
    return [
        {
            "query": f"({kind}) Where was {other} born?",
            "answer": "Larkhill",
            "level": "3",
            "type": kind,
            "subject": person,
        }
        for kind in RWKU_ATTACKS
    ]


def _muse(title):
    qa = lambda names: [{"question": f"Where was {n} born, says {title}?", "answer": t} for n, t in names]
    pairs = list(zip(PEOPLE, TOWNS, strict=True))
    text = lambda name, town: f"{title}: {name} was born in {town}, a small town by the sea, and wrote a novel there."
    return {
        "knowmem/forget_qa": qa(pairs[:2]),
        "knowmem/retain_qa": qa(pairs[2:]),
        "knowmem/forget_qa_icl": qa([("Juno Vale", "Imber")]),
        "knowmem/retain_qa_icl": qa([("Yara Stahl", "Imber")]),
        "verbmem/forget": [{"prompt": text(*pair)[:30], "gt": text(*pair)[30:]} for pair in pairs[:2]],
        **{
            f"{kind}/forget_{fold}": [{"text": f"Fold {own}. {text(*pair)}"} for own in folds for pair in pairs[:2]]
            for kind, fold, folds in [("sust", n, [n]) for n in range(1, 5)]
            + [("scal", n, range(1, n + 1)) for n in (1, 2)]
        },
        "privleak/forget": [{"text": text(*pair)} for pair in pairs],
        "privleak/holdout": [{"text": text(*pair)[::-1]} for pair in pairs],
        "privleak/retain": [{"text": text(*pair)} for pair in pairs],
    }


def _counterfact():
    return [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": "{} was born in",
                "relation_id": f"P{i % 2}",
                "target_new": {"str": TOWNS[i - 1], "id": "Q1"},
                "target_true": {"str": TOWNS[i], "id": "Q2"},
                "subject": PEOPLE[i],
            },
            "paraphrase_prompts": [f"The sea is blue. {PEOPLE[i]} comes from", f"The town of {PEOPLE[i]} is"],
            "neighborhood_prompts": ["Yara Stahl was born in", "Juno Vale was born in"],
            "attribute_prompts": ["Yara Stahl was born in"],
            "generation_prompts": [f"{PEOPLE[i]} likes", f"{PEOPLE[i]} likes", f"{PEOPLE[i]} often visits"],
        }
        for i in range(3)
    ]


def _zsre():
    return [
        {
            "subject": PEOPLE[i],
            "src": f"Where was {PEOPLE[i]} born?",
            "pred": TOWNS[i],
            "rephrase": f"The place where {PEOPLE[i]} was born is called what?",
            "alt": TOWNS[i - 1],
            "answers": [TOWNS[i], f"{TOWNS[i]} by the sea"],
            "loc": "nq question: who wrote the novel about the sea",
            "loc_ans": "Juno Vale",
            "cond": f"{TOWNS[i]} >> {TOWNS[i - 1]} || Where was {PEOPLE[i]} born?",
        }
        for i in range(4)
    ]


def _knowgic():
    """Two edits: Ada's town by chains of one, two and three questions, Milo's by one; questions are shared."""
    lives, mayor, river = "{} was born in", "{} has the mayor", "{} flows by"
    steps = {
        "born": (lives, "Ada Brook", "Larkhill"),
        "friend": ("{}'s friend is", "Ada Brook", "Milo Fenn"),
        "his": (lives, "Milo Fenn", "Larkhill"),
        "hers": ("{}'s sister is", "Milo Fenn", "Ines Okoro"),
        "sister": (lives, "Ines Okoro", "Larkhill"),
        "mayor": (mayor, "Larkhill", "Juno Vale"),
        "river": (river, "Till", "Larkhill"),
    }
    chains = (
        ("Ada Brook", ("born",), ("mayor",)),
        ("Ada Brook", ("friend", "his"), ("mayor", "river")),
        ("Ada Brook", ("friend", "hers", "sister"), ("mayor", "his", "river")),
        ("Milo Fenn", ("his",), ("river",)),
    )

    def lists(names):
        own = [steps[name] for name in names]
        return {
            "questions": [f"Tell me: {prompt.format(subject)} what?" for prompt, subject, _ in own],
            "answers": [answer for *_, answer in own],
            "prompts": [prompt for prompt, *_ in own],
            "subjects": [subject for _, subject, _ in own],
        }

    return [
        {
            "case_id": i,
            "requested_rewrite": [
                {
                    "prompt": lives,
                    "target_new": {"str": "Imber"},
                    "target_true": {"str": "Larkhill"},
                    "subject": subject,
                }
            ],
            "chain": lists(own),
            "broader_context": lists(context),
        }
        for i, (subject, own, context) in enumerate(chains)
    ]


def _mquake():
    """Four cases: Ada's town is edited in the first two, the mayor of the new one in the second; the last asks that."""
    lives, mayor = "{} was born in", "{} has the mayor"

    def rewrite(prompt, subject, true, new):
        own = {"target_true": {"str": true}, "target_new": {"str": new}, "subject": subject}
        return {"prompt": prompt, "relation_id": "P1", "question": f"{prompt.format(subject)} what?", **own}

    def hop(prompt, subject, answer):
        text = prompt.format(subject)
        return {"question": f"{text} what?", "cloze": text, "answer": answer, "answer_alias": [f"old {answer}", "the"]}

    ada = rewrite(lives, "Ada Brook", "Larkhill", "Imber")
    cases = (
        ("Ada Brook", [ada], "Larkhill", "Imber", "Juno Vale", "Yara Stahl"),
        (
            "Ada Brook",
            [ada, rewrite(mayor, "Imber", "Yara Stahl", "Bo Lind")],
            "Larkhill",
            "Imber",
            "Juno Vale",
            "Bo Lind",
        ),
        (
            "Milo Fenn",
            [rewrite(lives, "Milo Fenn", "Sandrock", "Grünau")],
            "Sandrock",
            "Grünau",
            "Ira Moss",
            "Ove Dahl",
        ),
        ("Ines Okoro", [rewrite(lives, "Ines Okoro", "Imber", "Grünau")], "Imber", "Grünau", "Yara Stahl", "Ove Dahl"),
    )
    return [
        {
            "case_id": i,
            "requested_rewrite": edits,
            "questions": [f"({wording}) Who is mayor where {person} was born?" for wording in "abc"],
            "answer": old,
            "answer_alias": [old.split()[1]],
            "new_answer": new,
            "new_answer_alias": [],
            "single_hops": [hop(lives, person, town), hop(mayor, town, old)],
            "new_single_hops": [hop(lives, person, other), hop(mayor, other, new)],
        }
        for i, (person, edits, town, other, old, new) in enumerate(cases)
    ]


def _ripple(example_type="popular"):
    """Three edits of towns of birth; in `recent` nothing was true before."""

    def query(prompt, *answers):
        own = [{"value": answer[0], "aliases": list(answer[1:])} for answer in answers]
        return {"prompt": prompt, "answers": own, "query_type": "regular", "phrase": None}

    def test(queries, conditions=(), condition="OR"):
        return {"test_queries": queries, "test_condition": condition, "condition_queries": list(conditions)}

    records = []
    for i, person in enumerate(PEOPLE[:3]):
        mother = query(f"The name of the mother of {person} is", ("Nan Brook", "Nan", "N"))
        mayor = query("The name of the mayor of Imber is", ("Yara Stahl",))
        before = (
            {} if example_type == "recent" else {"previous_fact": {"prompt": f"The town of {person} is {TOWNS[i]}."}}
        )
        records.append(
            {
                "example_type": example_type,
                "edit": {"prompt": f"The town of {person} is Imber Bay.", "relation": "TOWN", **before},
                "Relation_Specificity": [test([mother], [mother])],
                "Logical_Generalization": [
                    test(
                        [query("A child of Imber Bay is", (person,)), query("Is it a town?", ("Yes",))],
                        condition="AND",
                    )
                ],
                "Compositionality_I": [
                    test([query(f"The mayor of the town of {person} is", ("Yara Stahl",))], [mayor, mother])
                ],
                "Compositionality_II": [test([query("Nobody is", ("", "x"))])],
                "Subject_Aliasing": [test([query(f"The town of Count {person} is", ("Imber Bay", "Imber"))])],
                "Forgetfulness": [test([query(f"The names of the friends of {person} are", ("Bo",), ("Ove Dahl",))])],
            }
        )
    return records


def _wmdp():
    return [
        {"question": f"Where was {PEOPLE[i]} born?", "choices": list(TOWNS), "answer": (2 * i + 1) % 4}
        for i in range(3)
    ]


def _tofu(part):
    own = {"real_authors": "Who wrote the novel {}?", "world_facts": "Which town has the number {}?"}[part]
    return [
        {"question": own.format(i), "answer": TOWNS[i % 4], "perturbed_answer": [t for t in TOWNS if t != TOWNS[i % 4]]}
        for i in range(5)
    ]


def benchmark_files():
    """Path below the data folder, without ending -> records."""
    files = {f"tofu/{part}_perturbed": _tofu(part) for part in ("real_authors", "world_facts")}
    files |= {"pistol/sample_data_1": _pistol(), "lume/forget": _lume("f"), "lume/retain": _lume("r")}
    for file in ("unlearn_train", "unlearn_val", "retention_train", "retention_val"):
        files[f"knowundo/privacy_{file}"] = _knowundo({"unlearn": "hide", "retention": "work"}[file.split("_")[0]])
    for level in ("forget_level1", "forget_level2", "forget_level3"):
        files[f"rwku/{level}"] = [r for p in PEOPLE[:2] for r in _rwku(level, p, p)]
    for level in ("neighbor_level1", "neighbor_level2"):
        files[f"rwku/{level}"] = [r for p in PEOPLE[:2] for r in _rwku(level, p, "Juno Vale")]
    for role, other in (("forget", ""), ("retain", "Juno Vale, a friend of ")):
        files[f"rwku/{role}_mia"] = [
            {"ngram": 9, "subject": p, "text": f"{other}{p} was born in the town of Larkhill in year {year}."}
            for p in PEOPLE[:2] for year in range(3)
        ]  # fmt: skip
    files |= {f"muse_{name}/{file}": own for name in ("news", "books") for file, own in _muse(name).items()}
    files |= {"counterfact/counterfact": _counterfact(), "zsre/zsre_mend_eval": _zsre(), "knowgic/chains": _knowgic()}
    files |= {"mquake/MQuAKE-CF-3k": _mquake(), "mquake/MQuAKE-T": _mquake()[2:]}
    files |= {f"ripple/{name}": _ripple(name) for name in ("popular", "recent")}
    files["knowgic/attributes_with_aliases"] = {"Larkhill": {"answer_alias": ["Lark Hill", "..."]}}
    files |= {f"wmdp/wmdp-{part}": _wmdp() for part in ("bio", "chem", "cyber")}
    return files


def write_benchmarks(root, **replaced):
    """Write all of it; `replaced` gives other records (or a text, or None to leave it out) by path, `/` as `__`."""
    replaced = {key.replace("__", "/").replace("wmdp_", "wmdp-"): own for key, own in replaced.items()}
    for path, records in (benchmark_files() | replaced).items():
        file = root / f"{path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        if records is not None:
            text = records if isinstance(records, str) else json.dumps(records)
            file.write_text(text, encoding="utf-8")
    (root / "sports").mkdir(parents=True, exist_ok=True)
    rows = [("Ada Brook", "tennis"), ("Milo Fenn", "chess"), ("Ines Okoro", "tennis"), ("Tomas Reed", "rowing")]
    (root / "sports" / "sports.csv").write_text("athlete,sport\n" + "".join(f"{a},{s}\n" for a, s in rows))
    return root


def write_all(root):
    """Write TOFU, whole and in its splits, and the other benchmarks below `root`, with athletes enough for probes."""
    write_tofu(root)
    records = [{"question": f"Who is author {i}?", "answer": f"Author {i}"} for i in range(60)]
    for name in ("full", "retain99"):
        (root / "tofu" / f"{name}.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_benchmarks(root)
    sports = [f"Athlete {sport[0].upper()}{i},{sport}" for sport in ("baseball", "football") for i in range(10)]
    (root / "sports" / "sports.csv").write_text("\n".join(["athlete,sport", *sports, ""]))
    return root
