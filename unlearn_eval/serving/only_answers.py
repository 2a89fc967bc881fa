"""Logits of what is scored, not of the prompt before it, in vLLM's runner that computes them request by request (V1).

An engine that is asked for log-probabilities of a prompt computes logits for every token of it, and for small models
with large vocabularies that is much of the work. A request of ours says where its prompt ends and its answer begins;
what stands before that is left out, as the engine itself leaves out what it read from its cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from unlearn_eval.models.prompt_ends import said_prompt_end
from unlearn_eval.serving.patching import score_answers_only
from unlearn_eval.utils.patching import warn_of_misfit

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner


def install(runner: Runner) -> None:
    """Let a V1 model runner leave out what nobody asks for; V2's is left as it is."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if isinstance(runner, GPUModelRunner):
        warn_of_misfit(score_answers_only, runner, _only_answers)


def _only_answers(own: Any) -> Any:
    def only_answers(self: Any, hidden_states: Any, num_scheduled_tokens: Mapping[str, int]) -> Any:
        if not self.num_prompt_logprobs:  # as in most steps
            return own(hidden_states, num_scheduled_tokens)
        starts, scheduled, moved = self.query_start_loc.np, dict(num_scheduled_tokens), []
        for name in self.num_prompt_logprobs:
            request, n = self.requests[name], scheduled.get(name)
            if n is None or request.prompt_token_ids is None:
                continue
            end = said_prompt_end(request.sampling_params, len(request.prompt_token_ids))
            if end is None:
                continue
            left_out = max(0, min(n, end - 1 - request.num_computed_tokens))
            if left_out:
                if request.in_progress_prompt_logprobs_cpu is None:
                    request.in_progress_prompt_logprobs_cpu = _unknown(request, self.num_prompt_logprobs[name])
                moved.append((request, self.input_batch.req_id_to_index[name], left_out))
                scheduled[name] = n - left_out
        for request, row, left_out in moved:
            request.num_computed_tokens += left_out
            starts[row] += left_out
        try:
            return own(hidden_states, scheduled)
        finally:
            for request, row, left_out in moved:
                request.num_computed_tokens -= left_out
                starts[row] -= left_out

    return only_answers


def _unknown(request: Any, n: int) -> Any:
    """Room for a prompt's log-probabilities, with NaN and rank 0 where none are written."""
    from vllm.v1.outputs import LogprobsTensors

    found = LogprobsTensors.empty_cpu(len(request.prompt_token_ids) - 1, n + 1)
    found.logprob_token_ids[:] = torch.tensor(request.prompt_token_ids[1:])[:, None]
    found.logprobs.fill_(float("nan"))
    found.selected_token_ranks.zero_()
    return found
