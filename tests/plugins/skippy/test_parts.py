"""What a stage is made of, and that it is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from meshnode_skippy import composing, lease, parts
from meshnode_skippy.seat import STEP

from p2p_mesh.core import families
from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import ModelError
from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.models import write_embedder
from tests.plugins.skippy.town import Town, Whole


def quiet(share: float) -> None: ...


async def whole(town: Town, model: ModelFile) -> Whole:
    return Whole(await town.packages.opened(model.path))


async def test_a_middle_stage_has_no_vocabulary(town: Town, deep: ModelFile) -> None:
    package = await whole(town, deep)
    found = await parts.gather(package, 3, 6, quiet)
    header = parts.header_of(Path(found.path))
    assert header.number("block_count") == 3
    assert found.embeddings is None
    assert not found.wiring.has_vocabulary
    assert [path for path in package.fetched[0] if path.startswith("shared")] == [
        package.manifest.metadata.path
    ]


async def test_a_first_stage_looks_rows_up_in_the_table(town: Town, deep: ModelFile) -> None:
    package = await whole(town, deep)
    found = await parts.gather(package, 0, 3, quiet)
    if found.wiring.entry == "rows":
        assert found.embeddings == deep.path
    assert package.manifest.embeddings.path in package.fetched[0]


async def test_two_that_want_one_stage_compose_it_once(town: Town, deep: ModelFile) -> None:
    package = await whole(town, deep)
    found: list[parts.Parts] = []

    async def one() -> None:
        found.append(await parts.gather(package, 3, 6, quiet))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
    assert found[0] == found[1] == found[2]
    assert len(list(Path(found[0].path).parent.iterdir())) == 1


async def test_a_stage_is_written_where_there_is_room(town: Town, deep: ModelFile) -> None:
    package = await whole(town, deep)
    package.most = 10_000
    with pytest.raises(ModelError, match="--max-disk"):
        await parts.gather(package, 3, 6, quiet)
    wanted = map(package.manifest.artifact, package.fetched[0])
    assert package.rooms == [sum(one.artifact_bytes for one in wanted)]
    package.most = package.rooms[0]
    await parts.gather(package, 3, 6, quiet)
    package.most = 0
    await parts.gather(package, 3, 6, quiet)  # it is there
    assert len(package.rooms) == 2


async def test_the_share_rises_until_the_stage_is_written(
    town: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "CHUNK", 4096)
    shares: list[float] = []
    await parts.gather(await whole(town, deep), 3, 6, shares.append)
    assert shares == sorted(shares)
    assert len([share for share in shares if share > parts.ADMITTED]) > 5
    assert shares[-1] == 1


async def test_a_stage_that_is_no_longer_wanted_is_no_longer_written(
    town: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "CHUNK", 4096)
    shares: list[float] = []

    def leave(share: float) -> None:
        shares.append(share)
        if share > parts.ADMITTED:
            scope.cancel()

    package = await whole(town, deep)
    with trio.CancelScope() as scope:
        await parts.gather(package, 3, 6, leave)
    assert scope.cancelled_caught
    assert len([share for share in shares if share > parts.ADMITTED]) == 1
    assert not [*cache_dir().glob("stages/*/*")]
    await parts.gather(package, 3, 6, quiet)


async def test_a_wait_that_tells_nothing_is_taken_for_progress_and_not_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shares: list[float] = []
    async with parts.beating(shares.append, parts.OPENED, parts.QUEUED):
        await trio.sleep(100 * lease.STALLED)
    assert parts.OPENED == shares[0] < shares[-1] < parts.QUEUED
    assert all(after - before > STEP for before, after in pairwise(shares))
    assert len(shares) == parts.BEATS
    assert 2 * parts.BEAT < lease.STALLED


async def test_what_fails_during_a_wait_is_raised_as_it_is() -> None:
    with pytest.raises(ModelError, match="too bad"):
        async with parts.beating(quiet, 0.0, 0.5):
            raise ModelError("too bad")


async def test_a_fetch_that_is_waited_for_and_checked_is_in_progress(
    town: Town, deep: ModelFile, autojump_clock: trio.testing.MockClock
) -> None:
    class Slow(Whole):
        async def fetch(
            self, artifacts: Sequence[str], progress: Callable[[float], None] = quiet
        ) -> Sequence[Path]:
            await trio.sleep(2 * lease.STALLED)
            progress(0.5)
            await trio.sleep(lease.STALLED / 2)
            progress(1.0)
            await trio.sleep(2 * lease.STALLED)
            if self.is_lost:
                raise ModelError("nobody has it")
            return [Path(deep.path)]

        is_lost = False

    risen: list[tuple[float, float]] = []

    def rise(share: float) -> None:
        if share > (risen[-1][1] if risen else -1):
            risen.append((trio.current_time(), share))

    package = Slow(await town.packages.opened(deep.path))
    await parts._fetch(package, ["layers"], rise)
    times = [0.0, *(time for time, _ in risen), trio.current_time()]
    assert max(after - before for before, after in pairwise(times)) < lease.STALLED
    assert risen[-1][1] < parts.CHECKED
    package.is_lost = True
    with pytest.raises(ModelError, match="nobody has it"):
        await parts._fetch(package, ["layers"], rise)


async def test_other_rules_make_another_file(town: Town, deep: ModelFile) -> None:
    header = parts.header_of(Path(deep.path))
    cutting = families.study(header)
    names = {parts.stage_file("a" * 64, cutting.recipe(*cut)) for cut in ((3, 6), (3, 7), (2, 6))}
    assert len(names) == 3
    assert {one.parent.name for one in names} == {"a" * 64}


async def test_a_family_that_cannot_be_cut_is_named(town: Town, tmp_path: Path) -> None:
    package = await whole(town, write_embedder(tmp_path / "bert.gguf"))
    with pytest.raises(ModelError, match="bert"):
        await parts.study(package, context=64, slots=1)


async def test_the_model_is_studied_for_its_plan(town: Town, deep: ModelFile) -> None:
    package = await whole(town, deep)
    model = await parts.study(package, context=64, slots=1, model="deep")
    assert (model.id, model.total, model.manifest) == ("deep", 9, package.ref.manifest)
    assert model.need(0, 4) < model.need(0, 9)


def test_what_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        parts.header_of(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match="cannot be read"):
        parts.header_of(tmp_path / "empty.gguf")


async def test_a_disk_that_takes_nothing_is_an_error_in_words(
    town: Town, deep: ModelFile, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        await parts.gather(await whole(town, deep), 3, 6, quiet)


async def test_the_table_is_found_among_many_files(town: Town, deep: ModelFile) -> None:
    package = await whole(town, deep)
    middle = Path((await parts.gather(package, 3, 6, quiet)).path)
    assert parts._holding(parts.TABLE, [Path(deep.path)]) == deep.path
    with pytest.raises(ModelError, match="no part"):
        parts._holding("none.weight", [middle, middle])
    assert parts._holding("blk.8.attn_q.weight", [middle, Path(deep.path)]) == deep.path
