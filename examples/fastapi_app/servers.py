"""The two MCP servers, as their authors wrote them: neither knows that it is governed."""

from fastmcp import FastMCP
from fastmcp.server.dependencies import get_access_token as fastmcp_access_token
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token as sdk_access_token

__all__ = ["files_server", "notes_server"]


def files_server() -> FastMCP:
    """Files, with FastMCP."""
    mcp = FastMCP("files")
    files = {"agenda.txt": "Tuesday: the annual report.", "draft.txt": "A draft that nobody needs."}

    @mcp.tool
    def list_files() -> list[str]:
        """The names of all files."""
        return sorted(files)

    @mcp.tool
    def read_file(name: str) -> str:
        """The text of a file."""
        return files[name]

    @mcp.tool
    def delete_file(name: str) -> str:
        """Delete a file."""
        del files[name]
        return f"{name} deleted by {_caller(fastmcp_access_token())}"

    @mcp.tool
    def purge_files() -> str:
        """Delete every file."""
        files.clear()
        return "all files deleted"

    return mcp


def notes_server() -> MCPServer:
    """Notes, with the official SDK."""
    mcp = MCPServer("notes", log_level="WARNING")
    notes = ["The report is due on Tuesday."]

    @mcp.tool()
    def search_notes(text: str) -> list[str]:
        """The notes that contain a text."""
        return [note for note in notes if text.lower() in note.lower()]

    @mcp.tool()
    def add_note(text: str) -> str:
        """Write a note."""
        notes.append(text)
        return f"noted by {_caller(sdk_access_token())}"

    @mcp.tool()
    def purge_notes() -> str:
        """Delete every note."""
        notes.clear()
        return "all notes deleted"

    return mcp


def _caller(token: object) -> str:
    """The agent that calls, as a tool may know it."""
    return getattr(token, "client_id", "nobody")
