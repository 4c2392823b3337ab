"""What ``import mcp_middleware`` promises: its public names, and none of what only extras or servers need."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

import mcp_middleware
import mcp_middleware.gateway

HEAVY = (
    "aiohttp",
    "fastapi",
    "fastmcp",
    "mcp",
    "opentelemetry.exporter",
    "opentelemetry.sdk",
    "pydantic",
    "redis",
    "sqlalchemy",
    "starlette",
    "uvicorn",
)
"""Never imported by us on our own account: each is optional, or costs more than all of ours."""

MEMBERS = {
    "AuditLogMiddleware",
    "OAuthResourceServerMiddleware",
    "RateLimitMiddleware",
    "SessionAffinityMiddleware",
    "ToolAuthorizationMiddleware",
    "TraceContextMiddleware",
}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys; from mcp_middleware import *; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "mcp_middleware.resource_server" in loaded
    assert not loaded.intersection(HEAVY)


def test_a_member_costs_an_application_its_own_imports_only() -> None:
    code = "import sys; from mcp_middleware import RateLimitMiddleware; print('\\n'.join(sys.modules))"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it loads sqlite3
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=plain)
    assert not {"yaml", "cryptography", "sqlite3"}.intersection(done.stdout.split())


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    for package in (mcp_middleware, mcp_middleware.gateway):
        homes = [name for names in package._HOMES.values() for name in names]
        assert sorted(homes) == sorted(package.__all__)
        assert all(hasattr(package, name) for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'Missing'"):
            package.Missing  # noqa: B018


def test_the_public_names_are_the_contract() -> None:
    assert set(mcp_middleware.__all__) >= MEMBERS
    assert all(hasattr(mcp_middleware, name) for name in mcp_middleware.__all__)
    assert len(set(mcp_middleware.__all__)) == len(mcp_middleware.__all__)


MODULES = [
    module.name
    for module in pkgutil.walk_packages(mcp_middleware.__path__, "mcp_middleware.")
    if not module.name.endswith(".__main__")  # a command, which would run
]


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_lists_as_public_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in getattr(module, "__all__", ()))
