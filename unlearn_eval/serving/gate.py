"""Who may ask an edit's server, and for what: every request comes by here before any route of vLLM's.

Everything is closed that is not named: of routes those in `ROUTES`, of a request's fields those that are known to leave
a memory's decision alone. A key, where there is one, guards every route but /health. On this machine's own address a
request must name this machine, so that a web page whose name was pointed here is refused.

This knows nothing of vLLM.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_eval.utils.errors import UserError

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NAME = "unlearn_eval_routes"  # of our plug-in, and in the state of the server's application
KEY_HINT = "give --api-key KEY"
KNOWN = "unlearn_eval_known"  # in a request's scope: whether the client may know what is served
EDIT_BYTES, BODY_BYTES = 16 * 2**10, 8 * 2**20
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HEALTH, EDIT = ("GET", "/health"), ("POST", "/v1/edit")
ROUTES = frozenset({
    HEALTH, EDIT, ("GET", "/v1/edit"), ("GET", "/v1/models"), ("POST", COMPLETIONS), ("POST", CHAT),
    ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/metrics"), ("GET", "/version"), ("GET", "/load"),
})  # fmt: skip

# Fields that change which tokens are drawn, or what is said of them, after a memory has decided; or nothing.
_BOTH = """
    model stream stream_options stream_interval user request_id metadata store service_tier seed n priority cache_salt
    temperature top_p top_k min_p frequency_penalty presence_penalty repetition_penalty length_penalty logit_bias
    allowed_token_ids bad_words stop stop_token_ids min_tokens max_tokens ignore_eos include_stop_str_in_output
    skip_special_tokens spaces_between_special_tokens logprobs logprob_token_ids return_tokens_as_token_ids
    return_token_ids response_format structured_outputs repetition_detection thinking_token_budget watermarking
""".split()
FIELDS = {
    COMPLETIONS: frozenset([*_BOTH, "prompt", "suffix"]),
    CHAT: frozenset([
        *_BOTH, "messages", "tools", "tool_choice", "parallel_tool_calls", "documents", "top_logprobs",
        "max_completion_tokens", "include_reasoning",
    ]),
}  # fmt: skip

_ENDS = "the prompt would end elsewhere than as it was edited, so that a memory may not find it"
_SHOWS = "what stands before the prompt's end is the unedited model's"
# What an edit of weights does not mind, and a memory does: field -> (its harmless value, why).
WITHOUT_MEMORY: Mapping[str, tuple[Any, str]] = {
    "prompt_logprobs": (None, _SHOWS),
    "echo": (False, _SHOWS),
    "use_beam_search": (False, "each beam is a prompt of its own, so that a memory would decide anew at every token"),
    "continue_final_message": (False, _ENDS),
    "add_generation_prompt": (True, _ENDS),
    "chat_template_kwargs": (None, _ENDS),
    "reasoning_effort": (None, _ENDS),
    "truncate_prompt_tokens": (None, _ENDS),
    "truncation_side": (None, _ENDS),
}
_SPECIAL = {COMPLETIONS: True, CHAT: False}  # add_special_tokens, as it is without being said
# Of a chat's template, which other requests do not have.
TEMPLATED = ("continue_final_message", "add_generation_prompt", "chat_template_kwargs", "reasoning_effort")


@dataclass(frozen=True)
class Refusal:
    """An answer in place of the server's.

    Attributes:
        status: of HTTP.
        message, hint: what is wrong, and what to do.
    """

    status: int
    message: str
    hint: str = ""


def is_loopback(host: str | None) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    if host is None:  # everywhere
        return False
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_fields(path: str, body: Mapping[str, Any], memory: bool) -> Refusal | None:
    """Why a request for an answer is refused, or None.

    Args:
        path: of the route.
        body: the request.
        memory: whether the server may have a memory edit in its engine.
    """
    allowed = FIELDS[path]
    for name, value in body.items():
        if value is None or name in allowed:
            continue
        harmless, why = WITHOUT_MEMORY.get(name, (None, None))
        if name == "add_special_tokens":
            harmless, why = _SPECIAL[path], _ENDS
        if why is None or (name in TEMPLATED and path != CHAT):
            return Refusal(400, f"{_short(name)} is not taken by this server", "leave it out")
        if memory and value is not harmless:
            return Refusal(400, f"{name} is not taken by a server of memory edits: {why}", "leave it out")
    if path == CHAT and memory:
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if isinstance(last, Mapping) and last.get("role") == "assistant":
            return Refusal(400, f"the last message is the assistant's own: {_ENDS}", "end with the user's message")
    return None


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:60]}..."


class Gate:
    """The guard of a server, as ASGI has it.

    Args:
        app: what it guards.
        keys: one of which a client must send; without any, everybody may ask.
        host: where the server listens; None is everywhere.
        origins: of web pages that may ask; "*" is all.

    Raises:
        UserError: other machines could ask, without a key.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[Any]],
        keys: Sequence[str] = (),
        host: str | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self._app, self._origins = app, tuple(origins)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys if key]
        self._local = is_loopback(host)
        if not self._local and not self._keys:
            raise UserError(f"{host or 'this server'} can be reached from other machines, without a key", KEY_HINT)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request that is refused; pass any other on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self._refused(scope)
        if refused is None and scope["method"] == "POST":
            body = await _read(receive, _most(scope))
            if body is None:
                refused = Refusal(413, f"the request is longer than {_most(scope)} bytes", "send a shorter one")
            else:
                refused = self._refused_body(scope, body)
                receive = _again(body, receive)
        if refused is not None:
            await _answer(send, refused)
            return
        await self._app(scope, receive, send)

    def _refused(self, scope: dict[str, Any]) -> Refusal | None:
        """Why a request is refused by its head; notes what the client may know."""
        headers = _headers(scope)
        if self._local and not all(is_loopback(_name(host)) for host in headers.get("host", [""])):
            return Refusal(403, "this server is for this machine only", "ask 127.0.0.1")
        origins = headers.get("origin", [])
        if "*" not in self._origins and not set(origins) <= set(self._origins):
            return Refusal(403, "web pages may not ask this server", "allow theirs with -- --allowed-origins")
        known = scope[KNOWN] = not self._keys or self._has_key(headers)
        route = (scope["method"], _path(scope))
        if not known and route != HEALTH:
            return Refusal(401, "the key is missing or wrong", "send it: Authorization: Bearer KEY")
        if route not in ROUTES:
            return Refusal(404, "there is no such route here", "see docs/guides/serving.md")
        if scope["method"] == "POST" and not _is_json(headers):
            return Refusal(415, "the request is not JSON", "send Content-Type: application/json")
        return None

    def _has_key(self, headers: Mapping[str, list[str]]) -> bool:
        scheme, _, sent = (headers.get("authorization") or [""])[0].partition(" ")
        digest = hashlib.sha256(sent.encode("latin-1")).digest()
        found = False
        for key in self._keys:  # all of them, so that time tells nothing
            found |= secrets.compare_digest(digest, key)
        return found and scheme.lower() == "bearer"

    @staticmethod
    def _refused_body(scope: dict[str, Any], body: bytes) -> Refusal | None:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return Refusal(400, "the request is not JSON", "send one object")
        if not isinstance(found, dict):
            return Refusal(400, "the request is not an object of JSON", "send one object")
        path = _path(scope)
        if path not in FIELDS:
            return None
        served = getattr(scope["app"].state, NAME, None)
        return check_fields(path, found, memory=served is None or served.has_memories)


# Details ---------------------------------------------------------------------------------------------------


def _headers(scope: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _name(host: str) -> str:
    """A host's name, without its port: a tunnel may end at another one."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _path(scope: Mapping[str, Any]) -> str:
    """The path as routes see it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _is_json(headers: Mapping[str, list[str]]) -> bool:
    kinds = headers.get("content-type", [])
    return len(kinds) == 1 and kinds[0].partition(";")[0].strip().lower() == "application/json"


def _most(scope: Mapping[str, Any]) -> int:
    return EDIT_BYTES if _path(scope) == EDIT[1] else BODY_BYTES


async def _read(receive: Receive, most: int) -> bytes | None:
    """A request's body; None if it is longer than this."""
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > most:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Any:
    """What gives a body that was read once more, and then whatever comes."""
    given = False

    async def receive_again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _answer(send: Send, refused: Refusal) -> None:
    error = {"message": refused.message, "hint": refused.hint, "code": refused.status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
