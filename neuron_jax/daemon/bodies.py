"""Reads a request's body once, into one piece of memory that goes when it was used; must not know fields."""

from typing import Any

from litestar import Request


async def read_body(request: Request[Any, Any, Any]) -> bytearray:
    """The body. Litestar's own `body()` holds it twice while it joins the chunks, and then as long as the request lives.

    Raises RequestEntityTooLarge.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    return body
