"""Log files, one per function, and pipes for the processes' output."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

Echo = Callable[[str, str], None]  # (function, line)


class FunctionLog:
    """Log file of one function: <folder>/<function>.log.

    Each line is also passed to `echo`.
    """

    def __init__(self, folder: Path, function: str, echo: Echo | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{function}.log"
        self._function = function
        self._echo = echo
        self._file = self.path.open("w", encoding="utf-8", buffering=1)

    def write(self, line: str) -> None:
        """Append one line."""
        self._file.write(line + "\n")
        if self._echo is not None:
            self._echo(self._function, line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ProcessOutput:
    """Pipe for the output of one process.

    `pump` reads without blocking, so that END is logged after the last print.
    """

    def __init__(self, log: FunctionLog) -> None:
        self._log = log
        self._rest = b""
        self._open = True
        self.recent: deque[str] = deque(maxlen=100)
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)

    def fileno(self) -> int:
        """Return the descriptor to poll for output."""
        return self._read_end

    def close_write_end(self) -> None:
        """Close our write end once the child has its copy.

        Otherwise the pipe would never end.
        """
        os.close(self.write_end)

    def pump(self) -> bool:
        """Log complete lines; return False at the end of the pipe."""
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
        """Log one line of the platform or of the process."""
        # awslambdaric separates the lines of a traceback by carriage returns.
        text = text.rstrip("\r").replace("\r", "\n")
        self.recent.append(text)
        self._log.write(text)

    def close(self) -> None:
        """Log the rest and close the pipe."""
        self.pump()
        if self._rest:
            self.line(self._rest.decode("utf-8", "replace"))
            self._rest = b""
        self._open = False
        os.close(self._read_end)
