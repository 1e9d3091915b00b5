"""What `meshnode plan` is told."""

from collections.abc import Sequence
from dataclasses import replace as changed
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2p_mesh.core.costs import PROCESS
from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.plans import Stage, Topology, Wanted
from p2p_mesh.core.records import Announcement, ModelFile, Resources, ServedModel, Shard
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.node.plan import Planner, flash_here, whole_here
from p2p_mesh.serve.backend import Fit, Load, Package, Refusal
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.models import Shape, write_model

MB = 10**6
ME, BOB, CAROL, DAVE = map(PeerId, ("me", "bob", "carol", "dave"))
SHAPE = Shape(layers=4)


class Whole(Echo):
    """Serves alone what it is told to."""

    name = "whole"

    def __init__(self, found: Fit | Refusal) -> None:
        super().__init__()
        self.found = found

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        return self.found


FITS = Whole(Fit(context=512, slots=2, memory_bytes=9))
TOO_LARGE = Whole(Refusal("it is too large.", "Add memory."))


def resources(free: int = 200 * MB, bandwidth: float = 0.0) -> Resources:
    return Resources(memory_total=200 * MB, memory_free=free, threads=1, bandwidth=bandwidth)


def announced(name: str, **changes: Any) -> Announcement:
    values: dict[str, Any] = {
        "sequence": (1, 1), "issued_at": 0.0, "lifetime": 60.0, "name": name, "version": "1",
        "resources": resources(), "backends": ("llama_cpp", "skippy"),
    }  # fmt: skip
    return Announcement(**values | changes)


class Mesh:
    """What a planner asks of the port."""

    def __init__(self, folder: Path, free: int = 200 * MB) -> None:
        self.packages = Packages(folder / "packages", Digests(folder / "digests.json"))
        self.free = free
        self.is_up = True

    def me(self) -> PeerId:
        if not self.is_up:
            raise Unavailable("this node is not connected yet")
        return ME

    def resources(self) -> Resources:
        return resources(self.free, 1e9)

    def round_trip(self, peer: PeerId) -> float | None:
        return {BOB: 0.002, CAROL: 0.2}.get(peer)

    async def package(self, wanted: ModelFile) -> Package:
        found: Any = await self.packages.opened(wanted.path)
        return found  # type: ignore[no-any-return]


class Case:
    """A node of which a plan is asked."""

    def __init__(
        self, folder: Path, *, backends: Sequence[Echo] = (TOO_LARGE,), **shape: Any
    ) -> None:
        self.model = write_model(folder / "m.gguf", shape=SHAPE, **shape)
        self.mesh = Mesh(folder)
        self.load = Load(self.model)
        self.inventory = Inventory()
        self.clients: dict[PeerId, Any] = {}
        self.hear(ME, announced("alice"))
        mesh: Any = self.mesh
        self.skippy = Whole(Fit(512, 4, 0, choice="stages"))
        self.skippy.name = "skippy"
        self.planner = Planner(
            mesh, self.inventory, [*backends, self.skippy], name="alice", find=self._find,
            role=lambda: None, connected=lambda: self.clients, is_away=self.inventory.is_suspect,
        )  # fmt: skip

    async def _find(self, reference: str) -> Load:
        if reference != "m":
            raise ModelError(f"there is no model {reference}")
        return self.load

    def hear(self, peer: PeerId, announcement: Announcement) -> None:
        self.inventory.apply(Offer(peer, announcement, peer.encode(), 60.0))

    async def plan(self, **wanted: Any) -> dict[str, Any]:
        return await self.planner.plan(Wanted(model="m", **wanted))


async def test_plan_compares_whole_and_stages(tmp_path: Path) -> None:
    case = Case(tmp_path, backends=[FITS])
    case.hear(BOB, announced("bob"))
    found = await case.plan()
    assert (found["model"], found["choice"]) == ("m", "whole")
    assert found["size_bytes"] == case.model.size_bytes
    whole = found["whole"]
    assert (whole["fits"], whole["backend"], whole["context"], whole["slots"]) == (
        True, "whole", 512, 2,
    )  # fmt: skip
    assert whole["tokens_per_second"] > 1000
    stages = found["stages"]
    assert stages["fits"]
    assert [one["name"] for one in stages["stages"]] == ["alice", "bob"]
    assert [one["layer_end"] for one in stages["stages"]][-1] == 4
    assert stages["delay_ms"] > 2
    assert stages["stages"][1]["round_trip_ms"] == 2
    assert stages["tokens_per_second"] < whole["tokens_per_second"]


@pytest.mark.parametrize("asked", [True, None])
async def test_split_is_as_asked_or_as_the_node_is_set(tmp_path: Path, asked: bool | None) -> None:
    case = Case(tmp_path, backends=[FITS])
    case.hear(BOB, announced("bob"))
    case.load = changed(case.load, split=asked is None)
    assert (await case.plan(split=asked))["choice"] == "stages"
    assert (await case.plan(split=False))["choice"] == "whole"


async def test_context_and_slots_shrink_until_it_fits(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.hear(BOB, announced("bob"))
    roomy = (await case.plan())["stages"]
    assert (roomy["context"], roomy["slots"]) == (512, 4)
    asked = (await case.plan(context=64, slots=3))["stages"]
    assert (asked["context"], asked["slots"]) == (64, 3)
    small = (await case.plan(slots=1))["stages"]
    least = max(one["memory_bytes"] for one in small["stages"])
    case.mesh.free = least
    case.hear(BOB, announced("bob", sequence=(1, 2), resources=resources(least)))
    tight = (await case.plan())["stages"]
    assert tight["fits"]
    assert tight["slots"] == 1


async def test_who_is_left_out_is_told_why(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.hear(BOB, announced("bob"))
    case.hear(CAROL, announced("carol"))
    case.hear(DAVE, announced("dave"))
    case.inventory.suspect(DAVE)
    case.clients = {
        PeerId("eve"): SimpleNamespace(role="client"), BOB: SimpleNamespace(role="member"),
        PeerId("new"): SimpleNamespace(role="member"),
    }  # fmt: skip
    found = (await case.plan())["stages"]
    reasons = {one["node"]: one["reason"] for one in found["excluded"]}
    assert set(reasons) == {"carol", "dave", "eve"}
    assert "200 ms" in reasons["carol"]
    assert (await case.plan(most_round_trip=0.5))["stages"]["spare"] == [
        {"node": "carol", "name": "carol"}
    ]


async def test_what_is_missing_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.mesh.free = PROCESS // 2
    found = await case.plan(split=True)
    assert found["choice"] is None
    assert found["whole"] == {"fits": False, "reason": "it is too large. Add memory."}
    assert not found["stages"]["fits"]
    assert found["stages"]["missing_bytes"] > 0
    assert found["stages"]["excluded"][0]["name"] == "alice"


async def test_plan_that_is_saved_can_be_kept(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.hear(BOB, announced("bob"))
    saved = (await case.plan())["stages"]["plan"]
    pinned = Topology(
        model=saved["model"], manifest_sha256=saved["manifest_sha256"],
        stages=(
            Stage(node=PeerId("alice"), layer_start=0, layer_end=1),
            Stage(node=PeerId("bob"), layer_start=1, layer_end=4),
        ),
    )  # fmt: skip
    found = await case.plan(topology=pinned)
    assert found["choice"] == "stages"
    assert [one["layer_end"] for one in found["stages"]["stages"]] == [1, 4]
    assert found["stages"]["plan"]["stages"][1]["node"] == "bob"


async def test_family_that_is_not_cut_can_be_served_whole(tmp_path: Path) -> None:
    case = Case(tmp_path, backends=[FITS])

    async def package(wanted: ModelFile) -> Any:
        found = await case.mesh.packages.opened(wanted.path)
        strange = tmp_path / "strange.gguf"
        strange.write_bytes(found.metadata.read_bytes().replace(b"llama", b"lllll"))
        return SimpleNamespace(manifest=found.manifest, ref=found.ref, metadata=strange)

    case.mesh.package = package  # type: ignore[method-assign]
    found = await case.plan()
    assert found["choice"] == "whole"
    assert found["whole"]["tokens_per_second"] is None
    assert "lllll" in found["stages"]["reason"]


async def test_who_serves_it_already_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path)
    served = ServedModel(id=ModelId("m"), context=8, slots=1)
    case.hear(BOB, announced("bob", models=(served,)))
    case.hear(CAROL, announced("", models=(served,)))
    assert (await case.plan())["served_by"] == ["bob", "carol"]


async def test_who_serves_a_shard_does_not_serve_the_model_whole(tmp_path: Path) -> None:
    case = Case(tmp_path)
    shard = Shard(model=Digest("12" * 32), mass=0.9)
    served = ServedModel(id=ModelId("m"), context=8, slots=1, shard=shard)
    case.hear(BOB, announced("bob", models=(served,)))
    assert (await case.plan())["served_by"] == []


async def test_no_plan_before_the_node_is_connected_or_without_a_model(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.mesh.is_up = False
    with pytest.raises(Unavailable, match="not connected"):
        await case.plan()
    with pytest.raises(ModelError, match="there is no model x"):
        await case.planner.plan(Wanted(model="x"))


def test_whole_is_asked_of_those_that_serve_whole() -> None:
    load = Load(ModelFile(
        id=ModelId("m"), path="", size_bytes=1, architecture="llama", context_length=8,
        kv_bytes_per_token=1,
    ), split=True)  # fmt: skip
    skippy = Whole(Fit(8, 1, 0, choice="stages"))
    skippy.name = "skippy"
    assert not whole_here(load, [TOO_LARGE, skippy], resources())["fits"]
    assert whole_here(load, [FITS, skippy], resources())["fits"]


async def test_what_the_backend_of_stages_refuses_no_node_can_mend(tmp_path: Path) -> None:
    case = Case(tmp_path, backends=[TOO_LARGE])
    case.hear(BOB, announced("bob"))
    case.skippy.found = Refusal("it was trained for 512.")
    found = await case.plan(split=True, context=99999)
    assert found["choice"] is None
    stages = found["stages"]
    assert (stages["fits"], stages["final"], stages["reason"]) == (
        False, True, "it was trained for 512.",
    )  # fmt: skip


async def test_plan_for_another_model_is_final(tmp_path: Path) -> None:
    case = Case(tmp_path)
    stage = Stage(node=PeerId("alice"), layer_start=0, layer_end=4)
    other = Topology(model="other", manifest_sha256="a" * 64, stages=(stage,))
    assert (await case.plan(topology=other))["stages"]["final"]
    assert not (await case.plan(split=True))["stages"]["final"]


# Flash and shards


class Way(Whole):
    """Serves in one way, and expects what it is told to."""

    def __init__(self, name: str, found: Fit | Refusal, expected: Fit | Refusal) -> None:
        super().__init__(found)
        self.name = name
        self.expected = expected
        self.loads: list[Load] = []

    async def expect(self, load: Load, resources: Resources, mesh: Any) -> Fit | Refusal:
        self.loads.append(load)
        return self.expected


FLASH = Fit(
    256, 1, 50, tokens_per_second=1e-3, choice="flash", details={"hit_rate": 0.5, "disk": 9}
)  # fmt: skip
SHARDS = Fit(256, 1, 60, tokens_per_second=2.0, choice="shards", mass=0.99, details={"experts": 8})


def flash(found: Fit | Refusal = FLASH) -> Way:
    return Way("flash_moe", found, found)


def shards(expected: Fit | Refusal = SHARDS) -> Way:
    return Way("expert_shards", SHARDS, expected)


async def test_all_four_ways_are_weighed_with_their_numbers(tmp_path: Path) -> None:
    case = Case(tmp_path, backends=[TOO_LARGE, flash(), shards()])
    case.hear(BOB, announced("bob"))
    found = await case.plan()
    assert (found["choice"], found["waits"]) == ("stages", False)
    assert found["flash"] == {
        "fits": True, "reason": "", "backend": "flash_moe", "context": 256, "slots": 1,
        "memory_bytes": 50, "tokens_per_second": 0.0, "hit_rate": 0.5, "disk": 9,
    }  # fmt: skip
    assert found["shards"] == {
        "fits": True, "reason": "", "backend": "expert_shards", "context": 256, "slots": 1,
        "memory_bytes": 60, "tokens_per_second": 2.0, "mass": 0.99, "experts": 8,
    }  # fmt: skip
    for part in ("whole: it is too large", "in stages: ", "by expert shards: 2.0", "flash: 0.0"):
        assert part in found["why"]


async def test_flash_is_chosen_where_stages_would_wait(tmp_path: Path) -> None:
    case = Case(tmp_path, backends=[TOO_LARGE, flash()])
    assert (await case.plan())["choice"] == "flash"
    waiting = await case.plan(split=True)
    assert (waiting["choice"], waiting["waits"]) == (None, True)


async def test_shard_that_keeps_too_little_is_told_with_its_numbers(tmp_path: Path) -> None:
    poor = changed(SHARDS, mass=0.5)
    case = Case(tmp_path, backends=[TOO_LARGE, shards(poor)])
    found = await case.plan(shards=True)
    assert (found["choice"], found["waits"]) == (None, False)
    told = found["shards"]
    assert (told["fits"], told["mass"], told["experts"]) == (False, 0.5, 8)
    assert "it would keep 0.50 of the routing" in told["reason"]
    assert told["reason"] in found["why"]


@pytest.mark.parametrize("is_final", [True, False])
async def test_what_shards_wait_for_is_told(tmp_path: Path, is_final: bool) -> None:
    refusal = Refusal("nobody takes part.", "Start others with --shards.", is_final=is_final)
    case = Case(tmp_path, backends=[TOO_LARGE, shards(refusal)])
    found = await case.plan(shards=True)
    assert found["shards"] == {
        "fits": False, "reason": "nobody takes part.", "advice": "Start others with --shards.",
        "final": is_final,
    }  # fmt: skip
    assert found["waits"] is not is_final


async def test_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = await Case(tmp_path, backends=[FITS]).plan(flash=True)
    assert found["choice"] is None
    assert found["flash"]["reason"] == "the plugin flash_moe is not there."
    assert "flash_moe is not there" in found["why"]
    assert "expert_shards" in found["shards"]["reason"]


async def test_who_asks_for_one_way_asks_for_no_other(tmp_path: Path) -> None:
    sharing = shards()
    case = Case(tmp_path, backends=[FITS, flash(), sharing])
    case.hear(BOB, announced("bob"))
    case.load = changed(case.load, split=True)
    assert (await case.plan())["choice"] == "stages"
    assert (await case.plan(flash=True))["choice"] == "flash"
    assert (await case.plan(shards=True))["choice"] == "shards"
    assert (await case.plan(split=False))["choice"] == "whole"
    case.load = changed(case.load, split=False, flash=True)
    assert (await case.plan())["choice"] == "flash"
    assert (await case.plan(split=True))["choice"] == "stages"
    assert all(one.shards and not (one.split or one.flash) for one in sharing.loads)


async def test_endpoint_that_serves_it_is_told(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.planner._is_attached = lambda model: model == "m"
    assert (await case.plan())["served_by"] == ["an endpoint of this node"]


def test_flash_can_be_told_without_a_mesh() -> None:
    load = Load(ModelFile(
        id=ModelId("m"), path="", size_bytes=1, architecture="qwen3moe", context_length=8,
        kv_bytes_per_token=1,
    ))  # fmt: skip
    found = flash_here(load, [FITS, flash()], resources())
    assert (found["fits"], found["backend"], found["hit_rate"]) == (True, "flash_moe", 0.5)
    refused = flash_here(load, [FITS, flash(Refusal("no.", "Buy."))], resources())
    assert refused == {"fits": False, "reason": "no.", "advice": "Buy.", "final": True}


async def test_memory_that_the_model_has_already_counts_as_free(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.hear(BOB, announced("bob"))
    case.mesh.free = 20 * MB
    assert not (await case.plan())["stages"]["fits"]
    for held, free in ((130 * MB, 150 * MB), (500 * MB, 200 * MB)):
        case.planner._held = {"m": held}.get  # type: ignore[assignment]
        stages = (await case.plan())["stages"]["stages"]
        assert stages[0]["free_bytes"] == free
