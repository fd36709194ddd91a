"""Tasks: the registry of named functions, how one is called with a payload, the built-in tasks, loading a user's own.

It knows payloads as plain values. It must not know the wire, threads' pools, leases or the broker.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import math
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import ParamSpec, TypeVar, overload

from greenroom.context import Context as Context
from greenroom.errors import ConfigError
from greenroom.submit_options import check_names
from greenroom.task_functions import TaskFunction, Unique
# Beside their use here: everything that a task module needs is imported from this one.
from greenroom.default_client import set_default_client as set_default_client
from greenroom.task_outcomes import DontRetry as DontRetry, PermanentError, Retry as Retry, Snooze as Snooze, TaskError

log = logging.getLogger(__name__)

TASK_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# What the broker keeps of an error: enough to read in a browser, too little to fill a store with.
ERROR_NAME_LIMIT = 128
ERROR_MESSAGE_LIMIT = 4_096
ERROR_TRACEBACK_LIMIT = 16_384

FIBONACCI_LIMIT = 100_000
PRIME_DIGITS_LIMIT = 2_000
SLOW_TASK_LIMIT_S = 86_400


class BadPayloadError(PermanentError):
    """Raised when a payload does not have the shape that the task asks for."""


class UnknownTaskError(TaskError):
    """Raised when a job names a task that is not registered here."""


class CancelledTaskError(PermanentError):
    """Raised by a task that ends early because its job was cancelled."""


class FibonacciTooLargeError(PermanentError):
    """Raised when `fibonacci` is asked for an n above 100,000."""


class PrimeTooLargeError(PermanentError):
    """Raised when `is_prime` is asked about a number of more than 2,000 digits."""


@dataclass(frozen=True, slots=True)
class Task:
    """One registered task."""

    name: str
    fn: Callable[..., object]  # what the user gave
    invoke: Callable[[object, Context], object]  # calls fn with (payload, context) in the way it wants


class Registry:
    """Named tasks, safe to use from any thread.

    `on_change` is a list of functions without arguments. Each is called, in the thread that made the change and after it,
    whenever a task was registered or removed; what they raise is logged.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self.on_change: list[Callable[[], None]] = []

    def register_task(self, name: str, fn: Callable[[object], object]) -> None:
        """Let jobs of task `name` call `fn(payload)`. A name that is already registered is replaced.

        Raises:
            ValueError: the name is not 1 to 128 of A-Z a-z 0-9 . _ : -
            TypeError: fn can't be called, or is a coroutine function.
        """
        self._add(Task(name, fn, lambda payload, context: fn(payload)))

    def register_function(self, name: str, fn: Callable[..., object]) -> None:
        """Let jobs of task `name` call `fn` with the payload map's keys as keyword arguments, as `@task` does.

        A parameter annotated `Context` gets the run's Context. A name that is already registered is replaced.

        Raises:
            ValueError: a bad name (see register_task), or a parameter that can't be given by keyword.
            TypeError: fn can't be called, or is a coroutine function.
        """
        _check_function(name, fn)
        parameters = _read_parameters(name, fn)
        self._add(Task(name, fn, lambda payload, context: fn(**_bind(name, parameters, payload, context))))

    def unregister_task(self, name: str) -> None:
        """Remove a task; what runs of it runs on.

        Raises:
            KeyError: no task of that name is registered.
        """
        with self._lock:
            if self._tasks.pop(name, None) is None:
                raise KeyError(f"no task named {name!r} is registered")
        self._changed()

    def list_tasks(self) -> list[str]:
        """Return the registered names, sorted."""
        with self._lock:
            return sorted(self._tasks)

    def get(self, name: str) -> Task:
        """Return a task.

        Raises:
            UnknownTaskError: no task of that name is registered.
        """
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTaskError(f"this worker has no task named {name!r}")
        return found

    def snapshot(self) -> dict[str, Task]:
        """Return a copy of the table, name -> Task."""
        with self._lock:
            return dict(self._tasks)

    def _add(self, entry: Task) -> None:
        _check_function(entry.name, entry.fn)
        with self._lock:
            self._tasks[entry.name] = entry
        self._changed()

    def _changed(self) -> None:
        for callback in list(self.on_change):
            try:
                callback()
            except Exception:
                log.exception("a listener for changed tasks failed")


#: The registry that `@task` and the functions below fill, and that a worker offers. It starts with the built-in tasks.
default_registry = Registry()


def register_task(name: str, fn: Callable[[object], object]) -> None:
    """Let jobs of task `name` call `fn(payload)`; see Registry.register_task. A name already registered is replaced."""
    default_registry.register_task(name, fn)


def unregister_task(name: str) -> None:
    """Remove a task from the default registry; KeyError if there is none of that name."""
    default_registry.unregister_task(name)


def list_tasks() -> list[str]:
    """Return the names in the default registry, sorted."""
    return default_registry.list_tasks()


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@overload
def task(fn: Callable[_Arguments, _Result]) -> TaskFunction[_Arguments, _Result]: ...
@overload
def task(*, name: str | None = None, unique: Unique = None, on_full: str | None = None, full_timeout: float | None = None,
         **options: object) -> Callable[[Callable[_Arguments, _Result]], TaskFunction[_Arguments, _Result]]: ...


def task(fn=None, *, name=None, unique=None, on_full=None, full_timeout=None, **options):
    """Make a function a task: `@task`, or `@task(name="other.name", queue="mail", retries=3)`.

    What comes out can be called like the function, and has `enqueue`, `using` and `map` (TaskFunction). Jobs call it with the
    keys of their payload, a map, as keyword arguments; a parameter annotated `Context` gets the run's Context.

    Args:
        name: of the task; None: the function's own.
        unique: gives each job a `unique_key`: True makes it of the task and all arguments, a format string
            (`"report:{user_id}"`) or a function of the arguments says it.
        on_full, full_timeout: what enqueue and map do when the broker has no room, as in Client.submit.
        options: what its jobs are submitted with, as for Client.submit (docs/tasks.md).

    Raises:
        TypeError: there is no such option, or what register_function raises. InvalidError: an option's value is refused.
        ValueError: as register_function, a format string that names no parameter, or no such `on_full`.
    """
    check_names(options, "task")

    def register(function: Callable[..., object]) -> TaskFunction:
        function = function.__wrapped__ if isinstance(function, TaskFunction) else function
        chosen = name if name is not None else getattr(function, "__name__", "")
        _check_function(chosen, function)
        context = _read_parameters(chosen, function).context
        made = TaskFunction(function, chosen, context=context, options=options, unique=unique, on_full=on_full,
                            full_timeout=full_timeout)
        default_registry.register_function(chosen, function)
        return made
    return register if fn is None else register(fn)


def run_task(registry: Registry, task: str, payload: object, context: Context) -> object:
    """Call a task and return what it returns.

    Raises:
        UnknownTaskError: the registry has no such task.
        BadPayloadError: the payload does not fit the task's parameters.
        BaseException: whatever the task raises.
    """
    return registry.get(task).invoke(payload, context)


def describe_error(exc: BaseException) -> dict[str, str]:
    """Turn an exception into what is stored with a failed job. Never raises, whatever the exception's methods do.

    Returns:
        {"name": class name, "message": str(exc), "traceback": text}, each cut to its limit in characters (the traceback
        keeps its end, where the error is) and free of lone surrogates, which UTF-8 can't carry.
    """
    message = _safe_text(lambda: str(exc), "(the error's text could not be made)")
    # A long text is cut by itself, or nothing of the frames before it would be left.
    trace = _safe_text(lambda: "".join(map(_cut, traceback.format_exception(exc))), "(the traceback could not be made)")
    if len(trace) > ERROR_TRACEBACK_LIMIT:
        trace = "…" + trace[1 - ERROR_TRACEBACK_LIMIT:]
    return {
        "name": _safe_text(lambda: type(exc).__name__, "Exception")[:ERROR_NAME_LIMIT],
        "message": message[:ERROR_MESSAGE_LIMIT],
        "traceback": trace,
    }


def _cut(piece: str) -> str:
    return piece if len(piece) <= ERROR_MESSAGE_LIMIT else f"{piece[:ERROR_MESSAGE_LIMIT // 2]}…{piece[-ERROR_MESSAGE_LIMIT // 2:]}"


def _safe_text(make: Callable[[], str], otherwise: str) -> str:
    # BaseException: a __str__ may also call sys.exit().
    try:
        return str.encode(make(), "utf-8", "backslashreplace").decode()
    except BaseException:
        return otherwise


def load_tasks(spec: str) -> list[str]:
    """Import a user's task module, whose decorators fill the default registry; what `--tasks` does.

    Args:
        spec: a path that ends in `.py`, or the name of a module that can be imported (the current folder comes first).

    Returns:
        The names that were registered or replaced by it, sorted.

    Raises:
        ConfigError: no such file or module, an error while importing it, or a module that registers no task.
    """
    before = default_registry.snapshot()
    try:
        module = _import_file(spec) if spec.endswith(".py") else _import_module(spec)
    except ConfigError:
        raise
    except (Exception, SystemExit) as exc:
        error = describe_error(exc)
        raise ConfigError(f"--tasks {spec}: importing it failed with {error['name']}: {error['message']}") from exc
    after = default_registry.snapshot()
    # A module that was imported before (by another one, or named twice) registers nothing now, but has tasks.
    names = [name for name, entry in after.items()
             if before.get(name) is not entry or getattr(entry.fn, "__module__", None) == module.__name__]
    if not names:
        raise ConfigError(f"--tasks {spec}: it registers no task; put @task above a function or call register_task")
    return sorted(names)


def _import_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise ConfigError(f"--tasks {path}: there is no such file")
    folder, filename = os.path.split(os.path.abspath(path))
    # Last on the path, not first: the file finds its neighbours, but a queue.py among them can't replace Python's own.
    if folder not in sys.path:
        sys.path.append(folder)
    # A name of its own: a user's worker.py or queue.py must not be taken for an imported module of that name.
    name = "greenroom_tasks_" + re.sub(r"\W", "_", filename[:-3])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"--tasks {name}: give a module's name or the path of a .py file")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name and (name == exc.name or name.startswith(exc.name + ".")):
            raise ConfigError(f"--tasks {name}: there is no module named {exc.name}, neither in {folder} nor among "
                              "the installed ones") from exc
        raise


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What an `@task` function can be given."""

    known: tuple[str, ...]  # names that a payload may hold
    required: tuple[str, ...]  # those without a default
    takes_any: bool  # it has **kwargs
    context: str | None  # the parameter that gets the Context


def _check_function(name: str, fn: object) -> None:
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a task name: use 1 to 128 letters, digits and . _ : -")
    if not callable(fn):
        raise TypeError(f"task {name} needs a function, not {_kind(fn)}")
    if inspect.iscoroutinefunction(fn):
        raise TypeError(f"task {name} is a coroutine function, which a worker can't run; use a plain function")


def _read_parameters(name: str, fn: Callable[..., object]) -> _Parameters:
    namespace = getattr(inspect.unwrap(fn), "__globals__", {})
    known, required, takes_any, context = [], [], False, None
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"task {name}: its parameter {parameter.name!r} can't be given by name")
        elif _is_context(parameter.annotation, namespace):
            context = parameter.name
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            known.append(parameter.name)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
    return _Parameters(tuple(known), tuple(required), takes_any, context)


def _is_context(annotation: object, namespace: dict[str, object]) -> bool:
    # Under `from __future__ import annotations` an annotation is text. It is looked up name by name, not evaluated: another
    # annotation that only a type checker can resolve must not break the task.
    # `Context | None` counts too: such a function can also be called, and enqueued, without one.
    if not isinstance(annotation, str):
        return annotation is Context or annotation == Context | None
    annotation = re.sub(r"\s*\|\s*None$", "", annotation.strip("\"' "))
    first, *rest = annotation.split(".")
    if first not in namespace:
        return annotation.split(".")[-1] == "Context"
    found = namespace[first]
    for part in rest:
        found = getattr(found, part, None)
    return found is Context


def _bind(name: str, parameters: _Parameters, payload: object, context: Context) -> dict[str, object]:
    if not isinstance(payload, dict):
        raise BadPayloadError(f"task {name} needs a map as its payload, not {_kind(payload)}")
    for key in payload:
        if not isinstance(key, str):
            raise BadPayloadError(f"task {name} needs text as payload keys, not {key!r}")
        if key not in parameters.known and (not parameters.takes_any or key == parameters.context):
            takes = ", ".join(map(repr, parameters.known)) or "none"
            raise BadPayloadError(f"task {name} does not know the payload key {key!r} (it knows: {takes})")
    for key in parameters.required:
        if key not in payload:
            raise BadPayloadError(f"task {name} misses the key {key!r} in its payload")
    if parameters.context is None:
        return payload
    return {**payload, parameters.context: context}


def _kind(value: object) -> str:
    words = {dict: "a map", list: "a list", str: "text", bytes: "bytes", bool: "a boolean", int: "an integer",
             float: "a float", type(None): "nil"}
    return words.get(type(value), f"a {type(value).__name__}")


def reverse_string(payload: object) -> str:
    """Return the text `{"data": str}` backwards, code point by code point."""
    return _text(payload, "reverse_string")[::-1]


def to_uppercase(payload: object) -> str:
    """Return the text `{"data": str}` in upper case."""
    return _text(payload, "to_uppercase").upper()


def fibonacci(payload: object) -> int | str:
    """Return the Fibonacci number of `{"n": int}`, exact, with F(0) = 0 and F(1) = 1.

    Numbers that a 64-bit integer of the wire can't hold are returned as a decimal string.

    Raises:
        BadPayloadError: n is missing, not an integer or negative.
        FibonacciTooLargeError: n is above 100,000.
    """
    n = _only_key(payload, "fibonacci", "n")
    if type(n) is not int or n < 0:
        raise BadPayloadError(f"fibonacci: 'n' must be an integer of at least 0, not {_shown(n)}")
    if n > FIBONACCI_LIMIT:
        raise FibonacciTooLargeError(f"fibonacci: 'n' must be at most {FIBONACCI_LIMIT:,}")
    value = _fibonacci_pair(n)[0]
    return value if value < 2**64 else _decimal(value)


def is_prime(payload: object) -> bool:
    """Say whether `{"n": int or decimal string}` is a prime number; anything below 2 is not.

    Below 3.3e24 the answer is proven (Miller-Rabin with the first 13 primes: Sorenson and Webster, 2015). Above it is the
    Baillie-PSW test, to which no counterexample is known.

    Raises:
        BadPayloadError: n is missing, or neither an integer nor a decimal string.
        PrimeTooLargeError: n has more than 2,000 digits.
    """
    n = _whole_number(_only_key(payload, "is_prime", "n"))
    if n < 2:
        return False
    for prime in _FIRST_PRIMES:
        if n % prime == 0:
            return n == prime
    if n < _PROVEN_BELOW:
        return all(_passes_miller_rabin(n, prime) for prime in _FIRST_PRIMES)
    return _passes_miller_rabin(n, 2) and _passes_strong_lucas(n)


def slow_task(seconds: float, context: Context) -> dict[str, float]:
    """Sleep for `{"seconds": number}`, 0 to 86,400, and return `{"slept": seconds}`.

    Raises:
        BadPayloadError: seconds is not a number in that range.
        CancelledTaskError: the job was cancelled meanwhile.
    """
    if type(seconds) not in (int, float) or not 0 <= seconds <= SLOW_TASK_LIMIT_S:
        raise BadPayloadError(f"slow_task: 'seconds' must be a number from 0 to {SLOW_TASK_LIMIT_S:,}, "
                              f"not {_shown(seconds)}")
    if context.wait(seconds):
        raise CancelledTaskError("slow_task: the job was cancelled while it slept")
    return {"slept": seconds}


#: Name -> function of each built-in task.
BUILTINS: dict[str, Callable[..., object]] = {
    "reverse_string": reverse_string,
    "to_uppercase": to_uppercase,
    "fibonacci": fibonacci,
    "is_prime": is_prime,
    "slow_task": slow_task,
}

#: Name -> a payload to try each built-in task with.
EXAMPLE_PAYLOADS: dict[str, dict[str, object]] = {
    "reverse_string": {"data": "stressed"},
    "to_uppercase": {"data": "greenroom"},
    "fibonacci": {"n": 100},
    "is_prime": {"n": "618970019642690137449562111"},
    "slow_task": {"seconds": 3},
}


def register_builtins(registry: Registry) -> None:
    """Add the built-in tasks to a registry; the default one has them from the start."""
    for name, fn in BUILTINS.items():
        if fn is slow_task:
            registry.register_function(name, fn)
        else:
            registry.register_task(name, fn)


register_builtins(default_registry)


def _only_key(payload: object, name: str, key: str) -> object:
    if not isinstance(payload, dict):
        raise BadPayloadError(f"{name} needs a map with the key {key!r} as its payload, not {_kind(payload)}")
    if key not in payload:
        raise BadPayloadError(f"{name} misses the key {key!r} in its payload")
    for other in payload:
        if other != key:
            raise BadPayloadError(f"{name} does not know the payload key {other!r} (it knows: {key!r})")
    return payload[key]


def _text(payload: object, name: str) -> str:
    data = _only_key(payload, name, "data")
    if not isinstance(data, str):
        raise BadPayloadError(f"{name}: 'data' must be text, not {_kind(data)}")
    return data


def _shown(value: object) -> str:
    # repr() of a huge integer raises, of a huge text floods the message.
    if isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() <= 64):
        return repr(value)
    return _kind(value)


def _fibonacci_pair(n: int) -> tuple[int, int]:
    """Return F(n) and F(n + 1) by fast doubling."""
    a, b = 0, 1
    for bit in bin(n)[2:]:
        a, b = a * (2 * b - a), a * a + b * b
        if bit == "1":
            a, b = b, a + b
    return a, b


# Python refuses to convert integers of more than 4,300 digits (by default; a user may set 640) to or from text, because
# that takes quadratic time. The limit is global, so it isn't ours to lift: pieces below it are converted instead.
_PIECE_DIGITS = 512


def _decimal(value: int) -> str:
    """Return a non-negative integer as decimal digits, whatever its length."""
    width = value.bit_length() * 30_103 // 100_000 + 1  # log10(2), rounded up: never too few
    return _padded_decimal(value, width).lstrip("0") or "0"


def _padded_decimal(value: int, width: int) -> str:
    if width <= _PIECE_DIGITS:
        return str(value).zfill(width)
    low_width = width // 2
    high, low = divmod(value, 10**low_width)
    return _padded_decimal(high, width - low_width) + _padded_decimal(low, low_width)


def _whole_number(value: object) -> int:
    too_large = PrimeTooLargeError(f"is_prime: 'n' must have at most {PRIME_DIGITS_LIMIT:,} digits")
    if isinstance(value, str):
        if len(value) > PRIME_DIGITS_LIMIT + 1:
            raise too_large
        if not re.fullmatch(r"-?[0-9]+", value):
            raise BadPayloadError("is_prime: 'n' must be an integer or a string of decimal digits")
        if len(value.lstrip("-")) > PRIME_DIGITS_LIMIT:
            raise too_large
        return _from_decimal(value)
    if type(value) is not int:
        raise BadPayloadError(f"is_prime: 'n' must be an integer or a string of decimal digits, not {_shown(value)}")
    if value >= 10**PRIME_DIGITS_LIMIT:
        raise too_large
    return value


def _from_decimal(text: str) -> int:
    digits = text.lstrip("-")
    value = 0
    for start in range(0, len(digits), _PIECE_DIGITS):
        piece = digits[start:start + _PIECE_DIGITS]
        value = value * 10**len(piece) + int(piece)
    return -value if text.startswith("-") else value


_FIRST_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
_PROVEN_BELOW = 3_317_044_064_679_887_385_961_981  # the smallest composite that passes all 13 bases


def _odd_part(n: int) -> tuple[int, int]:
    """Split n > 0 into (d, s) with n = d * 2**s and d odd."""
    twos = (n & -n).bit_length() - 1
    return n >> twos, twos


def _passes_miller_rabin(n: int, base: int) -> bool:
    d, s = _odd_part(n - 1)
    x = pow(base, d, n)
    if x in (1, n - 1):
        return True
    for _ in range(s - 1):
        x = x * x % n
        if x == n - 1:
            return True
    return False


def _passes_strong_lucas(n: int) -> bool:
    """The strong Lucas test with Selfridge's parameters (Baillie and Wagstaff, 1980), for odd n without small factors."""
    if math.isqrt(n) ** 2 == n:
        return False  # no discriminant would ever be found
    discriminant = 5
    while (symbol := _jacobi(discriminant, n)) != -1:
        if symbol == 0 and abs(discriminant) < n:
            return False
        discriminant = -discriminant - 2 if discriminant > 0 else -discriminant + 2
    q = (1 - discriminant) // 4
    d, s = _odd_part(n + 1)
    u, v, q_power = _lucas(n, d, discriminant, q)
    if u == 0 or v == 0:
        return True
    for _ in range(s - 1):
        v = (v * v - 2 * q_power) % n
        if v == 0:
            return True
        q_power = q_power * q_power % n
    return False


def _lucas(n: int, index: int, discriminant: int, q: int) -> tuple[int, int, int]:
    """Return U(index), V(index) and q**index modulo n for the Lucas sequences with P = 1."""
    u, v, q_power = 1, 1, q % n
    for bit in bin(index)[3:]:
        u, v = u * v % n, (v * v - 2 * q_power) % n
        q_power = q_power * q_power % n
        if bit == "1":
            u, v = u + v, discriminant * u + v
            # Halving modulo the odd n: an odd number becomes even by adding n.
            u, v = (u + n if u & 1 else u) // 2 % n, (v + n if v & 1 else v) // 2 % n
            q_power = q_power * q % n
    return u, v, q_power


def _jacobi(a: int, n: int) -> int:
    """Return the Jacobi symbol (a/n) for odd n > 0: -1, 0 or 1."""
    a %= n
    sign = 1
    while a:
        a, twos = _odd_part(a)
        if twos & 1 and n % 8 in (3, 5):
            sign = -sign
        if a % 4 == 3 and n % 4 == 3:
            sign = -sign
        a, n = n % a, a
    return sign if n == 1 else 0
