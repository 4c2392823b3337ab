"""What the two agents do, step by step, told on standard output."""

import asyncio
from collections.abc import Mapping
from typing import Final

from .agent import Agent, Call, Era

__all__ = ["Story"]

MANY: Final = 20
"""Calls in a row; more than the limiter lets through at once."""


class Story:
    """Lets the agents call the servers at the URLs ``files`` and ``notes``, and prints what comes of it."""

    def __init__(self, agents: Mapping[str, Agent], *, files: str, notes: str) -> None:
        self.reporter, self.archivist = agents["reporter"], agents["archivist"]
        self.files = files
        self.notes = notes
        self.surprises: list[str] = []
        """What went otherwise than it should."""

    async def tell(self) -> None:
        """All of it."""
        await self.read_files()
        await self.write_notes()
        await self.administer()
        await self.overdo()

    async def read_files(self) -> None:
        """Legacy era, FastMCP: tools that are hidden, and a scope obtained on the way."""
        self.title(self.reporter, "reads files", self.files, "legacy")
        async with self.reporter.connect(self.files, "legacy") as talk:
            self.say("token", talk.scopes, "from the issuer that the server's 401 led to")
            self.say("sees", ", ".join(await talk.tools()), "what the policy gives it; the server has more")
            self.allowed("read_file agenda.txt", await talk.call("read_file", name="agenda.txt"))
            self.say("step-up", talk.scopes, "that tool takes one scope more: 403, a new token, and again")
            self.denied("delete_file draft.txt", await talk.call("delete_file", name="draft.txt"))
            self.denied("no_such_tool", await talk.call("no_such_tool"))
            self.say("", "", "the same answer: nobody learns what is hidden")
            self.denied("its token, at the notes", await talk.show_token_to(self.notes))

    async def write_notes(self) -> None:
        """Modern era, the SDK: the same policy, and an identity that reaches the tool."""
        self.title(self.reporter, "writes notes", self.notes, "modern")
        async with self.reporter.connect(self.notes, "modern") as talk:
            self.say("token", talk.scopes, "another one: each is good for one server")
            self.allowed("search_notes report", await talk.call("search_notes", text="report"))
            self.allowed("add_note Done.", await talk.call("add_note", text="Done."))
            self.denied("purge_notes", await talk.call("purge_notes"))

    async def administer(self) -> None:
        """Modern era, FastMCP: a key instead of a secret, a role instead of scopes, and a deny that holds even so."""
        self.title(self.archivist, "administers files", self.files, "modern")
        async with self.archivist.connect(self.files, "modern") as talk:
            self.say("token", talk.scopes, "with the role admin")
            self.say("sees", ", ".join(await talk.tools()), "all but what is denied to everyone")
            self.allowed("delete_file draft.txt", await talk.call("delete_file", name="draft.txt"))
            self.denied("purge_files", await talk.call("purge_files"))

    async def overdo(self) -> None:
        """Call until the limiter refuses, wait as long as it says, and go on."""
        self.title(self.reporter, "asks too often", self.notes, "modern")
        async with self.reporter.connect(self.notes, "modern") as talk:
            passed = 0
            while (call := await talk.call("search_notes", text="report")).error is None and passed < MANY:
                passed += 1
            if call.retry_after is None:
                self.surprise(f"after {passed} calls in a row: {call}")
                return
            self.say("allowed", f"search_notes, {passed} times", "")
            self.say("limited", f"search_notes, call {passed + 1}", call.error or "")
            await asyncio.sleep(call.retry_after)
            self.allowed(
                f"search_notes, {call.retry_after:.1f} s later", await talk.call("search_notes", text="report")
            )

    def title(self, agent: Agent, does: str, url: str, era: Era) -> None:
        """Open a chapter."""
        version = "2025-11-25, with a session" if era == "legacy" else "2026-07-28, without sessions"
        print(f"\n{agent.client_id} ({agent.method}) {does}")
        print(f"{url}, MCP {version}\n")

    def allowed(self, what: str, call: Call) -> None:
        """Tell of a call that should pass."""
        if call.error is None:
            self.say("allowed", what, call.text)
        else:
            self.surprise(f"{what} was refused: {call.error}")

    def denied(self, what: str, call: Call) -> None:
        """Tell of a call that should not."""
        if call.error is not None:
            self.say("denied", what, call.error)
        else:
            self.surprise(f"{what} was let through: {call.text}")

    def surprise(self, text: str) -> None:
        """Tell of what should not have happened."""
        self.surprises.append(text)
        self.say("SURPRISE", text, "")

    def say(self, kind: str, what: str, outcome: str) -> None:
        """One line."""
        print(f"  {kind:<8}  {what:<36}  {outcome}".rstrip(), flush=True)
