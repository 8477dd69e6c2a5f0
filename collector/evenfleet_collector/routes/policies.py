"""`policies`: what is tolerated. Only the one in force is shown yet, and may be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from evenfleet_collector.routes.parts import PartsOf
from evenfleet_collector.routes.problems import listed
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import settings
from evenfleet_shared.errors import ConfigError, MessageError

router = APIRouter(tags=["policies"])


@router.get("/policies")
def show_policy(parts: PartsOf) -> Policy:
    """Return the policy in force."""
    return parts.reader().policy()


@router.put(
    "/policies",
    responses=listed(400, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Policy"}}},
        }
    },
)
async def set_policy(parts: PartsOf, request: Request) -> Policy:
    """Put a policy in force; what the body leaves out has its default. Returns the policy as it now stands."""
    policy = decode_policy(await request.body())
    await parts.edits.set_policy(policy)
    return await run_in_threadpool(lambda: parts.reader().policy())


def decode_policy(payload: bytes) -> Policy:
    """Read a policy.

    Raises:
        MessageError: The bytes are not JSON.
        ConfigError: A setting is unknown or out of bounds.

    >>> decode_policy(b'{"latency": {"margin_ratio": 0.2}}').latency.margin_ratio
    0.2
    """
    try:
        given = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError("encoding", f"body: expected a policy as JSON, found {error}; nothing was changed") from None
    try:
        policy = msgspec.convert(given, Policy)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"body: {settings.explain(error, given)}; nothing was changed") from None
    _refuse_unknown(given, msgspec.to_builtins(policy), "")
    return policy


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"body: unknown setting {prefix}{name}; expected of {', '.join(known)}; nothing was changed"
            )
        if isinstance(known[name], dict):
            _refuse_unknown(value, known[name], f"{prefix}{name}.")
