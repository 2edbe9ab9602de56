"""Every route that counts a prompt's tokens: asks a node that has the model's tokenizer, and never loads a model."""

from collections.abc import Callable

import msgspec

from cortex_gateway.dialects.dialect import Count
from cortex_gateway.errors import NeuronRefused, NoHealthyNode, NotConnected, UpstreamMalformed
from cortex_gateway.routes.ask import Outgoing, asked, read
from cortex_gateway.routes.exchange import Exchange

COUNT_SECONDS = 30.0  # for the longest prompt


class _Counted(msgspec.Struct):
    count: int


async def count(it: Exchange, body: bytes, *, route: Count) -> None:
    """The length of a prompt by the model's own template and tokenizer. Raises RefusedError, NoHealthyNode …"""
    wanted = route.decode(body)
    it.check_model(wanted.model)
    fleet = it.gateway.fleet
    model = fleet.resolve(wanted.model)
    for base_url in fleet.locate_tokenizer(model):
        counted = await _ask(it, base_url, wanted.body, model)
        if counted is not None:
            await it.client.answer(200, route.encode(counted))
            return
    raise NoHealthyNode(f"No node that is up has the tokenizer of {model!r}: load the model once to fetch it.")


async def _ask(it: Exchange, base_url: str, body: Callable[[str], bytes], model: str) -> int | None:
    """The node's count; None when it has no files of the model or cannot be reached."""
    outgoing = Outgoing(model=model, path="/tokenize", body=body, stream=False, silence=COUNT_SECONDS)
    try:
        async with asked(it, base_url, outgoing, model) as response:
            return msgspec.json.decode(await read(response), type=_Counted).count
    except NotConnected:  # nothing was sent: what a node dies of is not passed on to the next
        return None
    except NeuronRefused as refused:
        if refused.status == 404:
            return None
        raise
    except msgspec.MsgspecError as error:
        raise UpstreamMalformed(f"The neuron's count cannot be read: {error}") from error
