"""Our names in lm-eval: the folder of our tasks, and our models. Nothing is imported here."""

from __future__ import annotations

import os

TASKS_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tasks")
MODELS = {
    "edited": "unlearn_eval.harness.models:EditedLM",
    "edited-vllm": "unlearn_eval.serving.vllm_models:EditedVLLM",
}
