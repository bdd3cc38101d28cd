"""The text in a language model's reply, whatever server sent it, and the label in that text; what is no answer is refused.

It reads OpenAI's chat completions and responses, Ollama's own API, llama.cpp's, Anthropic's, Gemini's and Hugging Face's, whole
or as a stream of events, and the errors that servers and proxies send in their place, with status 200 too.
`tests/features/replies.py` is a table of such replies: a shape that is read wrongly is a new line there.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from scope.errors import ConfigError, ScopeError
from scope.typed_json import parse_json

LONGEST = 120
"""Characters of a label."""


class NoAnswer(ScopeError):
    """The model answered, but not the question: a refusal, thoughts without an end, a call of a tool, nothing."""


class CutShort(NoAnswer):
    """The reply ended at the limit of tokens, before its answer was whole."""


class Busy(ScopeError):
    """The server reports an error that may pass: it is to be asked again."""


@dataclass(frozen=True)
class _Part:
    """The text of a reply or of a piece of it. `cut` says that it ended at the limit of tokens."""

    text: str
    cut: bool = False


_CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
_FILTERED = {
    "content_filter",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
    "refusal",
    "sensitive",
    "error_toxic",
}
_TOOLS = {
    "tool_calls",
    "tool_call",
    "function_call",
    "tool_use",
    "pause_turn",
    "malformed_function_call",
    "unexpected_tool_call",
}
_BROKEN = {"error", "abort", "aborted", "cancelled", "time_limit", "insufficient_system_resource", "engine_overloaded"}
_UNFINISHED = {"queued", "in_progress", "processing", "starting", "cancelled", "canceled"}
_PASSING = re.compile(
    r"rate.?limit|overload|too many|capacity|temporar|timed? ?out|unavailable|try again|internal|upstream", re.I
)


def reply_in(data: bytes) -> str:
    """The text of the reply in the body of a response.

    Raises:
        NoAnswer: there is one, but it answers nothing, or (CutShort) not to the end.
        Busy: the server reports an error that may pass.
        ConfigError: another error, or no reply of a language model at all.
    """
    text = data.decode("utf-8", "replace").strip().removeprefix("\ufeff")
    if text.startswith("<"):
        raise ConfigError("The server answered with a web page. Is the address right? It usually ends in /v1.")
    events = _events(text)
    values = [parse_json(text, "The answer", Busy)] if events is None else events
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    parts = [_part(value) for value in values]
    if not parts:
        raise NoAnswer("the reply is empty")
    if _breaks_off(text, values):
        raise Busy("the answer broke off")
    reply = "".join(part.text for part in parts)
    if any(part.cut for part in parts):
        raise CutShort("its tokens ended before its answer" if reply.strip() else "its tokens were spent on thinking")
    if not reply.strip():
        raise NoAnswer("the reply is empty")
    return reply


def _events(text: str) -> list[Any] | None:
    """The values of server-sent events or of JSON lines; None for a single value."""
    if re.match(r"(data|event|id|retry)?:", text):
        lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        return [parse_json(line, "An event of the answer", Busy) for line in lines if line and line != "[DONE]"]
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return [parse_json(line, "A line of the answer", Busy) for line in lines]
    return None


def _breaks_off(text: str, values: list[Any]) -> bool:
    """Whether a reply lacks the end that its kind has: Ollama's done, or a reason or [DONE] after streamed choices."""
    last = values[-1] if isinstance(values[-1], dict) else {}
    if last.get("done") is False:
        return True
    pieces = [choice for v in values if isinstance(v, dict) for choice in v.get("choices") or [] if isinstance(choice, dict)]
    streamed = any("delta" in piece for piece in pieces)
    return streamed and "[DONE]" not in text and not any(piece.get("finish_reason") for piece in pieces)


def _part(value: Any) -> _Part:
    """The text of one value: a whole reply, or a piece of one that was streamed."""
    if isinstance(value, str):
        return _Part(value)
    if not isinstance(value, dict):
        raise ConfigError(f"The server answered with {str(value)[:80]!r}, which is no reply of a language model.")
    _raise_error(value)
    for key in ("choices", "candidates"):
        if isinstance(value.get(key), list) and (value[key] or value.get("usage") is None or key == "candidates"):
            choice = value[key][0] if value[key] and isinstance(value[key][0], dict) else {"finish_reason": "empty"}
            _raise_error(choice)
            return _choice(choice)
    if isinstance(value.get("promptFeedback"), dict):  # Gemini's, in place of candidates
        raise NoAnswer("a content filter held the question back")
    if isinstance(value.get("output"), list):  # OpenAI's responses
        return _responses(value)
    if "delta" in value or str(value.get("type", "")).startswith("response."):  # their stream, or Anthropic's
        done = value.get("response") if value.get("type") in ("response.incomplete", "response.failed") else None
        return _responses(done, text=False) if isinstance(done, dict) else _streamed(value)
    known = ("message", "content", "response", "generated_text", "completion", "output_text", "text")
    if any(key in value for key in known) or "choices" in value or value.get("type") in _SILENT_EVENTS:
        return _choice(value)
    raise ConfigError(f"The server answered with {json.dumps(value)[:200]}, which is no reply of a language model.")


_SILENT_EVENTS = {"ping", "message_start", "message_stop", "content_block_start", "content_block_stop"}


def _streamed(value: dict[str, Any]) -> _Part:
    """The piece of text in an event; thoughts and arguments of tools are none."""
    delta, kind = value.get("delta"), value.get("type")
    if isinstance(delta, dict):
        text = delta.get("text") if kind == "content_block_delta" else ""
        return _Part(text if isinstance(text, str) else "", delta.get("stop_reason") in _CUT)
    return _Part(delta if isinstance(delta, str) and kind == "response.output_text.delta" else "")


def _choice(choice: dict[str, Any]) -> _Part:
    """The text of one choice, message or candidate, in any of the places where servers put it."""
    message = next((m for m in (choice.get(k) for k in ("message", "delta", "content")) if isinstance(m, dict)), choice)
    reason = next(
        (choice[k] for k in ("finish_reason", "finishReason", "done_reason", "stop_reason", "stop_type") if choice.get(k)), ""
    )
    reason = str(reason).lower() if not isinstance(reason, dict) else str(reason.get("type", "")).lower()
    if not reason and isinstance(choice.get("details"), dict):  # of Hugging Face's text generation
        reason = str(choice["details"].get("finish_reason") or "").lower()
    text = next((t for t in (_text(message.get(key)) for key in _PLACES) if t), "")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        raise NoAnswer(f"it refused: {_short(refusal)}")
    if reason in _FILTERED:
        raise NoAnswer("a content filter held its answer back")
    called = bool(message.get("tool_calls") or message.get("function_call"))
    if reason in _TOOLS or (called and not text.strip()):
        raise NoAnswer("it called a tool instead of answering")
    if reason in _BROKEN:
        raise Busy(f"the server broke off: {reason}")
    if reason == "empty":
        raise NoAnswer("the reply is empty")
    cut = reason in _CUT or reason == "limit" or choice.get("stopped_limit") is True
    if not cut and not text and any(_text(message.get(key)) for key in _THOUGHTS) and reason:
        raise NoAnswer("it thought and gave no answer")
    return _Part(text, cut)


_PLACES = ("content", "parts", "text", "response", "generated_text", "completion", "output_text")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def _text(content: Any) -> str:
    """Text, or the joined text parts of a list; parts that hold thoughts, calls or images are left out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    kinds = (None, "text", "output_text")
    parts = [p for p in content if isinstance(p, dict) and p.get("type") in kinds and not p.get("thought")]
    return "".join(p["text"] for p in parts if isinstance(p.get("text"), str))


def _responses(value: dict[str, Any], text: bool = True) -> _Part:
    """A reply of OpenAI's responses: a list of thoughts, calls and messages."""
    if value.get("error"):
        _raise_error(value)
    items = [item for item in value.get("output") or [] if isinstance(item, dict)]
    parts = [part for item in items if item.get("type", "message") == "message" for part in item.get("content") or []]
    refusal = next((p["refusal"] for p in parts if isinstance(p, dict) and isinstance(p.get("refusal"), str)), None)
    if refusal:
        raise NoAnswer(f"it refused: {_short(refusal)}")
    why = value.get("incomplete_details")
    why = str(why.get("reason")) if isinstance(why, dict) else ""
    if why in _FILTERED:
        raise NoAnswer("a content filter held its answer back")
    if value.get("status") in _UNFINISHED:
        raise Busy(f"the answer is not finished: {value['status']}")
    half = any(item.get("type", "message") == "message" and item.get("status") == "incomplete" for item in items)
    found = _text(parts) if text else ""
    if not found.strip() and any("call" in str(item.get("type")) for item in items):
        raise NoAnswer("it called a tool instead of answering")
    return _Part(found, value.get("status") == "incomplete" or half or why in _CUT)


def _raise_error(value: dict[str, Any]) -> None:
    """Raise the error that a server reports in a body, in any of the usual places."""
    error = value.get("error")
    if not error and value.get("object") != "error" and value.get("type") != "error":
        answers = ("choices", "candidates", "output", "response", "content", "generated_text", "type", "delta")
        detail = next((value[k] for k in ("detail", "errors", "error_message", "msg", "title") if value.get(k)), None)
        if detail is None and isinstance(value.get("message"), str):
            detail = value["message"]
        if detail is None or any(key in value for key in answers):
            return
        error = detail
    error = error or value
    message, code = error, ""
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error
        code = " ".join(str(error.get(key) or "") for key in ("code", "type", "status"))
    told = " ".join((message if isinstance(message, str) else json.dumps(message)).split())[:300]
    if _is_filter(f"{code} {told}"):
        raise NoAnswer("a content filter held its answer back")
    if _PASSING.search(f"{code} {told}") or re.search(r"\b(408|409|425|429|5\d\d)\b", code):
        raise Busy(f"the server reports: {told}")
    raise ConfigError(f"The server reports an error: {told}")


def _is_filter(text: str) -> bool:
    return bool(re.search(r"content.?filter|content.?management.?policy|responsible.?ai|moderation", text, re.I))


def refused_by_filter(body: str) -> bool:
    """Whether the body of a refusal by status says that this question alone was held back, as Azure's status 400 does."""
    return _is_filter(body)


_THINKING = "think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad|seed:think|begin_of_thought"
_CLOSED = re.compile(
    rf"<({_THINKING})\b[^>]*>.*?</\1>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷"
    r"|<\|begin_of_thought\|>.*?<\|end_of_thought\|>|<\|START_THINKING\|>.*?<\|END_THINKING\|>",
    re.DOTALL | re.I,
)
_OPEN = re.compile(rf"^\s*(<({_THINKING})\b[^>]*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>)", re.I | re.M)
_CLOSE = re.compile(rf"</({_THINKING})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>", re.I)
_MARK = (
    r"(<\|start_header_id\|>\w+<\|end_header_id\|>|<\|im_start\|>assistant\b|<\|(?!tool|python)[^|<>]{1,40}\|>|</?s>"
    r"|<(end|start)_of_turn>(model\b)?|<eos>|\[/?INST\]|</?answer>|\[DONE\]|assistant\n)"
)
_MARKS = re.compile(rf"^(\s*{_MARK})+|({_MARK}\s*)+$", re.I)


def spoken(text: str) -> str:
    """What a model said aloud: without its thoughts and without marks of its chat template.

    Raises:
        NoAnswer: nothing is left, as where its tokens ran out while it was thinking.
    """
    if "<|channel|>" in text or "<|message|>" in text:  # gpt-oss
        final = re.search(r"<\|channel\|>\s*final\b.*?<\|message\|>(.*)", text, re.DOTALL)
        if final is None:
            raise NoAnswer("it thought and gave no answer")
        text = final[1]
    text = _CLOSED.sub("", text)
    text = _CLOSE.split(text)[-1]  # the template opened the thoughts, so only their end stands in the text
    opened = _OPEN.search(text)
    text = (text[: opened.start()] if opened else text).strip()
    text = _MARKS.sub("", text).strip() or text
    if not text:
        raise NoAnswer("it thought and gave no answer" if opened else "the reply is empty")
    if opened:
        raise NoAnswer("its thoughts have no end")
    return text


_REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry\b|i apologi[sz]e|i can(no|['’])t\b|i can ?not\b|i(['’]?m| am) (not able|unable)\b"
    r"|i (won['’]t|will not)\b|as an ai\b|unfortunately,? i\b|i must decline|i do(n['’]t| not) (have|know|see|understand)"
    r"|(there is|there['’]s|i see) (not enough|no) (text|information|context)|please (provide|share|give|send|paste)"
    r"|could you (please )?(provide|clarify|share)|i need more|no answer\b|what do the marked\b|(my|our) apologies"
    r"|i(['’]?m| am) (afraid|not comfortable)|i(['’]d| would) (rather|prefer) not|as a (large )?language model"
    r"|request (was )?(blocked|denied)|this (content|request) ((may|might) violate|violates|(was|has been) (blocked|flagged))"
    r"|error\W*:.*(exceed|limit|fail|invalid|time|connect|model|request)"
    r"|(it )?(is |['’]s )?(not possible|impossible) to (determine|identify|answer|say|tell|give)"
    r"|(it )?(can ?not|can(['’]?t| ?not) be|could not( be)?|unable to( be)?) "
    r"(determine|identify|answer|find|tell|say|help|label)"
    r"|(not enough|insufficient) (information|context|data|evidence)"
    r"|(there (is|['’]s|are|seems to be) )?no (label\W*$|((clear|common|obvious|single|consistent|discernible|coherent) )*"
    r"(pattern|theme|meaning|commonalit))|(the )?(pattern|label|answer) (is|seems) (unclear|unknown|not clear)"
    r"|(unknown|unclear)( pattern| label)?\W*$|none of the above\W*$"
    r"|it (seems|looks|appears) (like|that|as if) (you|there|the (examples|texts?|windows|tokens|pieces))\b"
    r"|lo siento|no puedo|je suis désolé|je ne (peux|suis) pas|es tut mir leid|ich kann .{0,30}nicht|desculpe|mi dispiace"
    r"|抱歉|对不起|我无法|申し訳|すみません|죄송)",
    re.I,
)
_ALOUD = re.compile(
    r"^\s*((okay|ok|alright|well|hmm|right|now)\W+)?(so\W+)?("
    r"(i|we|i['’]ll|we['’]ll|i['’]ve) (need|have to|should|must|will|would|could|can|see|notice|look|want|hope|think|start)\b"
    r"|(let me|let['’]s|let us) (see|think|analy|look|start|consider|break|try|go|find|figure|examine)"
    r"|the user (is|wants|has|asks|asked)|(we|i)(['’]re| are|['’]m| am) (given|asked|looking|going|trying)"
    r"|(i['’]ll|we['’]ll|hmm\b|hope this))|^\s*(first|to (find|determine|answer|label)[^,\n]*), (i|we|let)\b"
    r"|^\W*(thinking|thoughts?|reasoning|analysis|scratchpad)\W*(\n|:|process\b|>)",
    re.I,
)
"""How thoughts begin that no mark sets apart. A label is a phrase, and thinking aloud is sentences in the first person."""

_CALL = re.compile(
    r"^\W*(tool_calls?\b|python_tag\b|function_?(call)?[=>]|functions?\.\w+\W*\(|tool▁|invoke\b|function_calls?\b)"
    r"|^```tool_",
    re.I,
)
_PREAMBLE = re.compile(
    r"^\W*(sure|certainly|of course|absolutely|okay|ok|great|got it|alright|understood|yes)\b[^:\n]*?[,.!:]\s*"
    r"|^\W*(here(['’]s| is| are)|this is|the following is)\b[^:\n]{0,80}:\s*"
    r"|^\W*(based on|looking at|after (analy|look|review)|given)\b[^:\n]{0,100}:\s*"
    r"|^\W*(the |my |a |final |short |suggested |proposed |common |best |concise |possible )*"
    r"(label|answer|phrase|description|explanation|response|summary|output|pattern|theme)"
    r"\W*((is|(would|could|might|may|should) be)\W+|:\W*|=\W*)"
    r"|^\W*(assistant|ai|topic|feature|title|concept|category|explanation of neuron \d+ behavior)\W*:\W*"
    r"|^\W*[^:\n\"“]{0,60}\b(label|phrase|describe|summari[sz]e) (this|it|them|these|is|would be)( latent| feature| neuron)?"
    r"( as| with| is)?\W*?[:\"“]\W*"
    r"|^\W*(the|this) (latent|neuron|feature|unit) (fires|activates|responds|is active) (strongly |mainly |mostly )?"
    r"(on|to|for|when|in)\b:?\s*",
    re.I,
)
_EMPTY = {"", "none", "n/a", "na", "null", "nothing", "unknown", "unclear", "label", "answer", "undefined", "nan", "here is"}
_EMPTY |= {"...", "…"}


def label_in(reply: str) -> str:
    """The label in a reply: one line without thoughts, preamble, quotes, fences or marks, of at most LONGEST characters.

    Raises:
        NoAnswer: the reply refuses, asks back, thinks without an end, or holds no label.
    """
    text = spoken(reply)
    _refuse(text)
    text = _from_json(text) or text
    text = re.sub(r"\\boxed\{(.+)\}|<label>(.+?)</label>", lambda m: m[1] or m[2], text)
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"(```|~~~)\w*|[-=_*#]{3,}", line)]
    for line in lines:
        label = _stripped(line)
        if label.lower().rstrip(".:!") in _EMPTY or _only_preamble(line):
            continue
        _refuse(label)
        return label if len(label) <= LONGEST else label[: LONGEST - 1].rsplit(" ", 1)[0] + "…"
    raise NoAnswer("the reply holds no label")


def _refuse(text: str) -> None:
    if _CALL.match(text):
        raise NoAnswer("it called a tool instead of answering")
    if _REFUSAL.match(text):
        raise NoAnswer(f"it refused: {_short(text)}")
    sentence = len(text.split()) > 6 or text.rstrip().endswith((".", ":", "!")) or "\n" in text.strip()
    sentence = sentence or bool(re.match(r"\W*(hmm|\w+\W*:)", text, re.I))
    if sentence and _ALOUD.match(text) and not _PREAMBLE.match(text.splitlines()[-1]):
        raise NoAnswer(f"it thinks aloud: {_short(text)}")


def _only_preamble(line: str) -> bool:
    """Whether a line merely announces the label, which follows on a line of its own."""
    bare = line.strip("*_#> ")
    return bare.endswith(":") or bool(re.fullmatch(r"(sure|certainly|of course|okay|ok|great|absolutely|yes)\W*", bare, re.I))


def _stripped(line: str) -> str:
    """A line without list marks, preamble, quotes and Markdown."""
    line = re.sub(r"^(#+|>|[-*•]|\d{1,2}[.)])\s+", "", line)
    for _ in range(4):
        shorter = _PREAMBLE.sub("", line, count=1).strip()
        if shorter == line or not shorter:
            break
        line = shorter
    quoted = re.match(r"^[\"“«'`*]+([^\"”»`*\n]{2,}?)[\"”»'`*]+\s*(\W|$)", line)
    line = re.sub(r"\*\*(.+?)\*\*|__(.+?)__", lambda m: m[1] or m[2], line)
    if quoted and len(quoted[0]) < len(line) and re.match(r"\W*[(—–-]", line[len(quoted[0]) - 1 :]):
        line = quoted[1]
    return " ".join(line.strip("\"'`*“”‘’«» ").rstrip(". ").strip("\"'`*“”‘’«» ").split())


def _from_json(text: str) -> str | None:
    """The label in a JSON answer, which was not asked for."""
    body = re.sub(r"^```\w*\s*|\s*```$", "", text).strip()
    if not body.startswith(("{", "[")):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict):
        if value.keys() & {"arguments", "parameters", "tool_calls", "function", "tool"}:
            raise NoAnswer("it called a tool instead of answering")
        if value.get("error"):
            raise NoAnswer(f"it reports an error: {_short(str(value['error']))}")
        named = [value[k] for k in ("label", "answer", "phrase", "description", "explanation", "result") if k in value]
        value = next((v for v in [*named, *value.values()] if isinstance(v, str)), None)
    return value if isinstance(value, str) else None


def windows_in(text: str, n: int) -> list[bool] | None:
    """[n] in which windows a judge says that a latent fires; None where its answer is not one list of numbers of windows.

    The last list that stands alone on its line counts, then the one that ends the answer, then the only one.
    """
    try:
        text = spoken(text)
    except NoAnswer:
        return None
    if re.fullmatch(r"\W*(none|none of them|none of (these|the) (texts|pieces|windows)|no windows?)\W*", text, re.I):
        return [False] * n
    if re.fullmatch(r"\W*(\d+\W+)*(and\W+)?\d+\W*", text) and "[" not in text and not re.search(r"\d\s*[-–.]\s*\d", text):
        text = f"[{', '.join(re.findall(r'[0-9]+', text))}]"
    found = [(m, numbers) for m in re.finditer(r"\[[^\[\]]*\]", text) if (numbers := _numbers(m[0], n)) is not None]
    bare = [numbers for m, numbers in found if _alone(text, m)]
    last = [numbers for m, numbers in found[-1:] if not re.search(r"\w", text[m.end() :])]
    only = [numbers for _, numbers in found[:1] if all(numbers == other for _, other in found)]
    numbers = next((some[-1] for some in (bare, last, only) if some), None)
    return None if numbers is None else [i + 1 in numbers for i in range(n)]


def _alone(text: str, match: re.Match) -> bool:
    """Whether nothing but marks, or a word like "Answer:", stands beside a list on its line."""
    before, after = text[: match.start()].rpartition("\n")[2], text[match.end() :].partition("\n")[0]
    return bool(re.fullmatch(r"\W*((final )?answer|windows|pieces|output|json)?\W*", before, re.I)) and not re.search(
        r"\w", after
    )


def _numbers(text: str, n: int) -> set[int] | None:
    """The numbers of a JSON list, if all are numbers of windows."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    values = [int(v) if isinstance(v, str) and v.strip().isdecimal() else v for v in values]
    return set(values) if all(type(v) is int and 1 <= v <= n for v in values) else None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"
