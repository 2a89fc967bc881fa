"""Pages of results as a browser reads them, and a run that tries to get out of one."""

import base64
import json
import random
import re
import zlib

import report_data
from report_data import TASK, records

from unlearn_eval.results.files import write_result
from unlearn_eval.results.schema import Metric

NASTY = "</script><script>alert(1)</script><!--\u2028\u2029 \" onmouseover=alert(2) ' & <img src=x onerror=alert(3)>"


def parts(page):
    """The summary and the answers of a page, read as a browser reads them."""
    found = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [
        re.search(r'id="([\w-]+)"', attributes) and attributes.split('id="')[1][:-1] for attributes, _ in found
    ] == [
        "summary",
        "answers-data",
        None,
    ]
    return json.loads(found[0][1]), json.loads(zlib.decompress(base64.b64decode(found[1][1])))


def nasty_run(folder):
    """A run in which everything that a model or a stranger may have written tries to get out."""
    texts = [NASTY] * 6
    made = records(6, random.Random(0), texts=texts)
    for i, record in enumerate(made):
        record["doc"] |= {"question": f"{i} {NASTY}", "answer": NASTY}
    metrics = {
        "forget_accuracy": report_data.metric([0.0, 1.0, 1.0], False),
        f"m {NASTY}": Metric(None, n_unscored=1, reason=NASTY),
    }
    folder.mkdir(exist_ok=True)
    nasty_name = "<img src=x onerror=alert(4)>"
    result = report_data.result(nasty_name, metrics, method=NASTY, model_id=NASTY, forget_set=NASTY, notes=[NASTY])
    return write_result(result, folder / f"{nasty_name}.json", {TASK: made})
