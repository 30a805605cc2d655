"""Who may come in: API keys (`keys`), OpenID Connect tokens (`oidc`), or everybody on loopback."""
