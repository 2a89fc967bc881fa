"""Edits in a real engine (vLLM on a CPU): the same tokens and log-probabilities as with Hugging Face, in every mode.

`make test-vllm` runs this in an environment of its own.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
import torch

vllm = pytest.importorskip("vllm")

from serving_models import KINDS, greedy, model_of, prompts_of, write_base, write_edit  # noqa: E402

from unlearn_eval import load_edit  # noqa: E402
from unlearn_eval.edits import applied  # noqa: E402
from unlearn_eval.scoring import Query, score_answers  # noqa: E402

pytestmark = pytest.mark.vllm
ARCHITECTURES = ("llama", "qwen2", "gpt2")
N, NEW = 64, 16
PLAIN = {"max_model_len": 256, "max_num_seqs": 6, "enforce_eager": True, "block_size": 32}
MODES = {
    "chunked": {"max_num_batched_tokens": 48, "enable_chunked_prefill": True},
    "preempted": {"num_gpu_blocks_override": 12, "max_num_batched_tokens": 256},
    "compiled": {"enforce_eager": False, "max_num_batched_tokens": 256},
}


@pytest.fixture(scope="module", autouse=True)
def settings():
    """The engine in this process, with little memory for keys and values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        yield


@contextmanager
def engine(folder, **options):
    """A vLLM engine; everything of it is gone afterwards."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = vllm.LLM(str(folder), dtype="float32", seed=0, **(PLAIN | options))
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def say(llm, prompts, n=NEW):
    sampling = vllm.SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
    asked = [vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    return [list(out.outputs[0].token_ids) for out in llm.generate(asked, sampling, use_tqdm=False)]


def scores(llm, queries):
    """Log-probabilities of each query's labels, the prompt's end said."""
    asked = [vllm.TokensPrompt(prompt_token_ids=[*q.prompt_ids, *q.label_ids]) for q in queries]
    sampling = [
        vllm.SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False,
            extra_args={"prompt_end": len(q.prompt_ids)},
        )
        for q in queries
    ]  # fmt: skip
    found = []
    for out, query in zip(llm.generate(asked, sampling, use_tqdm=False), queries, strict=True):
        rows = out.prompt_logprobs[len(query.prompt_ids) :]
        found.append([row[token].logprob for row, token in zip(rows, query.label_ids, strict=True)])
    return found


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    """(architecture, kind, settings) -> base, edit's folder, prompts, what is said without and with the edit."""
    root, made = tmp_path_factory.mktemp("edits"), {}
    prompts = prompts_of(N)

    def make(architecture, kind, **more):
        key = (architecture, kind, *sorted(more.items()))
        if key not in made:
            base = root / architecture
            if not base.is_dir():
                write_base(base, architecture)
            folder = write_edit(
                root / "-".join(map(str, key)).replace("'", ""), base, architecture, kind, prompts, **more
            )
            model = model_of(architecture)
            plain = greedy(model, prompts, NEW)
            with applied(load_edit(folder), model):
                made[key] = base, folder, prompts, plain, greedy(model, prompts, NEW)
        return made[key]

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_and_log_probabilities_are_those_of_hugging_face(edits, architecture, kind, mode):
    _, folder, prompts, plain, edited = edits(architecture, kind)
    changed = sum(a != b for a, b in zip(plain, edited, strict=True))
    assert changed > N // 4
    if kind in ("grace", "wise", "memoir"):
        assert changed < 3 * N // 4, "some are to be left alone"
    queries = [Query(tuple(prompts[i][:40]), tuple(prompts[i + 1][:7])) for i in range(0, N - 1, 4)]
    model = model_of(architecture)
    with applied(load_edit(folder), model):
        expected = [score.token_nll for score in score_answers(model, queries)]
    with engine(folder, **MODES[mode]) as llm:
        assert say(llm, prompts) == edited
        for own, nll in zip(scores(llm, queries), expected, strict=True):
            torch.testing.assert_close(torch.tensor(own), -torch.tensor(nll), atol=1e-4, rtol=0)
