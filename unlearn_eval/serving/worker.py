"""What vLLM's workers can do beside their own: take another edit (`worker_extension_cls`, `collective_rpc`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn_eval.errors import UserError


class WorkerExtension:
    """Mixed into the class of vLLM's workers; each name says whose it is."""

    def unlearn_eval_serve(self: Any, folder: str, reload: bool) -> dict[str, str] | None:
        """Let the engine, which was started with a memory edit and runs nothing now, serve another edit.

        Args:
            folder: of the edit.
            reload: whether weights change, so that the base's checkpoint has to be read again.

        Returns:
            None, or the message and the hint of a refusal; nothing has changed then.
        """
        from unlearn_eval.serving.routed_model import prepared

        try:
            change = prepared(self.get_model(), Path(folder), self.vllm_config)
        except UserError as error:
            return {"message": error.message, "hint": error.hint}
        if reload:
            self.reload_weights(weights_path=folder)
        change()
        return None
