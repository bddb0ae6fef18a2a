"""Which replica a request goes to: the least busy, but a session stays where its prefix is cached.

Pure. A request has a session key: what the client says its session is, else a hash of how its
prompt begins. A session goes where it was served last, else where rendezvous hashing puts it (the
node with the highest hash of key and name), so that gateways agree without talking and a node that
leaves moves its own sessions only. That preference is bounded: a node that has more requests than
the least busy one and its slack on top is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import attrs

SLACK = 4  # requests, where it is not known how many a replica takes at a time
SLACK_SHARE = 4  # else one in so many of those; a full batch more would cost more than a prefix
SESSIONS = 16_384  # remembered; some 3 MB
PREFIX_CHARS = 2048  # of each of the first messages; what differs later is another prefix's end
PREFIX_TOKENS = 512  # of a prompt that came as token ids
VALUE_CHARS = 1024

# What clients call their session, the most particular first. The agent's id goes with Claude Code's
# session, for each of its agents has a prompt of its own.
SESSION_HEADERS = (
    "x-session-id",
    "x-claude-code-session-id",
    "x-litellm-session-id",
    "x-olla-session-id",
    "session_id",
    "session-id",
    "conversation_id",
)
AGENT_HEADER = "x-claude-code-agent-id"
OPENERS = frozenset({"system", "developer"})


def affinity_key(headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    """The session that a request belongs to, as 16 hex digits; None when nothing tells.

    *headers* have lower-case names. The key is a hash: what clients call their users and sessions
    goes into no log and no memory. Whatever the types in *body*, this never raises.
    """
    for name in SESSION_HEADERS:
        value = headers.get(name)
        if value:
            return _hash(
                "session", value[:VALUE_CHARS], headers.get(AGENT_HEADER, "")[:VALUE_CHARS]
            )
    metadata = body.get("metadata")
    of_metadata = metadata.get("user_id") if isinstance(metadata, dict) else None
    for value in (
        body.get("prompt_cache_key"),
        of_metadata,
        body.get("user"),
        body.get("safety_identifier"),
    ):
        if isinstance(value, str) and value:
            return _hash("session", value[:VALUE_CHARS])
    opening = _opening(body)
    return _hash("prefix", *opening) if opening else None


class Candidate(NamedTuple):
    """A replica that could take the request. ``standing`` comes before everything: the lowest is
    taken first. ``capacity`` is how many requests it takes at a time, where that is known."""

    node: str
    load: int
    standing: int = 0
    capacity: int | None = None

    @property
    def slack(self) -> int:
        return SLACK if self.capacity is None else max(1, self.capacity // SLACK_SHARE)


def choose(candidates: Sequence[Candidate], key: str | None, last: str | None = None) -> Candidate:
    """The replica for a request of session *key* that was served on *last* before.

    Among those of the best standing: the session's own, if its load exceeds the least by no more
    than its slack, else the least busy, ties broken by the session's hash or by name.
    """
    best = min([candidate.standing for candidate in candidates])
    peers = [candidate for candidate in candidates if candidate.standing == best]
    if key is None:
        return min(peers, key=lambda peer: (peer.load, peer.node))
    least = min([peer.load for peer in peers])
    home = next((peer for peer in peers if peer.node == last), None)
    if home is None:
        home = max(peers, key=lambda peer: _weight(key, peer.node))
    if home.load <= least + home.slack:
        return home
    return min(peers, key=lambda peer: (peer.load, -_weight(key, peer.node)))


@attrs.define(eq=False)
class SessionMap:
    """Where each session was served last; the longest unused is forgotten first."""

    limit: int = SESSIONS
    _nodes: OrderedDict[tuple[str, str], str] = attrs.field(factory=OrderedDict, init=False)

    def last(self, model: str, key: str) -> str | None:
        return self._nodes.get((model, key))

    def served(self, model: str, key: str, node: str) -> None:
        self._nodes[model, key] = node
        self._nodes.move_to_end((model, key))
        if len(self._nodes) > self.limit:
            self._nodes.popitem(last=False)

    def __len__(self) -> int:
        return len(self._nodes)


def _opening(body: Mapping[str, Any]) -> tuple[str, ...]:
    """How the prompt begins: its first system message and its first turn, each cut off."""
    messages = body.get("messages")
    if isinstance(messages, list):
        parts: list[str] = []
        for message in messages[:4]:
            if not isinstance(message, dict):
                break
            parts.append(_text(message.get("content")))
            if message.get("role") not in OPENERS:
                break
        return tuple(parts) if any(parts) else ()
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0] if isinstance(prompt[0], str | list) else prompt
    if isinstance(prompt, list):
        return (repr(prompt[:PREFIX_TOKENS]),) if prompt else ()
    return (prompt[:PREFIX_CHARS],) if isinstance(prompt, str) and prompt else ()


def _text(content: Any) -> str:
    """The beginning of a message's text, whichever way it was written."""
    if isinstance(content, str):
        return content[:PREFIX_CHARS]
    found: list[str] = []
    room = PREFIX_CHARS
    for part in content[:16] if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str) and room > 0:
            found.append(text[:room])
            room -= len(found[-1])
    return "".join(found)


def _hash(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=8).hexdigest()


def _weight(key: str, node: str) -> int:
    """Of rendezvous hashing (Thaler and Ravishankar 1998): each key ranks all nodes its own way."""
    return int.from_bytes(blake2b(f"{key}\0{node}".encode(), digest_size=8).digest())
