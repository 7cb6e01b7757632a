"""GraphWalks for the harness: a graph as a list of edges, and what a step or two through it reach."""
