from __future__ import annotations

import pytest

from cortex.gateway.auth.caller import ANONYMOUS, Caller


@pytest.mark.parametrize(
    ("models", "names", "allowed"),
    [
        ((), ("org/any",), True),
        (("org/small",), ("org/small",), True),
        (("org/small",), ("org/small-2",), False),
        (("org/*",), ("org/small",), True),
        (("org/*",), ("other/org/small",), False),
        (("gpt-*",), ("gpt-4o", "org/small"), True),  # the alias asked for is allowed
        (("org/small",), ("gpt-4o", "org/small"), True),  # what it stands for is
        (("claude-*",), ("gpt-4o", "org/small"), False),
        (("Org/Small",), ("org/small",), False),
    ],
)
def test_a_key_with_a_list_may_use_what_is_on_it(models, names, allowed) -> None:
    assert Caller("someone", models=models).may_use(*names) is allowed


def test_callers_without_a_key_have_no_admin_rights() -> None:
    assert ANONYMOUS.scopes == {"inference"}
    assert ANONYMOUS.key_id is None
