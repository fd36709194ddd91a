"""The task registry, calling tasks, errors, loading task modules and the built-in tasks' values."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from greenroom import tasks
from greenroom.errors import ConfigError
from greenroom.failures import place_of
from greenroom.tasks import (BUILTINS, EXAMPLE_PAYLOADS, BadPayloadError, CancelledTaskError, Context,
                             FibonacciTooLargeError, PrimeTooLargeError, Registry, UnknownTaskError, describe_error,
                             load_tasks, register_builtins, run_task)

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "file_stats.py"


def make_context(**changes: object) -> Context:
    fields = {"job_id": 7, "fence": 9, "attempt": 1, "task": "t", "queue": "default", "worker": "w"} | changes
    return Context(**fields)


def builtin(name: str, payload: object, context: Context | None = None) -> object:
    registry = Registry()
    register_builtins(registry)
    return run_task(registry, name, payload, context or make_context())


def call(fn: object, payload: object, context: Context | None = None) -> object:
    registry = Registry()
    registry.register_function("t", fn)
    return run_task(registry, "t", payload, context or make_context())


# Registering.

def test_tasks_are_listed_sorted_and_can_be_removed() -> None:
    registry = Registry()

    registry.register_task("b", repr)
    registry.register_task("a", repr)
    registry.register_task("c", repr)
    registry.unregister_task("b")

    assert registry.list_tasks() == ["a", "c"]


def test_registering_a_name_again_replaces_the_function() -> None:
    registry = Registry()

    registry.register_task("t", lambda payload: "old")
    registry.register_task("t", lambda payload: "new")

    assert run_task(registry, "t", None, make_context()) == "new"


def test_removing_an_unknown_task_says_its_name() -> None:
    with pytest.raises(KeyError, match="no task named 'nothing' is registered"):
        Registry().unregister_task("nothing")


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "naïve", "a/b", "a\n", 5, None])
def test_a_bad_task_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is not a task name"):
        Registry().register_task(name, repr)


@pytest.mark.parametrize("name", ["a", "x" * 128, "mail.send:v2-b_C"])
def test_a_good_task_name_is_taken(name: str) -> None:
    registry = Registry()

    registry.register_task(name, repr)

    assert registry.list_tasks() == [name]


def test_what_cannot_be_called_is_refused() -> None:
    async def later() -> None:
        pass

    with pytest.raises(TypeError, match="needs a function, not an integer"):
        Registry().register_task("t", 5)
    with pytest.raises(TypeError, match="coroutine function"):
        Registry().register_function("t", later)


def test_listeners_hear_of_each_change_and_a_failing_one_harms_nobody() -> None:
    registry = Registry()
    seen: list[list[str]] = []
    registry.on_change.append(lambda: 1 / 0)
    registry.on_change.append(lambda: seen.append(registry.list_tasks()))

    registry.register_task("a", repr)
    registry.register_function("b", lambda: None)
    registry.unregister_task("a")

    assert seen == [["a"], ["a", "b"], ["b"]]


def test_many_threads_can_register_and_remove_at_once() -> None:
    registry = Registry()

    def work(letter: str) -> None:
        for number in range(300):
            registry.register_task(f"{letter}{number}", repr)
            registry.list_tasks()
            if number % 2:
                registry.unregister_task(f"{letter}{number}")

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert registry.list_tasks() == sorted(f"{letter}{number}" for letter in "abcd" for number in range(0, 300, 2))


def test_the_decorator_leaves_the_function_callable_and_takes_a_name() -> None:
    try:
        @tasks.task
        def plain_for_test(a: int) -> int:
            return a + 1

        @tasks.task(name="named.for-test")
        def other(a: int) -> int:
            return a + 2

        assert plain_for_test(1) == 2 and other(a=1) == 3
        assert {"plain_for_test", "named.for-test"} <= set(tasks.list_tasks())
        assert run_task(tasks.default_registry, "named.for-test", {"a": 40}, make_context()) == 42
    finally:
        tasks.unregister_task("plain_for_test")
        tasks.unregister_task("named.for-test")


def test_the_default_registry_has_the_built_in_tasks() -> None:
    assert set(BUILTINS) <= set(tasks.list_tasks())
    assert set(BUILTINS) == set(EXAMPLE_PAYLOADS) == {"reverse_string", "to_uppercase", "fibonacci", "is_prime", "slow_task"}


# Calling.

def test_a_registered_function_gets_the_payload_as_it_is() -> None:
    registry = Registry()
    registry.register_task("t", lambda payload: [payload])

    assert [run_task(registry, "t", value, make_context()) for value in (None, 5, b"x", {"a": 1})] == [
        [None], [5], [b"x"], [{"a": 1}]]


def test_an_unknown_task_has_an_error_of_its_own() -> None:
    with pytest.raises(UnknownTaskError, match="no task named 'nothing'"):
        run_task(Registry(), "nothing", {}, make_context())


def test_a_task_function_gets_keys_as_keyword_arguments_with_defaults() -> None:
    def add(a: int, b: int = 10, *, c: int = 100) -> int:
        return a + b + c

    assert call(add, {"a": 1}) == 111
    assert call(add, {"a": 1, "c": 3, "b": 2}) == 6


def test_a_task_function_gets_the_context_where_it_is_annotated() -> None:
    def as_text(context: Context, a: int) -> tuple:  # text, because of this file's __future__ import
        return context.job_id, context.fence, context.cancelled, a

    def with_module(a: int, ctx: tasks.Context) -> tuple:
        return ctx.job_id, ctx.fence, ctx.cancelled, a

    def as_class(a: int, ctx: object) -> tuple:
        return ctx.job_id, ctx.fence, ctx.cancelled, a
    as_class.__annotations__["ctx"] = Context

    def optional(a: int, ctx: tasks.Context | None = None) -> tuple:
        return ctx.job_id, ctx.fence, ctx.cancelled, a

    def optional_class(a: int, ctx: object = None) -> tuple:
        return ctx.job_id, ctx.fence, ctx.cancelled, a
    optional_class.__annotations__["ctx"] = Context | None

    for fn in (as_text, with_module, as_class, optional, optional_class):
        assert call(fn, {"a": 5}) == (7, 9, False, 5)


def test_a_payload_cannot_stand_in_for_the_context() -> None:
    def fn(context: Context, **rest: object) -> dict:
        return rest

    assert call(fn, {"x": 1}) == {"x": 1}
    with pytest.raises(BadPayloadError, match="'context'"):
        call(fn, {"context": 1})


@pytest.mark.parametrize(("payload", "sentence"), [
    (None, "task t needs a map as its payload, not nil"),
    ([1], "task t needs a map as its payload, not a list"),
    (b"raw", "task t needs a map as its payload, not bytes"),
    ({}, "task t misses the key 'path' in its payload"),
    ({"path": "x", "colour": 1}, "task t does not know the payload key 'colour' (it knows: 'path', 'limit')"),
    ({"path": "x", 5: 1}, "task t needs text as payload keys, not 5"),
])
def test_a_payload_that_does_not_fit_the_parameters_gives_one_sentence(payload: object, sentence: str) -> None:
    def fn(path: str, limit: int = 5) -> str:
        return path

    with pytest.raises(BadPayloadError) as caught:
        call(fn, payload)

    assert str(caught.value) == sentence


def test_a_type_error_inside_the_task_stays_a_type_error() -> None:
    def fn(a: int) -> int:
        return a + "x"

    with pytest.raises(TypeError):
        call(fn, {"a": 1})


def test_a_parameter_that_no_key_can_reach_is_refused_at_once() -> None:
    def fn(a: int, /) -> int:
        return a

    with pytest.raises(ValueError, match="'a' can't be given by name"):
        Registry().register_function("t", fn)


# Errors.

def test_an_error_is_described_with_name_message_and_traceback() -> None:
    try:
        int("x")
    except ValueError as exc:
        described = describe_error(exc)

    assert described["name"] == "ValueError"
    assert described["message"] == "invalid literal for int() with base 10: 'x'"
    assert described["traceback"].startswith("Traceback") and 'int("x")' in described["traceback"]


def test_a_huge_error_is_cut_and_the_traceback_keeps_its_end() -> None:
    def deeper(n: int) -> None:
        if n:
            return deeper_still(n - 1)
        raise type("E" * 500, (Exception,), {})("m" * 9_000 + "end")

    def deeper_still(n: int) -> None:
        deeper(n)

    try:
        deeper(200)
    except Exception as exc:
        described = describe_error(exc)

    assert {key: len(text) for key, text in described.items()} == {"name": 128, "message": 4096, "traceback": 16384}
    assert described["traceback"].rstrip().endswith("mmmend")


def test_a_long_text_leaves_room_for_the_place_where_it_was_raised() -> None:
    try:
        raise ValueError("m" * 100_000) from LookupError("k" * 100_000)
    except ValueError as exc:
        described = describe_error(exc)

    assert len(described["traceback"]) < 9_000 and place_of(described["traceback"]) == (
        "unit/test_tasks.py in test_a_long_text_leaves_room_for_the_place_where_it_was_raised")


@pytest.mark.parametrize("raised", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), RecursionError()])
def test_an_error_whose_text_raises_is_still_described(raised: BaseException) -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise raised

    described = describe_error(Hostile())

    assert described["name"] == "Hostile"
    assert described["message"] == "(the error's text could not be made)"
    assert all(type(text) is str for text in described.values())


def test_an_error_text_is_always_plain_utf8() -> None:
    class Odd(str):
        def __getitem__(self, key: object) -> str:
            raise ValueError

    class Hostile(Exception):
        def __str__(self) -> str:
            return Odd("a\ud800b")

    described = describe_error(Hostile())

    assert described["message"] == "a\\ud800b" and type(described["message"]) is str
    for text in described.values():
        text.encode("utf-8")


# Built-in tasks.

def test_strings_are_reversed_and_raised() -> None:
    assert builtin("reverse_string", {"data": "stressed"}) == "desserts"
    assert builtin("reverse_string", {"data": ""}) == ""
    assert builtin("to_uppercase", {"data": "greenroom ß"}) == "GREENROOM SS"


def test_fibonacci_equals_a_plain_loop_and_turns_into_text_past_64_bits() -> None:
    a, b = 0, 1
    for n in range(400):
        assert builtin("fibonacci", {"n": n}) == (a if a < 2**64 else str(a)), n
        a, b = b, a + b
    assert builtin("fibonacci", {"n": 100}) == "354224848179261915075"


def test_the_largest_fibonacci_is_exact_under_the_strictest_digit_limit() -> None:
    code = """
        import sys
        from greenroom.tasks import fibonacci, is_prime
        sys.set_int_max_str_digits(640)
        text = fibonacci({"n": 100_000})
        assert sys.get_int_max_str_digits() == 640
        assert is_prime({"n": "1" * 2000}) is False
        sys.set_int_max_str_digits(0)
        a, b = 0, 1
        for _ in range(100_000):
            a, b = b, a + b
        assert text == str(a), text[:50]
        print(len(text))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60,
                          cwd=Path(__file__).parents[2])

    assert (done.stdout.strip(), done.stderr) == ("20899", "")


def test_a_fibonacci_past_the_cap_has_an_error_of_its_own() -> None:
    for n in (100_001, 10**30):
        with pytest.raises(FibonacciTooLargeError, match="at most 100,000"):
            builtin("fibonacci", {"n": n})


def sieve(limit: int) -> list[bool]:
    prime = [False, False] + [True] * (limit - 2)
    for number in range(2, limit):
        if prime[number]:
            for multiple in range(number * number, limit, number):
                prime[multiple] = False
    return prime


def test_small_primes_equal_a_sieve_also_in_the_tests_for_large_numbers() -> None:
    prime = sieve(20_000)

    assert [n for n in range(20_000) if builtin("is_prime", {"n": n}) != prime[n]] == []
    # The two halves of Baillie-PSW, which otherwise only meet numbers too large to check by hand.
    odd = [n for n in range(43, 20_000, 2) if all(n % p for p in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41))]
    both = [n for n in odd if tasks._passes_miller_rabin(n, 2) and tasks._passes_strong_lucas(n)]
    assert both == [n for n in odd if prime[n]]
    assert all(tasks._passes_strong_lucas(n) for n in odd if prime[n])


def test_strong_lucas_pseudoprimes_are_those_of_the_literature() -> None:
    # OEIS A217255, which has the composites that pass with Selfridge's parameters.
    prime = sieve(60_000)

    found = [n for n in range(3, 60_000, 2) if not prime[n] and tasks._passes_strong_lucas(n)]

    assert found == [5459, 5777, 10877, 16109, 18971, 22499, 24569, 25199, 40309, 58519]


MERSENNE = [2**exponent - 1 for exponent in (31, 61, 89, 107, 127, 521, 607, 1279, 2203)]


@pytest.mark.parametrize("n", [*MERSENNE, 2**255 - 19, 2**64 - 59, 10**18 + 9, 3317044064679887385961813, 10**100 + 267])
def test_known_primes_are_prime_as_integer_and_as_text(n: int) -> None:
    assert builtin("is_prime", {"n": n}) is True
    assert builtin("is_prime", {"n": str(n)}) is True


def test_a_prime_of_two_thousand_digits_is_prime() -> None:
    assert builtin("is_prime", {"n": "1" + "0" * 1995 + "7321"}) is True


COMPOSITES = {
    "Carmichael": [561, 1105, 1729, 2465, 2821, 6601, 8911, 825265, 321197185, 9746347772161],
    "large Carmichael (Chernick)": [(6 * m + 1) * (12 * m + 1) * (18 * m + 1) for m in (1, 6, 35, 45, 51, 10**12 + 1)],
    "strong pseudoprime to base 2": [2047, 3277, 4033, 4681, 8321, 15841, 29341, 42799, 49141, 52633, 65281],
    "to the first 4, 5, 6, 7, 9, 12, 13 primes": [
        3215031751, 2152302898747, 3474749660383, 341550071728321, 3825123056546413051, 318665857834031151167461,
        3317044064679887385961981],
    "Arnault (46 digits, passes bases 2 to 29)": [1195068768795265792518361315725116351898245581],
    "two large primes": [(2**61 - 1) * (2**89 - 1), (2**127 - 1) * (2**521 - 1), (2**61 - 1) * (2**31 - 1)],
    "squares": [p * p for p in (43, 3511, 1093, 2**31 - 1, 2**61 - 1, 2**89 - 1, 2**127 - 1)],
    "Mersenne numbers": [2**67 - 1, 2**101 - 1, 2**137 - 1, 2**2047 - 1],
}


@pytest.mark.parametrize("n", [n for group in COMPOSITES.values() for n in group])
def test_composites_made_to_deceive_are_not_prime(n: int) -> None:
    assert builtin("is_prime", {"n": str(n)}) is False


def test_arnaults_397_digit_composite_is_not_prime() -> None:
    # F. Arnault, "Rabin-Miller primality test: composite numbers which pass it", 1995: p * (313(p-1)+1) * (353(p-1)+1)
    # is a strong pseudoprime to all prime bases below 307.
    p = int("2967449566868551055015417464290533273077199179985304335099507553127683875317177019959423859642812118803366"
            "4754218345562493168782883")
    n = p * (313 * (p - 1) + 1) * (353 * (p - 1) + 1)

    assert all(tasks._passes_miller_rabin(n, base) for base in (2, 3, 5, 7, 11, 13, 101, 293))
    assert builtin("is_prime", {"n": str(n)}) is False


def test_random_products_and_their_factors_are_told_apart() -> None:
    seed = 20240717
    print(f"seed {seed}")
    rng = random.Random(seed)
    odd = [rng.getrandbits(110) | 1 for _ in range(600)]
    primes = [n for n in odd if all(pow(base, n - 1, n) == 1 for base in (2, 3, 5, 7, 61))]

    assert len(primes) > 5
    assert all(builtin("is_prime", {"n": p}) for p in primes)
    assert not any(builtin("is_prime", {"n": p * q}) for p in primes for q in primes)


@pytest.mark.parametrize("n", [1, 0, -1, -7, "-7", "0", "1", -2**63])
def test_nothing_below_two_is_prime(n: object) -> None:
    assert builtin("is_prime", {"n": n}) is False


@pytest.mark.parametrize("n", ["9" * 2001, "-" + "9" * 2001, "1" * 10_000_000, 10**2000])
def test_a_number_of_too_many_digits_has_an_error_of_its_own(n: object) -> None:
    with pytest.raises(PrimeTooLargeError, match="2,000 digits"):
        builtin("is_prime", {"n": n})


BAD_PAYLOADS = [
    ("reverse_string", {"data": 5}), ("reverse_string", {"data": b"x"}), ("to_uppercase", {"data": None}),
    ("fibonacci", {"n": -1}), ("fibonacci", {"n": 1.0}), ("fibonacci", {"n": True}), ("fibonacci", {"n": "10"}),
    ("is_prime", {"n": True}), ("is_prime", {"n": 7.0}), ("is_prime", {"n": ""}), ("is_prime", {"n": "7 "}),
    ("is_prime", {"n": "0x7"}), ("is_prime", {"n": "1_000"}), ("is_prime", {"n": "٧"}), ("is_prime", {"n": "+7"}),
    ("is_prime", {"n": "7\n"}), ("slow_task", {"seconds": -0.1}), ("slow_task", {"seconds": 86_400.5}),
    ("slow_task", {"seconds": True}), ("slow_task", {"seconds": float("nan")}), ("slow_task", {"seconds": "3"}),
]


@pytest.mark.parametrize(("name", "payload"), BAD_PAYLOADS)
def test_a_bad_value_is_refused_with_its_key(name: str, payload: dict) -> None:
    with pytest.raises(BadPayloadError, match=f"'{next(iter(payload))}'"):
        builtin(name, payload)


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_every_built_in_task_names_missing_and_unknown_keys_and_refuses_what_is_no_map(name: str) -> None:
    key = next(iter(EXAMPLE_PAYLOADS[name]))

    with pytest.raises(BadPayloadError, match=f"misses the key '{key}'"):
        builtin(name, {})
    with pytest.raises(BadPayloadError, match="does not know the payload key 'colour'"):
        builtin(name, {**EXAMPLE_PAYLOADS[name], "colour": 1})
    with pytest.raises(BadPayloadError, match="a list"):
        builtin(name, [1])


@pytest.mark.parametrize("name", sorted(set(BUILTINS) - {"slow_task"}))
def test_the_example_payloads_run(name: str) -> None:
    assert builtin(name, EXAMPLE_PAYLOADS[name]) in ("desserts", "GREENROOM", "354224848179261915075", True)


def test_slow_task_sleeps_and_tells_how_long() -> None:
    assert builtin("slow_task", {"seconds": 0}) == {"slept": 0}
    assert builtin("slow_task", {"seconds": 0.01}) == {"slept": 0.01}


def test_slow_task_ends_early_when_its_job_is_cancelled() -> None:
    context = make_context()
    timer = threading.Timer(0.05, context.cancel)
    timer.start()

    with pytest.raises(CancelledTaskError):
        builtin("slow_task", {"seconds": 3600}, context)
    timer.join(5)


# Loading. Each in a process of its own: imports and the default registry outlive a test.

def load_in_a_child(spec: str, folder: Path) -> str:
    """Return what load_tasks gives or raises for `spec` when run in `folder`."""
    code = textwrap.dedent("""
        import sys
        from greenroom.errors import ConfigError
        from greenroom.tasks import load_tasks
        for _ in range(2):
            try:
                print(load_tasks(sys.argv[1]))
            except ConfigError as exc:
                print(f"ConfigError: {exc}")
    """)
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-P", "-c", code, spec], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == second, "a spec that is given twice is answered twice alike"
    return first


GOOD = """
from greenroom.tasks import task

@task
def one() -> int:
    return 1

@task(name="two")
def f() -> int:
    return 2
"""


def test_a_file_is_loaded_by_its_path_and_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "worker.py").write_text("import neighbour_of_mine\n" + GOOD)
    (tmp_path / "sub" / "neighbour_of_mine.py").write_text("")

    assert load_in_a_child("sub/worker.py", tmp_path) == "['one', 'two']"


def test_a_module_is_loaded_by_its_name_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "jobs.py").write_text(GOOD)

    assert load_in_a_child("my_package.jobs", tmp_path) == "['one', 'two']"


def test_a_module_that_replaces_a_built_in_task_counts_as_having_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from greenroom.tasks import register_task\nregister_task('fibonacci', lambda p: 1)\n")

    assert load_in_a_child("mine.py", tmp_path) == "['fibonacci']"


@pytest.mark.parametrize(("source", "spec", "sentence"), [
    (None, "mine.py", "there is no such file"),
    (None, "mine_nowhere", "there is no module named mine_nowhere"),
    (None, "../mine", "give a module's name or the path of a .py file"),
    (None, "", "give a module's name or the path of a .py file"),
    ("x = 5", "mine.py", "it registers no task"),
    ("x = 5", "mine", "it registers no task"),
    ("1 / 0", "mine.py", "importing it failed with ZeroDivisionError: division by zero"),
    ("import nowhere_to_be_found", "mine", "failed with ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("def broken(:", "mine.py", "importing it failed with SyntaxError"),
    ("raise SystemExit('bye')", "mine.py", "importing it failed with SystemExit: bye"),
])
def test_a_task_module_that_cannot_be_used_gives_one_sentence(source: str | None, spec: str, sentence: str,
                                                              tmp_path: Path) -> None:
    if source is not None:
        (tmp_path / "mine.py").write_text(source)

    answer = load_in_a_child(spec, tmp_path)

    assert answer.startswith(f"ConfigError: --tasks {spec}: ") and sentence in answer


def test_the_example_counts_and_hashes_a_file(tmp_path: Path) -> None:
    data = b"one\ntwo\r\n\xff\x00three" * 100_000
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")

    try:
        assert load_tasks(str(EXAMPLE)) == ["file_stats"]
        result = run_task(tasks.default_registry, "file_stats", {"path": str(tmp_path / "data")}, make_context())
        nothing = run_task(tasks.default_registry, "file_stats", {"path": str(tmp_path / "empty")}, make_context())
        with pytest.raises(FileNotFoundError, match="there is no file .*missing"):
            run_task(tasks.default_registry, "file_stats", {"path": str(tmp_path / "missing")}, make_context())
    finally:
        tasks.unregister_task("file_stats")

    assert result == {"path": str(tmp_path / "data"), "lines": 200_001, "bytes": len(data),
                      "sha256": hashlib.sha256(data).hexdigest()}
    assert (nothing["lines"], nothing["bytes"]) == (0, 0)


def test_a_missing_module_error_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        load_tasks("no_such_module_anywhere")
