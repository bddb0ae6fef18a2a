"""The certificate of the API's port, as the configuration names it."""

from __future__ import annotations

from cortex.config.errors import ConfigError
from cortex.config.gateway import GatewayConfig
from cortex.service.tls import BadCertificate, ServerContext, server_context


def context_of(config: GatewayConfig) -> ServerContext | None:
    """The context made of *config*'s certificate, which is read now; None where it names none.

    `ConfigError`, with file and key, when the files cannot be read or do not belong together.
    """
    settings = config.gateway
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return server_context(settings.tls_certificate, settings.tls_key)
    except BadCertificate as bad:
        place = config.source or "configuration"
        key = "tls_key" if bad.of_key else "tls_certificate"
        raise ConfigError(f"{place}: gateway.{key}: {bad}") from None
