from __future__ import annotations

import pytest

from cortex.config.gateway import EvictionSettings, GatewayConfig, GatewaySettings
from cortex.gateway.settings import LiveSettings


def test_who_keeps_a_table_reads_the_value_that_holds_now():
    live = LiveSettings(GatewayConfig(GatewaySettings(queue_depth=3)))
    settings, eviction = live.gateway, live.eviction
    assert (settings.queue_depth, eviction.keep_alive) == (3, 1800.0)
    live.swap(GatewayConfig(GatewaySettings(queue_depth=9), EvictionSettings(keep_alive=5.0)))
    assert (settings.queue_depth, eviction.keep_alive) == (9, 5.0)
    assert live.config.gateway.queue_depth == 9


def test_a_field_that_no_table_has_is_an_error():
    with pytest.raises(AttributeError):
        LiveSettings(GatewayConfig()).gateway.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_a_follower_is_told_now_and_after_each_swap():
    live = LiveSettings(GatewayConfig())
    depths: list[int] = []
    live.follow(lambda settings: depths.append(settings.queue_depth))
    live.swap(GatewayConfig(GatewaySettings(queue_depth=9)))
    assert depths == [256, 9]
