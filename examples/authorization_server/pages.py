"""What a person sees: the page of consent, and why there is none. HTML and CSS, no script. Pure."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final
from urllib.parse import urlsplit

from mcp_middleware.oauth.urls import is_loopback

from .clients import Client
from .tokens import User

__all__ = ["POLICY", "consent", "index", "refusal"]

POLICY: Final = "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"
"""The content security policy of a page: nothing but its style, and in no frame. It has no ``form-action``, because
browsers apply that to where the application sends the answer on as well."""

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/style.css">
</head>
<body>
<p class="development"><strong>Development only.</strong> This authorization server asks nobody for a password and \
forgets everything. Never deploy it.</p>
<main>
{content}
</main>
</body>
</html>
"""

_CONSENT: Final = """\
<h1><span class="who">{name}</span> asks for access</h1>
<dl>
<dt>To</dt><dd>{resources}</dd>
<dt>Returns to</dt><dd><strong>{host}</strong>{where}</dd>
<dt>Application</dt><dd><code>{client_id}</code><br><small>{origin}</small></dd>
</dl>
<form method="post" action="/consent" autocomplete="off">
<input type="hidden" name="request" value="{request}">
{scopes}
<label class="user">Sign in as
<select name="user">
{users}
</select></label>
<div class="buttons">
<button name="decision" value="allow" class="allow">Allow</button>
<button name="decision" value="deny">Deny</button>
</div>
</form>
"""

_SCOPE: Final = """\
<li><label><input type="checkbox" name="scope" value="{name}" checked> <span>{text}{code}</span></label></li>"""
_CODE: Final = " <code>{name}</code>"

_ORIGINS: Final = {
    "configuration": "Known to this server by its configuration.",
    "registration": "It registered itself, under a name of its own choosing.",
    "document": "It is described by the document at this address, and the name is what that says.",
}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def html(template: str, **values: str) -> Html:
    """``template`` with ``values`` in it, which are escaped unless they are markup."""
    return Html(template.format_map({k: v if isinstance(v, Html) else escape(v) for k, v in values.items()}))


def _joined(parts: Iterable[Html], between: str = "\n") -> Html:
    return Html(between.join(parts))


def consent(
    client: Client,
    *,
    request: str,
    redirect_uri: str,
    resources: Sequence[str],
    scopes: Sequence[tuple[str, str]],
    users: Iterable[User],
) -> Html:
    """The question whether ``client`` may have ``scopes`` (names, and what they are for) at ``resources``.

    ``request`` is what the answer names.
    """
    items = _joined(
        html(_SCOPE, name=name, text=meaning or name, code=html(_CODE if meaning else "", name=name))
        for name, meaning in scopes
    )
    listed = html("<fieldset><legend>It wants to</legend><ul>{items}</ul></fieldset>", items=items)
    content = html(
        _CONSENT,
        name=client.name,
        client_id=client.client_id,
        origin=_ORIGINS[client.origin],
        request=request,
        host=_host(redirect_uri),
        where=" on this computer" if is_loopback(urlsplit(redirect_uri).hostname or "") else "",
        resources=_joined((html("<code>{url}</code>", url=url) for url in resources), "<br>"),
        scopes=listed if scopes else html("<p>{text}</p>", text="It asks for no scope in particular."),
        users=_joined(
            html('<option value="{subject}">{name}</option>', subject=user.subject, name=user.name) for user in users
        ),
    )
    return html(_PAGE, title=f"{client.name} asks for access", content=content)


def refusal(error: str, description: str) -> Html:
    """Why a person cannot be asked, where the application must not be told: nobody knows that it is one."""
    content = html(
        "<h1>This request cannot be answered</h1><p>{description}</p><p><code>{error}</code></p>",
        error=error,
        description=description or "The application sent a request that is wrong.",
    )
    return html(_PAGE, title="This request cannot be answered", content=content)


def index(issuer: str, resources: Sequence[str]) -> Html:
    """What this is, for who opens its address."""
    items = _joined((html("<li><code>{url}</code></li>", url=url) for url in resources), "")
    content = html(
        "<h1>An authorization server</h1>"
        "<p>It issues tokens in the name of <code>{issuer}</code> for</p><ul>{items}</ul>"
        '<p><a href="/.well-known/oauth-authorization-server">What it supports</a></p>',
        issuer=issuer,
        items=items,
    )
    return html(_PAGE, title="Authorization server", content=content)


def _host(redirect_uri: str) -> str:
    """Where an answer goes, as a person knows it."""
    parts = urlsplit(redirect_uri)
    return parts.netloc if parts.scheme in ("http", "https") else f"the application that opens {parts.scheme}: links"
