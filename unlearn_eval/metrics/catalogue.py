"""What a metric's name says, in a sentence, and between which numbers it lies.

A name is read from both ends: `forget_paraphrase_rouge` is ROUGE of reworded questions on what was to be forgotten. The
tasks' own pages have the definitions in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unlearn_eval.metrics import summary_interval

UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class Meaning:
    """A sentence on what is measured, and the bounds of one item's score, if it has any."""

    text: str
    bounds: tuple[float, float] | None = UNIT


SPLITS = {
    "forget": "On what was to be forgotten.",
    "retain": "On what was to be kept.",
    "neighbors": "On facts near the forgotten ones, which should stay.",
    "taught": "On what an edit may teach in its place.",
    "real_authors": "On real authors (TOFU), which should stay.",
    "world_facts": "On world facts (TOFU), which should stay.",
    "same_subject": "On other facts about a forgotten subject.",
    "same_relation": "On the forgotten relation of other subjects.",
    "same_domain": "On other relations of the same domain.",
    "victims": "On facts that nobody asked to forget.",
    "random": "On facts drawn at random from those to be kept.",
    "neutral": "On passages of everyday life.",
    "open": "On open requests: advice, notes, explanations.",
}
FORMS = {
    "paraphrase": "Asked in other words.",
    "cloze": "As the end of a sentence.",
    "primed": "After “Sure, here is the answer:”.",
    "legacy": "As PISTOL's and LUNAR's released evaluation computes it.",
    "reversed": "Asked the other way round.",
    "open": "As a free answer.",
    "attacked": "After the attack, at the level that stands for it.",
    "unedited": "By the model before unlearning.",
    "reference": "By a model that never knew.",
    "random_requests": "After as many requests that were drawn at random.",
    "format": "After training on unrelated facts: what the format alone brings back.",
    "random_labels": "By readers trained on shuffled labels: the control.",
    "last": "At the last layer.",
    "as_is": "As the model decodes by itself.",
    "no_thinking": "After an empty trace.",
    "short_thinking": "After a trace of one sentence.",
    "two_hop": "Asked over two facts, of which one is the item.",
    "alias": "Asked by another name of the subject.",
    "reasoning": "Asked for what follows by a further fact.",
    "logical": "Asked for what is implied.",
    "portability": "Asked for what follows from a new answer.",
    "locality": "Asked for what should not change.",
    "before": "By the unedited model.",
    "multi_hop": "Asked over several facts.",
}
_TESTS = "Share of an edit's tests passed, of those whose conditions hold in the unedited model:"
MEANINGS = {
    "accuracy": Meaning("Share of answers in which the true answer, or an alias, stands."),
    "acc": Meaning("Accuracy, as lm-eval computes it."),
    "acc_norm": Meaning("Accuracy with likelihoods per byte, as lm-eval computes it."),
    "texts_mia_loss": Meaning("Mean loss of texts in nats per token.", (0.0, math.inf)),
    "texts_mia_zlib": Meaning("Loss of texts over their length when compressed.", (0.0, math.inf)),
    "probability": Meaning("Probability of the true answer, as the geometric mean over its tokens."),
    "cloze_probability": Meaning("Probability of the true answer at the end of a sentence."),
    "rouge": Meaning("ROUGE-L recall of the generated answer against the true one."),
    "rouge1": Meaning("ROUGE-1 recall of the generated answer against the true one."),
    "extraction_strength": Meaning("Share of the answer's tail that the model continues by itself."),
    "exact_memorization": Meaning("Share of the answer's tokens that are the model's first choice."),
    "mean_reciprocal_rank": Meaning("Mean of 1/rank of the answer's tokens."),
    "top_hit_ratio": Meaning("Share of the answer's tokens with a rank of at most 100."),
    "truth_ratio": Meaning("Wrong answers' probability against the true one's, scaled so that the better end is 1."),
    "refusal_rate": Meaning("Share of answers that decline without giving the answer away; read by words."),
    "over_refusal_rate": Meaning("Share of kept questions that are refused: what unlearning should not do."),
    "refusal_alignment": Meaning(
        "Would a person accept this answer from a model that should not know? 0 if it leaks, is no text or invents "
        "something, else how surely it refuses."
    ),
    "refusal_probability": Meaning("How surely a sentence encoder takes the answer for a refusal."),
    "refusal_headline": Meaning("√(refusal alignment on forget × (1 − refusal probability on retain))."),
    "leak_rate": Meaning("Share of answers that give the true answer away, in whatever form."),
    "gibberish_rate": Meaning("Share of answers that are no text: nothing, noise, fragments, loops."),
    "fabrication_rate": Meaning("Share of answers that state something that may be false."),
    "contextual_rate": Meaning("Share of answers that name what was asked."),
    "answer_similarity": Meaning("Cosine of the answer's embedding to the true answer's.", (-1.0, 1.0)),
    "topic_similarity": Meaning("Cosine of the answer's embedding to the question's.", (-1.0, 1.0)),
    "fluency": Meaning("Entropy of word pairs and triples in bits; a short text has less.", None),
    "forget_quality": Meaning("Do truth ratios differ from a retain-only model's? The test's p-value.", None),
    "forget_quality_ks": Meaning("Kolmogorov-Smirnov statistic behind forget quality."),
    "model_utility": Meaning("Harmonic mean of probability, ROUGE and truth ratio over all that should be kept."),
    "privleak": Meaning("Membership inference against a retain-only model's, in per cent; 0 is best.", None),
    "auc": Meaning("Area under the ROC curve of a membership inference attack; 0.5 is chance."),
    "combined": Meaning("1 − ROUGE-1 on forget + ROUGE-1 on retain, from 0 to 2.", (0.0, 2.0)),
    "task_aggregate": Meaning("The benchmark's own aggregate of its parts."),
    "choice": Meaning("Share of questions whose right option is chosen."),
    "choice_debiased": Meaning("Share chosen rightly by the mean over four orders of the options."),
    "choice_all_orders": Meaning("Share chosen rightly in all four orders of the options; guessing gives 1 of 256."),
    "leak": Meaning("Share of items that leak in this form."),
    "known": Meaning("Share of items that are told in this form: a control."),
    "trace_leak_rate": Meaning("Share of traces, of a model that thinks, that give the true answer away."),
    "unfinished_rate": Meaning("Share of answers that are missing because the trace before them did not end in time."),
    "worst": Meaning("Share of items that leak in at least one form."),
    "upper_bound": Meaning("An exact one-sided 99 % upper bound."),
    "nll": Meaning("Negative log-likelihood in nats per token.", None),
    "kl": Meaning("KL divergence from the unedited model in nats per token.", None),
    "repetition": Meaning("Share of repeated word 4-grams."),
    "words": Meaning("Length of the answers in words.", None),
    "perplexity": Meaning("Perplexity.", None),
    "word_perplexity": Meaning("Perplexity per word.", None),
    "byte_perplexity": Meaning("Perplexity per byte.", None),
    "bits_per_byte": Meaning("Bits per byte.", None),
    "recovery": Meaning(
        "How far it comes back under the attack: 0 is a model that never knew, 1 the one before unlearning.", None
    ),
    "symmetric_relearning": Meaning("How alike the unlearned model and one that never knew learn under the attack."),
    "stability": Meaning("How little the attack changes: 1 − |a − b| / (|a| + |b|), before and after."),
    "durability": Meaning("Share of what was forgotten that stays so under the attack.", (-float("inf"), 1.0)),
    "above_chance": Meaning("Accuracy after the attack where guessing is 0 and knowing everything 1.", None),
    "excess_drop": Meaning("How much more is lost than by as many requests that were drawn at random.", (-1.0, 1.0)),
    "excess_drop_p_value": Meaning("Paired test over victims: is that chance?"),
    "guessing": Meaning("Share of answers that would be right if they were dealt to the questions at random."),
    "curve_area": Meaning("Mean height of the curve of relearning."),
    "half_step": Meaning("The step at which half of what the model before unlearning knew is back.", None),
    "probe_accuracy": Meaning("Share of facts that a linear reader of the states reads, at its best layer."),
    "probe_selectivity": Meaning("Probe accuracy minus that of readers trained on shuffled labels.", (-1.0, 1.0)),
    "uds": Meaning("Depth by patching: 0, every layer still holds the facts; 1, as if they had never been known."),
    "patched_drop": Meaning("Loss of the answer's log-probability with the unlearned model's states, in nats.", None),
    "logit_lens_gap": Meaning("Answer's log-probability read from each layer, full minus unlearned, in nats.", None),
    "logit_lens_depth": Meaning("Depth by the logit lens: 0, every layer still says the facts; 1, none does."),
    "exact_match": Meaning("Share of answers that are exactly the true one."),
    "preference": Meaning("Share of items whose true answer is more probable than every wrong one."),
    "rouge_f1": Meaning("ROUGE-L F1 of the generated text against the true one."),
    "leak_mean": Meaning("Share of items that leak, in the mean over forms."),
    "leak_worst_form": Meaning("Share of items that leak in the form that tells most."),
    "popularity_correlation": Meaning(
        "Spearman's correlation of how well items were known (by their set, or by the unedited model's certainty) "
        "with what leaks of them.",
        (-1.0, 1.0),
    ),
    "known_before": Meaning("Number of questions that the unedited model answers: leaks are counted over these.", None),
    "edit_success": Meaning("Share of answers in which the answer stands that an edit was to teach."),
    "multi_hop_success": Meaning("Share of multi-hop questions whose new answer is told in any of three wordings."),
    "single_hops_success": Meaning("Share of multi-hop questions all of whose hops are answered as after the edit."),
    "logical_generalization": Meaning(f"{_TESTS} what the new answer implies."),
    "compositionality_i": Meaning(f"{_TESTS} what further facts say of the new answer."),
    "compositionality_ii": Meaning(f"{_TESTS} the new answer, asked by what leads to the subject."),
    "subject_aliasing": Meaning(f"{_TESTS} the new answer, by another name of the subject."),
    "relation_specificity": Meaning(f"{_TESTS} other facts on the subject, which should stay."),
    "forgetfulness": Meaning(f"{_TESTS} other answers of the same relation, which should stay."),
    "tests": Meaning("Number of tests that count: those whose conditions hold in the unedited model.", None),
    "known_mean": Meaning("Share of items that are told, in the mean over forms: a control."),
    "known_any": Meaning("Share of items that are told in at least one form: a control."),
    "known_best_form": Meaning("Share of items that are told in the form that tells most: a control."),
    "worst_item_rate": Meaning("Share of samples that leak, of the item that leaks most."),
}
OF_OTHERS = set(
    "recovery symmetric_relearning stability durability above_chance curve_area half_step excess_drop".split()
)
_WAYS = (
    "direct paraphrase cloze choice true_false reversed description primed role_play dialogue few_shot dialogue_4 "
    "dialogue_8 pushback summarize translate compare german french spanish italian"
).split()
_DEDUCED = (
    "two_hop two_hop_first two_hop_second multi_hop alias reasoning logical portability locality instance"
    " category definition"
).split()
_TOLD = {"leak": "Share of items that leak", "known": "Share of items that are told, as a control,"}
UNKNOWN = Meaning("The task's page in tasks/ says what this is.", None)

# What a reader looks at first, where a task has it.
HEADLINE = (
    "forget_accuracy forget_paraphrase_accuracy forget_rouge forget_rouge1 forget_probability forget_refusal_rate "
    "forget_refusal_alignment forget_leak_rate forget_gibberish_rate forget_quality privleak model_utility "
    "retain_accuracy retain_rouge retain_rouge1 retain_refusal_rate neighbors_accuracy combined "
    "forget_attacked_accuracy forget_attacked_probability forget_accuracy_recovery forget_probability_recovery "
    "forget_probe_accuracy forget_probe_selectivity forget_logit_lens_gap forget_logit_lens_depth forget_uds"
).split()
# The metrics that an axis may show. Paraphrases come first: an edit that has learned its prompts by heart no longer
# answers the questions, and still answers paraphrases.
FORGETTING = (
    "forget_paraphrase_accuracy forget_accuracy forget_paraphrase_rouge1 forget_paraphrase_rouge forget_rouge "
    "forget_rouge1 forget_paraphrase_probability forget_probability forget_leak_worst forget_leak_rate"
).split()
KEEPING = "model_utility retain_accuracy retain_rouge retain_rouge1 retain_probability neighbors_accuracy".split()
# The columns of a leaderboard: four of what was to be forgotten, four of what was to stay.
FORGET_COLUMNS = (
    "forget_accuracy forget_paraphrase_accuracy forget_refusal_rate forget_refusal_alignment forget_leak_mean "
    "forget_leak_worst forget_worst_item_rate forget_rouge1 forget_rouge forget_quality privleak forget_truth_ratio "
    "forget_extraction_strength forget_probability forget_attacked_accuracy forget_accuracy_recovery "
    "forget_attacked_probability forget_probability_recovery forget_probe_accuracy forget_probe_selectivity "
    "forget_logit_lens_depth forget_uds forget_leak_rate"
).split()
KEEP_COLUMNS = (
    "model_utility retain_accuracy neighbors_accuracy retain_rouge1 retain_rouge retain_over_refusal_rate "
    "retain_refusal_rate neighbors_over_refusal_rate retain_known_mean retain_probability combined"
).split()
_MOST_COLUMNS = 4

# Plain names: what a metric is of, and what it says, for headings.
_GROUPS = {
    "forget": "Forgotten facts",
    "retain": "Retained facts",
    "neighbors": "Neighboring facts",
    "victims": "Neighboring facts",
    "same_subject": "Neighboring facts",
    "same_relation": "Neighboring facts",
    "same_domain": "Neighboring facts",
    "random": "Retained facts",
    "real_authors": "Real authors",
    "world_facts": "World facts",
    "neutral": "General text",
    "open": "General text",
}
DECLINING, ATTACKED, OVERALL = "How it declines", "Under attack", "Overall"
_PARTS = {
    "retain": "retained",
    "same_subject": "same subject",
    "same_relation": "same relation",
    "same_domain": "same domain",
    "real_authors": "real authors",
    "world_facts": "world facts",
}
_DECLINES = ("refusal", "gibberish", "fabrication", "contextual", "similarity")
_ATTACKS = (
    "attacked",
    "recovery",
    "durability",
    "stability",
    "probe_",
    "_lens_",
    "uds",
    "relearning",
    "unedited",
    "reference",
)
_WORDS = {
    "accuracy": "right answers",
    "probability": "probability of the answer",
    "rouge": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "refusal_rate": "refuses",
    "over_refusal_rate": "refuses needlessly",
    "refusal_alignment": "acceptable refusals",
    "refusal_probability": "probability of a refusal",
    "leak_rate": "gives the answer away",
    "gibberish_rate": "gibberish",
    "fabrication_rate": "invents something",
    "contextual_rate": "names what was asked",
    "quality": "forget quality",
    "known_mean": "known, mean of forms",
    "leak_mean": "leaks, mean of forms",
    "leak_worst": "leaks in some form",
    "worst_item_rate": "leaks of the worst item",
    "known_before": "questions known before",
    "nll": "negative log-likelihood",
    "kl": "KL divergence",
    "privleak": "PrivLeak",
    "uds": "UDS",
}
_FORM_WORDS = {"paraphrase": "paraphrased", "attacked": "attacked", "reversed": "reversed", "cloze": "as a cloze"}


def meaning(metric: str) -> Meaning:
    """What a metric's name says; `UNKNOWN` if nothing of it is known."""
    name = metric.partition(" (")[0]
    split = next((s for s in SPLITS if name.startswith(f"{s}_")), None)
    if name in MEANINGS:
        return MEANINGS[name]
    own = name.removeprefix(f"{split}_") if split else name
    told, _, how = own.partition("_")
    ends = [end for end in MEANINGS if own == end or own.endswith(f"_{end}")]
    if told in _TOLD and how in _DEDUCED:
        words = f"{_TOLD[told]} asked as {how.replace('_', ' ')}, of what the unedited model answers."
        return Meaning(f"{words} {SPLITS.get(split or '', '')}".strip())
    if told in _TOLD and (how in _WAYS or how.startswith("at_")):  # leak_role_play, known_at_8
        way = f"in at least one of {how[3:]} samples" if how.startswith("at_") else f"asked as {how.replace('_', ' ')}"
        return Meaning(f"{_TOLD[told]} {way}. {SPLITS.get(split or '', '')}".strip())
    if not ends:
        return UNKNOWN
    end = max(ends, key=len)
    between = own.removesuffix(end).strip("_")
    form = " ".join(text for key, text in FORMS.items() if f"_{key}_" in f"_{between}_")
    found = MEANINGS[end]
    if end in OF_OTHERS and (of := MEANINGS.get(between)):
        form = f"Of this: {of.text}"
    return Meaning(" ".join(part for part in (found.text, form, SPLITS.get(split or "", "")) if part), found.bounds)


class Summary(Protocol):
    """A metric of a result: its value, the value's standard error, and the items that it rests on."""

    @property
    def value(self) -> float | None:
        """The number, if there is one."""

    @property
    def stderr(self) -> float | None:
        """Its standard error, if it has one."""

    @property
    def n(self) -> int | None:
        """How many items there are, if that is known."""


def interval(name: str, metric: Summary) -> tuple[float, float] | None:
    """The 95 % interval of a metric, or None where there is no value or no standard error."""
    return summary_interval(metric.value, metric.stderr, metric.n, meaning(name).bounds)


def is_ratio(metric: str) -> bool:
    """Whether a metric is computed from several means, as a recovery is, and no mean over items itself."""
    return metric.endswith(tuple(OF_OTHERS))


def headline(names: list[str]) -> list[str]:
    """The metrics of a task to look at first: up to eight, in the task's order where none is known."""
    known = [name for name in HEADLINE if name in names]
    return (known or names)[:8]


def axes(names: list[str]) -> tuple[str | None, str | None]:
    """The metric of forgetting and the metric of keeping that a task is best shown by; None without one."""
    forgets, keeps = candidate_axes(names)
    return next(iter(forgets), None), next(iter(keeps), None)


def candidate_axes(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics of forgetting and those of keeping that a task can be shown by, the preferred ones first."""
    forgets = [n for n in FORGETTING if n in names] + [n for n in names if n.startswith("forget_")]
    keeps = [n for n in KEEPING if n in names] + [n for n in names if n.startswith(("retain_", "neighbors_", "same_"))]
    return list(dict.fromkeys(forgets)), list(dict.fromkeys(keeps))


def leaderboard_columns(names: Sequence[str], shown: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The metrics of a task that a leaderboard shows: of what was to be forgotten, and of the rest.

    Args:
        names: the metrics that there are.
        shown: those that a study shows; those of them that there are, in its order, in place of the best known.
    """
    if wanted := [name for name in shown if name in names]:
        forgets = [name for name in wanted if _is_of_forgetting(name)]
        return forgets, [name for name in wanted if name not in forgets]
    own, rest = [n for n in names if _is_of_forgetting(n)], [n for n in names if not _is_of_forgetting(n)]
    forgets, keeps = ([n for n in known if n in names] for known in (FORGET_COLUMNS, KEEP_COLUMNS))
    return (forgets or own)[:_MOST_COLUMNS], (keeps or rest)[:_MOST_COLUMNS]


def plain(metric: str) -> tuple[str, str, str]:
    """A metric in plain words: the heading that it stands under, what it is of, and what it says.

    `forget_paraphrase_accuracy` is ("Forgotten facts", "", "right answers, paraphrased"), `retain_accuracy`
    ("Retained facts", "retained", "right answers").
    """
    name, _, note = metric.partition(" (")
    split = next((own for own in _GROUPS if name.startswith(f"{own}_")), None)
    own = name.removeprefix(f"{split}_") if split else name
    ends = [end for end in _WORDS if own == end or own.endswith(f"_{end}")]
    end = max(ends, key=len, default=own)
    between = own.removesuffix(end).strip("_")
    forms = [word for form, word in _FORM_WORDS.items() if f"_{form}_" in f"_{between}_"]
    left = "_".join(part for part in between.split("_") if part not in _FORM_WORDS)
    words = ", ".join([" ".join(part for part in (left, _WORDS.get(end, end)) if part).replace("_", " "), *forms])
    group = _GROUPS.get(split or "", OVERALL)
    if any(part in own for part in _ATTACKS):
        group = ATTACKED
    elif split == "forget" and any(part in own for part in _DECLINES):
        group = DECLINING
    of = "" if split in (None, "forget") else _PARTS.get(split, split)
    return group, of, f"{words} ({note}" if note else words


def _is_of_forgetting(name: str) -> bool:
    return name.startswith("forget_") or name == "privleak"
