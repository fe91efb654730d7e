"""The pool of replicas: order, losses, shards that take every replica with them, replicas that never come."""

import socket
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from fake_pool import Do, Ends, Nodes, Rooms, wait_for
from hneurons.cluster.onray import check_address, connected, reason, share_out
from hneurons.cluster.pool import LostError
from hneurons.cluster.replica import ReplicaMemoryError
from hneurons.errors import ClusterError, MissingExtraError, NumericError, UsageError
from hneurons.parallel import in_order


def say_number(name: str) -> Do:
    return Do(name, lambda number: f"{name} by {number}")


def results(futures: Any) -> list[Any]:
    return [future.result(20)[0] for future in futures]


def test_results_come_in_order_whoever_is_first():
    second_done = threading.Event()
    slow = Do("slow", lambda _: second_done.wait(20) and "slow")
    quick = Do("quick", lambda _: second_done.set() or "quick")
    with Nodes().pool(2) as pool:
        assert [value for value, _ in in_order(pool.submit, [slow, quick], 2)] == ["slow", "quick"]


def test_replicas_share_the_work():
    both = threading.Barrier(2)
    with Nodes().pool(2) as pool:
        found = results([pool.submit(Do(str(i), lambda number: both.wait(20) * 0 + number)) for i in range(2)])
    assert sorted(found) == [0, 1]


def test_a_lost_replica_costs_only_its_shard():
    nodes, times = Nodes(), [0] * 6

    def work(shard: int, number: int) -> str:
        times[shard] += 1
        if shard == 2 and times[2] == 1:
            raise Ends("node 7 died")
        return f"shard {shard}"

    with nodes.pool(2) as pool:
        shards = [Do(f"shard {i}", lambda number, i=i: work(i, number)) for i in range(6)]
        assert results([pool.submit(shard) for shard in shards]) == [f"shard {i}" for i in range(6)]
        assert (pool.done, pool.lost) == (6, 1)
    assert times == [1, 1, 2, 1, 1, 1]
    (line,) = [line for line in nodes.said if line.startswith("Lost")]
    assert "node 7 died" in line
    assert "done again: shard 2" in line


def test_another_replica_takes_the_place_of_a_lost_one():
    nodes, first = Nodes(), iter([True])

    def work(number: int) -> int:
        if next(first, False):
            raise Ends("gone")
        return number

    with nodes.pool(1) as pool:
        assert pool.submit(Do("a", work)).result(20)[0] == 1
    assert len(nodes.started) == 2


def test_a_shard_that_ends_every_replica_it_meets_is_given_up():
    nodes = Nodes()

    def poison(number: int) -> None:
        raise Ends("killed by signal 9")

    with nodes.pool(2) as pool:
        bad, good = pool.submit(Do("the long one", poison)), pool.submit(say_number("good"))
        with pytest.raises(ClusterError, match=r"3 replicas in a row were lost over the long one \(killed by signal 9"):
            bad.result(20)
        assert good.result(20)[0].startswith("good")
        assert pool.submit(say_number("later")).result(20)[0].startswith("later")
    assert sum("the long one" in worker.shards for worker in nodes.started) == 3


def test_replicas_lost_while_idle_are_no_fault_of_the_next_shard():
    nodes = Nodes(loads=lambda number: number < 5)  # and nobody takes the place of those
    with nodes.pool(5) as pool:
        all_here, go = threading.Barrier(5), threading.Event()
        futures = [pool.submit(Do(str(i), lambda number: all_here.wait(20) * 0 + number)) for i in range(5)]
        members = dict(future.result(20) for future in futures)
        busy = pool.submit(Do("busy", lambda _: go.wait(20)), members[4])
        for worker in nodes.started[:4]:
            worker.ended.set()
        shard = pool.submit(say_number("shard"), members[0])
        wait_for(lambda: pool.lost == 4 or shard.done())  # it meets one after the other
        assert not shard.done(), shard.exception()
        go.set()
        assert results([busy, shard]) == [True, "shard by 4"]
    assert not any("done again" in line for line in nodes.said)


def test_what_a_shard_raises_comes_back_and_costs_no_replica():
    def fail(number: int) -> None:
        raise NumericError("NaN in layer 3.", "Load it otherwise.")

    nodes = Nodes()
    with nodes.pool(1) as pool:
        with pytest.raises(NumericError, match="NaN in layer 3"):
            pool.submit(Do("bad", fail)).result(20)
        assert pool.submit(say_number("next")).result(20)[0] == "next by 0"
    assert len(nodes.started) == 1


def test_a_shard_goes_where_its_prefill_is_and_elsewhere_once_that_is_lost():
    nodes = Nodes()
    with nodes.pool(3) as pool:
        _, home = pool.submit(say_number("first")).result(20)
        names = {pool.submit(say_number("again"), home).result(20) for _ in range(20)}
        assert len(names) == 1
        assert names.pop()[1] == home

        def end(number: int) -> None:
            raise Ends("gone") if once.pop() else AssertionError

        once = [False, True]
        with pytest.raises(AssertionError):
            pool.submit(Do("end", end), home).result(20)
        assert pool.submit(say_number("after"), home).result(20)[1] != home


def test_a_shard_waits_for_the_busy_replica_that_has_its_prefill():
    go, nodes = threading.Event(), Nodes()
    with nodes.pool(2) as pool:
        _, home = pool.submit(say_number("first")).result(20)
        busy = pool.submit(Do("busy", lambda _: go.wait(20)), home)
        waiting = pool.submit(say_number("waiting"), home)
        assert pool.submit(say_number("free")).result(20)[1] != home
        assert not waiting.done()
        go.set()
        assert busy.result(20)[1] == waiting.result(20)[1] == home


# -- replicas that don't start ------------------------------------------------------------------------


def refuse(*numbers: int):
    def loads(number: int) -> None:
        if number in numbers:
            raise ClusterError(f"Node {number} has no model.", "Put it there.")

    return loads


def test_one_that_cant_load_is_left_out():
    nodes = Nodes(loads=refuse(0))
    with nodes.pool(2) as pool:
        assert results([pool.submit(say_number(str(i))) for i in range(4)])
        assert pool.about().node == "node1"
        wait_for(lambda: "Going on with a replica less: Node 0 has no model. Put it there." in nodes.said)


def test_a_replica_in_place_of_a_lost_one_does_not_go_where_the_model_cant_be_loaded():
    """Node A has no model. When B's replica is lost, A is the first with room, if the one that failed has left it."""
    nodes, once = Rooms("AB", unfit="A"), [True]

    def work(number: int) -> str:
        if once and once.pop():
            raise Ends("killed")
        return nodes.at[number]

    with nodes.pool(2) as pool:
        wait_for(lambda: any("replica less" in line for line in nodes.said))
        assert pool.submit(Do("a", work)).result(20)[0] == "B"
        assert (pool.lost, len(nodes.started)) == (1, 3)
        assert sorted(nodes.at.values()) == ["A", "B"]
    assert nodes.free == ["A", "B"]


def test_one_that_ran_out_of_memory_while_loading_gives_it_back():
    """The others of its node need what it holds."""

    def load(number: int) -> bool:
        if number == 0:
            raise ReplicaMemoryError("Loading on node 0 ran out of memory.", "Fewer replicas.")
        return True

    nodes = Nodes(loads=load)
    with nodes.pool(2) as pool:
        assert results([pool.submit(say_number("a"))])
        wait_for(nodes.started[0].ended.is_set)
        assert len(nodes.started) == 2


def test_one_that_finds_no_room_holds_none():
    nodes = Nodes(loads=lambda _: False)
    with nodes.pool(2, patience=0.0) as pool:
        with pytest.raises(ClusterError, match="No replica found room"):
            pool.about()
        wait_for(lambda: all(worker.ended.is_set() for worker in nodes.started))


def test_none_that_can_load_is_an_error_for_all_that_wait_and_come():
    with Nodes(loads=refuse(0, 1)).pool(2) as pool:
        waiting = pool.submit(say_number("a"))
        for wanted in (lambda: waiting.result(20), pool.about, lambda: pool.submit(say_number("b")).result(20)):
            with pytest.raises(ClusterError, match="has no model"):
                wanted()


def test_lost_again_and_again_while_loading():
    def loads(number: int) -> None:
        raise LostError("the node ran out of memory")

    nodes = Nodes(loads=loads)
    with nodes.pool(1) as pool, pytest.raises(ClusterError, match=r"3 replicas in a row .* ran out of memory.*--repl"):
        pool.about()
    assert len(nodes.started) == 3
    assert all(worker.ended.is_set() for worker in nodes.started)


def test_no_room_on_any_node_is_an_error_after_a_while():
    with (
        Nodes(loads=lambda _: False).pool(2, patience=0.0) as pool,
        pytest.raises(ClusterError, match=r"No replica found room within 0 seconds.*ray status"),
    ):
        pool.submit(say_number("a")).result(20)


def test_a_model_that_loads_for_long_is_waited_for():
    left = iter(["slowly"] * 30)
    with Nodes(loads=lambda _: next(left, True)).pool(1, patience=0.0) as pool:
        assert pool.submit(say_number("a")).result(20)


def test_one_replica_is_enough_while_others_wait_for_room():
    alive, asked = threading.Event(), threading.Semaphore(0)

    def loads(number: int) -> bool:
        if number:
            alive.wait(20)
            asked.release()
        return number == 0

    nodes = Nodes(loads=loads)
    with nodes.pool(3, patience=0.0) as pool:
        pool.about()
        alive.set()
        for _ in range(20):  # they are asked again and again, and none gives up
            assert asked.acquire(timeout=20)
        assert results([pool.submit(say_number(str(i))) for i in range(5)]) == [f"{i} by 0" for i in range(5)]
    assert nodes.said == ["A replica is ready on node0: 1 of 3."]


def test_leaving_stops_every_replica_and_wakes_whoever_waits():
    nodes, inside = Nodes(loads=lambda number: number == 0), threading.Event()
    with nodes.pool(2) as pool:

        def hang(number: int) -> None:
            inside.set()
            nodes.started[0].ended.wait(20)
            raise Ends("stopped")

        running, queued = pool.submit(Do("hang", hang)), pool.submit(say_number("never"))
        assert inside.wait(20)
    assert all(worker.ended.is_set() for worker in nodes.started)
    for future in (running, queued, pool.submit(say_number("late"))):
        with pytest.raises(ClusterError, match="was left"):
            future.result(20)
    assert not [thread for thread in pool._threads if thread.is_alive()]


# -- shares of a cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "expected"),
    [
        ([{"CPU": 8.0}, {"CPU": 8.0}], None, None, (2, 8, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}, {}], None, None, (2, 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 4, None, (4, 4, 0)),
        ([{"CPU": 2.0}], 5, None, (5, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 3, None, (3, 4, 0)),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 5, None, (5, 2, 0)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 2.0}, {"CPU": 9.0}], None, None, (6, 1, 1)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 3.0}], None, 2.0, (3, 1, 2)),
        ([{"CPU": 8.0, "GPU": 4.0}], None, 0.0, (1, 8, 0)),
        ([{"CPU": 8.0, "GPU": 1.0}], None, 0.5, (2, 1, 0.5)),
        ([{"CPU": 8.0, "GPU": 1.0}], 3, None, (3, 1, 1)),
        ([{"CPU": 8.0, "GPU": 1.0}], None, 0.2, (5, 1, 0.2)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], None, 0.1, (30, 1, 0.1)),
        ([{"CPU": 8.0, "GPU": 3.0}], None, 0.4, (6, 1, 0.4)),  # two a GPU: none has its 0.4 on two
        ([{"CPU": 8.0, "GPU": 7.0}], None, 3, (2, 1, 3)),
    ],
)
def test_shares(
    nodes: list[dict[str, float]], replicas: int | None, gpus: float | None, expected: tuple[int, int, float]
):
    share = share_out(nodes, replicas, gpus)
    assert (share.replicas, share.cpus, share.gpus) == expected


def test_no_node_with_room_for_a_replica():
    with pytest.raises(ClusterError, match=r"has 2 GPUs. Give --replica-gpus"):
        share_out([{"CPU": 8.0, "GPU": 1.0}], None, 2.0)
    with pytest.raises(UsageError, match=r"can't have 1.5 GPUs. Give --replica-gpus a whole number"):
        share_out([{"CPU": 8.0, "GPU": 2.0}], None, 1.5)
    with pytest.raises(ClusterError, match="offers a CPU"):
        share_out([{"memory": 1.0}], None, None)


# -- addresses ----------------------------------------------------------------------------------------


@pytest.fixture
def ray_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that finds no cluster on this machine; others it is never asked for."""

    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(address: str, **_: Any) -> None:
            assert address == "auto"
            raise ConnectionError("Could not find any running Ray instance.\nPlease specify one.")

    monkeypatch.setattr("hneurons.cluster.onray.need", lambda package, extra: Ray)


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "host:port", "http://a/b", "http://host:80"])
@pytest.mark.usefixtures("ray_or_not")
def test_what_is_no_address(address: str):
    with pytest.raises(UsageError, match="is no address of a cluster"), connected(address):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379", "localhost:99999"])
@pytest.mark.usefixtures("ray_or_not")
def test_an_address_where_nothing_answers(address: str):
    with pytest.raises(ClusterError, match=r"Nothing answers at .*ray start --head"), connected(address):
        pass


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
@pytest.mark.usefixtures("ray_or_not")
def test_an_address_where_something_else_answers(says: bytes):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line, suppress(OSError):  # the other end may hang up first
                line.sendall(says)
                line.shutdown(socket.SHUT_WR)
                while line.recv(1000):
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"What answers at {address} is no Ray cluster"), connected(address):
            pass
        thread.join(20)


@pytest.mark.usefixtures("ray_or_not")
def test_an_address_that_takes_a_connection_and_says_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hneurons.cluster.onray.ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"Nothing answers at {address} .*timed out"), connected(address):
            pass


@pytest.mark.usefixtures("ray_or_not")
def test_no_cluster_on_this_machine():
    with (
        pytest.raises(ClusterError, match=r"no Ray cluster to work with at 'auto'.*instance. Please"),
        connected("auto"),
    ):
        pass


@pytest.mark.parametrize(
    ("found", "match"),
    [
        ("127.0.0.1:1", r"Nothing answers at 127.0.0.1:1 .*ray start --head"),  # of a head that was killed
        (
            ConnectionError("Could not find any running Ray instance."),
            r"no Ray cluster to work with at 'auto'.*instance",
        ),
        (ValueError("Invalid address format: head"), r"no Ray cluster to work with at 'auto'.*Invalid address"),
    ],
)
def test_auto_is_looked_up_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, found: Any, match: str):
    services = SimpleNamespace(canonicalize_bootstrap_address_or_die=Mock(side_effect=[found]))
    ray = SimpleNamespace(_private=SimpleNamespace(services=services))
    monkeypatch.setattr("hneurons.cluster.onray.need", lambda package, extra: ray)
    with pytest.raises(ClusterError, match=match):
        check_address("auto")


def test_without_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hneurons\[ray\]'"), connected("auto"):
        pass


def test_the_reason_of_a_loss_is_one_line():
    text = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: _Actor\n\tactor_id: 7b\n"
        "The actor died because its node has died. Node Id: abc\n\tthe actor's node was terminated"
    )
    assert reason(RuntimeError(text)) == "The actor died because its node has died. Node Id: abc"
    assert reason(RuntimeError("Something.")) == "Something"
    assert reason(RuntimeError()) == "RuntimeError"
