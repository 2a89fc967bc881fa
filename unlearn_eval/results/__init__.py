"""Result files: the schema, reading, writing and comparison."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "schema": "Metric Result",
        "files": "read_result read_samples write_result",
        "comparison": "Comparison Comparisons compare",
        "frames": "load_frame",
        "runs": "Run Runs read_runs",
        "sharing": "push_results",
    },
)
