"""Build hook: an editable install must carry the autoload `.pth` too, and nothing else beside its own."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AutoloadHook(BuildHookInterface):
    """Adds `unlearn_eval_autoload.pth` to editable wheels; regular wheels take it from `force-include`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Restrict what an editable wheel holds to the `.pth` files."""
        if version == "editable":
            build_data["force_include_editable"] = {
                f"{self.root}/unlearn_eval_autoload.pth": "unlearn_eval_autoload.pth"
            }
