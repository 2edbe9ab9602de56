"""What a client waits for, as the comment of a stream of server-sent events; knows no dialect.

A client that shows nothing of it skips comments, as every parser must.
"""

import msgspec

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.dialect import Progress


def progress_comment(waits: Progress | None) -> bytes:
    """`: progress {"phase", "done", "total", "unit"}`, or a bare one where nothing is known."""
    if waits is None:
        return sse.COMMENT
    told = {"phase": waits.phase, "done": waits.done, "total": waits.total, "unit": waits.unit}
    return sse.comment(msgspec.json.encode(told))
