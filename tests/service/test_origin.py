"""Origins: which of them are pages that have no business here."""

import pytest

from cortex.service.origin import is_foreign_page


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "http://example.com:31313",  # a name that was made to point here
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://127.0.0.1@example.com",
        "http://192.168.1.4:3000",
        "null",  # a frame in a sandbox, a file, or a page that hides where it is from
        "",
        "http://[broken",
    ],
)
def test_a_page_of_another_machine_is_foreign(origin):
    assert is_foreign_page({"origin": origin})


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:5173",
        "http://127.0.0.1:31313",
        "https://[::1]",
        "vscode-webview://abc",
        "chrome-extension://abcdef",
        "tauri://localhost",
    ],
)
def test_pages_of_this_machine_and_installed_programs_are_not(origin):
    assert not is_foreign_page({"origin": origin})


def test_who_names_no_page_is_a_program():
    assert not is_foreign_page({"host": "example.com", "referer": "https://example.com/"})
