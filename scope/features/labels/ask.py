"""Writers and judges of labels: an OpenAI-compatible endpoint, our own model, or a transformers one.

A `Writer` is anything with a `name` and `answer(question, most) -> str`.
"""

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from scope.errors import ConfigError
from scope.features.labels.answers import Busy, CutShort, NoAnswer, refused_by_filter, reply_in
from scope.models.face import LanguageModel

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_TRIES, _PATIENCE = 6, 60.0
_LARGEST = 4 << 20  # bytes of an answer that are read
ROOM = 4096
"""Tokens given to a model whose answer did not end within fewer, as one that thinks first."""


@runtime_checkable
class Writer(Protocol):
    """Answers questions, or raises `NoAnswer`. `name` is stored with every label."""

    name: str

    def answer(self, question: str, most: int = 200) -> str:
        """The answer, of about `most` tokens at most; may be called from several threads."""
        ...


class Endpoint:
    """A server that speaks OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama and many more.

    Asks again after pauses when it is busy, gone or slow, and never faster than `per_minute`.

    Raises:
        ConfigError: an address that is none, a key that would travel unencrypted; on asking: a refusal, or no answer.
    """

    def __init__(self, base: str, model: str, key: str | None = None, per_minute: float = 0, timeout: float = 120):
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"{base!r} is no address; give one such as https://api.openai.com/v1 or http://127.0.0.1:11434/v1"
            )
        if key and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(f"The key would travel to {parts.hostname} unencrypted. Give an https address, or no key.")
        self.host, self.model, self.name = parts.hostname, model, f"{model} at {parts.hostname}"
        self._url, self._key, self._timeout = base.rstrip("/") + "/chat/completions", key, timeout
        self._limit, self._room, self._greedy = "max_tokens", 0, True
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._pause, self._free, self._lock = 60 / per_minute if per_minute else 0.0, 0.0, threading.Lock()
        self._stopped = threading.Event()

    def answer(self, question: str, most: int = 200) -> str:
        """The text of the answer; what the server will not take is left out of this and later questions.

        Raises:
            NoAnswer: the model refused, called a tool, or did not come to an end within ROOM tokens.
            ConfigError: the server refuses, or does not answer.
        """
        wait, why, attempt = 1.0, "", 0
        while attempt < _TRIES:
            if attempt:
                self._stopped.wait(min(wait, _PATIENCE))
            self._take_turn()
            room = max(most, self._room)
            body = {"model": self.model, "messages": [{"role": "user", "content": question}], "stream": False}
            body |= {self._limit: room} if self._limit else {}
            body |= {"temperature": 0} if self._greedy else {}
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                text = error.read(2000).decode("utf-8", "replace").strip()
                if refused_by_filter(text):
                    raise NoAnswer("a content filter held the question back") from None
                if error.code in (400, 422) and self._adapted(body, text):
                    continue
                if error.code not in _AGAIN:
                    raise ConfigError(self._refused(error.code, text)) from None
                why, wait = f"status {error.code}", _asked_wait(error) or 2.0**attempt * (1 + random.random() / 4)
            except CutShort:
                if room >= ROOM:
                    raise
                self._room = ROOM
                continue
            except (OSError, http.client.HTTPException, Busy) as error:
                why, wait = f"{type(error).__name__}: {error}", 2.0**attempt * (1 + random.random() / 4)
            attempt += 1
        raise ConfigError(
            f"{self.host} did not answer {_TRIES} times ({why}). Labels made so far are saved; give the command again later."
        )

    def _adapted(self, body: dict, text: str) -> bool:
        """Whether the refusal names a setting that can be left out, which is then left out of every question.

        OpenAI's reasoning models take max_completion_tokens in place of max_tokens, and no temperature.
        """
        if "max_tokens" in body and "max_tokens" in text:
            self._limit, self._room = "max_completion_tokens", ROOM  # thoughts count among them
        elif "max_completion_tokens" in body and "max_completion_tokens" in text:
            self._limit = ""
        elif "temperature" in body and "temperature" in text:
            self._greedy = False
        else:
            return False
        return True

    def _take_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._free)
            self._free = turn + self._pause
        if self._stopped.wait(turn - now):
            raise ConfigError("Stopped.")

    def stop(self) -> None:
        """Ask nothing any more: threads that wait give up at once."""
        self._stopped.set()

    def _post(self, body: dict) -> str:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._timeout) as reply:
            return reply_in(reply.read(_LARGEST))

    def _refused(self, code: int, text: str) -> str:
        ways = {
            401: "Is the key right? It is read from the environment variable that --key names.",
            403: "Is the key allowed to use this model?",
            404: f"Is {self._url} the right address, and {self.model!r} a model there? The address usually ends in /v1.",
        }
        message = " ".join(text.split())[:300]
        return f"{self.host} refused with status {code}: {message}\n  {ways.get(code, 'Change the flags as the message says.')}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected question could take the key elsewhere."""

    def redirect_request(self, *args):
        return None


def _asked_wait(error: urllib.error.HTTPError) -> float | None:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


class Local:
    """One of our models, or TransformerLens' through "lens:NAME": answers by generating, the likeliest token each time."""

    def __init__(self, model: LanguageModel, name: str):
        self.model, self.name, self._lock = model, name, threading.Lock()

    def answer(self, question: str, most: int = 200) -> str:
        tokenizer, turns = self.model.tokenizer, [{"role": "user", "content": question}]
        chat = bool(getattr(tokenizer, "chat_template", None))
        ids = tokenizer.encode(tokenizer.chat(turns) if chat else f"{question}\n\nAnswer:", bos=not chat)
        if len(ids) > self.model.cfg.n_ctx - most:
            raise ConfigError(
                f"A question has {len(ids):,} tokens, and {self.name} has room for {self.model.cfg.n_ctx - most:,}.\n"
                "  Give a model with a longer context."
            )
        with self._lock:
            return self.model.generate([ids], most, do_sample=False, return_type="generations")[0].text


class Transformers:
    """A causal model of the transformers library, by folder or hub id, with its chat template where it has one."""

    def __init__(self, name: str, device: object = "cpu", dtype: object = None, revision: str | None = None):
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise ConfigError("transformers is not installed: pip install transformers") from None
        self.name, self._lock = name, threading.Lock()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            loaded = AutoModelForCausalLM.from_pretrained(name, revision=revision, **({"dtype": dtype} if dtype else {}))
            self._model = loaded.to(device).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"transformers cannot load {name}: {str(error).splitlines()[0]}") from None

    def answer(self, question: str, most: int = 200) -> str:
        tokenizer = self._tokenizer
        with self._lock:
            if tokenizer.chat_template:
                turns = [{"role": "user", "content": question}]
                given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            else:
                given = tokenizer(question + "\n\nAnswer:", return_tensors="pt")
            given = given.to(self._model.device)
            out = self._model.generate(**given, max_new_tokens=most, do_sample=False)
            return tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def key_from(variable: str) -> str | None:
    """The key in an environment variable, or None."""
    return os.environ.get(variable, "").strip() or None
