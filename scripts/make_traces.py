#!/usr/bin/env python3
"""make_traces.py KIND SEED [REQUESTS] > FILE: traces for `pith sim`, the same bytes on every machine.

  trap, trap-fixed  Cold-RL's first workload (arXiv:2508.12485): small junk is popular first, large gems are found later.
                    trap keeps the reference's clock q * Exp(2), by which requests are then sorted; trap-fixed has one
                    that runs
  web-hard          its second: six types of content, most requests repeat what was asked for lately
  zipf-scan         blocks of one size: Zipf, and every 3,000 requests a scan, every other one over the same blocks
  zipf-drift        blocks of one size: Zipf, whose ranks drift
  prefix            prompts of chats and of sessions over documents, in Mooncake's lines (FILE.jsonl)
  chat              likewise; chats alone, whose habits (how many go on, how soon, how long prompts are, how many tenants
                    share what) the seed draws, and whose last, partial block is another one in the next turn

Objects are lines of time (s), id, size (bytes), ttl (s), rtt (us). Nothing is drawn but random.Random(SEED).random().
"""
import bisect
import itertools
import json
import math
import random
import sys

REQUESTS = {"trap": 25000, "trap-fixed": 25000, "web-hard": 60000, "zipf-scan": 60000, "zipf-drift": 60000,
            "prefix": 4000, "chat": 6000}


class Lot:
    """Distributions from one stream of uniform numbers."""

    def __init__(self, seed):
        self.unit = random.Random(seed).random

    def between(self, low, high):
        return low + (high - low) * self.unit()

    def below(self, limit):
        return min(limit - 1, int(self.unit() * limit))

    def exponential(self, mean):
        return -mean * math.log(1.0 - self.unit())

    def lognormal(self, median, sigma):
        radius = math.sqrt(-2.0 * math.log(1.0 - self.unit()))
        return median * math.exp(sigma * (radius * math.cos(2.0 * math.pi * self.unit())))

    def pick(self, sums):
        """An index, by weights given as their running sums."""
        return min(len(sums) - 1, bisect.bisect_right(sums, self.unit() * sums[-1]))

    def shuffled(self, count):
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def running_sums(weights):
    return list(itertools.accumulate(weights, initial=0.0))[1:]


def zipf(count, exponent):
    return running_sums(1.0 / (rank + 1) ** exponent for rank in range(count))


class TrapObject:
    def __init__(self, lot, requests):
        share = lot.unit()
        self.kind = "small"
        if share < 0.60:
            size = lot.between(1e3, 25e3)
            self.weight = 8.0 if lot.unit() < 0.05 else lot.exponential(0.3)
        elif share < 0.85:
            self.kind = "medium"
            size = lot.between(25e3, 150e3)
            self.weight = lot.exponential(2.0)
        else:
            size = lot.between(150e3, 800e3)
            gem = lot.unit() < 0.70
            self.kind = "gem" if gem else "large"
            self.weight = lot.between(15, 50) if gem else 0.5
        self.size = int(size)
        self.found = lot.between(0, 0.3 * requests)
        self.boost = lot.between(1.5, 4.0)
        self.ttl = int(lot.between(7200, 86400))
        self.rtt = int(lot.lognormal(40e3, 0.6))

    def weight_at(self, request, number, requests):
        factor = 1.0
        if self.kind == "gem":
            grown = min(1.0, (request - self.found) / (0.2 * requests))
            factor = 0.1 if request < self.found else 1.0 + grown * self.boost
            if math.sin(2 * math.pi * request / 1000 + number) > 0.6:
                factor *= 2.5
        elif self.kind == "small":
            shrunk = min(1.0, (request - self.found) / (0.5 * requests))
            factor = 2.0 if request < self.found else 2.0 - 1.9 * shrunk
        return self.weight * factor


def trap(lot, requests, runs):
    objects = [TrapObject(lot, requests) for _ in range(2000)]
    rows, clock = [], 0.0
    for request in range(requests):
        if request % 50 == 0:
            sums = running_sums(o.weight_at(request, i, requests) for i, o in enumerate(objects))
        number = lot.pick(sums)
        if runs:
            clock += lot.exponential(2.0)
        else:
            clock = request * lot.exponential(2.0)
        found = objects[number]
        rows.append((clock, number, found.size, found.ttl, found.rtt))
    return rows if runs else sorted(rows, key=lambda row: row[0])


# share, median size in bytes, its sigma, range of the time to live in s
CONTENT = [(0.15, 20e3, 0.8, 60, 3600), (0.20, 40e3, 0.9, 3600, 604800), (0.40, 60e3, 1.1, 86400, 2592000),
           (0.15, 2e3, 1.0, 60, 600), (0.07, 3e6, 0.9, 86400, 2592000), (0.03, 10e6, 1.0, 86400, 2592000)]


def web_hard(lot, requests):
    shares = running_sums(content[0] for content in CONTENT)
    objects = []
    for _ in range(10000):
        _, median, sigma, low, high = CONTENT[lot.pick(shares)]
        size = int(min(50e6, max(200, lot.lognormal(median, sigma))))
        ttl = int(low * (high / low) ** lot.unit())
        objects.append((size, ttl, int(lot.lognormal(60e3, 0.8))))
    order, ranks = lot.shuffled(10000), zipf(5000, 0.9)
    rows, recent, clock, fresh = [], [], 0.0, 0
    for _ in range(requests):
        clock += lot.exponential(0.25)
        if recent and lot.unit() < 0.70:
            if lot.unit() < 0.40:
                number = recent[-1 - lot.below(min(1000, len(recent)))]
            elif lot.unit() < 0.80:
                number = order[lot.pick(ranks)]
            else:
                number = lot.below(10000)
        elif fresh < 10000:
            number = order[9999 - fresh]
            fresh += 1
        else:
            number = lot.below(10000)
        recent.append(number)
        if len(recent) > 4000:
            del recent[:3000]
        rows.append((clock, number) + objects[number])
    return rows


def blocks(ids):
    return [(i * 0.01, block, 1, 86400, 1000) for i, block in enumerate(ids)]


def zipf_scan(lot, requests):
    ranks, names = zipf(20000, 0.9), lot.shuffled(20000)
    ids, scans, unseen = [], 0, 100000
    while len(ids) < requests:
        ids += [names[lot.pick(ranks)] for _ in range(3000)]
        scans += 1
        if scans % 2:
            ids += range(unseen, unseen + 1500)
            unseen += 1500
        else:
            ids += range(50000, 51500)
    return blocks(ids[:requests])


def zipf_drift(lot, requests):
    ranks, names, ids = zipf(3000, 0.7), list(range(3000)), []
    for request in range(requests):
        if request and request % 5000 == 0:
            for _ in range(600):
                a, b = lot.below(3000), lot.below(3000)
                names[a], names[b] = names[b], names[a]
        if request % 40 == 0:
            names[:40] = names[39:40] + names[:39]
        ids.append(names[lot.pick(ranks)])
    return blocks(ids)


class Tree:
    """Blocks are paths: the same label behind the same block is the same block."""

    def __init__(self):
        self.numbers = {}

    def child(self, parent, label):
        return self.numbers.setdefault((parent, label), len(self.numbers))


def prefix(lot, prompts):
    tree = Tree()
    tenants = [(2 + lot.below(12), [4 + lot.below(40) for _ in range(30)]) for _ in range(40)]
    of_tenants, of_documents = zipf(40, 1.0), zipf(30, 0.8)
    done, waiting, clock, unique = [], [], 0.0, 0
    while len(done) < prompts:
        clock += lot.exponential(0.8)  # a session arrives; turns that fall due before it come first
        while waiting and waiting[0][0] <= clock and len(done) < prompts:
            at, key, chain, left, tail = waiting.pop(0)
            done.append((at, list(chain), tail))
            if left:
                for _ in range(1 + lot.below(4)):
                    unique += 1
                    chain = chain + [tree.child(chain[-1], ("own", unique))]
                turn = (at + 5.0 + lot.exponential(90.0), key, chain, left - 1, 1 + lot.below(512))
                bisect.insort(waiting, turn, key=lambda entry: entry[:2])
        tenant = lot.pick(of_tenants)
        system_blocks, document_blocks = tenants[tenant]
        labels = [("system", tenant, block) for block in range(system_blocks)]
        if lot.unit() < 0.6:
            document = lot.pick(of_documents)
            labels += [("document", document, block) for block in range(document_blocks[document])]
        for _ in range(1 + lot.below(3)):
            unique += 1
            labels.append(("own", unique))
        chain, last = [], -1
        for label in labels:
            last = tree.child(last, label)
            chain.append(last)
        turns = min(12, int(lot.exponential(3.5)))
        bisect.insort(waiting, (clock, unique, chain, turns, 1 + lot.below(512)), key=lambda entry: entry[:2])
    return lines((at, chain, tail, 100) for at, chain, tail in done)


def lines(prompts):
    names = {}  # in order of first appearance
    for at, chain, tail, output in prompts:
        ids = [names.setdefault(block, len(names)) for block in chain]
        yield {"timestamp": int(at * 1000), "input_length": 512 * (len(ids) - 1) + tail, "output_length": output,
               "hash_ids": ids}


def chat(lot, prompts):
    tree = Tree()
    goes_on, surer = lot.between(0.1, 0.75), lot.between(0.0, 0.4)  # a first turn; what each further one adds
    one_off = lot.between(0.0, 0.5)
    pause, pause_sigma = 20.0 * 15.0 ** lot.unit(), lot.between(0.6, 1.1)
    arrival = 0.25 * 8.0 ** lot.unit()
    opening, opening_sigma = lot.between(2.0, 16.0), lot.between(0.9, 1.4)
    question = lot.between(0.3, 3.0)
    tenants = [1 + lot.below(8) for _ in range(1 + lot.below(8))]
    of_tenants = zipf(len(tenants), 1.0)
    done, waiting, clock, unique = [], [], 0.0, 0

    def grown(chain, blocks):
        nonlocal unique
        for _ in range(blocks):
            unique += 1
            chain = chain + [tree.child(chain[-1], ("own", unique))]
        return chain

    while len(done) < prompts:
        clock += lot.exponential(arrival)
        while waiting and waiting[0][0] <= clock and len(done) < prompts:
            at, key, chain, chance = waiting.pop(0)
            output = int(min(4000, lot.lognormal(200, 1.0)))
            done.append((at, chain, 1 + lot.below(512), output))
            if lot.unit() < chance:
                more = 1 + int(min(60, output / 512 + lot.lognormal(question, 1.0)))
                turn = (at + 2.0 + lot.lognormal(pause, pause_sigma), key, grown(chain[:-1], more),
                        chance + (0.95 - chance) * surer)
                bisect.insort(waiting, turn, key=lambda entry: entry[:2])
        tenant, chain, last = lot.pick(of_tenants), [], -1
        for block in range(tenants[tenant]):
            last = tree.child(last, ("system", tenant, block))
            chain.append(last)
        chance = 0.0 if lot.unit() < one_off else goes_on
        chain = grown(chain, 1 + int(min(250, lot.lognormal(opening if chance else opening / 2, opening_sigma))))
        bisect.insort(waiting, (clock, unique, chain, chance), key=lambda entry: entry[:2])
    return lines(done)


def main(arguments):
    kind = arguments[0] if arguments else ""
    if kind not in REQUESTS or len(arguments) not in (2, 3) or not all(a.isdecimal() for a in arguments[1:]):
        sys.exit(__doc__)
    lot = Lot(int(arguments[1]))
    requests = int(arguments[2]) if len(arguments) == 3 else REQUESTS[kind]
    if kind in ("prefix", "chat"):
        for prompt in (prefix if kind == "prefix" else chat)(lot, requests):
            print(json.dumps(prompt))
        return
    rows = {"trap": lambda: trap(lot, requests, False), "trap-fixed": lambda: trap(lot, requests, True),
            "web-hard": lambda: web_hard(lot, requests), "zipf-scan": lambda: zipf_scan(lot, requests),
            "zipf-drift": lambda: zipf_drift(lot, requests)}[kind]()
    print("time,id,size,ttl,rtt")
    for clock, number, size, ttl, rtt in rows:
        print(f"{clock:.3f},{number},{size},{ttl},{rtt}")


if __name__ == "__main__":
    main(sys.argv[1:])
