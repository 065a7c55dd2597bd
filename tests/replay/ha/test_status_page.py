"""The status page of real members, in a real browser; and the figures on it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, why_no_browser
from fault_rig import require
from member_cluster import PATIENCE, Cluster, put

from holdfast import backup
from holdfast.engine import MemoryEngine
from holdfast.engine.store.settings import Settings
from holdfast.replay import Member
from holdfast.replay.testing.members import until

PHONE = 390
TTL = 2.0


def start(root: Path, name: str, **more: Any) -> Member[Any, Any]:
    return Member.open(root / name, MemoryEngine, cluster="social", name=name, listen="127.0.0.1:0", ttl=TTL,
                       coordinator=f"file:{root / 'co'}", settings=Settings(wait_s=5), **more)


@pytest.fixture
def members(tmp_path: Path) -> Iterator[dict[str, Member[Any, Any]]]:
    with ExitStack() as stack:
        made = {}
        for name in "abc":
            made[name] = stack.enter_context(start(tmp_path, name, create=name == "a"))
            made[name].wait_ready(PATIENCE)
        until(lambda: len(made["a"].status()["voters"]) == 3 and "c" in made["a"].status()["acked"])
        yield made


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    require("browser", why_no_browser())
    profile = tmp_path / "profile"
    profile.mkdir()
    with Browser(profile) as made:
        yield made


def fetch(member: Member[Any, Any], path: str = "/ha") -> str:
    with urllib.request.urlopen(f"http://{member.address}{path}", timeout=10) as answer:
        return str(answer.read(), "utf-8")


def rows(browser: Browser, heading: str) -> list[dict[str, str]]:
    """The rows of the table below a heading: what each cell says, by what it is."""
    found = browser.evaluate(
        f"""[...[...document.querySelectorAll('h2')].find(h => h.innerText == '{heading}').nextElementSibling
        .querySelectorAll('tr')].slice(1).map(row => Object.fromEntries([['class', row.className],
        ...[...row.cells].map(cell => [cell.dataset.is, cell.innerText])]))""")
    return [dict(row) for row in found]


def test_the_page_in_a_browser(members: dict[str, Member[Any, Any]], browser: Browser, tmp_path: Path) -> None:
    a, b, c = members.values()
    for number in range(20):
        with a.transaction(ack="all") as tx:
            tx.put(b"%d" % number, bytes(1000))
    report = backup.run(f"ha://{a.address},{b.address},{c.address}", tmp_path / "target")
    until(lambda: all([s.position.txid for s in m.store.log.slots.list()] == [report.to_txid] for m in (a, b, c)))
    until(lambda: all(set(m._running().lags()) == {"b", "c"} for m in (a, b, c)))
    browser.screen(PHONE, 844, phone=True)
    for member in (a, b):
        browser.open(f"http://{member.address}/ha")
        text = browser.text()
        assert "Holdfast cluster social" in text
        assert f"{member.name} is {member.role}. It shows everything up to transaction {tx.txid}." in text
        assert f"Epoch {a.status()['epoch']}, floor quorum, lease 2 s." in text
        shown = rows(browser, "Members")
        assert [row["name"] for row in shown] == ["a", "b", "c"]
        assert [row["part"] for row in shown] == ["primary", "voter", "voter"]
        assert [row["class"] for row in shown] == ["primary", "", ""]
        assert [row["lag"] for row in shown] == ["", "none", "none"]
        assert [row["address"] for row in shown] == [a.address, b.address, c.address]
        [slot] = rows(browser, "Backups")
        assert slot["up to"] == f"transaction {report.to_txid}"
        assert f"backup to {tmp_path / 'target'} on " in slot["backup"]
        assert " s ago" in slot["last run"]
        [change] = rows(browser, "Changes of primary")
        assert (change["epoch"], change["primary"], change["why"]) == ("1", "a", "there was none")
        # Nothing is wider than the screen, long addresses and paths neither.
        assert browser.evaluate("innerWidth") == browser.evaluate("document.documentElement.scrollWidth") == PHONE
        browser.screenshot(tmp_path / f"phone-{member.name}.png")
    browser.screen(1000, 700, phone=False)
    browser.open(f"http://{a.address}/ha")
    browser.screenshot(tmp_path / "desktop.png")
    assert browser.evaluate("document.documentElement.scrollWidth") == 1000

    # It refreshes itself, and shows that a member is gone.
    c.close()
    last = [put(a, b"more") for _ in range(7)][-1]
    until(lambda: f"up to transaction {last}." in browser.text(), 20)
    until(lambda: "silent for" in rows(browser, "Members")[2]["lag"], 20)
    assert rows(browser, "Members")[2]["lag"].startswith("7 transactions, ")
    assert rows(browser, "Members")[1]["lag"] == "none"
    assert rows(browser, "Backups")[0]["up to"] == f"transaction {report.to_txid}, 7 since"


def test_a_member_without_a_document_says_what_it_waits_for(tmp_path: Path, browser: Browser) -> None:
    with start(tmp_path, "b") as b:
        until(lambda: b.status()["waits_for"] == "somebody who begins the cluster")
        browser.open(f"http://{b.address}/ha")
        assert "b is joining.\nIt waits for somebody who begins the cluster." in browser.text().replace("\n\n", "\n")
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(b, "/health")
        assert refused.value.code == 503
        assert b"somebody who begins the cluster" in refused.value.read()
        with start(tmp_path, "a", create=True) as a:
            a.wait_ready(PATIENCE)
            b.wait_ready(PATIENCE)
            until(lambda: "b is follower." in browser.text(), 20)  # the page that was open has refreshed itself


def test_lag_is_known_in_transactions_bytes_and_seconds(cluster: Cluster) -> None:
    """On the primary, by what it has logged since it began and by its log's index; followers are told."""
    a, b, _ = cluster.three()
    put(a, b"0", ack="all")
    assert a._running().lags()["c"].bytes == 0
    cluster.isolate("c")
    for _ in range(30):
        with a.transaction() as tx:
            tx.put(b"k", bytes(10_000))
    node = a._running()
    until(lambda: node.lags()["b"].transactions == 0 and node.lags()["c"].seconds > 0.5)
    lag = node.lags()["c"]
    assert lag.transactions == 30
    assert 300_000 <= lag.bytes <= 310_000
    assert lag.silent >= lag.seconds - 0.1
    until(lambda: b._running().lags()["c"].transactions == 30)
    metrics = a._answers().metrics().splitlines()
    assert 'holdfast_follower_lag_transactions{member="c"} 30' in metrics
    assert f'holdfast_follower_lag_bytes{{member="c"}} {lag.bytes}' in metrics
    assert 'holdfast_follower_lag_bytes{member="b"} 0' in metrics
    assert any(line.startswith('holdfast_follower_lag_seconds{member="c"} 0.') for line in metrics)
    assert "holdfast_follower_lag_bytes{" not in b._answers().metrics()
    assert "not heard in this epoch" not in str(a._answers().page(), "utf-8")

    # Another primary knows nothing of c before it hears it.
    a.switch_over("b")
    until(lambda: b.role == "primary" and "a" in b._running().lags())
    assert "not heard in this epoch" in str(b._answers().page(), "utf-8")
    cluster.mend()
    until(lambda: b._running().lags().get("c", (1,))[0] == 0)
    assert b._running().lags()["c"].bytes == 0
