"""Greedy tokens and their log-probabilities from vLLM: ``python generate.py FOLDER PROMPTS``, in vLLM's environment.

PROMPTS is JSON, lists of token ids; the last line printed is JSON, a list of [tokens, log-probabilities] per prompt.
"""

import json
import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}

from vllm import LLM, SamplingParams

folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = LLM(model=folder, dtype="bfloat16", max_model_len=64, enforce_eager=True)
asked = SamplingParams(temperature=0, max_tokens=12, logprobs=1, ignore_eos=True)
answers = []
for done in model.generate([{"prompt_token_ids": ids} for ids in prompts], asked):
    tokens = list(done.outputs[0].token_ids)
    scored = zip(tokens, done.outputs[0].logprobs, strict=True)
    answers.append([tokens, [scores[token].logprob for token, scores in scored]])
print(json.dumps(answers))
