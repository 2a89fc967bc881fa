"""What an engine of an edit refuses at its door: requests that would switch a memory off, or show what is under it.

vLLM's front end checks each request before it is sent to the engine (`InputProcessor`), whichever route or class it
comes by; a refusal there is answered with 400 and harms no other request. In the engine itself nothing that a request
says may raise: an error within a step ends the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearn_eval.models.prompt_ends import PROMPT_END, is_prompt_end
from unlearn_eval.serving.patching import check_requests

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

OWN = "unlearn_eval"  # in an engine's additional_config
SCORING = "scoring"  # there, given by whoever starts the engine: requests say where their prompts end
MEMORY = "memory"  # there: whether the engine was started with a memory edit
INSERTS = "inserts"  # there: how many tokens that edit adds to a prompt at most
VECTORS = "vectors"  # there: whether vectors stand in their places
TRANSFERS = ("kv_transfer_params", "ec_transfer_params")


@dataclass(frozen=True)
class Rules:
    """What holds of an engine's requests.

    Attributes:
        memory: whether the engine was started with a memory edit; it may have one at any time, then.
        scoring: whether it was started to score answers, by a process that it serves alone.
        inserts: how many tokens the edit adds to a prompt at most; 0 of one that adds none.
    """

    memory: bool
    scoring: bool
    inserts: int = 0


def rules_of(vllm_config: VllmConfig) -> Rules | None:
    """The rules of an engine; None of one that knows of no edit."""
    given = getattr(vllm_config, "additional_config", None)
    own = given.get(OWN) if isinstance(given, Mapping) else None
    return Rules(bool(own.get(MEMORY)), own.get(SCORING) is True, int(own.get(INSERTS, 0))) if own else None


def refusal(sampling: SamplingParams, rules: Rules) -> tuple[str, str] | None:
    """Why an engine does not take a request with these parameters, and the parameter's name; None if it does."""
    given = getattr(sampling, "extra_args", None) or {}
    if PROMPT_END in given and not rules.scoring:
        return (
            f"{PROMPT_END} is for scoring, and this engine was not started for it: leave it out, or start an engine of "
            f"your own with LLM(..., additional_config={{'{OWN}': {{'{SCORING}': True}}}})",
            PROMPT_END,
        )
    if not rules.memory:
        return None
    for name in TRANSFERS:
        if name in given:
            return f"a memory edit decides on what it has seen, and {name} would bring what it has not", name
    if hasattr(sampling, "beam_width"):
        return (
            "in beam search each beam is a prompt of its own, so that a memory edit would decide anew at every token: "
            "leave out use_beam_search",
            "use_beam_search",
        )
    if not rules.scoring:
        for name in ("prompt_logprobs", "prompt_logprob_token_ids"):
            if getattr(sampling, name, None) is not None:
                return (
                    f"{name} would show the unedited model: a memory edit decides at the end of the prompt; leave it "
                    "out (and echo with logprobs)",
                    name,
                )
    return None


def prompt_refusal(request: Any, rules: Rules, longest: int) -> tuple[str, str] | None:
    """The same of a request whose prompt is known, in an engine for sequences of `longest` tokens."""
    if rules.memory and getattr(request, "prompt_embeds", None) is not None:
        return "a memory edit decides on tokens, not on embeddings: give the prompt as text or tokens", "prompt_embeds"
    if rules.inserts and (refused := _cannot_be_read(request, rules.inserts, longest)):
        return refused
    given = getattr(request.sampling_params, "extra_args", None) or {}
    n = len(request.prompt_token_ids or ())
    if PROMPT_END in given and not is_prompt_end(given[PROMPT_END], n):
        return (
            f"{PROMPT_END} is {given[PROMPT_END]!r}, of a request of {n} tokens: give a number from 1 to {n}",
            PROMPT_END,
        )
    return None


def _cannot_be_read(request: Any, inserts: int, longest: int) -> tuple[str, str] | None:
    """Why notes or prefixes cannot be put into a request's prompt."""
    if request.mm_features:
        return "a memory edit of notes or prefixes reads prompts of text alone: leave out images and sounds", "messages"
    if request.resumable:
        return "a memory edit of notes or prefixes needs the whole prompt at once: leave out streamed input", "prompt"
    n = len(request.prompt_token_ids or ())
    if n + inserts >= longest:
        return (
            f"the prompt has {n} tokens, and this model takes at most {longest - inserts - 1}: of its maximum context "
            f"length, {inserts} are kept for what a memory edit adds",
            "prompt",
        )
    return None


def install() -> None:
    """Let vLLM's front ends of this process refuse what the engines of edits do not take; harmless when repeated.

    Raises:
        UserError: this vLLM checks requests elsewhere, so that nothing may be served.
    """
    check_requests(_checking_requests, _checking_beams)


def _check(found: tuple[str, str] | None) -> None:
    if found is not None:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(found[0], parameter=found[1])


def _checking_requests(process: Any) -> Any:
    def checked(self: Any, request_id: str, prompt: Any, params: Any, *arguments: object, **options: object) -> Any:
        rules = rules_of(self.vllm_config)
        if rules is None:
            return process(self, request_id, prompt, params, *arguments, **options)
        _check(refusal(params, rules))
        request = process(self, request_id, prompt, params, *arguments, **options)
        _check(prompt_refusal(request, rules, self.vllm_config.model_config.max_model_len))
        return request

    return checked


def _checking_beams(watermark: Any) -> Any:
    """The one check of vLLM's that beam search comes by as a whole."""

    def checked(self: Any, params: Any) -> Any:
        rules = rules_of(self.vllm_config)
        if rules is not None:
            _check(refusal(params, rules))
        return watermark(self, params)

    return checked
