"""Removes facts from language models, and measures what was forgotten and what broke.

A forget set and an editor make an edit; an edit on a base model is an lm-eval model; tasks ask it questions; metrics
score the answers; reports read the scores.

The public names below are loaded when they are used: importing the package loads neither torch nor lm_eval nor vllm.
"""

from unlearn_eval.utils import lazy, moved

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "data.items": "ForgetItem ForgetSet",
        "data.forget_sets": "load_forget_set",
        "models.load": "load_model",
        "models.scoring": "Query score_answers",
        "editing.recipe": "Recipe",
        "edits.base": "applied",
        "edits.load": "load_edit",
        "edits.low_rank": "LowRankEdit",
        "runs.edit": "make_edit",
        "runs.evaluate": "EvalConfig evaluate run_evaluation",
        "attacks.run": "attack",
        "localization.locate": "localize",
        "results.comparison": "compare",
        "results.frames": "load_frame",
        "results.report.page": "report",
        "results.report.figures": "plot_bars plot_frontier",
        "results.files": "read_result write_result",
        "results.schema": "Metric Result",
        "results.sharing": "push_results",
        "utils.errors": "UserError",
    },
)

moved.install()
