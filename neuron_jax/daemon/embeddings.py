"""One request for embeddings or scores from body to answer: checks, tokens, engine, metrics; must not know routes."""

import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import field, frozen
from litestar import Request, Response

from neuron_jax.daemon import embed_wire
from neuron_jax.daemon.embed_schema import (
    EmbeddingsRequest,
    PairsRequest,
    RerankRequest,
    read_embeddings,
    read_rerank,
    read_score,
    refuse_kind,
)
from neuron_jax.daemon.generation import HEARTBEAT, ServingModel, Usage, until_ready
from neuron_jax.daemon.metrics import RequestTimer
from neuron_jax.daemon.model_text import ModelText
from neuron_jax.daemon.prepare import fitting
from neuron_jax.daemon.problems import Problem, invalid_body, unsupported
from neuron_jax.daemon.resident import ResidentModel
from neuron_jax.daemon.responses import non_streaming_answer
from neuron_jax.daemon.service import NeuronServices, as_problem, outcome_of, read_request
from neuron_jax.errors import EngineDied
from neuron_jax.text.pair import PairPrompt

MAX_REQUEST_TOKENS = 2**21
"""Of all texts of one request together."""

Ask = Request[Any, Any, Any]
Values = npt.NDArray[np.float32]


@frozen
class TextJob:
    """Ids of each text, and the place where its second part begins, 0 where it has one. Nothing is generated of them."""

    texts: Sequence[list[int]]
    seconds: Sequence[int]
    usage: Usage = field(factory=Usage)

    @property
    def prompt_tokens(self) -> int:
        """Of all of them."""
        return sum(map(len, self.texts))


@frozen
class TextReader:
    """What turns a request's texts into tokens, `limit` of each at most. `pair` is what a decoder that scores is asked."""

    text: ModelText
    limit: int
    pair: PairPrompt | None = None


@frozen
class TextRoute:
    """What makes the three routes differ: reading, tokenizing, answering."""

    capability: str
    read: Callable[[dict[str, Any]], Any]
    model: Callable[[Any], str]
    encode: Callable[[Any, TextReader], TextJob]
    answer: Callable[[Any, TextJob, Values], Any]


@frozen(eq=False)
class ReceivedTexts:
    """A request that was read, of `size` bytes, and who is to answer it."""

    wanted: Any  # what the route reads
    size: int
    resident: ResidentModel
    route: TextRoute
    watch: RequestTimer


async def ask(neuron: NeuronServices, request: Ask, route: TextRoute) -> Response[Any]:
    """POST /v1/embeddings, /v1/rerank and /v1/score, from body to answer."""
    began = time.monotonic()
    wanted, size = await read_request(neuron, request, route.read)
    model = route.model(wanted)
    resident = neuron.lifecycle.serving(model)
    refuse_kind(model, resident.text.abilities.capabilities, route.capability)
    asked = ReceivedTexts(wanted, size, resident, route, neuron.metrics.begin(resident.id, began))
    return await non_streaming_answer(request, _answered(neuron, asked))


async def _answered(neuron: NeuronServices, asked: ReceivedTexts) -> Any:
    """The body. A place in the model's line comes before anything is tokenized. Raises Problem."""
    resident, route, job, outcome = asked.resident, asked.route, None, "cancelled"
    try:
        with resident.admission.enter(1) as reservation:
            while not await reservation.wait(HEARTBEAT):
                pass
            job = await neuron.offload(asked.size, route.encode, asked.wanted, await _reader(neuron, resident))
            values = await _computed(resident, job)
        body = await neuron.offload(values.nbytes, route.answer, asked.wanted, job, values)
    except Exception as error:
        problem = as_problem(resident.id, error)
        outcome = outcome_of(problem)
        raise problem from error
    else:
        outcome = "ok"
        return body
    finally:
        asked.watch.end(outcome, job)


async def _reader(neuron: NeuronServices, resident: ResidentModel) -> TextReader:
    text, pair = resident.text, None
    if text.description.asks_in_words:
        pair = await text.render_pair(neuron.lifecycle.renderers.render)
    return TextReader(text, resident.max_context, pair)


async def _computed(resident: ServingModel, job: TextJob) -> Values:
    """What the engine makes of each text, [N, width]. If it dies, the next one is asked, once. Raises Problem, EngineDied."""
    try:
        return await _run(resident, job)
    except EngineDied:
        pass
    try:
        return await _run(resident, job)
    except Problem as problem:
        problem.add(engine_died=True)
        raise


async def _run(resident: ServingModel, job: TextJob) -> Values:
    async for _ in until_ready(resident):
        pass
    engine = resident.engine(job.texts[0])
    values = np.empty((len(job.texts), engine.ready.width), np.float32)
    with engine.embed(job.texts, job.seconds) as vectors:
        while vectors.open:
            part = await vectors.next()
            values[part.places] = np.frombuffer(part.values, "<f4").reshape(len(part.places), -1)
    return values


def embedding_job(wanted: EmbeddingsRequest, reader: TextReader) -> TextJob:
    """Raises Problem where an input is nothing, has a token that there is not, or more than `limit` tokens, and where the
    vectors may not be cut as asked."""
    text, limit = reader.text, reader.limit
    check_dimensions(wanted, text)
    texts: list[list[int]] = []
    left = MAX_REQUEST_TOKENS
    for at, given in enumerate(wanted.inputs):
        name = f"input[{at}]" if len(wanted.inputs) > 1 else "input"
        with fitting(name, limit):
            if wanted.truncate:
                texts.append(text.encode_start(name, given, limit))
            else:
                texts.append(text.encode_prompt(name, given, limit).ids)
        left -= len(texts[-1])
        _check_left("input", left)
    return TextJob(texts, [0] * len(texts))


def pairs_job(wanted: PairsRequest, reader: TextReader) -> TextJob:
    """Raises Problem where a pair has a token that there is not, or more than `limit` tokens."""
    texts: list[list[int]] = []
    seconds: list[int] = []
    left, (_, field_name) = MAX_REQUEST_TOKENS, wanted.fields
    for at, (first, second) in enumerate(wanted.pairs):
        name = f"{field_name}[{at}]" if len(wanted.pairs) > 1 else field_name
        with fitting(name, reader.limit):
            ids, place = _pair_ids(first, second, reader)
        reader.text.check_ids(name, ids)
        texts.append(ids)
        seconds.append(place)
        left -= len(ids)
        _check_left(field_name, left)
    return TextJob(texts, seconds)


def _pair_ids(first: str, second: str, reader: TextReader) -> tuple[list[int], int]:
    """Ids, and the place where the second text begins, 0 where nothing tells them apart. Raises TooManyTokensError."""
    tokenizer = reader.text.tokenizer
    if reader.pair is None:
        return tokenizer.encode_pair(first, second, most=reader.limit)
    return tokenizer.encode_rendered(reader.pair.fill(first, second), most=reader.limit), 0


def _check_left(name: str, left: int) -> None:
    if left < 0:
        raise invalid_body(name, f"{name}: more than {MAX_REQUEST_TOKENS} tokens in one request.")


def check_dimensions(wanted: EmbeddingsRequest, text: ModelText) -> None:
    """Raises Problem where the vectors of a model may not be cut to so many values."""
    asked, allowed = wanted.dimensions, text.description.dimensions
    if asked is None or asked in allowed:
        return
    if len(allowed) <= 1:
        raise unsupported("dimensions", "dimensions: vectors of this model may not be cut; leave it out.")
    raise invalid_body("dimensions", f"dimensions must be one of those that the model was made for; found {asked}.")


def scores(values: Values, *, raw: bool) -> list[float]:
    """values [N, 1] -> a score for each: from 0 to 1 by the logistic function, unless they are wanted `raw`."""
    found: list[float] = values[:, 0].astype(np.float64).tolist()
    return found if raw else [1 / (1 + math.exp(-max(-700.0, value))) for value in found]


def _embedded(wanted: EmbeddingsRequest, job: TextJob, values: Values) -> Any:
    return embed_wire.embeddings(wanted, values, job.prompt_tokens)


def _ranked(wanted: RerankRequest, job: TextJob, values: Values) -> Any:
    found = scores(values, raw=wanted.asked.raw)
    return embed_wire.ranking(wanted, found, job.prompt_tokens, "rerank-" + secrets.token_hex(16))


def _scored(wanted: PairsRequest, job: TextJob, values: Values) -> Any:
    found = scores(values, raw=wanted.raw)
    return embed_wire.scored(wanted, found, job.prompt_tokens, "score-" + secrets.token_hex(16), int(time.time()))


def _pairs_of_ranking(wanted: RerankRequest, reader: TextReader) -> TextJob:
    return pairs_job(wanted.asked, reader)


EMBEDDINGS = TextRoute("embeddings", read_embeddings, lambda wanted: wanted.model, embedding_job, _embedded)
RERANK = TextRoute("rerank", read_rerank, lambda wanted: wanted.asked.model, _pairs_of_ranking, _ranked)
SCORE = TextRoute("score", read_score, lambda wanted: wanted.model, pairs_job, _scored)
