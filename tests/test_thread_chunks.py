"""Kernels run on all threads, torch on one."""

import os
import threading

import torch

from neuralpk.solve.compiled import thread_chunks


def test_kernels_keep_the_threads_that_torch_gives_up(monkeypatch):
    monkeypatch.setattr(thread_chunks, "_threads_before", 0)
    torch.set_num_threads(2)
    thread_chunks.leave_torch_one_thread()
    thread_chunks.leave_torch_one_thread()  # a second fit finds torch with one thread
    assert torch.get_num_threads() == 1 and thread_chunks.kernel_threads() == 2
    together = threading.Barrier(2, timeout=10)  # passed by two threads at the same time

    def run(begin, end):
        together.wait()
        return threading.current_thread().name, begin, end

    found = thread_chunks.in_chunks(run, 7, 4)
    assert [bounds for _, *bounds in found] == [[0, 4], [4, 7]]
    assert len({name for name, *_ in found}) == 2


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(thread_chunks, "_threads_before", 2)

    def run(begin, end):
        return end - begin

    assert thread_chunks.in_chunks(run, 9, 4) == [4, 4, 1]
    child = os.fork()
    if not child:
        os._exit(0 if thread_chunks.in_chunks(run, 9, 4) == [4, 4, 1] else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.1)
    if not done:
        os.kill(child, 9)
    assert done and os.waitstatus_to_exitcode(status) == 0
