"""The authorization code with PKCE, and refresh tokens: what is granted, and what is not."""

import pytest

from tests.authorization_server.flows import (
    CALLBACK,
    FILES,
    MAIL,
    authorize_url,
    claims_of,
    code_of,
    error_of,
    good,
    introspect,
    parameters_of,
    redemption,
    refresh,
    tokens_of,
)
from tests.authorization_server.running import Credentials, RunningServer, running


@pytest.fixture
def app(issuer: RunningServer) -> Credentials:
    return issuer.add_client("app", public=True, redirect_uris=[CALLBACK])


@pytest.mark.parametrize("kind", ["public", "secret", "key"])
async def test_a_code_is_good_for_a_token_of_the_user(issuer: RunningServer, kind: str) -> None:
    client = issuer.add_client(key=kind == "key", public=kind == "public", redirect_uris=[CALLBACK])
    answer = await tokens_of(issuer, client)
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 600, "mcp:use files:read")
    claims = claims_of(issuer, answer["access_token"])
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("alice", client.client_id, "mcp:use files:read")
    assert claims["exp"] - claims["iat"] == 600


async def test_the_answer_names_its_issuer_also_in_errors(issuer: RunningServer, app: Credentials) -> None:
    for changes, deny in (({}, False), ({}, True), ({"response_type": "token"}, False)):
        back = parameters_of(await issuer.approve(authorize_url(issuer.issuer, "app", **changes), deny=deny))
        assert (back["iss"], back["state"]) == (issuer.issuer, "xyz")


async def test_what_the_callback_has_in_its_query_stays(issuer: RunningServer) -> None:
    app = issuer.add_client(public=True, redirect_uris=[f"{CALLBACK}?a=1"])
    back = await issuer.approve(authorize_url(issuer.issuer, app.client_id, redirect_uri=f"{CALLBACK}?a=1"))
    assert parameters_of(back).keys() == {"a", "code", "state", "iss"}


async def test_a_user_grants_less_than_was_asked(issuer: RunningServer, app: Credentials) -> None:
    url = authorize_url(issuer.issuer, "app")
    code = parameters_of(await issuer.approve(url, scopes=["files:read"]))["code"]
    answer = good(await issuer.post("/token", redemption(app, issuer.issuer, code)))
    assert answer["scope"] == "files:read"
    assert parameters_of(await issuer.approve(url, scopes=[]))["error"] == "access_denied", "of nothing, nothing"


async def test_the_only_callback_need_not_be_named(issuer: RunningServer, app: Credentials) -> None:
    code = await code_of(issuer, app, redirect_uri=None)
    good(await issuer.post("/token", redemption(app, issuer.issuer, code, redirect_uri=None)))


REFUSED_CODES: list[tuple[dict[str, str | None], str]] = [
    ({"code_verifier": "b" * 43}, "invalid_grant"),
    ({"code_verifier": None}, "invalid_request"),
    ({"code_verifier": "short"}, "invalid_request"),
    ({"redirect_uri": "http://127.0.0.1:7778/callback"}, "invalid_grant"),
    ({"redirect_uri": None}, "invalid_grant"),
    ({"code": "nonsense"}, "invalid_grant"),
    ({"code": None}, "invalid_request"),
    ({"client_id": "other"}, "invalid_grant"),
    ({"client_id": "nobody"}, "invalid_client"),
    ({"client_id": None}, "invalid_client"),
    ({"client_secret": "anything"}, "invalid_client"),
    ({"resource": MAIL}, "invalid_target"),
    ({"resource": "https://files.example.com/"}, "invalid_target"),
    ({"grant_type": "password"}, "unsupported_grant_type"),
    ({"grant_type": None}, "unsupported_grant_type"),
]


async def test_a_code_is_refused(issuer: RunningServer, app: Credentials, subtests: pytest.Subtests) -> None:
    issuer.add_client("other", public=True, redirect_uris=[CALLBACK])
    for changes, error in REFUSED_CODES:
        with subtests.test(changes=changes):
            code = await code_of(issuer, app)
            assert error_of(await issuer.post("/token", redemption(app, issuer.issuer, code, **changes))) == error
            good(await issuer.post("/token", redemption(app, issuer.issuer, code)))


async def test_a_code_that_is_used_again_ends_what_came_of_it(issuer: RunningServer, app: Credentials) -> None:
    server = issuer.add_client("server")
    code = await code_of(issuer, app)
    answer = good(await issuer.post("/token", redemption(app, issuer.issuer, code)))
    assert (await introspect(issuer, server, answer["access_token"]))["active"] is True
    assert error_of(await issuer.post("/token", redemption(app, issuer.issuer, code))) == "invalid_grant"
    assert (await introspect(issuer, server, answer["access_token"])) == {"active": False}
    assert error_of(await refresh(issuer, app, answer["refresh_token"])) == "invalid_grant"


async def test_a_code_ends_soon() -> None:
    now = [1_800_000_000.0]
    async with running(resources=[FILES], clock=lambda: now[0]) as issuer:
        app = issuer.add_client("app", public=True, redirect_uris=[CALLBACK])
        code = await code_of(issuer, app)
        now[0] += 61
        assert error_of(await issuer.post("/token", redemption(app, issuer.issuer, code))) == "invalid_grant"


TOLD: list[tuple[dict[str, str | list[str] | None], str]] = [
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_type": None}, "unsupported_response_type"),
    ({"code_challenge": None}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"code_challenge": "short"}, "invalid_request"),
    ({"resource": "https://elsewhere.example.com/mcp"}, "invalid_target"),
    ({"resource": None}, "invalid_target"),
    ({"resource": [FILES, "https://elsewhere.example.com/mcp"]}, "invalid_target"),
]


async def test_the_application_is_told_what_is_wrong(
    issuer: RunningServer, app: Credentials, subtests: pytest.Subtests
) -> None:
    for changes, error in TOLD:
        with subtests.test(changes=changes):
            back = await issuer.approve(authorize_url(issuer.issuer, "app", **changes))
            assert back.startswith(CALLBACK)
            assert (parameters_of(back)["error"], parameters_of(back)["state"]) == (error, "xyz")


NOT_TOLD: list[dict[str, str | list[str] | None]] = [
    {"client_id": "nobody"},
    {"client_id": None},
    {"client_id": ["app", "app"]},
    {"redirect_uri": "https://evil.example.com/"},
    {"redirect_uri": CALLBACK + "/"},
    {"redirect_uri": CALLBACK + "?a=1"},
    {"redirect_uri": CALLBACK + "#a"},
    {"redirect_uri": "http://localhost:7777/callback"},
    {"redirect_uri": "https://127.0.0.1:7777/callback"},
    {"redirect_uri": "http://127.0.0.1:7777@evil.example.com/callback"},
    {"redirect_uri": "http://a@127.0.0.1:7777/callback"},
    {"redirect_uri": "http://127.0.0.1:7777\\@evil.example.com/callback"},
    {"redirect_uri": "http://127.0.0.1:port/callback"},
    {"redirect_uri": "javascript:alert(1)"},
    {"redirect_uri": [CALLBACK, "https://evil.example.com/"]},
    {"redirect_uri": CALLBACK + "\r\nx: y"},
    {"response_type": "token", "redirect_uri": "https://evil.example.com/"},
    {"resource": "https://elsewhere.example.com/mcp", "redirect_uri": "https://evil.example.com/"},
    {"scope": ["a", "b"]},
    {"state": "\u202e"},
]


async def test_nobody_is_sent_anywhere_else(issuer: RunningServer, app: Credentials, subtests: pytest.Subtests) -> None:
    for changes in NOT_TOLD:
        with subtests.test(changes=changes):
            with pytest.raises(RuntimeError, match=r"(?s)^400 .*cannot be answered") as refused:
                await issuer.approve(authorize_url(issuer.issuer, "app", **changes))
            assert "<a" not in str(refused.value)


async def test_the_port_of_a_loopback_callback_is_free(issuer: RunningServer, app: Credentials) -> None:
    code = await code_of(issuer, app, redirect_uri="http://127.0.0.1:50001/callback")
    form = redemption(app, issuer.issuer, code, redirect_uri="http://127.0.0.1:50001/callback")
    good(await issuer.post("/token", form))


async def test_a_code_may_be_for_several_resources_and_a_token_is_for_one(
    issuer: RunningServer, app: Credentials
) -> None:
    code = await code_of(issuer, app, resource=[FILES, MAIL])
    unsaid = redemption(app, issuer.issuer, code)
    assert error_of(await issuer.post("/token", unsaid)) == "invalid_target"
    answer = good(await issuer.post("/token", redemption(app, issuer.issuer, code, resource=MAIL)))
    assert claims_of(issuer, answer["access_token"], resource=MAIL)["aud"] == MAIL
    answer = good(await refresh(issuer, app, answer["refresh_token"], resource=FILES))
    assert claims_of(issuer, answer["access_token"])["aud"] == FILES


async def test_refresh_tokens_rotate_and_can_be_narrowed(issuer: RunningServer, app: Credentials) -> None:
    first = await tokens_of(issuer, app)
    narrow = good(await refresh(issuer, app, first["refresh_token"], scope="mcp:use"))
    assert narrow["scope"] == "mcp:use"
    assert narrow["refresh_token"] != first["refresh_token"]
    whole = good(await refresh(issuer, app, narrow["refresh_token"]))
    assert whole["scope"] == "mcp:use files:read"
    assert error_of(await refresh(issuer, app, whole["refresh_token"], scope="mcp:use admin")) == "invalid_scope"
    good(await refresh(issuer, app, whole["refresh_token"]))


async def test_a_refresh_token_that_is_used_again_ends_all(issuer: RunningServer, app: Credentials) -> None:
    server = issuer.add_client("server")
    first = await tokens_of(issuer, app)
    second = good(await refresh(issuer, app, first["refresh_token"]))
    assert error_of(await refresh(issuer, app, first["refresh_token"])) == "invalid_grant"
    assert error_of(await refresh(issuer, app, second["refresh_token"])) == "invalid_grant"
    assert (await introspect(issuer, server, second["access_token"])) == {"active": False}


async def test_a_refresh_token_is_its_clients_own(issuer: RunningServer, app: Credentials) -> None:
    other = issuer.add_client("other", public=True, redirect_uris=[CALLBACK])
    answer = await tokens_of(issuer, app)
    assert error_of(await refresh(issuer, other, answer["refresh_token"])) == "invalid_grant"
    assert error_of(await refresh(issuer, app, answer["access_token"])) == "invalid_grant"
    good(await refresh(issuer, app, answer["refresh_token"]))


async def test_more_than_is_known_is_not_granted() -> None:
    async with running(resources=[FILES], scopes={"mcp:use": "Use it", "files:read": ""}) as issuer:
        app = issuer.add_client("app", public=True, redirect_uris=[CALLBACK], scopes=["mcp:use", "root"])
        code = await code_of(issuer, app, scope="root mcp:use files:read")
        assert good(await issuer.post("/token", redemption(app, issuer.issuer, code)))["scope"] == "mcp:use"
        back = await issuer.approve(authorize_url(issuer.issuer, "app", scope="root"))
        assert parameters_of(back)["error"] == "invalid_scope"
        assert issuer.server.metadata()["scopes_supported"] == ["mcp:use", "files:read"]
