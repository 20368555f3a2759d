"""A TCP relay between pods and the test database, so that a test can take the database away and bring it back."""

import contextlib
import selectors
import socket
import threading


class Relay:
    """Listens on *host* and passes bytes to *target* in threads of its own; `cut` ends and refuses connections."""

    def __init__(self, host: str, target: tuple[str, int]) -> None:
        self._host, self._target = host, target
        self._listener: socket.socket | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.port = 0
        self.mend()

    def mend(self) -> None:
        """Take connections (again), on the same port as before."""
        listener = socket.create_server((self._host, self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """End what is open and take nothing more: the database is away."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for pair in list(self._pairs):
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        pair = (client, server)
        self._pairs.add(pair)
        other = {client: server, server: client}
        with selectors.DefaultSelector() as selector, client, server:
            for one in pair:
                selector.register(one, selectors.EVENT_READ)
            try:
                while True:
                    for event, _ in selector.select():
                        source = event.fileobj
                        assert isinstance(source, socket.socket)
                        data = source.recv(65536)
                        if not data:
                            return
                        other[source].sendall(data)
            except OSError:
                return
            finally:
                self._pairs.discard(pair)
