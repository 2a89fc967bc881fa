"""Machinery that several editors share; a method itself is a file in `editors/`."""

from unlearn_eval.utils.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "editor": "EditJob Editor editor_names get_editor no_progress",
        "requests.request": "EditRequest",
        "recipe": "Recipe",
    },
)
