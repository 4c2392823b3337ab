"""When a file counts as changed."""

from pathlib import Path

import pytest

from mcp_middleware.gateway.files import WatchedFiles


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "gateway.yaml"
    made.write_text("one")
    return made


def test_a_change_is_told_once_it_has_rested(file: Path) -> None:
    files = WatchedFiles([file])
    assert not files.changed()
    file.write_text("half")
    assert not files.changed()
    file.write_text("half and whole")
    assert not files.changed()
    assert files.changed()
    assert not files.changed()


def test_the_same_contents_are_no_change(file: Path) -> None:
    files = WatchedFiles([file])
    beside = file.with_name("new")
    beside.write_text("one")
    beside.replace(file)
    assert not files.changed()
    assert not files.changed()


def test_a_link_that_is_set_to_another_file_is_a_change(file: Path, tmp_path: Path) -> None:
    other, link, following = tmp_path / "other", tmp_path / "link", tmp_path / "following"
    other.write_text("two")
    link.symlink_to(file)
    files = WatchedFiles([link])
    following.symlink_to(other)
    following.replace(link)
    assert not files.changed()
    assert files.changed()


def test_a_file_that_goes_and_comes_back_changes_twice(file: Path) -> None:
    files = WatchedFiles([file])
    file.unlink()
    assert [files.changed(), files.changed()] == [False, True]
    file.write_text("one")
    assert [files.changed(), files.changed()] == [False, True]


def test_what_is_watched_can_change(file: Path, tmp_path: Path) -> None:
    files = WatchedFiles([file])
    policy = tmp_path / "policy.yaml"
    policy.write_text("a")
    file.write_text("two")
    assert [files.changed(), files.changed()] == [False, True]
    files.watch([policy])
    file.write_text("three")
    assert [files.changed(), files.changed()] == [False, False]
    policy.write_text("bb")
    assert [files.changed(), files.changed()] == [False, True]
