"""The structure of a network: where its parts lie, what of it is frozen, and how it is cut, cached and shared."""
