"""Every route that is answered by a model's tokenizer: asks a node that has its files, and never loads a model."""

from collections.abc import Callable

import msgspec

from cortex_gateway.dialects.dialect import Count, ToCount, Tokenizing
from cortex_gateway.errors import NeuronRefused, NoHealthyNode, NotConnected, UpstreamMalformed
from cortex_gateway.routes.ask import Outgoing, asked, read
from cortex_gateway.routes.exchange import Exchange

COUNT_SECONDS = 30.0  # for the longest prompt


class _Counted(msgspec.Struct):
    count: int


async def count(it: Exchange, body: bytes, *, route: Count) -> None:
    """The length of a prompt by the model's own template and tokenizer. Raises RefusedError, NoHealthyNode …"""
    answer = await _answer(it, "/tokenize", route.decode(body))
    try:
        counted = msgspec.json.decode(answer, type=_Counted).count
    except msgspec.MsgspecError as error:
        raise UpstreamMalformed(f"The neuron's count cannot be read: {error}") from error
    await it.client.answer(200, route.encode(counted))


async def tokenize(it: Exchange, body: bytes, *, route: Tokenizing) -> None:
    """What the node says. Raises as `count` does."""
    await it.client.answer(200, await _answer(it, route.path, route.decode(body)))


async def _answer(it: Exchange, path: str, wanted: ToCount) -> bytes:
    """Of the first node that has the model's files."""
    it.check_model(wanted.model)
    fleet = it.gateway.fleet
    model = fleet.resolve(wanted.model)
    for base_url in fleet.locate_tokenizer(model):
        answer = await _ask(it, base_url, path, wanted.body, model)
        if answer is not None:
            return answer
    raise NoHealthyNode(f"No node that is up has the tokenizer of {model!r}: load the model once to fetch it.")


async def _ask(it: Exchange, base_url: str, path: str, body: Callable[[str], bytes], model: str) -> bytes | None:
    """The node's answer; None when it has no files of the model or cannot be reached."""
    outgoing = Outgoing(model=model, path=path, body=body, stream=False, silence=COUNT_SECONDS)
    try:
        async with asked(it, base_url, outgoing, model) as response:
            return await read(response)
    except NotConnected:  # nothing was sent: what a node dies of is not passed on to the next
        return None
    except NeuronRefused as refused:
        if refused.status == 404:
            return None
        raise
