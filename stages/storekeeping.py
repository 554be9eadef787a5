"""`store:verify`, `store:gc`, `store:info`: the store's own tasks, shown to people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cache.errors import IntegrityError

if TYPE_CHECKING:
    from stages.tasks import Session


def verify(session: Session) -> Callable[..., None]:
    """Re-hash everything."""
    def run(repair: bool = False, as_json: bool = False) -> None:
        from cache.verify import verify as verify_store
        from stages.commands import show
        from stages.report import size_text

        store = session.project.store

        def progress(done: int, total: int) -> None:
            session.check_cancelled()
            session.report.progress("store", "verify", done, total)

        report = verify_store(store, repair=repair, progress=progress)
        session.report.line_break()
        lines = [f"  {finding.kind:<8} {finding.name}: {finding.problem}"
                 + (f" (needed by {', '.join(finding.needed_by)})" if finding.needed_by else "")
                 for finding in report.findings]
        damaged = [finding for finding in report.findings if finding.kind != "dangling"]
        verdict = f"{len(damaged)} damaged" if damaged else "all as they should be"
        if damaged and repair:
            verdict += ", dropped: the next build makes or fetches them again"
        lines.append(f"{report.blobs} blobs, {size_text(report.size)}: {verdict}")
        show({"blobs": report.blobs, "size": report.size, "repaired": repair,
              "findings": [vars(finding) for finding in report.findings]}, "\n".join(lines), as_json)
        if damaged and not repair:
            raise IntegrityError(f"{len(damaged)} things in the store are damaged", where=str(store.root),
                                 cure="./doit store:verify --repair")

    return run


def collect(session: Session) -> Callable[..., None]:
    """Remove what no root needs."""
    def run(dry_run: bool = False, keep_days: int = -1, max_size: int = -1, drop_inputs: bool = False,
            as_json: bool = False) -> None:
        from cache.gc import collect as collect_store
        from stages.commands import show
        from stages.report import size_text

        report = collect_store(session.project.store, dry_run=dry_run, keep_days=keep_days if keep_days >= 0 else None,
                               max_size=max_size * 10**9 if max_size >= 0 else None, keep_inputs=not drop_inputs)
        lines = [f"  {item.kind:<8} {item.name[:40]:<40} {size_text(item.size):>7}  {item.why}"
                 for item in report.removed if item.size or item.kind != "lock"]
        lines.append(f"{'would free' if dry_run else 'freed'} {size_text(report.freed)}; "
                     f"{size_text(report.kept)} kept by {', '.join(report.roots) or 'nothing'}")
        show({"dry_run": dry_run, "freed": report.freed, "kept": report.kept, "roots": list(report.roots),
              "removed": [vars(item) for item in report.removed]}, "\n".join(lines), as_json)

    return run


def info(session: Session) -> Callable[..., None]:
    """Sizes, roots, ledger."""
    def run(as_json: bool = False) -> None:
        from cache.verify import info as store_info
        from stages.commands import show
        from stages.report import size_text

        store = session.project.store
        found = store_info(store)
        ledger = store.ledger()
        lines = [f"store     {store.root}"]
        shares = {**found.blobs, **found.parts}
        lines += [f"{kind:<9} {share.count:>6}  {size_text(share.size):>7}" for kind, share in shares.items()]
        lines += [f"root      {name}: {content.get('link', '')}" for name, content in store.roots().items()]
        lines += [f"NOT DETERMINISTIC: {entry['key']} gave {entry['kept']} and {entry['other']}" for entry in ledger]
        show({"store": str(store.root), "kinds": {kind: vars(share) for kind, share in shares.items()},
              "roots": store.roots(), "ledger": ledger}, "\n".join(lines), as_json)

    return run
