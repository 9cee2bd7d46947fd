#!/usr/bin/env python3
"""Make tasks for `pith eval` from any text: the same arguments give the same tasks. Standard library only.

usage: make_tasks.py --haystack TEXT [--tasks niah_single,recall,...] [--lengths 512,1024] [--per 4] [--split NAME]
                     [--template chatml|gemma|llama3|none] > tasks.jsonl

examples:
  make_tasks.py --haystack book.txt --lengths 512,1024,2048,4096 > tasks.jsonl
  make_tasks.py --haystack book.txt --tasks long_text,long_facts --lengths 1024 > decode.jsonl
  make_tasks.py --haystack eval/prose.txt --lengths 512,1024 --per 2 --split own > eval/tasks.jsonl

One JSON object a line:
  id, task, length  name, kind, approximate tokens of context
  pinned_text       only `instruction`: what `pith eval --pins on` protects; it comes before the context
  context_text      the prompt up to the end of the context, with the chat template's special tokens in it
  long_text         only the long_ tasks: what the model is made to say between context and question, a token at a time
  question_text     what follows: question, end of turn, beginning of the answer (may be empty)
  target            what a faithful model says next

Kinds:
  niah_single    one magic number in prose, asked for at the end
  niah_multikey  three of them, one asked for
  passkey        a pass key in repeated filler
  recall         say two sentences again, word by word
  continuation   go on with the prose
  facts          a table of people spread over prose, one looked up
  dialogue       many turns, a fact of the first ones asked for
  instruction    a rule at the very top that must still hold after the context
  long_text      a long continuation under a decode-time budget
  long_facts     facts told within a long generated text, one of them said again at its end

Lengths are estimated at 4.2 characters a token. Two splits never share a random choice; give them different texts
where they must not share prose.
"""
import argparse
import json
import random
import sys

TEMPLATES = {  # beginning of a user's turn, its end, beginning of the answer, end of the answer
    "chatml": ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
    "gemma": ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
    "llama3": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
               "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "none": ("", "\n\n", "", "\n\n"),
}
BEGINNINGS = {"chatml": "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n", "gemma": "<bos>",
              "llama3": "<|begin_of_text|>", "none": ""}

CITIES = ("Ankara Bergen Boston Bruges Calgary Denver Dresden Geneva Genoa Glasgow Havana Helsinki Jakarta Kyoto Lagos "
          "Leipzig Malaga Manila Nairobi Naples Oxford Palermo Porto Riga Seville Sydney Toronto Turin Utrecht "
          "Zagreb").split()
NAMES = ("Agnes Bernard Cecilia Dorian Edith Frank Greta Hugo Ingrid Jonas Katya Leon Martha Nils Olga Peter Quentin "
         "Rosa Simon Thea").split()
THINGS = ("a brown horse,a copper kettle,a drum,a fishing boat,a flute,a gold ring,a hammock,a marble table,a mirror,"
          "a parrot,a rifle,a sewing machine,a sledge,a tall ladder,a typewriter,a white van").split(",")
TRADES = "baker carpenter dentist farmer glazier judge miner nurse painter plumber tailor teacher".split()
CODES = "amber bronze cactus dragon falcon granite harvest indigo jasmine lantern meadow orchid velvet walnut".split()
FILLER = "The hills are quiet. The road is long. The wind is cold. We walk on. Nothing happens here."


class Maker:
    """One task; every choice comes from `rng`."""

    def __init__(self, rng, sentences, chars, template):
        self.rng, self.sentences, self.chars = rng, sentences, chars
        self.user, self.end, self.answer, self.answer_end = TEMPLATES[template]
        self.beginning = BEGINNINGS[template]

    def prose(self, chars):
        """Consecutive sentences from a random place, so that the prose stays coherent."""
        at, out, length = self.rng.randrange(len(self.sentences)), [], 0
        while length < chars:
            out.append(self.sentences[at % len(self.sentences)])
            length += len(out[-1]) + 1
            at += 1
        return out

    def number(self):
        return str(self.rng.randint(1000000, 9999999))

    def spread(self, facts, chars=None):
        """Facts at random places of prose, the whole of about `chars` characters."""
        text = self.prose((chars or self.chars) - sum(len(fact) + 1 for fact in facts))
        for fact in facts:
            text.insert(self.rng.randrange(len(text) + 1), fact)
        return " ".join(text)

    def ask(self, context, question, prefix, target):
        return dict(context_text=self.beginning + self.user + context,
                    question_text=f"\n\n{question}{self.end}{self.answer}{prefix}", target=" " + target)

    def niah(self, keys):
        cities, numbers = self.rng.sample(CITIES, keys), [self.number() for _ in range(keys)]
        text = self.spread([f"The special magic number of {c} is {n}." for c, n in zip(cities, numbers)])
        return self.ask(text, f"What is the special magic number of {cities[0]} in the text above?",
                        f"The special magic number of {cities[0]} is", numbers[0])

    def niah_single(self):
        return self.niah(1)

    def niah_multikey(self):
        return self.niah(3)

    def passkey(self):
        number = self.number()
        text = [FILLER] * max(4, (self.chars - 80) // (len(FILLER) + 1))
        text.insert(self.rng.randrange(len(text) + 1), f"The pass key is {number}. Remember it. {number} is the pass key.")
        return self.ask(" ".join(text), "What is the pass key?", "The pass key is", number)

    def recall(self):
        text = self.prose(self.chars)
        usable = [i for i in range(1, len(text) - 2)
                  if text.count(text[i]) == 1 and len(text[i].split()) > 9 and len(text[i + 1]) > 40]
        at = self.rng.choice(usable or [1])
        first, rest = text[at].split()[:6], text[at].split()[6:]
        return self.ask(" ".join(text), f'Repeat the two sentences of the text that begin with "{" ".join(first)}".',
                        " ".join(first), " ".join(rest) + " " + text[at + 1])

    def continuation(self):
        text = " ".join(self.prose(self.chars + 700))
        cut = text.index(" ", self.chars)
        return dict(context_text=self.beginning + self.user + text[:cut], question_text="",
                    target=text[cut:cut + 520].rsplit(" ", 1)[0])

    def people(self, count):
        return [(name, city, f"{name} lives in {city}, owns {thing} and works as a {self.rng.choice(TRADES)}.")
                for name, city, thing in zip(self.rng.sample(NAMES, count), self.rng.sample(CITIES, count),
                                             self.rng.sample(THINGS, count))]

    def facts(self):
        people = self.people(8)
        name, city, _ = self.rng.choice(people)
        return self.ask(self.spread([row for _, _, row in people]), f"According to the text, where does {name} live?",
                        f"{name} lives in", city)

    def dialogue(self):
        name, city, number = self.rng.choice(NAMES), self.rng.choice(CITIES), self.number()
        turns = [(f"Hello! My cousin {name} has moved to {city}.", f"How nice! I hope that {name} likes {city}."),
                 (f"The code of my suitcase is {number}. Please keep it in mind.",
                  f"Of course, I will keep in mind that the code of your suitcase is {number}.")]
        self.rng.shuffle(turns)
        length = sum(len(a) + len(b) for a, b in turns)
        while length < self.chars:
            said, heard = " ".join(self.prose(140)), " ".join(self.prose(140))
            turns.append((f"I read this today: {said} What do you make of it?", f"It reminds me of this: {heard}"))
            length += len(said) + len(heard) + 110
        text = "".join(f"{self.user}{a}{self.end}{self.answer}{b}{self.answer_end}" for a, b in turns)
        question, prefix, target = self.rng.choice([("What is the code of my suitcase?", "The code of your suitcase is", number),
                                                    (f"Where does my cousin {name} live now?", f"Your cousin {name} lives in", city)])
        return dict(context_text=self.beginning + text,
                    question_text=f"{self.user}{question}{self.end}{self.answer}{prefix}", target=" " + target)

    def instruction(self):
        code, sign = self.rng.sample(CODES, 2)
        rule = (f"Rule of this conversation: every answer begins with the code word {code} and ends with the word {sign}. "
                f"The code word is {code}.")
        text = f"Here is a text.\n\n{' '.join(self.prose(self.chars - len(rule)))}"
        return dict(pinned_text=f"{self.beginning}{self.user}{rule}{self.end}{self.answer}I will begin every answer with "
                                f"the code word {code}.{self.answer_end}",
                    context_text=self.user + text,
                    question_text=f"\n\nWhat is the text about? Keep to the rule.{self.end}{self.answer}"
                                  "I begin this answer with the code word",
                    target=" " + code)

    def long_text(self):
        text = " ".join(self.prose(self.chars + 700))
        begin, cut = text.index(" ", 160), text.index(" ", self.chars)
        return dict(context_text=f"{self.beginning}{self.user}Tell me more.{self.end}{self.answer}{text[:begin]}",
                    long_text=text[begin:cut], question_text="", target=text[cut:cut + 200].rsplit(" ", 1)[0])

    def long_facts(self):
        """Facts in the first half of what is generated, so that the budget has to carry them."""
        people = self.people(6)
        name, city, _ = self.rng.choice(people)
        told = self.spread([row for _, _, row in people], self.chars // 2) + " " + " ".join(self.prose(self.chars // 2))
        return dict(context_text=f"{self.beginning}{self.user}Write a long text about some people.{self.end}{self.answer}"
                                 "Here is the text.",
                    long_text=" " + told, question_text=f"\n\nTo sum up, {name} lives in", target=" " + city)


KINDS = ["niah_single", "niah_multikey", "passkey", "recall", "continuation", "facts", "dialogue", "instruction",
         "long_text", "long_facts"]


def split_sentences(text):
    """Sentences of ordinary length, each once."""
    found = {}
    for part in text.replace("\n", " ").replace("? ", "?. ").replace("! ", "!. ").split(". "):
        part = " ".join(part.split()).rstrip(".")
        if 30 < len(part) < 220 and part[0].isupper():
            found.setdefault(part + ("" if part[-1] in "?!" else "."))
    return list(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--haystack", required=True, help="a text of a few pages at least")
    parser.add_argument("--tasks", default=",".join(KINDS), help="kinds, between commas (default: all)")
    parser.add_argument("--lengths", default="512,1024", help="tokens of context, between commas")
    parser.add_argument("--per", type=int, default=4, help="tasks of each kind and length")
    parser.add_argument("--split", default="own", help="a name: other names give other tasks")
    parser.add_argument("--template", choices=sorted(TEMPLATES), default="chatml")
    arguments = parser.parse_args()
    kinds = arguments.tasks.split(",")
    for kind in kinds:
        if kind not in KINDS:
            parser.error(f"there is no kind of task called {kind}: choose among {', '.join(KINDS)}")
    try:
        with open(arguments.haystack, encoding="utf-8") as file:
            sentences = split_sentences(file.read())
        lengths = [int(length) for length in arguments.lengths.split(",")]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if len(sentences) < 50:
        parser.error(f"{arguments.haystack} has {len(sentences)} usable sentences, and tasks need 50")
    if min(lengths) < 200:
        parser.error("a context of fewer than 200 tokens holds no task")
    for kind in kinds:
        for length in lengths:
            for i in range(arguments.per):
                name = f"{arguments.split}-{kind}-{length}-{i}"
                maker = Maker(random.Random(name), sentences, int(length * 4.2) - 160, arguments.template)
                print(json.dumps(dict(id=name, task=kind, length=length, **getattr(maker, kind)())))


if __name__ == "__main__":
    main()
