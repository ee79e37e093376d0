"""One readable log a function, whole lines only, however many processes write to it."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

Echo = Callable[[str, str], None]  # (function, line)


class FunctionLog:
    """Appends to <folder>/<function>.log, and hands each line to `echo`, which may print it."""

    def __init__(self, folder: Path, function: str, echo: Echo | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{function}.log"
        self._function = function
        self._echo = echo
        self._file = self.path.open("w", encoding="utf-8", buffering=1)

    def write(self, line: str) -> None:
        self._file.write(line + "\n")
        if self._echo is not None:
            self._echo(self._function, line)

    def close(self) -> None:
        self._file.close()


class ProcessOutput:
    """What one process prints. `pump` takes what is there now, so that END never comes before the last print."""

    def __init__(self, log: FunctionLog) -> None:
        self._log = log
        self._rest = b""
        self._open = True
        self.recent: deque[str] = deque(maxlen=100)
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)

    def fileno(self) -> int:
        return self._read_end

    def close_write_end(self) -> None:
        """To be called once the child has its copy; without it the pipe never ends."""
        os.close(self.write_end)

    def pump(self) -> bool:
        """Log the complete lines that have arrived; false once the process and its children have closed the pipe."""
        while self._open:
            try:
                chunk = os.read(self._read_end, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self.line(line.decode("utf-8", "replace"))
        return False

    def line(self, text: str) -> None:
        """Write one line of the platform's own, or of the process."""
        text = text.rstrip("\r").replace(
            "\r", "\n"
        )  # the runtime client separates the lines of a traceback by \r
        self.recent.append(text)
        self._log.write(text)

    def close(self) -> None:
        self.pump()
        if self._rest:
            self.line(self._rest.decode("utf-8", "replace"))
            self._rest = b""
        self._open = False
        os.close(self._read_end)
