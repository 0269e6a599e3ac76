"""A tracer that makes one system call of a child process fail: before it is done, or after.

Only calls that change files below one directory count. They are numbered in the order in
which the child makes them, and the one with the number of the `Fault` is spoilt:

    run(child, below=directory)                        # a recording: nothing is spoilt
    run(child, below=directory, fault=Fault(7, "stored"))

The kernel does the work: a seccomp filter stops the child at the calls that write and at no
other, ptrace lets the tracer skip a call, or change what it is told to have come of it. Both
through ctypes, on x86-64 Linux; `why_not()` says why they cannot be used elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["WAYS", "Call", "Fault", "Traced", "run", "why_not"]

WAYS = {
    "lost": "not done, and reported as failed (EIO)",
    "full": "not done for want of space (ENOSPC)",
    "stored": "done, but reported as failed (EIO)",
    "short": "half of the bytes written, and reported so",
    "killed before": "the process is killed, and the call not done",
    "killed after": "done, then the process is killed",
    "torn": "half of the bytes written, then the process is killed",
    "outage": "this and all later ones not done, until the child says that it noticed (EIO)",
    "full disk": "the same, and for want of space (ENOSPC)",
}
WRITES = {1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 328: "pwritev2"}
_BY_HANDLE = WRITES | {
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
    91: "fchmod",
    285: "fallocate",
}
# name, and where the arguments hold a directory's handle (or -1) and the path
_BY_PATH = {
    2: ("open", -1, 0), 76: ("truncate", -1, 0), 82: ("rename", -1, 0), 83: ("mkdir", -1, 0),
    84: ("rmdir", -1, 0), 86: ("link", -1, 0), 87: ("unlink", -1, 0), 257: ("openat", 0, 1),
    258: ("mkdirat", 0, 1), 263: ("unlinkat", 0, 1), 264: ("renameat", 0, 1),
    316: ("renameat2", 0, 1),
}  # fmt: skip
_OPENS = {2: 1, 257: 2}  # where the arguments hold the flags
_TAKES_SPACE = {*WRITES.values(), "fallocate", "open", "openat", "mkdir", "mkdirat"}

_TRACEME, _CONT, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
_OPTIONS = 0x1 | 0x8 | 0x80 | 0x100000  # mark syscall stops, follow threads, seccomp, kill at exit
_EVENT_SECCOMP, _SYSCALL_STOP = 7, signal.SIGTRAP | 0x80
_WALL = 0x40000000  # threads, too
_SECONDS_MAX = 60
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax",
    "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base",
    "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS]

    def argument(self, number):
        return getattr(self, _ARGUMENTS[number])


@dataclass(frozen=True)
class Fault:
    """The call with this number, from 1, is spoilt in one of `WAYS`.

    If it cannot fail in that way, the next one that can: threads may change places.
    """

    number: int
    way: str

    def __post_init__(self):
        assert self.way in WAYS


@dataclass(frozen=True)
class Call:
    """A system call that changes a file; `path` is relative to the traced directory."""

    name: str
    path: str

    def suits(self, way):
        """Whether a call can fail in this way."""
        if way in {"full", "full disk"}:
            return self.name in _TAKES_SPACE
        return way not in {"short", "torn"} or self.name in WRITES.values()


@dataclass
class Traced:
    """What became of the child: `status` as `waitpid` gives it, calls in order, faults done."""

    status: int = 0
    calls: list[Call] = field(default_factory=list)
    spoilt: int = 0


def run(child, *, below, fault=None, heal_handle=-1):
    """Fork, do `child` there, and spoil one of its calls; return when it has ended.

    Args:
        child: returns the exit status. It must not fork.
        below: directory; calls on other files do not count.
        fault: None to record only.
        heal_handle: a write to this file of the child's ends an outage.
    """
    pid = os.fork()
    if pid == 0:
        _be_traced(child)
    with _no_longer_than(_SECONDS_MAX, pid):
        return _Tracer(pid, f"{below}/", fault, heal_handle).follow()


@contextmanager
def _no_longer_than(seconds, pid):
    """Kill a child that hangs; only the main thread of a process can wait like this."""

    def give_up(*_):
        os.kill(pid, signal.SIGKILL)
        raise TimeoutError(f"the child did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _be_traced(child):
    status = 70
    try:
        _checked(_libc.ptrace(_TRACEME, 0, None, None))
        os.kill(os.getpid(), signal.SIGSTOP)  # until the tracer has set its options
        _stop_at_calls(sorted([*_BY_HANDLE, *_BY_PATH]))
        status = child()
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run on here
        traceback.print_exc()
    finally:
        os._exit(status)


def _stop_at_calls(numbers):
    """Have the kernel stop this process, and its threads, at these system calls only."""
    load, equal, back = 0x20, 0x15, 0x06
    allow, trace, this_machine = 0x7FFF0000, 0x7FF00000, 0xC000003E
    program = [(load, 0, 0, 4), (equal, 1, 0, this_machine), (back, 0, 0, allow), (load, 0, 0, 0)]
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        program.append((equal, left, 0, number))
    program += [(back, 0, 0, allow), (back, 0, 0, trace)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    _checked(_libc.prctl(38, 1, 0, 0, 0))  # no new privileges: else the next needs some
    _checked(_libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0))


def _checked(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class _Tracer:
    def __init__(self, pid, below, fault, heal_handle):
        self._pid = pid
        self._below = below
        self._fault = fault
        self._heal_handle = heal_handle
        self._is_healed = False
        self._found = Traced()
        self._leaving = {}  # thread to what is done when its call returns

    def follow(self):
        """Trace until the process has ended."""
        os.waitpid(self._pid, _WALL)
        _checked(_libc.ptrace(_SETOPTIONS, self._pid, None, _OPTIONS))
        self._go_on(self._pid)
        while True:
            thread, status = os.waitpid(-1, _WALL)
            if not os.WIFSTOPPED(status):
                if thread == self._pid:
                    self._found.status = status
                    return self._found
                continue
            stop = os.WSTOPSIG(status)
            if status >> 16 == _EVENT_SECCOMP:
                self._enter(thread)
            elif stop == _SYSCALL_STOP:
                self._leave(thread)
            elif stop in {signal.SIGTRAP, signal.SIGSTOP}:  # a thread began
                self._go_on(thread)
            else:
                self._go_on(thread, stop)

    def _go_on(self, thread, stop=0, *, to_the_end_of_the_call=False):
        how = _SYSCALL if to_the_end_of_the_call else _CONT
        if _libc.ptrace(how, thread, None, stop) < 0 and ctypes.get_errno() != errno.ESRCH:
            raise OSError(ctypes.get_errno(), "a stopped thread does not go on")

    # --- one call -----------------------------------------------------------------------

    def _enter(self, thread):
        """A thread is about to make a call."""
        registers = _Registers()
        if _libc.ptrace(_GETREGS, thread, None, ctypes.addressof(registers)) < 0:
            return  # killed meanwhile
        call = self._call(thread, registers)
        if call is None:
            self._go_on(thread)
            return
        self._found.calls.append(call)
        if self._is_due(call):
            self._found.spoilt += 1
            self._spoil(thread, registers)
        else:
            self._go_on(thread)

    def _is_due(self, call):
        fault = self._fault
        if fault is None or len(self._found.calls) < fault.number or not call.suits(fault.way):
            return False
        is_lasting = fault.way in {"outage", "full disk"}
        return not self._is_healed if is_lasting else not self._found.spoilt

    def _call(self, thread, registers):
        """Return the call if it changes a file below the directory."""
        number = registers.orig_rax
        if number in _BY_HANDLE:
            handle = registers.rdi & 0xFFFFFFFF
            if handle == self._heal_handle:
                self._is_healed = True
            name, path = _BY_HANDLE[number], self._path_of(handle)
        else:
            if number in _OPENS and not registers.argument(_OPENS[number]) & os.O_CREAT:
                return None
            name, directory, at = _BY_PATH[number]
            path = self._text(thread, registers.argument(at))
            if directory >= 0 and not path.startswith("/"):
                handle = registers.argument(directory) & 0xFFFFFFFF
                path = f"{self._path_of(handle)}/{path}"
        return Call(name, path[len(self._below) :]) if path.startswith(self._below) else None

    def _path_of(self, handle):
        try:
            return os.fspath(Path(f"/proc/{self._pid}/fd/{handle}").readlink())
        except OSError:
            return ""

    def _text(self, thread, address):
        with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return os.fsdecode(memory.read(4096).split(b"\0", 1)[0])

    def _spoil(self, thread, registers):
        way = self._fault.way
        if way in {"lost", "full", "outage", "full disk"}:
            code = errno.ENOSPC if way.startswith("full") else errno.EIO
            self._skip(thread, registers, -code)
            self._go_on(thread)
        elif way == "killed before":
            self._skip(thread, registers, -errno.EINTR)
            os.kill(self._pid, signal.SIGKILL)
        else:
            if way in {"short", "torn"}:
                self._halve(thread, registers)
            self._leaving[thread] = way
            self._go_on(thread, to_the_end_of_the_call=True)

    def _halve(self, thread, registers):
        """Have only the first half written; of several pieces, only the first ones."""
        registers.rdx = (registers.rdx + 1) // 2
        _checked(_libc.ptrace(_SETREGS, thread, None, ctypes.addressof(registers)))

    def _skip(self, thread, registers, result):
        """Have the kernel not do the call, and the child be told `result`."""
        registers.orig_rax, registers.rax = ctypes.c_ulonglong(-1).value, result % 2**64
        _checked(_libc.ptrace(_SETREGS, thread, None, ctypes.addressof(registers)))

    def _leave(self, thread):
        """A call that was let through has been done."""
        way = self._leaving.pop(thread, "")
        if way in {"killed after", "torn"}:
            os.kill(self._pid, signal.SIGKILL)
            return
        if way == "stored":
            registers = _Registers()
            _checked(_libc.ptrace(_GETREGS, thread, None, ctypes.addressof(registers)))
            registers.rax = -errno.EIO % 2**64
            _checked(_libc.ptrace(_SETREGS, thread, None, ctypes.addressof(registers)))
        self._go_on(thread)


def why_not(directory):
    """Return why nothing can be traced here, or nothing if it can: tried out on one file."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the tracer knows x86-64 Linux only, this is {platform.machine()}"
    try:
        made = run(lambda: _write_one(directory), below=directory, fault=Fault(2, "stored"))
    except OSError as error:
        return f"ptrace or seccomp is refused here: {error}"
    if os.waitstatus_to_exitcode(made.status) != errno.EIO:
        return "ptrace or seccomp does not do here what it does elsewhere"
    return ""


def _write_one(directory):
    try:
        (Path(directory) / "tried").write_bytes(b"tried")
    except OSError as error:
        return error.errno
    return 0
