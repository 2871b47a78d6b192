"""Reads what XLA has compiled: the text of an HLO module."""

import re

# Of these a compiled program makes nothing that runs.
_FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}

_CALLED = re.compile(
    r"(?:body|condition|true_computation|false_computation|"
    r"branch_computations)=(?:%?([\w.-]+)|\{(.*?)\})"
)


def instructions_of(text):
    """All instructions of a compiled program, those inside of fusions too."""
    return len(re.findall(r"^ +(?:ROOT )?%?\S+ = ", text, re.MULTILINE))


def launches_of(text):
    """Instructions of a compiled program that run by themselves.

    Those inside of a fusion do not. Those inside of a loop or a branch are
    counted once.
    """
    computations, main = {}, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if head:
            lines = computations[head[2]] = []
            main = head[2] if head[1] else main
        elif line.startswith("  "):
            lines.append(line)

    def within(name):
        count = 0
        for line in computations[name]:
            kind = re.search(r"[\])}] ([a-z][\w-]*)\(", line)
            if kind is None or kind[1] in _FREE:
                continue
            if kind[1] == "call":
                inner = re.findall(r"to_apply=%?([\w.-]+)", line)
            else:
                names = " ".join(a or b for a, b in _CALLED.findall(line))
                inner = re.findall(r"[\w.-]+", names)
                count += 1
            count += sum(map(within, inner))
        return count

    return within(main)
