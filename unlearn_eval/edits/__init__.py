"""Edits after they were made: apply, revert, save, load, export, describe."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "base": "Applied Edit EditInfo applied",
        "low_rank": "LowRankEdit",
        "dense": "DenseEdit",
        "memory.edit": "MemoryEdit",
        "load": "check_base describe_base load_edit",
        "folder": "read_description",
        "export": "export_merged",
        "places": "local_folder",
        "sharing": "push_edit",
    },
)
