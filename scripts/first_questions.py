#!/usr/bin/env python3
"""Asks a model what newcomers ask and looks for loops in its answers.

  scripts/first_questions.py [--pith build/release/pith] [--seeds 10] [--jobs 2] [--flags "--repeat-penalty 1"] [-v]

Each question is asked with the program's own defaults, once for each seed and once greedily. An answer loops if its end
repeats: the same sentence three times, or a run of words over and over. Exit 1: there was a loop, or a greedy answer
lacks the word that it should have.
"""
import argparse
import concurrent.futures
import json
import re
import subprocess
import sys

# A question, and what a sane greedy answer holds (a pattern, lower case).
QUESTIONS = [
    ("What is the capital of France?", "paris"),
    ("What is the capital of Germany?", "berlin"),
    ("Name three colours.", "red|blue|green|yellow"),
    ("What colour is the sky?", "blue"),
    ("Write a list of five animals.", "lion|dog|cat|elephant|bear|tiger|bird|whale|dolphin|wolf|fox"),
    ("Tell me a short story about a cat.", "cat"),
    ("What is 2 + 2?", "4|four"),
    ("Why is the sky blue?", "light|scatter|atmosphere"),
    ("How do I make a cup of tea?", "water"),
    ("Hello! Who are you?", "help|assist|i'm|i am"),
]


def loops(text):
    """The part that an answer repeats, or None."""
    words = text.lower().split()
    sentences = [s.strip() for s in re.split(r"[.!?\n]+", text.lower()) if len(s.split()) >= 4]
    for sentence in set(sentences):
        if sentences.count(sentence) >= 3:
            return sentence
    for length in range(1, 24):
        times = max(3, 12 // length)
        if len(words) >= times * length and words[-length:] * times == words[-length * times:]:
            return " ".join(words[-length:])
    return None


def ask(arguments, question, flags):
    command = [arguments.pith, "run", "-p", question, "-n", str(arguments.tokens), "--json", "-t", str(arguments.threads),
               *arguments.flags.split(), *flags]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr.decode())
    return json.loads(done.stdout)["text"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pith", default="build/release/pith")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="questions that are asked at once")
    parser.add_argument("--flags", default="", help="further flags of pith run")
    parser.add_argument("-v", "--verbose", action="store_true")
    arguments = parser.parse_args()
    found = []

    def answers_to(question):
        seeds = [(f"seed {s}", ask(arguments, question, ["-s", str(s)])) for s in range(arguments.seeds)]
        return [("greedy", ask(arguments, question, ["--temp", "0"])), *seeds]

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        asked = list(pool.map(answers_to, [question for question, _ in QUESTIONS]))
    for (question, wanted), answers in zip(QUESTIONS, asked):
        greedy = answers[0][1]
        if not re.search(wanted, greedy.lower()):
            found.append(f"{question} greedy: no {wanted}: {greedy[:200]!r}")
        for name, text in answers:
            if arguments.verbose:
                print(f"--- {question} ({name})\n{text}", flush=True)
            if repeated := loops(text):
                found.append(f"{question} {name}: loops over {repeated!r}")
    for line in found:
        print(line)
    print(f"{len(QUESTIONS)} questions, {arguments.seeds} seeds and greedy: {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
