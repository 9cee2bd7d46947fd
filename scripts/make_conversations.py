#!/usr/bin/env python3
"""Make conversations for `pith eval --mode conversation`: facts and rules of early turns, asked for late. The same
arguments give the same conversations. Standard library only.

usage: make_conversations.py --haystack TEXT [--kinds fact,rule,...] [--turns 12,24] [--per 4] [--split NAME] > FILE

examples:
  make_conversations.py --haystack book.txt --turns 12,24,48 > conversations.jsonl
  make_conversations.py --haystack eval/prose.txt --turns 8,16 --per 3 --split own > eval/conversations.jsonl

One JSON object a line:
  id, task, length  name, kind, approximate tokens of the conversation
  messages          what was said before, [{"role", "content"}, ...]; the model's own template goes around it
  question_text     the user's next message
  answer_text       the beginning of the answer
  target            what a faithful model says next

Kinds:
  fact     a number that the user mentions in one of the first two turns
  person   where somebody lives, of three who are introduced in the first turns
  rule     a code word with which every answer has to begin, agreed on in the first turn and kept to since
  format   a sign with which every answer has to end, agreed on in the first turn and kept to since
  recent   as `fact`, in the last turn but one: what a recipe that keeps the newest answers
"""
import argparse
import json
import random
import sys

import make_tasks

TOPICS = ("the newspaper", "a letter", "an old book", "a travel guide", "a leaflet", "a magazine", "the library", "a notice board")
REMARKS = ("It reminds me of this:", "That fits with what I know:", "There is more to it:", "I would add this:")


class Maker:
    """One conversation; every choice comes from `rng`."""

    def __init__(self, rng, sentences, turns):
        self.rng, self.turns = rng, turns
        self.prose = make_tasks.Maker(rng, sentences, 0, "none").prose

    def number(self):
        return str(self.rng.randint(1000000, 9999999))

    def talk(self, count):
        """Turns about something else."""
        turns = []
        for _ in range(count):
            said, heard = " ".join(self.prose(120)), " ".join(self.prose(160))
            turns.append((f"I read in {self.rng.choice(TOPICS)}: {said} What do you make of it?",
                          f"{self.rng.choice(REMARKS)} {heard}"))
        return turns

    def item(self, turns, question, answer, target):
        messages = [dict(role=role, content=text) for turn in turns for role, text in zip(("user", "assistant"), turn)]
        return dict(messages=messages, question_text=question, answer_text=answer, target=" " + target)

    def number_turn(self):
        thing = self.rng.choice(("suitcase", "bicycle lock", "garden gate", "letter box", "safe"))
        number = self.number()
        return (thing, number, (f"The code of my {thing} is {number}. Please keep it in mind.",
                                f"I will keep in mind that the code of your {thing} is {number}."))

    def fact(self):
        thing, number, turn = self.number_turn()
        turns = self.talk(self.turns - 1)
        turns.insert(self.rng.randrange(2), turn)
        return self.item(turns, f"What is the code of my {thing}?", f"The code of your {thing} is", number)

    def recent(self):
        thing, number, turn = self.number_turn()
        turns = self.talk(self.turns - 1)
        turns.insert(len(turns) - 1, turn)
        return self.item(turns, f"What is the code of my {thing}?", f"The code of your {thing} is", number)

    def person(self):
        people = list(zip(self.rng.sample(make_tasks.NAMES, 3), self.rng.sample(make_tasks.CITIES, 3),
                          self.rng.sample(make_tasks.TRADES, 3)))
        turns = [(f"My cousin {name} works as a {trade} in {city}.", f"So {name} lives in {city}. How nice!")
                 for name, city, trade in people]
        name, city, _ = self.rng.choice(people)
        return self.item(turns + self.talk(self.turns - 3), f"Where does my cousin {name} live?",
                         f"Your cousin {name} lives in", city)

    def rule(self):
        code = self.rng.choice(make_tasks.CODES)
        first = (f"From now on, begin every answer with the code word {code}.", f"{code}: I will do so from now on.")
        turns = [first] + [(user, f"{code}: {answer}") for user, answer in self.talk(self.turns - 1)]
        # The last answers do not show the rule any more: it must come from the first ones.
        turns[-2:] = self.talk(2)
        return self.item(turns, "With which code word do you begin your answers?", "I begin every answer with the code word",
                         code)

    def format(self):
        sign = self.rng.choice(make_tasks.CODES)
        first = (f"From now on, end every answer with the word {sign}.", f"I will end every answer so. {sign}")
        turns = [first] + [(user, f"{answer} {sign}") for user, answer in self.talk(self.turns - 1)]
        turns[-2:] = self.talk(2)
        return self.item(turns, "With which word do you end your answers?", "I end every answer with the word", sign)


KINDS = ["fact", "person", "rule", "format", "recent"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--haystack", required=True, help="a text of a few pages at least")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds, between commas (default: all)")
    parser.add_argument("--turns", default="12,24", help="turns before the question, between commas")
    parser.add_argument("--per", type=int, default=4, help="conversations of each kind and length")
    parser.add_argument("--split", default="own", help="a name: other names give other conversations")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"there is no kind of conversation called {kind}: choose among {', '.join(KINDS)}")
    try:
        with open(arguments.haystack, encoding="utf-8") as file:
            sentences = make_tasks.split_sentences(file.read())
        counts = [int(count) for count in arguments.turns.split(",")]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if len(sentences) < 50:
        parser.error(f"{arguments.haystack} has {len(sentences)} usable sentences, and conversations need 50")
    if min(counts) < 5:
        parser.error("a conversation has five turns at least")
    for kind in kinds:
        for count in counts:
            for i in range(arguments.per):
                name = f"{arguments.split}-{kind}-{count}-{i}"
                item = getattr(Maker(random.Random(name), sentences, count), kind)()
                length = sum(len(message["content"]) + 30 for message in item["messages"]) / 4.2
                print(json.dumps(dict(id=name, task=kind, length=int(length), **item)))


if __name__ == "__main__":
    main()
