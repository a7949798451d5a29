"""The fields of a request: every field of OpenAI's API and of vLLM's server, each with its default and its support by
this server.

A field is either supported, or the server accepts only its default. Any other value is an error that names the field, so
no value is silently ignored. Sources: OpenAI's API reference, and vLLM's protocol.py of completions and chat completions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """One field of a request.

    `default`: the documented value of a missing field. A request can also send null to get the default. `honoured`: True
    if the server supports every valid value of the field; otherwise only the default is accepted. `also`: further values
    that do not change the answer.
    """

    default: Any = None
    honoured: bool = False
    also: tuple = ()

    def accepts(self, value: Any) -> bool:
        """Return False if the server must refuse the value. The value of an honoured field is checked later."""
        return self.honoured or value is None or any(equal(value, known) for known in (self.default, *self.also))


def equal(a: Any, b: Any) -> bool:
    """Return True if two JSON values are equal. In Python 1 equals True, but in JSON 1 and true differ."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


# Fields that name a user or a session, for accounting or for a cache of prompts. They do not change the answer, as in OpenAI's API.
LABELS = ("user", "safety_identifier", "metadata", "prompt_cache_key", "session_id", "cache_salt")

SHARED = {
    # OpenAI
    "model": Field(honoured=True),
    "n": Field(1, honoured=True),
    "seed": Field(honoured=True),
    "stop": Field([], honoured=True),
    "stream": Field(False, honoured=True),
    "stream_options": Field(honoured=True),
    "temperature": Field(1, honoured=True),
    "top_p": Field(1, honoured=True),
    "presence_penalty": Field(0, honoured=True),
    "frequency_penalty": Field(0, honoured=True),
    "logit_bias": Field(also=({},)),
    "response_format": Field(also=({"type": "text"},)),
    **dict.fromkeys(LABELS, Field(honoured=True)),
    # vLLM
    "top_k": Field(0, honoured=True),
    "min_p": Field(0, honoured=True),
    "repetition_penalty": Field(1, honoured=True),
    "stop_token_ids": Field([], honoured=True),
    "ignore_eos": Field(False, honoured=True),
    "allowed_token_ids": Field(also=([],)),
    "bad_words": Field([]),
    "ec_transfer_params": Field(),
    "include_stop_str_in_output": Field(False),
    "kv_transfer_params": Field(),
    "length_penalty": Field(1),  # of beam search
    "logprob_token_ids": Field(),
    "min_tokens": Field(0),
    "priority": Field(0),
    "prompt_logprobs": Field(),
    "repetition_detection": Field(),
    "request_id": Field(),
    "return_mm_kwargs": Field(True),
    "return_token_ids": Field(also=(False,)),
    "return_token_offsets": Field(False),
    "return_tokens_as_token_ids": Field(also=(False,)),
    "routed_experts_prompt_start": Field(0),
    "skip_special_tokens": Field(True),
    "spaces_between_special_tokens": Field(True),
    "stream_interval": Field(also=(1,)),
    "structured_outputs": Field(),
    "thinking_token_budget": Field(also=(-1,)),
    "truncate_prompt_tokens": Field(),
    "truncation_side": Field(),
    "use_beam_search": Field(False),
    "vllm_xargs": Field(also=({},)),
    "watermarking": Field(also=(False,)),
}

COMPLETION_FIELDS = SHARED | {
    # OpenAI
    "prompt": Field(honoured=True),
    "best_of": Field(1),
    "echo": Field(False, honoured=True),
    "logprobs": Field(honoured=True),
    "max_tokens": Field(16, honoured=True),
    "suffix": Field(also=("",)),
    # vLLM
    "add_special_tokens": Field(True),
    "prompt_embeds": Field(),
}

CHAT_FIELDS = SHARED | {
    # OpenAI
    "messages": Field(honoured=True),
    "logprobs": Field(False, honoured=True),
    "top_logprobs": Field(0, honoured=True),
    "max_tokens": Field(honoured=True),
    "max_completion_tokens": Field(honoured=True),
    "audio": Field(),
    "function_call": Field("none", also=("auto",)),
    "functions": Field(also=([],)),
    "modalities": Field(["text"]),
    "moderation": Field(),
    "parallel_tool_calls": Field(True, also=(False,)),  # there are no tool calls
    "prediction": Field(),
    "prompt_cache_options": Field(),
    "prompt_cache_retention": Field(),
    "reasoning_effort": Field(also=("none", "medium")),  # the defaults of OpenAI's models
    "service_tier": Field("auto", also=("default",)),
    "store": Field(False),
    "tool_choice": Field("none", also=("auto",)),
    "tools": Field(also=([],)),
    "verbosity": Field("medium"),
    "web_search_options": Field(),
    # vLLM
    "add_generation_prompt": Field(True),
    "add_special_tokens": Field(False),
    "chat_template": Field(),
    "chat_template_kwargs": Field(also=({},)),
    "continue_final_message": Field(False),
    "documents": Field(also=([],)),
    "echo": Field(False),
    "include_reasoning": Field(True),
    "media_io_kwargs": Field(also=({},)),
    "mm_processor_kwargs": Field(also=({},)),
    "return_prompt_text": Field(also=(False,)),
}
