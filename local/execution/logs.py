"""Log files of Lambda functions, and pipes for their processes' output."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

Echo = Callable[[str, str], None]  # (function, line)


class FunctionLog:
    """Log file of one Lambda function: <folder>/<function>.log.

    Each line is also passed to `echo`.
    """

    def __init__(self, folder: Path, function: str, echo: Echo | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{function}.log"
        self._function = function
        self._echo = echo
        self._file = self.path.open("w", encoding="utf-8", buffering=1)

    def write(self, line: str) -> None:
        """Append one line to the function's log."""
        self._file.write(line + "\n")
        if self._echo is not None:
            self._echo(self._function, line)

    def close(self) -> None:
        """Close the log file."""
        self._file.close()


class ProcessOutput:
    """Pipe that copies a function process's output to its log.

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
        """Return the file descriptor to poll for process output."""
        return self._read_end

    def close_write_end(self) -> None:
        """Close the parent's write end of the output pipe.

        To be called once the child has its copy; otherwise the pipe would never end.
        """
        os.close(self.write_end)

    def pump(self) -> bool:
        """Log the process's complete output lines; return False at the end."""
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
        """Log one line from Lambda's platform or the function's process."""
        # awslambdaric separates the lines of a traceback by carriage returns.
        text = text.rstrip("\r").replace("\r", "\n")
        self.recent.append(text)
        self._log.write(text)

    def close(self) -> None:
        """Log the remaining output and close the pipe."""
        self.pump()
        if self._rest:
            self.line(self._rest.decode("utf-8", "replace"))
            self._rest = b""
        self._open = False
        os.close(self._read_end)
