"""What web pages get to do: preflights, headers of answers, and refusals that reach neither fleet nor neuron."""

import pytest

from cortex_gateway.config import GatewayConfig
from tests.fakes.gateway_rig import CHAT, MESSAGES, Rig, run
from tests.gateway.routes.test_bad_requests import check

NEAR, EVIL = "http://localhost:3000", "https://evil.example"
NAMED = GatewayConfig(hosts=("gw",), origins=("https://chat.example.com",))
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type, x-api-key"}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/models", "/v1/nope"])
def test_a_page_nearby_may_call(path: str) -> None:
    """It is told so before and with the answer, an error included, and which headers it may read."""

    async def scenario(rig: Rig) -> None:
        preflight = await rig.client.options(path, headers={"origin": NEAR, **PREFLIGHT})
        response = await rig.client.get(path, headers={"origin": NEAR})

        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "content-type, x-api-key"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        for answer in (preflight, response):
            assert answer.headers["access-control-allow-origin"] == NEAR
            assert answer.headers["vary"] == "origin"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in preflight.headers

    run(scenario)


def test_an_answer_and_a_stream_can_be_read_by_the_page() -> None:
    """Not only what comes before them."""

    async def scenario(rig: Rig) -> None:
        for streaming in (False, True):
            body = {"model": "demo", "messages": [], "stream": streaming}
            response = await rig.client.post(CHAT, json=body, headers={"origin": NEAR})

            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == NEAR

    run(scenario)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/admin/unload", "/admin/load", "/v1/models", "/admin/fleet"])
@pytest.mark.parametrize("origin", [EVIL, "null"])
def test_a_page_of_another_site_is_refused(path: str, origin: str) -> None:
    """403 in the dialect's own envelope, for the preflight too; nothing is loaded, unloaded or computed."""

    async def scenario(rig: Rig) -> None:
        body = {"model": "demo", "messages": [], "max_tokens": 1}
        post = await rig.client.post(path, json=body, headers={"origin": origin})
        get = await rig.client.get(path, headers={"origin": origin})
        preflight = await rig.client.options(path, headers={"origin": origin, **PREFLIGHT})

        for answer in (post, get, preflight):
            error = check(answer, 403, "origin_not_allowed")
            assert "[gateway] origins" in error["message"]
            assert "access-control-allow-origin" not in answer.headers
        assert rig.fleet.calls == []
        assert rig.fleet.acquired == 0
        assert rig.neuron.seen == []

    run(scenario)


@pytest.mark.parametrize("path", ["/admin/unload", "/admin/load"])
@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "", None])
@pytest.mark.parametrize("origin", [{"origin": EVIL}, {}])
def test_a_page_s_simple_request_unloads_nothing(path: str, media: str | None, origin: dict[str, str]) -> None:
    """What a form or a fetch sends without asking first, from a browser that tells its origin and from one that does not."""

    async def scenario(rig: Rig) -> None:
        headers = origin | ({} if media is None else {"content-type": media})
        response = await rig.client.post(path, content=b'{"model":"demo"}', headers=headers)

        assert response.status_code == (403 if origin else 415)
        assert rig.fleet.calls == []

    run(scenario)


def test_control_routes_answer_to_known_names_only() -> None:
    """A page that was loaded by a name of its own server's cannot have it lead here (DNS rebinding)."""

    async def scenario(rig: Rig) -> None:
        for host in ("evil.example:31313", "evil.example"):
            response = await rig.client.post("/admin/unload", json={"model": "demo"}, headers={"host": host})
            error = check(response, 403, "host_not_allowed")

            assert "'evil.example'" in error["message"]
            assert 'hosts = ["evil.example"]' in error["message"]
        assert rig.fleet.calls == []
        known = await rig.client.post("/admin/unload", json={"model": "demo"}, headers={"host": "127.0.0.1:1"})
        assert known.is_success
        assert (await rig.post(CHAT)).status_code == 200

    run(scenario)


def test_inference_answers_to_any_name_but_to_no_page_of_it() -> None:
    """A proxy in front keeps the name; a page whose name was pointed here tells its origin with every POST."""

    async def scenario(rig: Rig) -> None:
        body = {"model": "demo", "messages": []}
        program = await rig.client.post(CHAT, json=body, headers={"host": "llm.example.com"})
        page = await rig.client.post(CHAT, json=body, headers={"host": "evil.example", "origin": "http://evil.example"})

        assert (program.status_code, page.status_code) == (200, 403)

    run(scenario)


def test_a_named_page_may_do_everything() -> None:
    """An operator's own pages, on control routes as well."""

    async def scenario(rig: Rig) -> None:
        headers = {"origin": "https://chat.example.com"}
        preflight = await rig.client.options("/admin/unload", headers=headers | PREFLIGHT)
        response = await rig.client.post("/admin/unload", json={"model": "demo"}, headers=headers)

        assert (preflight.status_code, response.is_success) == (204, True)
        assert response.headers["access-control-allow-origin"] == "https://chat.example.com"

    run(scenario, settings=NAMED)


def test_opening_it_to_every_page_opens_inference_alone() -> None:
    """The behaviour of the predecessor, where it is wanted."""

    async def scenario(rig: Rig) -> None:
        headers = {"origin": EVIL}
        chat = await rig.client.post(CHAT, json={"model": "demo", "messages": []}, headers=headers)
        unload = await rig.client.post("/admin/unload", json={"model": "demo"}, headers=headers)

        assert (chat.status_code, chat.headers["access-control-allow-origin"]) == (200, "*")
        assert unload.status_code == 403

    run(scenario, settings=GatewayConfig(hosts=("gw",), origins=("*",)))


def test_a_page_of_a_public_site_may_ask_for_a_private_network() -> None:
    """Where its origin is allowed at all (https://wicg.github.io/private-network-access/)."""

    async def scenario(rig: Rig) -> None:
        asked = {"origin": "https://chat.example.com", "access-control-request-private-network": "true", **PREFLIGHT}
        preflight = await rig.client.options(CHAT, headers=asked)

        assert preflight.headers["access-control-allow-private-network"] == "true"

    run(scenario, settings=NAMED)


def test_header_names_that_are_none_are_not_repeated() -> None:
    """Nothing that a client wrote goes into an answer's headers unless it is a list of names."""

    async def scenario(rig: Rig) -> None:
        asked = {"origin": NEAR, "access-control-request-method": "POST", "access-control-request-headers": "a:b"}
        preflight = await rig.client.options(CHAT, headers=asked)

        assert preflight.status_code == 204
        assert "access-control-allow-headers" not in preflight.headers

    run(scenario)
