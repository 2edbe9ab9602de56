"""/v1/conversations through the whole gateway: items under one id, to which answers are added."""

from typing import Any

import httpx
import openai
import pytest

from cortex_gateway.answers import AnswerStore, Bounds
from tests.fakes.gateway_rig import RESPONSES, Rig, payloads, run
from tests.fakes.keyring import guarded, made
from tests.fakes.live_gateway import live_gateway
from tests.fakes.neuron_double import Answer, InstantNeuron

PATH = "/v1/conversations"
USER = {"role": "user", "content": "hello"}
LAPTOP = made("laptop")


async def begun(rig: Rig, **fields: Any) -> str:
    answer = await rig.client.post(PATH, json=fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def texts(rig: Rig, name: str) -> list[str]:
    listed = (await rig.client.get(f"{PATH}/{name}/items", params={"order": "asc"})).json()
    return [item["content"][0]["text"] for item in listed["data"]]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("ask", [{}, {"stream": True}, {"store": False}, {"stream": True, "store": False}])
def test_an_answer_is_added_to_its_conversation(ask: dict[str, Any]) -> None:
    """And the next request goes on from it; `store` says whether the answer is kept by itself as well."""

    async def scenario(rig: Rig) -> None:
        name = await begun(rig, items=[USER], metadata={"topic": "demo"})
        first = await rig.post(RESPONSES, input="one", conversation=name, **ask)
        response = payloads(first.content)[-1]["response"] if ask.get("stream") else first.json()
        await rig.post(RESPONSES, input="two", conversation={"id": name}, **ask)

        assert response["conversation"] == {"id": name}
        said = [(turn["role"], turn["content"]) for turn in rig.neuron.asked[-1].body["messages"]]
        answer = ("assistant", "Hello there")
        assert said == [("user", "hello"), ("user", "one"), answer, ("user", "two")]
        assert await texts(rig, name) == ["hello", "one", "Hello there", "two", "Hello there"]
        kept = await rig.client.get(f"{RESPONSES}/{response['id']}")
        assert kept.status_code == (404 if ask.get("store") is False else 200)

    run(scenario)


def test_a_background_answer_is_added_at_its_end() -> None:
    """By reading along until then."""

    async def scenario(rig: Rig) -> None:
        name = await begun(rig)
        await rig.post(RESPONSES, input="one", conversation=name, background=True, stream=True)

        assert await texts(rig, name) == ["one", "Hello there"]

    run(scenario)


def test_an_answer_that_fails_is_not_added() -> None:
    """Neither is what it would have answered."""

    async def scenario(rig: Rig) -> None:
        name = await begun(rig)
        answer = await rig.post(RESPONSES, input="one", conversation=name, stream=True)

        assert payloads(answer.content)[-1]["type"] == "response.failed"
        assert await texts(rig, name) == []

    run(scenario, Answer(dies_after=1))


def test_an_item_of_a_conversation_may_be_sent_by_its_id() -> None:
    """It stands in the conversation once, however often it is sent."""

    async def scenario(rig: Rig) -> None:
        name = await begun(rig, items=[USER])
        item = (await rig.client.get(f"{PATH}/{name}/items")).json()["first_id"]
        await rig.post(RESPONSES, input=[{"type": "item_reference", "id": item}], conversation=name)

        assert [turn["content"] for turn in rig.neuron.asked[-1].body["messages"]] == ["hello", "hello"]
        assert await texts(rig, name) == ["hello", "Hello there"]

    run(scenario)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "resp_1"}, "conversation"),
        ({"conversation": {"id": ""}}, "conversation.id"),
        ({"conversation": 7}, "conversation"),
        ({"previous_response_id": "conv_1"}, "previous_response_id"),
    ],
)
def test_what_names_no_conversation_is_refused(fields: dict[str, Any], param: str) -> None:
    """400 with the field, and no model is asked."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.post(RESPONSES, **fields)

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert not rig.neuron.asked

    run(scenario)


def test_a_conversation_is_there_for_its_key_alone() -> None:
    """On every route; and it is no answer, nor an answer a conversation."""

    async def scenario(rig: Rig) -> None:
        made_by = await rig.client.post(PATH, json={"items": [USER]}, headers=LAPTOP.bearer)
        name = made_by.json()["id"]
        one = f"{PATH}/{name}"
        item = (await rig.client.get(f"{one}/items", headers=LAPTOP.bearer)).json()["first_id"]
        asked: list[tuple[str, str, Any]] = [
            ("GET", one, None),
            ("POST", one, {"metadata": {}}),
            ("GET", f"{one}/items", None),
            ("POST", f"{one}/items", {"items": [USER]}),
            ("GET", f"{one}/items/{item}", None),
            ("DELETE", f"{one}/items/{item}", None),
            ("DELETE", one, None),
            ("POST", RESPONSES, {"model": "demo", "input": "x", "conversation": name}),
        ]
        for method, path, body in asked:
            assert code(await rig.client.request(method, path, json=body)) == (404, "conversation_not_found")
        response = (await rig.post(RESPONSES)).json()["id"]
        for method, path, body in asked[:-1]:
            other = path.replace(name, response)
            assert code(await rig.client.request(method, other, json=body)) == (404, "conversation_not_found")
        assert code(await rig.client.get(f"{RESPONSES}/{name}", headers=LAPTOP.bearer)) == (404, "response_not_found")
        for method, path, body in asked[:-1]:
            assert (await rig.client.request(method, path, json=body, headers=LAPTOP.bearer)).status_code == 200

    run(scenario, guard=guarded(LAPTOP))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"items": [7]}, "items.0"),
        ({"items": [{"role": "robot", "content": "x"}]}, "items.0.role"),
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items.0"),
        (
            {"items": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            "items.0.content.0",
        ),
    ],
)
def test_what_no_model_could_read_is_not_kept(body: Any, param: str) -> None:
    """Refused when it comes, not when it is used."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(PATH, json=body)

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    run(scenario)


def test_an_id_that_is_none_is_replaced() -> None:
    """Items are found by their ids."""

    async def scenario(rig: Rig) -> None:
        name = await begun(rig, items=[{**USER, "id": {"a": 1}}, {**USER, "id": ""}, {**USER, "id": "msg_mine"}])
        answer = await rig.post(RESPONSES, input=[{**USER, "id": 7}], conversation=name)
        listed = (await rig.client.get(f"{PATH}/{name}/items", params={"order": "asc"})).json()["data"]

        assert answer.status_code == 200
        assert all(item["id"].startswith("msg_") for item in listed)
        assert listed[2]["id"] == "msg_mine"

    run(scenario)


def test_a_conversation_has_its_room_and_no_more() -> None:
    """What would be larger than all answers together may be is not added, and says so."""

    async def scenario(rig: Rig) -> None:
        name = await begun(rig, items=[USER])
        long = {"items": [{"role": "user", "content": "x" * 2000}]}
        assert (await rig.client.post(f"{PATH}/{name}/items", json=long)).status_code == 503
        assert (await rig.client.post(PATH, json=long)).status_code == 503
        assert await texts(rig, name) == ["hello"]

    run(scenario, store=AnswerStore(None, Bounds(keep_secs=100, max_bytes=1000)))


def test_by_openai_s_sdk() -> None:
    """Every method of its resource."""
    with (
        live_gateway({"double": InstantNeuron()}) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="k") as client,
    ):
        made_by = client.conversations.create(items=[{"role": "user", "content": "a"}], metadata={"topic": "x"})
        name = made_by.id
        assert made_by == client.conversations.retrieve(name)
        assert client.conversations.update(name, metadata={"topic": "y"}).metadata == {"topic": "y"}
        added = client.conversations.items.create(name, items=[{"role": "user", "content": w} for w in "bcd"])
        response = client.responses.create(model="demo", input="e", conversation=name)
        listed = list(client.conversations.items.list(name, limit=2, order="asc"))

        assert response.conversation is not None
        assert response.conversation.id == name
        assert [item.content[0].text for item in listed][:5] == list("abcde")  # type: ignore[union-attr]
        assert client.conversations.items.retrieve(added.data[0].id or "", conversation_id=name) == added.data[0]
        assert client.conversations.items.delete(added.data[0].id or "", conversation_id=name).id == name
        assert len(list(client.conversations.items.list(name))) == len(listed) - 1
        assert client.conversations.delete(name).deleted
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.retrieve("msg_1", conversation_id=name)
