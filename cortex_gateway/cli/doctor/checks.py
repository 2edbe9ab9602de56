"""`cortex doctor`: what agents rely on, tried on the live gateway in each dialect, and what to do where it does not hold."""

import json
import re
from collections.abc import Callable, Iterator, Mapping

from attrs import evolve, frozen

from cortex_gateway.cli.api import Api, CommandError, message
from cortex_gateway.cli.doctor.questions import CAPITALS, DIALECTS, Dialect, Question, Reply
from cortex_gateway.cli.launch.setup import ServedModel

FILLER = "The quick brown fox jumps over the lazy dog. "
TOKENS_OF_FILLER = 10
"""At least; what is filled to half a window fits, and what is filled to a window of these does not."""
OVERLONG = re.compile(r"prompt is too long: \d+ tokens > \d+ maximum")
"""What Claude Code compacts by: exactly that (seen in 2.1.332)."""


class DoesNotHoldError(Exception):
    """An answer is not what agents rely on. The message says in which way."""


@frozen(kw_only=True)
class Finding:
    """Whether one thing holds in one dialect. `detail` is what was seen, `remedy` what to do where it does not hold."""

    dialect: str
    check: str
    holds: bool
    detail: str
    remedy: str = ""


@frozen
class Patient:
    """A model behind a gateway, asked in one dialect."""

    api: Api
    dialect: Dialect
    model: ServedModel

    def question(self, words: str, **more: bool) -> Question:
        turn = {"role": "user", "content": words}
        return Question(model=self.model.id, turns=(turn,), longest=min(self.model.answer, 512), **more)

    def ask(self, question: Question) -> Reply:
        """Raises CommandError, DoesNotHoldError."""
        answer = self.api.post(self.dialect.path, self.dialect.body(question))
        try:
            return self.dialect.read(answer)
        except (LookupError, TypeError, AttributeError) as error:
            raise DoesNotHoldError(f"the answer lacks {error}") from error


def examine(api: Api, model: ServedModel) -> Iterator[Finding]:
    """One finding after another, in the order of CHECKS for each dialect."""
    for dialect in DIALECTS:
        for name, (check, remedy) in CHECKS.items():
            try:
                detail, holds = check(Patient(api, dialect, model)), True
            except (CommandError, DoesNotHoldError) as error:
                detail, holds = str(error), False
            yield Finding(dialect=dialect.name, check=name, holds=holds, detail=detail, remedy="" if holds else remedy)


def answers(patient: Patient) -> str:
    """Some text comes."""
    reply = patient.ask(patient.question("Say hello in one word."))
    if not reply.text.strip():
        raise DoesNotHoldError("the answer is empty")
    return f"{reply.prompt} tokens of prompt were answered"


def streams(patient: Patient) -> str:
    """It comes piece by piece, and its end is said."""
    body = patient.dialect.body(patient.question("Say hello in one word.", stream=True))
    with patient.api.events(patient.dialect.path, body) as events:
        seen = list(events)
    for event in seen:
        if event.get("type") == "response.failed":
            raise DoesNotHoldError(message(event["response"]))
    pieces = sum(bool(patient.dialect.piece(event)) for event in seen)
    if not pieces:
        raise DoesNotHoldError("no event had a piece of the answer")
    if not any(patient.dialect.ended(event) for event in seen):
        raise DoesNotHoldError("the stream stopped without saying how it ended")
    return f"{pieces} pieces in {len(seen)} events"


def calls_a_tool(patient: Patient) -> str:
    """A named tool is called with arguments of its schema."""
    reply = patient.ask(patient.question("Tell the capital of France.", tool=True))
    if reply.call is None:
        raise DoesNotHoldError("the tool was not called, although it was named")
    return f"called with {_fitting(reply.call)}"


def answers_in_a_form(patient: Patient) -> str:
    """The answer is JSON of the schema."""
    return f"answered {_fitting(patient.ask(patient.question('What is the capital of France? JSON only.', form=True)).text)}"


def reuses_the_prompt(patient: Patient) -> str:
    """The second turn of a conversation computes what is new only, as an agent's every turn should."""
    room = min(1000, patient.model.context // 8)
    first = evolve(patient.question(FILLER * (room // TOKENS_OF_FILLER) + "Remember this. Say yes."), longest=16)
    said = patient.ask(first)
    more = ({"role": "assistant", "content": said.text.strip() or "Yes."}, {"role": "user", "content": "And now?"})
    reply = patient.ask(evolve(first, turns=(*first.turns, *more)))
    if reply.cached * 2 < said.prompt:
        raise DoesNotHoldError(f"of {said.prompt} tokens that were there before, {reply.cached} were reused")
    return f"of {reply.prompt} tokens, {reply.cached} were not computed again"


def refuses_what_is_too_long(patient: Patient) -> str:
    """In words by which the client compacts, and without a truncation."""
    words = FILLER * (patient.model.context // TOKENS_OF_FILLER + 100)
    try:
        reply = patient.ask(patient.question(words))
    except CommandError as refusal:
        known = OVERLONG.fullmatch(str(refusal)) if patient.dialect.name == "anthropic" else "token" in str(refusal)
        if not known:
            raise DoesNotHoldError(f"the refusal does not say that the prompt is too long: {refusal}") from refusal
        return str(refusal)
    raise DoesNotHoldError(f"a prompt beyond {patient.model.context} tokens was answered, as one of {reply.prompt}")


def _fitting(text: str) -> str:
    """`text`, if it is JSON of SCHEMA. Raises DoesNotHoldError."""
    try:
        value = json.loads(text)
    except ValueError:
        raise DoesNotHoldError(f"this is no JSON: {text[:80]!r}") from None
    if not isinstance(value, dict) or set(value) != {"capital"} or value["capital"] not in CAPITALS:
        raise DoesNotHoldError(f"this is not of the schema: {text[:80]}")
    return json.dumps(value)


CHECKS: Mapping[str, tuple[Callable[[Patient], str], str]] = {
    "chat": (answers, "see `cortex status` for the node, and the neuron's log"),
    "streaming": (streams, "a proxy in front may gather or cut streams: turn its buffering off, and raise its timeout"),
    "tools": (
        calls_a_tool,
        "agents need it: use a model whose features in `cortex models` have tools, and a current neuron",
    ),
    "json": (answers_in_a_form, "update the neuron, or leave response_format out"),
    "cache": (
        reuses_the_prompt,
        "something in front changes the prompt, or the model has too few pages: see docs/metrics.md",
    ),
    "limits": (refuses_what_is_too_long, "a client cannot compact in time: set its window with `cortex launch`"),
}
