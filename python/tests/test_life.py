"""Lifetime, threads, forks, Ctrl-C, leaks."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import pith


def run_script(code, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        **options,
    )


def resident():
    """Bytes that no file has: weights that the kernel took away and that are read again are no leak."""
    with open("/proc/self/statm") as file:
        _, all_pages, shared_pages, *_ = file.read().split()
    return (int(all_pages) - int(shared_pages)) * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_cycles_leak_nothing(model):
    engine = pith.Engine(model, ctx=256, sequences=2)
    text = model.tokenize("a b")

    def cycles(count):
        for i in range(count):
            sequence = engine.sequence()
            if i % 500 == 0:
                sequence.prefill(text)
                sequence.logits
                sequence.fork().close()
            if i % 2:
                sequence.close()
        gc.collect()

    cycles(1000)
    before = resident()
    cycles(10000)
    assert resident() - before < 8 << 20
    assert engine.stats["entries"] == 0


def test_engines_and_conversations_leak_nothing(model):
    def cycles(count):
        for _ in range(count):
            engine = pith.Engine(model, ctx=256)
            engine.conversation(system="a").close()
            del engine
        gc.collect()

    cycles(20)
    before = resident()
    cycles(150)
    assert resident() - before < 24 << 20


def test_freed_in_any_order(model):
    engine = pith.Engine(model, ctx=256, sequences=2)
    sequence, talk = engine.sequence(), engine.conversation()
    own = pith.Engine(pith.Model(), ctx=128).sequence()
    del engine
    gc.collect()
    sequence.prefill("Hello")
    assert talk.say("Hi", 2, temperature=0).tokens is not None
    own.prefill("Hello")
    assert own.logits.shape == sequence.prefill("a").logits.shape


def test_two_threads_on_two_engines_and_on_one(model):
    def once(engine):
        with engine.sequence() as sequence:
            return sequence.prefill("The river").complete(12, temperature=0).tokens

    expected = once(pith.Engine(model, ctx=256, threads=1))
    shared = pith.Engine(model, ctx=256, threads=1, sequences=4)
    results = []

    def work(engine):
        results.append(once(engine))

    threads = [
        threading.Thread(target=work, args=(engine,))
        for engine in (pith.Engine(model, ctx=256, threads=1), pith.Engine(model, ctx=256, threads=1), shared, shared)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_the_gil_is_free_meanwhile(model, story):
    engine = pith.Engine(model, ctx=2048)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.monotonic()
    engine.sequence().prefill(story + story)
    end = time.monotonic()
    done.set()
    thread.join()
    during = [at for at in ticks if begin <= at <= end]
    assert len(during) > (end - begin) / 0.005 / 8


def test_cancel_from_another_thread(model, story):
    engine = pith.Engine(model, ctx=8000, threads=1)
    sequence = engine.sequence()
    timer = threading.Timer(0.3, sequence.cancel)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(pith.Cancelled):
        sequence.prefill((story * 20)[:7000])
    assert time.monotonic() - begin < 5
    sequence.close()
    engine.sequence().prefill(story[:10])
    engine.cancel()  # nothing runs: nothing happens
    assert engine.sequence  # and the engine goes on
    timer.join()


def test_ctrl_c_stops_within_a_layer(model):
    code = """
        import os, signal, threading, time, pith
        engine = pith.Engine(ctx=8000, threads=1)
        tokens = (engine.model.tokenize("The old lighthouse stood on a rock above the bay. ") * 1000)[:7900]
        sequence = engine.sequence()
        threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            sequence.prefill(tokens)
            print("not interrupted")
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - begin - 0.7 < 2)
        other = pith.Engine(engine.model, ctx=100).sequence()
        other.prefill("Hello")
        print("goes on", other.complete(2).stop)
    """
    done = run_script(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["interrupted True", "goes on length"], done.stdout


def test_ctrl_c_ends_a_program(model):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
        import pith
        talk = pith.Conversation(pith.Engine(ctx=4000))
        print("begins", flush=True)
        for piece in talk.stream("Tell me a very long story.", 3000, ignore_eos=True):
            print(piece, end="", flush=True)
    """),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begins\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


def test_a_forked_child_is_told(model):
    code = """
        import os, sys, pith
        engine = pith.Engine(ctx=100)
        sequence = engine.sequence().prefill("Hello")
        child = os.fork()
        if child == 0:
            failures = 0
            for call in (lambda: sequence.decode(1), lambda: engine.stats, lambda: engine.sequence(), lambda:
            pith.Model()):
                try:
                    call()
                except pith.Unsupported as error:
                    failures += "spawn" in str(error)
            del sequence, engine
            os._exit(failures)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        sequence.decode(1)
        print(len(sequence) > 1)
    """
    done = run_script(code)
    assert done.stdout == "4\nTrue\n", (done.stdout, done.stderr)


def test_a_child_that_comes_first_works(model):
    code = """
        import os, pith
        child = os.fork()
        if child == 0:
            os._exit(len(pith.Engine(ctx=100).sequence().prefill("Hello").complete(3).tokens))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(len(pith.Engine(ctx=100).sequence().prefill("Hello").complete(3).tokens))
    """
    done = run_script(code)
    assert done.stdout == "3\n3\n", (done.stdout, done.stderr)


def test_help_and_types_are_there():
    done = run_script("import pith; help(pith)")
    assert "kv-cache budget" in done.stdout.lower() and "class Engine" in done.stdout
    folder = os.path.dirname(pith.__file__)
    assert os.path.exists(os.path.join(folder, "py.typed")) and os.path.exists(os.path.join(folder, "_pith.pyi"))
    with open(os.path.join(folder, "_pith.pyi")) as file:
        stub = file.read()
    for name in vars(pith._pith):
        assert name.startswith("__") or f"def {name}(" in stub or f"class {name}:" in stub, name
    for name in pith.__all__:
        assert getattr(pith, name).__doc__, name
