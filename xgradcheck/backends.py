"""The adapters, as a checkout finds them: in the folder ``backends`` beside this package.

An installed copy has that folder inside the package, and Python prefers a folder to this file.
"""

from pathlib import Path

# A module that has a __path__ is a package: `xgradcheck.backends.torch` is ../backends/torch.py.
# Putting that folder on sys.path instead would hide the real torch, numpy and jax.
__path__ = [str(Path(__file__).resolve().parents[1] / "backends")]
