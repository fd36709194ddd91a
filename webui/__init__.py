"""The broker's web side: REST, live events, the dashboard. It must not know engine, store or TLS: it gets functions."""
