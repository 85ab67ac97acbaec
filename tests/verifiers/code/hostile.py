"""Programs that mean harm. The problem is `add`: a program that fails to do harm must not pass for right.

`passes` says which sandboxes cannot keep a program from what it needs to be right.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = frozenset({"bubblewrap", "landlock", "rlimits"})
WEAKEST = frozenset({"rlimits"})


@dataclass(frozen=True)
class Hostile:
    code: str
    passes: frozenset[str] = frozenset()


def if_it_works(action: str, **rights: frozenset[str]) -> Hostile:
    """A program that adds only after its attempt succeeded."""
    indented = "\n".join(f"        {line}" for line in action.strip().splitlines())
    code = f"import os, sys\ndef add(a, b):\n    try:\n{indented}\n    except BaseException:\n        return None\n    return a + b\n"
    return Hostile(code, **rights)


def first(action: str) -> Hostile:
    """Harm while the program loads, before a function that adds wrongly."""
    return Hostile(f"import os, sys\n{action.strip()}\ndef add(a, b):\n    return None\n")


def adding(action: str) -> Hostile:
    """A right program that does harm on the way and is right all the same."""
    return Hostile(f"import os, sys\n{action.strip()}\ndef add(a, b):\n    return a + b\n", ALL)


def returning(definition: str, value: str) -> Hostile:
    """A program whose result only claims to be right."""
    return Hostile(f"{definition.strip()}\ndef add(a, b):\n    return {value}\n")


DAEMON = """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            import time
            while True:
                time.sleep(1000)
        os._exit(0)
"""
LIAR = """
class Liar({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
"""
FORGED = """
import json
for fd in range(3, 200):
    for message in ({"secret": "x"}, {"passed": 3, "failed": 0, "total": 3, "first": None, "ended": None}, {"value": 5}):
        data = json.dumps(message).encode()
        try:
            os.set_blocking(fd, False)
            os.write(fd, len(data).to_bytes(8, "little") + data)
        except OSError:
            break
"""
FORGING_FRAMES = """
import gc
frame = sys._getframe()
while frame is not None:
    for names in (frame.f_locals, frame.f_globals):
        for name, value in list(names.items()):
            if callable(value) and name in ("send", "write_frame", "receive", "guarded", "encode"):
                frame.f_globals[name] = lambda *args, **more: {"value": 5}
    frame = frame.f_back
for thing in gc.get_objects():
    if isinstance(thing, dict) and "__failed__" in thing:
        thing["__failed__"] = lambda error: None
"""
PATCHED = """
import builtins, json, operator, unittest
for module in (builtins, json, operator, unittest):
    for name in ("isinstance", "all", "any", "abs", "eq", "loads", "dumps", "TestCase", "AssertionError", "compile", "exec"):
        if hasattr(module, name):
            setattr(module, name, lambda *args, **more: True)
"""
CONNECT = """
import socket
socket.create_connection(("127.0.0.1", {port}), timeout=1).close()
"""
SYSCALL = "import ctypes\nif ctypes.CDLL(None, use_errno=True).{call} < 0: raise OSError"
PROCESSES = "[int(name) for name in os.listdir('/proc') if name.isdigit() and int(name) != os.getpid()]"

HOSTILE: dict[str, Hostile] = {
    # Time.
    "endless_loop": first("while True: pass"),
    "endless_loop_in_call": Hostile("def add(a, b):\n    while True: pass\n"),
    "sleep": first("import time; time.sleep(1e6)"),
    "power_tower": first("9**9**9**9"),
    "backtracking": first("import re; re.match('(a+)+$', 'a' * 60 + 'b')"),
    "ignores_signals": first("import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
                             "    except (OSError, ValueError): pass\nwhile True: pass"),
    "endless_at_exit": first("import atexit\n@atexit.register\ndef _():\n    while True: pass\nsys.exit(0)"),
    "endless_iterator": Hostile("import itertools\ndef add(a, b):\n    return itertools.count()\n"),
    "endless_text_of_exception": Hostile("class E(Exception):\n    def __str__(self):\n        while True: pass\n"
                                         "def add(a, b):\n    raise E\n"),
    "own_alarm": adding("import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nsignal.setitimer(0, 0.01, 0.01)"),
    # Processes.
    "fork_bomb": first("while True:\n    try: os.fork()\n    except OSError: pass"),
    "fork_bomb_ends": first("for _ in range(200):\n    try: os.fork()\n    except OSError: pass"),
    "thread_bomb": first("import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(99,)).start()\n"
                         "    except RuntimeError: pass"),
    "daemons": first(DAEMON),
    "daemons_and_right": adding(DAEMON),
    "shell_in_background": adding("import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'while :; do sleep 1; done'])"),
    "becomes_another_program": first("os.execv('/bin/sleep', ['sleep', '1000'])"),
    "kills_everybody": first(f"for pid in {PROCESSES}:\n    try: os.kill(pid, 9)\n    except OSError: pass"),
    "kills_all_at_once": first("try: os.kill(-1, 9)\nexcept OSError: pass"),
    "kills_its_group": first("os.killpg(0, 9)"),
    "kills_its_parent": first("try: os.kill(os.getppid(), 9)\nexcept OSError: pass"),
    "stops_its_parent": first("import signal\ntry: os.kill(os.getppid(), signal.SIGSTOP)\nexcept OSError: pass"),
    "stops_everybody": first(f"import signal\nfor pid in {PROCESSES}:\n    try: os.kill(pid, signal.SIGSTOP)\n"
                             "    except OSError: pass"),
    "stops_itself": first("import signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    "crash": first("import ctypes\nctypes.string_at(0)"),
    # Leaving early.
    "exit_0_at_once": first("os._exit(0)"),
    "exit_0_in_call": Hostile("import os\ndef add(a, b):\n    os._exit(0)\n"),
    "sys_exit_at_once": first("sys.exit(0)"),
    "sys_exit_in_call": Hostile("import sys\ndef add(a, b):\n    sys.exit(0)\n"),
    "interrupts": Hostile("def add(a, b):\n    raise KeyboardInterrupt\n"),
    # Memory, output, disk.
    "memory_flood": first("held = []\nwhile True: held.append(bytearray(2**22))"),
    "memory_at_once": first("bytearray(2**42)"),
    "memory_in_children": first("for _ in range(8):\n    if os.fork() == 0: break\nheld = []\nwhile True: held.append(bytes(2**20))"),
    "raises_its_limits": first("import resource\nfor kind in range(16):\n    try: resource.setrlimit(kind, (-1, -1))\n"
                               "    except (OSError, ValueError): pass\nheld = []\nwhile True: held.append(bytearray(2**22))"),
    "output_flood": first("while True: os.write(1, b'x' * 65536)"),
    "error_flood": first("while True: os.write(2, b'x' * 65536)"),
    "answer_flood": first("while True: os.write(3, b'\\xff' * 65536)"),
    "disk_flood": first("file = open('flood', 'wb')\nwhile True: file.write(b'x' * 2**20)"),
    "many_files": first("for index in range(20000): open(f'f{index}', 'w').close()"),
    "open_files": first("held = [open('/dev/null') for _ in range(100000)]"),
    "shared_memory_flood": first("held = []\nwhile True:\n    fd = os.memfd_create('x')\n    held.append(fd)\n    os.truncate(fd, 2**40)\n"
                                 "    os.write(fd, b'x' * 2**20)"),
    "huge_number": Hostile("def add(a, b):\n    return 1 << 2**34\n"),
    "huge_text": Hostile("def add(a, b):\n    return 'x' * 2**27\n"),
    "deep_recursion": Hostile("def add(a, b):\n    return add(a, b)\n"),
    "deeper_recursion": Hostile("import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    return [add(a, b)]\n"),
    "nested_braces": Hostile("{" * 2**20),
    "nested_signs": Hostile("x = " + "-" * 2**18 + "1"),
    "nested_values": Hostile("x = []\nfor _ in range(10**5): x = [x]\ndef add(a, b):\n    return x\n"),
    "holds_itself": Hostile("x = []\nx.append(x)\ndef add(a, b):\n    return x\n"),
    # Files.
    "reads_passwd": if_it_works("open('/etc/passwd').read()", passes=WEAKEST),
    "links_to_passwd": if_it_works("os.path.lexists('x') or os.symlink('/etc/passwd', 'x')\nopen('x').read()", passes=WEAKEST),
    "reads_shadow": if_it_works("open('/etc/shadow').read()", passes=WEAKEST),
    "lists_home": if_it_works("assert {names!r} <= set(os.listdir({home!r}))", passes=WEAKEST),
    "reads_the_tests": if_it_works("open({here!r}).read()", passes=WEAKEST),
    "writes_the_library": if_it_works("open(os.__file__, 'a').close()"),
    "writes_the_tests": if_it_works("open({here!r}, 'a').close()"),
    "root_of_process": if_it_works("assert {names!r} <= set(os.listdir('/proc/self/root' + {home!r}))", passes=WEAKEST),
    "root_of_parent": if_it_works("os.listdir(f'/proc/{{os.getppid()}}/root/etc')"),
    "leaves_files": adding("for folder in ('/tmp', '/var/tmp', '/dev/shm', '.'):\n"
                           "    try: open(folder + '/rlvr_left', 'w').close()\n    except OSError: pass"),
    "leaves_locked_folders": adding("os.makedirs('a/b/c')\nopen('a/b/c/d', 'w').close()\n"
                                    "try: os.chmod('a/b', 0); os.chmod('a', 0)\nexcept OSError: pass"),
    "leaves_links": adding("os.symlink('/', 'root')\nos.symlink('loop', 'loop')"),
    "device": if_it_works("os.mknod('disk', 0o60600, os.makedev(254, 0))"),
    "chroot": if_it_works("os.chroot('.')"),
    # Other processes' secrets.
    "memory_of_parent": if_it_works("open(f'/proc/{{os.getppid()}}/mem', 'rb')"),
    "maps_of_parent": if_it_works("assert open(f'/proc/{{os.getppid()}}/maps').read()"),
    "environment_of_parent": if_it_works("open(f'/proc/{{os.getppid()}}/environ', 'rb').read()"),
    "files_of_parent": if_it_works("assert [os.open(f'/proc/{{os.getppid()}}/fd/{{n}}', 1) for n in range(100, 104)]"),
    "environment_of_judge": if_it_works("assert any(b'{canary}' in open(f'/proc/{{name}}/environ', 'rb').read() "
                                        "for name in os.listdir('/proc') if name.isdigit())"),
    "own_environment": if_it_works("assert {canary!r} in os.environ.values() or 'PATH' in os.environ"),
    "trace_of_parent": if_it_works(SYSCALL.format(call="ptrace(16, os.getppid(), 0, 0)")),
    # The kernel.
    "root_again": if_it_works("os.setuid(0)"),
    "mount": if_it_works(SYSCALL.format(call="mount(b'none', b'.', b'tmpfs', 0, None)")),
    "connects": if_it_works(CONNECT.strip(), passes=WEAKEST),
    "leaves_a_socket": adding("import socket\nfor family, name in ((socket.AF_UNIX, 'socket'), (socket.AF_INET, ('127.0.0.1', 0))):\n"
                              "    try:\n        kept = socket.socket(family)\n        kept.bind(name)\n        kept.listen()\n"
                              "    except OSError: pass"),
    # Forging.
    "prints_the_marker": first("print('passed', 'ok', 'secret', flush=True)\nos.write(1, b'{\"secret\": \"\"}')"),
    "writes_to_every_file": first(FORGED),
    "writes_to_every_file_in_call": Hostile(f"import os\ndef add(a, b):\n    exec({FORGED!r})\n    os._exit(0)\n"),
    "patches_frames": first(FORGING_FRAMES),
    "patches_modules": first(PATCHED),
    "patches_assertion_error": first("import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})"),
    "replaces_stdout": first("import io\nsys.stdout = sys.stderr = io.StringIO()"),
    "closes_everything": first("os.closerange(0, 1000)"),
    "reads_what_is_asked": first("while True: os.read(3, 2**16)"),
    "is_always_equal": returning(LIAR.format(base="object"), "Liar()"),
    "number_is_always_equal": returning(LIAR.format(base="int"), "Liar(7)"),
    "list_is_always_equal": returning(LIAR.format(base="list"), "Liar()"),
    "text_is_always_equal": returning(LIAR.format(base="str"), "Liar('x')"),
    "number_lies": returning("class N(int):\n    def __index__(self): return 5\n    __int__ = __add__ = __index__\n"
                             "    def __eq__(self, other): return True", "N(7)"),
    "class_is_always_equal": returning("class M(type):\n    def __eq__(self, other): return True\n"
                                       "    def __instancecheck__(self, other): return True\n"
                                       "class C(metaclass=M): pass", "C"),
    "raises_what_is_caught": Hostile("def add(a, b):\n    raise AssertionError\n"),
    "unprintable_exception": Hostile("class E(Exception):\n    def __str__(self): raise E\ndef add(a, b):\n    raise E\n"),
    "answers_a_subclass": Hostile("class L(list): pass\nclass I(int): pass\ndef add(a, b):\n"
                                  "    return L(a + b) if isinstance(a, list) else I(a + b)\n", ALL),
}  # fmt: skip

# Programs that read `2 3` and should print 5.
HOSTILE_READERS: dict[str, Hostile] = {
    "prints_for_ever": Hostile("while True: print(5)"),
    "prints_a_line_for_ever": Hostile("while True: print(5, end='')"),
    "prints_more": Hostile("print(5)\nprint(5)"),
    "prints_nothing": Hostile("import os; os._exit(0)"),
    "prints_noughts": Hostile("import os; os.write(1, b'5\\x00\\n')"),
    "prints_no_text": Hostile("import os; os.write(1, b'\\xff\\xfe5\\n')"),
    "fails_after_printing": Hostile("print(5, flush=True)\nraise ValueError"),
    "dies_after_printing": Hostile("import os\nprint(5, flush=True)\nos.kill(os.getpid(), 9)"),
    "thread_that_never_ends": Hostile("import threading\nprint(5, flush=True)\nthreading.Thread(target=threading.Event().wait).start()"),
    "child_holds_output": Hostile("import os, time\nprint(5, flush=True)\nif os.fork() == 0: time.sleep(1000)", ALL),
    "child_prints_later": Hostile("import os, time\nif os.fork() == 0:\n    time.sleep(0.5); print(5, flush=True); os._exit(0)"),
    "waits_for_more": Hostile("a = input()\nb = input()"),
    "reads_for_ever": Hostile("import sys\nwhile True: sys.stdin.read()"),
    "writes_frames": Hostile("import os\nos.write(1, b'\\x02\\0\\0\\0\\0\\0\\0\\0{}')"),
    "closes_output": Hostile("import os\nos.close(1)\nos.close(0)"),
    "reads_what_others_left": Hostile(
        "import os\nfor folder in ('/tmp', '/var/tmp', '/dev/shm'):\n    name = folder + '/rlvr_counter'\n"
        "    if os.path.exists(name): print(5); break\n    try: open(name, 'w').close()\n    except OSError: pass"
    ),
}  # fmt: skip
