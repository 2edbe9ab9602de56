"""What is tried again and where, and what never is: a request that a neuron may have died of goes to no other."""

from typing import Any

import msgspec
import pytest

from cortex_gateway.errors import (
    CortexError,
    NeuronRefused,
    NotConnected,
    UpstreamMalformed,
    UpstreamReadFailed,
    UpstreamUnreachable,
)
from cortex_gateway.routes.retry import Fault, fault
from tests.fakes.gateway_rig import CHAT, COMPLETIONS, MESSAGES, Rig, run
from tests.fakes.neuron_double import Answer, NeuronDouble

PATHS = [CHAT, COMPLETIONS, MESSAGES]
COUNT = "/v1/messages/count_tokens"


def refusal(status: int, code: str | None = None, kind: str = "api_error", **extras: Any) -> Answer:
    error = {"message": "no", "type": kind, "code": code, "param": None, **extras}
    return Answer(refusal=(status, msgspec.json.encode({"error": error}), {"retry-after": "7"}))


def nodes(*answers: Answer | None) -> dict[str, NeuronDouble | None]:
    """Nodes a, b, c … with one answer each; None refuses connections."""
    return {
        name: answer and NeuronDouble(models=["demo"], answers=[answer])
        for name, answer in zip("abc", answers, strict=False)
    }


def asked(hosts: dict[str, NeuronDouble | None]) -> list[int]:
    return [host.begun if host else 0 for host in hosts.values()]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (refusal(500), "failed"),
        (refusal(503, "service_unavailable"), "failed"),
        (refusal(503, "shutting_down"), "failed"),
        (refusal(503, "insufficient_vram"), "failed"),
        (Answer(refusal=(502, b"<html>bad gateway</html>", {})), "failed"),
        (refusal(503, "rate_limit_exceeded", "rate_limit_error"), None),
    ],
)
def test_a_5xx_before_the_first_byte_is_tried_on_another_replica(
    path: str, streaming: bool, answer: Answer, verdict: str | None
) -> None:
    """The client sees nothing of it; only a full queue is no fault of the replica."""
    hosts = nodes(answer, Answer())

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path, stream=streaming)

        assert response.status_code == 200
        assert b"Hello" in response.content
        assert asked(hosts) == [1, 1]
        assert rig.fleet.verdicts == [*([("a", verdict)] if verdict else []), ("b", "begun"), ("b", "served")]
        assert rig.metrics.retries == [("demo", "a")]
        assert rig.metrics.failures == ([("demo", "a")] if verdict else [])
        (record,) = rig.metrics.records
        assert (record.node, record.outcome) == ("b", "ok")

    run(scenario, nodes=hosts, keep_alive_seconds=5)


@pytest.mark.parametrize("path", PATHS)
def test_it_may_be_tried_behind_heartbeats(path: str) -> None:
    """They are nothing of an answer."""
    gate = Answer(gate=None, comments=0)
    hosts = nodes(refusal(503, "service_unavailable"), gate)

    async def scenario(rig: Rig) -> None:
        raw = b"".join([chunk async for chunk in rig.stream(path)])

        assert b"Hello" in raw
        assert asked(hosts) == [1, 1]

    run(scenario, nodes=hosts, keep_alive_seconds=0.0)


@pytest.mark.parametrize("status", [500, 503])
def test_without_another_replica_the_neuron_s_own_words_are_the_answer(status: int) -> None:
    """With its Retry-After; and it is asked once, not three times."""
    hosts = nodes(refusal(status, "service_unavailable"))

    async def scenario(rig: Rig) -> None:
        response = await rig.post(CHAT)

        assert (response.status_code, response.json()["error"]["message"]) == (status, "no")
        assert response.headers["retry-after"] == "7"
        assert asked(hosts) == [1]

    run(scenario, nodes=hosts)


def test_what_may_be_the_request_s_own_doing_is_tried_on_one_other_node_only() -> None:
    """500 on two nodes is enough; a third would only fail as well."""
    hosts = nodes(refusal(500), refusal(500), Answer())

    async def scenario(rig: Rig) -> None:
        assert (await rig.post(CHAT)).status_code == 500
        assert asked(hosts) == [1, 1, 0]

    run(scenario, nodes=hosts)


def test_nodes_that_cannot_take_it_are_passed_over_up_to_three_tries() -> None:
    """They have not begun to work on it."""
    hosts = nodes(refusal(503, "service_unavailable"), refusal(503, "shutting_down"), Answer())

    async def scenario(rig: Rig) -> None:
        assert (await rig.post(CHAT)).status_code == 200
        assert asked(hosts) == [1, 1, 1]

    run(scenario, nodes=hosts)


@pytest.mark.parametrize("path", PATHS)
def test_a_request_whose_connection_died_goes_to_no_other_node(path: str) -> None:
    """The daemon may have died of it. The node is looked at, and the client told."""
    hosts = nodes(Answer(dies_after=0), Answer())

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path)

        assert response.status_code == 502
        assert "not sent to another one" in response.json()["error"]["message"]
        assert asked(hosts) == [1, 0]
        assert rig.fleet.suspected == ["a"]
        assert rig.fleet.verdicts == [("a", "failed")]
        assert rig.metrics.retries == []

    run(scenario, nodes=hosts)


@pytest.mark.parametrize("path", PATHS)
def test_a_request_that_engines_died_of_goes_to_no_other_node(path: str) -> None:
    """The neuron has tried it on two engines already, and says so."""
    hosts = nodes(refusal(503, "service_unavailable", engine_died=True), Answer())

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path)

        assert response.status_code == 503
        assert asked(hosts) == [1, 0]

    run(scenario, nodes=hosts)


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_breaks_off_counts_against_its_replica(path: str) -> None:
    """It cannot be tried again: the client has the beginning."""
    hosts = nodes(Answer(dies_after=1), Answer())

    async def scenario(rig: Rig) -> None:
        await rig.post(path, stream=True)

        assert asked(hosts) == [1, 0]
        assert rig.fleet.verdicts == [("a", "begun"), ("a", "failed")]
        assert rig.fleet.suspected == ["a"]

    run(scenario, nodes=hosts)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("kind", "verdict"), [("api_error", ["begun", "failed"]), ("invalid_request_error", ["begun"])]
)
def test_an_error_event_counts_against_its_replica_unless_it_is_about_the_request(
    path: str, kind: str, verdict: list[str]
) -> None:
    """What the client asked for is no fault of the engine, and no proof of its health."""
    said = {"message": "no", "type": kind, "code": None, "param": None}

    async def scenario(rig: Rig) -> None:
        await rig.post(path, stream=True)

        assert [what for _, what in rig.fleet.verdicts] == verdict

    run(scenario, Answer(error_after=(1, said)))


def test_a_bad_request_is_nobody_s_fault() -> None:
    """And is not tried again."""
    hosts = nodes(refusal(400, "context_length_exceeded", "invalid_request_error"), Answer())

    async def scenario(rig: Rig) -> None:
        assert (await rig.post(CHAT)).status_code == 400
        assert (asked(hosts), rig.fleet.verdicts) == ([1, 0], [])

    run(scenario, nodes=hosts)


def test_a_node_that_has_the_model_no_more_is_looked_at_and_the_request_goes_where_the_fleet_says() -> None:
    """Somebody unloaded it there: the client need not know."""
    hosts = nodes(refusal(404, "model_not_found", "invalid_request_error"), Answer())

    async def scenario(rig: Rig) -> None:
        assert (await rig.post(CHAT)).status_code == 200
        assert rig.fleet.absent == ["a"]

    run(scenario, nodes=hosts)


def test_a_count_that_kills_a_node_is_asked_of_no_other() -> None:
    """Tokenizing is work as well."""

    class Dying(NeuronDouble):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.begun += 1
            raise RuntimeError("out of memory")

    hosts: dict[str, NeuronDouble | None] = {"a": Dying(), "b": NeuronDouble()}

    async def scenario(rig: Rig) -> None:
        response = await rig.post(COUNT, model="demo", messages=[{"role": "user", "content": "hi"}])

        assert response.status_code == 502
        assert hosts["b"] is not None
        assert hosts["b"].seen == []

    run(scenario, nodes=hosts)


def test_a_count_steps_over_a_node_that_is_down() -> None:
    """Nothing was sent there."""
    hosts = nodes(None, Answer())

    async def scenario(rig: Rig) -> None:
        response = await rig.post(COUNT, model="demo", messages=[{"role": "user", "content": "hi"}])

        assert response.status_code == 200

    run(scenario, nodes=hosts)


def refused(status: int, code: str | None = None, **extras: Any) -> NeuronRefused:
    return NeuronRefused("no", status=status, code=code, extras=extras)


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (NotConnected("refused"), Fault("anywhere", suspect=True)),
        (UpstreamUnreachable("reset"), Fault(blames=True, suspect=True)),
        (UpstreamReadFailed("reset"), Fault(blames=True, suspect=True)),
        (UpstreamMalformed("html", answered=502), Fault("broken", blames=True)),
        (UpstreamMalformed("html", answered=200), Fault(blames=True)),
        (refused(503, "service_unavailable"), Fault("elsewhere", blames=True)),
        (refused(503, "service_unavailable", engine_died=True), Fault(blames=True)),
        (refused(503, "rate_limit_exceeded"), Fault("elsewhere")),
        (refused(500), Fault("broken", blames=True)),
        (refused(504), Fault("broken", blames=True)),
        (refused(404, "model_not_found"), Fault("anywhere", absent=True)),
        (refused(404, "not_found"), Fault()),
        (refused(400, "malformed_json"), Fault()),
        (refused(422, "template_render_failed"), Fault()),
        (refused(429, "rate_limit_exceeded"), Fault()),
    ],
)
def test_the_table(error: CortexError, means: Fault) -> None:
    """As docs/wire.md has it."""
    assert fault(error) == means
