# What `__init__.py` loads on first use, for type checkers; a test holds the two lists equal.
from unlearn_eval.attacks.run import attack as attack
from unlearn_eval.data.forget_sets import load_forget_set as load_forget_set
from unlearn_eval.data.items import ForgetItem as ForgetItem
from unlearn_eval.data.items import ForgetSet as ForgetSet
from unlearn_eval.editing.recipe import Recipe as Recipe
from unlearn_eval.edits.base import applied as applied
from unlearn_eval.edits.load import load_edit as load_edit
from unlearn_eval.edits.low_rank import LowRankEdit as LowRankEdit
from unlearn_eval.localization.locate import localize as localize
from unlearn_eval.models.load import load_model as load_model
from unlearn_eval.models.scoring import Query as Query
from unlearn_eval.models.scoring import score_answers as score_answers
from unlearn_eval.results.comparison import compare as compare
from unlearn_eval.results.files import read_result as read_result
from unlearn_eval.results.files import write_result as write_result
from unlearn_eval.results.frames import load_frame as load_frame
from unlearn_eval.results.report.figures import plot_bars as plot_bars
from unlearn_eval.results.report.figures import plot_frontier as plot_frontier
from unlearn_eval.results.report.page import report as report
from unlearn_eval.results.schema import Metric as Metric
from unlearn_eval.results.schema import Result as Result
from unlearn_eval.results.sharing import push_results as push_results
from unlearn_eval.runs.edit import make_edit as make_edit
from unlearn_eval.runs.evaluate import EvalConfig as EvalConfig
from unlearn_eval.runs.evaluate import evaluate as evaluate
from unlearn_eval.runs.evaluate import run_evaluation as run_evaluation
from unlearn_eval.utils.errors import UserError as UserError

__version__: str
__all__: list[str]
