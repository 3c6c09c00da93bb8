"""The custom resource definitions as values, made of the parser's own forms, bounds and defaults.

So the API server and the parser can't drift apart: what one refuses for its shape, the other refuses, too. Nothing here is needed
at run time; `scripts/crds.py` writes crds/ from it.
"""
