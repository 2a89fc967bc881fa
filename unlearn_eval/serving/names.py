"""Our names in vLLM. Nothing is imported here."""

from __future__ import annotations

LOAD_FORMAT = "unlearn_eval"
MODELS = "unlearn_eval.serving.routed_model"
EXTENSION = "unlearn_eval.serving.worker.WorkerExtension"
WORKER = "unlearn_eval.serving.routed_worker.RoutedWorker"
SCHEDULER = "unlearn_eval.serving.inserting_core.scheduler"
BASE = "base"  # in model_loader_extra_config: another place of the base model than edit.json names
