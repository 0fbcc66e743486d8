"""Lists that only grow: newest first, read a bounded piece at a time however many rows there are.

Nothing is counted. One statement finds the keys of up to `MOST_ROWS` rows, and a page is read by its keys.
What no index can answer (a filter, part of a subject) looks at the newest `SEARCHED` rows alone; the page
says how far back that was, and leads on from there.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from django.contrib.admin import ModelAdmin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import InvalidPage, Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.dateparse import parse_datetime

MOST_ROWS = 1_000
"""So many rows are paged through; then `before` leads on to older ones."""
SEARCHED = 30_000
BEFORE = "before"


class FewPaginator(Paginator):
    """Counts no further than `MOST_ROWS`, and pages no further. `is_cut` says that there are more."""

    @cached_property
    def _known(self) -> int:
        return self.object_list.order_by().values("pk")[: MOST_ROWS + 1].count()

    @property
    def count(self) -> int:  # type: ignore[override]
        return min(self._known, MOST_ROWS)

    @property
    def is_cut(self) -> bool:
        return self._known > MOST_ROWS


class KeyPaginator(Paginator):
    """Pages of `rows` by the keys of the first `MOST_ROWS` of `found`. `is_cut` says that there are more."""

    def __init__(self, found: QuerySet[Any], rows: QuerySet[Any], per_page: int) -> None:
        super().__init__(rows.order_by(*found.query.order_by), per_page)
        names = [name.removeprefix("-") for name in found.query.order_by]
        self._rows = list(found.values_list(*names)[: MOST_ROWS + 1])
        self._key = names.index("pk")

    @property
    def count(self) -> int:  # type: ignore[override]
        return min(len(self._rows), MOST_ROWS)

    @property
    def is_cut(self) -> bool:
        return len(self._rows) > MOST_ROWS

    @property
    def last(self) -> tuple[Any, ...]:
        """What the last row is ordered by."""
        return self._rows[self.count - 1]

    def page(self, number: Any) -> Any:
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        keys = [row[self._key] for row in self._rows[start : min(start + self.per_page, MOST_ROWS)]]
        return self._get_page(self.object_list.filter(pk__in=keys), number, self)


class NewestList(ChangeList):
    """The list of a `NewestAdmin`. `further_url` leads to what it did not look at, "" where it saw all."""

    searched_back_to: datetime | None = None

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[str]:
        return [f"-{name}" for name in self.model_admin.newest]

    def get_filters_params(self, params: Any = None) -> Any:
        kept = super().get_filters_params(params)
        kept.pop(BEFORE, None)
        return kept

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        before = self._before()
        if before:
            rows = rows.filter(older_than(self.model_admin.newest, before))
        if self.query and (named := self.model_admin.named_by(self.query)):
            return rows.filter(pk__in=named)
        if self.query or self.has_active_filters:
            rows = self._searched(rows, before[0] if before else None)
        for word in self.query.split():
            rows = rows.filter(self.model_admin.mentioning(word))
        return rows

    def _searched(self, rows: QuerySet[Any], before: Any) -> QuerySet[Any]:
        self.searched_back_to = self.model_admin.edge(before)
        if self.searched_back_to is None:
            return rows
        return rows.filter(**{f"{self.model_admin.newest[0]}__gte": self.searched_back_to})

    def get_results(self, request: HttpRequest) -> None:
        rows = self.apply_select_related(self.root_queryset)
        self.paginator = KeyPaginator(self.queryset, rows, self.list_per_page)
        self.result_count = self.paginator.count
        self.show_full_result_count, self.full_result_count = False, None
        self.show_admin_actions = True
        self.can_show_all = False
        self.multi_page = self.result_count > self.list_per_page
        try:
            self.result_list = self.paginator.page(self.page_num).object_list
        except InvalidPage:
            raise IncorrectLookupParameters from None

    @property
    def further_url(self) -> str:
        if self.paginator.is_cut:
            return self._url_before(self.paginator.last)
        return self._url_before([self.searched_back_to]) if self.searched_back_to else ""

    def _url_before(self, values: Sequence[Any]) -> str:
        text = "~".join(value.isoformat() if isinstance(value, datetime) else str(value) for value in values)
        return self.get_query_string({BEFORE: text}, remove=[PAGE_VAR])

    def _before(self) -> list[Any]:
        """What the last row of the page before was ordered by, as the address says; [] at the beginning."""
        given = str(self.params.get(BEFORE, "")).split("~")
        if given == [""]:
            return []
        try:
            return [
                self._read(name, text) for name, text in zip(self.model_admin.newest, given, strict=False)
            ]
        except (ValueError, ValidationError):
            raise IncorrectLookupParameters from None

    def _read(self, name: str, text: str) -> Any:
        if name.endswith(("timestamp", "_at")):
            moment = parse_datetime(text)
            if moment is None or moment.tzinfo is None:
                raise ValueError(text)
            return moment
        return self.model._meta.pk.to_python(text) if name == "pk" else int(text)


def older_than(order: Sequence[str], values: Sequence[Any]) -> Q:
    """The rows after `values`, in the descending order of the fields `order`; the first few may do."""
    later = Q()
    for position, value in enumerate(values):
        same = dict(zip(order, values[:position], strict=False))
        later |= Q(**same, **{f"{order[position]}__lt": value})
    # Implied, and what an index can begin with.
    return Q(**{f"{order[0]}__lte": values[0]}) & later


class NewestAdmin(ModelAdmin):
    """Rows in the descending order of the fields `newest`, which is the only one."""

    newest: Sequence[str] = ("pk",)
    sortable_by = ()
    list_per_page = 50

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[ChangeList]:
        return NewestList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """All: the list itself knows how far it may look."""
        return queryset, False

    def edge(self, before: Any) -> Any:
        """Up to where the `SEARCHED` newest rows (until `before`) reach; None where they are all."""
        field = self.newest[0]
        rows = self.model._default_manager.order_by(f"-{field}")
        rows = rows if before is None else rows.filter(**{f"{field}__lte": before})
        return rows.values_list(field, flat=True)[SEARCHED : SEARCHED + 1].first()

    def mentioning(self, word: str) -> Q:
        """Rows with `word` in what is searched for parts."""
        return Q()

    def named_by(self, term: str) -> Collection[Any]:
        """Keys of the rows that `term` names by something whole and indexed."""
        return ()
