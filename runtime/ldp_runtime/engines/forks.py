"""Engines that a forked child inherits: left alone, for the threads that serve them stay with the parent.

A library that waits for its threads when an engine is destroyed, or when the process exits, waits for ever in a child.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import weakref
from functools import cache
from typing import Any, TypeVar

Owner = TypeVar("Owner")

#: Owners of open engines, by their identity.
_owners: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def left_alone_in_children(owner: Owner) -> Owner:
    """The given owner of engines, which no child that this process forks will destroy, not even at its exit."""
    _watch_forks()
    _owners[id(owner)] = owner
    return owner


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_alone)


def _leave_alone() -> None:
    for owner in list(_owners.values()):
        # A reference that nothing takes back: an object that is merely stored would be destroyed at exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    _end_without_libraries()


@cache  # once for a child and its own children
def _end_without_libraries() -> None:
    """Ends this process, once Python is done, without the destructors of libraries that wait for the parent's threads.

    The exit status is kept: C calls the function with it, as the first that is to run at exit.
    """
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # of the GNU library
        atexit.register(libc.fflush, None)
        libc.on_exit(libc._exit, None)
