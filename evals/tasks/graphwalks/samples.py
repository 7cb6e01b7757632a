"""The samples of GraphWalks: random directed graphs whose nodes are hexadecimal hashes, and an operation on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ropescale.evals.tasks.retrieval import PromptSampler, Sample, Wanted
from ropescale.evals.tasks.ruler.niah import noise

# The wording of the data set on the hub, with the sentence on revisited nodes in our words
TEXT = (
    "You will be given a graph as a list of directed edges. All nodes are at least degree 1. You will also get a "
    "description of an operation to perform on the graph.\n"
    "Your job is to execute the operation on the graph and return the set of nodes that the operation results in. If "
    "asked for a breadth-first search (BFS), only return the nodes that are reachable at exactly that depth, do not "
    "return the starting node or nodes that are reached before. If asked for the parents of a node, only return the "
    "nodes that have an edge leading to the given node, do not return the given node itself.\n\n"
    "{examples}Here is the graph to operate on:\nThe graph has the following edges:\n{edges}\n\n"
    "Operation:\n{operation}\n\n"
    "You should immediately return the set of nodes that the operation results in, with no additional text. Return "
    "your final answer as a list of nodes in the very last line of your response."
)
EXAMPLES = (
    "Here is an example:\n<begin example>\nThe graph has the following edges:\n"
    "uvwx -> alke\nabcd -> uvwx\nabcd -> efgh\nefgh -> uvwx\n\n"
    "Example 1:\nOperation:\nPerform a BFS from node abcd with depth 1.\nFinal Answer: [uvwx, efgh]\n\n"
    "Example 2:\nOperation:\nPerform a BFS from node alke with depth 1.\nFinal Answer: []\n\n"
    "Example 3:\nOperation:\nFind the parents of node uvwx.\nFinal Answer: [abcd, efgh]\n<end example>\n"
)
ANSWER = "Final Answer: ["
LETTERS = 10  # of a node
DEGREE = 2  # edges that leave a node
MOST_PARENTS = 4
DEPTHS = (1, 2)  # of a search
LEAST_EDGES = 8  # beyond those of the answer, so that a graph has more nodes than are asked for


@dataclass(frozen=True)
class _Task:
    """A graph's edges that matter, what is asked of it, and where further edges may lead from and to."""

    edges: list[tuple[str, str]]
    operation: str
    answer: list[str]
    leaving: list[str]  # nodes that further edges may leave
    reached: list[str]  # nodes that they may lead to


class GraphWalk(PromptSampler):
    """One operation on a random directed graph; units are edges beyond those that the answer needs."""

    reply_tokens = 80
    lengths = (4096,)
    full_from = 1  # the short form has no examples, and is taken where these do not fit

    def __init__(self, operation: str):
        self.name = f"graphwalks_{operation}"
        self._asked = OPERATIONS[operation]

    def sample(self, rng: random.Random, wanted: Wanted) -> Sample:
        """Draws the nodes that are asked for with their edges; every further edge leaves the answer as it is."""
        nodes = _Nodes(rng)
        task = self._asked(rng, nodes)
        state = rng.getrandbits(64)
        filler = noise(wanted.tokenizer, "")
        examples = "" if wanted.short else EXAMPLES

        def prompt(units: int, rest: str) -> str:
            """Examples, filling, the edges in a random order, the operation."""
            stream = random.Random(state)
            edges = dict.fromkeys(task.edges)
            further = _Nodes(stream, nodes.taken)
            leaving, reached = [*task.leaving], [*task.reached]
            for number in range(units):
                if number % DEGREE == 0:  # a new node, with an edge to one before it; then it is given others
                    node = further.drawn()
                    edges[node, stream.choice(reached)] = None
                    reached.append(node)
                else:
                    edges[stream.choice(leaving), node] = None
                    if number % DEGREE == DEGREE - 1:
                        leaving.append(node)
            order = [*edges]
            stream.shuffle(order)
            lines = "\n".join(f"{start} -> {end}" for start, end in order)
            return TEXT.format(
                examples=f"{examples}{rest}\n" if rest else examples, edges=lines, operation=task.operation
            )

        return Sample(
            prompt=prompt, gen_prefix=ANSWER, target=task.answer, filling=lambda units: filler, least=LEAST_EDGES
        )


class _Nodes:
    """Names of nodes, no two alike."""

    def __init__(self, rng: random.Random, taken: Iterable[str] = ()):
        self._rng = rng
        self.taken = {*taken}

    def drawn(self) -> str:
        """A new one."""
        while (name := "".join(self._rng.choices("0123456789abcdef", k=LETTERS))) in self.taken:
            pass
        self.taken.add(name)
        return name


def _parents(rng: random.Random, nodes: _Nodes) -> _Task:
    """One to four nodes lead to the one that is asked about; further edges lead to any other."""
    asked = nodes.drawn()
    parents = [nodes.drawn() for _ in range(rng.randint(1, MOST_PARENTS))]
    child = nodes.drawn()
    edges = [(parent, asked) for parent in parents] + [(asked, child)]
    return _Task(edges, f"Find the parents of node {asked}.", parents, [asked, *parents, child], [*parents, child])


def _bfs(rng: random.Random, nodes: _Nodes) -> _Task:
    """A search of depth 1 or 2 with two edges from every node that it passes; further edges leave none of those."""
    depth = rng.choice(DEPTHS)
    root = nodes.drawn()
    edges: list[tuple[str, str]] = []
    passed, level = [root], [root]
    for _ in range(depth):
        reached = [(node, nodes.drawn()) for node in level for _ in range(DEGREE)]
        edges += reached
        level = [node for _, node in reached]
        passed += level
    # what is asked for lies at the edge of the search, so that edges from there on change nothing either
    return _Task(edges, f"Perform a BFS from node {root} with depth {depth}.", level, [*level], passed)


OPERATIONS: dict[str, Callable[[random.Random, _Nodes], _Task]] = {"parents": _parents, "bfs": _bfs}


def dataset(operation: str, **metadata: Any) -> dict[str, datasets.Dataset]:
    """The rows of the task of that operation; the README names the keys that the metadata may have."""
    return GraphWalk(operation).dataset(metadata)


def results(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
    """The published F1 of the set of nodes that a reply lists, and whether it is exactly the set asked for."""
    listed = {name for part in replies[0].partition("]")[0].split(",") if (name := part.strip(" '\""))}
    asked = {*doc["target"]}
    score = 2 * len(listed & asked) / (len(listed) + len(asked))
    return {"score": score, "exact": float(listed == asked), "by_length": (doc["length"], score)}
