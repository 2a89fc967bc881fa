"""TOFU (Maini et al. 2024, arXiv 2401.06121) as lm-eval tasks: one task over the four splits, and one for privacy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from unlearn_eval import metrics as m
from unlearn_eval.data.benchmarks.tofu import records_of
from unlearn_eval.harness.alignment import REASONS
from unlearn_eval.harness.answers import alignment_metrics, answer_scores, contrast_scores, refusal_scores
from unlearn_eval.harness.options import ANSWERS, JUDGED, Check, a_text, anything
from unlearn_eval.harness.reference import ABSENT, RetainReference, find_reference
from unlearn_eval.harness.task import Document, Mean, Metric, OverAll, Scores, UnlearningTask, merge_scores
from unlearn_eval.metrics.alignment import Question
from unlearn_eval.metrics.arrays import FloatArray
from unlearn_eval.metrics.privacy import norm_named
from unlearn_eval.utils.errors import UserError, unknown_name

FORGET_SPLITS = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
DEFAULTS = {"forget_split": "forget10"}
UTILITY_SPLITS = ("retain", "real_authors", "world_facts")
UTILITY_PARTS = ("probability", "rouge", "truth_ratio")
# The fields of each split beside question and answer; without a paraphrase the answer itself is the `correct`
# of the truth ratio.
FIELDS = {
    "forget": ("paraphrased_answer", "perturbed_answer"),
    "retain": ("paraphrased_answer", "perturbed_answer"),
    "real_authors": ("perturbed_answer",),
    "world_facts": ("perturbed_answer",),
}
FURTHER = {"gradients": "mia_gradnorm", "reference": "mia_reference"}  # attacks that are asked for -> their scores
NEEDS_TRANSFORMERS = "this attack needs a model of Transformers in this process: use --model hf or edited, not vllm"
# In which a model shows that it is collapsed: losses of the truth ratio's right answer, of the better worded one, and
# of a uniform choice.
LIKELIHOOD = ("correct_nll", "right_nll", "uniform_nll")
RESAMPLES = 1000
_OPTIONS: Mapping[str, Check] = {"forget_split": a_text, "retain_reference": a_text, **ANSWERS}


class TofuTask(UnlearningTask):
    """`unlearn_tofu`, `unlearn_tofu_forget05`, `unlearn_tofu_forget01`."""

    splits = ("forget", *UTILITY_SPLITS)
    defaults = DEFAULTS

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """Which split is forgotten, what it is compared with, and who judges refusals."""
        return {**super().options(metadata), **_OPTIONS, **JUDGED}

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The four perturbed sets of TOFU, in their order."""
        forget = _forget_split(metadata)
        names = {
            "forget": forget,
            "retain": "retain",
            "real_authors": "real_authors",
            "world_facts": "world_facts",
        }
        return {split: documents_of(split, f"{name}_perturbed", FIELDS[split]) for split, name in names.items()}

    def answers(self, document: Document) -> dict[str, tuple[str, ...]]:
        """The true answer, its paraphrase where there is one, and the wrong answers."""
        named = {"answer": document["answer"]}
        if document["paraphrased_answer"]:
            named["paraphrased"] = document["paraphrased_answer"]
        named |= {f"wrong_{i}": text for i, text in enumerate(document["perturbed_answers"])}
        return {name: (document["question"], text) for name, text in named.items()}

    def judged_questions(self, document: Document) -> dict[str, Question]:
        """The question, with the answer, its paraphrase and the wrong answers; TOFU names no subjects."""
        accepted = tuple(text for text in (document["answer"], document["paraphrased_answer"]) if text)
        asked = Question(document["question"], accepted, None, tuple(document["perturbed_answers"]))
        return {"question": asked}

    def good_text(self, document: Document) -> str | None:
        """The true answer of what is to be kept."""
        return str(document["answer"]) if document["split"] == "retain" else None

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """METRICS section 1; the paraphrase is the `correct` of the truth ratio on forget and retain."""
        own = answer_scores(answers["answer"], self.compat)
        paraphrased = answer_scores(answers["paraphrased"], self.compat) if "paraphrased" in answers else None
        wrong = [answer_scores(r, self.compat) for name, r in answers.items() if name.startswith("wrong_")]
        contrast = contrast_scores(paraphrased or own, wrong, self.compat)
        n_vocabulary = answers["answer"].get("n_vocabulary")
        if document["split"] in ("real_authors", "world_facts"):
            own["probability"] = contrast["normalised"]
        scores = {
            **own,
            **contrast,
            "correct_nll": (paraphrased or own)["mean_nll"],
            "right_nll": _least(own["mean_nll"], (paraphrased or own)["mean_nll"]),
            "uniform_nll": n_vocabulary and math.log(n_vocabulary),
            "paraphrase_probability": paraphrased and paraphrased["probability"],
            "rouge": m.rouge(document["answer"], generated["question"], compat=self.compat)["rougeL_recall"],
        }
        said, wrong_answers = generated["question"], document["perturbed_answers"]
        merge_scores(scores, refusal_scores(said, document["question"], document["answer"], wrong_answers))
        merge_scores(scores, self.alignment.scores(document))
        return scores

    def metrics(self) -> dict[str, Metric]:
        """The table of one model."""
        table: dict[str, Metric] = {
            "forget_probability": Mean("forget", "probability", False),
            "forget_paraphrase_probability": Mean("forget", "paraphrase_probability", False),
            "forget_rouge": Mean("forget", "rouge", False),
            "forget_truth_ratio": Mean("forget", "truth_ratio_forget", True),
            "forget_extraction_strength": Mean("forget", "extraction_strength", False),
            "forget_exact_memorization": Mean("forget", "exact_memorization", False),
            "forget_refusal_rate": Mean("forget", "refusal_rate", True),
        }
        reference = find_reference(self.config.metadata or {})
        for name, part, direction in (
            ("forget_quality", "p_value", True),
            ("forget_quality_ks", "statistic", False),
        ):
            function = partial(_forget_quality, reference=reference, part=part, floored=self.compat is not None)
            table[name] = OverAll(("forget",), ("log_truth_ratio",), function, direction, LIKELIHOOD)
        for split in UTILITY_SPLITS:
            for key in UTILITY_PARTS:
                table[f"{split}_{key}"] = Mean(split, key, True)
            table[f"{split}_refusal_rate"] = Mean(split, "refusal_rate", False)
        table["model_utility"] = OverAll(UTILITY_SPLITS, UTILITY_PARTS, _model_utility, True)
        return table | alignment_metrics("forget", UTILITY_SPLITS, words_only=self.alignment.is_off)


class TofuPrivacyTask(UnlearningTask):
    """`unlearn_tofu_privacy`: membership inference, forget (members) against holdout (non-members)."""

    splits = ("forget", "holdout")
    defaults = DEFAULTS
    needs_moments = True
    no_examples = "membership inference reads each answer after its own question alone"

    @classmethod
    def options(cls, metadata: Mapping[str, Any]) -> Mapping[str, Check]:
        """Which split is forgotten, what it is compared with, and which attacks are made beside the others."""
        more = {"gradnorm": anything, "reference_model": a_text}
        return {**super().options(metadata), **_OPTIONS, **more}

    def load_documents(self, metadata: Mapping[str, Any]) -> dict[str, list[Document]]:
        """The forget set and the holdout set of the same size."""
        forget = _forget_split(metadata)
        return {
            "forget": documents_of("forget", f"{forget}_perturbed"),
            "holdout": documents_of("holdout", FORGET_SPLITS[forget]),
        }

    def questions(self, document: Document) -> dict[str, str]:
        """Nothing is generated."""
        return {}

    def answers(self, document: Document) -> dict[str, tuple[str, ...]]:
        """The true answer."""
        return {"answer": (document["question"], document["answer"])}

    def attacked_with(self, document: Document, name: str) -> dict[str, Any]:
        """What the run's metadata ask for: norms of gradients (`gradnorm`), another model (`reference_model`)."""
        return attacks_of(self.config.metadata or {})

    def score(self, document: Document, generated: dict[str, str], answers: dict[str, Scores]) -> Scores:
        """METRICS section 2: higher = less likely a member."""
        scores = membership_scores(answers["answer"])
        wanted = attacks_of(self.config.metadata or {})
        return scores | further_scores(answers["answer"], wanted) if wanted else scores

    def metrics(self) -> dict[str, Metric]:
        """AUCs (0.5 is ideal, so neither end is good), and privleak against the retain-only model."""
        wanted = attacks_of(self.config.metadata or {})
        names = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", *(FURTHER[key] for key in wanted))
        table: dict[str, Metric] = {
            f"{name}_auc": OverAll(self.splits, (name,), partial(auc, key=name), None) for name in names
        }
        reference = find_reference(self.config.metadata or {})
        table["privleak"] = OverAll(self.splits, ("mia_min_k",), partial(privleak_of, reference=reference), None)
        return table


def membership_scores(response: Mapping[str, Any]) -> Scores:
    """The membership scores of one response; min-k++ only where its moments are known."""
    if "token_nll" not in response:
        return {}
    nll, n = response["token_nll"], response["n_answer"]
    logp = [-value for value in nll[:n]]
    scores: Scores = {
        "mia_loss": m.loss_score(nll),
        "mia_zlib": m.zlib_score(nll, response["text"]),
        "mia_min_k": m.min_k_score(logp),
        "mia_min_k_plus_plus": None,
    }
    if "means" in response:
        own = m.min_k_plus_plus_score(logp, response["means"][:n], response["variances"][:n])
        scores["mia_min_k_plus_plus"] = own
    return scores


def attacks_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The attacks that cost more than a forward pass, as `requests.options` takes them, which metadata ask for.

    Raises:
        UserError: `gradnorm` is no order of a norm.
    """
    found: dict[str, Any] = {}
    if metadata.get("gradnorm") is not None:
        found["gradients"] = norm_named(metadata["gradnorm"])
    if metadata.get("reference_model"):
        found["reference"] = str(metadata["reference_model"])
    return found


def further_scores(response: Mapping[str, Any], wanted: Mapping[str, Any]) -> Scores:
    """The scores of these attacks, of one response, with the reasons of those that the model could not give."""
    values = {
        "gradients": response.get("gradient_norm"),
        "reference": m.reference_score(response["token_nll"], response["reference_token_nll"])
        if "reference_token_nll" in response
        else None,
    }
    known = {"gradients": "gradient_norm", "reference": "reference_token_nll"}
    untold = [key for key in wanted if known[key] not in response and "token_nll" in response]
    return {
        **{FURTHER[key]: values[key] for key in wanted},
        REASONS: {FURTHER[key]: NEEDS_TRANSFORMERS for key in untold},
    }


# Sets ------------------------------------------------------------------------------------------------------


def _forget_split(metadata: Mapping[str, Any]) -> str:
    name = str(metadata["forget_split"])
    if name not in FORGET_SPLITS:
        raise unknown_name("forget split", name, FORGET_SPLITS)
    return name


def documents_of(split: str, name: str, fields: tuple[str, ...] = ()) -> list[Document]:
    """The documents of one split, with what `fields` names beside question and answer."""
    records = records_of(name, ("question", "answer", *fields))
    documents = []
    for i, record in enumerate(records):
        wrong = record["perturbed_answer"] if "perturbed_answer" in fields else []
        if not isinstance(wrong, list):
            raise UserError(f"{name}, record {i + 1}: 'perturbed_answer' is not a list", "give a list of wrong answers")
        documents.append(
            {
                "id": f"{split}/{i}",
                "question": record["question"],
                "answer": record["answer"],
                "paraphrased_answer": record["paraphrased_answer"] if "paraphrased_answer" in fields else "",
                "perturbed_answers": list(wrong),
            }
        )
    return documents


# Metrics of the set ----------------------------------------------------------------------------------------

SetMetric = tuple[float | None, float | None, str | None]


def _forget_quality(items: list[Scores], reference: RetainReference | None, part: str, floored: bool) -> SetMetric:
    """Two-sample KS test of ln truth ratio against the retain-only model's, on the items that both have.

    None of a model that is collapsed, unless its ratios are floored (`compat`), where such a model is told apart.
    """
    if reference is None:
        return None, None, ABSENT
    forget = [item for item in items if item["split"] == "forget"]
    own = {item["id"]: item["log_truth_ratio"] for item in forget if item["log_truth_ratio"] is not None}
    shared = [key for key in own if key in reference.log_truth_ratios]
    if not shared:
        return None, None, f"{reference.path} has no truth ratio of any of these forget items"
    if not floored and (reason := _collapsed(forget, items, reference)):
        return None, None, reason
    test = m.forget_quality([own[key] for key in shared], [reference.log_truth_ratios[key] for key in shared])
    return float(getattr(test, part)), None, None


def _collapsed(forget: list[Scores], items: list[Scores], reference: RetainReference) -> str | None:
    """The reason why a model is collapsed, or None."""
    uniform = next((item["uniform_nll"] for item in forget if item["uniform_nll"]), None)
    own, retained = (
        [item["right_nll"] for item in part] for part in (forget, [i for i in items if i["split"] == "retain"])
    )
    return m.collapsed(own, uniform, reference.correct_nlls.values(), retained)


def _least(*losses: float | None) -> float | None:
    """The smallest of the losses that are known."""
    return min((loss for loss in losses if loss is not None), default=None)


def _utility_columns(items: list[Scores]) -> dict[tuple[str, str], FloatArray]:
    """(split, part) -> a number for each item of the split, NaN where there is none."""
    return {
        (split, key): np.array([item[key] for item in items if item["split"] == split], float)  # None becomes NaN
        for split in UTILITY_SPLITS
        for key in UTILITY_PARTS
    }


def _utility_means(columns: Mapping[tuple[str, str], FloatArray]) -> dict[str, float | None]:
    """The nine parts of the utility."""
    return {f"{split}_{key}": m.mean_and_stderr(column).mean for (split, key), column in columns.items()}


def _model_utility(items: list[Scores]) -> SetMetric:
    """Harmonic mean of nine means, its standard error by a bootstrap within splits."""
    columns = _utility_columns(items)
    means = _utility_means(columns)
    empty = [name for name, mean in means.items() if mean is None]
    if empty:
        return None, None, f"{', '.join(empty)} could not be computed"
    value = m.model_utility(means)
    generator = np.random.default_rng(0)
    draws = [_resampled_utility(columns, generator) for _ in range(RESAMPLES)]
    return value, float(np.std([draw for draw in draws if draw is not None], ddof=1)), None


def _resampled_utility(columns: Mapping[tuple[str, str], FloatArray], generator: np.random.Generator) -> float | None:
    """The utility of as many items of each split, drawn with replacement.

    Args:
        columns: (split, part) -> a number for each item of the split, NaN where there is none.
        generator: to draw with.
    """
    parts: dict[str, float | None] = {}
    for split in UTILITY_SPLITS:
        n = len(columns[split, UTILITY_PARTS[0]])
        chosen = generator.integers(n, size=n)
        for key in UTILITY_PARTS:
            parts[f"{split}_{key}"] = m.mean_and_stderr(columns[split, key][chosen]).mean
    return m.model_utility(parts)


def auc(items: list[Scores], key: str, splits: tuple[str, str] = ("forget", "holdout")) -> SetMetric:
    """AUC of a membership score, members against non-members, with a bootstrap standard error."""
    groups = [[i[key] for i in items if i["split"] == split and i[key] is not None] for split in splits]
    if not all(groups):
        why = "; ".join(sorted({i["unscored"] for i in items if "unscored" in i}))
        return (
            None,
            None,
            "an AUC needs scored items of both the forget and the holdout set" + (f": {why}" if why else ""),
        )
    value = m.membership_auc(*groups)
    interval = m.membership_auc_interval(groups[0], groups[1], RESAMPLES)
    return value, interval.stderr, None


def privleak_of(
    items: list[Scores],
    reference: RetainReference | None,
    key: str = "mia_min_k",
    splits: tuple[str, str] = ("forget", "holdout"),
) -> SetMetric:
    """The min-k AUC's relative distance from the retain-only model's, in percent."""
    if reference is None:
        return None, None, ABSENT
    if "mia_min_k_auc" not in reference.aucs:
        return None, None, f"{reference.path} has no mia_min_k_auc (name a result of the task that reports it)"
    value, _, reason = auc(items, key, splits)
    if value is None:
        return None, None, reason
    return m.privleak(value, reference.aucs["mia_min_k_auc"]), None, None
