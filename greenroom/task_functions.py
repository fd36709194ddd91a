"""What `@task` makes of a function: still that function, and in addition the way to enqueue jobs that call it.

Must not know registries or how a worker calls a task (greenroom/tasks.py), nor connections.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import string
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from greenroom.default_client import default_client
from greenroom.job import parse_new_job
from greenroom.submit_options import check_names, merge
from greenroom.when_full import when_full

if TYPE_CHECKING:
    from greenroom.client import Client, Handle

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: What makes a job's `unique_key`: True for task and all arguments, a format string or a function of the arguments; None: nothing.
Unique = bool | str | Callable[..., str] | None


class TaskFunction(Generic[Arguments, Result]):
    """A task. Called, it is the function that it was made of; nothing is enqueued by that.

    Attributes:
        name: the task's name. options: what its jobs are submitted with, as the wire has it.
    """

    def __init__(self, fn: Callable[Arguments, Result], name: str, *, context: str | None, options: dict[str, object],
                 unique: Unique = None, on_full: str | None = None, full_timeout: float | None = None) -> None:
        functools.update_wrapper(self, fn)
        self.name = name
        self._context = context  # the parameter that the worker fills in
        self._signature = _without(inspect.signature(fn), context)
        self._client: Client | None = None
        when_full(on_full, full_timeout)
        self._full = {name: value for name, value in (("on_full", on_full), ("full_timeout", full_timeout)) if value is not None}
        self._origin: TaskFunction[Arguments, Result] | None = None  # what the module has under the function's name
        self._set_options(merge({}, options), unique)

    def _set_options(self, options: dict[str, object], unique: Unique) -> None:
        """Keep the options once they are checked. Raises InvalidError for a bad value, TypeError or ValueError for `unique`."""
        made = {"unique_key": "made of the arguments"} if unique else {}
        parse_new_job({"task": self.name, **made, **options}, 1)
        self.options = options
        self._unique = unique or None
        if self._unique is None:
            return
        check_names(["unique_key"], f"task {self.name}")
        if isinstance(unique, str):
            self._check_format(unique)
        elif unique is not True and not callable(unique):
            raise TypeError(f"task {self.name}: unique must be True, a format string or a function of the arguments")

    def _check_format(self, text: str) -> None:
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._signature.parameters.values())
        for _, field, _, _ in string.Formatter().parse(text):
            first = None if field is None else field.replace("[", ".").split(".")[0]
            if first is not None and first not in self._signature.parameters and not takes_any:
                raise ValueError(f"task {self.name}: unique={text!r} names {first!r}, which is none of its parameters")

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return self.__wrapped__(*args, **kwargs)

    def __reduce__(self) -> str | tuple:
        # As a function is pickled: by its module and name. A copy with other options is made again where it is unpickled.
        if self._origin is None:
            return self.__qualname__
        if self._client is not None:
            raise TypeError(f"task {self.name}: a copy with a client of its own can't be pickled")
        return _copy, (self._origin, self.options, self._unique, self._full)

    def using(self, *, client: Client | None = None, unique: Unique = None, on_full: str | None = None, full_timeout: float | None = None,
              **options: object) -> TaskFunction[Arguments, Result]:
        """Return a copy whose jobs are submitted with other options; what isn't said stays, None takes an option away.

        Args:
            client: the client to submit with instead of the default one.
            unique: see `task`; False: no key made of the arguments.
            on_full, full_timeout: what enqueue and map do when the broker has no room, as in Client.submit.
            options: as for `task` (docs/tasks.md).

        Raises:
            TypeError: there is no such option. InvalidError: a value is refused. ValueError: a bad format string, or no such `on_full`.
        """
        check_names(options, f"task {self.name}")
        said = {"on_full": on_full, "full_timeout": full_timeout}
        full = self._full | {name: value for name, value in said.items() if value is not None}
        made = _copy(self._origin or self, merge(self.options, options), self._unique if unique is None else unique, full)
        made._client = client if client is not None else self._client
        return made

    def enqueue(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Handle[Result]:
        """Submit a job that calls the task with these arguments and return its handle once the broker has it on disk.

        The Context is left out: the worker fills it in. A parameter's default is filled in there too, by its version of the code.

        Raises:
            TypeError: the task can't be called so.
            GreenroomError: as Client.submit and, for the default client, Client.
        """
        job = self._job(args, kwargs)
        client = self._client or default_client()
        return client.submit(job.pop("task"), job.pop("payload"), **self._full, **job)

    delay = enqueue
    send = enqueue

    def map(self, calls: Iterable[object]) -> list[Handle[Result]]:
        """Submit a job for each item and return the handles, in order; the iterable is read as they are sent.

        Args:
            calls: a tuple is the positional arguments of a call, a dict its keyword arguments, anything else its only argument.

        Raises:
            SubmitError (greenroom.client): some were refused; it holds what was accepted. Its cause is a TypeError where a call
                does not fit the task, which ends the reading.
            GreenroomError: as Client.submit_many.
        """
        client = self._client or default_client()
        return client.submit_many((self._job(*_call_of(item)) for item in calls), **self._full)

    def payload_of(self, args: tuple, kwargs: dict[str, object]) -> dict[str, object]:
        """Return the payload of a call: parameter name -> value, without what has its default. TypeError for a call that can't be."""
        return _flat(self._bind(args, kwargs))

    def parameters(self) -> set[str] | None:
        """Return the names that a payload may hold, None for any."""
        kinds = {parameter.kind for parameter in self._signature.parameters.values()}
        return None if inspect.Parameter.VAR_KEYWORD in kinds else set(self._signature.parameters)

    def _job(self, args: tuple, kwargs: dict[str, object]) -> dict[str, object]:
        bound = self._bind(args, kwargs)
        job = {**self.options, "task": self.name, "payload": _flat(bound)}
        if self._unique is not None and "unique_key" not in self.options:
            bound.apply_defaults()
            job["unique_key"] = self._unique_key(_flat(bound))
        return job

    def _bind(self, args: tuple, kwargs: dict[str, object]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"task {self.name}: {exc}") from None

    def _unique_key(self, arguments: dict[str, object]) -> str:
        if self._unique is True:
            return f"{self.name}:{hashlib.sha256(_canonical(arguments).encode('utf-8', 'surrogatepass')).hexdigest()}"
        key = self._unique.format(**arguments) if isinstance(self._unique, str) else self._unique(**arguments)
        if not isinstance(key, str):
            raise TypeError(f"task {self.name}: what unique returns must be text, not {type(key).__name__}")
        return key


def _copy(origin: TaskFunction, options: dict[str, object], unique: Unique, full: dict[str, object]) -> TaskFunction:
    made = TaskFunction(origin.__wrapped__, origin.name, context=origin._context, options=options, unique=unique, **full)
    made._origin = origin
    return made


def _without(signature: inspect.Signature, context: str | None) -> inspect.Signature:
    """Return what a call to be enqueued must fit: no Context, and no *args, which a payload's keys can't fill."""
    return signature.replace(parameters=[parameter for parameter in signature.parameters.values()
                                         if parameter.name != context and parameter.kind is not parameter.VAR_POSITIONAL])


def _call_of(item: object) -> tuple[tuple, dict]:
    if isinstance(item, tuple):
        return item, {}
    return ((), item) if isinstance(item, dict) else ((item,), {})


def _flat(bound: inspect.BoundArguments) -> dict[str, object]:
    """Return arguments by name, those of **kwargs among them."""
    flat: dict[str, object] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value
    return flat


def _canonical(value: object) -> str:
    """Return a text that is the same for equal payloads: maps sorted by key, lists and tuples alike, each type apart."""
    if isinstance(value, dict):
        items = sorted((_canonical(key), _canonical(item)) for key, item in value.items())
        return "{" + ",".join(f"{key}:{item}" for key, item in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if type(value) is int:
        return hex(value)  # repr refuses more than 4,300 digits
    if value is None or isinstance(value, (str, bytes, bool, float)):
        return repr(value)
    raise TypeError(f"a {type(value).__name__} can't be in a payload")
