"""Greenroom: a job broker. This package holds what grows; the four programs live one folder up in a checkout.

It must not import anything of its own: importing `greenroom` costs nothing and patches nothing.
"""

from __future__ import annotations

import os

__version__ = "0.1.0"

# In a checkout broker.py, worker.py, client.py, protocol.py and webui/ lie beside this folder, so that `python broker.py`
# works; in the wheel they lie inside it. Either way they are imported as `greenroom.client` and so on: a user's own
# `client.py`, first on the path, can then never be taken for ours.
_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.exists(os.path.join(_checkout, "protocol.py")):
    __path__.append(_checkout)
