"""A port in front of a server, which tests of outages take away."""

import contextlib
import socket
import threading


class Relay:
    """A port in front of the server that can be taken away, kept silent, or lose an answer."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.silent = False
        self.lose: bytes | None = None
        self.lost = 0
        self.requests = 0
        self._ends: list[socket.socket] = []
        self.port = 0
        self.back()
        self.uri = f"http://127.0.0.1:{self.port}"

    def back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def away(self) -> None:
        for end in [self._listener, *self._ends]:
            # A thread that waits in accept or recv would keep a socket that is merely closed alive.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        try:
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._ends += [client, server]
                losing = threading.Event()
                threading.Thread(target=self._ask, args=(client, server, losing), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client, losing), daemon=True).start()
        except OSError:
            return

    def _ask(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        try:
            while data := client.recv(65536):
                self.requests += data.count(b" HTTP/1.1\r\n")
                if self.lose is not None and self.lose in data:
                    self.lose = None
                    losing.set()
                if not self.silent:
                    server.sendall(data)
        except OSError:
            return

    def _answer(self, server: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        try:
            while data := server.recv(65536):
                if losing.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
        except OSError:
            return
