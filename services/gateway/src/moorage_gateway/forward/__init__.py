"""The forwarder: one request or WebSocket passed on to an upstream, streamed both ways."""
