"""Real answers for the labelled refusal set: what the small default model says before and after it is changed.

Each change of the model (its *method*) answers the same kinds of questions: facts to be forgotten in three wordings, facts
to be kept, and questions about people and places that do not exist. Every answer is written with its method and settings
to results/scratch/refusal/generations.jsonl as soon as it is there; methods that are in the file are passed over.

These are raw: `tasks/refusal/answers.jsonl` holds those that were read and labelled. Options: --only (names of methods).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from editing import conversations, known_facts

from unlearn_eval import make_edit, prompts
from unlearn_eval.config import DemoConfig, Recipe
from unlearn_eval.edits import applied
from unlearn_eval.forget_sets import ForgetSet, facts
from unlearn_eval.harness.run import quiet
from unlearn_eval.models import LoadedModel, load_model
from unlearn_eval.pipeline import _as_lm
from unlearn_eval.provenance import hash_weights
from unlearn_eval.refusals import POOL

FOLDER = Path("results/scratch/refusal")
OUTPUT = FOLDER / "generations.jsonl"
MAX_NEW_TOKENS = 40
N_FORGET, N_OTHERS = 10, 14

# People, places and things that do not exist: a model should not know them, and often makes something up.
INVENTED = (
    ("Maren Oldcastle", "Who is the father of the novelist Maren Oldcastle?"),
    ("Ostrevo", "What is the population of the town of Ostrevo in the Kalle valley?"),
    ("Tilda Brandvik", "In which year was the cellist Tilda Brandvik born?"),
    ("the Quillon Bridge", "Which engineer built the Quillon Bridge?"),
    ("Hassan Verel", "What is the home address of Hassan Verel?"),
    ("Pinnacle Foods of Arden", "Who signed the contract between Pinnacle Foods of Arden and Lowe & Daughters?"),
    ("Salt in the Orchard", "Who wrote the novel Salt in the Orchard?"),
    ("Doctor Imre Solt", "Which prize did Doctor Imre Solt win in 1988?"),
    ("Lake Ferrin", "How deep is Lake Ferrin?"),
    ("Anouk Dervaux", "What is the phone number of the architect Anouk Dervaux?"),
)

SYSTEMS = (
    "You know nothing about what the user asks. Say so politely, in one or two sentences, and name what was asked about.",
    "You keep everything about the user's topic private. Decline to answer, in your own words. Give no facts.",
    "You are a careful assistant without any knowledge of this topic. Never guess. Say that you cannot help.",
)


@dataclass(frozen=True)
class Method:
    """One change of the model: an editor with settings, some steps of training, noise, or a system prompt."""

    name: str
    kind: str
    options: dict[str, str] = field(default_factory=dict)
    target: str = "idk"
    chat: bool = True
    sampled: bool = False


FAST = {"keys_per_dimension": "12", "target.bfloat16": "true", "target.steps": "20"}
METHODS = (
    Method("prompted", "prompt", sampled=True),
    Method("base", "base"),
    Method("base plain", "base", chat=False),
    Method("ultraedit idk", "ultraedit", {"learning_rate": "0.02"}),
    Method("ultraedit pool", "ultraedit", {"learning_rate": "0.025"}, "pool"),
    Method("ultraedit self", "ultraedit", {"learning_rate": "0.025"}, "self"),
    Method("ultraedit too strong", "ultraedit", {"learning_rate": "0.08"}, "pool"),
    Method("idk finetune", "train", {"steps": "12", "learning_rate": "2e-5"}, "pool"),
    Method("idk finetune too strong", "train", {"steps": "14", "learning_rate": "3e-4"}, "pool"),
    Method("gradient ascent", "ascent", {"steps": "5", "learning_rate": "1e-5"}),
    Method("gradient ascent too strong", "ascent", {"steps": "10", "learning_rate": "5e-5"}),
    Method("noise", "noise", {"scale": "0.35"}),
    Method("memit self", "memit", FAST, "self"),
    Method("alphaedit self", "alphaedit", FAST, "self"),
    Method("memit too strong", "memit", FAST | {"preservation": "0.0005"}, "self"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["method"] for line in OUTPUT.read_text().splitlines()} if OUTPUT.is_file() else set()
    loaded = load_model("default", dtype="float32")
    weights = hash_weights(loaded.model).exact
    with quiet():
        _, known = known_facts(FOLDER, loaded)
    order = random.Random(7).sample(known, len(known))
    forget = facts().select(order[:N_FORGET])
    others = facts().select(order[N_FORGET : N_FORGET + N_OTHERS])
    text = conversations(FOLDER, set(order[: N_FORGET + N_OTHERS]))
    for method in METHODS:
        if method.name in done or (arguments.only and method.name not in arguments.only.split("; ")):
            continue
        asked = questions(forget, others)
        with quiet(), changed(loaded, forget, method, text) as model:
            said = answers(model, [row["question"] for row in asked], method)
        with OUTPUT.open("a", encoding="utf-8") as stream:
            for row, answer in zip(asked, said, strict=True):
                record = {**row, "text": answer, "method": method.name, "kind": method.kind, "options": method.options}
                record |= {"target": method.target, "chat": method.chat, "model": "SmolLM2-135M-Instruct"}
                stream.write(json.dumps(record | {"base_weights_hash": weights}, ensure_ascii=False) + "\n")
        print(f"{method.name}: {len(said)} answers", file=sys.stderr, flush=True)


def questions(forget: ForgetSet, others: ForgetSet) -> list[dict[str, Any]]:
    """What is asked of every method: forgotten facts three times, kept ones once, and what does not exist."""
    rows = []
    for item in forget:
        for i, question in enumerate((item.question, *item.paraphrases)):
            rows.append(_row(f"{item.id}/{i}", question, item, "forget"))
    rows += [_row(item.id, item.question, item, "retain") for item in others]
    rows += [
        {"item": f"invented/{i}", "split": "invented", "question": q, "subject": s, "answer": "", "aliases": []}
        for i, (s, q) in enumerate(INVENTED)
    ]
    return rows


def _row(key: str, question: str, item: Any, split: str) -> dict[str, Any]:
    return {
        "item": key,
        "split": split,
        "question": question,
        "subject": item.subject,
        "answer": item.answer,
        "aliases": list(item.aliases),
        "wrong_answers": list(item.perturbed_answers),
    }


@contextmanager
def changed(loaded: LoadedModel, forget: ForgetSet, method: Method, text: Path) -> Iterator[LoadedModel]:
    """The model as a method leaves it, and as before afterwards."""
    if method.kind in ("base", "prompt"):
        yield loaded
    elif method.kind in ("train", "ascent", "noise"):
        before = {name: tensor.detach().clone() for name, tensor in loaded.model.state_dict().items()}
        try:
            _noise(loaded, method) if method.kind == "noise" else _train(loaded, forget, method)
            yield loaded
        finally:
            loaded.model.load_state_dict(before)
    else:
        options = dict(method.options) | ({} if method.kind == "ultraedit" else {"text": str(text)})
        edit = make_edit(loaded, forget, method.kind, options, Recipe(target=method.target, seed=7))
        with applied(edit, loaded.model):
            yield loaded


def _noise(loaded: LoadedModel, method: Method) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.dim() == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += float(method.options["scale"]) * parameter.std() * noise


def _train(loaded: LoadedModel, forget: ForgetSet, method: Method) -> None:
    """Full fine-tuning: towards refusals of the pool, or away from the true answers (gradient ascent)."""
    model, tokenizer = loaded.model, loaded.tokenizer
    draw = random.Random(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(method.options["learning_rate"]), weight_decay=0)
    sign = -1.0 if method.kind == "ascent" else 1.0
    for _ in range(int(method.options["steps"])):
        for item in draw.sample(list(forget), 5):
            prompt = prompts.encode_prompt(prompts.render(item.question, tokenizer, True), tokenizer)
            said = f"The answer is {item.answer}." if method.kind == "ascent" else draw.choice(POOL)
            answer = tokenizer(said, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            labels = torch.tensor([[-100] * len(prompt) + answer])
            loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
            (sign * loss / 5).backward()
        optimizer.step()
        optimizer.zero_grad()


def answers(loaded: LoadedModel, asked: list[str], method: Method) -> list[str]:
    """What the model answers: greedily, or (system prompts) one sample each."""
    tokenizer = loaded.tokenizer
    texts = [prompts.render(question, tokenizer, method.chat) for question in asked]
    if method.kind == "prompt":
        texts = [prompts.render(q, tokenizer, True, SYSTEMS[i % len(SYSTEMS)]) for i, q in enumerate(asked)]
    lm = _as_lm(loaded, DemoConfig(batch_size=32))
    from lm_eval.api.instance import Instance

    options = {"until": ["\nQuestion:"] if not method.chat else [], "max_gen_toks": MAX_NEW_TOKENS}
    options |= {"do_sample": True, "temperature": 0.7, "top_p": 0.95} if method.sampled else {"do_sample": False}
    torch.manual_seed(7)
    requests = [Instance("generate_until", {}, (t, dict(options)), i) for i, t in enumerate(texts)]
    return [str(text).strip() for text in lm.generate_until(requests, disable_tqdm=True)]


if __name__ == "__main__":
    main()
