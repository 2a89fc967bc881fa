"""What a retain-only model says of TOFU's forget set, measured in passing: no task is run, nothing is generated.

The numbers are those of `unlearn_tofu` (ln truth ratio of each item) and `unlearn_tofu_privacy` (AUCs) for the same
model, asked in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unlearn_eval import metrics as m
from unlearn_eval.harness.tofu import FIELDS, FORGET_SPLITS, documents_of, membership_scores
from unlearn_eval.models.prompt_format import PromptFormat
from unlearn_eval.models.scoring import AnswerScore, Query, score_answers
from unlearn_eval.utils.errors import UserError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure(
    model: PreTrainedModel,
    prompt_format: PromptFormat,
    forget_split: str,
    batch_size: int = 16,
    positions: Sequence[int] | None = None,
    progress: Callable[[int], Any] = lambda n: None,
) -> dict[str, Any]:
    """What `retain_reference.json` has: `{"log_truth_ratios": {id: ln TR}, "correct_nlls": {id: loss}, "aucs": {...}}`.

    Beside them the forget split, and how the model was asked.

    Args:
        model: the retain-only model.
        prompt_format: how it is asked, as it will be when others are compared with it.
        forget_split: forget01, forget05 or forget10.
        batch_size: rows per forward pass.
        positions: only these items of the forget set.
        progress: called with the number of rows done since the last call.
    """
    if forget_split not in FORGET_SPLITS:
        raise unknown_name("forget split", forget_split, FORGET_SPLITS)
    forget = documents_of("forget", f"{forget_split}_perturbed", FIELDS["forget"])
    forget = [forget[i] for i in positions] if positions is not None else forget
    texts = [[d["paraphrased_answer"] or d["answer"], *d["perturbed_answers"]] for d in forget]
    asked = [(d["question"], text) for d, own in zip(forget, texts, strict=True) for text in own]
    scores = iter(_scores(model, prompt_format, asked, batch_size, False, progress))
    ratios, losses = {}, {}
    for document, own in zip(forget, texts, strict=True):
        correct, *wrong = [next(scores).token_nll for _ in own]
        ratio = m.log_truth_ratio(correct, wrong)
        if ratio is not None:
            ratios[document["id"]] = ratio
            losses[document["id"]] = m.loss_score(correct)
    found: dict[str, Any] = {
        "forget_split": forget_split,
        **prompt_format.record,
        "log_truth_ratios": ratios,
        "correct_nlls": losses,
        "aucs": {},
    }
    asked = [(d["question"], d["answer"]) for d in forget]
    known = _scores(model, prompt_format, asked, batch_size, True, progress)
    found["probability"] = m.mean_and_stderr(m.probability(score.token_nll) for score in known).mean
    try:
        holdout = documents_of("holdout", FORGET_SPLITS[forget_split])
    except UserError as error:
        return found | {"aucs_reason": error.message}
    others = [(d["question"], d["answer"]) for d in holdout]
    asked, scored = asked + others, known + _scores(model, prompt_format, others, batch_size, True, progress)
    rows = []
    for (question, answer), score in zip(asked, scored, strict=True):
        text = prompt_format.render_to_answer(question)
        ids = prompt_format.encode(text)
        n_answer = prompt_format.answer_labels(text, ids, answer).n_answer
        rows.append(
            membership_scores(
                {
                    "token_nll": score.token_nll,
                    "n_answer": n_answer,
                    "text": answer,
                    "means": score.means,
                    "variances": score.variances,
                }
            )
        )
    for name in rows[0]:
        groups = [
            [row[name] for row in part if row[name] is not None] for part in (rows[: len(forget)], rows[len(forget) :])
        ]
        if all(groups):
            found["aucs"][f"{name}_auc"] = m.membership_auc(*groups)
    return found


def _scores(
    model: PreTrainedModel,
    prompt_format: PromptFormat,
    asked: Sequence[tuple[str, str]],
    batch_size: int,
    moments: bool,
    progress: Callable[[int], Any],
) -> list[AnswerScore]:
    queries = []
    for question, answer in asked:
        text = prompt_format.render_to_answer(question)
        ids = prompt_format.encode(text)
        queries.append(Query(tuple(ids), prompt_format.answer_labels(text, ids, answer).ids))
    return score_answers(model, queries, batch_size, moments=moments, progress=progress)
