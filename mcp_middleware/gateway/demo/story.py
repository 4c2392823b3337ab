"""What the agents do, step by step, told on standard output."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx2

from .agent import VERSIONS, Agent, Call, Conversation, Era
from .stage import Stage

__all__ = ["Story"]

AT_ONCE: Final = 12
"""Calls at the same time."""
MANY: Final = 15
"""Calls in a row; more than the crawler's burst."""
LOOKS: Final = 20
"""How often to look whether an instance is used again, once a second."""


class Story:
    """Lets the agents of a stage call its servers through the gateway, and prints what comes of it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.assistant, self.crawler = stage.agents["assistant"], stage.agents["crawler"]
        self.surprises: list[str] = []
        """What went otherwise than it should."""

    async def tell(self) -> None:
        """All of it."""
        for chapter in (self.handle_tickets, self.overdo, self.use_both_instances, self.survive):
            try:
                await chapter()
            except Exception as error:
                self.surprise(_reason(error))

    async def handle_tickets(self) -> None:
        """How an agent gets in, what it may see, and what it gains on the way."""
        self.title(self.assistant, "handles tickets", "tickets", "modern")
        async with self.assistant.connect(self.stage.url("tickets"), "modern") as talk:
            self.say("token", talk.scopes, "from the issuer, to which the gateway's 401 led")
            self.say("sees", ", ".join(await talk.tools()), "what the access rules give it; the server has more")
            self.allowed("list_tickets", await talk.call("list_tickets"))
            hidden, unknown = await talk.call("purge_tickets"), await talk.call("no_such_tool")
            self.denied("purge_tickets", hidden)
            self.denied("no_such_tool", unknown)
            if (hidden.error or "").replace("purge_tickets", "no_such_tool") != unknown.error:
                self.surprise("the two answers differ")
            self.say("", "", "the same answer: nobody learns what is hidden")
            talk.heard.clear()
            created = await talk.call("create_ticket", title="Tea")
            challenge = next((heard.challenge for heard in talk.heard if heard.status == 403), "")
            scope = re.search(r'error="insufficient_scope".* scope="([^"]*)"', challenge)
            if scope is None:
                self.surprise(f"no step-up: {talk.heard}")
            else:
                self.say("step-up", "403 insufficient_scope", f"asks for {scope[1]}; its client fetches such a token")
            self.allowed("create_ticket Tea", created)
        async with httpx2.AsyncClient() as http:
            response = await http.get(self.stage.url("files"), headers={"authorization": f"Bearer {talk.token}"})
        self.denied("its token, at files", _refusal(response), "each token is good for one server")

    async def overdo(self) -> None:
        """Call until the limiter refuses, wait as long as it says, and go on; others notice nothing."""
        self.title(self.crawler, "asks too often", "search", "modern")
        async with self.crawler.connect(self.stage.url("search"), "modern") as talk:
            passed = 0
            while (call := await talk.call("find", text="report")).error is None and passed < MANY:
                passed += 1
            limited = next((heard for heard in talk.heard if heard.status == 429), None)
            if limited is None or not limited.retry_after:
                self.surprise(f"after {passed} calls in a row: {call}")
                return
            self.say(
                "allowed", f"find report, {passed} times", "with the list of tools its client asked for: its burst"
            )
            self.say("limited", f"find report, call {passed + 1}", f"429, Retry-After: {limited.retry_after}")
            async with self.assistant.connect(self.stage.url("search"), "modern") as other:
                self.allowed("find party, the assistant", await other.call("find", text="party"))
            await asyncio.sleep(float(limited.retry_after))
            self.allowed(f"find report, {limited.retry_after} s later", await talk.call("find", text="report"))

    async def use_both_instances(self) -> None:
        """The key that the gateway adds, and calls that go to whoever is least busy."""
        self.title(self.assistant, "counts words", "files", "modern")
        async with httpx2.AsyncClient() as http:
            response = await http.post(self.stage.files["files-1"], json={})
        self.denied("files-1, past the gateway", _refusal(response), "the gateway knows its key, agents do not")
        async with self.connected_for_many() as talk:
            self.say("sees", ", ".join(await talk.tools()), "")
            calls = await asyncio.gather(*(talk.call("count_words", name="agenda.txt") for _ in range(AT_ONCE)))
        by_instance = self.instances_of(calls)
        self.say("allowed", f"count_words, {AT_ONCE} at once", _counted(by_instance))
        if len(by_instance) < 2:
            self.surprise("only one instance was used")

    async def survive(self) -> None:
        """A session that stays with its instance until that dies; calls without a session that go on."""
        self.title(self.assistant, "reads line by line", "files", "legacy")
        url = self.stage.url("files")
        async with self.connected_for_many() as modern:
            await modern.tools()
            async with self.assistant.connect(url, "legacy") as session:
                owner = await self.read(session, "agenda.txt", 2)
                self.say("", "", f"the file is open in the memory of {owner}: every call of the session goes there")
                pid = await self.stage.kill(owner)
                self.say("killed", owner, f"process {pid}, with SIGKILL")
                session.heard.clear()
                lost = await session.call("next_line")
                self.denied("next_line", lost, f"{_statuses(session)}: the session ended with its instance")
            calls = await asyncio.gather(*(modern.call("count_words", name="agenda.txt") for _ in range(4)))
            by_instance = self.instances_of(calls)
            self.say(
                "allowed",
                f"count_words, {len(calls)} at once",
                f"{_counted(by_instance)}; without a session: nothing lost",
            )
            if owner in by_instance:
                self.surprise(f"{owner} answered after its end")
            async with self.assistant.connect(url, "legacy") as session:
                other = await self.read(session, "agenda.txt", 1)
                self.say("", "", "a new session, opened where there is life")
            if other == owner:
                self.surprise(f"the new session is at {other} again")
            await self.stage.revive(owner)
            self.say("restarted", owner, "where it was")
            for _ in range(LOOKS):
                calls = await asyncio.gather(*(modern.call("count_words", name="budget.txt") for _ in range(2)))
                if owner in (by_instance := self.instances_of(calls)):
                    self.say(
                        "allowed", f"count_words, {len(calls)} at once", f"{_counted(by_instance)}; a probe found it"
                    )
                    return
                await asyncio.sleep(1.0)
            self.surprise(f"{owner} is not used again")

    @asynccontextmanager
    async def connected_for_many(self) -> AsyncIterator[Conversation]:
        """The assistant at the files server, ready for calls at the same time."""
        url = self.stage.url("files")
        async with self.assistant.connect(url, "modern") as first:
            token = first.token
        async with self.assistant.connect(url, "modern", token=token) as talk:
            yield talk

    async def read(self, session: Conversation, name: str, lines: int) -> str:
        """Open a file in a session, read some lines, and return which instance answered."""
        opened = await session.call("open_file", name=name)
        self.allowed(f"open_file {name}", opened)
        owner = opened.text.rpartition(" ")[2]
        for _ in range(lines):
            line = await session.call("next_line")
            self.allowed("next_line", line)
            if f"({owner})" not in line.text:
                self.surprise(f"the session was at {owner}")
        return owner

    def instances_of(self, calls: list[Call]) -> Counter[str]:
        """Which instance answered how many of ``calls``, all of which should pass."""
        for call in calls:
            if call.error is not None:
                self.surprise(f"a call was refused: {call.error}")
        return Counter(call.text.rpartition("(")[2].rstrip(")") for call in calls if call.error is None)

    def title(self, agent: Agent, does: str, server: str, era: Era) -> None:
        """Open a chapter."""
        sessions = "with a session" if era == "legacy" else "without sessions"
        print(f"\nThe {agent.client_id} {does}: /{server}/mcp, MCP {VERSIONS[era]}, {sessions}\n")

    def allowed(self, what: str, call: Call) -> None:
        """Tell of a call that should pass."""
        if call.error is None:
            self.say("allowed", what, call.text)
        else:
            self.surprise(f"{what} was refused: {call.error}")

    def denied(self, what: str, call: Call, why: str = "") -> None:
        """Tell of a call that should not."""
        if call.error is not None:
            self.say("denied", what, call.error)
            if why:
                self.say("", "", why)
        else:
            self.surprise(f"{what} was let through: {call.text}")

    def surprise(self, text: str) -> None:
        """Tell of what should not have happened."""
        self.surprises.append(text)
        self.say("SURPRISE", text, "")

    def say(self, kind: str, what: str, outcome: str) -> None:
        """One line."""
        print(f"  {kind:<9}  {what:<30}  {outcome}".rstrip(), flush=True)


def _refusal(response: httpx2.Response) -> Call:
    """An answer to what was sent by hand, as a call."""
    if not response.is_error:
        return Call(response.text)
    challenge = response.headers.get("www-authenticate", "").partition(",")[0]
    return Call(error=f"HTTP {response.status_code} {challenge}".strip())


def _reason(error: BaseException) -> str:
    """What is wrong, out of the groups that the client's tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _statuses(talk: Conversation) -> str:
    return "HTTP " + ", ".join(str(heard.status) for heard in talk.heard)


def _counted(by_instance: Counter[str]) -> str:
    return ", ".join(f"{count} by {name}" for name, count in sorted(by_instance.items()))
