"""What vLLM's workers can do beside their own (`worker_extension_cls`, `collective_rpc`): another edit, and moments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_eval.utils.errors import UserError
from unlearn_eval.utils.patching import warn_of_misfit

if TYPE_CHECKING:
    from vllm.v1.worker.worker_base import WorkerBase as Worker


class WorkerExtension:
    """Mixed into the class of vLLM's workers; each name says whose it is."""

    def unlearn_eval_serve(self: Worker, folder: str, reload: bool) -> dict[str, str] | None:
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

    def unlearn_eval_without_lora(self: Worker, names: Sequence[str]) -> list[str]:
        """Those of the modules in which there is no room for adapters; one without dots is all modules of that name."""
        from vllm.lora.layers import BaseLayerWithLoRA

        wrapped = {name for name, module in self.get_model().named_modules() if isinstance(module, BaseLayerWithLoRA)}
        return [name for name in names if "." in name and name not in wrapped]

    def unlearn_eval_quicken(self: Worker) -> list[str]:
        """Run adapters quicker, on a CPU (see `cpu_steps.quicken`); elsewhere nothing changes."""
        from vllm.platforms import current_platform

        from unlearn_eval.serving.cpu_steps import quicken

        return (warn_of_misfit(quicken, self.get_model()) or []) if current_platform.is_cpu() else []

    def unlearn_eval_only_answers(self: Worker) -> None:
        """Compute logits of prompts only from where each request says that its prompt ends (see `only_answers`)."""
        from unlearn_eval.serving.only_answers import install

        install(self.model_runner)

    def unlearn_eval_watch(self: Worker, ids: Sequence[int]) -> None:
        """Note the moments of the next request, which has these tokens and runs alone."""
        from unlearn_eval.serving.moments import Watch
        from unlearn_eval.serving.patching import watch_logits

        model, watch = self.get_model(), Watch(ids)
        vars(model)["unlearn_eval_watch"] = watch, watch_logits(model, watch.see)

    def unlearn_eval_moments(
        self: Worker, labels: Sequence[int], logp: Sequence[float]
    ) -> tuple[list[float], list[float]] | None:
        """Means and variances at the labels of the request that was watched (see `Watch.moments`); the watch ends."""
        watch, undo = vars(self.get_model()).pop("unlearn_eval_watch")
        undo()
        found: tuple[list[float], list[float]] | None = watch.moments(labels, logp)
        return found
