"""Run by test_two_processes_train with one or two processes: train, and write down what each process got.

    two_processes.py FOLDER [KILL_AT]

With KILL_AT the last run keeps checkpoints, and the last process ends itself after that step of it.
"""

import os
import sys
from pathlib import Path

import torch
from tiny_models import assert_untouched, tiny_model, weights_of
from training_requests import FAST, FORGET, KEPT, tensors_of

from unlearn_eval.editing.editor import get_editor

RUNS = {  # name -> editor, settings, type of the model
    "everything": ("npo", {}, torch.float64),
    "everything, shared": ("npo", {"shard": True}, torch.float64),
    "clipped": ("npo", {"shard": True, "max_grad_norm": 0.01}, torch.float64),
    "frozen head": ("undial", {"shard": True}, torch.float32),
    "hidden states": ("rmu", {"shard": True, "components": "layers.0.mlp"}, torch.float32),
    "mixed precision": ("npo", {"shard": True, "precision": "bfloat16"}, torch.bfloat16),
    "factors": ("dpo", {"shard": True, "lora_rank": 2, "gradient_checkpointing": True}, torch.float32),
    "factors, distribution": ("kl", {"shard": True, "lora_rank": 2}, torch.float32),
    "ends early": ("gradient_difference", {"shard": True, "stop_probability": "1e-5", "check_steps": 1}, torch.float32),
    "two trainings": ("overwrite", {"shard": True, "ascent_steps": 2, "lora_dropout": 0.0}, torch.float32),
    "goes on": ("npo", {"shard": True, "checkpoint_steps": 1}, torch.float64),
}


def main() -> None:
    """Every run; what process R of N got is FOLDER/N-R.pt."""
    torch.set_num_threads(1)
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    n, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    found = {}
    for name, (editor, settings, dtype) in RUNS.items():
        goes_on = name == "goes on"
        if kill_at and not goes_on:
            continue
        method, model = get_editor(editor), tiny_model("llama", dtype)
        before, parameters = weights_of(model), dict(model.named_parameters())
        own = FAST | settings | ({"folder": str(folder / f"run-{n}")} if goes_on and n > 1 else {})
        config = method.Config(**(own | ({} if n > 1 else {"shard": False})))

        def progress(what: str, done: int, total: int) -> None:
            if kill_at and what == "steps" and done > kill_at and rank == n - 1:
                os._exit(9)

        edit = method.edit(model, None, FORGET, config, retain=KEPT, progress=progress)
        assert_untouched(model, before)
        assert all(own is parameters[key] for key, own in model.named_parameters())
        notes = edit.info.notes["training"]
        found[name] = {"tensors": dict(tensors_of(edit)), "curve": edit.texts["training.jsonl"]}
        found[name] |= {key: notes.get(key) for key in ("processes", "steps", "went_on_from_step")}
    torch.save(found, folder / f"{n}-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
