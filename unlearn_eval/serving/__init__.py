"""Everything that touches vLLM: an edit's folder is a model to it.

    vllm serve EDIT_DIR        LLM(EDIT_DIR)        lm_eval --model vllm --model_args pretrained=EDIT_DIR

The folder's `config.json` names the architecture `Edited...`, which only our plug-in (`plugin.py`) knows: without it
vLLM refuses the folder, and never serves the unedited model. The base's weights are read from its own checkpoint and
changed while they stream in (`loader.py`, `patches.py`); a memory edit is an operation at one layer (`routed_layer.py`,
`routed_model.py`). A server takes another edit while it runs (`routes.py`, `swapping.py`, `worker.py`).
"""
