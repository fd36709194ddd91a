"""Which jobs a filter lets through, page by page: rows of the store, with what memory knows better. For lists and bulk verbs."""

from __future__ import annotations

from greenroom import views
from greenroom.desk import Desk
from greenroom.errors import InvalidError
from greenroom.filters import Filter, parse_filter
from greenroom.job import RUNNING, Job

#: Conditions that a list may also have beside its filter, as before there were filters.
SHORT_FORMS = ("state", "queue", "task", "worker")


def filter_of(fields: dict[str, object]) -> Filter:
    """Return the filter of a request for a list. Raises InvalidError that names the condition."""
    given = dict(fields["filter"] or {})
    for name in SHORT_FORMS:
        if fields.get(name) is not None:
            if given.get(name) is not None:
                raise InvalidError(f"{name} is in the filter too", field=name)
            given[name] = fields[name]
    return parse_filter(given)


def only_running(wanted: Filter) -> bool:
    """Tell whether memory alone knows the jobs in question: the store records running ones as queued."""
    return wanted.states == {RUNNING}


def matching(desk: Desk, wanted: Filter, before: int | None, limit: int) -> tuple[list[Job], int | None]:
    """Return up to `limit` jobs that fit, newest first, and the id to go on before, None: there are no more. May switch.

    Bounded in time: a page may be short, or empty, and still have a next one.
    """
    if only_running(wanted):
        return views.running_page(desk.engine, wanted, before, limit, desk.breathe_if_due)
    desk.wait_for_commit(5.0)
    rows, following = desk.read(lambda reader: reader.page(wanted, before=before, limit=limit))
    # Memory may know better than the rows; what was looked for as text it may not have at hand, and how a row failed is no news.
    of_rows = wanted._replace(fingerprint=None)
    jobs: list[Job] = []
    for row in rows:
        job = desk.in_memory(row.id) or row
        if job.damage is not None or (of_rows if job is row else wanted).fits(job, looks_for_text=False):
            jobs.append(job)
        if wanted.fingerprint is not None:
            desk.breathe_if_due()  # a hostile text takes half a millisecond
    return jobs, following
