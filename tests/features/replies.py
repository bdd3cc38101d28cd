"""What language models, servers and proxies really send. For a shape that is read wrongly, a reader adds a line.

A row of REPLIES is (where it was seen, the body, what becomes of it): a label, or `no` label with words of the reason (the
latent stays unlabelled), or `again` (the question is asked again), or `stop` with words of the message (the command ends).
A row of ANSWERS is (the text of an answer, the label in it, or None for none).
A row of JUDGED is (the text of a judge's answer about six windows, the windows in it, or None where it cannot be told).
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class no:
    why: str


@dataclass(frozen=True)
class again:
    why: str | None = None


@dataclass(frozen=True)
class stop:
    why: str


def chat(content, reason="stop", **message) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": {"total_tokens": 9}}


def events(*values, done="data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(value)}\n\n" for value in values) + done


def delta(content, reason=None, **rest) -> dict:
    return {"object": "chat.completion.chunk", "choices": [{"delta": {"content": content, **rest}, "finish_reason": reason}]}


def responses(*output, status="completed", **rest) -> dict:
    return {"object": "response", "error": None, "incomplete_details": None, "status": status, "output": list(output), **rest}


def said(text) -> dict:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


REPLIES = [
    # OpenAI chat completions
    ("OpenAI", chat("dogs", refusal=None, annotations=[]), "dogs"),
    ("OpenAI, spent on thinking", chat("", "length"), no("thinking")),
    ("OpenAI, content null", chat(None, "length"), no("thinking")),
    ("OpenAI, cut in the middle", chat("the names of animals that are", "length"), no("tokens ended")),
    ("OpenAI, refusal field", chat(None, refusal="I can't help with that."), no("refused")),
    ("OpenAI, refusal in words", chat("I'm sorry, but I can't assist with that request."), no("refused")),
    ("OpenAI, tool call", chat(None, "tool_calls", tool_calls=[{"id": "1", "function": {"name": "f"}}]), no("tool")),
    ("OpenAI, function call of old", chat(None, "function_call", function_call={"name": "f", "arguments": "{}"}), no("tool")),
    ("OpenAI, content filter", chat("The marked", "content_filter"), no("filter")),
    ("OpenAI, finish_reason null", chat("dogs", None), "dogs"),
    ("OpenAI, only spaces", chat("  \n "), no("empty")),
    ("OpenAI, no choices", {"choices": [], "usage": {}}, no("empty")),
    ("OpenAI, no choices, nothing else", {"choices": []}, no("empty")),
    ("OpenAI, old completions", {"object": "text_completion", "choices": [{"text": " dogs", "finish_reason": "stop"}]}, "dogs"),
    (
        "OpenAI, error with status 200",
        {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}},
        stop("x"),
    ),
    ("OpenAI, rate limit", {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}, again("Rate limit")),
    # OpenAI responses
    ("responses", responses({"type": "reasoning", "summary": []}, said("dogs")), "dogs"),
    ("responses, spent on thinking", responses({"type": "reasoning", "summary": []}, status="incomplete"), no("thinking")),
    ("responses, cut", responses(status="incomplete", incomplete_details={"reason": "max_output_tokens"}), no("thinking")),
    ("responses, filter", responses(status="incomplete", incomplete_details={"reason": "content_filter"}), no("filter")),
    ("responses, refusal", responses({"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}), no("refused")),
    ("responses, tool", responses({"type": "function_call", "name": "f", "arguments": "{}"}), no("tool")),
    ("responses, failed", responses(status="failed") | {"error": {"code": "server_error", "message": "oops 1"}}, stop("oops")),
    ("responses, vLLM with nothing in it", responses(), no("empty")),
    # Azure
    ("Azure", chat("dogs") | {"prompt_filter_results": [{"prompt_index": 0}]}, "dogs"),
    (
        "Azure, filtered",
        {"error": {"code": "content_filter", "message": "The response was filtered", "status": 400}},
        no("filter"),
    ),
    ("Azure, policy", {"error": {"message": "triggered Azure OpenAI's content management policy", "code": None}}, no("filter")),
    # vLLM, SGLang, DeepSeek
    ("vLLM, reasoning_content", chat("dogs", reasoning_content="Let me see. Cats? No."), "dogs"),
    ("vLLM, reasoning null content", chat(None, "length", reasoning="The marked tokens are"), no("thinking")),
    ("vLLM, harmony parser", chat(None, "stop", reasoning="So the final answer is dogs."), no("no answer")),
    (
        "vLLM, error object",
        {"object": "error", "message": "max_model_len is 4096", "type": "BadRequestError", "code": 400},
        stop("4096"),
    ),
    ("vLLM, template opened the thoughts", chat("These are animals.\n</think>\n\ndogs"), "dogs"),
    ("vLLM, thoughts without an end", chat("<think>\nThese are animals, so the label [1, 2]"), no("thought")),
    ("vLLM, stop_reason", chat("dogs") | {"prompt_logprobs": None}, "dogs"),
    ("DeepSeek, no resources", chat("", "insufficient_system_resource"), again()),
    ("DeepSeek, keep alive", ": keep-alive\n\n: keep-alive\n\n" + events(delta("dogs", "stop")), "dogs"),
    # llama.cpp server, LM Studio, Ollama
    ("llama.cpp /v1", chat("dogs") | {"timings": {"predicted_n": 3}}, "dogs"),
    ("llama.cpp /v1, thoughts alone", chat("", reasoning_content="Now I understand it better."), no("no answer")),
    ("llama.cpp /completion", {"index": 0, "content": " dogs", "stop": True, "stop_type": "eos", "truncated": False}, "dogs"),
    ("llama.cpp /completion, cut", {"content": " dogs and", "stop": True, "stop_type": "limit"}, no("tokens ended")),
    ("llama.cpp, loading", {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, again("Loading")),
    ("LM Studio", chat("dogs") | {"stats": {}, "system_fingerprint": "m"}, "dogs"),
    (
        "LM Studio, unknown path",
        {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
        stop("Unexpected endpoint"),
    ),
    (
        "LM Studio, channel marks",
        chat("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>dogs"),
        "dogs",
    ),
    ("gpt-oss, thoughts alone", chat("<|channel|>analysis<|message|>The marked tokens"), no("thought")),
    ("Ollama /v1", chat("dogs") | {"system_fingerprint": "fp_ollama"}, "dogs"),
    ("Ollama /v1, reasoning", chat("dogs", reasoning="We need a phrase."), "dogs"),
    (
        "Ollama native",
        {"model": "m", "message": {"role": "assistant", "content": "dogs"}, "done": True, "done_reason": "stop"},
        "dogs",
    ),
    (
        "Ollama native, thinking",
        {"message": {"content": "", "thinking": "Hm"}, "done": True, "done_reason": "length"},
        no("thinking"),
    ),
    ("Ollama native, loading", {"model": "m", "message": {"content": ""}, "done": True, "done_reason": "load"}, no("empty")),
    ("Ollama generate", {"model": "m", "response": "dogs", "done": True, "done_reason": "stop", "context": [1, 2]}, "dogs"),
    (
        "Ollama, streamed lines",
        '{"message":{"content":"do"},"done":false}\n{"message":{"content":"gs"},"done":false}\n'
        '{"message":{"content":""},"done":true,"done_reason":"stop"}\n',
        "dogs",
    ),
    ("Ollama, no such model", {"error": "model 'llama9' not found"}, stop("llama9")),
    # proxies: OpenRouter, LiteLLM, Cloudflare, FastAPI
    ("OpenRouter", chat("dogs") | {"provider": "P"}, "dogs"),
    ("OpenRouter, native reason", {"choices": [chat("dogs")["choices"][0] | {"native_finish_reason": "STOP"}]}, "dogs"),
    (
        "OpenRouter, busy with status 200",
        {"error": {"message": "Provider returned error", "code": 429}, "user_id": "u"},
        again("Provider"),
    ),
    ("OpenRouter, no credits", {"error": {"message": "Insufficient credits", "code": 402}}, stop("credits")),
    (
        "OpenRouter, error in the choice",
        {"choices": [{"error": {"code": 502, "message": "upstream"}, "message": {"content": ""}}]},
        again(),
    ),
    ("OpenRouter, broke off", chat("The", "error"), again()),
    (
        "OpenRouter, moderation",
        {"error": {"code": 403, "message": "Input flagged by moderation", "metadata": {}}},
        no("filter"),
    ),
    ("LiteLLM", chat("dogs", provider_specific_fields={"refusal": None}), "dogs"),
    (
        "LiteLLM, error",
        {"error": {"message": "litellm.AuthenticationError: no key", "type": "auth_error", "code": "401"}},
        stop("no key"),
    ),
    ("FastAPI", {"detail": "Not Found"}, stop("Not Found")),
    ("FastAPI, list", {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, stop("field required")),
    ("gateway", {"message": "no Route matched with those values"}, stop("no Route")),
    ("proxy, web page", "<!DOCTYPE html><html><head><title>Log in</title></head></html>", stop("web page")),
    ("proxy, byte order mark", "\ufeff" + json.dumps(chat("dogs")), "dogs"),
    ("proxy, plain text", "upstream connect error or disconnect", again()),
    ("proxy, nothing", "", again()),
    ("proxy, half a reply", json.dumps(chat("dogs"))[:90], again()),
    ("proxy, nested brackets", "[" * 100_000, again()),
    ("another service", {"ok": True, "items": []}, stop("no reply of a language model")),
    ("another service, number", "42", stop("no reply of a language model")),
    # streamed although not asked
    ("stream", events(delta("", role="assistant"), delta("do"), delta("gs"), delta("", "stop")), "dogs"),
    ("stream with usage", events(delta("dogs"), delta(None, "stop"), {"choices": [], "usage": {"total_tokens": 3}}), "dogs"),
    ("stream, thoughts apart", events(delta(None, reasoning_content="Hm."), delta("dogs"), delta("", "stop")), "dogs"),
    ("stream, cut", events(delta("the names of"), delta("", "length")), no("tokens ended")),
    ("stream, broken", events(delta("do"), {"error": {"message": "Overloaded", "code": 529}}), again("Overloaded")),
    (
        "stream of responses",
        events(
            {"type": "response.created", "response": {"output": []}},
            {"type": "response.output_text.delta", "delta": "dogs"},
            {"type": "response.output_text.done", "text": "dogs"},
            {"type": "response.completed", "response": responses(said("dogs"))},
            done="",
        ),
        "dogs",
    ),
    # Anthropic, Gemini, Mistral, Hugging Face
    ("Anthropic", {"type": "message", "content": [{"type": "text", "text": "dogs"}], "stop_reason": "end_turn"}, "dogs"),
    (
        "Anthropic, thinking",
        {"type": "message", "content": [{"type": "thinking", "thinking": "x"}], "stop_reason": "max_tokens"},
        no("thinking"),
    ),
    ("Anthropic, refusal", {"type": "message", "content": [], "stop_reason": "refusal"}, no("filter")),
    (
        "Anthropic, tool",
        {"type": "message", "content": [{"type": "tool_use", "name": "f"}], "stop_reason": "tool_use"},
        no("tool"),
    ),
    ("Anthropic, busy", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, again("Overloaded")),
    (
        "Anthropic, streamed",
        "event: message_start\n"
        + events({"type": "message_start", "message": {"content": []}}, {"type": "ping"}, done="")
        + events({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "dogs"}}, done="")
        + events({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}, done=""),
        "dogs",
    ),
    ("Gemini", {"candidates": [{"content": {"parts": [{"text": "dogs"}], "role": "model"}, "finishReason": "STOP"}]}, "dogs"),
    (
        "Gemini, thoughts",
        {"candidates": [{"content": {"parts": [{"text": "Hm.", "thought": True}, {"text": "dogs"}]}, "finishReason": "STOP"}]},
        "dogs",
    ),
    ("Gemini, safety", {"candidates": [{"finishReason": "SAFETY", "safetyRatings": []}]}, no("filter")),
    ("Gemini, spent", {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]}, no("thinking")),
    ("Gemini, blocked question", {"promptFeedback": {"blockReason": "SAFETY"}}, no("filter")),
    (
        "Mistral, parts",
        chat([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "dogs"}]),
        "dogs",
    ),
    ("Magistral, marks", chat("[THINK]Hm, cats?[/THINK]dogs"), "dogs"),
    ("OpenAI, a call after words", chat("Let me look that up", "tool_calls", tool_calls=[{"id": "1"}]), no("tool")),
    ("OpenAI, words beside a call", chat("dogs", tool_calls=[{"id": "1"}]), "dogs"),
    ("OpenAI, stream without an end", events(delta("dogs ar"), done=""), again("broke off")),
    ("OpenAI, stream without [DONE]", events(delta("dogs", "stop"), done=""), "dogs"),
    ("vLLM, aborted", chat("dogs ar", "abort"), again("broke off")),
    ("Ollama, stream without an end", {"message": {"content": "dogs ar"}, "done": False}, again("broke off")),
    ("OpenAI responses, queued", responses(status="queued"), again("not finished")),
    ("OpenAI responses, cancelled", responses(said("dogs ar"), status="cancelled"), again("not finished")),
    ("OpenAI responses, half a message", responses(said("dogs ar") | {"status": "incomplete"}), no("tokens ended")),
    ("Anthropic, paused", {"content": [{"type": "text", "text": "Let me search"}], "stop_reason": "pause_turn"}, no("tool")),
    ("Cohere, toxic", {"text": "dogs", "finish_reason": "ERROR_TOXIC"}, no("filter")),
    ("Hugging Face, cut", [{"generated_text": "dogs are", "details": {"finish_reason": "length"}}], no("tokens ended")),
    ("any, the question again", chat("What do the marked tokens have in common?"), no("refused")),
    ("Hugging Face, a list", [{"generated_text": "dogs"}], "dogs"),
    ("Hugging Face, busy", {"error": "Model m is currently loading, try again", "estimated_time": 20}, again("loading")),
]

ANSWERS = [
    ("dogs", "dogs"),
    ('"dogs."', "dogs"),
    ("“dogs”", "dogs"),
    ("**dogs**", "dogs"),
    ("`dogs`", "dogs"),
    ("```\ndogs\n```", "dogs"),
    ("```text\ndogs and cats\n```", "dogs and cats"),
    ("Label: dogs", "dogs"),
    ("**Answer:** dogs and *cats*", "dogs and *cats"),
    ("The answer is: dogs", "dogs"),
    ("Sure! Here is a short phrase: dogs", "dogs"),
    ("Sure! Here is a short phrase:\n\n**Words for dogs**\n\nLet me know if you need more!", "Words for dogs"),
    ("Sure, here's the label:\n> dogs", "dogs"),
    ("Certainly! dogs", "dogs"),
    ("Here is the phrase that the marked tokens have in common:\n- dogs", "dogs"),
    ("Based on the examples, the marked tokens are: dogs", "dogs"),
    ("Okay.\ndogs", "dogs"),
    ("1. dogs\n2. cats", "dogs"),
    ("# dogs", "dogs"),
    ("dogs\n\nExplanation: each marked token is a dog.", "dogs"),
    ('{"label": "dogs"}', "dogs"),
    ('```json\n{"answer": "dogs", "confidence": 0.9}\n```', "dogs"),
    ('["dogs"]', "dogs"),
    ("<think>hm</think>\n\nLabel: the word *dog*", "the word *dog"),
    ("<thinking>\nhm\n</thinking>dogs", "dogs"),
    ("<|channel|>final<|message|>dogs<|return|>", "dogs"),
    ("◁think▷hm◁/think▷dogs", "dogs"),
    ("dogs<|im_end|>", "dogs"),
    ("dogs<end_of_turn>\n", "dogs"),
    ("dogs</s>", "dogs"),
    ("<eos>", "<eos>"),
    ("a " * 200, "a " * 58 + "a…"),
    ("the sure sign of a dog", "the sure sign of a dog"),
    ("words before a colon: names, dates", "words before a colon: names, dates"),
    ("apologies and the word sorry", "apologies and the word sorry"),
    ("I, me and my", "I, me and my"),
    ("Okay-like agreement words", "Okay-like agreement words"),
    ("", None),
    ("<think>The marked tokens are", None),
    ("<think>The marked tokens are dogs.</think>", None),
    ("None", None),
    ("N/A.", None),
    ("Sure!", None),
    ("Here is the label:", None),
    ("I cannot answer that.", None),
    ("I'm unable to determine a pattern.", None),
    ("As an AI language model, I cannot", None),
    ("Sure! I'm sorry, but I can't help with that.", None),
    ("Please provide the pieces of text.", None),
    ("I don't see any marked tokens.", None),
    ("抱歉,我不能回答。", None),
    ("```\n```", None),
    # what a server took for text, and thoughts that no mark sets apart
    ("I'm afraid I can't help with that.", None),
    ("As a language model, I cannot see a pattern.", None),
    ("Ich kann dabei nicht helfen.", None),
    ("申し訳ありません。", None),
    ("It is not possible to determine a label from the given text.", None),
    ("Not enough information.", None),
    ("There is no clear pattern.", None),
    ("The pattern is unclear.", None),
    ("It looks like the examples are missing.", None),
    ("Request blocked.", None),
    ("Error: context length exceeded", None),
    ('{"error": "model overloaded"}', None),
    ("Let me analyze these examples step by step.", None),
    ("Okay, so I need to figure out what these have in common.", None),
    ("Hmm, the user wants a label for these texts.", None),
    ("We are given a list of tokens. We need", None),
    ("**Thinking**\nlooks like dogs", None),
    ("I hope this helps!", None),
    ("Sure! Here is", None),
    ('<tool_call>\n{"name": "x", "arguments": {}}\n</tool_call>', None),
    ('[TOOL_CALLS][{"name": "x", "arguments": {}}]', None),
    ('<|python_tag|>x.call(q="dogs")', None),
    ('<|tool_call|>[{"name": "x"}]', None),
    ("```tool_code\nprint(search('dogs'))\n```", None),
    ('<function=search>{"q": "x"}</function>', None),
    ('{"name": "lookup", "arguments": {"q": "dogs"}}', None),
    ("The latent fires on dogs", "dogs"),
    ("The answer is \\boxed{dogs}", "dogs"),
    ("<label>dogs</label>", "dogs"),
    ("Certainly! The label would be: dogs", "dogs"),
    ('A concise label could be: "dogs"', "dogs"),
    ('I would label this as "dogs"', "dogs"),
    ('Based on the examples, the label is "dogs"', "dogs"),
    ("I think the best label is: dogs", "dogs"),
    ("<|start_header_id|>assistant<|end_header_id|>\n\ndogs<|eot_id|>", "dogs"),
    ("Assistant: dogs", "dogs"),
    ("I think, I believe", "I think, I believe"),
    ("let's go and other exhortations", "let's go and other exhortations"),
    ("unknown words and names", "unknown words and names"),
    ("no clear winner in a contest", "no clear winner in a contest"),
    ("error: in lines of a log", "error: in lines of a log"),
    ("function calls in Python", "function calls in Python"),
    ("first names, of people", "first names, of people"),
    ("it seems that, as a hedge", "it seems that, as a hedge"),
    ("labels on boxes", "labels on boxes"),
    ("thinking and thought", "thinking and thought"),
]

JUDGED = [
    ("[2, 5]", {2, 5}),
    ("[]", set()),
    ("[2,5].", {2, 5}),
    ("```json\n[2, 5]\n```", {2, 5}),
    ("**[2, 5]**", {2, 5}),
    ("Answer: [2, 5]", {2, 5}),
    ("The unit fires in [2, 5]", {2, 5}),
    ('["2", "5"]', {2, 5}),
    ('{"windows": [2, 5]}', {2, 5}),
    ("2, 5", {2, 5}),
    ("2 and 5", {2, 5}),
    ("None", set()),
    ("none of them", set()),
    ("As [x] shows: [2]\n", {2}),
    ("[2, 5]\n\nPieces [1, 3] hold no dog, so they are left out.", {2, 5}),
    ("<think>maybe [1, 2]?</think>[2, 5]", {2, 5}),
    ("maybe [1, 2]?</think>\n[2, 5]", {2, 5}),
    ("<think>I would say [1, 2, 3], but", None),
    ("[1, 2] or [3, 4], it depends", None),
    ("[7]", None),
    ("[0]", None),
    ("[true]", None),
    ("[2.5]", None),
    ("[2, 5", None),
    ("1-3", None),
    ("I'm sorry, but I can't help with that.", None),
    ("", None),
]
