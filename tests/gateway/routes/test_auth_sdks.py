"""Keys over real connections: the official SDKs' exceptions, a database that changes, the metrics, and all that is logged."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from cortex_gateway.auth.store import KeyStore
from cortex_gateway.config import Auth
from tests.fakes.keyring import kept, made
from tests.fakes.live_gateway import LiveGateway, live_gateway
from tests.fakes.neuron_double import InstantNeuron
from tests.fakes.waiting import until_sync

HI = [{"role": "user", "content": "hi"}]
KEYS = {
    "good": made("good-owner"),
    "other": made("other-owner", models=("else",)),
    "spent": made("spent-owner", requests_per_minute=1),
    "ops": made("ops-owner", "admin"),
}


@pytest.fixture
def state(tmp_path: pathlib.Path) -> pathlib.Path:
    return kept(tmp_path / "state.db", KEYS.values())


@pytest.fixture
def gateway(state: pathlib.Path) -> Iterator[LiveGateway]:
    with live_gateway({"double": InstantNeuron()}, state=state, auth=Auth(required=True, metrics=True)) as it:
        yield it


@contextlib.contextmanager
def sdks(url: str, key: str) -> Iterator[tuple[openai.OpenAI, anthropic.Anthropic, anthropic.Anthropic]]:
    """OpenAI's, which sends a Bearer, and Anthropic's with its key, and with a token beside somebody's placeholder."""
    placeholder = {"x-api-key": "placeholder"}
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as chat,
        anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as messages,
        anthropic.Anthropic(base_url=url, auth_token=key, default_headers=placeholder, max_retries=0) as token,
    ):
        yield chat, messages, token


def ask(client: openai.OpenAI | anthropic.Anthropic, *, stream: bool = False) -> None:
    if isinstance(client, openai.OpenAI):
        answer = client.chat.completions.create(model="demo", messages=HI, max_tokens=2, stream=stream)
    else:
        answer = client.messages.create(model="demo", messages=HI, max_tokens=2, stream=stream)
    assert list(answer)


@pytest.mark.parametrize("stream", [True, False])
def test_both_sdks_get_in_with_a_key(gateway: LiveGateway, *, stream: bool) -> None:
    """Whichever header theirs sends it in."""
    with sdks(gateway.url, KEYS["good"].text) as clients:
        for client in clients:
            ask(client, stream=stream)
        assert [model.id for model in clients[0].models.list()] == ["demo"]
        assert [model.id for model in clients[1].models.list()] == ["demo"]


@pytest.mark.parametrize("stream", [True, False])
def test_refusals_are_the_sdks_own_exceptions(gateway: LiveGateway, *, stream: bool) -> None:
    """Which their users know how to handle."""
    with sdks(gateway.url, "sk-nobody") as (chat, messages, token):
        with pytest.raises(openai.AuthenticationError, match="not known") as told:
            ask(chat, stream=stream)
        assert (told.value.code, told.value.type) == ("invalid_api_key", "invalid_request_error")
        for client in (messages, token):
            with pytest.raises(anthropic.AuthenticationError, match="not known"):
                ask(client, stream=stream)
    with sdks(gateway.url, KEYS["other"].text) as (chat, messages, _):
        with pytest.raises(openai.PermissionDeniedError, match="'demo'") as denied:
            ask(chat, stream=stream)
        assert (denied.value.code, denied.value.param) == ("permission_denied", "model")
        with pytest.raises(anthropic.PermissionDeniedError, match="'demo'"):
            ask(messages, stream=stream)
    with sdks(gateway.url, KEYS["spent"].text) as (chat, messages, _):
        ask(chat, stream=stream)
        with pytest.raises(openai.RateLimitError) as limited:
            ask(chat, stream=stream)
        assert limited.value.code == "rate_limit_exceeded"
        assert 55 <= int(limited.value.response.headers["retry-after"]) <= 60
        with pytest.raises(anthropic.RateLimitError, match="1 requests a minute"):
            ask(messages, stream=stream)


def test_one_after_the_other_is_one_at_a_time(state: pathlib.Path) -> None:
    """The slot is free when the client has the last byte, over a real connection too."""
    key = made("single", max_concurrent=1)
    kept(state, [key])
    with live_gateway({"double": InstantNeuron()}, state=state) as it, sdks(it.url, key.text) as (chat, messages, _):
        for number in range(20):
            ask(chat, stream=bool(number % 2))
            ask(messages, stream=bool(number % 2))


def test_a_running_gateway_hears_of_new_and_revoked_keys(gateway: LiveGateway, state: pathlib.Path) -> None:
    """Within a few seconds."""
    fresh = made("fresh")

    def passes() -> bool:
        headers = {"x-api-key": fresh.text}
        return httpx.get(f"{gateway.url}/v1/models", headers=headers, trust_env=False).status_code == 200

    assert not passes()
    with contextlib.closing(KeyStore(state)) as store:
        store.add(fresh.key)
        until_sync(passes, 10)
        store.revoke(fresh.key.id, 1.0)
        until_sync(lambda: not passes(), 10)


def test_metrics_need_an_admin_where_they_are_closed(gateway: LiveGateway) -> None:
    """Also from this host, with HEAD, and on other paths; the words are plain."""
    with httpx.Client(base_url=gateway.metrics_url, trust_env=False) as http:
        nobody = http.get("/metrics")
        user = http.get("/metrics", headers=KEYS["good"].bearer)
        admin = http.get("/metrics", headers=KEYS["ops"].bearer)
        others = [http.head("/metrics"), http.get("/")]

    assert [one.status_code for one in (nobody, user, admin, *others)] == [401, 403, 200, 401, 401]
    assert nobody.headers["www-authenticate"] == 'Bearer realm="cortex"'
    assert nobody.headers["content-type"].startswith("text/plain")
    assert "cortex_node_up" in admin.text


def test_metrics_are_open_otherwise_and_tell_of_nobody(state: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does the log, of keys in headers, in the query or in the path."""
    auth = Auth(required=True)
    with (
        caplog.at_level(logging.DEBUG),
        live_gateway({"double": InstantNeuron()}, state=state, auth=auth) as it,
        httpx.Client(base_url=it.url, trust_env=False) as http,
    ):
        for key in KEYS.values():
            for headers in (key.bearer, {"x-api-key": key.text}):
                http.post("/v1/chat/completions", headers=headers, json={"model": "demo", "messages": HI})
                http.post("/v1/messages", headers=headers, content=b"{")
                http.get(f"/v1/models?api_key={key.text}", headers=headers)
                http.post("/admin/unload", headers=headers, json={"model": "demo"})
        metrics = httpx.get(f"{it.metrics_url}/metrics", trust_env=False).text

    assert 'cortex_requests_total{model="demo"' in metrics
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    assert "POST /v1/chat/completions" in ours
    hidden = [part for key in KEYS.values() for part in (key.text, key.text[-30:], key.key.name, key.key.id)]
    assert not [part for part in hidden if part in metrics or part in ours]
