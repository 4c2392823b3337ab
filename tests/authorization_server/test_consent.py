"""The page of consent: what it shows, whose answers it takes, and that a real browser gets along with it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from examples.authorization_server import Client, User
from tests.authorization_server.browser import CHROMIUM, tab
from tests.authorization_server.flows import CALLBACK, FILES, MAIL, authorize_url, good, parameters_of, redemption
from tests.authorization_server.running import Credentials, RunningServer, running
from tests.support import serve

EVIL = "\"><script>alert(1)</script>{users}&amp;'"


@pytest.fixture
async def browser() -> AsyncIterator[httpx2.AsyncClient]:
    """Somebody's browser, as far as cookies go."""
    async with httpx2.AsyncClient() as client:
        yield client


@pytest.fixture
def app(issuer: RunningServer) -> Credentials:
    return issuer.add_client("app", public=True, redirect_uris=[CALLBACK])


async def ask(issuer: RunningServer, browser: httpx2.AsyncClient) -> dict[str, str | list[str]]:
    """Open the page; the form that allows everything to alice."""
    page = await browser.get(authorize_url(issuer.issuer, "app"))
    [request] = re.findall(r'name="request" value="([\w-]{43})"', page.text)
    return {"request": request, "user": "alice", "decision": "allow", "scope": ["mcp:use", "files:read"]}


async def test_the_page_says_who_wants_what_and_where(browser: httpx2.AsyncClient) -> None:
    scopes = {"mcp:use": "Talk to the server", "files:read": "Read your files"}
    async with running(resources=[FILES, MAIL], scopes=scopes) as issuer:
        client = Client.from_dict({"client_id": "app", "name": "Some Agent", "redirect_uris": [CALLBACK]})
        issuer.server.add_client(client)
        page = await browser.get(authorize_url(issuer.issuer, "app", resource=[FILES, MAIL]))
    for text in ("Some Agent", "127.0.0.1:7777", FILES, MAIL, "Read your files", "files:read", "Alice", "Bob"):
        assert text in page.text
    assert "Development only" in page.text
    assert page.headers["development-only"]


async def test_no_page_can_be_framed_or_runs_scripts(issuer: RunningServer, app: Credentials) -> None:
    async with httpx2.AsyncClient() as http:
        pages = [
            await http.get(authorize_url(issuer.issuer, "app")),
            await http.get(authorize_url(issuer.issuer, "nobody")),
            await http.post(f"{issuer.issuer}/consent", data={"request": "x"}),
            await http.get(f"{issuer.issuer}/"),
        ]
    assert [page.status_code for page in pages] == [200, 400, 400, 200]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert "<script" not in page.text
        assert "access-control-allow-origin" not in page.headers


async def test_everything_shown_is_escaped(browser: httpx2.AsyncClient) -> None:
    users = [User(EVIL, EVIL)]
    async with running(resources=[FILES], users=users, scopes={"a'<b>": EVIL}) as issuer:
        sent = {"redirect_uris": ["http://localhost/<b>"], "client_name": EVIL, "token_endpoint_auth_method": "none"}
        assert (await issuer.http.post("/register", json=sent)).status_code == 400
        answer = (await issuer.http.post("/register", json={**sent, "redirect_uris": [CALLBACK]})).json()
        url = authorize_url(issuer.issuer, answer["client_id"], scope="a'<b>")
        page = await browser.get(url)
        assert page.status_code == 200
        assert page.text.count("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;{users}&amp;amp;&#x27;") == 5
        assert "a&#x27;&lt;b&gt;" in page.text
        assert "<script" not in page.text
        assert "code" in parameters_of(await issuer.approve(url, user=EVIL))
    for fields in ({"client_id": "<script>"}, {"response_type": "<script>"}, {"redirect_uri": "http://localhost/<b>"}):
        async with running(resources=[FILES]) as issuer:
            issuer.add_client("app", public=True, redirect_uris=[CALLBACK, "http://localhost/"])
            page = await browser.get(authorize_url(issuer.issuer, "app", **{"redirect_uri": None, **fields}))
            assert page.status_code == 400
            assert "<script" not in page.text
            assert "<b>" not in page.text


async def test_only_the_browser_that_was_asked_consents(
    issuer: RunningServer, app: Credentials, browser: httpx2.AsyncClient
) -> None:
    form = await ask(issuer, browser)
    async with httpx2.AsyncClient() as other:
        await ask(issuer, other)
        refused = await other.post(f"{issuer.issuer}/consent", data=form)
    assert refused.status_code == 400
    assert "out of date" in refused.text
    stale = await browser.post(f"{issuer.issuer}/consent", data=form)
    assert stale.status_code == 400, "whoever tries ends it"


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null", "http://127.0.0.1:1"])
async def test_only_the_page_consents(
    issuer: RunningServer, app: Credentials, browser: httpx2.AsyncClient, origin: str
) -> None:
    form = await ask(issuer, browser)
    refused = await browser.post(f"{issuer.issuer}/consent", data=form, headers={"origin": origin})
    assert refused.status_code == 400


async def test_consent_is_given_once(issuer: RunningServer, app: Credentials, browser: httpx2.AsyncClient) -> None:
    one, other = await ask(issuer, browser), await ask(issuer, browser)
    for form in (one, other):
        answer = await browser.post(f"{issuer.issuer}/consent", data=form)
        assert answer.status_code == 303, "several pages may be open"
        assert "code" in parameters_of(answer.headers["location"])
        assert (await browser.post(f"{issuer.issuer}/consent", data=form)).status_code == 400


async def test_it_is_not_given_for_more_than_was_shown(
    issuer: RunningServer, app: Credentials, browser: httpx2.AsyncClient
) -> None:
    form = await ask(issuer, browser)
    answer = await browser.post(f"{issuer.issuer}/consent", data=form | {"scope": ["admin", "mcp:use"]})
    code = parameters_of(answer.headers["location"])["code"]
    assert good(await issuer.post("/token", redemption(app, issuer.issuer, code)))["scope"] == "mcp:use"


@pytest.mark.parametrize(
    "changes", [{"decision": "deny"}, {"decision": "maybe"}, {"user": "nobody"}, {"user": ""}, {"scope": "admin"}]
)
async def test_whatever_is_not_consent_is_none(
    issuer: RunningServer, app: Credentials, browser: httpx2.AsyncClient, changes: dict[str, str]
) -> None:
    form = await ask(issuer, browser)
    answer = await browser.post(f"{issuer.issuer}/consent", data=form | changes)
    assert parameters_of(answer.headers["location"])["error"] == "access_denied"


async def test_a_request_without_scopes_is_a_question_too(issuer: RunningServer, app: Credentials) -> None:
    back = await issuer.approve(authorize_url(issuer.issuer, "app", scope=None))
    code = parameters_of(back)["code"]
    assert good(await issuer.post("/token", redemption(app, issuer.issuer, code)))["scope"] == ""


@asynccontextmanager
async def application() -> AsyncIterator[tuple[str, "asyncio.Future[dict[str, str]]"]]:
    """Where an application waits for its answer: the callback, and what came. It sends the browser on, elsewhere."""
    came: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def callback(request: Request) -> Response:
        return RedirectResponse(f"http://localhost:{request.url.port}/done?{request.url.query}")

    async def done(request: Request) -> Response:
        came.set_result(dict(request.query_params))
        return Response("Done.")

    async with serve(Starlette(routes=[Route("/callback", callback), Route("/done", done)])) as origin:
        yield f"{origin}/callback", came


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_person_gets_along_with_it(tmp_path: Path) -> None:
    scopes = {"mcp:use": "Talk to the server", "files:read": "Read your files"}
    async with running(resources=[FILES], scopes=scopes) as issuer, application() as (callback, came):
        registered = {"redirect_uris": [callback], "client_name": EVIL, "token_endpoint_auth_method": "none"}
        client = Credentials((await issuer.http.post("/register", json=registered)).json()["client_id"])
        async with tab(tmp_path / "home") as page:
            await page.go(authorize_url(issuer.issuer, client.client_id, redirect_uri=callback))
            assert await page.read("document.querySelector('h1').textContent") == f"{EVIL} asks for access"
            assert await page.read("document.scripts.length") == 0
            assert await page.read("getComputedStyle(document.querySelector('main')).maxWidth") == "480px", "its style"
            assert await page.read("document.documentElement.scrollWidth <= innerWidth"), "it fits"
            await page.click("input[value='files:read']")
            await page.read("document.querySelector('select').value = 'bob'")
            await page.click("button.allow")
            answer = await came
        assert (answer["iss"], answer["state"]) == (issuer.issuer, "xyz")
        form = redemption(client, issuer.issuer, answer["code"], redirect_uri=callback)
        assert good(await issuer.post("/token", form))["scope"] == "mcp:use"
