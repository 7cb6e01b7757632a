"""What the two tasks of GraphWalks are: one group."""

from ropescale.evals.tasks.base import Group, Retrieval, register

GRAPHWALKS = Group(
    title="GraphWalks",
    text="A graph is given as a list of directed edges, and what is asked for are the parents of a node, or the nodes "
    "that a breadth-first search reaches at a depth. Columns: length in tokens. Each cell: average F1 of the nodes "
    "that the reply lists, and beneath it the share of replies that list exactly those asked for. Guessing scores 0.",
    summary={"graphwalks_parents, graphwalks_bfs": "GraphWalks: nodes of a graph that is given as a list of edges"},
    place=62,
)
register(
    *(Retrieval(name=name, group=GRAPHWALKS, place=62) for name in ("graphwalks_parents", "graphwalks_bfs")),
    file=__file__,
)
