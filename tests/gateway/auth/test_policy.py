"""Who may do what, with keys and headers written down."""

import attrs
import pytest

from cortex_gateway.auth import keys as form
from cortex_gateway.auth import policy
from cortex_gateway.auth.policy import ADMIN, EITHER, INFER, NOBODY
from cortex_gateway.auth.principal import Key, Limits, Principal
from cortex_gateway.errors import Forbidden, ModelNotFound, Unauthorized

NOW = 1_000.0
MINTED = form.mint(bytes(form.ID_BYTES + form.SECRET_BYTES))
OTHER = form.mint(bytes(range(form.ID_BYTES + form.SECRET_BYTES)))
KEY = Key(id=MINTED.id, name="laptop", digest=MINTED.digest, scopes=frozenset({"infer"}), created=1.0)
ALIASES = {"nick": "org/m", "m": "m", "n": "n", "org/m": "org/m"}


def resolve(name: str) -> str:
    if name not in ALIASES:
        raise ModelNotFound(name)
    return ALIASES[name]


def admit(*offered: str, key: Key = KEY, need: policy.AcceptedScopes = INFER, asked: bool = True) -> Principal:
    return policy.admit({key.id: key}, offered, need, NOW, asked=asked)


def test_a_key_says_who_it_is_and_what_he_may() -> None:
    """All that is needed of him until the end of the request."""
    key = attrs.evolve(KEY, models=("m",), limits=Limits(max_concurrent=1))

    assert admit(MINTED.text, key=key) == Principal(
        key=key.id, name="laptop", scopes=frozenset({"infer"}), models=("m",), limits=Limits(max_concurrent=1)
    )


@pytest.mark.parametrize(
    ("offered", "challenge"),
    [
        ((), 'Bearer realm="cortex"'),
        (("none",), 'Bearer realm="cortex", error="invalid_token"'),
        ((OTHER.text,), 'Bearer realm="cortex", error="invalid_token"'),
        ((MINTED.text[:-1] + "B",), 'Bearer realm="cortex", error="invalid_token"'),
    ],
)
def test_where_keys_are_asked_for_nobody_else_passes(offered: tuple[str, ...], challenge: str) -> None:
    """No key, a placeholder, one that is not kept, and one that is wrong in its last character."""
    with pytest.raises(Unauthorized) as caught:
        admit(*offered)

    assert (caught.value.status, caught.value.code, caught.value.challenge) == (401, "invalid_api_key", challenge)
    assert not any(text in caught.value.message for text in offered)


@pytest.mark.parametrize("offered", [(), ("none",), (OTHER.text,)])
def test_where_they_are_not_an_unknown_key_is_not_looked_at(offered: tuple[str, ...]) -> None:
    """Placeholders keep working."""
    assert admit(*offered, asked=False) is NOBODY


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [({"expires": NOW}, "expired"), ({"expires": NOW - 1}, "expired"), ({"revoked": 5.0}, "revoked")],
)
def test_a_known_key_that_is_over_is_refused_everywhere(changes: dict[str, float], words: str, *, asked: bool) -> None:
    """Whoever holds it is told why."""
    with pytest.raises(Unauthorized, match=words) as caught:
        admit(MINTED.text, key=attrs.evolve(KEY, **changes), asked=asked)

    assert caught.value.challenge == 'Bearer realm="cortex", error="invalid_token"'


def test_until_its_last_moment_a_key_is_good() -> None:
    """Then not."""
    assert admit(MINTED.text, key=attrs.evolve(KEY, expires=NOW + 0.001)).key == KEY.id


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("scopes", "need", "passes"),
    [
        ({"infer"}, INFER, True),
        ({"infer"}, ADMIN, False),
        ({"infer"}, EITHER, True),
        ({"admin"}, INFER, False),
        ({"admin"}, ADMIN, True),
        ({"admin"}, EITHER, True),
        ({"infer", "admin"}, INFER, True),
        (set(), EITHER, False),
    ],
)
def test_scopes_are_apart(scopes: set[str], need: policy.AcceptedScopes, *, passes: bool, asked: bool) -> None:
    """admin does not mean infer: who watches the fleet need not be able to use it."""
    key = attrs.evolve(KEY, scopes=frozenset(scopes))
    if passes:
        assert admit(MINTED.text, key=key, need=need, asked=asked).key == KEY.id
        return
    with pytest.raises(Forbidden, match="scope") as caught:
        admit(MINTED.text, key=key, need=need, asked=asked)
    assert (caught.value.status, caught.value.code) == (403, "permission_denied")


@pytest.mark.parametrize(("need", "words"), [(INFER, "infer"), (ADMIN, "admin"), (EITHER, "infer or admin")])
def test_who_lacks_a_scope_is_told_which(need: policy.AcceptedScopes, words: str) -> None:
    """So that the operator knows what key to make."""
    with pytest.raises(Forbidden, match=f"needed here: {words}.$"):
        admit(MINTED.text, key=attrs.evolve(KEY, scopes=frozenset()), need=need)


def test_of_several_keys_the_first_that_is_known_counts() -> None:
    """A client that sends a placeholder in one header and its key in the other."""
    assert admit("none", MINTED.text).key == KEY.id
    with pytest.raises(Forbidden):
        admit(MINTED.text, "none", need=ADMIN, asked=False)


@pytest.mark.parametrize(
    ("models", "asked", "passes"),
    [
        (None, "whatever", True),
        (("m",), "m", True),
        (("m",), "n", False),
        (("m",), "nick", False),
        (("nick",), "org/m", True),
        (("org/m",), "nick", True),
        (("gone",), "gone", True),
        (("m",), "gone", False),
    ],
)
def test_models_are_compared_by_what_they_stand_for(
    models: tuple[str, ...] | None, asked: str, *, passes: bool
) -> None:
    """A name that nobody knows is refused like one that somebody does, so that a key cannot be used to look around."""
    principal = attrs.evolve(NOBODY, models=models)
    if passes:
        policy.check_model(principal, asked, resolve)
        return
    with pytest.raises(Forbidden, match=asked) as caught:
        policy.check_model(principal, asked, resolve)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("host", "headers", "local"),
    [
        ("127.0.0.1", [], True),
        ("127.8.9.10", [], True),
        ("::1", [], True),
        ("::ffff:127.0.0.1", [], True),
        ("192.168.1.20", [], False),
        ("::ffff:192.168.1.20", [], False),
        ("10.0.0.1", [(b"host", b"localhost")], False),
        (None, [], False),
        ("", [], False),
        ("127.0.0.1", [(b"host", b"gw"), (b"x-api-key", b"k")], True),
        ("127.0.0.1", [(b"x-forwarded-for", b"127.0.0.1")], False),
        ("127.0.0.1", [(b"x-forwarded-proto", b"https")], False),
        ("127.0.0.1", [(b"forwarded", b"for=192.0.2.1")], False),
        ("127.0.0.1", [(b"via", b"1.1 caddy")], False),
        ("127.0.0.1", [(b"x-real-ip", b"192.0.2.1")], False),
    ],
)
def test_from_this_host_is_who_connects_from_it_and_is_no_proxy(
    host: str | None, headers: list[tuple[bytes, bytes]], *, local: bool
) -> None:
    """What a client writes into its headers cannot make it local, only the opposite."""
    assert policy.is_local(host, headers) is local


@pytest.mark.parametrize("listen", ["127.0.0.1:31313", "localhost:31313", "[::1]:31313", "127.1.2.3:1"])
@pytest.mark.parametrize("required", [None, False])
def test_on_loopback_there_is_nothing_to_say(listen: str, required: bool | None) -> None:
    """Nor where it was said that it is meant so."""
    assert policy.notices(listen, required, 0) == ()
    assert policy.notices("0.0.0.0:31313", False, 0) == ()
    assert policy.notices("0.0.0.0:31313", True, 1) == ()


@pytest.mark.parametrize("listen", ["0.0.0.0:31313", "[::]:31313", "192.168.1.20:31313", "gateway.lan:31313"])
def test_open_access_is_told_with_the_way_to_end_it(listen: str) -> None:
    """Once, and loudly."""
    (said,) = policy.notices(listen, None, 3)

    assert said.startswith(f"WARNING: whoever reaches {listen} can use every model")
    assert "cortex keys add" in said
    assert "[auth] required = true" in said


def test_access_that_needs_a_key_where_there_is_none_is_told() -> None:
    """Or the first request would be the one that tells."""
    (said,) = policy.notices("127.0.0.1:31313", True, 0)

    assert "cortex keys add" in said
