"""In CI a skipped test is a failure: there every tool is installed, so a skip hides something. No test asserts a time,
nor does hypothesis for one: a busy machine is no fault of what is tested."""

import os
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from hypothesis import settings

settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


_ONE_LOOP: Final = ("credentials", "flows", "oauth", "resource_server")
"""Folders whose tests share an event loop, so that one server serves many of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = [Path(__file__).parent / name for name in _ONE_LOOP]
    for item in items:
        if pytest_asyncio.is_async_test(item) and any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
