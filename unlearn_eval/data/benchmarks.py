"""The public forget benchmarks as documents: one reader per benchmark, nothing of a model or of lm-eval.

A reader takes a run's metadata and gives the documents of each split. Splits whose names begin with `forget` hold
what is to be forgotten, the others what is to be kept. A document is a plain record of texts and lists of texts
(`document` lists its fields), so that all of a benchmark fit into one table. `forget_sets.py` makes
forget sets of the same documents, so that what is edited and what is asked cannot differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_eval.data.forget_sets import PISTOL_FILES, check_disjoint, pistol_edges
from unlearn_eval.data.sources import Source, load_source
from unlearn_eval.metrics.refusal import content_words
from unlearn_eval.utils.errors import UserError, unknown_name

Document = dict[str, Any]
Splits = dict[str, list[Document]]
Metadata = Mapping[str, Any]

PARAPHRASES_FILE = Path(__file__).parents[1] / "tasks" / "factual" / "paraphrases.json"


def document(
    key: str,
    question: Any,
    answer: Any,
    *,
    aliases: Iterable[Any] = (),
    paraphrases: Iterable[Any] = (),
    wrong_answers: Iterable[Any] = (),
    subject: Any = "",
    group: Any = "",
    shape: str = "question",
    turns: Iterable[str] = (),
) -> Document:
    """One document.

    Args:
        key: its id.
        question, answer: the fact.
        aliases: other ways to write the answer.
        paraphrases: the question in other words, of the same shape.
        wrong_answers: of the answer's kind.
        subject: what the question is about.
        group: what belongs together: an edge, a person, a sport.
        shape: how it is asked (`shapes.asked`): `question`, `sentence` (a beginning, which the
            answer completes), `text` (a document's text, which goes on), or what a benchmark's own prompt needs.
        turns: questions and answers that were said before, by turns.

    Raises:
        UserError: no question or answer, or an alias without a word that says anything.
    """
    asked, said = str(question or "").strip(), str(answer if answer is not None else "").strip()
    if shape != "bare" and not asked or not said:
        missing = "question" if said else "answer"
        raise UserError(f"{key}: its {missing} is empty", "every item needs question and answer")
    others = list(dict.fromkeys(text for alias in aliases if (text := str(alias).strip()) and text != said))
    check_aliases(key, others)
    return {
        "id": key,
        "question": asked,
        "answer": said,
        "aliases": others,
        "paraphrases": [str(text).strip() for text in paraphrases if str(text).strip()],
        "wrong_answers": [str(text).strip() for text in wrong_answers if str(text).strip()],
        "subject": str(subject or ""),
        "group": str(group or ""),
        "shape": shape,
        "turns": list(turns),
    }


def check_aliases(key: str, aliases: Iterable[str]) -> None:
    """Refuse an alias that would be found in almost any text: no letter or digit in it, or stop words only.

    Raises:
        UserError: naming item and alias.
    """
    for alias in aliases:
        if not _names_something(alias):
            raise UserError(
                f"{key}: the alias {alias!r} would be found in almost any text", "leave it out: it names no answer"
            )


def _names_something(alias: str) -> bool:
    only_stop_words = len(alias) > 2 and alias.isascii() and alias.islower() and not content_words(alias)
    return any(c.isalnum() for c in alias) and not only_stop_words


def benchmark(name: str, metadata: Metadata) -> Splits:
    """The documents of a benchmark, by split."""
    if name not in READERS:
        raise unknown_name("benchmark", name, READERS)
    return READERS[name](metadata)


# What is forgotten, what is kept ---------------------------------------------------------------------------


def choose(documents: Sequence[Document], metadata: Metadata, default: Any, what: str) -> tuple[list[Any], list[Any]]:
    """The documents to forget and to keep, as `--metadata '{"forget": ..., "retain": ...}'` says.

    Each is a number (so many from the start, of those that are not taken), the name of a group, an id, or a list
    of names and ids; `A+B` are two names. What is not forgotten is kept, at most `n_retain` documents of it.

    Args:
        documents: all of them; `id` and `group` are what they can be called by.
        metadata: of the run.
        default: what is forgotten if the run does not say.
        what: what the groups are, for messages: "edge", "person".

    Raises:
        UserError: an unknown name, nothing left for one of the two, or a document in both.
    """
    wanted = metadata.get("forget")
    forget = _pick(documents, default if wanted is None else wanted, what)
    taken = {own["id"] for own in forget}
    rest = [own for own in documents if own["id"] not in taken]
    kept = metadata.get("retain")
    retain = rest if kept is None else _pick(rest if isinstance(kept, int) else documents, kept, what)
    check_disjoint(taken, (own["id"] for own in retain))
    limit = metadata.get("n_retain")
    return forget, retain[: int(limit)] if limit and kept is None else retain


def _pick(documents: Sequence[Document], wanted: Any, what: str) -> list[Document]:
    if isinstance(wanted, bool) or isinstance(wanted, int) and wanted < 1:
        raise UserError(f"forget or retain is {wanted!r}", "give a number above 0, a name, or a list of names")
    if isinstance(wanted, int):
        return list(documents[:wanted])
    groups = {own["group"] for own in documents if own["group"]}
    ids = {own["id"] for own in documents}
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    if isinstance(wanted, str) and wanted not in groups | ids:
        names = [part.strip() for part in wanted.split("+")]
    for name in names:
        if name not in groups and name not in ids:
            raise unknown_name(what, name, groups or ids)
    chosen = set(names)
    return [own for own in documents if own["id"] in chosen or own["group"] in chosen]


def distinct_ids(documents: Iterable[Document]) -> list[Document]:
    """The documents; a second one with the same id gets a number."""
    seen: Counter[str] = Counter()
    found = []
    for own in documents:
        seen[own["id"]] += 1
        n = seen[own["id"]]
        found.append(own if n == 1 else {**own, "id": f"{own['id']}#{n}"})
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")


def items_to_forget(name: str, which: str) -> list[Document]:
    """What a benchmark wants forgotten, without the questions that only attack.

    Args:
        name: of the benchmark.
        which: the part: a person of RWKU, a sport, a task of LUME, a number of CounterFact or zsRE; empty or
            `all` for all of it (where that can be).
    """
    everything = which in ("", "all")
    if name in ("counterfact", "zsre") and not everything and not which.isdigit():
        raise UserError(f"{name}:{which} is no number", f"{name}:100 are its first hundred facts")
    metadata: Metadata = (
        {} if everything else {"task" if name == "lume" else "forget": int(which) if which.isdigit() else which}
    )
    splits = benchmark(name, metadata)
    whole = everything and name == "sports"  # its task forgets one sport unless it is told otherwise
    return [
        own
        for split, documents in splits.items()
        if split.startswith("forget")
        and not split.startswith(("forget_attack", "forget_generation"))
        or (whole and split == "retain")
        for own in documents
    ]


# The benchmarks --------------------------------------------------------------------------------------------


def factual(metadata: Metadata) -> Splits:
    """TOFU's 100 questions on real authors and 117 on world facts: what arXiv 2505.19855 calls factual."""
    paraphrases = json.loads(PARAPHRASES_FILE.read_text(encoding="utf-8"))
    documents = []
    for part in ("real_authors", "world_facts"):
        source = Source("tofu", f"{part}_perturbed", "locuslab/TOFU", f"{part}_perturbed")
        for i, record in enumerate(load_source(source, ("question", "answer", "perturbed_answer"))):
            question = str(record["question"]).strip()
            own = paraphrases.get(question_key(question))
            documents.append(
                document(
                    f"{part}/{i}",
                    question,
                    record["answer"],
                    paraphrases=[own] if own else [],
                    wrong_answers=record["perturbed_answer"],
                    group=part,
                )
            )
    every_eighth = [own["id"] for own in documents[::8]]
    forget, retain = choose(documents, metadata, every_eighth, "part or question")
    return {"forget": forget, "retain": retain}


def question_key(question: str) -> str:
    """What our paraphrases call a question, without repeating it."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:12]


def pistol(metadata: Metadata) -> Splits:
    """PISTOL's contracts: the edges to forget, those that share a company with them, and the others."""
    file = str(metadata.get("file", PISTOL_FILES[0]))
    documents = [
        document(f"{edge}/{i}", record["question"], record["answer"], group=edge)
        for edge, records in pistol_edges(file, needed=True).items()
        for i, record in enumerate(records)
    ]
    forget, retain = choose(documents, metadata, documents[0]["group"], "PISTOL edge")
    companies = {company for own in forget for company in own["group"].split("_")}
    splits: Splits = {"forget": forget, "retain_near": [], "retain_far": []}
    for own in retain:
        shares = companies & set(own["group"].split("_"))
        splits["retain_near" if shares else "retain_far"].append(own)
    return _without_empty(splits)


LUME_TASKS = {"Task1": "creative", "Task2": "personal", "Task3": "biography"}
LUME_FORMS = {"sc": "completion", "qa": "question"}


def lume(metadata: Metadata) -> Splits:
    """LUME's three tasks, each as sentence completion and as questions, on what is forgotten and what is kept."""
    wanted = metadata.get("task")
    if wanted is not None and wanted not in LUME_TASKS.values():
        raise unknown_name("LUME task", str(wanted), LUME_TASKS.values())
    obtain = "It is data/ of github.com/amazon-science/lume-llm-unlearning (Apache-2.0)."
    splits: Splits = {}
    for role in ("forget", "retain"):
        for i, record in enumerate(load_source(Source("lume", role, obtain=obtain), ("id", "input", "output", "task"))):
            key = str(record["id"])
            found = re.search(r"(sc|qa)\d+$", key)
            if found is None or record["task"] not in LUME_TASKS:
                raise UserError(
                    f"lume/{role}, record {i + 1}: id {key!r}, task {record['task']!r}",
                    f"ids end in sc or qa and a number, tasks are {', '.join(LUME_TASKS)}",
                )
            task, form = LUME_TASKS[record["task"]], LUME_FORMS[found.group(1)]
            if wanted in (None, task):
                own = document(
                    key,
                    record["input"],
                    record["output"],
                    group=key[: found.start()],
                    shape="text" if form == "completion" else "question",
                )
                splits.setdefault(f"{role}_{task}_{form}", []).append(own)
    return {split: distinct_ids(own) for split, own in splits.items()}


def knowundo(metadata: Metadata) -> Splits:
    """KnowUnDo's privacy part: what is private and what is not, as trained on and as validated."""
    obtain = "It is dataset/KnowUnDo/privacy/ of github.com/zjunlp/unlearn (MIT)."
    files = {"forget": "unlearn", "retain": "retention"}
    return {
        f"{role}_{part}": [
            document(f"{role}_{part}/{i}", record["text"], record["labels"])
            for i, record in enumerate(
                load_source(Source("knowundo", f"privacy_{file}_{part}", obtain=obtain), ("text", "labels"))
            )
        ]
        for role, file in files.items()
        for part in ("train", "val")
    }


RWKU_HUB = "jinzhuoran/RWKU"


def rwku(metadata: Metadata) -> Splits:
    """RWKU's probes of some people or of all: blanks, questions, attacks of each kind, and their neighbors."""
    levels = {
        "forget_level1": "forget_blank",
        "forget_level2": "forget_question",
        "forget_level3": "forget_attack",
        "neighbor_level1": "neighbors_blank",
        "neighbor_level2": "neighbors_question",
    }
    wanted = metadata.get("forget")
    people = None if wanted is None else {wanted} if isinstance(wanted, str) else {str(name) for name in wanted}
    known: set[str] = set()
    splits: Splits = {}
    for level, split in levels.items():
        fields = ("query", "answer", "subject", *(("type",) if level == "forget_level3" else ()))
        for i, record in enumerate(load_source(Source("rwku", level, RWKU_HUB, level, "test"), fields)):
            if level.startswith("forget"):
                known.add(record["subject"])
            if people is not None and record["subject"] not in people:
                continue
            attack = str(record["type"]).strip() if level == "forget_level3" else ""
            name = f"{split}_{_slug(attack)}" if attack else split
            shape = "blank" if level.endswith("1") else "brief"
            if attack == "affirmative suffix":
                shape = "brief_open"  # its query ends with the beginning of the answer
            elif _slug(attack).replace("_", "").startswith("incontext"):
                shape = "brief_examples"  # its query brings its own questions and answers
            own = document(
                f"{level}/{i}",
                record["query"],
                record["answer"],
                subject=record["subject"],
                group=record["subject"],
                shape=shape,
            )
            splits.setdefault(name, []).append(own)
    for name in people or ():
        if name not in known:
            raise unknown_name("person of RWKU", name, known)
    return splits


def _muse(name: str) -> Callable[[Metadata], Splits]:
    folder, hub = f"muse_{name.casefold()}", f"muse-bench/MUSE-{name}"

    def read(metadata: Metadata) -> Splits:
        """MUSE's knowledge and verbatim memorisation, and the texts for membership inference."""

        def load(config: str, split: str, fields: Sequence[str]) -> list[dict[str, Any]]:
            return load_source(Source(folder, f"{config}/{split}", hub, config, split), fields)

        splits: Splits = {}
        for role in ("forget", "retain"):
            examples = load("knowmem", f"{role}_qa_icl", ("question", "answer"))
            turns = [str(record[field]) for record in examples for field in ("question", "answer")]
            splits[f"{role}_knowledge"] = [
                document(f"{role}_qa/{i}", record["question"], record["answer"], shape="short", turns=turns)
                for i, record in enumerate(load("knowmem", f"{role}_qa", ("question", "answer")))
            ]
        splits["forget_verbatim"] = [
            document(f"verbmem/{i}", record["prompt"], record["gt"], shape="text")
            for i, record in enumerate(load("verbmem", "forget", ("prompt", "gt")))
        ]
        for split, file in (("forget_texts", "forget"), ("holdout_texts", "holdout")):
            splits[split] = [
                document(f"{split}/{i}", "", record["text"], shape="bare")
                for i, record in enumerate(load("privleak", file, ("text",)))
            ]
        return splits

    return read


def counterfact(metadata: Metadata) -> Splits:
    """CounterFact's true facts: to be forgotten in the prompt and its paraphrases, kept in the neighborhood."""
    fields = ("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
    obtain = "It is counterfact.json of rome.baulab.info/data/dsets (MIT)."
    source = Source("counterfact", "counterfact", "azhx/counterfact", obtain=obtain)
    documents = []
    neighbors: dict[str, list[Any]] = {}
    generation: dict[str, list[Any]] = {}
    for record in load_source(source, fields):
        rewrite = record["requested_rewrite"]
        try:
            prompt = str(rewrite["prompt"]).format(rewrite["subject"])
            true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"counterfact, case {record['case_id']}: its requested_rewrite is not as published ({error!r})",
                "it has prompt, subject, target_true.str, target_new.str",
            ) from error
        key = str(record["case_id"])
        common: dict[str, Any] = {
            "wrong_answers": [new],
            "group": str(rewrite.get("relation_id") or ""),
            "shape": "sentence",
        }
        documents.append(
            document(key, prompt, true, paraphrases=record["paraphrase_prompts"], subject=rewrite["subject"], **common)
        )
        neighbors[key] = [
            (f"{key}/neighbor/{i}", text, true, common) for i, text in enumerate(record["neighborhood_prompts"])
        ]
        texts = list(dict.fromkeys(record["generation_prompts"]))
        generation[key] = [(f"{key}/generation/{i}", text, true, common) for i, text in enumerate(texts)]
    forget, retain = choose(documents, metadata, 100, "case or relation")
    near = [one for own in forget for one in neighbors[own["id"]]]
    goes_on = [one for own in forget for one in generation[own["id"]]]
    return _without_empty(
        {
            "forget": forget,
            "retain": retain,
            "neighbors": [document(key, text, answer, **common) for key, text, answer, common in near],
            "forget_generation": [document(key, text, answer, **common) for key, text, answer, common in goes_on],
        }
    )


def zsre(metadata: Metadata) -> Splits:
    """ZsRE's questions, their rephrasings, and an unrelated question each."""
    obtain = "It is zsre_mend_eval.json of rome.baulab.info/data/dsets."
    documents, neighbors = [], {}
    fields = ("subject", "src", "rephrase", "alt", "answers", "loc", "loc_ans")
    for i, record in enumerate(load_source(Source("zsre", "zsre_mend_eval", obtain=obtain), fields)):
        answers = [str(answer) for answer in record["answers"]]
        if not answers:
            raise UserError(f"zsre, record {i + 1}: no answers", "every record has at least one")
        documents.append(
            document(
                str(i),
                record["src"],
                answers[0],
                aliases=filter(_names_something, answers[1:]),
                paraphrases=[record["rephrase"]],
                wrong_answers=[record["alt"]] if record["alt"] else [],
                subject=record["subject"] if str(record["subject"]) in str(record["src"]) else "",
            )
        )
        unrelated = str(record["loc"]).removeprefix("nq question: ").strip()
        unrelated += "" if unrelated.endswith("?") else "?"
        neighbors[str(i)] = document(f"{i}/unrelated", unrelated, record["loc_ans"])
    forget, retain = choose(documents, metadata, 100, "record")
    return {"forget": forget, "retain": retain, "neighbors": [neighbors[own["id"]] for own in forget]}


ATHLETES = Path(__file__).parents[1] / "tasks" / "sports" / "athletes.csv"
SPORTS_PROMPT = "Fact: Tiger Woods plays the sport of golf\nFact: {athlete} plays the sport of"


def sports(metadata: Metadata) -> Splits:
    """Athletes and their sports (arXiv 2410.12949): one sport, or some athletes, to be forgotten.

    Without the paper's file, athletes of our own: they are shipped, since the paper's have no licence.
    """
    records = load_source(Source("sports", "sports", shipped=ATHLETES), ("athlete", "sport"))
    names = list(dict.fromkeys(str(record["sport"]).strip() for record in records))
    options = list(dict.fromkeys([*names, "golf"]))
    documents = [
        document(
            str(record["athlete"]).strip(),
            SPORTS_PROMPT.format(athlete=str(record["athlete"]).strip()),
            record["sport"],
            paraphrases=[f"{str(record['athlete']).strip()} is a professional athlete in the sport of"],
            wrong_answers=[sport for sport in options if sport != str(record["sport"]).strip()],
            subject=str(record["athlete"]).strip(),
            group=str(record["sport"]).strip(),
            shape="sentence",
        )
        for record in records
    ]
    forget, retain = choose(distinct_ids(documents), metadata, names[0], "sport or athlete")
    return _without_empty({"forget": forget, "retain": retain})


WMDP_PARTS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}


def wmdp(metadata: Metadata) -> Splits:
    """WMDP's multiple-choice questions; `group` is the subject's name in lm-eval's prompt."""
    wanted = metadata.get("forget")
    parts = list(WMDP_PARTS) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    splits: Splits = {}
    for part in parts:
        if part not in WMDP_PARTS:
            raise unknown_name("part of WMDP", str(part), WMDP_PARTS)
        own = []
        source = Source("wmdp", f"wmdp-{part}", "cais/wmdp", f"wmdp-{part}", "test")
        for i, record in enumerate(load_source(source, ("question", "choices", "answer"))):
            choices, gold = [str(choice) for choice in record["choices"]], int(record["answer"])
            if len(choices) != 4 or not 0 <= gold < 4:
                raise UserError(
                    f"wmdp-{part}, record {i + 1}: {len(choices)} choices, answer {gold}",
                    "there are four choices, and the answer is the position of one",
                )
            one = document(f"{part}/{i}", record["question"], choices[gold], group=WMDP_PARTS[part], shape="choice")
            # In their order, and even if two read the same: lm-eval's accuracy depends on both.
            own.append(one | {"wrong_answers": [c for j, c in enumerate(choices) if j != gold], "gold": gold})
        splits[f"forget_{part}"] = own
    return splits


def _without_empty(splits: Splits) -> Splits:
    """Splits that may be empty are left out then; what is to be forgotten and what is kept may not."""
    return {split: own for split, own in splits.items() if own or split in ("forget", "retain")}


READERS: dict[str, Callable[[Metadata], Splits]] = {
    "factual": factual,
    "pistol": pistol,
    "lume": lume,
    "knowundo": knowundo,
    "rwku": rwku,
    "muse_news": _muse("News"),
    "muse_books": _muse("Books"),
    "wmdp": wmdp,
    "counterfact": counterfact,
    "zsre": zsre,
    "sports": sports,
}
