"""A step of nbgrader's grading: the notebook is run, and what runs for ever is stopped, however often."""

import inspect
import time
from collections.abc import Callable

import nbformat
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbgrader.preprocessors import Execute
from traitlets import Dict, Integer, default


def limit(seconds: float) -> None:
    """Let each cell of this kernel have half of the processor time that is left; it runs in the kernel.

    So the first loop that does not end costs half of it, the next one a quarter, and all of them less than there is. A
    loop that catches the interrupt is interrupted again and again, until the operating system ends the kernel.

    Parameters
    ----------
    seconds : float
        Processor time of the kernel as a whole.
    """
    import signal
    import time

    if not hasattr(signal, "setitimer"):
        return  # Windows: by the clock only
    import resource

    def start(info: object) -> None:
        left = seconds - time.process_time()
        signal.setitimer(signal.ITIMER_PROF, max(left / 2, 0.1), 0.5)

    def stop(result: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    signal.signal(signal.SIGPROF, signal.default_int_handler)  # KeyboardInterrupt
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    events = get_ipython().events  # noqa: F821 (it is there in a kernel)
    events.register("pre_run_cell", start)
    events.register("post_run_cell", stop)


class LimitedExecute(Execute):
    """Run a notebook within limits of processor time and of time for it as a whole.

    A kernel that ended costs the tests that were not run yet, and no others.
    """

    seconds = Integer(16, help="processor time of a notebook's kernel").tag(config=True)
    seconds_of = Dict({}, help="the same for assignments by name, where it is another").tag(config=True)
    clock = Integer(300, help="seconds by the clock; a cell may take half of what is left").tag(config=True)

    _ended = False

    @default("timeout_func")
    def _halves(self) -> Callable[[NotebookNode], float]:
        end = time.monotonic() + self.clock
        return lambda cell: max(1, (end - time.monotonic()) / 2)

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        if index == 0:
            seconds = self.seconds_of.get(resources["nbgrader"]["assignment"], self.seconds)
            code = f"{inspect.getsource(limit)}\nlimit({seconds})\ndel limit"
            reply = self.wait_for_reply(self.kc.execute(code, silent=True))
            if reply["content"]["status"] != "ok":
                raise RuntimeError(f"the kernel did not take its limit: {reply['content']}")
        if not self._ended:
            try:
                return super().preprocess_cell(cell, resources, index)
            except DeadKernelError:
                self._ended = True
        if cell.cell_type == "code":  # without an output, a cell of tests would have passed
            cell.outputs = [nbformat.v4.new_output("error", ename="DeadKernelError", evalue="the kernel has ended")]
        return cell, resources
