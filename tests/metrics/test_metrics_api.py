"""The metrics package: light to import, and its public names are its documented ones."""

import json
import subprocess
import sys

import unlearn_eval.metrics as metrics

HEAVY = ("torch", "transformers", "lm_eval", "vllm", "scipy", "sklearn", "rouge_score", "pandas")


def test_import_is_light_and_loads_nothing_heavy():
    # numpy's own start-up is the machine's, not ours, so it is loaded before the clock starts.
    code = (
        "import json, sys, time, numpy\n"
        "start = time.process_time()\n"
        "import unlearn_eval.metrics\n"
        "seconds = time.process_time() - start\n"
        f"print(json.dumps([seconds, sorted(set({HEAVY!r}) & set(sys.modules))]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    assert all(loaded == [] for _, loaded in runs)
    assert min(seconds for seconds, _ in runs) < 0.3


def test_public_names_exist_are_sorted_and_documented():
    functions = [name for name in metrics.__all__ if name[0].islower()]
    assert sorted(metrics.__all__) == sorted(set(metrics.__all__))
    assert functions == sorted(functions)
    for name in functions:
        function = getattr(metrics, name)
        assert callable(function), f"{name} is shadowed by a module"
        assert function.__doc__, name
        assert function.__module__.startswith("unlearn_eval.metrics.")
